"""The units of the house: integer nanoseconds, integer nano-dollars, integer tokens."""

from __future__ import annotations

from typing import Final, NewType

InstantNs = NewType("InstantNs", int)
"""A point on the driver's own clock, which never goes back; not a date."""

DurationNs = NewType("DurationNs", int)
"""A length of time."""

UnixNs = NewType("UnixNs", int)
"""A date: nanoseconds since 1970, UTC. Only records carry it; no decision reads it."""

NanoDollars = NewType("NanoDollars", int)
"""Money in entries."""

UDollarsPerMTok = NewType("UDollarsPerMTok", int)
"""A price: micro-dollars per 1M tokens, which is 1/1000 nano-dollar per token."""

Tokens = NewType("Tokens", int)
"""A number of tokens."""

NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000
NS_PER_HOUR: Final = 3_600 * NS_PER_S
NANODOLLARS_PER_DOLLAR: Final = 1_000_000_000
UDOLLARS_PER_DOLLAR: Final = 1_000_000
TOKENS_PER_MTOK: Final = 1_000_000
PPM: Final = 1_000_000
"""Shares are integers of millionths."""


def divide_half_even(numerator: int, denominator: int) -> int:
    """The quotient rounded to the nearest integer, ties to the even one.

    Args:
        numerator: any integer.
        denominator: a positive integer.

    >>> [divide_half_even(n, 2) for n in (1, 3, 5, -1, -3)]
    [0, 2, 2, 0, -2]
    """
    assert denominator > 0, denominator
    quotient = numerator // denominator
    doubled = 2 * (numerator - quotient * denominator)
    if doubled > denominator or (doubled == denominator and quotient % 2 == 1):
        return quotient + 1
    return quotient


def charge(tokens: int, price_udollars_per_mtok: int) -> NanoDollars:
    """What some tokens cost at a price, rounded once, half to even.

    >>> charge(1_000_000, 3_000_000)  # $3 per 1M tokens
    3000000000
    """
    assert tokens >= 0, tokens
    assert price_udollars_per_mtok >= 0, price_udollars_per_mtok
    return NanoDollars(divide_half_even(tokens * price_udollars_per_mtok, 1_000))


def energy_nanodollars(power_w: int, udollars_per_kwh: int, duration_ns: int) -> NanoDollars:
    """What power costs over a time.

    >>> energy_nanodollars(1_000, 150_000, 3_600_000_000_000)
    150000000
    """
    return NanoDollars(divide_half_even(power_w * udollars_per_kwh * duration_ns, NS_PER_HOUR))


def hourly_nanodollars(udollars_per_hour: int, duration_ns: int) -> NanoDollars:
    """What something that is paid by the hour costs over a time.

    >>> hourly_nanodollars(20_000, 3_600_000_000_000)
    20000000
    """
    return NanoDollars(divide_half_even(udollars_per_hour * 1_000 * duration_ns, NS_PER_HOUR))


def dollars_text(nanodollars: int) -> str:
    """An exact decimal for people, without trailing zeros past the cents.

    >>> dollars_text(3_000_000_000), dollars_text(-1_500), dollars_text(0)
    ('3.00', '-0.0000015', '0.00')
    """
    sign = "-" if nanodollars < 0 else ""
    whole, rest = divmod(abs(nanodollars), NANODOLLARS_PER_DOLLAR)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{decimals}"


def nanodollars_of(text: str) -> int | None:
    """Nano-dollars of a decimal number of dollars; None if it is none, or not exact in them.

    >>> [nanodollars_of(text) for text in ("2.50", "0.0000000001", "-1", "much")]
    [2500000000, None, None, None]
    """
    whole, _, decimals = text.partition(".")
    digits = whole + decimals.ljust(9, "0")
    if not whole or len(decimals) > 9 or not (digits.isascii() and digits.isdigit()):
        return None
    return int(digits)
