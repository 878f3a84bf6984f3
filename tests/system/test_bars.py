"""Short runs of the bars; ``make bars`` has the long ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bars.factory import running
from bars.kill import run_kills
from bars.load import check_load, run_load

pytestmark = pytest.mark.slow


def test_tokens_at_the_clients_are_tokens_in_the_ledger(
    model_path: Path, tmp_path: Path, run: Callable[[Any], Any]
) -> None:
    with running(tmp_path, "--quiet") as factory:
        load = run(run_load(factory, streams=24, seconds=3, seed=5))
        assert factory.stop() == 0
    figures = check_load(load, tmp_path)
    assert figures["answers"] > 0
    assert figures["output_tokens_clients"] == figures["output_tokens_ledger"]


def test_modelled_tokens_are_in_the_ledger_and_in_the_replay(
    tmp_path: Path, run: Callable[[Any], Any]
) -> None:
    with running(tmp_path, "--quiet", "--twin", "--speedup", "10") as factory:
        load = run(
            run_load(factory, streams=64, seconds=3, seed=5, output_tokens_max=1_000, model="twin")
        )
        assert factory.workers() == []  # no engine runs
        assert factory.stop() == 0
    figures = check_load(load, tmp_path, by_chunk=False)
    assert figures["answers"] > 0
    assert figures["output_tokens_clients"] == figures["output_tokens_ledger"]
    command = [sys.executable, "-m", "tokenworks.cli.main", "--home", str(tmp_path)]
    found = json.loads(subprocess.check_output([*command, "twin", "replay", "--json"]))
    assert found["decisions"]["identical"]
    assert found["recorded"]["all"]["done"] == figures["answers"]
    assert found["recorded"]["all"]["output_tokens"] == figures["output_tokens_ledger"]
    rows = json.loads(subprocess.check_output([*command, "report", "--json"]))["rows"]
    billed = sum(
        row["revenue_nanodollars"] + row["ads_nanodollars"]
        for row in rows
        if row["tier"] != "total"
    )
    # The journal knows when workers began and ended, the ledger when tokens went out: on a machine
    # that stands still between the two, an answer near its promise keeps it in one and not in both.
    assert found["recorded"]["revenue_nanodollars"] == pytest.approx(billed, rel=0.01)


def test_nothing_settled_is_lost_when_the_factory_is_killed(
    model_path: Path, tmp_path: Path
) -> None:
    figures = run_kills(tmp_path, times=2, seed=11, streams=12)
    assert figures["workers_that_died_with_it"] == 4
    assert figures["acknowledged"] <= figures["in_ledger"]
