"""Economic dispatch against baselines that are tuned in their favour, over loads and seeds.

A point is a scenario, a load (1.0 is what the fleet can just carry) and a seed. At the first seed
every setting of a baseline is tried; at the others, those that earned most there; of a baseline
the best setting of each point counts. Strict priority is tuned by the requests that it sends to
one worker, a static split by how many workers each tier has, and by how full these may get.

Run it again to go on where it stopped, or to add settings. ``--tables`` prints what was found, in
Markdown, and draws it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from tokenworks.cli.twin_bound import bound_nanodollars
from tokenworks.cli.twin_workload import Asked, Prepared, prepare
from tokenworks.core.slo import Tier
from tokenworks.twin.driver import run
from tokenworks.twin.report import report
from tokenworks.twin.scenarios import with_policy

SCENARIOS = ("homogeneous", "mixed", "shifting")
LOADS = (0.7, 1.0, 1.3, 2.5)
SEEDS = (1, 2, 3, 4, 5)
CAPS = (2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
SPLITS = (
    "3/2/1/1/1",
    "2/2/2/1/1",
    "2/2/1/2/1",
    "2/1/2/2/1",
    "1/2/2/2/1",
    "1/2/3/1/1",
    "1/1/3/2/1",
    "1/1/2/3/1",
    "1/1/2/2/2",
    "2/1/1/2/2",
    "1/2/1/2/2",
    "2/1/1/1/3",
)
FULL_PERCENT = (60,)
"""Of the batch that a promise allows by the speed curve; 100 leaves no room for prefills, and earns
less at nearly every split."""
BASELINES = {
    "strict-priority": tuple(f"strict-priority:{cap}" for cap in CAPS),
    "static-split": tuple(
        f"static-split:{split}@{percent}" for split in SPLITS for percent in FULL_PERCENT
    ),
}
TUNED = 3
"""Settings of a baseline that are tried at every seed but the first."""


def main() -> int:
    """Run the points that are missing, or show those that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("found", type=Path, help="a file of results, one JSON object a line")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--loads", default=",".join(str(load) for load in LOADS))
    parser.add_argument("--seeds", default=",".join(str(seed) for seed in SEEDS))
    parser.add_argument("--limit", type=int, help="only the first so many rows")
    parser.add_argument("--tables", action="store_true", help="show what was found")
    parser.add_argument("--picture", type=Path, help="and draw it, to .svg or .png")
    options = parser.parse_args()
    if options.tables:
        show(read(options.found), options.picture)
        return 0
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for scenario in options.scenarios.split(","):
        for load in options.loads.split(","):
            for seed in seeds:
                measure(options, scenario, float(load), seed, first=seeds[0])
    return 0


def read(path: Path) -> list[dict[str, Any]]:
    """The points of a file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def measure(
    options: argparse.Namespace, scenario: str, load: float, seed: int, *, first: int
) -> None:
    """Run what is missing of one point, and write it down."""
    there = {(p["trace"], p["scenario"], p["load"], p["seed"]): p for p in read(options.found)}
    key = (options.trace.name, scenario, load, seed)
    tried = dict(BASELINES)
    if seed != first:
        before = there[*key[:3], first]["policies"]
        for name, settings in BASELINES.items():
            best = sorted(settings, key=lambda each: -before[each]["revenue_usd"])
            tried[name] = tuple(best[:TUNED])
    known = there[key]["policies"] if key in there else {}
    wanted = ("economic", *(each for settings in tried.values() for each in settings))
    missing = [policy for policy in wanted if policy not in known]
    if not missing:
        return
    prepared = prepare(asked(options, scenario, load, seed))
    policies, ended_ns = dict(known), 0
    for policy in missing:
        policies[policy], end_ns = outcome(prepared, policy)
        ended_ns = max(ended_ns, end_ns)
        print(f"{scenario} {load} seed {seed} {policy}: {policies[policy]}", file=sys.stderr)
    # Whoever takes longer could have earned more: the bound is that of the longest run.
    bound = bound_nanodollars(prepared.setting.scenario, prepared.requests, ended_ns) or 0
    before_usd = there[key]["fluid_bound_usd"] if known else 0.0
    there[key] = {
        "trace": key[0],
        "scenario": scenario,
        "load": load,
        "seed": seed,
        "requests": len(prepared.requests),
        "speedup": prepared.speedup,
        "fluid_bound_usd": max(before_usd, bound / 1e9),
        "policies": policies,
    }
    lines = "".join(json.dumps(point) + "\n" for point in there.values())
    options.found.write_text(lines, encoding="utf-8")


def asked(options: argparse.Namespace, scenario: str, load: float, seed: int) -> Asked:
    """The workload, as ``tokenworks twin compare`` has it by default."""
    given: dict[str, Any] = dict.fromkeys(Asked.__struct_fields__)
    given |= {
        "scenario": scenario,
        "trace": options.trace,
        "form": "auto",
        "load": load,
        "limit": options.limit,
        "seed": seed,
        "spread": True,
        "agents": False,
        "arrivals": "poisson",
        "cv": 3.0,
        "input_tokens": 2_000,
        "output_tokens": 300,
    }
    return Asked(**given)


def outcome(prepared: Prepared, policy: str) -> tuple[dict[str, Any], int]:
    """What a policy earned, and when its run was over."""
    scenario = with_policy(prepared.setting.scenario, policy)
    result = run(scenario, prepared.requests)
    found = report(scenario, prepared.requests, result)
    kept = {tier: each.promise_kept_share for tier, each in found.tiers.items()}
    return {
        "revenue_usd": found.revenue_nanodollars / 1e9,
        "promise_kept": {tier: share and round(share, 4) for tier, share in kept.items()},
        "cpu_s": round(result.cpu_ns / 1e9, 2),
    }, result.ended_ns


def best_of(point: dict[str, Any], baseline: str) -> tuple[str, float]:
    """The setting of a baseline that earned most, and how much."""
    earned = {
        name: each["revenue_usd"]
        for name, each in point["policies"].items()
        if name.startswith(baseline)
    }
    best = max(earned, key=lambda name: earned[name])
    return best, earned[best]


def show(points: list[dict[str, Any]], picture: Path | None) -> None:
    """Print tables of shares, by trace, and draw them."""
    rows: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for point in points:
        rows.setdefault((point["trace"], point["scenario"], point["load"]), []).append(point)
    print(
        "| trace | scenario | load | seeds | economic, % of the bound | strict priority | static "
        "split | over strict | over split | promise kept, free to ultra |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    shares: dict[tuple[str, str, float], dict[str, list[float]]] = {}
    for key, group in sorted(rows.items()):
        by: dict[str, list[float]] = {"economic": [], "strict-priority": [], "static-split": []}
        settings: dict[str, list[str]] = {"strict-priority": [], "static-split": []}
        for point in group:
            by["economic"].append(point["policies"]["economic"]["revenue_usd"])
            for name, found in settings.items():
                setting, earned = best_of(point, name)
                by[name].append(earned)
                found.append(setting.partition(":")[2])
        bounds = [point["fluid_bound_usd"] for point in group]
        part = {
            name: [100 * each / bound for each, bound in zip(earned, bounds, strict=True)]
            for name, earned in by.items()
        }
        shares[key] = part
        own = sum(by["economic"])
        kept = [
            statistics.mean(p["policies"]["economic"]["promise_kept"][tier] or 0 for p in group)
            for tier in Tier
        ]
        cells = [
            key[0],
            key[1],
            str(key[2]),
            str(len(group)),
            _spread(part["economic"]),
            *(
                f"{statistics.mean(part[name]):.1f} ({statistics.mode(settings[name])})"
                for name in settings
            ),
            *(f"{100 * own / sum(by[name]) - 100:+.0f} %" for name in settings),
            " / ".join(f"{100 * each:.0f}" for each in kept),
        ]
        print("| " + " | ".join(cells) + " |")
    if picture is not None:
        draw(shares, picture)


def _spread(found: list[float]) -> str:
    return f"**{statistics.mean(found):.1f}** ({min(found):.1f} to {max(found):.1f})"


def draw(shares: dict[tuple[str, str, float], dict[str, list[float]]], path: Path) -> None:
    """One panel for each trace and scenario: share of the bound by load, each seed a mark."""
    from tokenworks.cli.picture import new_figure, save_figure

    panels = list(dict.fromkeys((trace, scenario) for trace, scenario, _ in shares))
    columns = len({scenario for _, scenario in panels})
    lines = -(-len(panels) // columns)
    figure = new_figure(4.2 * columns, 3.4 * lines)
    looks = {
        "economic": ("black", "-", "o"),
        "static-split": ("#8c4a2f", "--", "s"),
        "strict-priority": ("#2f6f9f", ":", "^"),
    }
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes, (trace, scenario) in zip(grid.flat, panels, strict=False):
        loads = sorted(load for t, s, load in shares if (t, s) == (trace, scenario))
        for name, (color, dashes, mark) in looks.items():
            found = [shares[trace, scenario, load][name] for load in loads]
            means = [statistics.mean(each) for each in found]
            axes.plot(loads, means, color=color, linestyle=dashes, label=name)
            for load, each in zip(loads, found, strict=True):
                axes.plot([load] * len(each), each, mark, color=color, markersize=3)
        axes.set_title(f"{scenario}, {trace.partition('.')[0]}", loc="left", fontsize=10)
        axes.set_xlabel("load")
        axes.set_ylim(0, 103)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("revenue, % of the fluid bound")
    figure.legend(
        *grid[0][0].get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False
    )
    save_figure(figure, path)


if __name__ == "__main__":
    raise SystemExit(main())
