"""Where entries are kept, as a protocol, and how a ledger is rebuilt from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence, Sized
from typing import Protocol

from tokenworks.core.errors import LedgerUnavailable, TokenworksError
from tokenworks.core.ids import KeyID, LimitID, PoolID, PriceID
from tokenworks.ledger.block_record import Block
from tokenworks.ledger.entries import Entry, Reserved
from tokenworks.ledger.extras import Extra
from tokenworks.ledger.leases import Counted, Shortage, WindowUse
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.quota_records import UNIX_NS_MAX, KeyRecord, Limit, LimitState
from tokenworks.ledger.rollup import PayerNames, RollupRow

Told = Callable[[Sequence[Entry], TokenworksError | None], None]
"""Is told of entries that were to be stored what was wrong, if anything; it may not raise."""


class InDoubt(LedgerUnavailable):
    """It is not known whether some entries are stored; the next start of a process finds out.

    The store that raises it stores nothing more, so nothing can contradict what is found then.
    """


class TakenOver(LedgerUnavailable):
    """Another process held this one for dead and gave back what it held; it stores nothing more."""


class LedgerStore(Protocol):
    """A durable chain of blocks of entries, their sums, keys, limits and price books.

    A store that appends does so for one owner, the process. Entries are never edited nor removed.
    One entry exists per (request, attempt, phase): appending an identical one again changes
    nothing, and one with other content is refused. A settlement is refused until its reservation
    is stored, so what is stored always rebuilds.

    That holds for what this process has open, for what it took over, and for its latest
    ``stored.RECENT_MAX`` settlements. A settlement that is older, or another process's, is refused
    as one without a reservation. A reservation of that name is new, and bills once more; so a
    request's id is made once, by the process that reserves it, and an audit finds one that was not.
    """

    owner: str
    """The process that appends here; written into every block."""

    def append(self, entries: Sequence[Entry]) -> Awaitable[None]:
        """Store some entries, all or none; call it from a running loop.

        Entries are stored in the order of the calls, together with what others append in the same
        milliseconds. Awaiting the result is optional only for a caller who does not care whether
        it happened.

        Raises:
            LedgerUnavailable: (on awaiting) none of these entries is stored.
            InDoubt: (on awaiting) all of these entries are stored, or none.
            LedgerCorrupt: (on awaiting) one has other content than the one stored, or settles what
                was not reserved; none of these entries is stored.
        """
        ...

    def keep(
        self, entries: Sequence[Entry], told: Told, held_back: Sized = (), *, patient: bool = False
    ) -> None:
        """The same for a caller who goes on meanwhile; on one loop at a time.

        Args:
            entries: as before; nobody may change the sequence.
            told: called once, on the loop and after this has returned, with ``entries`` and the
                error that ``append`` would raise.
            held_back: reservations that the caller keeps, to store them with their settlements:
                requests that are open, and of which the store does not know. It may count them
                later, too, on any thread.
            patient: whether whoever waits may wait a little longer, while many requests are open.
        """
        ...

    def append_now(self, entries: Sequence[Entry]) -> None:
        """The same for tools without a loop; returns when it is durable."""
        ...

    def take_over(self, seen_before_unix_ns: int) -> list[Reserved]:
        """Become the owner of what dead processes left open, and say what that is.

        They are ended: should one of them still live, it can append nothing more.

        Args:
            seen_before_unix_ns: processes that have appended or said that they live since then
                are left alone.
        """
        ...

    def alive(self, unix_ns: int) -> None:
        """Say that this process lives.

        Raises:
            LedgerUnavailable: it was taken over, or the store cannot be written.
        """
        ...

    def latest_unix_ns(self) -> int:
        """The latest date at which any process was here; 0 if none was."""
        ...

    def blocks(self, after_seq: int = 0) -> Iterator[Block]:
        """All blocks after one, in order."""
        ...

    def rollups(
        self,
        since_unix_ns: int | None = None,
        until_unix_ns: int | None = None,
        *,
        by_hour: bool = False,
        by_payer: bool = True,
        by_agent: bool = False,
        by_run: bool = False,
        of: PayerNames | None = None,
    ) -> list[RollupRow]:
        """Sums of all that is stored, by hour or over the whole time.

        Args:
            since_unix_ns: hours that begin then or later.
            until_unix_ns: hours that begin before then.
            by_hour: a row for each hour, payer and kind; else one for each payer and kind, whose
                start is 0, which are far fewer and quickly found.
            by_payer: tell payers apart; else every row's payer is ``rollup.NOBODY``.
            by_agent: tell their agents apart, too; callers name them as they like.
            by_run: tell agents and runs apart, of which there may be very many.
            of: only payers with these names, whatever is told apart; they are quickly found.
        """
        ...

    def load_limits(self) -> list[Limit]:
        """All limits, by id."""
        ...

    def put_limit(self, limit: Limit) -> None:
        """Add a limit, or replace the one of that id."""
        ...

    def remove_limit(self, limit: LimitID) -> bool:
        """Lift a limit; False when there is none."""
        ...

    def load_extras(self) -> list[Extra]:
        """All extra budget, asked, approved and denied, oldest first."""
        ...

    def put_extra(self, extra: Extra) -> None:
        """Add extra budget, or replace the one of that id."""
        ...

    def decide_extra(
        self, extra: str, decide: Callable[[Extra, Sequence[Limit]], Extra]
    ) -> Extra | None:
        """Decide on extra budget; nobody else decides meanwhile.

        Args:
            extra: its id.
            decide: given it and all limits as they are, makes what takes its place. It may raise:
                then nothing changes.

        Returns:
            What was made; None where there is none of that id.
        """
        ...

    def lease(
        self, shortages: Sequence[Shortage], unix_ns: int
    ) -> list[int] | tuple[Shortage, WindowUse | None]:
        """Grant this process more of some limits, all or none.

        From the first call on, be it for nothing, what this process appends counts against its
        leases, by the limits that are set when it is stored.

        Returns:
            What was granted of each, at least what was missing; or the first that has not so much
            left, with how it stands over all processes. All that have not are then wanted, so that
            a request that lacks several waits for them at once: see ``wanted``. Or one that is set
            no more, with None.

        Raises:
            LedgerUnavailable: the store cannot be asked, or this process was taken over.
        """
        ...

    def count_by(self, counted: Counted) -> None:
        """Learn which windows have counted what this process appends.

        What it uses of others is covered by none of its leases: it used it before it had taken
        their limit up, or after it was lifted.

        Args:
            counted: asked on any thread when an entry is stored.
        """
        ...

    def cover(self, lacking: Sequence[Shortage]) -> None:
        """Grant this process what it uses and holds already, also where so much is not left.

        Raises:
            LedgerUnavailable: the store cannot be told; nothing was granted.
        """
        ...

    def give_back(self, rest: Sequence[Shortage]) -> None:
        """Give back parts of this process's leases that it neither uses nor holds.

        Raises:
            LedgerUnavailable: the store cannot be told; nothing was given back.
        """
        ...

    def wanted(self, since_unix_ns: int) -> list[tuple[LimitID, int]]:
        """Limits and windows of which some process has lacked something since a time."""
        ...

    def claim_costs(self, pools: Mapping[PoolID, str], unix_ns: int) -> dict[PoolID, int]:
        """Ask to be the one process that writes down what some pools cost.

        It stays so until it is taken over or has ended. What it appends of these pools' costs from
        then on moves the date.

        Args:
            pools: pools whose servers other processes may use, too, each with what tells its
                servers from others.
            unix_ns: now.

        Returns:
            Those that are this process's, each with the date until which its cost is stored by
            whoever it was before; 0 if nobody was.

        Raises:
            LedgerUnavailable: the store cannot be asked, or this process was taken over.
        """
        ...

    def limit_states(self, unix_ns: int) -> list[LimitState]:
        """Every limit with its present window, used until now by all processes."""
        ...

    def read_limits(self, unix_ns: int) -> Callable[[], list[LimitState]]:
        """The same, for a process that goes on appending while it reads on another thread.

        Returns:
            What its loop calls, once: the limits with what was used until this call, whatever it
            has appended since they were read.

        Raises:
            LedgerUnavailable: they cannot be read.
        """
        ...

    def load_keys(self) -> list[KeyRecord]:
        """All keys, revoked ones too, by id."""
        ...

    def put_key(self, record: KeyRecord) -> None:
        """Add a key, or replace the one of that id; one that is revoked stays so, from then on.

        Raises:
            ConfigInvalid: another key has, or had before its last, this secret.
            LedgerUnavailable: it is not stored.
        """
        ...

    def rotate_key(self, key: KeyID, secret_sha256: str, old_until_unix_ns: int) -> bool:
        """Give a key a new secret; the one that it had opens the gate, too, until a time.

        One that it had before that opens nothing any more. False where there is no such key, or it
        is revoked.

        Raises:
            ConfigInvalid: a key has, or had before its last, this secret.
            LedgerUnavailable: it is not stored.
        """
        ...

    def revoke_key(self, key: KeyID, revoked_unix_ns: int) -> bool:
        """Close a key for ever; False when there is none. A second time changes nothing.

        Raises:
            LedgerUnavailable: it is not stored.
        """
        ...

    def settings_version(self) -> int:
        """A number that rises with each change of keys, limits or extra budget by anybody."""
        ...

    def put_price_book(self, price_id: PriceID, text: str, first_used_unix_ns: int) -> None:
        """Keep a price book's text under its id, for ever; a second time changes nothing.

        Raises:
            LedgerUnavailable: it is not stored.
        """
        ...

    def load_price_book(self, price_id: PriceID) -> str | None:
        """The text kept under an id."""
        ...

    def activated_books(self) -> list[str]:
        """Texts of the price books that were put into force here, the first one first."""
        ...

    def close(self) -> None:
        """Store what is queued and let go."""
        ...


def recover(store: LedgerStore, unix_ns: int) -> Ledger:
    """Rebuild the ledger of the only process that uses a store.

    Reservations that another process left open are in it, still open: the caller stores what
    ``Ledger.void_orphans`` returns before it serves.

    Args:
        store: what to read.
        unix_ns: now.

    Raises:
        LedgerCorrupt: the entries do not add up.
    """
    # A clock that has gone back must not open a window again that is over.
    unix_ns = max(unix_ns, store.latest_unix_ns())
    ledger = Ledger(store.owner, unix_ns=unix_ns)
    store.alive(unix_ns)
    for record in store.load_keys():
        ledger.set_key(record)
    # Whoever else was here is dead, also where the clock has gone back since.
    for hold in store.take_over(UNIX_NS_MAX):
        ledger.apply(hold)
    ledger.set_limits(store.limit_states(unix_ns))
    ledger.check()
    return ledger


def join(store: LedgerStore, unix_ns: int) -> Ledger:
    """A ledger for one of several processes that use a store; it leases what it uses of limits.

    Args:
        store: what to read.
        unix_ns: now.

    Raises:
        LedgerUnavailable: the store cannot be read.
    """
    unix_ns = max(unix_ns, store.latest_unix_ns())
    ledger = Ledger(store.owner, leased=True, unix_ns=unix_ns)
    store.count_by(ledger.counted)
    store.alive(unix_ns)
    store.lease((), unix_ns)
    for record in store.load_keys():
        ledger.set_key(record)
    ledger.set_limits(store.limit_states(unix_ns))
    return ledger
