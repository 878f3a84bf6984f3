"""``tokenworks plan factory`` and ``chart``: what a gigawatt earns, and a public chart's check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from tokenworks.catalogue.price_book import PriceBook, parse_price_book
from tokenworks.catalogue.records import Projection, TierList
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.cli.catalogue import catalogue_at, catalogue_option
from tokenworks.cli.picture import PICTURE
from tokenworks.cli.plan_frontier import show_assumptions
from tokenworks.cli.table import show
from tokenworks.core.errors import ConfigInvalid, InvalidRequest
from tokenworks.live.home import Home
from tokenworks.plan.assumptions import used_by
from tokenworks.plan.earnings import Earnings, earnings, sold_by
from tokenworks.plan.keynote import Check, compare, served_by

_PICTURE = click.option(
    "--picture",
    type=PICTURE,
    help="Draw it into a .png or .svg file.",
)


@click.command()
@click.argument("systems", nargs=-1, required=True)
@click.option(
    "--split",
    default="free=25,medium=25,high=25,premium=25",
    show_default=True,
    help="Per cent of the power by tier.",
)
@click.option("--tiers", default="keynote", show_default=True, help="Promises, prices and models.")
@click.option("--price", "prices", multiple=True, help="TIER=DOLLARS per 1M tokens; repeated.")
@click.option(
    "--price-book",
    "book",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A price book, whose promises and output prices replace the tiers'.",
)
@click.option("--book-model", help="Of the price book.  [default: its only one]")
@click.option("--model", help="What every tier serves, instead of the tiers' own models.")
@click.option("--context", type=int, help="Tokens of each sequence, likewise.")
@click.option("--utilisation", default=100.0, show_default=True, help="Per cent of the time.")
@click.option(
    "--lpu-from",
    help="The lowest tier that a second system helps to serve.  [default: wherever it earns more]",
)
@click.option("--projection", default="keynote", show_default=True, help="How software does.")
@_PICTURE
@catalogue_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def factory(
    home: Home,
    /,
    systems: tuple[str, ...],
    split: str,
    tiers: str,
    prices: tuple[str, ...],
    book: Path | None,
    book_model: str | None,
    model: str | None,
    context: int | None,
    utilisation: float,
    lpu_from: str | None,
    projection: str,
    picture: Path | None,
    folders: tuple[Path, ...],
    *,
    as_json: bool,
) -> None:
    """What a gigawatt of SYSTEMS earns in a year, by tier.

    Revenue is power x tokens/s/MW at the tier's promise x price. An example:
    `tokenworks plan factory gb200-nvl72 vr-nvl72 vr-nvl72+lpx --utilisation 60`

    With `a+b`, b's LPUs serve each tier at which they make more tokens per MW, or those from
    `--lpu-from` on. `--split premium=40,high=60` leaves the other tiers out.
    """
    catalogue = catalogue_at(home, folders)
    how = catalogue.projection(projection)
    _check_lpu_from(lpu_from, systems)
    sold = _serving(catalogue.tiers(tiers), model, context)
    sold = _by_book(book, book_model, sold)
    sold = _priced(sold, _shares(prices, "--price"))
    shares = _split(split, utilisation)
    found = []
    for each in systems:
        served = _served(catalogue, each, sold, how.name, lpu_from)
        made = earnings(catalogue, served, sold, shares, how, utilisation=utilisation / 100)
        found.append((each, made))
    if picture:
        from tokenworks.cli.plan_picture import draw_earnings

        draw_earnings(found, picture)
    models = {line.tier: line.model for line in sold.tiers}
    pairs = [(tier.systems, models[tier.tier]) for _, made in found for tier in made.tiers]
    assumed = used_by(catalogue, pairs, how)
    if as_json:
        said = {"factories": dict(found), "assumptions": assumed}
        click.echo(msgspec.json.format(msgspec.json.encode(said), indent=2))
        return
    show([row for each in found for row in _rows(*each)], as_json=False, empty="No tier.")
    totals = [(each, round(made.usd_per_gw_year / 1e9, 2)) for each, made in found]
    click.echo()
    show(
        [{"systems": each, "$ billion a GW-year": total} for each, total in totals],
        as_json=False,
        empty="",
    )
    show_assumptions(assumed)


@click.command()
@click.argument("chart", default="keynote")
@click.option("--tiers", default="keynote", show_default=True, help="Promises, prices and models.")
@click.option(
    "--projection", help="How software does.  [default: the chart's own, or else keynote]"
)
@_PICTURE
@catalogue_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def chart(
    home: Home,
    /,
    chart: str,
    tiers: str,
    projection: str | None,
    picture: Path | None,
    folders: tuple[Path, ...],
    *,
    as_json: bool,
) -> None:
    """Compute a public CHART's points, multiples and dollars, and say how far off each is.

    Nothing of the chart goes into what is computed; what is assumed is listed below it.
    """
    catalogue = catalogue_at(home, folders)
    shown = catalogue.chart(chart)
    own = {each.name for each in catalogue.all_of(Projection)}
    how = projection or (shown.name if shown.name in own else "keynote")
    found = compare(catalogue, shown, catalogue.tiers(tiers), catalogue.projection(how))
    if picture:
        from tokenworks.cli.plan_picture import draw_comparison

        draw_comparison(found, picture)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
        return
    show(
        [_check_row(each) for each in (*found.points, *found.multiples, *found.dollars)],
        as_json=False,
        empty="The chart has no points at tiers.",
    )
    show_assumptions(found.assumptions, "What is assumed, and was free to fit the chart")
    show_assumptions(found.also_assumed, "Also assumed by the records, not fitted")


def _served(
    catalogue: Catalogue, systems: str, tiers: TierList, projection: str, lpu_from: str | None
) -> dict[str, str]:
    """Which systems serve each tier: those asked for, or those that make more tokens per MW."""
    names = [line.tier for line in tiers.tiers]
    if lpu_from is not None and lpu_from not in names:
        raise ConfigInvalid(
            f"--lpu-from is {lpu_from!r}.", hint=f"{tiers.name} has {', '.join(names)}."
        )
    if "+" not in systems or lpu_from is not None:
        return dict(served_by(systems, lpu_from or "", tiers))
    how = catalogue.projection(projection)
    first = systems.partition("+")[0]
    served = {}
    for line in tiers.tiers:
        shares = {line.tier: 1.0}
        rates = {
            each: sum(
                tier.tokens_per_year
                for tier in earnings(catalogue, {line.tier: each}, tiers, shares, how).tiers
            )
            for each in (first, systems)
        }
        served[line.tier] = max(rates, key=lambda each: rates[each])
    return served


def _check_lpu_from(lpu_from: str | None, systems: Sequence[str]) -> None:
    if lpu_from is not None and not any("+" in each for each in systems):
        raise InvalidRequest(
            f"--lpu-from {lpu_from} has no meaning where no system has LPUs beside it.",
            hint="Leave it out, or name LPUs too, as in vr-nvl72+lpx.",
        )


def _shares(texts: Sequence[str], option: str) -> dict[str, float]:
    """``free=25,high=75`` as numbers by name."""
    shares: dict[str, float] = {}
    for part in ",".join(texts).split(",") if texts else []:
        name, _, number = part.partition("=")
        if name.strip() in shares:
            raise ConfigInvalid(f"{option} names {name.strip()!r} twice.", hint="Name it once.")
        try:
            shares[name.strip()] = float(number)
        except ValueError:
            raise ConfigInvalid(
                f"{option} has {part!r}.", hint="Write name=number, as in premium=25."
            ) from None
    return shares


def _split(text: str, utilisation: float) -> dict[str, float]:
    """Shares of the power, 0 to 1; here are still the per cent that the user wrote."""
    shares = _shares([text], "--split")
    per_cent = {f"--split gives tier {tier!r}": share for tier, share in shares.items()}
    per_cent["--split gives away"] = sum(shares.values())
    per_cent["--utilisation is"] = utilisation
    for what, share in per_cent.items():
        if not 0 <= share <= 100 + 1e-6:
            raise ConfigInvalid(f"{what} {share:g} per cent.", hint="It is 0 to 100.")
    return {tier: share / 100 for tier, share in shares.items()}


def _serving(tiers: TierList, model: str | None, context: int | None) -> TierList:
    lines = tuple(
        msgspec.structs.replace(
            line,
            model=model or line.model,
            context_tokens=line.context_tokens if context is None else context,
        )
        for line in tiers.tiers
    )
    return msgspec.structs.replace(tiers, tiers=lines)


def _by_book(book: Path | None, model: str | None, tiers: TierList) -> TierList:
    """The tiers with what a price book says, where there is one."""
    if book:
        return sold_by(_book(book), model, tiers)
    if model:
        raise InvalidRequest(
            f"--book-model {model!r} has no price book to be of.", hint="Add --price-book."
        )
    return tiers


def _book(path: Path) -> PriceBook:
    try:
        return parse_price_book(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{str(path)!r} cannot be read: {error}.") from error


def _priced(tiers: TierList, prices: dict[str, float]) -> TierList:
    names = [line.tier for line in tiers.tiers]
    for name, usd in prices.items():
        if name not in names:
            raise ConfigInvalid(
                f"--price names tier {name!r}.", hint=f"{tiers.name} has {', '.join(names)}."
            )
        if not 0 <= usd < math.inf:
            raise ConfigInvalid(
                f"--price of tier {name!r} is {usd!r}.", hint="A price is 0 dollars or more."
            )
    lines = tuple(
        msgspec.structs.replace(line, usd_per_mtok=prices.get(line.tier, line.usd_per_mtok))
        for line in tiers.tiers
    )
    return msgspec.structs.replace(tiers, tiers=lines)


def _rows(systems: str, made: Earnings) -> list[dict[str, Any]]:
    return [
        {
            "factory": systems,
            "tier": tier.tier,
            "served by": tier.systems,
            "power %": round(100 * tier.power_share, 1),
            "tokens/s/user": tier.interactivity_tokens_per_s,
            "tokens/s/MW": round(tier.way.tokens_per_s_per_mw) if tier.way else None,
            "$ per 1M": tier.usd_per_mtok,
            "$ billion": round(tier.usd_per_year / 1e9, 2),
        }
        for tier in made.tiers
    ]


def _check_row(each: Check) -> dict[str, Any]:
    return {
        "figure": each.what,
        "systems": each.systems,
        "tier": each.tier or None,
        "chart": each.charted,
        "computed": each.computed,
        "off by %": round(100 * each.error, 1),
        "reading ± %": round(100 * each.reading_error) or None,
    }
