"""One test for each of the field's policies and each setting, on the smallest world."""

from __future__ import annotations

import msgspec
import pytest

from tests.dispatch.dispatch_world import (
    arrived,
    configured,
    down,
    factory,
    failed,
    finished,
    promises,
    removed,
    started,
    stored,
    up,
)
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch import policies
from tokenworks.dispatch.commands import Command, Queue, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Event, PolicySettings

S = NS_PER_S


def under(name: str, *events: Event) -> Dispatcher:
    """A dispatcher under a policy, told these at time 0."""
    return factory(*events, settings=configured(policy=name))


def sends(commands: list[Command]) -> list[tuple[str, str]]:
    return [(c.request, c.worker) for c in commands if isinstance(c, Send)]


def worker_of(dispatcher: Dispatcher, event: Event) -> str:
    ((_, worker),) = sends(dispatcher.handle(0, event))
    return worker


def workers_of(dispatcher: Dispatcher, count: int) -> str:
    return "".join(worker_of(dispatcher, arrived(f"n{i}")) for i in range(count))


# Where it goes.


def test_round_robin_takes_turns() -> None:
    assert workers_of(under("round-robin", up("a"), up("b"), up("c")), 5) == "abcab"


def test_round_robin_takes_turns_in_each_model() -> None:
    dispatcher = under(
        "round-robin", up("a"), up("b"), up("c", model="large"), up("d", model="large")
    )
    said = ""
    for i in range(3):
        said += worker_of(dispatcher, arrived(f"s{i}"))
        said += worker_of(dispatcher, arrived(f"l{i}", model="large"))
    assert said == "acbdac"


def test_random_reaches_every_worker_and_is_given_by_the_seed() -> None:
    workers = [up(name) for name in "abc"]

    def said(seed: int) -> str:
        settings = configured(policy=PolicySettings(name="random", seed=seed))
        return workers_of(factory(*workers, settings=settings), 12)

    assert set(said(1)) == set("abc")
    assert said(1) == said(1) != said(2)


def test_the_less_loaded_of_two_draws_is_taken() -> None:
    dispatcher = under("power-of-two", up("a"), up("b"))
    for i in range(4):
        dispatcher.handle(0, arrived(f"r{i}"))
    running = [load.running for load in dispatcher.loads().values()]
    assert max(running) < 4  # one in sixteen would send all to one if load did not count


def test_least_loaded_fills_evenly() -> None:
    assert workers_of(under("least-loaded", up("a"), up("b"), up("c")), 6) == "abcabc"


def test_prefix_aware_follows_the_prefix() -> None:
    dispatcher = under("prefix-aware", up("a"), up("b"), arrived("r", prefix=(1, 2)))
    assert worker_of(dispatcher, arrived("same", prefix=(1, 2))) == "a"
    assert worker_of(dispatcher, arrived("other", prefix=(8, 9))) == "b"


def test_kv_cost_weighs_a_prefix_against_work() -> None:
    dispatcher = under("kv-cost", up("a"), up("b"), stored(1, 2, 3, 4))
    long, short = (1, 2, 3, 4), (1,)
    assert worker_of(dispatcher, arrived("first", prefix=long, prompt=256)) == "a"
    # What waits there to be computed costs as much as four blocks: one hit is not worth it.
    assert worker_of(dispatcher, arrived("second", prefix=short, prompt=256)) == "b"


def test_kv_cost_counts_prompts_that_are_not_yet_computed() -> None:
    dispatcher = under("kv-cost", up("a"), up("b"), arrived("r", prompt=640), started("r"))
    assert worker_of(dispatcher, arrived("s", prompt=1_000)) == "b"
    # Now a holds 10 blocks that are computed, b 16 that are not.
    assert worker_of(dispatcher, arrived("t", prompt=64)) == "a"


def test_scorer_sum_prefers_a_prefix_to_a_free_slot() -> None:
    dispatcher = under("scorer-sum", up("a"), up("b"), arrived("r", prefix=(1, 2)))
    (send,) = dispatcher.handle(0, arrived("same", prefix=(1, 2)))
    assert isinstance(send, Send)
    assert (send.worker, send.reason, send.hit_blocks) == ("a", "best_score", 2)
    assert worker_of(dispatcher, arrived("other")) == "b"


def test_scorer_sum_prefers_a_free_cache() -> None:
    full, empty = up("a", kv_blocks=4), up("b", kv_blocks=400)
    dispatcher = under("scorer-sum", full, empty)
    for name in ("r", "s"):
        dispatcher.handle(0, arrived(name, prompt=256))
    assert {load.running for load in dispatcher.loads().values()} == {1}
    assert worker_of(dispatcher, arrived("t")) == "b"


@pytest.mark.parametrize("name", policies.NAMES)
def test_who_broke_off_is_not_asked_again_if_there_are_others(name: str) -> None:
    split = PolicySettings(name=name, split=(0, 0, 2, 0, 0))
    settings = configured(policy=split if name == "static-split" else name)
    dispatcher = factory(up("a"), up("b"), settings=settings)
    worker = worker_of(dispatcher, arrived("r"))
    assert sends(dispatcher.handle(0, failed("r", worker))) == [("r", {"a": "b", "b": "a"}[worker])]


# Who is next.


def after_the_first(name: str, *waiting: Event) -> str:
    """Who is sent, one after the other, to a worker with one slot."""
    dispatcher = under(name, up(slots=1), arrived("0", at=0))
    for event in waiting:
        assert not sends(dispatcher.handle(dispatcher._now_ns + 1, event))
    said, last = "", "0"
    while pairs := sends(dispatcher.handle(dispatcher._now_ns + 1, finished(last))):
        last = pairs[0][0]
        said += last
    return said


def test_first_come_first_served_whatever_the_tier() -> None:
    waiting = arrived("f", Tier.FREE), arrived("u", Tier.ULTRA), arrived("g", Tier.FREE)
    assert after_the_first("least-loaded", *waiting) == "fug"


def test_strict_priority_serves_the_highest_tier_first() -> None:
    waiting = arrived("f", Tier.FREE), arrived("u", Tier.ULTRA), arrived("h", Tier.HIGH)
    assert after_the_first("strict-priority", *waiting) == "uhf"


def test_edf_serves_the_earliest_ttft_deadline() -> None:
    settings = configured(policy="edf")
    slow = {
        tier: msgspec.structs.replace(promise, ttft_ns=(5 - tier.rank) * S)
        for tier, promise in promises().items()
    }
    settings = msgspec.structs.replace(settings, promises=slow)
    dispatcher = factory(up(slots=1), arrived("first"), settings=settings)
    # Due at 5 s, at 4.5 s and at 4 s.
    dispatcher.handle(0, arrived("free", Tier.FREE, at=0))
    dispatcher.handle(5 * S // 2, arrived("high", Tier.HIGH, at=3 * S // 2))
    dispatcher.handle(3 * S, arrived("ultra", Tier.ULTRA, at=3 * S))
    served, last = [], "first"
    for _ in range(3):
        ((last, _),) = sends(dispatcher.handle(4 * S, finished(last)))
        served.append(last)
    assert served == ["ultra", "high", "free"]


def test_vtc_serves_the_tenant_that_was_served_least() -> None:
    waiting = [arrived(name, tenant="greedy", prompt=1_000) for name in "abc"]
    waiting += [arrived("d", tenant="modest", prompt=10), arrived("e", tenant="modest", prompt=10)]
    assert after_the_first("vtc", *waiting) == "adebc"


def test_vtc_gives_no_credit_for_time_away() -> None:
    dispatcher = under("vtc", up(slots=1), arrived("x", tenant="away"), finished("x"))
    for i in range(5):
        dispatcher.handle(0, arrived(f"b{i}", tenant="busy"))
        dispatcher.handle(0, finished(f"b{i}"))
    dispatcher.handle(0, arrived("running", tenant="busy"))
    # Who comes back counts from where the others are: the two take turns.
    for name, tenant in (("1", "away"), ("2", "busy"), ("3", "away"), ("4", "busy")):
        dispatcher.handle(0, arrived(name, tenant=tenant))
    served, last = [], "running"
    for _ in range(4):
        ((last, _),) = sends(dispatcher.handle(0, finished(last)))
        served.append(last)
    assert served == ["1", "2", "3", "4"]


def test_vtc_forgets_who_was_served_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "VTC_TENANTS_MAX", 2)
    dispatcher = under("vtc", up())
    for i, tenant in enumerate("xyz"):
        dispatcher.handle(0, arrived(tenant, tenant=tenant, prompt=100 * (i + 1)))
        dispatcher.handle(0, finished(tenant))
    memory = msgspec.msgpack.decode(dispatcher._policy.record(), type=policies.Memory)
    assert set(memory.served) == {"y", "z"}


# Static split.


def split(*events: Event, counts: tuple[int, ...] = ()) -> Dispatcher:
    settings = PolicySettings(name="static-split", split=counts)
    return factory(*events, settings=configured(policy=settings))


def test_each_tier_has_workers_of_its_own() -> None:
    dispatcher = split(*(up(name) for name in "abcde"))
    assert [worker_of(dispatcher, arrived(tier.value, tier)) for tier in Tier] == list("abcde")
    two = split(*(up(name) for name in "abc"), counts=(1, 0, 2, 0, 0))
    assert workers_of(two, 2) == "bc"


def test_a_tier_that_is_full_waits_and_stops_no_other() -> None:
    dispatcher = split(up("a", slots=1), up("b", slots=1), counts=(1, 1, 0, 0, 0))
    for name in ("r", "s", "t"):
        dispatcher.handle(0, arrived(name, Tier.MEDIUM))
    assert sends(dispatcher.handle(0, arrived("f", Tier.FREE))) == [("f", "a")]
    assert sends(dispatcher.handle(0, finished("r"))) == [("s", "b")]


# Settings.


def test_a_batch_cap_bounds_what_one_worker_is_sent() -> None:
    settings = configured(policy=PolicySettings(name="least-loaded", batch_cap=2))
    dispatcher = factory(up(), settings=settings)
    assert workers_of(dispatcher, 2) == "aa"
    assert isinstance(dispatcher.handle(0, arrived("more"))[0], Queue)


def test_requests_queue_at_the_worker_if_they_shall() -> None:
    settings = configured(
        policy=PolicySettings(name="least-loaded", batch_cap=3, queue_at_worker=True)
    )
    assert workers_of(factory(up(slots=1), settings=settings), 3) == "aaa"


def test_another_batch_cap_holds_for_workers_that_are_up() -> None:
    dispatcher = under("least-loaded", up(slots=4), arrived("r"), arrived("s"))
    settings = PolicySettings(name="least-loaded", batch_cap=1)
    dispatcher.handle(0, configured(policy=settings))
    assert isinstance(dispatcher.handle(0, arrived("t"))[0], Queue)
    assert not sends(dispatcher.handle(0, finished("r")))
    assert sends(dispatcher.handle(0, finished("s"))) == [("t", "a")]
    assert not sends(dispatcher.handle(0, arrived("u")))
    assert sends(dispatcher.handle(0, configured(policy="least-loaded"))) == [("u", "a")]


def test_another_policy_may_take_over() -> None:
    dispatcher = under("round-robin", up("a"), up("b"), arrived("r"))
    dispatcher.handle(0, configured(policy="least-loaded"))
    assert worker_of(dispatcher, arrived("s")) == "b"
    dispatcher.handle(0, configured(queue_len_max=3, policy="least-loaded"))
    assert worker_of(dispatcher, arrived("t")) == "a"


# What engines publish.


def test_blocks_that_a_worker_has_draw_requests() -> None:
    dispatcher = under("prefix-aware", up("a"), up("b"), stored(1, 2, worker="b"))
    assert worker_of(dispatcher, arrived("r", prefix=(1, 2))) == "b"


@pytest.mark.parametrize("gone", [removed(1, 2, worker="b"), removed(worker="b", everything=True)])
def test_blocks_that_are_gone_draw_nobody(gone: Event) -> None:
    dispatcher = under("prefix-aware", up("a"), up("b"), stored(1, 2, worker="b"), gone)
    assert worker_of(dispatcher, arrived("r", prefix=(1, 2))) == "a"


def test_blocks_of_a_worker_that_is_down_are_ignored() -> None:
    dispatcher = under("prefix-aware", up("a"), down("a"), stored(1), removed(1))
    assert dispatcher.counts()["ignored"] == 2


def test_a_worker_that_is_measured_again_may_have_other_blocks() -> None:
    dispatcher = under("kv-cost", up("a"), up("a", block_tokens=16))
    assert dispatcher.counts()["ignored"] == 0
    dispatcher.handle(0, up("a", block_tokens=16))
    assert dispatcher.counts()["ignored"] == 1
