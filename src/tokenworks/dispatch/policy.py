"""Policies as pure functions with one question each: may it, should it, which, who is next."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, Literal, NamedTuple

from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.fleet import Worker
from tokenworks.dispatch.prefix_index import PrefixIndex

SERVING_ORDER: Final = tuple(sorted((tier.rank for tier in Tier), reverse=True))
"""Ordering: tiers are served from ultra down to free."""

PPM: Final = 1_000_000
RETRY_AFTER_NS_MIN: Final = NS_PER_S
RETRY_AFTER_NS_MAX: Final = 120 * NS_PER_S
_RATE_SCALE: Final = 10**18


class Choice(NamedTuple):
    """Which worker, why, and how many blocks of the prefix it is believed to have."""

    worker: Worker
    reason: Literal["prefix_hit", "least_loaded", "slow_beats_late"]
    hit_blocks: int


def admitting(workers: Sequence[Worker], rank: int) -> list[Worker]:
    """Filter: where one more request of this tier leaves every promise kept that runs there."""
    return [
        worker
        for worker in workers
        if (running := len(worker.running)) < worker.limit and running < worker.caps[rank]
    ]


def load_ppm(worker: Worker) -> int:
    """Score: the part of its slots that is taken, in millionths; less is better."""
    return len(worker.running) * PPM // worker.slots


def mask_of(workers: Sequence[Worker]) -> int:
    """The bits of some workers in the prefix index."""
    mask = 0
    for worker in workers:
        mask |= 1 << worker.index
    return mask


def pick_cache_aware(
    candidates: Sequence[Worker],
    prefix: Sequence[int],
    index: PrefixIndex,
    imbalance_requests_max: int,
) -> Choice:
    """Picker: the longest prefix while the load is balanced, else the least loaded.

    The load is balanced if running requests differ by at most ``imbalance_requests_max`` among the
    candidates. Then, if some candidate has at least half of the prefix, the one that has most of
    it is taken. Otherwise the least loaded is taken; ties go to the longest prefix. Ties that are
    left go to the least loaded, then to the one that came up first.

    Args:
        candidates: workers that may take it, at least one, in the order they came up.
        prefix: block hashes from the prompt's start.
        index: who has what.
        imbalance_requests_max: see above.

    Source:
        SGLang's ``cache_aware`` routing policy, sgl-project/sglang,
        ``sgl-router/src/policies/cache_aware.rs`` (commit 026f853): shortest queue when loads
        differ by more than an absolute threshold, else the worker with the highest match if the
        match rate exceeds ``cache_threshold``. Ours differs in three points: there is no relative
        threshold, the share that counts is 1/2, and below it the least loaded worker is taken
        where SGLang takes the one with the smallest tree.
    """
    if len(candidates) == 1:
        worker = candidates[0]
        depth, _ = index.match(prefix, 1 << worker.index)
        hit = depth > 0 and 2 * depth >= len(prefix)
        return Choice(worker, "prefix_hit" if hit else "least_loaded", depth)
    running = [len(worker.running) for worker in candidates]
    if prefix and max(running) - min(running) <= imbalance_requests_max:
        depth, holders = index.match(prefix, mask_of(candidates))
        if depth > 0 and 2 * depth >= len(prefix):
            holding = [worker for worker in candidates if holders >> worker.index & 1]
            return Choice(min(holding, key=load_ppm), "prefix_hit", depth)
    loads = [load_ppm(worker) for worker in candidates]
    least = min(loads)
    tied = [worker for worker, load in zip(candidates, loads, strict=True) if load == least]
    depth, holders = index.match(prefix, mask_of(tied))
    worker = next((each for each in tied if holders >> each.index & 1), tied[0])
    return Choice(worker, "least_loaded", depth)


def pick_fastest(candidates: Sequence[Worker], prefix: Sequence[int], index: PrefixIndex) -> Choice:
    """Picker beyond the caps: who gives most speed with one more; ties to who came up first."""
    worker = max(candidates, key=lambda each: each.speeds[len(each.running) + 1])
    depth, _ = index.match(prefix, 1 << worker.index)
    return Choice(worker, "slow_beats_late", depth)


def nearest(workers: Sequence[Worker], rank: int) -> Worker:
    """Picker: who will first be able to take a request of this tier, by requests still to end.

    That worker is kept free of lower tiers while the request waits; otherwise they would fill
    every slot that ends, and a higher tier could never begin where its cap is the smaller one.
    Ties go to the least loaded, then to the one that came up first.
    """
    gaps = [len(each.running) - min(each.limit, each.caps[rank]) for each in workers]
    least = min(gaps)
    return min(
        (each for each, gap in zip(workers, gaps, strict=True) if gap == least), key=load_ppm
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
