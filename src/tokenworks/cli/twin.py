"""``tokenworks twin``: run a factory that is only modelled, and compare policies on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from tokenworks.cli.listing import Listing
from tokenworks.cli.policy_file import (
    Chosen,
    OwnPolicies,
    chosen,
    load_policy,
    policy_file_option,
    policy_option,
)
from tokenworks.cli.table import show
from tokenworks.cli.twin_bound import bound_nanodollars
from tokenworks.cli.twin_replay import replay
from tokenworks.cli.twin_swarm import swarm
from tokenworks.cli.twin_systems import described, say_kinds, say_reports
from tokenworks.cli.twin_workload import Asked, Prepared, asked_of, prepare, workload_options
from tokenworks.core.errors import InvalidRequest
from tokenworks.core.slo import Tier
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.twin.bookkeeper import Bookkeeper
from tokenworks.twin.driver import run as run_twin
from tokenworks.twin.machine_fleet import KindReport, kind_reports
from tokenworks.twin.money_checks import check_money
from tokenworks.twin.records import RunResult, Scenario
from tokenworks.twin.report import Report, bounded, report
from tokenworks.twin.scenarios import decided, policy_name, with_policy
from tokenworks.twin.store import Store

POLICIES_MAX: Final = 32
POLICY_DEFAULT: Final = "economic"


@click.group(cls=Listing)
def command() -> None:
    """Run a modelled factory: real dispatcher, simulated engines, promises and revenue."""


command.add_command(replay)
command.add_command(swarm)


@command.command()
@workload_options
@policy_option
@policy_file_option
@click.option("--exact", is_flag=True, help="Step engines iteration by iteration; slow.")
@click.option(
    "--ledger", is_flag=True, help="Reserve and bill each request in a ledger, and check its sums."
)
@click.option("--progress/--no-progress", default=None, help="Show progress.  [default: on a TTY]")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw TTFT, delivered tiers and revenue to a .png or .svg file.",
)
def run(
    *,
    policy: str | None,
    policy_file: str | None,
    exact: bool,
    ledger: bool,
    progress: bool | None,
    as_json: bool,
    picture: Path | None,
    **given: Any,
) -> None:
    """Run one workload through one factory, under the policy `economic` unless one is named.

    A run follows from its options alone: the same seed gives the same journal, on any machine.
    """
    asked = asked_of(given)
    who = chosen(policy, policy_file)
    prepared = prepare(asked)
    scenario = _decided(prepared.setting.scenario, who)
    books = Bookkeeper(Store()) if ledger else None
    result = _run(
        scenario, prepared, who.own, exact=exact, progress=progress, label="Running", books=books
    )
    # The report comes first: the bound's solver takes more memory than the run.
    found = report(scenario, prepared.requests, result)
    kinds = kind_reports(scenario, prepared.requests, result)
    if books is not None:
        money = check_money(books, scenario, prepared.requests, result.outcomes, result.ended_ns)
        violations = (*found.violations, *money)
        found = msgspec.structs.replace(found, violations=violations)
    found = bounded(found, bound_nanodollars(scenario, prepared.requests, result.ended_ns))
    head = _head(asked, prepared) | {"policy": policy_name(scenario), "exact": exact}
    if as_json:
        by_kind = {"kinds": msgspec.to_builtins(kinds, str_keys=True)}
        _echo_json(head | msgspec.to_builtins(found, str_keys=True) | by_kind)
    else:
        if prepared.kinds:
            say_kinds(prepared.kinds)
        _say_run(head, found, kinds)
    if picture is not None:
        from tokenworks.cli.twin_picture import draw_run

        draw_run(scenario, prepared.requests, result, found, picture)
        click.echo(f"Drawn to {picture}.", err=True)
    if found.violations:
        raise SystemExit(1)


@command.command()
@workload_options
@click.option(
    "--policies",
    default="economic,promises,strict-priority,prefix-aware,round-robin",
    show_default=True,
    help="Comma-separated, each as for run.",
)
@policy_file_option
@click.option("--exact", is_flag=True, help="Step engines iteration by iteration; slow.")
@click.option("--progress/--no-progress", default=None, help="Show progress.  [default: on a TTY]")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def compare(
    *,
    policies: str,
    policy_file: str | None,
    exact: bool,
    progress: bool | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Run one workload under several policies, and under one of your own.

    The best revenue comes first. The share of the fluid bound is of the most that any policy could
    have earned in the time of the longest run.
    """
    asked = asked_of(given)
    own = load_policy(policy_file)[1] if policy_file else {}
    names = [name.strip() for name in policies.split(",") if name.strip()]
    names += [name for name in own if name not in names]
    if not 1 <= len(set(names)) == len(names) <= POLICIES_MAX:
        raise InvalidRequest(
            f"--policies is {policies!r}.", hint=f"Name 1 to {POLICIES_MAX}, each once."
        )
    prepared = prepare(asked)
    runs: list[tuple[str, Report]] = []
    by_kind: dict[str, tuple[KindReport, ...]] = {}
    ended_ns = 0
    for name in names:
        scenario = with_policy(prepared.setting.scenario, name, own)
        result = _run(scenario, prepared, own, exact=exact, progress=progress, label=name)
        ended_ns = max(ended_ns, result.ended_ns)
        runs.append((name, report(scenario, prepared.requests, result)))
        by_kind[name] = kind_reports(scenario, prepared.requests, result)
    bound = bound_nanodollars(prepared.setting.scenario, prepared.requests, ended_ns)
    found = [(name, bounded(each, bound)) for name, each in runs]
    found.sort(key=lambda each: -each[1].revenue_nanodollars)
    head = _head(asked, prepared) | {
        "exact": exact,
        "requests": len(prepared.requests),
        "fluid_bound_usd": None if bound is None else bound / NANODOLLARS_PER_DOLLAR,
    }
    if as_json:
        rows = [
            {"policy": name, "promise_kept": _kept(each)}
            | msgspec.to_builtins(each, str_keys=True)
            | {"kinds": msgspec.to_builtins(by_kind[name], str_keys=True)}
            for name, each in found
        ]
        _echo_json(head | {"policies": rows})
    else:
        if prepared.kinds:
            say_kinds(prepared.kinds)
        _say_head(head)
        show([_compared(name, each) for name, each in found], as_json=False, empty="")
        if bound is not None:
            click.echo(f"\nNo policy could earn more than ${bound / NANODOLLARS_PER_DOLLAR:,.2f}.")
        for name, each in found:
            if each.violations:
                click.echo(f"{name}: {_checked(each)}")
    if any(each.violations for _, each in found):
        raise SystemExit(1)


def _decided(scenario: Scenario, who: Chosen) -> Scenario:
    """A scenario under the policy that was chosen."""
    if who.settings is None:
        return with_policy(scenario, POLICY_DEFAULT)
    return decided(scenario, who.settings)


def _run(
    scenario: Scenario,
    prepared: Prepared,
    own: OwnPolicies,
    *,
    exact: bool,
    progress: bool | None,
    label: str,
    books: Bookkeeper | None = None,
) -> RunResult:
    shown = sys.stderr.isatty() if progress is None else progress
    with _bar(len(prepared.requests), label, shown=shown) as told:
        return run_twin(
            scenario,
            prepared.requests,
            exact=exact,
            progress=told,
            dispatcher=Dispatcher(own),
            bookkeeper=books,
        )


@contextmanager
def _bar(total: int, label: str, *, shown: bool) -> Iterator[Any]:
    """What the driver tells its progress to; None where nobody looks."""
    if not shown:
        yield None
        return
    with click.progressbar(
        length=total, label=label, file=sys.stderr, show_pos=True, hidden=False
    ) as bar:
        yield lambda ended, _: bar.update(ended - bar.pos)
        bar.update(total - bar.pos)


def _head(asked: Asked, prepared: Prepared) -> dict[str, Any]:
    return {
        "scenario": prepared.setting.scenario.name,
        "source": prepared.source,
        "seed": asked.seed,
        "speedup": prepared.speedup,
        "load": asked.load,
    } | ({"machines": described(prepared.kinds)} if prepared.kinds else {})


def _echo_json(data: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(data), indent=2))


def _say_head(head: dict[str, Any]) -> None:
    fast = "" if head["speedup"] == 1 else f", {head['speedup']:.4g} times as fast"
    load = "" if head["load"] is None else f" (load {head['load']:g})"
    click.echo(f"Scenario {head['scenario']}, {head['source']}{fast}{load}, seed {head['seed']}.\n")


def _say_run(head: dict[str, Any], found: Report, kinds: tuple[KindReport, ...]) -> None:
    """Print for people."""
    _say_head(head)
    show(
        [_tier_row(tier.value, found.tiers[tier]) for tier in found.tiers], as_json=False, empty=""
    )
    click.echo("\nDelivered, by the tier that was asked for:")
    show(
        [
            {"asked": tier.value, "not answered": sums.requests - sums.done}
            | {each.value: count for each, count in sums.delivered.items()}
            for tier, sums in found.tiers.items()
        ],
        as_json=False,
        empty="",
    )
    if len(kinds) > 1:
        say_reports(kinds)
    click.echo("\n" + "\n".join(_lines(found)))


def _tier_row(name: str, sums: Any) -> dict[str, Any]:
    speeds = sums.speeds
    return {
        "tier": name,
        "requests": sums.requests,
        "rejected": sums.rejected,
        "kept": _percent(sums.promise_kept_share),
        "TTFT_ms_p50": _ms(speeds.ttft_ms.p50),
        "TTFT_ms_p99": _ms(speeds.ttft_ms.p99),
        "TPOT_ms_p50": _ms(speeds.tpot_ms.p50),
        "TPOT_ms_p99": _ms(speeds.tpot_ms.p99),
        "ITL_max_ms_p99": _ms(speeds.itl_max_ms.p99),
        "goodput tokens/s": round(sums.goodput_tokens_per_s),
        "revenue $": round(sums.revenue_nanodollars / NANODOLLARS_PER_DOLLAR, 2),
    }


def _lines(found: Report) -> list[str]:
    used = [worker.utilisation for worker in found.workers]
    wait_ms = max(found.wait_ms_max_by_tenant.values(), default=0.0)
    revenue = f"Revenue ${found.revenue_usd:,.2f} in {found.duration_s:,.0f} s"
    if found.fluid_bound_share is not None:
        revenue += f", {_percent(found.fluid_bound_share)} of what any policy could earn"
    cost = f"Cost ${found.cost_nanodollars / NANODOLLARS_PER_DOLLAR:,.2f}, "
    cost += f"{found.energy_kwh:,.2f} kWh; by 1M output tokens cost "
    cost += f"${found.cost_usd_per_mtok or 0:,.3f} and revenue "
    cost += f"${found.revenue_usd_per_mtok or 0:,.3f}"
    busy = f"Workers busy {_percent(min(used))} to {_percent(max(used))}; prefix hits "
    busy += f"{_percent(found.prefix_hit_share)}; {found.preemptions:,} preemptions; "
    busy += f"longest wait {wait_ms / 1_000:,.2f} s"
    journal = (
        f"Journal {found.journal_digest}: {found.events:,} events, {found.commands:,} commands"
    )
    speed = f"Simulated in {found.cpu_s:,.2f} CPU-s, {found.requests_per_cpu_s or 0:,.0f} requests "
    speed += f"per CPU-s, {found.peak_rss_bytes / 2**20:,.0f} MiB"
    return [f"{line}." for line in (revenue, cost, busy, _checked(found), journal, speed)]


def _checked(found: Report) -> str:
    """Whether what must hold in every run has held."""
    if not found.violations:
        most = _percent(found.queued_bound_share_max)
        return (
            "Every request ended once, and none was queued for longer than its tier's patience "
            f"(at most {most} of it)"
        )
    first = found.violations[0]
    numbers = ", ".join(f"{name} {value}" for name, value in first.numbers.items())
    return (
        f"BROKEN: {len(found.violations)} violations, the first of {first.invariant} by "
        f"{first.what} at {first.at_ns:,} ns ({numbers})"
    )


def _kept(found: Report) -> dict[str, float | None]:
    return {
        tier.value: found.tiers[tier].promise_kept_share if tier in found.tiers else None
        for tier in Tier
    }


def _compared(name: str, found: Report) -> dict[str, Any]:
    return {
        "policy": name,
        "revenue_nanodollars": found.revenue_nanodollars,
        "of bound": _percent(found.fluid_bound_share),
        "kept": _percent(found.all.promise_kept_share),
        **{f"kept {tier}": _percent(share) for tier, share in _kept(found).items()},
        "rejected": found.all.rejected,
        "goodput tokens/s": round(found.all.goodput_tokens_per_s),
        "TTFT_ms_p99": _ms(found.all.speeds.ttft_ms.p99),
    }


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _ms(value: float | None) -> float | None:
    return None if value is None else round(value, 1 if value < 100 else 0)
