"""Pools that grow: workers are started and stopped as the dispatcher wants."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from tests.dispatch.dispatch_world import configured
from tests.live.driver_world import CONFIG, POOL, World, outcome, settle_down
from tokenworks.catalogue.factory_config import PoolConfig
from tokenworks.core.ids import PoolID, WorkerID
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.commands import Scale
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Ticked, WorkerUp
from tokenworks.live.growth import Growth, scaling_of

Run = Callable[[Coroutine[Any, Any, Any]], Any]
P = PoolID("p")


class FakeWorker:
    """Notes what is done to it; stopping takes until it is let go."""

    last_failure = ""

    def __init__(self, name: str, log: list[str], go: asyncio.Event) -> None:
        self._name, self._log, self._go = name, log, go

    def start(self) -> None:
        self._log.append(f"start {self._name}")

    async def stop(self) -> None:
        await self._go.wait()
        self._log.append(f"stop {self._name}")


def wants(workers: int, stop: str | None = None, pool: PoolID = P) -> Scale:
    return Scale(
        pool=pool,
        workers=workers,
        up=1,
        reason="queue_wait" if stop is None else "idle",
        worker=None if stop is None else WorkerID(stop),
        pressure_ppm=0,
    )


def test_workers_start_and_stop_as_wanted(run: Run) -> None:
    async def main() -> None:
        log: list[str] = []
        go = asyncio.Event()
        growth = Growth()
        for number in range(4):
            name = f"p-{number}"
            make = lambda name=name: FakeWorker(name, log, go)  # noqa: E731
            growth.seat(P, WorkerID(name), make, first=number < 2)
        growth.start()
        assert log == ["start p-0", "start p-1"]
        up = {WorkerID("p-0")}
        growth.scale(wants(3), up.__contains__)
        growth.scale(wants(3), up.__contains__)
        growth.scale(wants(9, pool=PoolID("attached")), up.__contains__)
        assert log[2:] == ["start p-2"]
        growth.scale(wants(2, stop="p-2"), up.__contains__)
        growth.scale(wants(2, stop="p-2"), up.__contains__)
        growth.scale(wants(3), up.__contains__)  # p-2 has not ended yet
        assert log[3:] == ["start p-3"]
        go.set()
        await settle_down()
        assert log[4:] == ["stop p-2"]
        growth.scale(wants(4), up.__contains__)
        assert log[5:] == ["start p-2"]
        await growth.stop()
        assert sorted(log[6:]) == ["stop p-0", "stop p-1", "stop p-2", "stop p-3"]

    run(main())


def test_a_pool_grows_while_one_of_its_workers_ends_what_it_has(run: Run) -> None:
    async def main() -> None:
        log: list[str] = []
        go = asyncio.Event()
        go.set()
        growth = Growth()
        for number in range(4):
            name = f"p-{number}"
            make = lambda name=name: FakeWorker(name, log, go)  # noqa: E731
            growth.seat(P, WorkerID(name), make, first=number < 2)
        growth.start()
        up = {WorkerID("p-0"), WorkerID("p-1")}
        growth.scale(wants(2), up.__contains__)  # one is up, as p-1 is sent nothing any more
        assert log[2:] == ["start p-2"]
        growth.scale(wants(2), up.__contains__)  # p-2 is starting
        assert log[3:] == []
        up.add(WorkerID("p-2"))
        growth.scale(wants(1, stop="p-1"), up.__contains__)
        await settle_down()
        assert log[3:] == ["stop p-1"]
        await growth.stop()

    run(main())


def test_attached_servers_are_never_given_back() -> None:
    urls = tuple(f"http://127.0.0.1:{port}" for port in range(1, 5))
    config = PoolConfig(engine="attached", model="m", urls=urls, workers_max=8)
    (scale,) = scaling_of({POOL: config})
    assert (scale.workers_min, scale.workers_max) == (4, 8)
    dispatcher = Dispatcher()
    dispatcher.handle(0, msgspec.structs.replace(configured(), scaling=(scale,)))
    for number in range(4):
        name = WorkerID(f"p-{number}")
        up = WorkerUp(worker=name, pool=POOL, model=scale.model, slots=2, curve=((1, 9),))
        dispatcher.handle(0, up)
    for second in range(200):
        assert not any(
            isinstance(each, Scale) for each in dispatcher.handle(second * NS_PER_S, Ticked())
        )


def test_the_driver_passes_on_what_pools_want(run: Run, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        config = msgspec.structs.replace(
            CONFIG, engine="embedded", urls=(), workers=1, workers_max=2, slots=1
        )
        (scale,) = scaling_of({POOL: config, PoolID("other"): CONFIG})
        assert (scale.pool, scale.workers_min, scale.workers_max) == (POOL, 1, 2)
        world = World(tmp_path, config=config)
        asked: list[Scale] = []
        world.driver._on_scale = asked.append
        client = world.up()
        answer, _ = await world.answering(client)
        late = []
        for _ in range(8):
            late.append(world.open())
            await settle_down(2)
            world.tick(NS_PER_S)
        assert [(each.workers, each.worker) for each in asked] == [(2, None)]
        await asyncio.gather(*late, return_exceptions=True)
        assert not world.driver.is_up(world.seats[1])
        world.up(1)
        assert world.driver.is_up(world.seats[1])
        await answer.settle(outcome())
        for _ in range(90):
            world.tick(NS_PER_S)
            await settle_down(2)
        assert asked[-1].worker == world.seats[1]
        await world.check()

    run(main())
