"""Plans for a fleet: integers from the programme, and a greedy fill that comes close to it."""

from __future__ import annotations

import random
import statistics
import sys

import msgspec
import pytest

from tests.plan.fluid_samples import MODEL, MS, PLAIN, asks, sample_book, worker
from tests.plan.test_fluid_bound import FLEET, PRICED, sample
from tokenworks.core.slo import Tier
from tokenworks.perf.fleet_plan import FleetPlan
from tokenworks.plan.fleet_plan import fleet_plan, greedy_plan, programme_plan
from tokenworks.plan.fluid_inputs import merged

BOOK = sample_book()


def test_both_plans_of_a_case_on_paper() -> None:
    # 100 s of iterations of 40 ms with 30 sequences make 75,000 tokens at $45 per 1M.
    demand = asks(Tier.PREMIUM, 150_000, requests=1_500)
    for plan in (
        programme_plan([worker(slots=100)], [demand], BOOK),
        greedy_plan([worker(slots=100)], [demand], BOOK),
    ):
        assert plan.revenue_nanodollars == pytest.approx(3.375e9, rel=0.003)
        (tier,) = plan.tiers
        assert tier.running_milli == pytest.approx(30_000, rel=0.01)
        assert tier.requests_ppm == pytest.approx(500_000, rel=0.003)
        # The fleet is full of the same: one more request earns nothing, one more second does.
        assert plan.bids[0].request_nanodollars == pytest.approx(0, abs=20_000)
        assert plan.seconds[0].second_nanodollars == pytest.approx(33_750_000, rel=0.003)


def test_an_idle_fleet_sells_every_request_at_its_price() -> None:
    demand = asks(Tier.PREMIUM, 1_000, requests=10)
    for plan in (
        programme_plan([worker()], [demand], BOOK),
        greedy_plan([worker()], [demand], BOOK),
    ):
        assert plan.seconds[0].second_nanodollars == 0
        assert plan.bids[0].request_nanodollars == 4_500_000
        assert plan.bids[0].output_udollars_per_mtok == 45_000_000


@pytest.mark.heavy
def test_the_greedy_plan_is_near_the_programme() -> None:
    shares = []
    for seed in range(40):
        rng = random.Random(seed)
        times = rng.choice([0.2, 0.5, 1, 2, 4, 8])
        fleet = [
            msgspec.structs.replace(
                each,
                up_ns=(int(each.up_ns[0] * times * rng.uniform(0.3, 3)),),
                slots=rng.choice([8, 32, 128]),
            )
            for each in FLEET
        ]
        groups = [merged(members[: rng.randrange(5, 60)]) for members in sample(seed)]
        greedy = greedy_plan(fleet, groups, PRICED).revenue_nanodollars
        shares.append(greedy / programme_plan(fleet, groups, PRICED).revenue_nanodollars)
    assert max(shares) <= 1 + 1e-6
    assert min(shares) >= 0.94
    assert statistics.median(shares) >= 0.97


def test_the_greedy_plan_leaves_out_what_cannot_be() -> None:
    slow = worker(timing=msgspec.structs.replace(PLAIN, launch_fs=10_000 * MS))
    small = worker(kv_tokens=10)
    big = asks(Tier.PREMIUM, 100, context_tokens=10_000, held_tokens=10_000)
    assert greedy_plan([slow], [asks(Tier.MEDIUM, 100)], BOOK).tiers[0].tier is Tier.MEDIUM
    assert greedy_plan([slow], [asks(Tier.MEDIUM, 100)], BOOK).revenue_nanodollars == 0
    assert greedy_plan([small], [big], BOOK).tiers == ()
    assert greedy_plan([worker(decodes=False)], [asks(Tier.HIGH, 9)], BOOK).tiers == ()
    # Sequences that cost nothing beside a launch are still too slow at a launch of ten seconds.
    light = msgspec.structs.replace(PLAIN, launch_fs=10_000 * MS, sequence_fs=0)
    assert (
        greedy_plan([worker(timing=light)], [asks(Tier.MEDIUM, 9)], BOOK).revenue_nanodollars == 0
    )
    # A prompt that is answered by its first token, from a cache that has it all.
    first = asks(Tier.HIGH, 1, decode_tokens=0)
    assert greedy_plan([worker()], [first], BOOK).revenue_nanodollars == 6_000


def test_without_a_solver_the_greedy_plan_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ([worker()], [asks(Tier.HIGH, 10)], BOOK)
    assert fleet_plan(*given).made_by == "linear programme"
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    assert fleet_plan(*given) == greedy_plan(*given)


def test_a_plan_survives_the_journal() -> None:
    groups = [merged(members) for members in sample(1)]
    plan = programme_plan(FLEET, groups, PRICED)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=FleetPlan) == plan
    assert {tier.model for tier in plan.tiers} == {MODEL}
