"""A second worker is asked where the first says nothing; the first to answer has the request."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dispatch.dispatch_world import (
    TIMING,
    World,
    arrived,
    configured,
    down,
    factory,
    failed,
    finished,
    started,
    up,
    withdrawn,
)
from tokenworks.core.ids import WorkerID
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch import hedging, snapshot
from tokenworks.dispatch.commands import Abort, Command, Hedge, Reject, Send, SetTimer
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Configured, DecoderUp, PrefilledBy, Ticked
from tokenworks.dispatch.hedging import HEDGES_MIN

S = NS_PER_S
TICK = Ticked()
SETTINGS = configured(20, hedge_percent=100, hedge_after_percent=50)
"""A TTFT of 2 s is promised: a worker has said nothing for too long after one."""


def hedges(commands: Sequence[Command]) -> list[tuple[str, str]]:
    return [(each.request, each.worker) for each in commands if isinstance(each, Hedge)]


def aborts(commands: Sequence[Command]) -> list[tuple[str, str]]:
    return [(each.worker, each.reason) for each in commands if isinstance(each, Abort)]


def running(dispatcher: Dispatcher) -> dict[str, int]:
    return {name: load.running for name, load in dispatcher.loads().items()}


def hedged(told: Configured = SETTINGS) -> Dispatcher:
    """Two workers, and a request that both have: first ``a``, then ``b``."""
    dispatcher = factory(up("a"), up("b"), arrived("r", prefix=(1, 2)), settings=told)
    assert hedges(dispatcher.handle(S, TICK)) == [("r", "b")]
    return dispatcher


def drained(dispatcher: Dispatcher) -> None:
    memory = snapshot.decode(dispatcher.snapshot())
    assert memory.requests == []
    for worker in memory.workers:
        assert (worker.running, worker.prefill_tokens, worker.context_tokens) == ({}, 0, 0)


def test_a_worker_that_says_nothing_is_not_waited_for_alone() -> None:
    dispatcher = factory(up("a"), up("b"), settings=SETTINGS)
    (_, timer) = dispatcher.handle(0, arrived("r"))
    assert isinstance(timer, SetTimer)
    assert (timer.at_ns, timer.reason) == (S, "hedging")
    assert hedges(dispatcher.handle(S - 1, up("c"))) == []
    (hedge,) = dispatcher.handle(S, TICK)
    assert isinstance(hedge, Hedge)
    assert (hedge.worker, hedge.attempt, hedge.silent_ns) == ("b", 2, S)
    assert (hedge.running, hedge.candidates) == (1, 2)
    assert running(dispatcher) == {"a": 1, "b": 1, "c": 0}
    # Once only: the third is never asked.
    assert [dispatcher.handle(at * S, TICK) for at in range(2, 9)] == [[]] * 7
    assert dispatcher.counts()["hedged"] == 1
    assert dispatcher.counts()["sent"] == 1


def test_who_never_says_anything_is_not_looked_at_for_ever() -> None:
    dispatcher = factory(up("a"), settings=SETTINGS)
    (_, timer) = dispatcher.handle(0, arrived("r"))
    looks = 0
    while isinstance(timer, SetTimer):
        looks += 1
        assert looks <= hedging.LOOKS_MAX
        (timer,) = dispatcher.handle(timer.at_ns, TICK) or (None,)
    assert looks == hedging.LOOKS_MAX
    dispatcher.handle(70 * S, up("b"))
    assert dispatcher.handle(71 * S, TICK) == []
    dispatcher.handle(71 * S, started("r"))
    dispatcher.handle(72 * S, finished("r"))
    drained(dispatcher)


@pytest.mark.parametrize("winner", [None, "a", "b"])
def test_who_answers_first_has_it(winner: str | None) -> None:
    for ends_at_once in (False, True):
        dispatcher = hedged()
        answer = finished("r", worker=winner) if ends_at_once else started("r", winner)
        loser = "a" if winner == "b" else "b"
        assert aborts(dispatcher.handle(3 * S, answer)) == [(loser, "hedged")]
        assert running(dispatcher)[loser] == 0
        counts = dispatcher.counts()
        assert counts["hedges_won"] == int(winner == "b")
        # The first one had it for three seconds, the second one for two.
        assert counts["hedge_waste_ns"] == (3 if winner == "b" else 2) * S
        if not ends_at_once:
            late = (started("r", loser), finished("r", worker=loser), failed("r", loser))
            assert [dispatcher.handle(3 * S, each) for each in late] == [[]] * 3
            assert dispatcher.handle(4 * S, finished("r")) == []
        assert dispatcher.counts()["finished"] == 1
        drained(dispatcher)


def test_a_service_time_counts_from_when_its_worker_got_it() -> None:
    dispatcher = hedged()
    dispatcher.handle(3 * S, started("r", "b"))
    dispatcher.handle(4 * S, finished("r"))
    means = {each.worker: each.service_ns_mean for each in dispatcher._workers.values()}
    assert means == {"a": None, "b": 3 * S}


def test_a_session_goes_on_where_its_answer_was_made() -> None:
    dispatcher = factory(up("a"), up("b"), arrived("r", session="s"), settings=SETTINGS)
    dispatcher.handle(S, TICK)
    dispatcher.handle(S, started("r", "b"))
    dispatcher.handle(S, finished("r"))
    (send, _) = dispatcher.handle(S, arrived("next", session="s", at=S))
    assert isinstance(send, Send)
    assert (send.worker, send.reason) == ("b", "session_home")


@pytest.mark.parametrize("loser", ["a", "b"])
@pytest.mark.parametrize("goes_down", [False, True])
def test_one_that_fails_leaves_the_other_one(loser: str, *, goes_down: bool) -> None:
    dispatcher = hedged()
    event = down(loser) if goes_down else failed("r", loser)
    assert dispatcher.handle(2 * S, event) == []
    assert running(dispatcher).get(loser, 0) == 0
    # No retry was needed, and the last one that fails costs one.
    winner = "b" if loser == "a" else "a"
    assert dispatcher.counts()["retried"] == 0
    commands = dispatcher.handle(2 * S, failed("r", winner))
    assert isinstance(commands[0], Send)
    assert dispatcher.counts()["retried"] == 1
    dispatcher.handle(3 * S, finished("r"))
    drained(dispatcher)


def test_both_that_fail_use_up_two_tries() -> None:
    dispatcher = hedged(configured(hedge_percent=100, retries_max=1))
    dispatcher.handle(S, failed("r", "a"))
    (rejected,) = dispatcher.handle(S, failed("r", "b"))
    assert isinstance(rejected, Reject)
    assert (rejected.reason, rejected.attempts) == ("retries_over", 2)
    drained(dispatcher)


def test_without_a_try_left_nobody_else_is_asked() -> None:
    told = configured(hedge_percent=100, retries_max=0)
    dispatcher = factory(up("a"), up("b"), arrived("r"), settings=told)
    assert hedges(dispatcher.handle(9 * S, TICK)) == []


@pytest.mark.parametrize("worker", ["a", "b"])
def test_one_that_has_begun_and_breaks_off_ends_it(worker: str) -> None:
    dispatcher = hedged()
    other = "b" if worker == "a" else "a"
    commands = dispatcher.handle(S, failed("r", worker, started=True))
    assert aborts(commands) == [(other, "hedged")]
    assert dispatcher.counts()["broken"] == 1
    drained(dispatcher)


def test_a_client_that_leaves_frees_both() -> None:
    dispatcher = hedged()
    commands = dispatcher.handle(2 * S, withdrawn("r"))
    assert aborts(commands) == [("a", "withdrawn"), ("b", "withdrawn")]
    assert [each.held_ns for each in commands if isinstance(each, Abort)] == [2 * S, S]
    assert dispatcher.counts()["hedge_waste_ns"] == 0
    drained(dispatcher)


def test_what_a_loser_frees_is_used_at_once() -> None:
    dispatcher = factory(up("a", slots=1), up("b", slots=1), arrived("r"), settings=SETTINGS)
    dispatcher.handle(S, TICK)
    dispatcher.handle(S, arrived("next", at=S))
    commands = dispatcher.handle(S, started("r", "b"))
    assert [each.worker for each in commands if isinstance(each, Send)] == ["a"]
    dispatcher = factory(up("a", slots=1), up("b", slots=1), arrived("r"), settings=SETTINGS)
    dispatcher.handle(S, TICK)
    dispatcher.handle(S, arrived("next", at=S))
    commands = dispatcher.handle(S, failed("r", "b"))
    assert [each.worker for each in commands if isinstance(each, Send)] == ["b"]


def test_nobody_is_asked_in_place_of_one_who_waits() -> None:
    told = configured(hedge_percent=100, hedge_after_percent=1)
    dispatcher = factory(up("a", slots=1), arrived("r"), arrived("next"), settings=told)
    assert hedges(dispatcher.handle(S, TICK)) == []
    commands = dispatcher.handle(S, up("b", slots=1))
    assert [each.request for each in commands if isinstance(each, Send)] == ["next"]


def test_only_where_the_promises_of_all_are_kept() -> None:
    dispatcher = factory(up("a", slots=1), settings=SETTINGS)
    dispatcher.handle(0, arrived("r"))
    dispatcher.handle(0, up("b", slots=16))
    for number in range(2):
        dispatcher.handle(0, arrived(f"u{number}", Tier.ULTRA))
        dispatcher.handle(0, started(f"u{number}"))
    assert running(dispatcher) == {"a": 1, "b": 2}
    assert hedges(dispatcher.handle(S, TICK)) == []
    dispatcher.handle(S, finished("u0"))
    dispatcher.handle(S, finished("u1"))
    assert hedges(dispatcher.handle(2 * S, TICK)) == [("r", "b")]


def test_only_who_has_what_is_needed() -> None:
    dispatcher = factory(
        up("a", labels=("eu",)), up("b"), arrived("r", labels=("eu",)), settings=SETTINGS
    )
    assert hedges(dispatcher.handle(S, TICK)) == []
    dispatcher.handle(S, up("c", labels=("eu",)))
    assert hedges(dispatcher.handle(2 * S, TICK)) == [("r", "c")]


def test_what_may_not_be_asked_twice_is_not() -> None:
    dispatcher = factory(up("a"), up("b"), arrived("r", once=True), settings=SETTINGS)
    assert dispatcher.handle(9 * S, TICK) == []


def test_a_long_prompt_is_no_silence() -> None:
    # 20,000 tokens take 2 s.
    told = configured(20, hedge_percent=100, hedge_after_percent=10)
    dispatcher = factory(
        up("a", timing=TIMING), up("b", timing=TIMING), arrived("r", prompt=20_000), settings=told
    )
    at_ns = 0
    while not hedges(dispatcher.handle(at_ns, TICK)):
        at_ns += S // 5
    assert at_ns == 4 * S


def test_workers_that_hand_over_are_not_doubled() -> None:
    told = configured(20, hedge_percent=100, policy="economic")
    prefilled = PrefilledBy(workers=1, timing=TIMING, batch_tokens_max=512)
    decoder = DecoderUp.of(up("d", timing=TIMING), prefilled)
    dispatcher = factory(decoder, arrived("r"), up("p"), settings=told)
    assert hedges(dispatcher.handle(9 * S, TICK)) == []
    # Nor are they asked second.
    dispatcher = factory(up("p"), arrived("r"), decoder, settings=told)
    assert hedges(dispatcher.handle(9 * S, TICK)) == []


def test_the_budget_bounds_them() -> None:
    told = configured(1_000, hedge_percent=10, hedge_after_percent=50)
    flat = ((1, 1_000), (512, 1_000))
    workers = [up(name, slots=512, curve=flat) for name in "ab"]
    dispatcher = factory(*workers, settings=told)
    for number in range(200):
        dispatcher.handle(0, arrived(f"r{number}"))
    assert len(hedges(dispatcher.handle(S, TICK))) == HEDGES_MIN
    # What is saved up while it is full is lost; from then on every tenth request gives one.
    for number in range(50):
        dispatcher.handle(S, arrived(f"s{number}", at=S))
    assert len(hedges(dispatcher.handle(2 * S, TICK))) == 5
    assert hedges(dispatcher.handle(3 * S, TICK)) == []


def test_a_line_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hedging, "WATCHED_MAX", 2)
    dispatcher = factory(up("a"), up("b"), up("c"), settings=SETTINGS)
    for number in range(3):
        dispatcher.handle(0, arrived(f"r{number}"))
    assert len(hedges(dispatcher.handle(S, TICK))) == 2


def test_one_tick_serves_all_that_began_in_time() -> None:
    dispatcher = factory(up("a"), up("b"), settings=SETTINGS)
    ticks = 0
    for number in range(1_000):
        now_ns = number * S // 500
        while dispatcher._timer_ns is not None and dispatcher._timer_ns <= now_ns:
            ticks += 1
            assert hedges(dispatcher.handle(now_ns, TICK)) == []
        dispatcher.handle(now_ns, arrived(f"r{number}", at=now_ns))
        dispatcher.handle(now_ns, started(f"r{number}"))
        dispatcher.handle(now_ns, finished(f"r{number}"))
    assert ticks == 1
    memory = snapshot.decode(dispatcher.snapshot())
    assert memory.watched is not None
    assert sum(map(len, memory.watched)) <= 501


def test_who_was_sent_again_is_watched_from_then_on() -> None:
    dispatcher = factory(up("a"), up("b"), arrived("r"), settings=SETTINGS)
    dispatcher.handle(S // 2, failed("r", "a"))
    assert hedges(dispatcher.handle(S, TICK)) == []
    assert hedges(dispatcher.handle(S + S // 2, TICK)) == [("r", "a")]


def test_settings_may_change_meanwhile() -> None:
    dispatcher = factory(up("a"), up("b"), arrived("r"), settings=configured(20))
    assert dispatcher.handle(S, configured(20, hedge_percent=100, hedge_after_percent=75)) != []
    assert hedges(dispatcher.handle(S, TICK)) == []
    assert hedges(dispatcher.handle(S + S // 2, TICK)) == [("r", "b")]
    # No more are asked from now on; who has two workers goes on.
    dispatcher.handle(2 * S, configured(20))
    assert snapshot.decode(dispatcher.snapshot()).watched is None
    assert aborts(dispatcher.handle(2 * S, started("r", "b"))) == [("a", "hedged")]


def test_a_snapshot_keeps_who_is_watched_and_who_is_doubled() -> None:
    dispatcher = hedged()
    dispatcher.handle(S, arrived("s", at=S))
    again = Dispatcher.restore(dispatcher.snapshot())
    assert again.digest() == dispatcher.digest()
    for now_ns, event in ((2 * S, TICK), (2 * S, started("r", "b")), (3 * S, started("s", "a"))):
        assert again.handle(now_ns, event) == dispatcher.handle(now_ns, event)
    assert again.digest() == dispatcher.digest()


def test_events_of_before_are_read_as_they_were() -> None:
    """A journal of before has no worker in ``Started``; nothing is written where it is unset."""
    assert msgspec.msgpack.encode(started("r")) == msgspec.msgpack.encode(
        {"type": "Started", "request": "r"}
    )
    assert msgspec.to_builtins(started("r", "b"))["worker"] == WorkerID("b")


@given(seed=st.integers(0, 10**9), policy=st.sampled_from(["promises", "economic", "random"]))
@settings(max_examples=40)
def test_two_workers_in_every_order(seed: int, policy: str) -> None:
    """The world checks each command, counts slots, and sees every request end once."""
    world = World(seed, policy)
    changes = {"hedge_percent": 100, "hedge_after_percent": 0, "retry_percent": 100}
    limits = msgspec.structs.replace(world.settings.limits, **changes)
    world.settings = msgspec.structs.replace(world.settings, limits=limits)
    world.tell(world.settings)
    for _ in range(150):
        world.step()
    world.heal()
    drained(world.dispatcher)
    again = Dispatcher()
    for now_ns, event, commands in world.log:
        assert again.handle(now_ns, event) == commands


def test_the_worlds_do_ask_second_workers() -> None:
    won = asked = 0
    for seed in range(20):
        world = World(seed)
        for _ in range(300):
            world.step()
        counts = world.dispatcher.counts()
        asked, won = asked + counts["hedged"], won + counts["hedges_won"]
    assert asked > 2 * won > 20
