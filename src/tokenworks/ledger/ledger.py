"""The ledger: reserve, then post or void, under every limit of the quota tree at once."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeVar, assert_never

import msgspec

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.ids import (
    KeyID,
    LimitID,
    ModelName,
    PoolID,
    PriceID,
    RequestID,
    TenantID,
)
from tokenworks.core.kept_promises import delivered_tier
from tokenworks.core.orders import Order, Outcome, Payer
from tokenworks.core.slo import Tier
from tokenworks.core.token_sums import completion_tokens, prompt_tokens
from tokenworks.core.units import PPM
from tokenworks.ledger.entries import (
    CostAccrued,
    Entry,
    Posted,
    Reserved,
    Settlement,
    Voided,
    VoidReason,
    accrual_request,
    oldest_first,
)
from tokenworks.ledger.held import Held
from tokenworks.ledger.leases import Shortage
from tokenworks.ledger.metering import (
    HoldPrice,
    ad_income_nanodollars,
    charge_nanodollars,
    credit_nanodollars,
    has_rates,
    sums_hold,
)
from tokenworks.ledger.quota_records import (
    KeyRecord,
    LimitState,
    Refused,
    RefusedCode,
)
from tokenworks.ledger.quotas import (
    QuotaTree,
    Window,
    counts_alike,
    nodes_of,
    quota_refusal,
    release,
)
from tokenworks.ledger.work import Work

OPEN_HOLDS_MAX: Final = 100_000
SETTLED_MAX: Final = 100_000
"""Settlements remembered, to answer repeats and to take back; more than a store ever queues.
A repeat of an older one finds no reservation and is refused."""
ACCRUALS_MAX: Final = 32
"""Cost intervals remembered per pool, for the same."""
BOOKS_MAX: Final = 64
"""Price books remembered; a hold is billed by the one that was in force when it was made."""
HOLD_PRICES_MAX: Final = 4_096

_FREE: Final = Tier.FREE
SettlementT = TypeVar("SettlementT", bound=Posted | Voided)
Place = tuple[RequestID, int]
"""A request and the number of the attempt."""


class Idle(NamedTuple):
    """What a leased window neither uses nor holds: what is free, and what is not its own any more.

    Attributes:
        window: the window.
        free: what could still be held.
        returned: see ``Window.returned``.
    """

    window: Window
    free: int
    returned: int


class Ledger:
    """A state machine over entries. Every method that changes it returns the entries that say how.

    The caller makes the returned entries durable, in order. An entry that could not be made
    durable is taken back with ``retract``. All of a process's requests must go through one ledger:
    the quotas are hard because checking and holding are one step. Dates in entries never go back.

    Args:
        owner: written into each reservation; new for each process.
        leased: the process may use only what it is granted of each limit; see ``QuotaTree``.
        unix_ns: the latest date that is written; none is before it.
        open_holds_max: reservations open at once.
        settled_max: settlements remembered to answer repeats.
    """

    def __init__(
        self,
        owner: str,
        *,
        leased: bool = False,
        unix_ns: int = 0,
        open_holds_max: int = OPEN_HOLDS_MAX,
        settled_max: int = SETTLED_MAX,
    ) -> None:
        assert open_holds_max > 0, open_holds_max
        assert settled_max > 0, settled_max
        self.owner = owner
        self._open_holds_max = open_holds_max
        self._settled_max = settled_max
        self._unix_ns = unix_ns
        self._keys: dict[KeyID, KeyRecord] = {}
        self._payers: dict[KeyID, Payer] = {}
        self._tree = QuotaTree(leased=leased)
        self._books: dict[PriceID, PriceBook] = {}
        self._hold_prices: dict[tuple[PriceID, ModelName, Tier], HoldPrice] = {}
        self._holds: dict[Place, Held] = {}
        self._settled: OrderedDict[Place, tuple[Held, Settlement]] = OrderedDict()
        self._accrued: dict[PoolID, list[CostAccrued]] = {}

    # Keys, limits and readings.

    def set_key(self, record: KeyRecord) -> None:
        """Learn a key, or that it is revoked."""
        self._keys[record.key] = record
        self._payers[record.key] = Payer(
            tenant=record.tenant, team=record.team, engineer=record.engineer, key=record.key
        )

    def key(self, key: KeyID) -> KeyRecord | None:
        """What is known of a key."""
        return self._keys.get(key)

    def set_limits(self, states: Iterable[LimitState]) -> None:
        """Put exactly these limits into force.

        A limit that is in force already keeps what it has used, holds and was carried over to it;
        a new one starts from what the caller says, and holds what open reservations under it hold.
        """
        wanted = {state.limit.limit: state for state in states}
        for window in self._tree.windows():
            if window.limit.limit not in wanted:
                self._tree.remove(window.limit.limit)
        for limit, state in wanted.items():
            before = self._tree.window(limit)
            alike = before is not None and counts_alike(before.limit, state.limit)
            after = self._tree.set(state)
            if not alike:
                self._hold_under(after)

    def _hold_under(self, window: Window) -> None:
        limit = window.limit
        for place, held in self._holds.items():
            entry = held.entry
            if (
                limit.node in nodes_of(entry.payer)
                and limit.tier in (None, entry.tier_asked)
                and entry.at_unix_ns >= window.start_unix_ns
            ):
                amount = entry.hold_tokens if limit.unit == "tokens" else entry.hold_nanodollars
                window.held += amount
                kept = _without_lifted(held, limit.limit)
                self._holds[place] = Held(entry, (*kept.windows, window))

    def grant(self, limit: LimitID, start_unix_ns: int, amount: int) -> bool:
        """Allow more (or, below zero, less) of a limit's window; False if it is not known.

        Known are the present one and those in ``ended``.
        """
        window = self._tree.window_at(limit, start_unix_ns)
        if window is None:
            return False
        assert window.free + min(amount, 0) >= 0 or amount >= 0, (limit, amount, window.free)
        window.allowed += amount
        return True

    def uncovered(self) -> list[tuple[Window, int]]:
        """Leased windows that use and hold more than was granted of them, each with how much.

        Of a limit that was lifted only what was used counts: what is held of it will be let go.
        """
        found = [(window, -window.free) for window in self._tree.windows()]
        for window in self._tree.lifted():
            # Nobody may be told that it came free as long as it is used.
            own = min(window.returned, max(0, window.used - window.allowed))
            window.returned -= own
            window.allowed += own
            found.append((window, window.used - window.allowed))
        return [(window, amount) for window, amount in found if amount > 0]

    def cover(self, window: Window, amount: int) -> None:
        """Allow what ``uncovered`` found; as it comes free it is not this process's any more."""
        window.allowed += amount
        window.tied = min(window.held, window.tied + amount)

    def tie(self) -> None:
        """Keep nothing of what is held now, once it comes free; see ``Window.tied``."""
        for window in (*self._tree.windows(), *self._tree.ended(self._unix_ns)):
            window.tied = window.held

    def take_idle(self, window: Window) -> Idle:
        """Take from a leased window what it neither uses nor holds, to be given back."""
        idle = Idle(window, max(0, window.free), window.returned)
        window.allowed -= idle.free
        window.returned = 0
        return idle

    def keep_idle(self, idle: Idle) -> None:
        """Take it up again: the store could not be told."""
        idle.window.allowed += idle.free
        idle.window.returned += idle.returned

    def window(self, limit: LimitID) -> Window | None:
        """The present window of a limit, to be read only."""
        return self._tree.window(limit)

    def window_at(self, limit: LimitID, start_unix_ns: int) -> Window | None:
        """The window of a limit that begins at a time, if it is known; see ``grant``."""
        return self._tree.window_at(limit, start_unix_ns)

    def counted(self, entry: Posted) -> tuple[Window, ...]:
        """The windows that have counted an answer when it was settled, to be read only.

        They have it in what they use; what it uses of others, this process has leased nowhere.
        Other threads may ask.
        """
        settled = self._settled.get((entry.request, entry.attempt))
        return () if settled is None else settled[0].windows

    def lifted(self) -> list[Window]:
        """Leased windows of limits that were lifted, until nothing of them is left."""
        return self._tree.lifted()

    def windows(self) -> tuple[Window, ...]:
        """The present window of every limit; they are the ledger's own, to be read only."""
        return self._tree.windows()

    def ended(self, unix_ns: int) -> list[Window]:
        """Leased windows that are over and whose rest others can use, to be read only."""
        return self._tree.ended(self._date(unix_ns))

    def open_holds(self) -> tuple[Reserved, ...]:
        """Reservations neither posted nor voided; see ``entries.oldest_first``."""
        return tuple(oldest_first(held.entry for held in self._holds.values()))

    def pending(self) -> dict[TenantID, int]:
        """Nano-dollars that each tenant's open reservations may still debit from its wallet."""
        rows: Counter[TenantID] = Counter()
        for held in self._holds.values():
            rows[held.entry.payer.tenant] += held.entry.hold_nanodollars
        return dict(sorted(rows.items()))

    # Commands.

    def reserve(
        self,
        now_ns: int,
        unix_ns: int,
        order: Order,
        book: PriceBook,
        ttl_ns: int,
        attempt: int = 0,
    ) -> Reserved | Refused:
        """Hold the most that a request can use, or say why not.

        Repeating it while the hold is open returns the earlier result.

        Args:
            now_ns: the driver's clock.
            unix_ns: the date, for the record.
            order: the request.
            book: the prices in force; the answer will be billed by them.
            ttl_ns: the hold expires this long after now.
            attempt: counts the tries of one request.
        """
        place = (order.request, attempt)
        if place in self._holds or place in self._settled:
            return self._earlier_hold(order, attempt)
        record = self._keys.get(order.key.key)
        if record is None or record.revoked_unix_ns is not None:
            return _refused("invalid_api_key", f"Key {order.key.key!r} is unknown or revoked.")
        if len(self._holds) >= self._open_holds_max:
            return _refused("capacity_exceeded", f"{len(self._holds)} reservations are open.")
        prices = self._hold_price(book, order.model, order.tier)
        if prices is None:
            return _refused("model_not_found", f"{order.model!r} has no price in {book.price_id}.")
        date = self._date(unix_ns)
        payer = self._payer(order)
        hold_nanodollars = _most(order, payer, prices, book, date)
        tokens = order.input_tokens_max + order.output_tokens_max
        windows = self._tree.hold(payer, order.tier, tokens, hold_nanodollars, date)
        if not isinstance(windows, tuple):
            return quota_refusal(windows, date)
        hold = Reserved(
            at_unix_ns=date,
            request=order.request,
            attempt=attempt,
            payer=payer,
            model=order.model,
            tier_asked=order.tier,
            batch=order.batch,
            input_tokens_max=order.input_tokens_max,
            output_tokens_max=order.output_tokens_max,
            hold_nanodollars=hold_nanodollars,
            price_id=book.price_id,
            owner=self.owner,
            expires_ns=now_ns + ttl_ns,
        )
        self._holds[place] = Held(hold, windows)
        return hold

    def date(self, unix_ns: int) -> int:
        """The date that an entry would get now: the clock's, unless that has gone back."""
        return self._date(unix_ns)

    def shortages(self, unix_ns: int, order: Order, book: PriceBook) -> list[Shortage]:
        """What this process lacks of each limit to reserve a request, where it leases them."""
        prices = self._hold_price(book, order.model, order.tier)
        if prices is None or order.key.key not in self._payers:
            return []
        date = self._date(unix_ns)
        payer = self._payer(order)
        found = self._tree.shortages(
            payer,
            order.tier,
            order.input_tokens_max + order.output_tokens_max,
            _most(order, payer, prices, book, date),
            date,
        )
        return [
            Shortage(window.limit.limit, window.start_unix_ns, missing) for window, missing in found
        ]

    def post(
        self, unix_ns: int, request: RequestID, attempt: int = 0, *, outcome: Outcome, work: Work
    ) -> Posted | Refused:
        """Bill an answer at the tier that was delivered and give the hold back.

        ``done`` and ``disconnected`` bill what was produced: a client that leaves pays for what
        was made until then. ``failed`` is our fault: it bills nothing, earns nothing, counts
        nothing against the quotas and is delivered as free, but the entry keeps its tokens, time
        and cost. Usage above the hold is billed and counted in full. Advertisers pay only for
        answers that were asked for as free.

        Repeating it with the same content returns the earlier entry; other content, or a hold that
        was voided in between, is refused.

        Args:
            unix_ns: the date, for the record.
            request: what was reserved.
            attempt: the try that made the answer.
            outcome: how the answer ended, as the gateway saw it.
            work: who made it, and what that cost.
        """
        assert work.worker_ns >= 0, work
        held, earlier = self._found(request, attempt)
        if held is None:
            return _refused("not_reserved", f"{request!r} attempt {attempt} has no reservation.")
        hold = held.entry
        if hold.owner != self.owner:
            return _refused("not_reserved", f"{hold.owner!r}, which is dead, reserved it.")
        entry = posting(hold, self._date(unix_ns), outcome, work, self._books[hold.price_id])
        return self._settle(held, earlier, entry)

    def void(
        self, unix_ns: int, request: RequestID, attempt: int = 0, *, reason: VoidReason
    ) -> Voided | Refused:
        """Give a hold back unused.

        Repeating it with the same reason returns the earlier entry; another reason, or a hold that
        was posted, is refused.

        Args:
            unix_ns: the date, for the record.
            request: what was reserved.
            attempt: the try that was reserved.
            reason: why.
        """
        held, earlier = self._found(request, attempt)
        if held is None:
            return _refused("not_reserved", f"{request!r} attempt {attempt} has no reservation.")
        return self._settle(held, earlier, voiding(held.entry, self._date(unix_ns), reason))

    def expire(self, now_ns: int, unix_ns: int) -> list[Voided]:
        """Void the holds whose time has passed; those of the dead have none left."""
        late = [
            held
            for held in self._holds.values()
            if held.entry.expires_ns <= now_ns or held.entry.owner != self.owner
        ]
        date = self._date(unix_ns)
        return [self._close(held, voiding(held.entry, date, "expired")) for held in late]

    def void_orphans(self, unix_ns: int) -> list[Voided]:
        """Void every hold that another process made and this one has taken over."""
        orphans = [held for held in self._holds.values() if held.entry.owner != self.owner]
        date = self._date(unix_ns)
        return [self._close(held, voiding(held.entry, date, "expired")) for held in orphans]

    def accrue(
        self,
        unix_ns: int,
        pool: PoolID,
        *,
        from_unix_ns: int,
        until_unix_ns: int,
        energy_nanodollars: int,
        capital_nanodollars: int,
    ) -> CostAccrued | Refused:
        """Write down what a pool cost over an interval; intervals of a pool must not overlap.

        Repeating one of the latest returns the earlier entry.

        Args:
            unix_ns: the date, for the record.
            pool: whose cost.
            from_unix_ns: the interval's start.
            until_unix_ns: its end, after its start.
            energy_nanodollars: electricity.
            capital_nanodollars: machines.
        """
        assert from_unix_ns < until_unix_ns, (from_unix_ns, until_unix_ns)
        entry = CostAccrued(
            at_unix_ns=self._date(unix_ns),
            request=accrual_request(self.owner, pool, from_unix_ns),
            pool=pool,
            from_unix_ns=from_unix_ns,
            until_unix_ns=until_unix_ns,
            energy_nanodollars=energy_nanodollars,
            capital_nanodollars=capital_nanodollars,
        )
        other = self._overlapping(entry)
        if other is None:
            self._add_cost(entry)
            return entry
        if msgspec.structs.replace(entry, at_unix_ns=other.at_unix_ns) == other:
            return other
        return _refused(
            "conflict",
            f"The cost of {pool!r} from {from_unix_ns} to {until_unix_ns} meets {other!r}.",
        )

    # Entries from the store, and entries that never reached it.

    def apply(self, entry: Entry) -> None:
        """Repeat what an entry says, for recovery; the same entry twice changes nothing.

        Quotas are not asked again: what is written was allowed.

        Raises:
            LedgerCorrupt: it contradicts an earlier entry, settles what was not reserved, or its
                sums are not what its tokens and prices give.
        """
        self._date(entry.at_unix_ns)
        match entry:
            case Reserved():
                held, _ = self._found(entry.request, entry.attempt)
                if held is None:
                    self._holds[entry.request, entry.attempt] = Held(entry, ())
                elif held.entry != entry:
                    raise LedgerCorrupt(f"{entry!r} contradicts {held.entry!r}.")
            case Posted() | Voided():
                self._apply_settlement(entry)
            case CostAccrued():
                self._apply_cost(entry)
            case _:
                assert_never(entry)

    def retract(self, entry: Entry) -> None:
        """Take back an entry that could not be made durable, as if it had never been returned.

        Taking back a settlement opens its hold again. Taking back a reservation takes its
        settlement back too, which the store will refuse. An entry that is not here is left alone.
        """
        if isinstance(entry, CostAccrued):
            if entry in self._accrued.get(entry.pool, ()):
                self._accrued[entry.pool].remove(entry)
            return
        place = (entry.request, entry.attempt)
        held, settlement = self._found(*place)
        if held is not None and settlement is not None and entry in (held.entry, settlement):
            del self._settled[place]
            self._holds[place] = held
            _count(held, settlement, -1)
            self._tree.list_lifted(held.windows)
        if held is not None and entry == held.entry:
            del self._holds[place]
            release(held.windows, entry.hold_tokens, entry.hold_nanodollars)

    def check(self) -> None:
        """Compare what windows hold with the open reservations under them.

        Raises:
            LedgerCorrupt: two sums differ, or one is below zero.
        """
        # By identity: a limit that was lifted and set again has a window that looks the same.
        held: Counter[Window] = Counter()
        for each in self._holds.values():
            for window in each.windows:
                tokens = window.limit.unit == "tokens"
                held[window] += each.entry.hold_tokens if tokens else each.entry.hold_nanodollars
        for window in self._tree.windows():
            if window.held != held[window] or min(window.held, window.used) < 0:
                raise LedgerCorrupt(
                    f"{window.limit!r} has used {window.used} and holds {window.held}; its open "
                    f"reservations hold {held[window]}."
                )

    # Inner steps.

    def _date(self, unix_ns: int) -> int:
        """A date for an entry: the clock's, unless that has gone back."""
        self._unix_ns = max(self._unix_ns, unix_ns)
        return self._unix_ns

    def _payer(self, order: Order) -> Payer:
        payer = self._payers[order.key.key]
        if order.agent is not None or order.run is not None:
            payer = msgspec.structs.replace(payer, agent=order.agent, run=order.run)
        return payer

    def _hold_price(self, book: PriceBook, model: ModelName, tier: Tier) -> HoldPrice | None:
        name = (book.price_id, model, tier)
        found = self._hold_prices.get(name)
        if found is None and model in book.prices:
            if len(self._hold_prices) >= HOLD_PRICES_MAX:
                self._hold_prices.clear()
            found = self._hold_prices[name] = HoldPrice(book, model, tier)
            self.keep_book(book)
        return found

    def keep_book(self, book: PriceBook) -> None:
        """Remember a price book, to bill holds by it. Books without holds may be forgotten."""
        if book.price_id not in self._books and len(self._books) >= BOOKS_MAX:
            used = {held.entry.price_id for held in self._holds.values()}
            # A settlement may be repeated, or taken back and made anew.
            used |= {held.entry.price_id for held, _ in self._settled.values()}
            self._books = {name: each for name, each in self._books.items() if name in used}
            self._hold_prices.clear()
        self._books[book.price_id] = book

    def _found(
        self, request: RequestID, attempt: int
    ) -> tuple[Held, Settlement | None] | tuple[None, None]:
        place = (request, attempt)
        held = self._holds.get(place)
        if held is not None:
            return held, None
        return self._settled.get(place, (None, None))

    def _earlier_hold(self, order: Order, attempt: int) -> Reserved | Refused:
        held, settlement = self._found(order.request, attempt)
        assert held is not None, order.request
        hold = held.entry
        same = (
            hold.payer.key == order.key.key
            and hold.model == order.model
            and hold.tier_asked == order.tier
            and hold.batch == order.batch
            and (hold.payer.agent, hold.payer.run) == (order.agent, order.run)
            and hold.input_tokens_max == order.input_tokens_max
            and hold.output_tokens_max == order.output_tokens_max
        )
        if not same:
            return _refused("conflict", f"{order.request!r} was reserved with other content.")
        if settlement is not None:
            # Returning the old hold would let its caller serve an answer that nothing holds for.
            return _refused("already_settled", f"{order.request!r} attempt {attempt} is settled.")
        return hold

    def _settle(
        self, held: Held, earlier: Settlement | None, entry: SettlementT
    ) -> SettlementT | Refused:
        if earlier is None:
            return self._close(held, entry)
        hold = held.entry
        if not isinstance(earlier, type(entry)):
            return _refused(
                "already_settled", f"{hold.request!r} attempt {hold.attempt} was settled before."
            )
        if msgspec.structs.replace(entry, at_unix_ns=earlier.at_unix_ns) != earlier:
            return _refused(
                "conflict", f"{hold.request!r} attempt {hold.attempt} was settled otherwise."
            )
        return earlier

    def _close(self, held: Held, entry: SettlementT) -> SettlementT:
        place = (entry.request, entry.attempt)
        del self._holds[place]
        held = _without_lifted(held)
        self._settled[place] = (held, entry)
        if len(self._settled) > self._settled_max:
            self._settled.popitem(last=False)  # a plain dict would look for its first one
        _count(held, entry, 1)
        return entry

    def _apply_settlement(self, entry: Posted | Voided) -> None:
        held, earlier = self._found(entry.request, entry.attempt)
        if held is None:
            raise LedgerCorrupt(f"{entry!r} settles what was not reserved.")
        if earlier is not None:
            if earlier != entry:
                raise LedgerCorrupt(f"{entry!r} contradicts {earlier!r}.")
            return
        check_settlement(held.entry, entry)
        self._close(held, entry)

    def _apply_cost(self, entry: CostAccrued) -> None:
        other = self._overlapping(entry)
        if other is None:
            self._add_cost(entry)
        elif other != entry:
            raise LedgerCorrupt(f"{entry!r} overlaps {other!r}.")

    def _overlapping(self, entry: CostAccrued) -> CostAccrued | None:
        rows = self._accrued.get(entry.pool, [])
        for row in rows:
            if entry.from_unix_ns < row.until_unix_ns and row.from_unix_ns < entry.until_unix_ns:
                return row
        # What is older than all that is remembered may overlap what is forgotten.
        forgotten = len(rows) == ACCRUALS_MAX and entry.from_unix_ns < rows[0].from_unix_ns
        return rows[0] if forgotten else None

    def _add_cost(self, entry: CostAccrued) -> None:
        rows = self._accrued.setdefault(entry.pool, [])
        rows.append(entry)
        rows.sort(key=lambda row: row.from_unix_ns)
        del rows[:-ACCRUALS_MAX]


def check_settlement(hold: Reserved, entry: Settlement) -> None:
    """Compare a settlement with the reservation that it ends.

    Raises:
        LedgerCorrupt: it settles another request's hold, or its sums do not hold.
    """
    if (entry.payer, entry.reserved_unix_ns) != (hold.payer, hold.at_unix_ns):
        raise LedgerCorrupt(f"{entry!r} settles the reservation of another: {hold!r}.")
    if isinstance(entry, Posted) and not sums_hold(entry):
        raise LedgerCorrupt(f"The sums of {entry!r} are not what its tokens and prices give.")


def posting(hold: Reserved, unix_ns: int, outcome: Outcome, work: Work, book: PriceBook) -> Posted:
    """The entry that bills an answer.

    Args:
        hold: its reservation.
        unix_ns: the date.
        outcome: how it ended.
        work: who made it, and what that cost.
        book: the prices that the hold was made by.
    """
    usage, measured, ending = outcome.usage, outcome.measured, outcome.ending
    asked, payer, model, batch = hold.tier_asked, hold.payer, hold.model, hold.batch
    failed, reserved_unix_ns = ending == "failed", hold.at_unix_ns
    tier = _FREE if failed else delivered_tier(asked, book.promises, measured)
    price = book.prices[model][tier]
    rate_ppm = PPM
    if has_rates(book, batch=batch):
        rate_ppm = book.rate_ppm(payer.tenant, model, tier, reserved_unix_ns, batch=batch)
    charged = 0 if failed else charge_nanodollars(usage, price, rate_ppm)
    credit_ppm = 0 if failed or tier is asked else book.credits_ppm[asked]
    # An answer that missed a paid promise was never sold to advertisers, and nobody looks at a
    # batch while it is made.
    shown = asked is _FREE and not (failed or batch)
    ad_rate = book.ad_income_udollars_per_mtok if shown else 0
    return Posted(
        at_unix_ns=unix_ns,
        request=hold.request,
        attempt=hold.attempt,
        payer=payer,
        model=model,
        tier_asked=asked,
        tier_delivered=tier,
        reserved_unix_ns=reserved_unix_ns,
        pool=work.pool,
        worker=work.worker,
        batch=batch,
        usage=usage,
        metered_by=outcome.metered_by,
        price_id=hold.price_id,
        price=price,
        rate_ppm=rate_ppm,
        charged_nanodollars=charged,
        credit_ppm=credit_ppm,
        credited_nanodollars=credit_nanodollars(charged, credit_ppm) if credit_ppm else 0,
        ad_income_udollars_per_mtok=ad_rate,
        ad_income_nanodollars=(
            ad_income_nanodollars(completion_tokens(usage), ad_rate) if ad_rate else 0
        ),
        energy_nanodollars=work.energy_nanodollars,
        capital_nanodollars=work.capital_nanodollars,
        worker_ns=work.worker_ns,
        ttft_ns=measured.ttft_ns,
        decode_ns=measured.decode_ns,
        ending=ending,
    )


def voiding(hold: Reserved, unix_ns: int, reason: VoidReason) -> Voided:
    """The entry that gives a reservation back."""
    return Voided(
        at_unix_ns=unix_ns,
        request=hold.request,
        attempt=hold.attempt,
        payer=hold.payer,
        model=hold.model,
        tier_asked=hold.tier_asked,
        reserved_unix_ns=hold.at_unix_ns,
        reason=reason,
    )


def _without_lifted(held: Held, limit: LimitID | None = None) -> Held:
    """A reservation that lets go of windows of limits that were lifted: of one, or of all."""
    if not any(each.lifted for each in held.windows):
        return held
    kept = []
    for window in held.windows:
        if window.lifted and limit in (None, window.limit.limit):
            release((window,), held.entry.hold_tokens, held.entry.hold_nanodollars)
        else:
            kept.append(window)
    return Held(held.entry, tuple(kept))


def _count(held: Held, entry: Settlement, sign: int) -> None:
    """Move a hold to what was used of it; or back, with sign -1."""
    if not held.windows:
        return
    hold, tier, tokens, nanodollars = held.entry, None, 0, 0
    if isinstance(entry, Posted) and entry.ending != "failed":
        tier, usage = entry.tier_delivered, entry.usage
        tokens = prompt_tokens(usage) + completion_tokens(usage)
        nanodollars = entry.charged_nanodollars - entry.credited_nanodollars
    release(
        held.windows,
        sign * (hold.input_tokens_max + hold.output_tokens_max),
        sign * hold.hold_nanodollars,
        tier=tier,
        tokens=sign * tokens,
        nanodollars=sign * nanodollars,
    )


def _most(order: Order, payer: Payer, prices: HoldPrice, book: PriceBook, unix_ns: int) -> int:
    """The most that a request can be charged, in nano-dollars."""
    rate_ppm, batch = PPM, order.batch
    if has_rates(book, batch=batch):
        rate_ppm = book.rate_ppm_max(payer.tenant, order.model, unix_ns, batch=batch)
    return prices.hold_nanodollars(order.input_tokens_max, order.output_tokens_max, rate_ppm)


def _refused(code: RefusedCode, message: str) -> Refused:
    return Refused(code=code, message=message)
