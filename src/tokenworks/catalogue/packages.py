"""Packages: sets of limits under one name, to be granted to teams, engineers, keys or tenants."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from tokenworks.catalogue.toml_text import read_toml
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.slo import Tier
from tokenworks.core.units import nanodollars_of

PACKAGES_BYTES_MAX: Final = 1_000_000
LIMITS_MAX: Final = 64
AMOUNT_MAX: Final = 2**62

EXAMPLE: Final = """\
# Packages of limits. `tokenworks quota grant engineer:acme/ada --package pro` grants one.

[package.pro]
about = "An engineer who works with agents all day"

# 5M premium tokens a month; up to 1M that a month leaves unused are added to the next one.
[[package.pro.limit]]
tokens = 5_000_000
tier = "premium"
per = "month"
carry_over = 1_000_000

# And never more than 20 dollars an hour, whatever the tier.
[[package.pro.limit]]
usd = "20"
per = "hour"

[package.trial]
about = "A look around"

[[package.trial.limit]]
tokens = 100_000
per = "lifetime"
"""


class PackageLimit(msgspec.Struct, frozen=True, kw_only=True):
    """One limit of a package.

    Attributes:
        unit: what it counts.
        period: a calendar hour, day or month in UTC, or a lifetime.
        amount: how much, in the unit.
        tier: count only this tier; None counts all.
        carry_over_max: how much of a month's unused rest the next month adds at most, in the unit.
    """

    unit: Literal["tokens", "nanodollars"]
    period: Literal["hour", "day", "month", "lifetime"]
    amount: int
    tier: Tier | None
    carry_over_max: int


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A set of limits.

    Attributes:
        name: as it is granted by.
        about: for people.
        limits: at least one, no two of one unit, period and tier.
    """

    name: str
    about: str
    limits: tuple[PackageLimit, ...]


class _Limit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    per: Literal["hour", "day", "month", "lifetime"]
    tokens: int | None = None
    usd: int | str | None = None
    tier: Tier | None = None
    carry_over: int | str = 0


class _Package(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    limit: tuple[_Limit, ...]
    about: str = ""


class _Packages(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    package: dict[str, _Package]


def parse_packages(text: str) -> dict[str, Package]:
    """Read ``packages.toml``.

    Raises:
        ConfigInvalid: not TOML, an unknown or missing key, an amount that is none, a package
            without a limit or with two that count the same.
    """
    if len(text) > PACKAGES_BYTES_MAX:
        raise ConfigInvalid(
            f"packages.toml has {len(text)} characters, more than {PACKAGES_BYTES_MAX}."
        )
    found = read_toml(
        text,
        _Packages,
        what="packages.toml",
        hint="Compare it with the output of `tokenworks quota packages --example`.",
    )
    return {name: _package(name, rows) for name, rows in found.package.items()}


def _package(name: str, package: _Package) -> Package:
    where = f"[package.{name}]"
    if not 1 <= len(package.limit) <= LIMITS_MAX:
        raise ConfigInvalid(
            f"{where} has {len(package.limit)} limits; it must have 1 to {LIMITS_MAX}.",
            hint=f"Add [[package.{name}.limit]] tables.",
        )
    limits = tuple(
        _limit(f"[[package.{name}.limit]] {i}", row) for i, row in enumerate(package.limit, 1)
    )
    if len({(each.unit, each.period, each.tier) for each in limits}) < len(limits):
        raise ConfigInvalid(
            f"{where} has two limits of one unit, period and tier.", hint="Keep the lower one."
        )
    return Package(name=name, about=package.about, limits=limits)


def _limit(where: str, row: _Limit) -> PackageLimit:
    if (row.tokens is None) is (row.usd is None):
        raise ConfigInvalid(f"{where} must have either `tokens` or `usd`.")
    if row.carry_over and row.per != "month":
        raise ConfigInvalid(
            f"{where} carries over per {row.per}; only months do.", hint='Set per = "month".'
        )
    given = (
        ("tokens", row.tokens) if row.usd is None else ("usd", row.usd),
        ("carry_over", row.carry_over),
    )
    amount, carry_over = (
        _amount(f"{where} {field}", value, dollars=row.usd is not None)  # type: ignore[arg-type]
        for field, value in given
    )
    return PackageLimit(
        unit="tokens" if row.usd is None else "nanodollars",
        period=row.per,
        amount=amount,
        tier=row.tier,
        carry_over_max=carry_over,
    )


def _amount(where: str, value: int | str, *, dollars: bool) -> int:
    """An amount in tokens or nano-dollars."""
    text = str(value)
    amount = nanodollars_of(text) if dollars else int(text) if text.isdecimal() else None
    if amount is None or amount > AMOUNT_MAX:
        kind = 'dollars, such as "2.50"' if dollars else "a number of tokens"
        raise ConfigInvalid(f"{where} is {value!r}; it must be {kind}.")
    return amount
