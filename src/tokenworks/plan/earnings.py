"""What a gigawatt earns in a year: a split of its power, throughput per MW, prices, use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.catalogue.records import Projection, TierList
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import ModelName
from tokenworks.core.slo import Tier
from tokenworks.core.units import UDOLLARS_PER_DOLLAR
from tokenworks.plan.frontier import frontier
from tokenworks.plan.projection import Candidate

SECONDS_PER_YEAR: Final = 365 * 86_400
MW_PER_GW: Final = 1_000


class TierEarnings(msgspec.Struct, frozen=True, kw_only=True):
    """What one tier makes of its share of a gigawatt.

    Attributes:
        tier: its name.
        systems: that serve it.
        power_share: of the gigawatt.
        interactivity_tokens_per_s: that it promises.
        usd_per_mtok: of output.
        way: how it is decoded; None where nothing is fast enough, and it earns nothing.
        tokens_per_year: of output, of a gigawatt's share.
        usd_per_year: likewise.
    """

    tier: str
    systems: str
    power_share: float
    interactivity_tokens_per_s: float
    usd_per_mtok: float
    way: Candidate | None
    tokens_per_year: float
    usd_per_year: float


class Earnings(msgspec.Struct, frozen=True, kw_only=True):
    """What a gigawatt earns.

    Attributes:
        tiers: slowest first.
        utilisation: share of the time that the factory is full.
        usd_per_gw_year: in all.
    """

    tiers: tuple[TierEarnings, ...]
    utilisation: float
    usd_per_gw_year: float


def earnings(
    catalogue: Catalogue,
    systems: Mapping[str, str],
    tiers: TierList,
    split: Mapping[str, float],
    projection: Projection,
    *,
    utilisation: float = 1.0,
) -> Earnings:
    """Revenue of a gigawatt.

    Args:
        catalogue: of hardware and models.
        systems: that serve each tier, by its name.
        tiers: with prices, promises and models.
        split: shares of the power by tier; what is left over earns nothing.
        projection: of the software.
        utilisation: share of the time.

    Raises:
        ConfigInvalid: a tier of the split is unknown, shares are below 0 or above 1 together, or
            utilisation is not in 0 to 1.

    Source: the sum that reproduces the keynote's dollars, facts of the slide in the chart's record:
    share x 1,000 MW x tokens/s/MW x price x 31,536,000 s.
    """
    _check(tiers, split, utilisation)
    found = []
    for line in tiers.tiers:
        share = split.get(line.tier, 0.0)
        if not share:
            continue
        front = frontier(catalogue, systems[line.tier], line.model, line.context_tokens, projection)
        way = front.at(line.interactivity_tokens_per_s)
        rate = way.tokens_per_s_per_mw if way else 0.0
        tokens = share * MW_PER_GW * rate * SECONDS_PER_YEAR * utilisation
        found.append(
            TierEarnings(
                tier=line.tier,
                systems=systems[line.tier],
                power_share=share,
                interactivity_tokens_per_s=line.interactivity_tokens_per_s,
                usd_per_mtok=line.usd_per_mtok,
                way=way,
                tokens_per_year=tokens,
                usd_per_year=tokens * line.usd_per_mtok / 1e6,
            )
        )
    return Earnings(
        tiers=tuple(found),
        utilisation=utilisation,
        usd_per_gw_year=math.fsum(tier.usd_per_year for tier in found),
    )


def sold_by(book: PriceBook, model: str | None, tiers: TierList) -> TierList:
    """Tiers with the promises and output prices of a price book.

    Args:
        book: list prices; what advertisers pay counts for the free tier.
        model: of the book; None where it sells one only.
        tiers: whose models and contexts stay.

    Raises:
        ConfigInvalid: the book does not sell the model, or sells several and none is named.
    """
    names = sorted(book.prices)
    chosen = model or (names[0] if len(names) == 1 else "")
    if chosen not in names:
        raise ConfigInvalid(
            f"The price book {book.price_id!r} has no model {model!r}."
            if model
            else f"The price book {book.price_id!r} sells {len(names)} models.",
            hint=f"Name one of {', '.join(names)}.",
        )
    lines = []
    for line in tiers.tiers:
        tier = Tier(line.tier)
        udollars = book.prices[ModelName(chosen)][tier].output_udollars_per_mtok
        udollars += book.ad_income_udollars_per_mtok if tier is Tier.FREE else 0
        lines.append(
            msgspec.structs.replace(
                line,
                interactivity_tokens_per_s=float(book.promises[tier].interactivity_tokens_per_s),
                usd_per_mtok=udollars / UDOLLARS_PER_DOLLAR,
            )
        )
    return msgspec.structs.replace(tiers, tiers=tuple(lines))


def _check(tiers: TierList, split: Mapping[str, float], utilisation: float) -> None:
    known = [line.tier for line in tiers.tiers]
    for tier, share in split.items():
        if tier not in known:
            raise ConfigInvalid(
                f"The split names tier {tier!r}.", hint=f"{tiers.name} has {', '.join(known)}."
            )
        if not 0 <= share <= 1:
            raise ConfigInvalid(
                f"Tier {tier!r} has {share!r} of the power.", hint="Shares are 0 to 1."
            )
    total = math.fsum(split.values())
    if total > 1 + 1e-9:
        raise ConfigInvalid(
            f"The split hands out {total:.4g} of the power.", hint="Shares add up to 1 or less."
        )
    if not 0 <= utilisation <= 1:
        raise ConfigInvalid(f"Utilisation is {utilisation!r}.", hint="It is 0 to 1.")
