"""The ledger store on one machine: SQLite, with many appends to one fsync."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from tokenworks.core.errors import (
    ConfigInvalid,
    LedgerCorrupt,
    LedgerUnavailable,
    TokenworksError,
)
from tokenworks.core.ids import KeyID, PriceID
from tokenworks.ledger.entries import CostAccrued, Entry, kind_of
from tokenworks.ledger.quotas import KeyRecord

SCHEMA_VERSION: Final = 1
QUEUE_LEN_MAX: Final = 20_000
"""Entries waiting to be written; fewer than the settlements that a ledger can take back."""
BUSY_S_MAX: Final = 10
"""How long to wait for another process's write, such as a new key, to end."""

_META_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO meta VALUES ('schema_version', 1), ('keys_version', 0);
"""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS keys (
    key TEXT PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL,
    secret_sha256 TEXT NOT NULL UNIQUE, tier_default TEXT NOT NULL,
    tokens_quota INTEGER, nanodollars_quota INTEGER,
    created_unix_ns INTEGER NOT NULL, revoked_unix_ns INTEGER) STRICT;
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, at_unix_ns INTEGER NOT NULL,
    request TEXT NOT NULL, attempt INTEGER NOT NULL, phase TEXT NOT NULL,
    key TEXT, tenant TEXT, model TEXT, tier_asked TEXT, tier_delivered TEXT,
    pool TEXT, worker TEXT,
    uncached_input_tokens INTEGER, cached_input_tokens INTEGER, output_tokens INTEGER,
    charged_nanodollars INTEGER, ad_income_nanodollars INTEGER, cost_nanodollars INTEGER,
    worker_ns INTEGER, ttft_ns INTEGER, decode_ns INTEGER, ending TEXT, price_id TEXT,
    payload BLOB NOT NULL,
    UNIQUE (request, attempt, phase)) STRICT;
CREATE TABLE IF NOT EXISTS transfers (
    entry_seq INTEGER NOT NULL REFERENCES entries (seq),
    debit_account TEXT NOT NULL, credit_account TEXT NOT NULL,
    amount_nanodollars INTEGER NOT NULL CHECK (amount_nanodollars > 0)) STRICT;
CREATE TABLE IF NOT EXISTS price_books (
    price_id TEXT PRIMARY KEY, text TEXT NOT NULL, first_used_unix_ns INTEGER NOT NULL) STRICT;
CREATE TRIGGER IF NOT EXISTS entries_are_never_edited BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'entries are never edited'); END;
CREATE TRIGGER IF NOT EXISTS entries_are_never_removed BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'entries are never removed'); END;
"""

_INSERT_ENTRY: Final = """
INSERT INTO entries (kind, at_unix_ns, request, attempt, phase, key, tenant, model, tier_asked,
    tier_delivered, pool, worker, uncached_input_tokens, cached_input_tokens, output_tokens,
    charged_nanodollars, ad_income_nanodollars, cost_nanodollars, worker_ns, ttft_ns, decode_ns,
    ending, price_id, payload)
VALUES (:kind, :at_unix_ns, :request, :attempt, :phase, :key, :tenant, :model, :tier_asked,
    :tier_delivered, :pool, :worker, :uncached_input_tokens, :cached_input_tokens, :output_tokens,
    :charged_nanodollars, :ad_income_nanodollars, :cost_nanodollars, :worker_ns, :ttft_ns,
    :decode_ns, :ending, :price_id, :payload)
ON CONFLICT (request, attempt, phase) DO NOTHING
"""

_INSERT_KEY: Final = """
INSERT INTO keys VALUES (:key, :tenant, :name, :secret_sha256, :tier_default, :tokens_quota,
    :nanodollars_quota, :created_unix_ns, :revoked_unix_ns)
ON CONFLICT (key) DO UPDATE SET tenant = :tenant, name = :name, secret_sha256 = :secret_sha256,
    tier_default = :tier_default, tokens_quota = :tokens_quota,
    nanodollars_quota = :nanodollars_quota, created_unix_ns = :created_unix_ns,
    revoked_unix_ns = :revoked_unix_ns
"""

_COLUMNS: Final[dict[str, str | int | bytes | None]] = dict.fromkeys(
    (
        *("key", "tenant", "model", "tier_asked", "tier_delivered", "pool", "worker"),
        *("uncached_input_tokens", "cached_input_tokens", "output_tokens"),
        *("charged_nanodollars", "ad_income_nanodollars", "cost_nanodollars"),
        *("worker_ns", "ttft_ns", "decode_ns", "ending", "price_id"),
    )
)

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final[msgspec.json.Decoder[Entry]] = msgspec.json.Decoder(Entry)

_Done = Callable[[TokenworksError | None], None]
_Batch = tuple[tuple[Entry, ...], _Done]


class SQLiteStore:
    """Entries and keys in one SQLite file in WAL mode, synced at each commit.

    One thread writes. Whatever has queued up while it was syncing goes into its next transaction,
    so throughput grows with load while each append still waits for its own fsync. It is a
    ``ledger.store_port.LedgerStore``; other processes may read it and change keys meanwhile.

    Args:
        path: the file; made if missing, in a folder that exists.
        sole: refuse to open if another process has opened it so. A factory must: two of them
            would each allow the whole of every quota. Tools leave it off.
        queue_len_max: entries that may wait to be written.

    Raises:
        LedgerUnavailable: the file cannot be opened or written, or another factory has it.
        LedgerCorrupt: it is not a ledger.
        ConfigInvalid: it was written by a release with another schema.
    """

    def __init__(
        self, path: Path, *, sole: bool = False, queue_len_max: int = QUEUE_LEN_MAX
    ) -> None:
        assert queue_len_max > 0, queue_len_max
        self.path = path
        self._queue_len_max = queue_len_max
        self._queue: deque[_Batch] = deque()
        self._queue_len = 0
        self._closing = False
        self._wake = threading.Condition()
        with ExitStack() as stack:
            if sole:
                stack.enter_context(closing(_lock(path)))
            self._writer = stack.enter_context(closing(_connect(path)))
            _prepare(path, self._writer)
            self._other = stack.enter_context(closing(_connect(path)))
            self._held = stack.pop_all()
        # Calls other than appends share one connection; each holds this for one transaction.
        self._other_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="ledger-store", daemon=True)
        self._thread.start()

    # Entries.

    def append(self, entries: Sequence[Entry]) -> asyncio.Future[None]:
        """Store some entries, all or none; see ``LedgerStore.append``."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def finish(error: TokenworksError | None) -> None:
            if future.done():  # its waiter was cancelled
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        def done(error: TokenworksError | None) -> None:
            try:
                loop.call_soon_threadsafe(finish, error)
            except RuntimeError:
                # The loop has closed: nobody waits, and what is written stays written.
                return

        refusal = self._submit(entries, done)
        if refusal is not None:
            future.set_exception(refusal)
        return future

    def append_now(self, entries: Sequence[Entry]) -> None:
        """The same for tools without a loop; returns when it is durable."""
        waiting: Future[TokenworksError | None] = Future()

        def done(error: TokenworksError | None) -> None:
            if not waiting.done():
                waiting.set_result(error)

        refusal = self._submit(entries, done)
        error = refusal or waiting.result()
        if error is not None:
            raise error

    def load_entries(self) -> Iterator[Entry]:
        """All entries, oldest first.

        Raises:
            LedgerCorrupt: one cannot be decoded.
        """
        # Its own connection, so that a long read holds up nobody.
        with _edge(self.path), closing(_connect(self.path)) as connection:
            for seq, payload in connection.execute("SELECT seq, payload FROM entries ORDER BY seq"):
                try:
                    yield _DECODER.decode(payload)
                except msgspec.DecodeError as error:
                    raise LedgerCorrupt(
                        f"Entry {seq} of {str(self.path)!r} cannot be decoded: {error}."
                    ) from error

    # Keys and price books.

    def load_keys(self) -> list[KeyRecord]:
        """All keys, revoked ones too, by id."""
        with self._reading() as connection:
            cursor = connection.execute("SELECT * FROM keys ORDER BY key")
            names = [column[0] for column in cursor.description]
            return [
                msgspec.convert(dict(zip(names, row, strict=True)), KeyRecord) for row in cursor
            ]

    def put_key(self, record: KeyRecord) -> None:
        """Add a key, or replace the one of that id; see ``LedgerStore.put_key``."""
        try:
            with self._writing() as connection:
                connection.execute(_INSERT_KEY, msgspec.to_builtins(record))
                _raise_keys_version(connection)
        except LedgerUnavailable as error:
            if isinstance(error.__cause__, sqlite3.IntegrityError):
                raise ConfigInvalid(
                    f"Key {record.key!r} has the secret of another key.",
                    hint="Give it a new secret.",
                ) from error
            raise

    def revoke_key(self, key: KeyID, revoked_unix_ns: int) -> bool:
        """Close a key for ever; False when there is none. A second time changes nothing."""
        with self._writing() as connection:
            found = connection.execute("SELECT 1 FROM keys WHERE key = ?", (key,)).fetchone()
            changed = connection.execute(
                "UPDATE keys SET revoked_unix_ns = ? WHERE key = ? AND revoked_unix_ns IS NULL",
                (revoked_unix_ns, key),
            )
            if changed.rowcount:
                _raise_keys_version(connection)
            return found is not None

    def keys_version(self) -> int:
        """A number that rises with each change of keys, whoever makes it."""
        with self._reading() as connection:
            return _meta(connection, "keys_version")

    def put_price_book(self, price_id: PriceID, text: str, first_used_unix_ns: int) -> None:
        """Keep a price book's text under its id, for ever; a second time changes nothing."""
        with self._writing() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO price_books VALUES (?, ?, ?)",
                (price_id, text, first_used_unix_ns),
            )

    def load_price_book(self, price_id: PriceID) -> str | None:
        """The text kept under an id."""
        with self._reading() as connection:
            row = connection.execute(
                "SELECT text FROM price_books WHERE price_id = ?", (price_id,)
            ).fetchone()
            return None if row is None else str(row[0])

    def close(self) -> None:
        """Store what is queued and let go; a second time does nothing."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self._held.close()

    # Inner steps.

    def _submit(self, entries: Sequence[Entry], done: _Done) -> LedgerUnavailable | None:
        with self._wake:
            if self._closing:
                return LedgerUnavailable("The ledger store is closed.")
            if self._queue_len + len(entries) > self._queue_len_max:
                return LedgerUnavailable(
                    f"{self._queue_len} entries wait to be written, of {self._queue_len_max} "
                    "that may.",
                    hint="Look at the disk that holds the ledger.",
                    retry_after_s=1,
                )
            self._queue.append((tuple(entries), done))
            self._queue_len += len(entries)
            self._wake.notify()
        return None

    def _run(self) -> None:
        batches: list[_Batch] = []
        try:
            while batches := self._take():
                self._write(batches)
        finally:
            # Reached with batches only by a mistake of ours; nobody may wait for ever on it.
            with self._wake:
                self._closing = True
                batches += self._queue
                self._queue.clear()
            for _, done in batches:
                done(LedgerUnavailable("The ledger store's writer has stopped."))

    def _take(self) -> list[_Batch]:
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._closing)
            batches = list(self._queue)
            self._queue.clear()
            self._queue_len = 0
            return batches

    def _write(self, batches: list[_Batch]) -> None:
        error = self._commit(entry for entries, _ in batches for entry in entries)
        if isinstance(error, LedgerCorrupt) and len(batches) > 1:
            # One caller's mistake must not fail the others that share its transaction.
            for batch in batches:
                self._write([batch])
        else:
            for _, done in batches:
                done(error)
        # What has been answered must not look unanswered if the writer stops later.
        batches.clear()

    def _commit(self, entries: Iterator[Entry]) -> TokenworksError | None:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for entry in entries:
                _insert(self._writer, entry)
            self._writer.execute("COMMIT")
        except (sqlite3.Error, LedgerCorrupt) as error:
            # Some errors, such as a full disk, have rolled back already.
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            return error if isinstance(error, LedgerCorrupt) else _ours(self.path, error)
        return None

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._other_lock, _edge(self.path):
            yield self._other

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._other_lock, _edge(self.path), self._other:  # commits, or rolls back
            # Taking the lock first lets SQLite wait for another writer instead of failing.
            self._other.execute("BEGIN IMMEDIATE")
            yield self._other


def _insert(connection: sqlite3.Connection, entry: Entry) -> None:
    row = {**_COLUMNS, **msgspec.structs.asdict(entry)}
    payload = _ENCODER.encode(entry)
    row |= {"kind": kind_of(entry), "phase": entry.phase, "payload": payload}
    if isinstance(entry, CostAccrued):
        row["cost_nanodollars"] = entry.energy_nanodollars + entry.capital_nanodollars
    place = (entry.request, entry.attempt)
    try:
        cursor = connection.execute(_INSERT_ENTRY, row)
    except OverflowError as error:
        raise LedgerCorrupt(f"{entry!r} has a number of more than 64 bits.") from error
    if cursor.rowcount == 0:
        (stored,) = connection.execute(
            "SELECT payload FROM entries WHERE request = ? AND attempt = ? AND phase = ?",
            (*place, entry.phase),
        ).fetchone()
        if stored != payload:
            raise LedgerCorrupt(f"{entry!r} contradicts what is stored: {stored!r}.")
        return
    seq = cursor.lastrowid
    if entry.phase == "settle":
        reserved = connection.execute(
            "SELECT 1 FROM entries WHERE request = ? AND attempt = ? AND phase = 'reserve'", place
        ).fetchone()
        if reserved is None:
            raise LedgerCorrupt(f"{entry!r} settles what was not reserved.")
    for transfer in entry.transfers():
        connection.execute("INSERT INTO transfers VALUES (?, ?, ?, ?)", (seq, *transfer))


def _raise_keys_version(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'keys_version'")


def _meta(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return int(value)


def _connect(path: Path) -> sqlite3.Connection:
    with _edge(path):
        connection = sqlite3.connect(
            path, timeout=BUSY_S_MAX, isolation_level=None, check_same_thread=False
        )
        with ExitStack() as stack:
            stack.callback(connection.close)
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            # Only macOS knows it: there a plain fsync may stay in the drive's cache.
            connection.execute("PRAGMA fullfsync = ON")
            stack.pop_all()
    return connection


def _prepare(path: Path, connection: sqlite3.Connection) -> None:
    with _edge(path):
        connection.executescript(_META_SCHEMA)
        version = _meta(connection, "schema_version")
        if version != SCHEMA_VERSION:
            raise ConfigInvalid(
                f"{str(path)!r} has schema {version}; this release reads {SCHEMA_VERSION}.",
                hint="Run the release that wrote it.",
            )
        connection.executescript(_SCHEMA)


def _lock(path: Path) -> sqlite3.Connection:
    """A lock that the operating system drops when this process ends, however it ends."""
    with ExitStack() as stack:
        try:
            connection = sqlite3.connect(
                path.with_name(f"{path.name}.lock"),
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
            )
            stack.callback(connection.close)
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            raise LedgerUnavailable(
                f"{str(path)!r} cannot be locked: {error}.",
                hint="Stop the other factory that uses it, or give this one its own ledger.",
            ) from error
        stack.pop_all()
    return connection


@contextmanager
def _edge(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise _ours(path, error) from error


def _ours(path: Path, error: sqlite3.Error) -> TokenworksError:
    if getattr(error, "sqlite_errorcode", None) in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
        return LedgerCorrupt(
            f"{str(path)!r} is not a readable ledger: {error}.", hint="Restore it from a copy."
        )
    return LedgerUnavailable(
        f"{str(path)!r} could not be read or written: {error}.",
        hint="Look at the disk's free space and at the file's permissions.",
    )
