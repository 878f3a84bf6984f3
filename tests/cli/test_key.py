"""Keys are made with limits of their own, listed with what they used, and revoked."""

from __future__ import annotations

import pytest

from tests.cli.command_line import data, done, fill, invoke
from tokenworks.core.errors import InvalidRequest
from tokenworks.core.slo import Tier
from tokenworks.live.home import Home
from tokenworks.live.store import sqlite_store


def test_a_key_is_made_listed_and_revoked(home: Home) -> None:
    assert data(home, "key", "list") == []
    assert "There is no key yet" in done(home, "key", "list")
    assert not home.path.exists()
    new = data(home, "key", "create", "--tenant", "t", "--name", "n", "--tier", "ultra")
    assert new["secret"].startswith("tw_")
    (row,) = data(home, "key", "list")
    assert (row["key"], row["tenant"], row["name"], row["tier"]) == (new["key"], "t", "n", "ultra")
    assert (row["revoked"], row["limits"]) == (False, [])
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


def test_a_keys_limits_are_for_life_or_by_period(home: Home) -> None:
    new = data(home, "key", "create", "--tokens", "100", "--usd", "2.50")
    (row,) = data(home, "key", "list")
    tokens = {"unit": "tokens", "period": "lifetime", "used": 0, "allowed": 100}
    dollars = {"unit": "nanodollars", "period": "lifetime", "used": 0, "allowed": 2_500_000_000}
    assert row["limits"] == [
        {"limit": f"key:{new['key']}#tokens-lifetime"} | tokens,
        {"limit": f"key:{new['key']}#usd-lifetime"} | dollars,
    ]
    assert new["limits"] == [limit["limit"] for limit in row["limits"]]
    text = done(home, "key", "list")
    assert "0 of 100 tokens per lifetime; $0.00 of $2.50 per lifetime" in text
    new = data(home, "key", "create", "--tokens", "7", "--per", "day")
    assert new["limits"] == [f"key:{new['key']}#tokens-day"]


def test_a_key_belongs_to_a_team_and_an_engineer(home: Home) -> None:
    data(home, "key", "create", "--tenant", "acme", "--team", "search", "--engineer", "ada")
    (row,) = data(home, "key", "list")
    assert (row["tenant"], row["team"], row["engineer"]) == ("acme", "search", "ada")
    store = sqlite_store(home.ledger)
    (record,) = store.load_keys()
    store.close()
    assert (record.team, record.engineer, record.tier_default) == ("search", "ada", Tier.HIGH)


def test_a_keys_labels_hold_for_all_its_requests(home: Home) -> None:
    new = data(home, "key", "create", "--labels", "medical, eu")
    assert new["labels"] == ["eu", "medical"]
    (row,) = data(home, "key", "list")
    assert row["labels"] == ["eu", "medical"]
    assert "eu, medical" in done(home, "key", "list")
    store = sqlite_store(home.ledger)
    (record,) = store.load_keys()
    store.close()
    assert record.view().labels == ("eu", "medical")
    wrong = invoke(home, "key", "create", "--labels", "a;b").exception
    assert isinstance(wrong, InvalidRequest)


@pytest.mark.parametrize("option", ["--tenant", "--team", "--engineer"])
def test_a_name_must_fit_into_the_quota_tree(home: Home, option: str) -> None:
    result = invoke(home, "key", "create", option, "two words")
    assert isinstance(result.exception, InvalidRequest)
    assert "two words" in str(result.exception)


@pytest.mark.parametrize("usd", ["-1", "many", "NaN", "Infinity", "0.0000000001", "", ".", "1.-1"])
def test_a_quota_is_an_amount_of_dollars(home: Home, usd: str) -> None:
    result = invoke(home, "key", "create", "--usd", usd)
    assert isinstance(result.exception, InvalidRequest)
    assert "--usd" in str(result.exception)
    assert not home.ledger.exists()


def test_what_a_key_used_is_shown_beside_what_it_may_use(home: Home) -> None:
    fill(home)
    done(home, "quota", "set", "key:key", "--tokens", "500", "--per", "lifetime")
    row, _ = data(home, "key", "list")
    assert [(limit["used"], limit["allowed"]) for limit in row["limits"]] == [(90, 500)]
    assert "90 of 500 tokens per lifetime" in done(home, "key", "list")


def test_revoking_what_is_not_there_is_an_error(home: Home) -> None:
    assert isinstance(invoke(home, "key", "revoke", "key_x").exception, InvalidRequest)
    assert not home.path.exists()
    done(home, "key", "create")
    assert isinstance(invoke(home, "key", "revoke", "key_x").exception, InvalidRequest)


def test_a_secret_that_callers_have_already(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLD_KEY", "My API Key")
    assert data(home, "key", "create", "--secret-env", "OLD_KEY")["secret"] == "My API Key"
    again = invoke(home, "key", "create", "--secret-env", "OLD_KEY").exception
    assert "There is a key with this secret" in str(again)
    monkeypatch.setenv("OLD_KEY", "")
    unset = invoke(home, "key", "create", "--secret-env", "OLD_KEY").exception
    assert "is not set" in str(unset)


@pytest.mark.parametrize("secret", ["short", "x" * 513, "schlüssel-1", " padded-1", "line\nline"])
def test_a_secret_that_no_header_carries(
    home: Home, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("OLD_KEY", secret)
    refused = str(invoke(home, "key", "create", "--secret-env", "OLD_KEY").exception)
    assert "printable ASCII" in refused
    assert secret not in refused
