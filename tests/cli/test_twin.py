"""``tokenworks twin``: the same answer twice, as a table, as JSON and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.command_line import data, done, invoke
from tokenworks.cli.twin import parse_policy
from tokenworks.core.errors import ConfigInvalid
from tokenworks.live.home import Home

TRACE = str(Path(__file__).parents[1] / "twin" / "data" / "mooncake_300.jsonl")
RUN = ("twin", "run", "--trace", TRACE, "--workers", "2")
FIELDS = (
    *("requests", "cpu_s", "requests_per_cpu_s", "peak_rss_bytes", "revenue_usd"),
    *("fluid_bound_share", "journal_digest", "usd_per_mtok", "energy_kwh", "tiers"),
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_run_says_what_it_earned(home: Home) -> None:
    said: dict[str, Any] = data(home, *RUN)
    assert all(field in said for field in FIELDS)
    assert said["requests"] == 300
    assert said["workers"] == 2
    assert said["fluid_bound_share"] is None
    assert sum(each["requests"] for each in said["tiers"]) == 300
    assert data(home, *RUN)["journal_digest"] == said["journal_digest"]
    assert data(home, *RUN, "--seed", "2")["journal_digest"] != said["journal_digest"]


def test_the_closed_form_earns_what_single_steps_earn(home: Home) -> None:
    arguments = (*RUN, "--limit", "60")
    run, exact = data(home, *arguments), data(home, *arguments, "--exact")
    assert exact["revenue_nanodollars"] == run["revenue_nanodollars"]


def test_a_run_is_told_to_people(home: Home) -> None:
    said = done(home, *RUN, "--policy", "promises", "--batch-cap", "8", "--speedup", "20")
    assert "300 requests on 2 workers (homogeneous) under promises" in said
    assert "premium" in said
    assert "TTFT p99 ms" in said


def test_generated_work_needs_no_trace(home: Home) -> None:
    said = data(home, "twin", "run", "--rate", "10", "--duration", "20", "--burstiness", "3")
    assert said["requests"] == 200
    assert len(said["tiers"]) == 5


def test_policies_are_set_side_by_side(home: Home) -> None:
    arguments = ("twin", "compare", "--trace", TRACE, "--workers", "2", "--speedup", "30")
    names = ["economic", "strict-priority:16", "round-robin"]
    said = data(home, *arguments, "--policies", ",".join(names))
    assert [each["policy"] for each in said["policies"]] == names
    assert {each["requests"] for each in said["policies"]} == {300}
    table = done(home, *arguments, "--policies", "random,vtc")
    assert "kept ultra" in table
    assert "vtc" in table


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_pictures_are_drawn(home: Home, tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    one, two = tmp_path / f"run.{ending}", tmp_path / f"compare.{ending}"
    done(home, *RUN, "--picture", str(one))
    done(home, "twin", "compare", *RUN[2:], "--policies", "edf,vtc", "--picture", str(two))
    assert one.stat().st_size > 5_000
    assert two.stat().st_size > 5_000
    wrong = invoke(home, *RUN, "--picture", str(tmp_path / "run.wrong"))
    assert "cannot be written" in str(wrong.exception)


def test_progress_is_shown_when_asked_for(home: Home) -> None:
    shown = invoke(home, *RUN, "--progress")
    assert shown.exit_code == 0
    assert "economic" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--policy", "best"), "no policy 'best'"),
        (("--scenario", "lunar"), "no scenario"),
        (("--format", "other"), "no form"),
    ],
)
def test_what_cannot_be_run_is_refused(home: Home, arguments: tuple[str, ...], said: str) -> None:
    result = invoke(home, *RUN, *arguments)
    assert isinstance(result.exception, ConfigInvalid)
    assert said in str(result.exception)


def test_a_policy_may_have_a_batch_cap() -> None:
    assert parse_policy(" edf:8 ").batch_cap == 8
    assert parse_policy("edf").batch_cap is None
    for wrong in ("edf:", "edf:0", "edf:x"):
        with pytest.raises(ConfigInvalid, match="batch cap"):
            parse_policy(wrong)
