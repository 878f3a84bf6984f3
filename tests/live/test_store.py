"""The SQLite store: the port's contract, group commit, failing disks, damage, kill -9."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.ledger.ledger_samples import (
    HOUR_NS,
    NOW,
    accrue,
    key_record,
    ledger,
    limit,
    post,
    reserve,
    rolled,
    same,
    story,
    void,
    whole,
)
from tests.ledger.store_conformance import (
    LATER,
    OpenStore,
    StoreConformance,
    answers_at,
    in_order,
)
from tokenworks.core.errors import ConfigInvalid, LedgerCorrupt, LedgerUnavailable
from tokenworks.core.ids import KeyID
from tokenworks.ledger.block_record import Block
from tokenworks.ledger.blocks import GENESIS, ChainHead, check_block
from tokenworks.ledger.entries import Entry, Reserved
from tokenworks.ledger.store_port import InDoubt, recover
from tokenworks.live import group_commit
from tokenworks.live import sqlite as sqlite_module
from tokenworks.live import store as store_module
from tokenworks.live.database import CommitUnknown, Dialect
from tokenworks.live.sqlite import SQLiteDatabase
from tokenworks.live.store import SQLStore, sqlite_store

WAIT_S_MAX = 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def open_store(path: Path) -> Iterator[OpenStore]:
    stores: list[SQLStore] = []

    def opened(owner: str) -> SQLStore:
        stores.append(sqlite_store(path, owner))
        return stores[-1]

    yield opened
    for each in stores:
        each.close()


@pytest.fixture
def store(open_store: OpenStore) -> SQLStore:
    return open_store("me")


class TestSQLiteStore(StoreConformance):
    """``open_store`` is this module's."""


class TestSQLiteStoreThatRollsUpEveryBlock(StoreConformance):
    @pytest.fixture(autouse=True)
    def _roll(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_module, "ROLL_ENTRIES", 1)


class Wrapped:
    """A database whose calls a test can hold back, count and break.

    Attributes:
        inner: the real one.
        calls: calls until now; for all databases that share the list.
        fails_at: the call that fails, from 1; so do those after it if ``for_good``.
        doubt: at the end of the next transaction that writes: was it ``kept`` or ``lost``.
        unheard: queries that fail after such an end.
    """

    dialect: Dialect = "sqlite"

    def __init__(self, inner: SQLiteDatabase, calls: list[str] | None = None) -> None:
        self.inner = inner
        self.where = inner.where
        self.calls = [] if calls is None else calls
        self.fails_at: int | None = None
        self.for_good = False
        self.doubt: str | None = None
        self.unheard = 0
        self.commits = 0
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.opened.set()

    def _call(self, what: str) -> None:
        self.calls.append(what)
        at = len(self.calls)
        if self.fails_at is not None and (
            at == self.fails_at or (self.for_good and at > self.fails_at)
        ):
            raise LedgerUnavailable(f"Call {at} was made to fail: {what}.")

    def script(self, sql: str) -> None:
        self._call("script")
        self.inner.script(sql)

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        self._call(sql)
        if self.unheard and not self.inner._connection.in_transaction:
            self.unheard -= 1
            raise LedgerUnavailable("Nobody answers.")
        return self.inner.query(sql, values)

    def stream(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        return self.inner.stream(sql, values)

    def change(self, sql: str, values: Sequence[Any] = ()) -> int:
        self._call(sql)
        return self.inner.change(sql, values)

    def change_many(self, sql: str, rows: Any) -> None:
        self._call(sql)
        self.inner.change_many(sql, rows)

    @contextmanager
    def writing(self) -> Iterator[None]:
        self.entered.set()
        assert self.opened.wait(WAIT_S_MAX)
        self._call("BEGIN")
        doubt, self.doubt = self.doubt, None
        with self.inner.writing():
            yield
            self._call("COMMIT")
            if doubt == "lost":
                raise CommitUnknown("Nobody knows.")
        self.commits += 1
        if doubt == "kept":
            raise CommitUnknown("Nobody knows.")

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self.inner.reading():
            yield

    def close(self) -> None:
        self.inner.close()


def wrap(store: SQLStore) -> Wrapped:
    """Put a wrapper around the connection that writes blocks."""
    assert isinstance(store._writer, SQLiteDatabase)
    made = Wrapped(store._writer)
    store._writer = made
    return made


def prove(store: SQLStore) -> list[Entry]:
    """All entries, after a look at the whole chain and at the sums."""
    before = GENESIS
    for i, block in enumerate(store.blocks()):
        check_block(block, i + 1, before)
        before = block.hash
    entries = list(store.load_entries())
    assert in_order(store.rollups(by_hour=True)) == rolled(entries)
    assert in_order(store.rollups(by_hour=False)) == whole(entries)
    return entries


# Group commit.


def test_what_queues_up_goes_into_one_block(store: SQLStore, run: Callable[..., Any]) -> None:
    gate = wrap(store)
    gate.opened.clear()
    made = ledger()
    entries = [reserve(made, str(i)) for i in range(50)]

    async def main() -> None:
        first = store.append(entries[:1])
        await asyncio.to_thread(gate.entered.wait, WAIT_S_MAX)
        rest = [store.append([entry]) for entry in entries[1:]]
        gate.opened.set()
        await asyncio.gather(first, *rest)

    run(main())
    assert gate.commits == 2
    assert [block.count for block in store.blocks()] == [1, 49]
    assert prove(store) == entries


def test_a_block_has_so_many_entries_at_most(
    store: SQLStore, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "ENTRIES_MAX", 3)
    gate = wrap(store)
    gate.opened.clear()
    made = ledger()
    entries = [reserve(made, str(i)) for i in range(12)]

    async def main() -> None:
        first = store.append(entries[:1])
        await asyncio.to_thread(gate.entered.wait, WAIT_S_MAX)
        parts = [entries[1:3], entries[3:4], entries[4:5], entries[5:9], entries[9:12]]
        rest = [store.append(part) for part in parts]
        gate.opened.set()
        await asyncio.gather(first, *rest)

    run(main())
    assert [block.count for block in store.blocks()] == [1, 3, 1, 4, 3]
    assert prove(store) == entries


def test_a_full_queue_refuses_and_recovers(path: Path, run: Callable[..., Any]) -> None:
    store = SQLStore(lambda: SQLiteDatabase(path), "me", queue_len_max=2)
    gate = wrap(store)
    gate.opened.clear()
    made = ledger()
    entries = [reserve(made, str(i)) for i in range(4)]

    async def main() -> None:
        first = store.append(entries[:1])
        await asyncio.to_thread(gate.entered.wait, WAIT_S_MAX)
        queued = store.append(entries[1:3])
        with pytest.raises(LedgerUnavailable, match="2 entries wait"):
            await store.append(entries[3:])
        gate.opened.set()
        await asyncio.gather(first, queued)
        await store.append(entries[3:])

    run(main())
    assert prove(store) == entries
    store.close()


def test_who_goes_on_meanwhile_is_told_on_the_loop(path: Path, run: Callable[..., Any]) -> None:
    store = SQLStore(lambda: SQLiteDatabase(path), "me", queue_len_max=2)
    gate = wrap(store)
    gate.opened.clear()
    made = ledger()
    entries = [reserve(made, str(i)) for i in range(4)]
    told: list[tuple[Sequence[Entry], str, bool]] = []

    async def main() -> None:
        all_told = asyncio.Event()

        def tell(kept: Sequence[Entry], error: Exception | None) -> None:
            here = threading.current_thread() is threading.main_thread()
            told.append((kept, "" if error is None else str(error), here))
            if len(told) == 3:
                all_told.set()

        store.keep(entries[:1], tell)
        await asyncio.to_thread(gate.entered.wait, WAIT_S_MAX)
        store.keep(entries[1:3], tell)
        store.keep(entries[3:], tell)
        assert not told  # not even that the queue is full, before its caller goes on
        await asyncio.sleep(0)
        gate.opened.set()
        await all_told.wait()

    run(main())
    assert [(kept, here) for kept, _, here in told] == [
        (entries[3:], True),
        (entries[:1], True),
        (entries[1:3], True),
    ]
    assert [error[:16] for _, error, _ in told] == ["2 entries wait t", "", ""]
    assert store._group.open == 3
    store.close()


def test_what_comes_alone_is_taken_however_long_it_is(path: Path) -> None:
    store = SQLStore(lambda: SQLiteDatabase(path), "me", queue_len_max=2)
    made = ledger()
    entries = [reserve(made, str(i)) for i in range(4)]
    store.append_now(entries)
    assert prove(store) == entries
    store.close()


def test_limits_that_are_read_while_entries_are_appended_count_each_once(
    store: SQLStore, run: Callable[..., Any]
) -> None:
    store.put_limit(limit(unit="tokens", amount=10**9))

    async def main() -> None:
        made, appended = ledger(), []
        for _ in range(20):
            reading = asyncio.ensure_future(asyncio.to_thread(store.read_limits, NOW))
            while not reading.done():
                name = str(len(appended))
                appended.append(store.append([reserve(made, name), post(made, name)]))
                await asyncio.sleep(0)
                if len(appended) % 16 == 0:
                    await appended[-1]
            (found,) = reading.result()()
            assert found.used == 30 * len(appended)
        await asyncio.gather(*appended)
        assert store._group._followers == []

    run(main())


def test_appends_do_not_wait_while_limits_are_read(
    store: SQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_limit(limit())
    made, read = ledger(), store._sums.used
    store.append_now([reserve(made, "before"), post(made, "before")])
    appended: list[bool] = []

    def slow(*arguments: Any) -> Any:
        entries = [reserve(made, "meanwhile"), post(made, "meanwhile")]
        thread = threading.Thread(target=store.append_now, args=(entries,))
        thread.start()
        thread.join(WAIT_S_MAX)
        appended.append(not thread.is_alive())
        return read(*arguments)

    monkeypatch.setattr(store._sums, "used", slow)
    (found,) = store.read_limits(NOW)()
    assert appended == [True]
    assert found.used == 60


def test_limits_that_cannot_be_read_are_not_followed(
    store: SQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise LedgerUnavailable("The disk is gone.")

    store.put_limit(limit())
    monkeypatch.setattr(store._sums, "used", broken)
    with pytest.raises(LedgerUnavailable, match="gone"):
        store.read_limits(NOW)
    assert store._group._followers == []


def test_what_is_queued_counts_as_used(
    store: SQLStore, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_limit(limit())
    store.put_limit(limit("hour", period="hour"))
    stored, queued = answers_at(NOW), answers_at(NOW - HOUR_NS, NOW)
    for i, entry in enumerate(queued):
        queued[i] = msgspec.structs.replace(entry, request=f"queued {entry.request}")
    store.append_now(stored)
    monkeypatch.setattr(store._group, "waiting", lambda later: queued)
    assert [state.used for state in store.limit_states(NOW)] == [60, 90]
    assert not store._group.__class__.waiting(store._group)


def test_a_cancelled_waiter_and_a_closed_loop_harm_nobody(store: SQLStore) -> None:
    gate = wrap(store)
    gate.opened.clear()
    made = ledger()
    entries = [reserve(made, str(i)) for i in range(3)]

    async def cancel() -> None:
        first = store.append(entries[:1])
        await asyncio.to_thread(gate.entered.wait, WAIT_S_MAX)
        first.cancel()
        gate.opened.set()
        await store.append(entries[1:2])
        gate.opened.clear()
        gate.entered.clear()
        store.append(entries[2:])

    asyncio.run(cancel())
    gate.opened.set()
    store.append_now(entries)
    assert prove(store) == entries


def test_closing_stores_what_is_queued_and_then_refuses(
    path: Path, run: Callable[..., Any]
) -> None:
    store = sqlite_store(path, "me")
    gate = wrap(store)
    gate.opened.clear()
    made, entries = story()

    async def main() -> None:
        appends = [store.append([entry]) for entry in entries]
        closing = asyncio.create_task(asyncio.to_thread(store.close))
        await asyncio.to_thread(gate.entered.wait, WAIT_S_MAX)
        gate.opened.set()
        await asyncio.gather(closing, *appends)
        with pytest.raises(LedgerUnavailable, match="closed"):
            await store.append(entries)

    run(main())
    store.close()
    again = sqlite_store(path, "next")
    assert prove(again) == entries
    assert again.take_over(LATER) == list(made.open_holds())
    again.close()


def test_a_mistake_in_the_writer_leaves_nobody_waiting(
    store: SQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda hook: seen.append(hook.exc_type))
    made = ledger()
    wrong = msgspec.structs.replace(reserve(made), request=object())  # type: ignore[arg-type]
    with pytest.raises(LedgerUnavailable, match="stopped"):
        store.append_now([wrong])
    with pytest.raises(LedgerUnavailable, match="closed"):
        store.append_now([])
    store._group._writing.join()
    assert seen == [TypeError]


def test_a_reservation_waits_a_little_for_a_settlement_to_be_stored_with(
    path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[[Any], Any]
) -> None:
    monkeypatch.setattr(group_commit, "PATIENCE_S", WAIT_S_MAX)
    store = sqlite_store(path, "me")
    _, entries = story()
    reserved = [entry for entry in entries if entry.phase == "reserve"][:1]
    rest = [entry for entry in entries if entry not in reserved]

    async def main() -> None:
        await asyncio.gather(store.append(reserved), store.append(rest))

    run(main())
    assert len(list(store.blocks())) == 1
    monkeypatch.setattr(group_commit, "PATIENCE_S", 0.0)
    store.close()


def test_a_reservation_is_stored_though_no_settlement_comes(
    path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[[Any], Any]
) -> None:
    monkeypatch.setattr(group_commit, "PATIENCE_S", 0.0)
    store = sqlite_store(path, "me")
    _, entries = story()
    reserved = [entry for entry in entries if entry.phase == "reserve"]

    async def main() -> None:
        await store.append(reserved[:1])
        await store.append(reserved[1:2])

    run(main())
    assert list(store.load_entries()) == reserved[:2]
    store.close()


# Sums.


def test_sums_are_rolled_up_when_so_many_entries_have_come(
    store: SQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "ROLL_ENTRIES", 4)
    _, entries = story()
    for i, entry in enumerate(entries):
        store.append_now([entry])
        (row,) = store._other.query("SELECT rolled, number FROM owners")
        assert row == (i - i % 4, i + 1)
        assert prove(store) == entries[: i + 1]


def test_sums_are_rolled_up_when_nothing_has_come_for_a_while(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "IDLE_S_MAX", 0)
    store = sqlite_store(path, "me")
    rolled_up = threading.Event()
    idle = store._group._idle

    def noticed() -> None:
        idle()
        if store._number and not store._rollup.entries:
            rolled_up.set()

    store._group._idle = noticed
    _, entries = story()
    store.append_now(entries)
    assert rolled_up.wait(WAIT_S_MAX)
    assert store._other.query("SELECT rolled FROM owners") == [(1,)]
    assert prove(store) == entries
    store.close()


def test_names_of_payers_survive_in_another_process(open_store: OpenStore) -> None:
    _, entries = story()
    first = open_store("1")
    first.append_now(entries)
    first.close()
    second = open_store("2")
    second.append_now([msgspec.structs.replace(entries[0], request="x", owner="2")])
    second.append_now([msgspec.structs.replace(entries[3], request="x")])
    assert len(prove(second)) == len(entries) + 2
    second.close()
    assert len(prove(open_store("3"))) == len(entries) + 2


# Failing databases.


def attempt(path: Path, fails_at: int, *, for_good: bool) -> bool:
    """Use a store whose n-th call fails; whether it has got that far."""
    calls: list[str] = []
    databases: list[Wrapped] = []

    def connect() -> Wrapped:
        made = Wrapped(SQLiteDatabase(path), calls)
        made.fails_at, made.for_good = fails_at, for_good
        databases.append(made)
        return made

    acknowledged: list[Entry] = []
    tried: list[Entry] = []
    made, entries = story()
    with_one_more = [*entries, accrue(made, 20, 30)]
    try:
        store = SQLStore(connect, "me")
    except LedgerUnavailable:
        return True
    for part in (with_one_more[:2], with_one_more[2:4], with_one_more[4:9], with_one_more[9:]):
        tried += part
        try:
            store.append_now(part)
        except (LedgerUnavailable, LedgerCorrupt):
            continue  # refused whole; a later part may settle what this one would have reserved
        acknowledged += part
    for use in (lambda: store.alive(LATER), lambda: store.put_key(key_record()), store.close):
        try:
            use()
        except LedgerUnavailable:
            continue
    for database in databases:
        database.close()
    heir = sqlite_store(path, "heir")
    stored = prove(heir)
    assert stored == acknowledged, (fails_at, calls[fails_at - 1 :])
    rebuilt = recover(heir, 2 * LATER)
    settled = {entry.request for entry in stored if entry.phase == "settle"}
    assert {hold.request for hold in rebuilt.open_holds()} == {
        entry.request
        for entry in stored
        if isinstance(entry, Reserved) and entry.request not in settled
    }
    heir.append_now(rebuilt.void_orphans(2 * LATER))
    prove(heir)
    heir.close()
    return len(calls) >= fails_at


@pytest.mark.parametrize("for_good", [True, False])
def test_whichever_call_fails_nothing_acknowledged_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, for_good: bool
) -> None:
    monkeypatch.setattr(store_module, "ROLL_ENTRIES", 3)
    monkeypatch.setattr(store_module, "DOUBT_STEP_S", 0)
    fails_at = 1
    while attempt(tmp_path / f"{fails_at}.sqlite", fails_at, for_good=for_good):
        fails_at += 1
    assert fails_at > 40


def test_tables_are_made_all_at_once_or_not_at_all(tmp_path: Path) -> None:
    with closing(SQLiteDatabase(tmp_path / "new.sqlite")) as database:
        with pytest.raises(LedgerUnavailable, match="already exists"):
            database.script("CREATE TABLE a (x); CREATE TABLE a (y);")
        assert database.query("SELECT name FROM sqlite_master") == []
        database.script("CREATE TABLE a (x); CREATE TABLE b (y);")
        assert database.query("SELECT name FROM sqlite_master") == [("a",), ("b",)]


def test_what_failed_can_be_tried_again(store: SQLStore, run: Callable[..., Any]) -> None:
    gate = wrap(store)
    made = ledger()
    before = [reserve(made, "a"), reserve(made, "b"), post(made, "a")]
    store.append_now(before)
    posted, cost = post(made, "b"), accrue(made)

    async def main() -> None:
        gate.fails_at, gate.for_good = len(gate.calls) + 1, True
        results = await asyncio.gather(
            store.append([posted]), store.append([cost]), return_exceptions=True
        )
        assert [type(result) for result in results] == [LedgerUnavailable, LedgerUnavailable]
        assert prove(store) == before
        gate.fails_at = None
        await store.append([posted])
        await store.append([cost])

    run(main())
    assert prove(store) == [*before, posted, cost]


def test_a_full_disk_loses_nothing_acknowledged(store: SQLStore) -> None:
    assert isinstance(store._writer, SQLiteDatabase)
    connection = store._writer._connection
    made = ledger()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 8}")
    acknowledged: list[Reserved] = []

    def fill() -> None:
        for i in range(10_000):
            entry = reserve(made, f"{i:04}")
            try:
                store.append_now([entry])
            except LedgerUnavailable:
                made.retract(entry)
                raise
            acknowledged.append(entry)

    with pytest.raises(LedgerUnavailable, match="full"):
        fill()
    assert acknowledged
    assert prove(store) == acknowledged == list(made.open_holds())
    connection.execute("PRAGMA max_page_count = 1000000")
    after = reserve(made, "after")
    store.append_now([after])
    assert prove(store) == [*acknowledged, after]


# Commits that could not be heard.


@pytest.mark.parametrize("unheard", [0, 2])
@pytest.mark.parametrize("doubt", ["kept", "lost"])
def test_a_commit_in_doubt_is_asked_for(
    store: SQLStore, monkeypatch: pytest.MonkeyPatch, doubt: str, unheard: int
) -> None:
    monkeypatch.setattr(store_module, "DOUBT_STEP_S", 0)
    gate = wrap(store)
    _, entries = story()
    store.append_now(entries[:3])
    gate.doubt, gate.unheard = doubt, unheard
    if doubt == "lost":
        with pytest.raises(CommitUnknown):
            store.append_now(entries[3:])
        assert prove(store) == entries[:3]
    else:
        store.append_now(entries[3:])
    store.append_now(entries[3:])
    assert prove(store) == entries


def test_a_first_commit_that_was_lost_left_no_owner_either(store: SQLStore) -> None:
    gate = wrap(store)
    gate.doubt = "lost"
    _, entries = story()
    with pytest.raises(CommitUnknown):
        store.append_now(entries)
    assert store._other.query("SELECT * FROM owners") == []
    store.append_now(entries)
    assert prove(store) == entries


def test_a_writer_that_cannot_tell_what_is_stored_stops(
    store: SQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "DOUBT_S_MAX", 0)
    gate = wrap(store)
    gate.doubt = "kept"
    _, entries = story()
    with pytest.raises(InDoubt, match="cannot tell"):
        store.append_now(entries)
    with pytest.raises(LedgerUnavailable, match="cannot tell") as caught:
        store.append_now(entries)
    assert not isinstance(caught.value, InDoubt)


@pytest.mark.parametrize("doubt", ["kept", "lost"])
def test_a_settlement_that_stays_in_doubt_does_not_spoil_the_next_start(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, doubt: str
) -> None:
    store, made = open_store("me"), ledger()
    store.append_now([reserve(made, "a"), reserve(made, "b")])
    gate = wrap(store)
    gate.doubt = doubt
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "DOUBT_S_MAX", 0)
        with pytest.raises(InDoubt, match="cannot tell"):
            store.append_now([post(made, "a")])
    store.close()
    left = open_store("next").take_over(LATER)
    assert [hold.request for hold in left] == (["b"] if doubt == "kept" else ["a", "b"])


@pytest.mark.parametrize("doubt", ["kept", "lost"])
def test_sums_whose_commit_is_in_doubt_are_added_once(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, doubt: str
) -> None:
    store = open_store("me")
    gate = wrap(store)
    _, entries = story()
    store.append_now(entries[:3])
    store.append_now(entries[3:8])
    monkeypatch.setattr(store_module, "ROLL_ENTRIES", 3)
    gate.doubt = doubt
    store.append_now(entries[8:])
    assert store._other.query("SELECT rolled FROM owners") == [(2 if doubt == "kept" else 0,)]
    assert prove(store) == entries
    store.close()
    assert prove(open_store("next")) == entries


def test_sums_that_cannot_be_rolled_up_do_not_fail_an_append(
    store: SQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, entries = story()
    store.append_now(entries[:8])
    monkeypatch.setattr(store_module, "ROLL_ENTRIES", 3)
    gate = wrap(store)
    gate.fails_at = len(gate.calls) + 1
    store.append_now(entries[8:])
    assert store._other.query("SELECT rolled FROM owners") == [(0,)]
    assert prove(store) == entries


@pytest.mark.parametrize("doubt", ["kept", "lost"])
def test_a_take_over_in_doubt_is_asked_for(open_store: OpenStore, doubt: str) -> None:
    dead, heir = open_store("dead"), open_store("heir")
    made, entries = story()
    dead.append_now(entries)
    gate = wrap(heir)
    gate.doubt = doubt
    if doubt == "lost":
        with pytest.raises(CommitUnknown):
            heir.take_over(LATER)
    else:
        assert heir.take_over(LATER) == list(made.open_holds())
        heir.append_now([void(made, "open", "expired")])
    gate.doubt = doubt
    if doubt == "lost":
        assert open_store("next").take_over(LATER) == list(made.open_holds())
    else:
        assert heir.take_over(2 * LATER) == []
    prove(heir)


def test_a_roll_keeps_what_was_taken_over(open_store: OpenStore) -> None:
    dead, heir = open_store("dead"), open_store("heir")
    _, entries = story()
    dead.append_now(entries)
    found = heir.take_over(LATER)
    mine = reserve(ledger(owner="heir"), "ours")
    heir.append_now([mine])
    heir.close()
    assert open_store("next").take_over(2 * LATER) == [*found, mine]


# One bad entry.


def test_a_number_beyond_64_bits_is_refused_alone(store: SQLStore, run: Callable[..., Any]) -> None:
    gate = wrap(store)
    made = ledger()
    entries = [reserve(made, str(i)) for i in range(3)]
    wrong = msgspec.structs.replace(entries[0], request="wrong", at_unix_ns=2**63)

    async def main() -> list[BaseException | None]:
        gate.opened.clear()
        first = store.append(entries[:1])
        await asyncio.to_thread(gate.entered.wait, WAIT_S_MAX)
        # The first block's date is that of its last entry, the next one's is out of range.
        rest = [store.append([each]) for each in (entries[1], entries[2], wrong)]
        gate.opened.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    results = run(main())
    assert results[:3] == [None] * 3
    assert isinstance(results[3], LedgerCorrupt)
    assert prove(store) == entries


# Damage.


def test_the_end_of_the_chain_is_logged_once_an_hour_and_at_the_end(
    store: SQLStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tokenworks.ledger")
    made = ledger()
    monkeypatch.setattr(store_module, "ROLL_ENTRIES", 1)
    for i in range(3):
        store.append_now([reserve(made, str(i))])
        if i == 1:
            store._head_s -= store_module.HEAD_S
    store.close()
    heads = [str(ChainHead(block.seq, block.hash)) for block in store_blocks(store)]
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"the ledger's chain ends with {head}" for head in (heads[1], heads[2])]


def store_blocks(closed: SQLStore) -> list[Block]:
    assert isinstance(closed._writer, SQLiteDatabase)
    again = sqlite_store(closed._writer.path)
    try:
        return list(again.blocks())
    finally:
        again.close()


def spoil(path: Path, sql: str) -> None:
    """Change the file behind the store's back."""
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER blocks_are_never_edited")
    connection.execute("DROP TRIGGER blocks_are_never_removed")
    assert connection.execute(sql).rowcount
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        (
            "UPDATE blocks SET payload = payload || ' ' WHERE seq = 2",
            "2 was changed: it does not hold",
        ),
        ("UPDATE blocks SET payload = CAST(payload || ' ' AS BLOB) WHERE seq = 2", "2 was changed"),
        ("UPDATE blocks SET hash = zeroblob(32) WHERE seq = 4", "4 was changed"),
        ("UPDATE blocks SET at_unix_ns = 1 WHERE seq = 3", "3 was changed"),
        ("DELETE FROM blocks WHERE seq = 3", "3 is missing"),
        ("DELETE FROM blocks WHERE seq > 2", "4 blocks were written"),
        ("DELETE FROM blocks", "Block 1 of 'me' is missing"),
        ("UPDATE blocks SET hash = zeroblob(32) WHERE seq = 1", "1 was changed"),
    ],
)
def test_damage_in_the_tail_is_found_at_the_start(
    open_store: OpenStore, path: Path, sql: str, said: str
) -> None:
    store = open_store("me")
    _, entries = story()
    for i in range(0, 8, 2):
        store.append_now(entries[i : i + 2])
    spoil(path, sql)
    with pytest.raises(LedgerCorrupt, match=said):
        open_store("next").take_over(LATER)


def test_damage_just_before_the_tail_is_found_at_the_start(
    open_store: OpenStore, path: Path
) -> None:
    store = open_store("me")
    made, entries = story()
    store.append_now(entries[:5])
    store.append_now(entries[5:])
    store.close()
    next_store = open_store("next")
    next_store.take_over(LATER)
    next_store.append_now([void(made, "open", "expired")])
    spoil(path, "DELETE FROM blocks WHERE seq = 2")
    with pytest.raises(LedgerCorrupt, match="Block 2 is missing"):
        open_store("third").take_over(2 * LATER)


def test_an_entry_that_cannot_be_decoded_is_named(store: SQLStore, path: Path) -> None:
    store.append_now([reserve(ledger())])
    spoil(path, "UPDATE blocks SET payload = x'7b7d'")
    with pytest.raises(LedgerCorrupt, match="Block 1"):
        list(store.load_entries())


def test_blocks_can_be_neither_edited_nor_removed(store: SQLStore, path: Path) -> None:
    store.append_now(story()[1])
    connection = sqlite3.connect(path)
    for sql in ("UPDATE blocks SET count = 0", "DELETE FROM blocks"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            connection.execute(sql)
    connection.close()


# Opening.


def test_only_one_factory_may_open_it(path: Path) -> None:
    first = sqlite_store(path, "one", sole=True)
    with pytest.raises(LedgerUnavailable, match="other factory"):
        sqlite_store(path, "two", sole=True)
    tool = sqlite_store(path)
    before = first.settings_version()
    tool.put_key(key_record())
    assert first.settings_version() > before
    assert [record.key for record in first.load_keys()] == [KeyID("key")]
    tool.close()
    first.close()
    sqlite_store(path, "two", sole=True).close()


def test_who_waits_too_long_for_another_writer_is_told_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "BUSY_S_MAX", 0)
    store = sqlite_store(path, "me")
    other = SQLiteDatabase(path)
    with other.writing(), pytest.raises(LedgerUnavailable, match="locked") as caught:
        store.append_now([reserve(ledger())])
    assert "Another process has been writing" in caught.value.hint
    other.close()
    store.close()


def test_a_file_that_is_no_ledger_is_left_alone(tmp_path: Path, path: Path) -> None:
    path.write_bytes(b"these are not the bytes of a ledger" * 100)
    with pytest.raises(LedgerCorrupt, match="not a readable ledger"):
        sqlite_store(path)
    with pytest.raises(LedgerUnavailable, match="permissions"):
        sqlite_store(tmp_path / "missing" / "ledger.sqlite")
    with pytest.raises(LedgerUnavailable, match="locked"):
        sqlite_store(tmp_path / "missing" / "ledger.sqlite", sole=True)
    with pytest.raises(LedgerUnavailable):
        sqlite_store(tmp_path / "new.sqlite", create=False)
    assert not (tmp_path / "new.sqlite").exists()


def test_another_schema_is_refused(store: SQLStore, path: Path) -> None:
    store._other.change("UPDATE meta SET value = 99 WHERE name = 'schema_version'")
    with pytest.raises(ConfigInvalid, match="schema 99"):
        sqlite_store(path)


def test_a_key_that_cannot_be_stored_is_unavailable(store: SQLStore) -> None:
    store._other.change("DROP TABLE keys")
    with pytest.raises(LedgerUnavailable, match="keys"):
        store.put_key(key_record())


def test_kill_9_loses_nothing_acknowledged(path: Path) -> None:
    script = f"""
import asyncio, pathlib
from tests.ledger.ledger_samples import ledger, post, reserve
from tokenworks.live.store import sqlite_store

async def client(store, made, name):
    for i in range(1_000_000):
        request = f"{{name}}-{{i}}"
        await store.append([reserve(made, request)])
        await store.append([post(made, request)])
        print(request, flush=True)

async def main():
    store, made = sqlite_store(pathlib.Path({str(path)!r}), "dead", sole=True), ledger()
    await asyncio.gather(*(client(store, made, name) for name in "abcdefgh"))

asyncio.run(main())
"""
    folders = [str(Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        acknowledged = [child.stdout.readline().strip() for _ in range(100)]
        child.send_signal(signal.SIGKILL)
        acknowledged += child.stdout.read().split("\n")[:-1]
    assert child.returncode == -signal.SIGKILL
    store = sqlite_store(path, "next", sole=True)
    posted = {entry.request for entry in prove(store) if entry.phase == "settle"}
    assert len(acknowledged) >= 100
    assert "" not in acknowledged
    assert posted.issuperset(acknowledged)
    rebuilt = recover(store, LATER)
    store.append_now(rebuilt.void_orphans(LATER))
    prove(store)
    store.close()
    last = sqlite_store(path, "last", sole=True)
    again = recover(last, 2 * LATER)
    assert not again.open_holds()
    assert same(rebuilt, again)
    last.close()


def test_the_file_is_for_its_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        store = sqlite_store(path, "me")
    finally:
        os.umask(before)
    store.append_now([reserve(ledger())])
    for file in path.parent.glob(f"{path.name}*"):
        assert file.stat().st_mode & 0o077 == 0, file
    store.close()


def test_who_wants_the_file_alone_and_who_shares_it_exclude_each_other(
    path: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link.sqlite"
    link.symlink_to(path)
    one, other = sqlite_store(path, "1", shared=True), sqlite_store(link, "2", shared=True)
    with pytest.raises(LedgerUnavailable, match="cannot be locked"):
        sqlite_store(link, "3", sole=True)
    one.close()
    other.close()
    alone = sqlite_store(path, "4", sole=True)
    with pytest.raises(LedgerUnavailable, match="cannot be locked"):
        sqlite_store(link, "5", shared=True)
    alone.close()


@pytest.mark.parametrize("made_for_it", [True, False])
def test_a_file_gives_back_what_it_can_and_nobody_waits_for_more(
    tmp_path: Path, *, made_for_it: bool
) -> None:
    path = tmp_path / "file.sqlite"
    with closing(SQLiteDatabase(path, shrinks=made_for_it)) as database:
        database.script("CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(100000))")
        database.script("DELETE FROM t")
    with closing(SQLiteDatabase(path, shrinks=True)) as database:
        (((before,),), ((size,),)) = map(
            database.query, ("PRAGMA freelist_count", "PRAGMA page_size")
        )
        assert before > 20
        assert database.shrink(10 * size, 8 * size) == made_for_it
        assert database.query("PRAGMA freelist_count") == [(before - 8 * made_for_it,)]
