"""Where entries are kept, as a protocol, and how a ledger is rebuilt from it."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence
from typing import Protocol

from tokenworks.core.ids import KeyID, PriceID
from tokenworks.ledger.entries import Entry
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.quotas import KeyRecord


class LedgerStore(Protocol):
    """A durable list of entries, and the keys. Entries are never edited nor removed.

    One entry exists per (request, attempt, phase): appending an identical one again changes
    nothing, and one with other content is refused. A settlement is refused until its reservation
    is stored, so what is stored always rebuilds.
    """

    def append(self, entries: Sequence[Entry]) -> Awaitable[None]:
        """Store some entries, all or none; call it from a running loop.

        Entries are stored in the order of the calls. Awaiting the result is optional only for a
        caller who does not care whether it happened.

        Raises:
            LedgerUnavailable: (on awaiting) none of these entries is stored.
            LedgerCorrupt: (on awaiting) one has other content than the one stored, or settles what
                was not reserved; none of these entries is stored.
        """
        ...

    def append_now(self, entries: Sequence[Entry]) -> None:
        """The same for tools without a loop; returns when it is durable."""
        ...

    def load_entries(self) -> Iterator[Entry]:
        """All entries, oldest first."""
        ...

    def load_keys(self) -> list[KeyRecord]:
        """All keys, revoked ones too, by id."""
        ...

    def put_key(self, record: KeyRecord) -> None:
        """Add a key, or replace the one of that id.

        Raises:
            ConfigInvalid: another key has this secret.
            LedgerUnavailable: it is not stored.
        """
        ...

    def revoke_key(self, key: KeyID, revoked_unix_ns: int) -> bool:
        """Close a key for ever; False when there is none. A second time changes nothing.

        Raises:
            LedgerUnavailable: it is not stored.
        """
        ...

    def keys_version(self) -> int:
        """A number that rises with each change of keys, whoever makes it."""
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

    def close(self) -> None:
        """Store what is queued and let go."""
        ...


def recover(store: LedgerStore, owner: str) -> Ledger:
    """Rebuild a ledger from its entries.

    Reservations that another process left open are still open: the caller stores what
    ``Ledger.void_orphans`` returns before it serves.

    Args:
        store: what to read.
        owner: the name under which the ledger will reserve, new for each process.

    Raises:
        LedgerCorrupt: the entries do not add up.
    """
    ledger = Ledger(owner)
    for record in store.load_keys():
        ledger.set_key(record)
    for entry in store.load_entries():
        ledger.apply(entry)
    ledger.check()
    return ledger
