"""The twin's bookkeeper: reserves what a request may use, and bills what was made of it.

As in the live one, the ledger counts at once and the store may take its time: what cannot be
stored is tried again, and a posting that cannot be is taken back and its hold voided.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Final, Literal, Protocol

import msgspec

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.ids import KeyID, LimitID, RequestID, TenantID
from tokenworks.core.orders import Ending, KeyView, Order, Outcome, Usage
from tokenworks.core.slo import Measured, Tier
from tokenworks.core.units import NS_PER_HOUR, NS_PER_MS, NS_PER_S
from tokenworks.ledger.entries import Entry, Posted, Reserved, VoidReason
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.quota_records import KeyRecord, Limit, LimitState, Refused
from tokenworks.ledger.quotas import window_start
from tokenworks.ledger.work import Work
from tokenworks.twin.clock import JumpingClock
from tokenworks.twin.records import NEVER, End, Outcomes, Scenario, TwinRequest
from tokenworks.twin.rivals import Rivals
from tokenworks.twin.sequence import Sequence as Attempt
from tokenworks.twin.store import Answer, Store

HOLD_NS_MAX: Final = 3_600 * NS_PER_S
"""A reservation expires after this long."""
HOUSEKEEPING_NS: Final = 200 * NS_PER_MS
_OWNER: Final = "twin"
_ENDINGS: Final[dict[End, Ending]] = {
    End.DONE: "done",
    End.WITHDRAWN: "disconnected",
    End.FAILED: "failed",
}
_REASONS: Final[dict[End, VoidReason]] = {
    End.REJECTED: "rejected",
    End.WITHDRAWN: "withdrawn",
    End.FAILED: "failed",
}

Trouble = Literal["unavailable", "corrupt"]
"""Why nothing of an append is stored."""
Done = Callable[[Trouble | None], None]


class Desk(Protocol):
    """What a bookkeeper asks of the driver."""

    clock: JumpingClock
    rivals: Rivals

    def at(self, at_ns: int, action: Callable[[], None]) -> None:
        """Put something on the agenda."""
        ...

    def reading(self) -> int:
        """What the clock says."""
        ...

    def admit(self, place: int, arrived_ns: int) -> None:
        """Let a request in that came at a reading of the clock."""
        ...

    def refuse(self, place: int) -> None:
        """End a request for which nothing can be held."""
        ...

    def made(self, sequence: Attempt) -> int:
        """Tokens that an attempt has made until now."""
        ...


def key_of(tenant: TenantID) -> KeyRecord:
    """The one key of a tenant in the twin."""
    return KeyRecord(
        key=KeyID(f"key_{tenant}"),
        tenant=tenant,
        team=None,
        engineer=None,
        name="twin",
        secret_sha256="",
        tier_default=Tier.FREE,
        created_unix_ns=0,
        revoked_unix_ns=None,
    )


class Bookkeeper:
    """What the driver asks of money.

    Args:
        store: where entries are kept.
        limits: quotas of tenants.
        unix_ns: the date at which the run begins.

    Attributes:
        ledger: the one that also serves live.
        store: where entries are kept.
        refused: requests for which the ledger would hold nothing, by its code.
        unbilled: answers that could not be stored, and so are not billed.
        books: by place of a request, the prices and promises that hold for it.
        revoked_unix_ns: when keys of tenants were revoked.
        over: what limits had used and held that were lowered to less than that; they may go on with
            that much, and no more.
    """

    def __init__(self, store: Store, limits: Sequence[Limit] = (), *, unix_ns: int = 0) -> None:
        self.ledger = Ledger(_OWNER, unix_ns=unix_ns)
        self.store = store
        self.refused: dict[str, int] = {}
        self.unbilled: list[RequestID] = []
        self.books: dict[int, PriceBook] = {}
        self.revoked_unix_ns: dict[TenantID, int] = {}
        self.over: dict[LimitID, int] = {}
        self._unix_ns = unix_ns
        self._keys: dict[TenantID, KeyView] = {}
        self._coming: dict[int, None] = {}
        self._unstored: list[Entry] = []
        self._trouble = self._round_is_due = False
        self.ledger.set_limits(
            LimitState(limit=each, start_unix_ns=window_start(each.period, unix_ns), used=0)
            for each in limits
        )

    def begin(
        self, desk: Desk, requests: Sequence[TwinRequest], scenario: Scenario, outcomes: Outcomes
    ) -> None:
        """Before the run."""
        self._desk, self._requests = desk, requests
        self._scenario, self._outcomes, self._book = scenario, outcomes, scenario.book
        for tenant in dict.fromkeys(request.tenant for request in requests):
            record = key_of(tenant)
            self.ledger.set_key(record)
            self._keys[tenant] = record.view()

    # What an operator changes.

    def put_limits(self, limits: Sequence[Limit]) -> None:
        """Put exactly these limits into force; none that was not in force before."""
        known = {window.limit.limit for window in self.ledger.windows()}
        unix_ns = self.ledger.date(self._date())
        self.ledger.set_limits(
            LimitState(limit=each, start_unix_ns=window_start(each.period, unix_ns), used=0)
            for each in limits
            if each.limit in known
        )
        self.over = {
            window.limit.limit: window.used + window.held
            for window in self.ledger.windows()
            if window.free < 0
        }

    def revoke(self, tenant: TenantID) -> None:
        """Revoke a tenant's key: what it has begun goes on, and nothing new is let in."""
        date = self.ledger.date(self._date())
        record = msgspec.structs.replace(key_of(tenant), revoked_unix_ns=date)
        self.ledger.set_key(record)
        self.revoked_unix_ns.setdefault(tenant, date)

    def open_book(self, book: PriceBook) -> None:
        """Put other prices and promises into force, for what comes from now on."""
        self._book = book

    # Reserving.

    def reserve(self, place: int) -> None:
        """Hold the most that a request can use, and let it in, or refuse it."""
        arrived_ns = self._desk.reading()
        order = self._order(self._requests[place], arrived_ns)
        book = self.books[place] = self._book
        held = self._hold(order, book)
        if isinstance(held, Refused):
            self.refused[held.code] = self.refused.get(held.code, 0) + 1
            self._desk.refuse(place)
            return
        again = functools.partial(self._hold, order, book)
        if not self._trouble:
            self._append([held], functools.partial(self._kept, [held]), again)
            self._desk.admit(place, arrived_ns)
            return
        # While the store is in trouble nothing is started that could not be billed.
        self._coming[place] = None
        self._append([held], functools.partial(self._held, place, held, arrived_ns), again)

    def has_let_in(self, place: int) -> bool:
        """Whether the driver was told to let a request in; else it waits for the store."""
        return place not in self._coming

    def _held(self, place: int, held: Reserved, arrived_ns: int, trouble: Trouble | None) -> None:
        """The store has answered about a reservation that waited for it."""
        self._kept([held], trouble)
        if place not in self._coming:
            return  # the client left meanwhile
        del self._coming[place]
        if trouble is None:
            self._desk.admit(place, arrived_ns)
        else:
            self._desk.refuse(place)

    def _hold(self, order: Order, book: PriceBook) -> Reserved | Refused:
        return self.ledger.reserve(self._desk.reading(), self._date(), order, book, HOLD_NS_MAX)

    def _order(self, request: TwinRequest, arrived_ns: int) -> Order:
        return Order(
            request=request.request,
            key=self._keys[request.tenant],
            model=request.model,
            tier=request.tier,
            body=b"",
            input_tokens_max=request.input_tokens,
            output_tokens_max=request.output_tokens_max,
            prefix=request.blocks,
            arrived_ns=arrived_ns,
        )

    # Settling.

    def settle(self, place: int, end: End, sequence: Attempt | None) -> None:
        """Bill a request that has ended, or give back what was held for it.

        Args:
            place: the request's.
            end: how it ended.
            sequence: its attempt; None if it had none.
        """
        self._coming.pop(place, None)
        request = self._requests[place].request
        # What was not heard of was not delivered.
        answered = self._outcomes.first_token_ns[place] != NEVER
        if sequence is not None and answered and end in _ENDINGS:
            outcome = self._outcome(place, _ENDINGS[end], sequence)
            self._bill(request, outcome, self._work(place))
        else:
            self._void(request, _REASONS[end])

    def _outcome(self, place: int, ending: Ending, sequence: Attempt) -> Outcome:
        outcomes, request = self._outcomes, self._requests[place]
        first_ns, made = outcomes.first_token_ns[place], self._desk.made(sequence)
        return Outcome(
            usage=Usage(
                uncached_input_tokens=request.input_tokens - sequence.cached_tokens,
                cached_input_tokens=sequence.cached_tokens,
                output_tokens=made,
            ),
            measured=Measured(
                ttft_ns=first_ns - outcomes.arrived_ns[place],
                decode_ns=outcomes.finished_ns[place] - first_ns,
                output_tokens=made,
            ),
            ending=ending,
        )

    def _work(self, place: int) -> Work:
        """Who made an answer, and a slot's share of what its worker costs."""
        outcomes = self._outcomes
        spec = self._scenario.workers[outcomes.worker[place]]
        sent_ns = max(outcomes.sent_ns[place], self._desk.rivals.since_ns.get(place, 0))
        worker_ns = outcomes.finished_ns[place] - sent_ns
        hour_nanodollars = spec.capital_udollars_per_hour * 1_000
        # Watts by micro-dollars per kWh are nano-dollars an hour.
        energy_nanodollars = spec.power_w * self._scenario.energy_udollars_per_kwh
        return Work(
            pool=spec.pool,
            worker=spec.worker,
            worker_ns=worker_ns,
            energy_nanodollars=energy_nanodollars * worker_ns // NS_PER_HOUR // spec.slots,
            capital_nanodollars=hour_nanodollars * worker_ns // NS_PER_HOUR // spec.slots,
        )

    def _bill(self, request: RequestID, outcome: Outcome, work: Work) -> None:
        post = functools.partial(
            self.ledger.post, self._date(), request, outcome=outcome, work=work
        )
        entry = post()
        assert not isinstance(entry, Refused), entry
        self._store_posting(entry, post)

    def _store_posting(self, entry: Posted, post: Callable[[], Entry | Refused]) -> None:
        """Store a posting, with what was not stored of its request before."""
        held = [each for each in self._unstored if each.request == entry.request]
        done = functools.partial(self._posted, entry, post, alone=not held)
        self._append([*held, entry], done, post)

    def _posted(
        self,
        entry: Posted,
        post: Callable[[], Entry | Refused],
        trouble: Trouble | None,
        *,
        alone: bool,
    ) -> None:
        """The store has answered; if it did not store a posting, nothing was billed."""
        if trouble is None:
            self._trouble = False
            self._unstored = [each for each in self._unstored if each.request != entry.request]
        elif (
            trouble == "corrupt"
            and alone
            and any(each.request == entry.request for each in self._unstored)
        ):
            self._store_posting(entry, post)  # the reservation failed to be stored a moment before
        else:
            self._in_trouble()
            self.ledger.retract(entry)
            self._void(entry.request, "failed")
            self.unbilled.append(entry.request)

    def _void(self, request: RequestID, reason: VoidReason) -> None:
        """Give a reservation back, if it is still open."""
        void = functools.partial(self.ledger.void, self._date(), request, reason=reason)
        entry = void()
        if not isinstance(entry, Refused):
            self._append([entry], functools.partial(self._kept, [entry]), void)

    # Storing.

    def _append(
        self, entries: list[Entry], done: Done, again: Callable[[], Entry | Refused]
    ) -> None:
        """Store entries, all or none.

        Args:
            entries: what to store.
            done: hears how that went.
            again: asks the ledger for the last of them once more.
        """
        now_ns = self._desk.clock.at_ns
        answer = self.store.ask(now_ns)
        if answer.asked_again:
            repeated = again()
            assert repeated == entries[-1], (repeated, entries[-1])
        stored = functools.partial(self._answered, entries, answer, done)
        if answer.delay_ns:
            self._desk.at(now_ns + answer.delay_ns, stored)
        else:
            stored()

    def _answered(self, entries: list[Entry], answer: Answer, done: Done) -> None:
        if answer.fails:
            done("unavailable")
            return
        try:
            self.store.append(entries)
            if answer.asked_again:
                self.store.append(entries)
        except LedgerCorrupt:
            done("corrupt")
        else:
            done(None)

    def _kept(self, entries: list[Entry], trouble: Trouble | None) -> None:
        """The store has answered about entries that nobody waits for."""
        if trouble is None:
            self._trouble = False
        else:
            self._unstored += entries
            self._in_trouble()

    def _in_trouble(self) -> None:
        self._trouble = True
        if not self._round_is_due:
            self._round_is_due = True
            self._desk.at(self._desk.clock.at_ns + HOUSEKEEPING_NS, self._round)

    def _round(self) -> None:
        """Try entries again that could not be stored: one request's in trouble, else all."""
        self._round_is_due = False
        by_request: dict[RequestID, list[Entry]] = {}
        # A reservation comes before its settlement, whichever of them failed first.
        for entry in sorted(self._unstored, key=lambda each: each.phase != "reserve"):
            by_request.setdefault(entry.request, []).append(entry)
        if self._trouble:
            by_request = dict(itertools.islice(by_request.items(), 1))
        self._unstored = [each for each in self._unstored if each.request not in by_request]
        for entries in by_request.values():
            done = functools.partial(self._kept, entries)
            self._append(entries, done, functools.partial(entries.__getitem__, -1))
        if self._unstored:
            self._in_trouble()

    def _date(self) -> int:
        return self._unix_ns + self._desk.reading()
