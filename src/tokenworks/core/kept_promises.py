"""Which promise the measured speed of an answer has kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tokenworks.core.slo import Measured, Promise, Tier
from tokenworks.core.units import NS_PER_S


def promise_met(promise: Promise, measured: Measured) -> bool:
    """Whether an answer kept a promise.

    The first token must come within ``ttft_ns``, and n tokens may take at most
    ``(n - 1) / interactivity + grace`` from the first to the last. Of an answer in one piece, whose
    first token nobody has seen, both together may take as long as both bounds.

    >>> p = Promise(ttft_ns=10, interactivity_tokens_per_s=1_000_000_000, grace_ns=2,
    ...             patience_ns=0, output_tokens_default=1)
    >>> [promise_met(p, Measured(ttft_ns=10, decode_ns=d, output_tokens=5)) for d in (6, 7)]
    [True, False]
    >>> [promise_met(p, Measured(ttft_ns=None, decode_ns=d, output_tokens=5)) for d in (16, 17)]
    [True, False]
    """
    ttft_ns, allowed_ns = measured.ttft_ns, promise.grace_ns
    if ttft_ns is None:
        if measured.output_tokens <= 0:
            return False
        allowed_ns += promise.ttft_ns
    elif ttft_ns > promise.ttft_ns:
        return False
    gaps = max(0, measured.output_tokens - 1)
    late_ns = max(0, measured.decode_ns - allowed_ns)
    return late_ns * promise.interactivity_tokens_per_s <= gaps * NS_PER_S


def delivered_tier(asked: Tier, promises: Mapping[Tier, Promise], measured: Measured) -> Tier:
    """The highest tier not above the asked one whose promise was met; free if none was."""
    for tier in _DOWN_FROM[asked]:
        if promise_met(promises[tier], measured):
            return tier
    return Tier.FREE


_DOWN_FROM: Final = {
    tier: tuple(reversed(tuple(Tier)[: rank + 1])) for rank, tier in enumerate(Tier)
}
