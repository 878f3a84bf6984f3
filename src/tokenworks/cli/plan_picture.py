"""Pictures of plans; needs the extra ``tokenworks[pictures]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokenworks.cli.picture import new_figure, save_figure
from tokenworks.plan.frontier import Frontier

_LINES: Final = (
    ("black", "-"),
    ("#2f6f9f", "--"),
    ("#8c4a2f", "-."),
    ("#777777", ":"),
    ("black", (0, (5, 1, 1, 1, 1, 1))),
    ("#2f6f9f", (0, (1, 1))),
)
"""Colour and dashes by turns: lines differ in black and white too."""


def draw_frontiers(found: Sequence[Frontier], path: Path) -> None:
    """Draw throughput per MW against interactivity, a line for each system.

    Raises:
        ConfigInvalid: matplotlib is missing, or the file cannot be written.
    """
    figure = new_figure(8, 5)
    axes = figure.subplots()
    for i, each in enumerate(found):
        _line(axes, each, i)
    axes.set_xlabel("interactivity, tokens/s/user")
    axes.set_ylabel("throughput, 1M tokens/s/MW")
    axes.set_ylim(bottom=0)
    axes.set_xscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{found[0].model}, {found[0].context_tokens:,} tokens of context", loc="left")
    axes.legend(frameon=False)
    save_figure(figure, path)


def _line(axes: Any, each: Frontier, turn: int) -> None:
    color, dashes = _LINES[turn % len(_LINES)]
    axes.step(
        [way.interactivity_tokens_per_s for way in each.best],
        [way.tokens_per_s_per_mw / 1e6 for way in each.best],
        where="pre",
        color=color,
        ls=dashes,
        label=each.systems,
    )
