"""``tokenworks ledger``: right books are said to be right, and damage is named."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.command_line import data, done, fill, invoke
from tests.ledger.ledger_samples import book, key_record, ledger, post, reserve
from tokenworks.core.errors import ConfigInvalid, InvalidRequest, LedgerUnavailable
from tokenworks.live.home import Home, packaged
from tokenworks.live.store import SQLStore


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    fill(made)
    return made


def spoil(home: Home, *statements: str) -> None:
    with closing(sqlite3.connect(home.ledger)) as connection, connection:
        connection.execute("DROP TRIGGER blocks_are_never_edited")
        connection.execute("DROP TRIGGER blocks_are_never_removed")
        for sql in statements:
            assert connection.execute(sql).rowcount, sql


def test_right_books_are_said_to_be_right(home: Home) -> None:
    assert "all is well" in done(home, "ledger", "verify")
    found = data(home, "ledger", "verify")
    assert (found["findings"], found["open_holds"]) == ([], 0)
    assert found["entries"] >= 8


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("UPDATE blocks SET payload = CAST(payload || '[]' AS BLOB) WHERE seq = 1", "was changed"),
        ("DELETE FROM blocks", "blocks; 0 are there"),
        ("UPDATE months SET requests = requests + 1", "not those of the table"),
    ],
)
def test_damage_is_named_and_the_command_fails(home: Home, sql: str, said: str) -> None:
    spoil(home, sql)
    result = invoke(home, "ledger", "verify")
    assert result.exit_code == 1
    assert said in result.stdout + str(result.exception)


def leave_open(home: Home) -> None:
    """A process that is killed with a reservation open, which is in its list by then."""
    made = ledger(key_record(), owner="killed")
    with closing(home.open_ledger("killed")) as killed:
        killed.append_now([reserve(made, "open")])


def test_a_list_of_open_reservations_that_was_changed_is_found(home: Home) -> None:
    leave_open(home)
    assert data(home, "ledger", "verify")["findings"] == []
    spoil(home, "UPDATE owners SET holds = CAST('[]' AS BLOB)")
    assert "the list of open reservations has None" in invoke(home, "ledger", "verify").stdout
    spoil(home, "UPDATE owners SET holds = CAST('{' AS BLOB)")
    assert "cannot be read" in str(invoke(home, "ledger", "verify").exception)


def test_a_price_book_whose_text_was_changed_is_found(home: Home) -> None:
    spoil(home, "UPDATE price_books SET text = replace(text, 'effective = ', 'effective =  ')")
    assert "was changed" in str(invoke(home, "ledger", "verify").exception.hint)


def test_an_end_that_was_cut_off_or_made_anew_is_found_by_what_was_noted(home: Home) -> None:
    leave_open(home)
    head = data(home, "ledger", "verify")["head"]
    assert data(home, "ledger", "verify", "--expect", head)["findings"] == []
    other = f"{head.partition(':')[0]}:{'0' * 64}"
    result = invoke(home, "ledger", "verify", "--expect", other, "--expect", head)
    assert (result.exit_code, f"that was noted, {other}" in result.stdout) == (1, True)
    spoil(
        home,
        "DELETE FROM blocks WHERE seq = (SELECT MAX(seq) FROM blocks)",
        "DELETE FROM owners WHERE owner = 'killed'",
    )
    assert "all is well" in done(home, "ledger", "verify")
    result = invoke(home, "ledger", "verify", "--expect", head)
    assert result.exit_code == 1
    assert f"it has had {head}" in result.stdout
    assert isinstance(invoke(home, "ledger", "verify", "--expect", "x").exception, InvalidRequest)


@pytest.mark.parametrize("before", ["blocks", "since"])
def test_a_price_book_that_is_opened_meanwhile_is_no_finding(
    home: Home, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    plain, later = getattr(SQLStore, before), book(name="later")

    def slow(store: SQLStore, *arguments: int) -> object:
        made = ledger(key_record(), owner="factory")
        with closing(home.open_ledger("factory")) as factory:
            factory.put_price_book(later.price_id, later.text, 1)
            factory.append_now([reserve(made, "late", prices=later), post(made, "late")])
        return plain(store, *arguments)

    monkeypatch.setattr(SQLStore, before, slow)
    assert data(home, "ledger", "verify")["findings"] == []


def test_sums_can_be_made_again(home: Home) -> None:
    report = data(home, "report")
    spoil(home, "UPDATE months SET requests = requests + 1")
    assert data(home, "report") != report
    (row,) = data(home, "ledger", "rebuild")
    assert row["entries"] >= 8
    assert data(home, "report") == report
    assert data(home, "ledger", "verify")["findings"] == []


@pytest.mark.parametrize("shared", [True, False])
def test_sums_are_not_made_again_beside_a_factory(home: Home, *, shared: bool) -> None:
    with closing(home.open_ledger("factory", sole=not shared, shared=shared)):
        refused = invoke(home, "ledger", "rebuild").exception
    assert isinstance(refused, LedgerUnavailable)
    assert "locked" in str(refused)
    assert "Stop the other factory" in refused.hint


def test_a_copy_is_whole_and_private(home: Home, tmp_path: Path) -> None:
    copy = Home(tmp_path / "copy")
    copy.make()
    (row,) = data(home, "ledger", "backup", str(copy.ledger))
    assert row["bytes"] == copy.ledger.stat().st_size
    assert stat.S_IMODE(copy.ledger.stat().st_mode) == 0o600
    assert data(copy, "ledger", "verify") == data(home, "ledger", "verify")
    assert data(copy, "report") == data(home, "report")
    again = invoke(home, "ledger", "backup", str(copy.ledger))
    assert isinstance(again.exception, InvalidRequest)


def test_a_copy_that_cannot_be_written_is_refused(home: Home, tmp_path: Path) -> None:
    result = invoke(home, "ledger", "backup", str(tmp_path / "missing" / "copy.sqlite"))
    assert result.exit_code == 1
    assert "could not be read or written" in str(result.exception)


def test_a_database_server_is_copied_by_its_own_means(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = packaged("factory.toml").read_text()
    home.settings.write_text(f'{settings}\n[ledger]\nurl_env = "LEDGER_URL"\n')
    monkeypatch.setenv("LEDGER_URL", "postgresql://127.0.0.1:1/none")
    result = invoke(home, "ledger", "backup", "copy.sqlite")
    assert isinstance(result.exception, ConfigInvalid)
    assert "pg_dump" in result.exception.hint


def test_every_entry_of_a_request_is_shown_and_its_sum_redone(home: Home) -> None:
    said = done(home, "ledger", "show", "a")
    assert "reserved" in said
    assert "nano-dollars = $" in said
    assert "the sum holds" in said
    rows = data(home, "ledger", "show", "a")
    assert [row["kind"] for row in rows] == ["reserved", "posted"]
    assert rows[1]["usage"]["output_tokens"] == 20
    result = invoke(home, "ledger", "show", "nobody")
    assert isinstance(result.exception, InvalidRequest)


@pytest.mark.parametrize(
    "words", [("verify",), ("show", "a"), ("rebuild",), ("backup", "copy.sqlite")]
)
def test_without_a_ledger_nothing_is_made(tmp_path: Path, words: tuple[str, ...]) -> None:
    empty = Home(tmp_path / "empty")
    result = invoke(empty, "ledger", *words)
    assert isinstance(result.exception, InvalidRequest)
    assert not empty.ledger.exists()
