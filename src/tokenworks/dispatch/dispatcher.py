"""The dispatcher: one event in, commands out, and a memory that can be written down.

Contract: the same (now, event) sequence gives the same commands on any machine, under any hash
seed. A driver journals (now, event) before it carries out the commands, answers each command by an
event, and never lets ``now`` go back.

Who goes first and where is a policy's answer (``policy.Policy``); the dispatcher checks it. What is
the same under every policy stands here: each request ends once, lines and times are bounded, a
worker that breaks off costs a retry, and a policy that is wrong is overruled and counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import UNSET, structs

from tokenworks.core.ids import ModelName, RequestID, WorkerID
from tokenworks.core.needs import nothing_offers
from tokenworks.core.slo import Promise, Tier
from tokenworks.dispatch import hedging, pickers, preemption, restricted, snapshot, wakes
from tokenworks.dispatch.commands import (
    Command,
    Queue,
    RejectCode,
    RejectReason,
    Send,
    SetTimer,
    TickReason,
)
from tokenworks.dispatch.ended import EndedNames
from tokenworks.dispatch.events import (
    Arrived,
    BlocksRemoved,
    BlocksStored,
    Configured,
    DecoderUp,
    Event,
    Failed,
    Finished,
    Limits,
    PoolScale,
    Started,
    Ticked,
    Withdrawn,
    WorkerDown,
    WorkerUp,
)
from tokenworks.dispatch.fleet import Fleet, observe
from tokenworks.dispatch.hedging import Hedging, Winner, is_another
from tokenworks.dispatch.kv_tiers import KVTiers
from tokenworks.dispatch.oversight import Oversight
from tokenworks.dispatch.policy import Choice, MakePolicy
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.rejections import rejection, withdrawal
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.scaling import Scaler, ScalingMemory, given_back
from tokenworks.dispatch.states import State, Step, after
from tokenworks.dispatch.waiting import Line, Watched
from tokenworks.dispatch.workers import RANKS, Worker, WorkerLoad

TIERS = tuple(Tier)
_RANK_OF: Final = {tier: tier.rank for tier in Tier}
# To look up an enum's member takes a quarter of a microsecond; these are asked for at every event.
_QUEUED: Final = State.QUEUED
_SENT: Final = State.SENT
_SEND: Final = Step.SEND
_START: Final = Step.START
_FINISH: Final = Step.FINISH


class Dispatcher:
    """Decides where every request goes. Its first event is ``Configured``.

    Args:
        own_policies: policies that the operator has brought, by the name that
            ``PolicySettings.name`` calls them.
    """

    def __init__(self, own_policies: Mapping[str, MakePolicy] | None = None) -> None:
        self._counts = snapshot.Counts()
        self._policy = Oversight(own_policies or {}, self._counts)
        self._handlers: dict[type[Any], Callable[[Any, list[Command]], None]] = {
            Failed: self._failed,
            Withdrawn: self._withdrawn,
            Ticked: self._ticked,
            WorkerUp: self._worker_up,
            DecoderUp: self._worker_up,
            WorkerDown: self._worker_down,
            BlocksStored: self._blocks_told,
            BlocksRemoved: self._blocks_told,
            Configured: self._configure,
        }
        self._now_ns = 0
        self._configured: Configured | None = None
        self._promises: list[Promise] = []
        self._late_after_ns: list[int] = []
        self._limits = Limits(queue_len_max={})
        self._batch_cap = 0
        self._queue_at_worker = False
        self._timer_ns: int | None = None
        self._requests: dict[RequestID, Request] = {}
        self._ended = EndedNames()
        self._wakes: list[wakes.Wake] = []
        self._queued = 0
        self._workers: dict[WorkerID, Worker] = {}
        self._fleets: dict[ModelName, Fleet] = {}
        self._prefixes = PrefixIndex(0)
        self._scaling = ScalingMemory()
        self._kv_tiers = KVTiers()
        self._scaler: Scaler | None = None
        self._hedging: Hedging | None = None
        self._retiring: dict[WorkerID, Worker] = {}

    # What a driver calls.

    def handle(self, now_ns: int, event: Event) -> list[Command]:
        """Take one event and decide.

        Args:
            now_ns: the driver's clock; never less than before.
            event: what happened. The first one is ``Configured``.

        Returns:
            What is to be done, in this order.
        """
        assert now_ns >= self._now_ns, (now_ns, self._now_ns)
        assert self._configured is not None or type(event) is Configured, event
        self._now_ns = now_ns
        self._counts.events += 1
        commands: list[Command] = []
        if self._wakes and self._wakes[0][0] <= now_ns:
            self._wake(event, commands)
        # A request's own three events need not look for who takes them.
        if type(event) is Arrived:
            self._arrived(event, commands)
        elif type(event) is Started:
            self._started(event, commands)
        elif type(event) is Finished:
            self._finished(event, commands)
        else:
            handler = self._handlers.get(type(event))
            assert handler is not None, event
            handler(event, commands)
        if self._scaler is not None:
            self._scale(self._scaler, commands)
        if self._wakes:
            self._set_timer(commands)
        if self._hedging is not None:
            self._hedge(self._hedging, commands)
        if self._scaler is not None:
            self._set_look(self._scaler, commands)
        return commands

    def digest(self) -> str:
        """A hash of the whole memory, 32 hex digits."""
        return hashlib.blake2b(self.snapshot(), digest_size=16).hexdigest()

    def counts(self) -> dict[str, int]:
        """What happened since the first event, by name; see ``snapshot.Counts``."""
        return structs.asdict(self._counts)

    def loads(self) -> dict[WorkerID, WorkerLoad]:
        """What each worker that is up has, for gauges."""
        return {name: WorkerLoad.of(each) for name, each in self._workers.items()}

    def queue_lens(self) -> dict[tuple[ModelName, Tier], int]:
        """How many requests wait per model and tier, for gauges."""
        return {
            (name, tier): fleet.waiting(rank)
            for name, fleet in self._fleets.items()
            for rank, tier in enumerate(TIERS)
        }

    def snapshot(self) -> bytes:
        """The whole memory; the same memory gives the same bytes."""
        return snapshot.encode(
            snapshot.Snapshot(
                format=snapshot.SNAPSHOT_FORMAT,
                now_ns=self._now_ns,
                configured=self._configured,
                timer_ns=self._timer_ns,
                counts=self._counts,
                requests=list(self._requests.values()),
                ended=self._ended.names(),
                wakes=self._wakes,
                workers=list(self._workers.values()),
                models=[snapshot.model_record(name, fleet) for name, fleet in self._fleets.items()],
                prefixes=self._prefixes.record(),
                policy=self._policy.record(),
                scaling=self._scaling,
                kv_tiers=self._kv_tiers,
                watched=None if self._hedging is None else self._hedging.record(),
            )
        )

    @classmethod
    def restore(
        cls, data: bytes, own_policies: Mapping[str, MakePolicy] | None = None
    ) -> Dispatcher:
        """The dispatcher that gave this snapshot.

        Raises:
            msgspec.MsgspecError: these bytes are no snapshot of this format.
        """
        memory = snapshot.decode(data)
        dispatcher = cls(own_policies)
        dispatcher._now_ns = memory.now_ns
        dispatcher._scaling, dispatcher._kv_tiers = memory.scaling, memory.kv_tiers
        dispatcher._prefixes = PrefixIndex.restore(memory.prefixes)
        dispatcher._workers = {each.worker: each for each in memory.workers}
        dispatcher._retiring = {each.worker: each for each in memory.workers if each.retiring}
        if memory.configured is not None:
            dispatcher._adopt(memory.configured, memory.watched)
            dispatcher._policy.restore(memory.configured, memory.policy)
        dispatcher._timer_ns = memory.timer_ns
        dispatcher._counts = dispatcher._policy.counts = memory.counts
        dispatcher._requests = {each.request: each for each in memory.requests}
        dispatcher._ended = EndedNames(memory.ended)
        dispatcher._wakes = memory.wakes
        for record in memory.models:
            fleet = snapshot.fleet_of(record, dispatcher._workers, dispatcher._requests)
            dispatcher._fleets[record.model] = fleet
            dispatcher._queued += sum(fleet.waiting(rank) for rank in RANKS)
        return dispatcher

    # Events about requests.

    def _arrived(self, event: Arrived, commands: list[Command]) -> None:
        name, now_ns = event.request, self._now_ns
        if name in self._requests or self._ended.has(name):
            self._counts.ignored += 1
            return
        rank, arrived_ns, model = _RANK_OF[event.tier], event.arrived_ns, event.model
        prompt_tokens, needs, hints = event.input_tokens_max, event.needs, event.hints
        request = Request(
            request=name,
            tenant=event.tenant,
            model=model,
            rank=rank,
            output_tokens_max=event.output_tokens_max,
            input_tokens_max=prompt_tokens,
            prefix=event.prefix[: self._limits.prefix_len_max],
            arrived_ns=arrived_ns,
            late_ns=arrived_ns + self._late_after_ns[rank],
            queued_ns=now_ns,
            session=event.session,
            needs=None if needs is UNSET else needs,
            hints=None if hints is UNSET else hints,
            once=event.once is True,
            unheard=event.unheard is True,
        )
        self._requests[name] = request
        fleet = self._fleets.get(model)
        if fleet is None:
            self._reject(request, "worker_unavailable", "model_never_up", commands)
            return
        if needs is not UNSET and nothing_offers(fleet.offered, needs):
            self._reject(request, "not_offered", "never_offered", commands)
            return
        if not fleet.may_hold(prompt_tokens, request):
            self._reject(request, "invalid_request", "prompt_too_long", commands)
            return
        self._policy.arrived(fleet, request, now_ns)
        if fleet.open and not fleet.queued and not fleet.restricted:
            choice = self._policy.place(fleet, request, now_ns)
            if choice is not None:
                self._send(fleet, request, choice, commands)
                return
        fleet.queue(request)
        self._queued += 1
        if fleet.queued > 1 or fleet.restricted:
            self._drain(fleet, commands)
        if request.state is _QUEUED:
            self._keep_waiting(fleet, request, commands)

    def _started(self, event: Started, commands: list[Command]) -> None:
        request = self._requests.get(event.request)
        if (
            request is None
            or request.state is not _SENT
            or (event.worker is not UNSET and is_another(request, event.worker))
        ):
            self._counts.ignored += 1
            return
        fleet = self._fleets[request.model]
        # There, while its own worker goes on with it.
        makes_room = request.prefiller is not None
        if request.second is not None:
            makes_room = True
            self._decide(request, event.worker, commands)
        request.state = after(_SENT, _START)
        request.answered = True
        worker = self._worker_of(request)
        self._leave_prefill(request, worker)
        if (makes_room or worker.prefilled_by is not None) and (fleet.queued or fleet.restricted):
            self._drain(fleet, commands)

    def _finished(self, event: Finished, commands: list[Command]) -> None:
        request = self._requests.get(event.request)
        if (
            request is None
            or request.state is _QUEUED
            or (event.worker is not UNSET and is_another(request, event.worker))
        ):
            self._counts.ignored += 1
            return
        fleet = self._fleets[request.model]
        if request.second is not None:
            self._decide(request, event.worker, commands)
        worker = self._release(fleet, request)
        observe(worker, self._now_ns - request.sent_ns)
        if request.hints is not None:
            offload = self._kv_tiers.paused(request, self._workers, self._now_ns)
            if offload is not None:
                commands.append(offload)
        self._counts.finished += 1
        self._end(request, _FINISH)
        self._policy.finished(fleet, worker, request, event)
        if fleet.queued or fleet.restricted:
            self._drain(fleet, commands)

    def _failed(self, event: Failed, commands: list[Command]) -> None:
        request = self._requests.get(event.request)
        if request is None or request.state is _QUEUED or is_another(request, event.worker):
            self._counts.ignored += 1
            return
        fleet = self._fleets[request.model]
        if request.second is not None:
            if not event.started:
                hedging.without(fleet, self._workers, request, event.worker)
                self._drain(fleet, commands)
                return
            self._decide(request, event.worker, commands)
        request.avoided = request.prefiller
        self._release(fleet, request)
        self._broken_off(fleet, request, commands, started=event.started)
        self._drain(fleet, commands)
        if self._is_queued(request.request):
            self._keep_waiting(fleet, request, commands)

    def _withdrawn(self, event: Withdrawn, commands: list[Command]) -> None:
        request = self._requests.get(event.request)
        if request is None:
            self._counts.ignored += 1
            return
        fleet = self._fleets[request.model]
        if request.state is _QUEUED:
            self._unqueue(fleet, request)
        else:
            had = [(self._release(fleet, request).worker, request.sent_ns)]
            if request.second is not None:
                second = hedging.drop(fleet, self._workers, request)
                had.append((second.worker, second.sent_ns))
            commands += [withdrawal(request.request, *each, self._now_ns) for each in had]
        self._counts.withdrawn += 1
        self._end(request, Step.WITHDRAW)
        self._drain(fleet, commands)

    def _ticked(self, _: Ticked, __: list[Command]) -> None:
        self._timer_ns = None

    # Events about workers and settings.

    def _worker_up(self, event: WorkerUp, commands: list[Command]) -> None:
        old = self._workers.get(event.worker)
        if old is not None and (old.model, old.pool) != (event.model, event.pool):
            self._lose(old, commands)
            old = None
        if old is not None:
            self._worker_measured(old, event, commands)
            return
        fleet = self._fleets.get(event.model)
        if len(self._workers) >= self._limits.workers_max or (
            fleet is None and len(self._fleets) >= self._limits.models_max
        ):
            self._counts.ignored += 1
            return
        if fleet is None:
            fleet = self._fleets[event.model] = Fleet([], [Line() for _ in TIERS], [])
        slots = self._slots_of(event.slots)
        worker = Worker.of(event, slots, self._prefixes.add_worker())
        worker.measure(dict(zip(TIERS, self._promises, strict=True)))
        self._workers[event.worker] = worker
        fleet.workers.append(worker)
        fleet.renew()
        self._drain(fleet, commands)

    def _worker_measured(self, worker: Worker, event: WorkerUp, commands: list[Command]) -> None:
        if not worker.differs(event):
            self._counts.ignored += 1
            return
        worker.take_over(event, self._slots_of(event.slots))
        worker.measure(dict(zip(TIERS, self._promises, strict=True)))
        fleet = self._fleets[worker.model]
        fleet.renew()
        self._drain(fleet, commands)

    def _worker_down(self, event: WorkerDown, commands: list[Command]) -> None:
        worker = self._workers.get(event.worker)
        if worker is None:
            self._counts.ignored += 1
            return
        self._lose(worker, commands)

    def _lose(self, worker: Worker, commands: list[Command]) -> None:
        fleet = self._fleets[worker.model]
        self._kv_tiers.forget(worker.worker)
        had = [self._requests[name] for name in reversed(worker.running)]
        lost = [each for each in had if not hedging.outlives(each, worker)]
        fleet.fill_retries(self._limits.retry_percent, self._now_ns)  # while its slots count
        for request in lost:
            self._leave_prefill(request, worker)
        if worker.retiring:
            del self._retiring[worker.worker]
        else:
            fleet.workers.remove(worker)
            fleet.forget(worker)
            fleet.renew()
        del self._workers[worker.worker]
        self._prefixes.remove_worker(worker.index)
        # What it prefilled for others may be theirs by now: a driver tells of each that is lost.
        for name in worker.prefilling:
            request = self._requests[name]
            request.prefiller = None
            request.prefill_tokens = 0
        for request in lost:
            self._broken_off(fleet, request, commands, started=False)
        self._drain(fleet, commands)
        for request in lost:
            if self._is_queued(request.request):
                self._keep_waiting(fleet, request, commands)

    def _blocks_told(self, event: BlocksStored | BlocksRemoved, _: list[Command]) -> None:
        worker = self._workers.get(event.worker)
        if worker is None:
            self._counts.ignored += 1
        else:
            self._prefixes.told(event, worker.index)

    def _configure(self, event: Configured, commands: list[Command]) -> None:
        if event == self._configured:
            self._counts.ignored += 1
            return
        self._adopt(event)
        if self._hedging is not None:
            self._hedging.watch_anew(self._requests.values(), self._workers)
        for worker in self._workers.values():
            worker.slots = self._slots_of(worker.engine_slots)
            worker.measure(event.promises)
        for request in self._requests.values():
            request.late_ns = request.arrived_ns + self._late_after_ns[request.rank]
        for fleet in self._fleets.values():
            fleet.renew()
            self._drain(fleet, commands)
        self._rebuild_wakes()

    def _adopt(self, configured: Configured, watched: Watched | None = None) -> None:
        assert len(configured.promises) == len(TIERS), "every tier needs a promise"
        assert len(configured.limits.queue_len_max) == len(TIERS), "every tier needs a bound"
        self._configured, settings = configured, configured.policy
        self._promises = [configured.promises[tier] for tier in TIERS]
        self._late_after_ns = [each.ttft_ns // 2 + 1 for each in self._promises]
        self._limits = limits = configured.limits
        self._batch_cap = min(limits.slots_max, settings.batch_cap or limits.slots_max)
        self._queue_at_worker = settings.queue_at_worker
        self._prefixes.resize(limits.prefix_blocks_max, limits.prefix_ttl_ns)
        pools = () if configured.scaling is UNSET else configured.scaling
        self._scaler = None
        if pools or self._retiring:
            ttft_ns = [each.ttft_ns for each in self._promises]
            self._scaler = Scaler(pools, ttft_ns, self._scaling)
        self._hedging = Hedging(limits, self._promises, watched) if limits.hedge_percent else None
        self._policy.configure(configured, self._prefixes)

    def _slots_of(self, engine_slots: int) -> int:
        """Requests that are sent to a worker at once."""
        return self._batch_cap if self._queue_at_worker else min(engine_slots, self._batch_cap)

    # Deciding.

    def _drain(self, fleet: Fleet, commands: list[Command]) -> None:
        """Send what the policy wants sent of those that wait."""
        if not fleet.open:
            return
        if fleet.restricted:
            for request, choice in restricted.drain(self._policy, fleet, self._now_ns):
                self._serve(fleet, request, choice, commands)
        elif fleet.queued:
            for request, choice in self._policy.drain(fleet, self._now_ns):
                self._serve(fleet, request, choice, commands)

    def _serve(
        self, fleet: Fleet, request: Request, choice: Choice, commands: list[Command]
    ) -> None:
        """Send a request that waits; its tenant goes to the end of the rotation."""
        fleet.unqueue(request, served=True)
        self._queued -= 1
        self._send(fleet, request, choice, commands)

    def _displace(
        self, fleet: Fleet, request: Request, event: Event, commands: list[Command]
    ) -> None:
        """Let a request that waits take the place of others, if its policy wants that."""
        found = self._policy.displace(fleet, request, self._now_ns, self._requests)
        if found is None:
            return
        told_of = getattr(event, "request", None)
        if any(victim.request == told_of for victim in found.victims):
            return  # it may have ended
        for rank, count in Counter(victim.rank for victim in found.victims).items():
            if fleet.waiting(rank) + count > self._limits.queue_len_max[TIERS[rank]]:
                return  # one of them would be turned away
        for victim in found.victims:
            worker = self._release(fleet, victim)
            victim.state = after(victim.state, Step.PREEMPT)
            victim.displaced = True
            victim.queued_ns = self._now_ns
            fleet.queue(victim, first=True)
            self._queued += 1
            self._counts.displaced += 1
            commands.append(preemption.preempt(victim, worker, request, found, self._now_ns))
        self._serve(fleet, request, found.choice, commands)
        self._drain(fleet, commands)
        for victim in found.victims:
            if self._is_queued(victim.request):
                self._keep_waiting(fleet, victim, commands)

    def _send(
        self, fleet: Fleet, request: Request, choice: Choice, commands: list[Command]
    ) -> None:
        """Give a request that is in no line to the worker that was chosen."""
        worker, prefiller, hit_blocks = choice.worker, choice.prefiller, choice.hit_blocks
        now_ns, name, rank = self._now_ns, request.request, choice.rank
        worker_name, prompt_tokens = worker.worker, request.input_tokens_max
        request.state = after(request.state, _SEND)
        request.attempt = attempt = request.attempt + 1
        if attempt == 1:
            fleet.firsts += 1
        request.worker, request.sent_ns = worker_name, now_ns
        left = prompt_tokens - hit_blocks * worker.block_tokens if hit_blocks else prompt_tokens
        request.prefill_tokens = left = 0 if request.unheard else max(left, 1)
        if prefiller is None:
            worker.prefill_tokens += left
        else:
            request.prefiller = prefiller.worker
            prefiller.prefill_tokens += left
            prefiller.prefilling[name] = None
        worker.context_tokens += prompt_tokens
        fleet.take(worker, name, rank)
        fleet.sent_ranks.append(rank)
        if self._scaler is not None:
            self._scaler.waited(fleet, request, now_ns - request.queued_ns)
        if request.session is not None:
            fleet.remember(request, worker)
            computes = worker if prefiller is None else prefiller
            if computes.host_bytes_per_s:
                fetch = self._kv_tiers.sent(request, computes, hit_blocks, now_ns)
                if fetch is not None:
                    commands.append(fetch)
        if prefix := request.prefix:
            at = worker if prefiller is None else prefiller
            self._prefixes.insert(prefix, at.index, now_ns)
        if self._hedging is not None:
            self._hedging.watch(request, worker, now_ns)
        self._counts.sent += 1
        commands.append(
            Send(
                request=name,
                worker=worker_name,
                attempt=attempt,
                reason=choice.reason,
                running=len(worker.running),
                cap=worker.limit,
                candidates=choice.candidates,
                hit_blocks=hit_blocks,
                waited_ns=now_ns - request.arrived_ns,
                value_nanodollars=choice.value_nanodollars,
                prefill_worker=None if prefiller is None else prefiller.worker,
            )
        )

    def _release(self, fleet: Fleet, request: Request) -> Worker:
        """Take a request off the worker that has it."""
        worker = self._worker_of(request)
        fleet.release(worker, request.request)
        self._leave_prefill(request, worker)
        worker.context_tokens -= request.input_tokens_max
        return worker

    def _leave_prefill(self, request: Request, worker: Worker) -> None:
        """Count off what is left of a prompt, where it was to be computed: there, or elsewhere."""
        left, prefiller = request.prefill_tokens, request.prefiller
        if prefiller is not None:
            worker = self._workers[prefiller]
            del worker.prefilling[request.request]
            request.prefiller = None
        if left:  # nothing, once it has begun its answer
            worker.prefill_tokens -= left
            request.prefill_tokens = 0

    def _broken_off(
        self, fleet: Fleet, request: Request, commands: list[Command], *, started: bool
    ) -> None:
        """A worker no longer has this request: it ends, or waits to be sent again."""
        if started or request.answered:
            self._counts.broken += 1
            self._end(request, Step.BREAK)
        elif request.attempt - request.displaced > self._limits.retries_max:
            self._reject(request, "worker_failed", "retries_over", commands)
        elif not fleet.may_retry(self._limits.retry_percent, self._now_ns):
            self._counts.retries_refused += 1
            self._reject(request, "worker_failed", "retries_spent", commands)
        else:
            self._counts.retried += 1
            request.state = after(request.state, Step.RETRY)
            request.queued_ns = self._now_ns
            fleet.queue(request, first=True)
            self._queued += 1

    def _keep_waiting(self, fleet: Fleet, request: Request, commands: list[Command]) -> None:
        """Leave a request in its line, or reject it if the line is over its bound by now."""
        if fleet.waiting(request.rank) > self._limits.queue_len_max[TIERS[request.rank]]:
            self._unqueue(fleet, request)
            code: RejectCode = "worker_failed" if request.attempt else "capacity_exceeded"
            self._reject(request, code, "queue_full", commands)
            return
        deadline_ns = self._deadline_ns(request)
        wakes.put(self._wakes, request, deadline_ns, self._now_ns)
        workers = pickers.permitted(fleet, request, fleet.up).bit_count()
        commands.append(
            Queue(
                request=request.request,
                reason="at_cap" if workers else "no_worker_up",
                ahead=fleet.ahead(request.rank) - 1,
                workers=workers,
                deadline_ns=deadline_ns,
            )
        )

    def _reject(
        self, request: Request, code: RejectCode, reason: RejectReason, commands: list[Command]
    ) -> None:
        """End a request that is in no line any more."""
        fleet = self._fleets.get(request.model)
        promise = self._promises[request.rank]
        if fleet is not None and self._scaler is not None and code == "capacity_exceeded":
            self._scaler.waited(fleet, request, promise.ttft_ns)
        self._counts.rejected += 1
        commands.append(rejection(request, code, reason, fleet, promise, self._now_ns))
        self._end(request, Step.REJECT)

    # Time.

    def _wake(self, event: Event, commands: list[Command]) -> None:
        """Send what became late; reject what has waited as long as its tier's patience allows."""
        changed: dict[ModelName, None] = {}
        due: list[Request] = []
        late: list[Request] = []
        for name in wakes.take_due(self._wakes, self._now_ns):
            request = self._requests.get(name)
            if request is None or request.state is not _QUEUED:
                continue
            changed[request.model] = None
            if self._deadline_ns(request) <= self._now_ns:
                due.append(request)
            elif self._fleets[request.model].preempting:
                late.append(request)
        for model in changed:
            self._drain(self._fleets[model], commands)
        for request in late:
            if self._is_queued(request.request):
                self._displace(self._fleets[request.model], request, event, commands)
        for request in due:
            if request.state is _QUEUED and self._is_queued(request.request):
                fleet = self._fleets[request.model]
                self._unqueue(fleet, request)
                reason: RejectReason = "patience_over"
                code: RejectCode = "capacity_exceeded"
                if request.answered:
                    code = "worker_failed"  # what it has made is all that it will get
                elif not pickers.permitted(fleet, request, fleet.up):
                    reason = "no_worker_up"
                    if fleet.workers:
                        code = "worker_unavailable"
                self._reject(request, code, reason, commands)
        for model in {request.model: None for request in due}:
            self._drain(self._fleets[model], commands)

    def _set_timer(self, commands: list[Command]) -> None:
        """Ask for a tick when the earliest thing due is earlier than the tick that is coming."""
        if len(self._wakes) > 4 * self._queued + 64:
            self._rebuild_wakes()
        next_ns = wakes.next_ns(self._wakes, self._is_queued)
        if next_ns is not None:
            self._tick_at(next_ns, "waiting", commands)

    def _tick_at(self, at_ns: int, reason: TickReason, commands: list[Command]) -> None:
        """Ask for a tick, if none comes by then."""
        if self._timer_ns is None or at_ns < self._timer_ns:
            self._timer_ns = at_ns
            commands.append(SetTimer(at_ns=at_ns, reason=reason, queued=self._queued))

    def _rebuild_wakes(self) -> None:
        waiting = [request for fleet in self._fleets.values() for request in fleet.all_waiting()]
        self._wakes = wakes.of(
            ((request, self._deadline_ns(request)) for request in waiting), self._now_ns
        )

    def _deadline_ns(self, request: Request) -> int:
        return request.queued_ns + self._promises[request.rank].patience_ns

    def _hedge(self, hedges: Hedging, commands: list[Command]) -> None:
        """Ask second workers where that is due, and for a tick when it will be."""
        if hedges.next_ns <= self._now_ns:
            memory = self._requests, self._fleets, self._workers, self._prefixes
            found = hedges.look(*memory, self._now_ns)
            self._counts.hedged += len(found)
            commands += found
        if hedges.next_ns < hedging.NEVER_NS:
            self._tick_at(hedges.next_ns, "hedging", commands)

    def _decide(self, request: Request, winner: Winner, commands: list[Command]) -> None:
        """One of the two workers that have a request has begun its answer: the other one stops."""
        memory = self._fleets[request.model], self._workers, self._prefixes, self._counts
        commands.append(hedging.decide(*memory, request, winner, self._now_ns))

    # How many workers there are.

    def _scale(self, scaler: Scaler, commands: list[Command]) -> None:
        """Look whether pools want other numbers of workers, and give back those that are empty."""
        if self._scaling.next_ns <= self._now_ns:
            for wish in scaler.look(self._fleets, self._now_ns):
                if wish.retire is not None:
                    self._fleets[wish.pool.model].retire(wish.retire)
                    self._retiring[wish.retire.worker] = wish.retire
                    continue
                up = wish.up + self._take_back(wish.pool, wish.workers - wish.up, commands)
                if up < wish.workers:
                    commands.append(wish._replace(up=up).command())
        for worker in list(self._retiring.values()):
            if not worker.running and not worker.prefilling:
                self._give_back(worker, commands)
        if not self._retiring and not self._scaling.pools:
            self._scaler = None  # as it is after a restart

    def _take_back(self, pool: PoolScale, count: int, commands: list[Command]) -> int:
        """Let workers of a pool stay that still end what they have, the last one first.

        Returns:
            How many, at most ``count``.
        """
        ending = [each for each in self._retiring.values() if each.pool == pool.pool][-count:]
        if ending:
            fleet = self._fleets[pool.model]
            for worker in reversed(ending):
                del self._retiring[worker.worker]
                fleet.take_back(worker)
            fleet.renew()
            self._drain(fleet, commands)
        return len(ending)

    def _give_back(self, worker: Worker, commands: list[Command]) -> None:
        del self._retiring[worker.worker]
        del self._workers[worker.worker]
        self._kv_tiers.forget(worker.worker)
        self._prefixes.remove_worker(worker.index)
        up = sum(each.pool == worker.pool for each in self._fleets[worker.model].workers)
        commands.append(given_back(worker, up))

    def _set_look(self, scaler: Scaler, commands: list[Command]) -> None:
        """Ask for a tick at the next look, if one may come to something with no other event."""
        at_ns, timer_ns = self._scaling.next_ns, self._timer_ns
        if timer_ns is not None and timer_ns <= at_ns:
            return
        if scaler.is_watching(self._fleets):
            self._tick_at(at_ns, "scaling", commands)

    # Small steps.

    def _is_queued(self, name: RequestID) -> bool:
        request = self._requests.get(name)
        return request is not None and request.state is _QUEUED

    def _worker_of(self, request: Request) -> Worker:
        assert request.worker is not None, request.request
        return self._workers[request.worker]

    def _unqueue(self, fleet: Fleet, request: Request) -> None:
        fleet.unqueue(request)
        self._queued -= 1

    def _end(self, request: Request, step: Step) -> None:
        """Forget a request; its name is kept for a while to recognise late messages."""
        request.state, name = after(request.state, step), request.request
        del self._requests[name]
        self._ended.add(name, self._limits.ended_max)
