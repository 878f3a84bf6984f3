"""``tokenworks import``: move here from another gateway."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import click
import msgspec

from tokenworks.catalogue.price_book import parse_price_book
from tokenworks.cli.ledger_at import ledger_at
from tokenworks.cli.table import show
from tokenworks.core.errors import InvalidRequest
from tokenworks.core.ids import TenantID
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S, dollars_text
from tokenworks.ledger.litellm import Imported, import_keys, price_tables
from tokenworks.live.home import Home, packaged

_FILE = click.Path(dir_okay=False, exists=True, path_type=Path)


@click.group()
def command() -> None:
    """Move here from another gateway."""


@command.command()
@click.option("--keys", type=_FILE, help="What /key/list?return_full_object=true answered.")
@click.option("--teams", type=_FILE, help="What /team/list answered.")
@click.option("--users", type=_FILE, help="What /user/list answered.")
@click.option("--prices", type=_FILE, help="model_prices_and_context_window.json.")
@click.option("--model", "models", multiple=True, help="A model of the price map; may be repeated.")
@click.option(
    "--book", type=click.Path(dir_okay=False, path_type=Path), help="Where the book goes."
)
@click.option("--tenant", default="litellm", show_default=True, help="Who pays for these keys.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def litellm(
    home: Home,
    /,
    models: tuple[str, ...],
    book: Path | None,
    tenant: str,
    *,
    dry_run: bool,
    as_json: bool,
    **files: Path | None,
) -> None:
    """LiteLLM's keys, budgets and prices.

    Keys go on working: both keep a key as the sha256 of its secret. Budgets become hard limits of
    key, user and team. Prices become a price book, with the promises of the one that ships. What
    has no counterpart here is listed.
    """
    from tokenworks.live.clock import SystemClock

    unix_ns = SystemClock().unix_ns()
    if files["keys"] is None and files["prices"] is None:
        raise InvalidRequest("There is nothing to import.", hint="Give --keys, --prices or both.")
    made = Imported([], [], [])
    if files["keys"] is not None:
        made = import_keys(
            _objects(files["keys"], "keys"),
            _objects(files["teams"], "teams"),
            _objects(files["users"], "users"),
            tenant=TenantID(tenant),
            unix_ns=unix_ns,
        )
    notes, written = list(made.notes), None
    if files["prices"] is not None:
        text, more = _book(files["prices"], models, unix_ns)
        notes += more
        written = book or home.price_book
        if not dry_run:
            _write(home, written, text)
    if made.keys and not dry_run:
        with ledger_at(home, create=True) as store:
            for limit in made.limits:  # first, so that no key goes without
                store.put_limit(limit)
            for record in made.keys:
                store.put_key(record)
    _say(made, notes, written, dry_run=dry_run, as_json=as_json)


def _say(
    made: Imported, notes: list[str], written: Path | None, *, dry_run: bool, as_json: bool
) -> None:
    if as_json:
        said = {
            "keys": [record.key for record in made.keys],
            "limits": [msgspec.to_builtins(limit) for limit in made.limits],
            "book": None if written is None else str(written),
            "notes": notes,
            "done": not dry_run,
        }
        click.echo(msgspec.json.format(msgspec.json.encode(said), indent=2))
        return
    rows = [
        {"node": limit.node, "usd": dollars_text(limit.amount), "per": limit.period}
        for limit in made.limits
    ]
    show(rows, as_json=False, empty="No budgets.")
    click.echo()
    for note in notes:
        click.echo(f"- {note}")
    verb = "would be" if dry_run else "are"
    click.echo(f"{len(made.keys)} keys and {len(made.limits)} limits {verb} here.")
    if written is not None:
        click.echo(f"The price book {'would be' if dry_run else 'is'} {written}.")


def _objects(path: Path | None, name: str) -> list[Mapping[str, Any]]:
    """The objects in a file: a list, or the list that an object holds under a name."""
    if path is None:
        return []
    found = _decoded(path)
    if isinstance(found, dict):
        found = found.get(name, [found])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise InvalidRequest(
            f"{str(path)!r} holds no list of objects.",
            hint=f"It should hold [...], or {{{name!r}: [...]}}, as LiteLLM answers.",
        )
    # /key/info puts the key's hash beside its fields.
    return [{"token": each.get("key"), **each, **each.get("info", {})} for each in found]


def _decoded(path: Path) -> Any:
    """JSON with exact decimals."""
    try:
        return json.loads(path.read_bytes(), parse_float=Decimal)
    except (ValueError, InvalidOperation, RecursionError) as error:
        raise InvalidRequest(f"{str(path)!r} is no JSON: {error}.") from error


def _book(path: Path, models: tuple[str, ...], unix_ns: int) -> tuple[str, list[str]]:
    """A price book's text, proved by parsing it, and notes."""
    found = _decoded(path)
    if not isinstance(found, dict):
        raise InvalidRequest(f"{str(path)!r} is no price map.")
    rows = {name: row for name, row in found.items() if isinstance(row, dict)}
    tables, notes = price_tables(rows, models)
    if not tables:
        raise InvalidRequest(f"{str(path)!r} has no model that is priced per token.")
    shipped = packaged("laptop.toml").read_text(encoding="utf-8")
    tiers = shipped[shipped.index("[tier.free]") : shipped.index("[price.")]
    day = datetime.datetime.fromtimestamp(unix_ns // NS_PER_S, datetime.UTC).date()
    lines = [
        'name = "litellm"',
        f"effective = {day}",
        'source = "LiteLLM\'s price map; promises are those of the book that ships"',
        "ad_income_udollars_per_mtok = 0",
        "",
        tiers,
    ]
    for model, by_tier in tables.items():
        for tier in Tier:
            lines.append(f"[price.{json.dumps(model)}.{tier.value}]")
            lines += [f"{name} = {price}" for name, price in by_tier[tier].items()]
    text = "\n".join(lines) + "\n"
    parse_price_book(text)
    return text, notes


def _write(home: Home, path: Path, text: str) -> None:
    if path.exists():
        raise InvalidRequest(
            f"{str(path)!r} is there already.", hint="Name another file with --book."
        )
    home.make()
    home.write_private(path, text)
