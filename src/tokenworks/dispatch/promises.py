"""The policy that keeps promises: batch caps per tier, from the speed that was measured.

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

from collections.abc import Iterator

from tokenworks.core.slo import Tier
from tokenworks.dispatch import pickers
from tokenworks.dispatch.events import Configured
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.policy import Choice, Forgetful
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.waiting import Line
from tokenworks.dispatch.workers import RANKS

SERVING_ORDER = tuple(reversed(RANKS))
"""Ordering: tiers are served from ultra down to free."""


class Promises(Forgetful):
    """See the module's text."""

    def __init__(self) -> None:
        self._late_after_ns: list[int] = []
        self._imbalance_max = 0
        self._index = PrefixIndex(0)

    def configure(self, configured: Configured, index: PrefixIndex) -> None:
        """See ``Policy``."""
        self._late_after_ns = [configured.promises[tier].ttft_ns // 2 + 1 for tier in Tier]
        self._imbalance_max = configured.limits.imbalance_requests_max
        self._index = index

    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        """See ``Policy``."""
        workers = pickers.permitted(fleet, request, fleet.up)
        return self._place(fleet, request, self._present_rank(request, now_ns), workers)

    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        """See ``Policy``; the module's text says in which order."""
        if not any(fleet.admitting):
            return
        workers = fleet.up
        heads = [self._heads(line, now_ns) for line in fleet.lines]
        for present in SERVING_ORDER:
            while present in heads[present]:
                request = heads[present][present]
                choice = self._place(fleet, request, present, workers)
                if choice is None:
                    break
                yield request, choice
                heads[present] = self._heads(fleet.lines[present], now_ns)
            if present > 0 and present in heads[present]:
                workers ^= 1 << pickers.nearest(fleet, workers, present).index
                if not workers:
                    return
            while late := [each[present] for each in heads[present + 1 :] if present in each]:
                request = min(late, key=lambda each: each.arrived_ns)
                choice = self._place(fleet, request, present, workers)
                if choice is None:
                    break
                yield request, choice
                heads[request.rank] = self._heads(fleet.lines[request.rank], now_ns)

    def _heads(self, line: Line, now_ns: int) -> dict[int, Request]:
        """Per tier at which some of a line compete by now: the first in turn of them.

        Of each tenant the oldest only; tenants are looked through only when somebody is late.
        """
        if len(line) == 0:
            return {}
        if now_ns < line.oldest().late_ns:
            head = line.head()
            return {head.rank: head}
        heads: dict[int, Request] = {}
        for request in line.heads():
            heads.setdefault(self._present_rank(request, now_ns), request)
        return heads

    def _place(self, fleet: Fleet, request: Request, present: int, workers: int) -> Choice | None:
        """Where a request that competes at a tier can go among some workers."""
        counted = present
        candidates = fleet.admitting[request.rank] & workers
        if not candidates:
            if present == request.rank:
                return None
            for counted in range(present, -1, -1):
                candidates = fleet.admitting[counted] & workers
                if candidates:
                    break
            else:
                return None
            candidates = pickers.others_first(fleet, request, candidates)
            worker = pickers.pick_fastest(fleet, candidates)
            depth, _ = self._index.match(request.prefix, 1 << worker.index)
            return Choice(worker, "slow_beats_late", depth, counted, candidates.bit_count())
        if request.worker is not None:
            candidates = pickers.others_first(fleet, request, candidates)
        worker, reason, depth = pickers.pick_cache_aware(
            fleet,
            candidates,
            request.prefix,
            self._index,
            self._imbalance_max,
            fleet.home(request),
        )
        return Choice(worker, reason, depth, counted, candidates.bit_count())

    def _present_rank(self, request: Request, now_ns: int) -> int:
        """The tier at which a request competes by now: the one it asks for while it is on time."""
        if now_ns < request.late_ns:
            return request.rank
        waited_ns = now_ns - request.arrived_ns
        for rank in range(request.rank, 0, -1):
            if waited_ns < self._late_after_ns[rank]:
                return rank
        return 0
