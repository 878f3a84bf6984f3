"""Ledger entries: what happened to money, complete enough to redo each sum, and never edited.

Entries are kept as JSON arrays: a new field goes to the end of its record, with a default.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Final, Literal

import msgspec

from tokenworks.catalogue.price_book import Price
from tokenworks.core.ids import ModelName, PoolID, PriceID, RequestID, WorkerID
from tokenworks.core.orders import Ending, MeteredBy, Payer, Usage
from tokenworks.core.slo import Tier
from tokenworks.ledger.accounts import (
    AD_INCOME,
    AD_NETWORK,
    CREDITS,
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

VoidReason = Literal["rejected", "withdrawn", "failed", "expired", "outrun"]
"""Why a reservation was given back: the dispatcher would not take the request; the client left
before it began; its worker failed before the first byte; its owner is gone or too late; another try
of the same request answered first."""


class Reserved(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    array_like=True,
    gc=False,
    tag_field="kind",
    tag="reserved",
):
    """The most that one attempt may use, held against every quota above it. Moves no money yet.

    Attributes:
        at_unix_ns: when; the answer belongs to this hour, whenever it ends.
        request: the request.
        attempt: 0, 1, ... counts the tries of one request.
        payer: who asked and who pays.
        model: the model asked for.
        tier_asked: the tier asked for.
        batch: whether it may wait, at the batch rate.
        input_tokens_max: the prompt's upper bound.
        output_tokens_max: the most the worker may make.
        hold_nanodollars: the most that the attempt can be charged.
        price_id: the price book in force, by which it will be billed.
        owner: the process that must settle it.
        expires_ns: on the owner's own clock; meaningless to any other process.
    """

    phase: ClassVar[Phase] = "reserve"

    at_unix_ns: int
    request: RequestID
    attempt: int
    payer: Payer
    model: ModelName
    tier_asked: Tier
    batch: bool
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


class Posted(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    array_like=True,
    gc=False,
    tag_field="kind",
    tag="posted",
):
    """An answer as it is billed.

    Attributes:
        at_unix_ns: when it was billed.
        request: the request.
        attempt: the try that made the answer.
        payer: who asked and who pays.
        model: the model asked for.
        tier_asked: the tier asked for.
        tier_delivered: the tier whose promise was met, which is the one that is billed.
        reserved_unix_ns: when it was reserved; reports, invoices and quotas count it then.
        pool: where it was made.
        worker: who made it.
        batch: whether it could wait.
        usage: tokens by class.
        metered_by: who counted them.
        price_id: the price book used.
        price: list prices of the delivered tier.
        rate_ppm: what was charged of them, in millionths: off-peak, batch and discount.
        charged_nanodollars: what the tenant pays, before the credit.
        credit_ppm: part of the charge that is given back for a broken promise.
        credited_nanodollars: what is given back.
        ad_income_udollars_per_mtok: what advertisers pay per 1M output tokens; 0 where the
            answer earned nothing from them.
        ad_income_nanodollars: what advertisers pay.
        energy_nanodollars: this answer's share of its worker's electricity.
        capital_nanodollars: its share of its worker's machines.
        worker_ns: its time on the worker.
        ttft_ns, decode_ns: see ``Measured``; with the usage they say which tier was delivered.
        ending: how the answer ended.
    """

    phase: ClassVar[Phase] = "settle"

    at_unix_ns: int
    request: RequestID
    attempt: int
    payer: Payer
    model: ModelName
    tier_asked: Tier
    tier_delivered: Tier
    reserved_unix_ns: int
    pool: PoolID
    worker: WorkerID
    batch: bool
    usage: Usage
    metered_by: MeteredBy
    price_id: PriceID
    price: Price
    rate_ppm: int
    charged_nanodollars: int
    credit_ppm: int
    credited_nanodollars: int
    ad_income_udollars_per_mtok: int
    ad_income_nanodollars: int
    energy_nanodollars: int
    capital_nanodollars: int
    worker_ns: int
    ttft_ns: int | None
    decode_ns: int
    ending: Ending

    @property
    def counted_tokens(self) -> int:
        """Tokens counted against quotas: none where the worker broke off."""
        if self.ending == "failed":
            return 0
        return self.usage.prompt_tokens + self.usage.completion_tokens

    @property
    def paid_nanodollars(self) -> int:
        """What is counted against quotas and due in the end: the charge less the credit."""
        return self.charged_nanodollars - self.credited_nanodollars

    def transfers(self) -> tuple[Transfer, ...]:
        """Wallet to revenue of the delivered tier, credits back, advertisers to ad income."""
        return (
            transfer(
                wallet(self.payer.tenant), revenue(self.tier_delivered), self.charged_nanodollars
            )
            + transfer(CREDITS, wallet(self.payer.tenant), self.credited_nanodollars)
            + transfer(AD_NETWORK, AD_INCOME, self.ad_income_nanodollars)
        )


class Voided(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    array_like=True,
    gc=False,
    tag_field="kind",
    tag="voided",
):
    """A reservation given back. Moves no money.

    Attributes:
        at_unix_ns: when.
        request: the request.
        attempt: the try that was reserved.
        payer: whose quotas have it back.
        model: the model asked for.
        tier_asked: the tier asked for.
        reserved_unix_ns: when it was reserved.
        reason: why.
    """

    phase: ClassVar[Phase] = "settle"

    at_unix_ns: int
    request: RequestID
    attempt: int
    payer: Payer
    model: ModelName
    tier_asked: Tier
    reserved_unix_ns: int
    reason: VoidReason

    def transfers(self) -> tuple[Transfer, ...]:
        """None."""
        return ()


class CostAccrued(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    array_like=True,
    gc=False,
    tag_field="kind",
    tag="accrued",
):
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


def accrual_request(owner: str, pool: PoolID, from_unix_ns: int) -> RequestID:
    """The name under which a pool's cost from some instant on is written by a process."""
    return RequestID(f"accrual:{owner}:{pool}:{from_unix_ns}")


def oldest_first(holds: Iterable[Reserved]) -> list[Reserved]:
    """Reservations by date, then request and attempt: whatever was taken back, in one order."""
    return sorted(holds, key=lambda hold: (hold.at_unix_ns, hold.request, hold.attempt))
