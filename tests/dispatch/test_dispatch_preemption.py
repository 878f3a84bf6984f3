"""A request of a higher tier takes the place of a lower one, where that is worth more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NoReturn

import msgspec
import pytest

from tests.dispatch.dispatch_world import (
    PRICES,
    TIMING,
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
from tokenworks.core.ids import RequestID, WorkerID
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.commands import Command, Hedge, Preempt, Queue, Reject, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Configured, Event, Ticked, WorkerUp
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.policy import Choice, Forgetful
from tokenworks.dispatch.preemption import Displacement, victims_on
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.requests import Request

LATE_NS = NS_PER_S + 1
"""Half of the TTFT promise is gone."""


def can(name: str = "a", **parts: object) -> WorkerUp:
    return msgspec.structs.replace(up(name, timing=TIMING, **parts), preempts=True)  # type: ignore[arg-type]


def full(
    *workers: WorkerUp,
    lower: tuple[Tier, ...] = (Tier.FREE,),
    top: Tier = Tier.ULTRA,
    settings: Configured | None = None,
    own: type[Forgetful] | None = None,
) -> Dispatcher:
    """A worker of one slot for each lower request, and one of a higher tier that waits."""
    settings = settings or configured(100, policy="economic", prices=PRICES)
    made = workers or (can(slots=len(lower)),)
    dispatcher = factory(
        *made, settings=settings, own_policies=None if own is None else {"own": own}
    )
    for number, tier in enumerate(lower):
        dispatcher.handle(0, arrived(f"low{number}", tier))
        dispatcher.handle(0, started(f"low{number}"))
    dispatcher.handle(1, arrived("top", top, at=1))
    return dispatcher


def preempted(commands: list[Command]) -> list[Preempt]:
    return [each for each in commands if isinstance(each, Preempt)]


def late(dispatcher: Dispatcher) -> list[Command]:
    return dispatcher.handle(1 + LATE_NS, Ticked())


def test_a_free_stream_makes_room_for_an_ultra_one_and_goes_on_later() -> None:
    dispatcher = full()
    assert not preempted(dispatcher.handle(NS_PER_S, Ticked()))
    commands = late(dispatcher)
    stop, send, queue = commands[:3]
    assert isinstance(stop, Preempt)
    assert (stop.request, stop.worker, stop.displaced_by) == ("low0", "a", "top")
    assert stop.gained_nanodollars > stop.lost_nanodollars >= 0
    assert stop.held_ns == 1 + LATE_NS
    assert isinstance(send, Send)
    assert (send.request, send.worker) == ("top", "a")
    assert isinstance(queue, Queue)
    assert queue.request == "low0"
    assert dispatcher.counts()["displaced"] == 1
    again = Dispatcher.restore(dispatcher.snapshot())
    assert again.digest() == dispatcher.digest()
    (back,) = again.handle(2 * NS_PER_S, finished("top"))[:1]
    assert isinstance(back, Send)
    assert (back.request, back.attempt) == ("low0", 2)
    again.handle(2 * NS_PER_S, started("low0"))
    assert not preempted(again.handle(3 * NS_PER_S, arrived("other", Tier.ULTRA, at=3 * NS_PER_S)))
    # Nobody makes room twice.
    assert not preempted(again.handle(5 * NS_PER_S, Ticked()))
    again.handle(5 * NS_PER_S, finished("low0"))
    assert again.counts()["finished"] == 2


def test_engines_that_cannot_are_not_asked() -> None:
    assert not preempted(late(full(up(slots=1, timing=TIMING))))


@pytest.mark.parametrize(
    ("lower", "top"),
    [
        ((Tier.ULTRA,), Tier.ULTRA),
        ((Tier.PREMIUM,), Tier.HIGH),
        # What three lose, or two of a tier that is nearly as dear, is more than one gains.
        ((Tier.PREMIUM, Tier.PREMIUM), Tier.ULTRA),
    ],
)
def test_who_pays_as_much_or_loses_more_stays(lower: tuple[Tier, ...], top: Tier) -> None:
    prices = PRICES | {Tier.ULTRA: PRICES[Tier.PREMIUM]}
    settings = configured(100, policy="economic", prices=prices)
    assert not preempted(late(full(lower=lower, top=top, settings=settings)))


def test_without_prices_or_for_free_nobody_makes_room() -> None:
    assert not preempted(late(full(settings=configured(100, policy="economic"))))
    dispatcher = full(top=Tier.FREE, settings=configured(100, policy="economic", prices=PRICES))
    assert not preempted(late(dispatcher))


def test_what_is_too_late_anyway_displaces_nobody() -> None:
    dispatcher = full()
    long = arrived("long", Tier.ULTRA, at=2, prompt=19_000)
    dispatcher.handle(2, long)
    found = preempted(dispatcher.handle(NS_PER_S + 10, Ticked()))
    assert [each.displaced_by for each in found] == ["top"]


def test_the_cheaper_place_is_taken() -> None:
    workers = (can("a", slots=1), can("b", slots=1), can("c", slots=1), up("d", slots=1))
    lower = (Tier.HIGH, Tier.FREE, Tier.MEDIUM, Tier.FREE)
    settings = configured(100, policy="economic", prices=PRICES)
    dispatcher = full(*workers, lower=lower, settings=settings)
    where = {name: dispatcher._requests[name].worker for name in dispatcher._requests}
    free = [f"low{n}" for n in (1, 3) if where[RequestID(f"low{n}")] != "d"]
    (stop,) = preempted(late(dispatcher))
    assert stop.request in free


def test_a_line_that_is_full_keeps_who_would_be_turned_away() -> None:
    settings = configured(0, policy="economic", prices=PRICES)
    bounds = dict(settings.limits.queue_len_max) | {Tier.ULTRA: 5}
    limits = msgspec.structs.replace(settings.limits, queue_len_max=bounds)
    settings = msgspec.structs.replace(settings, limits=limits)
    assert not preempted(late(full(settings=settings)))


def test_where_others_prefill_nobody_makes_room() -> None:
    workers = tuple(
        msgspec.structs.replace(can(name, slots=1), link_bytes_per_s=10**9) for name in "ab"
    )
    settings = configured(100, policy="economic", prices=PRICES)
    dispatcher = full(*workers, lower=(Tier.FREE, Tier.FREE), settings=settings)
    assert not preempted(late(dispatcher))


# What becomes of who made room.


@pytest.mark.parametrize("answered", [True, False])
def test_who_waits_too_long_to_go_on_ends_with_what_it_has(answered: bool) -> None:
    settings = configured(100, policy="economic", prices=PRICES, patience_ns=20 * NS_PER_S)
    dispatcher = factory(can(slots=1), settings=settings)
    dispatcher.handle(0, arrived("low", Tier.FREE))
    if answered:
        dispatcher.handle(0, started("low"))
    dispatcher.handle(1, arrived("top", Tier.ULTRA, at=1))
    assert preempted(late(dispatcher))
    (reject,) = [
        each for each in dispatcher.handle(30 * NS_PER_S, Ticked()) if isinstance(each, Reject)
    ]
    assert reject.request == "low"
    assert reject.code == ("worker_failed" if answered else "capacity_exceeded")


def test_who_goes_on_and_is_lost_is_broken_off_and_not_begun_again() -> None:
    dispatcher = full()
    late(dispatcher)
    dispatcher.handle(3 * NS_PER_S, finished("top"))
    dispatcher.handle(4 * NS_PER_S, down("a"))
    assert dispatcher.counts()["broken"] == 1
    assert not dispatcher._requests


def test_making_room_is_no_failed_try() -> None:
    settings = configured(100, policy="economic", prices=PRICES, retries_max=0)
    dispatcher = factory(can(slots=1), settings=settings)
    dispatcher.handle(0, arrived("low", Tier.FREE))
    dispatcher.handle(1, arrived("top", Tier.ULTRA, at=1))
    late(dispatcher)
    dispatcher.handle(3 * NS_PER_S, finished("top"))
    commands = dispatcher.handle(4 * NS_PER_S, failed("low"))
    (reject,) = [each for each in commands if isinstance(each, Reject)]
    assert (reject.reason, reject.attempts) == ("retries_over", 2)


def test_late_messages_about_who_made_room_change_nothing() -> None:
    dispatcher = full()
    late(dispatcher)
    before = dispatcher.counts()["ignored"]
    for event in (started("low0"), finished("low0"), failed("low0")):
        dispatcher.handle(2 * NS_PER_S, event)
    assert dispatcher.counts()["ignored"] == before + 3
    dispatcher.handle(2 * NS_PER_S, withdrawn("low0"))
    assert "low0" not in dispatcher._requests


# Who makes room on one worker.


def test_the_fewest_of_the_lowest_tiers_go_the_latest_first() -> None:
    lower = (Tier.FREE, Tier.MEDIUM, Tier.FREE, Tier.MEDIUM)
    dispatcher = full(can(slots=4), lower=lower)
    worker, requests = dispatcher._workers["a"], dispatcher._requests  # type: ignore[index]
    worker.caps = [4, 4, 4, 4, 4]
    names = [each.request for each in victims_on(worker, 4, requests) or ()]
    assert names == ["low2"]
    worker.caps = [4, 4, 4, 4, 3]
    assert [each.request for each in victims_on(worker, 4, requests) or ()] == ["low2", "low0"]
    worker.caps = [4, 4, 4, 4, 2]
    assert victims_on(worker, 4, requests) is None
    assert victims_on(worker, 0, requests) is None
    requests[RequestID("low2")].displaced = True
    worker.caps = [4, 4, 4, 4, 4]
    assert [each.request for each in victims_on(worker, 4, requests) or ()] == ["low0"]
    # With few running and room for another, nobody has to go, and nobody is found.
    requests[RequestID("low0")].displaced = requests[RequestID("low1")].displaced = True
    requests[RequestID("low3")].displaced = True
    assert victims_on(worker, 4, requests) is None


# An operator's own policy.


class Own(Forgetful):
    """Answers what a test wants."""

    answer: object = None

    def configure(self, configured: Configured, index: PrefixIndex) -> None: ...

    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        for worker in fleet.each(fleet.open):
            return Choice(worker, "least_loaded", 0, request.rank, 1)
        return None

    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        yield from ()

    def displace(
        self, fleet: Fleet, request: Request, now_ns: int, requests: Mapping[RequestID, Request]
    ) -> Displacement | None:
        worker = fleet.workers[0]
        victims = (requests[RequestID("low0")],)
        found = Displacement(Choice(worker, "best_value", 0, request.rank, 1), victims, 2, 1)
        return Own.answer(found, fleet)  # type: ignore[operator,no-any-return]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (lambda found, fleet: found, True),
        (lambda found, fleet: None, True),
        (lambda found, fleet: 7, False),
        (lambda found, fleet: found._replace(victims=()), False),
        (lambda found, fleet: found._replace(victims=found.victims * 2), False),
        (lambda found, fleet: found._replace(gained_nanodollars=1), False),
        (lambda found, fleet: found._replace(choice=found.choice._replace(rank=9)), False),
    ],
)
def test_an_own_policy_that_is_wrong_displaces_nobody(answer: object, right: bool) -> None:
    Own.answer = answer
    dispatcher = full(can(slots=1), settings=configured(100, policy="own"), own=Own)
    found = preempted(late(dispatcher))
    assert bool(found) == (answer(1, None) == 1 if right else False)  # type: ignore[operator]
    assert dispatcher.counts()["policy_faults"] == (0 if right else 1)


def test_a_policy_without_a_word_on_it_displaces_nobody() -> None:
    assert not preempted(late(full(settings=configured(100, policy="edf"))))


def test_who_makes_room_may_find_another_place_at_once() -> None:
    settings = configured(100, policy="economic", prices=PRICES)
    dispatcher = factory(can("a", slots=1), settings=settings)
    dispatcher.handle(0, arrived("low", Tier.FREE))
    dispatcher.handle(1, arrived("top", Tier.ULTRA, at=1))
    # A slow worker that free may use, and ultra may not.
    dispatcher.handle(2, up("slow", curve=((1, 12),)))
    commands = late(dispatcher)
    assert [type(each) for each in commands[:3]] == [Preempt, Send, Send]
    assert [each.worker for each in commands[1:3] if isinstance(each, Send)] == ["a", "slow"]
    assert not [each for each in commands if isinstance(each, Queue)]


def test_who_is_sent_when_it_is_late_displaces_nobody() -> None:
    dispatcher = factory(can(), settings=configured(100))
    for number in range(4):
        dispatcher.handle(0, arrived(f"low{number}", Tier.FREE))
    dispatcher.handle(1, arrived("top", Tier.ULTRA, at=1))
    (send, *_) = late(dispatcher)
    assert isinstance(send, Send)
    assert send.reason == "slow_beats_late"


def test_a_policy_that_takes_over_while_all_are_busy_may_displace() -> None:
    dispatcher = full(settings=configured(100))
    dispatcher.handle(2, configured(100, policy="economic", prices=PRICES))
    assert [each.displaced_by for each in preempted(late(dispatcher))] == ["top"]
    assert dispatcher.counts()["policy_faults"] == 0


def test_an_own_policy_that_cannot_say_whether_it_displaces_does_not() -> None:
    class Sulky(Own):
        @property
        def displace(self) -> NoReturn:  # type: ignore[override]
            raise ValueError

    dispatcher = full(can(slots=1), settings=configured(100, policy="own"), own=Sulky)
    assert not preempted(late(dispatcher))
    assert dispatcher.counts()["policy_faults"] == 1


@pytest.mark.parametrize(("room", "moved"), [(1, 0), (2, 2)])
def test_all_who_make_room_find_room_in_their_line(room: int, moved: int) -> None:
    class Two(Own):
        def displace(
            self, fleet: Fleet, request: Request, now_ns: int, requests: Mapping[RequestID, Request]
        ) -> Displacement | None:
            victims = tuple(requests[RequestID(f"low{number}")] for number in range(2))
            choice = Choice(fleet.workers[0], "best_value", 0, request.rank, 1)
            return Displacement(choice, victims, 2, 1)

    settings = configured(room, policy="own")
    dispatcher = full(can(slots=2), lower=(Tier.FREE,) * 2, settings=settings, own=Two)
    commands = late(dispatcher)
    assert len(preempted(commands)) == moved
    assert not [each for each in commands if isinstance(each, Reject)]


@pytest.mark.parametrize("event", [finished("low0"), failed("low0"), withdrawn("low0")])
def test_who_ends_when_somebody_is_late_makes_room_by_that(event: Event) -> None:
    dispatcher = full()
    commands = dispatcher.handle(1 + LATE_NS, event)
    assert not preempted(commands)
    (send,) = [each for each in commands if isinstance(each, Send)]
    assert send.request == "top"
    assert dispatcher.counts()["displaced"] == dispatcher.counts()["ignored"] == 0


def test_who_has_two_workers_makes_no_room() -> None:
    told = configured(100, policy="economic", prices=PRICES, hedge_percent=100)
    dispatcher = factory(can("a", slots=1), can("b", slots=1), settings=told)
    dispatcher.handle(0, arrived("low", Tier.FREE))
    commands = dispatcher.handle(NS_PER_S, Ticked())
    assert [each.worker for each in commands if isinstance(each, Hedge)] == ["b"]
    dispatcher.handle(NS_PER_S, arrived("top", Tier.ULTRA, at=NS_PER_S))
    assert not preempted(dispatcher.handle(2 * NS_PER_S + 1, Ticked()))
    requests = dispatcher._requests
    assert victims_on(dispatcher._workers[WorkerID("a")], 4, requests) is None
    # Once it is decided whose it is, it may.
    commands = dispatcher.handle(2 * NS_PER_S + 1, started("low", "b"))
    assert [each.worker for each in commands if isinstance(each, Send)] == ["a"]
    assert victims_on(dispatcher._workers[WorkerID("b")], 4, requests) is not None
