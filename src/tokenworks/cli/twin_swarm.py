"""``tokenworks twin swarm``: many small factories with faults, and every checker on."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from tokenworks.core.errors import InvalidRequest
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.policies import NAMES

SEEDS_MAX: Final = 10_000_000
FILES_MAX: Final = 20
"""Failing seeds of one command that become files; each is shrunk first, which takes its time."""


@click.command()
@click.option("--seeds", default=200, show_default=True, type=click.IntRange(1, SEEDS_MAX))
@click.option("--first", default=0, show_default=True, type=click.IntRange(0), help="First seed.")
@click.option("--policy", "policies", help="Comma-separated; only these dispatch.  [default: all]")
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run the case of a file instead of seeds.",
)
@click.option(
    "--out",
    default=Path(),
    type=click.Path(file_okay=False, path_type=Path),
    help="Where failing seeds become files.  [default: here]",
)
@click.option(
    "--shrink/--no-shrink", default=True, help="Make failing cases small.  [default: yes]"
)
@click.option(
    "--processes", type=click.IntRange(1), help="Side by side.  [default: the machine's cores]"
)
@click.option("--progress/--no-progress", default=None, help="Show progress.  [default: on a TTY]")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def swarm(
    *,
    seeds: int,
    first: int,
    policies: str | None,
    file: Path | None,
    out: Path,
    shrink: bool,
    processes: int | None,
    progress: bool | None,
    as_json: bool,
) -> None:
    """Run many small factories in which everything goes wrong, and check what must hold.

    Each seed draws a factory, a workload, quotas and faults. A seed that breaks an invariant
    becomes a file with all that was drawn, and the exit status is 1.
    """
    from tokenworks.twin.swarm import load, run_case, run_seeds

    begun_ns = time.monotonic_ns()
    failures: list[dict[str, Any]] = []
    sums: Counter[str] = Counter()
    if file is not None:
        found = iter([run_case(load(file))])
        head: dict[str, Any] = {"file": str(file)}
        seeds = 1
    else:
        names = _names(policies)
        count = min(processes or os.cpu_count() or 1, seeds)
        found = run_seeds(first, seeds, names, processes=count)
        head = {"first": first, "seeds": seeds, "policies": names}
    if not as_json:
        what = f"seeds {first} to {first + seeds - 1}" if file is None else f"the case of {file}"
        click.echo(f"Running {what}.")
    shown = sys.stderr.isatty() if progress is None else progress
    with _bar(seeds, shown=shown) as told:
        for each in found:
            sums.update({"runs": 1, "requests": each.requests, "events": each.events})
            sums.update(each.ends)
            if each.violations:
                wanted = file is None and len(failures) < FILES_MAX
                path = _keep(each, names, out, shrink=shrink) if wanted else None
                failures.append(_failure(each, path))
            told()
    head |= {**sums, "elapsed_s": (time.monotonic_ns() - begun_ns) / NS_PER_S}
    if as_json:
        text = msgspec.json.encode(head | {"failures": failures})
        click.echo(msgspec.json.format(text, indent=2))
    else:
        _say(head, failures)
    if failures:
        raise SystemExit(1)


def _names(policies: str | None) -> tuple[str, ...]:
    if policies is None:
        return NAMES
    names = tuple(name.strip() for name in policies.split(",") if name.strip())
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise InvalidRequest(f"--policy is {policies!r}.", hint=f"Take of {', '.join(NAMES)}.")
    return names


def _keep(finding: Any, policies: tuple[str, ...], out: Path, *, shrink: bool) -> Path:
    """Write a failing seed's case to a file, made small."""
    from tokenworks.twin.swarm import save, shrunk
    from tokenworks.twin.swarm_draw import draw

    case = draw(finding.seed, policies)
    if shrink:
        case, finding = shrunk(case, finding)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"swarm-{finding.seed}.json"
    save(path, case, finding)
    return path


def _failure(finding: Any, path: Path | None) -> dict[str, Any]:
    return {
        "seed": finding.seed,
        "policy": finding.policy,
        "file": None if path is None else str(path),
        "violations": msgspec.to_builtins(finding.violations),
    }


def _say(head: dict[str, Any], failures: list[dict[str, Any]]) -> None:
    """Print for people."""
    ends = ("done", "rejected", "failed", "withdrawn", "open")
    told = ", ".join(f"{head[end]:,} {end}" for end in ends if head[end])
    per_run_s = head["elapsed_s"] / head["runs"]
    click.echo(
        f"{head['runs']:,} runs, {head['requests']:,} requests ({told}), {head['events']:,} events "
        f"in {head['elapsed_s']:,.1f} s, {per_run_s:.3f} s a run."
    )
    for failure in failures:
        click.echo(f"\nSeed {failure['seed']} under {failure['policy']}:")
        for each in failure["violations"]:
            numbers = ", ".join(f"{name} {value}" for name, value in each["numbers"].items())
            click.echo(f"  {each['at_ns']:,} ns: {each['invariant']} by {each['what']} ({numbers})")
        if failure["file"] is not None:
            click.echo(f"  Run it again: tokenworks twin swarm --file {failure['file']}")
    if not failures:
        click.echo("No invariant was broken.")


@contextmanager
def _bar(total: int, *, shown: bool) -> Iterator[Any]:
    """What is called after each run."""
    if not shown:
        yield lambda: None
        return
    with click.progressbar(
        length=total, label="Running", file=sys.stderr, show_pos=True, hidden=False
    ) as bar:
        yield lambda: bar.update(1)
