"""PostgreSQL as the ledger's database: the store's cases, and what a server may do to it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_limited
from tests.ledger.store_conformance import OpenStore, StoreConformance
from tests.live import postgres_server
from tests.live.ledger_load import Told, check, load
from tests.live.postgres_server import PASSWORD, PASSWORD_IN_URL, PostgresServer
from tests.live.sql_store_cases import NOW, SQLStoreCases, check_chain, reserved
from tokenworks.core.errors import ConfigInvalid, LedgerCorrupt, LedgerUnavailable
from tokenworks.ledger.store_port import InDoubt
from tokenworks.live import postgres as postgres_module
from tokenworks.live import store as store_module
from tokenworks.live.database import CommitUnknown
from tokenworks.live.postgres import SOLE_LOCK, STREAM_ROWS, WRITER_LOCK, PostgresDatabase
from tokenworks.live.store import SQLStore, postgres_store, sqlite_store

HANG_S = 120
"""What takes longer than this hangs."""
CUTS = 50
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tokenworks'"
CUT_IN_COMMIT = f"{CUT} AND state = 'active' AND query = 'COMMIT'"
# A commit that waits before it is kept: for a lock that a check at its end takes.
GATE = 77
WAIT_AT_GATE = f"""
CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON blocks DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION wait_at_gate()
"""
# And one that waits after it is kept: for a standby that there is not.
WAIT_FOR_STANDBY = "ALTER SYSTEM SET synchronous_standby_names = 'nobody'"
WAIT_NO_MORE = "ALTER SYSTEM RESET synchronous_standby_names"
RELOAD = "SELECT pg_reload_conf()"
WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
StandingStill = Callable[..., AbstractContextManager[None]]
WRONG = "wrong/secret@%"
WRONG_IN_URL = "wrong%2Fsecret%40%25"


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.create()


class Postgres:
    @pytest.fixture
    def open_store(self, url: str) -> Iterator[OpenStore]:
        with ExitStack() as stack:
            yield lambda owner: stack.enter_context(closing(postgres_store(url, owner)))


class TestPostgresStore(Postgres, StoreConformance): ...


class TestPostgresStoreThatRollsUpEveryBlock(Postgres, StoreConformance):
    @pytest.fixture(autouse=True)
    def _roll(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_module, "ROLL_ENTRIES", 1)


class TestSQLiteStoreCases(SQLStoreCases):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> Iterator[OpenStore]:
        with ExitStack() as stack:
            path = tmp_path / "ledger.sqlite"
            yield lambda owner: stack.enter_context(closing(sqlite_store(path, owner)))

    def damage(self, store: SQLStore) -> None:
        store._other.script("DROP TRIGGER blocks_are_never_edited")
        store._other.change(
            "UPDATE blocks SET payload = CAST(payload || '!' AS BLOB) WHERE seq = 2"
        )

    def test_a_block_without_bytes_is_found_too(
        self, store: SQLStore, open_store: OpenStore
    ) -> None:
        store.append_now([reserved("a")])
        store._other.script("DROP TRIGGER blocks_are_never_edited")
        store._other.change("UPDATE blocks SET payload = 'text'")
        with pytest.raises(LedgerCorrupt, match="does not hold bytes"):
            open_store("next").take_over(NOW + 1)


class TestPostgresStoreCases(Postgres, SQLStoreCases):
    def damage(self, store: SQLStore) -> None:
        with store._other.writing():
            store._other.change("ALTER TABLE blocks DISABLE TRIGGER ALL")
            store._other.change("UPDATE blocks SET payload = payload || '!' WHERE seq = 2")


# A server that breaks.


def appending(url: str, owner: str, count: int) -> subprocess.Popen[str]:
    """A process that appends once it is told ``go``."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.live.ledger_load", url, owner, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent.parent,
    )


def ready(process: subprocess.Popen[str]) -> None:
    """Wait until it is."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def go(process: subprocess.Popen[str]) -> None:
    """Let it begin."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def under_load(store: SQLStore, meanwhile: Callable[[Told], None]) -> Told:
    """What clients of a store were told while something else was done."""
    told, stopped = Told(), threading.Event()

    async def main() -> None:
        clients = asyncio.create_task(load(store, told, stopped.is_set))
        try:
            await asyncio.to_thread(meanwhile, told)
        finally:
            stopped.set()
        await clients

    run_limited(main())
    return told


def wait_for_more(told: Told, count: int) -> None:
    """Until so many more entries are acknowledged."""
    wanted, until = len(told.acknowledged) + count, time.monotonic() + HANG_S
    while len(told.acknowledged) < wanted:
        assert time.monotonic() < until, (len(told.acknowledged), wanted, told.refusals)
        time.sleep(0.001)


def cut_in_commit(other: Any, waiting_for: str | None = None) -> None:
    """Cut a connection while the server is at its commit, or waits in it for something.

    Of what waits, the end is waited for: a wait that ends at the same time would end well.
    """
    cut = CUT_IN_COMMIT
    if waiting_for is not None:
        cut = cut.replace("(pid)", "(pid, 30000)") + f" AND wait_event = '{waiting_for}'"
    until = time.monotonic() + HANG_S
    while not other.execute(cut).fetchall():
        assert time.monotonic() < until


def cut_before_kept(other: Any) -> None:
    """Cut a connection in a commit that will therefore not be kept."""
    other.execute(f"SELECT pg_advisory_lock({GATE})")
    cut_in_commit(other, "advisory")
    other.execute(f"SELECT pg_advisory_unlock({GATE})")


def cut_when_kept(other: Any) -> None:
    """Cut a connection in a commit that is kept, and cannot say so."""
    for statement in (WAIT_FOR_STANDBY, RELOAD):
        other.execute(statement)
    try:
        cut_in_commit(other, "SyncRep")
    finally:
        for statement in (WAIT_NO_MORE, RELOAD):
            other.execute(statement)


@pytest.mark.slow
@pytest.mark.heavy
def test_a_killed_server_loses_nothing_that_was_acknowledged(
    postgres: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "ROLL_ENTRIES", 200)
    rng = random.Random(3)

    def kill(told: Told) -> None:
        for _ in range(4):
            wait_for_more(told, rng.randrange(50, 200))
            time.sleep(rng.uniform(0, 0.005))
            postgres.kill()
            postgres.start()
        wait_for_more(told, 50)

    with closing(postgres_store(url, "me")) as store:
        told = under_load(store, kill)
    assert told.refusals
    with closing(postgres_store(url, "next")) as after:
        check(after, told)


@pytest.mark.slow
@pytest.mark.heavy
def test_a_connection_cut_at_any_moment_loses_nothing_and_doubles_nothing(
    postgres: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "ROLL_ENTRIES", 100)
    rng = random.Random(5)
    doubts: list[str] = []
    ask = SQLStore._ask_until_known

    def asked(store: SQLStore, question: Callable[[], bool]) -> bool | None:
        kept = ask(store, question)
        doubts.append(str(kept))
        return kept

    monkeypatch.setattr(SQLStore, "_ask_until_known", asked)

    def cut(told: Told) -> None:
        with postgres.connect(url) as other:
            other.execute(WAIT_AT_GATE)
            for i in range(CUTS):
                wait_for_more(told, rng.randrange(1, 40))
                if i % 2:
                    time.sleep(rng.uniform(0, 0.004))
                    other.execute(CUT)
                else:
                    cut_in_commit(other)
            # From here on only blocks are written: of sums nobody asks whether they were kept.
            for name in ("ROLL_ENTRIES", "ROLL_S"):
                monkeypatch.setattr(store_module, name, 1_000_000)
            wait_for_more(told, 50)
            for cut_known in (cut_before_kept, cut_when_kept) * 3:
                before = len(doubts)
                cut_known(other)
                wait_for_more(told, 50)
                assert str(cut_known is cut_when_kept) in doubts[before:]

    with closing(postgres_store(url, "me")) as store:
        told = under_load(store, cut)
    assert told.refusals
    assert "None" not in doubts
    with closing(postgres_store(url, "next")) as after:
        check(after, told)


@pytest.mark.slow
def test_processes_append_to_one_chain_without_gaps(postgres: PostgresServer, url: str) -> None:
    count, owners = 150, ("a", "b", "c")
    processes = [appending(url, owner, count) for owner in owners]
    for each in processes:
        ready(each)
    with postgres.connect(url) as other:
        # Each has begun before another has ended: all wait for the same lock first.
        other.execute(f"SELECT pg_advisory_lock({WRITER_LOCK})")
        for each in processes:
            go(each)
        until = time.monotonic() + HANG_S
        while other.execute(WAITING).fetchall() != [(len(owners),)]:
            assert time.monotonic() < until
    said = [process.communicate(timeout=HANG_S)[0].split() for process in processes]
    assert said == [[f"{owner}-{i}" for i in range(count)] for owner in owners]
    with closing(postgres_store(url, "checker")) as store:
        assert check_chain(store) == count * len(owners)
        for owner in owners:
            numbers = [block.number for block in store.blocks() if block.owner == owner]
            assert numbers == list(range(1, count + 1))
        order = [block.owner for block in store.blocks()]
        assert len(list(itertools.groupby(order))) > len(owners)  # they did take turns
        assert len(store.take_over(NOW + 1)) == count * len(owners)


@pytest.mark.slow
def test_a_process_that_was_taken_over_appends_nothing_more(url: str) -> None:
    process = appending(url, "old", 1_000_000)
    ready(process)
    go(process)
    assert process.stdout is not None
    said = [process.stdout.readline().strip() for _ in range(20)]
    with closing(postgres_store(url, "new")) as store:
        holds = store.take_over(NOW + 1)
        said += process.communicate(timeout=HANG_S)[0].split()
        assert said.pop() == "fenced"
        assert [hold.request for hold in holds] == sorted(said)
        assert [entry.request for entry in store.load_entries()] == said
        assert check_chain(store) == len(said)


# One connection.


@pytest.fixture
def database(url: str) -> Iterator[PostgresDatabase]:
    with closing(PostgresDatabase(url)) as made:
        made.script("CREATE TABLE t (n BIGINT PRIMARY KEY, s TEXT)")
        yield made


def test_a_connection_that_has_broken_is_made_anew(
    postgres: PostgresServer, database: PostgresDatabase
) -> None:
    with postgres.connect() as other:
        other.execute(CUT)
        assert database.query("SELECT n FROM t") == []
        other.execute(CUT)
        with database.writing():
            database.change("INSERT INTO t VALUES (?, ?)", (1, "50%?"))
        other.execute(CUT)
        with database.reading():
            assert database.query("SELECT n, s FROM t") == [(1, "50%?")]
    assert list(database.stream("SELECT n FROM t WHERE n % 2 = ?", (1,))) == [(1,)]


def test_what_breaks_inside_a_transaction_is_not_kept_in_part(
    postgres: PostgresServer, database: PostgresDatabase
) -> None:
    def write(other: Any) -> None:
        with database.writing():
            database.change("INSERT INTO t VALUES (1, '')")
            other.execute(CUT)
            database.change("INSERT INTO t VALUES (2, '')")

    with postgres.connect() as other, pytest.raises(LedgerUnavailable) as caught:
        write(other)
    assert not isinstance(caught.value, CommitUnknown)
    with database.writing():
        database.change_many("INSERT INTO t VALUES (?, ?)", ((n, None) for n in (3, 4)))
    assert database.query("SELECT n FROM t ORDER BY n") == [(3,), (4,)]


def test_a_connection_that_breaks_in_the_commit_says_so(
    postgres: PostgresServer, database: PostgresDatabase
) -> None:
    def write(other: Any) -> None:
        with database.writing():
            database.change("INSERT INTO t VALUES (1, '')")
            other.execute(CUT)

    with postgres.connect() as other, pytest.raises(CommitUnknown, match="broke in a commit"):
        write(other)
    assert database.query("SELECT n FROM t") == []


def test_a_commit_that_the_server_refuses_is_not_in_doubt(database: PostgresDatabase) -> None:
    database.script("CREATE TABLE u (n BIGINT REFERENCES t (n) DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(LedgerUnavailable) as caught, database.writing():
        database.change("INSERT INTO u VALUES (1)")
    assert not isinstance(caught.value, CommitUnknown)

    def swallow() -> None:
        with database.writing(), contextlib.suppress(LedgerUnavailable):
            database.change("INSERT INTO t VALUES (1, ''), (1, '')")

    with pytest.raises(LedgerUnavailable, match="rolled a transaction back"):
        swallow()
    assert database.query("SELECT n FROM u") == []


def test_a_connection_that_cannot_even_roll_back_is_let_go(
    postgres: PostgresServer, database: PostgresDatabase
) -> None:
    def fail(other: Any) -> None:
        with database.writing():
            other.execute(CUT)
            raise ZeroDivisionError

    with postgres.connect() as other, pytest.raises(ZeroDivisionError):
        fail(other)
    assert database.query("SELECT n FROM t") == []


def test_an_exception_rolls_back(database: PostgresDatabase) -> None:
    def fail() -> None:
        with database.writing():
            database.change("INSERT INTO t VALUES (1, '')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert database.query("SELECT n FROM t") == []


def test_who_asks_after_a_broken_commit_waits_until_it_has_ended(
    postgres: PostgresServer, url: str
) -> None:
    with closing(postgres_store(url, "me")) as store, postgres.connect(url) as other:
        store.append_now([reserved("a")])
        # The server is still at it: it holds the lock, and nobody sees yet what it commits.
        other.execute(f"BEGIN; SELECT pg_advisory_xact_lock({WRITER_LOCK})")
        other.execute("UPDATE owners SET number = 2")
        answers: list[bool | None] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                store._ask_until_known(lambda: store._written("number") >= 2)
            )
        )
        asking.start()
        with postgres.connect() as third:
            while third.execute(WAITING).fetchall() == [(0,)]:
                assert asking.is_alive()
        assert answers == []
        other.execute("COMMIT")
        asking.join(HANG_S)
        assert answers == [True]


# A server that stands still.


@pytest.fixture
def standing_still(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> StandingStill:
    """``standing_still(*databases)``: the server does, and only while it does is nobody patient."""

    @contextlib.contextmanager
    def still(*databases: PostgresDatabase) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(postgres_module, "SILENT_S_MAX", 0.5)
            patch.setattr(postgres_module, "ANSWER_S_MAX", 0.5)
            for each in databases:
                patch.setitem(each._settings, "connect_timeout", 2)
            with postgres.standing_still():
                yield

    return still


def test_a_server_that_stands_still_is_not_waited_for_for_ever(
    url: str, standing_still: StandingStill
) -> None:
    def query() -> None:
        with standing_still(database):
            database.query("SELECT 1")

    def begin() -> None:
        with standing_still(database), database.writing():
            raise AssertionError("it has begun")

    def write() -> None:
        with database.writing(), standing_still(database):
            database.change("DELETE FROM t")

    def stream() -> None:
        rows = database.stream(f"SELECT generate_series(1, {2 * STREAM_ROWS})")
        next(rows)
        with standing_still(database):
            list(rows)

    with closing(PostgresDatabase(url)) as database:
        database.script("CREATE TABLE t (n BIGINT)")
        for use in (query, begin, write, stream):
            with pytest.raises(LedgerUnavailable) as caught:
                use()
            assert not isinstance(caught.value, CommitUnknown)
            assert database.query("SELECT 1") == [(1,)]


def test_an_answer_that_comes_slowly_is_waited_for(
    database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(postgres_module, "time", types.SimpleNamespace(monotonic=lambda: now_s))

    def steps() -> Generator[str, bool, str]:
        for _ in range(10):
            while not (yield "more"):
                pass
        return "all of it"

    waiting = database._until_silent(database._connection, steps())
    next(waiting)
    # Silent for shorter than is allowed, again and again.
    for _ in range(9):
        now_s += 0.9 * postgres_module.ANSWER_S_MAX
        waiting.send(False)
        waiting.send(True)
    with pytest.raises(StopIteration, match="all of it"):
        waiting.send(True)
    assert now_s > 8 * postgres_module.ANSWER_S_MAX


@pytest.mark.parametrize("kept", [True, False])
def test_a_server_that_stands_still_in_a_commit_is_asked_when_it_goes_on(
    url: str, standing_still: StandingStill, monkeypatch: pytest.MonkeyPatch, *, kept: bool
) -> None:
    commit, ask = PostgresDatabase._commit, SQLStore._ask_until_known
    answers: list[bool | None] = []

    with closing(postgres_store(url, "me")) as store, ExitStack() as still:

        def stand_still(database: PostgresDatabase) -> None:
            if not answers and kept:
                still.enter_context(standing_still())
            elif not answers:
                # The commit is never sent: its connection is cut before.
                database._connection.pgconn.finish()
            commit(database)

        def asked(store: SQLStore, question: Callable[[], bool]) -> bool | None:
            still.close()  # it goes on
            answers.append(None)
            answers[-1] = ask(store, question)
            return answers[-1]

        monkeypatch.setattr(PostgresDatabase, "_commit", stand_still)
        monkeypatch.setattr(SQLStore, "_ask_until_known", asked)
        if kept:
            store.append_now([reserved("a")])
        else:
            with pytest.raises(CommitUnknown):
                store.append_now([reserved("a")])
        assert answers == [kept]
        store.append_now([reserved("b")])
    with closing(postgres_store(url, "next")) as after:
        names = [hold.request for hold in after.take_over(NOW + 9)]
        assert names == (["a", "b"] if kept else ["b"])
        check_chain(after)


def test_a_server_that_never_goes_on_leaves_it_in_doubt(
    url: str, standing_still: StandingStill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "DOUBT_S_MAX", 0.5)
    monkeypatch.setattr(store_module, "DOUBT_STEP_S", 0)
    commit = PostgresDatabase._commit
    with closing(postgres_store(url, "me")) as store:
        with ExitStack() as still:

            def stand_still(database: PostgresDatabase) -> None:
                still.enter_context(standing_still(database, store._other))
                commit(database)

            with monkeypatch.context() as patch:
                patch.setattr(PostgresDatabase, "_commit", stand_still)
                with pytest.raises(InDoubt):
                    store.append_now([reserved("a")])
        with pytest.raises(LedgerUnavailable, match="cannot tell"):
            store.append_now([reserved("b")])
    with closing(postgres_store(url, "next")) as after:
        assert [hold.request for hold in after.take_over(NOW + 9)] == ["a"]


def test_a_commit_that_is_heard_is_on_the_disk_whatever_the_url_says(url: str) -> None:
    with closing(PostgresDatabase(f"{url}%20-c%20synchronous_commit%3Doff")) as made:
        assert made.query("SHOW synchronous_commit") == [("on",)]


def test_waiting_for_another_writer_has_an_end(
    postgres: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgres_module._SETTINGS, "lock_timeout", "50ms")
    with closing(PostgresDatabase(url)) as made, postgres.connect(url) as other:
        other.execute(f"BEGIN; SELECT pg_advisory_xact_lock({WRITER_LOCK})")
        with pytest.raises(LedgerUnavailable, match="pg_stat_activity"), made.writing():
            pass
        other.execute("COMMIT")
        with made.writing():
            pass


def test_waiting_for_an_answer_has_an_end(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(postgres_module._SETTINGS, "statement_timeout", "100ms")
    with (
        closing(PostgresDatabase(url)) as made,
        pytest.raises(LedgerUnavailable, match="statement timeout"),
    ):
        made.query("SELECT pg_sleep(?)", (60,))


def test_a_process_that_stands_still_in_a_transaction_stops_nobody_for_ever(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = "idle_in_transaction_session_timeout"
    monkeypatch.setitem(postgres_module._SETTINGS, setting, "50ms")
    with closing(PostgresDatabase(url)) as still, closing(PostgresDatabase(url)) as other:
        # The other waits until the first is thrown out.
        with pytest.raises(LedgerUnavailable), still.writing(), other.writing():
            pass
        assert still.query("SELECT 1") == [(1,)]


def test_a_stream_may_be_read_slowly(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = "idle_in_transaction_session_timeout"
    monkeypatch.setitem(postgres_module._SETTINGS, setting, "20ms")
    with closing(PostgresDatabase(url)) as made:
        rows = made.stream("SELECT * FROM generate_series(1, ?)", (200,))
        first = next(rows)
        made.query("SELECT pg_sleep(?)", ("0.1",))
        assert [first, *rows] == [(n,) for n in range(1, 201)]


@contextlib.contextmanager
def impatient(monkeypatch: pytest.MonkeyPatch, refusal: str) -> Iterator[None]:
    """For the length of a block that ends with a refusal: else a lock takes its time to be free."""
    with monkeypatch.context() as patch:
        patch.setattr(postgres_module, "SOLE_S_MAX", 0.05)
        with pytest.raises(LedgerUnavailable, match=refusal):
            yield


def test_a_factory_may_have_the_database_to_itself(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(postgres_store(url, "me", sole=True)):
        with impatient(monkeypatch, "in use by another factory"):
            postgres_store(url, "you", sole=True)
        postgres_store(url, "tool").close()
    postgres_store(url, "you", sole=True).close()


def test_a_factory_that_has_lost_the_database_to_another_appends_nothing(
    postgres: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(postgres_store(url, "me", sole=True)) as mine:
        with postgres.connect() as other:
            other.execute(CUT)
        your = postgres_store(url, "you", sole=True)
        with closing(your), impatient(monkeypatch, "in use by another factory"):
            mine.append_now([reserved("a")])
        mine.append_now([reserved("a")])


def test_a_factory_that_has_just_died_is_waited_for(postgres: PostgresServer, url: str) -> None:
    with postgres.connect() as dying, postgres.connect() as third:
        dying.execute(f"SELECT pg_advisory_lock({SOLE_LOCK})")
        opened: list[SQLStore] = []
        opening = threading.Thread(
            target=lambda: opened.append(postgres_store(url, "me", sole=True))
        )
        opening.start()
        while third.execute(WAITING).fetchall() == [(0,)]:
            assert opening.is_alive()
        dying.close()
        opening.join(HANG_S)
        opened[0].close()


def test_a_closed_database_stays_closed(database: PostgresDatabase) -> None:
    database.close()
    with pytest.raises(LedgerUnavailable, match="is closed"):
        database.query("SELECT 1")


# Errors.


def words_of(error: BaseException) -> str:
    """All that a log would show of it."""
    return "".join(traceback.format_exception(error))


def failing_urls(postgres: PostgresServer, url: str) -> dict[str, str]:
    return {
        "password": url.replace(PASSWORD_IN_URL, WRONG_IN_URL),
        "database": url.replace("/postgres?", "/nothing?"),
        "socket": url.replace(str(postgres.folder), "/nowhere"),
        "host": f"postgresql://u:{PASSWORD_IN_URL}@127.0.0.1:1,127.0.0.1:2/d",
        "replica": f"{url}%20-c%20default_transaction_read_only%3Don",
        "port": f"postgresql://u:{PASSWORD_IN_URL}@h:port/d",
        "signs": f"postgresql://u:{PASSWORD}@h/d",
        "unknown": f"postgresql://u:{PASSWORD_IN_URL}@h/d?nothing=1",
        "words": f"password={PASSWORD} host",
    }


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("password", "whether user, password and database are right"),
        ("database", '"nothing" does not exist'),
        ("socket", "/nowhere"),
        ("host", "127.0.0.1:1,127.0.0.1:2/d"),
        ("replica", "read-only"),
        ("port", "h:port/d"),
        ("signs", "cannot be read"),
        ("unknown", "cannot be read"),
        ("words", "cannot be read"),
    ],
)
def test_an_error_of_connecting_helps_and_shows_no_password(
    postgres: PostgresServer, url: str, which: str, said: str
) -> None:
    with pytest.raises((LedgerUnavailable, ConfigInvalid)) as caught:
        postgres_store(failing_urls(postgres, url)[which])
    assert said in str(caught.value)
    assert "?." not in str(caught.value)  # libpq ends with a question
    for secret in (PASSWORD, PASSWORD_IN_URL, WRONG, WRONG_IN_URL, "secret"):
        assert secret not in words_of(caught.value)


def test_a_password_that_the_server_repeats_is_not_shown(url: str) -> None:
    with closing(PostgresDatabase(url)) as made:
        with pytest.raises(LedgerCorrupt) as caught:
            made.query("SELECT 1 FROM pg_sleep(0) WHERE CAST(? AS INT) = 1", (PASSWORD,))
        assert PASSWORD not in words_of(caught.value)
        assert "***" in str(caught.value)


@pytest.mark.parametrize(
    "sql", ["SELECT * FROM nothing", "SELECT nothing FROM t", "SELECT sum(s) FROM t"]
)
def test_tables_that_are_not_ours_are_no_ledger(database: PostgresDatabase, sql: str) -> None:
    with pytest.raises(LedgerCorrupt, match="not a readable ledger"):
        database.query(sql)


@pytest.mark.parametrize("value", [2**63, 2**200])
def test_values_that_do_not_fit_are_refused(database: PostgresDatabase, value: int) -> None:
    with pytest.raises(LedgerCorrupt, match="does not fit"), database.writing():
        database.change("INSERT INTO t VALUES (?, '')", (value,))
    with pytest.raises(LedgerCorrupt, match="does not fit"), database.writing():
        database.change("INSERT INTO t VALUES (1, ?)", ("\0",))


def test_the_driver_is_asked_for_only_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigInvalid, match="postgres"):
        PostgresDatabase("postgresql://h/d")


def test_where_names_the_place_without_the_password(database: PostgresDatabase) -> None:
    assert database.where.startswith("postgresql://")
    assert database.where.endswith(":5432/postgres")
    assert "secret" not in database.where


# A machine without a server.


@pytest.mark.parametrize(
    ("setting", "ending"),
    [("required", pytest.fail.Exception), ("", pytest.skip.Exception)],
)
def test_a_missing_server_fails_in_ci_and_skips_elsewhere(
    monkeypatch: pytest.MonkeyPatch, setting: str, ending: type[BaseException]
) -> None:
    monkeypatch.setenv(postgres_server.REQUIRED, setting)
    monkeypatch.setattr(postgres_server, "find_programs", lambda: None)
    with pytest.raises(ending, match="apt-get install postgresql"):
        next(postgres_server.running_server())
    monkeypatch.undo()
    monkeypatch.setenv(postgres_server.REQUIRED, setting)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ending, match="psycopg cannot be loaded"):
        next(postgres_server.running_server())
