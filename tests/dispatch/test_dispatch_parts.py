"""The dispatcher's parts alone: states, speeds, the prefix index, snapshots."""

from __future__ import annotations

import doctest

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dispatch.dispatch_world import CURVE, arrived, configured, factory, promises, up
from tokenworks.core.ids import RequestID
from tokenworks.core.slo import Tier
from tokenworks.dispatch import chains, fleet, pickers, policy, snapshot, states, workers
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.prefix_index import RETIRED_MAX, PrefixIndex
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.states import TRANSITIONS, State, Step, after
from tokenworks.dispatch.waiting import Line


@pytest.mark.parametrize("module", [chains, policy, states, workers])
def test_examples_in_the_text_hold(module: object) -> None:
    failed, tried = doctest.testmod(module)  # type: ignore[arg-type]
    assert (failed, tried > 0) == (0, True)


# States.


def test_every_state_is_reached_and_only_ended_is_final() -> None:
    assert {state for state, _ in TRANSITIONS} == set(State) - {State.ENDED}
    assert set(TRANSITIONS.values()) == set(State)
    assert {step for _, step in TRANSITIONS} == set(Step)


def test_a_step_that_the_table_lacks_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        after(State.ENDED, Step.SEND)


# Speeds.


@pytest.mark.parametrize("curve", [(), ((0, 5),), ((2, 5), (2, 4)), ((2, 5), (1, 6)), ((1, -1),)])
def test_a_curve_that_is_none(curve: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(AssertionError):
        workers.speeds_of(curve, 4)


def test_slots_are_at_least_one() -> None:
    with pytest.raises(AssertionError):
        workers.speeds_of(CURVE, 0)


CURVES = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 500)),
    min_size=1,
    max_size=6,
    unique_by=lambda point: point[0],
).map(lambda points: tuple(sorted(points)))


@given(CURVES, st.integers(1, 50), st.integers(0, 600))
def test_caps_against_a_slow_oracle(
    curve: tuple[tuple[int, int], ...], slots: int, promised: int
) -> None:
    speeds = workers.speeds_of(curve, slots)
    assert len(speeds) == slots + 1
    for batch, speed in curve:
        if batch <= slots:
            assert speeds[batch] == speed
    cap = workers.tier_cap(speeds, promised)
    assert 1 <= cap <= slots
    assert all(speeds[b] >= promised for b in range(2, cap + 1))
    assert cap == slots or speeds[cap + 1] < promised


def test_a_slow_machine_still_serves() -> None:
    dispatcher = factory(up(curve=((1, 1),)))
    assert set(dispatcher.loads()["a"].caps.values()) == {1}


# Policy.


def worker(index: int, running: int = 0, slots: int = 16) -> workers.Worker:
    made = workers.Worker(
        worker=f"w{index}",  # type: ignore[arg-type]
        pool="p",  # type: ignore[arg-type]
        model="m",  # type: ignore[arg-type]
        engine_slots=slots,
        slots=slots,
        curve=CURVE,
        index=index,
    )
    made.measure(promises())
    alone = fleet_of(made)
    for i in range(running):
        alone.take(made, f"w{index}r{i}", Tier.FREE.rank)  # type: ignore[arg-type]
    return made


def fleet_of(*workers: workers.Worker) -> fleet.Fleet:
    return fleet.Fleet(list(workers), [Line() for _ in Tier], [])


def test_ties_go_to_the_least_loaded_then_to_the_lowest_index() -> None:
    index = PrefixIndex(100)
    workers = [worker(index.add_worker(), running=n) for n in (3, 1, 1, 2)]
    several = fleet_of(*workers)

    def pick(prefix: tuple[int, ...], imbalance: int) -> tuple[workers.Worker, str, int]:
        return pickers.pick_cache_aware(several, several.open, prefix, index, imbalance)

    assert pick((), 8)[0] is workers[1]
    for each in (0, 2, 3):
        index.insert((1, 2), each, 0)
    assert pick((1, 2), 8) == (workers[2], "prefix_hit", 2)
    assert pick((1, 2), 1) == (workers[2], "least_loaded", 2)
    index.insert((1,), 1, 0)
    index.insert((1, 2, 3), 0, 0)
    assert pick((1, 2, 3), 1) == (workers[2], "least_loaded", 2)


def test_who_is_hidden_stays_so_until_it_is_shown_again() -> None:
    one, other = worker(0), worker(1)
    both = fleet_of(one, other)

    def seen() -> list[int]:
        return list(both.admitting)

    both.hide(one, 2)
    assert seen() == [2, 2, 3, 3, 3]
    both.recount()
    assert seen() == [2, 2, 3, 3, 3]
    both.take(one, RequestID("r"), 2)
    both.take(other, RequestID("s"), 0)
    assert seen()[:3] == [2, 2, 3]
    both.hide(one, 3)
    assert seen()[:3] == [2, 2, 2]
    both.unhide(one)
    both.unhide(other)
    shown = seen()
    assert shown[:3] == [3, 3, 3]
    both.recount()
    assert seen() == shown


def test_one_candidate_is_named_for_its_hit() -> None:
    index = PrefixIndex(100)
    only = fleet_of(worker(index.add_worker()))
    index.insert((1,), 0, 0)
    assert pickers.pick_cache_aware(only, 1, (1, 2), index, 0)[1] == "prefix_hit"
    assert pickers.pick_cache_aware(only, 1, (1, 2, 3), index, 0)[1] == "least_loaded"


def test_loads_are_compared_on_the_largest_worker() -> None:
    half, full = worker(0, running=2, slots=4), worker(1, running=9, slots=16)
    two = fleet_of(half, full)
    assert (half.load, full.load, two.load_min, two.load_max) == (8, 9, 8, 9)
    assert list(two.each(two.least_loaded(0b11))) == [half]


@given(
    st.lists(st.sampled_from([1, 3, 16]), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), max_size=60),
)
def test_sets_of_workers_are_what_a_recount_says(
    slots: list[int], moves: list[tuple[int, int, bool]]
) -> None:
    workers = [worker(i, slots=each) for i, each in enumerate(slots)]
    several = fleet_of(*workers)
    for number, (at, rank, take) in enumerate(moves):
        each = workers[at % len(workers)]
        if take and len(each.running) < each.slots:
            several.take(each, f"r{number}", rank)  # type: ignore[arg-type]
        elif each.running:
            several.release(each, next(iter(each.running)))
        again = fleet_of(*workers)
        for name in ("up", "open", "admitting", "loads", "load_min", "load_max"):
            assert getattr(several, name) == getattr(again, name), name
        admitting = [
            sum(
                1 << w.index
                for w in workers
                if len(w.running) < w.limit and len(w.running) < w.caps[rank]
            )
            for rank in range(5)
        ]
        assert several.admitting == admitting


def test_before_anything_was_sent_no_tier_takes_a_part() -> None:
    idle = [worker(0, slots=1)]
    expected = idle[0].service_ns_expected(64)
    told = [pickers.retry_after_ns(idle, 0, ahead, 64, ()) for ahead in (2, 5)]
    assert told == [pickers.retry_after_bounded(n * expected) for n in (3, 6)]
    # One of two sends went to a higher tier, and will again.
    assert pickers.retry_after_ns(idle, 0, 2, 64, (0, 1)) == told[1]


# Prefix index.


PREFIXES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 4)), max_size=25)


def chain(family: int, length: int) -> tuple[int, ...]:
    return tuple(1_000 * (family if depth >= 3 else 0) + depth for depth in range(length))


def holders_of(index: PrefixIndex, block: int) -> int:
    record = index.record()
    masks = [
        [int.from_bytes(mask, "little") for blocks, mask in layer if block in blocks]
        for layer in (record.young, record.old)
    ]
    assert max(map(len, masks)) < 2  # a block is in one stretch
    return next((found[0] for found in masks if found), 0)


@given(PREFIXES, st.integers(0, 60), st.integers(0, 31), st.integers(0, 3), st.integers(0, 9))
def test_the_longest_match_against_a_slow_oracle(
    inserts: list[tuple[int, int, int]], blocks_max: int, mask: int, family: int, length: int
) -> None:
    index = PrefixIndex(blocks_max, ttl_ns=7)
    for _ in range(5):
        index.add_worker()
    for now_ns, (each, depth, at) in enumerate(inserts):
        prefix = chain(each, depth)
        index.insert(prefix, at, now_ns)
        assert len(index) <= blocks_max
    prefix = chain(family, length)
    depth, holders = 0, 0
    for i, block in enumerate(prefix):
        hit = holders_of(index, block) & mask
        if not hit:
            break
        depth, holders = i + 1, hit
    assert index.match(prefix, mask) == (depth, holders)


@given(PREFIXES, st.integers(1, 9))
def test_what_was_just_sent_is_known_and_what_is_old_is_forgotten(
    inserts: list[tuple[int, int, int]], ttl_ns: int
) -> None:
    index = PrefixIndex(1_000, ttl_ns)
    for _ in range(5):
        index.add_worker()
    sent: dict[tuple[int, int], int] = {}
    for now_ns, (each, depth, at) in enumerate(inserts):
        index.insert(chain(each, depth), at, now_ns)
        for block in chain(each, depth):
            sent[block, at] = now_ns
        for (block, worker_index), then_ns in sent.items():
            held = holders_of(index, block) >> worker_index & 1
            if now_ns - then_ns < ttl_ns:
                assert held


def test_the_generation_that_was_not_used_goes() -> None:
    index = PrefixIndex(8)
    at = index.add_worker()
    index.insert((1, 2), at, 0)
    index.insert((10, 11, 12), at, 0)  # begins a generation
    assert index.match((1, 2), 1) == (2, 1)
    index.insert((1, 2, 3), at, 0)
    assert index.match((10, 11, 12), 1) == (3, 1)
    index.insert((20, 21), at, 0)
    assert index.match((10, 11, 12), 1) == (0, 0)
    assert index.match((1, 2, 3), 1) == (3, 1)
    index.insert(tuple(range(30, 40)), at, 0)
    assert index.match(tuple(range(30, 40)), 1) == (4, 1)
    index.resize(9)
    assert index.match((30,), 1) == (1, 1)
    index.resize(7)
    assert index.match((30,), 1) == (0, 0)
    assert index.match((20,), 1) == (1, 1)
    index.resize(3)
    assert len(index) == 0


def test_what_differs_from_a_known_prompt_is_kept_beside_it() -> None:
    index = PrefixIndex(100)
    one, two = index.add_worker(), index.add_worker()
    index.insert((1, 2, 3, 4, 5, 6), one, 0)
    index.insert((1, 2, 3, 14, 15), one, 0)
    index.insert((1, 2, 23), two, 0)
    assert index.match((1, 2, 3, 4, 5, 6), 0b11) == (6, 0b01)
    assert index.match((1, 2, 3, 14, 15), 0b11) == (5, 0b01)
    assert index.match((1, 2, 3, 4), 0b10) == (2, 0b10)
    assert index.match((1, 2, 23), 0b11) == (3, 0b10)
    assert len(index) == 9


def test_a_conversation_is_known_however_often_it_goes_on() -> None:
    index = PrefixIndex(1_000)
    at = index.add_worker()
    for length in range(10, 210, 10):
        index.insert(range(length), at, 0)
        assert index.match(range(300), 1) == (length, 1)
    assert len(index) == 200
    sizes = [len(blocks) for blocks, _ in index.record().young]
    assert max(sizes) <= chains.STRETCH_BLOCKS_MAX < sum(sizes) == 200


def test_hashes_that_are_no_chain_break_nothing() -> None:
    index = PrefixIndex(100)
    one, two = index.add_worker(), index.add_worker()
    index.insert((1, 2, 3), one, 0)
    index.insert((5, 2, 4, 6), one, 0)
    index.insert((1,), two, 0)
    index.insert((5,), two, 0)  # now two stretches would begin with the block 2
    assert len(index) == sum(len(blocks) for blocks, _ in index.record().young) == 5
    assert index.match((5, 2, 4), 0b01) == (3, 0b01)


def test_a_bound_that_became_smaller_holds_for_what_comes() -> None:
    index = PrefixIndex(100)
    at = index.add_worker()
    index.insert(range(30), at, 0)
    index.resize(40)
    for start in range(100, 200, 15):
        index.insert(range(start, start + 15), at, 0)
        assert len(index) <= 40


def test_engines_that_say_what_they_have_are_believed() -> None:
    index = PrefixIndex(4)
    told, silent = index.add_worker(), index.add_worker()
    index.insert((1, 2), told, 0)
    index.insert((1, 2), silent, 0)
    index.stored((1,), told)
    assert (index.is_exact(told), index.is_exact(silent)) == (True, False)
    assert index.match((1, 2), 0b11) == (2, 0b10)  # what it was sent says nothing any more
    assert index.match((1, 2), 0b01) == (1, 0b01)
    index.insert((1, 2), told, 0)
    assert index.match((1, 2), 0b01) == (1, 0b01)
    index.stored((2, 3, 4, 5), told)
    assert index.match((1, 2, 3, 4, 5), 0b11) == (4, 0b01)
    index.removed((2, 9), told)
    assert index.match((1, 2, 3), 0b01) == (1, 0b01)
    index.cleared(told)
    index.cleared(told)
    assert index.match((1, 2, 3), 0b11) == (2, 0b10)
    third = index.add_worker()
    for each in (told, third):
        index.stored((7,), each)
    index.removed((7,), third)
    assert index.match((7,), 0b101) == (1, 0b001)
    index.resize(0)
    assert index.match((7,), 0b101) == (0, 0)
    index.remove_worker(told)
    assert not index.is_exact(told)


def test_a_lost_worker_s_index_comes_back_clean() -> None:
    index = PrefixIndex(1_000)
    stays = index.add_worker()
    index.insert((1, 2), stays, 0)
    for i in range(RETIRED_MAX):
        lost = index.add_worker()
        assert lost == i + 1
        index.insert((1, 100 + i), lost, 0)
        index.remove_worker(lost)
    assert len(index) == 2
    assert index.add_worker() == 1
    assert index.match((1, 2), 0b10) == (0, 0)
    assert index.match((1, 2), 0b11) == (2, 1)


def test_an_index_is_given_back_once() -> None:
    index = PrefixIndex(1)
    index.remove_worker(index.add_worker())
    for wrong in (0, 1):
        with pytest.raises(AssertionError):
            index.remove_worker(wrong)
    for call in (index.resize, PrefixIndex):
        with pytest.raises(AssertionError):
            call(-1)


def test_the_index_is_restored_with_more_workers_than_a_word_has_bits() -> None:
    index = PrefixIndex(10)
    for _ in range(100):
        last = index.add_worker()
    index.insert((2**64 - 1, 5), last, 0)
    index.remove_worker(3)
    data = msgspec.msgpack.encode(index.record())
    again = PrefixIndex.restore(msgspec.msgpack.decode(data, type=type(index.record())))
    assert again.record() == index.record()
    assert again.match((2**64 - 1, 5), 1 << last) == (2, 1 << last)


# Lines.


def test_a_line_is_restored_with_who_was_set_late() -> None:
    line, tenants = Line(), ("x", "y", "x")
    for number, tenant in enumerate(tenants):
        line.append(
            Request(
                request=f"r{number}",  # type: ignore[arg-type]
                tenant=tenant,  # type: ignore[arg-type]
                model="m",  # type: ignore[arg-type]
                rank=4,
                output_tokens_max=1,
                input_tokens_max=1,
                prefix=(),
                arrived_ns=0,
                late_ns=1,
            )
        )
    line.set_late(line.requests()[0])
    again = Line.restore(line.requests(), line.rotation(), line.late())
    assert (again.requests(), again.rotation(), again.late()) == (
        *(line.requests(), line.rotation()),
        ["r0"],
    )
    assert again.late_head() is line.requests()[0]
    assert [head.request for head in again.heads()][:1] == [line.head().request]


# Snapshots.


def test_a_new_dispatcher_has_a_snapshot() -> None:
    again = Dispatcher.restore(Dispatcher().snapshot())
    assert again.digest() == Dispatcher().digest()
    again.handle(0, configured())
    assert again.digest() != Dispatcher().digest()


def test_a_snapshot_of_another_format_is_refused() -> None:
    data = msgspec.msgpack.decode(factory(up(), arrived("r")).snapshot())
    assert data["format"] == snapshot.SNAPSHOT_FORMAT
    data["format"] += 1
    with pytest.raises(msgspec.ValidationError, match=f"format {snapshot.SNAPSHOT_FORMAT + 1}"):
        Dispatcher.restore(msgspec.msgpack.encode(data))


def test_unknown_events_are_refused() -> None:
    with pytest.raises(AssertionError):
        factory().handle(0, "event")  # type: ignore[arg-type]


def test_what_is_left_of_a_chain_does_not_keep_all_of_it() -> None:
    index = PrefixIndex(100_000)
    stays, leave = index.add_worker(), [index.add_worker() for _ in range(RETIRED_MAX)]
    prompts = [tuple(range(1_000 * n, 1_000 * n + 512)) for n in range(20)]
    for prompt in prompts:
        index.insert(prompt, leave[0], 0)
        index.insert(prompt[:1], stays, 0)
    mostly = tuple(range(90_000, 90_010))
    index.insert(mostly, leave[0], 0)
    index.insert(mostly[:6], stays, 0)
    for worker in leave:
        index.remove_worker(worker)
    assert len(index) == 20 + 6
    kept = {id(each.blocks): len(each.blocks) for each in index._young._stretches.values()}
    assert sum(kept.values()) == 20 + 10
    assert [index.match(prompt, 1 << stays)[0] for prompt in [*prompts, mostly]] == [1] * 20 + [6]
