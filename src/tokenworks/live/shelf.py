"""What tenants leave here for later, in a table of SQLite or PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from tokenworks.core.errors import QuotaExceeded
from tokenworks.core.ids import TenantID
from tokenworks.core.ports import Shelved
from tokenworks.core.units import NS_PER_S
from tokenworks.live.database import Database
from tokenworks.live.ledger_sql import in_words_of

KEPT_NS: Final = 30 * 86_400 * NS_PER_S
"""OpenAI keeps responses for so long."""

ITEMS_MAX: Final = 100_000
"""Of one tenant and kind."""

BYTES_MAX: Final = 4 * 1024**3
"""Of one tenant and kind."""

SWEEP_EVERY: Final = 256
"""Puts between two looks at what is too old."""

_NUL: Final = "\x00"
"""PostgreSQL takes none in a text, and so nothing has it in its id."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS shelf (
    tenant TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL, number INTEGER NOT NULL,
    unix_ns INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (tenant, kind, id));
CREATE UNIQUE INDEX IF NOT EXISTS shelf_by_number ON shelf (tenant, kind, number);
CREATE INDEX IF NOT EXISTS shelf_by_age ON shelf (unix_ns);
"""

_PAGE: Final = "SELECT id, unix_ns, data FROM shelf WHERE tenant = ? AND kind = ?"
_ITS_NUMBER: Final = "(SELECT number FROM shelf WHERE tenant = ? AND kind = ? AND id = ?)"
_PAGES: Final = {
    (True, False): _PAGE + " ORDER BY number DESC LIMIT ?",
    (False, False): _PAGE + " ORDER BY number LIMIT ?",
    (True, True): _PAGE + f" AND number < {_ITS_NUMBER} ORDER BY number DESC LIMIT ?",
    (False, True): _PAGE + f" AND number > {_ITS_NUMBER} ORDER BY number LIMIT ?",
}
"""A page of items: the newest first or not, those after one or not."""

T = TypeVar("T")


class _Kept(msgspec.Struct):
    """How much a tenant keeps."""

    items: int
    bytes: int


class DatabaseShelf:
    """Implements ``core.ports.Shelf``.

    Args:
        database: a connection of its own; one thread at a time uses it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._puts = 0
        self._kept: dict[tuple[TenantID, str], _Kept] = {}
        database.script(in_words_of(database.dialect, _SCHEMA))

    async def put(self, tenant: TenantID, kind: str, item: Shelved) -> None:
        """See ``Shelf``."""
        await self._run(lambda: self._put(tenant, kind, item))

    async def get(self, tenant: TenantID, kind: str, item_id: str) -> Shelved | None:
        """See ``Shelf``."""
        if _NUL in item_id:
            return None
        sql = _PAGE + " AND id = ?"
        found = await self._run(lambda: self._database.query(sql, (tenant, kind, item_id)))
        return _shelved(found[0]) if found else None

    async def delete(self, tenant: TenantID, kind: str, item_id: str) -> bool:
        """See ``Shelf``."""
        if _NUL in item_id:
            return False
        return await self._run(lambda: self._delete(tenant, kind, item_id))

    async def page(
        self, tenant: TenantID, kind: str, *, after: str | None, limit: int, newest_first: bool
    ) -> list[Shelved]:
        """See ``Shelf``."""
        if after is not None and _NUL in after:
            return []
        sql = _PAGES[newest_first, after is not None]
        start = () if after is None else (tenant, kind, after)
        rows = await self._run(lambda: self._database.query(sql, (tenant, kind, *start, limit)))
        return [_shelved(row) for row in rows]

    def close(self) -> None:
        """Let go of the database."""
        with self._lock:
            self._database.close()

    async def _run(self, work: Callable[[], T]) -> T:
        def alone() -> T:
            with self._lock:
                return work()

        return await asyncio.to_thread(alone)

    def _put(self, tenant: TenantID, kind: str, item: Shelved) -> None:
        mine = (tenant, kind)
        with self._database.writing():
            if self._puts % SWEEP_EVERY == 0:
                oldest = item.unix_ns - KEPT_NS
                self._database.change("DELETE FROM shelf WHERE unix_ns < ?", (oldest,))
                self._kept.clear()
            self._puts += 1
            found = self._database.query(
                "SELECT number, unix_ns FROM shelf WHERE tenant = ? AND kind = ? AND id = ?",
                (*mine, item.id),
            )
            if found:
                self._database.change(
                    "UPDATE shelf SET data = ? WHERE tenant = ? AND kind = ? AND id = ?",
                    (item.data, *mine, item.id),
                )
                return
            kept = self._kept_by(mine)
            if kept.items >= ITEMS_MAX or kept.bytes + len(item.data) > BYTES_MAX:
                raise QuotaExceeded(
                    f"{tenant!r} keeps {kept.items} of {kind} with {kept.bytes} bytes here.",
                    hint=f"Delete some: {ITEMS_MAX} and {BYTES_MAX} bytes are the most.",
                )
            ((last,),) = self._database.query(
                "SELECT COALESCE(MAX(number), 0) FROM shelf WHERE tenant = ? AND kind = ?", mine
            )
            self._database.change(
                "INSERT INTO shelf (tenant, kind, id, number, unix_ns, data)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (*mine, item.id, last + 1, item.unix_ns, item.data),
            )
            kept.items += 1
            kept.bytes += len(item.data)

    def _kept_by(self, whose: tuple[TenantID, str]) -> _Kept:
        """How much there is of one tenant and kind; counted anew at each sweep.

        Between sweeps neither deletions nor what other processes did are seen.
        """
        kept = self._kept.get(whose)
        if kept is None:
            ((items, size),) = self._database.query(
                "SELECT COUNT(*), COALESCE(SUM(LENGTH(data)), 0) FROM shelf"
                " WHERE tenant = ? AND kind = ?",
                whose,
            )
            kept = self._kept[whose] = _Kept(items, int(size))
        return kept

    def _delete(self, tenant: TenantID, kind: str, item_id: str) -> bool:
        with self._database.writing():
            gone = self._database.change(
                "DELETE FROM shelf WHERE tenant = ? AND kind = ? AND id = ?",
                (tenant, kind, item_id),
            )
        return gone > 0


def _shelved(row: tuple[Any, ...]) -> Shelved:
    return Shelved(id=row[0], unix_ns=row[1], data=bytes(row[2]))
