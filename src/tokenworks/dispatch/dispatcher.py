"""The dispatcher: one event in, commands out, and a memory that can be written down.

Contract: the same (now, event) sequence gives the same commands on any machine, under any hash
seed. A driver journals (now, event) before it carries out the commands, answers each command by an
event, and never lets ``now`` go back.

Who goes first: a request competes at the highest tier, not above the one it asks for, of which no
more than half of the TTFT promise is gone; when every tier's is, at free. While that is the tier it
asks for, it is on time. From ultra down to free, those on time are sent where every promise that
runs there stays kept, and one that must wait has the nearest worker kept free of who comes after
it. Behind them come those who are late for a higher tier, first come first. Such a request keeps no
worker free; it takes what it can get at once, as a request of the highest tier from its present
one downwards that some worker admits, and is counted there under that tier. So it breaks no promise
of a request that was sent on time, its own tier's included, and a crowd that is too late for ultra
neither fills ultra's workers nor holds them against premium.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import assert_never

import msgspec

from tokenworks.core.ids import ModelName, RequestID, WorkerID
from tokenworks.core.slo import Promise, Tier
from tokenworks.dispatch import policy, snapshot
from tokenworks.dispatch.commands import (
    Abort,
    Command,
    Queue,
    Reject,
    RejectCode,
    RejectReason,
    Send,
    SetTimer,
)
from tokenworks.dispatch.events import (
    Arrived,
    Configured,
    Event,
    Failed,
    Finished,
    Limits,
    Started,
    Ticked,
    Withdrawn,
    WorkerDown,
    WorkerUp,
)
from tokenworks.dispatch.fleet import Worker
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.states import State, Step
from tokenworks.dispatch.waiting import Line, Model, Request

TIERS = tuple(Tier)


class WorkerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker has, for gauges: running requests, slots, and its cap per tier."""

    running: int
    slots: int
    caps: dict[Tier, int]


class Dispatcher:
    """Decides where every request goes. Its first event is ``Configured``."""

    def __init__(self) -> None:
        self._now_ns = 0
        self._configured: Configured | None = None
        self._promises: list[Promise] = []
        self._late_after_ns: list[int] = []
        self._limits = Limits(queue_len_max={})
        self._timer_ns: int | None = None
        self._counts = snapshot.Counts()
        self._requests: dict[RequestID, Request] = {}
        self._ended: OrderedDict[RequestID, None] = OrderedDict()
        self._wakes: list[snapshot.Wake] = []
        self._queued = 0
        self._workers: dict[WorkerID, Worker] = {}
        self._models: dict[ModelName, Model] = {}
        self._prefixes = PrefixIndex(0)

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
        assert self._configured is not None or isinstance(event, Configured), event
        self._now_ns = now_ns
        self._counts.events += 1
        commands: list[Command] = []
        if self._wakes and self._wakes[0][0] <= now_ns:
            self._wake(commands)
        match event:
            case Arrived():
                self._arrived(event, commands)
            case Started():
                self._started(event)
            case Finished():
                self._finished(event, commands)
            case Failed():
                self._failed(event, commands)
            case Withdrawn():
                self._withdrawn(event, commands)
            case Ticked():
                self._timer_ns = None
            case WorkerUp():
                self._worker_up(event, commands)
            case WorkerDown():
                self._worker_down(event, commands)
            case Configured():
                self._configure(event, commands)
            case _:
                assert_never(event)
        self._set_timer(commands)
        return commands

    def digest(self) -> str:
        """A hash of the whole memory, 32 hex digits."""
        return hashlib.blake2b(self.snapshot(), digest_size=16).hexdigest()

    def counts(self) -> dict[str, int]:
        """What happened since the first event, by name; see ``snapshot.Counts``."""
        return {name: getattr(self._counts, name) for name in self._counts.__struct_fields__}

    def loads(self) -> dict[WorkerID, WorkerLoad]:
        """What each worker that is up has, for gauges."""
        return {
            name: WorkerLoad(
                running=len(worker.running),
                slots=worker.slots,
                caps=dict(zip(TIERS, worker.caps, strict=True)),
            )
            for name, worker in self._workers.items()
        }

    def queue_lens(self) -> dict[tuple[ModelName, Tier], int]:
        """How many requests wait per model and tier, for gauges."""
        return {
            (name, tier): len(line)
            for name, model in self._models.items()
            for tier, line in zip(TIERS, model.lines, strict=True)
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
                ended=list(self._ended),
                wakes=self._wakes,
                workers=list(self._workers.values()),
                models=[
                    snapshot.ModelRecord(
                        model=name,
                        workers=[worker.worker for worker in model.workers],
                        lines=[
                            snapshot.LineRecord(
                                requests=[each.request for each in line.requests()],
                                rotation=line.rotation(),
                            )
                            for line in model.lines
                        ],
                        sent_ranks=list(model.sent_ranks),
                    )
                    for name, model in self._models.items()
                ],
                prefixes=self._prefixes.record(),
            )
        )

    @classmethod
    def restore(cls, data: bytes) -> Dispatcher:
        """The dispatcher that gave this snapshot.

        Raises:
            msgspec.MsgspecError: these bytes are no snapshot of this format.
        """
        memory = snapshot.decode(data)
        dispatcher = cls()
        dispatcher._now_ns = memory.now_ns
        if memory.configured is not None:
            dispatcher._adopt(memory.configured)
        dispatcher._timer_ns = memory.timer_ns
        dispatcher._counts = memory.counts
        dispatcher._requests = {each.request: each for each in memory.requests}
        dispatcher._ended = OrderedDict.fromkeys(memory.ended)
        dispatcher._wakes = memory.wakes
        dispatcher._workers = {each.worker: each for each in memory.workers}
        for record in memory.models:
            lines = [
                Line.restore([dispatcher._requests[each] for each in line.requests], line.rotation)
                for line in record.lines
            ]
            workers = [dispatcher._workers[each] for each in record.workers]
            dispatcher._models[record.model] = Model(workers, lines, record.sent_ranks)
            dispatcher._queued += sum(len(line) for line in lines)
        dispatcher._prefixes = PrefixIndex.restore(memory.prefixes)
        return dispatcher

    # Events about requests.

    def _arrived(self, event: Arrived, commands: list[Command]) -> None:
        if event.request in self._requests or event.request in self._ended:
            self._counts.ignored += 1
            return
        rank = event.tier.rank
        request = Request(
            request=event.request,
            tenant=event.tenant,
            model=event.model,
            rank=rank,
            output_tokens_max=event.output_tokens_max,
            prefix=event.prefix[: self._limits.prefix_len_max],
            arrived_ns=event.arrived_ns,
            late_ns=self._late_ns(event.arrived_ns, rank),
        )
        self._requests[event.request] = request
        model = self._models.get(event.model)
        if model is None:
            self._reject(request, "worker_unavailable", "model_never_up", commands)
            return
        request.queued_ns = self._now_ns
        model.lines[rank].append(request)
        self._queued += 1
        self._drain(model, commands)
        if request.state is State.QUEUED:
            self._keep_waiting(model, request, commands)

    def _started(self, event: Started) -> None:
        request = self._requests.get(event.request)
        if request is None or request.state is not State.SENT:
            self._counts.ignored += 1
            return
        request.step(Step.START)

    def _finished(self, event: Finished, commands: list[Command]) -> None:
        request = self._requests.get(event.request)
        if request is None or request.state is State.QUEUED:
            self._counts.ignored += 1
            return
        worker = self._worker_of(request)
        worker.release(request.request)
        worker.observe(self._now_ns - request.sent_ns)
        self._counts.finished += 1
        self._end(request, Step.FINISH)
        self._drain(self._models[request.model], commands)

    def _failed(self, event: Failed, commands: list[Command]) -> None:
        request = self._requests.get(event.request)
        if request is None or request.state is State.QUEUED or request.worker != event.worker:
            self._counts.ignored += 1
            return
        self._worker_of(request).release(request.request)
        model = self._models[request.model]
        self._broken_off(model, request, commands, started=event.started)
        self._drain(model, commands)
        if self._is_queued(request.request):
            self._keep_waiting(model, request, commands)

    def _withdrawn(self, event: Withdrawn, commands: list[Command]) -> None:
        request = self._requests.get(event.request)
        if request is None:
            self._counts.ignored += 1
            return
        model = self._models[request.model]
        if request.state is State.QUEUED:
            self._unqueue(model, request)
        else:
            worker = self._worker_of(request)
            worker.release(request.request)
            commands.append(
                Abort(
                    request=request.request,
                    worker=worker.worker,
                    reason="withdrawn",
                    held_ns=self._now_ns - request.sent_ns,
                )
            )
        self._counts.withdrawn += 1
        self._end(request, Step.WITHDRAW)
        self._drain(model, commands)

    # Events about workers and settings.

    def _worker_up(self, event: WorkerUp, commands: list[Command]) -> None:
        old = self._workers.get(event.worker)
        if old is not None and (old.model, old.pool) != (event.model, event.pool):
            self._lose(old, commands)
            old = None
        slots = min(event.slots, self._limits.slots_max)
        if old is not None:
            self._worker_measured(old, event, slots, commands)
            return
        model = self._models.get(event.model)
        if len(self._workers) >= self._limits.workers_max or (
            model is None and len(self._models) >= self._limits.models_max
        ):
            self._counts.ignored += 1
            return
        if model is None:
            model = self._models[event.model] = Model([], [Line() for _ in TIERS], [])
        worker = Worker(
            worker=event.worker,
            pool=event.pool,
            model=event.model,
            slots=slots,
            curve=event.curve,
            index=self._prefixes.add_worker(),
            speeds=[],
            caps=[],
            running={},
            counts=[0] * len(TIERS),
            limit=slots,
        )
        worker.measure(dict(zip(TIERS, self._promises, strict=True)))
        self._workers[event.worker] = worker
        model.workers.append(worker)
        self._drain(model, commands)

    def _worker_measured(
        self, worker: Worker, event: WorkerUp, slots: int, commands: list[Command]
    ) -> None:
        if (worker.slots, worker.curve) == (slots, event.curve):
            self._counts.ignored += 1
            return
        worker.slots, worker.curve = slots, event.curve
        worker.measure(dict(zip(TIERS, self._promises, strict=True)))
        self._drain(self._models[worker.model], commands)

    def _worker_down(self, event: WorkerDown, commands: list[Command]) -> None:
        worker = self._workers.get(event.worker)
        if worker is None:
            self._counts.ignored += 1
            return
        self._lose(worker, commands)

    def _lose(self, worker: Worker, commands: list[Command]) -> None:
        model = self._models[worker.model]
        model.workers.remove(worker)
        del self._workers[worker.worker]
        self._prefixes.remove_worker(worker.index)
        lost = [self._requests[name] for name in reversed(worker.running)]
        for request in lost:
            self._broken_off(model, request, commands, started=False)
        self._drain(model, commands)
        for request in lost:
            if self._is_queued(request.request):
                self._keep_waiting(model, request, commands)

    def _configure(self, event: Configured, commands: list[Command]) -> None:
        if event == self._configured:
            self._counts.ignored += 1
            return
        self._adopt(event)
        self._prefixes.resize(event.limits.prefix_blocks_max)
        for worker in self._workers.values():
            worker.measure(event.promises)
        for request in self._requests.values():
            request.late_ns = self._late_ns(request.arrived_ns, request.rank)
        for model in self._models.values():
            self._drain(model, commands)
        self._rebuild_wakes()

    def _adopt(self, configured: Configured) -> None:
        assert len(configured.promises) == len(TIERS), "every tier needs a promise"
        assert len(configured.limits.queue_len_max) == len(TIERS), "every tier needs a bound"
        self._configured = configured
        self._promises = [configured.promises[tier] for tier in TIERS]
        self._late_after_ns = [each.ttft_ns // 2 + 1 for each in self._promises]
        self._limits = configured.limits

    # Deciding.

    def _drain(self, model: Model, commands: list[Command]) -> None:
        """Send all that can be sent now; the module's text says in which order."""
        if not any(len(worker.running) < worker.limit for worker in model.workers):
            return
        workers = model.workers
        heads = [self._heads(line) for line in model.lines]
        for present in policy.SERVING_ORDER:
            while present in heads[present]:
                if not self._place(workers, heads[present][present], present, commands):
                    break
                heads[present] = self._heads(model.lines[present])
            if present > 0 and present in heads[present]:
                held = policy.nearest(workers, present)
                workers = [worker for worker in workers if worker is not held]
                if not workers:
                    return
            while late := [each[present] for each in heads[present + 1 :] if present in each]:
                request = min(late, key=lambda each: each.arrived_ns)
                if not self._place(workers, request, present, commands):
                    break
                heads[request.rank] = self._heads(model.lines[request.rank])

    def _heads(self, line: Line) -> dict[int, Request]:
        """Per tier at which some of a line compete by now: the first in turn of them.

        Of each tenant the oldest only; tenants are looked through only when somebody is late.
        """
        if len(line) == 0:
            return {}
        if self._now_ns < line.oldest().late_ns:
            head = line.head()
            return {head.rank: head}
        heads: dict[int, Request] = {}
        for request in line.heads():
            heads.setdefault(self._present_rank(request), request)
        return heads

    def _place(
        self, workers: list[Worker], request: Request, present: int, commands: list[Command]
    ) -> bool:
        """Send a request to one of these workers; False if none can take it."""
        counted, slow = present, False
        candidates = policy.admitting(workers, request.rank)
        if not candidates and present < request.rank:
            slow = True
            for counted in range(present, -1, -1):
                candidates = policy.admitting(workers, counted)
                if candidates:
                    break
        if not candidates:
            return False
        if request.worker is not None and len(candidates) > 1:
            candidates = [each for each in candidates if each.worker != request.worker]
        if slow:
            choice = policy.pick_fastest(candidates, request.prefix, self._prefixes)
        else:
            choice = policy.pick_cache_aware(
                candidates, request.prefix, self._prefixes, self._limits.imbalance_requests_max
            )
        model = self._models[request.model]
        model.lines[request.rank].serve(request)
        model.sent_ranks.append(present)
        self._queued -= 1
        self._send(request, choice, counted, len(candidates), commands)
        return True

    def _send(
        self,
        request: Request,
        choice: policy.Choice,
        rank: int,
        candidates: int,
        commands: list[Command],
    ) -> None:
        """Give a request to a worker that counts it under this tier."""
        worker = choice.worker
        request.step(Step.SEND)
        request.attempt += 1
        request.worker = worker.worker
        request.sent_ns = self._now_ns
        worker.take(request.request, rank)
        self._prefixes.insert(request.prefix, worker.index)
        self._counts.sent += 1
        commands.append(
            Send(
                request=request.request,
                worker=worker.worker,
                attempt=request.attempt,
                reason=choice.reason,
                running=len(worker.running),
                cap=worker.limit,
                candidates=candidates,
                hit_blocks=choice.hit_blocks,
                waited_ns=self._now_ns - request.arrived_ns,
            )
        )

    def _broken_off(
        self, model: Model, request: Request, commands: list[Command], *, started: bool
    ) -> None:
        """A worker no longer has this request: it ends, or waits to be sent again."""
        if started or request.state is State.ANSWERING:
            self._counts.broken += 1
            self._end(request, Step.BREAK)
        elif request.attempt > self._limits.retries_max:
            self._reject(request, "worker_failed", "retries_over", commands)
        else:
            request.step(Step.RETRY)
            request.queued_ns = self._now_ns
            model.lines[request.rank].put_back(request)
            self._queued += 1

    def _keep_waiting(self, model: Model, request: Request, commands: list[Command]) -> None:
        """Leave a request in its line, or reject it if the line is over its bound by now."""
        if len(model.lines[request.rank]) > self._limits.queue_len_max[TIERS[request.rank]]:
            self._unqueue(model, request)
            code: RejectCode = "worker_failed" if request.attempt else "capacity_exceeded"
            self._reject(request, code, "queue_full", commands)
            return
        deadline_ns = self._deadline_ns(request)
        heappush(self._wakes, (deadline_ns, request.request))
        if self._now_ns < request.late_ns < deadline_ns:
            heappush(self._wakes, (request.late_ns, request.request))
        commands.append(
            Queue(
                request=request.request,
                reason="at_cap" if model.workers else "no_worker_up",
                ahead=model.ahead(request.rank) - 1,
                workers=len(model.workers),
                deadline_ns=deadline_ns,
            )
        )

    def _reject(
        self, request: Request, code: RejectCode, reason: RejectReason, commands: list[Command]
    ) -> None:
        """End a request that is in no line any more."""
        model = self._models.get(request.model)
        ahead, retry_after_ns = 0, None
        if model is not None:
            ahead = model.ahead(request.rank)
            # With no worker up nothing is known but how long the tier is ready to wait.
            retry_after_ns = policy.retry_after_bounded(self._promises[request.rank].patience_ns)
            if model.workers:
                retry_after_ns = policy.retry_after_ns(
                    model.workers,
                    request.rank,
                    ahead,
                    request.output_tokens_max,
                    model.sent_ranks,
                )
        self._counts.rejected += 1
        self._end(request, Step.REJECT)
        commands.append(
            Reject(
                request=request.request,
                code=code,
                reason=reason,
                retry_after_ns=retry_after_ns,
                ahead=ahead,
                waited_ns=self._now_ns - request.arrived_ns,
                attempts=request.attempt,
            )
        )

    # Time.

    def _wake(self, commands: list[Command]) -> None:
        """Reject what has waited longer than its tier's patience; send what became late."""
        changed: dict[ModelName, None] = {}
        while self._wakes and self._wakes[0][0] <= self._now_ns:
            _, name = heappop(self._wakes)
            request = self._requests.get(name)
            if request is None or request.state is not State.QUEUED:
                continue
            changed[request.model] = None
            if self._deadline_ns(request) <= self._now_ns:
                model = self._models[request.model]
                self._unqueue(model, request)
                reason: RejectReason = "patience_over" if model.workers else "no_worker_up"
                self._reject(request, "capacity_exceeded", reason, commands)
        for model_name in changed:
            self._drain(self._models[model_name], commands)

    def _set_timer(self, commands: list[Command]) -> None:
        """Ask for a tick when the earliest thing due is earlier than the tick that is coming."""
        if len(self._wakes) > 4 * self._queued + 64:
            self._rebuild_wakes()
        wakes = self._wakes
        while wakes and not self._is_queued(wakes[0][1]):
            heappop(wakes)
        if wakes and (self._timer_ns is None or wakes[0][0] < self._timer_ns):
            self._timer_ns = wakes[0][0]
            commands.append(SetTimer(at_ns=self._timer_ns, reason="waiting", queued=self._queued))

    def _rebuild_wakes(self) -> None:
        self._wakes = []
        for model in self._models.values():
            for line in model.lines:
                for request in line.requests():
                    deadline_ns = self._deadline_ns(request)
                    self._wakes.append((deadline_ns, request.request))
                    if self._now_ns < request.late_ns < deadline_ns:
                        self._wakes.append((request.late_ns, request.request))
        heapify(self._wakes)

    def _deadline_ns(self, request: Request) -> int:
        return request.queued_ns + self._promises[request.rank].patience_ns

    def _late_ns(self, arrived_ns: int, rank: int) -> int:
        return arrived_ns + self._late_after_ns[rank]

    def _present_rank(self, request: Request) -> int:
        """The tier at which a request competes by now: the one it asks for while it is on time."""
        waited_ns = self._now_ns - request.arrived_ns
        for rank in range(request.rank, 0, -1):
            if waited_ns < self._late_after_ns[rank]:
                return rank
        return 0

    # Small steps.

    def _is_queued(self, name: RequestID) -> bool:
        request = self._requests.get(name)
        return request is not None and request.state is State.QUEUED

    def _worker_of(self, request: Request) -> Worker:
        assert request.worker is not None, request.request
        return self._workers[request.worker]

    def _unqueue(self, model: Model, request: Request) -> None:
        model.lines[request.rank].remove(request)
        self._queued -= 1

    def _end(self, request: Request, step: Step) -> None:
        """Forget a request; its name is kept for a while to recognise late messages."""
        request.step(step)
        del self._requests[request.request]
        self._ended[request.request] = None
        while len(self._ended) > self._limits.ended_max:
            self._ended.popitem(last=False)
