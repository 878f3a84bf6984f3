"""``tokenworks twin``: the dispatcher against modelled engines, policies compared in money."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from tokenworks.cli.table import show
from tokenworks.core.errors import ConfigInvalid
from tokenworks.dispatch.events import PolicySettings
from tokenworks.dispatch.policies import NAMES
from tokenworks.twin.records import Scenario, TwinRequest
from tokenworks.twin.report import QUANTILES, Report

DURATION_S: Final = 300
RATE_PER_S: Final = 20.0
TAIL_NS: Final = 60 * 1_000_000_000
"""After the last arrival the fluid bound may go on for so long."""


@click.group()
def command() -> None:
    """Run the factory in simulation: the same dispatcher, modelled engines, no waiting.

    A run from the same inputs gives the same answer on any machine; `journal_digest` proves it.
    """


def _workload_options(command: Callable[..., None]) -> Callable[..., None]:
    options = (
        click.option(
            "--trace",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A recorded workload; without it one is generated.",
        ),
        click.option("--format", "form", default="auto", help="Of the trace.  [default: auto]"),
        click.option("--limit", type=click.IntRange(min=1), help="Only so many of its rows."),
        click.option(
            "--rate", default=RATE_PER_S, show_default=True, help="Generated requests per second."
        ),
        click.option(
            "--burstiness", default=1.0, show_default=True, help="Of their gaps: 1 is Poisson."
        ),
        click.option("--duration", default=DURATION_S, show_default=True, help="Seconds of them."),
        click.option(
            "--speedup", default=1.0, show_default=True, help="Arrivals come so much faster."
        ),
        click.option(
            "--load", type=float, help="Or: so much of what the fleet can serve; needs scipy."
        ),
        click.option("--seed", default=1, show_default=True, help="Of tiers, tenants, arrivals."),
        click.option(
            "--scenario", default="homogeneous", show_default=True, help="The factory's fleet."
        ),
        click.option("--workers", type=click.IntRange(1, 4_096), help="So many of its workers."),
        click.option(
            "--prices",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A price book, with promises; without it the twin's own.",
        ),
        click.option("--bound/--no-bound", default=None, help="Compute the fluid bound."),
        click.option("--json", "as_json", is_flag=True, help="As JSON."),
        click.option("--progress/--no-progress", default=None, help="Show how far it is."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@command.command()
@_workload_options
@click.option("--policy", default="economic", show_default=True, help=f"One of {', '.join(NAMES)}.")
@click.option("--batch-cap", type=click.IntRange(min=1), help="Requests on one worker at most.")
@click.option("--exact", is_flag=True, help="Step engines iteration by iteration; slow.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw it.")
def run(
    policy: str,
    batch_cap: int | None,
    picture: Path | None,
    *,
    exact: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Serve a workload under one policy, and say what it earned and which promises were kept."""
    chosen = PolicySettings(name=policy, batch_cap=batch_cap)
    scenario, requests, bound = _prepared(chosen, **given)
    made = _served(scenario, requests, bound, exact=exact, progress=given["progress"])
    if picture is not None:
        from tokenworks.cli.twin_picture import draw_run

        draw_run(scenario, requests, made[1], picture)
        click.echo(f"Drawn to {picture}.", err=True)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(made[0]), indent=2))
    else:
        _say(made[0])


@command.command()
@_workload_options
@click.option(
    "--policies",
    default="economic,promises,strict-priority,prefix-aware",
    show_default=True,
    help="Names, with a comma between; NAME:CAP for a batch cap.",
)
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw it.")
def compare(policies: str, picture: Path | None, *, as_json: bool, **given: Any) -> None:
    """Serve the same workload under several policies, and set them side by side."""
    chosen = [parse_policy(text) for text in policies.split(",")]
    scenario, requests, bound = _prepared(chosen[0], **given)
    reports = []
    for settings in chosen:
        configured = msgspec.structs.replace(scenario.configured, policy=settings)
        each = msgspec.structs.replace(scenario, configured=configured)
        reports.append(_served(each, requests, bound, exact=False, progress=given["progress"])[0])
    rows = [_row(text, each) for text, each in zip(policies.split(","), reports, strict=True)]
    if picture is not None:
        from tokenworks.cli.twin_picture import draw_comparison

        draw_comparison(rows, picture)
        click.echo(f"Drawn to {picture}.", err=True)
    if as_json:
        first = reports[0]
        said = {
            "scenario": first.scenario,
            "workers": first.workers,
            "requests": first.requests,
            "fluid_bound_usd": first.fluid_bound_usd,
            "policies": [
                msgspec.to_builtins(each) | {"policy": row["policy"]}
                for row, each in zip(rows, reports, strict=True)
            ],
        }
        click.echo(msgspec.json.format(msgspec.json.encode(said), indent=2))
        return
    show(rows, as_json=False, empty="Nothing was compared.")


def parse_policy(text: str) -> PolicySettings:
    """A policy as it is written on the command line: a name, or a name and a batch cap.

    Raises:
        ConfigInvalid: the cap is no number above 0.

    >>> parse_policy("strict-priority:24").batch_cap
    24
    """
    name, colon, cap = text.strip().partition(":")
    if colon and not (cap.isascii() and cap.isdigit() and int(cap)):
        raise ConfigInvalid(f"{text!r} has no batch cap.", hint="Write strict-priority:24.")
    return PolicySettings(name=name, batch_cap=int(cap) if colon else None)


def _prepared(
    policy: PolicySettings, **given: Any
) -> tuple[Scenario, list[TwinRequest], int | None]:
    """The factory, its workload, and what no policy can beat on it."""
    from tokenworks.catalogue.price_book import parse_price_book
    from tokenworks.live.home import packaged
    from tokenworks.twin import scenarios, workload
    from tokenworks.twin.traces import read_trace

    path = given["prices"] or packaged("twin.toml")
    book = parse_price_book(path.read_text(encoding="utf-8"))
    fleet = scenarios.fleet_of(given["scenario"])
    scenario = scenarios.scenario(given["scenario"], book, policy=policy, workers=given["workers"])
    if given["trace"] is not None:
        rows = read_trace(given["trace"], given["form"], given["limit"])
    else:
        count = min(given["limit"] or 10_000_000, round(given["rate"] * given["duration"]))
        times = workload.gamma(given["seed"], given["rate"], count, given["burstiness"])
        rows = workload.generated(times, given["seed"], scenarios.BLOCK_TOKENS)

    def requests(speedup: float) -> list[TwinRequest]:
        return workload.requests_of(
            rows,
            model=scenarios.MODEL,
            block_tokens=scenarios.BLOCK_TOKENS,
            mix=fleet.mix,
            seed=given["seed"],
            speedup=speedup,
        )

    wanted = given["bound"] if given["bound"] is not None else given["load"] is not None
    made = requests(given["speedup"])
    if not wanted and given["load"] is None:
        return scenario, made, None
    from tokenworks.twin.bound import run_bound, run_capacity

    if given["load"] is not None:
        capacity = run_capacity(scenario, made, made[-1].at_ns + 1)
        made = requests(given["speedup"] * given["load"] * capacity)
    if not wanted:
        return scenario, made, None
    # Long enough for the last answer to end, whatever the policy.
    horizon_ns = made[-1].at_ns + TAIL_NS
    return scenario, made, round(run_bound(scenario, made, horizon_ns).bound_dollars * 1e9)


def _served(
    scenario: Scenario,
    requests: Sequence[TwinRequest],
    bound: int | None,
    *,
    exact: bool,
    progress: bool | None,
) -> tuple[Report, Any]:
    import resource
    import sys

    from tokenworks.twin.driver import run as run_twin
    from tokenworks.twin.report import report

    shown = sys.stderr.isatty() if progress is None else progress
    name = scenario.configured.policy.name
    with click.progressbar(
        length=len(requests), label=name, file=sys.stderr, hidden=not shown
    ) as bar:
        done = 0

        def tell(ended: int, _: int) -> None:
            nonlocal done
            bar.update(ended - done)
            done = ended

        result = run_twin(scenario, requests, exact=exact, progress=tell if shown else None)
        bar.update(len(requests) - done)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    made = report(scenario, requests, result, peak_rss_bytes=rss, fluid_bound_nanodollars=bound)
    return made, result


def _row(name: str, made: Report) -> dict[str, Any]:
    row: dict[str, Any] = {"policy": name.strip(), "revenue_usd": round(made.revenue_usd, 2)}
    row["share"] = None if made.fluid_bound_share is None else round(made.fluid_bound_share, 4)
    row |= {f"kept_{each.tier.value}": round(each.kept, 3) for each in made.tiers}
    row["usd_per_mtok"] = round(made.usd_per_mtok, 3)
    row["requests_per_cpu_s"] = round(made.requests_per_cpu_s)
    return row


def _say(made: Report) -> None:
    share = (
        ""
        if made.fluid_bound_share is None
        else f", {made.fluid_bound_share:.1%} of the fluid bound"
    )
    click.echo(
        f"{made.requests:,} requests on {made.workers} workers ({made.scenario}) under "
        f"{made.policy}: ${made.revenue_usd:,.2f}{share}; {made.promise_kept:.1%} of the promises "
        f"kept."
    )
    click.echo(
        f"{made.output_tokens_per_s:,.0f} tokens/s, {made.goodput_tokens_per_s:,.0f} of them as "
        f"promised; cost ${made.usd_per_mtok:,.3f} per 1M tokens, {made.energy_kwh:,.1f} kWh; "
        f"workers busy {made.utilisation:.0%}, prefix hits {made.prefix_hit_share:.0%}, "
        f"{made.preemptions:,} preemptions."
    )
    click.echo(
        f"{made.simulated_s:,.0f} s simulated in {made.cpu_s:,.2f} s of CPU "
        f"({made.requests_per_cpu_s:,.0f} requests/s); journal {made.journal_digest}.\n"
    )
    rows = []
    for each in made.tiers:
        row: dict[str, Any] = {
            "tier": each.tier.value,
            "requests": each.requests,
            "kept": f"{each.kept:.1%}",
            "rejected": each.rejected,
            "revenue_nanodollars": each.revenue_nanodollars,
        }
        for name, values in (("TTFT", each.ttft_ms), ("TPOT", each.tpot_ms)):
            row |= {f"{name} p{q} ms": round(v, 1) for q, v in zip(QUANTILES, values, strict=True)}
        rows.append(row)
    show(rows, as_json=False, empty="No requests.")
