"""The report as a picture, and what all pictures share; needs ``tokenworks[pictures]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR

ROWS_MAX: Final = 24
"""Groups drawn; the rest of a long report is left to the table."""
NAME_LEN_MAX: Final = 28
_BAR: Final = 0.36
_EDGE: Final = {"edgecolor": "black", "linewidth": 0.6}


class _PictureFile(click.Path):
    """Where a picture is to go; what cannot be drawn into is refused before anything is found."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(str(super().convert(value, param, ctx)))
        if path.suffix not in {".png", ".svg"}:
            self.fail(f"{str(path)!r} ends neither in .png nor in .svg.", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"there is no folder {str(path.parent)!r}.", param, ctx)
        return path


PICTURE: Final = _PictureFile()


def draw_report(rows: list[dict[str, Any]], by: Sequence[str], path: Path) -> None:
    """Draw per group what was earned beside what it cost, and the tokens made.

    Readable in black and white: the bars differ in hatching, and each ends in its figure.

    Raises:
        ConfigInvalid: matplotlib is missing, or the file cannot be written.
    """
    total = rows[-1]
    shown = rows[:-1][:ROWS_MAX]
    figure = new_figure(10, 1.9 + 0.5 * len(shown))
    money, tokens = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = range(len(shown))
    _draw_money(money, shown)
    made = [row["output"] for row in shown]
    tokens.barh(places, made, 2 * _BAR, color="#b0b0b0", **_EDGE)
    for place, value in zip(places, made, strict=True):
        _label(tokens, value, place, f"{value:,}" if value else "")
    tokens.set_title("Output tokens", loc="left")
    money.set_yticks(places, [_name(_joined(row, by)) for row in shown])
    money.invert_yaxis()
    money.set_title(f"US dollars by {', '.join(by)}", loc="left")
    for axes in (money, tokens):
        axes.set_xlim(0, 1.2 * axes.dataLim.x1 or 1)  # room for the figure behind the longest bar
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(left=False, bottom=False, labelbottom=False)
    figure.suptitle(_headline(total, left_out=len(rows) - 1 - len(shown)), x=0.01, ha="left")
    figure.legend(loc="outside lower left", ncols=3, frameon=False)
    save_figure(figure, path)


def new_figure(width_inches: float, height_inches: float) -> Any:
    """A matplotlib figure that needs no screen.

    Raises:
        ConfigInvalid: matplotlib is missing.
    """
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigInvalid(
            "Pictures need matplotlib.", hint="pip install 'tokenworks[pictures]'"
        ) from error
    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure to a .png or .svg file.

    Raises:
        ConfigInvalid: it cannot be written.
    """
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigInvalid(
            f"The picture {str(path)!r} cannot be written: {error}.", hint="End it in .png or .svg."
        ) from error


def _draw_money(axes: Any, rows: list[dict[str, Any]]) -> None:
    revenue, ads, cost = (
        [row[field] / NANODOLLARS_PER_DOLLAR for row in rows]
        for field in ("revenue_nanodollars", "ads_nanodollars", "cost_nanodollars")
    )
    above = [place - _BAR / 2 for place in range(len(rows))]
    below = [place + _BAR / 2 for place in range(len(rows))]
    axes.barh(above, revenue, _BAR, label="revenue", color="#2f6f9f", **_EDGE)
    axes.barh(
        above, ads, _BAR, left=revenue, label="ad income", color="#8fbf8f", hatch="...", **_EDGE
    )
    axes.barh(below, cost, _BAR, label="cost", color="#e4e4e4", hatch="///", **_EDGE)
    for i in range(len(rows)):
        _label(axes, revenue[i] + ads[i], above[i], _dollars(revenue[i] + ads[i]))
        _label(axes, cost[i], below[i], _dollars(cost[i]))


def _label(axes: Any, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)


def _headline(total: dict[str, Any], *, left_out: int) -> str:
    margin = _dollars(total["margin_nanodollars"] / NANODOLLARS_PER_DOLLAR) or "$0"
    words = f"{total['requests']:,} answers, {total['output']:,} output tokens, margin {margin}"
    return f"{words}; {left_out} more groups are not drawn" if left_out else words


def _dollars(amount: float) -> str:
    """A figure for a label: cents from a dollar on, else three digits that count.

    >>> [_dollars(amount) for amount in (0, 1234.5, 0.01234, -0.5)]
    ['', '$1,234.50', '$0.0123', '-$0.5']
    """
    if not amount:
        return ""
    sign = "-" if amount < 0 else ""
    size = abs(amount)
    return f"{sign}${size:,.2f}" if size >= 1 else f"{sign}${size:.3g}"


def _joined(row: dict[str, Any], by: Sequence[str]) -> str:
    return ", ".join("-" if row[each] is None else str(row[each]) for each in by)


def _name(name: str) -> str:
    """A group's name, cut in its middle where it is long.

    >>> _name("a" * 20 + "b" * 20)
    'aaaaaaaaaaaaa…bbbbbbbbbbbbbb'
    """
    if len(name) <= NAME_LEN_MAX:
        return name
    half = NAME_LEN_MAX // 2
    return f"{name[: half - 1]}…{name[-half:]}"
