"""Ledger entries: what happened to money, complete enough to redo each sum, and never edited."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

import msgspec

from tokenworks.catalogue.price_book import Price
from tokenworks.core.ids import (
    KeyID,
    ModelName,
    PoolID,
    PriceID,
    RequestID,
    TenantID,
    WorkerID,
)
from tokenworks.core.slo import Tier
from tokenworks.ledger.accounts import (
    AD_INCOME,
    AD_NETWORK,
    SUPPLIER,
    Transfer,
    capital_cost,
    energy_cost,
    revenue,
    transfer,
    wallet,
)

Phase = Literal["reserve", "settle", "accrue"]
"""An attempt is reserved once and settled once, by a posting or by a voiding."""

Ending = Literal["done", "disconnected", "failed"]
"""``done``; the client left; the worker broke off."""

VoidReason = Literal["rejected", "withdrawn", "failed", "expired"]
"""Why a reservation was given back: the dispatcher would not take the request; the client left
before it began; its worker failed before the first byte; its owner is gone or too late."""


class Reserved(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="reserved"):
    """The most that one attempt may use, held against its key's quotas. Moves no money yet.

    Attributes:
        at_unix_ns: when.
        request: the request.
        attempt: 0, 1, ... counts the tries of one request.
        key: who asked.
        tenant: who pays.
        model: the model asked for.
        tier_asked: the tier asked for.
        input_tokens_max: the prompt's upper bound.
        output_tokens_max: the most the worker may make.
        hold_nanodollars: the most that the attempt can be charged.
        price_id: the price book the hold was computed from.
        owner: the factory process that must settle it.
        expires_ns: on the owner's own clock; meaningless to any other process.
    """

    phase: ClassVar[Phase] = "reserve"

    at_unix_ns: int
    request: RequestID
    attempt: int
    key: KeyID
    tenant: TenantID
    model: ModelName
    tier_asked: Tier
    input_tokens_max: int
    output_tokens_max: int
    hold_nanodollars: int
    price_id: PriceID
    owner: str
    expires_ns: int

    @property
    def hold_tokens(self) -> int:
        """Tokens held."""
        return self.input_tokens_max + self.output_tokens_max

    def transfers(self) -> tuple[Transfer, ...]:
        """None: a hold is pending until it is posted or voided."""
        return ()


class Posted(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="posted"):
    """An answer as it is billed.

    Attributes:
        at_unix_ns: when.
        request: the request.
        attempt: the try that made the answer.
        key: who asked.
        tenant: who pays.
        model: the model asked for.
        tier_asked: the tier asked for.
        tier_delivered: the tier whose promise was met, which is the one that is billed.
        pool: where it was made.
        worker: who made it.
        uncached_input_tokens: prompt tokens that were computed.
        cached_input_tokens: prompt tokens found in a prefix cache.
        output_tokens: tokens made.
        price_id: the price book used.
        price: the three prices used, those of the delivered tier.
        charged_nanodollars: what the tenant pays.
        ad_income_udollars_per_mtok: what advertisers pay per 1M output tokens; 0 where the
            answer earned nothing from them.
        ad_income_nanodollars: what advertisers pay.
        cost_nanodollars: this answer's share of its worker's cost.
        worker_ns: its time on the worker.
        ttft_ns: arrival to first token sent; None if there was none.
        decode_ns: first token to last.
        ending: how the answer ended.
    """

    phase: ClassVar[Phase] = "settle"

    at_unix_ns: int
    request: RequestID
    attempt: int
    key: KeyID
    tenant: TenantID
    model: ModelName
    tier_asked: Tier
    tier_delivered: Tier
    pool: PoolID
    worker: WorkerID
    uncached_input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    price_id: PriceID
    price: Price
    charged_nanodollars: int
    ad_income_udollars_per_mtok: int
    ad_income_nanodollars: int
    cost_nanodollars: int
    worker_ns: int
    ttft_ns: int | None
    decode_ns: int
    ending: Ending

    @property
    def input_tokens(self) -> int:
        """The whole prompt, computed and cached."""
        return self.uncached_input_tokens + self.cached_input_tokens

    @property
    def counted_tokens(self) -> int:
        """Tokens counted against the key's quota: none where the worker broke off."""
        return 0 if self.ending == "failed" else self.input_tokens + self.output_tokens

    def transfers(self) -> tuple[Transfer, ...]:
        """Wallet to revenue of the delivered tier, and advertisers to ad income."""
        return transfer(
            wallet(self.tenant), revenue(self.tier_delivered), self.charged_nanodollars
        ) + transfer(AD_NETWORK, AD_INCOME, self.ad_income_nanodollars)


class Voided(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="voided"):
    """A reservation given back. Moves no money.

    Attributes:
        at_unix_ns: when.
        request: the request.
        attempt: the try that was reserved.
        key: whose quota has it back.
        tenant: who would have paid.
        model: the model asked for.
        tier_asked: the tier asked for.
        reason: why.
    """

    phase: ClassVar[Phase] = "settle"

    at_unix_ns: int
    request: RequestID
    attempt: int
    key: KeyID
    tenant: TenantID
    model: ModelName
    tier_asked: Tier
    reason: VoidReason

    def transfers(self) -> tuple[Transfer, ...]:
        """None."""
        return ()


class CostAccrued(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="accrued"):
    """What a pool cost over an interval, busy or idle.

    Attributes:
        at_unix_ns: when it was written.
        request: made from the pool and the interval's start, so that no interval counts twice.
        attempt: always 0.
        pool: whose cost.
        from_unix_ns: the interval's start.
        until_unix_ns: its end, which is not part of it.
        energy_nanodollars: electricity.
        capital_nanodollars: machines.
    """

    phase: ClassVar[Phase] = "accrue"

    at_unix_ns: int
    request: RequestID
    attempt: int = 0
    pool: PoolID
    from_unix_ns: int
    until_unix_ns: int
    energy_nanodollars: int
    capital_nanodollars: int

    def transfers(self) -> tuple[Transfer, ...]:
        """Each kind of cost to the supplier."""
        return transfer(energy_cost(self.pool), SUPPLIER, self.energy_nanodollars) + transfer(
            capital_cost(self.pool), SUPPLIER, self.capital_nanodollars
        )


Settlement = Posted | Voided
Entry = Reserved | Posted | Voided | CostAccrued

KINDS: Final = ("reserved", "posted", "voided", "accrued")
"""The tags of the union, in the order of ``Entry``."""


def kind_of(entry: Entry) -> str:
    """The tag that an entry's record carries."""
    tag = entry.__struct_config__.tag
    assert tag in KINDS, tag
    return str(tag)


def accrual_request(pool: PoolID, from_unix_ns: int) -> RequestID:
    """The name under which a pool's cost from some instant on is written."""
    return RequestID(f"accrual:{pool}:{from_unix_ns}")
