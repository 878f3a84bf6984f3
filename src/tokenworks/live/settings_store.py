"""The part of the ledger's store that is not entries: keys, limits, extra budget, price books.

Several changes and their record in the audit log are one transaction inside ``audited``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import msgspec

from tokenworks.core.errors import (
    ConfigInvalid,
    FactoryError,
    LedgerCorrupt,
    LedgerUnavailable,
    TokenworksError,
)
from tokenworks.core.ids import KeyID, LimitID, PriceID
from tokenworks.core.units import NS_PER_HOUR, NS_PER_S
from tokenworks.ledger.audit_log import (
    TEXT_CHARS_MAX,
    AuditRecord,
    Facts,
    Outcome,
    chained,
    read_record,
)
from tokenworks.ledger.blocks import GENESIS
from tokenworks.ledger.extras import Extra
from tokenworks.ledger.facts import TenantRecord
from tokenworks.ledger.quota_records import UNIX_NS_MAX, KeyRecord, Limit
from tokenworks.live.database import CommitUnknown, Database, Value
from tokenworks.live.ledger_sql import (
    KEY_SCOPES,
    KEYS_OPENED,
    LOAD_KEYS,
    MIGRATED_FROM,
    NEW_KEY_COLUMNS,
    PUT_EXTRA,
    PUT_KEY,
    PUT_KEY_LABEL,
    PUT_KEY_SCOPE,
    PUT_LIMIT,
    ROTATE_KEY,
    SCHEMA_VERSION,
    SUMS_MADE_ANEW,
    in_words_of,
    meta_schema,
    schema,
)
from tokenworks.live.quota_leases import DEAD_AFTER_NS
from tokenworks.live.sum_tables import SumTables

_log: Final = logging.getLogger("tokenworks.ledger")


CREATIONS_KEPT_NS: Final = 7 * 24 * NS_PER_HOUR
"""How long two creations with the same word are one."""


class Note:
    """What a change says of itself, for the audit log.

    Attributes:
        subject, tenant, before, after: as in ``AuditRecord``.
        unchanged: nothing has changed after all, and nothing is written down.
    """

    def __init__(self, subject: str | None, tenant: str | None) -> None:
        self.subject, self.tenant = subject, tenant
        self.before: Facts | None = None
        self.after: Facts | None = None
        self.unchanged = False

    def told(self, record: AuditRecord) -> AuditRecord:
        """A record with what is said here."""
        return msgspec.structs.replace(
            record,
            subject=None if self.subject is None else _written(self.subject),
            tenant=None if self.tenant is None else _written(self.tenant),
            before=self.before,
            after=self.after,
        )


class SettingsStore:
    """What people set; each change raises the settings' version, so that processes read it anew.

    Args:
        other: a connection that is not the writer's; whoever uses it holds ``_other_lock`` for one
            transaction.
    """

    def __init__(self, other: Database) -> None:
        self._other = other
        self._other_lock = threading.RLock()
        self._in_change = False

    def load_keys(self) -> list[KeyRecord]:
        """See ``LedgerStore``."""
        with self._other_lock:
            rows = self._other.query(LOAD_KEYS)
        keys: dict[tuple[Any, ...], dict[str, list[str]]] = {}
        for *values, scope, word in rows:
            words = keys.setdefault(tuple(values), {})
            if scope is not None:
                words.setdefault(scope, []).append(word)
        return [
            msgspec.convert(dict(zip(_KEY_COLUMNS, values, strict=True)) | words, KeyRecord)
            for values, words in keys.items()
        ]

    def put_key(self, record: KeyRecord) -> None:
        """See ``LedgerStore``."""
        with self._changing_settings():
            for secret in record.secrets_sha256:
                if any(key != record.key for key in self._keys_of(secret)):
                    raise _secret_of_another(record.key)
            self._other.change(PUT_KEY, _values(record)[: len(_KEY_COLUMNS)])
            self._other.change("DELETE FROM key_labels WHERE key = ?", (record.key,))
            self._other.change("DELETE FROM key_scopes WHERE key = ?", (record.key,))
            for label in record.labels:
                self._other.change(PUT_KEY_LABEL, (record.key, label))
            for scope in KEY_SCOPES:
                for word in getattr(record, scope):
                    self._other.change(PUT_KEY_SCOPE, (record.key, scope, str(word)))

    def rotate_key(self, key: KeyID, secret_sha256: str, old_until_unix_ns: int) -> bool:
        """See ``LedgerStore``."""
        with self._changing_settings():
            if self._keys_of(secret_sha256):
                raise _secret_of_another(key)
            return self._other.change(ROTATE_KEY, (old_until_unix_ns, secret_sha256, key)) > 0

    def key_opened_by(self, secret_sha256: str) -> KeyRecord | None:
        """The key that a secret opens, or has opened before its last one.

        All keys are read only where there is one: anybody may ask about any secret.
        """
        with self._other_lock:
            if not self._keys_of(secret_sha256):
                return None
            found = (each for each in self.load_keys() if secret_sha256 in each.secrets_sha256)
            return next(found, None)

    def _keys_of(self, secret_sha256: str) -> list[str]:
        rows = self._other.query(KEYS_OPENED, (secret_sha256, secret_sha256))
        return [row[0] for row in rows]

    def revoke_key(self, key: KeyID, revoked_unix_ns: int) -> bool:
        """See ``LedgerStore``."""
        with self._changing_settings():
            found = self._other.query("SELECT 1 FROM keys WHERE key = ?", (key,))
            self._other.change(
                "UPDATE keys SET revoked_unix_ns = ? WHERE key = ? AND revoked_unix_ns IS NULL",
                (revoked_unix_ns, key),
            )
            return bool(found)

    def load_limits(self) -> list[Limit]:
        """See ``LedgerStore``."""
        with self._other_lock:
            return load_limits(self._other)

    def put_limit(self, limit: Limit) -> None:
        """See ``LedgerStore``."""
        with self._changing_settings():
            self._other.change(PUT_LIMIT, _values(limit))

    def remove_limit(self, limit: LimitID) -> bool:
        """See ``LedgerStore``."""
        with self._changing_settings():
            return self._other.change("DELETE FROM limits WHERE limit_id = ?", (limit,)) > 0

    def load_extras(self) -> list[Extra]:
        """See ``LedgerStore``."""
        with self._other_lock:
            return load_extras(self._other)

    def put_extra(self, extra: Extra) -> None:
        """See ``LedgerStore``."""
        with self._changing_settings():
            self._other.change(PUT_EXTRA, _values(extra))

    def decide_extra(
        self, extra: str, decide: Callable[[Extra, Sequence[Limit]], Extra]
    ) -> Extra | None:
        """See ``LedgerStore``."""
        with self._changing_settings():
            extras = load_extras(self._other)
            found = next((each for each in extras if each.extra == extra), None)
            if found is None:
                return None
            decided = decide(found, load_limits(self._other))
            self._other.change(PUT_EXTRA, _values(decided))
            return decided

    def settings_version(self) -> int:
        """See ``LedgerStore``."""
        with self._other_lock:
            return meta_number(self._other, "settings_version")

    def put_price_book(self, price_id: PriceID, text: str, first_used_unix_ns: int) -> None:
        """See ``LedgerStore``."""
        with self._other_lock, self._writing():
            self._other.change(
                "INSERT INTO price_books VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (price_id, text, first_used_unix_ns),
            )

    def price_ids(self) -> list[PriceID]:
        """All price books that are kept, by id."""
        with self._other_lock:
            rows = self._other.query("SELECT price_id FROM price_books ORDER BY price_id")
            return [PriceID(row[0]) for row in rows]

    def load_price_book(self, price_id: PriceID) -> str | None:
        """See ``LedgerStore``."""
        with self._other_lock:
            rows = self._other.query("SELECT text FROM price_books WHERE price_id = ?", (price_id,))
            return str(rows[0][0]) if rows else None

    # The audit log.

    @contextmanager
    def audited(self, record: AuditRecord) -> Iterator[Note]:
        """Make all changes inside, and write down that they were made: both or neither.

        Where it raises nothing changes, and that somebody has tried is written down.

        Args:
            record: who does what, when; its place, its hash and what the note says are put in.

        Raises:
            LedgerUnavailable: it cannot be written down, and so nothing has changed.
        """
        note = Note(record.subject, record.tenant)
        try:
            with self._changing_settings():
                yield note
                if not note.unchanged:
                    self._write_down(note.told(record))
        except TokenworksError as error:
            tried = msgspec.structs.replace(
                note.told(record),
                outcome=_outcome(error),
                after=None,
                error=_written(f"{error.code}: {error.message}"),
            )
            try:
                self.note_attempt(tried)
            except LedgerUnavailable as unwritten:
                _log.error("an attempt could not be written down: %s", unwritten)
            raise

    def note_attempt(self, record: AuditRecord) -> None:
        """Write down what changes no setting.

        Raises:
            LedgerUnavailable: it is not stored.
        """
        with self._other_lock, self._writing():
            self._write_down(record)

    def _write_down(self, record: AuditRecord) -> None:
        last = self._other.query("SELECT payload FROM audit_log ORDER BY seq DESC LIMIT 1")
        before = read_record(bytes(last[0][0])) if last else None
        seq, digest = (0, GENESIS.hex()) if before is None else (before.seq, before.hash)
        whole, payload = chained(msgspec.structs.replace(record, seq=seq + 1), digest)
        values = (*_found_by(whole), payload)
        self._other.change("INSERT INTO audit_log VALUES (?, ?, ?, ?, ?, ?)", values)

    def audit_records(
        self,
        *,
        before_seq: int = UNIX_NS_MAX,
        limit: int = 100,
        tenant: str | None = None,
        action: str | None = None,
        actor: str | None = None,
        outcome: Outcome | None = None,
    ) -> list[AuditRecord]:
        """Records before one, the newest first; where named, only those of a tenant, and so on."""
        sql, given = "SELECT payload FROM audit_log WHERE seq < ?", list[Value]([before_seq])
        named = {"tenant": tenant, "action": action, "actor": actor, "outcome": outcome}
        for name, value in named.items():
            if value is not None:
                sql += f" AND {name} = ?"
                given.append(value)
        with self._other_lock:
            rows = self._other.query(f"{sql} ORDER BY seq DESC LIMIT ?", (*given, limit))
        return [read_record(bytes(row[0])) for row in rows]

    def audit_payloads(self) -> Iterator[bytes]:
        """The whole audit log as it is stored, the oldest first.

        Raises:
            LedgerCorrupt: what a record is found by is not what it says.
        """
        for *found_by, payload in self._other.stream("SELECT * FROM audit_log ORDER BY seq"):
            record = read_record(bytes(payload))
            if tuple(found_by) != _found_by(record):
                raise LedgerCorrupt(f"Record {found_by[0]} of the audit log was changed.")
            yield bytes(payload)

    # Tenants.

    def load_tenants(self) -> list[TenantRecord]:
        """All tenants that were made or closed, by id; keys may name others."""
        with self._other_lock:
            return load_rows(self._other, "SELECT * FROM tenants ORDER BY tenant", TenantRecord)

    def put_tenant(self, record: TenantRecord) -> None:
        """Add a tenant, or replace the one of that id."""
        with self._changing_settings():
            self._other.change(
                "INSERT INTO tenants VALUES (?, ?, ?, ?) ON CONFLICT (tenant) DO UPDATE SET "
                "name = excluded.name, closed_unix_ns = excluded.closed_unix_ns",
                _values(record),
            )

    # Creations that are one, however often they are asked for.

    def creation(self, actor: str, word: str) -> tuple[str, str] | None:
        """What somebody has asked for by a word, as a digest, and what that has made."""
        with self._other_lock:
            rows = self._other.query(
                "SELECT digest, subject FROM creations WHERE actor = ? AND word = ?", (actor, word)
            )
        return (rows[0][0], rows[0][1]) if rows else None

    def put_creation(self, actor: str, word: str, digest: str, subject: str, unix_ns: int) -> None:
        """Keep what a word of somebody's has made; those that are a week old are forgotten."""
        with self._changing_settings():
            self._other.change(
                "DELETE FROM creations WHERE at_unix_ns < ?", (unix_ns - CREATIONS_KEPT_NS,)
            )
            self._other.change(
                "INSERT INTO creations VALUES (?, ?, ?, ?, ?)",
                (actor, word, digest, subject, unix_ns),
            )

    # Price books that were put into force here.

    def propose_book(self, price_id: PriceID, text: str, unix_ns: int) -> None:
        """Keep a price book's text; a second time changes nothing."""
        with self._changing_settings():
            self._other.change(
                "INSERT INTO proposed_books VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (price_id, text, unix_ns),
            )

    def proposed_books(self) -> list[tuple[PriceID, str, int]]:
        """All that were proposed: id, text, and when; the oldest first."""
        with self._other_lock:
            rows = self._other.query("SELECT * FROM proposed_books ORDER BY at_unix_ns, price_id")
        return [(PriceID(price_id), text, unix_ns) for price_id, text, unix_ns in rows]

    def activate_book(self, price_id: PriceID, version: int, unix_ns: int) -> bool:
        """Put a book into force as the next version; False if there are more than ``version``."""
        with self._changing_settings():
            last = self._other.query("SELECT COALESCE(MAX(version), 0) FROM book_versions")[0][0]
            if last != version:
                return False
            values = (version + 1, price_id, unix_ns)
            self._other.change("INSERT INTO book_versions VALUES (?, ?, ?)", values)
            return True

    def book_versions(self) -> list[tuple[int, PriceID, int]]:
        """What was put into force here: number, id, and when; the oldest first."""
        with self._other_lock:
            rows = self._other.query("SELECT * FROM book_versions ORDER BY version")
        return [(version, PriceID(price_id), unix_ns) for version, price_id, unix_ns in rows]

    def activated_books(self) -> list[str]:
        """See ``LedgerStore``."""
        with self._other_lock:
            rows = self._other.query(
                "SELECT text FROM book_versions JOIN proposed_books "
                "ON proposed_books.price_id = book_versions.price_id ORDER BY version"
            )
        return [row[0] for row in rows]

    # Transactions.

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction, or a part of the one that this thread is in."""
        if self._in_change:
            yield
            return
        with self._other.writing():
            self._in_change = True
            try:
                yield
            finally:
                self._in_change = False

    def _reading(self) -> AbstractContextManager[None]:
        """One state of everything; inside a change, that of the change."""
        return nullcontext() if self._in_change else self._other.reading()

    @contextmanager
    def _changing_settings(self) -> Iterator[None]:
        with self._other_lock, self._writing():
            yield
            self._other.change("UPDATE meta SET value = value + 1 WHERE name = 'settings_version'")


def _outcome(error: TokenworksError) -> Outcome:
    if isinstance(error, CommitUnknown):
        return "unknown"
    return "failed" if isinstance(error, FactoryError) else "refused"


def _found_by(record: AuditRecord) -> tuple[Value, ...]:
    return (record.seq, record.tenant, record.action, record.by.id, record.outcome)


def _written(text: str) -> str:
    """A text that somebody gave us, as far as a record takes it."""
    return text[:TEXT_CHARS_MAX].encode(errors="replace").decode()


def prepare(database: Database, unix_ns: int) -> None:
    """Make the tables that are missing.

    Args:
        database: where.
        unix_ns: now.

    Raises:
        ConfigInvalid: they are of another schema.
        LedgerUnavailable: they are of an earlier release's, and a process of that still uses them.
    """
    database.script(meta_schema(database.dialect))
    version = meta_number(database, "schema_version")
    if version in MIGRATED_FROM:
        version = _migrate(database, unix_ns)
    if version != SCHEMA_VERSION:
        raise ConfigInvalid(
            f"{database.where!r} has schema {version}; this release reads {SCHEMA_VERSION}.",
            hint="Run the release that wrote it.",
        )
    database.script(schema(database.dialect))


def _migrate(database: Database, unix_ns: int) -> int:
    """Bring a database of an earlier release to this one's schema, whole or not at all.

    A factory of that release would go on adding to tables that are not its own any more, and would
    let pass what a key may not do.
    """
    with database.writing():
        version = meta_number(database, "schema_version")
        if version in MIGRATED_FROM:  # nobody else was faster
            refuse_others(database, unix_ns)
            if version in SUMS_MADE_ANEW:
                _log.warning("the sums of %r are made anew for this release", database.where)
                SumTables().migrate(database)
            for column in NEW_KEY_COLUMNS:
                added = in_words_of(database.dialect, column)
                database.change(f"ALTER TABLE keys ADD COLUMN {added}")
            database.change(
                "UPDATE meta SET value = ? WHERE name = 'schema_version'", (SCHEMA_VERSION,)
            )
        return meta_number(database, "schema_version")


def refuse_others(database: Database, unix_ns: int, owner: str = "") -> None:
    """Refuse to go on, inside a transaction, where another process may be at work.

    Args:
        database: where.
        unix_ns: now.
        owner: who is no other.

    Raises:
        LedgerUnavailable: one was here a moment ago.
    """
    others = database.query(
        "SELECT owner FROM owners WHERE ended = 0 AND owner <> ? AND seen_unix_ns >= ? "
        "ORDER BY owner",
        (owner, unix_ns - DEAD_AFTER_NS),
    )
    if others:
        seconds = DEAD_AFTER_NS // NS_PER_S
        raise LedgerUnavailable(
            f"{others[0][0]!r} has used the ledger in the last {seconds} s, and its tables are to "
            "be made anew.",
            hint=f"Stop every factory that uses it; one that was killed is gone after {seconds} s.",
        )


def meta_number(database: Database, name: str) -> int:
    """A number that the database keeps about itself."""
    return int(database.query("SELECT value FROM meta WHERE name = ?", (name,))[0][0])


def load_limits(database: Database) -> list[Limit]:
    """All limits, by id."""
    return load_rows(database, "SELECT * FROM limits ORDER BY limit_id", Limit)


def load_extras(database: Database) -> list[Extra]:
    """All extra budget, oldest first."""
    return load_rows(database, "SELECT * FROM extras ORDER BY at_unix_ns, extra", Extra)


def load_rows(database: Database, sql: str, kind: type[Any]) -> list[Any]:
    """Rows as records; columns stand in the order of the record's fields."""
    fields = kind.__struct_fields__
    return [
        msgspec.convert(dict(zip(fields, row, strict=True)), kind) for row in database.query(sql)
    ]


_KEY_COLUMNS: Final = tuple(
    name for name in KeyRecord.__struct_fields__ if name not in ("labels", *KEY_SCOPES)
)


def _secret_of_another(key: KeyID) -> ConfigInvalid:
    return ConfigInvalid(
        f"Key {key!r} has the secret of another key.", hint="Give it a new secret."
    )


def _values(record: msgspec.Struct) -> list[Any]:
    return list(msgspec.to_builtins(record).values())
