"""Keeps the ledger and its store in step: what cannot be stored is tried again or taken back."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from tokenworks.catalogue.factory_config import PoolConfig
from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.errors import (
    CapacityExceeded,
    LedgerCorrupt,
    LedgerUnavailable,
    ModelNotFound,
    QuotaExceeded,
    TokenworksError,
    Unauthorized,
)
from tokenworks.core.ids import PoolID, RequestID
from tokenworks.core.orders import Order, Outcome
from tokenworks.core.ports import Clock
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.ledger.entries import Entry, Posted, Reserved, VoidReason
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.quota_records import Refused
from tokenworks.ledger.store_port import InDoubt, LedgerStore, Told
from tokenworks.ledger.work import Work
from tokenworks.live.quota_leases import QuotaLeases
from tokenworks.live.running import running_loop

HOLD_NS_MAX: Final = 3_600 * NS_PER_S
"""A reservation expires after this long."""
# Without Final, which mypyc writes into the code: tests change it, compiled or not.
HELD_S_MAX = 0.01
"""How long a reservation is kept back, to be stored by one append with its settlement."""
PATIENT_NS_MIN: Final = 100 * NS_PER_MS
"""A stream that took so long may wait for a tenth of it more, for its end alone."""
STORE_HINT: Final = "Look at the disk that holds the ledger, or at its database server."
ACCRUE_NS: Final = 10 * NS_PER_S
CLAIM_NS: Final = 5 * NS_PER_S
"""Between two looks whether somebody still writes down what shared servers cost."""

_log: Final = logging.getLogger("tokenworks.driver")


class Bookkeeper:
    """What the driver asks of money.

    Args:
        clock: time.
        ledger: recovered from ``store``, or joined to it.
        store: where entries are kept.
        pools: the factory's pools by name, for their cost.
        leases: how this process shares the ledger's limits with others; none if it is alone.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        ledger: Ledger,
        store: LedgerStore,
        pools: Mapping[PoolID, PoolConfig],
        leases: QuotaLeases | None,
    ) -> None:
        self._clock, self._ledger, self._store = clock, ledger, store
        self._pools, self._leases = pools, leases
        self._loop: asyncio.AbstractEventLoop | None = None
        self._trouble: str | None = None
        self._doubt: InDoubt | None = None
        self._storing: dict[int, int] = {}
        """Appends that are not durable yet, by the identity of their entries, and since when."""
        self._held: dict[RequestID, Reserved] = {}
        """Reservations that nobody has put to the store yet, oldest first."""
        self._holding: asyncio.TimerHandle | None = None
        self._all_told: asyncio.Future[None] | None = None
        self._unstored: list[Entry] = []
        self._cost: Sequence[Entry] = ()
        """What was written down last of what pools cost."""
        self._began_unix_ns = clock.unix_ns()
        self._shared = {
            pool: config.servers
            for pool, config in pools.items()
            if leases is not None and config.servers
        }
        began = _Until(clock.now_ns(), self._began_unix_ns)
        self._accrued = {pool: began for pool in pools if pool not in self._shared}
        """Pools whose cost this process writes down, and until when it has."""
        self._accrue_at_ns = clock.now_ns() + ACCRUE_NS
        self._claim_at_ns = clock.now_ns()
        self._costs = dict.fromkeys(pools, (0, 0))

    @property
    def trouble(self) -> str | None:
        """Why nothing can be stored at present, or any more, if that is so."""
        return self._trouble if self._doubt is None else str(self._doubt)

    def lag(self) -> tuple[int, int, int]:
        """Appends that are not durable, entries to be tried again, age of the oldest, ns."""
        oldest_ns = next(iter(self._storing.values()), None)
        held = next(iter(self._held.values()), None)
        if held is not None:
            held_ns = held.expires_ns - HOLD_NS_MAX
            oldest_ns = held_ns if oldest_ns is None else min(held_ns, oldest_ns)
        lag_ns = 0 if oldest_ns is None else self._clock.now_ns() - oldest_ns
        if self._unstored:  # whose dates may be ahead of a clock that was put back
            dated = min(each.at_unix_ns for each in self._unstored)
            lag_ns = max(lag_ns, self._clock.unix_ns() - dated)
        return len(self._storing) + len(self._held), len(self._unstored), lag_ns

    def costs(self) -> dict[PoolID, tuple[int, int]]:
        """What each pool has cost until now, as far as this process writes it down.

        Returns:
            Nano-dollars of energy and of capital.
        """
        now_ns, costs = self._clock.now_ns(), dict(self._costs)
        for pool, done in self._accrued.items():
            config, (energy, capital) = self._pools[pool], costs[pool]
            since_ns = max(0, now_ns - done.ns)
            energy += config.energy_nanodollars(since_ns)
            costs[pool] = energy, capital + config.capital_nanodollars(since_ns)
        return costs

    def begin(self) -> None:
        """Free what a dead process held.

        Raises:
            LedgerUnavailable: that cannot be stored.
        """
        orphans = self._ledger.void_orphans(self._clock.unix_ns())
        if orphans:
            self._store.append_now(orphans)

    async def reserve(self, order: Order, book: PriceBook) -> None:
        """Hold the most that a request can use.

        Raises:
            Unauthorized, ModelNotFound, QuotaExceeded, CapacityExceeded: the ledger refuses.
            LedgerUnavailable: the store is in trouble, and nothing is held.
        """
        if self._doubt is not None:  # for good
            raise LedgerUnavailable(self._doubt.message, hint=self._doubt.hint, retry_after_s=5)
        if self._leases is None:
            clock = self._clock
            held = self._ledger.reserve(clock.now_ns(), clock.unix_ns(), order, book, HOLD_NS_MAX)
        else:
            held = await self._leases.reserve(order, book, HOLD_NS_MAX)
        if not isinstance(held, Reserved):
            raise _refusal(held, self._clock.unix_ns())
        if self._trouble is None:
            self._keep_back(held)
        else:
            await self._keep_now(held)

    async def all_told(self) -> None:
        """Return once the store has answered every append. One may wait for that."""
        self._keep_held()
        while self._storing:
            self._all_told = self._running().create_future()
            await self._all_told

    async def _keep_now(self, held: Reserved) -> None:
        """Store a reservation; while that is in trouble nothing starts that could not be billed."""
        stored: asyncio.Future[TokenworksError | None]
        stored = self._running().create_future()

        def told(entries: Sequence[Entry], error: TokenworksError | None) -> None:
            self._kept(entries, error)
            if not stored.done():
                stored.set_result(error)

        self._append((held,), told)
        try:
            error = await stored
        except asyncio.CancelledError:
            self.void(held.request, "withdrawn")
            raise
        if error is not None:
            self.void(held.request, "rejected")
            raise LedgerUnavailable(
                "The ledger cannot write.", hint=error.hint or STORE_HINT, retry_after_s=5
            )

    async def bill(self, request: RequestID, outcome: Outcome, work: Work) -> Posted:
        """Bill an answer; returns when the entry is durable.

        The ledger counts it at once, before this first waits.

        Raises:
            InDoubt: it may be billed or not.
            LedgerUnavailable: it could not be stored, or its reservation is gone: nothing was
                billed.
        """
        entry = self._ledger.post(self._clock.unix_ns(), request, outcome=outcome, work=work)
        if not isinstance(entry, Posted):
            _log.error("%s cannot be billed: %s", request, entry.message)
            raise LedgerUnavailable(
                f"The answer cannot be billed: {entry.message}",
                hint="Read answers as they come: a reservation does not last for ever.",
            )
        entries = self._with_held(entry)
        stored = self._stored(entry, entries, patient=_is_patient(outcome))
        try:
            error = await stored
            if isinstance(error, LedgerCorrupt) and self._unstored_of(request):
                # The reservation failed to be stored a moment before.
                entries = self._with_held(entry)
                stored = self._stored(entry, entries)
                error = await stored
        except asyncio.CancelledError:
            if not stored.cancelled():  # it had been answered, and was not heard
                self._billed(entry, entries, stored.result())
            raise
        trouble = self._billed(entry, entries, error)
        if trouble is not None:
            raise trouble from error
        return entry

    def _billed(
        self, entry: Posted, entries: Sequence[Entry], error: TokenworksError | None
    ) -> LedgerUnavailable | None:
        """Carry on with a posting as its store has answered; what to say if it is not billed."""
        if error is not None:
            return self._not_billed(entry, entries, error)
        if self._unstored:
            self._unstored = [each for each in self._unstored if each.request != entry.request]
        self._trouble = None
        return None

    def _not_billed(
        self, entry: Posted, entries: Sequence[Entry], error: TokenworksError
    ) -> LedgerUnavailable:
        """What to say of a posting that was not stored; it is taken back, unless it may be."""
        if isinstance(error, InDoubt):
            # It is neither taken back nor tried again: it goes on counting as used, and the next
            # start finds either it or its open reservation.
            self._in_doubt(error, entries)
            return InDoubt(
                f"It is not known whether the answer is billed: {error.message}", hint=error.hint
            )
        self._in_trouble(error)
        self._ledger.retract(entry)
        held = entries[0]
        if isinstance(held, Reserved) and held not in self._unstored:
            self._keep_back(held)  # to be stored with its voiding
        self.void(entry.request, "failed")
        return LedgerUnavailable(
            f"The answer could not be billed: {error.message}", hint=error.hint or STORE_HINT
        )

    def void(self, request: RequestID, reason: VoidReason) -> None:
        """Give a reservation back, if it is still open."""
        entry = self._ledger.void(self._clock.unix_ns(), request, reason=reason)
        if not isinstance(entry, Refused):
            held = self._held.pop(request, None)
            self._keep((entry,) if held is None else (held, entry))

    def round(self) -> None:
        """What is due now and then: another try, expired holds, cost."""
        now_ns = self._clock.now_ns()
        behind = bool(self._unstored) or id(self._cost) in self._storing
        self._store_again()
        expired = self._ledger.expire(now_ns, self._clock.unix_ns())
        if expired:
            self._keep_held()
            self._keep(expired)
        if now_ns >= self._accrue_at_ns and not behind:
            self._accrue_at_ns = now_ns + ACCRUE_NS
            self._cost = self._accrue()
            self._keep(self._cost)

    async def tend_leases(self) -> None:
        """What is due now and then where limits are shared."""
        if self._leases is None:
            return
        try:
            freed = await self._leases.tend()
        except (LedgerUnavailable, LedgerCorrupt) as error:
            self._in_trouble(error)
        else:
            if freed:
                self._keep(freed)

    async def claim_costs(self) -> None:
        """Where other processes use the same servers, write down their cost if nobody else does."""
        wanted = {
            pool: servers for pool, servers in self._shared.items() if pool not in self._accrued
        }
        now_ns, unix_ns = self._clock.now_ns(), self._clock.unix_ns()
        if not wanted or now_ns < self._claim_at_ns:
            return
        self._claim_at_ns = now_ns + CLAIM_NS
        try:
            ours = await asyncio.to_thread(self._store.claim_costs, wanted, unix_ns)
        except (LedgerUnavailable, LedgerCorrupt) as error:
            self._in_trouble(error)
            return
        for pool, until_unix_ns in ours.items():
            # Since whoever wrote it before, but not for a time when this process did not run.
            since = max(until_unix_ns, self._began_unix_ns)
            self._accrued[pool] = _Until(now_ns - max(0, unix_ns - since), since)

    async def close(self) -> None:
        """Write down the last cost and wait for every entry."""
        self._trouble = None  # so that everything is tried once more
        self._store_again()
        self._keep(self._accrue())
        await self.all_told()
        if self._unstored:
            _log.critical("%d ledger entries could not be written", len(self._unstored))

    def _with_held(self, entry: Posted) -> Sequence[Entry]:
        """A posting, after its reservation if that was kept back, or could not be stored before."""
        held = self._held.pop(entry.request, None)
        if held is not None:
            return (held, entry)
        return (*self._unstored_of(entry.request), entry) if self._unstored else (entry,)

    def _keep_back(self, held: Reserved) -> None:
        """Let a reservation wait for its settlement, but not for long."""
        self._held[held.request] = held
        if self._holding is None:
            self._holding = self._running().call_later(HELD_S_MAX, self._keep_held)

    def _keep_held(self) -> None:
        """Store the reservations that were kept back, and are still open."""
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None
        if self._held:
            held = tuple(self._held.values())
            self._held.clear()
            self._keep(held)

    def _stored(
        self, entry: Posted, entries: Sequence[Entry], *, patient: bool = False
    ) -> asyncio.Future[TokenworksError | None]:
        """Store a posting for somebody who waits to hear what was wrong, if anything."""
        stored: asyncio.Future[TokenworksError | None] = self._running().create_future()

        def told(entries: Sequence[Entry], error: TokenworksError | None) -> None:
            # First whoever waits for these: it may have more to store, which all are to wait for.
            if not stored.done():
                stored.set_result(error)
            else:  # it was cancelled
                self._billed(entry, entries, error)
            self._answered(id(entries))

        self._append(entries, told, patient=patient)
        return stored

    def _append(self, entries: Sequence[Entry], told: Told, *, patient: bool = False) -> None:
        self._storing[id(entries)] = self._clock.now_ns()
        self._store.keep(entries, told, self._held, patient=patient)

    def _running(self) -> asyncio.AbstractEventLoop:
        loop = self._loop = running_loop(self._loop)
        return loop

    def _answered(self, name: int) -> None:
        del self._storing[name]
        if self._all_told is not None and not self._storing and not self._all_told.done():
            self._all_told.set_result(None)

    def _keep(self, entries: Sequence[Entry]) -> None:
        """Store entries that nobody waits for; those that cannot be stored now are tried again."""
        self._append(entries, self._kept)

    def _kept(self, entries: Sequence[Entry], error: TokenworksError | None) -> None:
        self._answered(id(entries))
        if error is None:
            self._trouble = None
        elif isinstance(error, InDoubt):
            self._in_doubt(error, entries)
        else:
            self._in_trouble(error)
            self._unstored += entries

    def _kept_again(self, entries: Sequence[Entry], error: TokenworksError | None) -> None:
        # It only came too early if its reservation has failed again: both are tried together next.
        early = any(self._unstored_of(each.request) for each in entries)
        if isinstance(error, LedgerCorrupt) and not early:
            self._answered(id(entries))
            _log.critical("the ledger refuses %r: %s", entries, error)
        else:
            self._kept(entries, error)

    def _store_again(self) -> None:
        """Try entries again that could not be stored: one request's in trouble, else all."""
        by_request: dict[RequestID, list[Entry]] = {}
        # A reservation comes before its settlement, whichever of them failed first.
        for entry in sorted(self._unstored, key=lambda each: each.phase != "reserve"):
            by_request.setdefault(entry.request, []).append(entry)
        if self._trouble is not None:
            by_request = dict(itertools.islice(by_request.items(), 1))
        self._unstored = [each for each in self._unstored if each.request not in by_request]
        for entries in by_request.values():
            self._append(entries, self._kept_again)

    def _unstored_of(self, request: RequestID) -> list[Entry]:
        return [entry for entry in self._unstored if entry.request == request]

    def _in_doubt(self, error: InDoubt, entries: Sequence[Entry]) -> None:
        """Remember for good that nothing is stored any more, and say what may be stored or not."""
        self._doubt = error
        if self._leases is not None:
            self._leases.lost()
        self._unstored = [each for each in self._unstored if each not in entries]
        _log.critical("it is not known whether these are stored: %r: %s", entries, error)

    def _in_trouble(self, error: BaseException) -> None:
        if self._trouble is None:
            _log.error("the ledger cannot write: %s", error)
        self._trouble = str(error)

    def _accrue(self) -> list[Entry]:
        """What the pools cost since the last time."""
        now_ns, unix_ns = self._clock.now_ns(), self._clock.unix_ns()
        entries: list[Entry] = []
        for pool, done in self._accrued.items():
            config, duration_ns = self._pools[pool], now_ns - done.ns
            if duration_ns <= 0:
                continue
            # As long as it took, whatever the date has done meanwhile; intervals never overlap.
            since = max(done.unix_ns, unix_ns - duration_ns)
            until = since + duration_ns
            self._accrued[pool] = _Until(now_ns, until)
            entry = self._ledger.accrue(
                until,
                pool,
                from_unix_ns=since,
                until_unix_ns=until,
                energy_nanodollars=config.energy_nanodollars(until - since),
                capital_nanodollars=config.capital_nanodollars(until - since),
            )
            assert not isinstance(entry, Refused), entry  # intervals don't overlap
            entries.append(entry)
            energy, capital = self._costs[pool]
            energy += entry.energy_nanodollars
            self._costs[pool] = energy, capital + entry.capital_nanodollars
        return entries


class _Until(NamedTuple):
    """An instant on our clock, and the date that is written for it."""

    ns: int
    unix_ns: int


def _is_patient(outcome: Outcome) -> bool:
    """Whether the caller has had every token, over such a time that its end need not be now."""
    if not outcome.streamed:
        return False
    measured = outcome.measured
    return (measured.ttft_ns or 0) + measured.decode_ns >= PATIENT_NS_MIN


def _refusal(refused: Refused, unix_ns: int) -> TokenworksError:
    message = refused.message
    match refused.code:
        case "quota_exceeded":
            resets = refused.quota.resets_unix_ns if refused.quota is not None else None
            wait_s = None if resets is None else max(1, -(-(resets - unix_ns) // NS_PER_S))
            hint = "Ask for less, or have the limit raised (`tokenworks quota extra`)."
            error = QuotaExceeded(message, hint=hint, retry_after_s=wait_s)
            if refused.quota is not None:
                kind = refused.quota.node.partition(":")[0]
                error.limit = f"{kind}/{refused.quota.unit}/{refused.quota.period}"
            return error
        case "invalid_api_key":
            return Unauthorized(message, hint="Use another key.")
        case "model_not_found":
            return ModelNotFound(message, hint="GET /v1/models lists what is sold.")
        case "capacity_exceeded" | "conflict":
            return CapacityExceeded(message, hint="Try again.", retry_after_s=1)
        case _:
            raise AssertionError(refused)
