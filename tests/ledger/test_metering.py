from __future__ import annotations

import random
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ledger.ledger_samples import BOOK, MODEL, book, ledger, post, reserve, usage
from tokenworks.catalogue.price_book import Price
from tokenworks.core.ids import TenantID
from tokenworks.core.orders import TOKEN_CLASSES, Usage
from tokenworks.core.slo import Measured, Tier
from tokenworks.core.units import PPM
from tokenworks.ledger.metering import (
    HoldPrice,
    ad_income_nanodollars,
    charge_nanodollars,
    credit_nanodollars,
    list_price_units,
    sums_hold,
)

tokens = st.integers(0, 2_000_000)
prices = st.builds(Price, **dict.fromkeys(Price.__struct_fields__, st.integers(0, 200_000_000)))
rates = st.integers(0, PPM)
usages = st.builds(Usage, **dict.fromkeys(TOKEN_CLASSES, st.just(0) | tokens))

CHARGES = 1_000_000
PRICES = tuple(Price.__struct_fields__)


def exact(used: Usage, price: Price, rate_ppm: int = PPM) -> Fraction:
    """Every class times its own price, in nano-dollars, without any rounding."""
    units = sum(
        getattr(used, f"{name.removesuffix('_udollars_per_mtok')}_tokens") * getattr(price, name)
        for name in PRICES
        if name != "input_udollars_per_mtok"
    )
    units += used.uncached_input_tokens * price.input_udollars_per_mtok
    return Fraction(units, 1000) * Fraction(rate_ppm, PPM)


def test_every_class_of_tokens_has_its_price_in_the_same_place() -> None:
    names = [name.removesuffix("_udollars_per_mtok") for name in PRICES]
    names[0] = "uncached_input"
    assert [f"{name}_tokens" for name in names] == list(TOKEN_CLASSES)


@given(st.lists(st.tuples(usages, prices, rates), max_size=20))
def test_charges_sum_to_the_exact_sum_rounded_once_per_entry(
    rows: list[tuple[Usage, Price, int]],
) -> None:
    charged = sum(charge_nanodollars(*row) for row in rows)
    # round() of a Fraction is half to even as well, and exact.
    assert charged == sum(round(exact(*row)) for row in rows)
    drift = abs(charged - sum((exact(*row) for row in rows), Fraction(0)))
    assert drift <= Fraction(len(rows), 2)


@pytest.mark.heavy
def test_a_million_random_charges_sum_to_the_exact_rational_sum() -> None:
    draw = random.Random(3)
    books = [Price(**{name: draw.randrange(200_000_000) for name in PRICES}) for _ in range(50)]
    charged = expected = 0
    for _ in range(CHARGES):
        price, rate_ppm = books[draw.getrandbits(5)], draw.getrandbits(19)
        bits = draw.getrandbits(60)
        uncached, cached, output = bits & 0xFFFFF, bits >> 20 & 0xFFFFF, bits >> 40
        used = Usage(
            uncached_input_tokens=uncached, cached_input_tokens=cached, output_tokens=output
        )
        charged += charge_nanodollars(used, price, rate_ppm)
        numerator = rate_ppm * (
            uncached * price.input_udollars_per_mtok
            + cached * price.cached_input_udollars_per_mtok
            + output * price.output_udollars_per_mtok
        )
        # Half to even over 10**9, in another way: round half up, then step back from odd ties.
        whole, rest = divmod(numerator + 500_000_000, 1_000_000_000)
        expected += whole - (rest == 0 and whole & 1)
    assert charged == expected


@given(st.integers(0, 10**12))
def test_the_other_way_to_round_half_to_even_is_one(numerator: int) -> None:
    whole, rest = divmod(numerator + 500_000_000, 1_000_000_000)
    assert whole - (rest == 0 and whole & 1) == round(Fraction(numerator, 1_000_000_000))


@given(usages, st.lists(prices, min_size=5, max_size=5), st.sampled_from(list(Tier)), st.data())
def test_no_tier_at_or_below_the_asked_one_costs_more_than_the_hold(
    used: Usage, rows: list[Price], asked: Tier, data: st.DataObject
) -> None:
    table = dict(zip(Tier, rows, strict=True))
    prices = msgspec.structs.replace(BOOK, prices={MODEL: table})
    rate_max = data.draw(rates)
    held = HoldPrice(prices, MODEL, asked).hold_nanodollars(
        used.prompt_tokens, used.completion_tokens, rate_max
    )
    delivered = data.draw(st.sampled_from([tier for tier in Tier if tier.rank <= asked.rank]))
    rate = data.draw(st.integers(0, rate_max))
    assert charge_nanodollars(used, table[delivered], rate) <= held


@pytest.mark.parametrize("tier", list(Tier))
def test_the_hold_is_the_asked_tier_uncached_where_prices_rise_with_tiers(tier: Tier) -> None:
    used = usage(101, 0, 33)
    held = HoldPrice(BOOK, MODEL, tier).hold_nanodollars(101, 33)
    assert held == charge_nanodollars(used, BOOK.prices[MODEL][tier])


@pytest.mark.parametrize(("output", "rate", "want"), [(1, 500, 0), (3, 500, 2), (10, 10, 0)])
def test_ad_income_rounds_half_to_even(output: int, rate: int, want: int) -> None:
    assert ad_income_nanodollars(output, rate) == want


@pytest.mark.parametrize(
    ("charged", "part", "want"), [(25, 100_000, 2), (15, 100_000, 2), (9, PPM, 9), (9, 0, 0)]
)
def test_credits_round_half_to_even(charged: int, part: int, want: int) -> None:
    assert credit_nanodollars(charged, part) == want


def test_a_rate_is_rounded_together_with_the_charge() -> None:
    price = Price(**dict.fromkeys(PRICES, 1_000))
    assert list_price_units(usage(1, 0, 2), price) == 3_000
    # 1.5 and 0.75 nano-dollars.
    assert charge_nanodollars(usage(1, 0, 2), price, 500_000) == 2
    assert charge_nanodollars(usage(1, 0, 2), price, 250_000) == 1


@pytest.mark.parametrize("ending", ["done", "disconnected", "failed"])
@pytest.mark.parametrize("tier", [Tier.FREE, Tier.HIGH])
@pytest.mark.parametrize("ttft_ns", [1, 3 * 10**9])
def test_anyone_can_redo_an_entry(ending: str, tier: Tier, ttft_ns: int) -> None:
    made = ledger()
    more = "[discount.tenant]\nrate_ppm = 123_457"
    prices = book(credit_ppm=333_333, more=more)
    reserve(made, prices=prices, tier=tier)
    measured = Measured(ttft_ns=ttft_ns, decode_ns=0, output_tokens=1)
    entry = post(made, ending=ending, measured=measured)
    assert sums_hold(entry)
    assert entry.rate_ppm == prices.discounts[TenantID("tenant")].rate_ppm
    for field in ("charged_nanodollars", "ad_income_nanodollars", "credited_nanodollars"):
        wrong = msgspec.structs.replace(entry, **{field: getattr(entry, field) + 1})
        assert not sums_hold(wrong)
