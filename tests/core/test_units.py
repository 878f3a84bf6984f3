"""Money rounds once, half to even, and prints exactly."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core import units

integers = st.integers(-(10**30), 10**30)
counts = st.integers(0, 10**12)


@given(integers, st.integers(1, 10**20))
def test_division_agrees_with_python_s_own_rounding_of_fractions(top: int, bottom: int) -> None:
    assert units.divide_half_even(top, bottom) == round(Fraction(top, bottom))


@given(integers, st.integers(1, 10**20))
def test_division_is_symmetric_about_zero(top: int, bottom: int) -> None:
    assert units.divide_half_even(-top, bottom) == -units.divide_half_even(top, bottom)


@pytest.mark.parametrize("denominator", [0, -1])
def test_a_denominator_is_positive(denominator: int) -> None:
    with pytest.raises(AssertionError):
        units.divide_half_even(1, denominator)


@given(counts, counts)
def test_a_charge_is_the_exact_product_rounded_once(tokens: int, price: int) -> None:
    product = Decimal(tokens) * Decimal(price) / 1000
    assert units.charge(tokens, price) == product.quantize(Decimal(1), ROUND_HALF_EVEN)


@pytest.mark.parametrize(
    ("tokens", "price", "nanodollars"),
    [(0, 3_000_000, 0), (1, 500, 0), (1, 501, 1), (3, 500, 2), (1_000_000, 45_000_000, 45 * 10**9)],
)
def test_charges_worked_by_hand(tokens: int, price: int, nanodollars: int) -> None:
    assert units.charge(tokens, price) == nanodollars


@pytest.mark.parametrize(("tokens", "price"), [(-1, 1), (1, -1)])
def test_nothing_negative_is_charged(tokens: int, price: int) -> None:
    with pytest.raises(AssertionError):
        units.charge(tokens, price)


@given(integers)
def test_dollars_print_exactly_with_at_least_cents(nanodollars: int) -> None:
    text = units.dollars_text(nanodollars)
    whole, decimals = text.lstrip("-").split(".")
    sign = -1 if text.startswith("-") else 1
    assert sign * (int(whole) * 10**9 + int(decimals.ljust(9, "0"))) == nanodollars
    assert len(decimals) == 2 or not decimals.endswith("0")


@given(st.integers(0, 10**18))
def test_dollars_written_are_dollars_read(nanodollars: int) -> None:
    assert units.nanodollars_of(units.dollars_text(nanodollars)) == nanodollars


@pytest.mark.parametrize(
    ("text", "nanodollars"),
    [("7", 7 * 10**9), ("0.1", 10**8), ("1.", 10**9), ("0.000000001", 1)],
)
def test_dollars_may_be_short(text: str, nanodollars: int) -> None:
    assert units.nanodollars_of(text) == nanodollars


@pytest.mark.parametrize(
    "text", ["", ".", ".5", "-1", "+1", "1e3", "1,5", " 1", "²", "0.0000000001"]
)
def test_what_is_no_amount_of_dollars_is_none(text: str) -> None:
    assert units.nanodollars_of(text) is None
