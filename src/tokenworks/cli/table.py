"""Tables for people and for programs: the same rows as aligned text or as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
import msgspec

from tokenworks.core.units import dollars_text

Row = Mapping[str, Any]


def show(rows: Sequence[Row], *, as_json: bool, empty: str) -> None:
    """Print rows.

    Args:
        rows: all with the same keys; ``*_nanodollars`` are shown in dollars, and stay integers in
            JSON.
        as_json: print a JSON list instead.
        empty: what to say when there is none.
    """
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(list(rows)), indent=2))
        return
    if not rows:
        click.echo(empty)
        return
    heads = [_head(name) for name in rows[0]]
    cells = [[_cell(name, value) for name, value in row.items()] for row in rows]
    right = [all(_numeric(row[name]) for row in rows) for name in rows[0]]
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(heads))]
    for line in [heads, ["-" * width for width in widths], *cells]:
        parts = (
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(line, widths, right, strict=True)
        )
        click.echo("  ".join(parts).rstrip())


def _head(name: str) -> str:
    return name.replace("_nanodollars", " $").replace("_", " ")


def _numeric(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    if name.endswith("_nanodollars") and isinstance(value, int):
        return dollars_text(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return str(value)
