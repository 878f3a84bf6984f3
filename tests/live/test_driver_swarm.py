"""Many orders, every fault at once, by seed; then all heals, and nothing may be left over."""

from __future__ import annotations

import asyncio
import pathlib
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec.structs import replace

from tests.live.driver_world import CONFIG, World, outcome, settle_down
from tests.live.reading import Reading
from tokenworks.core.errors import LedgerUnavailable, TokenworksError, WorkerFailed
from tokenworks.core.needs import Hints
from tokenworks.core.slo import Measured, Tier
from tokenworks.core.units import NS_PER_MS
from tokenworks.dispatch.events import PolicySettings
from tokenworks.ledger.entries import Posted, Reserved, Voided
from tokenworks.live import driver as driver_module
from tokenworks.live.flights import LiveDelivery
from tokenworks.perf.timing import FS_PER_NS, Timing

Run = Callable[[Coroutine[Any, Any, Any]], Any]

STEPS = 400
FAULTS = ("cancel", "refuse", "fail", "break", "worker", "disk", "time")


class Swarm:
    """One seeded run; each run leaves out some of the faults."""

    def __init__(self, world: World, seed: int, *, gifted: bool = False) -> None:
        self.world, self.gifted = world, gifted
        self.dice = random.Random(seed)
        self.faults = [fault for fault in FAULTS if self.dice.random() < 0.7]
        self.openings: list[asyncio.Task[LiveDelivery]] = []
        self.serving: list[asyncio.Task[None]] = []
        self.endings: Counter[str] = Counter()

    async def step(self) -> None:
        world, dice = self.world, self.dice
        fault = dice.choice(FAULTS) if dice.random() < 0.4 else ""
        if self.gifted and dice.random() < 0.2:
            world.tick(130 * NS_PER_MS)
            streams = [each for client in world.clients.values() for each in client.streams]
            if streams and dice.random() < 0.5:
                dice.choice(streams).end()
        exchanges = [each for client in world.clients.values() for each in client.waiting()]
        match fault if fault in self.faults else "":
            case "cancel" if self.openings:
                dice.choice(self.openings).cancel()
            case "refuse" if exchanges:
                dice.choice(exchanges).answer(dice.choice([400, 413, 422]))
            case "fail" if exchanges:
                exchange = dice.choice(exchanges)
                if dice.random() < 0.5:
                    exchange.fail()
                else:
                    exchange.answer(dice.choice([500, 429, 404]), b"no")
            case "break" if world.clients:
                for stream in dice.choice(list(world.clients.values())).streams[-2:]:
                    stream.break_off()
            case "worker":
                n = dice.randrange(2)
                if world.seats[n] in world.clients:
                    world.down(n)
                    if dice.random() < 0.5:
                        world.up(n)
                else:
                    world.up(n)
            case "disk":
                world.store.failing = dice.random() < 0.5
                if dice.random() < 0.3:
                    world.store.slow = True
                else:
                    world.store.release()
            case "time":
                world.tick(dice.choice([1, 300, 700]) * NS_PER_MS)
                world.driver.housekeep_once()
            case _:
                self.arrive_or_answer(exchanges)
        for _ in range(dice.choice([0, 0, 1, 2, 9])):
            await asyncio.sleep(0)

    def arrive_or_answer(self, exchanges: list[Any]) -> None:
        if exchanges and self.dice.random() < 0.5:
            stream = self.dice.choice(exchanges).answer()
            for _ in range(self.dice.randrange(3)):
                stream.feed(b"data: x\n\n")
            if self.dice.random() < (0.2 if self.gifted else 0.8):
                stream.end()
        else:
            key = self.dice.choice(["key", "key", "poor"])
            more: dict[str, Any] = {}
            if self.gifted:
                session = self.dice.randrange(4)
                tool_ns = self.dice.choice([None, 10**9, 10**15])
                hints = Hints(tool_ns=tool_ns, priority=self.dice.randrange(10))
                prefix = tuple(range(10 * session, 10 * session + self.dice.randrange(1, 9)))
                more = {"session": f"s{session}", "hints": hints, "prefix": prefix}
            tiers = [Tier.FREE, Tier.ULTRA] if self.gifted else list(Tier)
            task = self.world.open(tier=self.dice.choice(tiers), key=key, **more)
            self.openings.append(task)
            self.serving.append(asyncio.create_task(self.serve(task)))

    async def serve(self, opening: asyncio.Task[LiveDelivery]) -> None:
        """What the gateway does."""
        await asyncio.wait({opening})
        if opening.cancelled():
            self.endings["cancelled"] += 1
            return
        error = opening.exception()
        if error is not None:
            assert isinstance(error, TokenworksError), error
            self.endings[error.code] += 1
            return
        delivery = opening.result()
        made = 0
        try:
            reading = Reading(delivery)
            while await reading.read():
                made += 1
                if self.dice.random() < 0.1:
                    delivery.abort()
            ending = "done"
        except WorkerFailed:
            ending = self.dice.choice(["failed", "disconnected"])
            delivery.abort()
        measured = Measured(ttft_ns=self.dice.choice([1, 10**10]), decode_ns=0, output_tokens=made)
        try:
            await delivery.settle(outcome(made, ending=ending, measured=measured))
            self.endings[ending] += 1
        except LedgerUnavailable:
            self.endings["unbilled"] += 1

    async def heal(self) -> None:
        """No more faults: everything must end."""
        world = self.world
        world.store.failing = False
        for n in range(2):
            if world.seats[n] not in world.clients:
                world.up(n)
        for client in world.clients.values():
            client.auto = lambda exchange: exchange.answer().end()
        for _ in range(200):
            world.store.release()
            for client in world.clients.values():
                for exchange in client.waiting():
                    exchange.answer()
                for stream in client.streams:
                    stream.end()
            world.driver.housekeep_once()
            await settle_down()
            if all(task.done() for task in self.serving) and not world.driver._bookkeeper._unstored:
                break
            world.tick(100 * NS_PER_MS)
        assert all(task.done() for task in self.serving)
        await asyncio.gather(*self.serving)


PLAIN: dict[str, Any] = {}
GIFTED: dict[str, Any] = {
    "config": replace(CONFIG, slots=1),
    "policy": PolicySettings(name="economic"),
    "timing": Timing(
        launch_fs=1_000_000 * FS_PER_NS,
        sequence_fs=10_000 * FS_PER_NS,
        context_token_fs=0,
        prefill_token_fs=100_000 * FS_PER_NS,
        prefill_context_fs=0,
    ),
    "kv_blocks": 100,
    "kv_bytes_per_token": 1,
    "preempts": True,
    "host_bytes_per_s": 10**9,
}
"""Workers that stop answers which others go on with, and move KV blocks down and up."""


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("parts", [PLAIN, GIFTED], ids=["plain", "gifted"])
def test_whatever_happens_everything_ends_and_adds_up(
    run: Run,
    tmp_path: pathlib.Path,
    parts: dict[str, Any],
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver_module, "BREATHER_NS", 0)

    async def main() -> None:
        records = [World.key(), World.key("poor", b"p")]
        world = World(tmp_path, records=records, limits=[World.limit(300, "poor")], **parts)
        world.up(0)
        swarm = Swarm(world, seed, gifted=parts is GIFTED)
        for _ in range(STEPS):
            await swarm.step()
        await swarm.heal()
        await world.check()
        reserved, posted = world.entries(Reserved), world.entries(Posted)
        assert len(reserved) == len(posted) + len(world.entries(Voided))
        settled = swarm.endings
        assert len(posted) == settled["done"] + settled["failed"] + settled["disconnected"]
        assert sum(settled.values()) == len(swarm.openings)
        # A late report of use can go above a hold, never what is still allowed to be held.
        assert world.used_tokens("poor") <= 300

    run(main())
