"""A report adds up, and bills as the ledger does."""

from __future__ import annotations

import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.ids import ModelName, RequestID, TenantID
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_HOUR, NS_PER_MS, NS_PER_S
from tokenworks.twin import report as report_module
from tokenworks.twin.kinds import MODEL, twin_book
from tokenworks.twin.records import End, Outcomes, RunResult, Scenario, TwinRequest, WorkerUse
from tokenworks.twin.report import bounded, judge, peak_rss_bytes, report, ttft_ms_by_tier
from tokenworks.twin.scenarios import build

MS = NS_PER_MS


def scenario(**changes: object) -> Scenario:
    book = twin_book()
    given_back = dict.fromkeys(Tier, 0) | {Tier.ULTRA: 100_000}
    plain = build("homogeneous", 2).scenario
    return msgspec.structs.replace(
        plain, book=msgspec.structs.replace(book, credits_ppm=given_back), **changes
    )


def asked(number: int, tier: Tier, tenant: str = "t", **changes: object) -> TwinRequest:
    plain = TwinRequest(
        request=RequestID(f"r{number}"),
        tenant=TenantID(tenant),
        model=ModelName(MODEL),
        tier=tier,
        at_ns=number,
        input_tokens=1_000,
        output_tokens=101,
        output_tokens_max=2_048,
    )
    return msgspec.structs.replace(plain, **changes)


def use(place: int, **changes: int) -> WorkerUse:
    plain = WorkerUse(
        worker=scenario().workers[place].worker,
        up_ns=NS_PER_HOUR,
        busy_ns=NS_PER_HOUR // 4,
        iterations=9,
        prefill_tokens=5,
        output_tokens=7,
        hit_tokens=3,
        evicted_blocks=0,
        preemptions=1,
        kv_blocks_max=4,
    )
    return msgspec.structs.replace(plain, **changes)


def result(outcomes: Outcomes, **changes: object) -> RunResult:
    plain = RunResult(
        outcomes=outcomes,
        workers=(use(0), use(1, up_ns=0, busy_ns=0)),
        ended_ns=NS_PER_HOUR,
        events=10,
        commands=4,
        journal_digest="d" * 32,
        cpu_ns=NS_PER_S // 2,
    )
    return msgspec.structs.replace(plain, **changes)


def answered(
    outcomes: Outcomes, index: int, *, ttft_ms: float, tpot_ms: float, cached: int = 0
) -> None:
    at_ns = index * NS_PER_S
    outcomes.arrived_ns[index] = at_ns
    outcomes.sent_ns[index] = at_ns + MS
    outcomes.first_token_ns[index] = first_ns = at_ns + round(ttft_ms * MS)
    outcomes.finished_ns[index] = first_ns + round(100 * tpot_ms * MS)
    outcomes.output_tokens[index] = 101
    outcomes.cached_tokens[index] = cached
    outcomes.end[index] = End.DONE
    outcomes.itl_max_ns[index] = 2 * round(tpot_ms * MS)


def sample() -> tuple[list[TwinRequest], RunResult]:
    """Ultra kept, ultra delivered as high, free kept, free too slow, one rejected, one failed."""
    requests = [
        asked(0, Tier.ULTRA, "a"),
        asked(1, Tier.ULTRA, "a"),
        asked(2, Tier.FREE, "b"),
        asked(3, Tier.FREE, "b"),
        asked(4, Tier.HIGH, "b"),
        asked(5, Tier.MEDIUM, "c"),
    ]
    outcomes = Outcomes(len(requests))
    answered(outcomes, 0, ttft_ms=100, tpot_ms=4, cached=512)
    answered(outcomes, 1, ttft_ms=7_000, tpot_ms=4)
    answered(outcomes, 2, ttft_ms=100, tpot_ms=20)
    answered(outcomes, 3, ttft_ms=100, tpot_ms=100)
    outcomes.arrived_ns[4], outcomes.finished_ns[4] = 4 * NS_PER_S, 9 * NS_PER_S
    outcomes.end[4] = End.REJECTED
    answered(outcomes, 5, ttft_ms=50, tpot_ms=1)
    outcomes.end[5] = End.FAILED
    outcomes.preemptions[1] = 2
    return requests, result(outcomes)


def test_answers_are_billed_at_the_tier_that_was_delivered() -> None:
    requests, run = sample()
    answers = judge(scenario(), requests, run.outcomes)
    assert answers.delivered == [Tier.ULTRA, Tier.HIGH, Tier.FREE, Tier.FREE, None, None]
    assert answers.kept == [True, False, True, False, False, False]
    # Dollars per 1M are thousands of nano-dollars per token: 1,000 x 30 + 101 x 150.
    assert answers.charged[0] == 1_000 * 30_000 + 101 * 150_000
    assert answers.charged[1] == 1_000 * 1_200 + 101 * 6_000
    assert answers.credited[1] == answers.charged[1] // 10
    assert answers.charged[2:] == [0, 0, 0, 0]
    assert answers.ads == [0, 0, 101 * 500, 101 * 500, 0, 0]


def test_a_report_adds_up() -> None:
    requests, run = sample()
    found = bounded(report(scenario(), requests, run), 10**9)
    every = found.all
    assert (every.requests, every.done, every.rejected, every.failed) == (6, 4, 1, 1)
    for field in (
        *("requests", "done", "rejected", "failed", "promise_kept", "input_tokens"),
        *("cached_tokens", "output_tokens", "preemptions", "charged_nanodollars"),
        *("credited_nanodollars", "ads_nanodollars", "revenue_nanodollars"),
    ):
        assert getattr(every, field) == sum(getattr(each, field) for each in found.tiers.values())
    assert list(found.tiers) == [Tier.FREE, Tier.MEDIUM, Tier.HIGH, Tier.ULTRA]
    ultra = found.tiers[Tier.ULTRA]
    assert (ultra.promise_kept_share, ultra.delivered[Tier.HIGH]) == (0.5, 1)
    assert found.tiers[Tier.FREE].promise_kept == 1
    assert every.goodput_requests_per_s == 2 / 3_600
    assert every.goodput_tokens_per_s == 202 / 3_600
    assert found.revenue_nanodollars == every.revenue_nanodollars
    assert found.revenue_usd == found.revenue_nanodollars / 10**9
    assert found.fluid_bound_share == found.revenue_nanodollars / 10**9
    assert found.prefix_hit_share == 512 / 4_000
    assert found.preemptions == 2
    assert (found.cpu_s, found.requests_per_cpu_s) == (0.5, 12)
    assert found.journal_digest == "d" * 32
    assert found.revenue_course[0] == (0.0, 0)
    assert found.revenue_course[-1] == (3_600.0, found.revenue_nanodollars)
    money = [each for _, each in found.revenue_course]
    assert money == sorted(money)


def test_speeds_are_those_of_who_had_any() -> None:
    requests, run = sample()
    speeds = report(scenario(), requests, run).all.speeds
    assert (speeds.ttft_ms.p50, speeds.ttft_ms.p99, speeds.ttft_ms.max) == (100, 7_000, 7_000)
    assert (speeds.tpot_ms.p50, speeds.tpot_ms.max) == (4, 100)  # the failed one is left out
    assert speeds.itl_max_ms.max == 200
    assert speeds.wait_ms.p99 == 1
    high = report(scenario(), requests, run).tiers[Tier.HIGH].speeds
    assert (high.ttft_ms.p50, high.tpot_ms.p99, high.wait_ms.max) == (None, None, None)


def test_energy_and_capital_are_costs() -> None:
    requests, run = sample()
    found = report(scenario(), requests, run)
    # A quarter of an hour at 10,200 W and three at 4,080 W; $0.08 per kWh; $24 an hour.
    assert found.energy_kwh == pytest.approx(5.61)
    assert found.energy_nanodollars == 448_800_000
    assert found.cost_nanodollars == 448_800_000 + 24_000_000_000
    assert found.cost_usd_per_mtok == pytest.approx(24.4488 / 505e-6)
    assert [each.utilisation for each in found.workers] == [0.25, 0.0]
    assert found.workers[0].energy_kwh == found.energy_kwh


def test_who_waited_longest_is_said_by_tenant() -> None:
    requests, run = sample()
    assert report(scenario(), requests, run).wait_ms_max_by_tenant == {
        TenantID("a"): 1.0,
        TenantID("b"): 5_000.0,  # turned away after so long
        TenantID("c"): 1.0,
    }


def test_a_run_in_which_nothing_happened() -> None:
    run = result(Outcomes(1), ended_ns=0, cpu_ns=0)
    found = report(scenario(), [asked(0, Tier.HIGH)], run)
    assert (found.revenue_nanodollars, found.cost_usd_per_mtok) == (0, None)
    assert (found.fluid_bound_share, found.requests_per_cpu_s) == (None, None)
    assert bounded(found, None) == found
    assert (found.prefix_hit_share, found.all.goodput_tokens_per_s) == (None, 0)
    assert found.wait_ms_max_by_tenant == {TenantID("t"): 0.0}
    assert found.all.failed == 1


def test_times_to_first_token_are_sorted_with_none_last() -> None:
    requests, run = sample()
    times = ttft_ms_by_tier(requests, run.outcomes)
    assert times[Tier.ULTRA] == [100, 7_000]
    assert times[Tier.HIGH] == [None]
    assert list(times) == [Tier.FREE, Tier.MEDIUM, Tier.HIGH, Tier.ULTRA]


@given(st.lists(st.integers(0, 10**12), min_size=1))
def test_a_quantile_is_a_value_that_so_many_do_not_exceed(values: list[int]) -> None:
    found = report_module._quantiles(iter(values))
    for percent, value in ((50, found.p50), (90, found.p90), (99, found.p99), (100, found.max)):
        assert value in [each / MS for each in values]
        assert sum(each / MS <= value for each in values) * 100 >= percent * len(values)


def test_memory_is_in_bytes_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    here = peak_rss_bytes()
    assert here > 10**7
    monkeypatch.setattr(sys, "platform", "darwin" if sys.platform != "darwin" else "linux")
    assert peak_rss_bytes() != here
