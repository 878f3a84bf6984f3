"""A ledger store that forgets everything at the end of the process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import msgspec

from tokenworks.core.errors import ConfigInvalid, LedgerCorrupt
from tokenworks.core.ids import KeyID, PriceID
from tokenworks.ledger.entries import Entry
from tokenworks.ledger.quotas import KeyRecord


class MemoryStore:
    def __init__(self) -> None:
        self._entries: dict[tuple[str, int, str], Entry] = {}
        self._keys: dict[KeyID, KeyRecord] = {}
        self._keys_version = 0
        self._books: dict[PriceID, str] = {}

    def append(self, entries: Sequence[Entry]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self.append_now(entries)
        except LedgerCorrupt as error:
            future.set_exception(error)
        else:
            future.set_result(None)
        return future

    def append_now(self, entries: Sequence[Entry]) -> None:
        after = dict(self._entries)
        for entry in entries:
            place = (entry.request, entry.attempt, entry.phase)
            if after.setdefault(place, entry) != entry:
                raise LedgerCorrupt(f"{entry!r} contradicts what is stored.")
            if entry.phase == "settle" and (*place[:2], "reserve") not in after:
                raise LedgerCorrupt(f"{entry!r} settles what was not reserved.")
        self._entries = after

    def load_entries(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def load_keys(self) -> list[KeyRecord]:
        return [record for _, record in sorted(self._keys.items())]

    def put_key(self, record: KeyRecord) -> None:
        for other in self._keys.values():
            if other.secret_sha256 == record.secret_sha256 and other.key != record.key:
                raise ConfigInvalid(f"Key {record.key!r} has the secret of another key.")
        self._keys[record.key] = record
        self._keys_version += 1

    def revoke_key(self, key: KeyID, revoked_unix_ns: int) -> bool:
        record = self._keys.get(key)
        if record is None:
            return False
        if record.revoked_unix_ns is None:
            self.put_key(msgspec.structs.replace(record, revoked_unix_ns=revoked_unix_ns))
        return True

    def keys_version(self) -> int:
        return self._keys_version

    def put_price_book(self, price_id: PriceID, text: str, first_used_unix_ns: int) -> None:
        self._books.setdefault(price_id, text)

    def load_price_book(self, price_id: PriceID) -> str | None:
        return self._books.get(price_id)

    def close(self) -> None:
        return
