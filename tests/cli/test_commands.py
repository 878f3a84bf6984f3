"""Every command's words and tables, on a fresh folder and on a used one."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import click
import pytest

import tokenworks
from tests.cli.command_line import data, done, invoke
from tokenworks.cli import main as main_module
from tokenworks.cli.main import GROUPS, cli
from tokenworks.core.errors import JournalInvalid
from tokenworks.core.slo import Tier
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Configured, Limits
from tokenworks.live.home import Home, packaged
from tokenworks.live.journal import JournalWriter, journal_files

NAMES = [name for _, commands in GROUPS for name in commands]
LEAVES = [
    *([name] for name in NAMES),
    *(["key", name] for name in ("create", "list", "revoke")),
    *(
        ["quota", name]
        for name in ("set", "grant", "list", "remove", "extra", "approve", "deny", "packages")
    ),
    *(["prices", name] for name in ("check", "list")),
    *(["ledger", name] for name in ("verify", "backup", "show", "rebuild")),
    ["export", "focus"],
    ["import", "litellm"],
    ["tiers", "measure"],
    ["journal", "replay"],
    *(["plan", name] for name in ("frontier", "factory", "chart")),
    *(["catalogue", name] for name in ("list", "show")),
]


# Help and errors.


def test_help_groups_the_commands_by_what_a_factory_does(home: Home) -> None:
    text = done(home, "--help")
    titles = ["Create tokens:", "Deliver tokens:", "Apply tokens:", "Plan tokens:"]
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    assert all(f"  {name} " in text for name in NAMES)


@pytest.mark.parametrize("name", sorted({words[0] for words in LEAVES if len(words) > 1}))
def test_a_list_of_commands_says_each_sentence_to_its_end(home: Home, name: str) -> None:
    listed = done(home, name, "--help").partition("\nCommands:\n")[2]
    assert listed
    assert "..." not in listed


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


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("upp", "No such command 'upp'. Did you mean 'up'?"),
        ("leger", "Did you mean 'ledger'?"),
        ("xyzzy", "See the list: --help."),
        ("--hepl", "No such option"),
    ],
)
def test_a_mistyped_command_is_told_its_neighbours(home: Home, typed: str, said: str) -> None:
    result = invoke(home, typed)
    assert result.exit_code == 2
    assert said in result.stderr


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
    program += "print(sorted({'httptools', 'uvloop', 'sqlite3', 'asyncio'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert found.stdout.decode().splitlines()[-1] == "[]"


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
