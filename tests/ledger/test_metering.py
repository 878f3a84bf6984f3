from __future__ import annotations

from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ledger.ledger_samples import BOOK, MODEL, ledger, post, reserve
from tokenworks.catalogue.price_book import Price
from tokenworks.core.orders import Usage
from tokenworks.core.slo import Tier
from tokenworks.ledger.metering import (
    ad_income_nanodollars,
    charge_nanodollars,
    hold_nanodollars,
    sum_holds,
)

tokens = st.integers(0, 2_000_000)
rates = st.integers(0, 200_000_000)
prices = st.builds(
    Price,
    input_udollars_per_mtok=rates,
    cached_input_udollars_per_mtok=rates,
    output_udollars_per_mtok=rates,
)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    whole = draw(tokens)
    return Usage(
        input_tokens=whole,
        cached_input_tokens=draw(st.integers(0, whole)),
        output_tokens=draw(tokens),
    )


def exact(usage: Usage, price: Price) -> Fraction:
    return (
        Fraction(usage.input_tokens - usage.cached_input_tokens) * price.input_udollars_per_mtok
        + Fraction(usage.cached_input_tokens) * price.cached_input_udollars_per_mtok
        + Fraction(usage.output_tokens) * price.output_udollars_per_mtok
    ) / 1000


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(usages(), prices), max_size=20))
def test_charges_sum_to_the_exact_sum_rounded_once_per_entry(
    rows: list[tuple[Usage, Price]],
) -> None:
    charged = sum(charge_nanodollars(usage, price) for usage, price in rows)
    # round() of a Fraction is half to even as well, and exact.
    assert charged == sum(round(exact(usage, price)) for usage, price in rows)
    drift = abs(charged - sum((exact(usage, price) for usage, price in rows), Fraction(0)))
    assert drift <= Fraction(len(rows), 2)


@settings(derandomize=True, deadline=None)
@given(usages(), st.lists(prices, min_size=5, max_size=5), st.sampled_from(list(Tier)), st.data())
def test_no_tier_at_or_below_the_asked_one_costs_more_than_the_hold(
    usage: Usage, rows: list[Price], asked: Tier, data: st.DataObject
) -> None:
    table = dict(zip(Tier, rows, strict=True))
    held = hold_nanodollars(usage.input_tokens, usage.output_tokens, asked, table)
    delivered = data.draw(st.sampled_from([tier for tier in Tier if tier.rank <= asked.rank]))
    assert charge_nanodollars(usage, table[delivered]) <= held


@pytest.mark.parametrize("tier", list(Tier))
def test_the_hold_is_the_asked_tier_uncached_where_prices_rise_with_tiers(tier: Tier) -> None:
    usage = Usage(input_tokens=101, cached_input_tokens=0, output_tokens=33)
    table = BOOK.prices[MODEL]
    assert hold_nanodollars(101, 33, tier, table) == charge_nanodollars(usage, table[tier])


@pytest.mark.parametrize(("output", "rate", "want"), [(1, 500, 0), (3, 500, 2), (10, 10, 0)])
def test_ad_income_rounds_half_to_even(output: int, rate: int, want: int) -> None:
    assert ad_income_nanodollars(output, rate) == want


def test_cached_tokens_are_part_of_the_input() -> None:
    price = BOOK.prices[MODEL][Tier.HIGH]
    with pytest.raises(AssertionError):
        charge_nanodollars(Usage(input_tokens=1, cached_input_tokens=2, output_tokens=0), price)


@pytest.mark.parametrize("ending", ["done", "disconnected", "failed"])
def test_anyone_can_redo_an_entry(ending: str) -> None:
    made = ledger()
    reserve(made)
    entry = post(made, ending=ending)
    assert sum_holds(entry)
    for field in ("charged_nanodollars", "ad_income_nanodollars"):
        wrong = msgspec.structs.replace(entry, **{field: getattr(entry, field) + 1})
        assert not sum_holds(wrong)
