"""From what an operator writes to the dispatcher's first event: prices, promises and a policy."""

from __future__ import annotations

from collections.abc import Collection

from msgspec import UNSET

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import ModelName
from tokenworks.core.slo import Tier
from tokenworks.dispatch.events import (
    Configured,
    Limits,
    PolicySettings,
    PoolScale,
    TokenPrice,
)
from tokenworks.dispatch.policies import NAMES


def settings_for(
    book: PriceBook,
    limits: Limits,
    policy: PolicySettings | None = None,
    scaling: tuple[PoolScale, ...] = (),
) -> Configured:
    """What the dispatcher is told while a price book is in force.

    Args:
        book: promises and prices.
        limits: what may be kept.
        policy: who decides; None for the dispatcher's own.
        scaling: pools whose number of workers may change.
    """
    return Configured(
        promises=book.promises,
        limits=limits,
        policy=policy or PolicySettings(),
        prices=token_prices(book),
        scaling=scaling or UNSET,
    )


def parse_policy(text: str, own: Collection[str] = ()) -> PolicySettings:
    """A policy as it is written on a command line: its name, or with a batch cap or a split.

    Args:
        text: what is written.
        own: names of policies that the operator has brought.

    Raises:
        ConfigInvalid: there is no such policy, or what follows its name is neither.

    >>> parse_policy("strict-priority:24").batch_cap
    24
    >>> parse_policy("static-split:3/2/1/1/1").split
    (3, 2, 1, 1, 1)
    >>> parse_policy("static-split:3/2/1/1/1@75").full_percent
    75
    """
    name, colon, rest = text.strip().partition(":")
    if name not in NAMES and name not in own:
        raise ConfigInvalid(
            f"There is no policy {name!r}.", hint=f"Take one of {', '.join([*NAMES, *own])}."
        )
    if not colon:
        return PolicySettings(name=name)
    rest, at, percent = rest.partition("@")
    numbers = rest.split("/")
    written = [*numbers, percent] if at else numbers
    if not all(each.isascii() and each.isdigit() for each in written):
        raise ConfigInvalid(
            f"{text!r} has neither a batch cap nor a split.",
            hint="Write strict-priority:24, or static-split:3/2/1/1/1 from free to ultra, or that "
            "with @75 for three quarters of the batches that promises allow.",
        )
    if len(numbers) == len(Tier):
        split = tuple(int(each) for each in numbers)
        return PolicySettings(name=name, split=split, full_percent=int(percent) if at else 100)
    if len(numbers) != 1 or at or not int(rest):
        raise ConfigInvalid(f"{text!r} is not for five tiers.", hint="Name five numbers, or one.")
    return PolicySettings(name=name, batch_cap=int(rest))


def token_prices(book: PriceBook) -> dict[ModelName, dict[Tier, TokenPrice]]:
    """What the dispatcher is told of a price book: list prices, and ads where the tier is free."""
    return {
        model: {
            tier: TokenPrice(
                input_udollars_per_mtok=price.input_udollars_per_mtok,
                cached_udollars_per_mtok=price.cached_input_udollars_per_mtok,
                output_udollars_per_mtok=price.output_udollars_per_mtok
                + (book.ad_income_udollars_per_mtok if tier is Tier.FREE else 0),
            )
            for tier, price in prices.items()
        }
        for model, prices in book.prices.items()
    }
