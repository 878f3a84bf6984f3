"""PostgreSQL as the ledger's database: for many gateway processes, on one machine or on several."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Final

from tokenworks.core.errors import ConfigInvalid, LedgerCorrupt, LedgerUnavailable, TokenworksError
from tokenworks.live.database import CommitUnknown, Dialect, Value

CONNECT_S_MAX: Final = 5
"""How long one address may take to answer."""
LOCK_S_MAX: Final = 10
"""How long to wait for another process's write to end."""
SOLE_S_MAX: Final = 3
"""How long to wait for another factory to go: the server may not know yet that it has died."""
STATEMENT_S_MAX: Final = 60
"""How long one statement may run."""
IDLE_S_MAX: Final = 10
"""How long a transaction may wait for its process: one that is stopped, or cut off from the server,
in the middle of a write would keep all others from writing."""
SILENT_S_MAX: Final = 20
"""How long either side waits for the other to answer a packet, and we for a transaction to begin
and to end."""
ANSWER_S_MAX: Final = STATEMENT_S_MAX + 5
"""How long a server may say nothing while a statement runs. One that stands still, or a network
that swallows packets, would otherwise keep us waiting for ever."""
STREAM_ROWS: Final = 64
"""Rows of a stream that are in memory at once; a block may have a megabyte or two."""

WRITER_LOCK: Final = int.from_bytes(b"tokenwks")
"""The advisory lock of the one transaction that writes."""
SOLE_LOCK: Final = WRITER_LOCK + 1
"""The advisory lock of a factory that wants the ledger to itself."""

_BEGIN_WRITING: Final = (
    # Each statement after the lock sees all that was committed before it was given.
    f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({WRITER_LOCK})"
)
_BEGIN_READING: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

_KEEPALIVE_S: Final = SILENT_S_MAX // 4
_DEFAULTS: Final = {
    "connect_timeout": CONNECT_S_MAX,
    "tcp_user_timeout": SILENT_S_MAX * 1_000,
    "keepalives_idle": _KEEPALIVE_S,
    "keepalives_interval": _KEEPALIVE_S,
    "keepalives_count": 3,
    "target_session_attrs": "read-write",
    "application_name": "tokenworks",
}
"""For libpq, where the URL says nothing else."""
_SETTINGS: Final = {
    "client_encoding": "UTF8",
    # Whatever the server, the database or the role has: a commit that is heard is on the disk.
    "synchronous_commit": "on",
    "lock_timeout": f"{LOCK_S_MAX}s",
    "statement_timeout": f"{STATEMENT_S_MAX}s",
    "idle_in_transaction_session_timeout": f"{IDLE_S_MAX}s",
    "tcp_keepalives_idle": str(_KEEPALIVE_S),
    "tcp_keepalives_interval": str(_KEEPALIVE_S),
    "tcp_keepalives_count": "3",
}
"""For the server, for this connection."""

_NOT_OURS: Final = frozenset({"42P01", "42703", "42804", "42883", "XX001", "XX002"})
"""States of SQL that say that a table or column is missing or other, or that a page is damaged."""
_HINTS: Final = {
    "": "See whether the server runs, and whether user, password and database are right.",
    "25006": "The server is a replica: name the one that takes writes.",
    "42501": "Let this user create tables in the database's schema, or own them.",
    "53100": "The server's disk is full.",
    "55P03": "Another process writes for too long: look at pg_stat_activity.",
}


class PostgresDatabase:
    """A connection to a server; see ``Database``. One that has broken is made anew at its next use.

    Args:
        url: as libpq reads it: ``postgresql://user:password@host:port/database?sslmode=...``.
        sole: refuse to connect while another connection does so.

    Raises:
        ConfigInvalid: the URL cannot be read, or the driver is not installed.
        LedgerUnavailable: the server cannot be reached, or another factory has it.
        LedgerCorrupt: see ``Database``.
    """

    dialect: Dialect = "postgres"

    def __init__(self, url: str, *, sole: bool = False) -> None:
        self._driver = _driver()
        self._settings = _parsed(self._driver, url)
        self._sole = sole
        self._secrets = [
            str(text) for name, text in self._settings.items() if "password" in name and text
        ]
        self.where = _where(self._settings)
        self._connection: Any = None
        self._busy = False
        self._closed = False
        self._between = False
        with self._edge():
            self._connect()

    def script(self, sql: str) -> None:
        """See ``Database``. Other processes that do the same wait."""
        with self.writing(), self._edge():
            self._connection.execute(sql)

    def query(self, sql: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        """See ``Database``."""
        with self._edge():
            rows: list[tuple[Any, ...]] = self._again_if_broken(
                lambda: self._cursor().execute(_translated(sql), values).fetchall()
            )
            return rows

    def stream(self, sql: str, values: Sequence[Value] = ()) -> Iterator[tuple[Any, ...]]:
        """See ``Database``."""
        with self._edge(), closing(self._open()) as connection:
            # Whoever reads the rows may take their time.
            connection.execute(f"SET idle_in_transaction_session_timeout = 0; {_BEGIN_READING}")
            with connection.cursor("rows", binary=True) as cursor:
                cursor.itersize = STREAM_ROWS
                cursor.execute(_translated(sql), values)
                yield from cursor

    def change(self, sql: str, values: Sequence[Value] = ()) -> int:
        """See ``Database``. Only inside ``writing``: it could not be tried again otherwise."""
        assert self._busy, sql
        with self._edge():
            return int(self._cursor().execute(_translated(sql), values).rowcount)

    def change_many(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """See ``Database``. Only inside ``writing``."""
        assert self._busy, sql
        with self._edge():
            self._cursor().executemany(_translated(sql), rows)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """See ``Database``."""
        yield from self._transaction(_BEGIN_WRITING, self._commit)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See ``Database``."""
        yield from self._transaction(_BEGIN_READING, lambda: self._connection.execute("COMMIT"))

    def close(self) -> None:
        """See ``Database``."""
        self._closed = True
        self._drop()

    # Transactions.

    def _transaction(self, begin: str, commit: Callable[[], object]) -> Iterator[None]:
        assert not self._busy, "transactions do not nest"
        try:
            with self._edge(), self._beginning_or_ending():
                self._again_if_broken(lambda: self._connection.execute(begin))
                self._busy = True
            yield
            with self._edge(), self._beginning_or_ending():
                commit()
        except BaseException:
            self._roll_back()
            raise
        finally:
            self._busy = False

    @contextmanager
    def _beginning_or_ending(self) -> Iterator[None]:
        self._between = True
        try:
            yield
        finally:
            self._between = False

    def _commit(self) -> None:
        try:
            answer = self._connection.execute("COMMIT").statusmessage
        except self._driver.Error as error:
            idle = self._driver.pq.TransactionStatus.IDLE
            if self._connection.info.transaction_status == idle:
                raise  # the server has answered, and has ended the transaction: nothing is kept
            raise CommitUnknown(
                f"The connection to {self.where!r} broke in a commit: {self._words(error)}."
            ) from error
        if answer != "COMMIT":
            raise LedgerUnavailable(f"{self.where!r} has rolled a transaction back.")

    def _roll_back(self) -> None:
        """End what was begun; a connection on which that fails is of no more use."""
        try:
            if self._connection is not None and not self._connection.closed:
                self._connection.execute("ROLLBACK")
        except self._driver.Error:
            self._drop()

    # Connections.

    def _again_if_broken(self, call: Callable[[], Any]) -> Any:
        """Call something that changes nothing; once more if the connection has broken since.

        Inside a transaction there is no second time: what came before is lost.
        """
        if not self._busy and (self._connection is None or self._connection.closed):
            self._connect()
        try:
            return call()
        except self._driver.OperationalError:
            if self._busy or not self._connection.closed:
                raise
            self._connect()
            return call()

    def _cursor(self) -> Any:
        return self._connection.cursor(binary=True)

    def _connect(self) -> None:
        self._drop()
        if self._closed:
            raise LedgerUnavailable(f"{self.where!r} is closed.")
        self._connection = self._open(sole=self._sole)

    def _open(self, *, sole: bool = False) -> Any:
        with ExitStack() as stack:
            connection = self._driver.connect(**self._settings, autocommit=True)
            stack.callback(connection.close)
            wait = connection.wait
            connection.wait = lambda steps, *args, **options: wait(
                self._until_silent(connection, steps), *args, **options
            )
            if sole:
                self._be_sole(connection)
            connection.execute("; ".join(f"SET {n} = '{v}'" for n, v in _SETTINGS.items()))
            stack.pop_all()
        return connection

    def _until_silent(self, connection: Any, steps: Any) -> Generator[Any, Any, Any]:
        """The steps of a call, which the driver takes as the socket lets it, while a server speaks.

        Raises:
            OperationalError: (the driver's) it has said nothing for too long; the connection is
                closed.
        """
        try:
            wants, heard_s = next(steps), time.monotonic()
            while True:
                ready = yield wants
                silent_s_max = SILENT_S_MAX if self._between else ANSWER_S_MAX
                if ready:
                    heard_s = time.monotonic()
                elif time.monotonic() - heard_s > silent_s_max:
                    connection.close()
                    raise self._driver.OperationalError(
                        f"the server has said nothing for {silent_s_max} s"
                    )
                wants = steps.send(ready)
        except StopIteration as ended:
            return ended.value

    def _be_sole(self, connection: Any) -> None:
        connection.execute(f"SET lock_timeout = '{SOLE_S_MAX}s'")
        try:
            connection.execute(f"SELECT pg_advisory_lock({SOLE_LOCK})")
        except self._driver.errors.LockNotAvailable as error:
            raise LedgerUnavailable(
                f"{self.where!r} is in use by another factory.",
                hint="Stop it, or give this one its own database.",
            ) from error

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # Errors.

    @contextmanager
    def _edge(self) -> Iterator[None]:
        """Turn the driver's errors into ours."""
        try:
            yield
        except self._driver.Error as error:
            told = any(secret in str(error) for secret in self._secrets)
            raise self._ours(error) from (None if told else error)

    def _ours(self, error: Exception) -> TokenworksError:
        state = getattr(error, "sqlstate", None) or ""
        words = self._words(error)
        if isinstance(error, self._driver.DataError):
            return LedgerCorrupt(f"A value does not fit into {self.where!r}: {words}.")
        if state in _NOT_OURS:
            return LedgerCorrupt(
                f"{self.where!r} is not a readable ledger: {words}.", hint="Restore it from a copy."
            )
        hint = _HINTS.get(state, "Look at the server's log.")
        return LedgerUnavailable(
            f"{self.where!r} could not be read or written: {words}.", hint=hint
        )

    def _words(self, error: Exception) -> str:
        """What the driver says, in one line and without a password."""
        text = " ".join(str(error).split()).rstrip(".?") or type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _driver() -> Any:
    try:
        import psycopg  # noqa: PLC0415 - an extra, and slow to load
    except ImportError as error:
        raise ConfigInvalid(
            f"The ledger is to be kept in PostgreSQL, whose driver cannot be loaded: {error}.",
            hint="Install it with `pip install 'tokenworks[postgres]'`.",
        ) from error
    return psycopg


def _parsed(driver: Any, url: str) -> dict[str, Any]:
    """What the URL and our defaults tell libpq."""
    try:
        said = driver.conninfo.conninfo_to_dict(url)
    except driver.Error:
        # What libpq says of it may quote the password.
        raise ConfigInvalid(
            "The URL of the ledger's database cannot be read.",
            hint="Write postgresql://user:password@host:port/database, with %XX for special signs.",
        ) from None
    return {**_DEFAULTS, **said}


def _where(settings: dict[str, Any]) -> str:
    hosts = str(settings.get("host") or settings.get("hostaddr") or "localhost").split(",")
    ports = str(settings.get("port") or "5432").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    at = ",".join(f"{host}:{port}" for host, port in zip(hosts, ports, strict=False))
    return f"postgresql://{at}/{settings.get('dbname') or ''}"


@functools.lru_cache(maxsize=256)
def _translated(sql: str) -> str:
    """The driver's marks for values in place of SQLite's.

    >>> _translated("SELECT 7 % 2 FROM blocks WHERE seq > ?")
    'SELECT 7 %% 2 FROM blocks WHERE seq > %s'
    """
    return sql.replace("%", "%%").replace("?", "%s")
