"""Compare each room's coverage with its floor in pyproject.toml.

``python tests/coverage_floor.py COVERAGE_JSON [PYPROJECT]`` prints a table and exits 1 when a room
is below its floor, or has none. Lines and branches count alike.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

PACKAGE: Final = "tokenworks"


def per_room(report: dict[str, Any]) -> dict[str, tuple[int, int, list[str]]]:
    """For each room: what was reached, what there is, and the files with gaps."""
    reached: dict[str, int] = defaultdict(int)
    whole: dict[str, int] = defaultdict(int)
    gaps: dict[str, list[str]] = defaultdict(list)
    for name, file in report["files"].items():
        parts = Path(name).parts
        inside = parts[parts.index(PACKAGE) + 1 :]
        if len(inside) < 2:
            continue  # the package's own few lines belong to no room
        room, summary = inside[0], file["summary"]
        hit = summary["covered_lines"] + summary["covered_branches"]
        total = summary["num_statements"] + summary["num_branches"]
        reached[room] += hit
        whole[room] += total
        if hit < total:
            lines = [str(line) for line in file["missing_lines"]]
            arcs = [f"{a}->{b}" for a, b in file["missing_branches"]]
            gaps[room].append(f"{'/'.join(inside)}: {' '.join((lines + arcs)[:12])}")
    return {room: (reached[room], whole[room], gaps[room]) for room in sorted(whole)}


def compare(report: dict[str, Any], floors: dict[str, int]) -> tuple[list[str], bool]:
    """The lines to print, and whether every room reaches its floor."""
    lines, fine = [f"{'room':<12}{'reached':>10}{'floor':>8}"], True
    rooms = per_room(report)
    for room in sorted({*rooms, *floors}):
        hit, total, gaps = rooms.get(room, (0, 0, []))
        floor = floors.get(room)
        # In hundredths of a per cent, rounded down, so that 99.999 is not called 100.
        share = 10_000 * hit // total if total else 10_000
        enough = floor is not None and share >= 100 * floor
        fine = fine and enough
        text = f"{room:<12}{share // 100:>6}.{share % 100:02d}%"
        text += "    none" if floor is None else f"{floor:>7}%"
        lines.append(text + ("" if enough else "  BELOW"))
        if not enough:
            lines += [f"    {gap}" for gap in gaps]
    return lines, fine


def main(arguments: list[str]) -> int:
    """Print the table and return the exit status."""
    here = Path(__file__).parent.parent / "pyproject.toml"
    project = Path(arguments[1]) if len(arguments) > 1 else here
    floors = tomllib.loads(project.read_text())["tool"][PACKAGE]["coverage_floor"]
    lines, fine = compare(json.loads(Path(arguments[0]).read_text()), floors)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
