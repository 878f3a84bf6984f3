"""Requests that only some workers may serve, and sessions that go back to theirs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.dispatch.dispatch_world import (
    MODEL,
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
from tokenworks.core.needs import Hints, Needs
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch import fleet as fleet_module
from tokenworks.dispatch import restricted
from tokenworks.dispatch.commands import Command, Queue, Reject, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Configured, Event, PolicySettings, Ticked
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.pickers import permitted
from tokenworks.dispatch.policies import NAMES
from tokenworks.dispatch.policy import Choice, Forgetful
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.requests import Request

EU = ("eu",)


def sends(commands: list[Command]) -> list[tuple[str, str]]:
    return [(each.request, each.worker) for each in commands if isinstance(each, Send)]


def rejects(commands: list[Command]) -> list[Reject]:
    return [each for each in commands if isinstance(each, Reject)]


def same_again(dispatcher: Dispatcher) -> Dispatcher:
    again = Dispatcher.restore(dispatcher.snapshot())
    assert again.digest() == dispatcher.digest()
    return again


@pytest.mark.parametrize("policy", NAMES)
def test_every_policy_keeps_to_labels_and_adapters(policy: str) -> None:
    workers = [
        up("a", timing=TIMING),
        up("b", timing=TIMING, labels=EU, adapters=("support",)),
        up("c", timing=TIMING, labels=EU),
        up("d", timing=TIMING, adapters=("support",)),
    ]
    settings = configured(100, policy=PolicySettings(name=policy, seed=7), prices=PRICES)
    dispatcher = factory(*workers, settings=settings)
    went: list[tuple[str, str]] = []
    for number in range(12):
        event = arrived(f"r{number}", Tier.MEDIUM, labels=EU, adapter="support", prefix=(1, 2))
        went += sends(dispatcher.handle(number, event))
        went += sends(dispatcher.handle(number, arrived(f"o{number}", Tier.MEDIUM, labels=EU)))
    assert went
    assert {worker for name, worker in went if name[0] == "r"} == {"b"}
    assert {worker for name, worker in went if name[0] == "o"} <= {"b", "c"}
    assert dispatcher.counts()["policy_faults"] == 0
    dispatcher = same_again(dispatcher)
    for _ in range(30):
        for name, _ in list(went):
            went.remove((name, _))
            went += sends(dispatcher.handle(100, finished(name)))
    assert all(each.state != "queued" for each in dispatcher._requests.values())


def test_what_nobody_ever_offered_is_refused_by_its_name() -> None:
    dispatcher = factory(up("a", labels=EU))
    (refusal,) = rejects(dispatcher.handle(0, arrived("r", labels=("eu", "moon"))))
    assert (refusal.code, refusal.reason) == ("not_offered", "never_offered")
    assert refusal.lacking == "the label 'moon'"
    (refusal,) = rejects(dispatcher.handle(0, arrived("s", labels=EU, adapter="x")))
    assert refusal.lacking == "the adapter 'x'"


def test_what_is_gone_for_a_moment_is_waited_for() -> None:
    dispatcher = factory(up("a"), up("b", labels=EU), down("b"))
    (queue, _) = dispatcher.handle(1, arrived("r", labels=EU))
    assert isinstance(queue, Queue)
    assert (queue.reason, queue.workers, queue.ahead) == ("no_worker_up", 0, 0)
    dispatcher = same_again(dispatcher)
    assert sends(dispatcher.handle(2, up("b", labels=EU))) == [("r", "b")]
    dispatcher.handle(3, down("b"))
    (refusal,) = rejects(dispatcher.handle(30 * NS_PER_S, Ticked()))
    assert (refusal.code, refusal.reason) == ("worker_unavailable", "no_worker_up")
    assert refusal.lacking == "the label 'eu'"
    # It may also be offered by a worker that is measured again.
    dispatcher.handle(31 * NS_PER_S, arrived("s", labels=EU))
    assert sends(dispatcher.handle(31 * NS_PER_S, up("a", labels=EU))) == [("s", "a")]


def test_who_waits_for_a_label_holds_nobody_else_up() -> None:
    dispatcher = factory(up("a", slots=1, labels=EU), up("b", slots=2))
    assert sends(dispatcher.handle(0, arrived("r", labels=EU))) == [("r", "a")]
    assert not sends(dispatcher.handle(1, arrived("s", labels=EU)))
    assert sends(dispatcher.handle(2, arrived("t"))) == [("t", "b")]
    assert dispatcher.queue_lens()[MODEL, Tier.HIGH] == 1
    assert not sends(dispatcher.handle(3, failed("t", "b")))[1:]
    assert sends(dispatcher.handle(4, finished("r"))) == [("s", "a")]
    dispatcher.handle(5, withdrawn("s"))
    assert same_again(dispatcher).queue_lens()[MODEL, Tier.HIGH] == 0


def test_who_has_fewer_places_to_go_is_first_in_its_tier_and_below() -> None:
    dispatcher = factory(up("a", slots=1, labels=EU))
    dispatcher.handle(0, arrived("first"))
    for name, tier, labels in (
        ("ultra", Tier.ULTRA, ()),
        ("plain", Tier.HIGH, ()),
        ("bound", Tier.HIGH, EU),
        ("cheap", Tier.FREE, EU),
    ):
        dispatcher.handle(1, arrived(name, tier, labels=labels, at=1))
    order, name = [], "first"
    while found := sends(dispatcher.handle(2, finished(name))):
        ((name, _),) = found
        order.append(name)
    assert order == ["ultra", "bound", "plain", "cheap"]


def test_a_worker_is_kept_free_of_lower_tiers_for_who_needs_it() -> None:
    dispatcher = factory(up("a", labels=EU), settings=configured(100))
    free = [f"f{number}" for number in range(4)]
    for name in free:
        dispatcher.handle(0, arrived(name, Tier.FREE))
    assert not sends(dispatcher.handle(1, arrived("u", Tier.ULTRA, labels=EU, at=1)))
    # Free would go on filling the worker: it waits until ultra has had its turn.
    assert not sends(dispatcher.handle(2, arrived("g", Tier.FREE, at=2)))
    went = [each for name in free for each in sends(dispatcher.handle(3, finished(name)))]
    assert went == [("u", "a"), ("g", "a")]


def test_an_own_policy_that_forgets_needs_is_overruled() -> None:
    class Careless(Forgetful):
        def configure(self, configured: Configured, index: PrefixIndex) -> None: ...

        def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
            return Choice(fleet.workers[0], "least_loaded", 0, request.rank, 1)

        def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
            yield from ()

    settings = configured(policy="careless")
    own = {"careless": Careless}
    dispatcher = factory(up("a"), up("b", slots=1, labels=EU), settings=settings, own_policies=own)
    assert sends(dispatcher.handle(0, arrived("r", labels=EU))) == [("r", "b")]
    assert not sends(dispatcher.handle(0, arrived("s", labels=EU)))
    assert dispatcher.counts()["policy_faults"] > 1


@pytest.mark.parametrize("prefiller", ["a", "b", "c"])
def test_who_prefills_must_be_able_to_and_have_what_is_needed(prefiller: str) -> None:
    class Picks(Forgetful):
        def configure(self, configured: Configured, index: PrefixIndex) -> None: ...

        def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
            decodes, *_ = fleet.workers
            named = next(each for each in fleet.workers if each.worker == prefiller)
            return Choice(decodes, "least_loaded", 0, request.rank, 1, 0, named)

        def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
            yield from ()

    workers = (
        up("a", hands_over=True, labels=EU),  # itself
        up("b", labels=EU),  # has no link
        up("c", hands_over=True),  # has no label
    )
    settings = configured(policy="picks")
    dispatcher = factory(*workers, settings=settings, own_policies={"picks": Picks})
    ((_, worker),) = sends(dispatcher.handle(0, arrived("r", labels=EU)))
    assert worker in ("a", "b")
    assert dispatcher.counts()["policy_faults"] == 1


def test_prompts_are_prefilled_where_labels_allow_it() -> None:
    settings = configured(100, policy="economic", prices=PRICES)
    workers = [up(name, timing=TIMING, hands_over=True, labels=EU) for name in "abcd"]
    for labelled in ("abcd", "a", "b"):
        workers = [
            up(name, timing=TIMING, hands_over=True, labels=EU if name in labelled else ())
            for name in "abcd"
        ]
        dispatcher = factory(*workers, settings=settings)
        went = []
        for number in range(60):
            at = number * NS_PER_S // 10
            labels = EU if number % 3 == 0 else ()
            event = arrived(f"r{number}", Tier.MEDIUM, labels=labels, at=at, prompt=4_000)
            commands = dispatcher.handle(at, event)
            for each in commands:
                if isinstance(each, Send):
                    went.append(each)
                    dispatcher.handle(at, started(each.request))
        bound = [each for each in went if int(each.request[1:]) % 3 == 0]
        assert bound
        assert {each.worker for each in bound} <= set(labelled)
        assert all(each.prefill_worker is None for each in bound)
        assert any(each.prefill_worker is not None for each in went)


# Sessions and hints.


@pytest.mark.parametrize("policy", ["promises", "prefix-aware", "economic"])
def test_a_session_goes_back_to_its_worker(policy: str) -> None:
    settings = configured(100, policy=policy, prices=PRICES)
    dispatcher = factory(*(up(name, timing=TIMING) for name in "abcd"), settings=settings)
    dispatcher.handle(0, arrived("x"))
    ((_, home),) = sends(dispatcher.handle(0, arrived("r0", session="s")))
    if policy == "economic":
        return  # it weighs the worker that had the session, and no more than that
    dispatcher.handle(1, finished("x"))
    dispatcher = same_again(dispatcher)
    for number in range(1, 5):
        event = arrived(f"r{number}", session="s", prefix=(number,))
        (send,) = dispatcher.handle(number, event)
        assert isinstance(send, Send)
        assert (send.worker, send.reason) == (home, "session_home")
    # Another tenant's session of that name is another one.
    (send,) = dispatcher.handle(9, arrived("other", session="s", tenant="u"))
    assert isinstance(send, Send)
    assert send.reason == "least_loaded"


def test_a_session_that_ends_or_whose_worker_is_lost_is_forgotten() -> None:
    dispatcher = factory(up("a"), up("b"))
    dispatcher.handle(0, arrived("r", session="s"))
    ends = Hints(session_ends=True)
    dispatcher.handle(1, arrived("q", session="s", hints=ends))
    fleet = dispatcher._fleets[MODEL]
    assert not fleet.sessions
    dispatcher.handle(2, arrived("t", session="t"))
    dispatcher.handle(2, arrived("v", session="v"))
    dispatcher.handle(3, down("a"))
    assert all(index == 1 for index in fleet.sessions.values())


def test_sessions_and_offers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "SESSIONS_MAX", 2)
    monkeypatch.setattr(fleet_module, "OFFERED_MAX", 2)
    dispatcher = factory(*(up(name, labels=(name,)) for name in "abc"))
    for name in "xyz":
        dispatcher.handle(0, arrived(name, session=name))
    fleet = dispatcher._fleets[MODEL]
    assert [session for _, session in fleet.sessions] == ["y", "z"]
    assert [each.labels for each in fleet.offered] == [("b",), ("c",)]


def test_a_longer_answer_that_is_expected_is_worth_more() -> None:
    def value(hints: Hints | None) -> int:
        settings = configured(policy="economic", prices=PRICES)
        dispatcher = factory(up("a", timing=TIMING), settings=settings)
        event = arrived("r", Tier.HIGH, output=1_000, hints=hints)
        (send,) = dispatcher.handle(0, event)
        assert isinstance(send, Send)
        return send.value_nanodollars

    assert value(Hints(output_tokens=900)) == 3 * value(None)
    assert value(Hints(output_tokens=5_000)) == value(Hints(output_tokens=1_000))
    assert value(Hints(tool_ns=5)) == value(None)


def test_serving_is_found_again_when_workers_change() -> None:
    dispatcher = factory(up("a", labels=EU), up("b"))
    fleet = dispatcher._fleets[MODEL]
    assert fleet.serving(Needs(labels=EU)) == 1
    dispatcher.handle(1, up("b", labels=EU))
    assert fleet.serving(Needs(labels=EU)) == 3


def many_sets(count: int) -> list[tuple[str, ...]]:
    """So many different sets of some of twelve labels."""
    words = sorted(f"l{number}" for number in range(12))
    sets = [labels for size in range(2, 6) for labels in itertools.combinations(words, size)]
    return sets[:count]


class Counted(Forgetful):
    """Places by labels alone, but nobody at first, and counts how often it is asked."""

    asked = 0
    shut = True

    def configure(self, configured: Configured, index: PrefixIndex) -> None: ...

    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        Counted.asked += 1
        may = permitted(fleet, request, fleet.open)
        if Counted.shut or not may:
            return None
        return Choice(fleet.first(may), "least_loaded", 0, request.rank, 1)

    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        return iter(())


@pytest.mark.parametrize("apart", [False, True])
def test_whoever_names_many_sets_of_labels_slows_nobody(apart: bool) -> None:
    sets = many_sets(700)
    words = sorted({label for labels in sets for label in labels})
    workers = [up("all", labels=tuple(words))]
    if apart:  # many sets of workers, too
        workers += [
            up(f"w{number}", labels=tuple(word for word in words if word != words[number]))
            for number in range(12)
        ]
    Counted.asked, Counted.shut = 0, True
    settings = configured(1_000, policy="own", patience_ns=600 * NS_PER_S)
    dispatcher = factory(*workers, settings=settings, own_policies={"own": Counted})
    for number, labels in enumerate(sets):
        dispatcher.handle(1, arrived(f"r{number}", labels=labels, tenant=f"t{number}", at=1))
    Counted.asked = 0
    dispatcher.handle(2, arrived("plain", at=2))
    looked = restricted.SETS_MAX * (restricted.HEADS_MAX + 1)
    assert 0 < Counted.asked <= looked
    assert (len(dispatcher._fleets[MODEL].restricted) > restricted.SETS_MAX) is apart
    # Sets of workers take turns, and nobody is left.
    Counted.shut = False
    went: set[str] = set()
    again = Dispatcher.restore(dispatcher.snapshot(), {"own": Counted})
    assert again.digest() == dispatcher.digest()
    event: Event = arrived("one more", labels=sets[0], at=3)
    left: list[str] = []
    while len(went) < 700:
        commands = dispatcher.handle(3, event)
        assert again.handle(3, event) == commands
        left += [name for name, _ in sends(commands)]
        went.add(left[0])
        event = finished(left.pop(0))
    assert again.digest() == dispatcher.digest()


def test_needs_that_nobody_has_are_not_remembered_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dispatcher = factory(up("a", labels=EU))
    for number in range(50):
        dispatcher.handle(0, arrived(f"r{number}", labels=(f"random{number}",)))
    fleet = dispatcher._fleets[MODEL]
    assert not fleet._serving
    monkeypatch.setattr(fleet_module, "SERVING_MAX", 2)
    dispatcher.handle(1, up("b", labels=tuple(sorted(f"l{number}" for number in range(9)))))
    for number in (*range(9), 7, 0):
        dispatcher.handle(2, arrived(f"s{number}", labels=(f"l{number}",), at=2))
    assert [needs.labels for needs in fleet._serving] == [("l7",), ("l8",)]


def test_who_waits_for_the_same_workers_takes_turns_also_when_these_change() -> None:
    both = ("eu", "medical")
    dispatcher = factory(up("a", slots=1, labels=both), settings=configured(20))
    dispatcher.handle(0, arrived("first", labels=EU))
    for number in range(3):
        dispatcher.handle(1, arrived(f"x{number}", labels=EU, tenant="x", at=2 * number))
        dispatcher.handle(1, arrived(f"y{number}", labels=both, tenant="y", at=2 * number + 1))
    fleet = dispatcher._fleets[MODEL]
    assert len(fleet.restricted) == 1
    assert sends(dispatcher.handle(4, finished("first"))) == [("x0", "a")]
    assert sends(dispatcher.handle(4, finished("x0"))) == [("y0", "a")]
    # One more that only some of them may use: they wait apart, and together when it is gone.
    assert sends(dispatcher.handle(5, up("b", slots=1, labels=EU))) == [("x1", "b")]
    assert len(fleet.restricted) == 2
    dispatcher = same_again(dispatcher)
    fleet = dispatcher._fleets[MODEL]
    dispatcher.handle(6, down("b"))
    assert len(fleet.restricted) == 1
    assert [each.request for each in fleet.restricted[1][Tier.HIGH.rank].requests()] == [
        "x1",
        "y1",
        "x2",
        "y2",
    ]
    dispatcher = same_again(dispatcher)
    order, name = [], "y0"
    while found := sends(dispatcher.handle(7, finished(name))):
        ((name, _),) = found
        order.append(name)
    assert order == ["x1", "y1", "x2", "y2"]


def test_the_economic_policy_knows_the_workers_of_who_waited_for_them() -> None:
    economic = configured(100, policy="economic", prices=PRICES)
    worker = up("b", labels=EU, timing=TIMING)
    dispatcher = factory(up("a", timing=TIMING), worker, settings=economic)
    dispatcher.handle(0, arrived("x", labels=EU))
    dispatcher.handle(1, finished("x"))
    dispatcher.handle(2, down("b"))
    dispatcher.handle(3, arrived("r", labels=EU, at=3))
    assert sends(dispatcher.handle(4, worker)) == [("r", "b")]
    assert dispatcher.counts()["policy_faults"] == 0


def test_the_economic_policy_may_take_over_while_only_such_wait() -> None:
    dispatcher = factory(up("b", labels=EU, timing=TIMING), settings=configured(100))
    for number in range(12):
        dispatcher.handle(0, arrived(f"r{number}", labels=EU))
    dispatcher.handle(1, configured(100, policy="economic", prices=PRICES))
    assert sends(dispatcher.handle(2, finished("r0")))
    assert dispatcher.counts()["policy_faults"] == 0
