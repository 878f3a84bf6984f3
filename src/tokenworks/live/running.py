"""The event loop that runs, for those who ask for it with each request."""

from __future__ import annotations

import asyncio


def running_loop(known: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    """The loop that runs.

    With Python 3.11 asyncio makes a system call for it; whether a known one still runs takes none.

    Args:
        known: what this has returned before. Whoever holds it is used by one loop at a time.

    Raises:
        RuntimeError: none does.
    """
    if known is not None and known.is_running():
        return known
    return asyncio.get_running_loop()
