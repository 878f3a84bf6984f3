"""Tiers and their promises, and which promise a request's measured speed has met."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from tokenworks.core.units import NS_PER_S


class Tier(enum.StrEnum):
    """The five tiers of a token factory, slowest promise first."""

    FREE = "free"
    MEDIUM = "medium"
    HIGH = "high"
    PREMIUM = "premium"
    ULTRA = "ultra"

    __hash__ = str.__hash__

    @property
    def rank(self) -> int:
        """0 for free up to 4 for ultra.

        >>> Tier.ULTRA.rank
        4
        """
        return _RANKS[self]


_RANKS = {tier: i for i, tier in enumerate(Tier)}


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """What a tier promises, and how long its requests may wait.

    Attributes:
        ttft_ns: time to first token, from the request's arrival, at most this.
        interactivity_tokens_per_s: speed one user sees after the first token, at least this.
        grace_ns: time forgiven once per request, so that one stall does not sink a short answer.
        patience_ns: a request still queued after this long is rejected.
        output_tokens_default: the output limit of a request that names none.
    """

    ttft_ns: int
    interactivity_tokens_per_s: int
    grace_ns: int
    patience_ns: int
    output_tokens_default: int


class Measured(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The speed of one answer at the gateway's own send times.

    Attributes:
        ttft_ns: arrival of the request to sending its first token; None if there was none.
        decode_ns: first token to last token, less the time the client would not read.
        output_tokens: tokens sent.
    """

    ttft_ns: int | None
    decode_ns: int
    output_tokens: int


def promise_met(promise: Promise, measured: Measured) -> bool:
    """Whether an answer kept a promise.

    The first token must come within ``ttft_ns``, and n tokens may take at most
    ``(n - 1) / interactivity + grace`` from the first to the last.

    >>> p = Promise(ttft_ns=10, interactivity_tokens_per_s=1_000_000_000, grace_ns=2,
    ...             patience_ns=0, output_tokens_default=1)
    >>> [promise_met(p, Measured(ttft_ns=10, decode_ns=d, output_tokens=5)) for d in (6, 7)]
    [True, False]
    """
    if measured.ttft_ns is None or measured.ttft_ns > promise.ttft_ns:
        return False
    gaps = max(0, measured.output_tokens - 1)
    late_ns = max(0, measured.decode_ns - promise.grace_ns)
    return late_ns * promise.interactivity_tokens_per_s <= gaps * NS_PER_S


def delivered_tier(asked: Tier, promises: Mapping[Tier, Promise], measured: Measured) -> Tier:
    """The highest tier not above the asked one whose promise was met; free if none was."""
    for tier in _DOWN_FROM[asked]:
        if promise_met(promises[tier], measured):
            return tier
    return Tier.FREE


_DOWN_FROM = {tier: tuple(reversed(tuple(Tier)[: i + 1])) for tier, i in _RANKS.items()}
