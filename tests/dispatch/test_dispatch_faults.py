"""What a policy may not do, and what the dispatcher makes of it: no request is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dispatch.dispatch_world import (
    PRICES,
    World,
    arrived,
    configured,
    down,
    factory,
    finished,
    up,
)
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.commands import Command, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Configured, Event, Finished
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.policy import Choice, Forgetful
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.promises import Promises
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.workers import Worker

S = NS_PER_S


def sends(commands: list[Command]) -> list[tuple[str, str]]:
    return [(c.request, c.worker) for c in commands if isinstance(c, Send)]


def to(worker: Worker, **changes: int) -> Choice:
    return msgspec.structs.replace(Choice(worker, "least_loaded", 0, 0, 1), **changes)


class Last(Forgetful):
    """The operator's own: the youngest of the highest tier first, to the last worker with room."""

    def configure(self, configured: Configured, index: PrefixIndex) -> None:
        self.seen: list[Worker] = []

    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        self.seen = self.seen or list(fleet.workers)
        return to(fleet.by_index[fleet.open.bit_length() - 1])

    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        while fleet.queued and fleet.open:
            line = next(line for line in reversed(fleet.lines) if len(line))
            request = line.requests()[-1]
            choice = self.place(fleet, request, now_ns)
            assert choice is not None
            yield request, choice


class RaisesEverywhere(Last):
    def arrived(self, fleet: Fleet, request: Request, now_ns: int) -> None:
        raise RuntimeError

    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        raise RuntimeError

    def finished(self, fleet: Fleet, worker: Worker, request: Request, event: Finished) -> None:
        raise RuntimeError


class RaisesBeforeTheFirst(Last):
    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        raise RuntimeError


class RaisesAfterTheFirst(Last):
    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        yield next(super().drain(fleet, now_ns))
        raise RuntimeError


class NamesAnyWorker(Last):
    """Up or down, full or not, of whichever model: the first that it ever saw."""

    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        super().place(fleet, request, now_ns)
        return to(self.seen[0])


class PrefillsWhereNothingIsHandedOver(Last):
    """By a worker that cannot hand its KV cache over."""

    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        choice = super().place(fleet, request, now_ns)
        assert choice is not None
        return choice._replace(prefiller=fleet.workers[0])


class NamesNobody(Last):
    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        return "the best one"  # type: ignore[return-value]


class YieldsTwice(Last):
    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        for pair in super().drain(fleet, now_ns):
            yield pair
            yield pair


class YieldsWhoDoesNotWait(Last):
    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        request, choice = next(super().drain(fleet, now_ns))
        stranger = Request(
            request=request.request,
            tenant=request.tenant,
            model=request.model,
            rank=0,
            output_tokens_max=1,
            input_tokens_max=1,
            prefix=(),
            arrived_ns=0,
            late_ns=0,
        )
        yield stranger, choice


class YieldsNoPair(Last):
    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        yield "nobody", "nowhere"  # type: ignore[misc]


class SaysNothing(Last):
    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        return None

    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        return None  # type: ignore[return-value]


class NamesNoTier(Last):
    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        return to(fleet.first(fleet.open), rank=len(Tier))


class NamesMoreBlocksThanThePromptHas(Last):
    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        return to(fleet.first(fleet.open), hit_blocks=len(request.prefix) + 1)


class NamesHalfATier(Last):
    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        return to(fleet.first(fleet.open), rank=0.5)  # type: ignore[arg-type]


class GivesNoReason(Last):
    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        return to(fleet.first(fleet.open), reason=object())  # type: ignore[arg-type]


class CountsBeyondAllMoney(Last):
    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        return to(fleet.first(fleet.open), value_nanodollars=1 << 70)


class TakesNoSettings(Last):
    def configure(self, configured: Configured, index: PrefixIndex) -> None:
        raise RuntimeError


class CannotBeMade(Last):
    def __init__(self) -> None:
        raise RuntimeError


class WritesNothingDown(Last):
    def record(self) -> bytes:
        raise RuntimeError


class WritesNoBytes(Last):
    def record(self) -> bytes:
        return {"seen": self.seen}  # type: ignore[return-value]


class ReadsNothing(Last):
    def restore(self, data: bytes) -> None:
        raise RuntimeError


class SetsEverybodyLate(Last):
    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        for line in fleet.lines:
            while line.punctual():
                line.set_late(line.head())
        raise RuntimeError


WRONG = (
    RaisesEverywhere,
    RaisesBeforeTheFirst,
    RaisesAfterTheFirst,
    NamesAnyWorker,
    PrefillsWhereNothingIsHandedOver,
    NamesNobody,
    YieldsTwice,
    YieldsWhoDoesNotWait,
    YieldsNoPair,
    SaysNothing,
    NamesNoTier,
    NamesMoreBlocksThanThePromptHas,
    NamesHalfATier,
    GivesNoReason,
    CountsBeyondAllMoney,
    TakesNoSettings,
    CannotBeMade,
    WritesNothingDown,
    WritesNoBytes,
    ReadsNothing,
    SetsEverybodyLate,
)
each_wrong = pytest.mark.parametrize("wrong", WRONG)


def own(make: Callable[[], Last], *events: Event) -> Dispatcher:
    """A dispatcher that an operator's own policy decides for."""
    return factory(*events, settings=configured(policy="own"), own_policies={"own": make})


# An operator's own policy.


def test_an_own_policy_decides() -> None:
    dispatcher = own(Last, up("a", slots=1), up("b", slots=1))
    assert sends(dispatcher.handle(0, arrived("r"))) == [("r", "b")]
    dispatcher.handle(0, arrived("s"))
    for name in ("first", "second"):
        dispatcher.handle(0, arrived(name))
    assert sends(dispatcher.handle(0, finished("r"))) == [("second", "b")]
    assert dispatcher.counts()["policy_faults"] == 0


def test_an_own_policy_goes_before_one_of_the_same_name() -> None:
    dispatcher = factory(up("a"), up("b"), settings=configured(), own_policies={"promises": Last})
    assert sends(dispatcher.handle(0, arrived("r"))) == [("r", "b")]


def test_an_own_policy_comes_back_from_a_snapshot() -> None:
    again = Dispatcher.restore(own(Last, up("a"), up("b")).snapshot(), {"own": Last})
    assert sends(again.handle(0, arrived("r"))) == [("r", "b")]


def test_a_policy_that_nobody_knows_is_a_setting_to_mend() -> None:
    with pytest.raises(ConfigInvalid, match="'own'"):
        factory(settings=configured(policy="own"))


# Wrong ones.


@pytest.mark.heavy
@each_wrong
@settings(max_examples=12)
@given(st.integers(0, 1 << 30))
def test_no_request_is_lost_by_a_wrong_policy(wrong: type[Last], seed: int) -> None:
    world = World(seed, "own", {"own": wrong})
    for _ in range(120):
        world.step()
    world.heal()


@pytest.mark.parametrize(
    "wrong",
    [
        *(RaisesEverywhere, NamesNobody, NamesNoTier, NamesMoreBlocksThanThePromptHas),
        *(NamesHalfATier, GivesNoReason, CountsBeyondAllMoney),
    ],
)
def test_a_newcomer_that_is_placed_wrongly_goes_by_load(wrong: type[Last]) -> None:
    dispatcher = own(wrong, up("a"), up("b"))
    assert sends(dispatcher.handle(0, arrived("r"))) == [("r", "a")]
    assert dispatcher.counts()["policy_faults"] >= 1


def test_a_worker_that_is_full_is_not_sent_more() -> None:
    dispatcher = own(NamesAnyWorker, up("a", slots=1), up("b", slots=1), arrived("r"))
    assert dispatcher.counts()["policy_faults"] == 0
    assert sends(dispatcher.handle(0, arrived("s"))) == [("s", "b")]
    assert dispatcher.counts()["policy_faults"] == 1


def test_a_worker_that_is_down_is_sent_nothing() -> None:
    dispatcher = own(NamesAnyWorker, up("a"), arrived("r"), finished("r"), down("a"), up("b"))
    assert sends(dispatcher.handle(0, arrived("s"))) == [("s", "b")]
    assert dispatcher.counts()["policy_faults"] == 1


def test_a_worker_of_another_model_is_sent_nothing() -> None:
    dispatcher = own(NamesAnyWorker, up("a"), up("b", model="large"), arrived("r"))
    assert sends(dispatcher.handle(0, arrived("s", model="large"))) == [("s", "b")]
    assert dispatcher.counts()["policy_faults"] == 1


@pytest.mark.parametrize(
    "wrong",
    [RaisesBeforeTheFirst, YieldsWhoDoesNotWait, YieldsNoPair, SaysNothing, SetsEverybodyLate],
)
def test_one_of_those_that_wait_goes_by_load_in_spite(wrong: type[Last]) -> None:
    dispatcher = own(wrong, up("a"), down("a"), arrived("r"), arrived("s"))
    assert sends(dispatcher.handle(1, up("b"))) == [("r", "b")]
    assert dispatcher.counts()["policy_faults"] == 1


@pytest.mark.parametrize("wrong", [YieldsTwice, RaisesAfterTheFirst])
def test_a_request_is_sent_once(wrong: type[Last]) -> None:
    dispatcher = own(wrong, up("a", slots=1), arrived("r"), arrived("s"), arrived("t"))
    assert sends(dispatcher.handle(0, up("b", slots=3))) == [("t", "b"), ("s", "b")]
    assert dispatcher.counts()["policy_faults"] == 1


def test_who_waits_goes_nowhere_where_all_are_full() -> None:
    dispatcher = own(
        RaisesAfterTheFirst, up("a", slots=1), arrived("r"), arrived("s"), arrived("t")
    )
    assert sends(dispatcher.handle(0, up("b", slots=1))) == [("t", "b")]
    assert dispatcher.counts()["policy_faults"] == 1
    assert sends(dispatcher.handle(0, finished("r"))) == [("s", "a")]


def test_all_that_is_learned_by_a_policy_may_fail() -> None:
    dispatcher = own(RaisesEverywhere, up(), arrived("r"), finished("r"))
    assert dispatcher.counts()["policy_faults"] == 3  # arrived, place, finished
    assert dispatcher.counts()["finished"] == 1


@pytest.mark.parametrize("name", ["promises", "economic", "strict-priority", "edf", "vtc"])
def test_who_was_set_late_by_one_policy_is_served_by_the_next(name: str) -> None:
    dispatcher = own(SetsEverybodyLate, up(slots=1), arrived("r"))
    for each in "stu":
        dispatcher.handle(0, arrived(each))
    assert sends(dispatcher.handle(0, finished("r"))) == [("s", "a")]
    dispatcher.handle(0, configured(policy=name, prices=PRICES))
    assert sends(dispatcher.handle(0, finished("s"))) == [("t", "a")]
    assert sends(dispatcher.handle(0, finished("t"))) == [("u", "a")]
    assert dispatcher.counts()["policy_faults"] == 1


@pytest.mark.parametrize("wrong", [TakesNoSettings, CannotBeMade])
def test_a_policy_that_takes_no_settings_is_stood_in_for(wrong: type[Last]) -> None:
    dispatcher = own(wrong, up("a"), up("b"))
    assert dispatcher.counts()["policy_faults"] == 1
    assert sends(dispatcher.handle(0, arrived("r"))) == [("r", "a")]
    again = Dispatcher.restore(dispatcher.snapshot(), {"own": wrong})
    assert again.snapshot() == dispatcher.snapshot()
    assert sends(again.handle(0, arrived("s"))) == sends(dispatcher.handle(0, arrived("s")))
    dispatcher.handle(0, configured(policy="own", patience_ns=S))
    assert dispatcher.counts()["policy_faults"] == 2  # it was asked again


@pytest.mark.parametrize("wrong", [WritesNothingDown, WritesNoBytes, ReadsNothing])
def test_a_policy_without_a_memory_begins_anew(wrong: type[Last]) -> None:
    dispatcher = own(wrong, up("a"), up("b"), arrived("r"))
    again = Dispatcher.restore(dispatcher.snapshot(), {"own": wrong})
    assert again.snapshot() == dispatcher.snapshot()
    assert sends(again.handle(0, arrived("s"))) == [("s", "b")]


def test_a_policy_of_ours_that_raises_is_our_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = factory(up(), settings=configured())
    data = dispatcher.snapshot()
    monkeypatch.setattr(Forgetful, "restore", WritesNothingDown.record)
    with pytest.raises((RuntimeError, TypeError)):
        Dispatcher.restore(data)
    monkeypatch.setattr(Promises, "configure", TakesNoSettings.configure)
    with pytest.raises(RuntimeError):
        factory(settings=configured())
