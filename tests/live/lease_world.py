"""Processes that share limits, where everything may happen between any two steps of a round.

A history is drawn from a seed: what is reserved, settled, given up, retracted, stored, taken up and
tended, limits that are set and lifted, calls of the store that fail, and processes that die. Steps
of others also come between the calls that one process makes of its store. In the end everybody uses
what it can get, and that must be all that the limits allow, and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

from tests.ledger.ledger_samples import BOOK, NOW, WORK, key_record, limit, order, outcome
from tokenworks.core.errors import LedgerUnavailable
from tokenworks.core.ids import LimitID
from tokenworks.ledger.entries import Entry, Posted, Reserved, Voided
from tokenworks.ledger.quota_records import Limit, Refused
from tokenworks.ledger.store_port import join
from tokenworks.live.quota_leases import DEAD_AFTER_NS, QuotaLeases
from tokenworks.live.store import SQLStore, sqlite_store

TTL_NS: Final = 10**15
CALLS: Final = ("_look", "cover", "give_back")
"""Those of a round that may fail, by what is given to a thread."""
SIZES: Final = (1, 30, 120, 400)
AMOUNTS: Final = (0, 100, 500, 1_000, 3_000)
LENGTHS: Final = (0, 1, 50, 100, 150)
"""Per cent of what was held; an answer may be longer."""
NESTED_MAX: Final = 2
FOLDER: Final = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


class Clock:
    ns = 0

    def now_ns(self) -> int:
        return self.ns

    def unix_ns(self) -> int:
        return NOW + self.ns


def limit_named(name: str, amount: int) -> Limit:
    """The limit of the tenant for life, or that of its key for a month."""
    node, period = ("tenant:tenant", "lifetime") if name == "tenant" else ("key:key", "month")
    return limit(name, node, period=period, amount=amount)


class Process:
    """One process, and the entries that it has made and not stored."""

    def __init__(self, store: SQLStore, clock: Clock) -> None:
        self.store = store
        self.ledger = join(store, clock.unix_ns())
        self.leases = QuotaLeases(self.ledger, store, clock)
        self.unstored: deque[Entry] = deque()
        self.busy = False


class World:
    """One history. Give its ``call`` to the leases in place of ``asyncio.to_thread``."""

    failed: ClassVar[set[str]] = set()
    """The calls that have failed in all histories."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(dir=FOLDER, prefix="tokenworks-"))
        self.clock, self.stores = Clock(), list[SQLStore]()
        self.keeper = self.open("keeper")
        self.keeper.put_key(key_record())
        self.keeper.put_price_book(BOOK.price_id, BOOK.text, 1)
        self.count = self.used = self.nested = 0
        self.failing: str | None = None
        self.names = ("tenant", "key") if self.random.random() < 0.4 else ("tenant",)
        self.amounts: dict[str, int] = {}
        for name in self.names:
            self.put(name, 1_000)
        self.processes = list[Process]()
        for _ in range(self.random.choice((2, 2, 3))):
            self.begin()

    def open(self, name: str) -> SQLStore:
        store = sqlite_store(self.folder / "ledger.sqlite", name)
        self.stores.append(store)
        return store

    def begin(self) -> None:
        self.count += 1
        self.processes.append(Process(self.open(f"p{self.count}"), self.clock))

    def close(self) -> None:
        for store in self.stores:
            with contextlib.suppress(LedgerUnavailable):
                store.close()
        shutil.rmtree(self.folder)

    # Limits.

    def put(self, name: str, amount: int) -> None:
        self.amounts[name] = amount
        self.keeper.put_limit(limit_named(name, amount))

    def lift(self, name: str) -> None:
        self.amounts.pop(name, None)
        self.keeper.remove_limit(LimitID(name))

    def take_up(self, at: Process) -> None:
        at.ledger.set_limits(at.store.limit_states(self.clock.unix_ns()))

    # Requests.

    async def reserve(self, at: Process, tokens: int) -> Reserved | Refused:
        self.count += 1
        asked = order(f"r{self.count}", input_max=0, output_max=tokens)
        at.busy = True
        result = await at.leases.reserve(asked, BOOK, TTL_NS)
        at.busy = False
        if isinstance(result, Reserved):
            at.unstored.append(result)
        return result

    def post(self, at: Process, hold: Reserved, tokens: int, *, fails: bool = False) -> None:
        entry = at.ledger.post(
            self.clock.unix_ns(),
            hold.request,
            hold.attempt,
            outcome=outcome(0, 0, tokens, ending="failed" if fails else "done"),
            work=WORK,
        )
        assert isinstance(entry, Posted)
        at.unstored.append(entry)

    def void(self, at: Process, hold: Reserved) -> Voided:
        entry = at.ledger.void(self.clock.unix_ns(), hold.request, hold.attempt, reason="withdrawn")
        assert isinstance(entry, Voided)
        return entry

    def store(self, at: Process, entries: int) -> None:
        for _ in range(min(entries, len(at.unstored))):
            entry = at.unstored.popleft()
            at.store.append_now([entry])
            if isinstance(entry, Posted) and entry.ending != "failed":
                self.used += entry.counted_tokens

    def retract(self, at: Process) -> None:
        """An answer that cannot be stored is given up instead."""
        for place, entry in enumerate(at.unstored):
            if isinstance(entry, Posted):
                at.ledger.retract(entry)
                (hold,) = (each for each in at.ledger.open_holds() if each.request == entry.request)
                at.unstored[place] = self.void(at, hold)
                return

    # Rounds.

    async def tend(self, at: Process, failing: str | None = None) -> None:
        was, self.failing = self.failing, failing
        at.busy = True
        with contextlib.suppress(LedgerUnavailable):
            at.unstored += await at.leases.tend()
        at.busy, self.failing = False, was

    async def call(self, function: Callable[..., Any], *given: Any) -> Any:
        """What a process asks of its store; others go on before it and after it."""
        await self.others()
        if function.__name__ == self.failing:
            self.failed.add(function.__name__)
            raise LedgerUnavailable("a blip of the database")
        result = function(*given)
        await self.others()
        return result

    async def others(self) -> None:
        if self.nested == NESTED_MAX or self.random.random() > 0.25:
            return
        self.nested += 1
        was, self.failing = self.failing, None
        for _ in range(self.random.choice((1, 1, 2, 3))):
            await self.step()
        self.nested, self.failing = self.nested - 1, was

    async def kill(self, at: Process) -> None:
        """It says nothing more; what it has not stored never was."""
        if len(self.processes) == 1 or self.nested or at.busy:
            return
        self.processes.remove(at)
        for _ in range(3):
            self.clock.ns += DEAD_AFTER_NS // 2
            for each in self.processes:
                await self.tend(each)
        self.begin()

    async def step(self) -> None:
        draw = self.random
        at, name = draw.choice(self.processes), draw.choice(self.names)
        do = draw.choices(
            ("reserve", "settle", "store", "take up", "tend", "set", "lift", "retract", "kill"),
            (4, 5, 3, 4, 6, 2, 2, 1, 1),
        )[0]
        holds = at.ledger.open_holds()
        if do == "settle" and holds:
            hold = draw.choice(holds)
            if draw.random() < 0.2:
                at.unstored.append(self.void(at, hold))
            else:
                tokens = hold.output_tokens_max * draw.choice(LENGTHS) // 100
                self.post(at, hold, tokens, fails=draw.random() < 0.1)
        elif do == "store":
            self.store(at, draw.choice((1, 2, 5)))
        elif do == "take up":
            self.take_up(at)
        elif do == "set":
            self.put(name, draw.choice(AMOUNTS))
        elif do == "lift":
            self.lift(name)
        elif do == "retract":
            self.retract(at)
        elif do == "kill":
            await self.kill(at)
        elif do == "reserve" and not at.busy:
            await self.reserve(at, draw.choice(SIZES))
        elif do == "tend" and not at.busy:
            await self.tend(at, draw.choice((None, None, *CALLS)))

    async def play(self, steps: int) -> tuple[int, int]:
        """Play a history, and then use all that can be got.

        Returns:
            What is used in the end, and what should be.
        """
        for _ in range(steps):
            await self.step()
        self.nested = NESTED_MAX
        for name in self.names:
            if name not in self.amounts or self.random.random() < 0.4:
                self.put(name, self.used + self.random.choice((0, 300, 1_000)))
        for each in self.processes:
            self.store(each, len(each.unstored))
        await self.rounds(take_up=True)
        for each in self.processes:
            for hold in each.ledger.open_holds():
                self.post(each, hold, self.random.choice((0, hold.output_tokens_max)))
            self.store(each, len(each.unstored))
        should = max(self.used, min(self.amounts.values()))
        await self.rounds()
        for each in 2 * self.processes:
            await self.use_up(each)
            await self.rounds()
        for each in self.processes:
            each.ledger.check()
        return self.used, should

    async def rounds(self, *, take_up: bool = False) -> None:
        for _ in range(3):
            for each in self.processes:
                if take_up:
                    self.take_up(each)
                await self.tend(each)

    async def use_up(self, at: Process) -> None:
        held = []
        for size in (400, 100, 20, 5, 1):
            while isinstance(hold := await self.reserve(at, size), Reserved):
                held.append(hold)
        for hold in held:
            self.post(at, hold, hold.output_tokens_max)
        self.store(at, len(at.unstored))


def play(seed: int, steps: int, take: Callable[[Callable[..., Any]], None]) -> tuple[int, int]:
    """Play one history; see ``World.play``.

    Args:
        seed: which.
        steps: how long it is.
        take: puts what it is given in the place of ``asyncio.to_thread``.
    """
    world = World(seed)
    take(world.call)
    try:
        return asyncio.run(world.play(steps))
    finally:
        world.close()
