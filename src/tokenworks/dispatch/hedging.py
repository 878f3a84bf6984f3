"""Hedging: a second worker is asked where the first has said nothing for longer than it should.

A request is watched from when it is sent. When a part of its tier's TTFT promise is over and
nothing has come, and for twice as long as its own prompt should take, one more worker is sent it:
once, only where one more leaves every promise kept and nobody waits, and within a budget. Who
answers first has the request; the other is aborted, and what it did is the factory's own cost.

All requests of a tier are watched for as long, so each tier's line is in order of when they are due
and only its first one is looked at. A line keeps the names of those that have begun to answer until
they come up: to strike them out would cost each request something.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import UNSET, UnsetType

from tokenworks.core.ids import ModelName, RequestID, WorkerID
from tokenworks.core.slo import Promise
from tokenworks.core.units import NS_PER_MS
from tokenworks.dispatch import pickers
from tokenworks.dispatch.budgets import ONE
from tokenworks.dispatch.commands import Abort, Command, Hedge
from tokenworks.dispatch.events import Limits
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.requests import Request, SecondTry
from tokenworks.dispatch.snapshot import Counts
from tokenworks.dispatch.states import State
from tokenworks.dispatch.waiting import Watched
from tokenworks.dispatch.workers import Worker
from tokenworks.perf.timing import FS_PER_NS

HEDGES_MIN: Final = 10
"""Hedges of a model that can be saved up."""
AFTER_NS_MIN: Final = 10 * NS_PER_MS
"""No worker is asked earlier than after this, nor looked for again before it is over once more."""
WATCHED_MAX: Final = 65_536
"""Requests of a tier that are watched; who is sent beyond that gets no second worker."""
LOOKS_MAX: Final = 64
"""Times that another worker is looked for: who says nothing for so long is for others to judge."""
PROMPT_TIMES: Final = 2
"""A prompt may take so many times as long as computed before that counts as silence."""
NEVER_NS: Final = 1 << 62
_SENT: Final = State.SENT

Winner = WorkerID | UnsetType
"""Whose answer has begun, as an event says; unset for who was sent the request first."""


class Hedging:
    """Who is watched, and who is sent to another worker.

    Args:
        limits: with a part of requests above 0.
        promises: by tier rank.
        watched: who is watched already.

    Attributes:
        next_ns: when somebody is due at the earliest; ``NEVER_NS`` if nobody is watched.
    """

    __slots__ = ("_after_ns", "_imbalance", "_lines", "_percent", "_tries_max", "next_ns")

    def __init__(self, limits: Limits, promises: list[Promise], watched: Watched | None) -> None:
        part = limits.hedge_after_percent
        self._after_ns = [max(AFTER_NS_MIN, each.ttft_ns * part // 100) for each in promises]
        self._percent, self._tries_max = limits.hedge_percent, limits.retries_max + 1
        self._imbalance = limits.imbalance_requests_max
        self._lines: list[deque[tuple[int, RequestID]]] = [
            deque(line) for line in watched or [[] for _ in promises]
        ]
        self.next_ns = min((line[0][0] for line in self._lines if line), default=NEVER_NS)

    def record(self) -> Watched:
        """Who is watched, to be written down."""
        return [list(line) for line in self._lines]

    def watch(self, request: Request, worker: Worker, now_ns: int) -> None:
        """A request was sent to a worker; watch it, if another one may be sent it, too."""
        if request.hedged or request.once or request.answered or request.displaced:
            return
        if request.prefiller is None and worker.prefilled_by is None:
            self._watch(request, now_ns)

    def _watch(self, request: Request, from_ns: int) -> None:
        line, due_ns = self._lines[request.rank], from_ns + self._after_ns[request.rank]
        if len(line) < WATCHED_MAX:
            line.append((due_ns, request.request))
            if due_ns < self.next_ns:
                self.next_ns = due_ns

    def watch_anew(self, requests: Iterable[Request], workers: Mapping[WorkerID, Worker]) -> None:
        """Watch all that have been sent, by promises that have changed."""
        silent = [each for each in requests if each.state is _SENT]
        for request in sorted(silent, key=lambda each: each.sent_ns):
            assert request.worker is not None
            self.watch(request, workers[request.worker], request.sent_ns)

    def due(self, requests: Mapping[RequestID, Request], now_ns: int) -> list[Request]:
        """Take out who is due and has had no answer; those that had one are struck out."""
        found: dict[RequestID, Request] = {}  # it may be there twice
        for line, after_ns in zip(self._lines, self._after_ns, strict=True):
            while line:
                due_ns, name = line[0]
                request = requests.get(name)
                # Who was sent again since is watched from then on.
                silent = request is not None and request.state is _SENT and not request.hedged
                if request is not None and silent and request.sent_ns <= due_ns - after_ns:
                    if due_ns > now_ns:
                        break
                    found[name] = request
                line.popleft()
        self.next_ns = min((line[0][0] for line in self._lines if line), default=NEVER_NS)
        return list(found.values())

    def look(
        self,
        requests: Mapping[RequestID, Request],
        fleets: Mapping[ModelName, Fleet],
        workers: Mapping[WorkerID, Worker],
        prefixes: PrefixIndex,
        now_ns: int,
    ) -> list[Command]:
        """Send each request that is due to one more worker; if none can take it, watch it again."""
        found: list[Command] = []
        for request in self.due(requests, now_ns):
            hedge = self._ask(request, fleets[request.model], workers, prefixes, now_ns)
            if hedge is not None:
                found.append(hedge)
        return found

    def _ask(
        self,
        request: Request,
        fleet: Fleet,
        workers: Mapping[WorkerID, Worker],
        prefixes: PrefixIndex,
        now_ns: int,
    ) -> Hedge | None:
        found = self._place(request, fleet, workers, prefixes, now_ns)
        if found is None:
            if now_ns - request.sent_ns < LOOKS_MAX * self._after_ns[request.rank]:
                self._watch(request, now_ns)
            return None
        worker, hit_blocks, candidates = found
        fleet.hedges.take()
        request.attempt += 1
        request.hedged = True
        left = max(1, request.input_tokens_max - hit_blocks * worker.block_tokens)
        request.second = SecondTry(worker=worker.worker, sent_ns=now_ns, prefill_tokens=left)
        worker.prefill_tokens += left
        worker.context_tokens += request.input_tokens_max
        fleet.take(worker, request.request, request.rank)
        return Hedge(
            request=request.request,
            worker=worker.worker,
            attempt=request.attempt,
            reason="silent",
            running=len(worker.running),
            cap=worker.limit,
            candidates=candidates,
            hit_blocks=hit_blocks,
            silent_ns=now_ns - request.sent_ns,
        )

    def _place(
        self,
        request: Request,
        fleet: Fleet,
        workers: Mapping[WorkerID, Worker],
        prefixes: PrefixIndex,
        now_ns: int,
    ) -> tuple[Worker, int, int] | None:
        """Who takes it, the blocks of its prefix there, and how many could; None for nobody."""
        if fleet.queued or fleet.restricted:
            return None
        if request.attempt - request.displaced >= self._tries_max:
            return None
        assert request.worker is not None
        first = workers[request.worker]
        if first.timing is not None:
            prompt_fs = first.timing.prefill_fs(request.prefill_tokens, 0)
            if (now_ns - request.sent_ns) * FS_PER_NS < PROMPT_TIMES * prompt_fs:
                return None
        may = fleet.open & fleet.admitting[request.rank] & ~(1 << first.index)
        may = pickers.permitted(fleet, request, may)
        if not may:
            return None
        budget = fleet.hedges.fill(
            fleet.firsts, now_ns, percent=self._percent, per_s=0, size=HEDGES_MIN
        )
        worker, _, hit_blocks = pickers.pick_cache_aware(
            fleet, may, request.prefix, prefixes, self._imbalance
        )
        if budget < ONE or worker.prefilled_by is not None:
            return None
        return worker, hit_blocks, may.bit_count()


def is_another(request: Request, worker: Winner) -> bool:
    """Whether a worker is neither the first nor the second one of a request; unset is the first."""
    if worker is UNSET or worker == request.worker:
        return False
    return request.second is None or worker != request.second.worker


def release_first(fleet: Fleet, workers: Mapping[WorkerID, Worker], request: Request) -> None:
    """Take a request that has two workers off the first one."""
    assert request.worker is not None
    _take_off(fleet, workers[request.worker], request, request.prefill_tokens)


def _take_off(fleet: Fleet, worker: Worker, request: Request, prefill_tokens: int) -> None:
    fleet.release(worker, request.request)
    worker.prefill_tokens -= prefill_tokens
    worker.context_tokens -= request.input_tokens_max


def promote(request: Request) -> None:
    """The second worker is the only one from now on; the first has been released, or is lost."""
    second = request.second
    assert second is not None, request.request
    request.worker, request.sent_ns = second.worker, second.sent_ns
    request.prefill_tokens, request.second = second.prefill_tokens, None


def drop(fleet: Fleet, workers: Mapping[WorkerID, Worker], request: Request) -> SecondTry:
    """Take a request that has two workers off the second one."""
    second, request.second = request.second, None
    assert second is not None, request.request
    _take_off(fleet, workers[second.worker], request, second.prefill_tokens)
    return second


def without(
    fleet: Fleet, workers: Mapping[WorkerID, Worker], request: Request, failed: WorkerID
) -> None:
    """One of a request's two workers broke it off; the other one goes on."""
    if failed == request.worker:
        release_first(fleet, workers, request)
        promote(request)
    else:
        drop(fleet, workers, request)


def outlives(request: Request, lost: Worker) -> bool:
    """Whether a request that a lost worker had goes on, as another one has it, too."""
    if request.second is None:
        return False
    if lost.worker == request.worker:
        promote(request)
    else:
        request.second = None
    return True


def decide(
    fleet: Fleet,
    workers: Mapping[WorkerID, Worker],
    prefixes: PrefixIndex,
    counts: Counts,
    request: Request,
    winner: Winner,
    now_ns: int,
) -> Abort:
    """One of a request's two workers has begun its answer; the other is released and aborted.

    Args:
        fleet: its model's.
        workers: that are up, by name.
        prefixes: learns what the second one computed.
        counts: where it is counted.
        request: that one.
        winner: which of them; the first if unset.
        now_ns: now.
    """
    if winner is UNSET or winner == request.worker:
        second = drop(fleet, workers, request)
        loser, sent_ns = second.worker, second.sent_ns
    else:
        assert request.worker is not None
        loser, sent_ns = request.worker, request.sent_ns
        release_first(fleet, workers, request)
        promote(request)
        counts.hedges_won += 1
        prefixes.insert(request.prefix, workers[winner].index, now_ns)
        if request.session is not None:
            fleet.remember(request, workers[winner])
    held_ns = now_ns - sent_ns
    counts.hedge_waste_ns += held_ns
    return Abort(request=request.request, worker=loser, reason="hedged", held_ns=held_ns)
