"""Invoices: what a tenant owes for a month, line by line, so that anyone can redo the sum.

A line is exact, in atto-dollars (a billionth of a nano-dollar), for that is what tokens times a
price times a rate gives. Each answer's charge was rounded when it was written; what that adds up
to stands in the open as a line of its own.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from tokenworks.catalogue.price_book import Price, PriceBook
from tokenworks.core.errors import InvalidRequest, LedgerCorrupt
from tokenworks.core.ids import ModelName, PriceID, TenantID
from tokenworks.core.orders import TOKEN_CLASSES
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_HOUR, PPM, divide_half_even
from tokenworks.ledger.block_record import Block
from tokenworks.ledger.blocks import decode_entries
from tokenworks.ledger.entries import Posted
from tokenworks.ledger.metering import PRICE_UNITS_PER_NANODOLLAR, sums_hold
from tokenworks.ledger.quotas import window_end
from tokenworks.ledger.rollup import RollupRow

ATTODOLLARS_PER_NANODOLLAR: Final = PRICE_UNITS_PER_NANODOLLAR * PPM
NANODOLLARS_PER_CENT: Final = 10_000_000
YEAR_MAX: Final = 2261
"""The last that ends before ``UNIX_NS_MAX``."""
GRACE_NS: Final = NS_PER_HOUR
"""How long after a month its last answers may still be settling."""
BILLED: Final = ("done", "disconnected")
"""The endings that are billed; a failed answer is not."""

_PRICE_FIELDS: Final = Price.__struct_fields__
_MONTH: Final = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")
_ENCODER: Final = msgspec.json.Encoder()
_DAY_NS: Final = 24 * NS_PER_HOUR


class LineKind(NamedTuple):
    """What the tokens of one line have in common.

    Attributes:
        model: the model.
        tier: the tier delivered.
        price_id: the price book.
        rate_ppm: what was charged of the list price: off-peak, batch and discount together.
        batch: whether the work could wait.
        token_class: one of ``core.orders.TOKEN_CLASSES``.
        list_udollars_per_mtok: the list price of that class.
    """

    model: ModelName
    tier: Tier
    price_id: PriceID
    rate_ppm: int
    batch: bool
    token_class: str
    list_udollars_per_mtok: int


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line: tokens of a kind at a price; fields as in ``LineKind``.

    Attributes:
        model: the model.
        tier: the tier delivered.
        price_id: the price book.
        rate_ppm: what was charged of the list price.
        batch: whether the work could wait.
        token_class: the class of tokens.
        list_udollars_per_mtok: its list price.
        tokens: how many.
        amount_attodollars: tokens x list price x rate, exactly.
    """

    model: ModelName
    tier: Tier
    price_id: PriceID
    rate_ppm: int
    batch: bool
    token_class: str
    list_udollars_per_mtok: int
    tokens: int
    amount_attodollars: int


class Invoice(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant owes for a month.

    Attributes:
        number: tenant and month.
        tenant: who pays.
        month: ``2026-11``; an answer belongs to the month in which it was reserved, UTC.
        since_unix_ns: the month's start.
        until_unix_ns: its end, which is not part of it.
        draft: whether more may still be added.
        answers: how many are billed.
        lines: in order of their kinds.
        rounding_attodollars: the sum of the answers' own charges less the exact sum of the lines.
        charged_nanodollars: the sum of the answers' charges: lines and rounding together.
        credits_nanodollars: what is given back for broken promises, as a negative amount.
        total_nanodollars: charges and credits.
        total_cents: the total rounded once, half to even: what is due.
        content_hash: sha256 of the whole as JSON, in which it is itself the empty text, as
            ``invoice_json`` writes it then.
    """

    number: str
    tenant: TenantID
    month: str
    since_unix_ns: int
    until_unix_ns: int
    draft: bool
    answers: int
    lines: tuple[Line, ...]
    rounding_attodollars: int
    charged_nanodollars: int
    credits_nanodollars: int
    total_nanodollars: int
    total_cents: int
    content_hash: str = ""


class _Tally:
    """Sums on their way to becoming an invoice."""

    def __init__(self) -> None:
        self.tokens: dict[LineKind, int] = {}
        self.answers = 0
        self.charged_nanodollars = 0
        self.credited_nanodollars = 0

    def add(self, kind: LineKind, tokens: int) -> None:
        if tokens:
            self.tokens[kind] = self.tokens.get(kind, 0) + tokens

    def invoice(self, tenant: TenantID, month: str, *, draft: bool) -> Invoice:
        since, until = month_window(month)
        lines = tuple(
            Line(
                **kind._asdict(), tokens=tokens, amount_attodollars=amount_attodollars(kind, tokens)
            )
            for kind, tokens in sorted(self.tokens.items(), key=lambda item: _order(item[0]))
        )
        exact = sum(line.amount_attodollars for line in lines)
        total = self.charged_nanodollars - self.credited_nanodollars
        made = Invoice(
            number=invoice_number(tenant, month),
            tenant=tenant,
            month=month,
            since_unix_ns=since,
            until_unix_ns=until,
            draft=draft,
            answers=self.answers,
            lines=lines,
            rounding_attodollars=self.charged_nanodollars * ATTODOLLARS_PER_NANODOLLAR - exact,
            charged_nanodollars=self.charged_nanodollars,
            credits_nanodollars=-self.credited_nanodollars,
            total_nanodollars=total,
            total_cents=divide_half_even(total, NANODOLLARS_PER_CENT),
        )
        return msgspec.structs.replace(
            made, content_hash=hashlib.sha256(_ENCODER.encode(made)).hexdigest()
        )


def _order(kind: LineKind) -> tuple[str, int, str, int, bool, int, int]:
    place = TOKEN_CLASSES.index(kind.token_class)
    return (*kind[:1], kind.tier.rank, *kind[2:5], place, kind.list_udollars_per_mtok)


def amount_attodollars(kind: LineKind, tokens: int) -> int:
    """The exact price of some tokens: a price unit is 1/1000 nano-dollar, a rate is in ppm."""
    return tokens * kind.list_udollars_per_mtok * kind.rate_ppm


def invoice_number(tenant: TenantID, month: str) -> str:
    """The invoice's name.

    >>> invoice_number(TenantID("acme"), "2026-11")
    'acme-2026-11'
    """
    return f"{tenant}-{month}"


def month_window(month: str) -> tuple[int, int]:
    """A month's start, and its end, which is not part of it, UTC.

    >>> month_window("1970-01")
    (0, 2678400000000000)

    Raises:
        InvalidRequest: it is not a year and a month.
    """
    found = _MONTH.fullmatch(month)
    if found is None or not 1970 <= int(found[1]) <= YEAR_MAX:
        raise InvalidRequest(
            f"{month!r} is not a month from 1970 to {YEAR_MAX}.", hint="Write it like 2026-11."
        )
    day = datetime.date(int(found[1]), int(found[2]), 1)
    since = (day - datetime.date(1970, 1, 1)).days * _DAY_NS
    return since, window_end("month", since)


def check_ended(month: str, unix_ns: int, *, draft: bool) -> tuple[int, int]:
    """A month's window, if its invoice may be made now.

    Raises:
        InvalidRequest: the month is not over, or its last answers may still be settling, and no
            draft is asked for.
    """
    since, until = month_window(month)
    if unix_ns < until + GRACE_NS and not draft:
        raise InvalidRequest(
            f"The month {month} is not over, or ended less than an hour ago.",
            hint="Ask for a draft with --draft.",
        )
    return since, until


def price_ids(rows: Iterable[RollupRow], tenant: TenantID | None = None) -> set[PriceID]:
    """The price books that a tenant's answers, or all, were billed by."""
    return {
        row.kind.price_id
        for row in rows
        if row.kind.what in BILLED and tenant in {None, row.payer.tenant}
    }


def line_kinds(row: RollupRow, books: Mapping[PriceID, PriceBook]) -> list[tuple[LineKind, int]]:
    """The lines that a billed row of sums adds to, with its tokens, those without tokens left out.

    Raises:
        LedgerCorrupt: its price book, or the model's price in it, is not there.
    """
    kind = row.kind
    assert kind.tier_delivered is not None, kind
    book = books.get(kind.price_id)
    if book is None or kind.model not in book.prices:
        raise LedgerCorrupt(
            f"The price of {kind.model!r} by the book {kind.price_id!r} is not kept.",
            hint="Restore the ledger from a copy.",
        )
    price = book.prices[kind.model][kind.tier_delivered]
    return [
        (
            LineKind(
                kind.model,
                kind.tier_delivered,
                kind.price_id,
                kind.rate_ppm,
                kind.batch,
                token_class,
                getattr(price, field),
            ),
            tokens,
        )
        for token_class, field, tokens in zip(
            TOKEN_CLASSES, _PRICE_FIELDS, row.sums[1 : 1 + len(TOKEN_CLASSES)], strict=True
        )
        if tokens
    ]


def make_invoice(
    tenant: TenantID,
    month: str,
    rows: Iterable[RollupRow],
    books: Mapping[PriceID, PriceBook],
    unix_ns: int,
    *,
    draft: bool = False,
) -> Invoice:
    """The invoice of a tenant for a month; the same rows give the same invoice, in any order.

    Args:
        tenant: who pays.
        month: ``2026-11``.
        rows: the sums of just that month, by hour or not; other tenants' are left out.
        books: the kept price books that ``price_ids`` names.
        unix_ns: now.
        draft: make it although more may still be added.

    Raises:
        InvalidRequest: see ``check_ended``.
        LedgerCorrupt: see ``line_kinds``.
    """
    check_ended(month, unix_ns, draft=draft)
    tally = _Tally()
    for row in rows:
        if row.payer.tenant != tenant or row.kind.what not in BILLED:
            continue
        for kind, tokens in line_kinds(row, books):
            tally.add(kind, tokens)
        tally.answers += row.requests
        tally.charged_nanodollars += row.charged_nanodollars
        tally.credited_nanodollars += row.credited_nanodollars
    return tally.invoice(tenant, month, draft=draft)


def redone(invoice: Invoice, blocks: Iterable[Block]) -> Invoice:
    """The same invoice from the entries themselves and the prices they carry.

    Args:
        invoice: whose tenant and month.
        blocks: all of the ledger.

    Raises:
        LedgerCorrupt: a block cannot be decoded, or an entry's own sums do not hold.
    """
    tally = _Tally()
    for block in blocks:
        for entry in decode_entries(block):
            if (
                isinstance(entry, Posted)
                and entry.payer.tenant == invoice.tenant
                and entry.ending in BILLED
                and invoice.since_unix_ns <= entry.reserved_unix_ns < invoice.until_unix_ns
            ):
                _add_entry(tally, entry)
    return tally.invoice(invoice.tenant, invoice.month, draft=invoice.draft)


def entries_agree(invoice: Invoice, blocks: Iterable[Block]) -> bool:
    """Whether redoing an invoice from the entries gives the same, to the last byte."""
    return invoice_json(redone(invoice, blocks)) == invoice_json(invoice)


def _add_entry(tally: _Tally, entry: Posted) -> None:
    if not sums_hold(entry):
        raise LedgerCorrupt(
            f"The sums of request {entry.request!r} do not follow from its tokens and prices.",
            hint="Restore the ledger from a copy.",
        )
    for token_class, field in zip(TOKEN_CLASSES, _PRICE_FIELDS, strict=True):
        kind = LineKind(
            entry.model,
            entry.tier_delivered,
            entry.price_id,
            entry.rate_ppm,
            entry.batch,
            token_class,
            getattr(entry.price, field),
        )
        tally.add(kind, getattr(entry.usage, token_class))
    tally.answers += 1
    tally.charged_nanodollars += entry.charged_nanodollars
    tally.credited_nanodollars += entry.credited_nanodollars


def invoice_json(invoice: Invoice) -> bytes:
    """An invoice as JSON, the same bytes each time."""
    return _ENCODER.encode(invoice)


def decimal_text(amount: int, places: int, least: int = 0) -> str:
    """An integer of a unit as an exact decimal of the unit 10**places larger.

    Args:
        amount: any integer.
        places: the power of ten.
        least: decimals that stay even if they are zeros.

    >>> decimal_text(-1_500, 6), decimal_text(2, 0), decimal_text(10**18, 18, 2)
    ('-0.0015', '2', '1.00')
    """
    sign = "-" if amount < 0 else ""
    whole, rest = divmod(abs(amount), 10**places)
    decimals = f"{rest:0{places}d}".rstrip("0") if rest else ""
    decimals = decimals.ljust(least, "0")
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"
