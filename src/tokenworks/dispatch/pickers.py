"""The pure functions that policies are made of, and the check of what a policy has chosen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.commands import SendReason
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.policy import Choice
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.workers import Worker

RETRY_AFTER_NS_MIN: Final = NS_PER_S
RETRY_AFTER_NS_MAX: Final = 120 * NS_PER_S
_RATE_SCALE: Final = 10**18
_RANKS: Final = len(Tier)


def is_possible(fleet: Fleet, request: Request, choice: Choice) -> bool:
    """Whether a choice names workers of the fleet, one with a slot free, and a prefix hit.

    Who is to prefill for another must be able to hand its KV cache over, and that one to take it.
    """
    worker, prefiller = choice.worker, choice.prefiller
    by_index = fleet.by_index
    if prefiller is not None and not (
        by_index.get(prefiller.index) is prefiller is not worker
        and prefiller.hands_over
        and worker.hands_over
        and permitted(fleet, request, 1 << prefiller.index)
    ):
        return False
    return (
        by_index.get(worker.index) is worker
        and len(worker.running) < worker.slots
        and 0 <= choice.rank < _RANKS
        and 0 <= choice.hit_blocks <= len(request.prefix)
        and (request.needs is None or permitted(fleet, request, 1 << worker.index) > 0)
    )


def permitted(fleet: Fleet, request: Request, candidates: int) -> int:
    """Filter: those of some workers that have the labels and the adapter that a request needs."""
    if request.needs is None:
        return candidates
    return candidates & fleet.serving(request.needs)


def others_first(fleet: Fleet, request: Request, candidates: int) -> int:
    """Filter: without the worker that broke this request off, if there are others."""
    if request.worker is None:
        return candidates
    left = candidates
    for worker in fleet.each(candidates):
        if worker.worker == request.worker:
            left ^= 1 << worker.index
    return left or candidates


def pick_cache_aware(
    fleet: Fleet,
    candidates: int,
    prefix: Sequence[int],
    index: PrefixIndex,
    imbalance_max: int,
    home: int = 0,
) -> tuple[Worker, SendReason, int]:
    """Picker: the longest prefix while the load is balanced, else the least loaded.

    The load is balanced if running requests differ by at most ``imbalance_max`` in the fleet. Then,
    if some candidate has at least half of the prefix, the one that has most of it is taken.
    Otherwise the least loaded is taken; ties go to the longest prefix. Ties that are left go to the
    least loaded, then to the lowest index. A request of a session goes where the last one of it
    went, while the load is balanced and nobody has half of its prefix instead.

    Args:
        fleet: the model's workers.
        candidates: those that may take it, at least one.
        prefix: block hashes from the prompt's start.
        index: who has what.
        imbalance_max: see above.
        home: the worker of the request's session, as a set; empty if there is none.

    Returns:
        The worker, why, and how many blocks of the prefix it is believed to have.

    Source:
        SGLang's ``cache_aware`` routing policy, sgl-project/sglang,
        ``sgl-router/src/policies/cache_aware.rs`` (commit 026f853): shortest queue when loads
        differ by more than an absolute threshold, else the worker with the highest match if the
        match rate exceeds ``cache_threshold``. Ours differs in three points: there is no relative
        threshold, the share that counts is 1/2, and below it the least loaded worker is taken
        where SGLang takes the one with the smallest tree.
    """
    home &= candidates
    if not prefix and not home:
        return fleet.first(fleet.least_loaded(candidates)), "least_loaded", 0
    depth, holders = index.match(prefix, candidates)
    single = candidates & (candidates - 1) == 0
    balanced = single or fleet.load_max - fleet.load_min <= imbalance_max
    if depth and balanced and 2 * depth >= len(prefix):
        holders = holders & home or holders
        if holders & (holders - 1):
            holders = fleet.least_loaded(holders)
        return fleet.first(holders), "prefix_hit", depth
    if home and balanced:
        return fleet.first(home), "session_home", index.match(prefix, home)[0]
    tied = fleet.least_loaded(candidates)
    if not depth:
        return fleet.first(tied), "least_loaded", 0
    if not tied & holders:
        depth, holders = index.match(prefix, tied)
    return fleet.first(tied & holders or tied), "least_loaded", depth


def pick_fastest(fleet: Fleet, candidates: int) -> Worker:
    """Picker beyond the caps: who gives most speed with one more; ties to the lowest index."""
    return max(fleet.each(candidates), key=lambda each: each.speeds[len(each.running) + 1])


def nearest(fleet: Fleet, candidates: int, rank: int) -> Worker:
    """Picker: who will first be able to take a request of this tier, by requests still to end.

    That worker is kept free of lower tiers while the request waits; otherwise they would fill
    every slot that ends, and a higher tier could never begin where its cap is the smaller one.
    Ties go to the least loaded, then to the lowest index.
    """
    return min(
        fleet.each(candidates),
        key=lambda each: (len(each.running) - min(each.limit, each.caps[rank]), each.load),
    )


def retry_after_ns(
    workers: Sequence[Worker],
    rank: int,
    ahead: int,
    output_tokens_max: int,
    sent_ranks: Collection[int],
) -> int:
    """The time until a slot is expected for a request at its place in line, within the bounds.

    A worker ends as many requests per second as it runs over its mean service time; one that runs
    nothing counts as if it ran one. Of what ends, higher tiers go on taking the part that they took
    of the last sends; the rest serves the place in line, which is ``ahead + 1``.

    Args:
        workers: workers of the model that are up, at least one.
        rank: the request's tier.
        ahead: requests of the model in tiers not below its own that wait.
        output_tokens_max: its output limit, for workers of which no answer has ended yet.
        sent_ranks: tiers at which the model's last sends competed.
    """
    rate = sum(
        max(1, len(worker.running)) * _RATE_SCALE // worker.service_ns_expected(output_tokens_max)
        for worker in workers
    )
    if sent_ranks:
        rate = rate * sum(each <= rank for each in sent_ranks) // len(sent_ranks)
    return retry_after_bounded(-(-(ahead + 1) * _RATE_SCALE // max(1, rate)))


def retry_after_bounded(wait_ns: int) -> int:
    """A time to wait as it may be told: at least one second, at most two minutes."""
    return min(RETRY_AFTER_NS_MAX, max(RETRY_AFTER_NS_MIN, wait_ns))
