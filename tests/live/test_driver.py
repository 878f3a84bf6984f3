"""The driver: what happens to a request between its reservation and its settlement."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import itertools
import pathlib
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from tests.ledger import ledger_samples
from tests.ledger.memory_store import MemoryStore
from tests.live.driver_world import (
    BOOK,
    CONFIG,
    MODEL,
    POOL,
    SECRET,
    FakeClient,
    World,
    outcome,
    settle_down,
    without_files,
)
from tests.live.fake_worker import FakeWorker, Script
from tests.live.reading import Reading
from tokenworks.catalogue.factory_config import PoolConfig
from tokenworks.catalogue.price_book import parse_price_book
from tokenworks.core.errors import (
    CapacityExceeded,
    InvalidRequest,
    LedgerUnavailable,
    ModelNotFound,
    QuotaExceeded,
    Unauthorized,
    WorkerFailed,
    WorkerUnavailable,
)
from tokenworks.core.ids import KeyID, RequestID
from tokenworks.core.orders import Passing
from tokenworks.core.slo import Measured, Tier
from tokenworks.core.units import NS_PER_HOUR, NS_PER_MS, NS_PER_S
from tokenworks.ledger.entries import Reserved
from tokenworks.live import driver as driver_module
from tokenworks.live.flights import Flight, LiveDelivery
from tokenworks.live.network import WorkerClient

Run = Callable[[Coroutine[Any, Any, Any]], Any]


# The straight way.


def test_an_answer_is_reserved_sent_started_settled_and_billed(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        opening = world.open(tier=Tier.PREMIUM)
        await settle_down()
        (hold,) = world.ledger.open_holds()
        assert hold.hold_tokens == 30
        stream = client.waiting()[0].answer()
        delivery = await opening
        assert world.dispatcher.loads()[world.seats[0]].running == 1
        reading = Reading(delivery)
        stream.feed(b"data: x\n\n")
        assert await reading.read() == b"data: x\n\n"
        delivery.pause()
        assert stream.paused
        delivery.resume()
        assert not stream.paused
        stream.end()
        assert await reading.read() == b""
        world.clock.advance(NS_PER_S)
        receipt = await delivery.settle(outcome())
        price = BOOK.prices[MODEL][Tier.PREMIUM]
        assert receipt.tier_delivered is Tier.PREMIUM
        assert receipt.charged_nanodollars == 10 * 9_000 + 20 * 45_000
        (posted,) = world.posted
        assert posted.price == price
        assert posted.worker_ns == NS_PER_S
        # A second on one of four slots of a pool whose energy costs 41,666.67 nano-dollars a
        # second and whose machines cost 10,000.
        assert (posted.energy_nanodollars, posted.capital_nanodollars) == (10_416, 2_500)
        assert world.entries(Reserved) == [hold]

    live(test)


def test_the_driver_shows_what_it_can_serve(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        assert world.driver.healthy() == (False, "0 of 2 workers are up")
        world.up()
        assert world.driver.healthy() == (True, "1 of 2 workers are up")
        assert world.driver.models() == (MODEL,)
        assert world.driver.output_tokens_default(MODEL, Tier.HIGH) == 16
        view = world.key_of(SECRET)
        assert view is not None
        assert view.key == "key"
        assert world.key_of(b"another") is None

    live(test)


def test_the_tier_that_was_delivered_is_the_one_that_is_billed(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        slow = Measured(ttft_ns=NS_PER_MS, decode_ns=19 * NS_PER_S // 60, output_tokens=20)
        delivery, _ = await world.answering(client, tier=Tier.PREMIUM)
        receipt = await delivery.settle(outcome(measured=slow))  # 60 tokens/s; premium says 100
        assert (receipt.tier_asked, receipt.tier_delivered) == (Tier.PREMIUM, Tier.HIGH)
        (posted,) = world.posted
        assert posted.price == BOOK.prices[MODEL][Tier.HIGH]
        assert receipt.charged_nanodollars == posted.charged_nanodollars == 132_000
        late = Measured(ttft_ns=9 * NS_PER_S, decode_ns=0, output_tokens=20)
        delivery, _ = await world.answering(client, tier=Tier.PREMIUM)
        receipt = await delivery.settle(outcome(measured=late))
        assert (receipt.tier_delivered, receipt.charged_nanodollars) == (Tier.FREE, 0)
        assert world.posted[-1].ad_income_nanodollars == 0  # it was not sold to advertisers

    live(test)


def test_a_client_that_leaves_pays_for_what_was_made(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        delivery, stream = await world.answering(world.up())
        delivery.abort()
        assert stream.aborted
        with pytest.raises(WorkerFailed):
            await Reading(delivery).read()
        await delivery.settle(outcome(5, ending="disconnected"))
        assert world.posted[0].charged_nanodollars > 0
        assert world.posted[0].usage.output_tokens == 5

    live(test)


def test_an_embedded_worker_is_asked_to_tell_its_progress(
    live: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        import msgspec

        seat = world.driver._seats[world.seats[0]]
        seat.config = msgspec.structs.replace(CONFIG, engine="embedded")
        client = world.up()
        delivery, _ = await world.answering(client)
        assert client.exchanges[0].body == b'{"return_progress":true,"stream":true}'
        await delivery.settle(outcome())

    live(test)


# Refusals.


def test_a_quota_is_hard(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        first, _ = await world.answering(client)
        with pytest.raises(QuotaExceeded):
            await world.driver.open(world.order())
        await first.settle(outcome(1))  # 11 of 50 tokens; the hold of 30 is given back
        second, _ = await world.answering(client)
        await second.settle(outcome(ending="failed"))
        assert world.used_tokens() == 11
        assert [(each.used, each.held) for each in world.ledger.windows()] == [(11, 0)]

    live(test, limits=[World.limit(50)])


def test_a_quota_that_comes_back_says_when(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        delivery, _ = await world.answering(client)
        await delivery.settle(outcome())
        with pytest.raises(QuotaExceeded, match="tokens per month: 30 used") as caught:
            await world.driver.open(world.order(output=60))
        left_s = caught.value.retry_after_s
        assert left_s is not None
        world.clock.advance(left_s * NS_PER_S)
        delivery, _ = await world.answering(client, output=60)
        await delivery.settle(outcome())

    live(test, limits=[World.limit(70)])


def test_a_limit_binds_from_the_next_round_on_and_counts_what_was_used(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        delivery, _ = await world.answering(client)
        await delivery.settle(outcome(20))
        open_one, _ = await world.answering(client)
        world.store.put_limit(World.limit(75))
        await world.round()
        with pytest.raises(QuotaExceeded, match="30 used, 30 held"):
            await world.driver.open(world.order())
        await open_one.settle(outcome(4))
        (window,) = world.ledger.windows()
        assert (window.used, window.held) == (44, 0)

    live(test)


def test_fields_that_nobody_knows_do_not_reach_the_embedded_engine(
    live: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        odd = msgspec.structs.replace(world.order(), extra_fields=("n_probs",))
        opening = asyncio.ensure_future(world.driver.open(odd))
        await settle_down()
        client.waiting()[-1].answer()
        await (await opening).settle(outcome())  # an attached server may know them
        embedded = PoolConfig(engine="embedded", model=MODEL)
        monkeypatch.setitem(world.driver._pools, POOL, embedded)
        with pytest.raises(InvalidRequest, match="does not take 'n_probs'"):
            await world.driver.open(msgspec.structs.replace(odd, request=RequestID("odd")))

    live(test)


def test_cost_is_as_long_as_it_took_whatever_the_date_does(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        for jump_ns in (0, -NS_PER_HOUR, 24 * NS_PER_HOUR):
            world.clock.advance(10 * NS_PER_S)
            world.clock.unix += jump_ns
            world.driver.housekeep_once()
            await settle_down()
        lengths = [each.until_unix_ns - each.from_unix_ns for each in world.accrued]
        assert lengths == [10 * NS_PER_S] * 3
        starts = [each.from_unix_ns for each in world.accrued]
        assert starts[1] == world.accrued[0].until_unix_ns
        assert starts[2] > starts[1] + 20 * NS_PER_HOUR

    live(test)


def test_the_next_price_book_is_opened_on_its_day(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        until_midnight_ns = -world.clock.unix_ns() % (24 * NS_PER_HOUR)
        world.clock.advance(until_midnight_ns - NS_PER_S)
        early, _ = await world.answering(client)
        await world.round()
        world.clock.advance(NS_PER_S)
        await world.round()
        late, _ = await world.answering(client)
        await early.settle(outcome())
        await late.settle(outcome())
        ids = [posted.price_id for posted in world.posted]
        assert [name.partition("@")[0] for name in ids] == ["test", "dearer"]
        assert [world.store.load_price_book(name) is not None for name in ids] == [True, True]

    text = ledger_samples.book_text(name="test").replace("2026-01-01", "2023-11-01")
    later = ledger_samples.book_text(name="dearer").replace("2026-01-01", "2023-11-15")
    live(test, books=[parse_price_book(text), parse_price_book(later)])


def test_what_cannot_be_sold_is_refused(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        world.up()
        with pytest.raises(Unauthorized):
            await world.driver.open(world.order(key="nobody"))
        with pytest.raises(ModelNotFound):
            await world.driver.open(world.order(model="no such"))
        assert world.all_entries() == []

    live(test)


def test_a_price_book_that_is_put_into_force_is_taken_up(
    live: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = ledger_samples.book_text(name="test").replace("2026-01-01", "2023-11-01")
    new = ledger_samples.book_text(name="dearer").replace("2026-01-01", "2023-11-02")

    async def test(world: World) -> None:
        client = world.up()
        clashing = new.replace("dearer", "clashing").replace("11-02", "11-01")
        # The folder has another book from that day since: it keeps out that one alone.
        monkeypatch.setattr(world.store, "activated_books", lambda: [clashing, new])
        world.store.put_key(World.key("new", b"another"))
        await world.round()
        delivery, _ = await world.answering(client)
        await delivery.settle(outcome())
        assert world.posted[0].price_id.partition("@")[0] == "dearer"
        assert "is left out" in caplog.text
        assert "'clashing@" in caplog.text

    live(test, books=[parse_price_book(old)])


def test_a_revoked_key_opens_nothing_from_the_next_round_on(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        delivery, _ = await world.answering(world.up())
        world.store.revoke_key(KeyID("key"), 5)
        await world.round()
        assert world.key_of(SECRET) is None
        with pytest.raises(Unauthorized):
            await world.driver.open(world.order())
        receipt = await delivery.settle(outcome())  # what runs is finished and billed
        assert receipt.charged_nanodollars > 0
        world.store.put_key(World.key("new", b"another"))
        await world.round()
        assert world.key_of(b"another") is not None

    live(test)


def test_a_round_comes_five_times_a_second(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """So what is changed elsewhere is in force within a second, as is promised."""
    pauses_s: list[float] = []

    async def pause(seconds: float) -> None:
        pauses_s.append(seconds)

    async def fifth() -> None:
        if len(pauses_s) == 5:
            raise EOFError

    monkeypatch.setattr(asyncio, "sleep", pause)
    with pytest.raises(EOFError):
        run(driver_module._again_and_again(fifth))
    assert sum(pauses_s) <= 1


def test_a_new_secret_opens_from_the_next_round_on_and_the_old_one_for_a_time(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        world.up()
        new, until = b"the new one", world.clock.unix_ns() + 5
        world.store.rotate_key(KeyID("key"), hashlib.sha256(new).hexdigest(), until)
        assert world.key_of(new) is None
        await world.round()
        view, old = world.key_of(new), world.key_of(SECRET)
        assert view is not None
        assert old is not None
        assert (view.key, view.scopes, old.key) == ("key", None, "key")
        assert world.driver.key_named(KeyID("key")) == view  # work that goes on has no secret
        assert old.scopes is not None
        assert (old.scopes.expires_unix_ns, old.scopes.replaced) == (until, True)
        world.store.revoke_key(KeyID("key"), 5)
        await world.round()
        assert (world.key_of(new), world.key_of(SECRET)) == (None, None)
        assert world.driver.key_named(KeyID("key")) is None

    live(test)


def test_keys_that_cannot_be_read_are_trouble_until_they_can(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        world.up()
        world.store.keys_failing = True
        await world.round()
        await world.round()
        healthy, why = world.driver.healthy()
        assert not healthy
        assert "Keys and limits cannot be read" in why
        world.store.revoke_key(KeyID("key"), 5)
        world.store.keys_failing = False
        await world.round()
        assert world.driver.healthy()[0]
        assert world.key_of(SECRET) is None

    live(test)


def test_a_model_whose_worker_never_came_up_is_unavailable(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        with pytest.raises(WorkerUnavailable) as caught:
            await world.driver.open(world.order())
        assert "doctor" in caught.value.hint
        assert [entry.reason for entry in world.voided] == ["rejected"]

    live(test)


def test_patience_ends_in_429_with_a_time_to_come_again(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        running = [(await world.answering(client))[0] for _ in range(2)]
        waiting = world.open()
        await settle_down()
        assert not waiting.done()
        world.tick(1_100 * NS_PER_MS)  # patience is a second
        with pytest.raises(CapacityExceeded) as caught:
            await waiting
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s >= 1
        assert "waited 1100 ms" in str(caught.value)
        assert [entry.reason for entry in world.voided] == ["rejected"]
        for delivery in running:
            await delivery.settle(outcome())

    live(test)


def test_flights_have_a_limit(live: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        monkeypatch.setattr(driver_module, "FLIGHTS_MAX", 1)
        delivery, _ = await world.answering(world.up())
        with pytest.raises(CapacityExceeded, match="Too many"):
            await world.driver.open(world.order())
        await delivery.settle(outcome())

    live(test)


# The client leaves before its answer begins.


def test_leaving_the_queue_voids_the_hold(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        running = [(await world.answering(client))[0] for _ in range(2)]
        waiting = world.open()
        await settle_down()
        waiting.cancel()
        await settle_down()
        assert waiting.cancelled()
        assert sum(world.dispatcher.queue_lens().values()) == 0
        assert [entry.reason for entry in world.voided] == ["withdrawn"]
        assert len(client.exchanges) == 2
        for delivery in running:
            await delivery.settle(outcome())

    live(test)


def test_leaving_while_being_sent_stops_the_worker(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        opening = world.open()
        await settle_down()
        opening.cancel()
        await settle_down()
        assert client.exchanges[0].cancelled
        assert [entry.reason for entry in world.voided] == ["withdrawn"]

    live(test)


async def sent_late(world: World, client: FakeClient) -> asyncio.Task[LiveDelivery]:
    """A request that has waited in a line."""
    first, _ = await world.answering(client)
    second, _ = await world.answering(client)
    opening = world.open()
    await settle_down()
    assert not client.waiting()
    for each in (first, second):
        await each.settle(outcome())
    await settle_down()
    assert client.waiting()
    return opening


def test_leaving_as_the_answer_begins_stops_the_worker(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        opening = await sent_late(world, client)
        stream = client.waiting()[0].answer()
        flight = world.driver._flights[next(iter(world.driver._flights))]
        for _ in range(10):
            if not flight.opened.done():
                await asyncio.sleep(0)
        assert flight.opened.done()
        assert not opening.done()
        opening.cancel()  # the result is there, and nobody has taken it
        await settle_down()
        assert opening.cancelled()
        assert stream.aborted
        assert [entry.reason for entry in world.voided] == ["withdrawn"]

    live(test)


@pytest.mark.parametrize("status", [200, 400, 500])
def test_leaving_before_the_head_is_looked_at_stops_the_worker(
    live: Callable[..., None], status: int
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        opening = await sent_late(world, client)
        opening.cancel()
        stream = client.waiting()[0].answer(status)
        stream._ended = False
        await settle_down()
        assert opening.cancelled()
        assert stream.aborted or client.exchanges[-1].cancelled
        assert [entry.reason for entry in world.voided] == ["withdrawn"]

    live(test)


def test_leaving_before_the_head_is_seen_by_the_caller_stops_the_worker(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        opening = world.open()
        await settle_down()
        stream = client.waiting()[0].answer()
        opening.cancel()
        await settle_down()
        assert opening.cancelled()
        assert stream.aborted
        assert [entry.reason for entry in world.voided] == ["withdrawn"]

    live(test)


@pytest.mark.parametrize("first", ["down", "leaving"])
def test_leaving_crosses_with_a_worker_that_goes_down(
    live: Callable[..., None], first: str
) -> None:
    async def test(world: World) -> None:
        world.up()
        opening = world.open()
        await settle_down()
        if first == "leaving":
            opening.cancel()
        world.down()
        if first == "down":
            opening.cancel()
        again = world.up(1)
        await settle_down()
        assert opening.cancelled()
        assert not again.waiting()
        assert [entry.reason for entry in world.voided] == ["withdrawn"]

    live(test)


def test_a_settled_answer_is_gone_without_the_collector_of_cycles(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        gc.collect()
        gc.disable()
        try:
            delivery, stream = await world.answering(client)
            stream.end()
            assert flights()
            await delivery.settle(outcome())
            del delivery
            await settle_down()
            assert not flights()
        finally:
            gc.enable()

    def flights() -> list[object]:
        return [each for each in gc.get_objects() if isinstance(each, Flight)]

    live(test)


def test_a_worker_that_goes_down_cancels_nobody_who_waits(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        async def caller() -> int:
            delivery = await world.driver.open(world.order())
            task = asyncio.current_task()
            assert task is not None
            cancels = task.cancelling()
            await delivery.settle(outcome())
            return cancels

        world.up()
        calling = asyncio.ensure_future(caller())
        await settle_down()
        world.down()
        world.up(1).auto = lambda exchange: exchange.answer()
        assert await calling == 0

    live(test)


def test_leaving_while_an_error_body_is_read_stops_the_worker(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        opening = world.open()
        await settle_down()
        stream = client.waiting()[0].answer(500)
        stream._ended = False
        await settle_down()
        opening.cancel()
        await settle_down()
        assert stream.aborted

    live(test)


@pytest.mark.parametrize("goes_down", [False, True])
def test_leaving_in_the_breather_after_a_status_leaves_nothing_behind(
    live: Callable[..., None], monkeypatch: pytest.MonkeyPatch, *, goes_down: bool
) -> None:
    async def test(world: World) -> None:
        monkeypatch.setattr(driver_module, "BREATHER_NS", NS_PER_HOUR)
        client = world.up()
        opening = world.open()
        await settle_down()
        client.waiting()[0].answer(503, b"busy")
        await settle_down()
        if goes_down:
            world.down()
            await settle_down()
        opening.cancel()
        await settle_down()
        assert opening.cancelled()
        assert [each.reason for each in world.voided] == ["withdrawn"]

    live(test)


def test_leaving_crosses_with_a_rejection(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        running = [(await world.answering(client))[0] for _ in range(2)]
        waiting = world.open()
        await settle_down()
        world.tick(1_100 * NS_PER_MS)
        waiting.cancel()  # the rejection is set, and nobody has taken it
        await settle_down()
        assert waiting.cancelled()
        waiting = world.open()
        await settle_down()
        waiting.cancel()
        world.tick(1_100 * NS_PER_MS)  # the other way round
        await settle_down()
        assert [entry.reason for entry in world.voided] == ["rejected", "rejected"]
        for delivery in running:
            await delivery.settle(outcome())

    live(test)


def test_a_prompt_that_no_cache_can_hold_is_refused_with_both_figures(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        world.driver._seats[world.seats[0]].kv_blocks = 2
        world.up()
        order = msgspec.structs.replace(world.order(), input_tokens_max=8 * 2 * 64)
        with pytest.raises(InvalidRequest, match=r"1024 tokens, and the .* holds 128\.") as found:
            await world.driver.open(order)
        assert found.value.retry_after_s is None
        assert [entry.reason for entry in world.voided] == ["rejected"]

    live(test)


# Workers that fail.


def test_a_worker_gets_a_body_as_what_it_is_where_it_takes_it(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        form = {"worker_path": "/v1/audio/translations", "content_type": "multipart/form-data"}
        delivery, _ = await world.answering(client, **form)
        exchange = client.exchanges[-1]
        assert (exchange.path, exchange.content_type) == tuple(form.values())
        assert exchange.body == b'{"stream":true}'
        await delivery.settle(outcome())

    live(test)


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_worker_that_does_not_serve_a_path_is_not_asked_again(
    live: Callable[..., None], status: int
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        opening = world.open(worker_path="/v1/embeddings")
        await settle_down()
        client.waiting()[0].answer(status, b"no such path")
        with pytest.raises(InvalidRequest, match=f"status {status}: no such path"):
            await opening
        assert len(client.exchanges) == 1

    live(test)


def test_a_refusal_is_in_the_workers_own_words(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        opening = world.open()
        await settle_down()
        client.waiting()[0].answer(400, b'{"error":{"message":"Unknown field: colour."}}')
        with pytest.raises(InvalidRequest, match=r"status 400: Unknown field: colour\."):
            await opening
        opening = world.open()
        await settle_down()
        client.waiting()[0].answer(422, b"no JSON at all")
        with pytest.raises(InvalidRequest, match="no JSON at all"):
            await opening
        assert [entry.reason for entry in world.voided] == ["rejected", "rejected"]

    live(test)


@pytest.mark.parametrize("how", [500, 503, 429, 401, 404, 301, None])
def test_a_failure_is_tried_elsewhere(live: Callable[..., None], how: int | None) -> None:
    async def test(world: World) -> None:
        clients = [world.up(0), world.up(1)]
        opening = world.open()
        await settle_down()
        first = next(client for client in clients if client.waiting())
        second = clients[1 - clients.index(first)]
        if how is None:
            first.waiting()[0].fail()
        else:
            first.waiting()[0].answer(how, b"x")
        await settle_down()
        second.waiting()[0].answer()
        delivery = await opening
        await delivery.settle(outcome())
        assert world.posted[0].worker == world.seats[clients.index(second)]

    live(test)


def passing(method: str) -> Passing:
    return Passing(method=method, target="/files", headers=())


def unsent() -> WorkerFailed:
    failure = WorkerFailed("connection refused")
    failure.unsent = True
    return failure


@pytest.mark.parametrize(
    ("method", "failure"), [("POST", None), ("PATCH", None), ("POST", RuntimeError("a bug"))]
)
def test_what_was_passed_on_once_is_not_tried_elsewhere(
    live: Callable[..., None], method: str, failure: Exception | None
) -> None:
    async def test(world: World) -> None:
        clients = [world.up(0), world.up(1)]
        opening = world.open(passing=passing(method))
        await settle_down()
        (exchange,) = [*clients[0].exchanges, *clients[1].exchanges]
        exchange.fail(failure)
        with pytest.raises(WorkerFailed, match="It may have been carried out"):
            await opening
        assert len(clients[0].exchanges) + len(clients[1].exchanges) == 1
        assert [entry.reason for entry in world.voided] == ["failed"]
        assert all(load.running == 0 for load in world.dispatcher.loads().values())

    live(test)


@pytest.mark.parametrize(
    ("method", "failure"), [("POST", unsent()), ("POST", WorkerUnavailable("busy")), ("GET", None)]
)
def test_what_was_not_sent_or_may_be_repeated_is_tried_elsewhere(
    live: Callable[..., None], method: str, failure: Exception | None
) -> None:
    async def test(world: World) -> None:
        clients = [world.up(0), world.up(1)]
        opening = world.open(passing=passing(method))
        await settle_down()
        first = next(client for client in clients if client.waiting())
        first.waiting()[0].fail(failure)
        await settle_down()
        clients[1 - clients.index(first)].waiting()[0].answer()
        await (await opening).settle(outcome())

    live(test)


def test_what_we_lack_is_no_workers_fault(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        clients = [world.up(0), world.up(1)]
        opening = world.open()
        await settle_down()
        (exchange,) = [*clients[0].exchanges, *clients[1].exchanges]
        exchange.fail(without_files())
        with pytest.raises(WorkerUnavailable, match="no more files") as caught:
            await opening
        assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
        assert len(clients[0].exchanges) + len(clients[1].exchanges) == 1
        assert [entry.reason for entry in world.voided] == ["rejected"]
        counts = world.dispatcher.counts()
        assert (counts["sent"], counts["withdrawn"], counts["broken"]) == (1, 1, 0)
        assert all(map(world.driver.is_up, world.seats))

    live(test)


@pytest.mark.parametrize("failure", [None, without_files()])
def test_a_caller_leaves_as_what_was_passed_on_once_fails(
    live: Callable[..., None], failure: Exception | None
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        opening = world.open(passing=passing("POST"))
        await settle_down()
        client.waiting()[0].fail(failure)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert [entry.reason for entry in world.voided] == ["withdrawn"]

    live(test)


def test_what_was_passed_on_to_a_worker_that_goes_down_is_not_sent_again(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        first = world.up(0)
        once, again = (world.open(passing=passing(method)) for method in ("POST", "GET"))
        await settle_down()
        second = world.up(1)
        world.down(0)
        with pytest.raises(WorkerFailed, match="it died It may have been"):
            await once
        await settle_down()
        assert (len(first.exchanges), len(second.exchanges)) == (2, 1)
        second.waiting()[0].answer()
        await (await again).settle(outcome())
        assert [entry.reason for entry in world.voided] == ["failed"]

    live(test)


def test_what_waits_again_does_not_go_with_the_worker_that_did_not_get_it(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        passing = Passing(method="POST", target="/v1/x", headers=())
        opening = world.open(tier=Tier.FREE, passing=passing)
        await settle_down()
        above = world.open(tier=Tier.ULTRA)
        await settle_down()
        unsent = WorkerFailed("connection refused")
        unsent.unsent = True
        client.waiting()[0].fail(unsent)
        await settle_down()
        assert world.dispatcher.queue_lens()[MODEL, Tier.FREE] == 1
        world.down()
        await settle_down()
        assert not opening.done()
        world.up(1).auto = lambda exchange: exchange.answer()
        await (await above).settle(outcome())
        await (await opening).settle(outcome())

    live(test, config=msgspec.structs.replace(CONFIG, slots=1))


def test_a_worker_goes_down_with_the_last_try(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up(0)
        opening = world.open(passing=passing("POST"))
        for _ in range(2):
            await settle_down()
            client.waiting()[0].fail(unsent())
        await settle_down()
        assert len(client.exchanges) == 3
        world.down(0)
        with pytest.raises(WorkerFailed, match="3 times"):
            await opening
        assert [entry.reason for entry in world.voided] == ["failed"]

    live(test)


def test_failures_without_end_become_502(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        for client in (world.up(0), world.up(1)):
            client.auto = lambda exchange: exchange.fail()
        with pytest.raises(WorkerFailed, match="3 times"):
            await world.driver.open(world.order())
        assert [entry.reason for entry in world.voided] == ["failed"]

    live(test)


def test_a_mistake_of_ours_while_sending_counts_as_a_failure(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        world.up().auto = lambda exchange: exchange.fail(RuntimeError("a bug"))
        with pytest.raises(WorkerFailed, match="3 times"):
            await world.driver.open(world.order())

    live(test)


def test_a_worker_that_goes_down_gives_its_requests_back(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        first = world.up(0)
        opening = world.open()
        await settle_down()
        world.down(0)
        await settle_down()
        assert sum(world.dispatcher.queue_lens().values()) == 1
        second = world.up(1)
        await settle_down()
        assert len(first.exchanges) == len(second.exchanges) == 1
        second.waiting()[0].answer()
        await (await opening).settle(outcome())
        assert world.dispatcher.counts()["sent"] == 2

    live(test)


def test_a_worker_that_comes_back_at_once_is_sent_the_request_once(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        world.up()
        opening = world.open()
        await settle_down()
        world.down()
        client = world.up()  # in the same turn of the loop: the old try has not noticed
        await settle_down()
        assert len(client.exchanges) == 1
        client.waiting()[0].answer()
        await (await opening).settle(outcome())
        assert world.dispatcher.counts()["sent"] == 2

    live(test)


def test_headers_that_cross_with_a_worker_going_down_begin_nothing(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        opening = world.open()
        await settle_down()
        client.waiting()[0].answer()  # the try will see this only after the worker is gone
        world.down()
        await settle_down()
        assert not opening.done()
        again = world.up()
        await settle_down()
        again.waiting()[0].answer()
        await (await opening).settle(outcome())
        assert [entry.ending for entry in world.posted] == ["done"]

    live(test)


def test_a_worker_that_goes_down_between_choice_and_sending_is_not_asked(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        world.up()
        opening = world.open()
        await asyncio.sleep(0)  # the choice is made, the try has not begun
        world.down()
        await settle_down()
        world.up(1).auto = lambda exchange: exchange.answer()
        await (await opening).settle(outcome())

    live(test)


def test_a_worker_down_in_mid_answer_fails_that_answer_unbilled(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        delivery, stream = await world.answering(world.up())
        stream.feed(b"data: half")
        reading = Reading(delivery)
        assert await reading.read() == b"data: half"
        world.down()
        with pytest.raises(WorkerFailed):
            await reading.read()
        receipt = await delivery.settle(outcome(3, ending="failed"))
        assert receipt.charged_nanodollars == 0
        assert world.used_tokens() == 0

    live(test)


def test_an_answer_has_a_longest_time_from_its_reservation_on(
    live: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        monkeypatch.setattr(driver_module, "ANSWER_NS_MAX", NS_PER_S)
        client = world.up()
        opening = world.open()
        await settle_down()
        world.clock.advance(2 * NS_PER_S)  # the worker took all of it to begin
        stream = client.waiting()[0].answer()
        delivery = await opening
        world.driver.housekeep_once()
        with pytest.raises(WorkerFailed):
            await Reading(delivery).read()
        assert stream.aborted
        await delivery.settle(outcome(0, ending="failed"))

    live(test)


def test_a_settled_answer_frees_its_socket_even_if_the_worker_talks_on(
    live: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        monkeypatch.setattr(driver_module, "LINGER_NS_MAX", 0)
        delivery, stream = await world.answering(world.up())
        await delivery.settle(outcome())
        world.driver.housekeep_once()
        with pytest.raises(WorkerFailed):
            await stream.read()
        assert stream.aborted

    live(test)


def test_a_stream_that_has_ended_is_not_kept_when_its_answer_is_settled(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        delivery, stream = await world.answering(client)
        stream.end()
        await delivery.settle(outcome())
        assert world.driver._settled == []
        delivery, stream = await world.answering(client)
        await delivery.settle(outcome())
        assert world.driver._settled == [stream]

    live(test)


def test_each_round_looks_for_cycles_in_what_is_new(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        gc.disable()
        try:
            gc.collect()
            kept = [[number] for number in range(1_000)]
            assert gc.get_count()[0] >= len(kept)
            world.driver.housekeep_once()
            assert gc.get_count()[0] < len(kept)
        finally:
            gc.enable()

    live(test)


def test_rounds_free_cycles_that_lived_for_long(live: Callable[..., None]) -> None:
    class Left:
        def __init__(self) -> None:
            self.itself = self

    async def test(world: World) -> None:
        thresholds = gc.get_threshold()
        gc.disable()
        try:
            gc.collect()
            gc.set_threshold(20_000, 2, 2)
            for rounds in (1, 4):  # until it is of the middle age, and of the oldest
                left = Left()
                for _ in range(rounds):
                    world.driver.housekeep_once()
                gone = weakref.ref(left)
                del left
                for _ in range(20):
                    world.driver.housekeep_once()
                assert gone() is None
        finally:
            gc.set_threshold(*thresholds)
            gc.enable()

    live(test)


def test_an_answer_that_outlived_its_reservation_is_not_billed(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        delivery, _ = await world.answering(world.up())
        world.clock.advance(NS_PER_HOUR)
        world.driver.housekeep_once()
        assert [entry.reason for entry in world.voided] == ["expired"]
        with pytest.raises(LedgerUnavailable, match="cannot be billed"):
            await delivery.settle(outcome())

    live(test)


# Cost.


def test_cost_is_the_rate_times_the_time_without_gap_or_overlap(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        began = world.clock.unix_ns()
        for duration_s in (1, 9, 10, 25, 3, 7, 100):
            world.clock.advance(duration_s * NS_PER_S)
            world.driver.housekeep_once()
        world.clock.unix -= 60 * NS_PER_S  # somebody set the wall clock back
        world.clock.ns += 10 * NS_PER_S
        world.driver.housekeep_once()
        world.clock.unix += 60 * NS_PER_S
        world.clock.advance(45 * NS_PER_S)
        await world.driver.close()
        rows = world.accrued
        assert rows[0].from_unix_ns == began
        # Ten seconds that the wall clock has not counted cost as much as the others.
        assert rows[-1].until_unix_ns == began + 210 * NS_PER_S
        for one, next_one in itertools.pairwise(rows):
            assert one.until_unix_ns == next_one.from_unix_ns
        whole = sum(row.energy_nanodollars for row in rows)
        assert abs(whole - CONFIG.energy_nanodollars(210 * NS_PER_S)) <= len(rows)
        assert sum(row.capital_nanodollars for row in rows) == 210 * 10_000
        assert {row.pool for row in rows} == {POOL}

    live(test)


# Beginning and closing.


def test_what_a_dead_process_held_is_given_back_at_the_start(
    run: Run, tmp_path: pathlib.Path
) -> None:
    async def main() -> None:
        from tests.ledger.ledger_samples import order
        from tokenworks.ledger.store_port import recover

        world = World(tmp_path / "one")
        dead_store = MemoryStore("dead", world.store._memory)
        dead = ledger_samples.ledger(World.key(), owner="dead")
        hold = dead.reserve(0, 1, order("orphan"), BOOK, 100)
        assert isinstance(hold, Reserved)
        dead_store.append_now([hold])
        heir = recover(world.store, 2)
        world.driver._ledger = world.driver._bookkeeper._ledger = world.ledger = heir
        assert len(heir.open_holds()) == 1
        world.driver.begin()
        assert [entry.reason for entry in world.voided] == ["expired"]
        await world.check()

    run(main())


def test_closing_dismisses_who_waits_and_cuts_off_who_is_served(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        deliveries = [(await world.answering(client))[0] for _ in range(2)]
        waiting = world.open()
        await settle_down()

        async def serve(delivery: Any) -> None:
            with pytest.raises(WorkerFailed):
                await Reading(delivery).read()
            await delivery.settle(outcome(1, ending="failed"))

        serving = [asyncio.create_task(serve(delivery)) for delivery in deliveries]
        await settle_down()
        await world.driver.close()
        with pytest.raises(CapacityExceeded, match="shutting down"):
            await waiting
        with pytest.raises(CapacityExceeded, match="shutting down"):
            await world.driver.open(world.order())
        assert all(task.done() for task in serving)
        world.driver.worker_up(world.seats[1], client)  # nobody listens any more
        world.driver.worker_down(world.seats[1], "closed")
        assert len(world.posted) == 2

    live(test)


def test_closing_does_not_wait_for_ever_for_a_settlement(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setattr(driver_module, "CLOSE_NS_MAX", 0)
        world = World(tmp_path)
        delivery, stream = await world.answering(world.up())
        await world.driver.close()
        assert stream.aborted
        assert len(world.ledger.open_holds()) == 1  # the next process gives it back
        assert await delivery.settle(outcome(0, ending="failed"))

    run(main())


def test_closing_dismisses_who_is_being_sent_and_who_has_just_left(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        sent, left = world.open(), world.open()
        await settle_down()
        left.cancel()
        await world.driver.close()
        with pytest.raises(CapacityExceeded):
            await sent
        assert left.cancelled()
        assert all(exchange.cancelled for exchange in client.exchanges)

    live(test)


def test_housekeeping_goes_on_until_cancelled(
    live: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        monkeypatch.setattr(driver_module, "HOUSEKEEPING_NS", 0)
        task = asyncio.create_task(world.driver.housekeep())
        world.clock.advance(20 * NS_PER_S)
        await settle_down()
        task.cancel()
        await settle_down()
        assert task.cancelled()
        assert len(world.accrued) == 1

    live(test)


def test_the_timer_wakes_the_dispatcher(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        running = [(await world.answering(client))[0] for _ in range(2)]
        waiting = world.open()
        await settle_down()
        world.clock.advance(NS_PER_S)
        early = world.open()  # this sets the timer anew, for a time that has passed
        with pytest.raises(CapacityExceeded):
            await waiting
        early.cancel()
        await settle_down()
        for delivery in running:
            await delivery.settle(outcome())

    live(test)


def test_a_journal_that_cannot_be_written_stops_no_request(
    live: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        assert world.driver._journal is not None
        monkeypatch.setattr(world.driver._journal, "write", full)
        journal = world.driver._journal
        delivery, _ = await world.answering(world.up())
        await delivery.settle(outcome())
        assert world.driver._journal is None
        journal.close()

    live(test)


# Over real sockets.


def client_of(worker: FakeWorker) -> WorkerClient:
    return WorkerClient(worker.host, worker.port, None)


def test_a_real_answer_comes_over_a_real_socket(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        async with FakeWorker(Script(tokens=["a", "b"]), model=MODEL) as worker:
            client = client_of(worker)
            world.driver.worker_up(world.seats[0], client)
            delivery = await world.driver.open(world.order())
            said = b""
            reading = Reading(delivery)
            while data := await reading.read():
                said += data
            assert b"[DONE]" in said
            await delivery.settle(outcome(2))
            client.close()

    live(test)


def test_leaving_in_mid_answer_closes_the_workers_socket(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        async with FakeWorker(model=MODEL) as worker:
            worker.gate.close()
            client = client_of(worker)
            world.driver.worker_up(world.seats[0], client)
            delivery = await world.driver.open(world.order())
            delivery.abort()
            await worker.until(lambda: worker.aborted == 1)
            await delivery.settle(outcome(0, ending="disconnected"))
            client.close()

    live(test)


def test_leaving_while_being_sent_closes_the_workers_socket(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        asked, closed = asyncio.Event(), asyncio.Event()

        async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            with contextlib.suppress(ConnectionError):
                await reader.read()
            closed.set()
            writer.transport.abort()

        async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            client = WorkerClient("127.0.0.1", port, None)
            world.driver.worker_up(world.seats[0], client)
            opening = world.open()
            await asked.wait()
            opening.cancel()
            await closed.wait()
            client.close()
        assert [entry.reason for entry in world.voided] == ["withdrawn"]

    live(test)


def test_a_dead_port_is_tried_and_given_up(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        async with FakeWorker() as worker:
            client = client_of(worker)
        world.driver.worker_up(world.seats[0], client)
        with pytest.raises(WorkerFailed):
            await world.driver.open(world.order())

    live(test)


def test_a_full_ledger_is_capacity(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        world.ledger._open_holds_max = 1
        delivery, _ = await world.answering(world.up())
        with pytest.raises(CapacityExceeded, match="reservations are open"):
            await world.driver.open(world.order())
        await delivery.settle(outcome())

    live(test)
