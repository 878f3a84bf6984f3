"""Tiers, what they promise, and what was measured of an answer."""

from __future__ import annotations

import enum

import msgspec


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
        ttft_ns: arrival of the request to sending its first token; None if there was none, or the
            worker gave its answer in one piece, so that nobody knows.
        decode_ns: first token to last token, less the time the client would not read; of an answer
            in one piece arrival to its end.
        output_tokens: tokens sent.
    """

    ttft_ns: int | None
    decode_ns: int
    output_tokens: int
