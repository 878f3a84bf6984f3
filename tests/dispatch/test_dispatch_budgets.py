"""Retries stay a part of the load: single failures always get theirs, an outage does not."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dispatch.dispatch_world import (
    arrived,
    configured,
    down,
    factory,
    failed,
    finished,
    started,
    up,
)
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch import snapshot
from tokenworks.dispatch.budgets import ONE, RETRIES_MIN, Budget
from tokenworks.dispatch.commands import Reject, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Configured

S = NS_PER_S


def bounded(percent: int = 20, **changes: int) -> Configured:
    told = configured(10_000, **changes)
    return msgspec.structs.replace(
        told, limits=msgspec.structs.replace(told.limits, retry_percent=percent)
    )


def fail_all(dispatcher: Dispatcher, now_ns: int, count: int) -> tuple[int, int]:
    """Newcomers whose workers break each try off; how many were sent again, and refused."""
    retried = refused = 0
    for number in range(count):
        name = f"r{now_ns}-{number}"
        commands = dispatcher.handle(now_ns, arrived(name, at=now_ns))
        while commands:
            send = commands[-1]
            if not isinstance(send, Send):
                break
            retried += send.attempt > 1
            commands = dispatcher.handle(now_ns, failed(name, send.worker))
        assert isinstance(commands[-1], Reject)
        refused += commands[-1].reason == "retries_spent"
    return retried, refused


def test_an_outage_does_not_multiply_the_load() -> None:
    dispatcher = factory(up("a", slots=2), up("b", slots=2), settings=bounded(retries_max=5))
    retried, refused = fail_all(dispatcher, 0, 1_000)
    # Ten were saved up, which two requests take; the 999 after the first give 199.8 more.
    assert (retried, refused) == (RETRIES_MIN + 199, 998)
    assert dispatcher.counts()["retried"] == retried
    assert dispatcher.counts()["retries_refused"] == refused


def test_who_is_not_sent_again_hears_when_to_come() -> None:
    dispatcher = factory(up(slots=1), settings=bounded(0))
    fail_all(dispatcher, 0, 10)
    dispatcher.handle(0, arrived("r"))
    (rejected,) = dispatcher.handle(0, failed("r"))
    assert isinstance(rejected, Reject)
    assert (rejected.code, rejected.reason) == ("worker_failed", "retries_spent")
    assert rejected.retry_after_ns is not None
    assert rejected.attempts == 1


def test_time_gives_single_failures_their_retry() -> None:
    dispatcher = factory(up(slots=1), settings=bounded(0))
    assert fail_all(dispatcher, 0, 20)[0] == RETRIES_MIN
    assert fail_all(dispatcher, S // 2, 1)[0] == 0
    assert fail_all(dispatcher, S, 2)[0] == 1
    assert fail_all(dispatcher, 100 * S, 20)[0] == RETRIES_MIN  # no more is saved up


def test_all_that_a_lost_worker_had_is_sent_again() -> None:
    flat = ((1, 100), (64, 100))
    dispatcher = factory(
        *(up(name, slots=64, curve=flat) for name in "ab"), settings=bounded(0, retries_max=9)
    )
    for number in range(128):
        dispatcher.handle(0, arrived(f"r{number}", Tier.FREE))
    dispatcher.handle(0, down("a"))
    assert dispatcher.counts()["retried"] == 64
    # One that comes and goes spends what was saved up, and not more.
    dispatcher.handle(0, down("b"))
    dispatcher.handle(0, up("a", slots=64, curve=flat))
    commands = dispatcher.handle(0, down("a"))
    assert dispatcher.counts()["retried"] == 128
    assert [each.reason for each in commands if isinstance(each, Reject)] == ["retries_spent"] * 64


def test_without_a_bound_nobody_is_refused() -> None:
    dispatcher = factory(up(slots=1), settings=configured(retries_max=5))
    assert fail_all(dispatcher, 0, 100) == (500, 0)
    assert snapshot.decode(dispatcher.snapshot()).models[0].retries == Budget()


def test_one_model_does_not_spend_what_is_anothers() -> None:
    dispatcher = factory(
        up("a", slots=1), up("b", slots=1, model="large"), settings=bounded(0, retries_max=1)
    )
    fail_all(dispatcher, 0, 20)
    dispatcher.handle(0, arrived("r", model="large"))
    assert isinstance(dispatcher.handle(0, failed("r", "b"))[0], Send)


def test_an_answer_that_has_begun_takes_nothing() -> None:
    dispatcher = factory(up(slots=1), settings=bounded(0))
    for number in range(3 * RETRIES_MIN):
        dispatcher.handle(0, arrived(f"r{number}"))
        dispatcher.handle(0, started(f"r{number}"))
        dispatcher.handle(0, failed(f"r{number}", started=True))
    dispatcher.handle(0, arrived("r"))
    assert isinstance(dispatcher.handle(0, failed("r"))[0], Send)


def test_a_snapshot_keeps_the_budget() -> None:
    dispatcher = factory(up(slots=1), settings=bounded(retries_max=1))
    fail_all(dispatcher, 0, 15)
    again = Dispatcher.restore(dispatcher.snapshot())
    assert fail_all(again, S, 5) == fail_all(dispatcher, S, 5)
    assert again.digest() == dispatcher.digest()


def test_a_snapshot_of_before_has_a_full_budget() -> None:
    told = configured()
    dispatcher = factory(up(slots=1), arrived("r"), finished("r"), settings=told)
    old = msgspec.msgpack.decode(dispatcher.snapshot())
    old["format"] = 7
    for model in old["models"]:
        del model["firsts"], model["retries"]
    for name in ("retried", "retries_refused"):
        del old["counts"][name]
    del old["configured"]["limits"]["retry_percent"]
    again = Dispatcher.restore(msgspec.msgpack.encode(old))
    assert fail_all(again, S, 100) == (200, 0)
    again.handle(S, bounded(0))
    assert fail_all(again, 2 * S, 100)[0] == RETRIES_MIN


steps = st.lists(
    st.tuples(st.integers(0, 3 * S), st.integers(0, 400), st.integers(0, 100), st.integers(0, 30)),
    max_size=30,
)


@given(steps=steps, percent=st.integers(0, 100), per_s=st.integers(0, 3))
def test_no_more_is_taken_than_was_put_in(
    steps: list[tuple[int, int, int, int]], percent: int, per_s: int
) -> None:
    budget, taken, most = Budget(), 0, 0
    firsts = now_ns = 0
    for passed_ns, sent, size, wanted in steps:
        firsts, now_ns, most = firsts + sent, now_ns + passed_ns, max(most, size)
        for _ in range(wanted):
            if budget.fill(firsts, now_ns, percent=percent, per_s=per_s, size=size) < ONE:
                break
            budget.take()
            taken += 1
        assert budget.left is None or 0 <= budget.left <= most * ONE
    assert 100 * S * (taken - most) <= firsts * percent * S + 100 * now_ns * per_s


def test_nothing_is_taken_from_an_empty_budget() -> None:
    with pytest.raises(AssertionError):
        Budget(left=ONE - 1).take()
