"""The ledger: reserve, then post or void; who has used what; and sums that always balance."""

from __future__ import annotations

from collections import Counter
from typing import Final, TypeVar, assert_never

import msgspec

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.ids import KeyID, PoolID, RequestID, TenantID, WorkerID
from tokenworks.core.orders import Order, Outcome
from tokenworks.core.slo import Tier, delivered_tier
from tokenworks.ledger.accounts import AD_INCOME, AD_NETWORK, SUPPLIER, AccountID, Accounts, Balance
from tokenworks.ledger.entries import (
    CostAccrued,
    Ending,
    Entry,
    Posted,
    Reserved,
    Settlement,
    Voided,
    VoidReason,
    accrual_request,
)
from tokenworks.ledger.metering import (
    ad_income_nanodollars,
    charge_nanodollars,
    hold_nanodollars,
    sum_holds,
)
from tokenworks.ledger.quotas import KeyRecord, KeyUse, Refused, RefusedCode, quota_refusal

OPEN_HOLDS_MAX: Final = 100_000
SETTLED_MAX: Final = 100_000
"""Settlements remembered, to answer repeats and to take back; more than a store ever queues.
Repeats older than these are refused by the store's unique key."""
ACCRUALS_MAX: Final = 32
"""Cost intervals remembered per pool, for the same."""

SettlementT = TypeVar("SettlementT", bound=Posted | Voided)

_ENDINGS: Final[dict[str, Ending]] = {
    "done": "done",
    "disconnected": "disconnected",
    "failed": "failed",
}


class Ledger:
    """A state machine over entries. Every method that changes it returns the entries that say how.

    The caller makes the returned entries durable, in order. An entry that could not be made
    durable is taken back with ``retract``. All of a process's requests must go through one ledger:
    the quotas are hard because checking and holding are one step.

    Args:
        owner: written into each reservation; new for each process.
        open_holds_max: reservations open at once.
        settled_max: settlements remembered to answer repeats.
    """

    def __init__(
        self, owner: str, *, open_holds_max: int = OPEN_HOLDS_MAX, settled_max: int = SETTLED_MAX
    ) -> None:
        assert open_holds_max > 0, open_holds_max
        assert settled_max > 0, settled_max
        self.owner = owner
        self._open_holds_max = open_holds_max
        self._settled_max = settled_max
        self._keys: dict[KeyID, KeyRecord] = {}
        self._uses: dict[KeyID, KeyUse] = {}
        self._holds: dict[tuple[RequestID, int], Reserved] = {}
        self._settled: dict[tuple[RequestID, int], tuple[Reserved, Settlement]] = {}
        self._accrued: dict[PoolID, list[CostAccrued]] = {}
        self._accounts = Accounts()

    # Keys and readings.

    def set_key(self, record: KeyRecord) -> None:
        """Learn a key, or its new quotas, or that it is revoked."""
        self._keys[record.key] = record

    def key(self, key: KeyID) -> KeyRecord | None:
        """What is known of a key."""
        return self._keys.get(key)

    def use_of(self, key: KeyID) -> KeyUse:
        """What a key has used and holds."""
        return self._uses.get(key, KeyUse())

    def uses(self) -> dict[KeyID, KeyUse]:
        """The same for every key that has used or holds something."""
        return {key: use for key, use in sorted(self._uses.items()) if use != KeyUse()}

    def open_holds(self) -> tuple[Reserved, ...]:
        """Reservations neither posted nor voided, oldest first."""
        return tuple(self._holds.values())

    def balances(self) -> dict[AccountID, Balance]:
        """Debits and credits of each account that money has moved through, by name."""
        return self._accounts.balances()

    def pending(self) -> dict[TenantID, int]:
        """Nano-dollars that each tenant's open reservations may still debit from its wallet."""
        rows: Counter[TenantID] = Counter()
        for hold in self._holds.values():
            rows[hold.tenant] += hold.hold_nanodollars
        return dict(sorted(rows.items()))

    # Commands.

    def reserve(
        self,
        now_ns: int,
        unix_ns: int,
        order: Order,
        book: PriceBook,
        ttl_ns: int,
        *,
        attempt: int = 0,
    ) -> Reserved | Refused:
        """Hold the most that a request can use, or say why not.

        Repeating it while the hold is open returns the earlier result.

        Args:
            now_ns: the driver's clock.
            unix_ns: the date, for the record.
            order: the request.
            book: the prices in force.
            ttl_ns: the hold expires this long after now.
            attempt: counts the tries of one request.
        """
        earlier = self._earlier_hold(order, attempt)
        if earlier is not None:
            return earlier
        record = self._keys.get(order.key.key)
        if record is None:
            return _refused("invalid_api_key", f"There is no key {order.key.key!r}.")
        if record.revoked_unix_ns is not None:
            return _refused("invalid_api_key", f"Key {record.key!r} is revoked.")
        prices = book.prices.get(order.model)
        if prices is None:
            return _refused("model_not_found", f"{order.model!r} has no price in {book.price_id}.")
        if len(self._holds) >= self._open_holds_max:
            return _refused(
                "capacity_exceeded", f"{len(self._holds)} reservations are open, which is the most."
            )
        hold = Reserved(
            at_unix_ns=unix_ns,
            request=order.request,
            attempt=attempt,
            key=record.key,
            tenant=record.tenant,
            model=order.model,
            tier_asked=order.tier,
            input_tokens_max=order.input_tokens_max,
            output_tokens_max=order.output_tokens_max,
            hold_nanodollars=hold_nanodollars(
                order.input_tokens_max, order.output_tokens_max, order.tier, prices
            ),
            price_id=book.price_id,
            owner=self.owner,
            expires_ns=now_ns + ttl_ns,
        )
        refusal = quota_refusal(record, self.use_of(record.key), hold)
        if refusal is None:
            self._open(hold)
        return refusal or hold

    def post(
        self,
        unix_ns: int,
        request: RequestID,
        attempt: int = 0,
        *,
        outcome: Outcome,
        pool: PoolID,
        worker: WorkerID,
        worker_ns: int,
        cost_nanodollars: int,
        book: PriceBook,
    ) -> Posted | Refused:
        """Bill an answer at the tier that was delivered and give the hold back.

        ``done`` and ``disconnected`` bill what was produced: a client that leaves pays for what
        was made until then. ``failed`` is our fault: it bills nothing, earns nothing, counts
        nothing against the quota and is delivered as free, but the entry keeps its tokens, time
        and cost. Usage above the hold is billed and counted in full. Advertisers pay only for
        answers that were asked for as free.

        Repeating it with the same content returns the earlier entry; other content, or a hold that
        was voided in between, is refused.

        Args:
            unix_ns: the date, for the record.
            request: what was reserved.
            attempt: the try that made the answer.
            outcome: how the answer ended, as the gateway saw it.
            pool: where it was made.
            worker: who made it.
            worker_ns: its time on the worker.
            cost_nanodollars: its share of the worker's cost.
            book: the prices to bill at.
        """
        assert worker_ns >= 0, worker_ns
        assert cost_nanodollars >= 0, cost_nanodollars
        hold, earlier = self._found(request, attempt)
        if hold is None:
            return _refused("not_reserved", f"{request!r} attempt {attempt} has no reservation.")
        entry = _posting(
            hold,
            unix_ns=unix_ns,
            outcome=outcome,
            pool=pool,
            worker=worker,
            worker_ns=worker_ns,
            cost_nanodollars=cost_nanodollars,
            book=book,
        )
        return self._settle(hold, earlier, entry)

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
        hold, earlier = self._found(request, attempt)
        if hold is None:
            return _refused("not_reserved", f"{request!r} attempt {attempt} has no reservation.")
        return self._settle(hold, earlier, _voiding(hold, unix_ns, reason))

    def expire(self, now_ns: int, unix_ns: int) -> list[Voided]:
        """Void this process's own holds whose time has passed."""
        late = [
            hold
            for hold in self._holds.values()
            if hold.owner == self.owner and hold.expires_ns <= now_ns
        ]
        return [self._close(hold, _voiding(hold, unix_ns, "expired")) for hold in late]

    def void_orphans(self, unix_ns: int) -> list[Voided]:
        """Void every hold of another process. Only for the one process that owns the store."""
        orphans = [hold for hold in self._holds.values() if hold.owner != self.owner]
        return [self._close(hold, _voiding(hold, unix_ns, "expired")) for hold in orphans]

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
            at_unix_ns=unix_ns,
            request=accrual_request(pool, from_unix_ns),
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

        Raises:
            LedgerCorrupt: it contradicts an earlier entry, settles what was not reserved, or its
                sums are not what its tokens and prices give.
        """
        match entry:
            case Reserved():
                held, _ = self._found(entry.request, entry.attempt)
                if held is None:
                    self._open(entry)
                elif held != entry:
                    raise LedgerCorrupt(f"{entry!r} contradicts {held!r}.")
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
                self._accounts.take_back(entry.transfers())
            return
        place = (entry.request, entry.attempt)
        hold, settlement = self._found(*place)
        if settlement is not None and entry in (hold, settlement):
            self._reopen(place)
        if hold is not None and entry == hold:
            del self._holds[place]
            self._add_use(hold, -1)

    def check(self) -> None:
        """Compare every sum with every other that must equal it.

        Raises:
            LedgerCorrupt: two of them differ.
        """
        self._accounts.check()
        held: dict[KeyID, KeyUse] = {}
        for hold in self._holds.values():
            held[hold.key] = held.get(hold.key, KeyUse()).add(
                held_tokens=hold.hold_tokens, held_nanodollars=hold.hold_nanodollars
            )
        for key, use in self._uses.items():
            want = held.get(key, KeyUse())
            if (use.held_tokens, use.held_nanodollars) != (want.held_tokens, want.held_nanodollars):
                raise LedgerCorrupt(f"{key!r} holds {use!r}; its open reservations say {want!r}.")
        total = self._accounts.total
        used = sum(use.used_nanodollars for use in self._uses.values())
        for name, left, right in (
            ("wallets and keys", total("wallet:").debits_nanodollars, used),
            ("revenue and keys", total("revenue:").credits_nanodollars, used),
            (
                "advertisers and ad income",
                total(AD_NETWORK).debits_nanodollars,
                total(AD_INCOME).credits_nanodollars,
            ),
            (
                "costs and supplier",
                total("cost:").debits_nanodollars,
                total(SUPPLIER).credits_nanodollars,
            ),
        ):
            if left != right:
                raise LedgerCorrupt(f"The sums of {name} differ: {left!r} and {right!r}.")

    # Inner steps.

    def _found(
        self, request: RequestID, attempt: int
    ) -> tuple[Reserved, Settlement | None] | tuple[None, None]:
        place = (request, attempt)
        if place in self._holds:
            return self._holds[place], None
        return self._settled.get(place, (None, None))

    def _earlier_hold(self, order: Order, attempt: int) -> Reserved | Refused | None:
        hold, settlement = self._found(order.request, attempt)
        if hold is None:
            return None
        same = (
            hold.key == order.key.key
            and hold.model == order.model
            and hold.tier_asked == order.tier
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
        self, hold: Reserved, earlier: Settlement | None, entry: SettlementT
    ) -> SettlementT | Refused:
        if earlier is None:
            return self._close(hold, entry)
        if not isinstance(earlier, type(entry)):
            return _refused(
                "already_settled", f"{hold.request!r} attempt {hold.attempt} was settled before."
            )
        if msgspec.structs.replace(entry, at_unix_ns=earlier.at_unix_ns) != earlier:
            return _refused(
                "conflict", f"{hold.request!r} attempt {hold.attempt} was settled otherwise."
            )
        return earlier

    def _open(self, hold: Reserved) -> None:
        self._holds[hold.request, hold.attempt] = hold
        self._add_use(hold, 1)

    def _close(self, hold: Reserved, entry: SettlementT) -> SettlementT:
        place = (hold.request, hold.attempt)
        del self._holds[place]
        self._add_use(hold, -1)
        self._accounts.move(entry.transfers())
        self._add_posted(entry, 1)
        self._settled[place] = (hold, entry)
        while len(self._settled) > self._settled_max:
            del self._settled[next(iter(self._settled))]
        return entry

    def _reopen(self, place: tuple[RequestID, int]) -> None:
        hold, entry = self._settled.pop(place)
        self._add_posted(entry, -1)
        self._accounts.take_back(entry.transfers())
        self._open(hold)

    def _add_use(self, hold: Reserved, sign: int) -> None:
        self._uses[hold.key] = self.use_of(hold.key).add(
            held_tokens=sign * hold.hold_tokens, held_nanodollars=sign * hold.hold_nanodollars
        )

    def _add_posted(self, entry: Settlement, sign: int) -> None:
        if isinstance(entry, Posted):
            self._uses[entry.key] = self.use_of(entry.key).add(
                used_tokens=sign * entry.counted_tokens,
                used_nanodollars=sign * entry.charged_nanodollars,
            )

    def _apply_settlement(self, entry: Settlement) -> None:
        hold, earlier = self._found(entry.request, entry.attempt)
        if hold is None:
            raise LedgerCorrupt(f"{entry!r} settles what was not reserved.")
        if earlier == entry:
            return
        if earlier is not None:
            raise LedgerCorrupt(f"{entry!r} contradicts {earlier!r}.")
        if (entry.key, entry.tenant) != (hold.key, hold.tenant):
            raise LedgerCorrupt(f"{entry!r} settles the reservation of another: {hold!r}.")
        if isinstance(entry, Posted) and not sum_holds(entry):
            raise LedgerCorrupt(f"The sums of {entry!r} are not what its tokens and prices give.")
        self._close(hold, entry)

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
        self._accounts.move(entry.transfers())


def _refused(code: RefusedCode, message: str) -> Refused:
    return Refused(code=code, message=message)


def _posting(
    hold: Reserved,
    *,
    unix_ns: int,
    outcome: Outcome,
    pool: PoolID,
    worker: WorkerID,
    worker_ns: int,
    cost_nanodollars: int,
    book: PriceBook,
) -> Posted:
    usage, ending = outcome.usage, _ENDINGS[outcome.ending]
    failed = ending == "failed"
    tier = Tier.FREE if failed else delivered_tier(hold.tier_asked, book.promises, outcome.measured)
    price = book.prices[hold.model][tier]
    # An answer that missed a paid promise was never sold to advertisers.
    ad_rate = book.ad_income_udollars_per_mtok if hold.tier_asked is Tier.FREE and not failed else 0
    return Posted(
        at_unix_ns=unix_ns,
        request=hold.request,
        attempt=hold.attempt,
        key=hold.key,
        tenant=hold.tenant,
        model=hold.model,
        tier_asked=hold.tier_asked,
        tier_delivered=tier,
        pool=pool,
        worker=worker,
        uncached_input_tokens=usage.input_tokens - usage.cached_input_tokens,
        cached_input_tokens=usage.cached_input_tokens,
        output_tokens=usage.output_tokens,
        price_id=book.price_id,
        price=price,
        charged_nanodollars=0 if failed else charge_nanodollars(usage, price),
        ad_income_udollars_per_mtok=ad_rate,
        ad_income_nanodollars=ad_income_nanodollars(usage.output_tokens, ad_rate),
        cost_nanodollars=cost_nanodollars,
        worker_ns=worker_ns,
        ttft_ns=outcome.measured.ttft_ns,
        decode_ns=outcome.measured.decode_ns,
        ending=ending,
    )


def _voiding(hold: Reserved, unix_ns: int, reason: VoidReason) -> Voided:
    return Voided(
        at_unix_ns=unix_ns,
        request=hold.request,
        attempt=hold.attempt,
        key=hold.key,
        tenant=hold.tenant,
        model=hold.model,
        tier_asked=hold.tier_asked,
        reason=reason,
    )
