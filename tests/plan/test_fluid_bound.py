"""The fluid bound is what it says on paper, is monotonic, and no assignment beats it."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.fluid_samples import MODEL, MS, PLAIN, asks, sample_book, worker
from tokenworks.core.ids import ModelName
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.perf.timing import Timing
from tokenworks.plan import fluid_program
from tokenworks.plan.fluid_bound import FluidBound, capacity_load, fluid_bound
from tokenworks.plan.fluid_inputs import Demand, load_s, merged, prefill_s, request_demand

BOOK = sample_book()
LOOSE = 0.003
"""How much the paces may raise a bound: PACE_RATIO says 0.23 % of the load."""


def near(value: float, exact: float) -> bool:
    return exact * (1 - 1e-6) <= value <= exact * (1 + LOOSE)


def test_slots_bind_where_no_promise_does() -> None:
    # Free and ads: 10 sequences take 20 ms, so 100 s make 50,000 tokens at $1 per 1M.
    book = sample_book(ads=1_000_000)
    bound = fluid_bound([worker()], [asks(Tier.FREE, 10**6)], book)
    assert bound.bound_dollars == pytest.approx(0.05, rel=1e-4)
    assert bound.served[0].running == pytest.approx(10, rel=1e-4)
    assert bound.uses[0].decode_shares[0][0] == pytest.approx(0.02, rel=1e-3)


@pytest.mark.parametrize(
    ("tier", "tokens"),
    # 25 tokens/s are iterations of 40 ms: 30 sequences. 50 tokens/s are 20 ms: 10 of them.
    [(Tier.PREMIUM, 75_000), (Tier.ULTRA, 50_000)],
)
def test_a_promise_of_speed_limits_the_batch(tier: Tier, tokens: int) -> None:
    price = BOOK.prices[MODEL][tier].output_udollars_per_mtok / 1e12
    bound = fluid_bound([worker(slots=1000)], [asks(tier, 10**6)], BOOK)
    # What misses the tier may still be sold a tier below; here that earns less per second.
    assert near(bound.bound_dollars, tokens * price)
    assert {(row.asked, row.delivered) for row in bound.served} == {(tier, tier)}


def test_what_misses_its_tier_is_sold_below_it() -> None:
    slow = msgspec.structs.replace(PLAIN, launch_fs=30 * MS)
    bound = fluid_bound([worker(timing=slow)], [asks(Tier.ULTRA, 1_000)], BOOK)
    assert near(bound.bound_dollars, 1_000 * 45 / 1e6)
    assert [row.delivered for row in bound.served] == [Tier.PREMIUM]
    with_credit = sample_book(credit_ppm=200_000)
    bound = fluid_bound([worker(timing=slow)], [asks(Tier.ULTRA, 1_000)], with_credit)
    assert near(bound.bound_dollars, 0.8 * 1_000 * 45 / 1e6)


def test_a_tier_without_a_promise_of_speed_has_none_to_keep() -> None:
    slack = msgspec.structs.replace(BOOK.promises[Tier.HIGH], interactivity_tokens_per_s=0)
    book = msgspec.structs.replace(BOOK, promises={**BOOK.promises, Tier.HIGH: slack})
    slow = msgspec.structs.replace(PLAIN, launch_fs=10_000 * MS)
    bound = fluid_bound([worker(timing=slow)], [asks(Tier.HIGH, 50)], book)
    assert near(bound.bound_dollars, 50 * 6 / 1e6)


def test_grace_is_counted_in_full() -> None:
    # 10 requests of 10 tokens with 100 ms of grace: 20 + 10 ms a token, so a batch of 20.
    demand = asks(Tier.ULTRA, 100_000, requests=10_000)
    bound = fluid_bound([worker(slots=1000)], [demand], sample_book(grace_ns=NS_PER_S // 10))
    assert near(bound.bound_dollars, 100 * 20 / 0.030 * 150 / 1e6)


def test_the_kv_cache_binds() -> None:
    # Each token reads and holds 100 tokens of KV; 500 of them make a batch of 5: 15 ms.
    demand = asks(Tier.MEDIUM, 10**6, context_tokens=10**8, held_tokens=10**8)
    bound = fluid_bound([worker(kv_tokens=500)], [demand], BOOK)
    assert near(bound.bound_dollars, 100 * 5 / 0.015 * 3 / 1e6)


def test_prefill_takes_time_and_the_cache_saves_it_or_its_price() -> None:
    # A request of 20 prompt tokens and no decode: 20 ms, or 10 ms when half is cached.
    prompts = Demand(
        model=MODEL,
        tier=Tier.MEDIUM,
        requests=10_000,
        uncached_input_tokens=100_000,
        cached_input_tokens=100_000,
        output_tokens=10_000,
        decode_tokens=0,
        context_tokens=0,
        held_tokens=0,
        hit_pairs=0,
        miss_pairs=0,
    )
    book = sample_book(input_share=1.0)
    cached, full = (10 + 1 + 1) * 3e-6, (20 + 1) * 3e-6
    # 100 s are enough to find all prefixes; 200 s, to read all anew and bill the full price.
    bound = fluid_bound([worker()], [prompts], book)
    assert bound.bound_dollars == pytest.approx(10_000 * cached, rel=1e-4)
    bound = fluid_bound([worker(up_ns=(200 * NS_PER_S,))], [prompts], book)
    assert bound.bound_dollars == pytest.approx(10_000 * full, rel=1e-4)
    assert bound.uses[0].prefill_share == pytest.approx(1.0)


def test_what_others_compute_is_free_at_the_cached_price() -> None:
    # 10 of 20 tokens are booked on each, though another request may compute them: 10 ms, or none.
    demand = request_demand(
        MODEL, Tier.MEDIUM, input_tokens=20, hit_tokens=10, reach_tokens=20, output_tokens=1
    )
    prompts = merged([demand] * 10_000)
    cheap = sample_book(input_share=1.0)
    prices = {
        tier: msgspec.structs.replace(
            each, cached_input_udollars_per_mtok=each.input_udollars_per_mtok
        )
        for tier, each in cheap.prices[MODEL].items()
    }
    alike = msgspec.structs.replace(cheap, prices={MODEL: prices})
    short = worker(up_ns=(50 * NS_PER_S,))
    # At one price all must compute their own: 50 s are enough for half of them.
    assert fluid_bound([short], [prompts], alike).bound_dollars == pytest.approx(
        5_000 * 21 * 3e-6, rel=1e-4
    )
    # Where cached tokens cost a tenth, the other half may have come to leave them to others.
    assert fluid_bound([short], [prompts], cheap).bound_dollars == pytest.approx(
        (5_000 * (10 + 1 + 1) + 5_000 * (2 + 1)) * 3e-6, rel=1e-4
    )


def test_kv_moves_only_where_a_class_has_one_part() -> None:
    demand = asks(Tier.MEDIUM, 1_000, uncached_input_tokens=50_000)
    reads = worker(name="reads", decodes=False)
    makes = worker(name="makes", prefills=False, up_ns=(2 * NS_PER_S,))
    assert fluid_bound([reads, makes], [demand], BOOK).bound_dollars == pytest.approx(0.003)
    # Two whole classes, of 2 s each: both must read what they decode.
    short = [worker(name=name, up_ns=(2 * NS_PER_S,)) for name in "ab"]
    assert fluid_bound(short, [demand], BOOK).bound_dollars < 0.003 * 0.1
    other = worker(model=ModelName("other"))
    assert fluid_bound([other], [demand], BOOK).bound_dollars < 1e-8


def test_work_may_wait_only_until_its_promise_is_lost() -> None:
    up_ns = (NS_PER_S, 100 * NS_PER_S)
    demand = asks(Tier.MEDIUM, 10_000)
    anytime = fluid_bound([worker(up_ns=up_ns)], [demand], BOOK).bound_dollars
    soon = msgspec.structs.replace(demand, windows_last=(1, 0, 0, 0, 0))
    at_once = fluid_bound([worker(up_ns=up_ns)], [soon], BOOK).bound_dollars
    late = msgspec.structs.replace(demand, window_first=1)
    assert near(anytime, 0.03)
    assert near(at_once, 500 * 3 / 1e6)
    assert near(fluid_bound([worker(up_ns=up_ns)], [late], BOOK).bound_dollars, 0.03)


def sample(seed: int, size: int = 60) -> list[list[Demand]]:
    """Requests by tier, lengths spread widely."""
    rng = random.Random(seed)
    return [
        [
            request_demand(
                MODEL,
                tier,
                input_tokens=(tokens := 1 + int(rng.lognormvariate(3, 1))),
                hit_tokens=tokens * rng.randrange(3) // 3,
                output_tokens=1 + int(rng.lognormvariate(4, 1)),
            )
            for _ in range(size)
        ]
        for tier in Tier
    ]


FLEET = [
    worker(name="slow", up_ns=(40 * NS_PER_S,), slots=64, kv_tokens=8_000),
    worker(
        name="fast",
        up_ns=(15 * NS_PER_S,),
        slots=32,
        timing=Timing(
            launch_fs=5 * MS,
            sequence_fs=MS // 4,
            context_token_fs=MS // 100,
            prefill_token_fs=MS // 4,
            prefill_context_fs=MS // 1000,
        ),
    ),
]
PRICED = sample_book(input_share=0.2, grace_ns=NS_PER_S // 5, ads=500_000)


def test_the_programme_proves_itself_when_its_groups_are_of_equals() -> None:
    for seed in range(5):
        groups = [merged(members) for members in sample(seed)]
        bound = fluid_bound(FLEET, groups, PRICED)
        assert bound.bound_dollars == pytest.approx(bound.programme_dollars, rel=1e-5)
        assert sum(row.revenue_dollars for row in bound.served) == pytest.approx(
            bound.programme_dollars
        )


def test_picking_within_groups_is_bounded_and_finer_groups_come_closer() -> None:
    members = sample(7, size=60)
    coarse = fluid_bound(FLEET, [merged(each) for each in members], PRICED, members)
    whole = [group[:12] for group in members]
    exact = fluid_bound(FLEET, [each for group in whole for each in group], PRICED)
    guessed = fluid_bound(FLEET, [merged(each) for each in whole], PRICED, whole)
    assert coarse.bound_dollars >= coarse.programme_dollars
    assert exact.programme_dollars <= guessed.bound_dollars * (1 + 1e-6)
    assert guessed.bound_dollars <= exact.programme_dollars * 1.1


def finite(bound: FluidBound, more: FluidBound, step: float) -> float:
    return (more.programme_dollars - bound.programme_dollars) / step


def test_duals_are_finite_differences() -> None:
    groups = [merged(members) for members in sample(3)]
    bound = fluid_bound(FLEET, groups, PRICED)
    for c, each in enumerate(FLEET):
        up_ns = each.up_ns[0] + 10**6
        fleet = [*FLEET[:c], msgspec.structs.replace(each, up_ns=(up_ns,)), *FLEET[c + 1 :]]
        worth = bound.uses[c].worth_dollars_per_worker_s[0]
        assert worth == pytest.approx(
            finite(bound, fluid_bound(fleet, groups, PRICED), 0.001), rel=0.01, abs=1e-6
        )
    for g, group in enumerate(groups):
        # A hundredth of every request of a group, so that the group stays as it is.
        scaled = {
            name: value * 101
            for name, value in msgspec.structs.asdict(group).items()
            if isinstance(value, int) and name != "window_first"
        }
        rest = [
            msgspec.structs.replace(
                each,
                **{
                    name: value * 100
                    for name, value in msgspec.structs.asdict(each).items()
                    if isinstance(value, int) and name != "window_first"
                },
            )
            for each in groups
        ]
        big = [msgspec.structs.replace(each, up_ns=(each.up_ns[0] * 100,)) for each in FLEET]
        before = fluid_bound(big, rest, PRICED)
        rest[g] = msgspec.structs.replace(group, **scaled)
        after = fluid_bound(big, rest, PRICED)
        assert bound.bids[g].dollars_per_request == pytest.approx(
            finite(before, after, group.requests), rel=0.02, abs=1e-7
        )
        assert bound.bids[g].dollars_per_output_token == pytest.approx(
            bound.bids[g].dollars_per_request * group.requests / group.output_tokens
        )


def test_more_workers_and_higher_prices_earn_no_less() -> None:
    groups = [merged(members) for members in sample(11)]
    rising = []
    for times in (0, 1, 2, 5, 50):
        fleet = [msgspec.structs.replace(c, up_ns=(c.up_ns[0] * times,)) for c in FLEET]
        rising.append(fluid_bound(fleet, groups, PRICED).bound_dollars)
    assert all(low <= high * (1 + 1e-6) for low, high in pairwise(rising))
    assert rising[0] < 1e-6
    dearer = sample_book(input_share=0.3, grace_ns=NS_PER_S // 5, ads=600_000)
    assert fluid_bound(FLEET, groups, dearer).bound_dollars > rising[1]


@pytest.mark.heavy
@settings(max_examples=40)
@given(st.data())
def test_no_feasible_assignment_beats_it(data: st.DataObject) -> None:
    """Batches of whole requests, each run to its end on one worker, in any order drawn."""
    requests = [each for group in sample(data.draw(st.integers(0, 10**6)), 12) for each in group]
    order = data.draw(st.permutations(requests))
    batch_max = data.draw(st.integers(1, 24))
    by_price = data.draw(st.booleans())
    if by_price:
        order = sorted(order, key=lambda each: -each.tier.rank)
    earned = 0.0
    fleet = [msgspec.structs.replace(each, up_ns=(each.up_ns[0] // 4,)) for each in FLEET]
    for each in fleet:
        left_s = each.up_ns[0] / NS_PER_S
        while order:
            batch, order = order[:batch_max], order[batch_max:]
            seconds, dollars = _batch_run(batch, each.timing)
            if seconds > left_s:
                break
            left_s -= seconds
            earned += dollars
    members = [[each for each in requests if each.tier is tier] for tier in Tier]
    bound = fluid_bound(fleet, [merged(group) for group in members], PRICED, members)
    assert earned <= bound.bound_dollars


def _batch_run(batch: list[Demand], timing: Timing) -> tuple[float, float]:
    """Prefill all, then decode until the last has ended: time and revenue."""
    total = sum(prefill_s(each, timing) for each in batch)
    inputs = [each.uncached_input_tokens + each.cached_input_tokens for each in batch]
    decode_s = [0.0] * len(batch)
    for step in range(max(each.decode_tokens for each in batch)):
        running = [i for i, each in enumerate(batch) if each.decode_tokens > step]
        context = sum(inputs[i] + step for i in running)
        took = timing.decode_fs(len(running), context) / 1e15
        total += took
        for i in running:
            decode_s[i] += took
    dollars = 0.0
    for each, took in zip(batch, decode_s, strict=True):
        kept = [
            tier
            for tier in Tier
            if tier.rank <= each.tier.rank
            and took <= each.decode_tokens / PRICED.promises[tier].interactivity_tokens_per_s + 0.2
        ]
        tier = kept[-1] if kept else Tier.FREE
        dollars += fluid_program.revenue_dollars(each, tier, PRICED)
    return total, dollars


def test_paces_lose_nothing_and_add_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closer paces lower the bound towards the truth, and never by more than their ratio says."""
    groups = [merged(members) for members in sample(5)]
    bounds = []
    for ratio in (1.4, 1.1, 1.02):
        monkeypatch.setattr(fluid_program, "PACE_RATIO", ratio)
        bounds.append(fluid_bound(FLEET, groups, PRICED).programme_dollars)
    assert bounds[2] <= bounds[1] * (1 + 1e-6)
    assert bounds[1] <= bounds[2] * (1 + LOOSE)
    assert bounds[0] <= bounds[2] * 1.05


def test_the_best_integer_batch_is_within_the_paces() -> None:
    """One tier by brute force over batch sizes 1 to 256."""
    for tier in (Tier.HIGH, Tier.PREMIUM, Tier.ULTRA):
        limit_s = 1 / BOOK.promises[tier].interactivity_tokens_per_s
        best = max(b / (0.010 + 0.001 * b) for b in range(1, 257) if 0.010 + 0.001 * b <= limit_s)
        price = BOOK.prices[MODEL][tier].output_udollars_per_mtok / 1e12
        bound = fluid_bound([worker(slots=256)], [asks(tier, 10**6)], BOOK).bound_dollars
        assert near(bound, 100 * best * price)


def test_capacity_is_where_all_is_just_served() -> None:
    # 10 + 30 ms for 30 tokens of premium: 100 s make 75,000.
    assert near(capacity_load([worker(slots=100)], [asks(Tier.PREMIUM, 7_500)], BOOK), 10)
    groups = [merged(members) for members in sample(2)]
    load = capacity_load(FLEET, groups, PRICED)
    fleet = [
        msgspec.structs.replace(each, up_ns=(int(each.up_ns[0] / load) + 1,)) for each in FLEET
    ]
    assert capacity_load(fleet, groups, PRICED) == pytest.approx(1, rel=1e-5)
    served = fluid_bound(fleet, groups, sample_book(ads=500_000, grace_ns=NS_PER_S // 5)).served
    assert sum(row.requests for row in served if row.asked is row.delivered) == pytest.approx(
        sum(group.requests for group in groups), rel=1e-4
    )


def test_capacity_keeps_the_promise_of_free_too() -> None:
    # One token a second: 990 sequences of 1 ms each and a launch; the bound itself has no limit.
    load = capacity_load([worker(slots=10**6)], [asks(Tier.FREE, 99_000)], BOOK)
    assert near(load, 1)


def test_a_demand_of_five_tiers_and_two_classes_is_quick() -> None:
    groups = [merged(members) for members in sample(1)]
    fleet = [msgspec.structs.replace(each, slots=256) for each in FLEET]
    fluid_bound(fleet, groups, PRICED)
    before = time.process_time()
    fluid_bound(fleet, groups, PRICED)
    assert time.process_time() - before < 1


def test_it_is_the_same_twice() -> None:
    groups = [merged(members) for members in sample(1)]
    assert fluid_bound(FLEET, groups, PRICED) == fluid_bound(FLEET, groups, PRICED)


def test_figures_of_a_group_are_those_of_its_requests() -> None:
    members = sample(4)[2]
    group = merged(members)
    assert load_s(group, PLAIN) == pytest.approx(sum(load_s(each, PLAIN) for each in members))
    assert group.requests == len(members)
