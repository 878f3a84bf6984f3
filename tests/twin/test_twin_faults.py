"""Engines that hang or slow down, workers taken for dead, wrong clocks, lost messages, gaps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.twin.factory import TIMING, configured, request, scenario, worker, workers
from tests.twin.test_twin_driver import R0, Faults, W, ends, faulty, split_factory
from tokenworks.core.ids import WorkerID
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.dispatch.events import (
    Arrived,
    BlocksRemoved,
    BlocksStored,
    Failed,
    Finished,
    WorkerDown,
    WorkerUp,
)
from tokenworks.perf.timing import Timing
from tokenworks.twin.driver import Driver, run
from tokenworks.twin.kv_feed import Feed
from tokenworks.twin.network import Kind, Network
from tokenworks.twin.records import End

MS = NS_PER_MS


def hang(name: WorkerID, until_ns: int) -> Callable[[Driver], None]:
    return lambda driver: driver.engine(name).hang(until_ns, driver.clock.at_ns)


@pytest.mark.parametrize("at_ms", [0, 5, 30, 2_000])
def test_an_engine_that_hangs_goes_on_later(at_ms: int) -> None:
    requests = [request(0, at_ns=0, output_tokens=50), request(1, at_ns=at_ms * MS + 1)]
    whole, _ = faulty(scenario(worker()), requests)
    until_ns = (at_ms + 700) * MS
    result, _ = faulty(scenario(worker()), requests, (at_ms * MS, hang(W, until_ns)))
    assert ends(result) == [End.DONE, End.DONE]
    late = [
        after - before
        for before, after in zip(
            whole.outcomes.finished_ns, result.outcomes.finished_ns, strict=True
        )
    ]
    assert max(late) <= 700 * MS
    assert late[1] > 690 * MS
    if at_ms < 1_000:
        assert result.outcomes.itl_max_ns[0] > 690 * MS or at_ms == 0
        assert late[0] > 690 * MS


def test_an_engine_that_hangs_and_crashes_has_made_no_more() -> None:
    requests = [request(0, at_ns=0, output_tokens=50)]
    made = []
    for faults in ((), ((30 * MS, hang(W, NS_PER_S)),)):
        result, _ = faulty(
            scenario(worker()), requests, *faults, (90 * MS, lambda each: each.crash(W, "power"))
        )
        assert ends(result) == [End.FAILED]
        made.append(result.outcomes.output_tokens[0])
    assert 5 < made[1] < 15 < made[0]


def test_an_engine_that_slows_down_and_recovers() -> None:
    requests = [request(0, at_ns=0, output_tokens=200), request(1, at_ns=3 * NS_PER_S)]
    slow = Timing(**{name: 4 * getattr(TIMING, name) for name in Timing.__struct_fields__})
    result, _ = faulty(
        scenario(worker()),
        requests,
        (100 * MS, lambda driver: driver.pace(W, slow)),
        (300 * MS, lambda driver: driver.pace(W, TIMING)),
    )
    first, _ = faulty(scenario(worker()), requests)
    late_ns = result.outcomes.finished_ns[0] - first.outcomes.finished_ns[0]
    assert 140 * MS < late_ns < 165 * MS  # three quarters of the time that it was slow
    assert 9 * MS < result.outcomes.itl_max_ns[0] < 11 * MS
    own = [run.outcomes.finished_ns[1] - 3 * NS_PER_S for run in (result, first)]
    assert own[0] == own[1]
    result, _ = faulty(
        scenario(worker()),
        requests,
        (NS_PER_S, lambda driver: driver.pace(W, slow)),  # it has nothing to do
        (2 * NS_PER_S, lambda driver: driver.pace(W, TIMING)),
    )
    assert result.outcomes.finished_ns == first.outcomes.finished_ns


def test_what_a_sequence_has_made_can_be_asked_at_any_time() -> None:
    made: list[int] = []

    def ask(driver: Driver) -> None:
        sequence = driver.live_attempt(0)
        assert sequence is not None
        made.append(driver.made(sequence))

    requests = [request(0, at_ns=0, output_tokens=20)]
    faulty(scenario(worker()), requests, *((at * MS, ask) for at in range(1, 50, 3)))
    assert made[: len(made) // 2] == sorted(made[: len(made) // 2])
    assert (made[0], max(made)) == (0, 19)


def test_a_worker_that_is_taken_for_dead_drops_what_it_has() -> None:
    requests = [request(n, at_ns=n * MS, output_tokens=60) for n in range(4)]
    w1 = WorkerID("w001")
    result, hooks = faulty(
        scenario(*workers(2, worker())),
        requests,
        (1 * MS, hang(w1, 900 * MS)),
        (200 * MS, lambda driver: driver.lose(w1, "it does not answer")),
        (201 * MS, lambda driver: driver.lose(w1, "again")),
        (900 * MS, lambda driver: driver.find(w1)),
        (901 * MS, lambda driver: driver.find(w1)),
    )
    assert [now_ns for now_ns, _ in hooks.of(WorkerDown)] == [200 * MS]
    assert [now_ns for now_ns, _ in hooks.of(WorkerUp)] == [0, 0, 900 * MS]
    assert set(ends(result)) == {End.DONE}
    assert max(result.outcomes.sent_ns) == 200 * MS


def test_the_dispatcher_is_not_told_that_the_clock_went_back() -> None:
    requests = [request(n, at_ns=n * 100 * MS) for n in range(6)]
    result, hooks = faulty(
        scenario(worker()),
        requests,
        (150 * MS, lambda driver: driver.jump(-200 * MS)),
        (450 * MS, lambda driver: driver.jump(NS_PER_S)),
    )
    assert all(end == End.DONE for end in ends(result))
    told = [now_ns for now_ns, _ in hooks.of(Arrived)]
    assert told[:2] == [0, 100 * MS]
    assert told[2:4] == [150 * MS, 150 * MS]  # it stands still until it has caught up
    assert told[4] == 200 * MS
    assert told[5] == 500 * MS + 800 * MS
    assert [event.arrived_ns for _, event in hooks.of(Arrived)] == told


@pytest.mark.parametrize("by_ms", [-300, 300])
def test_patience_ends_by_the_clock_however_it_jumps(by_ms: int) -> None:
    settings = configured(patience_ns=100 * MS)
    requests = [request(n, at_ns=0, output_tokens=900) for n in range(2)]
    result, _ = faulty(
        scenario(worker(slots=1), settings=settings),
        requests,
        (50 * MS, lambda driver: driver.jump(by_ms * MS)),
    )
    assert sorted(ends(result)) == [End.DONE, End.REJECTED]
    waited_ns = max(map(result.outcomes.wait_ns_max, range(2)))
    assert waited_ns == (100 - by_ms if by_ms < 0 else 100) * MS


# Messages that are lost.


def losing(*kinds: Kind, times: int = 1) -> Network:
    """Loses the first messages of some kinds."""
    left = dict.fromkeys(kinds, times)

    def meddle(_: int, kind: Kind, __: int, delay_ns: int) -> tuple[int, ...]:
        if left.get(kind, 0):
            left[kind] -= 1
            return ()
        return (delay_ns,)

    return Network(to_worker_ns=MS, to_dispatcher_ns=MS, meddle=meddle)


def lossy(network: Callable[[], Network], *faults: Any, **options: Any) -> tuple[Any, Faults]:
    requests = [request(0, at_ns=0, output_tokens=30), request(1, at_ns=500 * MS)]
    factory = options.pop("factory", scenario(worker()))
    hooks = Faults(requests, *faults)
    result = run(factory, requests, hooks=hooks, network=network(), probe_ns=20 * MS, **options)
    return result, hooks


@pytest.mark.parametrize("kind", ["send", "failed"])
def test_what_is_lost_before_an_answer_is_tried_again(kind: Kind) -> None:
    breaks = [(4 * MS, lambda driver: driver.fail(R0))] if kind == "failed" else []
    result, hooks = lossy(lambda: losing(kind, "started"), *breaks)
    assert ends(result) == [End.DONE, End.DONE]
    [(now_ns, failed)] = hooks.of(Failed)
    assert not failed.started
    assert 20 * MS < now_ns <= 80 * MS
    assert result.outcomes.waited_ns[0] == 0
    assert result.outcomes.queued_ns[0] == now_ns


def test_an_answer_whose_end_is_lost_has_failed() -> None:
    result, hooks = lossy(lambda: losing("finished"))
    assert ends(result) == [End.FAILED, End.DONE]
    [(_, failed)] = hooks.of(Failed)
    assert failed.started
    assert len(hooks.of(Finished)) == 1


def test_an_abort_that_is_lost_is_said_again() -> None:
    leaves = (30 * MS, lambda driver: driver.withdraw(R0))
    result, _ = lossy(lambda: losing("abort", times=2), leaves)
    assert ends(result) == [End.WITHDRAWN, End.DONE]
    assert 20 < result.outcomes.output_tokens[0] < 30
    longer, _ = lossy(lambda: losing("abort", times=9), leaves)
    assert longer.outcomes.output_tokens[0] == 30


def test_nobody_breaks_off_what_is_on_its_way() -> None:
    result, hooks = lossy(losing, (MS // 2, lambda driver: driver.fail(R0)))
    assert ends(result) == [End.DONE, End.DONE]
    assert hooks.of(Failed) == []


@pytest.mark.parametrize("at_us", range(1_000, 9_000, 400))
def test_what_breaks_off_while_it_is_handed_over_leaves_nothing_behind(at_us: int) -> None:
    fails = (at_us * 1_000, lambda driver: driver.fail(R0))
    result, _ = lossy(lambda: losing("started"), fails, factory=split_factory())
    assert result.outcomes.end[1] == End.DONE
    assert result.outcomes.end[0] in {End.DONE, End.FAILED}


# What engines publish.


def chain(number: int, blocks: int, **changes: Any) -> Any:
    hashes = tuple(number << 20 | depth for depth in range(blocks))
    return request(number, input_tokens=16 * blocks + 1, blocks=hashes, **changes)


def published(network: Network | None = None, **changes: Any) -> tuple[Driver, Faults]:
    requests = [chain(n, 10, at_ns=n * 200 * MS) for n in range(6)]
    hooks = Faults(requests)
    run(scenario(worker(**changes)), requests, hooks=hooks, network=network, publishes=True)
    assert hooks.driver is not None
    return hooks.driver, hooks


def test_the_dispatcher_is_told_what_engines_cache_and_drop() -> None:
    driver, hooks = published(kv_blocks=32)
    believed: set[int] = set()
    for _, event in hooks.events:
        if isinstance(event, BlocksStored):
            believed |= set(event.blocks)
        elif isinstance(event, BlocksRemoved):
            assert event.blocks is not None
            assert set(event.blocks) <= believed
            believed -= set(event.blocks)
    assert believed == driver.engine(W).cached()
    assert 0 < len(believed) <= 32
    assert len(hooks.of(BlocksRemoved)) > 0


def test_after_a_gap_nothing_is_believed() -> None:
    driver, hooks = published(losing("blocks"))
    [(_, removed)] = hooks.of(BlocksRemoved)
    assert removed.blocks is None
    assert driver.feeds[0].gaps == 1


def test_a_feed_knows_gaps_and_what_is_late() -> None:
    feed = Feed(W)
    messages = [(*feed.publish(), [(True, (number,))]) for number in range(5)]
    stored = [BlocksStored(worker=W, blocks=(number,)) for number in range(5)]
    gap = BlocksRemoved(worker=W, blocks=None)
    assert feed.hear(*messages[0]) == [stored[0]]
    assert feed.hear(*messages[0]) == []
    assert feed.hear(*messages[2]) == [gap, stored[2]]
    assert feed.hear(*messages[1]) == []
    assert feed.catch_up() == [gap]
    assert feed.catch_up() == []
    assert feed.hear(*messages[4]) == []
    assert feed.gaps == 2
    feed.end_life()
    assert feed.hear(*messages[4]) == []
    assert feed.hear(*feed.publish(), [(False, (7,))]) == [BlocksRemoved(worker=W, blocks=(7,))]


def test_a_lost_worker_s_feed_begins_anew() -> None:
    requests = [chain(n, 10, at_ns=n * 200 * MS) for n in range(4)]
    hooks = Faults(
        requests,
        (300 * MS, lambda driver: driver.crash(W, "power")),
        (350 * MS, lambda driver: driver.start(W)),
        (3_000 * MS, lambda driver: driver.catch_up()),
    )
    run(scenario(worker()), requests, hooks=hooks, publishes=True)
    assert hooks.of(BlocksRemoved) == []
    assert hooks.driver is not None
    cached = hooks.driver.engine(W).cached()
    assert cached == {block for each in requests[2:] for block in each.blocks}
