"""The loop that runs is found without asking for it again, on one loop after another."""

from __future__ import annotations

import asyncio

import pytest

from tokenworks.live.running import running_loop


def test_the_loop_that_runs_is_the_known_one_or_another() -> None:
    async def ask(known: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
        found = running_loop(known)
        assert found is asyncio.get_running_loop()
        assert running_loop(found) is found
        return found

    first = asyncio.run(ask(None))
    second = asyncio.run(ask(first))
    assert second is not first
    with pytest.raises(RuntimeError, match="no running event loop"):
        running_loop(second)
