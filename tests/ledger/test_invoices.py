"""Invoices: exact lines, rounding in the open, credits, and the same sum from the entries."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from tests.ledger.ledger_samples import (
    BOOK,
    HOUR_NS,
    MODEL,
    MONTH,
    NOW,
    book,
    key_record,
    ledger,
    post,
    reserve,
    rolled,
    story,
    whole,
)
from tokenworks.core.errors import InvalidRequest, LedgerCorrupt
from tokenworks.core.slo import Measured, Tier
from tokenworks.ledger.block_record import Block
from tokenworks.ledger.blocks import encode_entries
from tokenworks.ledger.entries import Entry, Posted
from tokenworks.ledger.invoices import (
    ATTODOLLARS_PER_NANODOLLAR,
    entries_agree,
    invoice_json,
    make_invoice,
    month_window,
    price_ids,
    redone,
)

SLOW = Measured(ttft_ns=1, decode_ns=400_000_000, output_tokens=20)
LATER = MONTH + 40 * 24 * HOUR_NS
CREDITED = book(name="credited", credit_ppm=100_000, more="[batch]\nrate_ppm = 500_000")
BOOKS = {each.price_id: each for each in (BOOK, CREDITED)}


def sample() -> list[Entry]:
    """Answers by two books, one batch, one below its tier with a credit, and another tenant's."""
    made = ledger(key_record(), key_record("other", tenant="second"))
    entries = list(story()[1])
    entries += [reserve(made, "x", prices=CREDITED, batch=True), post(made, "x", uncached=7)]
    entries += [reserve(made, "y", prices=CREDITED, tier=Tier.ULTRA)]
    entries += [post(made, "y", measured=SLOW)]
    entries += [reserve(made, "z", tier=Tier.HIGH, unix_ns=NOW + HOUR_NS)]
    entries += [post(made, "z", ending="disconnected", unix_ns=NOW + HOUR_NS)]
    entries += [reserve(made, "o", key="other"), post(made, "o")]
    entries += [reserve(made, "next", unix_ns=LATER), post(made, "next", unix_ns=LATER)]
    return entries


def in_month(entries: list[Entry]) -> list[Entry]:
    since, until = month_window("2026-09")
    return [
        each
        for each in entries
        if since <= getattr(each, "reserved_unix_ns", each.at_unix_ns) < until
    ]


def block(entries: list[Entry]) -> Block:
    return Block(
        seq=1,
        owner="o",
        number=1,
        at_unix_ns=1,
        count=len(entries),
        payload=encode_entries(entries),
        hash=b"",
    )


ENTRIES = sample()
INVOICE = make_invoice("tenant", "2026-09", whole(in_month(ENTRIES)), BOOKS, LATER)


def billed() -> list[Posted]:
    return [
        each
        for each in in_month(ENTRIES)
        if isinstance(each, Posted) and each.payer.tenant == "tenant" and each.ending != "failed"
    ]


def test_the_total_is_what_the_answers_were_charged_less_their_credits() -> None:
    assert INVOICE.answers == len(billed()) == 5
    assert INVOICE.charged_nanodollars == sum(each.charged_nanodollars for each in billed())
    assert -INVOICE.credits_nanodollars == sum(each.credited_nanodollars for each in billed())
    assert INVOICE.credits_nanodollars < 0
    assert INVOICE.total_nanodollars == sum(each.paid_nanodollars for each in billed())
    assert INVOICE.number == "tenant-2026-09"


def test_lines_and_rounding_give_the_charges_exactly() -> None:
    exact = sum(line.amount_attodollars for line in INVOICE.lines)
    charged = INVOICE.charged_nanodollars * ATTODOLLARS_PER_NANODOLLAR
    assert exact + INVOICE.rounding_attodollars == charged
    assert INVOICE.rounding_attodollars != 0
    for line in INVOICE.lines:
        assert line.tokens > 0
        assert line.amount_attodollars == line.tokens * line.list_udollars_per_mtok * line.rate_ppm


def test_a_line_is_a_class_of_tokens_at_a_price_and_a_rate() -> None:
    found = {
        (line.tier, line.token_class): line
        for line in INVOICE.lines
        if line.price_id == CREDITED.price_id
    }
    line = found[Tier.HIGH, "uncached_input_tokens"]
    assert (line.model, line.tokens, line.rate_ppm, line.batch) == (MODEL, 7, 500_000, True)
    assert line.list_udollars_per_mtok == 1_200_001
    high = [
        each.tokens
        for each in INVOICE.lines
        if each.price_id == BOOK.price_id
        and each.tier is Tier.HIGH
        and each.token_class == "output_tokens"
    ]
    assert high == [40]


def test_cents_are_rounded_half_to_even() -> None:
    row = rolled(billed()[:1])[0]
    charged = row.sums.copy()
    for nanodollars, cents in ((5_000_000, 0), (15_000_000, 2), (25_000_000, 2), (25_000_001, 3)):
        charged[10] = nanodollars
        made = make_invoice("tenant", "2026-09", [row._replace(sums=charged)], BOOKS, LATER)
        assert made.total_cents == cents


def test_the_same_ledger_gives_the_same_bytes_whatever_the_order_of_its_rows() -> None:
    rows = rolled(in_month(ENTRIES))
    again = make_invoice("tenant", "2026-09", reversed(rows), BOOKS, LATER)
    assert invoice_json(again) == invoice_json(INVOICE)
    bare = msgspec.structs.replace(INVOICE, content_hash="")
    assert INVOICE.content_hash == hashlib.sha256(invoice_json(bare)).hexdigest()


def test_a_tenant_without_answers_owes_nothing() -> None:
    made = make_invoice("nobody", "2026-09", rolled(ENTRIES), {}, LATER)
    assert (made.answers, made.lines, made.total_cents) == (0, (), 0)
    assert made.rounding_attodollars == 0


def test_redoing_it_from_the_entries_gives_the_same() -> None:
    assert entries_agree(INVOICE, [block(ENTRIES[:4]), block(ENTRIES[4:])])
    assert redone(INVOICE, [block(ENTRIES)]) == INVOICE
    assert not entries_agree(INVOICE, [block(ENTRIES[:4])])


def test_an_entry_whose_sums_do_not_hold_is_found() -> None:
    wrong = msgspec.structs.replace(billed()[0], charged_nanodollars=1)
    with pytest.raises(LedgerCorrupt, match="do not follow"):
        redone(INVOICE, [block([wrong])])


def test_a_price_that_is_not_kept_is_found() -> None:
    rows = whole(in_month(ENTRIES))
    assert price_ids(rows, "tenant") == set(BOOKS)
    assert price_ids(rows, "second") == {BOOK.price_id}
    assert price_ids(rows) == set(BOOKS)
    with pytest.raises(LedgerCorrupt, match="is not kept"):
        make_invoice("tenant", "2026-09", rows, {}, LATER)
    bare = {each: msgspec.structs.replace(of, prices={}) for each, of in BOOKS.items()}
    with pytest.raises(LedgerCorrupt, match="is not kept"):
        make_invoice("tenant", "2026-09", rows, bare, LATER)


def test_a_month_that_is_not_over_is_refused_unless_it_is_a_draft() -> None:
    _, until = month_window("2026-09")
    make_invoice("tenant", "2026-09", [], BOOKS, until + HOUR_NS)
    with pytest.raises(InvalidRequest, match="not over"):
        make_invoice("tenant", "2026-09", [], BOOKS, until + HOUR_NS - 1)
    made = make_invoice("tenant", "2026-09", [], BOOKS, until, draft=True)
    assert made.draft


@pytest.mark.parametrize("month", ["2026", "2026-13", "2026-1", "1969-12", "2026-09-01", "x"])
def test_a_month_is_a_year_and_a_month(month: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a month"):
        month_window(month)
