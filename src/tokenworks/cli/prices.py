"""``tokenworks prices``: check price books, and show what a tenant pays when."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from tokenworks.catalogue.price_book import (
    Price,
    PriceBook,
    PriceBooks,
    parse_price_book,
    price_id_of,
)
from tokenworks.catalogue.price_check import (
    Finding,
    Sold,
    changes,
    check_books,
    in_force,
    quotes,
    usd,
)
from tokenworks.cli.ledger_at import ledger_at
from tokenworks.cli.listing import Listing
from tokenworks.cli.table import show
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import ModelName, PriceID, TenantID
from tokenworks.core.slo import Tier
from tokenworks.core.units import PPM
from tokenworks.ledger.dates import parse_time, time_text
from tokenworks.ledger.reports import report_lines
from tokenworks.live.home import Home


@click.group(cls=Listing)
def command() -> None:
    """Check price books, and show what a tenant pays at some time.

    A price book holds from its `effective` day, UTC, until the next one's. The factory takes
    `price_book.toml` and every `prices/*.toml` in its folder.
    """


@command.command()
@click.argument("files", nargs=-1, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def check(home: Home, files: tuple[Path, ...], *, as_json: bool) -> None:
    """Check FILES together, or the factory's own price books.

    Its own are those in its folder and those that were put into force by the admin API, which are
    in the ledger. Says which book holds when, what changes from one to the next, and what is odd:
    prices that fall as tiers rise, cached input dearer than input, models that are no longer sold,
    tiers that would earn less than they have cost until now by the ledger. Exits with 1 if a
    factory would refuse one of them, or leave it out.
    """
    from tokenworks.live.clock import SystemClock

    today = _day(SystemClock().unix_ns())
    books, found = _books(files or _own_files(home))
    if not files and not books and not found:
        books = [home.load_price_book()]
    activated, unread = ([], []) if files else _activated(home)
    known = {book.price_id for book in books}
    books += [book for book in activated if book.price_id not in known]
    found += unread
    if books:
        found += check_books(books, _sold(home), today)
    rows = [msgspec.to_builtins(each) for each in in_force(books)]
    moved = [msgspec.to_builtins(each) for each in changes(books)]
    odd = [msgspec.to_builtins(each) for each in found]
    if as_json:
        ids = [book.price_id for book in activated]
        said = {"in_force": rows, "activated": ids, "changes": moved, "findings": odd}
        click.echo(msgspec.json.format(msgspec.json.encode(said), indent=2))
    else:
        show(rows, as_json=False, empty="No book can be read.")
        for book in activated:
            click.echo(f"{book.price_id} was put into force by the admin API.")
        if moved:
            click.echo("\nWhat changes:")
            show(moved, as_json=False, empty="")
        click.echo("\nWhat is odd:" if odd else "\nNothing is odd.")
        if odd:
            show(odd, as_json=False, empty="")
    if any(each.level == "error" for each in found):
        sys.exit(1)


@command.command(name="list")
@click.option("--tenant", default="local", show_default=True, help="Who pays.")
@click.option("--at", help="When: 2026-11-01, or 2026-11-01T22:00, UTC.  [default: now]")
@click.option("--batch", is_flag=True, help="For work that may wait.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def list_prices(home: Home, /, tenant: str, at: str | None, *, batch: bool, as_json: bool) -> None:
    """What a tenant pays at some time, off-peak hours and discounts applied."""
    from tokenworks.live.clock import SystemClock

    unix_ns = SystemClock().unix_ns() if at is None else parse_time(at, "--at")
    book, found = quotes(_books_in_force(home), TenantID(tenant), unix_ns, batch=batch)
    if as_json:
        rows = [
            {
                "model": each.model,
                "tier": each.tier,
                "rate_ppm": each.rate_ppm,
                "prices": msgspec.structs.asdict(each.price),
            }
            for each in found
        ]
        said = {"book": book.price_id, "tenant": tenant, "at": time_text(unix_ns), "rows": rows}
        click.echo(msgspec.json.format(msgspec.json.encode(said), indent=2))
        return
    rows = [_priced(each.model, each.tier, each.rate_ppm, each.price) for each in found]
    if not any(row["besides"] for row in rows):
        rows = [{name: row[name] for name in row if name != "besides"} for row in rows]
    show(rows, as_json=False, empty="")
    click.echo(
        f"\nDollars per 1M tokens for tenant {tenant} at {time_text(unix_ns)}, by {book.price_id}."
    )


def _priced(model: ModelName, tier: Tier, rate_ppm: int, price: Price) -> dict[str, Any]:
    """A row for people; besides are the classes that cost something else than their plain kin."""
    besides = [
        f"{name.removesuffix('_udollars_per_mtok').replace('_', ' ')} {usd(cost)}"
        for name, cost in msgspec.structs.asdict(price).items()
        for kin in (
            price.input_udollars_per_mtok
            if "input" in name or "cache" in name
            else price.output_udollars_per_mtok,
        )
        if name != "cached_input_udollars_per_mtok" and cost != kin
    ]
    return {
        "model": model,
        "tier": tier.value,
        "input": usd(price.input_udollars_per_mtok),
        "cached": usd(price.cached_input_udollars_per_mtok),
        "output": usd(price.output_udollars_per_mtok),
        "of list": f"{rate_ppm * 100 / PPM:g} %",
        "besides": "; ".join(besides) or None,
    }


def _books_in_force(home: Home) -> PriceBooks:
    """Those in the folder, and those that the admin API put into force and a factory would take."""
    books, unread = home.load_price_books().with_readable(_activated_texts(home))
    for text, error in unread:
        click.echo(f"{price_id_of(text)} is left out: {_why(error)}", err=True)
    return books


def _activated(home: Home) -> tuple[list[PriceBook], list[Finding]]:
    """Those that the admin API put into force, in this order, and why others cannot be read."""
    books, found = [], []
    for text in _activated_texts(home):
        try:
            books.append(parse_price_book(text))
        except ConfigInvalid as error:
            why = f"The admin API put it into force, and a factory leaves it out: {_why(error)}"
            found.append(Finding(level="error", book=price_id_of(text), message=why))
    return books, found


def _activated_texts(home: Home) -> list[str]:
    if not home.has_ledger():
        return []
    with ledger_at(home) as store:
        return store.activated_books()


def _own_files(home: Home) -> Sequence[Path]:
    own = [home.price_book] if home.price_book.exists() else []
    return [*own, *sorted(home.prices.glob("*.toml"))]


def _books(files: Sequence[Path]) -> tuple[list[PriceBook], list[Finding]]:
    """The books that can be read, and why the others cannot."""
    books, found = [], []
    for path in files:
        try:
            books.append(parse_price_book(path.read_text(encoding="utf-8")))
        except (ConfigInvalid, OSError, UnicodeDecodeError) as error:
            message = _why(error)
            found.append(Finding(level="error", book=PriceID(path.name), message=message))
    return books, found


def _why(error: ConfigInvalid | OSError | UnicodeDecodeError) -> str:
    if isinstance(error, ConfigInvalid):
        return error.message
    what = error.strerror if isinstance(error, OSError) else error
    return f"It cannot be read: {what}."


def _sold(home: Home) -> dict[tuple[ModelName, Tier], Sold]:
    """What the ledger has seen sold and what it cost, by model and delivered tier."""
    if not home.has_ledger():
        return {}
    with ledger_at(home) as store:
        lines = report_lines(store.rollups(by_hour=False), ("model", "tier"))
    return {
        (ModelName(model), Tier(tier)): Sold(
            tokens=tuple(line.tokens.values()), cost_nanodollars=line.cost_nanodollars
        )
        for line in lines
        for model, tier in [line.names]
        if model and tier and line.requests
    }


def _day(unix_ns: int) -> datetime.date:
    return datetime.date.fromisoformat(time_text(unix_ns)[:10])
