"""Workers that only decode, tiers that a class forgoes, and prompts longer than a KV cache."""

from __future__ import annotations

import msgspec
import pytest
from msgspec import UNSET

from tests.dispatch.dispatch_world import (
    PRICES,
    TIMING,
    arrived,
    configured,
    factory,
    finished,
    started,
    up,
)
from tests.dispatch.test_dispatch_economics import book_of, faults, money, sends
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.commands import Command, Reject
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import DecoderUp, Event, PrefilledBy
from tokenworks.dispatch.fleet import BOUND_PER_TOKEN_MAX
from tokenworks.dispatch.market import Kind, TierMeans, forgo, prefill_elsewhere
from tokenworks.dispatch.offers import PREFILL_BATCHES_MAX

BATCH = 400
BY = PrefilledBy(workers=2, timing=TIMING, batch_tokens_max=BATCH)
SLOW_PREFILL = msgspec.structs.replace(TIMING, prefill_token_fs=TIMING.prefill_token_fs * 10**6)


def decoder(name: str, by: PrefilledBy = BY, **changes: object) -> DecoderUp:
    """One that would take for ever to prefill, and need not."""
    return DecoderUp.of(up(name, timing=SLOW_PREFILL, **changes), by)  # type: ignore[arg-type]


def rejects(commands: list[Command]) -> list[Reject]:
    return [each for each in commands if isinstance(each, Reject)]


# Who only decodes.


def test_another_s_prefill_is_no_stall_for_one_that_only_decodes() -> None:
    dispatcher = money(decoder("a"), arrived("first", Tier.ULTRA))
    assert sends(dispatcher.handle(0, arrived("r", Tier.ULTRA))) == [("r", "a")]
    (kind,) = book_of(dispatcher).kinds
    assert kind.prefill_timing == TIMING
    assert kind.caps[Tier.ULTRA.rank] > 1
    assert faults(dispatcher) == 0


def test_those_who_prefill_elsewhere_are_sent_little_at_a_time() -> None:
    dispatcher = money(decoder("a"), decoder("b"))
    full = PREFILL_BATCHES_MAX * BATCH * BY.workers
    sent: list[str] = []
    for i in range(20):
        commands = dispatcher.handle(0, arrived(f"r{i}", Tier.FREE, prompt=200))
        sent += [name for name, _ in sends(commands)]
    assert len(sent) == full // 200 + 1
    # As soon as one begins to answer, the next one is sent.
    assert len(sends(dispatcher.handle(1, started(sent[0])))) == 1
    restored = Dispatcher.restore(dispatcher.snapshot())
    assert restored.handle(2, started(sent[1])) == dispatcher.handle(2, started(sent[1]))


def test_what_could_not_begin_in_time_elsewhere_is_no_longer_paid_for() -> None:
    by = msgspec.structs.replace(BY, batch_tokens_max=10**6)
    dispatcher = money(decoder("a", by, slots=64), arrived("long", Tier.FREE, prompt=60_000))
    # Three seconds of prefill are before it, and its promise is two.
    assert sends(dispatcher.handle(0, arrived("u", Tier.ULTRA))) == []
    assert sends(dispatcher.handle(1, started("long"))) == [("u", "a")]


@pytest.mark.parametrize(("prompt", "sent"), [(10, True), (60_000, False)])
def test_who_only_decodes_keeps_its_pace_with_the_contexts_that_it_has(
    prompt: int, sent: bool
) -> None:
    quick = msgspec.structs.replace(TIMING, prefill_token_fs=1)
    by = PrefilledBy(workers=1, timing=quick, batch_tokens_max=10**6)
    slower = msgspec.structs.replace(SLOW_PREFILL, context_token_fs=10**8)
    told = DecoderUp.of(up("a", timing=slower), by)
    dispatcher = money(told, arrived("first", Tier.ULTRA, prompt=10))
    commands = dispatcher.handle(0, arrived("r", Tier.ULTRA, prompt=prompt))
    assert bool(sends(commands)) == sent


@pytest.mark.parametrize(("prompt", "sent"), [(5_000, True), (15_000, False)])
def test_who_only_decodes_has_room_for_what_it_is_handed(prompt: int, sent: bool) -> None:
    by = msgspec.structs.replace(BY, batch_tokens_max=10**6)
    first = arrived("first", Tier.FREE, prompt=15_000)
    dispatcher = money(decoder("a", by, kv_blocks=400), first)
    commands = dispatcher.handle(0, arrived("r", Tier.FREE, prompt=prompt))
    assert bool(sends(commands)) == sent


def test_a_worker_may_be_told_with_others_to_prefill_for_it() -> None:
    dispatcher = factory(decoder("a"))
    more = msgspec.structs.replace(BY, workers=3)
    dispatcher.handle(0, decoder("a", more))
    assert next(iter(dispatcher._workers.values())).prefilled_by == more
    dispatcher.handle(0, decoder("a", more))
    assert dispatcher.counts()["ignored"] == 1


def test_only_where_all_decode_is_prefill_sold_apart() -> None:
    for workers, apart in ((("a",), True), (("a", "b"), False)):
        events: list[Event] = [decoder("a")]
        events += [up(name, timing=TIMING) for name in workers[1:]]
        kinds = book_of(money(*events, arrived("r"))).kinds
        assert (prefill_elsewhere(kinds) is not None) == apart
    assert prefill_elsewhere([]) is None


# What a class forgoes.


def poor_at_high(caps: list[int]) -> Kind:
    busy_fs = [10**13, 10**13, 10**15, 10**15, 10**15]
    return Kind(
        timing=TIMING,
        workers=2,
        price_nanodollars=0,
        caps=caps,
        token_fs=[1] * 5,
        busy_fs=busy_fs,
        prefill_fs=[0] * 5,
        slack_fs=[1] * 5,
        allowed_fs=[1] * 5,
    )


@pytest.mark.parametrize(
    ("price", "caps"),
    [(0, [9, 9, 1, 1, 0]), (100, [9, 9, 0, 1, 0])],
)
def test_a_class_that_is_sold_out_forgoes_what_earns_less_than_the_tier_below(
    price: int, caps: list[int]
) -> None:
    kind = poor_at_high([9, 9, 1, 1, 0])
    assert forgo([kind], [price], [1, 50, 60, 200, 400]) == (price > 0)
    assert kind.caps == caps


@pytest.mark.parametrize("hands_over", [False, True])
def test_a_fleet_that_is_sold_out_serves_at_once_what_it_forgoes(hands_over: bool) -> None:
    # One of high at a time, or sixteen of medium; and twenty of each come in a second.
    timing = msgspec.structs.replace(TIMING, launch_fs=TIMING.launch_fs * 4, sequence_fs=10**12)
    settings = configured(policy="economic", prices=PRICES, queue_len_max=500)
    events = [up(name, timing=timing, hands_over=hands_over) for name in "abc"]
    dispatcher = factory(*events, settings=settings)
    for i in range(400):
        tier = (Tier.MEDIUM, Tier.HIGH)[i % 2]
        at = i * NS_PER_S // 40
        dispatcher.handle(at, arrived(f"r{i}", tier, at=at, output=300))
    book = book_of(dispatcher)
    assert {kind.caps[Tier.HIGH.rank] for kind in book.kinds} == {0}
    assert Tier.HIGH.rank not in book.homes.values()
    assert faults(dispatcher) == 0


def test_what_is_forgiven_once_is_spread_over_long_answers() -> None:
    means = TierMeans()
    for _ in range(400):
        means.end(100, 100, 50)
        means.end(100, 100, 1_000)
    assert 400 < means.output_tokens < 650
    assert 850 < means.token_output_tokens <= 1_000
    for _ in range(400):
        means.end(100, 100, 0)
    assert means.token_output_tokens >= means.output_tokens


# Prompts that may be longer than a KV cache.


@pytest.mark.parametrize("policy", ["economic", "promises", "least-loaded"])
def test_a_prompt_whose_bound_is_above_every_cache_is_sent_if_it_may_fit(policy: str) -> None:
    settings = configured(policy=policy, prices=PRICES)
    small, large = up("s", timing=TIMING, kv_blocks=1), up("l", timing=TIMING, kv_blocks=10)
    dispatcher = factory(small, large, settings=settings)
    sent = sends(dispatcher.handle(0, arrived("r", prompt=4 * 640)))
    assert [name for name, _ in sent] == ["r"]
    if policy == "economic":
        assert sent == [("r", "l")]
    assert faults(dispatcher) == 0


def test_a_prompt_that_fits_nowhere_is_refused_at_once() -> None:
    settings = configured(policy="economic", prices=PRICES)
    longest = BOUND_PER_TOKEN_MAX * 640
    dispatcher = factory(up("a", kv_blocks=10), up("b", kv_blocks=5, labels=("eu",)))
    dispatcher.handle(0, settings)
    (refusal,) = rejects(dispatcher.handle(0, arrived("r", prompt=longest)))
    assert (refusal.code, refusal.reason) == ("invalid_request", "prompt_too_long")
    assert (refusal.kv_tokens_max, refusal.retry_after_ns) == (640, None)
    assert sends(dispatcher.handle(0, arrived("s", prompt=longest - 1))) == [("s", "a")]
    # Where only some may serve it, it is theirs that counts.
    commands = dispatcher.handle(0, arrived("t", prompt=longest // 2, labels=("eu",)))
    assert [each.kv_tokens_max for each in rejects(commands)] == [320]
    dispatcher.handle(1, finished("s"))


def test_nobody_is_refused_for_a_cache_that_is_not_known() -> None:
    dispatcher = money(up("a", kv_blocks=10), up("b"))
    assert sends(dispatcher.handle(0, arrived("r", prompt=100_000))) == [("r", "b")]
    (refusal,) = rejects(factory().handle(0, arrived("r", prompt=100_000)))
    assert refusal.kv_tokens_max is UNSET
