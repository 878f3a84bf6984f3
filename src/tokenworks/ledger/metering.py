"""Metering: what usage costs at a price, and the most that a request can cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tokenworks.catalogue.price_book import Price
from tokenworks.core.orders import Usage
from tokenworks.core.slo import Tier
from tokenworks.core.units import NanoDollars, divide_half_even
from tokenworks.ledger.entries import Posted

_PRICE_UNITS_PER_NANODOLLAR: Final = 1_000
"""A micro-dollar per 1M tokens is 1/1000 nano-dollar per token."""


def charge_nanodollars(usage: Usage, price: Price) -> NanoDollars:
    """What an answer costs: the exact sum over the token classes, rounded once, half to even.

    >>> price = Price(input_udollars_per_mtok=1_000, cached_input_udollars_per_mtok=100,
    ...               output_udollars_per_mtok=5_000)
    >>> charge_nanodollars(Usage(input_tokens=10, cached_input_tokens=5, output_tokens=2), price)
    16
    """
    cached = usage.cached_input_tokens
    assert 0 <= cached <= usage.input_tokens, usage
    assert usage.output_tokens >= 0, usage
    return NanoDollars(
        divide_half_even(
            (usage.input_tokens - cached) * price.input_udollars_per_mtok
            + cached * price.cached_input_udollars_per_mtok
            + usage.output_tokens * price.output_udollars_per_mtok,
            _PRICE_UNITS_PER_NANODOLLAR,
        )
    )


def hold_nanodollars(
    input_tokens_max: int, output_tokens_max: int, tier_asked: Tier, prices: Mapping[Tier, Price]
) -> NanoDollars:
    """The most an answer can cost, whichever tier is delivered.

    That is the asked tier with nothing cached, unless the book prices a lower tier or cached input
    above it; a hold that ignored such a book would let a charge pass its quota.

    Args:
        input_tokens_max: the prompt's upper bound.
        output_tokens_max: the output's upper bound.
        tier_asked: no tier above it can be delivered.
        prices: the model's prices by tier.
    """
    assert input_tokens_max >= 0, input_tokens_max
    assert output_tokens_max >= 0, output_tokens_max
    numerator = max(
        input_tokens_max * max(row.input_udollars_per_mtok, row.cached_input_udollars_per_mtok)
        + output_tokens_max * row.output_udollars_per_mtok
        for tier, row in prices.items()
        # A promise that was not met is delivered as free, whatever was asked.
        if tier.rank <= tier_asked.rank
    )
    return NanoDollars(divide_half_even(numerator, _PRICE_UNITS_PER_NANODOLLAR))


def ad_income_nanodollars(output_tokens: int, ad_income_udollars_per_mtok: int) -> NanoDollars:
    """What advertisers pay for some output, rounded once, half to even.

    >>> ad_income_nanodollars(3, 500)
    2
    """
    return NanoDollars(
        divide_half_even(output_tokens * ad_income_udollars_per_mtok, _PRICE_UNITS_PER_NANODOLLAR)
    )


def sum_holds(entry: Posted) -> bool:
    """Whether redoing an entry's sums from its own tokens and prices gives its own amounts."""
    usage = Usage(
        input_tokens=entry.input_tokens,
        cached_input_tokens=entry.cached_input_tokens,
        output_tokens=entry.output_tokens,
    )
    charged = 0 if entry.ending == "failed" else charge_nanodollars(usage, entry.price)
    income = ad_income_nanodollars(entry.output_tokens, entry.ad_income_udollars_per_mtok)
    return (charged, income) == (entry.charged_nanodollars, entry.ad_income_nanodollars)
