"""The coverage table names the room that falls below its floor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import coverage_floor


def file(hit: int, total: int) -> dict[str, Any]:
    summary = {
        "covered_lines": hit,
        "num_statements": total,
        "covered_branches": 0,
        "num_branches": 0,
    }
    missing = list(range(hit, total))
    return {"summary": summary, "missing_lines": missing, "missing_branches": [[1, -1]]}


REPORT = {
    "files": {
        "src/tokenworks/__init__.py": file(0, 9),
        "src/tokenworks/core/a.py": file(99_999, 100_000),
        "src/tokenworks/live/a.py": file(10, 10),
        "src/tokenworks/live/deep/b.py": file(6, 10),
    }
}


def test_a_room_adds_up_its_files_and_rounds_down() -> None:
    lines, fine = coverage_floor.compare(REPORT, {"core": 99, "live": 80})
    assert fine
    assert [line.split() for line in lines[1:]] == [
        ["core", "99.99%", "99%"],
        ["live", "80.00%", "80%"],
    ]


def test_a_room_below_its_floor_fails_and_its_gaps_are_named() -> None:
    lines, fine = coverage_floor.compare(REPORT, {"core": 100, "live": 80})
    assert not fine
    assert lines[1].endswith("BELOW")
    assert lines[2].strip() == "core/a.py: 99999 1->-1"


def test_a_room_without_a_floor_fails(tmp_path: Path) -> None:
    report, project = tmp_path / "c.json", tmp_path / "pyproject.toml"
    report.write_text(json.dumps(REPORT))
    project.write_text("[tool.tokenworks.coverage_floor]\nlive = 0\ncore = 0\n")
    assert coverage_floor.main([str(report), str(project)]) == 0
    project.write_text("[tool.tokenworks.coverage_floor]\nlive = 0\n")
    assert coverage_floor.main([str(report), str(project)]) == 1
