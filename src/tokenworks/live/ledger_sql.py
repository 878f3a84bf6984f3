"""The ledger's tables and the statements on them, for both databases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.orders import TOKEN_CLASSES
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR
from tokenworks.ledger.block_record import Block
from tokenworks.ledger.rollup import MEASURES
from tokenworks.live.database import Dialect

SCHEMA_VERSION: Final = 6
MIGRATED_FROM: Final = frozenset({3, 4, 5})
"""Schemas whose keys have no ``NEW_KEY_COLUMNS``; nothing else is other there but sums."""
SUMS_MADE_ANEW: Final = frozenset({3, 4})
"""Schemas whose tables of sums are made anew from the entries."""

_META_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO meta VALUES
    ('schema_version', {SCHEMA_VERSION}), ('settings_version', 0), ('questions', 0)
    ON CONFLICT DO NOTHING;
"""

_SUMS: Final = ", ".join(f"{name} INTEGER NOT NULL" for name in MEASURES)

NEW_KEY_COLUMNS: Final = (
    "expires_unix_ns INTEGER",
    "old_secret_sha256 TEXT",
    "old_until_unix_ns INTEGER",
)

TIME_TABLES: Final = ("hours", "factory_hours", "months", "agent_hours", "agent_months")
"""Sums by time, of each payer, of all together, and of each agent of a payer."""

_PAYER_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS payers (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS kinds (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS agent_payers (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL,
    agent TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS agent_payers_by_agent ON agent_payers (tenant, agent);
CREATE TABLE IF NOT EXISTS run_payers (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL,
    run TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS run_payers_by_run ON run_payers (tenant, run);
CREATE TABLE IF NOT EXISTS run_hours (
    payer INTEGER NOT NULL, start_unix_ns INTEGER NOT NULL, kind INTEGER NOT NULL, {_SUMS},
    PRIMARY KEY (payer, start_unix_ns, kind)) WITHOUT ROWID;
"""
_SUM_SCHEMA: Final = _PAYER_SCHEMA + "".join(
    f"""CREATE TABLE IF NOT EXISTS {table} (
    start_unix_ns INTEGER NOT NULL, payer INTEGER NOT NULL, kind INTEGER NOT NULL, {_SUMS},
    PRIMARY KEY (start_unix_ns, payer, kind)) WITHOUT ROWID;
"""
    for table in TIME_TABLES
)
"""What is derived from the entries."""

_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS keys (
    key TEXT PRIMARY KEY, tenant TEXT NOT NULL, team TEXT, engineer TEXT, name TEXT NOT NULL,
    secret_sha256 TEXT NOT NULL UNIQUE, tier_default TEXT NOT NULL,
    created_unix_ns INTEGER NOT NULL, revoked_unix_ns INTEGER,
    {", ".join(NEW_KEY_COLUMNS)});
CREATE INDEX IF NOT EXISTS keys_by_old_secret ON keys (old_secret_sha256);
CREATE TABLE IF NOT EXISTS key_labels (
    key TEXT NOT NULL, label TEXT NOT NULL, PRIMARY KEY (key, label));
CREATE TABLE IF NOT EXISTS key_scopes (
    key TEXT NOT NULL, scope TEXT NOT NULL, word TEXT NOT NULL, PRIMARY KEY (key, scope, word));
CREATE TABLE IF NOT EXISTS limits (
    limit_id TEXT PRIMARY KEY, node TEXT NOT NULL, unit TEXT NOT NULL, period TEXT NOT NULL,
    amount INTEGER NOT NULL, tier TEXT, carry_over_max INTEGER NOT NULL, package TEXT,
    created_unix_ns INTEGER NOT NULL, carried_in INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS extras (
    extra TEXT PRIMARY KEY, limit_id TEXT NOT NULL, start_unix_ns INTEGER NOT NULL,
    amount INTEGER NOT NULL, reason TEXT NOT NULL, asked_by TEXT NOT NULL, state TEXT NOT NULL,
    decided_by TEXT, at_unix_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS price_books (
    price_id TEXT PRIMARY KEY, text TEXT NOT NULL, first_used_unix_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS tenants (
    tenant TEXT PRIMARY KEY, name TEXT NOT NULL, created_unix_ns INTEGER NOT NULL,
    closed_unix_ns INTEGER);
CREATE TABLE IF NOT EXISTS creations (
    actor TEXT NOT NULL, word TEXT NOT NULL, digest TEXT NOT NULL, subject TEXT NOT NULL,
    at_unix_ns INTEGER NOT NULL, PRIMARY KEY (actor, word));
CREATE TABLE IF NOT EXISTS proposed_books (
    price_id TEXT PRIMARY KEY, text TEXT NOT NULL, at_unix_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS book_versions (
    version INTEGER PRIMARY KEY, price_id TEXT NOT NULL, at_unix_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS audit_log (
    seq INTEGER PRIMARY KEY, tenant TEXT, action TEXT NOT NULL, actor TEXT NOT NULL,
    outcome TEXT NOT NULL, payload BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS audit_log_by_tenant ON audit_log (tenant, seq);
CREATE TABLE IF NOT EXISTS blocks (
    seq INTEGER PRIMARY KEY, owner TEXT NOT NULL, number INTEGER NOT NULL,
    at_unix_ns INTEGER NOT NULL, count INTEGER NOT NULL, payload BLOB NOT NULL,
    hash BLOB NOT NULL, UNIQUE (owner, number));
CREATE TABLE IF NOT EXISTS owners (
    owner TEXT PRIMARY KEY, number INTEGER NOT NULL, rolled INTEGER NOT NULL,
    holds BLOB NOT NULL, seen_unix_ns INTEGER NOT NULL, ended INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS leases (
    owner TEXT NOT NULL, limit_id TEXT NOT NULL, start_unix_ns INTEGER NOT NULL,
    granted INTEGER NOT NULL, used INTEGER NOT NULL,
    PRIMARY KEY (limit_id, start_unix_ns, owner));
CREATE TABLE IF NOT EXISTS wanted (
    limit_id TEXT NOT NULL, start_unix_ns INTEGER NOT NULL, at_unix_ns INTEGER NOT NULL,
    PRIMARY KEY (limit_id, start_unix_ns));
CREATE TABLE IF NOT EXISTS cost_claims (
    pool TEXT NOT NULL, servers TEXT NOT NULL, owner TEXT NOT NULL,
    until_unix_ns INTEGER NOT NULL, PRIMARY KEY (pool, servers));
"""

_NEVER_EDITED: Final[Mapping[Dialect, str]] = {
    "sqlite": """
CREATE TRIGGER IF NOT EXISTS {table}_are_never_edited BEFORE UPDATE ON {table}
    BEGIN SELECT RAISE(ABORT, '{table} are never edited'); END;
CREATE TRIGGER IF NOT EXISTS {table}_are_never_removed BEFORE DELETE ON {table}
    BEGIN SELECT RAISE(ABORT, '{table} are never removed'); END;
""",
    "postgres": """
DO $do$ BEGIN
    -- Only where it is missing: to replace it would wait for whoever uses the table.
    IF NOT EXISTS (SELECT FROM pg_trigger
        WHERE tgrelid = '{table}'::regclass AND tgname = '{table}_are_never_changed')
    THEN
        CREATE OR REPLACE FUNCTION {table}_are_never_changed() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN RAISE ''{table} are never edited nor removed''; END';
        CREATE TRIGGER {table}_are_never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION {table}_are_never_changed();
    END IF;
END $do$;
""",
}
NEVER_EDITED_TABLES: Final = ("blocks", "audit_log")

_POSTGRES_WORDS: Final[Mapping[str, str]] = {
    "INTEGER PRIMARY KEY AUTOINCREMENT": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    "INTEGER": "BIGINT",
    "BLOB": "BYTEA",
    # By bytes, as SQLite: no index and no order depends on the server's language.
    "TEXT": 'TEXT COLLATE "C"',
    " WITHOUT ROWID": "",
}
"""PostgreSQL's words for SQLite's, in which the tables are written; longer ones come first."""


def meta_schema(dialect: Dialect) -> str:
    """What must be there before a database can say by which schema it was made."""
    return in_words_of(dialect, _META_SCHEMA)


def schema(dialect: Dialect) -> str:
    """All other tables, and what keeps blocks as they are."""
    guards = (_NEVER_EDITED[dialect].replace("{table}", each) for each in NEVER_EDITED_TABLES)
    return in_words_of(dialect, _SCHEMA + _SUM_SCHEMA) + "".join(guards)


def new_sum_tables(dialect: Dialect) -> list[str]:
    """The statements that put empty tables of sums in the place of those that are there."""
    names = ("payers", "agent_payers", "run_payers", "run_hours", *TIME_TABLES)
    drop = [f"DROP TABLE IF EXISTS {name}" for name in names]
    return [*drop, *in_words_of(dialect, _SUM_SCHEMA).split(";")[:-1]]


def in_words_of(dialect: Dialect, sql: str) -> str:
    """A schema in a database's own words, from SQLite's."""
    if dialect == "sqlite":
        return sql
    words = "|".join(map(re.escape, _POSTGRES_WORDS))
    return re.sub(rf"({words})\b", lambda found: _POSTGRES_WORDS[found[1]], sql)


PUT_KEY: Final = """
INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
    tenant = excluded.tenant, team = excluded.team, engineer = excluded.engineer,
    name = excluded.name, secret_sha256 = excluded.secret_sha256,
    tier_default = excluded.tier_default, created_unix_ns = excluded.created_unix_ns,
    revoked_unix_ns = COALESCE(keys.revoked_unix_ns, excluded.revoked_unix_ns),
    expires_unix_ns = excluded.expires_unix_ns, old_secret_sha256 = excluded.old_secret_sha256,
    old_until_unix_ns = excluded.old_until_unix_ns
"""
ROTATE_KEY: Final = """
UPDATE keys SET old_secret_sha256 = secret_sha256, old_until_unix_ns = ?, secret_sha256 = ?
    WHERE key = ? AND revoked_unix_ns IS NULL
"""
KEYS_OPENED: Final = "SELECT key FROM keys WHERE secret_sha256 = ? OR old_secret_sha256 = ?"
KEY_SCOPES: Final = ("models", "tiers", "networks", "roles")
"""Fields of a key that are rows of ``key_scopes``."""
LOAD_KEYS: Final = """
SELECT keys.*, words.scope, words.word FROM keys LEFT JOIN (
    SELECT key, 'labels' AS scope, label AS word FROM key_labels
    UNION ALL SELECT key, scope, word FROM key_scopes) AS words ON words.key = keys.key
    ORDER BY keys.key, words.word
"""
PUT_KEY_LABEL: Final = "INSERT INTO key_labels VALUES (?, ?)"
PUT_KEY_SCOPE: Final = "INSERT INTO key_scopes VALUES (?, ?, ?)"
PUT_LIMIT: Final = """
INSERT INTO limits VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (limit_id) DO UPDATE SET
    node = excluded.node, unit = excluded.unit, period = excluded.period,
    amount = excluded.amount, tier = excluded.tier, carry_over_max = excluded.carry_over_max,
    package = excluded.package, created_unix_ns = excluded.created_unix_ns,
    carried_in = excluded.carried_in
"""
PUT_EXTRA: Final = """
INSERT INTO extras VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (extra) DO UPDATE SET
    limit_id = excluded.limit_id, start_unix_ns = excluded.start_unix_ns,
    amount = excluded.amount, reason = excluded.reason, asked_by = excluded.asked_by,
    state = excluded.state, decided_by = excluded.decided_by, at_unix_ns = excluded.at_unix_ns
"""
COUNT_QUESTION: Final = "UPDATE meta SET value = value + 1 WHERE name = 'questions'"
"""A change that is always one: SQLite writes nothing for a row that stays as it is."""
INSERT_BLOCK: Final = "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)"
CHAIN_BLOCK: Final = f"{INSERT_BLOCK} ON CONFLICT (seq) DO NOTHING"
"""The same, unless a block of another process has that place."""
LAST_BLOCK: Final = "SELECT seq, hash FROM blocks ORDER BY seq DESC LIMIT 1"
SETTINGS_AND_LAST_BLOCK: Final = (
    "SELECT value, seq, hash FROM meta LEFT JOIN blocks "
    "ON seq = (SELECT MAX(seq) FROM blocks) WHERE name = 'settings_version'"
)
"""The settings' version, and the last block if there is one."""
BLOCKS: Final = (
    "SELECT seq, owner, number, at_unix_ns, count, payload, hash FROM blocks "
    "WHERE seq > ? ORDER BY seq"
)
BLOCKS_SINCE: Final = (
    "SELECT seq, owner, number, at_unix_ns, count, payload, hash FROM blocks "
    "WHERE at_unix_ns >= ? ORDER BY seq"
)
LAGGING: Final = "SELECT owner, rolled FROM owners WHERE number > rolled ORDER BY owner"
BLOCK_OF: Final = "SELECT seq FROM blocks WHERE owner = ? AND number = ?"
UNROLLED_OF: Final = (
    "SELECT seq, owner, number, at_unix_ns, count, payload, hash FROM blocks "
    "WHERE owner = ? AND number > ? ORDER BY number"
)
"""Asked for one owner at a time: a join with all owners would read all blocks there are."""

FORGET_SUMS: Final = tuple(f"DELETE FROM {table}" for table in (*TIME_TABLES, "run_hours"))

_PLACES: Final = ", ".join("?" * (3 + len(MEASURES)))


def add_sums(table: str) -> str:
    """The statement that adds a row's sums to those that a table has."""
    added = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in MEASURES)
    names = ", ".join(("start_unix_ns", "payer", "kind", *MEASURES))
    return (  # the names are ours
        f"INSERT INTO {table} ({names}) VALUES ({_PLACES}) "
        f"ON CONFLICT (start_unix_ns, payer, kind) DO UPDATE SET {added}"
    )


_USED: Final = ", ".join(
    [f"SUM({' + '.join(TOKEN_CLASSES)})"]
    + [
        f"SUM((charged_nanodollars - credited_nanodollars) {sign} {NANODOLLARS_PER_DOLLAR})"
        for sign in "/%"
    ]
)


def read_uses(table: str) -> str:
    """The statement that says what payers have used, by kind: tokens, dollars, nano-dollars."""
    return (
        f"SELECT payer, kind, {_USED} FROM {table} "
        "WHERE start_unix_ns >= ? AND start_unix_ns < ? GROUP BY payer, kind"
    )


READ_USES_OF_RUN: Final = (
    f"SELECT name, kind, {_USED} FROM run_payers JOIN run_hours ON payer = id "
    "WHERE tenant = ? AND run = ? AND start_unix_ns >= ? AND start_unix_ns < ? "
    "GROUP BY id, name, kind"
)


def read_sums(
    table: str, *, by_start: bool, by_payer: bool = True, payers: Sequence[int] | None = None
) -> str:
    """The statement that sums a table's rows from one start up to another.

    Args:
        table: its name.
        by_start: tell starts apart.
        by_payer: tell payers apart.
        payers: only these. In a table by hour each of them is looked up for each hour, for there
            may be thousands of others.

    Its columns are start, payer and kind, 0 where it does not group by them, then what
    ``sums_from`` reads.
    """
    names = {"start_unix_ns": by_start, "payer": by_payer, "kind": True}
    columns = ", ".join(name if grouped else "0" for name, grouped in names.items())
    group = ", ".join(name for name, grouped in names.items() if grouped)
    where = "start_unix_ns >= ? AND start_unix_ns < ?"
    if payers is not None:
        if table in ("hours", "agent_hours"):
            starts = f"SELECT DISTINCT start_unix_ns FROM factory_hours WHERE {where}"
            where = f"start_unix_ns IN ({starts})"
        where = f"{where} AND payer IN ({', '.join(map(str, payers))})"
    return f"SELECT {columns}, {_SUMMED} FROM {table} WHERE {where} GROUP BY {group}"


def read_runs(names: Iterable[str], *, by_start: bool) -> str:
    """The same over the sums of runs, with the payer's own name in the place of its number.

    Args:
        names: of ``tenant`` and ``run``, those whose value is given, before the times.
        by_start: tell starts apart.
    """
    start = "start_unix_ns" if by_start else "0"
    where = "".join(f"{name} = ? AND " for name in names)
    return (
        f"SELECT {start}, name, kind, {_SUMMED} FROM run_payers JOIN run_hours ON payer = id "
        f"WHERE {where}start_unix_ns >= ? AND start_unix_ns < ? "
        f"GROUP BY {'start_unix_ns, ' if by_start else ''}id, name, kind"
    )


_MONEY: Final = tuple(i for i, name in enumerate(MEASURES) if name.endswith("_nanodollars"))
_SUMMED: Final = ", ".join(
    # SQLite gives up where a sum has more than 64 bits, which is nine billion dollars.
    [
        f"SUM({name} / {NANODOLLARS_PER_DOLLAR})" if i in _MONEY else f"SUM({name})"
        for i, name in enumerate(MEASURES)
    ]
    + [f"SUM({MEASURES[i]} % {NANODOLLARS_PER_DOLLAR})" for i in _MONEY]
)


def sums_from(columns: Sequence[Any]) -> list[int]:
    """A number for each of ``MEASURES`` from the columns of ``read_sums`` that have them."""
    sums = [int(amount) for amount in columns[: len(MEASURES)]]
    for i, rest in zip(_MONEY, columns[len(MEASURES) :], strict=True):
        sums[i] = sums[i] * NANODOLLARS_PER_DOLLAR + int(rest)
    return sums


def block_from(row: tuple[Any, ...]) -> Block:
    """A block from its row.

    Raises:
        LedgerCorrupt: its columns hold something else.
    """
    seq, owner, number, at_unix_ns, count, payload, digest = row
    if not isinstance(payload, bytes) or not isinstance(digest, bytes):
        raise LedgerCorrupt(f"Block {seq} was changed: it does not hold bytes.")
    return Block(
        seq=seq,
        owner=owner,
        number=number,
        at_unix_ns=at_unix_ns,
        count=count,
        payload=payload,
        hash=digest,
    )
