"""The driver: a second worker is asked, the first to answer wins, and the other is stopped."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from tests.live.driver_world import (
    BOOK,
    FakeClient,
    World,
    hedge_of,
    outcome,
    settle_down,
    without_files,
)
from tests.live.reading import Reading
from tokenworks.core.errors import InvalidRequest, WorkerFailed, WorkerUnavailable
from tokenworks.core.orders import Passing
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_HOUR, NS_PER_S
from tokenworks.dispatch.events import Failed
from tokenworks.live import driver as driver_module
from tokenworks.live.driver_parts import LIMITS

Test = Callable[[World], Coroutine[Any, Any, None]]
HEDGED = msgspec.structs.replace(LIMITS, hedge_percent=100)
AFTER_NS = BOOK.promises[Tier.HIGH].ttft_ns // 2


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "BREATHER_NS", 0)


@pytest.fixture
def live(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: pathlib.Path
) -> Callable[[Test], None]:
    """A test in a world of two workers; nothing is left behind."""

    def go(test: Test) -> None:
        async def main() -> None:
            world = World(tmp_path, dispatch_limits=HEDGED)
            await test(world)
            await world.check()

        run(main())

    return go


async def doubled(world: World) -> tuple[Any, FakeClient, FakeClient]:
    """A request that two workers have."""
    first, second = world.up(0), world.up(1)
    opening = world.open()
    await settle_down()
    assert (len(first.waiting()), len(second.exchanges)) == (1, 0)
    world.tick(AFTER_NS)
    await settle_down()
    assert len(second.waiting()) == 1
    assert [load.running for load in world.dispatcher.loads().values()] == [1, 1]
    return opening, first, second


async def whole(reading: Reading) -> bytes:
    parts = b""
    while part := await reading.read():
        parts += part
    return parts


async def served(world: World, opening: Any, client: FakeClient) -> None:
    """One of the workers answers; one answer is billed, to the last token and for its time."""
    stream = client.streams[-1] if client.streams else client.waiting()[0].answer()
    delivery = await opening
    reading = Reading(delivery)
    stream.feed(b"of this one")
    stream.end()
    assert await whole(reading) == b"of this one"
    await delivery.settle(outcome())
    await settle_down()
    assert len(world.posted) == 1
    assert world.voided == []


@pytest.mark.parametrize("winner", [0, 1])
def test_the_first_to_answer_wins_and_the_other_is_stopped(
    live: Callable[[Test], None], winner: int
) -> None:
    async def test(world: World) -> None:
        opening, *clients = await doubled(world)
        loser = clients[1 - winner].exchanges[0]
        world.clock.advance(NS_PER_S)
        clients[winner].exchanges[0].answer()
        await settle_down()
        assert loser.cancelled  # which closes its socket
        assert [load.running for load in world.dispatcher.loads().values()] == [
            int(winner == 0),
            int(winner == 1),
        ]
        world.clock.advance(NS_PER_S)
        await served(world, opening, clients[winner])
        (entry,) = world.posted
        assert entry.worker == world.seats[winner]
        # The winner's time is billed as its cost: from when it was sent the request.
        seconds = 2 if winner else 2 + AFTER_NS / NS_PER_S
        assert entry.worker_ns == int(seconds * NS_PER_S)
        counts = world.dispatcher.counts()
        assert (counts["hedged"], counts["hedges_won"]) == (1, winner)
        assert counts["hedge_waste_ns"] == NS_PER_S + (AFTER_NS if winner else 0)

    live(test)


def test_heads_that_come_in_one_moment_begin_one_answer(live: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        opening, first, second = await doubled(world)
        second.exchanges[0].answer()
        first.exchanges[0].answer()
        await settle_down()
        # Whose task runs first has it; the other one's is cancelled, which closes its socket.
        assert first.exchanges[0].cancelled
        assert world.dispatcher.counts()["hedges_won"] == 1
        await served(world, opening, second)

    live(test)


@pytest.mark.parametrize("loser", [0, 1])
@pytest.mark.parametrize("how", ["fails", "status", "down", "lacks"])
def test_one_that_fails_leaves_the_other(
    live: Callable[[Test], None], loser: int, how: str
) -> None:
    async def test(world: World) -> None:
        opening, *clients = await doubled(world)
        exchange = clients[loser].exchanges[0]
        if how == "down":
            world.down(loser)
        elif how == "status":
            exchange.answer(503, b"busy")
        elif how == "lacks":
            exchange.fail(without_files())
        else:
            exchange.fail()
        await settle_down()
        assert not opening.done()
        assert world.dispatcher.counts()["retried"] == 0
        loads = world.dispatcher.loads()
        assert loads[world.seats[1 - loser]].running == 1
        assert sum(load.running for load in loads.values()) == 1
        await served(world, opening, clients[1 - loser])

    live(test)


def test_an_answer_does_not_wait_for_the_breather_of_the_other_try(
    live: Callable[[Test], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        monkeypatch.setattr(driver_module, "BREATHER_NS", NS_PER_HOUR)
        opening, first, second = await doubled(world)
        first.exchanges[0].answer(503, b"busy")
        await settle_down()
        second.exchanges[0].answer()
        await settle_down()
        assert opening.done()
        await served(world, opening, second)

    live(test)


def test_both_that_fail_cost_a_retry(live: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        opening, first, second = await doubled(world)
        first.exchanges[0].fail()
        second.exchanges[0].fail()
        await settle_down()
        assert world.dispatcher.counts()["retried"] == 1
        assert len(first.exchanges) + len(second.exchanges) == 3
        client = first if first.waiting() else second
        client.waiting()[0].answer()
        await settle_down()
        await served(world, opening, client)

    live(test)


def test_what_we_lack_for_both_costs_no_retry(live: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        opening, first, second = await doubled(world)
        for client in (first, second):
            client.exchanges[0].fail(without_files())
        await settle_down()
        with pytest.raises(WorkerUnavailable, match="no more files"):
            await opening
        counts = world.dispatcher.counts()
        assert (counts["retried"], counts["broken"], counts["withdrawn"]) == (0, 0, 1)
        assert len(first.exchanges) + len(second.exchanges) == 2
        assert [each.reason for each in world.voided] == ["rejected"]

    live(test)


def test_a_refusal_of_the_request_ends_both(live: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        opening, first, second = await doubled(world)
        second.exchanges[0].answer(400, b'{"error":{"message":"no such sampler"}}')
        with pytest.raises(InvalidRequest, match="no such sampler"):
            await opening
        await settle_down()
        assert first.exchanges[0].cancelled
        assert [each.reason for each in world.voided] == ["rejected"]

    live(test)


@pytest.mark.parametrize("how", ["caller", "factory"])
def test_who_leaves_stops_both(live: Callable[[Test], None], how: str) -> None:
    async def test(world: World) -> None:
        opening, first, second = await doubled(world)
        if how == "caller":
            opening.cancel()
        else:
            await world.driver.close()
        await settle_down()
        assert opening.cancelled() or opening.exception() is not None
        assert first.exchanges[0].cancelled
        assert second.exchanges[0].cancelled
        assert world.posted == []
        assert len(world.voided) == 1

    live(test)


def test_both_workers_that_go_down_queue_it_again(live: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        opening, _, _ = await doubled(world)
        world.down(0)
        world.down(1)
        await settle_down()
        assert not opening.done()
        client = world.up(1)
        await settle_down()
        client.waiting()[0].answer()
        await settle_down()
        await served(world, opening, client)

    live(test)


def test_a_mistake_of_ours_in_one_try_leaves_the_other(live: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        opening, first, second = await doubled(world)
        first.exchanges[0].fail(ZeroDivisionError())
        await settle_down()
        await served(world, opening, second)

    live(test)


def test_what_is_passed_on_to_a_provider_is_asked_once(live: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        first, second = world.up(0), world.up(1)
        opening = world.open(passing=Passing(method="GET", target="/v1/x", headers=()))
        await settle_down()
        world.tick(5 * AFTER_NS)
        await settle_down()
        assert second.exchanges == []
        first.waiting()[0].answer()
        await (await opening).settle(outcome())

    live(test)


def test_a_second_try_that_crosses_with_a_failure_is_the_only_one(
    live: Callable[[Test], None],
) -> None:
    """As where the dispatcher is in another process, and has not heard of the failure yet."""

    async def test(world: World) -> None:
        opening, first, second = await doubled(world)
        (flight,) = world.driver._flights.values()
        rival = flight.rival
        assert rival is not None
        rival.sending.cancel()
        flight.attempt, flight.rival = 0, None
        command = hedge_of(flight.order.request, world.seats[1])
        await settle_down()
        world.driver._carry_out(command)
        await settle_down()
        assert (flight.attempt, flight.rival) == (2, None)
        failed = Failed(request=flight.order.request, worker=world.seats[0], started=False)
        world.driver.tell(failed)
        first.exchanges[0].fail()
        second.waiting()[-1].answer()
        await settle_down()
        world.driver._carry_out(command)  # late: it has begun
        assert len(second.exchanges) == 2
        await served(world, opening, second)

    live(test)


def test_a_worker_that_breaks_off_later_is_not_gone_on_with(
    live: Callable[[Test], None],
) -> None:
    async def test(world: World) -> None:
        opening, first, second = await doubled(world)
        stream = second.exchanges[0].answer()
        delivery = await opening
        reading = Reading(delivery)
        stream.feed(b"half")
        stream.break_off()
        with pytest.raises(WorkerFailed):
            await whole(reading)
        await delivery.settle(outcome(ending="failed"))
        assert first.exchanges[0].cancelled
        assert world.dispatcher.counts()["broken"] == 1

    live(test)
