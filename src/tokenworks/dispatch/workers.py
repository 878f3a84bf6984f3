"""Workers as the dispatcher remembers them: what they are, what they run, what they admit."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import UNSET

from tokenworks.core.ids import ModelName, PoolID, RequestID, WorkerID
from tokenworks.core.needs import NO_OFFERS, Offers
from tokenworks.core.slo import Promise, Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.events import PrefilledBy, WorkerUp
from tokenworks.perf.timing import Timing

UNSEEN_OUTPUT_TOKENS_MAX: Final = 512
"""Longest answer that is assumed of a worker of which none was seen yet."""

RANKS: Final = tuple(range(len(Tier)))


class Worker(msgspec.Struct, kw_only=True):
    """One worker that is up. Only the dispatcher changes it.

    Attributes:
        worker: its name.
        pool: its pool.
        model: what it serves.
        engine_slots: requests that its engine runs side by side.
        slots: requests that it is sent at once, by the settings.
        curve: as measured, see ``WorkerUp``.
        index: its bit in the prefix index.
        speeds: tokens per second per user at each batch from 0 to ``slots``; 0 is as 1.
        caps: by tier rank, the largest batch that keeps the tier's promise.
        running: requests it has, in the order they were sent, with the rank of the tier under
            which each counts: the one it asked for or, if it was sent late, a lower one.
        counts: by tier rank, how many of them.
        limit: the least cap of the tiers running there; ``slots`` if none is.
        dearest: the highest rank of these; 0 if none runs.
        timing: how long its iterations take, where that is known.
        kv_blocks: its KV cache, where that is known.
        block_tokens: tokens in one block.
        batch_tokens_max: tokens that one iteration computes at most.
        admits: by running requests, the ranks whose caps allow one more, as bits.
        admitted: the same now, with ``limit``; kept by ``Fleet``.
        load: its place among the fleet's loads; kept by ``Fleet``.
        prefill_tokens: of what was sent and has not begun to answer, left to prefill.
        prefilling: requests that it prefills for other workers.
        link_bytes_per_s: see ``WorkerUp``.
        kv_bytes_per_token: see ``WorkerUp``.
        context_tokens: of all that it runs, as far as known: prompts.
        service_ns_mean: how long a request holds a slot; None before the first has ended.
        offers: labels and adapters that it has.
        retiring: it is given back as soon as it is empty, and in no fleet any more.
        preempts: see ``WorkerUp``.
        host_bytes_per_s: see ``WorkerUp``; 0 if it has no place in its host's memory.
        prefilled_by: see ``DecoderUp``; None if it prefills itself.
    """

    worker: WorkerID
    pool: PoolID
    model: ModelName
    engine_slots: int
    slots: int
    curve: tuple[tuple[int, int], ...]
    index: int
    speeds: list[int] = []
    caps: list[int] = []
    running: dict[RequestID, int] = {}
    counts: list[int] = msgspec.field(default_factory=lambda: [0] * len(RANKS))
    limit: int = 0
    dearest: int = 0
    timing: Timing | None = None
    kv_blocks: int | None = None
    block_tokens: int = 64
    batch_tokens_max: int = 8_192
    admits: list[int] = []
    admitted: int = 0
    load: int = 0
    prefill_tokens: int = 0
    prefilling: dict[RequestID, None] = {}
    link_bytes_per_s: int = 0
    kv_bytes_per_token: int = 0
    context_tokens: int = 0
    service_ns_mean: int | None = None
    offers: Offers = NO_OFFERS
    retiring: bool = False
    preempts: bool = False
    host_bytes_per_s: int = 0
    prefilled_by: PrefilledBy | None = None

    @classmethod
    def of(cls, event: WorkerUp, slots: int, index: int) -> Worker:
        """One that has come up.

        Args:
            event: that says so.
            slots: requests that it is sent at once.
            index: its bit in the prefix index.
        """
        worker = cls(
            worker=event.worker,
            pool=event.pool,
            model=event.model,
            engine_slots=event.slots,
            slots=slots,
            curve=event.curve,
            index=index,
        )
        worker.take_over(event, slots)
        return worker

    def differs(self, event: WorkerUp) -> bool:
        """Whether it was measured as something else than it is known for."""
        return (event.slots, *_told(event)) != (self.engine_slots, *self._known())

    def take_over(self, event: WorkerUp, slots: int) -> None:
        """Be as it was measured; ``measure`` derives the rest."""
        self.engine_slots, self.slots = event.slots, slots
        for name, value in zip(_TOLD, _told(event), strict=True):
            setattr(self, name, value)

    def _known(self) -> list[object]:
        return [getattr(self, name) for name in _TOLD]

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that its KV cache holds, where that is known."""
        return None if self.kv_blocks is None else self.kv_blocks * self.block_tokens

    @property
    def hands_over(self) -> bool:
        """Whether it can give its KV cache to others, and take theirs."""
        return self.link_bytes_per_s > 0

    def measure(self, promises: Mapping[Tier, Promise]) -> None:
        """Derive speeds, caps and limit again from slots, curve and promises."""
        self.speeds = speeds_of(self.curve, self.slots)
        self.recap(
            [tier_cap(self.speeds, promises[tier].interactivity_tokens_per_s) for tier in Tier]
        )

    def recap(self, caps: list[int]) -> None:
        """Take other caps, by tier rank, each at least 1; the fleet's sets must be made again."""
        if caps != self.caps or len(self.admits) != self.slots + 1:
            self.caps = caps
            self.admits = _admits_of(caps, self.slots)
            self.relimit()

    def service_ns_expected(self, output_tokens_max: int) -> int:
        """How long a request of this output limit will hold a slot, at least 1 ns.

        Before anything is observed: its output limit, or 512 tokens if that is less, at the speed
        of a full batch.
        """
        if self.service_ns_mean is not None:
            return max(1, self.service_ns_mean)
        tokens = min(output_tokens_max, UNSEEN_OUTPUT_TOKENS_MAX)
        return max(1, tokens * NS_PER_S // max(1, self.speeds[self.slots]))

    def relimit(self) -> None:
        """Find the least cap again of the tiers that run."""
        limit = self.slots
        for cap, count in zip(self.caps, self.counts, strict=True):
            if count and cap < limit:
                limit = cap
        self.limit = limit


class WorkerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker has, for gauges: running requests, slots, and its cap per tier."""

    running: int
    slots: int
    caps: dict[Tier, int]

    @classmethod
    def of(cls, worker: Worker) -> WorkerLoad:
        """What a worker has now."""
        caps = dict(zip(Tier, worker.caps, strict=True))
        return cls(running=len(worker.running), slots=worker.slots, caps=caps)


_TOLD: Final = (
    *("curve", "timing", "kv_blocks", "block_tokens", "batch_tokens_max", "link_bytes_per_s"),
    *("kv_bytes_per_token", "offers", "preempts", "host_bytes_per_s", "prefilled_by"),
)
"""What a worker that is measured again may change, beside its slots."""


def _told(event: WorkerUp) -> list[object]:
    """What an event says of these; what it leaves unset is not there."""
    defaults = {"offers": NO_OFFERS, "preempts": False, "host_bytes_per_s": 0, "prefilled_by": None}
    values = [getattr(event, name, UNSET) for name in _TOLD]
    return [
        defaults[name] if value is UNSET else value
        for name, value in zip(_TOLD, values, strict=True)
    ]


def _admits_of(caps: list[int], slots: int) -> list[int]:
    """By running requests from 0 to ``slots``, the ranks whose caps allow one more, as bits."""
    admits: list[int] = []
    bits = (1 << len(caps)) - 1
    for cap, rank in sorted(zip(caps, RANKS, strict=True)):
        admits += [bits] * (min(cap, slots + 1) - len(admits))
        bits ^= 1 << rank
    return admits + [0] * (slots + 1 - len(admits))


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
