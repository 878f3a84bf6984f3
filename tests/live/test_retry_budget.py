"""The driver: requests that are not sent again, because too many were."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.live.driver_world import Exchange, World, settle_down
from tokenworks.core.errors import WorkerFailed
from tokenworks.live import driver as driver_module


def test_an_outage_is_not_multiplied(
    run: Callable[[Coroutine[Any, Any, None]], None],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver_module, "BREATHER_NS", 0)

    async def main() -> None:
        world = World(tmp_path)
        tries: list[Exchange] = []

        def refuse(exchange: Exchange) -> None:
            tries.append(exchange)
            exchange.fail()

        world.up().auto = refuse
        told: list[WorkerFailed] = []
        for _ in range(100):
            with pytest.raises(WorkerFailed) as caught:
                await world.driver.open(world.order())
            told.append(caught.value)
        # The first five take the ten retries that were saved up; then every fifth gets one.
        assert [str(each) for each in told[:5]] == [
            "Workers broke off this request 3 times. Try again."
        ] * 5
        assert len(tries) == 100 + 10 + 19
        assert "it is not sent again" in str(told[-1])
        assert told[-1].retry_after_s is not None
        assert world.dispatcher.counts()["retries_refused"] == 95
        assert [each.reason for each in world.voided] == ["failed"] * 100
        await settle_down()
        await world.check()

    run(main())
