"""What the ledger's store asks of a database: a few verbs that SQLite and PostgreSQL both have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from tokenworks.core.errors import LedgerUnavailable

Value = str | int | bytes | None
Dialect = Literal["sqlite", "postgres"]


class CommitUnknown(LedgerUnavailable):
    """The connection, or the disk, broke while a transaction was being committed.

    It may be stored or not, and so it may look later, until something is committed after it.
    """


class Database(Protocol):
    """One connection, for one thread at a time. Statements have ``?`` where values go.

    Every method raises ``LedgerUnavailable`` where the database cannot be reached, read or
    written, and ``LedgerCorrupt`` where it is not a ledger.
    """

    where: str
    """The database for people, without a password."""

    dialect: Dialect
    """The words that it wants in the schema; all other statements are the same."""

    def script(self, sql: str) -> None:
        """Run the schema's statements, in its own dialect: all of them or none."""
        ...

    def query(self, sql: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        """All rows."""
        ...

    def stream(self, sql: str, values: Sequence[Value] = ()) -> Iterator[tuple[Any, ...]]:
        """Rows one by one, for more than fit in memory; on a connection of its own."""
        ...

    def change(self, sql: str, values: Sequence[Value] = ()) -> int:
        """Run a statement inside ``writing``; how many rows it has changed."""
        ...

    def change_many(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """Run a statement for each row, inside ``writing``."""
        ...

    def writing(self) -> AbstractContextManager[None]:
        """A transaction that is alone in writing from its first line; kept at its end, durably.

        Raises:
            CommitUnknown: the end could not be heard.
        """
        ...

    def reading(self) -> AbstractContextManager[None]:
        """A transaction that sees one state of everything."""
        ...

    def close(self) -> None:
        """Let go; a second time does nothing."""
        ...
