"""Swarm runs: every invariant holds, planted bugs are found, and a failing case is a file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from tests.twin.planted_bugs import BUGS, PLANTED
from tokenworks.catalogue.price_book import parse_price_book
from tokenworks.core.errors import ConfigInvalid
from tokenworks.dispatch.policies import NAMES
from tokenworks.ledger.entries import Posted
from tokenworks.twin import faults
from tokenworks.twin.bookkeeper import Bookkeeper
from tokenworks.twin.driver import run
from tokenworks.twin.records import Scenario
from tokenworks.twin.swarm import load, run_case, run_seed, run_seeds, save, shrunk
from tokenworks.twin.swarm_draw import draw

SCENARIOS = Path(__file__).parent.parent / "scenarios"
SEEDS = 200


@pytest.mark.heavy
def test_nothing_breaks_in_200_seeds() -> None:
    ends: Counter[str] = Counter()
    policies = set()
    for found in run_seeds(0, SEEDS):
        assert not found.violations, found
        assert sum(found.ends.values()) == found.requests
        assert len(found.journal_digest) == 32
        ends.update(found.ends)
        policies.add(found.policy)
    assert ends["open"] == 0
    assert min(ends[name] for name in ("done", "rejected", "failed", "withdrawn")) > 500
    assert policies == set(NAMES)


@pytest.mark.heavy
def test_nobody_waits_beyond_the_bound_under_the_economic_policy() -> None:
    cases = [draw(seed, ["economic"]) for seed in range(1_000, 1_080)]
    scaled = sum(case.configured.scaling is not UNSET for case in cases)
    preempting = sum(any(spec.preempts for spec in case.workers) for case in cases)
    hinted = sum(any(each.hints for each in case.requests) for case in cases)
    assert min(scaled, preempting, hinted) > 10
    late = 0
    for case in cases:
        found = run_case(case)
        assert not found.violations, found
        late += found.ends["rejected"]
    assert late > 500


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found_within_200_seeds(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        bug(patch)
        found = next(each for each in run_seeds(0, SEEDS) if each.violations)
        case = draw(found.seed)
        smaller, found = shrunk(case, found, runs_max=60)
        assert len(smaller.requests) < len(case.requests)
        path = tmp_path / "case.json"
        save(path, smaller, found)
        again = run_case(load(path))
        assert again.violations == found.violations
    healthy = run_case(load(path))
    assert not healthy.violations
    assert healthy.journal_digest


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.json")), ids=lambda path: path.stem)
def test_what_once_failed_holds(path: Path) -> None:
    assert not run_case(load(path)).violations


def test_a_case_follows_from_its_seed(tmp_path: Path) -> None:
    one, other = draw(7), draw(7)
    assert one == other
    assert draw(8) != one
    assert draw(7, ["edf"]).configured.policy.name == "edf"
    path = tmp_path / "case.json"
    save(path, one, run_case(one))
    assert load(path) == one
    code = "from tokenworks.twin.swarm import run_seed as r; print(r(7).journal_digest)"
    digests = {run_seed(7).journal_digest}
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        words = [sys.executable, "-c", code]
        digests.add(subprocess.check_output(words, env=environment, text=True).strip())
    assert len(digests) == 1


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(40))
def test_whatever_goes_wrong_closed_form_and_iterations_one_by_one_are_the_same(seed: int) -> None:
    case = draw(seed)
    # What is published comes at boundaries, of which a run that is worked out at once has fewer.
    case = replace(case, plan=replace(case.plan, publishes=False))
    assert run_case(replace(case, exact=False)) == run_case(replace(case, exact=True))


def test_seeds_may_run_side_by_side() -> None:
    alone = list(run_seeds(0, 4))
    assert list(run_seeds(0, 4, processes=2)) == alone


def test_what_is_no_case_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    with pytest.raises(ConfigInvalid, match="holds no case"):
        load(path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigInvalid, match="holds no case"):
        load(path)
    save(path, draw(1), run_seed(1))
    text = path.read_text(encoding="utf-8").replace('"format": 1', '"format": 9')
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigInvalid, match="format 9"):
        load(path)


def test_every_kind_of_fault_is_drawn() -> None:
    drawn = {type(each) for seed in range(60) for each in draw(seed).plan.faults}
    assert drawn == set(faults.Fault.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.__name__)
def test_every_invariant_is_seen_to_break(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    wanted, broken = PLANTED[bug], set()
    for found in run_seeds(0, SEEDS):
        broken |= {each.invariant for each in found.violations}
        if wanted in broken:
            return
    pytest.fail(f"only {sorted(broken)} were broken")


@pytest.mark.heavy
def test_operators_change_limits_keys_and_prices_while_requests_are_under_way() -> None:
    lowered = billed_by_others = 0
    refused: Counter[str] = Counter()
    for seed in range(120):
        case = draw(seed)
        if not any(
            isinstance(each, faults.PutLimits | faults.Revoke | faults.TurnPage)
            for each in case.plan.faults
        ):
            continue
        bookkeeper = Bookkeeper(case.plan.store(), case.quotas, unix_ns=0)
        scenario = Scenario(
            name="swarm",
            workers=case.workers,
            configured=case.configured,
            book=parse_price_book(case.price_book),
            energy_udollars_per_kwh=0,
        )
        # Without what slows messages down, which is not looked at here.
        plan = replace(case.plan, to_worker_ns=0, to_dispatcher_ns=0, probe_ns=None)
        kept = (faults.PutLimits, faults.Revoke, faults.TurnPage)
        plan = replace(plan, faults=tuple(each for each in plan.faults if isinstance(each, kept)))
        run(scenario, case.requests, hooks=faults.Faults(plan), bookkeeper=bookkeeper)
        refused.update(bookkeeper.refused)
        lowered += bool(bookkeeper.over)
        posted = [each for each in bookkeeper.store.entries.values() if isinstance(each, Posted)]
        billed_by_others += sum(each.price_id != scenario.book.price_id for each in posted)
    assert min(lowered, refused["invalid_api_key"] // 50, billed_by_others // 50) > 1
