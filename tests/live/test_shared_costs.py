"""What servers cost that several processes use is written down once, whoever lives and dies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.live.driver_world import CONFIG, POOL, FakeClock
from tokenworks.catalogue.factory_config import PoolConfig
from tokenworks.core.errors import LedgerUnavailable
from tokenworks.core.ids import PoolID
from tokenworks.core.units import NS_PER_S
from tokenworks.ledger.entries import CostAccrued
from tokenworks.ledger.store_port import join
from tokenworks.live.bookkeeper import Bookkeeper
from tokenworks.live.quota_leases import DEAD_AFTER_NS, QuotaLeases
from tokenworks.live.store import SQLStore, postgres_store, sqlite_store

Run = Callable[[Coroutine[Any, Any, Any]], Any]
OWN = PoolID("own")
EMBEDDED = PoolConfig(engine="embedded", model="m", capital_udollars_per_hour=36_000)


class Process:
    """A process that shares a ledger: its books, and no requests."""

    def __init__(self, store: SQLStore, clock: FakeClock, pools: dict[PoolID, PoolConfig]) -> None:
        ledger = join(store, clock.unix_ns())
        self.store = store
        self.books = Bookkeeper(
            clock=clock,
            ledger=ledger,
            store=store,
            pools=pools,
            leases=QuotaLeases(ledger, store, clock),
        )

    async def round(self) -> None:
        self.books.round()
        await self.books.tend_leases()
        await self.books.claim_costs()
        await self.books.all_told()

    async def close(self) -> None:
        await self.books.close()
        self.store.close()


class Shared:
    def __init__(self, open_store: Callable[[str], SQLStore]) -> None:
        self.clock, self.open_store = FakeClock(), open_store

    def process(self, name: str, config: PoolConfig = CONFIG) -> Process:
        return Process(self.open_store(name), self.clock, {POOL: config, OWN: EMBEDDED})

    async def live(self, duration_s: int, *processes: Process) -> None:
        for _ in range(duration_s):
            self.clock.advance(NS_PER_S)
            for each in processes:
                await each.round()

    def costs(self, pool: PoolID = POOL) -> list[CostAccrued]:
        with closing(self.open_store("reader")) as store:
            found = [each for each in store.load_entries() if isinstance(each, CostAccrued)]
        return sorted(
            (each for each in found if each.pool == pool), key=lambda each: each.from_unix_ns
        )

    def check(self, began_unix_ns: int, until_unix_ns: int) -> None:
        """Look that the shared pool has cost what the time costs, without gap or overlap."""
        rows = self.costs()
        assert rows[0].from_unix_ns == began_unix_ns
        assert rows[-1].until_unix_ns == until_unix_ns
        for one, next_one in itertools.pairwise(rows):
            assert one.until_unix_ns == next_one.from_unix_ns
        seconds = (until_unix_ns - began_unix_ns) // NS_PER_S
        assert sum(each.capital_nanodollars for each in rows) == 10_000 * seconds


@pytest.fixture(params=["sqlite", "postgres"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shared]:
    with ExitStack() as stack:
        if request.param == "sqlite":
            path = tmp_path / "ledger.sqlite"
            yield Shared(lambda owner: stack.enter_context(closing(sqlite_store(path, owner))))
        else:
            url = request.getfixturevalue("postgres").create()
            yield Shared(lambda owner: stack.enter_context(closing(postgres_store(url, owner))))


def test_one_of_several_writes_it_down_and_the_next_goes_on_when_it_leaves(
    run: Run, shared: Shared
) -> None:
    async def main() -> None:
        began = shared.clock.unix_ns()
        one, other = shared.process("one"), shared.process("other")
        await shared.live(35, one, other)
        assert len(shared.costs()) == 3
        await one.close()
        await shared.live(35, other)
        await other.close()
        shared.check(began, shared.clock.unix_ns())
        # What is in a process of its own costs in each.
        own = sum(each.capital_nanodollars for each in shared.costs(OWN))
        assert own == 10_000 * (35 + 70)

    run(main())


def test_the_heir_of_a_dead_process_goes_on_where_it_was(run: Run, shared: Shared) -> None:
    async def main() -> None:
        began = shared.clock.unix_ns()
        dead, heir = shared.process("dead"), shared.process("heir")
        await shared.live(25, dead, heir)
        assert len(shared.costs()) == 2
        await shared.live(DEAD_AFTER_NS // NS_PER_S + 20, heir)
        await heir.close()
        dead.books.round()
        await dead.books.all_told()
        assert "Another process has taken over from 'dead'" in str(dead.books.trouble)
        shared.check(began, shared.clock.unix_ns())

    run(main())


def test_a_time_when_nobody_ran_costs_nothing(run: Run, shared: Shared) -> None:
    async def main() -> None:
        one = shared.process("one")
        await shared.live(20, one)
        await one.close()
        shared.clock.advance(3_600 * NS_PER_S)
        other = shared.process("other")
        await shared.live(20, other)
        await other.close()
        lengths = [each.until_unix_ns - each.from_unix_ns for each in shared.costs()]
        assert sum(lengths) == 40 * NS_PER_S

    run(main())


def test_other_servers_of_the_same_name_cost_too(run: Run, shared: Shared) -> None:
    async def main() -> None:
        elsewhere = msgspec.structs.replace(CONFIG, urls=("http://127.0.0.1:3",))
        processes = (shared.process("one"), shared.process("other", elsewhere))
        await shared.live(20, *processes)
        for each in processes:
            await each.close()
        assert sum(each.capital_nanodollars for each in shared.costs()) == 2 * 20 * 10_000

    run(main())


def test_a_store_that_cannot_be_asked_is_asked_again(
    run: Run, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise LedgerUnavailable("The disk is gone.")

    async def main() -> None:
        began = shared.clock.unix_ns()
        one = shared.process("one")
        with monkeypatch.context() as patch:
            patch.setattr(one.store, "claim_costs", broken)
            await one.books.claim_costs()
            assert one.books.trouble == "The disk is gone."
        await shared.live(20, one)
        await one.close()
        shared.check(began, shared.clock.unix_ns())

    run(main())
