"""Pictures of plans; needs the extra ``tokenworks[pictures]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokenworks.cli.picture import new_figure, save_figure
from tokenworks.plan.earnings import Earnings
from tokenworks.plan.frontier import Frontier
from tokenworks.plan.keynote import Check, Comparison

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
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{found[0].model}, {found[0].context_tokens:,} tokens of context", loc="left")
    axes.legend(frameon=False)
    save_figure(figure, path)


def _line(axes: Any, each: Frontier, turn: int) -> None:
    color, dashes = _LINES[turn % len(_LINES)]
    axes.plot(
        [way.interactivity_tokens_per_s for way in each.best],
        [way.tokens_per_s_per_mw / 1e6 for way in each.best],
        color=color,
        ls=dashes,
        label=each.systems if each.best else f"{each.systems}: does not fit",
    )


_FILLS: Final = (
    ("white", ""),
    ("#dddddd", "..."),
    ("#9fc4de", "///"),
    ("#d9a68f", "xxx"),
    ("#444444", ""),
)
"""Of the tiers, slowest first."""


def draw_earnings(found: Sequence[tuple[str, Earnings]], path: Path) -> None:
    """Draw revenue per GW-year by tier, a bar for each factory.

    Raises:
        ConfigInvalid: matplotlib is missing, or the file cannot be written.
    """
    figure = new_figure(9, 1.6 + 0.6 * len(found))
    axes = figure.subplots()
    names = [systems for systems, _ in found]
    tiers = list(dict.fromkeys(tier.tier for _, made in found for tier in made.tiers))
    left = [0.0] * len(found)
    for i, name in enumerate(tiers):
        parts = [
            sum(tier.usd_per_year for tier in made.tiers if tier.tier == name) / 1e9
            for _, made in found
        ]
        color, hatch = _FILLS[i % len(_FILLS)]
        style = {"color": color, "hatch": hatch, "edgecolor": "black", "linewidth": 0.6}
        axes.barh(names, parts, 0.6, left=left, label=name, **style)
        left = [before + part for before, part in zip(left, parts, strict=True)]
    for place, total in enumerate(left):
        text = f"${total:,.1f} billion"
        axes.annotate(text, (total, place), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, 1.25 * max(left) or 1)
    axes.set_xlabel("US dollars, billions, a GW-year")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Revenue by tier", loc="left")
    figure.legend(loc="outside lower left", ncols=5, frameon=False)
    save_figure(figure, path)


def draw_comparison(found: Comparison, path: Path) -> None:
    """Draw a chart's points with their reading errors beside what is computed.

    Raises:
        ConfigInvalid: matplotlib is missing, or the file cannot be written.
    """
    figure = new_figure(11, 5)
    first, second = figure.subplots(1, 2, width_ratios=(3, 2))
    names = list(dict.fromkeys(check.systems for check in found.points))
    places_of = list(dict.fromkeys(_place(check) for check in found.points))
    if not any(check.tier for check in found.points):
        places_of.sort(key=float)
    for i, name in enumerate(names):
        checks = [check for check in found.points if check.systems == name]
        _dots(first, checks, [places_of.index(_place(check)) for check in checks], name, i)
    first.set_yscale("log")
    first.set_xticks(range(len(places_of)), places_of)
    first.set_xlim(-0.5, len(places_of) - 0.5)
    first.set_xlabel("tier, or tokens/s/user")
    first.set_ylabel("tokens/s/MW")
    first.set_title("Read off the chart (filled) and computed (hollow)", loc="left")
    first.legend(frameon=False)
    sums = [check for check in (*found.points, *found.multiples, *found.dollars) if check.computed]
    labels = [_label(check) for check in sums]
    errors = [100 * check.error for check in sums]
    places = range(len(sums))
    second.barh(places, errors, 0.6, color="#dddddd", edgecolor="black", linewidth=0.6)
    second.set_yticks(places, labels, fontsize=7)
    second.invert_yaxis()
    second.axvline(0, color="black", lw=0.8)
    for bound in (-20, 20):
        second.axvline(bound, color="black", lw=0.8, ls=":")
    second.set_xlabel("computed over charted, less 1, %")
    for axes in (first, second):
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _label(check: Check) -> str:
    """A short name: of a point, a multiple or dollars."""
    if check.what.startswith("multiple"):
        return f"{check.systems}, x {check.tier or 'revenue'}"
    return f"{check.systems}, {_place(check) or 'dollars'}"


def _place(check: Check) -> str:
    """A point's tier or, of no tier, its speed; empty of dollars.

    >>> at = "tokens/s/MW at 20 tokens/s/user"
    >>> _place(Check(what=at, systems="a", tier="", charted=1.0, computed=None, error=-1.0))
    '20'
    """
    return check.tier or check.what.partition(" at ")[2].partition(" ")[0]


_MARKERS: Final = "osD^v"


def _dots(axes: Any, checks: Sequence[Check], places: Sequence[int], name: str, turn: int) -> None:
    color, marker = _LINES[turn % len(_LINES)][0], _MARKERS[turn % len(_MARKERS)]
    shift = 0.14 * (turn - 1)
    axes.errorbar(
        [place + shift - 0.03 for place in places],
        [check.charted for check in checks],
        yerr=[check.charted * check.reading_error for check in checks],
        fmt=marker,
        color=color,
        capsize=3,
        label=name,
    )
    made = [(p, check.computed) for p, check in zip(places, checks, strict=True) if check.computed]
    axes.plot(
        [place + shift + 0.05 for place, _ in made],
        [value for _, value in made],
        marker,
        mfc="white",
        color=color,
    )
