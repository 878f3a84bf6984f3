"""A mix plan as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from tokenworks.cli.table import show
from tokenworks.plan.assumptions import Assumption
from tokenworks.plan.mix import MixPlan, TierPlan
from tokenworks.plan.mix_inputs import HOURS_PER_YEAR, Question
from tokenworks.plan.mix_sweeps import Sweep, Swing

PARTS: Final = ("energy", "cooling", "capital", "network", "people")


def say(
    question: Question,
    plan: MixPlan,
    left_out: Mapping[str, str],
) -> None:
    """Print a plan for people."""
    click.echo(headline(plan) + "\n")
    show([_bought(each) for each in plan.bought], as_json=False, empty="Nothing is worth buying.")
    if plan.pools:
        click.echo("\nPools:")
        show([_pool(each) for each in plan.pools], as_json=False, empty="")
    click.echo("\nTiers:")
    show([_tier(each) for each in plan.tiers], as_json=False, empty="")
    click.echo("\nUS dollars, and energy, for 1M tokens of output:")
    show([_cost(each) for each in plan.tiers if each.cost_per_mtok], as_json=False, empty="None.")
    click.echo("\nWhat a change is worth:")
    rows = [
        {"what": each.what, "$/h": _whole(each.usd_per_h), "1M $/year": _year(each.usd_per_h)}
        for each in plan.worth
    ]
    show(rows, as_json=False, empty="")
    click.echo("\n" + "\n".join(_lines(question, plan)))
    if left_out:
        click.echo("\nLeft out:")
        for name, why in sorted(left_out.items()):
            click.echo(f"  {name}: {why}")


def say_assumed(assumed: Sequence[Assumption], rules: Sequence[str]) -> None:
    """Print what the answer rests on: figures of one record and note on one line."""
    figures: dict[tuple[str, str], list[str]] = {}
    for each in assumed:
        record, _, field = each.what.rpartition(" ")
        figures.setdefault((record, each.note), []).append(f"{field} {each.value:.6g}")
    click.echo("\nAssumed, since nothing public says it:")
    for (record, note), fields in figures.items():
        click.echo(f"  {record}: {', '.join(fields)}" + (f" ({note})" if note else ""))
    click.echo("\nAnd by this plan:")
    for rule in rules:
        click.echo(f"  {rule}")


def headline(plan: MixPlan) -> str:
    """The plan in one sentence.

    It says what is bought, the power and the money.
    """
    systems = ", ".join(f"{each.count:,} {each.system}" for each in plan.bought) or "nothing"
    lpus = f", {100 * plan.lpu_power_share:.1f} % of it for LPUs" if plan.lpu_power_share else ""
    return (
        f"Best for {plan.objective}: {systems}; {plan.power_mw:,.4g} of {plan.power_mw_max:,.4g} MW"
        f"{lpus}; profit ${plan.profit_usd_per_h * HOURS_PER_YEAR / 1e6:,.1f}M a year."
    )


def say_what_ifs(plan: MixPlan, found: Sequence[tuple[str, MixPlan | None, str]]) -> None:
    """Print what other figures come to."""
    click.echo("\nWhat if:")
    rows = [_what_if("as planned", plan, plan, "")]
    rows += [_what_if(change, plan, other, error) for change, other, error in found]
    show(rows, as_json=False, empty="")


def say_sweep(found: Sweep) -> None:
    """Print the best plan over a range."""
    what = "promise, sold alone" if found.kind == "interactivity" else "share of all demand"
    click.echo(f"\nBy the {what}, of {found.tier}; systems may come in parts:")
    rows = [
        {
            found.kind: each.x,
            "1M $/year": _year(each.value_usd_per_h),
            "without LPUs": _year(each.value_without_lpus_usd_per_h),
            "LPU share of power": f"{100 * each.lpu_power_share:.1f}%",
            "MW": ", ".join(f"{mw:.4g} {name}" for name, mw in each.power_mw.items()) or "-",
        }
        for each in found.points
    ]
    show(rows, as_json=False, empty="")
    for low, high in found.crossovers:
        click.echo(f"LPUs come in or go out between {low:.4g} and {high:.4g}.")
    if not found.crossovers:
        held = any(each.lpu_power_share for each in found.points)
        click.echo("LPUs have a share at every point." if held else "LPUs have no share anywhere.")


def say_tornado(found: Sequence[Swing]) -> None:
    """Print which figures the answer hangs on."""
    click.echo("\nWith one figure lower or higher, 1M dollars a year; systems may come in parts:")
    rows = [
        {
            "figure": each.figure,
            "confidence": each.confidence,
            "low": figure_text(each.low),
            "high": figure_text(each.high),
            "at low": _year(each.low_usd_per_h),
            "at high": _year(each.high_usd_per_h),
        }
        for each in found
    ]
    show(rows, as_json=False, empty="")


def figure_text(value: float) -> str:
    """A figure with four digits that count, and no exponent where it needs none.

    >>> [figure_text(value) for value in (0.41251, 17_500.0, 2.2e13)]
    ['0.4125', '17,500', '2.2e+13']
    """
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}"


def _year(usd_per_h: float | None) -> float | int | None:
    if usd_per_h is None:
        return None
    musd = usd_per_h * HOURS_PER_YEAR / 1e6
    return round(musd) if abs(musd) >= 1e3 else round(musd, 3) + 0.0


def _whole(value: float) -> float | int:
    return round(value) if abs(value) >= 1e3 else round(value, 2) + 0.0


def _bought(each: Any) -> dict[str, Any]:
    return {
        "system": each.system,
        "count": each.count,
        "accelerators": each.accelerators,
        "MW": round(each.power_mw, 3),
        "1M $": round(each.capital_usd / 1e6, 1),
        "days to install": round(each.install_days, 1),
    }


_MODES: Final = {
    "aggregated": "together",
    "disaggregated": "apart",
    "disaggregated+lpu": "apart, LPUs",
}
"""How prefill and decode are placed, in few letters."""


def _apart(decoding: int, prefilling: int | None) -> str:
    """Workers of a pool; first those that prefill only, where they are told apart.

    >>> _apart(3, None), _apart(3, 1)
    ('3', '1+3')
    """
    return str(decoding) if prefilling is None else f"{prefilling}+{decoding}"


def _pool(each: Any) -> dict[str, Any]:
    return {
        "tiers": "+".join(each.tokens_per_s),
        "systems": each.systems,
        "mode": _MODES[each.mode],
        "model": each.model,
        "GPU systems": each.gpu_systems,
        "LPU systems": round(each.lpu_systems, 1),
        "workers": _apart(each.workers, each.prefill_workers),
        "GPUs each": _apart(each.gpus_per_worker, each.prefill_gpus_per_worker),
        "batch": each.batch_max,
        "tokens/s/user": round(each.interactivity_tokens_per_s),
        "tokens/s": round(sum(each.tokens_per_s.values())),
        "busy": f"{100 * each.utilisation:.0f}%",
        "prefill": f"{100 * each.prefill_share:.0f}%",
    }


def _tier(each: TierPlan) -> dict[str, Any]:
    asked = each.asked_tokens_per_s
    delivered = each.delivered_tokens_per_s
    return {
        "tier": each.tier,
        "asked tokens/s": round(asked),
        "served": f"{100 * each.served_tokens_per_s / asked:.1f}%" if asked else "-",
        "promised": each.promised_tokens_per_s,
        "delivered": None if delivered is None else round(delivered),
        "TTFT s": None if each.ttft_s is None else round(each.ttft_s, 3),
        "revenue 1M $/year": _year(each.revenue_usd_per_h),
        "cost 1M $/year": _year(each.cost_per_h.usd),
    }


def _cost(each: TierPlan) -> dict[str, Any]:
    cost = each.cost_per_mtok
    assert cost is not None, "asked for served tiers only"
    made = each.revenue_usd_per_h / (each.served_tokens_per_s * 3600 / 1e6)
    return {
        "tier": each.tier,
        **{part: round(getattr(cost, f"{part}_usd"), 4) for part in PARTS},
        "cost": round(cost.usd, 4),
        "revenue": round(made, 4),
        "kWh": None if each.kwh_per_mtok is None else round(each.kwh_per_mtok, 4),
    }


def _what_if(change: str, plan: MixPlan, other: MixPlan | None, error: str) -> dict[str, Any]:
    gain = None if other is None else other.value_usd_per_h - plan.value_usd_per_h
    return {
        "change": change,
        "1M $/year": None if other is None else _year(other.value_usd_per_h),
        "more": _year(gain),
        "LPU share": "-" if other is None else f"{100 * other.lpu_power_share:.1f}%",
        "systems": error
        if other is None
        else ", ".join(f"{each.count:,} {each.system}" for each in other.bought) or "nothing",
    }


def _lines(question: Question, plan: MixPlan) -> list[str]:
    budget = "" if plan.capital_usd_max is None else f" of {plan.capital_usd_max / 1e6:,.0f}"
    per_mtok = plan.usd_per_mtok
    crews = f"{plan.install_days:.1f} days of {question.site.install_crews} crews"
    lines = [
        f"Systems, network and facility cost {plan.capital_usd / 1e6:,.0f}{budget} million dollars",
        f"Ready on {plan.ready} (asked for {question.by}); {crews}",
        f"No plan of whole systems is better by more than {100 * plan.gap:.3f} %",
    ]
    if per_mtok is not None:
        lines.insert(0, f"1M tokens of output cost ${per_mtok:,.4f} over all tiers")
        lines.insert(
            1,
            f"{plan.power_mw:,.4g} MW are provisioned, {plan.drawn_mw:,.4g} MW drawn at the mean: "
            f"{plan.kwh_per_mtok:,.4g} kWh for 1M tokens",
        )
    return [f"{line}." for line in lines]
