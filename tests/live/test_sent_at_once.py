"""The driver: requests that are sent on a kept connection at once, with no task that waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from tests.live.driver_world import MODEL, FakeClient, World, hedge_of, outcome, settle_down, until
from tests.live.fake_worker import FakeWorker, Script
from tests.live.reading import Reading
from tokenworks.core.errors import CapacityExceeded, InvalidRequest, WorkerFailed
from tokenworks.live import driver as driver_module
from tokenworks.live.flights import Flight, LiveDelivery
from tokenworks.live.network import WorkerClient, WorkerStream
from tokenworks.live.sending import Try

Live = Callable[[Callable[[World], Coroutine[Any, Any, None]]], None]


async def served(world: World, delivery: LiveDelivery) -> None:
    reading, said = Reading(delivery), b""
    while part := await reading.read():
        said += part
    assert said.endswith(b"data: [DONE]\n\n")
    await delivery.settle(outcome(8))


@asynccontextmanager
async def kept(world: World) -> AsyncIterator[tuple[FakeWorker, WorkerClient]]:
    """A worker that is up, with one connection that is kept from a request before."""
    async with FakeWorker(model=MODEL) as worker:
        client = WorkerClient(worker.host, worker.port, None)
        world.driver.worker_up(world.seats[0], client)
        await served(world, await world.driver.open(world.order()))
        assert worker.connections == len(client._idle) == 1
        yield worker, client
        client.close()


async def asked(world: World, worker: FakeWorker) -> tuple[asyncio.Task[LiveDelivery], Flight]:
    """A request that the worker has, and has said nothing of."""
    worker.gate.close()
    had = len(worker.received)
    opening = world.open()
    await worker.until(lambda: len(worker.received) > had)
    (flight,) = world.driver._flights.values()
    assert isinstance(flight.sending, Try)
    assert not world.driver._sending, "a task waits for it"
    return opening, flight


def test_a_kept_connection_takes_one_request_after_the_other(live: Live) -> None:
    async def test(world: World) -> None:
        async with kept(world) as (worker, _):
            for _ in range(3):
                opening, flight = await asked(world, worker)
                worker.gate.open()
                delivery = await opening
                assert flight.sending is None
                assert isinstance(delivery.stream, WorkerStream)
                assert not delivery.stream._request  # nobody sends it again
                await served(world, delivery)
            assert worker.connections == 1
        assert len(world.posted) == 4

    live(test)


def test_one_that_meets_a_closed_connection_is_sent_once_more(live: Live) -> None:
    async def test(world: World) -> None:
        async with kept(world) as (worker, _):
            worker.scripts = [Script(early_close=True)]
            await served(world, await world.driver.open(world.order()))
            assert (worker.connections, len(worker.received)) == (2, 3)
            worker.scripts = [Script(early_close=True), Script(early_close=True)]
            other = world.up(1)
            opening = world.open()
            await until(other.waiting)
            assert (worker.connections, len(worker.received)) == (3, 5)  # and not a third time
            other.waiting()[0].answer().end()
            await (await opening).settle(outcome(0))

    live(test)


def test_a_refusal_on_a_kept_connection_is_in_the_workers_own_words(live: Live) -> None:
    async def test(world: World) -> None:
        async with kept(world) as (worker, _):
            error = {"message": "no such tool", "type": "invalid_request_error"}
            worker.scripts = [Script(status=400, error=error)]
            with pytest.raises(InvalidRequest, match="no such tool"):
                await world.driver.open(world.order())
        assert [entry.reason for entry in world.voided] == ["rejected"]

    live(test)


def test_a_failure_on_a_kept_connection_is_tried_elsewhere(live: Live) -> None:
    async def test(world: World) -> None:
        async with kept(world) as (worker, _):
            worker.scripts = [Script(status=500)]
            other = world.up(1)
            opening = world.open()
            await until(other.waiting)
            other.waiting()[0].answer().end()
            await (await opening).settle(outcome(0))
            assert len(worker.received) == 2

    live(test)


def test_a_worker_that_goes_down_before_it_answers_gives_it_back(live: Live) -> None:
    async def test(world: World) -> None:
        async with kept(world) as (worker, client):
            opening, _ = await asked(world, worker)
            client.close("it died")
            world.driver.worker_down(world.seats[0], "it died")
            await settle_down()
            assert not world.driver._sending
            other = world.up(1)
            await settle_down()
            other.waiting()[0].answer().end()
            await (await opening).settle(outcome(0))

    live(test)


def test_who_leaves_before_the_answer_begins_stops_the_worker(live: Live) -> None:
    async def test(world: World) -> None:
        async with kept(world) as (worker, _):
            opening, _ = await asked(world, worker)
            opening.cancel()
            await worker.until(lambda: worker.aborted == 1)
            assert opening.cancelled()
        assert [entry.reason for entry in world.voided] == ["withdrawn"]

    live(test)


def test_closing_dismisses_who_is_being_sent(live: Live) -> None:
    async def test(world: World) -> None:
        async with kept(world) as (worker, _):
            opening, _ = await asked(world, worker)
            closing = asyncio.ensure_future(world.driver.close())
            await worker.until(lambda: worker.aborted == 1)
            with pytest.raises(CapacityExceeded, match="shutting down"):
                await opening
            await closing

    live(test)


def test_leaving_crosses_with_the_beginning_of_the_answer(live: Live) -> None:
    async def test(world: World) -> None:
        async with kept(world) as (worker, _):
            opening, flight = await asked(world, worker)
            assert isinstance(flight.sending, Try)
            stream = flight.sending.stream
            assert stream is not None
            opening.cancel()
            stream._on_body(b"data: {}\n\n")  # before the one who leaves is heard
            await worker.until(lambda: worker.aborted == 1)
            assert opening.cancelled()
        assert [entry.reason for entry in world.voided] == ["withdrawn"]

    live(test)


def test_leaving_as_a_refusal_is_about_to_be_read_frees_its_connection(live: Live) -> None:
    async def test(world: World) -> None:
        async with kept(world) as (worker, client):
            opening, flight = await asked(world, worker)
            assert isinstance(flight.sending, Try)
            stream = flight.sending.stream
            assert stream is not None
            stream._on_status(500)  # a task is made that reads its words
            assert isinstance(flight.sending, asyncio.Task)
            opening.cancel()
            await worker.until(lambda: worker.aborted == 1)
            assert not client._open

    live(test)


def test_what_breaks_as_an_answer_begins_counts_as_a_failure(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        async with kept(world) as (worker, _):
            opening, _ = await asked(world, worker)
            begin = driver_module.Driver._begin

            def breaks(*_: object) -> None:
                monkeypatch.setattr(driver_module.Driver, "_begin", begin)
                raise RuntimeError("a mistake of ours")

            monkeypatch.setattr(driver_module.Driver, "_begin", breaks)
            worker.gate.open()
            await served(world, await opening)
            assert len(worker.received) == 3
            assert worker.connections == 2

    live(test)


def test_what_breaks_as_it_is_sent_counts_as_a_failure(live: Live) -> None:
    async def test(world: World) -> None:
        async with kept(world) as (worker, _):
            order = msgspec.structs.replace(world.order(), worker_path=7)
            with pytest.raises(WorkerFailed):
                await world.driver.open(order)
            assert len(worker.received) == 1

    live(test)


@pytest.mark.parametrize("status", [200, 500])
def test_a_second_worker_is_asked_on_a_kept_connection(live: Live, status: int) -> None:
    async def test(world: World) -> None:
        async with kept(world) as (worker, _):
            client = world.driver._seats[world.seats[0]].client
            world.driver.worker_down(world.seats[0], "for a moment")
            first: FakeClient = world.up(1)
            opening = world.open()
            await until(first.waiting)
            (request,) = world.driver._flights
            flight = world.driver._flights[request]
            world.driver._seats[world.seats[0]].client = client
            worker.gate.close()
            worker.scripts = [Script(status=status)]
            world.driver._carry_out(hedge_of(request, world.seats[0]))
            assert flight.rival is not None
            assert isinstance(flight.rival.sending, Try)
            if status == 500:
                await until(lambda: flight.rival is None or world.driver._sending)
                first.waiting()[0].answer().end()
            else:
                worker.gate.permit(1)
            delivery = await opening
            await settle_down()
            if flight.sending is not None:
                flight.sending.cancel()  # it is over: that stops no answer
            if status == 200:
                assert isinstance(delivery.stream, WorkerStream)
                assert delivery.stream._connection is not None
                worker.gate.open()
            assert first.exchanges[0].cancelled == (status == 200)
            await delivery.settle(outcome(0))
            assert flight.sending is None  # each would know the other

    live(test)
