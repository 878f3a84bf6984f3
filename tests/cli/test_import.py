"""``tokenworks import litellm``: its users move in an hour, and their keys go on working."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.cli.command_line import data, done, invoke
from tokenworks.catalogue.price_book import parse_price_book
from tokenworks.core.errors import InvalidRequest
from tokenworks.core.slo import Tier
from tokenworks.live.home import Home

SECRET = b"sk-1234"
DIGEST = hashlib.sha256(SECRET).hexdigest()
KEYS = {
    "keys": [
        {
            "token": DIGEST,
            "key_alias": "ci",
            "team_id": "t",
            "user_id": "u",
            "max_budget": 12.5,
            "budget_duration": "30d",
            "rpm_limit": 9,
        }
    ]
}
PRICES = (
    '{"sample_spec": 1, "m": {"input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07}}'
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(KEYS))
    return str(path)


@pytest.fixture
def prices(tmp_path: Path) -> str:
    path = tmp_path / "prices.json"
    path.write_text(PRICES)
    return str(path)


def test_keys_budgets_and_prices_move_in(home: Home, keys: str, prices: str) -> None:
    words = (
        *("import", "litellm", "--keys", keys, "--prices", prices, "--model", "m"),
        *("--tenant", "acme"),
    )
    said = done(home, *words)
    assert "1 keys, 0 of them revoked, and 1 limits are here." in said
    assert "rpm_limit = 9 has no counterpart and is left out, of key:key_" in said
    (key,) = data(home, "key", "list")
    assert (key["tenant"], key["team"], key["engineer"], key["name"]) == ("acme", "t", "u", "ci")
    assert key["limits"][0]["allowed"] == 12_500_000_000
    assert DIGEST[:12] in key["key"]
    book = parse_price_book(home.price_book.read_text())
    assert book.prices["m"][Tier.HIGH].output_udollars_per_mtok == 600_000
    assert "m" in done(home, "prices", "list")
    assert isinstance(invoke(home, *words).exception, InvalidRequest)  # the book is there


def test_a_dry_run_does_nothing(home: Home, keys: str, prices: str) -> None:
    words = ("import", "litellm", "--keys", keys, "--prices", prices, "--model", "m=m", "--dry-run")
    found = data(home, *words)
    assert (len(found["keys"]), len(found["limits"]), found["done"]) == (1, 1, False)
    assert "would be" in done(home, *words)
    assert not home.path.exists()


def test_key_info_and_lists_are_read_too(home: Home, tmp_path: Path) -> None:
    info = tmp_path / "info.json"
    info.write_text(json.dumps({"key": DIGEST, "info": {"key_alias": "one"}}))
    teams = tmp_path / "teams.json"
    teams.write_text(json.dumps([{"team_id": "t", "max_budget": 1}]))
    words = ("import", "litellm", "--keys", str(info), "--teams", str(teams), "--dry-run")
    found = data(home, *words)
    assert found["keys"] == [f"key_{DIGEST[:12]}"]
    assert [limit["node"] for limit in found["limits"]] == ["team:litellm/t"]


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--keys", "no json"),
        ("--keys", '{"keys": [1]}'),
        ("--keys", '{"key": "x", "info": null}'),
        ("--prices", "[]"),
        ("--prices", '{"m": {"mode": "chat"}}'),
    ],
)
def test_a_file_of_something_else_is_refused(
    home: Home, tmp_path: Path, option: str, text: str
) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    result = invoke(home, "import", "litellm", option, str(path))
    assert isinstance(result.exception, InvalidRequest)
    assert "file.json" in str(result.exception)
    assert not home.path.exists()


def test_budgets_come_in_a_file_of_their_own(home: Home, tmp_path: Path) -> None:
    keys, budgets = tmp_path / "keys.json", tmp_path / "budgets.json"
    keys.write_text(json.dumps({"keys": [{"token": DIGEST, "budget_id": "gold"}]}))
    budgets.write_text(json.dumps([{"budget_id": "gold", "max_budget": 4.5}]))
    words = ("import", "litellm", "--keys", str(keys))
    result = invoke(home, *words)
    assert isinstance(result.exception, InvalidRequest)
    assert not home.path.exists()
    done(home, *words, "--budgets", str(budgets))
    assert data(home, "key", "list")[0]["limits"][0]["allowed"] == 4_500_000_000


def test_nothing_to_import_is_said(home: Home) -> None:
    assert isinstance(invoke(home, "import", "litellm").exception, InvalidRequest)


def test_a_second_import_opens_nothing_that_was_closed(home: Home, keys: str) -> None:
    words = ("import", "litellm", "--keys", keys)
    done(home, *words)
    name = data(home, "key", "list")[0]["key"]
    done(home, "key", "revoke", name)
    assert f"{name}: it is revoked here and stays so." in done(home, *words)
    assert data(home, *words)["revoked"] == [name]
    assert data(home, "key", "list")[0]["revoked"] is True


def test_pages_are_read_together(home: Home, tmp_path: Path) -> None:
    pages = []
    for page in range(7):
        digest = hashlib.sha256(bytes([page])).hexdigest()
        path = tmp_path / f"{page}.json"
        path.write_text(json.dumps([{"token": digest, "tpm_limit": 5}]))
        pages += ["--keys", str(path)]
    said = done(home, "import", "litellm", *pages)
    assert "7 keys" in said
    assert "tpm_limit = 5 has no counterpart and is left out, of key:" in said
    assert "and 2 more, which --json lists." in said
    assert len(data(home, "import", "litellm", *pages, "--dry-run")["left_out"]) == 7


def test_the_book_has_what_the_factory_sells(home: Home, tmp_path: Path) -> None:
    sold = home.load_settings().pool.popitem()[1].model
    row = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
    path = tmp_path / "map.json"
    path.write_text(json.dumps({sold: row} | {f"other-{i}": row for i in range(2_000)}))
    words = ("import", "litellm", "--prices", str(path))
    assert "No budgets" not in done(home, *words)
    assert list(parse_price_book(home.price_book.read_text()).prices) == [sold]
    book = ("--book", str(tmp_path / "mine.toml"))
    done(home, *words, *book, "--model", "mine=other-5", "--model", "other-6")
    mine = parse_price_book((tmp_path / "mine.toml").read_text())
    assert list(mine.prices) == ["mine", "other-6"]
    path.write_text(json.dumps({"other": row}))
    error = invoke(home, *words, "--dry-run").exception
    assert isinstance(error, InvalidRequest)
    assert sold in error.message
    assert "--model OURS=THEIRS" in error.hint


def test_a_model_of_the_factory_that_the_map_lacks_is_said(
    home: Home, tmp_path: Path, prices: str
) -> None:
    home.make()
    home.settings.write_text(
        "".join(
            f'[pool.{name}]\nengine = "attached"\nmodel = "{name}"\nurls = ["http://{name}:1"]\n'
            for name in ("m", "n")
        )
    )
    said = done(home, "import", "litellm", "--prices", prices, "--dry-run")
    assert "'n' is no model of the price map. The book has no price for it." in said
