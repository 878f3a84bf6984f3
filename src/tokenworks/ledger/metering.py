"""Metering: what usage costs at a price, and the most that a request can cost."""

from __future__ import annotations

from typing import Final

from tokenworks.catalogue.price_book import Price, PriceBook
from tokenworks.core.ids import ModelName
from tokenworks.core.orders import Usage
from tokenworks.core.slo import Tier
from tokenworks.core.token_sums import completion_tokens
from tokenworks.core.units import PPM, NanoDollars, divide_half_even
from tokenworks.ledger.entries import Posted

PRICE_UNITS_PER_NANODOLLAR: Final = 1_000
"""A micro-dollar per 1M tokens is 1/1000 nano-dollar per token."""

_CHARGE_UNITS_PER_NANODOLLAR: Final = PRICE_UNITS_PER_NANODOLLAR * PPM


def list_price_units(usage: Usage, price: Price) -> int:
    """The exact list price of an answer, in 1/1000 nano-dollars.

    >>> price = Price(**dict.fromkeys(Price.__struct_fields__, 1_000))
    >>> list_price_units(Usage(uncached_input_tokens=1, cached_input_tokens=2, output_tokens=3,
    ...                        reasoning_tokens=4), price)
    10000
    """
    units = (
        usage.uncached_input_tokens * price.input_udollars_per_mtok
        + usage.cached_input_tokens * price.cached_input_udollars_per_mtok
        + usage.output_tokens * price.output_udollars_per_mtok
        + usage.reasoning_tokens * price.reasoning_udollars_per_mtok
        + usage.cache_write_tokens * price.cache_write_udollars_per_mtok
    )
    if usage.audio_input_tokens or usage.audio_output_tokens:
        units += usage.audio_input_tokens * price.audio_input_udollars_per_mtok
        units += usage.audio_output_tokens * price.audio_output_udollars_per_mtok
    if usage.image_input_tokens or usage.image_output_tokens:
        units += usage.image_input_tokens * price.image_input_udollars_per_mtok
        units += usage.image_output_tokens * price.image_output_udollars_per_mtok
    return units


def charge_nanodollars(usage: Usage, price: Price, rate_ppm: int = PPM) -> NanoDollars:
    """What an answer costs: the exact sum over the token classes, rounded once, half to even.

    >>> price = Price(**dict.fromkeys(Price.__struct_fields__, 5_000))
    >>> usage = Usage(uncached_input_tokens=1, cached_input_tokens=0, output_tokens=2)
    >>> charge_nanodollars(usage, price), charge_nanodollars(usage, price, 500_000)
    (15, 8)
    """
    return NanoDollars(
        divide_half_even(list_price_units(usage, price) * rate_ppm, _CHARGE_UNITS_PER_NANODOLLAR)
    )


def credit_nanodollars(charged_nanodollars: int, credit_ppm: int) -> NanoDollars:
    """What is given back of a charge for a broken promise, rounded once, half to even.

    >>> credit_nanodollars(25, 100_000)
    2
    """
    return NanoDollars(divide_half_even(charged_nanodollars * credit_ppm, PPM))


def has_rates(book: PriceBook, *, batch: bool) -> bool:
    """Whether anything else than the list price may be charged; else nobody need ask the book.

    Args:
        book: the prices in force.
        batch: whether the answer may wait.
    """
    return batch or bool(book.off_peak) or bool(book.discounts)


class HoldPrice:
    """The highest prices of an order's kind, from which holds follow.

    That is the asked tier with nothing cached, unless the book prices a lower tier or another
    class of tokens above it; a hold that ignored such a book would let a charge pass its quota. A
    promise that was not met is delivered as free, whatever was asked.

    Args:
        book: the prices in force.
        model: a model that it prices.
        tier_asked: no tier above it can be delivered.
    """

    __slots__ = ("_input_udollars_per_mtok", "_output_udollars_per_mtok")

    def __init__(self, book: PriceBook, model: ModelName, tier_asked: Tier) -> None:
        rows = [row for tier, row in book.prices[model].items() if tier.rank <= tier_asked.rank]
        self._input_udollars_per_mtok = max(
            max(
                row.input_udollars_per_mtok,
                row.cached_input_udollars_per_mtok,
                row.cache_write_udollars_per_mtok,
                row.audio_input_udollars_per_mtok,
                row.image_input_udollars_per_mtok,
            )
            for row in rows
        )
        self._output_udollars_per_mtok = max(
            max(
                row.output_udollars_per_mtok,
                row.reasoning_udollars_per_mtok,
                row.audio_output_udollars_per_mtok,
                row.image_output_udollars_per_mtok,
            )
            for row in rows
        )

    def hold_nanodollars(
        self, input_tokens_max: int, output_tokens_max: int, rate_ppm: int = PPM
    ) -> NanoDollars:
        """The most an answer can cost, whichever tier is delivered, before credits.

        Args:
            input_tokens_max: the prompt's upper bound.
            output_tokens_max: the output's upper bound.
            rate_ppm: the highest rate that may apply.
        """
        units = (
            input_tokens_max * self._input_udollars_per_mtok
            + output_tokens_max * self._output_udollars_per_mtok
        )
        return NanoDollars(divide_half_even(units * rate_ppm, _CHARGE_UNITS_PER_NANODOLLAR))


def ad_income_nanodollars(output_tokens: int, ad_income_udollars_per_mtok: int) -> NanoDollars:
    """What advertisers pay for some output, rounded once, half to even.

    >>> ad_income_nanodollars(3, 500)
    2
    """
    return NanoDollars(
        divide_half_even(output_tokens * ad_income_udollars_per_mtok, PRICE_UNITS_PER_NANODOLLAR)
    )


def sums_hold(entry: Posted) -> bool:
    """Whether redoing an entry's sums from its own tokens and prices gives its own amounts."""
    charged = 0
    if entry.ending != "failed":
        charged = charge_nanodollars(entry.usage, entry.price, entry.rate_ppm)
    income = ad_income_nanodollars(
        completion_tokens(entry.usage), entry.ad_income_udollars_per_mtok
    )
    return (
        charged == entry.charged_nanodollars
        and income == entry.ad_income_nanodollars
        and credit_nanodollars(charged, entry.credit_ppm) == entry.credited_nanodollars
    )
