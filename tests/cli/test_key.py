"""Keys are made with limits of their own, listed with what they used, and revoked."""

from __future__ import annotations

import hashlib

import pytest

from tests.cli.command_line import data, done, fill, invoke
from tokenworks.core.errors import InvalidRequest, NotFound
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_HOUR
from tokenworks.live.clock import SystemClock
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
    assert isinstance(invoke(home, "key", "revoke", "key_x").exception, NotFound)
    assert not home.path.exists()
    done(home, "key", "create")
    assert isinstance(invoke(home, "key", "revoke", "key_x").exception, NotFound)


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


LIMITS = ("--models", "b/c a", "--tiers", "ultra,high", "--from", "::/0,10.0.0.0/8")


def test_what_a_key_is_limited_to_is_stored_and_shown(home: Home) -> None:
    new = data(home, "key", "create", *LIMITS, "--expires", "2127-01-31")
    limits = {
        "models": ["a", "b/c"],
        "tiers": ["high", "ultra"],
        "from": ["10.0.0.0/8", "::/0"],
        "expires": "2127-01-31T00:00Z",
        "old_secret_until": None,
    }
    (row,) = data(home, "key", "list")
    assert new.items() >= limits.items() <= row.items()
    words = "a, b/c; high, ultra; from 10.0.0.0/8, ::/0; until 2127-01-31T00:00Z"
    assert words in done(home, "key", "list")
    store = sqlite_store(home.ledger)
    (record,) = store.load_keys()
    store.close()
    scopes = record.view().scopes
    assert scopes is not None
    assert scopes.tiers == {Tier.HIGH, Tier.ULTRA}


def test_a_key_ends_after_a_time(home: Home) -> None:
    before = SystemClock().unix_ns()
    data(home, "key", "create", "--expires", "30d")
    store = sqlite_store(home.ledger)
    (record,) = store.load_keys()
    store.close()
    assert record.expires_unix_ns is not None
    days = (record.expires_unix_ns - before) / (24 * NS_PER_HOUR)
    assert 30 <= days < 30.01


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--expires", "2020-01-31"), "--expires is '2020-01-31', which is not to come"),
        (("--expires", "0h"), "which is not to come"),
        (("--expires", "999999d"), "which is not to come"),
        (("--expires", "soon"), "--expires is 'soon', which is no time"),
        (("--tiers", "high,best"), "--tiers has 'best'"),
        (("--tiers", "ultra"), "--tier is high, which --tiers leaves out"),
        (("--models", ", "), "--models is empty"),
        (("--models", "a;b"), "--models has 'a;b'"),
        (("--from", ""), "--from is empty"),
        (("--from", "10.0.0.1/8"), "--from has '10.0.0.1/8'"),
    ],
)
def test_limits_that_are_none(home: Home, options: tuple[str, str], words: str) -> None:
    refused = invoke(home, "key", "create", *options).exception
    assert isinstance(refused, InvalidRequest)
    assert words in str(refused)
    assert not home.ledger.exists()


def test_a_key_is_given_a_new_secret(home: Home) -> None:
    new = data(home, "key", "create", "--tokens", "100")
    before = SystemClock().unix_ns()
    rotated = data(home, "key", "rotate", new["key"])
    assert rotated["key"] == new["key"]
    assert rotated["secret"] != new["secret"]
    (row,) = data(home, "key", "list")
    assert row["limits"][0]["allowed"] == 100
    assert row["old_secret_until"] == rotated["old_secret_until"]
    assert f"its old secret until {row['old_secret_until']}" in done(home, "key", "list")
    store = sqlite_store(home.ledger)
    (record,) = store.load_keys()
    store.close()
    digests = [hashlib.sha256(each["secret"].encode()).hexdigest() for each in (new, rotated)]
    assert list(record.secrets_sha256) == digests
    assert record.old_until_unix_ns is not None
    assert 24 <= (record.old_until_unix_ns - before) / NS_PER_HOUR < 24.1
    result = invoke(home, "key", "rotate", new["key"], "--overlap", "0m")
    assert result.stdout.startswith("tw_")
    assert len(result.stdout.split()) == 1
    assert f"The old secret of {new['key']} works until" in result.stderr


def test_the_command_lines_own_key_is_kept_when_it_is_given_a_new_secret(home: Home) -> None:
    mine, other = data(home, "key", "create"), data(home, "key", "create")
    home.write_private(home.key, mine["secret"] + "\n")
    data(home, "key", "rotate", other["key"])
    assert home.read_key() == mine["secret"]
    rotated = data(home, "key", "rotate", mine["key"])
    assert home.read_key() == rotated["secret"]


def test_what_cannot_be_given_a_new_secret(home: Home) -> None:
    assert isinstance(invoke(home, "key", "rotate", "key_x").exception, NotFound)
    assert not home.path.exists()
    new = data(home, "key", "create")
    for overlap in ("a while", "999999d"):
        refused = invoke(home, "key", "rotate", new["key"], "--overlap", overlap).exception
        assert isinstance(refused, InvalidRequest)
        assert "overlap" in str(refused)
    done(home, "key", "revoke", new["key"])
    refused = invoke(home, "key", "rotate", new["key"]).exception
    assert "is revoked" in str(refused)
