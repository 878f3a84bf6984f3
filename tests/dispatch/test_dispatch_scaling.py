"""More workers where requests wait against their promises, fewer where nobody does."""

from __future__ import annotations

import msgspec
import pytest

from tests.dispatch.dispatch_world import (
    MODEL,
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
from tokenworks.core.ids import PoolID
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch import scaling
from tokenworks.dispatch.budgets import ONE, RETRIES_MIN
from tokenworks.dispatch.commands import Command, Scale, Send, SetTimer
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Configured, Event, PoolScale, Ticked

S = NS_PER_S
POOL = PoolScale(pool=PoolID("p"), model=MODEL, workers_min=1, workers_max=6, start_ns=20 * S)


def settings(*pools: PoolScale, policy: str = "promises", queue_len_max: int = 100) -> Configured:
    plain = configured(queue_len_max, policy=policy, patience_ns=600 * S)
    return msgspec.structs.replace(plain, scaling=pools or (POOL,))


def scales(commands: list[Command]) -> list[Scale]:
    return [each for each in commands if isinstance(each, Scale)]


def same_again(dispatcher: Dispatcher) -> Dispatcher:
    again = Dispatcher.restore(dispatcher.snapshot())
    assert again.digest() == dispatcher.digest()
    return again


def tick(dispatcher: Dispatcher, at_s: float) -> list[Command]:
    return dispatcher.handle(round(at_s * S), Ticked())


def crowded(slots: int = 1, **changes: int) -> Dispatcher:
    """One worker that is full, and one request that waits from 0 s on; TTFT is 2 s."""
    dispatcher = factory(up(slots=slots), settings=settings(**changes))  # type: ignore[arg-type]
    for number in range(slots):
        dispatcher.handle(0, arrived(f"r{number}"))
    commands = dispatcher.handle(0, arrived("waits"))
    timers = [each for each in commands if isinstance(each, SetTimer)]
    assert timers
    return dispatcher


def test_a_second_look_in_a_row_at_a_long_wait_wants_more() -> None:
    dispatcher = crowded()
    assert not scales(tick(dispatcher, 0.5))
    assert not scales(tick(dispatcher, 1.5))
    dispatcher = same_again(dispatcher)
    (more,) = scales(tick(dispatcher, 2.5))
    assert (more.pool, more.workers, more.up, more.reason) == ("p", 2, 1, "queue_wait")
    assert (more.worker, more.pressure_ppm) == (None, 1_250_000)
    # While it starts nothing more is asked for; if it does not come up, it is asked for again.
    asked = [at for at in range(4, 90) if scales(tick(dispatcher, at))]
    assert asked == [3 + 70]
    dispatcher = same_again(dispatcher)
    dispatcher.handle(91 * S, up("b", slots=1))
    dispatcher.handle(91 * S, arrived("more", at=91 * S))
    # Of what waited for it no more is made; what goes on waiting is another matter.
    found = [(at, each) for at in range(92, 105) for each in scales(tick(dispatcher, at))]
    ((at, more),) = found
    assert (at, more.workers, more.up) == (102, 3, 2)


def test_the_timer_looks_again_as_long_as_that_may_come_to_something() -> None:
    dispatcher = factory(up(slots=1), settings=settings())
    assert dispatcher.handle(0, arrived("r0"))[1:] == []  # nobody waits: nothing to look for
    timers = [each for each in dispatcher.handle(0, arrived("w")) if isinstance(each, SetTimer)]
    assert [(each.reason, each.at_ns) for each in timers] == [("waiting", S + 1), ("scaling", S)]
    timers = [each for each in tick(dispatcher, 1) if isinstance(each, SetTimer)]
    assert [(each.reason, each.at_ns) for each in timers] == [("waiting", S + 1)]
    timers = [each for each in tick(dispatcher, 1.1) if isinstance(each, SetTimer)]
    assert [(each.reason, each.at_ns) for each in timers][-1] == ("scaling", 2 * S)


def test_a_quarter_more_and_never_beyond_the_most() -> None:
    pool = msgspec.structs.replace(POOL, workers_max=10)
    workers = [up(f"w{number}", slots=1) for number in range(9)]
    dispatcher = factory(*workers, settings=settings(pool))
    for number in range(12):
        dispatcher.handle(0, arrived(f"r{number}"))
    (more,) = [scale for at in (1.1, 2.2, 3.3) for scale in scales(tick(dispatcher, at))]
    assert more.workers == 10
    full = factory(*workers[:6], settings=settings())
    for number in range(12):
        full.handle(0, arrived(f"r{number}"))
    assert not [scale for at in range(1, 9) for scale in scales(tick(full, at))]


def test_who_was_turned_away_has_waited_for_all_of_the_promise() -> None:
    dispatcher = factory(up(slots=1), settings=settings(queue_len_max=0))
    dispatcher.handle(0, arrived("r"))
    found = []
    for number in range(4):
        at = number * 11 * S // 10
        found += scales(dispatcher.handle(at, arrived(f"x{number}", at=at)))
    (more,) = found
    assert more.pressure_ppm == 1_000_000


def test_those_that_need_something_are_seen_to_wait_too() -> None:
    dispatcher = factory(up(slots=1, labels=("eu",)), settings=settings())
    dispatcher.handle(0, arrived("r"))
    dispatcher.handle(0, arrived("eu", labels=("eu",)))
    assert [scale for at in (1.1, 2.2) for scale in scales(tick(dispatcher, at))]


def calm(dispatcher: Dispatcher, first_s: int, last_s: int) -> list[tuple[int, Scale]]:
    return [
        (at, scale)
        for at in range(first_s, last_s)
        for scale in scales(dispatcher.handle(at * S, Ticked()))
    ]


def test_a_calm_minute_each_gives_one_back_down_to_the_least() -> None:
    dispatcher = factory(up("a"), up("b"), up("c"), settings=settings())
    dispatcher.handle(1, arrived("r"))
    found = calm(dispatcher, 1, 400)
    assert [(at, scale.worker) for at, scale in found] == [(60, "c"), (120, "b")]
    assert {scale.reason for _, scale in found} == {"idle"}
    assert [scale.workers for _, scale in found] == [2, 1]
    before = dispatcher.counts()["ignored"]
    dispatcher.handle(401 * S, down("b"))  # the driver says so once it has stopped
    assert dispatcher.counts()["ignored"] == before + 1
    dispatcher.handle(401 * S, up("b"))  # and it may come up again
    assert set(dispatcher.loads()) == {"a", "b"}


@pytest.mark.parametrize("end", ["finishes", "is withdrawn", "breaks off", "is lost"])
def test_who_is_given_back_ends_what_it_has_and_is_sent_nothing(end: str) -> None:
    dispatcher = factory(up("a"), up("b"), settings=settings())
    for name in ("r0", "r1"):
        dispatcher.handle(0, arrived(name))
        dispatcher.handle(0, started(name))
    assert calm(dispatcher, 1, 70) == []  # "b" has r1
    dispatcher = same_again(dispatcher)
    for number in range(3):
        dispatcher.handle(70 * S, arrived(f"more{number}", at=70 * S))
    assert dispatcher.loads()["b"].running == 1
    event = {
        "finishes": finished("r1"),
        "is withdrawn": withdrawn("r1"),
        "breaks off": failed("r1", "b", started=True),
        "is lost": down("b"),
    }[end]
    found = scales(dispatcher.handle(71 * S, event))
    assert [each.worker for each in found] == ([] if end == "is lost" else ["b"])
    assert set(dispatcher.loads()) == {"a"}
    same_again(dispatcher)


def test_who_prefills_for_others_is_not_given_back_before_that_ends() -> None:
    dispatcher = factory(up("a"), up("b"), settings=settings())
    calm(dispatcher, 1, 60)
    worker = dispatcher._workers["b"]  # type: ignore[index]
    worker.prefilling["x"] = None  # type: ignore[index]
    assert calm(dispatcher, 60, 65) == []
    worker.prefilling.clear()
    assert len(calm(dispatcher, 65, 67)) == 1


def test_what_runs_must_fit_on_the_others_with_room() -> None:
    dispatcher = factory(up("a", slots=10), up("b", slots=10), settings=settings())
    for number in range(7):
        dispatcher.handle(0, arrived(f"r{number}", Tier.FREE))
    assert calm(dispatcher, 1, 200) == []
    dispatcher.handle(200 * S, finished("r1"))
    found = calm(dispatcher, 200, 202)
    assert found == []  # it retires, with three requests left
    assert dispatcher._retiring


def test_all_that_a_retiring_worker_had_is_sent_again_by_the_slots_of_those_that_stay() -> None:
    told, flat = settings(), ((1, 100), (64, 100))
    told = msgspec.structs.replace(
        told, limits=msgspec.structs.replace(told.limits, retry_percent=0)
    )
    dispatcher = factory(*(up(name, slots=64, curve=flat) for name in "ab"), settings=told)
    for number in range(26):
        dispatcher.handle(0, arrived(f"r{number}", Tier.FREE))
    calm(dispatcher, 1, 62)
    (ending,) = dispatcher._retiring.values()
    assert len(ending.running) == 13 > RETRIES_MIN
    dispatcher.handle(62 * S, down(ending.worker))
    assert dispatcher.counts()["retried"] == 13
    # Its own slots are no part of what was saved up.
    (fleet,) = dispatcher._fleets.values()
    assert fleet.retries.left == (64 - 13) * ONE


def test_a_worker_that_is_wanted_again_soon_makes_the_next_calm_longer() -> None:
    dispatcher = factory(up("a", slots=1), up("b", slots=1), settings=settings())
    at, gaps = 1, []
    for _ in range(7):
        begun = at
        while not calm(dispatcher, at, at + 1):
            at += 1
        gaps.append(at - begun)
        at += 1
        dispatcher.handle(at * S, arrived(f"x{at}", at=at * S))
        dispatcher.handle(at * S, arrived(f"y{at}", at=at * S))
        more = [each for each in calm(dispatcher, at + 1, at + 9) if each[1].worker is None]
        assert len(more) == 1
        at += 9
        dispatcher.handle(at * S, up("b", slots=1))
        dispatcher.handle(at * S, finished(f"x{at - 9}"))
        dispatcher.handle(at * S, finished(f"y{at - 9}"))
        at += 1
    assert gaps[0] < 61
    assert [round(gap / 60) for gap in gaps[1:]] == [2, 4, 8, 16, 16, 16]


def test_pools_that_are_scaled_no_more_are_left_as_they_are() -> None:
    dispatcher = factory(up("a"), up("b"), settings=settings())
    dispatcher.handle(0, arrived("r0"))
    dispatcher.handle(0, arrived("r1"))
    calm(dispatcher, 1, 62)
    assert dispatcher._retiring
    plain = configured(100)
    dispatcher.handle(63 * S, plain)
    (gone,) = scales(dispatcher.handle(64 * S, finished("r1")))
    assert gone.worker == "b"
    dispatcher.handle(65 * S, configured(99))
    assert dispatcher._scaler is None
    unknown = msgspec.structs.replace(POOL, model="other")
    dispatcher.handle(66 * S, settings(unknown))
    assert calm(dispatcher, 67, 300) == []


def test_thresholds_are_far_apart() -> None:
    assert scaling.CALM_PPM * 2 < scaling.PRESSED_PPM


@pytest.mark.parametrize("end", [finished("r1"), down("b")])
def test_without_pools_nothing_is_looked_at_once_all_are_given_back(end: Event) -> None:
    dispatcher = factory(up("a"), up("b"), settings=settings())
    dispatcher.handle(0, arrived("r0"))
    dispatcher.handle(0, arrived("r1"))
    calm(dispatcher, 1, 62)
    dispatcher.handle(63 * S, configured(100))
    dispatcher.handle(63 * S, end)
    assert not dispatcher._retiring
    again = same_again(dispatcher)
    for each in (dispatcher, again):
        tick(each, 70)
    assert again.digest() == dispatcher.digest()


PLAIN = msgspec.structs.replace(POOL, pool=PoolID("plain"))
OTHER = msgspec.structs.replace(POOL, pool=PoolID("other"), model="other")


def test_who_needs_a_label_makes_only_pools_grow_that_have_it() -> None:
    workers = (up("a", slots=1, labels=("eu",)), up("g", slots=1, pool="plain"))
    dispatcher = factory(*workers, settings=settings(POOL, PLAIN, OTHER))
    for number in range(2):
        dispatcher.handle(0, arrived(f"r{number}"))
    dispatcher.handle(0, arrived("eu", labels=("eu",)))
    found = [scale for at in (1.1, 2.2) for scale in scales(tick(dispatcher, at))]
    assert [each.pool for each in found] == ["p"]


@pytest.mark.parametrize(("gone", "pools"), [((), ["p"]), ((down("g"),), ["p", "plain"])])
def test_who_needs_a_label_and_is_turned_away_counts_there_alone(
    gone: tuple[Event, ...], pools: list[str]
) -> None:
    workers = (up("a", slots=1, labels=("eu",)), up("g", slots=1, pool="plain"), *gone)
    dispatcher = factory(*workers, settings=settings(POOL, PLAIN, OTHER, queue_len_max=0))
    dispatcher.handle(0, arrived("r0", labels=("eu",)))
    found = []
    for number in range(4):
        at = number * 11 * S // 10
        event = arrived(f"x{number}", at=at, labels=("eu",))
        found += scales(dispatcher.handle(at, event))
        dispatcher = same_again(dispatcher)
    assert [each.pool for each in found] == pools


def test_a_pool_of_which_nobody_is_up_may_be_what_is_needed() -> None:
    workers = (up("a", slots=1, labels=("eu",)), up("g", slots=1, pool="plain"), down("g"))
    dispatcher = factory(*workers, settings=settings(POOL, PLAIN))
    dispatcher.handle(0, arrived("r"))
    dispatcher.handle(0, arrived("eu", labels=("eu",)))
    found = [scale for at in (1.1, 2.2) for scale in scales(tick(dispatcher, at))]
    assert [each.pool for each in found] == ["p", "plain"]


@pytest.mark.parametrize(("workers", "wanted"), [(2, []), (9, [(10, 9)])])
def test_who_still_ends_what_it_has_is_taken_back_first(
    workers: int, wanted: list[tuple[int, int]]
) -> None:
    pool = msgspec.structs.replace(POOL, workers_max=12)
    names = "abcdefghi"[:workers]
    dispatcher = factory(*(up(name, slots=4) for name in names), settings=settings(pool))
    for number in range(workers):
        dispatcher.handle(0, arrived(f"long{number}"))
        dispatcher.handle(0, started(f"long{number}"))
    calm(dispatcher, 1, 62)
    (ending,) = dispatcher._retiring
    number = 0
    while not dispatcher.queue_lens()[MODEL, Tier.HIGH]:
        dispatcher.handle(62 * S, arrived(f"more{number}", at=62 * S))
        number += 1
    dispatcher = same_again(dispatcher)
    assert dispatcher.loads()[ending].running == 1
    told = [each for at in (63.1, 64.2, 65.3) for each in tick(dispatcher, at)]
    # It takes what waited, at once; who is still missing beside it is asked for.
    assert {each.worker for each in told if isinstance(each, Send)} == {ending}
    assert [(each.workers, each.up) for each in scales(told)] == wanted
    assert not dispatcher._retiring
    assert dispatcher.loads()[ending].running >= 2
    same_again(dispatcher)
    # It is a worker like others again: it may be lost, and be given back once more.
    dispatcher.handle(66 * S, down(ending))
    assert ending not in dispatcher.loads()
    same_again(dispatcher)
