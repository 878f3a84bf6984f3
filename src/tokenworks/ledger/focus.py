"""Cost and usage by the FinOps Open Cost and Usage Specification (FOCUS), version 1.2.

Every mandatory column is here, and of the conditional ones those whose condition holds: prices
are published, usage is measured, discounts are negotiated, and a team is a sub account. Columns
of our own begin with ``x_``.

Source:
    FOCUS 1.2, the repository FinOps-Open-Cost-and-Usage-Spec/FOCUS_Spec at the tag ``v1.2``,
    ``specification/columns/`` and ``specification/attributes/unit_format.md``; read 2026-11-24.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.ids import PriceID, TenantID
from tokenworks.core.orders import Payer
from tokenworks.core.slo import Tier
from tokenworks.core.units import PPM
from tokenworks.ledger.invoices import (
    ATTODOLLARS_PER_NANODOLLAR,
    BILLED,
    LineKind,
    amount_attodollars,
    check_ended,
    decimal_text,
    invoice_number,
    line_kinds,
)
from tokenworks.ledger.quotas import window_end, window_start
from tokenworks.ledger.rollup import RollupRow

FOCUS_VERSION: Final = "1.2"
ISSUER: Final = "Tokenworks"
PRICING_UNIT: Final = "1000000 Tokens"
SCALE: Final = 18
"""Decimals of an amount of dollars: an atto-dollar is never rounded away."""

ColumnType = Literal["string", "decimal", "datetime", "json"]
FocusRow = dict[str, str | None]
"""A value for each column as text: decimals exact, times ISO 8601 in UTC, None for null."""


class Column(NamedTuple):
    """A column: its name, its type, and whether it may be null."""

    name: str
    type: ColumnType
    nullable: bool


COLUMNS: Final = (
    Column("BilledCost", "decimal", nullable=False),
    Column("BillingAccountId", "string", nullable=False),
    Column("BillingAccountName", "string", nullable=True),
    Column("BillingCurrency", "string", nullable=False),
    Column("BillingPeriodEnd", "datetime", nullable=False),
    Column("BillingPeriodStart", "datetime", nullable=False),
    Column("ChargeCategory", "string", nullable=False),
    Column("ChargeClass", "string", nullable=True),
    Column("ChargeDescription", "string", nullable=True),
    Column("ChargeFrequency", "string", nullable=False),
    Column("ChargePeriodEnd", "datetime", nullable=False),
    Column("ChargePeriodStart", "datetime", nullable=False),
    Column("ConsumedQuantity", "decimal", nullable=True),
    Column("ConsumedUnit", "string", nullable=True),
    Column("ContractedCost", "decimal", nullable=False),
    Column("ContractedUnitPrice", "decimal", nullable=True),
    Column("EffectiveCost", "decimal", nullable=False),
    Column("InvoiceId", "string", nullable=True),
    Column("InvoiceIssuerName", "string", nullable=False),
    Column("ListCost", "decimal", nullable=False),
    Column("ListUnitPrice", "decimal", nullable=True),
    Column("PricingCategory", "string", nullable=True),
    Column("PricingQuantity", "decimal", nullable=True),
    Column("PricingUnit", "string", nullable=True),
    Column("ProviderName", "string", nullable=False),
    Column("PublisherName", "string", nullable=False),
    Column("ServiceCategory", "string", nullable=False),
    Column("ServiceName", "string", nullable=False),
    Column("ServiceSubcategory", "string", nullable=False),
    Column("SkuId", "string", nullable=True),
    Column("SkuMeter", "string", nullable=True),
    Column("SkuPriceDetails", "json", nullable=True),
    Column("SkuPriceId", "string", nullable=True),
    Column("SubAccountId", "string", nullable=True),
    Column("SubAccountName", "string", nullable=True),
    Column("x_BatchWork", "string", nullable=True),
    Column("x_Engineer", "string", nullable=True),
    Column("x_Key", "string", nullable=True),
    Column("x_Model", "string", nullable=True),
    Column("x_PriceBook", "string", nullable=True),
    Column("x_RatePpm", "decimal", nullable=True),
    Column("x_TierAsked", "string", nullable=True),
    Column("x_TierDelivered", "string", nullable=True),
    Column("x_TokenClass", "string", nullable=True),
    Column("x_Tokens", "decimal", nullable=True),
)


class _Who(NamedTuple):
    """The day and whose charge it was, and the tiers."""

    start_unix_ns: int
    tenant: str
    team: str
    engineer: str
    key: str
    model: str
    asked: str
    delivered: str


def focus_rows(
    month: str,
    rows: Iterable[RollupRow],
    books: Mapping[PriceID, PriceBook],
    unix_ns: int,
    *,
    tenant: TenantID | None = None,
    draft: bool = False,
) -> list[FocusRow]:
    """A month's charges; over a tenant's rows BilledCost adds up to the total of its invoice.

    Args:
        month: ``2026-11``.
        rows: the sums of just that month, by hour.
        books: the kept price books that ``invoices.price_ids`` names.
        unix_ns: now.
        tenant: whose; all if None.
        draft: make it although more may still be added; no invoice is named then.

    Raises:
        InvalidRequest: see ``invoices.check_ended``.
        LedgerCorrupt: see ``invoices.line_kinds``.
    """
    period = check_ended(month, unix_ns, draft=draft)
    tokens: dict[tuple[_Who, LineKind], int] = {}
    credits_: dict[_Who, int] = {}
    rest: dict[str, int] = {}
    for row in rows:
        if row.kind.what not in BILLED or tenant not in {None, row.payer.tenant}:
            continue
        who = _who(row.start_unix_ns, row.payer, row.kind.tier_asked, row)
        exact = 0
        for kind, amount in line_kinds(row, books):
            tokens[who, kind] = tokens.get((who, kind), 0) + amount
            exact += amount_attodollars(kind, amount)
        if row.credited_nanodollars:
            credits_[who] = credits_.get(who, 0) + row.credited_nanodollars
        charged = row.charged_nanodollars * ATTODOLLARS_PER_NANODOLLAR
        rest[who.tenant] = rest.get(who.tenant, 0) + charged - exact
    made = [_usage_row(who, kind, tokens[who, kind]) for who, kind in sorted(tokens)]
    made += [_credit_row(who, credits_[who]) for who in sorted(credits_)]
    made += [_rounding_row(each, amount, period) for each, amount in sorted(rest.items()) if amount]
    for line in made:
        line["BillingPeriodStart"], line["BillingPeriodEnd"] = map(_time, period)
        number = invoice_number(TenantID(str(line["BillingAccountId"])), month)
        line["InvoiceId"] = None if draft else number
    return made


def _who(unix_ns: int, payer: Payer, asked: Tier | None, row: RollupRow) -> _Who:
    delivered = row.kind.tier_delivered
    assert asked is not None, row
    assert delivered is not None, row
    return _Who(
        window_start("day", unix_ns),
        *(payer.tenant, payer.team or "", payer.engineer or "", payer.key),
        *(row.kind.model, asked.value, delivered.value),
    )


def _charge(
    tenant: str, category: str, text: str, window: tuple[int, int], attodollars: int
) -> FocusRow:
    """A row with what every charge has; its costs are all the amount billed."""
    line: FocusRow = dict.fromkeys((column.name for column in COLUMNS), None)
    cost = decimal_text(attodollars, SCALE)
    for name in ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"):
        line[name] = cost
    line["BillingAccountId"] = line["BillingAccountName"] = tenant
    line["BillingCurrency"] = "USD"
    line["ChargeCategory"], line["ChargeDescription"] = category, text
    line["ChargeFrequency"] = "Usage-Based" if category == "Usage" else "One-Time"
    line["ChargePeriodStart"], line["ChargePeriodEnd"] = map(_time, window)
    for name in ("InvoiceIssuerName", "ProviderName", "PublisherName"):
        line[name] = ISSUER
    line["ServiceCategory"] = "AI and Machine Learning"
    line["ServiceSubcategory"] = "Generative AI"
    line["ServiceName"] = "Token factory"
    return line


def _of(who: _Who, category: str, text: str, attodollars: int) -> FocusRow:
    window = (who.start_unix_ns, window_end("day", who.start_unix_ns))
    line = _charge(who.tenant, category, text, window, attodollars)
    if who.team:  # two tenants may call a team the same
        line["SubAccountId"] = f"{who.tenant}/{who.team}"
        line["SubAccountName"] = who.team
    line["x_Engineer"], line["x_Key"], line["x_Model"] = who.engineer or None, who.key, who.model
    line["x_TierAsked"], line["x_TierDelivered"] = who.asked, who.delivered
    return line


def _usage_row(who: _Who, kind: LineKind, tokens: int) -> FocusRow:
    text = f"{kind.token_class} of {kind.model} at {kind.tier.value}"
    line = _of(who, "Usage", text, amount_attodollars(kind, tokens))
    sku = f"{kind.model}/{kind.tier.value}/{kind.token_class}"
    list_price = kind.list_udollars_per_mtok
    details = {"x_Tier": kind.tier.value, "x_TokenClass": kind.token_class}
    line |= {
        "ConsumedQuantity": str(tokens),
        "ConsumedUnit": "Tokens",
        "ContractedUnitPrice": decimal_text(list_price * kind.rate_ppm, 12),
        "ListCost": decimal_text(tokens * list_price * PPM, SCALE),
        "ListUnitPrice": decimal_text(list_price, 6),
        "PricingCategory": "Standard",
        "PricingQuantity": decimal_text(tokens, 6),
        "PricingUnit": PRICING_UNIT,
        "SkuId": sku,
        "SkuMeter": kind.token_class,
        "SkuPriceDetails": msgspec.json.encode(details).decode(),
        "SkuPriceId": f"{kind.price_id}/{sku}",
        "x_BatchWork": "true" if kind.batch else "false",
        "x_PriceBook": kind.price_id,
        "x_RatePpm": str(kind.rate_ppm),
        "x_TokenClass": kind.token_class,
        "x_Tokens": str(tokens),
    }
    return line


def _credit_row(who: _Who, nanodollars: int) -> FocusRow:
    text = f"Credit for broken promises of {who.asked}"
    return _of(who, "Credit", text, -nanodollars * ATTODOLLARS_PER_NANODOLLAR)


def _rounding_row(tenant: str, attodollars: int, period: tuple[int, int]) -> FocusRow:
    text = "Rounding of each answer to a nano-dollar"
    return _charge(tenant, "Adjustment", text, period, attodollars)


def _time(unix_ns: int) -> str:
    since = datetime.timedelta(seconds=unix_ns // 1_000_000_000)
    return (datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + since).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )
