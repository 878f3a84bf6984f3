"""What must hold in every run, whatever goes wrong in it.

``check_outcomes`` is cheap and looks at what came of a run; every report has what it finds. A
``Checker`` also watches every event and command, looks into workers, ledger and dispatcher now and
then, and decides the whole run once more at its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from tokenworks.core.ids import RequestID, WorkerID
from tokenworks.core.needs import NO_OFFERS, Needs, Offers
from tokenworks.core.slo import Tier
from tokenworks.dispatch import snapshot
from tokenworks.dispatch.commands import Abort, Command, Hedge, Preempt, Reject, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import (
    Arrived,
    Configured,
    Event,
    Failed,
    Finished,
    Started,
    Withdrawn,
    WorkerDown,
    WorkerUp,
)
from tokenworks.twin.bookkeeper import Bookkeeper
from tokenworks.twin.driver import Driver, Hooks
from tokenworks.twin.money_checks import check_money, check_quotas
from tokenworks.twin.outcome_checks import check_outcomes
from tokenworks.twin.records import (
    End,
    Outcomes,
    TwinRequest,
    Violation,
)

Found = Callable[..., None]
"""Takes an invariant that is broken, what it is about, and the numbers by name."""
VIOLATIONS_MAX: Final = 20
"""Violations of one run that are kept; the first ones tell most."""
DEEP_EVENTS: Final = 16
"""Events between two looks into workers, ledger and dispatcher."""
SHADOW_EVENTS_MAX: Final = 256
"""Events that a restored dispatcher is told beside the one that gave its snapshot."""
_EVENT_ENCODER: Final = msgspec.msgpack.Encoder()
_EVENT_DECODER: Final = msgspec.msgpack.Decoder(Event)


class Endless(Exception):
    """A run that should have ended goes on."""


class Checker(Hooks):
    """Watches a run and keeps what it finds broken.

    Args:
        dispatcher: the run's; it is read, never told anything. It has no policies of an operator's
            own: those that come with the package are never to be overruled.
        bookkeeper: the run's, if it has one.
        deadline_ns: everything has ended by then.
        slack_ns: how much longer than configured a request may wait, see ``check_outcomes``.
        shadow_from: the event after which a restored dispatcher is told the same for a while.

    Attributes:
        violations: what it has found.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        bookkeeper: Bookkeeper | None = None,
        *,
        deadline_ns: int,
        slack_ns: int = 0,
        shadow_from: int = 0,
    ) -> None:
        self.violations: list[Violation] = []
        self._dispatcher, self._bookkeeper = dispatcher, bookkeeper
        self._deadline_ns, self._slack_ns = deadline_ns, slack_ns
        self._shadow_from = shadow_from
        self._shadow: Dispatcher | None = None
        self._told: list[tuple[int, Event, list[Command]]] = []
        self._lives = _Lives(self._found)
        self._patience_ns: dict[Tier, int] = {}
        self._queue_len_max: dict[Tier, int] = {}
        self._policy_faults = 0

    def begin(self, driver: Driver) -> None:
        """See ``Hooks``."""
        self._driver = driver
        driver.at(self._deadline_ns, self._deadline)

    def told(self, now_ns: int, event: Event, commands: list[Command]) -> None:
        """See ``Hooks``."""
        told, number = self._told, len(self._told)
        if told and now_ns < told[-1][0]:
            self._found("time_forward", "now", now_ns=now_ns, before_ns=told[-1][0])
        told.append((now_ns, event, commands))
        # What has waited for too long is rejected first; that its client leaves is then old news.
        rejected = {each.request for each in commands if isinstance(each, Reject)}
        if not (isinstance(event, Withdrawn) and event.request in rejected):
            self._lives.told(event)
        self._lives.commanded(commands)
        if isinstance(event, Configured):
            for tier, promise in event.promises.items():
                known_ns = self._patience_ns.get(tier, 0)
                self._patience_ns[tier] = max(known_ns, promise.patience_ns)
                known = self._queue_len_max.get(tier, 0)
                self._queue_len_max[tier] = max(known, event.limits.queue_len_max[tier])
        if self._shadow is not None:
            if self._shadow.handle(now_ns, event) != commands:
                self._found("restored_continues", type(event).__name__, event=number)
                self._shadow = None
            elif number >= self._shadow_from + SHADOW_EVENTS_MAX:
                self._compare_shadow()
        elif number == self._shadow_from:
            self._shadow = Dispatcher.restore(self._dispatcher.snapshot())
        if number % DEEP_EVENTS == 0:
            self._look()

    def end(self, driver: Driver) -> None:
        """See ``Hooks``."""
        scenario, requests = driver.scenario, driver.requests
        uses = [engine.use() for engine in driver.workers]
        self.violations += check_outcomes(
            scenario,
            requests,
            driver.outcomes,
            uses,
            patience_ns=self._patience_ns,
            slack_ns=self._slack_ns,
        )
        self._look()
        for engine in driver.workers:
            if not engine.is_empty():
                left = [driver.requests[each.place].request for each in engine.live()]
                self._found("kv_freed", engine.spec.worker, sequences=len(left))
        self._lives.end(driver.requests, driver.outcomes)
        self._check_drained(snapshot.decode(self._dispatcher.snapshot()))
        if self._bookkeeper is not None:
            self.violations += check_money(
                self._bookkeeper, scenario, requests, driver.outcomes, self.now_ns()
            )
        if self._shadow is not None:
            self._compare_shadow()
        self._replay()

    # Now and then.

    def _look(self) -> None:
        """Into workers, ledger and the dispatcher's memory."""
        attempts: Counter[int] = Counter()
        for engine in self._driver.workers:
            try:
                engine.check()
            except AssertionError as error:
                self._found("kv_counted", engine.spec.worker, why=str(error)[:200])
            for sequence in engine.live():
                # What is on its way to be decoded elsewhere holds a place here, too.
                attempt = self._driver.live_attempt(sequence.place)
                if sequence in self._driver.stopping:
                    continue
                if self._driver.rivals.of.get(sequence.place) is sequence:
                    continue
                if attempt is None or attempt.source is not sequence:
                    attempts[sequence.place] += 1
        for place, count in attempts.items():
            request = self._driver.requests[place].request
            if count > 1 and self._driver.outcomes.end[place] == End.OPEN:
                self._found("one_attempt", request, attempts=count)
        if self._bookkeeper is not None:
            self.violations += check_quotas(self._bookkeeper, self.now_ns())
        self._check_memory(snapshot.decode(self._dispatcher.snapshot()))

    def _check_memory(self, memory: snapshot.Snapshot) -> None:
        """The dispatcher keeps what is open, and no more than it may."""
        configured = memory.configured
        assert configured is not None
        limits = configured.limits
        faults = memory.counts.policy_faults
        if faults > self._policy_faults:
            self._policy_faults = faults
            self._found("policy_right", configured.policy.name, faults=faults)
        names = {each.request for each in memory.requests}
        if names != self._lives.open.keys():
            wrong = sorted(names ^ self._lives.open.keys())
            self._found("memory_agrees", wrong[0], requests=len(wrong))
        waiting = [_waiting(model) for model in memory.models]
        queued = sum(map(sum, waiting))
        prefixes = memory.prefixes
        approximate = sum(len(blocks) for blocks, _ in prefixes.young + prefixes.old)
        bounds = {
            "ended": (len(memory.ended), limits.ended_max),
            "wakes": (len(memory.wakes), 4 * queued + 64),
            "prefixes": (approximate, limits.prefix_blocks_max),
            "published": (len(prefixes.exact), limits.prefix_blocks_max),
            "workers": (len(memory.workers), limits.workers_max),
        }
        for tier, counts in zip(Tier, zip(*waiting, strict=True), strict=False):
            bounds[f"queue {tier}"] = (max(counts), self._queue_len_max[tier])
        for what, (has, may) in bounds.items():
            if has > may:
                self._found("memory_bounded", what, has=has, may=may)

    def _deadline(self) -> None:
        ends = self._driver.outcomes.end
        unended = [place for place, end in enumerate(ends) if end == End.OPEN]
        if unended:
            for place in unended[:3]:
                self._found("drains", self._driver.requests[place].request, unended=len(unended))
            raise Endless

    # At the end.

    def _check_drained(self, memory: snapshot.Snapshot) -> None:
        """With nothing under way, the dispatcher remembers nothing of it."""
        for worker in memory.workers:
            left = (len(worker.running), worker.prefill_tokens, worker.context_tokens)
            idle = worker.limit == worker.slots and not worker.dearest
            if any(left) or any(worker.counts) or not idle:
                running, prefill, context = left
                numbers = {"running": running, "prefill": prefill, "context": context}
                self._found("memory_drained", worker.worker, limit=worker.limit, **numbers)
        waiting = sum(sum(_waiting(model)) for model in memory.models)
        if waiting or memory.requests:
            numbers = {"requests": len(memory.requests), "waiting": waiting}
            self._found("memory_drained", "requests", **numbers)
        if self._driver.feeds:
            self._check_published(memory)

    def _check_published(self, memory: snapshot.Snapshot) -> None:
        """No worker is believed to have a block that it does not have."""
        believed = [
            (block, int.from_bytes(mask, "little")) for block, mask in memory.prefixes.exact
        ]
        for worker in memory.workers:
            cached = self._driver.engine(worker.worker).cached()
            wrong = sum(
                mask >> worker.index & 1 and block not in cached for block, mask in believed
            )
            if wrong:
                self._found("blocks_believed", worker.worker, blocks=wrong)

    def _compare_shadow(self) -> None:
        assert self._shadow is not None
        if self._shadow.digest() != self._dispatcher.digest():
            self._found("restored_continues", "memory", event=len(self._told))
        self._shadow = None

    def _replay(self) -> None:
        """The same events, written down and read again, give the same commands."""
        again = Dispatcher()
        for number, (now_ns, event, commands) in enumerate(self._told):
            read = _EVENT_DECODER.decode(_EVENT_ENCODER.encode(event))
            if again.handle(now_ns, read) != commands:
                self._found("journal_replays", type(event).__name__, event=number)
                return
        if again.digest() != self._dispatcher.digest():
            self._found("journal_replays", "memory", event=len(self._told))

    def now_ns(self) -> int:
        """The twin's clock."""
        return self._driver.clock.at_ns

    def _found(self, invariant: str, what: str, **numbers: int | str) -> None:
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(Violation.of(invariant, self.now_ns(), what, **numbers))


def _waiting(model: snapshot.ModelRecord) -> list[int]:
    """How many requests of a model wait, by tier, also of those that need few of its workers."""
    every = [model.lines, *(each.lines for each in model.restricted)]
    return [sum(len(line.requests) for line in lines) for lines in zip(*every, strict=True)]


class _Life(msgspec.Struct):
    """Where a request is, as events and commands tell."""

    worker: WorkerID | None = None
    second: WorkerID | None = None
    hedged: bool = False
    answering: bool = False
    needs: Needs | None = None
    rank: int = 0
    displaced: bool = False

    def has(self, worker: WorkerID | UnsetType) -> bool:
        """Whether a worker has it, as the first or the second one; the first if unset."""
        if worker is UNSET:
            return self.worker is not None
        return worker in (self.worker, self.second)

    def go_on_without(self, worker: WorkerID) -> None:
        """One of two workers is out of it."""
        if worker == self.worker:
            self.worker = self.second
        self.second = None


class _Lives:
    """Follows requests and workers by events and commands alone.

    Attributes:
        open: requests that have come and not ended.
    """

    def __init__(self, found: Found) -> None:
        self._found = found
        self.open: dict[RequestID, _Life] = {}
        self._ended: Counter[RequestID] = Counter()
        self._up: dict[WorkerID, Offers] = {}
        self._preempts: set[WorkerID] = set()

    def told(self, event: Event) -> None:
        """What an event says has happened."""
        match event:
            case Arrived():
                if event.request not in self._ended:
                    needs = None if event.needs is UNSET else event.needs
                    self.open.setdefault(event.request, _Life(needs=needs, rank=event.tier.rank))
            case Started():
                life = self.open.get(event.request)
                if life is not None and life.has(event.worker):
                    life.answering = True
                    life.worker = life.worker if event.worker is UNSET else event.worker
                    life.second = None
            case Finished():
                life = self.open.get(event.request)
                if life is not None and life.has(event.worker):
                    self._end(event.request)
            case Failed():
                life = self.open.get(event.request)
                if life is None or not life.has(event.worker):
                    pass
                elif life.second is not None and not event.started:
                    life.go_on_without(event.worker)
                else:
                    self._broken_off(event.request, life, started=event.started)
            case Withdrawn():
                if event.request in self.open:
                    self._end(event.request)
            case WorkerUp():
                self._up[event.worker] = NO_OFFERS if event.offers is UNSET else event.offers
                self._preempts.discard(event.worker)
                if event.preempts is True:
                    self._preempts.add(event.worker)
            case WorkerDown():
                self._up.pop(event.worker, None)
                for request, life in list(self.open.items()):
                    if life.second is not None and life.has(event.worker):
                        life.go_on_without(event.worker)
                    elif life.worker == event.worker:
                        self._broken_off(request, life, started=False)
            case _:
                pass

    def commanded(self, commands: Sequence[Command]) -> None:
        """What the dispatcher answered."""
        for command in commands:
            if isinstance(command, Send):
                life = self.open.get(command.request)
                if life is None or life.worker is not None:
                    self._found("one_attempt", command.request, attempt=command.attempt)
                    continue
                for worker in (command.worker, command.prefill_worker):
                    if worker is not None:
                        self._sent(command, life, worker)
                life.worker = command.worker
            elif isinstance(command, Hedge):
                self._hedged(command)
            elif isinstance(command, Reject):
                if command.request in self.open:
                    self._end(command.request)
                else:
                    self._found("ends_once", command.request, attempts=command.attempts)
            elif isinstance(command, Preempt):
                self._displaced(command)
            elif isinstance(command, Abort) and command.worker not in self._up:
                self._found("worker_is_up", command.worker, held_ns=command.held_ns)

    def end(self, requests: Sequence[TwinRequest], outcomes: Outcomes) -> None:
        """Compare with what the driver knows; a request that was refused never came to anybody."""
        for place, request in enumerate(requests):
            name = request.request
            times = self._ended[name]
            come = times or name in self.open
            if come and (times != 1 or outcomes.end[place] == End.OPEN):
                self._found("ends_once", name, times=times, end=outcomes.end[place])

    def _hedged(self, command: Hedge) -> None:
        """A second worker is asked once, while the first has said nothing, and is another one."""
        life = self.open.get(command.request)
        if life is None or life.worker in (None, command.worker) or life.hedged or life.answering:
            self._found("hedged_rightly", command.request, attempt=command.attempt)
            return
        life.second, life.hedged = command.worker, True
        self._sent(command, life, command.worker)

    def _displaced(self, command: Preempt) -> None:
        """A request that makes room is there, of a lower tier, and does so for the first time."""
        life, other = self.open.get(command.request), self.open.get(command.displaced_by)
        if life is None or life.worker != command.worker:
            self._found("one_attempt", command.request, held_ns=command.held_ns)
            return
        if (
            other is None
            or other.rank <= life.rank
            or life.displaced
            or command.worker not in self._preempts
            or command.gained_nanodollars <= command.lost_nanodollars
        ):
            self._found("displaced_rightly", command.request, by=command.displaced_by)
        life.worker, life.displaced = None, True

    def _sent(self, command: Send | Hedge, life: _Life, worker: WorkerID) -> None:
        """A worker that is given a request, or its prompt, is up and has what that needs."""
        offers = self._up.get(worker)
        if offers is None:
            self._found("worker_is_up", worker, attempt=command.attempt)
        elif life.needs is not None and (lacking := offers.lacks(life.needs)) is not None:
            self._found("needs_met", command.request, worker=worker, lacking=lacking)

    def _broken_off(self, request: RequestID, life: _Life, *, started: bool) -> None:
        if started or life.answering:
            self._end(request)
        else:
            life.worker = None

    def _end(self, request: RequestID) -> None:
        del self.open[request]
        self._ended[request] += 1
