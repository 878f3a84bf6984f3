"""The SQLite store: the port's contract, group commit, failing disks, kill -9."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.ledger.ledger_samples import accrue, key_record, ledger, post, reserve, same, story
from tests.ledger.store_conformance import StoreConformance
from tokenworks.core.errors import ConfigInvalid, LedgerCorrupt, LedgerUnavailable
from tokenworks.core.ids import KeyID
from tokenworks.ledger.entries import Reserved
from tokenworks.ledger.store_port import LedgerStore, recover
from tokenworks.live.store import SQLiteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    made = SQLiteStore(path)
    yield made
    made.close()


class TestSQLiteStore(StoreConformance):
    @pytest.fixture
    def store(self, path: Path) -> Iterator[LedgerStore]:
        made = SQLiteStore(path)
        yield made
        made.close()


class Gate:
    """Holds the writer back before its next transaction, and can make it fail."""

    def __init__(self, store: SQLiteStore) -> None:
        self._connection = store._writer
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.failing = ""
        self.commits = 0
        store._writer = self  # type: ignore[assignment]

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql.startswith("BEGIN"):
            self.entered.set()
            assert self.opened.wait(30)
        if self.failing and sql.strip().startswith(self.failing):
            raise sqlite3.OperationalError("injected")
        if sql.startswith("COMMIT"):
            self.commits += 1
        return self._connection.execute(sql, *parameters)


def test_what_queues_up_goes_into_one_transaction(
    store: SQLiteStore, run: Callable[..., Any]
) -> None:
    gate = Gate(store)
    made = ledger()
    entries = [reserve(made, str(i)) for i in range(50)]

    async def main() -> None:
        first = store.append(entries[:1])
        await asyncio.to_thread(gate.entered.wait, 30)
        rest = [store.append([entry]) for entry in entries[1:]]
        gate.opened.set()
        await asyncio.gather(first, *rest)

    run(main())
    assert gate.commits == 2
    assert list(store.load_entries()) == entries


def test_a_full_queue_refuses_and_recovers(path: Path, run: Callable[..., Any]) -> None:
    store = SQLiteStore(path, queue_len_max=2)
    gate = Gate(store)
    made = ledger()
    entries = [reserve(made, str(i)) for i in range(4)]

    async def main() -> None:
        first = store.append(entries[:1])
        await asyncio.to_thread(gate.entered.wait, 30)
        queued = store.append(entries[1:3])
        with pytest.raises(LedgerUnavailable, match="2 entries wait"):
            await store.append(entries[3:])
        gate.opened.set()
        await asyncio.gather(first, queued)
        await store.append(entries[3:])

    run(main())
    assert list(store.load_entries()) == entries
    store.close()


@pytest.mark.parametrize("failing", ["BEGIN", "INSERT INTO entries", "INSERT INTO tra", "COMMIT"])
def test_a_failing_write_fails_its_appends_whole_and_the_next_succeeds(
    store: SQLiteStore, run: Callable[..., Any], failing: str
) -> None:
    gate = Gate(store)
    gate.opened.set()
    made = ledger()
    before = [reserve(made, "a"), reserve(made, "b"), post(made, "a")]
    store.append_now(before)
    posted, cost = post(made, "b"), accrue(made)

    async def main() -> None:
        gate.failing = failing
        results = await asyncio.gather(
            store.append([posted]), store.append([cost]), return_exceptions=True
        )
        assert [type(result) for result in results] == [LedgerUnavailable, LedgerUnavailable]
        assert list(store.load_entries()) == before
        for entry in (posted, cost):
            made.retract(entry)
        assert same(made, recover(store, "me"))
        gate.failing = ""
        await store.append([post(made, "b"), accrue(made)])

    run(main())
    assert same(made, recover(store, "me"))


def test_a_full_disk_loses_nothing_acknowledged(store: SQLiteStore) -> None:
    made = ledger()
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages + 8}")
    acknowledged: list[Reserved] = []

    def fill() -> None:
        for i in range(10_000):
            entry = reserve(made, str(i))
            try:
                store.append_now([entry])
            except LedgerUnavailable:
                made.retract(entry)
                raise
            acknowledged.append(entry)

    with pytest.raises(LedgerUnavailable, match="full"):
        fill()
    assert acknowledged
    assert list(store.load_entries()) == acknowledged
    assert same(made, recover(store, "me"))
    store._writer.execute("PRAGMA max_page_count = 1000000")
    store.append_now([reserve(made, "after")])
    assert same(made, recover(store, "me"))


def test_kill_9_loses_nothing_acknowledged(path: Path) -> None:
    script = f"""
import asyncio, pathlib
from tests.ledger.ledger_samples import ledger, post, reserve
from tokenworks.live.store import SQLiteStore

async def client(store, made, name):
    for i in range(1_000_000):
        request = f"{{name}}-{{i}}"
        await store.append([reserve(made, request)])
        await store.append([post(made, request)])
        print(request, flush=True)

async def main():
    store, made = SQLiteStore(pathlib.Path({str(path)!r}), sole=True), ledger()
    await asyncio.gather(*(client(store, made, name) for name in "abcdefgh"))

asyncio.run(main())
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        acknowledged = [child.stdout.readline().strip() for _ in range(100)]
        child.send_signal(signal.SIGKILL)
        acknowledged += child.stdout.read().split("\n")[:-1]
    assert child.returncode == -signal.SIGKILL
    store = SQLiteStore(path, sole=True)
    posted = {entry.request for entry in store.load_entries() if entry.phase == "settle"}
    assert len(acknowledged) >= 100
    assert "" not in acknowledged
    assert posted.issuperset(acknowledged)
    rebuilt = recover(store, "next")
    store.append_now(rebuilt.void_orphans(9))
    again = recover(store, "after next")
    assert not again.open_holds()
    assert same(rebuilt, again)
    store.close()


def test_a_cancelled_waiter_and_a_closed_loop_harm_nobody(store: SQLiteStore) -> None:
    gate = Gate(store)
    made = ledger()
    entries = [reserve(made, str(i)) for i in range(3)]

    async def cancel() -> None:
        first = store.append(entries[:1])
        await asyncio.to_thread(gate.entered.wait, 30)
        first.cancel()
        gate.opened.set()
        await store.append(entries[1:2])
        gate.opened.clear()
        gate.entered.clear()
        store.append(entries[2:])

    asyncio.run(cancel())
    gate.opened.set()
    store.append_now(entries)
    assert list(store.load_entries()) == entries


def test_closing_stores_what_is_queued_and_then_refuses(
    path: Path, run: Callable[..., Any]
) -> None:
    store = SQLiteStore(path)
    gate = Gate(store)
    made, entries = story()

    async def main() -> None:
        appends = [store.append([entry]) for entry in entries]
        closing = asyncio.create_task(asyncio.to_thread(store.close))
        await asyncio.to_thread(gate.entered.wait, 30)
        gate.opened.set()
        await asyncio.gather(closing, *appends)
        with pytest.raises(LedgerUnavailable, match="closed"):
            await store.append(entries)

    run(main())
    store.close()
    again = SQLiteStore(path)
    assert same(recover(again, "me"), made)
    again.close()


def test_a_mistake_in_the_writer_leaves_nobody_waiting(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda hook: seen.append(hook.exc_type))
    made = ledger()
    wrong = msgspec.structs.replace(reserve(made), request=object())  # type: ignore[arg-type]
    with pytest.raises(LedgerUnavailable, match="stopped"):
        store.append_now([wrong])
    with pytest.raises(LedgerUnavailable, match="closed"):
        store.append_now([])
    store._thread.join()
    assert seen == [TypeError]


def test_a_number_beyond_64_bits_is_refused_alone(store: SQLiteStore) -> None:
    made = ledger()
    entry = reserve(made)
    with pytest.raises(LedgerCorrupt, match="64 bits"):
        store.append_now([msgspec.structs.replace(entry, at_unix_ns=2**63)])
    store.append_now([entry])


def test_entries_can_be_neither_edited_nor_removed(store: SQLiteStore, path: Path) -> None:
    store.append_now(story()[1])
    connection = sqlite3.connect(path)
    for sql in ("UPDATE entries SET charged_nanodollars = 0", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            connection.execute(sql)
    connection.close()


def test_the_transfers_in_the_file_balance_as_the_ledger_does(
    store: SQLiteStore, path: Path
) -> None:
    made, entries = story()
    store.append_now(entries)
    connection = sqlite3.connect(path)
    debits = connection.execute(
        "SELECT debit_account, sum(amount_nanodollars) FROM transfers GROUP BY 1"
    ).fetchall()
    connection.close()
    assert dict(debits) == {
        account: row.debits_nanodollars
        for account, row in made.balances().items()
        if row.debits_nanodollars
    }


def test_only_one_factory_may_open_it(path: Path) -> None:
    first = SQLiteStore(path, sole=True)
    with pytest.raises(LedgerUnavailable, match="other factory"):
        SQLiteStore(path, sole=True)
    tool = SQLiteStore(path)
    before = first.keys_version()
    tool.put_key(key_record())
    assert first.keys_version() > before
    assert [record.key for record in first.load_keys()] == [KeyID("key")]
    tool.close()
    first.close()
    SQLiteStore(path, sole=True).close()


def test_a_file_that_is_no_ledger_is_left_alone(tmp_path: Path, path: Path) -> None:
    path.write_bytes(b"these are not the bytes of a ledger" * 100)
    with pytest.raises(LedgerCorrupt, match="not a readable ledger"):
        SQLiteStore(path)
    with pytest.raises(LedgerUnavailable, match="permissions"):
        SQLiteStore(tmp_path / "missing" / "ledger.sqlite")
    with pytest.raises(LedgerUnavailable, match="locked"):
        SQLiteStore(tmp_path / "missing" / "ledger.sqlite", sole=True)


def test_another_schema_is_refused(store: SQLiteStore, path: Path) -> None:
    store._other.execute("UPDATE meta SET value = 2 WHERE name = 'schema_version'")
    with pytest.raises(ConfigInvalid, match="schema 2"):
        SQLiteStore(path)


def test_an_entry_that_cannot_be_decoded_is_named(store: SQLiteStore) -> None:
    store.append_now([reserve(ledger())])
    store._other.execute("DROP TRIGGER entries_are_never_edited")
    store._other.execute("UPDATE entries SET payload = x'7b7d'")
    with pytest.raises(LedgerCorrupt, match="Entry 1"):
        list(store.load_entries())


def test_a_key_that_cannot_be_stored_is_unavailable(store: SQLiteStore) -> None:
    store._other.execute("DROP TABLE keys")
    with pytest.raises(LedgerUnavailable, match="keys"):
        store.put_key(key_record())
