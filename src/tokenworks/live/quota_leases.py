"""One of several processes that share a ledger: it leases what it needs and gives the rest back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.errors import LedgerCorrupt, LedgerUnavailable
from tokenworks.core.ids import LimitID
from tokenworks.core.orders import Order
from tokenworks.core.ports import Clock
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.ledger.entries import Reserved, Voided
from tokenworks.ledger.leases import Shortage, WindowUse
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.quota_records import QuotaNumbers, Refused
from tokenworks.ledger.quotas import quota_refusal
from tokenworks.ledger.store_port import LedgerStore, TakenOver

TRIES_MAX: Final = 3
"""How often a limit that others have leased is asked for again before a request is refused."""
# Without Final, which mypyc writes into the code: tests change it, compiled or not.
RETRY_NS = 300 * NS_PER_MS
"""Between these; others look every 200 ms whether what they hold idle is wanted."""
ALIVE_NS: Final = NS_PER_S
DEAD_AFTER_NS: Final = 20 * NS_PER_S
"""A process that has said nothing for this long is taken for dead. Clocks of machines that share a
ledger must agree to within a few seconds."""
LOOK_BACK_NS: Final = 5 * NS_PER_S
"""Wants of others are as old as this at most, by clocks that may differ a little."""
SWEEP_NS: Final = 5 * NS_PER_S

_log: Final = logging.getLogger("tokenworks.driver")


class QuotaLeases:
    """Reserves through leases; see ``ledger.leases``.

    Args:
        ledger: made by ``ledger.store_port.join``.
        store: shared with other processes.
        clock: time.
        on_lost: told that this process can store nothing more, until it is started again.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: LedgerStore,
        clock: Clock,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._on_lost = on_lost
        self._ledger, self._store, self._clock = ledger, store, clock
        self._asking = asyncio.Lock()
        self._alive_at_ns = clock.now_ns()
        self._sweep_at_ns = clock.now_ns() + DEAD_AFTER_NS
        self._version = store.settings_version()
        """Of the settings under which all that is leased was leased."""
        self._unclaimed: list[Shortage] = []
        """What was granted of windows that were not there any more when the answer came."""

    async def reserve(self, order: Order, book: PriceBook, ttl_ns: int) -> Reserved | Refused:
        """Hold the most that a request can use, leasing more of the limits above it if need be.

        Raises:
            LedgerUnavailable: the store cannot be asked, or this process was taken over.
        """
        tries = 0
        while True:
            held = self._reserve(order, book, ttl_ns)
            if isinstance(held, Reserved) or held.quota is None:
                return held
            # A caller who leaves must not lose what the store has granted meanwhile.
            refused = await asyncio.shield(asyncio.ensure_future(self._lease(order, book)))
            if refused is None:
                continue
            tries += 1
            numbers = refused.quota
            # What others only hold may come back, and a limit that is set no more is let go; what
            # is used does not come back.
            hopeless = numbers is not None and numbers.asked > numbers.allowed - numbers.used
            if hopeless or tries == TRIES_MAX:
                return refused
            await asyncio.sleep(RETRY_NS / NS_PER_S)

    def _reserve(self, order: Order, book: PriceBook, ttl_ns: int) -> Reserved | Refused:
        now_ns, unix_ns = self._clock.now_ns(), self._clock.unix_ns()
        return self._ledger.reserve(now_ns, unix_ns, order, book, ttl_ns)

    async def _lease(self, order: Order, book: PriceBook) -> Refused | None:
        """Ask for what a request lacks; None if it may try again."""
        async with self._asking:
            unix_ns = self._ledger.date(self._clock.unix_ns())
            shortages = self._ledger.shortages(unix_ns, order, book)
            if not shortages:  # somebody before us has leased enough
                return None
            free = {each.limit: self._free(each) for each in shortages}
            answer = await asyncio.to_thread(self._store.lease, shortages, unix_ns)
            if isinstance(answer, tuple):
                return self._refusal(*answer, free[answer[0].limit], unix_ns)
            for short, amount in zip(shortages, answer, strict=True):
                self._grant(short, amount)
            return None

    def _grant(self, place: Shortage, amount: int) -> None:
        if not self._ledger.grant(place.limit, place.start_unix_ns, amount):
            self._unclaimed.append(place._replace(missing=amount))

    def _free(self, place: Shortage) -> int:
        """What this process could still hold of a limit."""
        window = self._ledger.window(place.limit)
        assert window is not None, place
        return window.free

    def _refusal(self, short: Shortage, use: WindowUse | None, free: int, unix_ns: int) -> Refused:
        """What a request needs, and how the whole limit stands over all processes."""
        window = self._ledger.window(short.limit)
        if window is None or use is None:
            return Refused(code="conflict", message=f"The limit {short.limit!r} was lifted.")
        limit = window.limit
        asked = short.missing + free
        ends = limit.period != "lifetime" and asked <= limit.amount
        numbers = QuotaNumbers(
            limit=limit.limit,
            node=limit.node,
            unit=limit.unit,
            period=limit.period,
            allowed=use.allowed,
            used=use.used,
            held=max(0, use.granted - use.used - free),
            asked=asked,
            resets_unix_ns=window.end_unix_ns if ends else None,
        )
        return quota_refusal(numbers, unix_ns, held_by="open requests or leased by others")

    async def tend(self) -> list[Voided]:
        """Say that we live, give back what others want, and take over from the dead.

        Returns:
            Entries that give back what the dead held; the caller stores them.

        Raises:
            LedgerUnavailable: the store cannot be asked, or this process was taken over.
            LedgerCorrupt: what a dead process has left does not add up.
        """
        now_ns, unix_ns = self._clock.now_ns(), self._clock.unix_ns()
        if now_ns >= self._alive_at_ns:
            # Whoever comes back after a silence of its own knows nothing of the others: they may
            # have been cut off as well, and are given the time to say that they live.
            if now_ns - self._alive_at_ns > DEAD_AFTER_NS // 2:
                self._sweep_at_ns = now_ns + DEAD_AFTER_NS
            try:
                await asyncio.to_thread(self._store.alive, unix_ns)
            except TakenOver:
                self.lost()
                raise
            self._alive_at_ns = now_ns + ALIVE_NS
        await self.give_back_idle(unix_ns)
        if now_ns < self._sweep_at_ns:
            return []
        self._sweep_at_ns = now_ns + SWEEP_NS
        left = await asyncio.to_thread(self._store.take_over, unix_ns - DEAD_AFTER_NS)
        for hold in left:
            _log.warning("%s was left open by %s, which is dead", hold.request, hold.owner)
            self._ledger.apply(hold)
        return self._ledger.void_orphans(unix_ns)

    def lost(self) -> None:
        """Nothing more can be stored: let whoever can start this process again do so."""
        if self._on_lost is not None:
            self._on_lost()

    async def give_back_idle(self, unix_ns: int) -> None:
        """Give back what this process neither uses nor holds of limits that others lack.

        So it does of months that are over, for what they leave is carried over, and of limits that
        were lifted, for they may be set again.
        """
        async with self._asking:
            # Each thread that is asked costs what a few answers do.
            places, version = await asyncio.to_thread(self._look, unix_ns - LOOK_BACK_NS)
            present = self._ledger.windows()
            if version != self._version:
                # A limit may be lower now: nothing is kept of what was leased under the old one.
                self._ledger.tie()
                places = [(each.limit.limit, each.start_unix_ns) for each in present]
            await self._cover_held()
            found = [self._ledger.window_at(limit, start) for limit, start in dict.fromkeys(places)]
            untied = [each for each in present if each.returned]
            over = (*self._ledger.ended(unix_ns), *self._ledger.lifted())
            windows = dict.fromkeys((*found, *untied, *over))
            # Taken from our own before the store is told: nobody may hold against it now.
            idle = [self._ledger.take_idle(each) for each in windows if each is not None]
            rest = [
                Shortage(each.window.limit.limit, each.window.start_unix_ns, amount)
                for each in idle
                if (amount := each.free + each.returned)
            ]
            unclaimed = len(self._unclaimed)
            rest += self._unclaimed
            try:
                if rest:
                    await asyncio.to_thread(self._store.give_back, rest)
                del self._unclaimed[:unclaimed]
            except (LedgerUnavailable, LedgerCorrupt):
                for each in idle:
                    self._ledger.keep_idle(each)
                raise
            self._version = version

    def _look(self, since_unix_ns: int) -> tuple[list[tuple[LimitID, int]], int]:
        """On any thread: what others want since a time, and then the settings' version."""
        return self._store.wanted(since_unix_ns), self._store.settings_version()

    async def _cover_held(self) -> None:
        """Lease what this process uses and holds beyond its leases, however much others have.

        Requests that were reserved before a limit was set are under it from then on, and nobody
        else may be given what they will use.
        """
        lacking = self._ledger.uncovered()
        if lacking:
            places = [
                Shortage(window.limit.limit, window.start_unix_ns, amount)
                for window, amount in lacking
            ]
            await asyncio.to_thread(self._store.cover, places)
            for window, amount in lacking:
                self._ledger.cover(window, amount)
