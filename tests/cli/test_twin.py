"""The twin on the command line: workloads by option, tables, JSON, pictures, comparisons."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from tests.cli.command_line import data, done, invoke
from tests.twin.planted_bugs import kept_context, late_deadline
from tokenworks.cli import twin, twin_bound
from tokenworks.cli.twin_bound import bound_nanodollars, capacity
from tokenworks.cli.twin_workload import parse_mix
from tokenworks.core.errors import ConfigInvalid, InvalidRequest
from tokenworks.core.slo import Tier
from tokenworks.live.home import Home
from tokenworks.plan import fluid_bound
from tokenworks.twin.bookkeeper import Bookkeeper
from tokenworks.twin.records import Scenario, TwinRequest
from tokenworks.twin.scenarios import build
from tokenworks.twin.traces import read_mooncake
from tokenworks.twin.workload import Demand as Asking
from tokenworks.twin.workload import requests_of, steady

DATA = Path(__file__).parent.parent / "twin" / "data"
MOONCAKE = str(DATA / "mooncake_conversation_300.jsonl")
SMALL = ("--rate", "20", "--duration", "5", "--workers", "2")
HAS_SCIPY = importlib.util.find_spec("scipy") is not None


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No linear programme, unless a test asks for one."""
    monkeypatch.setattr(twin_bound, "_has_scipy", lambda: False)


def test_a_run_says_what_programs_need(home: Home) -> None:
    found = data(home, "twin", "run", *SMALL, "--seed", "3")
    assert found["requests"] == found["all"]["requests"] > 50
    assert found["seed"] == 3
    assert found["policy"] is None or isinstance(found["policy"], str)
    assert found["source"] == "generated"
    assert isinstance(found["revenue_usd"], float)
    assert found["revenue_usd"] == found["revenue_nanodollars"] / 10**9
    assert found["fluid_bound_share"] is None
    assert found["cpu_s"] > 0
    assert found["requests_per_cpu_s"] > 0
    assert found["peak_rss_bytes"] > 10**7
    assert len(found["journal_digest"]) == 32
    assert len(found["workers"]) == 2
    assert set(found["tiers"]) <= {tier.value for tier in Tier}
    assert not home.path.exists()


def test_a_run_follows_from_its_options(home: Home) -> None:
    digests = [
        data(home, "twin", "run", *SMALL, *words)["journal_digest"]
        for words in ((), (), ("--exact",), ("--seed", "2"))
    ]
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_a_run_is_shown_to_people(home: Home) -> None:
    result = invoke(home, "twin", "run", *SMALL, "--progress")
    assert result.exit_code == 0
    assert "Running" in result.stderr
    text = result.stdout
    assert text.startswith("Scenario homogeneous, generated, seed 1.")
    for words in ("TTFT ms p99", "Delivered, by the tier", "Revenue $", "kWh", "Journal"):
        assert words in text
    assert "of what any policy" not in text
    assert "2.5 times as fast" in done(home, "twin", "run", *SMALL, "--speedup", "2.5")


@pytest.mark.parametrize(
    ("words", "requests"),
    [
        (["--trace", MOONCAKE], 300),
        (["--trace", MOONCAKE, "--limit", "20", "--no-spread"], 20),
        (["--trace", str(DATA / "azure_code_40.csv")], 40),
        (["--trace", str(DATA / "agentic_6.jsonl"), "--format", "agentic"], 6),
        (["--trace", str(DATA / "vidur_lengths_20.csv"), "--limit", "9"], 9),
        (["--trace", str(DATA / "servegen"), "--limit", "30", "--dataset", "deepseek-r1"], 30),
        (["--agents", "--rate", "1", "--duration", "20", "--limit", "40"], 40),
        (["--arrivals", "bursty", "--cv", "2", "--limit", "15"], 15),
    ],
)
def test_any_workload_can_be_run(home: Home, words: list[str], requests: int) -> None:
    found = data(home, "twin", "run", *words)
    assert found["requests"] == requests
    assert found["all"]["done"] == requests
    assert found["source"] != ""


def test_tiers_and_tenants_can_be_named(home: Home) -> None:
    found = data(home, "twin", "run", *SMALL, "--mix", "ultra=1, high=1", "--tenants", "1")
    assert set(found["tiers"]) == {"ultra", "high"}
    assert list(found["wait_ms_max_by_tenant"]) == ["tenant-1"]
    assert parse_mix("free=1").points == steady({Tier.FREE: 1}).points


def test_a_measured_engine_is_run(home: Home) -> None:
    words = ("twin", "run", "--rate", "2", "--duration", "5", "--engine")
    found = data(home, *words, "h200-70b-fp8-trtllm-tp4")
    assert found["scenario"] == "h200-70b-fp8-trtllm-tp4"
    assert len(found["workers"]) == 4
    assert found["cost_nanodollars"] > 0
    assert len(data(home, *words, "b200-70b-fp4-trtllm-tp1", "--workers", "2")["workers"]) == 2


def test_an_operators_factory_is_run(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\ntenants = 1\n[worker.a]\nkind = "fast"\ncount = 3\n')
    words = ("twin", "run", "--rate", "5", "--duration", "5", "--scenario", str(path))
    found = data(home, *words)
    assert (found["scenario"], len(found["workers"])) == ("mine", 3)
    assert isinstance(invoke(home, *words, "--workers", "2").exception, InvalidRequest)


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--trace", MOONCAKE, "--rate", "2"], InvalidRequest, "generated arrivals"),
        (["--trace", MOONCAKE, "--agents"], InvalidRequest, "--agents"),
        (["--trace", str(DATA / "servegen"), "--rate", "1"], InvalidRequest, "of their own"),
        (["--mix", "free"], InvalidRequest, "--mix has 'free'"),
        (["--mix", "gold=1"], InvalidRequest, "--mix has 'gold=1'"),
        (["--mix", "free=1,free=2"], InvalidRequest, "--mix has 'free=2'"),
        (["--mix", "free=0"], ConfigInvalid, "above 0"),
        (["--scenario", "huge"], ConfigInvalid, "no scenario 'huge'"),
        (["--engine", "huge"], ConfigInvalid, "No engine is named 'huge'"),
        (["--engine", "x", "--scenario", "mixed"], InvalidRequest, "Give one"),
        (["--trace", MOONCAKE, "--format", "azure"], ConfigInvalid, "Line 1"),
        (["--load", "1"], InvalidRequest, "needs scipy"),
        (["--load", "1", "--speedup", "2"], InvalidRequest, "both"),
        (["--rate", "0.001", "--duration", "1"], ConfigInvalid, "No request"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    home: Home, words: list[str], error: type[Exception], said: str
) -> None:
    caught = invoke(home, "twin", "run", *words).exception
    assert isinstance(caught, error)
    assert said in str(caught)


def test_a_run_is_drawn(home: Home, tmp_path: Path) -> None:
    for name, words in (("x.png", ()), ("x.svg", ("--rate", "200", "--mix", "ultra=1"))):
        path = tmp_path / name
        result = invoke(home, "twin", "run", *SMALL, *words, "--json", "--picture", str(path))
        assert "Drawn to" in result.stderr
        assert json.loads(result.stdout)["requests"]
        assert path.stat().st_size > 10_000
    assert "<svg" in (tmp_path / "x.svg").read_text()
    result = invoke(home, "twin", "run", *SMALL, "--picture", str(tmp_path / "x.no"))
    assert isinstance(result.exception, ConfigInvalid)


@pytest.mark.heavy
def test_what_was_not_answered_is_drawn_too(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "x.svg"
    words = ("--rate", "3000", "--duration", "3", "--workers", "1", "--mix", "premium=1")
    result = invoke(home, "twin", "run", *words, "--picture", str(path), "--json")
    assert json.loads(result.stdout)["all"]["rejected"] > 0
    assert "not answered" in path.read_text() or path.stat().st_size > 10_000


def test_without_matplotlib_a_picture_says_what_to_install(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    caught = invoke(home, "twin", "run", *SMALL, "--picture", str(tmp_path / "x.png")).exception
    assert isinstance(caught, ConfigInvalid)
    assert "pip install" in caught.hint


# Comparing.


@pytest.fixture
def two_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy ``poor`` that has one worker, beside all others."""

    def told(scenario: Scenario, policy: str, *_: object) -> Scenario:
        workers = scenario.workers[:1] if policy == "poor" else scenario.workers
        return msgspec.structs.replace(scenario, workers=workers)

    monkeypatch.setattr(twin, "with_policy", told)


@pytest.mark.usefixtures("two_policies")
def test_policies_are_compared_by_what_they_earn(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--rate", "40", "--duration", "10", "--workers", "4", "--policies", "poor,rich")
    found = data(home, "twin", "compare", *words)
    assert [row["policy"] for row in found["policies"]] == ["rich", "poor"]
    rich, poor = found["policies"]
    assert rich["revenue_usd"] > poor["revenue_usd"]
    assert set(rich["promise_kept"]) == {tier.value for tier in Tier}
    assert rich["fluid_bound_share"] is None
    assert found["fluid_bound_usd"] is None
    assert rich["requests"] == poor["requests"] == found["requests"]
    assert rich["journal_digest"] != poor["journal_digest"]
    monkeypatch.setattr(twin, "bound_nanodollars", lambda *_: 10**10)
    text = done(home, "twin", "compare", *words)
    assert "No policy could earn more than $10.00" in text
    assert text.index("rich") < text.index("poor")
    shares = [row["fluid_bound_share"] for row in data(home, "twin", "compare", *words)["policies"]]
    assert shares == pytest.approx([rich["revenue_usd"] / 10, poor["revenue_usd"] / 10])
    assert "of what any policy could earn" in done(home, "twin", "run", *SMALL)


@pytest.mark.parametrize("names", ["", "a,a", ",".join(f"p{i}" for i in range(33))])
def test_policies_are_named_once_each(home: Home, names: str) -> None:
    result = invoke(home, "twin", "compare", *SMALL, "--policies", names)
    assert isinstance(result.exception, InvalidRequest)


# The bound.


def workload() -> list[TwinRequest]:
    trace = read_mooncake(DATA / "mooncake_conversation_300.jsonl", limit=60)
    spec = build("mixed").scenario.workers[0]
    return requests_of(trace, Asking(model=spec.model), 1)


class Told:
    """Takes when a run was over, and answers what it is made to."""

    ended_ns = 0

    def run_bound(
        self, scenario: Scenario, requests: list[TwinRequest], ended_ns: int
    ) -> fluid_bound.FluidBound:
        assert scenario.workers
        assert requests
        self.ended_ns = ended_ns
        return fluid_bound.FluidBound(
            bound_dollars=2.5, programme_dollars=2.0, served=(), uses=(), bids=()
        )

    def run_capacity(
        self, scenario: Scenario, requests: list[TwinRequest], horizon_ns: int
    ) -> float:
        assert scenario.workers
        assert horizon_ns == 1 + requests[-1].at_ns
        return 4.0


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    fake = Told()
    monkeypatch.setattr(twin_bound, "_has_scipy", lambda: True)
    monkeypatch.setattr(twin_bound, "run_bound", fake.run_bound)
    monkeypatch.setattr(twin_bound, "run_capacity", fake.run_capacity)
    return fake


def test_the_bound_is_of_the_time_until_the_run_was_over(told: Told) -> None:
    assert bound_nanodollars(build("mixed").scenario, workload(), 1_000) == 2_500_000_000
    assert told.ended_ns == 1_000


def test_load_is_demand_by_capacity(home: Home, told: Told) -> None:
    words = ("twin", "run", "--trace", MOONCAKE, "--limit", "60", "--load", "0.5")
    found = data(home, *words)
    assert (found["load"], found["speedup"]) == (0.5, 2.0)
    assert found["fluid_bound_share"] == pytest.approx(found["revenue_usd"] / 2.5)
    assert "(load 0.5)" in done(home, *words)
    assert capacity(build("mixed").scenario, workload()) == 4.0


def test_without_scipy_there_is_no_bound() -> None:
    assert bound_nanodollars(build("mixed").scenario, workload(), 1_000) is None
    assert capacity(build("mixed").scenario, workload()) is None


@pytest.mark.skipif(not HAS_SCIPY, reason="scipy is not installed")
def test_no_run_earns_more_than_its_bound(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    words = ("twin", "run", "--trace", MOONCAKE, "--workers", "2", "--load", "1")
    found = data(home, *words)
    assert 0 < found["fluid_bound_share"] <= 1
    assert found["speedup"] > 1


# Checkers.


def test_a_run_may_keep_a_ledger(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [data(home, "twin", "run", *SMALL, *words) for words in ((), ("--ledger",))]
    assert found[0]["violations"] == found[1]["violations"] == []
    assert found[0]["journal_digest"] == found[1]["journal_digest"]
    monkeypatch.setattr(Bookkeeper, "_void", lambda *_: None)
    monkeypatch.setattr(Bookkeeper, "_bill", lambda *_: None)
    result = invoke(home, "twin", "run", *SMALL, "--ledger")
    assert result.exit_code == 1
    assert "BROKEN: " in result.stdout
    assert "reservation_closed by r" in result.stdout


def test_whoever_waits_for_too_long_is_told(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "none was queued for longer" in done(home, "twin", "run", *SMALL)
    assert 0 <= data(home, "twin", "run", *SMALL)["queued_bound_share_max"] < 1
    late_deadline(monkeypatch)
    factory = tmp_path / "one.toml"
    factory.write_text('name = "one"\n[worker.w]\nkind = "fast"\ncount = 1\nslots = 1\n')
    crowd = ("--scenario", str(factory), "--rate", "30", "--duration", "10", "--mix", "ultra=1")
    result = invoke(home, "twin", "run", *crowd, "--policy", "edf")
    assert result.exit_code == 1
    assert "of wait_bounded by r" in result.stdout
    result = invoke(home, "twin", "compare", *crowd, "--policies", "edf,random")
    assert result.exit_code == 1
    assert "edf: BROKEN: " in result.stdout
    result = invoke(home, "twin", "compare", *crowd, "--policies", "edf", "--json")
    assert result.exit_code == 1
    [row] = json.loads(result.stdout)["policies"]
    assert row["violations"][0]["invariant"] == "wait_bounded"
    found = json.loads(invoke(home, "twin", "run", *crowd, "--policy", "edf", "--json").stdout)
    assert found["queued_bound_share_max"] > 1


# Swarm.


def test_a_swarm_in_which_nothing_breaks(home: Home, tmp_path: Path) -> None:
    words = ("twin", "swarm", "--seeds", "4", "--first", "30", "--out", str(tmp_path / "out"))
    text = done(home, *words, "--processes", "1")
    assert text.startswith("Running seeds 30 to 33.\n4 runs, ")
    assert "No invariant was broken." in text
    found = data(home, *words, "--policy", "edf, vtc")
    assert (found["first"], found["runs"], found["failures"]) == (30, 4, [])
    assert found["policies"] == ["edf", "vtc"]
    assert found["done"] > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shrink", ["--shrink", "--no-shrink"])
def test_a_seed_that_breaks_something_becomes_a_file(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shrink: str
) -> None:
    out = tmp_path / "out"
    words = ("twin", "swarm", "--seeds", "3", "--processes", "1", "--out", str(out), shrink)
    with monkeypatch.context() as patch:
        kept_context(patch)
        result = invoke(home, *words, "--progress")
        assert result.exit_code == 1
        assert "memory_drained by w" in result.stdout
        path = min(out.iterdir())
        assert f"twin swarm --file {path}" in result.stdout
        again = invoke(home, "twin", "swarm", "--file", str(path), "--json")
        assert again.exit_code == 1
        [failure] = json.loads(again.stdout)["failures"]
        assert failure["violations"][0]["invariant"] == "memory_drained"
        assert failure["file"] is None
        result = invoke(home, "twin", "swarm", "--file", str(path))
        assert result.exit_code == 1
        assert "memory_drained" in result.stdout
    assert "Running the case of" in done(home, "twin", "swarm", "--file", str(path))


@pytest.mark.parametrize("names", ["", "nobody", "edf,nobody"])
def test_a_policy_that_is_not_there_is_refused(home: Home, names: str) -> None:
    result = invoke(home, "twin", "swarm", "--policy", names)
    assert isinstance(result.exception, InvalidRequest)


def test_help_says_which_options_there_are() -> None:
    result: Result = CliRunner().invoke(twin.command, ["run", "--help"])
    for option in ("--trace", "--load", "--scenario", "--policy", "--picture", "--exact"):
        assert option in result.output
