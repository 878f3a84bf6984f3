"""One test for each rule of the economic policy, on the smallest world that shows it."""

from __future__ import annotations

import doctest

import msgspec

from tests.dispatch.dispatch_world import (
    MODEL,
    PRICES,
    TIMING,
    arrived,
    configured,
    down,
    factory,
    finished,
    up,
)
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch import economics
from tokenworks.dispatch.commands import Command, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.economics import Book
from tokenworks.dispatch.events import Event

S = NS_PER_S
ECONOMIC = configured(policy="economic", prices=PRICES, queue_len_max=100)


def money(*events: Event) -> Dispatcher:
    """A dispatcher that decides by money."""
    return factory(*events, settings=ECONOMIC)


def sends(commands: list[Command]) -> list[tuple[str, str]]:
    return [(c.request, c.worker) for c in commands if isinstance(c, Send)]


def book_of(dispatcher: Dispatcher) -> Book:
    record = dispatcher._policy.record()
    return msgspec.msgpack.decode(record, type=dict[str, Book])[MODEL]


def homes(dispatcher: Dispatcher) -> list[int]:
    return sorted(book_of(dispatcher).homes.values())


def faults(dispatcher: Dispatcher) -> int:
    return dispatcher.counts()["policy_faults"]


def test_examples_in_the_text_hold() -> None:
    failed, tried = doctest.testmod(economics)
    assert (failed, tried > 0) == (0, True)


# Who is known.


def test_a_worker_that_came_up_since_the_last_plan_takes_requests() -> None:
    dispatcher = money(up("a", slots=1), arrived("first"), up("b"))
    assert sends(dispatcher.handle(1, arrived("second"))) == [("second", "b")]
    assert faults(dispatcher) == 0


def test_who_waits_for_the_first_worker_is_sent_when_it_comes() -> None:
    dispatcher = money(up("a"), down("a"), arrived("r"))
    assert sends(dispatcher.handle(1, up("b"))) == [("r", "b")]
    assert faults(dispatcher) == 0


def test_it_takes_over_what_another_policy_sent_and_let_wait() -> None:
    dispatcher = factory(up(slots=1), arrived("sent"), arrived("waits"))
    dispatcher.handle(1, ECONOMIC)
    assert sends(dispatcher.handle(2, finished("sent"))) == [("waits", "a")]
    assert faults(dispatcher) == 0


def test_a_new_plan_for_a_new_worker_does_not_take_an_instant_for_a_rush() -> None:
    dispatcher = money(up("a", timing=TIMING), arrived("first"))
    before = [mean.rate_per_ks for mean in book_of(dispatcher).means]
    dispatcher.handle(1, up("b", timing=TIMING))
    dispatcher.handle(1, arrived("second"))
    assert [mean.rate_per_ks for mean in book_of(dispatcher).means] == before
    assert len(book_of(dispatcher).homes) == 2
