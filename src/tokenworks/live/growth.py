"""Pools that grow: their workers are started when requests wait, and stopped when they are idle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from tokenworks.catalogue.factory_config import PoolConfig
from tokenworks.core.ids import ModelName, PoolID, WorkerID
from tokenworks.core.units import NS_PER_S, PPM
from tokenworks.dispatch.commands import Scale
from tokenworks.dispatch.events import PoolScale
from tokenworks.live.workers import Worker

EMBEDDED_START_NS: Final = 10 * NS_PER_S
"""How long a worker of a pool that is scaled is taken to need to come up."""


def scaling_of(pools: Mapping[PoolID, PoolConfig]) -> tuple[PoolScale, ...]:
    """The pools whose number of workers may change.

    Servers of an attached pool stay: nobody here could start one again that was given back.
    """
    return tuple(
        PoolScale(
            pool=name,
            model=ModelName(config.model),
            workers_min=max(config.workers, len(config.urls)),
            workers_max=config.workers_max,
            start_ns=EMBEDDED_START_NS,
        )
        for name, config in pools.items()
        if config.workers_max is not None
    )


def in_words(command: Scale) -> str:
    """What a pool wants, for its operator."""
    if command.worker is not None:
        return f"pool {command.pool} gives {command.worker} back: it is not needed"
    return (
        f"pool {command.pool} wants {command.workers} workers and has {command.up}: requests "
        f"waited up to {command.pressure_ppm * 100 // PPM} % of their TTFT promise"
    )


class Growth:
    """The workers of pools that grow. All calls come from one event loop."""

    def __init__(self) -> None:
        self._makers: dict[PoolID, dict[WorkerID, Callable[[], Worker]]] = {}
        self._first: list[WorkerID] = []
        self._running: dict[WorkerID, Worker] = {}
        self._stopping: dict[WorkerID, asyncio.Task[None]] = {}

    def seat(
        self, pool: PoolID, worker: WorkerID, make: Callable[[], Worker], *, first: bool
    ) -> None:
        """Let a pool have a worker.

        Args:
            pool: whose.
            worker: its name.
            make: makes it, anew each time; each is started once.
            first: it starts with the factory.
        """
        self._makers.setdefault(pool, {})[worker] = make
        if first:
            self._first.append(worker)

    def start(self) -> None:
        """Start those that the pools have at least."""
        for makers in self._makers.values():
            for worker, make in makers.items():
                if worker in self._first:
                    self._start(worker, make)

    def scale(self, command: Scale, is_up: Callable[[WorkerID], bool]) -> None:
        """Do what a pool wants, as far as its workers are here.

        One that is still stopping is not started again before it has ended. One that is up and
        that the command does not count ends what it has, and counts for nothing here, either.

        Args:
            command: what it wants.
            is_up: whether the dispatcher was told that a worker is up.
        """
        if command.worker is not None:
            running = self._running.pop(command.worker, None)
            if running is not None:
                task = asyncio.ensure_future(self._end(command.worker, running))
                self._stopping[command.worker] = task
            return
        makers = self._makers.get(command.pool, {})
        starting = sum(worker in self._running and not is_up(worker) for worker in makers)
        missing = command.workers - command.up - starting
        for worker, make in makers.items():
            if missing > 0 and worker not in self._running and worker not in self._stopping:
                self._start(worker, make)
                missing -= 1

    async def stop(self) -> None:
        """End all; returns when nothing is left of any."""
        running, self._running = list(self._running.values()), {}
        await asyncio.gather(*(worker.stop() for worker in running), *self._stopping.values())

    def _start(self, worker: WorkerID, make: Callable[[], Worker]) -> None:
        self._running[worker] = made = make()
        made.start()

    async def _end(self, name: WorkerID, worker: Worker) -> None:
        await worker.stop()
        del self._stopping[name]
