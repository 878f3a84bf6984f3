"""Every command's words and tables, on a fresh folder and on a used one."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import click
import pytest

import tokenworks
from tests.cli.command_line import data, done, fill, invoke
from tokenworks.cli import main as main_module
from tokenworks.cli.main import GROUPS, cli
from tokenworks.cli.picture import ROWS_MAX, draw_report
from tokenworks.core.errors import (
    ConfigInvalid,
    InvalidRequest,
    JournalInvalid,
    LedgerUnavailable,
)
from tokenworks.core.slo import Tier
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Configured, Limits
from tokenworks.live.home import Home, packaged
from tokenworks.live.journal import JournalWriter, journal_files
from tokenworks.live.store import SQLiteStore

NAMES = [name for _, commands in GROUPS for name in commands]
LEAVES = [
    *([name] for name in NAMES),
    *(["key", name] for name in ("create", "list", "revoke")),
    ["tiers", "measure"],
    ["journal", "replay"],
]


# Help and errors.


def test_help_groups_the_commands_by_what_a_factory_does(home: Home) -> None:
    text = done(home, "--help")
    titles = ["Create tokens:", "Deliver tokens:", "Apply tokens:", "Plan tokens:"]
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    assert all(f"  {name} " in text for name in NAMES)


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_command_explains_itself_and_makes_nothing(home: Home, words: list[str]) -> None:
    text = done(home, *words, "--help")
    assert text.startswith("Usage: ")
    assert not home.path.exists()


def test_the_list_of_commands_says_what_each_commands_own_help_says(home: Home) -> None:
    for _, commands in GROUPS:
        for name, (_, words) in commands.items():
            assert words.endswith("."), name
            assert cli.get_command(click.Context(cli), name) is not None
    assert cli.get_command(click.Context(cli), "no such") is None
    assert invoke(home, "no such").exit_code == 2


def test_the_version_is_the_packages(home: Home) -> None:
    assert tokenworks.__version__ in done(home, "--version")


def test_an_error_is_its_code_its_words_and_a_hint(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tokenworks", "--home", str(home.path), "chat", "hi"])
    with pytest.raises(SystemExit) as caught:
        main_module.main()
    assert caught.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "worker_unavailable: No factory runs from this folder. Start one with `tokenworks up`.\n"
    )


def test_an_error_is_json_too_where_json_was_asked_for(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tokenworks", "--home", str(home.path), "journal", "replay", "--json"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        main_module.main()
    said = json.loads(capsys.readouterr().out)["error"]
    assert said["code"] == "journal_invalid"
    assert said["message"].startswith("There is no journal")
    assert said["hint"] == "`tokenworks up` writes one."


def test_what_succeeds_ends_with_status_0(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tokenworks", "--home", str(home.path), "report"])
    with pytest.raises(SystemExit) as caught:
        main_module.main()
    assert caught.value.code == 0
    assert "The ledger is empty" in capsys.readouterr().out


def test_help_imports_no_engine_no_server_and_no_database() -> None:
    program = "import sys, tokenworks.cli.main as m; m.cli(['--help'], standalone_mode=False); "
    program += "print(sorted({'uvicorn', 'uvloop', 'sqlite3', 'asyncio'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert found.stdout.decode().splitlines()[-1] == "[]"


# Keys.


def test_a_key_is_made_listed_and_revoked(home: Home) -> None:
    assert data(home, "key", "list") == []
    assert "There is no key yet" in done(home, "key", "list")
    assert not home.path.exists()
    new = data(home, "key", "create", "--tenant", "t", "--name", "n", "--tier", "ultra")
    assert new["secret"].startswith("tw_")
    (row,) = data(home, "key", "list")
    assert (row["key"], row["tenant"], row["name"], row["tier"]) == (new["key"], "t", "n", "ultra")
    assert row["revoked"] is False
    assert new["secret"] not in home.ledger.read_bytes().decode("latin-1")
    assert data(home, "key", "revoke", new["key"]) == {"key": new["key"], "revoked": True}
    assert f"{new['key']} is revoked." in done(home, "key", "revoke", new["key"])
    (row,) = data(home, "key", "list")
    assert row["revoked"] is True
    assert new["key"] in done(home, "key", "list")


def test_a_secret_alone_is_on_stdout(home: Home) -> None:
    result = invoke(home, "key", "create", "--tokens", "100", "--usd", "2.50")
    assert result.stdout.startswith("tw_")
    assert len(result.stdout.split()) == 1
    assert "not shown again" in result.stderr
    (row,) = data(home, "key", "list")
    assert (row["tokens_quota"], row["quota_nanodollars"]) == (100, 2_500_000_000)


@pytest.mark.parametrize("usd", ["-1", "many", "NaN", "Infinity", "0.0000000001"])
def test_a_quota_is_an_amount_of_dollars(home: Home, usd: str) -> None:
    result = invoke(home, "key", "create", "--usd", usd)
    assert isinstance(result.exception, InvalidRequest)
    assert "--usd" in str(result.exception)
    assert not home.ledger.exists()


def test_revoking_what_is_not_there_is_an_error(home: Home) -> None:
    assert isinstance(invoke(home, "key", "revoke", "key_x").exception, InvalidRequest)
    assert not home.path.exists()
    done(home, "key", "create")
    assert isinstance(invoke(home, "key", "revoke", "key_x").exception, InvalidRequest)


# Reports.


def test_an_empty_ledger_reports_nothing(home: Home) -> None:
    assert "The ledger is empty" in done(home, "report")
    assert data(home, "report") == {"by": "tier", "rows": [], "asked_and_delivered": []}
    result = invoke(home, "report", "--png", str(home.path / "x.png"))
    assert isinstance(result.exception, InvalidRequest)
    assert not home.path.exists()


def test_a_report_adds_up(home: Home) -> None:
    fill(home)
    found = data(home, "report")
    names = [row["tier"] for row in found["rows"]]
    assert names == ["free", "high", "premium", "(idle)", "total"]
    *rows, total = found["rows"]
    for field in ("requests", "input", "cached", "output", "revenue_nanodollars"):
        assert total[field] == sum(row[field] for row in rows)
    assert (total["requests"], total["input"], total["output"]) == (4, 40, 80)
    assert total["cost_nanodollars"] == 1_000_006  # the whole accrual, answers' shares or idle
    for row in found["rows"]:
        earned = row["revenue_nanodollars"] + row["ads_nanodollars"]
        assert row["margin_nanodollars"] == earned - row["cost_nanodollars"]
    assert rows[0]["ads_nanodollars"] == 10_000  # 20 tokens at half a dollar per million
    premium = rows[2]
    assert premium["earned_usd_per_mtok"] == "47.8800"
    assert rows[-1]["earned_usd_per_mtok"] is None
    assert {"asked": "high", "delivered": "free", "requests": 1} in found["asked_and_delivered"]
    text = done(home, "report")
    assert "Delivered below the tier asked for" in text
    assert "0.00095" in text


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("tenant", ["second", "tenant"]),
        ("key", ["key", "other"]),
        ("pool", ["pool"]),
        ("model", ["m"]),
    ],
)
def test_a_report_groups_by_anything(home: Home, by: str, names: list[str]) -> None:
    fill(home)
    rows = data(home, "report", "--by", by)["rows"]
    assert [row[by] for row in rows] == [*names, "(idle)", "total"]


def test_a_report_of_the_last_hours_leaves_out_what_is_older(home: Home) -> None:
    fill(home)
    assert data(home, "report", "--hours", "1")["rows"] == []


def test_a_factory_that_idled_has_a_cost(home: Home) -> None:
    from tests.ledger.ledger_samples import accrue, ledger

    home.make()
    store = SQLiteStore(home.ledger)
    store.append_now([accrue(ledger())])
    store.close()
    idle, total = data(home, "report")["rows"]
    assert idle["cost_nanodollars"] == total["cost_nanodollars"] == 11
    assert "(idle)" in done(home, "report")


def test_a_report_is_drawn(home: Home, tmp_path: pathlib.Path) -> None:
    fill(home)
    path = tmp_path / "report.png"
    assert "Drawn to" in invoke(home, "report", "--png", str(path)).stderr
    assert path.read_bytes().startswith(b"\x89PNG")
    done(home, "report", "--by", "tenant", "--png", str(tmp_path / "report.svg"))
    assert "<svg" in (tmp_path / "report.svg").read_text()
    result = invoke(home, "report", "--png", str(tmp_path / "report.no"))
    assert isinstance(result.exception, ConfigInvalid)


def test_a_picture_has_room_for_so_many_groups(tmp_path: pathlib.Path) -> None:
    sums = {"requests": 1, "output": 0, "margin_nanodollars": -5}
    money = dict.fromkeys(("revenue_nanodollars", "ads_nanodollars", "cost_nanodollars"), 0)
    rows = [{"key": f"{i} " + "k" * 40, **sums, **money} for i in range(ROWS_MAX + 3)]
    path = tmp_path / "keys.svg"
    draw_report(rows, "key", path)
    assert path.stat().st_size > 0


def test_without_matplotlib_a_picture_says_what_to_install(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    fill(home)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke(home, "report", "--png", str(tmp_path / "x.png"))
    assert isinstance(result.exception, ConfigInvalid)
    assert "pip install" in result.exception.hint


def test_a_report_of_what_is_no_ledger_is_an_error(home: Home) -> None:
    home.make()
    home.ledger.write_bytes(b"no database" * 100)
    assert isinstance(invoke(home, "report").exception, LedgerUnavailable)


# Tiers.


def test_tiers_are_shown_with_promise_and_price(home: Home) -> None:
    rows = data(home, "tiers")
    assert [row["tier"] for row in rows] == [tier.value for tier in Tier]
    assert [row["output_usd_per_mtok"] for row in rows] == [0, 3, 6, 45, 150]
    text = done(home, "tiers")
    assert "Price book laptop@" in text
    assert "premium" in text
    assert not home.path.exists()


def test_the_price_book_is_printed_as_it_is(home: Home) -> None:
    text = done(home, "tiers", "--book")
    assert text == packaged("laptop.toml").read_text()
    home.make()
    home.price_book.write_text(text.replace('name = "laptop"', 'name = "mine"'))
    assert 'name = "mine"' in done(home, "tiers", "--book")


# Journals.


def journal(home: Home) -> pathlib.Path:
    from tests.ledger.ledger_samples import BOOK

    home.make()
    writer, dispatcher = JournalWriter(home.journal), Dispatcher()
    limits = Limits(queue_len_max=dict.fromkeys(Tier, 4))
    event = Configured(promises=BOOK.promises, limits=limits)
    for now_ns in (1, 2, 3):
        writer.write(now_ns, event, dispatcher.handle(now_ns, event), dispatcher)
    writer.close()
    (path,) = journal_files(home.journal)
    return path


def test_a_journal_replays_identically(home: Home) -> None:
    assert isinstance(invoke(home, "journal", "replay").exception, JournalInvalid)
    path = journal(home)
    (row,) = data(home, "journal", "replay")
    assert row == {
        "file": path.name,
        "events": 3,
        "commands": 0,
        "identical": True,
        "first_difference": None,
    }
    assert "yes" in done(home, "journal", "replay", str(path))


def test_a_damaged_journal_is_an_error(home: Home) -> None:
    path = journal(home)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    assert isinstance(invoke(home, "journal", "replay").exception, JournalInvalid)
    result = invoke(home, "journal", "replay", str(home.path / "no such file"))
    assert isinstance(result.exception, JournalInvalid)


def test_a_difference_is_shown_and_fails(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    journal(home)
    monkeypatch.setattr(
        "tokenworks.dispatch.dispatcher.Dispatcher.handle", lambda *_: ["something else"]
    )
    result = invoke(home, "journal", "replay", "--json")
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)
    assert (row["identical"], row["first_difference"]) == (False, 0)
