"""SQLite as the ledger's database: one file in WAL mode, synced at each commit."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from tokenworks.core.errors import LedgerCorrupt, LedgerUnavailable, TokenworksError
from tokenworks.live.database import CommitUnknown, Dialect, Value

BUSY_S_MAX: Final = 10
"""How long to wait for another process's write to end."""

PRIVATE: Final = 0o600
_DAMAGED: Final = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT})
_LOCKED: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_ERRORS: Final = (OverflowError, sqlite3.Error)
_INCREMENTAL: Final = 2
"""What ``auto_vacuum`` says of a file that can give back what it does not need."""
_PRIMARY: Final = 0xFF
"""The bits of an error's code that say what it is; those above say more of it."""


class SQLiteDatabase:
    """A connection to a file; see ``Database``.

    Args:
        path: the file, in a folder that exists.
        create: make it if it is missing.
        shrinks: make it so that ``shrink`` can give back what it does not need.

    Raises:
        LedgerUnavailable: it cannot be opened.
        LedgerCorrupt: it is no SQLite file.
    """

    dialect: Dialect = "sqlite"

    def __init__(self, path: Path, *, create: bool = True, shrinks: bool = False) -> None:
        self.path = path
        self.where = str(path)
        with self._edge():
            self._connection = _connect(path, create=create, shrinks=shrinks)

    def script(self, sql: str) -> None:
        """See ``Database``. One transaction: a sync for each table takes a slow disk seconds."""
        try:
            with self._edge():
                self._connection.executescript(f"BEGIN IMMEDIATE;\n{sql}\n;COMMIT;")
        except BaseException:
            self.roll_back()
            raise

    def query(self, sql: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        """See ``Database``."""
        try:
            return self._connection.execute(sql, values).fetchall()
        except _ERRORS as error:
            raise _ours(self.path, error) from error

    def stream(self, sql: str, values: Sequence[Value] = ()) -> Iterator[tuple[Any, ...]]:
        """See ``Database``."""
        with self._edge(), closing(_connect(self.path, create=False)) as connection:
            yield from connection.execute(sql, values)

    def change(self, sql: str, values: Sequence[Value] = ()) -> int:
        """See ``Database``."""
        try:
            return self._connection.execute(sql, values).rowcount
        except _ERRORS as error:
            raise _ours(self.path, error) from error

    def change_many(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """See ``Database``."""
        with self._edge():
            self._connection.executemany(sql, rows)

    def writing(self) -> AbstractContextManager[None]:
        """See ``Database``. Taking the lock first lets SQLite wait for another writer."""
        return _Transaction(self, "BEGIN IMMEDIATE", self._commit)

    def reading(self) -> AbstractContextManager[None]:
        """See ``Database``."""
        return _Transaction(self, "BEGIN", self._connection.commit)

    def shrink(self, free_bytes: int, bytes_max: int) -> bool:
        """Give pages that hold nothing back to the disk, if the file was made for that.

        Args:
            free_bytes: so many stay, for what is written next.
            bytes_max: so many go at once, as nobody else writes meanwhile.

        Returns:
            Whether there are more to give back.
        """
        (((free,),), ((size,),)) = map(self.query, ("PRAGMA freelist_count", "PRAGMA page_size"))
        pages, pages_max = free - free_bytes // size, max(1, bytes_max // size)
        if pages <= 0 or self.query("PRAGMA auto_vacuum") != [(_INCREMENTAL,)]:
            return False
        self.script(f"PRAGMA incremental_vacuum({min(pages, pages_max)})")
        return bool(pages > pages_max)

    def close(self) -> None:
        """See ``Database``."""
        self._connection.close()

    def roll_back(self) -> None:
        """End a transaction as if it had not been, if there still is one."""
        # Some errors, such as a full disk, have rolled back already.
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def _commit(self) -> None:
        """End a transaction that writes.

        A sync that fails comes after the write: the end of the transaction is in the log then, and
        whoever opens the file after a crash finds it there, unless something is written over it.

        A statement lets other threads run four times, and takes its turn among them as often;
        ``commit`` does so once.
        """
        assert self._connection.in_transaction, "there is nothing to commit"
        try:
            self._connection.commit()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & _PRIMARY != sqlite3.SQLITE_IOERR:
                raise
            raise CommitUnknown(
                f"{str(self.path)!r} could not be written or synced: {error}.",
                hint="Look at the disk.",
            ) from error

    @contextmanager
    def _edge(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except _ERRORS as error:
            raise _ours(self.path, error) from error


class _Transaction(AbstractContextManager[None]):
    """One transaction; each commit has one, and three nested generators cost twice its statements.

    Args:
        database: whose.
        begin: the statement that begins it.
        commit: keeps what was done.
    """

    __slots__ = ("_begin", "_commit", "_database")

    def __init__(self, database: SQLiteDatabase, begin: str, commit: Callable[[], object]) -> None:
        self._database, self._begin, self._commit = database, begin, commit

    def __enter__(self) -> None:
        self._database.change(self._begin)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            try:
                self._commit()
            except BaseException as failure:
                self._database.roll_back()
                if isinstance(failure, _ERRORS):
                    raise _ours(self._database.path, failure) from failure
                raise
            return
        self._database.roll_back()
        if isinstance(error, _ERRORS):
            raise _ours(self._database.path, error) from error


class SQLiteLock:
    """A lock that the operating system drops when this process ends, however it ends.

    Args:
        path: the ledger's file; the lock is a file beside it.
        shared: others may have it shared, too, but nobody for itself.

    Raises:
        LedgerUnavailable: another process has it.
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        with ExitStack() as stack:
            try:
                self._connection = sqlite3.connect(
                    path.resolve().with_name(f"{path.resolve().name}.lock"),
                    timeout=0,
                    isolation_level=None,
                    check_same_thread=False,
                )
                stack.callback(self._connection.close)
                self._connection.execute("BEGIN" if shared else "BEGIN EXCLUSIVE")
                self._connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            except sqlite3.Error as error:
                raise LedgerUnavailable(
                    f"{str(path)!r} cannot be locked: {error}.",
                    hint="Stop the other factory that uses it, or give this one its own ledger.",
                ) from error
            stack.pop_all()

    def close(self) -> None:
        """Drop the lock."""
        self._connection.close()


def copy_database(source: Path, target: Path) -> None:
    """Copy a database of which other processes may go on writing; the copy is of one moment.

    Raises:
        LedgerUnavailable: one of the files cannot be read or written.
        LedgerCorrupt: the source is no SQLite file.
    """
    try:
        with (
            closing(_connect(source, create=False)) as ours,
            closing(sqlite3.connect(target)) as copy,
        ):
            ours.backup(copy)
    except sqlite3.Error as error:
        raise _ours(target, error) from error


def _connect(path: Path, *, create: bool, shrinks: bool = False) -> sqlite3.Connection:
    if create and not path.exists():
        # For its owner alone; SQLite gives the files beside it the same mode.
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, PRIVATE))
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_S_MAX,
        isolation_level=None,
        check_same_thread=False,
    )
    with ExitStack() as stack:
        stack.callback(connection.close)
        if shrinks:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before its first page
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("PRAGMA synchronous = FULL")
        # Only macOS knows it: there a plain fsync may stay in the drive's cache.
        connection.execute("PRAGMA fullfsync = ON")
        stack.pop_all()
    return connection


def _ours(path: Path, error: Exception) -> TokenworksError:
    if isinstance(error, OverflowError):
        return LedgerCorrupt(f"A number has more than 64 bits: {error}.")
    if getattr(error, "sqlite_errorcode", None) in _DAMAGED:
        return LedgerCorrupt(
            f"{str(path)!r} is not a readable ledger: {error}.", hint="Restore it from a copy."
        )
    hint = "Look at the disk's free space and at the file's permissions."
    if getattr(error, "sqlite_errorcode", 0) & _PRIMARY in _LOCKED:
        hint = f"Another process has been writing for {BUSY_S_MAX} s: wait for it, or stop it."
    return LedgerUnavailable(f"{str(path)!r} could not be read or written: {error}.", hint=hint)
