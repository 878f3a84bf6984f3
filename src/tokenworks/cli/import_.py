"""``tokenworks import``: move here from another gateway."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from tokenworks.catalogue.price_book import parse_price_book
from tokenworks.cli.ledger_at import ledger_at, office_at
from tokenworks.cli.listing import Listing
from tokenworks.cli.table import show
from tokenworks.core.errors import InvalidRequest
from tokenworks.core.ids import TenantID
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S, dollars_text
from tokenworks.ledger.litellm import Imported, import_keys
from tokenworks.ledger.litellm_prices import price_tables, unpriced
from tokenworks.ledger.quota_records import KeyRecord, LimitState
from tokenworks.live.home import Home, packaged

_NODES_SHOWN: Final = 5
_FILE = click.Path(dir_okay=False, exists=True, path_type=Path)


@click.group(cls=Listing)
def command() -> None:
    """Move here from another gateway."""


@command.command()
@click.option(
    "--keys",
    type=_FILE,
    multiple=True,
    help="What /key/list?return_full_object=true answered; once for each page.",
)
@click.option("--teams", type=_FILE, multiple=True, help="What /team/list answered; likewise.")
@click.option("--users", type=_FILE, multiple=True, help="What /user/list answered; likewise.")
@click.option(
    "--budgets",
    type=_FILE,
    multiple=True,
    help="What /budget/list answered; needed if a key has a budget_id.",
)
@click.option("--prices", type=_FILE, help="model_prices_and_context_window.json.")
@click.option(
    "--model",
    "models",
    multiple=True,
    help="A model of the price map, or OURS=THEIRS where it has another name here; may be "
    "repeated.  [default: what factory.toml sells]",
)
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
    prices: Path | None,
    book: Path | None,
    tenant: str,
    *,
    dry_run: bool,
    as_json: bool,
    **files: tuple[Path, ...],
) -> None:
    """LiteLLM's keys, budgets and prices.

    Keys go on working: both keep a key as the sha256 of its secret. Keys that are blocked or have
    expired there, and those of blocked teams, come as revoked ones; a key that is revoked here
    stays so. Budgets become hard limits of key, user and team. Prices become a price book, with the
    promises of the one that ships. What has no counterpart here is listed.

    Give all pages of keys, teams and users at once: only then can it be seen that two teams have
    the same name.

    \b
    For example
      tokenworks import litellm --keys keys.json --teams teams.json --tenant acme --dry-run
      tokenworks import litellm --prices model_prices_and_context_window.json --model big=gpt-4o
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with this character
    from tokenworks.live.clock import SystemClock
    from tokenworks.live.office import operator

    unix_ns = SystemClock().unix_ns()
    if not files["keys"] and prices is None:
        raise InvalidRequest("There is nothing to import.", hint="Give --keys, --prices or both.")
    made = Imported([], [], [], [])
    if files["keys"]:
        made = _keys(home, files, TenantID(tenant), unix_ns)
    notes, written = list(made.notes), None
    if prices is not None:
        text, more = _book(home, prices, models, unix_ns)
        notes += more
        written = book or home.price_book
        if not dry_run:
            _write(home, written, text)
    if made.keys and not dry_run:
        with office_at(home, create=True) as office:
            office.import_keys(operator(), "litellm", made.keys, made.limits)
    _say(made, notes, written, dry_run=dry_run, as_json=as_json)


def _keys(
    home: Home, files: Mapping[str, Sequence[Path]], tenant: TenantID, unix_ns: int
) -> Imported:
    known: list[KeyRecord] = []
    before: list[LimitState] = []
    if home.has_ledger():
        with ledger_at(home) as store:
            known, before = store.load_keys(), store.limit_states(unix_ns)
    keys, teams, users, budgets = (
        [row for path in files[name] for row in _objects(path, name)]
        for name in ("keys", "teams", "users", "budgets")
    )
    return import_keys(
        keys, teams, users, budgets, tenant=tenant, unix_ns=unix_ns, known=known, before=before
    )


def _say(
    made: Imported, notes: list[str], written: Path | None, *, dry_run: bool, as_json: bool
) -> None:
    if as_json:
        said = {
            "keys": [record.key for record in made.keys],
            "revoked": [record.key for record in made.keys if record.revoked_unix_ns is not None],
            "limits": [msgspec.to_builtins(limit) for limit in made.limits],
            "book": None if written is None else str(written),
            "notes": notes,
            "left_out": [each._asdict() for each in made.left_out],
            "done": not dry_run,
        }
        click.echo(msgspec.json.format(msgspec.json.encode(said), indent=2))
        return
    if made.keys:
        rows = [
            {"node": limit.node, "usd": dollars_text(limit.amount), "per": limit.period}
            for limit in made.limits
        ]
        show(rows, as_json=False, empty="No budgets.")
        click.echo()
    for note in notes:
        click.echo(f"- {note}")
    whose: dict[tuple[str, str], list[str]] = {}
    for node, field, value in made.left_out:
        whose.setdefault((field, value), []).append(node)
    for (field, value), nodes in whose.items():
        rest = len(nodes) - _NODES_SHOWN
        more = f" and {rest} more, which --json lists" if rest > 0 else ""
        click.echo(
            f"- {field} = {value} has no counterpart and is left out, of "
            f"{', '.join(nodes[:_NODES_SHOWN])}{more}."
        )
    verb = "would be" if dry_run else "are"
    if made.keys:
        revoked = sum(record.revoked_unix_ns is not None for record in made.keys)
        click.echo(
            f"{len(made.keys)} keys, {revoked} of them revoked, and {len(made.limits)} limits "
            f"{verb} here."
        )
    if written is not None:
        click.echo(
            f"The price book {'would be' if dry_run else 'is'} {written}; "
            f"`tokenworks prices check` looks it over."
        )


def _objects(path: Path, name: str) -> list[Mapping[str, Any]]:
    """The objects in a file: a list, or the list that an object holds under a name."""
    found = _decoded(path)
    if isinstance(found, dict):
        found = found.get(name, [found])
    if not isinstance(found, list) or not all(
        isinstance(each, dict) and isinstance(each.get("info", {}), dict) for each in found
    ):
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
        raise InvalidRequest(
            f"{str(path)!r} is no JSON: {error}.",
            hint="Save LiteLLM's answer as it is; `curl -f` fails where the proxy refuses.",
        ) from error


def _book(home: Home, path: Path, models: tuple[str, ...], unix_ns: int) -> tuple[str, list[str]]:
    """A price book's text, proved by parsing it, and notes."""
    found = _decoded(path)
    if not isinstance(found, dict):
        raise InvalidRequest(
            f"{str(path)!r} is no price map.",
            hint="It is model_prices_and_context_window.json of LiteLLM's repository.",
        )
    rows = {name: row for name, row in found.items() if isinstance(row, dict)}
    missing: list[str] = []
    if models:
        wanted = dict(_pair(model) for model in models)
    else:
        sold = sorted({pool.model for pool in home.load_settings().pool.values()})
        why = {model: unpriced(rows, model) for model in sold}
        wanted = {model: model for model in sold if why[model] is None}
        missing = [f"{text} The book has no price for it." for text in why.values() if text]
        if not wanted:
            raise InvalidRequest(
                f"{str(path)!r} has no price per token of {', '.join(sold)}, which is what the "
                "factory sells.",
                hint="Name what they are like: --model OURS=THEIRS, by the map's keys.",
            )
    tables, notes = price_tables(rows, wanted)
    notes = missing + notes
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


def _pair(model: str) -> tuple[str, str]:
    """A model's name here, and in the price map.

    >>> _pair("big=gpt-4o"), _pair("gpt-4o")
    (('big', 'gpt-4o'), ('gpt-4o', 'gpt-4o'))
    """
    ours, _, theirs = model.partition("=")
    return ours, theirs or ours


def _write(home: Home, path: Path, text: str) -> None:
    if path.exists():
        raise InvalidRequest(
            f"{str(path)!r} is there already.", hint="Name another file with --book."
        )
    home.make()
    home.write_private(path, text)
