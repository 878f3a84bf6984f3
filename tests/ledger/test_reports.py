"""A report's sums are those of the rows, whatever they are grouped by."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.ids import (
    AgentName,
    EngineerID,
    KeyID,
    ModelName,
    PoolID,
    PriceID,
    RunID,
    TeamID,
    TenantID,
)
from tokenworks.core.orders import TOKEN_CLASSES, Payer
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_HOUR
from tokenworks.ledger.reports import (
    DIMENSIONS,
    IDLE,
    OF_POOLS,
    Line,
    asked_and_delivered,
    per_mtok,
    report_lines,
    total_line,
)
from tokenworks.ledger.rollup import MEASURES, NOBODY, Kind, RollupRow

NOVEMBER = 1_793_491_200_000_000_000
"""2026-11-01, midnight."""


def payer(tenant: str = "acme", team: str | None = "search", **more: str) -> Payer:
    return Payer(
        tenant=TenantID(tenant),
        team=None if team is None else TeamID(team),
        engineer=EngineerID("ada") if tenant == "acme" else None,
        key=KeyID(f"key_{tenant}"),
        agent=AgentName(more["agent"]) if "agent" in more else None,
        run=RunID(more["run"]) if "run" in more else None,
    )


def answers(
    hour: int = 0,
    who: Payer | None = None,
    *,
    what: str = "done",
    asked: Tier = Tier.HIGH,
    delivered: Tier | None = Tier.HIGH,
    pool: str = "a",
    batch: bool = False,
    **measures: int,
) -> RollupRow:
    kind = Kind(
        what, ModelName("m"), asked, delivered, PoolID(pool), PriceID("p@1"), 1_000_000, batch
    )
    sums = {"requests": 1, "output_tokens": 10, "charged_nanodollars": 100} | measures
    row = [sums.get(name, 0) for name in MEASURES]
    return RollupRow(NOVEMBER + hour * NS_PER_HOUR, who or payer(), kind, row)


def voided(hour: int = 0) -> RollupRow:
    row = answers(hour, what="voided", delivered=None, pool="", output_tokens=0)
    row.sums[MEASURES.index("charged_nanodollars")] = 0
    return row


def accrued(hour: int = 0, *, pool: str = "a", energy: int = 50, capital: int = 70) -> RollupRow:
    kind = Kind("accrued", ModelName(""), None, None, PoolID(pool), PriceID(""), 0, False)
    sums = [0] * len(MEASURES)
    sums[MEASURES.index("energy_nanodollars")] = energy
    sums[MEASURES.index("capital_nanodollars")] = capital
    return RollupRow(NOVEMBER + hour * NS_PER_HOUR, NOBODY, kind, sums)


ROWS = [
    answers(energy_nanodollars=20, capital_nanodollars=30, uncached_input_tokens=3),
    answers(1, asked=Tier.PREMIUM, credited_nanodollars=7, cached_input_tokens=5),
    answers(
        25,
        payer("zeta", None, agent="bot", run="r1"),
        asked=Tier.FREE,
        delivered=Tier.FREE,
        pool="b",
        batch=True,
        charged_nanodollars=0,
        ad_income_nanodollars=9,
        reasoning_tokens=4,
        cache_write_tokens=2,
    ),
    answers(24 * 30, what="failed", charged_nanodollars=0, image_input_tokens=1),
    voided(),
    accrued(),
    accrued(25, pool="b", energy=1, capital=2),
]


def test_by_tier_the_slowest_comes_first_and_idle_cost_last() -> None:
    free, high, idle = report_lines(ROWS, ["tier"])
    assert [line.names for line in (free, high, idle)] == [("free",), ("high",), (IDLE,)]
    assert (free.requests, high.requests, idle.requests) == (1, 3, 0)
    assert (free.input_tokens, free.output_tokens) == (2, 14)
    assert (high.input_tokens, high.output_tokens) == (9, 30)
    assert high.tokens["cached_input_tokens"] == 5
    assert list(high.tokens) == list(TOKEN_CLASSES)
    assert (high.charged_nanodollars, high.credited_nanodollars) == (200, 7)
    assert high.revenue_nanodollars == high.earned_nanodollars == 193
    assert (free.ad_income_nanodollars, free.earned_nanodollars) == (9, 9)
    assert (high.energy_nanodollars, high.capital_nanodollars) == (20, 30)
    assert high.margin_nanodollars == 143
    assert high.idle_nanodollars == 0
    assert (idle.energy_nanodollars, idle.capital_nanodollars) == (31, 42)
    assert idle.idle_nanodollars == idle.cost_nanodollars == -idle.margin_nanodollars == 73


def test_by_pool_idle_cost_belongs_to_its_pool() -> None:
    a, b = report_lines(ROWS, ["pool"])
    assert (a.names, a.idle_nanodollars, a.cost_nanodollars) == (("a",), 70, 120)
    assert (b.names, b.idle_nanodollars, b.cost_nanodollars) == (("b",), 3, 3)


def test_by_pool_and_tier_idle_cost_has_a_line_for_each_pool() -> None:
    names = [line.names for line in report_lines(ROWS, ["pool", "tier"])]
    assert names == [("a", "high"), ("a", IDLE), ("b", "free"), ("b", IDLE)]


def test_times_are_hours_days_and_months_of_utc() -> None:
    def names(by: str) -> list[str | None]:
        return [line.names[0] for line in report_lines(ROWS[:4], [by])]  # type: ignore[list-item]

    hours = ["2026-11-01T00:00Z", "2026-11-01T01:00Z", "2026-11-02T01:00Z", "2026-12-01T00:00Z"]
    assert names("hour") == hours
    assert names("day") == ["2026-11-01", "2026-11-02", "2026-12-01"]
    assert names("month") == ["2026-11", "2026-12"]


def test_whoever_has_no_team_stands_behind_the_teams() -> None:
    rows = report_lines(ROWS[:4], ["team", "engineer", "agent", "run"])
    assert [line.names for line in rows] == [
        ("search", "ada", None, None),
        (None, None, "bot", "r1"),
        (IDLE, IDLE, IDLE, IDLE),
    ]


def test_a_tenant_may_be_called_like_a_tier() -> None:
    rows = [answers(0, payer(name)) for name in ("ultra", "free", "medium")]
    assert [line.names[0] for line in report_lines(rows, ["tenant"])] == [
        *("free", "medium", "ultra")
    ]


def test_what_was_voided_shows_only_by_ending() -> None:
    endings = {line.names[0]: line.requests for line in report_lines(ROWS, ["ending"])}
    assert endings == {"done": 3, "failed": 1, "voided": 1, IDLE: 0}
    (line,) = report_lines(ROWS, [], {"ending": "voided"})
    assert line.requests == 1
    assert total_line(report_lines(ROWS, ["tenant"])).requests == 4


def test_a_filter_keeps_what_it_names_and_knows_no_idle_cost_of_callers() -> None:
    (line,) = report_lines(ROWS, ["tier"], {"tenant": "zeta"})
    assert (line.names, line.idle_nanodollars) == (("free",), 0)
    free, idle = report_lines(ROWS, ["tier"], {"pool": "b"})
    assert (free.names, idle.names, idle.idle_nanodollars) == (("free",), (IDLE,), 3)
    assert report_lines(ROWS, ["tier"], {"tenant": "nobody"}) == []
    assert report_lines([], ["tier"]) == []


def test_cost_of_answers_that_is_not_written_down_yet_is_idle_below_zero() -> None:
    high, idle = report_lines([answers(energy_nanodollars=5)], ["tier"])
    assert (high.cost_nanodollars, idle.cost_nanodollars) == (5, -5)


def test_asked_and_delivered_is_about_answers_only() -> None:
    assert asked_and_delivered(ROWS) == [
        (Tier.FREE, Tier.FREE, 1),
        (Tier.HIGH, Tier.HIGH, 2),
        (Tier.PREMIUM, Tier.HIGH, 1),
    ]
    assert asked_and_delivered(ROWS, {"tenant": "zeta"}) == [(Tier.FREE, Tier.FREE, 1)]
    assert asked_and_delivered([voided()], {"ending": "voided"}) == []


def test_dollars_per_million_round_half_to_even() -> None:
    assert per_mtok(1, 2_000_000) == 0
    assert per_mtok(3, 2_000_000) == 2
    assert per_mtok(-3, 1_000_000) == -3
    assert per_mtok(3, 0) is None


def test_nothing_has_a_total() -> None:
    assert total_line([]) == Line(())


@pytest.mark.parametrize("pair", [*itertools.combinations(DIMENSIONS, 2)], ids="-".join)
def test_every_grouping_has_the_same_total(pair: tuple[str, str]) -> None:
    with_voided = "ending" in pair
    lines = report_lines(ROWS, pair)  # type: ignore[arg-type]
    total = total_line(lines)
    assert total.requests == (5 if with_voided else 4)
    assert total.cost_nanodollars == 123
    assert total.margin_nanodollars == total.earned_nanodollars - 123
    if not OF_POOLS.issuperset(pair):
        assert all(IDLE in line.names for line in lines if line.idle_nanodollars)
    assert len({line.names for line in lines}) == len(lines)


_ROWS = st.one_of(
    st.builds(
        answers,
        st.integers(0, 50),
        st.sampled_from([payer(), payer("zeta", None)]),
        delivered=st.sampled_from(Tier),
        pool=st.sampled_from("ab"),
        charged_nanodollars=st.integers(0, 10**12),
        energy_nanodollars=st.integers(0, 10**12),
        reasoning_tokens=st.integers(0, 10**9),
    ),
    st.builds(accrued, st.integers(0, 50), pool=st.sampled_from("ab")),
)


@given(st.lists(_ROWS, max_size=30), st.lists(st.sampled_from(DIMENSIONS), max_size=4, unique=True))
def test_any_grouping_of_any_rows_adds_up(rows: list[RollupRow], by: list[str]) -> None:
    total = total_line(report_lines(rows, by))  # type: ignore[arg-type]
    posted = [row for row in rows if row.kind.what != "accrued"]
    assert total.requests == len(posted)
    assert total.revenue_nanodollars == sum(row.paid_nanodollars for row in posted)
    assert total.input_tokens + total.output_tokens == sum(row.tokens for row in posted)
    costs = [row for row in rows if row.kind.what == "accrued"]
    assert total.cost_nanodollars == 120 * len(costs)
