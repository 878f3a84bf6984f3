"""Workers as the dispatcher remembers them, and what their measured speed allows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import msgspec

from tokenworks.core.ids import ModelName, PoolID, RequestID, WorkerID
from tokenworks.core.slo import Promise, Tier
from tokenworks.core.units import NS_PER_S

SERVICE_MEAN_SHIFT = 3
"""An observed service time moves the mean by 1/8 of the difference."""

UNSEEN_OUTPUT_TOKENS_MAX = 512
"""Longest answer that is assumed of a worker of which none was seen yet."""


class Worker(msgspec.Struct, kw_only=True):
    """One worker that is up. Only the dispatcher changes it.

    Attributes:
        worker: its name.
        pool: its pool.
        model: what it serves.
        slots: requests that it runs side by side.
        curve: as measured, see ``WorkerUp``.
        index: its bit in the prefix index.
        speeds: tokens per second per user at each batch from 0 to ``slots``; 0 is as 1.
        caps: by tier rank, the largest batch that keeps the tier's promise.
        running: requests it has, in the order they were sent, with the rank of the tier under
            which each counts: the one it asked for or, if it was sent late, a lower one.
        counts: by tier rank, how many of them.
        limit: the least cap of the tiers running there; ``slots`` if none is.
        service_ns_mean: how long a request holds a slot; None before the first has ended.
    """

    worker: WorkerID
    pool: PoolID
    model: ModelName
    slots: int
    curve: tuple[tuple[int, int], ...]
    index: int
    speeds: list[int]
    caps: list[int]
    running: dict[RequestID, int]
    counts: list[int]
    limit: int
    service_ns_mean: int | None = None

    def measure(self, promises: Mapping[Tier, Promise]) -> None:
        """Derive speeds, caps and limit again from slots, curve and promises."""
        self.speeds = speeds_of(self.curve, self.slots)
        self.caps = [
            tier_cap(self.speeds, promises[tier].interactivity_tokens_per_s) for tier in Tier
        ]
        self._relimit()

    def take(self, request: RequestID, rank: int) -> None:
        """Count a request that is sent to it."""
        assert request not in self.running, request
        self.running[request] = rank
        self.counts[rank] += 1
        self.limit = min(self.limit, self.caps[rank])

    def release(self, request: RequestID) -> None:
        """Count off a request that it no longer has."""
        rank = self.running.pop(request)
        self.counts[rank] -= 1
        if self.counts[rank] == 0:
            self._relimit()

    def observe(self, service_ns: int) -> None:
        """Move the mean service time towards one that was seen."""
        if self.service_ns_mean is None:
            self.service_ns_mean = service_ns
        self.service_ns_mean += (service_ns - self.service_ns_mean) >> SERVICE_MEAN_SHIFT

    def service_ns_expected(self, output_tokens_max: int) -> int:
        """How long a request of this output limit will hold a slot, at least 1 ns.

        Before anything is observed: its output limit, or 512 tokens if that is less, at the speed
        of a full batch.
        """
        if self.service_ns_mean is not None:
            return max(1, self.service_ns_mean)
        tokens = min(output_tokens_max, UNSEEN_OUTPUT_TOKENS_MAX)
        return max(1, tokens * NS_PER_S // max(1, self.speeds[self.slots]))

    def _relimit(self) -> None:
        self.limit = min(
            [self.slots, *(cap for cap, n in zip(self.caps, self.counts, strict=True) if n)]
        )


def speeds_of(curve: tuple[tuple[int, int], ...], slots: int) -> list[int]:
    """The speed one user sees at every batch from 0 to ``slots``, in tokens per second.

    Linear between measured points, rounded down. Below the first point it is the first point's
    speed; above the last one the sum over all users is taken as constant.

    Args:
        curve: pairs (batch, tokens per second per user), batches ascending from at least 1.
        slots: at least 1.

    >>> speeds_of(((1, 100), (3, 60)), 6)
    [100, 100, 80, 60, 45, 36, 30]
    """
    assert slots >= 1, slots
    assert curve, "a worker needs a measured speed curve"
    assert all(batch >= 1 and speed >= 0 for batch, speed in curve), curve
    assert all(a[0] < b[0] for a, b in itertools.pairwise(curve)), curve
    first, last = curve[0], curve[-1]
    speeds = [first[1]] * (min(first[0], slots) + 1)
    for (b0, s0), (b1, s1) in itertools.pairwise(curve):
        speeds += [s0 + (s1 - s0) * (b - b0) // (b1 - b0) for b in range(b0 + 1, b1 + 1)]
    speeds += [last[0] * last[1] // b for b in range(last[0] + 1, slots + 1)]
    return speeds[: slots + 1]


def tier_cap(speeds: list[int], interactivity_tokens_per_s: int) -> int:
    """The largest batch up to which the worker still gives a promised speed, at least 1.

    Args:
        speeds: as ``speeds_of`` gives them.
        interactivity_tokens_per_s: what one user is promised.

    >>> [tier_cap([100, 100, 80, 60], promised) for promised in (50, 70, 1000)]
    [3, 2, 1]
    """
    cap = 1
    for batch in range(2, len(speeds)):
        if speeds[batch] < interactivity_tokens_per_s:
            break
        cap = batch
    return cap
