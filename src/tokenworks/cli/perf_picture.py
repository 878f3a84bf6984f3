"""Error bars as a picture: predictions against measurements; needs ``tokenworks[pictures]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokenworks.cli.picture import new_figure, save_figure
from tokenworks.perf.spread import Spread, SpreadPoint

TITLES: Final = {"tpot": "time per output token", "ttft": "time to first token"}
_MODES: Final = {
    "agg": ("o", {"color": "#777777", "ms": 2.5}),
    "disagg": ("^", {"mec": "#8c4a2f", "mfc": "none", "ms": 4.0, "mew": 0.6}),
}
"""Filled and hollow, round and pointed: they differ in black and white too."""
RATIO_MAX: Final = 4.0
"""Measured over predicted that is drawn, and its inverse; bars end there."""


def draw_spreads(
    points: Sequence[SpreadPoint], kinds: Sequence[Spread], how: str, path: Path
) -> None:
    """Draw each measurement against its prediction, and by kind how far off they are.

    Below, a hatched bar is the stated interval for eight measurements in ten, and the line on it is
    where eight in ten really lie, with a tick at the median.

    Raises:
        ConfigInvalid: matplotlib is missing, or the file cannot be written.
    """
    names = list(dict.fromkeys((kind.by, kind.name) for kind in kinds))
    figure = new_figure(11, 6.2 + 0.3 * len(names))
    axes = figure.subplots(2, 2, height_ratios=(4.6, 1.2 + 0.3 * len(names)))
    for column, target in enumerate(TITLES):
        _scatter(axes[0][column], [p for p in points if p.target == target], target)
        _bars(axes[1][column], [k for k in kinds if k.target == target], names)
    axes[1][1].set_yticks([])
    figure.suptitle(f"Predictions against {len(points):,} measurements, {how}", x=0.01, ha="left")
    handles, labels = axes[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False)
    save_figure(figure, path)


def _scatter(axes: Any, points: Sequence[SpreadPoint], target: str) -> None:
    axes.set_title(f"{TITLES[target]}; dotted: half and twice", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if not points:
        return
    for mode, (marker, style) in _MODES.items():
        own = [point for point in points if point.mode == mode]
        measured = [point.measured_ms for point in own]
        predicted = [point.predicted_ms for point in own]
        axes.plot(measured, predicted, marker, label=f"{mode}, {len(own):,} rows", **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ends = [min(p.measured_ms for p in points), max(p.measured_ms for p in points)]
    for factor, dashes in ((1.0, "-"), (0.5, ":"), (2.0, ":")):
        axes.plot(ends, [factor * end for end in ends], color="black", lw=0.9, ls=dashes)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("measured, ms")
    axes.set_ylabel("predicted, ms")
    axes.legend(frameon=False, loc="upper left")


def _bars(axes: Any, kinds: Sequence[Spread], names: Sequence[tuple[str, str]]) -> None:
    if not kinds:
        axes.set_axis_off()
        return
    places = [names.index((kind.by, kind.name)) for kind in kinds]
    lows = [_drawn(kind.stated_low) for kind in kinds]
    widths = [_drawn(kind.stated_high) - low for kind, low in zip(kinds, lows, strict=True)]
    style = {"color": "#dddddd", "hatch": "///", "edgecolor": "black", "linewidth": 0.6}
    axes.barh(places, widths, 0.7, left=lows, label="stated for 8 in 10", **style)
    for place, kind in zip(places, kinds, strict=True):
        label = "8 in 10 measured" if place == places[0] else None
        ends = [_drawn(kind.low), _drawn(kind.high)]
        axes.plot(ends, [place, place], color="black", lw=2.2, label=label)
        middle = "median measured" if place == places[0] else None
        axes.plot(_drawn(kind.median), place, "D", color="black", mfc="white", ms=5, label=middle)
        axes.annotate(
            f"{100 * kind.coverage80:.0f} % inside",
            (RATIO_MAX, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.axvline(1, color="black", lw=0.8)
    axes.set_xscale("log")
    axes.set_xlim(1 / RATIO_MAX, RATIO_MAX)
    axes.set_xticks([0.25, 0.5, 1, 2, 4], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(names)), [f"{by} {name}" for by, name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("measured / predicted")
    axes.spines[["top", "right"]].set_visible(False)


def _drawn(ratio: float) -> float:
    return min(max(ratio, 1 / RATIO_MAX), RATIO_MAX)
