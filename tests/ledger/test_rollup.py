from __future__ import annotations

import msgspec
import pytest

from tests.ledger.ledger_samples import (
    HOUR_NS,
    MODEL,
    NOW,
    PAYER,
    POOL,
    accrue,
    book,
    ledger,
    post,
    reserve,
    rolled,
    story,
    void,
)
from tokenworks.core.orders import TOKEN_CLASSES
from tokenworks.core.slo import Measured, Tier
from tokenworks.ledger.accounts import Accounts
from tokenworks.ledger.entries import Entry
from tokenworks.ledger.quotas import window_start
from tokenworks.ledger.rollup import MEASURES, NOBODY, Kind, balances, merged
from tokenworks.ledger.summing import Rollup

HOUR = window_start("hour", NOW)


def many() -> list[Entry]:
    """Answers of every kind, with credits, to two payers in two hours."""
    made = ledger()
    entries: list[Entry] = [*story()[1], accrue(made, 90, 95, energy=0)]
    for i, tier in enumerate([*Tier] * 2):
        name = f"{tier}-{i}"
        reserve(
            made,
            name,
            tier=tier,
            run=f"{i % 2}",
            unix_ns=NOW + i // 5 * HOUR_NS,
            prices=book(credit_ppm=100_000),
        )
        measured = Measured(ttft_ns=(i % 3) * 10**9, decode_ns=0, output_tokens=1)
        entries.append(post(made, name, measured=measured, reasoning_tokens=3))
    return entries


def test_a_row_has_the_sums_of_its_answers() -> None:
    made = ledger()
    classes = {name: 2**i for i, name in enumerate(TOKEN_CLASSES[3:])}
    entries: list[Entry] = []
    for name in ("a", "b"):
        entries.append(reserve(made, name))
        entries.append(post(made, name, **classes))
    (row,) = rolled(entries)
    assert (row.start_unix_ns, row.payer) == (HOUR, PAYER)
    assert row.kind == Kind(
        "done", MODEL, Tier.HIGH, Tier.HIGH, POOL, entries[0].price_id, 1_000_000, False
    )
    for name in MEASURES:
        each = 1 if name == "requests" else getattr(entries[1], name, None)
        if each is None:
            each = getattr(entries[1].usage, name)
        assert getattr(row, name) == 2 * each, name
    assert row.tokens == 2 * entries[1].counted_tokens
    assert row.paid_nanodollars == 2 * entries[1].paid_nanodollars
    with pytest.raises(AttributeError, match="unheard_of"):
        row.unheard_of  # noqa: B018


def test_an_answer_belongs_to_the_hour_in_which_it_was_asked_for() -> None:
    made = ledger()
    reserve(made, "a")
    reserve(made, "b")
    later = NOW + 5 * HOUR_NS
    rows = rolled([post(made, "a", unix_ns=later), void(made, "b", unix_ns=later)])
    assert [row.start_unix_ns for row in rows] == [HOUR, HOUR]


def test_what_was_voided_is_counted_and_nothing_else() -> None:
    made = ledger()
    reserve(made)
    (row,) = rolled([void(made)])
    assert row.kind == Kind("voided", MODEL, Tier.HIGH, None, "", "", 0, False)
    assert (row.requests, sum(row.sums)) == (1, 1)


def test_the_cost_of_a_pool_is_nobodys() -> None:
    made = ledger()
    (row,) = rolled([accrue(made), accrue(made, 10, 20)])
    assert (row.payer, row.kind.what, row.kind.pool) == (NOBODY, "accrued", POOL)
    assert (row.energy_nanodollars, row.capital_nanodollars, row.requests) == (10, 12, 0)


def test_a_reservation_adds_nothing() -> None:
    made = Rollup()
    made.add(reserve(ledger()))
    assert (len(made), made.entries) == (0, 1)


def test_every_difference_in_kind_is_a_row_of_its_own() -> None:
    made = Rollup()
    for entry in many():
        made.add(entry)
    assert len(made) == len({row[:3] for row in made.rows()}) > 10


def test_rows_that_are_alike_are_added_up_and_the_originals_are_left_alone() -> None:
    rows = rolled(many())
    before = [list(row.sums) for row in rows]
    twice = merged([*rows, *rows])
    assert [row.sums for row in twice] == [[2 * n for n in row.sums] for row in rows]
    assert [row.sums for row in rows] == before


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_balances_are_those_that_the_entries_own_transfers_move(parts: int) -> None:
    entries = many()
    accounts = Accounts()
    for entry in entries:
        accounts.move(entry.transfers())
    accounts.check()
    rows = [row for i in range(parts) for row in rolled(entries[i::parts])]
    assert balances(rows) == accounts.balances()
    assert balances(merged(rows)) == accounts.balances()
    assert {"credits", "ad_income", "supplier", "revenue:ultra"} < set(accounts.balances())


def test_a_kind_survives_its_record() -> None:
    for row in rolled(many()):
        kind = msgspec.json.decode(msgspec.json.encode(row.kind), type=Kind)
        assert kind == row.kind
        assert kind.tier_asked is row.kind.tier_asked
