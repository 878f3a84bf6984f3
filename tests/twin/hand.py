"""A clock and an event loop's timer that a test turns by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush

from tokenworks.core.units import NS_PER_S

ROUNDS = 6


class HandTimer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Hand:
    """Implements ``core.ports.Clock`` and ``twin.serving.Later``."""

    def __init__(self) -> None:
        self.ns = 5 * NS_PER_S
        self.calls = 0
        self._due: list[tuple[int, int, HandTimer, Callable[[], None]]] = []

    def now_ns(self) -> int:
        return self.ns

    def unix_ns(self) -> int:
        return 1_700_000_000 * NS_PER_S + self.ns

    def later(self, delay_s: float, action: Callable[[], None]) -> HandTimer:
        timer = HandTimer()
        self.calls += 1
        heappush(self._due, (self.ns + round(delay_s * NS_PER_S), self.calls, timer, action))
        return timer

    async def settle(self) -> None:
        for _ in range(ROUNDS):
            await asyncio.sleep(0)

    async def turn(self, duration_s: float) -> None:
        """Let time pass; what is due meanwhile happens at its time."""
        until_ns = self.ns + round(duration_s * NS_PER_S)
        await self.settle()
        while self._due and self._due[0][0] <= until_ns:
            at_ns, _, timer, action = heappop(self._due)
            self.ns = max(self.ns, at_ns)
            if not timer.cancelled:
                action()
                await self.settle()
        self.ns = until_ns

    async def turn_until(self, holds: Callable[[], object], wait_s_max: float = 1_000) -> None:
        """Go from one due time to the next until something holds."""
        end_ns = self.ns + round(wait_s_max * NS_PER_S)
        await self.settle()
        while not holds():
            assert self._due, "nothing will happen any more"
            assert self._due[0][0] <= end_ns, "it takes too long"
            await self.turn(max(0, self._due[0][0] - self.ns) / NS_PER_S)
