"""``tokenworks catalogue``: what hardware, models and prices are known, and from where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from tokenworks.catalogue.records import KINDS, Record
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.cli.listing import Listing
from tokenworks.cli.table import show as show_table
from tokenworks.live.catalogue_files import read_catalogue
from tokenworks.live.home import Home

_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])

_LISTED: Final = {
    "accelerator": ("memory_bytes", "memory_bandwidth_bytes_per_s", "all_in_power_w"),
    "system": ("accelerators", "lpus", "all_in_power_w", "price_usd"),
    "model": ("parameters", "parameters_active", "layers"),
}
"""Numbers that the list shows; of other kinds, the first three."""


def catalogue_option(function: _CommandT) -> _CommandT:
    """``--catalogue FOLDER``, for each command that reads the catalogue."""
    return click.option(
        "--catalogue",
        "folders",
        multiple=True,
        type=click.Path(file_okay=False, path_type=Path),
        help="A folder of your own records; repeated.  [default: catalogue/ of the home]",
    )(function)


def catalogue_at(home: Home, folders: Sequence[Path]) -> Catalogue:
    """What ships and the operator's own: the folders named, or ``catalogue/`` of the home.

    Raises:
        ConfigInvalid: a folder is missing, or a file is wrong.
    """
    own = home.path / "catalogue"
    return read_catalogue(*(folders or ([own] if own.is_dir() else [])))


@click.group(cls=Listing)
def command() -> None:
    """Show what hardware, models, engines, sites and prices are known, and from where.

    Every number has a source, a date and a confidence; `assumed` says that nothing public backs
    it. A new device or model is one file in TOML (docs/planning.md).
    """


@command.command(name="list")
@click.argument("kind", required=False, type=click.Choice(list(KINDS)))
@catalogue_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def list_records(
    home: Home, /, kind: str | None, folders: tuple[Path, ...], *, as_json: bool
) -> None:
    """List all records, or those of a KIND."""
    records = catalogue_at(home, folders).everything()
    chosen = [record for record in records if kind in {None, record.kind}]
    rows = [
        {
            "kind": record.kind,
            "name": record.name,
            "title": record.title,
            "figures": len(record.provenance),
            "assumed": len(record.assumed()),
            "ship": record.ship or None,
        }
        | (_figures(record) if kind else {})
        for record in chosen
    ]
    show_table(rows, as_json=as_json, empty="Nothing of that kind is known.")


@command.command()
@click.argument("name")
@catalogue_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def show(home: Home, /, name: str, folders: tuple[Path, ...], *, as_json: bool) -> None:
    """Show every number of the records of a NAME or alias, and where it is from."""
    found = catalogue_at(home, folders).find(name)
    if as_json:
        said = [_filled(record) for record in found]
        click.echo(msgspec.json.format(msgspec.json.encode(said), indent=2))
        return
    for record in found:
        click.echo(f"{record.title} ({record.kind} {record.name})")
        for words in ("ship", "notes"):
            if text := getattr(record, words):
                click.echo(f"{words}: {text}")
        for field, value in _words(record).items():
            click.echo(f"{field}: {value}")
        show_table(_rows(record), as_json=False, empty="It has no numbers.")
        sources = {(p.source, str(p.date), p.note) for p in record.provenance.values()}
        for source, date, note in sorted(sources):
            click.echo(f"\n{source} ({date})" + (f"\n  {note}" if note else ""))


def _rows(record: Record) -> list[dict[str, Any]]:
    """A row for each number; of a list, one for each of its lines."""
    rows = []
    for field, origin in record.provenance.items():
        value = getattr(record, field)
        lines = value if isinstance(value, tuple) else (value,)
        for line in lines:
            text = _line(line) if isinstance(line, msgspec.Struct) else line
            rows.append({"figure": field, "value": text, "confidence": origin.confidence})
    return rows


def _line(line: msgspec.Struct) -> str:
    return ", ".join(f"{k} {v:g}" if isinstance(v, float) else str(v) for k, v in _set(line))


def _set(line: msgspec.Struct) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in msgspec.structs.asdict(line).items() if v != ""]


def _words(record: Record) -> dict[str, str]:
    """Its own words: those of no number, and of not every record."""
    return {
        field: value
        for field, value in msgspec.structs.asdict(record).items()
        if field not in Record.__struct_fields__
        and field not in record.provenance
        and isinstance(value, str)
        and value
    }


def _figures(record: Record) -> dict[str, Any]:
    numbers = [
        field
        for field in _LISTED.get(record.kind, record.__struct_fields__)
        if field not in Record.__struct_fields__
        and isinstance(getattr(record, field), int | float | None)
    ]
    return {field: getattr(record, field) for field in numbers[:4]}


def _filled(record: Record) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(record)
    return {field: value for field, value in built.items() if value not in (None, "", [])}
