"""The quota tree from the command line: set, granted, listed, topped up, lifted."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import msgspec
import pytest

from tests.cli.command_line import data, done, fill, invoke
from tests.ledger.ledger_samples import NOW
from tokenworks.catalogue.packages import EXAMPLE
from tokenworks.core.errors import (
    ConfigInvalid,
    Conflict,
    InvalidRequest,
    LedgerUnavailable,
    NotFound,
)
from tokenworks.ledger.quotas import window_start
from tokenworks.live.clock import SystemClock
from tokenworks.live.home import Home
from tokenworks.live.store import sqlite_store

ADA, EVE = "engineer:tenant/ada", "engineer:tenant/eve"


@pytest.fixture(autouse=True)
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """One moment for a whole test: no month ends in the middle of it."""
    monkeypatch.setattr(SystemClock, "unix_ns", lambda _: NOW)


def people(home: Home) -> None:
    for name in ("ada", "eve"):
        done(home, "key", "create", "--tenant", "tenant", "--engineer", name)


def limits(home: Home, *words: str) -> dict[str, Any]:
    found = data(home, "quota", "list", *words)["limits"]
    return {row["limit"]: row for row in found}


def test_without_a_limit_the_list_says_how_to_set_one(home: Home) -> None:
    assert "quota set --help" in done(home, "quota", "list")
    assert data(home, "quota", "list") == {"limits": [], "extras": []}
    assert not home.path.exists()


def test_a_node_without_a_limit_is_named(home: Home) -> None:
    done(home, "quota", "set", "tenant:acme", "--tokens", "1")
    said = done(home, "quota", "list", "--node", "tenant:other")
    assert said.startswith("There is no limit on tenant:other or in it;")


def test_a_limit_is_set_changed_and_lifted(home: Home) -> None:
    fill(home, SystemClock().unix_ns())
    (row,) = data(home, "quota", "set", "tenant:tenant", "--usd", "500")["limits"]
    assert row["limit"] == "tenant:tenant#usd-month"
    assert (row["unit"], row["period"], row["tier"]) == ("nanodollars", "month", None)
    assert (row["amount"], row["allowed"], row["used"]) == (500 * 10**9, 500 * 10**9, 127_680)
    assert row["held"] is None
    assert row["resets_at"].endswith("-01T00:00Z")
    words = (ADA, "--tokens", "5000", "--tier", "high", "--carry-over", "1000")
    text = done(home, "quota", "set", *words)
    assert f"{ADA}#tokens-month-high" in text
    assert "30    5,000 tokens" in text
    done(home, "quota", "set", ADA, "--tokens", "7000", "--tier", "high")
    row = limits(home)[f"{ADA}#tokens-month-high"]
    assert (row["amount"], row["carry_over_max"], row["used"]) == (7_000, 0, 30)
    assert "$0.00012768" in done(home, "quota", "list")
    name = f"{ADA}#tokens-month-high"
    assert data(home, "quota", "remove", name) == {"limit": name, "removed": True}
    assert list(limits(home)) == ["tenant:tenant#usd-month"]
    assert "is lifted" in done(home, "quota", "remove", "tenant:tenant#usd-month")
    assert isinstance(invoke(home, "quota", "remove", name).exception, NotFound)


def test_a_lifetime_does_not_reset(home: Home) -> None:
    words = ("quota", "set", "run:tenant/r", "--tokens", "5", "--per", "lifetime")
    (row,) = data(home, *words)["limits"]
    assert row["resets_at"] is None


def test_a_node_without_keys_may_be_misspelt(home: Home) -> None:
    fill(home)
    words = ("--tokens", "5")
    assert invoke(home, "quota", "set", ADA, *words).stderr == ""
    assert invoke(home, "quota", "set", "run:tenant/r", *words).stderr == ""
    result = invoke(home, "quota", "set", "engineer:tenant/adda", *words)
    assert result.stderr == "No key is under engineer:tenant/adda yet.\n"


@pytest.mark.parametrize(
    "words",
    [
        ["tenant:acme"],
        ["tenant:acme", "--tokens", "1", "--usd", "1"],
        ["tenant:acme", "--usd", "much"],
        ["tenant:acme", "--tokens", "1", "--carry-over", "many"],
        ["acme", "--tokens", "1"],
        ["tenant:acme", "--usd", "9" * 12],
        ["tenant:acme", "--usd", "9" * 9999],
        ["tenant:acme", "--tokens", "1", "--carry-over", "9" * 20],
        ["tenant:acme", "--tokens", "1", "--carry-over", "9" * 9999],
    ],
)
def test_a_limit_that_is_none_is_refused(home: Home, words: list[str]) -> None:
    assert isinstance(invoke(home, "quota", "set", *words).exception, InvalidRequest)
    assert not home.path.exists()


@pytest.mark.parametrize("words", [("quota", "set", "tenant:acme"), ("key", "create")])
def test_more_tokens_than_can_be_counted_are_refused(home: Home, words: tuple[str, ...]) -> None:
    error = invoke(home, *words, "--tokens", "9" * 20).exception
    assert isinstance(error, InvalidRequest)
    assert "--tokens is more than a limit can hold" in error.message
    assert not home.path.exists()


def test_only_months_carry_over(home: Home) -> None:
    words = ("tenant:a", "--usd", "1", "--per", "day", "--carry-over", "0.5")
    assert isinstance(invoke(home, "quota", "set", *words).exception, InvalidRequest)
    (row,) = data(home, "quota", "set", "tenant:a", "--usd", "1", "--carry-over", "0.5")["limits"]
    assert row["carry_over_max"] == 5 * 10**8


def test_a_limit_that_is_changed_keeps_what_its_month_was_given(home: Home) -> None:
    last_month = window_start("month", window_start("month", SystemClock().unix_ns()) - 1)
    fill(home, last_month + 5)  # by which 30 tokens of high are used
    words = ("quota", "set", ADA, "--tier", "high", "--carry-over", "95")
    done(home, *words, "--tokens", "100")
    name = f"{ADA}#tokens-month-high"
    with closing(sqlite_store(home.ledger, "me")) as store:
        (limit,) = store.load_limits()
        store.put_limit(msgspec.structs.replace(limit, created_unix_ns=last_month))
    assert limits(home)[name]["allowed"] == 170
    for tokens in (1_000, 1_000, 10):
        (row,) = data(home, *words, "--tokens", str(tokens))["limits"]
        assert row["allowed"] == tokens + 70
    done(home, "quota", "set", ADA, "--tier", "high", "--tokens", "10", "--carry-over", "50")
    assert limits(home)[name]["allowed"] == 60


def test_the_list_of_a_tenant_has_everything_in_it(home: Home) -> None:
    fill(home)
    for node in ("tenant:tenant", ADA, "key:key", "key:other", "tenant:second"):
        done(home, "quota", "set", node, "--tokens", "5")
    nodes = {row["node"] for row in limits(home, "--node", "tenant:tenant").values()}
    assert nodes == {"tenant:tenant", ADA, "key:key"}
    assert [row["node"] for row in limits(home, "--node", ADA).values()] == [ADA]


def test_packages_are_listed_and_granted(home: Home) -> None:
    assert done(home, "quota", "packages", "--example") == EXAMPLE
    assert "--example" in done(home, "quota", "packages")
    result = invoke(home, "quota", "grant", ADA, "--package", "pro")
    assert isinstance(result.exception, NotFound)
    home.make()
    home.packages.write_text(EXAMPLE)
    text = done(home, "quota", "packages")
    assert "5,000,000 tokens" in text
    assert "$20.00" in text
    assert [package["name"] for package in data(home, "quota", "packages")] == ["pro", "trial"]
    granted = data(home, "quota", "grant", ADA, "--package", "pro")["limits"]
    assert {row["package"] for row in granted} == {"pro"}
    assert len(granted) == 2
    assert "trial" in done(home, "quota", "grant", ADA, "--package", "trial")
    assert list(limits(home)) == [f"{ADA}#tokens-lifetime"]
    result = invoke(home, "quota", "grant", ADA, "--package", "golden")
    assert "pro, trial" in str(result.exception)
    home.packages.write_text("no packages")
    assert isinstance(invoke(home, "quota", "packages").exception, ConfigInvalid)


def test_extra_budget_is_asked_for_and_decided(home: Home) -> None:
    people(home)
    done(home, "quota", "set", ADA, "--usd", "10")
    name = f"{ADA}#usd-month"
    why = ("--reason", "a deadline", "--by", ADA)
    asked = data(home, "quota", "extra", name, "--amount", "2.50", *why)
    assert (asked["state"], asked["amount"]) == ("asked", 2_500_000_000)
    second = done(home, "quota", "extra", name, "--amount", "100", *why)
    assert f"$100.00 on top of {name}, asked." in second
    text = done(home, "quota", "list")
    assert "Extra budget asked for" in text
    assert "a deadline" in text
    assert limits(home)[name]["allowed"] == 10 * 10**9
    for by in (ADA, "Ada", "ada ", "engineer:tenant/Ada", "engineer:tenant/eva"):
        result = invoke(home, "quota", "approve", asked["extra"], "--by", by)
        assert isinstance(result.exception, InvalidRequest), by
    approved = data(home, "quota", "approve", asked["extra"], "--by", EVE)
    assert (approved["state"], approved["decided_by"]) == ("approved", EVE)
    assert limits(home)[name]["allowed"] == 12_500_000_000
    said = done(home, "quota", "deny", second.split(":")[0], "--by", EVE)
    assert said.endswith(f"denied by {EVE}.\n")
    found = data(home, "quota", "list")
    assert {extra["state"] for extra in found["extras"]} == {"approved", "denied"}
    assert "Extra budget asked for" not in done(home, "quota", "list")
    again = invoke(home, "quota", "approve", asked["extra"], "--by", EVE)
    assert isinstance(again.exception, Conflict)
    unknown = invoke(home, "quota", "deny", "extra_x", "--by", EVE)
    assert isinstance(unknown.exception, NotFound)


def test_extra_budget_of_a_limit_that_is_gone_can_only_be_denied(home: Home) -> None:
    people(home)
    done(home, "quota", "set", ADA, "--tokens", "10")
    name = f"{ADA}#tokens-month"
    why = ("--reason", "a deadline", "--by", ADA)
    asked = data(home, "quota", "extra", name, "--amount", "5", *why)["extra"]
    done(home, "quota", "remove", name)
    result = invoke(home, "quota", "approve", asked, "--by", EVE)
    assert isinstance(result.exception, InvalidRequest)
    assert ": 5 on top of" in done(home, "quota", "deny", asked, "--by", EVE)
    result = invoke(home, "quota", "extra", name, "--amount", "5", *why)
    assert isinstance(result.exception, NotFound)


def test_without_a_ledger_there_is_nothing_to_decide(home: Home) -> None:
    for words in (("remove", "x"), ("approve", "x", "--by", EVE)):
        assert isinstance(invoke(home, "quota", *words).exception, LedgerUnavailable)
    assert not home.path.exists()
