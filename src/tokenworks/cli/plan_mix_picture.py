"""Mix plans as pictures: costs, crossovers and what the answer hangs on.

They need the extra ``tokenworks[pictures]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokenworks.cli.picture import new_figure, save_figure
from tokenworks.cli.plan_mix_text import PARTS, figure_text
from tokenworks.plan.mix import MixPlan
from tokenworks.plan.mix_inputs import HOURS_PER_YEAR, SECONDS_PER_H, TOKENS_PER_MTOK, Question
from tokenworks.plan.mix_sweeps import Sweep, Swing

SWINGS_MAX: Final = 16
"""Figures drawn; the rest swing less."""

REVENUE_MAX: Final = 6
"""Times the cost: a larger revenue is written, not drawn."""

_EDGE: Final = {"edgecolor": "black", "linewidth": 0.6}
_FILLS: Final = (
    ("white", ""),
    ("#9fc4de", "///"),
    ("#dddddd", "..."),
    ("#d9a68f", "xxx"),
    ("#444444", ""),
    ("#bbbbbb", "\\\\"),
)
"""Colour and hatching by turns: fills differ in black and white too."""


def draw_costs(plan: MixPlan, path: Path) -> None:
    """Draw what 1M tokens cost: from part to part up to the revenue, and the parts by tier.

    Raises:
        ConfigInvalid: matplotlib is missing, or the file cannot be written.
    """
    figure = new_figure(12, 4.6)
    left, right = figure.subplots(1, 2)
    mtok_per_h = sum(each.served_tokens_per_s for each in plan.tiers)
    mtok_per_h *= SECONDS_PER_H / TOKENS_PER_MTOK
    if mtok_per_h:
        _waterfall(left, plan, mtok_per_h)
        _by_tier(right, plan)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_title(plan), x=0.01, ha="left")
    save_figure(figure, path)


def _waterfall(axes: Any, plan: MixPlan, mtok_per_h: float) -> None:
    steps = [(part, getattr(plan.cost_per_h, f"{part}_usd") / mtok_per_h) for part in PARTS]
    top = 0.0
    names = [*PARTS, "cost", "margin", "revenue"]
    for i, (_, usd) in enumerate(steps):
        axes.bar(i, usd, 0.7, bottom=top, color=_FILLS[i][0], hatch=_FILLS[i][1], **_EDGE)
        top += usd
        _figure_above(axes, i, top, usd)
    axes.bar(5, top, 0.7, color="#777777", **_EDGE)
    _figure_above(axes, 5, top, top)
    revenue = plan.revenue_usd_per_h / mtok_per_h
    title = "All tiers together"
    if revenue > REVENUE_MAX * top:
        # To scale, nothing would be seen of the parts.
        names = names[:6]
        title += rf"; revenue \${revenue:,.3g}, margin \${revenue - top:,.3g}"  # no formula
    else:
        axes.bar(6, revenue - top, 0.7, bottom=top, color="white", hatch="--", **_EDGE)
        _figure_above(axes, 6, max(revenue, top), revenue - top)
        axes.bar(7, revenue, 0.7, color="black", **_EDGE)
        _figure_above(axes, 7, revenue, revenue)
    axes.set_ylabel("US dollars for 1M tokens of output")
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_title(title, loc="left")


def _figure_above(axes: Any, x: float, y: float, usd: float) -> None:
    axes.annotate(
        f"${usd:,.3g}",
        (x, y),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )


def _by_tier(axes: Any, plan: MixPlan) -> None:
    served = [each for each in plan.tiers if each.cost_per_mtok]
    names = [each.tier for each in served]
    left = [0.0] * len(served)
    for i, part in enumerate(PARTS):
        widths = [getattr(each.cost_per_mtok, f"{part}_usd") for each in served]
        color, hatch = _FILLS[i]
        axes.barh(names, widths, 0.7, left=left, label=part, color=color, hatch=hatch, **_EDGE)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    for place, width in enumerate(left):
        axes.annotate(
            f"${width:,.3g}",
            (width, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_xlim(0, 1.15 * max(left))
    axes.set_xlabel("US dollars for 1M tokens of output")
    axes.set_title("Cost by tier", loc="left")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=5, fontsize=8)


def draw_sweep(found: Sweep, question: Question, path: Path) -> None:
    """Draw which systems the power goes to, and what the plan earns with and without LPUs.

    Raises:
        ConfigInvalid: matplotlib is missing, or the file cannot be written.
    """
    figure = new_figure(10, 7)
    above, below = figure.subplots(2, 1, sharex=True)
    systems = dict.fromkeys(name for each in found.points for name in each.power_mw)
    xs = [each.x for each in found.points]
    bottom = [0.0] * len(xs)
    for i, name in enumerate(systems):
        tops = [
            b + each.power_mw.get(name, 0.0) for b, each in zip(bottom, found.points, strict=True)
        ]
        color, hatch = _FILLS[i % len(_FILLS)]
        above.fill_between(
            xs,
            bottom,
            tops,
            facecolor=color,
            hatch=hatch,
            label=name,
            edgecolor="black",
            linewidth=0.6,
        )
        bottom = tops
    above.set_ylabel("MW")
    above.set_ylim(0, 1.02 * max(*bottom, 1e-9))
    above.set_title("Power by system in the best mix", loc="left")
    above.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _earned(below, found)
    if found.kind == "interactivity":
        below.set_xlabel(f"interactivity promised to {found.tier}, tokens/s/user, sold alone")
        below.set_xscale("log")
        below.set_xticks([25, 50, 100, 200, 400, 800], minor=False)
        below.set_xticks([], minor=True)
        below.xaxis.set_major_formatter("{x:,.0f}")
        below.set_xlim(xs[0], xs[-1])
    else:
        below.set_xlabel(f"share of {found.tier} in all tokens asked for")
        below.set_xscale("symlog", linthresh=0.01)
        below.set_xticks([0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1])
        below.xaxis.set_major_formatter(lambda x, _: f"{100 * x:g} %")
        below.set_xlim(0, 1)
    for axes in (above, below):
        for low, high in found.crossovers:
            axes.axvline((low + high) / 2, color="black", ls=":", lw=1.2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_crossover(found, question), x=0.01, ha="left")
    save_figure(figure, path)


def _earned(axes: Any, found: Sweep) -> None:
    for name, dashes, color in (
        ("value_usd_per_h", "-", "black"),
        ("value_without_lpus_usd_per_h", "--", "#8c4a2f"),
    ):
        pairs = [(each.x, getattr(each, name)) for each in found.points]
        known = [(x, usd * HOURS_PER_YEAR / 1e6) for x, usd in pairs if usd is not None]
        label = "best mix" if dashes == "-" else "best without LPUs"
        axes.plot(
            [x for x, _ in known], [usd for _, usd in known], ls=dashes, color=color, label=label
        )
    axes.set_ylabel("1M US dollars a year")
    axes.set_title("What it earns", loc="left")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _crossover(found: Sweep, question: Question) -> str:
    where = f"{question.power_mw:g} MW by {question.by}"
    if found.crossovers:
        scale, unit = (100, " %") if found.kind == "share" else (1, " tokens/s")
        places = ", ".join(
            f"{scale * (low + high) / 2:.3g}{unit}" for low, high in found.crossovers
        )
        return f"LPUs come in or go out at {places} (dotted); {where}"
    held = any(each.lpu_power_share for each in found.points)
    return f"LPUs have a share {'throughout' if held else 'nowhere'}; {where}"


def draw_tornado(plan: MixPlan, found: Sequence[Swing], path: Path) -> None:
    """Draw what the plan is worth with one figure lower or higher, widest swing on top.

    Raises:
        ConfigInvalid: matplotlib is missing, or the file cannot be written.
    """
    shown = [each for each in found if each.span_usd_per_h > 0][:SWINGS_MAX]
    figure = new_figure(10, 1.8 + 0.36 * len(shown))
    axes = figure.subplots()
    middle = plan.value_usd_per_h * HOURS_PER_YEAR / 1e6
    for place, each in enumerate(shown):
        for usd, value, (color, hatch), name in (
            (each.low_usd_per_h, each.low, _FILLS[0], "lower"),
            (each.high_usd_per_h, each.high, _FILLS[1], "higher"),
        ):
            if usd is None:
                continue
            end = usd * HOURS_PER_YEAR / 1e6
            label = name if place == 0 else None
            axes.barh(
                place,
                end - middle,
                0.7,
                left=middle,
                color=color,
                hatch=hatch,
                label=label,
                **_EDGE,
            )
            right = end >= middle
            axes.annotate(
                figure_text(value),
                (end, place),
                xytext=(4 if right else -4, 0),
                textcoords="offset points",
                va="center",
                ha="left" if right else "right",
                fontsize=7,
            )
    axes.axvline(middle, color="black", lw=1)
    names = [f"{each.figure} ({each.confidence})" for each in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(f"{plan.objective}, 1M US dollars a year; each bar ends in the figure's value")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="figure is", frameon=False, loc="lower right")
    figure.suptitle(_title(plan), x=0.01, ha="left")
    save_figure(figure, path)


def _title(plan: MixPlan) -> str:
    systems = ", ".join(f"{each.count:,} {each.system}" for each in plan.bought) or "nothing"
    profit = plan.profit_usd_per_h * HOURS_PER_YEAR / 1e6
    return f"{systems}: {plan.power_mw:,.4g} MW, profit ${profit:,.1f}M a year"
