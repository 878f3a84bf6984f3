"""A run of the twin as a picture; needs the extra ``tokenworks[pictures]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokenworks.cli.picture import new_figure, save_figure
from tokenworks.core.slo import Tier
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR, NS_PER_MS
from tokenworks.twin.records import RunResult, Scenario, TwinRequest
from tokenworks.twin.report import Report, ttft_ms_by_tier

POINTS_MAX: Final = 1_000
"""Points of one curve; more are thinned out."""

_LINES: Final = {
    Tier.FREE: ("#999999", ":"),
    Tier.MEDIUM: ("#777777", "-."),
    Tier.HIGH: ("#2f6f9f", "--"),
    Tier.PREMIUM: ("#8c4a2f", (0, (5, 1, 1, 1, 1, 1))),
    Tier.ULTRA: ("black", "-"),
}
_FILLS: Final = {
    Tier.FREE: ("white", ""),
    Tier.MEDIUM: ("#dddddd", "..."),
    Tier.HIGH: ("#9fc4de", "///"),
    Tier.PREMIUM: ("#d9a68f", "xxx"),
    Tier.ULTRA: ("#444444", ""),
}


def draw_run(
    scenario: Scenario,
    requests: Sequence[TwinRequest],
    result: RunResult,
    found: Report,
    path: Path,
) -> None:
    """Draw time to first token against the promises, what was delivered, and revenue.

    Readable in black and white: lines differ in dashes and bars in hatching.

    Raises:
        ConfigInvalid: matplotlib is missing, or the file cannot be written.
    """
    figure = new_figure(14, 4.6)
    first, second, third = figure.subplots(1, 3)
    _draw_ttft(first, scenario, ttft_ms_by_tier(requests, result.outcomes))
    _draw_delivered(second, found)
    _draw_revenue(third, found)
    for axes in (first, second, third):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{found.scenario}: {found.requests:,} requests, ${found.revenue_usd:,.2f} in "
        f"{found.duration_s:,.0f} s",
        x=0.01,
        ha="left",
    )
    save_figure(figure, path)


def _draw_ttft(
    axes: Any, scenario: Scenario, times_by_tier: dict[Tier, list[float | None]]
) -> None:
    """Share of requests by time to first token; those that got none keep a curve below 100 %."""
    for tier, times in times_by_tier.items():
        color, dashes = _LINES[tier]
        ranks = range(0, len(times), max(1, len(times) // POINTS_MAX))
        points = [
            (max(time, 1e-3), 100 * (rank + 1) / len(times))
            for rank, time in ((rank, times[rank]) for rank in (*ranks, len(times) - 1))
            if time is not None
        ]
        if points:
            axes.step(
                *zip(*points, strict=True), where="post", color=color, ls=dashes, label=tier.value
            )
        promised_ms = scenario.book.promises[tier].ttft_ns / NS_PER_MS
        axes.plot([promised_ms], [101.5], marker="v", color=color, clip_on=False)
        axes.axvline(promised_ms, color=color, ls=dashes, lw=0.6)
    axes.set_xscale("log")
    axes.set_ylim(0, 101.5)
    axes.set_xlabel("time to first token, ms (▼ promised)")
    axes.set_ylabel("% of requests")
    axes.set_title("TTFT by asked tier", loc="left")
    axes.legend(frameon=False, loc="upper left", fontsize=8)


def _draw_delivered(axes: Any, found: Report) -> None:
    tiers = list(found.tiers)
    left = [0.0] * len(tiers)
    names = [tier.value for tier in tiers]
    bars: list[tuple[str, list[int], str, str]] = [
        (tier.value, [found.tiers[asked].delivered[tier] for asked in tiers], *_FILLS[tier])
        for tier in reversed(list(Tier))
    ]
    unanswered = [found.tiers[asked].requests - found.tiers[asked].done for asked in tiers]
    bars.append(("not answered", unanswered, "white", "\\\\"))
    for name, counts, color, hatch in bars:
        shares = [
            100 * count / found.tiers[asked].requests
            for asked, count in zip(tiers, counts, strict=True)
        ]
        if any(shares):
            style = {"color": color, "hatch": hatch, "edgecolor": "black", "linewidth": 0.6}
            axes.barh(names, shares, 0.7, left=left, label=name, **style)
        left = [before + share for before, share in zip(left, shares, strict=True)]
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of requests")
    axes.set_ylabel("asked tier")
    axes.set_title("Delivered tier", loc="left")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, fontsize=8)


def _draw_revenue(axes: Any, found: Report) -> None:
    times = [at_s / 60 for at_s, _ in found.revenue_course]
    money = [nanodollars / NANODOLLARS_PER_DOLLAR for _, nanodollars in found.revenue_course]
    axes.plot(times, money, color="black")
    axes.fill_between(times, money, color="#dddddd")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes")
    axes.set_ylabel("US dollars")
    axes.set_title("Revenue up to then", loc="left")
