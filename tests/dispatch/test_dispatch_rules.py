"""One test for each rule of the dispatcher, on the smallest world that shows it."""

from __future__ import annotations

import pytest

from tests.dispatch.dispatch_world import (
    MODEL,
    arrived,
    configured,
    down,
    factory,
    failed,
    finished,
    limits,
    promises,
    started,
    up,
    withdrawn,
)
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.commands import Abort, Command, Queue, Reject, Send, SetTimer
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Configured, Event, Ticked

S = NS_PER_S
FLAT = ((1, 100),)


def sends(commands: list[Command]) -> list[tuple[str, str, str]]:
    return [(c.request, c.worker, c.reason) for c in commands if isinstance(c, Send)]


def rejects(commands: list[Command]) -> list[tuple[str, str, str]]:
    return [(c.request, c.code, c.reason) for c in commands if isinstance(c, Reject)]


def fill(dispatcher: Dispatcher, count: int, tier: Tier = Tier.HIGH) -> None:
    for i in range(count):
        assert sends(dispatcher.handle(0, arrived(f"{tier.value}{i}", tier))), i


# Life of a request.


def test_a_request_is_sent_at_once_where_there_is_room() -> None:
    (send,) = factory(up()).handle(5, arrived("r", at=3))
    assert send == Send(
        request="r",
        worker="a",
        attempt=1,
        reason="least_loaded",
        running=1,
        cap=8,
        candidates=1,
        hit_blocks=0,
        waited_ns=2,
    )


def test_settings_come_first_and_time_never_goes_back() -> None:
    with pytest.raises(AssertionError):
        Dispatcher().handle(0, Ticked())
    dispatcher = factory()
    dispatcher.handle(9, Ticked())
    with pytest.raises(AssertionError):
        dispatcher.handle(8, Ticked())
    with pytest.raises(AssertionError, match="needs a promise"):
        factory(settings=Configured(promises={}, limits=limits()))
    short = promises()
    with pytest.raises(AssertionError, match="needs a bound"):
        factory(settings=Configured(promises=short, limits=type(limits())(queue_len_max={})))


def test_a_model_that_never_had_a_worker_is_rejected() -> None:
    (reject,) = factory(up()).handle(0, arrived("r", model="other"))
    assert isinstance(reject, Reject)
    assert (reject.code, reject.reason) == ("worker_unavailable", "model_never_up")
    assert reject.retry_after_ns is None


def test_a_model_whose_workers_are_down_is_waited_for() -> None:
    dispatcher = factory(up(), down())
    queue, timer = dispatcher.handle(0, arrived("r"))
    assert isinstance(queue, Queue)
    assert (queue.reason, queue.workers, queue.deadline_ns) == ("no_worker_up", 0, 10 * S)
    assert timer == SetTimer(at_ns=S + 1, reason="waiting", queued=1)
    assert sends(dispatcher.handle(2 * S, up("b"))) == [("r", "b", "least_loaded")]


def test_patience_over_without_a_worker() -> None:
    dispatcher = factory(up(), down())
    dispatcher.handle(0, arrived("r"))
    (reject,) = dispatcher.handle(10 * S, Ticked())
    assert isinstance(reject, Reject)
    assert (reject.code, reject.reason) == ("capacity_exceeded", "no_worker_up")
    assert (reject.retry_after_ns, reject.waited_ns) == (10 * S, 10 * S)


@pytest.mark.parametrize("began", [True, False])
def test_an_answer_ends(began: bool) -> None:
    dispatcher = factory(up(), arrived("r"))
    if began:
        assert dispatcher.handle(1, started("r")) == []
    assert dispatcher.handle(2, finished("r")) == []
    assert dispatcher.counts()["finished"] == 1
    assert dispatcher.loads()["a"].running == 0


def test_a_slot_that_ends_goes_to_who_waits() -> None:
    dispatcher = factory(up(slots=1))
    fill(dispatcher, 1)
    dispatcher.handle(0, arrived("next"))
    assert sends(dispatcher.handle(1, finished("high0"))) == [("next", "a", "least_loaded")]


@pytest.mark.parametrize(
    "event",
    [
        arrived("live"),
        arrived("over"),
        arrived("waits"),
        started("answering"),
        started("over"),
        started("waits"),
        finished("over"),
        finished("waits"),
        finished("unheard"),
        failed("over"),
        failed("waits"),
        failed("live", "b"),
        withdrawn("over"),
        withdrawn("unheard"),
        down("unheard"),
        up(slots=3),
        configured(),
    ],
)
def test_late_and_repeated_messages_change_nothing(event: Event) -> None:
    dispatcher = factory(
        up(slots=3),
        *(arrived(name, Tier.FREE) for name in ("live", "answering", "over")),
        started("answering"),
        finished("over"),
        arrived("more", Tier.FREE),
        arrived("waits", Tier.FREE),
    )
    before = dispatcher.counts()
    lens, loads = dispatcher.queue_lens(), dispatcher.loads()
    assert dispatcher.handle(0, event) == []
    after = dispatcher.counts()
    assert after == before | {"events": before["events"] + 1, "ignored": before["ignored"] + 1}
    assert (dispatcher.queue_lens(), dispatcher.loads()) == (lens, loads)


def test_names_of_ended_requests_are_kept_up_to_a_bound() -> None:
    dispatcher = factory(up(), settings=configured(ended_max=1))
    for name in ("r", "s"):
        dispatcher.handle(0, arrived(name))
        dispatcher.handle(0, finished(name))
    assert dispatcher.handle(0, arrived("s")) == []
    assert sends(dispatcher.handle(0, arrived("r")))


# Leaving and breaking.


def test_a_client_that_leaves_the_queue_leaves_no_trace() -> None:
    dispatcher = factory(up(slots=1), arrived("r"), arrived("s"))
    assert dispatcher.handle(0, withdrawn("s")) == []
    assert dispatcher.handle(1, finished("r")) == []
    assert dispatcher.counts()["withdrawn"] == 1


def test_a_client_that_leaves_frees_the_slot() -> None:
    dispatcher = factory(up(slots=1), arrived("r"), arrived("s"))
    abort, send = dispatcher.handle(3, withdrawn("r"))
    assert abort == Abort(request="r", worker="a", reason="withdrawn", held_ns=3)
    assert sends([send]) == [("s", "a", "least_loaded")]


def test_a_lost_worker_s_requests_are_sent_again_or_end() -> None:
    dispatcher = factory(up(), arrived("r"), arrived("s"), arrived("answering"))
    dispatcher.handle(0, started("answering"))
    dispatcher.handle(0, up("b"))
    commands = dispatcher.handle(1, down())
    assert sends(commands) == [("r", "b", "least_loaded"), ("s", "b", "least_loaded")]
    assert [c.attempt for c in commands if isinstance(c, Send)] == [2, 2]
    assert dispatcher.counts()["broken"] == 1
    assert dispatcher.handle(2, finished("answering")) == []


def test_requests_of_a_lost_worker_wait_before_all_others() -> None:
    dispatcher = factory(up(slots=2), arrived("r"), arrived("s"), arrived("later"))
    commands = dispatcher.handle(1, down())
    waiting = [c.request for c in commands if isinstance(c, Queue)]
    assert sorted(waiting) == ["r", "s"]
    back = dispatcher.handle(2, up(slots=2))
    assert [name for name, _, _ in sends(back)] == ["r", "s"]


def test_retries_are_bounded() -> None:
    dispatcher = factory(up(), up("b"), arrived("r"), settings=configured(retries_max=1))
    assert sends(dispatcher.handle(1, failed("r"))) == [("r", "b", "least_loaded")]
    (reject,) = dispatcher.handle(2, failed("r", "b"))
    assert isinstance(reject, Reject)
    assert (reject.code, reject.reason) == ("worker_failed", "retries_over")
    assert reject.attempts == 2


def test_who_broke_off_is_asked_again_only_if_nobody_else_can() -> None:
    dispatcher = factory(up(), arrived("r"))
    assert sends(dispatcher.handle(1, failed("r"))) == [("r", "a", "least_loaded")]


@pytest.mark.parametrize("told", [True, False])
def test_an_answer_that_broke_off_is_not_sent_again(told: bool) -> None:
    dispatcher = factory(up(), arrived("r"))
    if not told:
        dispatcher.handle(0, started("r"))
    assert dispatcher.handle(1, failed("r", started=told)) == []
    assert dispatcher.counts()["broken"] == 1


def test_a_retry_waits_when_others_hold_the_slots() -> None:
    dispatcher = factory(up(slots=1), arrived("r"), arrived("first", Tier.ULTRA))
    commands = dispatcher.handle(0, failed("r"))
    assert sends(commands) == [("first", "a", "least_loaded")]
    assert [c.request for c in commands if isinstance(c, Queue)] == ["r"]


def test_a_retry_finds_no_room_in_a_full_queue() -> None:
    dispatcher = factory(up(slots=1), arrived("r"), settings=configured(0))
    assert rejects(dispatcher.handle(1, down())) == [("r", "worker_failed", "queue_full")]


# Queues.


def test_tiers_are_served_from_the_top_and_a_tier_in_order() -> None:
    dispatcher = factory(up(slots=1))
    fill(dispatcher, 1)
    for name, tier in (
        ("f", Tier.FREE),
        ("m", Tier.MEDIUM),
        ("u1", Tier.ULTRA),
        ("u2", Tier.ULTRA),
    ):
        dispatcher.handle(0, arrived(name, tier))
    order, last = [], "high0"
    for _ in range(4):
        ((last, _, _),) = sends(dispatcher.handle(0, finished(last)))
        order.append(last)
    assert order == ["u1", "u2", "m", "f"]


def test_tenants_of_a_tier_take_turns() -> None:
    dispatcher = factory(up(slots=1), settings=configured(50))
    fill(dispatcher, 1)
    for i in range(20):
        dispatcher.handle(0, arrived(f"many{i}", tenant="many"))
    for i in range(2):
        dispatcher.handle(0, arrived(f"few{i}", tenant="few"))
    order, last = [], "high0"
    for _ in range(6):
        ((last, _, _),) = sends(dispatcher.handle(0, finished(last)))
        order.append(last)
    assert order == ["many0", "few0", "many1", "few1", "many2", "many3"]


def test_late_requests_of_tenants_take_turns_too() -> None:
    dispatcher = factory(up(slots=3), settings=configured(50))
    fill(dispatcher, 3, Tier.FREE)
    for at, name, tenant in ((0, "b0", "b"), (1, "a0", "a"), (1, "b1", "b")):
        dispatcher.handle(at, arrived(name, Tier.ULTRA, at=at, tenant=tenant))
    assert sends(dispatcher.handle(S + 2, Ticked())) == []
    order, last = [], "free0"
    for _ in range(3):
        ((last, _, reason),) = sends(dispatcher.handle(S + 3, finished(last)))
        order.append((last, reason))
    assert order == [(name, "slow_beats_late") for name in ("b0", "a0", "b1")]


def test_a_worker_that_is_kept_free_is_kept_from_who_is_late_too() -> None:
    dispatcher = factory(up(slots=3))
    fill(dispatcher, 3, Tier.FREE)
    for at, name in ((0, "late"), (S - 1, "on_time")):
        dispatcher.handle(at, arrived(name, Tier.ULTRA, at=at, tenant=name))
    assert sends(dispatcher.handle(S + 1, finished("free0"))) == []  # ultra's cap is 2
    assert sends(dispatcher.handle(S + 1, finished("free1"))) == [("on_time", "a", "least_loaded")]
    assert sends(dispatcher.handle(S + 1, finished("free2"))) == [("late", "a", "least_loaded")]


def test_a_late_request_is_found_behind_a_tenant_that_is_not() -> None:
    dispatcher = factory(up(slots=4), up("b", slots=2))
    fill(dispatcher, 6, Tier.FREE)
    for at, name, tenant in ((0, "b0", "b"), (1, "b1", "b"), (S - 1, "a0", "a")):
        dispatcher.handle(at, arrived(name, Tier.ULTRA, at=at, tenant=tenant))
    # a0 is on time and keeps b free, the nearest to ultra's cap; a serves who is late.
    assert sends(dispatcher.handle(S + 1, finished("free0"))) == [("b0", "a", "slow_beats_late")]
    assert sends(dispatcher.handle(S + 2, finished("free2"))) == [("b1", "a", "slow_beats_late")]


def test_a_full_queue_rejects_at_once() -> None:
    dispatcher = factory(up(slots=1), settings=configured(1))
    fill(dispatcher, 1)
    dispatcher.handle(0, arrived("waits"))
    (reject,) = dispatcher.handle(0, arrived("r"))
    assert isinstance(reject, Reject)
    assert (reject.code, reject.reason, reject.ahead) == ("capacity_exceeded", "queue_full", 1)
    assert dispatcher.queue_lens()[MODEL, Tier.HIGH] == 1


def test_patience_ends() -> None:
    dispatcher = factory(up(slots=1))
    fill(dispatcher, 1)
    dispatcher.handle(0, arrived("r"))
    assert rejects(dispatcher.handle(10 * S - 1, Ticked())) == []
    assert rejects(dispatcher.handle(10 * S, Ticked())) == [
        ("r", "capacity_exceeded", "patience_over")
    ]


def test_patience_ends_at_any_event() -> None:
    dispatcher = factory(up(slots=1), arrived("r"), arrived("s"))
    commands = dispatcher.handle(10 * S, finished("r"))
    assert rejects(commands) == [("s", "capacity_exceeded", "patience_over")]
    assert sends(commands) == []


# The timer.


def timers(commands: list[Command]) -> list[int]:
    return [c.at_ns for c in commands if isinstance(c, SetTimer)]


def test_the_timer_is_set_only_when_something_is_due_earlier() -> None:
    dispatcher = factory(up(slots=1))
    fill(dispatcher, 1)
    assert timers(dispatcher.handle(0, arrived("r"))) == [S + 1]
    assert timers(dispatcher.handle(1, arrived("s", at=1))) == []
    assert timers(dispatcher.handle(2, arrived("older", at=-5))) == [S - 4]
    assert timers(dispatcher.handle(3, withdrawn("older"))) == []
    assert timers(dispatcher.handle(S + 1, Ticked())) == [S + 2]
    assert timers(dispatcher.handle(S + 2, Ticked())) == [10 * S]


def test_a_tick_with_nobody_waiting_is_silent() -> None:
    assert factory(up()).handle(5, Ticked()) == []


def test_a_request_that_is_late_already_wakes_nobody_for_it() -> None:
    dispatcher = factory(up(slots=1), arrived("r"))
    assert timers(dispatcher.handle(5 * S, arrived("s", at=0))) == [15 * S]


def test_stale_wakes_are_cleared() -> None:
    dispatcher = factory(up(slots=1), arrived("first"), arrived("r"))
    for i in range(100):
        dispatcher.handle(0, arrived(f"x{i}"))
        dispatcher.handle(0, withdrawn(f"x{i}"))
    assert len(dispatcher._wakes) < 80


# Promises.


@pytest.mark.parametrize(
    ("tier", "cap"), [(Tier.ULTRA, 2), (Tier.PREMIUM, 4), (Tier.HIGH, 8), (Tier.MEDIUM, 16)]
)
def test_a_worker_takes_as_many_as_its_tier_s_promise_allows(tier: Tier, cap: int) -> None:
    dispatcher = factory(up())
    fill(dispatcher, cap, tier)
    (queue, _) = dispatcher.handle(0, arrived("more", tier))
    assert isinstance(queue, Queue)
    assert (queue.reason, queue.ahead, queue.workers) == ("at_cap", 0, 1)


def test_one_high_promise_caps_all_that_run_with_it() -> None:
    dispatcher = factory(up())
    fill(dispatcher, 1, Tier.ULTRA)
    fill(dispatcher, 1, Tier.FREE)
    assert sends(dispatcher.handle(0, arrived("f", Tier.FREE))) == []
    assert sends(dispatcher.handle(0, finished("ultra0"))) == [("f", "a", "least_loaded")]


def test_a_high_promise_does_not_join_a_crowd() -> None:
    dispatcher = factory(up())
    fill(dispatcher, 3, Tier.FREE)
    assert sends(dispatcher.handle(0, arrived("u", Tier.ULTRA))) == []


def test_a_worker_is_kept_free_for_a_higher_tier_that_waits() -> None:
    dispatcher = factory(up(), up("b"))
    for name in ("f0", "f1", "f2", "f3", "f4"):
        dispatcher.handle(0, arrived(name, Tier.FREE))
    dispatcher.handle(0, arrived("u", Tier.ULTRA))  # b, with two, can take it first
    assert sends(dispatcher.handle(0, arrived("f5", Tier.FREE))) == [("f5", "a", "least_loaded")]
    assert sends(dispatcher.handle(0, finished("f1"))) == [("u", "b", "least_loaded")]


def test_with_every_worker_kept_free_lower_tiers_wait() -> None:
    dispatcher = factory(up())
    fill(dispatcher, 3, Tier.FREE)
    dispatcher.handle(0, arrived("u", Tier.ULTRA))
    assert sends(dispatcher.handle(0, arrived("f", Tier.FREE))) == []
    commands = dispatcher.handle(0, withdrawn("u"))
    assert sends(commands) == [("f", "a", "least_loaded")]


def test_slow_beats_late() -> None:
    dispatcher = factory(up())
    fill(dispatcher, 3, Tier.FREE)
    dispatcher.handle(0, arrived("u", Tier.ULTRA))
    assert sends(dispatcher.handle(S, Ticked())) == []
    (send,) = dispatcher.handle(S + 1, Ticked())
    assert isinstance(send, Send)
    assert (send.reason, send.running, send.cap) == ("slow_beats_late", 4, 16)


def test_slow_beats_late_spares_higher_promises() -> None:
    dispatcher = factory(up())
    fill(dispatcher, 2, Tier.ULTRA)
    dispatcher.handle(0, arrived("p", Tier.PREMIUM))
    assert sends(dispatcher.handle(2 * S, Ticked())) == []


def test_slow_beats_late_spares_promises_of_its_own_tier() -> None:
    dispatcher = factory(up())
    fill(dispatcher, 2, Tier.ULTRA)
    dispatcher.handle(0, arrived("u", Tier.ULTRA))
    assert sends(dispatcher.handle(2 * S, Ticked())) == []
    assert sends(dispatcher.handle(3 * S, finished("ultra0"))) == [("u", "a", "least_loaded")]


def graded(queue_len_max: int = 50) -> Configured:
    """Faster tiers promise a shorter TTFT: 10 s for free, 8, 6, 4, 2 s for ultra."""
    graded = {
        tier: promises(ttft_ns=(10 - 2 * tier.rank) * S, patience_ns=20 * S)[tier] for tier in Tier
    }
    return Configured(promises=graded, limits=limits(queue_len_max))


def test_who_is_late_comes_behind_who_is_on_time_at_the_tier_that_is_left() -> None:
    dispatcher = factory(up(slots=1), settings=graded())
    dispatcher.handle(0, arrived("first", Tier.FREE))
    for name, tier in (("f", Tier.FREE), ("h", Tier.HIGH), ("u", Tier.ULTRA)):
        dispatcher.handle(0, arrived(name, tier))
    dispatcher.handle(1, arrived("p", Tier.PREMIUM, at=1))
    dispatcher.handle(S + 2, Ticked())  # u is late and competes as premium, behind p
    order, last = [], "first"
    for _ in range(4):
        ((last, _, _),) = sends(dispatcher.handle(S + 2, finished(last)))
        order.append(last)
    assert order == ["p", "u", "h", "f"]


def test_those_who_are_late_at_one_tier_go_first_come_first() -> None:
    dispatcher = factory(up(slots=1), settings=graded())
    dispatcher.handle(0, arrived("first", Tier.FREE))
    dispatcher.handle(0, arrived("p", Tier.PREMIUM, at=0))
    dispatcher.handle(1, arrived("u", Tier.ULTRA, at=1))
    now_ns = 2 * S + S // 2  # both compete as high
    assert sends(dispatcher.handle(now_ns, finished("first"))) == [("p", "a", "least_loaded")]


def test_who_is_late_counts_under_the_tier_that_is_left() -> None:
    dispatcher = factory(up(), settings=graded())
    fill(dispatcher, 3, Tier.FREE)
    dispatcher.handle(0, arrived("u", Tier.ULTRA, at=0))
    (send,) = dispatcher.handle(S + 1, Ticked())
    assert isinstance(send, Send)
    assert (send.reason, send.running, send.cap) == ("slow_beats_late", 4, 4)  # premium's cap
    assert sends(dispatcher.handle(S + 1, arrived("f", Tier.FREE, at=S + 1))) == []


def test_a_late_retry_goes_to_another_worker() -> None:
    dispatcher = factory(up(), up("b"))
    fill(dispatcher, 6, Tier.FREE)  # both are over ultra's cap
    dispatcher.handle(0, arrived("u", Tier.ULTRA))
    assert sends(dispatcher.handle(S + 1, Ticked())) == [("u", "a", "slow_beats_late")]
    assert sends(dispatcher.handle(S + 2, failed("u", "a"))) == [("u", "b", "slow_beats_late")]


def test_slow_beats_late_needs_a_slot_and_takes_the_fastest() -> None:
    slow = ((1, 70), (2, 10))
    dispatcher = factory(up(curve=slow, slots=2), up("b", curve=((1, 70), (2, 60)), slots=2))
    fill(dispatcher, 2, Tier.FREE)
    for name in ("r", "s", "t"):
        dispatcher.handle(0, arrived(name, Tier.ULTRA))
    assert sends(dispatcher.handle(2 * S, Ticked())) == [
        ("r", "b", "slow_beats_late"),
        ("s", "a", "slow_beats_late"),
    ]


# Choosing.


def test_the_longest_prefix_wins_while_the_load_is_balanced() -> None:
    dispatcher = factory(up(), up("b"))
    dispatcher.handle(0, arrived("r", prefix=(1, 2, 3)))
    (send,) = dispatcher.handle(0, arrived("s", prefix=(1, 2, 3, 4)))
    assert isinstance(send, Send)
    assert (send.worker, send.reason, send.hit_blocks) == ("a", "prefix_hit", 3)


def test_a_short_hit_only_breaks_ties() -> None:
    dispatcher = factory(up(), up("b"), arrived("r"), arrived("s", prefix=(1,)), finished("r"))
    dispatcher.handle(0, finished("s"))
    (send,) = dispatcher.handle(0, arrived("t", prefix=(1, 2, 3)))
    assert isinstance(send, Send)
    assert (send.worker, send.reason, send.hit_blocks) == ("b", "least_loaded", 1)


def test_load_outweighs_a_hit_when_it_is_out_of_balance() -> None:
    dispatcher = factory(up(), up("b"), settings=configured(imbalance_requests_max=0))
    dispatcher.handle(0, arrived("r", prefix=(1, 2)))
    (send,) = dispatcher.handle(0, arrived("s", prefix=(1, 2)))
    assert isinstance(send, Send)
    assert (send.worker, send.reason, send.hit_blocks) == ("b", "least_loaded", 0)


def test_a_worker_that_comes_back_has_an_empty_cache() -> None:
    dispatcher = factory(up(), arrived("r", prefix=(1, 2)), finished("r"), down(), up())
    (send,) = dispatcher.handle(0, arrived("s", prefix=(1, 2)))
    assert isinstance(send, Send)
    assert (send.reason, send.hit_blocks) == ("least_loaded", 0)


def test_only_the_start_of_a_long_prompt_is_looked_at() -> None:
    dispatcher = factory(up(), settings=configured(prefix_len_max=2))
    dispatcher.handle(0, arrived("r", prefix=(1, 2, 3, 4)))
    (send,) = dispatcher.handle(0, arrived("s", prefix=(1, 2, 3, 4)))
    assert isinstance(send, Send)
    assert send.hit_blocks == 2


# Workers and settings that change.


def test_a_worker_measured_again_changes_its_caps() -> None:
    dispatcher = factory(up(), settings=configured())
    fill(dispatcher, 2, Tier.ULTRA)
    dispatcher.handle(0, arrived("r", Tier.ULTRA))
    assert sends(dispatcher.handle(0, up(curve=((1, 100), (4, 90))))) == [
        ("r", "a", "least_loaded")
    ]
    assert dispatcher.loads()["a"].caps[Tier.ULTRA] == 4


def test_fewer_slots_are_waited_for() -> None:
    dispatcher = factory(up())
    fill(dispatcher, 4)
    dispatcher.handle(0, up(slots=1))
    assert sends(dispatcher.handle(0, arrived("r"))) == []
    for i in range(3):
        assert sends(dispatcher.handle(0, finished(f"high{i}"))) == []
    assert sends(dispatcher.handle(0, finished("high3"))) == [("r", "a", "least_loaded")]


def test_a_worker_that_serves_another_model_now_lost_what_it_had() -> None:
    dispatcher = factory(up(), up("b"), arrived("r"))
    assert sends(dispatcher.handle(0, up(model="large"))) == [("r", "b", "least_loaded")]
    assert sends(dispatcher.handle(0, arrived("s", model="large")))[0][1] == "a"


def test_workers_and_models_are_bounded() -> None:
    dispatcher = factory(up(), settings=configured(workers_max=2, models_max=1))
    dispatcher.handle(0, up("b", model="large"))
    dispatcher.handle(0, up("c"))
    dispatcher.handle(0, up("d"))
    assert list(dispatcher.loads()) == ["a", "c"]
    assert dispatcher.counts()["ignored"] == 2


def test_slots_are_bounded() -> None:
    dispatcher = factory(up(), settings=configured(slots_max=2))
    assert dispatcher.loads()["a"].slots == 2


def test_new_promises_hold_at_once() -> None:
    dispatcher = factory(up(), arrived("f", Tier.FREE), arrived("r", Tier.ULTRA))
    dispatcher.handle(0, arrived("s", Tier.ULTRA))
    dispatcher.handle(0, arrived("late", Tier.ULTRA, at=-5 * S))
    assert dispatcher.queue_lens()[MODEL, Tier.ULTRA] == 2
    slower = Configured(
        promises=dict.fromkeys(Tier, promises(patience_ns=S)[Tier.FREE]), limits=limits()
    )
    commands = dispatcher.handle(0, slower)
    assert [name for name, _, _ in sends(commands)] == ["s", "late"]


def test_new_patience_counts_from_when_they_were_queued() -> None:
    dispatcher = factory(up(slots=1), arrived("r"), arrived("s"), arrived("old", at=-5 * S))
    changed = configured(patience_ns=3 * S)
    assert timers(dispatcher.handle(0, changed)) == []
    commands = dispatcher.handle(3 * S, Ticked())
    assert [name for name, _, _ in rejects(commands)] == ["s", "old"]


# Retry-After.


def retry_after(dispatcher: Dispatcher, now_ns: int, tier: Tier = Tier.HIGH) -> int:
    (reject,) = dispatcher.handle(now_ns, arrived(f"probe{now_ns}", tier, at=now_ns))
    assert isinstance(reject, Reject)
    assert reject.retry_after_ns is not None
    return reject.retry_after_ns


def test_retry_after_begins_with_the_measured_speed() -> None:
    dispatcher = factory(up(slots=2, curve=((1, 100), (2, 50))), settings=configured(0))
    fill(dispatcher, 2)
    # 64 tokens at 50 tokens/s hold a slot for 1.28 s; two slots end one each 0.64 s: at least 1 s.
    assert retry_after(dispatcher, 0) == S
    dispatcher.handle(0, up(slots=1, curve=((1, 1),)))
    assert retry_after(dispatcher, 1) == 32 * S  # 64 s each, two of them


def test_retry_after_learns_from_what_it_sees() -> None:
    dispatcher = factory(up(slots=1, curve=((1, 64),)), settings=configured(0))
    now_ns = 0
    for i in range(60):
        dispatcher.handle(now_ns, arrived(f"r{i}", at=now_ns))
        now_ns += 9 * S
        dispatcher.handle(now_ns, finished(f"r{i}"))
    dispatcher.handle(now_ns, arrived("r", at=now_ns))
    assert abs(retry_after(dispatcher, now_ns) - 9 * S) < S // 10


def test_retry_after_counts_who_is_ahead_in_this_tier_and_above() -> None:
    dispatcher = factory(up(slots=1, curve=((1, 64),)), settings=configured(2))
    fill(dispatcher, 1)
    for name, tier in (("u", Tier.ULTRA), ("h0", Tier.HIGH), ("h1", Tier.HIGH)):
        dispatcher.handle(0, arrived(name, tier))
    dispatcher.handle(0, arrived("f", Tier.FREE))
    assert retry_after(dispatcher, 0) == 4 * S
