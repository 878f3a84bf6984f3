"""What a factory says that it has, while it works."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from tests.live.driver_world import POOL, SteeredStore, World, outcome, settle_down
from tokenworks.core.errors import QuotaExceeded
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.live.bookkeeper import ACCRUE_NS

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_workers_queues_promises_and_counts(tmp_path: pathlib.Path, run: Run) -> None:
    async def main() -> None:
        world = World(tmp_path)
        before = world.driver.gauges()
        assert [each.state for each in before.workers] == ["down", "down"]
        assert [each.slots for each in before.workers] == [0, 0]
        client = world.up()
        world.clock.advance(3 * NS_PER_S)
        delivery, stream = await world.answering(client)
        now = world.driver.gauges()
        first, second = now.workers
        assert (first.worker, first.state, first.running, first.slots) == ("w0", "up", 1, 2)
        assert (second.state, second.running) == ("down", 0)
        assert (first.pool, first.model) == (POOL, "m")
        assert now.dispatched["sent"] == 1
        assert now.promises[Tier.HIGH].ttft_ns > 0
        assert not any(now.queued.values())
        stream.end()
        receipt = await delivery.settle(outcome())
        assert receipt.cost_nanodollars >= 0
        assert receipt.waited_ns == 0
        await world.check()

    run(main())


def test_pools_cost_while_they_are_idle(tmp_path: pathlib.Path, run: Run) -> None:
    async def main() -> None:
        world = World(tmp_path)
        assert world.driver.gauges().costs == {POOL: (0, 0)}
        world.clock.advance(ACCRUE_NS // 2)
        half = world.driver.gauges().costs[POOL]
        assert min(half) > 0
        world.clock.advance(ACCRUE_NS // 2)
        due = world.driver.gauges().costs[POOL]
        await world.round()
        assert world.driver.gauges().costs[POOL] == due
        entry = world.accrued[-1]
        assert due == (entry.energy_nanodollars, entry.capital_nanodollars)
        await world.check()

    run(main())


def test_a_ledger_that_lags_says_by_how_much(tmp_path: pathlib.Path, run: Run) -> None:
    async def main() -> None:
        store = SteeredStore()
        world = World(tmp_path, store=store)
        client = world.up()
        delivery, stream = await world.answering(client)
        stream.end()
        assert world.driver.gauges().ledger_lag_ns == 0
        store.slow = True
        settling = asyncio.ensure_future(delivery.settle(outcome()))
        await settle_down()
        world.clock.advance(2 * NS_PER_S)
        now = world.driver.gauges()
        assert (now.storing, now.unstored, now.ledger_lag_ns) == (1, 0, 2 * NS_PER_S)
        store.release()
        await settling
        assert world.driver.gauges().storing == 0
        await world.check()

    run(main())


def test_a_quota_says_which_kind_of_limit_refused(tmp_path: pathlib.Path, run: Run) -> None:
    async def main() -> None:
        world = World(tmp_path, limits=[World.limit(5)])
        world.up()
        with pytest.raises(QuotaExceeded) as caught:
            await world.open()
        assert caught.value.limit == "key/tokens/month"
        await world.check()

    run(main())


def test_gauges_are_plain_data(tmp_path: pathlib.Path, run: Run) -> None:
    async def main() -> None:
        world = World(tmp_path)
        assert b"secret" not in msgspec.json.encode(world.driver.gauges().workers)
        await world.check()

    run(main())
