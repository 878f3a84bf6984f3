"""``tokenworks plan frontier``: throughput per MW against interactivity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from tokenworks.cli.catalogue import catalogue_at, catalogue_option
from tokenworks.cli.picture import PICTURE
from tokenworks.cli.table import show
from tokenworks.core.errors import ConfigInvalid
from tokenworks.live.home import Home
from tokenworks.plan.assumptions import Assumption, used_by
from tokenworks.plan.frontier import Frontier
from tokenworks.plan.frontier import frontier as frontier_of

STEPS: tuple[int, ...] = (10, 20, 35, 50, 75, 100, 150, 200, 300, 400, 600, 800, 1000, 1500, 2000)
"""Speeds that the table shows, in tokens/s/user."""


@click.command()
@click.argument("systems", nargs=-1, required=True)
@click.option("--model", default="deepseek-r1", show_default=True, help="Its name or alias.")
@click.option("--context", default=8192, show_default=True, help="Tokens of each sequence.")
@click.option("--at", type=float, help="One speed, in tokens/s/user, instead of many.")
@click.option("--projection", default="keynote", show_default=True, help="How software does.")
@click.option(
    "--picture",
    type=PICTURE,
    help="Draw it into a .png or .svg file.",
)
@catalogue_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def frontier(
    home: Home,
    /,
    systems: tuple[str, ...],
    model: str,
    context: int,
    at: float | None,
    projection: str,
    picture: Path | None,
    folders: tuple[Path, ...],
    *,
    as_json: bool,
) -> None:
    """Throughput per MW of SYSTEMS at each speed that a user sees.

    A system is a name of the catalogue, with LPUs beside it as in `vr-nvl72+lpx`. An example:
    `tokenworks plan frontier gb200-nvl72 vr-nvl72 --model kimi-k2.5 --context 128000`

    Small batches are fast for each user and waste power; large ones are slow and frugal. Each row
    is the best of all replica sizes, attention splits and batches that fit in memory.
    """
    if at is not None and not 0 < at < math.inf:
        raise ConfigInvalid(
            f"--at is {at!r} tokens/s/user.", hint="A speed is more than 0, such as 50."
        )
    catalogue = catalogue_at(home, folders)
    how = catalogue.projection(projection)
    found = [frontier_of(catalogue, each, model, context, how) for each in systems]
    assumed = used_by(catalogue, [(each, model) for each in systems], how)
    if picture:
        from tokenworks.cli.plan_picture import draw_frontiers

        draw_frontiers(found, picture)
    if as_json:
        said = {"frontiers": found, "assumptions": assumed}
        click.echo(msgspec.json.format(msgspec.json.encode(said), indent=2))
        return
    steps = STEPS if at is None else (at,)
    rows = [row for each in found for row in _rows(each, steps)]
    if at is not None and not rows:
        fastest = max(each.fastest_tokens_per_s for each in found)
        raise ConfigInvalid(
            f"None of {', '.join(systems)} decodes {model} at {at:g} tokens/s/user.",
            hint=f"The fastest does {fastest:,.0f}."
            if fastest
            else "It fits into the memory of none of them.",
        )
    show(rows, as_json=False, empty=f"{model} fits in none of them.")
    show_assumptions(assumed)


def show_assumptions(assumed: Sequence[Assumption], title: str = "What is assumed") -> None:
    """The numbers in a table, and below it how they came about, each note once."""
    click.echo(f"\n{title}:")
    rows = [{"what": each.what, "value": each.value} for each in assumed]
    show(rows, as_json=False, empty="Nothing.")
    for note in dict.fromkeys(each.note for each in assumed):
        click.echo(f"- {note}")


def _rows(found: Frontier, steps: tuple[float, ...] | tuple[int, ...]) -> list[dict[str, Any]]:
    ways = [(step, found.at(step)) for step in steps]
    return [
        {
            "system": found.systems,
            "tokens/s/user": step,
            "tokens/s/MW": round(way.tokens_per_s_per_mw),
            "tokens/s/GPU": round(way.tokens_per_s_per_gpu),
            "GPUs": way.gpus,
            "tensor": way.tensor,
            "batch": way.batch,
            "prefill %": round(100 * way.prefill_share),
            "floor %": round(100 * way.latency_share),
        }
        for step, way in ways
        if way
    ]
