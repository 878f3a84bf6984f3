"""Pictures of runs of the twin; needs the extra ``tokenworks[pictures]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.slo import Tier
from tokenworks.twin.records import RunResult, Scenario, TwinRequest
from tokenworks.twin.report import delivered

LINES: Final = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)))
HATCHES: Final = ("", "///", "...", "xx", "\\\\\\")
GREYS: Final = ("#f2f2f2", "#d0d0d0", "#a8a8a8", "#707070", "#303030")
TIERS: Final = tuple(Tier)


def draw_run(
    scenario: Scenario, requests: Sequence[TwinRequest], result: RunResult, path: Path
) -> None:
    """Draw TTFT by tier against its promise, what was delivered of what was asked, and revenue.

    Raises:
        ConfigInvalid: matplotlib is missing, or the file cannot be written.
    """
    figure = _figure((13, 4.2))
    speed, got, money = figure.subplots(1, 3)
    answers = delivered(scenario, requests, result)
    for rank, tier in enumerate(TIERS):
        times = sorted(
            each.ttft_ns / 1e9
            for request, each in zip(requests, answers, strict=True)
            if request.tier is tier and each.ttft_ns is not None
        )
        if times:
            shares = [100 * (i + 1) / len(times) for i in range(len(times))]
            speed.plot(times, shares, color="black", linestyle=LINES[rank], label=tier.value)
            promised = scenario.book.promises[tier].ttft_ns / 1e9
            at = 100 * sum(each <= promised for each in times) / len(times)
            speed.plot([promised], [at], marker="o", color="black", markersize=4)
    speed.set_title("TTFT in s: per cent of the answers\n(dot: the tier's promise)", loc="left")
    speed.set_xscale("symlog", linthresh=0.1)
    speed.set_ylim(0, 101)
    speed.legend(frameon=False, loc="lower right")
    _draw_delivered(got, requests, [each.tier for each in answers])
    ended = sorted(
        (result.outcomes.finished_ns[i] / 1e9, each.earned_nanodollars / 1e9)
        for i, each in enumerate(answers)
        if each.tier is not None
    )
    total, sums = 0.0, []
    for _, earned in ended:
        total += earned
        sums.append(total)
    money.plot([at for at, _ in ended], sums, color="black")
    money.set_title("Revenue in US dollars, over seconds", loc="left")
    figure.suptitle(
        f"{scenario.name}, {len(scenario.workers)} workers, {scenario.configured.policy.name}: "
        f"${total:,.2f}",
        x=0.01,
        ha="left",
    )
    _save(figure, path)


def draw_comparison(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw per policy its revenue, or its share of the fluid bound where that is known.

    Raises:
        ConfigInvalid: matplotlib is missing, or the file cannot be written.
    """
    figure = _figure((9, 1.4 + 0.5 * len(rows)))
    money, kept = figure.subplots(1, 2, sharey=True)
    names = [row["policy"] for row in rows]
    places = range(len(rows))
    shares = all(row["share"] is not None for row in rows)
    values = [100 * row["share"] if shares else row["revenue_usd"] for row in rows]
    money.barh(places, values, 0.6, color="#b0b0b0", edgecolor="black", linewidth=0.6)
    for place, value in zip(places, values, strict=True):
        money.annotate(
            f"{value:.1f} %" if shares else f"${value:,.2f}",
            (value, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    money.set_xlim(0, 1.25 * max([*values, 0.01]))
    money.set_yticks(places, names)
    money.invert_yaxis()
    money.set_title("Share of the fluid bound" if shares else "Revenue", loc="left")
    for rank, tier in enumerate(TIERS):
        kept.plot(
            [100 * row[f"kept_{tier.value}"] for row in rows],
            list(places),
            marker="ovs^D"[rank],
            linestyle="",
            color="black",
            fillstyle="none" if rank % 2 else "full",
            label=tier.value,
        )
    kept.set_xlim(-3, 103)
    kept.set_title("Promises kept, per cent", loc="left")
    kept.grid(axis="y", linewidth=0.3)
    figure.legend(loc="outside lower left", ncols=5, frameon=False)
    _save(figure, path)


def _draw_delivered(axes: Any, requests: Sequence[TwinRequest], got: Sequence[Tier | None]) -> None:
    below = [0.0] * len(TIERS)
    columns: tuple[Tier | None, ...] = (*reversed(TIERS), None)
    for place, tier in enumerate(columns):
        heights = []
        for asked in TIERS:
            of = [
                each for request, each in zip(requests, got, strict=True) if request.tier is asked
            ]
            heights.append(100 * sum(each is tier for each in of) / len(of) if of else 0.0)
        axes.bar(
            [each.value for each in TIERS],
            heights,
            bottom=below,
            color="white" if tier is None else GREYS[place],
            hatch="xxx" if tier is None else HATCHES[place],
            edgecolor="black",
            linewidth=0.5,
            label="not served" if tier is None else tier.value,
        )
        below = [one + other for one, other in zip(below, heights, strict=True)]
    axes.set_title("Asked tier: per cent delivered as", loc="left")
    axes.legend(frameon=False, fontsize=8, loc="lower left", ncols=2)


def _figure(size: tuple[float, float]) -> Any:
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigInvalid(
            "Pictures need matplotlib.", hint="pip install 'tokenworks[pictures]'"
        ) from error
    return Figure(figsize=size, layout="constrained")


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigInvalid(
            f"The picture {str(path)!r} cannot be written: {error}.", hint="End it in .png or .svg."
        ) from error
