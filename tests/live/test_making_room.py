"""The driver: answers that make room for higher tiers and go on, and KV blocks that move."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from tests.live.driver_world import (
    BOOK,
    CONFIG,
    FakeClient,
    FakeStream,
    World,
    outcome,
    settle_down,
)
from tests.live.reading import Reading
from tokenworks.core.errors import WorkerFailed
from tokenworks.core.needs import Hints
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.events import PolicySettings
from tokenworks.live import driver as driver_module
from tokenworks.live.flights import LiveDelivery
from tokenworks.perf.timing import FS_PER_NS, Timing

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Test = Callable[[World], Coroutine[Any, Any, None]]
TIMING = Timing(
    launch_fs=1_000_000 * FS_PER_NS,
    sequence_fs=10_000 * FS_PER_NS,
    context_token_fs=0,
    prefill_token_fs=100_000 * FS_PER_NS,
    prefill_context_fs=0,
)
LATE_NS = BOOK.promises[Tier.ULTRA].ttft_ns // 2 + 1
PATIENCE_NS = BOOK.promises[Tier.FREE].patience_ns


@pytest.fixture(autouse=True)
def _no_breather(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "BREATHER_NS", 0)


@pytest.fixture
def live(run: Run, tmp_path: pathlib.Path) -> Callable[..., None]:
    """A test in a world of workers of one slot that can do everything; nothing is left behind."""

    def go(test: Test) -> None:
        async def main() -> None:
            world = World(
                tmp_path,
                config=msgspec.structs.replace(CONFIG, slots=1),
                policy=PolicySettings(name="economic"),
                timing=TIMING,
                kv_blocks=1_000,
                kv_bytes_per_token=1,
                preempts=True,
                host_bytes_per_s=10**9,
            )
            await test(world)
            await world.check()

        run(main())

    return go


async def displaced(
    world: World, client: FakeClient, *, begun: bool = True
) -> tuple[asyncio.Task[LiveDelivery], FakeStream | None, FakeStream]:
    """A free request whose place an ultra one has taken, its stream, and that of the other."""
    free = world.open(tier=Tier.FREE)
    await settle_down()
    stream = None
    if begun:
        stream = client.waiting()[0].answer()
        await free
        stream.feed(b"one ")
    top = world.open(tier=Tier.ULTRA)
    await settle_down()
    sent = len(client.exchanges)
    world.tick(LATE_NS)
    await settle_down()
    assert world.dispatcher.counts()["displaced"] == 1
    assert len(client.exchanges) == sent + 1
    other = client.waiting()[-1].answer()
    delivery = await top
    world.clock.advance(1)
    other.end()
    reading = Reading(delivery)
    assert await reading.read() == b""
    return free, stream, other


async def whole_as_it_is_to_make_room(
    world: World, client: FakeClient
) -> tuple[LiveDelivery, asyncio.Task[LiveDelivery]]:
    """A free answer that is all there as an ultra request takes its place, and that request."""
    free = world.open(tier=Tier.FREE)
    await settle_down()
    client.waiting()[0].answer().end()
    delivery = await free
    top = world.open(tier=Tier.ULTRA)
    await settle_down()
    world.tick(LATE_NS)
    await settle_down()
    return delivery, top


async def breaks_off(delivery: LiveDelivery, why: str | None = None) -> None:
    """Whoever reads gets what was made, and then hears why there is no more."""
    reading = Reading(delivery)
    assert await reading.read() == b"one "
    with pytest.raises(WorkerFailed, match=why):
        await reading.read()


async def make_way(world: World) -> None:
    """The ultra answer is settled, so its worker is free."""
    flights = [each for each in world.driver._flights.values() if each.order.tier is Tier.ULTRA]
    (flight,) = flights
    assert flight.delivery is not None
    await flight.delivery.settle(outcome())
    await settle_down()


def test_an_answer_makes_room_and_goes_on_without_a_gap(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        free, _, _ = await displaced(world, client)
        delivery = free.result()
        world.clock.advance(NS_PER_S // 2)
        await make_way(world)
        (exchange,) = client.waiting()
        assert exchange.kept == b"kept of 1"
        after = exchange.answer()
        await settle_down()
        after.feed(b"two ")
        # Whoever reads late misses nothing of the first.
        reading = Reading(delivery)
        assert await reading.read() == b"one "
        assert await reading.read() == b"two "
        after.end()
        assert await reading.read() == b""
        world.clock.advance(NS_PER_S)
        receipt = await delivery.settle(outcome())
        assert receipt.tier_asked is Tier.FREE
        posted = {each.tier_asked: each for each in world.posted}
        # It was at workers before and after, but for the time that it waited.
        assert posted[Tier.FREE].worker_ns == LATE_NS + NS_PER_S

    live(test)


def test_leaving_before_another_worker_goes_on_stops_that(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        free, _, _ = await displaced(world, client)
        await make_way(world)
        (exchange,) = client.waiting()
        delivery = free.result()
        reading = Reading(delivery)
        delivery.abort()
        assert reading.over
        await delivery.settle(outcome(ending="disconnected"))
        await settle_down()
        assert exchange.cancelled

    live(test)


def test_a_reader_waits_while_an_answer_waits(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        free, _, _ = await displaced(world, client)
        delivery = free.result()
        reading = Reading(delivery)
        assert await reading.read() == b"one "
        reader = asyncio.ensure_future(reading.read())
        await settle_down()
        assert not reader.done()
        await make_way(world)
        client.waiting()[0].answer().feed(b"two ")
        assert await reader == b"two "
        delivery.abort()
        await delivery.settle(outcome(ending="disconnected"))

    live(test)


def test_a_client_that_leaves_as_its_answer_goes_on_stops_both_workers(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        free, _, _ = await displaced(world, client)
        await make_way(world)
        after = client.waiting()[0].answer()
        await settle_down()
        delivery = free.result()
        delivery.abort()
        assert after.aborted
        await breaks_off(delivery, "aborted")
        await delivery.settle(outcome(1, ending="disconnected"))
        assert world.dispatcher.counts()["withdrawn"] == 1

    live(test)


def test_what_has_not_begun_begins_anew(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        free, _, _ = await displaced(world, client, begun=False)
        assert client.exchanges[0].cancelled
        await make_way(world)
        (exchange,) = client.waiting()
        assert exchange.kept is None
        exchange.answer().end()
        delivery = await free
        reading = Reading(delivery)
        assert await reading.read() == b""
        await delivery.settle(outcome())

    live(test)


@pytest.mark.parametrize("begun", [True, False])
def test_a_client_that_leaves_while_its_request_waits(
    live: Callable[..., None],
    begun: bool,
) -> None:
    async def test(world: World) -> None:
        free, _, _ = await displaced(world, world.up(), begun=begun)
        if begun:
            delivery = free.result()
            delivery.abort()
            await breaks_off(delivery, "aborted")
            await delivery.settle(outcome(1, ending="disconnected"))
        else:
            free.cancel()
            await settle_down()
        await make_way(world)
        assert world.dispatcher.counts()["withdrawn"] == 1

    live(test)


def test_an_answer_that_nobody_goes_on_with_in_time_ends(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        free, _, _ = await displaced(world, world.up())
        delivery = free.result()
        world.tick(PATIENCE_NS + 1)
        await breaks_off(delivery, "in time")
        await delivery.settle(outcome(1, ending="failed"))
        await make_way(world)
        assert world.dispatcher.counts()["rejected"] == 1

    live(test)


@pytest.mark.parametrize("how", ["down", "fails", "refuses", "breaks"])
def test_a_worker_that_does_not_go_on_with_an_answer_ends_it(
    live: Callable[..., None], how: str
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        free, _, _ = await displaced(world, client)
        delivery = free.result()
        await make_way(world)
        (exchange,) = client.waiting()
        if how == "down":
            world.down()
        elif how == "fails":
            exchange.fail()
        elif how == "breaks":
            exchange.fail(ZeroDivisionError())
        else:
            exchange.answer(400, b"too long")
        await settle_down()
        await breaks_off(delivery)
        await delivery.settle(outcome(1, ending="failed"))
        assert world.dispatcher.counts()["broken"] == 1

    live(test)


def test_what_was_whole_when_it_was_to_make_room_is_settled_as_it_is(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        delivery, top = await whole_as_it_is_to_make_room(world, client)
        assert world.dispatcher.counts()["displaced"] == 1
        client.waiting()[0].answer().end()
        await (await top).settle(outcome())
        # It was sent once more, as far as the dispatcher knows, and to nobody.
        await settle_down()
        assert not client.waiting()
        reading = Reading(delivery)
        assert await reading.read() == b""
        await delivery.settle(outcome())
        assert world.dispatcher.counts()["finished"] == 2

    live(test)


def test_what_is_settled_before_it_is_sent_once_more_leaves_its_line(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        delivery, top = await whole_as_it_is_to_make_room(world, client)
        await delivery.settle(outcome())
        client.waiting()[0].answer().end()
        await (await top).settle(outcome())
        assert len(client.exchanges) == 2

    live(test)


def test_a_worker_that_lost_its_gift_ends_an_answer(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        free, _, _ = await displaced(world, client)
        world.driver._seats[world.seats[0]].client = Plain()
        await make_way(world)
        delivery = free.result()
        await breaks_off(delivery, "cannot go on")
        await delivery.settle(outcome(1, ending="failed"))

    live(test)


class Plain:
    """The way to a worker that can only answer."""

    async def post_stream(self, path: str, body: bytes) -> FakeStream:
        raise AssertionError(path, body)

    async def get(self, path: str) -> tuple[int, bytes]:
        raise AssertionError(path)

    def close(self, why: str) -> None:
        raise AssertionError(why)


def test_the_factory_closes_while_an_answer_waits(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        free, _, _ = await displaced(world, world.up())
        delivery = free.result()
        closing = asyncio.ensure_future(world.driver.close())
        await settle_down()
        await breaks_off(delivery, "aborted")
        await delivery.settle(outcome(1, ending="failed"))
        await make_way(world)
        await closing

    live(test)


# KV blocks.


@pytest.mark.parametrize("lost", [False, True])
def test_a_sessions_blocks_go_down_and_come_up_before_its_next_request(
    live: Callable[..., None],
    lost: bool,
) -> None:
    async def test(world: World) -> None:
        client = world.up()

        async def turn(prefix: tuple[int, ...], hints: Hints | None = None) -> None:
            more: dict[str, Any] = {"prefix": prefix, "session": f"s{prefix[0]}", "hints": hints}
            delivery, stream = await world.answering(client, **more)
            stream.end()
            reading = Reading(delivery)
            assert await reading.read() == b""
            world.clock.advance(NS_PER_S)
            await delivery.settle(outcome())
            await settle_down()

        await turn((7, 8))
        client.lost = lost
        await turn((1, 2, 3), Hints(tool_ns=10**15))
        assert client.moves == [("down", (1, 2, 3), 0)]
        client.lost = False
        await turn((1, 2, 3, 4))
        assert client.moves[1:] == [("up", (1, 2, 3), 0)]

    live(test)


def test_what_a_worker_cannot_bring_back_is_computed_at_the_next_try(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        first = {"prefix": (1, 2), "session": "s", "hints": Hints(tool_ns=10**15)}
        for more in ({"prefix": (9,), "session": "t"}, first):
            delivery, stream = await world.answering(client, **more)
            stream.end()
            reading = Reading(delivery)
            await reading.read()
            world.clock.advance(NS_PER_S)
            await delivery.settle(outcome())
        client.lost = True
        opening = world.open(prefix=(1, 2), session="s")
        await settle_down(40)
        client.waiting()[0].answer().end()
        delivery = await opening
        assert await reading.read() == b""
        await delivery.settle(outcome())
        assert [what for what, *_ in client.moves] == ["down", "up"]
        assert world.dispatcher.counts()["sent"] == 4

    live(test)
