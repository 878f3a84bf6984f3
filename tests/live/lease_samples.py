"""A ledger that several processes share, with one limit, as tests of leases need it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bars.ledger_quota import FAST, WORK, key_of, limit_of
from tokenworks.core.errors import LedgerUnavailable
from tokenworks.core.ids import KeyID, ModelName, RequestID, TenantID
from tokenworks.core.orders import KeyView, Order, Outcome, Usage
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.ledger.entries import Posted, Reserved
from tokenworks.ledger.quota_records import Refused
from tokenworks.ledger.store_port import join
from tokenworks.live import group_commit, quota_leases
from tokenworks.live.home import Home
from tokenworks.live.quota_leases import QuotaLeases
from tokenworks.live.store import SQLStore, sqlite_store

BOOK = Home(Path("/nowhere")).load_price_book()
TTL_NS = 3_600 * NS_PER_S
START_UNIX_NS = 1_790_000_000 * NS_PER_S


class Clock:
    def __init__(self) -> None:
        self.ns = 0

    def now_ns(self) -> int:
        return self.ns

    def unix_ns(self) -> int:
        return START_UNIX_NS + self.ns


class Process:
    """A process that shares the ledger at a path."""

    def __init__(self, path: Path, name: str, clock: Clock) -> None:
        self.store = sqlite_store(path, name)
        self.ledger = join(self.store, clock.unix_ns())
        self.leases = QuotaLeases(self.ledger, self.store, clock)
        self.name, self.clock, self.count = name, clock, 0

    async def reserve(self, tokens: int) -> Reserved | Refused:
        self.count += 1
        order = Order(
            request=RequestID(f"{self.name}{self.count}"),
            key=KeyView(key=KeyID("key_0"), tenant=TenantID("acme"), tier_default=Tier.HIGH),
            model=ModelName("foreman"),
            tier=Tier.HIGH,
            body=b"",
            input_tokens_max=0,
            output_tokens_max=tokens,
            prefix=(),
            arrived_ns=0,
        )
        held = await self.leases.reserve(order, BOOK, TTL_NS)
        if isinstance(held, Reserved):
            await self.store.append([held])
        return held

    async def use(self, hold: Reserved, tokens: int) -> None:
        await self.store.append([self.post(hold, tokens)])

    def post(self, hold: Reserved, tokens: int) -> Posted:
        usage = Usage(uncached_input_tokens=0, cached_input_tokens=0, output_tokens=tokens)
        outcome = Outcome(usage=usage, measured=FAST, ending="done")
        posted = self.ledger.post(self.clock.unix_ns(), hold.request, outcome=outcome, work=WORK)
        assert isinstance(posted, Posted)
        return posted


class Shared:
    """A ledger with one limit of 1,000 tokens, and processes on it."""

    def __init__(self, path: Path) -> None:
        self.path, self.clock = path, Clock()
        self.keeper = sqlite_store(path, "keeper")
        self.keeper.put_key(key_of(0))
        self.keeper.put_limit(limit_of(0, 1_000))
        self.open: list[SQLStore] = [self.keeper]

    def process(self, name: str) -> Process:
        made = Process(self.path, name, self.clock)
        self.open.append(made.store)
        return made


def sharing(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Shared]:
    """For a fixture; who lacks something asks again at once, and who stores it waits for nobody."""
    patch.setattr(quota_leases, "RETRY_NS", 0)
    patch.setattr(group_commit, "PATIENCE_S", 0.0)
    patch.setattr(group_commit, "REST_S_MAX", 0.0)
    made = Shared(folder / "ledger.sqlite")
    yield made
    for store in made.open:
        with contextlib.suppress(LedgerUnavailable):
            store.close()


def lower(shared: Shared, tokens: int, *processes: Process) -> None:
    """Set the limit, and let processes take it up as their driver does."""
    shared.keeper.put_limit(limit_of(0, tokens))
    for each in processes:
        each.ledger.set_limits(each.store.limit_states(shared.clock.unix_ns()))


async def use_up(process: Process, tokens: int = 10) -> None:
    """Ask and use until the process is refused."""
    while isinstance(held := await process.reserve(tokens), Reserved):
        await process.use(held, tokens)


async def use_up_at_once(process: Process, tokens: int = 10) -> None:
    """Ask until the process is refused, and use all of it only then."""
    held = []
    while isinstance(each := await process.reserve(tokens), Reserved):
        held.append(each)
    for each in held:
        await process.use(each, tokens)
