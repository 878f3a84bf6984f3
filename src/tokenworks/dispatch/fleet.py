"""The fleet of one model: its workers as sets of bits, and who waits for them.

A set of workers is an integer: bit i is the worker whose index in the prefix index is i. Which
workers have room, which admit a tier and which are least loaded is kept up to date as such sets, so
that a decision costs the same for eight workers and for a thousand.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from tokenworks.core.ids import PoolID, RequestID, TenantID
from tokenworks.core.needs import Needs, Offers
from tokenworks.dispatch.budgets import ONE, RETRIES_MIN, RETRIES_PER_S, Budget
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.waiting import Line
from tokenworks.dispatch.workers import RANKS, Worker

SENT_RANKS_MAX: Final = 64
"""Sends of a model that are looked back on to see which part goes to which tier."""

SESSIONS_MAX: Final = 10_000
"""Sessions of a model whose last worker is remembered."""

OFFERED_MAX: Final = 256
"""Combinations of labels and adapters that a model's workers had at some time; remembered, so that
what is missing for a moment is told from what nobody ever had."""

SERVING_MAX: Final = 1_024
"""Needs for which it is remembered who has them: callers may name any set of labels."""

SERVICE_MEAN_SHIFT: Final = 3
"""An observed service time moves the mean by 1/8 of the difference."""

BOUND_PER_TOKEN_MAX: Final = 8
"""A prompt is refused unsent if even an eighth of the bound on its tokens is more than any KV cache
holds. The bound counts bytes; a token of English text has about four. What may fit is sent: the
engine counts tokens, and has the last word."""

_UNKNOWN: Final = 1 << 56
_RANKS_OF: Final = tuple(
    tuple(rank for rank in RANKS if bits >> rank & 1) for bits in range(1 << len(RANKS))
)
"""By ranks as bits, the same as a tuple."""


class Fleet:
    """One model: its workers that are up, a line per tier rank, the tiers of its last sends.

    Attributes:
        workers: in the order they came up.
        by_index: the same by their bits.
        lines: who waits, by tier rank.
        queued: how many wait there.
        restricted: who waits for what only some workers have, likewise, by the set of workers that
            have it, next in turn first; sets for which nobody waits are left out.
        preempting: workers that can stop a request and keep what it has made.
        offered: labels and adapters that workers have or had, the latest last.
        sessions: by tenant and session, the index of the worker that had its last request.
        sent_ranks: tiers at which the last sends competed.
        slots: requests that all workers together may have.
        firsts: requests that were sent for the first time, ever.
        retries: how many may be sent again.
        hedges: how many may be sent to a second worker.
        up: all workers.
        pools: by pool, its workers.
        open: those with a slot free.
        admitting: by tier rank, those where one more leaves every promise kept that runs there.
        changes: how often workers came, went, were measured or got other settings.
        loads: by load, who has it. A load is a number of running requests; where workers differ in
            slots, as many as it would be on the largest.
        load_min, load_max: the least and the largest load of any worker.
        kv_tokens_min: the smallest KV cache of any worker of which that is known.
    """

    __slots__ = (
        "_alike",
        "_hidden",
        "_occupied",
        "_scale",
        "_serving",
        "admitting",
        "by_index",
        "changes",
        "firsts",
        "hedges",
        "kv_tokens_min",
        "lines",
        "load_max",
        "load_min",
        "loads",
        "offered",
        "open",
        "pools",
        "preempting",
        "queued",
        "restricted",
        "retries",
        "sent_ranks",
        "sessions",
        "slots",
        "up",
        "workers",
    )

    def __init__(self, workers: list[Worker], lines: list[Line], sent_ranks: Iterable[int]) -> None:
        self.workers = workers
        self.lines = lines
        self.changes = self.firsts = 0
        self.retries, self.hedges = Budget(), Budget()
        self.queued = sum(len(line) for line in lines)
        self.sent_ranks = deque(sent_ranks, maxlen=SENT_RANKS_MAX)
        self.restricted: dict[int, list[Line]] = {}
        self.offered: OrderedDict[Offers, None] = OrderedDict()
        self.sessions: OrderedDict[tuple[TenantID, str], int] = OrderedDict()
        self._hidden: dict[int, int] = {}
        self._recall_offers()
        self.recount()

    def ahead(self, rank: int) -> int:
        """Requests that wait in tiers not below this one."""
        ahead = sum(len(line) for line in self.lines[rank:])
        for lines in self.restricted.values():
            ahead += sum(len(line) for line in lines[rank:])
        return ahead

    def waiting(self, rank: int) -> int:
        """Requests of a tier that wait."""
        return len(self.lines[rank]) + sum(len(each[rank]) for each in self.restricted.values())

    def fill_retries(self, percent: int | None, now_ns: int) -> int:
        """How many requests may be sent again now, in units of ``budgets.ONE``.

        As many as all workers together have slots can be saved up, so that whatever one worker
        had when it was lost is sent again. The slots of one that retires do not count: it is sent
        nothing more, and retires only if what it has would fit on those that stay.

        Args:
            percent: see ``Limits.retry_percent``; with None there is no bound.
            now_ns: now.
        """
        if percent is None:
            return ONE
        size = max(RETRIES_MIN, self.slots)
        return self.retries.fill(
            self.firsts, now_ns, percent=percent, per_s=RETRIES_PER_S, size=size
        )

    def may_retry(self, percent: int | None, now_ns: int) -> bool:
        """Whether one more may be sent again; if so, it is counted."""
        if self.fill_retries(percent, now_ns) < ONE:
            return False
        if percent is not None:
            self.retries.take()
        return True

    def all_waiting(self) -> Iterator[Request]:
        """Every request that waits."""
        for line in itertools.chain(self.lines, *self.restricted.values()):
            yield from line.requests()

    def queue(self, request: Request, *, first: bool = False) -> None:
        """Let a request wait: behind all others of its tenant, or before all others."""
        if request.needs is None:
            line = self.lines[request.rank]
            self.queued += 1
        else:
            may = self.serving(request.needs)
            lines = self.restricted.get(may)
            if lines is None:
                lines = self.restricted[may] = [Line() for _ in RANKS]
            line = lines[request.rank]
        if first:
            line.put_back(request)
        else:
            line.append(request)

    def unqueue(self, request: Request, *, served: bool = False) -> None:
        """Take out a request that waits; if it is served, its tenant's turn is over."""
        if request.needs is None:
            may, lines = None, self.lines
            self.queued -= 1
        else:
            may = self.serving(request.needs)
            lines = self.restricted[may]
        line = lines[request.rank]
        if served:
            line.serve(request)
        else:
            line.remove(request)
        if may is not None and not any(map(len, lines)):
            del self.restricted[may]

    def hide(self, worker: Worker, rank: int) -> None:
        """Take a worker out of those that admit tiers below one, until ``unhide``.

        Whatever it is sent meanwhile, and when all sets are derived again.
        """
        self._hidden[worker.index] = self._hidden.get(worker.index, 0) | ((1 << rank) - 1)
        self._moved(worker)

    def unhide(self, worker: Worker) -> None:
        """Put a worker back among those that admit a tier."""
        self._hidden.pop(worker.index, None)
        self._moved(worker)

    def renew(self) -> None:
        """Derive all sets again, after a worker has come, gone or changed, and count that."""
        self.changes += 1
        self._recall_offers()
        self.regroup(list(self.restricted.values()))
        for worker in self.workers:
            self.offered[worker.offers] = None
            self.offered.move_to_end(worker.offers)
        while len(self.offered) > OFFERED_MAX:
            self.offered.popitem(last=False)
        self.recount()

    def serving(self, needs: Needs) -> int:
        """Workers that have what a request needs; it is remembered for the next time."""
        mask = self._serving.get(needs)
        if mask is None:
            mask = self._serving[needs] = self.having(needs)
            if len(self._serving) > SERVING_MAX:
                self._serving.popitem(last=False)
        else:
            self._serving.move_to_end(needs)
        return mask

    def having(self, needs: Needs) -> int:
        """The same for needs that hardly come again."""
        mask = 0
        for offers, alike in self._alike.items():
            if offers.lacks(needs) is None:
                mask |= alike
        return mask

    def regroup(self, groups: list[list[Line]]) -> None:
        """Let those that need something wait by who has it now.

        Args:
            groups: in which they wait: lines by tier rank.
        """
        parts: dict[int, list[list[Line]]] = {}
        for lines in groups:
            waiting = [request for line in lines for request in line.requests()]
            masks = dict.fromkeys(map(self._may, waiting))
            for mask in masks:
                part = lines if len(masks) == 1 else [self._part([line], mask) for line in lines]
                parts.setdefault(mask, []).append(part)
        self.restricted = {
            mask: some[0]
            if len(some) == 1
            else [self._part(lines, mask) for lines in zip(*some, strict=True)]
            for mask, some in parts.items()
        }

    def _part(self, lines: Sequence[Line], mask: int) -> Line:
        return Line.gathered(lines, lambda request: self._may(request) == mask)

    def _may(self, request: Request) -> int:
        assert request.needs is not None, request.request
        return self.serving(request.needs)

    def _recall_offers(self) -> None:
        """Find anew who offers the same, and who is of one pool."""
        self._serving: OrderedDict[Needs, int] = OrderedDict()
        self._alike: dict[Offers, int] = {}
        self.pools: dict[PoolID, int] = {}
        for worker in self.workers:
            bit = 1 << worker.index
            self.pools[worker.pool] = self.pools.get(worker.pool, 0) | bit
            self._alike[worker.offers] = self._alike.get(worker.offers, 0) | bit

    def kv_tokens_max(self, needs: Needs | None) -> int | None:
        """Tokens of the largest KV cache of those that have what a request needs.

        None if there are none, or if somebody's cache is not known.
        """
        mask = self.up if needs is None else self.up & self.serving(needs)
        largest = 0
        for worker in self.each(mask):
            tokens = worker.kv_tokens
            if tokens is None:
                return None
            largest = max(largest, tokens)
        return largest or None

    def may_hold(self, prompt_tokens: int, request: Request) -> bool:
        """Whether a prompt of at most so many tokens may fit some cache of those that may serve."""
        if prompt_tokens < BOUND_PER_TOKEN_MAX * self.kv_tokens_min:
            return True
        largest = self.kv_tokens_max(request.needs)
        return not largest or prompt_tokens < BOUND_PER_TOKEN_MAX * largest

    def home(self, request: Request) -> int:
        """The worker that had the last request of its session, as a set; empty if none had."""
        if request.session is None:
            return 0
        index = self.sessions.get((request.tenant, request.session))
        return 0 if index is None else 1 << index

    def remember(self, request: Request, worker: Worker) -> None:
        """Remember where a session's request went, or forget the session with its last one."""
        assert request.session is not None, request.request
        session = (request.tenant, request.session)
        if request.hints is not None and request.hints.session_ends:
            self.sessions.pop(session, None)
            return
        self.sessions[session] = worker.index
        self.sessions.move_to_end(session)
        if len(self.sessions) > SESSIONS_MAX:
            self.sessions.popitem(last=False)

    def forget(self, worker: Worker) -> None:
        """No session is at home with a worker that is lost."""
        lost = [session for session, index in self.sessions.items() if index == worker.index]
        for session in lost:
            del self.sessions[session]

    def recount(self) -> None:
        """Derive all sets again."""
        self.by_index = {worker.index: worker for worker in self.workers}
        self._scale = max((worker.slots for worker in self.workers), default=1)
        self.slots = sum(worker.slots for worker in self.workers)
        self.up = self.open = self.preempting = 0
        self.admitting = [0] * len(RANKS)
        self.loads = [0] * (self._scale + 1)
        for worker in self.workers:
            bit = 1 << worker.index
            self.up |= bit
            if worker.preempts:
                self.preempting |= bit
            worker.load = self._load_of(worker)
            worker.admitted = self._admitted_by(worker)
            self.loads[worker.load] |= bit
            if len(worker.running) < worker.slots:
                self.open |= bit
            for rank in RANKS:
                if worker.admitted >> rank & 1:
                    self.admitting[rank] |= bit
        self._occupied = sum(1 << load for load, mask in enumerate(self.loads) if mask)
        self._bound()
        self.kv_tokens_min = min(
            (each.kv_blocks * each.block_tokens for each in self.workers if each.kv_blocks),
            default=_UNKNOWN,
        )

    def take(self, worker: Worker, request: RequestID, rank: int) -> None:
        """Count a request that is sent to a worker."""
        running = worker.running
        assert request not in running, request
        running[request] = rank
        worker.counts[rank] += 1
        cap = worker.caps[rank]
        if cap < worker.limit:
            worker.limit = cap
        if rank > worker.dearest:
            worker.dearest = rank
        self._moved(worker)

    def release(self, worker: Worker, request: RequestID) -> None:
        """Count off a request that a worker no longer has."""
        rank, counts = worker.running.pop(request), worker.counts
        counts[rank] -= 1
        if counts[rank] == 0:
            # A cap above the limit is not what limits.
            if worker.caps[rank] <= worker.limit:
                worker.relimit()
            if rank == worker.dearest:
                while rank and not counts[rank]:
                    rank -= 1
                worker.dearest = rank
        if not worker.retiring:
            self._moved(worker)

    def retire(self, worker: Worker) -> None:
        """Take a worker out: it ends what it has and is sent nothing more."""
        worker.retiring = True
        self.workers.remove(worker)
        self.forget(worker)
        self.renew()

    def take_back(self, worker: Worker) -> None:
        """Put back a worker that was taken out and is not empty yet; the sets must be renewed."""
        worker.retiring = False
        self.workers.append(worker)

    def least_loaded(self, mask: int) -> int:
        """Those of some workers, at least one of the fleet's, that have the least load."""
        loads = self.loads
        found = loads[self.load_min] & mask
        if found:
            return found
        left = self._occupied
        while not found:
            left &= left - 1  # those of the least load are not among them
            found = loads[(left & -left).bit_length() - 1] & mask
        return found

    def first(self, mask: int) -> Worker:
        """Of some workers, at least one, the one of the lowest index."""
        return self.by_index[(mask & -mask).bit_length() - 1]

    def each(self, mask: int) -> Iterator[Worker]:
        """Some workers, by index."""
        while mask:
            bit = mask & -mask
            yield self.by_index[bit.bit_length() - 1]
            mask ^= bit

    def _moved(self, worker: Worker) -> None:
        """Put a worker into the sets where its running requests now place it."""
        running, slots, bit = len(worker.running), worker.slots, 1 << worker.index
        if running < slots:
            self.open |= bit
        elif self.open & bit:
            self.open ^= bit
        load = running
        if slots != self._scale or load > slots:
            load = self._load_of(worker)
        before = worker.load
        if load != before:
            worker.load = load
            loads = self.loads
            left = loads[before] ^ bit
            there = loads[load]
            loads[before], loads[load] = left, there | bit
            if not left or not there:
                if not left:
                    self._occupied ^= 1 << before
                if not there:
                    self._occupied ^= 1 << load
                self._bound()
        admitted = worker.admits[running] if running < worker.limit else 0
        if self._hidden:
            admitted &= ~self._hidden.get(worker.index, 0)
        changed = admitted ^ worker.admitted
        if changed:
            worker.admitted = admitted
            admitting = self.admitting
            for rank in _RANKS_OF[changed]:
                admitting[rank] ^= bit

    def _bound(self) -> None:
        """Find the least and the largest load again."""
        # Of no workers, both are 0.
        occupied = self._occupied or 1
        self.load_min = (occupied & -occupied).bit_length() - 1
        self.load_max = occupied.bit_length() - 1

    def _load_of(self, worker: Worker) -> int:
        # A worker whose slots became fewer may run more than it has.
        return min(self._scale, len(worker.running) * self._scale // worker.slots)

    def _admitted_by(self, worker: Worker) -> int:
        running = len(worker.running)
        admitted = worker.admits[running] if running < worker.limit else 0
        return admitted & ~self._hidden.get(worker.index, 0)


def observe(worker: Worker, service_ns: int) -> None:
    """Move a worker's mean service time towards one that was seen."""
    mean_ns = worker.service_ns_mean
    if mean_ns is None:
        mean_ns = service_ns
    worker.service_ns_mean = mean_ns + ((service_ns - mean_ns) >> SERVICE_MEAN_SHIFT)
