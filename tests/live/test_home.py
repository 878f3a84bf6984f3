"""A factory's folder: private, whole, and wrong only in words that help."""

from __future__ import annotations

import os
import pathlib

import pytest

from tokenworks.catalogue.factory_config import PoolConfig
from tokenworks.core.errors import ConfigInvalid, LedgerUnavailable
from tokenworks.live import home as home_module
from tokenworks.live.home import HOME_VARIABLE, Home, foreman_facts, model_path, packaged


@pytest.fixture
def home(tmp_path: pathlib.Path) -> Home:
    made = Home(tmp_path / "above" / "home")
    made.make()
    return made


def mode(path: pathlib.Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_folder_is_the_one_named_else_the_variables_else_the_users(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "b"))
    assert Home(tmp_path / "a").path == tmp_path / "a"
    assert Home().path == tmp_path / "b"
    monkeypatch.setenv(HOME_VARIABLE, "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Home().path == tmp_path / ".tokenworks"


def test_settings_that_were_read_hold_whatever_the_file_says_by_now(home: Home) -> None:
    read = home.load_settings()
    home.settings.write_text("[ledger]\npath = ")
    assert Home(home.path, read).load_settings() == read
    assert not Home(home.path, read).shares_ledger()
    with pytest.raises(ConfigInvalid):
        home.shares_ledger()


def test_folder_and_files_are_for_their_owner_alone(home: Home) -> None:
    before = os.umask(0)
    try:
        home.make()
        home.write_private(home.key, "tw_secret\n")
    finally:
        os.umask(before)
    assert mode(home.path) == 0o700
    assert mode(home.key) == 0o600
    assert home.read_key() == "tw_secret"
    assert sorted(path.name for path in home.path.iterdir()) == ["key"]


def test_a_part_left_by_somebody_does_not_open_the_file_to_others(home: Home) -> None:
    part = home.path / "key.part"
    part.write_text("half")
    part.chmod(0o666)
    home.write_private(home.key, "tw_secret")
    assert mode(home.key) == 0o600


def test_what_is_not_there_is_none_or_what_ships(home: Home) -> None:
    assert home.read_key() is None
    assert home.read_url() is None
    home.key.write_text("\n")
    assert home.read_key() is None
    home.url.write_text("http://127.0.0.1:1\n")
    assert home.read_url() == "http://127.0.0.1:1"
    assert home.load_curves() == {}
    assert home.load_settings().pool
    assert home.load_price_book().text == packaged("laptop.toml").read_text()


def test_the_operators_own_files_come_first(home: Home) -> None:
    home.settings.write_text('[pool.mine]\nengine = "embedded"\nmodel = "foreman"\n')
    assert list(home.load_settings().pool) == ["mine"]
    text = packaged("laptop.toml").read_text().replace('name = "laptop"', 'name = "mine"')
    home.price_book.write_text(text)
    assert home.load_price_book().price_id.startswith("mine@")
    home.curves.write_text('{"laptop": [[1, 900], [4, 500]]}')
    assert home.load_curves() == {"laptop": ((1, 900), (4, 500))}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ('{"laptop": [[1]]}', "cannot be read"),
        ('{"laptop": [[4, 5], [1, 9]]}', "curves.json: laptop"),
    ],
)
def test_a_damaged_curve_is_refused(home: Home, text: str, said: str) -> None:
    home.curves.write_text(text)
    with pytest.raises(ConfigInvalid, match=said):
        home.load_curves()


def test_a_file_that_is_no_text_or_no_file_is_refused(home: Home) -> None:
    home.settings.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigInvalid, match="UTF-8"):
        home.load_settings()
    home.key.mkdir()
    with pytest.raises(ConfigInvalid, match=r"'.*key' cannot be read: Is a directory"):
        home.read_key()
    with pytest.raises(ConfigInvalid, match="cannot be written"):
        home.write_private(home.key, "x")


def test_a_folder_that_cannot_be_is_refused(
    home: Home, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigInvalid, match="cannot be made: File exists") as caught:
        Home(file).make()
    assert HOME_VARIABLE in caught.value.hint
    monkeypatch.setattr(home_module.os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ConfigInvalid, match="cannot be written"):
        home.make()


# Weights.


def pool(model: str = "foreman", path: str = "") -> PoolConfig:
    return PoolConfig(engine="embedded", model=model, path=path)


@pytest.fixture
def shipped(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Where ``packaged`` looks; empty."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setattr(home_module, "packaged", lambda name: folder / name)
    return folder


FACTS = """{"sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
"context_tokens": 2048, "curve": [[1, 100]]}"""


SETTINGS = packaged("factory.toml").read_text()


def test_the_ledger_is_the_homes_own_unless_the_settings_name_another(home: Home) -> None:
    assert (home.shares_ledger(), home.has_ledger()) == (False, False)
    home.open_ledger().close()
    assert home.has_ledger()
    elsewhere = home.path / "elsewhere.sqlite"
    home.settings.write_text(f'{SETTINGS}\n[ledger]\npath = "{elsewhere}"\n')
    assert (home.shares_ledger(), home.has_ledger()) == (True, False)
    home.open_ledger().close()
    assert elsewhere.exists()


def test_a_database_is_taken_to_be_there(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.settings.write_text(f'{SETTINGS}\n[ledger]\nurl_env = "LEDGER_URL"\n')
    monkeypatch.setenv("LEDGER_URL", "postgresql://127.0.0.1:1/none")
    assert (home.shares_ledger(), home.has_ledger()) == (True, True)
    with pytest.raises(LedgerUnavailable, match="127"):
        home.open_ledger()


def test_price_books_of_other_days_lie_in_a_folder(home: Home) -> None:
    assert len(home.load_price_books().all()) == 1
    home.prices.mkdir()
    text = packaged("laptop.toml").read_text()
    (home.prices / "next.toml").write_text(text.replace("2026-11-24", "2027-01-01"))
    (later,) = home.load_price_books().all()
    home.price_book.write_text(text)
    assert [book.effective.year for book in home.load_price_books().all()] == [2026, 2027]
    assert later.effective.year == 2027


def test_shipped_weights_are_known_by_their_hash(shipped: pathlib.Path) -> None:
    (shipped / "foreman.json").write_text(FACTS)
    weights = shipped / "foreman-q8_0.gguf"
    with pytest.raises(ConfigInvalid, match="missing"):
        model_path(pool())
    weights.write_text("abd")
    with pytest.raises(ConfigInvalid, match="not the ones that were shipped"):
        model_path(pool())
    weights.write_text("abc")
    assert model_path(pool()) == weights
    assert foreman_facts().curve == ((1, 100),)


def test_shipped_facts_are_there_and_whole(shipped: pathlib.Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"foreman\.json"):
        foreman_facts()
    (shipped / "foreman.json").write_text("{")
    with pytest.raises(ConfigInvalid, match=r"foreman\.json"):
        foreman_facts()


def test_weights_of_the_operators_own_are_taken_as_they_are(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mine.gguf"
    with pytest.raises(ConfigInvalid, match="There is no model file"):
        model_path(pool(path=str(path)))
    path.write_text("")
    assert model_path(pool("mine", path=str(path))) == path
    with pytest.raises(ConfigInvalid, match="No weights ship for the model 'mine'"):
        model_path(pool("mine"))


def test_an_address_that_cannot_be_removed_is_refused(home: Home) -> None:
    home.make()
    home.forget_url()
    home.url.write_text("http://127.0.0.1:1")
    home.forget_url()
    assert home.read_url() is None
    home.url.mkdir()
    with pytest.raises(ConfigInvalid, match="cannot be removed"):
        home.forget_url()
