"""What tests of the driver share."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.live.driver_world import World
from tokenworks.live import driver as driver_module

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Test = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture
def live(run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``live(test, **parts)``: run a test in a world, and look that it leaves nothing behind."""
    monkeypatch.setattr(driver_module, "BREATHER_NS", 0)

    def go(test: Test, **parts: Any) -> None:
        async def main() -> None:
            world = World(tmp_path, **parts)
            await test(world)
            await world.check()

        run(main())

    return go
