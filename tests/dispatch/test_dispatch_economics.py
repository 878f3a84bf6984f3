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
    failed,
    finished,
    started,
    stored,
    up,
)
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S, PPM
from tokenworks.dispatch import market as market_module
from tokenworks.dispatch.commands import Command, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Event
from tokenworks.dispatch.market import (
    Book,
    Kind,
    Prefill,
    best_split,
    homes_for,
    market,
    revenue_nanodollars,
)
from tokenworks.dispatch.offers import PACE_PERCENT, PLAN_NS, PREFILL_BATCHES_MAX, Offer
from tokenworks.perf.timing import FS_PER_S

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
    failed, tried = doctest.testmod(market_module)
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


def test_new_settings_are_planned_with_at_the_next_request() -> None:
    dispatcher = money(up("a"), arrived("first"), finished("first"))
    dispatcher.handle(1, configured(policy="economic"))
    assert sends(dispatcher.handle(2, arrived("second"))) == [("second", "a")]
    assert book_of(dispatcher).revenue_nanodollars == [0] * len(Tier)


# The market.


def kind(workers: int, busy_s: int, cap: int = 4) -> Kind:
    return Kind(
        timing=TIMING,
        workers=workers,
        price_nanodollars=0,
        caps=[cap] * 5,
        token_fs=[1] * 5,
        busy_fs=[busy_s * FS_PER_S] * 5,
        prefill_fs=[FS_PER_S] * 5,
        slack_fs=[1] * 5,
        allowed_fs=[1] * 5,
    )


def test_a_class_that_is_sold_out_costs_what_its_last_buyer_earns() -> None:
    only = kind(workers=2, busy_s=1)
    # One ultra and two medium requests per second, each a second of work.
    sale = market([only], [0, 2_000, 0, 0, 1_000], [0, 30, 0, 0, 900])
    assert sale.taken == [[0, PPM, 0, 0, PPM]]
    assert (sale.prices, sale.earned, sale.busiest_ppm) == ([30], 1_000 * 930, PPM)


def test_a_class_with_time_left_costs_nothing() -> None:
    only = kind(workers=3, busy_s=1)
    sale = market([only], [0, 0, 0, 0, 2_000], [0, 0, 0, 0, 900])
    assert (sale.prices, sale.busiest_ppm) == ([0], PPM * 2 // 3 + 1)


def test_a_tier_buys_first_where_it_earns_most_per_second() -> None:
    slow, fast, never = kind(1, busy_s=2), kind(1, busy_s=1), kind(1, busy_s=1, cap=0)
    sale = market([slow, fast, never], [0, 0, 0, 0, 1_500], [0, 0, 0, 0, 900])
    assert [each[4] for each in sale.taken] == [PPM, PPM, 0]
    assert sale.prices == [450, 900, 0]


def test_what_prefills_is_sold_out_before_what_decodes() -> None:
    # A second of one prefills one request; a second of two decodes two.
    sale = market([kind(2, busy_s=1)], [0, 0, 0, 0, 5_000], [0, 0, 0, 0, 900], _prefill(1))
    assert sale.taken == [[0, 0, 0, 0, PPM]]
    assert (sale.earned, sale.prices, sale.prefill_price) == (1_000 * 900, [0], 450)
    assert sale.busiest_ppm == PPM


def _prefill(workers: int) -> Prefill:
    return Prefill(at=0, workers=workers, cost_fs=[FS_PER_S] * 5)


def test_a_split_sells_the_most_and_leaves_the_busiest_most_time() -> None:
    rates, revenue = [0, 0, 0, 0, 9_000], [0, 0, 0, 0, 900]
    # Prefill takes a second and decode two: three of eight prefill.
    prefill, sale = best_split([kind(8, busy_s=2)], rates, revenue) or (None, None)
    assert prefill is not None
    assert sale is not None
    assert (prefill.workers, sale.earned) == (3, 2_500 * 900)
    # With little to do, what leaves both kinds most of their time.
    prefill, sale = best_split([kind(8, busy_s=2)], [0, 0, 0, 0, 100], revenue) or (None, None)
    assert prefill is not None
    assert prefill.workers == 3
    assert best_split([kind(1, busy_s=1)], rates, revenue) is None


def test_the_class_that_decodes_worst_prefills() -> None:
    slow, fast = kind(2, busy_s=9), kind(2, busy_s=1)
    prefill, _ = best_split([slow, fast], [0, 0, 0, 0, 9_000], [0, 0, 0, 0, 900]) or (None, None)
    assert prefill is not None
    assert (prefill.at, prefill.workers) == (0, 2)


def test_who_pays_most_has_most_room_at_home() -> None:
    assert homes_for([0, 0, 0, 0, PPM], 4) == [0, 0, 0, 0, 4]
    assert homes_for([PPM, 0, 0, 0, PPM], 5) == [2, 0, 0, 0, 3]
    assert homes_for([0] * 5, 2) == [2, 0, 0, 0, 0]


# Where requests go.


SLOW = msgspec.structs.replace(TIMING, launch_fs=FS_PER_S // 30)
"""A lone user sees less than 30 tokens per second."""


def test_a_premium_request_is_not_sent_where_its_promise_would_break() -> None:
    fast = (up("fast", timing=TIMING, slots=1), arrived("busy", Tier.PREMIUM))
    dispatcher = money(*fast, up("slow", timing=SLOW), arrived("also", Tier.FREE))
    assert sends(dispatcher.handle(0, arrived("p", Tier.PREMIUM))) == []
    dispatcher = money(up("slow", timing=SLOW), up("fast", timing=TIMING))
    assert sends(dispatcher.handle(0, arrived("p", Tier.PREMIUM))) == [("p", "fast")]


def test_who_asks_for_what_no_worker_can_keep_does_not_wait_for_it() -> None:
    dispatcher = money(up("slow", timing=SLOW), arrived("busy", Tier.FREE))
    assert sends(dispatcher.handle(0, arrived("p", Tier.PREMIUM))) == [("p", "slow")]


def test_a_promise_bounds_the_batch() -> None:
    dispatcher = money(up(timing=TIMING))
    sent = [bool(sends(dispatcher.handle(0, arrived(f"{i}", Tier.PREMIUM)))) for i in range(9)]
    assert sum(sent) == book_of(dispatcher).kinds[0].caps[Tier.PREMIUM.rank] < 9


def test_a_small_cache_bounds_the_batch() -> None:
    tokens = 10_000
    dispatcher = money(up(timing=TIMING, kv_blocks=2 * tokens // 64), arrived("r", Tier.FREE))
    assert book_of(dispatcher).kinds[0].caps[Tier.FREE.rank] == 2


def test_free_work_keeps_out_of_the_headroom_of_a_higher_tier_s_home() -> None:
    dispatcher = money(up(timing=TIMING))
    dispatcher.handle(0, arrived("first", Tier.MEDIUM))
    assert homes(dispatcher) == [Tier.MEDIUM.rank]
    cap = book_of(dispatcher).kinds[0].caps[Tier.MEDIUM.rank]
    for i in range(cap):
        dispatcher.handle(0, arrived(f"free{i}", Tier.FREE))
    assert cap // 2 < dispatcher.loads()["a"].running < cap  # type: ignore[index]
    assert sends(dispatcher.handle(0, arrived("more", Tier.MEDIUM))) == [("more", "a")]


def test_who_cannot_begin_in_time_is_not_sent_behind_a_long_prefill() -> None:
    request = arrived("r", Tier.HIGH, prompt=1_000)
    assert sends(money(up(timing=TIMING)).handle(0, request)) == [("r", "a")]
    dispatcher = money(up(timing=TIMING), arrived("long", Tier.HIGH, prompt=19_000))
    assert dispatcher.loads()["a"].running == 1  # type: ignore[index]
    assert sends(dispatcher.handle(0, request)) == []
    dispatcher.handle(0, started("long"))
    now = sends(dispatcher.handle(0, arrived("s", Tier.HIGH, prompt=1_000)))
    assert now == [("r", "a"), ("s", "a")]


def test_a_late_request_is_set_aside_and_served_last_at_a_lower_tier() -> None:
    dispatcher = money(up(slots=1, timing=TIMING), arrived("running"))
    dispatcher.handle(0, arrived("late", Tier.ULTRA))
    dispatcher.handle(3 * S, arrived("free", Tier.FREE, at=3 * S))
    assert sends(dispatcher.handle(3 * S, finished("running"))) == [("free", "a")]
    assert sends(dispatcher.handle(3 * S, finished("free"))) == [("late", "a")]
    counts = dispatcher._workers["a"].counts  # type: ignore[index]
    assert counts[Tier.FREE.rank] == 1
    assert sum(counts) == 1


def test_homes_follow_demand() -> None:
    dispatcher = money(*(up(name, timing=TIMING) for name in "abcd"))
    for i in range(40):
        dispatcher.handle(i, arrived(f"u{i}", Tier.ULTRA, at=i))
    dispatcher.handle(PLAN_NS, arrived("first", Tier.ULTRA, at=PLAN_NS))
    assert homes(dispatcher) == [Tier.ULTRA.rank] * 4
    for plan in range(2, 12):
        now_ns = plan * PLAN_NS
        for i in range(40):
            dispatcher.handle(now_ns, arrived(f"f{plan}.{i}", Tier.FREE, at=now_ns))
    assert homes(dispatcher).count(Tier.FREE.rank) >= 3


def rush(tier: Tier) -> tuple[Dispatcher, int]:
    """Two workers that are sold out to a tier, with one request running on each."""
    prices = PRICES | {Tier.FREE: PRICES[Tier.MEDIUM]}
    settings = configured(policy="economic", prices=prices, queue_len_max=200)
    dispatcher = factory(up("a", timing=TIMING), up("b", timing=TIMING), settings=settings)
    for i in range(200):
        dispatcher.handle(0, arrived(f"rush{i}", tier, prompt=10))
    dispatcher.handle(PLAN_NS, arrived("plans", tier, at=PLAN_NS, prompt=10))
    assert book_of(dispatcher).kinds[0].price_nanodollars > 0
    for worker in dispatcher._workers.values():
        while len(worker.running) > 1:
            dispatcher.handle(PLAN_NS, finished(next(iter(worker.running))))
    for worker in dispatcher._workers.values():
        for name in worker.running:
            dispatcher.handle(PLAN_NS, started(name))
    return dispatcher, PLAN_NS


def test_who_has_the_prefix_is_preferred_when_time_has_a_price() -> None:
    for holder in "ab":
        dispatcher, now_ns = rush(Tier.MEDIUM)
        prefix = tuple(range(20))
        dispatcher.handle(now_ns, stored(*prefix, worker=holder))
        request = arrived("r", Tier.MEDIUM, at=now_ns, prefix=prefix, prompt=20 * 64)
        assert sends(dispatcher.handle(now_ns, request)) == [("r", holder)]


def test_an_idle_worker_serves_what_it_can_keep_no_promise_of() -> None:
    # Its prefill alone takes longer than the TTFT promise, and it is slower than free's promise.
    slow = msgspec.structs.replace(TIMING, launch_fs=FS_PER_S, prefill_token_fs=FS_PER_S // 10)
    dispatcher = money(up(timing=slow))
    assert sends(dispatcher.handle(0, arrived("r", Tier.HIGH, prompt=1_000))) == [("r", "a")]
    # Who waits is served when it is idle again.
    assert sends(dispatcher.handle(0, arrived("s", Tier.HIGH, prompt=1_000))) == []
    assert sends(dispatcher.handle(1, finished("r"))) == [("s", "a")]
    assert faults(dispatcher) == 0


# Prefill apart.


def apart(*names: str) -> Dispatcher:
    """Workers that hand KV caches over, of which some only prefill."""
    dispatcher = money(*(up(name, timing=TIMING, hands_over=True) for name in names))
    dispatcher.handle(0, arrived("plans"))
    dispatcher.handle(0, finished("plans"))
    return dispatcher


def sites(commands: list[Command]) -> list[tuple[str, str | None, str]]:
    return [(c.request, c.prefill_worker, c.worker) for c in commands if isinstance(c, Send)]


def prefillers(dispatcher: Dispatcher) -> list[str]:
    indices = book_of(dispatcher).prefillers
    return [name for name, each in dispatcher._workers.items() if each.index in indices]


def test_who_hands_over_prefills_for_those_who_decode() -> None:
    dispatcher = apart("a", "b", "c")
    (site, *others) = prefillers(dispatcher)
    assert not others
    ((_, at, worker),) = sites(dispatcher.handle(0, arrived("r")))
    assert at == site != worker
    # One that can't leaves all as they were.
    dispatcher.handle(0, up("d", timing=TIMING))
    ((_, at, _),) = sites(dispatcher.handle(0, arrived("s")))
    assert at is None
    assert prefillers(dispatcher) == []


def test_a_prompt_is_prefilled_where_its_prefix_is() -> None:
    dispatcher = apart(*"abcdefgh")
    for holder in prefillers(dispatcher):
        prefix = tuple(range(hash_of(holder), hash_of(holder) + 20))
        dispatcher.handle(0, stored(*prefix, worker=holder))
        request = arrived(f"r{holder}", prefix=prefix, prompt=20 * 64)
        ((_, at, _),) = sites(dispatcher.handle(0, request))
        assert at == holder


def hash_of(name: str) -> int:
    return 1_000 * ord(name)


def test_who_prefills_is_sent_little_at_a_time_and_the_next_when_that_is_done() -> None:
    dispatcher = apart("a", "b")
    batch = dispatcher._workers["a"].batch_tokens_max  # type: ignore[index]
    sent = 0
    while sites(dispatcher.handle(0, arrived(f"r{sent}", Tier.FREE, prompt=batch // 2))):
        sent += 1
    assert sent == 2 * PREFILL_BATCHES_MAX + 1
    ((name, _, _),) = sites(dispatcher.handle(1, started("r0")))
    assert name == f"r{sent}"


def test_prompts_that_nobody_hears_of_close_no_worker() -> None:
    def sent(unheard: bool) -> int:
        dispatcher = money(up("a", slots=64, timing=TIMING))
        batch = dispatcher._workers["a"].batch_tokens_max  # type: ignore[index]
        for i in range(64):
            request = arrived(f"r{i}", at=i * S, prompt=batch // 2, unheard=unheard)
            if not sends(dispatcher.handle(i * S, request)):
                return i
        return 64

    assert sent(unheard=False) < sent(unheard=True)


def test_a_worker_that_is_not_worth_more_than_another_is_not_looked_at() -> None:
    dispatcher = apart("a", "b")
    (decoder,) = {"a", "b"} - set(prefillers(dispatcher))
    for event in (arrived("runs", Tier.ULTRA, prompt=10), started("runs"), arrived("r")):
        dispatcher.handle(0, event)
    worker, request = dispatcher._workers[decoder], dispatcher._requests["r"]  # type: ignore[index]
    desk = dispatcher._policy._policy._desks[MODEL]  # type: ignore[attr-defined]
    desk.seats[worker.index].price = 10**6
    fleet = dispatcher._fleets[MODEL]
    offer = Offer(desk, request, Tier.ULTRA.rank, 0)
    value, best = offer.best_decoder(fleet, 1 << worker.index, 10**9)
    assert best is worker
    assert 0 <= value < 10**9  # what it takes from those who run there is off
    assert offer.best_decoder(fleet, 1 << worker.index, 10**9 - value - 1) == (-1, None)


def test_who_decodes_is_filled_up_to_the_pace_of_the_dearest_there() -> None:
    dispatcher = apart("a", "b")
    (decoder,) = {"a", "b"} - set(prefillers(dispatcher))
    for i in range(16):
        dispatcher.handle(0, arrived(f"u{i}", Tier.ULTRA, prompt=10))
        dispatcher.handle(0, started(f"u{i}"))
    running = dispatcher.loads()[decoder].running  # type: ignore[index]
    allowed_fs = book_of(dispatcher).kinds[0].allowed_fs[Tier.ULTRA.rank] * PACE_PERCENT // 100
    assert TIMING.decode_fs(running, running * 42) <= allowed_fs
    assert TIMING.decode_fs(running + 1, (running + 1) * 42) > allowed_fs
    assert sites(dispatcher.handle(0, arrived("free", Tier.FREE, prompt=10))) == []


def test_of_many_who_prefill_a_few_are_looked_at() -> None:
    dispatcher = apart(*(f"w{i}" for i in range(24)))
    assert len(prefillers(dispatcher)) > 4
    used = {sites(dispatcher.handle(0, arrived(f"r{i}", Tier.FREE)))[0][1] for i in range(40)}
    assert len(used) > 2


def test_a_retry_avoids_who_was_to_prefill_it() -> None:
    dispatcher = apart(*"abcdef")
    ((_, first, worker),) = sites(dispatcher.handle(0, arrived("r")))
    ((_, second, _),) = sites(dispatcher.handle(0, failed("r", worker)))
    assert None is not first != second is not None


def test_a_prompt_that_fits_none_who_prefills_is_served_whole() -> None:
    dispatcher = money(
        up("a", timing=TIMING, kv_blocks=10, hands_over=True),
        up("b", timing=TIMING, kv_blocks=10_000, hands_over=True),
        arrived("plans", Tier.FREE, prompt=10),
        finished("plans"),
    )
    big = Tier.FREE
    ((_, at, worker),) = sites(dispatcher.handle(0, arrived("big", big, prompt=10 * 64)))
    if prefillers(dispatcher) == ["a"]:
        assert (at, worker) == (None, "b")
    assert worker in {"a", "b"}


def test_a_price_fades_when_its_crowd_has_gone() -> None:
    settings = configured(policy="economic", prices=PRICES, queue_len_max=500)
    dispatcher = factory(
        *(up(name, timing=TIMING, hands_over=True) for name in "abc"), settings=settings
    )
    for i in range(500):
        dispatcher.handle(0, arrived(f"m{i}", Tier.MEDIUM, prompt=4_000, output=1_000))
    dispatcher.handle(PLAN_NS, arrived("plans", Tier.MEDIUM, at=PLAN_NS))
    crowd = book_of(dispatcher).means[Tier.MEDIUM.rank].rate_per_ks
    later = 100 * PLAN_NS
    dispatcher.handle(later, arrived("lone", Tier.FREE, at=later))
    assert book_of(dispatcher).means[Tier.MEDIUM.rank].rate_per_ks < crowd // 1_000


def used_to_short_prompts() -> Dispatcher:
    """One worker with a request that answers, after forty like it."""
    dispatcher = money(up(timing=TIMING))
    for i in range(40):
        dispatcher.handle(0, arrived(f"w{i}", Tier.HIGH, prompt=100))
        dispatcher.handle(0, finished(f"w{i}"))
    dispatcher.handle(0, arrived("runs", Tier.HIGH, prompt=100))
    dispatcher.handle(0, started("runs"))
    return dispatcher


def test_others_pass_an_unusually_long_prompt_that_fits_nowhere() -> None:
    dispatcher = used_to_short_prompts()
    long = arrived("long", Tier.HIGH, prompt=15_000, tenant="one")
    assert sends(dispatcher.handle(0, long)) == []
    assert sends(dispatcher.handle(0, arrived("r", Tier.HIGH, prompt=100, tenant="two"))) == [
        ("r", "a")
    ]
    # Nobody of its own tenant passes it, nor who has become late.
    assert sends(dispatcher.handle(0, arrived("s", Tier.HIGH, prompt=100, tenant="one"))) == []


def test_who_is_late_does_not_pass() -> None:
    dispatcher = used_to_short_prompts()
    dispatcher.handle(0, arrived("old", Tier.HIGH, prompt=14_000, tenant="two"))
    long = arrived("long", Tier.HIGH, prompt=15_000, tenant="one", at=S)
    assert ("long", "a") not in sends(dispatcher.handle(S, long))
    assert faults(dispatcher) == 0


def test_what_waits_is_looked_at_once_more_before_it_is_turned_away() -> None:
    dispatcher = money(up(slots=1, timing=TIMING), arrived("runs"), arrived("waits", Tier.ULTRA))
    patience_ns = 10 * S
    commands = dispatcher.handle(patience_ns, finished("runs"))
    assert sends(commands) == [("waits", "a")] or "patience_over" in str(commands)


def test_a_worker_that_was_measured_again_is_planned_anew() -> None:
    dispatcher = apart("a", "b", "c")
    assert prefillers(dispatcher)
    dispatcher.handle(0, up("b", timing=TIMING))
    dispatcher.handle(0, arrived("r"))
    assert prefillers(dispatcher) == []


def test_a_crowd_has_a_price_apart_too() -> None:
    settings = configured(policy="economic", prices=PRICES, queue_len_max=500)
    dispatcher = factory(
        *(up(name, timing=TIMING, hands_over=True) for name in "abc"), settings=settings
    )
    for i in range(500):
        dispatcher.handle(0, arrived(f"m{i}", Tier.MEDIUM, prompt=10, output=1_000))
    dispatcher.handle(PLAN_NS, arrived("plans", Tier.MEDIUM, at=PLAN_NS, prompt=10))
    book = book_of(dispatcher)
    assert book.prefill_price_nanodollars or book.kinds[0].price_nanodollars
    # Ultra costs those of medium their larger batch.
    dispatcher.handle(PLAN_NS, arrived("u", Tier.ULTRA, at=PLAN_NS, prompt=10))
    assert faults(dispatcher) == 0


def test_a_restored_book_knows_who_prefills() -> None:
    dispatcher = apart("a", "b", "c")
    restored = Dispatcher.restore(dispatcher.snapshot())
    request = arrived("r")
    assert restored.handle(0, request) == dispatcher.handle(0, request)


def test_who_pays_more_makes_lower_tiers_make_room() -> None:
    dispatcher, now_ns = rush(Tier.FREE)
    assert homes(dispatcher) == [0, 0]
    (send,) = dispatcher.handle(now_ns, arrived("p", Tier.PREMIUM, at=now_ns))
    assert isinstance(send, Send)
    alone = revenue_nanodollars(PRICES[Tier.PREMIUM], 0, 0, 64)
    assert 0 < send.value_nanodollars < alone
