"""Waiting for processes that are not our children."""

from __future__ import annotations

import asyncio
import os

WAIT_S_MAX = 60.0


async def ended(pidfd: int) -> None:
    """Return when the process of this file descriptor has ended; closes it."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(pidfd, done.set)
    try:
        async with asyncio.timeout(WAIT_S_MAX):
            await done.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
