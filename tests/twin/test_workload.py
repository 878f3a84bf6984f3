"""Rows become requests: tiers and tenants by their shares, blocks that only a tenant shares."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import ModelName
from tokenworks.core.slo import Tier
from tokenworks.core.units import PPM
from tokenworks.twin import arrivals
from tokenworks.twin.arrivals import ARRIVALS, Arrivals, arrival_times, weibull_gap
from tokenworks.twin.records import TwinRequest
from tokenworks.twin.sessions import Agents, agent_trace
from tokenworks.twin.traces import Row, Trace, read_agentic, read_mooncake
from tokenworks.twin.workload import (
    Demand,
    TierMix,
    checked_mix,
    generated_trace,
    requests_of,
    salt_of,
    salted,
    steady,
)

DATA = Path(__file__).parent / "data"
MODEL = ModelName("m")
DEMAND = Demand(model=MODEL)
WORDS = st.integers(0, 2**64 - 1)
WEIGHTS = st.dictionaries(st.sampled_from(Tier), st.integers(0, 1000), min_size=1).filter(
    lambda weights: sum(weights.values()) > 0
)


def requests(trace: Trace, seed: int = 1, **changes: object) -> list[TwinRequest]:
    return requests_of(trace, msgspec.structs.replace(DEMAND, **changes), seed)


def rows(*each: Row) -> Trace:
    return Trace(rows=each)


def row(*block_ids: int, at_ns: int = 0, input_tokens: int | None = None) -> Row:
    tokens = max(1, 512 * len(block_ids)) if input_tokens is None else input_tokens
    return Row(at_ns=at_ns, input_tokens=tokens, output_tokens=5, block_ids=block_ids)


# Mixes.


@given(WEIGHTS, WEIGHTS, st.integers(0, PPM), WORDS)
def test_a_tier_without_a_share_is_never_drawn(
    before: dict[Tier, int], after: dict[Tier, int], place_ppm: int, draw: int
) -> None:
    tier = checked_mix([(0, before), (PPM, after)]).tier(place_ppm, draw)
    assert before.get(tier, 0) + after.get(tier, 0) > 0
    if place_ppm == 0:
        assert before.get(tier, 0)
    if place_ppm == PPM:
        assert after.get(tier, 0)


@given(WEIGHTS, st.integers(0, PPM))
def test_shares_are_those_of_the_mix(weights: dict[Tier, int], place_ppm: int) -> None:
    mix, draws = steady(weights), 2_000
    drawn = Counter(mix.tier(place_ppm, (2 * i + 1) * 2**63 // draws) for i in range(draws))
    for tier in Tier:
        share = weights.get(tier, 0) * draws / sum(weights.values())
        assert abs(drawn[tier] - share) <= 1


def test_between_two_points_a_mix_moves_in_a_line() -> None:
    mix = checked_mix([(0, {Tier.FREE: 1}), (500_000, {Tier.ULTRA: 7}), (600_000, {Tier.FREE: 3})])
    draws = [i * 2**54 for i in range(1024)]

    def ultra(place: int) -> int:
        return sum(mix.tier(place, draw) is Tier.ULTRA for draw in draws)

    assert [ultra(place) for place in (0, 125_000, 250_000, 500_000)] == [0, 256, 512, 1024]
    assert [ultra(place) for place in (550_000, 600_000, PPM)] == [512, 0, 0]


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(5, {Tier.FREE: 1})],
        [(0, {Tier.FREE: 1}), (0, {Tier.FREE: 1})],
        [(0, {Tier.FREE: 1}), (PPM + 1, {Tier.FREE: 1})],
        [(0, {})],
        [(0, {Tier.FREE: 0})],
        [(0, {Tier.FREE: 2, Tier.HIGH: -1})],
    ],
)
def test_a_mix_that_cannot_be_is_refused(points: list[tuple[int, dict[Tier, int]]]) -> None:
    with pytest.raises(ConfigInvalid, match="mix"):
        checked_mix(points)


# Blocks.


@given(st.sets(WORDS, min_size=2, max_size=50), st.sets(st.text(min_size=1), min_size=2))
def test_a_tenant_shares_its_blocks_and_nobody_elses(ids: set[int], tenants: set[str]) -> None:
    hashes = {tenant: {salted(salt_of(tenant), each) for each in ids} for tenant in tenants}
    for found in hashes.values():
        assert len(found) == len(ids)
        assert all(0 <= each < 2**64 for each in found)
    assert len(set().union(*hashes.values())) == len(ids) * len(tenants)


@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 9), max_size=4), st.integers(0, 600)), min_size=1
    ).map(lambda each: [((0, *ids), extra) for ids, extra in each]),
    st.integers(0, 5),
    st.sampled_from([512, 256, 64]),
)
def test_prompts_share_just_what_their_rows_share(
    prompts: list[tuple[tuple[int, ...], int]], seed: int, block_tokens: int
) -> None:
    # As in a trace, an id stands for all that comes before it.
    chained = [
        (tuple(hash(ids[: i + 1]) % 2**61 for i in range(len(ids))), extra)
        for ids, extra in prompts
    ]
    trace = rows(
        *(
            row(*ids, input_tokens=max(1, 512 * len(ids) - extra % 512), at_ns=i)
            for i, (ids, extra) in enumerate(chained)
        )
    )
    found = requests(trace, seed, block_tokens=block_tokens, tenants=3)
    parts = 512 // block_tokens
    for one, its in zip(found, trace.rows, strict=True):
        assert len(one.blocks) == its.input_tokens // block_tokens
        for other, others in zip(found, trace.rows, strict=True):
            alike = 0
            while its.block_ids[: alike + 1] == others.block_ids[: alike + 1] and (
                alike < min(len(its.block_ids), len(others.block_ids))
            ):
                alike += 1
            common = len(set(one.blocks) & set(other.blocks))
            if one.tenant != other.tenant:
                assert common == 0
            else:
                assert common == min(alike * parts, len(one.blocks), len(other.blocks))


def test_prompts_that_begin_alike_have_one_tenant() -> None:
    trace = read_mooncake(DATA / "mooncake_conversation_300.jsonl")
    found = requests(trace, tenants=50)
    owners: dict[int, set[str]] = {}
    for one, its in zip(found, trace.rows, strict=True):
        if len(its.block_ids) > 1:  # the first block is everybody's
            owners.setdefault(its.block_ids[1], set()).add(one.tenant)
    assert all(len(each) == 1 for each in owners.values())
    assert len({one.tenant for one in found}) > 5
    for one, its in zip(found, trace.rows, strict=True):
        assert len(one.blocks) == its.input_tokens // 512


def test_what_all_prompts_have_in_common_gives_nobody_a_tenant() -> None:
    found = requests(rows(*(row(0, 1, at_ns=i) for i in range(40))), tenants=30)
    assert len({one.tenant for one in found}) > 5


def test_common_beginnings_end_where_prompts_part() -> None:
    trace = rows(*(row(0, 1, 10 + i % 2, 20 + i) for i in range(60)), row(0), row(7))
    found = requests(trace, tenants=1_000)
    assert len({one.tenant for one in found[:60]}) == 2


# Requests.


def test_a_request_keeps_its_tenant_and_tier_when_arrivals_are_compressed() -> None:
    trace = read_mooncake(DATA / "mooncake_conversation_300.jsonl")
    plain = requests(trace)
    fast = requests(trace, speedup=2.5)
    for one, other in zip(plain, fast, strict=True):
        assert other.at_ns == round(one.at_ns / 2.5)
        assert msgspec.structs.replace(other, at_ns=one.at_ns) == one
    assert requests(trace, limit=9) == plain[:9]
    assert requests(trace) == plain
    assert requests(trace, seed=2) != plain


def test_an_output_limit_tells_nothing_of_the_answer() -> None:
    trace = rows(row(1), Row(at_ns=1, input_tokens=1, output_tokens=9_000))
    assert {one.output_tokens_max for one in requests(trace)} == {9_000}
    assert {one.output_tokens_max for one in requests(trace, limit=1)} == {2_048}
    assert {one.output_tokens_max for one in requests(trace, output_tokens_max=7)} == {7}


def test_agents_keep_tenant_and_tier() -> None:
    found = {one.request: one for one in requests(read_agentic(DATA / "agentic_6.jsonl"), 5)}
    of_main = [found[name] for name in ("plan", "help", "act", "join")]  # type: ignore[index]
    assert len({(one.tenant, one.tier) for one in of_main}) == 1
    join = of_main[3]
    assert (join.wait_for, join.delay_ns, join.session) == (("act", "help"), 5_000_000, "main")


def test_tenants_have_shares_like_zipf() -> None:
    trace = rows(*(Row(at_ns=i, input_tokens=1, output_tokens=1) for i in range(6_000)))
    found = Counter(one.tenant for one in requests(trace, tenants=3))
    for number, share in ((1, 6 / 11), (2, 3 / 11), (3, 2 / 11)):
        assert abs(found[f"tenant-{number}"] / 6_000 - share) < 0.03  # type: ignore[index]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tenants": 0}, "0 tenants"),
        ({"speedup": 0.0}, "speedup"),
        ({"speedup": float("nan")}, "speedup"),
        ({"block_tokens": 100}, "cannot be cut"),
        ({"block_tokens": 1024}, "cannot be cut"),
        ({"limit": 0}, "no requests"),
    ],
)
def test_a_demand_that_cannot_be_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigInvalid, match=said):
        requests(rows(row(1)), **changes)


# Arrivals.


@pytest.mark.parametrize("kind", ARRIVALS)
def test_arrivals_have_the_rate_and_follow_the_seed(kind: Arrivals) -> None:
    def times(seed: int) -> list[int]:
        return list(
            arrival_times(kind, random.Random(seed), rate_per_s=20, duration_s=4_000, on_s=3)
        )

    found = times(1)
    assert found == times(1) == sorted(found)
    assert 0 <= found[0] <= found[-1] < 4_000_000_000_000
    assert len(found) == pytest.approx(80_000, rel=0.25)
    assert (times(2) == found) == (kind == "constant")


def test_bursts_are_burstier() -> None:
    def variation(kind: Arrivals) -> float:
        found = list(arrival_times(kind, random.Random(3), rate_per_s=50, duration_s=1_000, cv=4))
        gaps = [b - a for a, b in itertools.pairwise(found)]
        mean = sum(gaps) / len(gaps)
        return (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 / mean

    assert variation("constant") < 0.01
    assert variation("poisson") == pytest.approx(1, rel=0.05)
    assert variation("bursty") == pytest.approx(4, rel=0.15)
    assert variation("on-off") > 1.5


def test_weibull_gaps_have_mean_one() -> None:
    gap, rng = weibull_gap(0.7), random.Random(1)
    assert sum(gap(rng) for _ in range(50_000)) / 50_000 == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize(
    "changes", [{"rate_per_s": 0}, {"duration_s": -1}, {"cv": 0}, {"on_s": float("inf")}]
)
def test_arrivals_that_cannot_be_are_refused(changes: dict[str, float]) -> None:
    given = {"rate_per_s": 1.0, "duration_s": 1.0} | changes
    with pytest.raises(ConfigInvalid, match="must be above 0"):
        arrival_times("poisson", random.Random(1), **given)


def test_arrivals_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "REQUESTS_MAX", 10)
    with pytest.raises(ConfigInvalid, match="more than 10"):
        arrival_times("poisson", random.Random(1), rate_per_s=2, duration_s=9)


def test_generated_requests_have_the_lengths_asked_for() -> None:
    trace = generated_trace(1, rate_per_s=50, duration_s=200, input_tokens=900, output_tokens=80)
    count = len(trace.rows)
    assert count == pytest.approx(10_000, rel=0.05)
    assert sum(row.input_tokens for row in trace.rows) / count == pytest.approx(900, rel=0.1)
    assert sum(row.output_tokens for row in trace.rows) / count == pytest.approx(80, rel=0.1)
    given = generated_trace(1, rate_per_s=5, duration_s=20, lengths=[(7, 3)], limit=4)
    assert [(row.input_tokens, row.output_tokens) for row in given.rows] == [(7, 3)] * 4
    with pytest.raises(ConfigInvalid, match="No request arrives"):
        generated_trace(1, rate_per_s=0.001, duration_s=1)
    with pytest.raises(ConfigInvalid, match="0 tokens"):
        generated_trace(1, rate_per_s=1, duration_s=1, input_tokens=0)


# Agents.


def test_a_turn_begins_with_all_of_the_turn_before() -> None:
    trace = agent_trace(Agents(branch_share=0.5), 1, rate_per_s=0.2, duration_s=300)
    named = {each.request: each for each in trace.rows}
    assert len(named) == len(trace.rows)
    assert [each.at_ns for each in trace.rows] == sorted(each.at_ns for each in trace.rows)
    seen: set[str] = set()
    for each in trace.rows:
        assert set(each.wait_for) <= seen
        assert each.request is not None
        seen.add(each.request)
        if each.wait_for:
            before = named[each.wait_for[0]]
            assert each.block_ids[: len(before.block_ids)] == before.block_ids
            assert each.input_tokens > before.input_tokens + before.output_tokens
            assert (each.delay_ns > 0) == (each.session == before.session)
        assert len(each.block_ids) == each.input_tokens // 512
    assert any(len(each.wait_for) > 1 for each in trace.rows)
    assert any(each.session != each.family for each in trace.rows)
    shared = Counter(each.block_ids[:8] for each in trace.rows if not each.wait_for)
    assert max(shared.values()) > 1  # agents of one kind have the same instructions
    one = requests(trace)
    assert len({(each.tenant, each.tier) for each in one if each.session == "agent-3"}) == 1


def test_agents_follow_the_seed_and_end() -> None:
    def drawn(seed: int, limit: int | None = None, **changes: object) -> Trace:
        agents = msgspec.structs.replace(Agents(), **changes)
        return agent_trace(agents, seed, rate_per_s=0.5, duration_s=60, limit=limit)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(1, 5).rows == drawn(1).rows[:5]
    short = drawn(1, turns_mean=1, branch_share=0)
    assert {len(each.wait_for) for each in short.rows} == {0}
    long = drawn(1, turns_mean=50, turns_max=4, context_tokens_max=20_000)
    assert max(Counter(each.session for each in long.rows).values()) <= 4
    assert max(each.input_tokens for each in long.rows) <= 20_000
    assert drawn(1, branches_max=0) == drawn(1, branches_max=0, branch_share=0.5)
    with pytest.raises(ConfigInvalid, match="branch_share"):
        drawn(1, branch_share=1.5)
    with pytest.raises(ConfigInvalid, match="turns_mean"):
        drawn(1, turns_mean=0)
    with pytest.raises(ConfigInvalid, match="No session begins"):
        drawn(1, context_tokens_max=1)


def test_a_mix_is_a_record() -> None:
    mix = steady({Tier.HIGH: 1})
    assert msgspec.json.decode(msgspec.json.encode(mix), type=TierMix) == mix
