"""A commit that cannot be heard, kept or not: nothing is lost and nothing is there twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.live.sql_store_cases import MONTH, NOW, charged, check_chain, limit, posted, reserved
from tokenworks.core.errors import LedgerUnavailable
from tokenworks.core.ids import LimitID
from tokenworks.ledger.entries import Entry
from tokenworks.ledger.leases import Shortage
from tokenworks.ledger.store_port import InDoubt
from tokenworks.live import lease_tables
from tokenworks.live import store as store_module
from tokenworks.live.database import CommitUnknown
from tokenworks.live.sqlite import SQLiteDatabase
from tokenworks.live.store import SQLStore, sqlite_store

TURNS = 6


class _Lost(Exception): ...


class Breaking(SQLiteDatabase):
    """Breaks in its n-th commit, which is kept or not, and then as often as told."""

    def __init__(self, path: Path, *, first: int, kept: bool, times: int = 1) -> None:
        super().__init__(path)
        self.first, self.kept, self.times = first, kept, times
        self.commits = 0

    @contextmanager
    def writing(self) -> Iterator[None]:
        self.commits += 1
        breaks = self.first <= self.commits < self.first + self.times
        if not breaks:
            with super().writing():
                yield
            return
        with suppress(_Lost), super().writing():
            yield
            if not self.kept:
                raise _Lost
        raise CommitUnknown("injected")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "ROLL_ENTRIES", 2)
    monkeypatch.setattr(store_module, "DOUBT_S_MAX", 0.05)
    monkeypatch.setattr(store_module, "DOUBT_STEP_S", 0)


def breaking_store(path: Path, owner: str, *, first: int, kept: bool, times: int = 1) -> SQLStore:
    return SQLStore(lambda: Breaking(path, first=first, kept=kept, times=times), owner)


def append(store: SQLStore, entry: Entry) -> bool:
    """Append, and once more if it was refused; whether it was refused."""
    try:
        store.append_now([entry])
    except LedgerUnavailable:
        store.append_now([entry])
        return True
    return False


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("first", range(1, TURNS * 3))
def test_a_store_finds_out_whichever_commit_breaks(
    tmp_path: Path, first: int, *, kept: bool
) -> None:
    path = tmp_path / "ledger.sqlite"
    entries: list[Entry] = []
    refused = 0
    with closing(breaking_store(path, "me", first=first, kept=kept)) as store:
        for i in range(TURNS):
            hold = reserved(str(i))
            entries += [hold, posted(hold)] if i % 2 else [hold]
            for entry in entries[-2 if i % 2 else -1 :]:
                refused += append(store, entry)
    # The one that broke was an append, or sums; only an append that was not kept is refused.
    assert refused <= (0 if kept else 1)
    with closing(sqlite_store(path, "next")) as store:
        assert list(store.load_entries()) == entries
        assert check_chain(store) == len(entries)
        for _ in range(2):
            assert charged(store) == charged(store, by_hour=True) == 900 * (TURNS // 2)
            store.take_over(NOW + 9)
        rows = store._other.query("SELECT rolled, number FROM owners WHERE owner = 'me'")
        assert rows[0][0] == rows[0][1] == len(entries)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("rolled", [True, False])
def test_what_was_taken_over_is_kept_or_still_to_be_taken(
    tmp_path: Path, *, rolled: bool, kept: bool
) -> None:
    path = tmp_path / "ledger.sqlite"
    done, left = reserved("done"), reserved("left")
    dead = sqlite_store(path, "dead")
    dead.append_now([done, left, posted(done)])
    if not rolled:
        dead._rollup = type(dead._rollup)()  # it dies before
        dead._unrolled.clear()
    with closing(breaking_store(path, "me", first=1, kept=kept)) as store:
        if kept:
            assert store.take_over(NOW + 9) == [left]
        else:
            with pytest.raises(CommitUnknown):
                store.take_over(NOW + 9)
            assert store.take_over(NOW + 9) == [left]
        assert store.take_over(NOW + 9) == []
        new = reserved("new")
        store.append_now([new])
        store.append_now([posted(left)])
        store._roll_if_any()
        assert charged(store) == charged(store, by_hour=True) == 1_800
    dead.close()
    with closing(sqlite_store(path, "next")) as store:
        assert store.take_over(NOW + 99) == [new]
        assert charged(store) == charged(store, by_hour=True) == 1_800


@pytest.mark.parametrize("kept", [True, False])
def test_a_store_that_cannot_find_out_stops_for_good(tmp_path: Path, *, kept: bool) -> None:
    path = tmp_path / "ledger.sqlite"
    many = 10**9
    with closing(breaking_store(path, "me", first=2, kept=kept, times=many)) as store:
        store.append_now([reserved("a")])
        with pytest.raises(InDoubt, match="cannot tell what it has stored") as caught:
            store.append_now([reserved("b")])
        assert "Start the factory again" in caught.value.hint
        with pytest.raises(LedgerUnavailable) as caught_then:
            store.append_now([reserved("c")])
        assert not isinstance(caught_then.value, InDoubt)  # this one is not stored, and never is
    with closing(sqlite_store(path, "next")) as store:
        names = [hold.request for hold in store.take_over(NOW + 9)]
        assert names == (["a", "b"] if kept else ["a"])


def test_a_store_that_cannot_find_out_what_it_took_over_writes_no_list_without_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.sqlite"
    left = reserved("left")
    with closing(sqlite_store(path, "dead")) as dead:
        dead.append_now([left])
    with closing(breaking_store(path, "me", first=1, kept=True, times=10**9)) as store:
        with pytest.raises(CommitUnknown):
            store.take_over(NOW + 9)
        with pytest.raises(LedgerUnavailable):
            store.append_now([reserved("new")])
    with closing(sqlite_store(path, "next")) as store:
        assert store.take_over(NOW + 99) == [left]


def granted(store: SQLStore, place: Shortage) -> int:
    with store._other.reading():
        return lease_tables.granted(store._other, store.owner, [place])[0]


@pytest.mark.parametrize("kept", [True, False])
def test_a_process_knows_what_it_was_granted_and_what_it_gave_back(
    tmp_path: Path, *, kept: bool
) -> None:
    path = tmp_path / "ledger.sqlite"
    place = Shortage(LimitID("lim"), MONTH, 10)
    with closing(sqlite_store(path, "tool")) as tool:
        tool.put_limit(limit())
    with closing(breaking_store(path, "me", first=1, kept=kept)) as store:
        if not kept:
            with pytest.raises(CommitUnknown):
                store.lease([place], NOW)
            assert granted(store, place) == 0
        assert store.lease([place], NOW) == [12]
        assert granted(store, place) == 12
        store._writer.first = store._writer.commits + 1  # type: ignore[attr-defined]
        if not kept:
            with pytest.raises(CommitUnknown):
                store.give_back([place])
            assert granted(store, place) == 12
        store.give_back([place])
        assert granted(store, place) == 2


def test_a_process_that_cannot_find_out_what_it_gave_back_uses_nothing_more(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.sqlite"
    place = Shortage(LimitID("lim"), MONTH, 10)
    with closing(sqlite_store(path, "tool")) as tool:
        tool.put_limit(limit())
    with closing(breaking_store(path, "me", first=3, kept=True, times=10**9)) as store:
        store.lease([place], NOW)
        store.append_now([reserved("a")])
        with pytest.raises(CommitUnknown):
            store.give_back([place])
        with pytest.raises(LedgerUnavailable):
            store.append_now([reserved("b")])


def test_a_commit_that_is_refused_leaves_nothing_open(tmp_path: Path) -> None:
    with closing(SQLiteDatabase(tmp_path / "x.sqlite")) as database:
        database.query("PRAGMA foreign_keys = ON")
        database.script(
            "CREATE TABLE named (name TEXT PRIMARY KEY);"
            "CREATE TABLE used (name TEXT REFERENCES named DEFERRABLE INITIALLY DEFERRED)"
        )
        with pytest.raises(LedgerUnavailable, match="FOREIGN KEY"), database.writing():
            database.change("INSERT INTO used VALUES (?)", ("x",))
        with database.writing():
            database.change("INSERT INTO named VALUES (?)", ("x",))
        assert database.query("SELECT * FROM used") == []
        assert database.query("SELECT * FROM named") == [("x",)]
