"""Price books are checked, and what a tenant pays at some time is shown."""

from __future__ import annotations

import json
import pathlib

import pytest

from tests.cli.command_line import data, done, fill, invoke
from tokenworks.cli.ledger_at import office_at
from tokenworks.core.errors import InvalidRequest
from tokenworks.ledger.actions import ActivateBook, ProposeBook
from tokenworks.live.home import Home, packaged
from tokenworks.live.office import operator
from tokenworks.live.settings_store import SettingsStore

TEXT = packaged("laptop.toml").read_text()
LATER = TEXT.replace("effective = 2026-11-24", "effective = 2026-12-24").replace(
    "output_udollars_per_mtok = 6_000_000", "output_udollars_per_mtok = 7_000_000"
)
RULES = """
[[off_peak]]
name = "night"
hours_utc = [22, 6]
rate_ppm = 500_000
[batch]
rate_ppm = 500_000
[discount.acme]
rate_ppm = 900_000
"""


def test_the_books_that_ship_are_in_order(home: Home) -> None:
    found = data(home, "prices", "check")
    assert [row["since"] for row in found["in_force"]] == ["2026-11-24"]
    assert (found["changes"], found["findings"]) == ([], [])
    assert "Nothing is odd." in done(home, "prices", "check")
    assert not home.path.exists()


def test_the_factorys_own_books_are_checked_together(home: Home) -> None:
    home.make()
    home.price_book.write_text(TEXT)
    home.prices.mkdir()
    (home.prices / "later.toml").write_text(LATER)
    found = data(home, "prices", "check")
    assert [row["until"] for row in found["in_force"]] == ["2026-12-24", None]
    (change,) = found["changes"]
    assert (change["what"], change["before"], change["after"]) == (
        "foreman high output",
        "$6.00",
        "$7.00",
    )
    text = done(home, "prices", "check")
    assert "What changes:" in text
    assert "$7.00" in text


def test_books_that_the_admin_api_put_into_force_are_checked_with_them(
    home: Home, tmp_path: pathlib.Path
) -> None:
    dear = LATER.replace("= 7_000_000", "= 7_500_000")
    with office_at(home, create=True) as office:
        book = office.propose_book(operator(), ProposeBook(text=dear))["book"]
        office.activate_book(operator(), ActivateBook(book=str(book), version=0))
    found = data(home, "prices", "check")
    assert found["activated"] == [book]
    assert [row["since"] for row in found["in_force"]] == ["2026-11-24", "2026-12-24"]
    assert [change["after"] for change in found["changes"]] == ["$7.50"]
    assert f"{book} was put into force by the admin API." in done(home, "prices", "check")
    # The same book in the folder is no second one; another of its day is.
    home.prices.mkdir()
    home.price_book.write_text(TEXT)
    (home.prices / "later.toml").write_text(dear)
    assert data(home, "prices", "check")["findings"] == []
    (home.prices / "later.toml").write_text(LATER)
    assert invoke(home, "prices", "check").exit_code == 1
    own = tmp_path / "own.toml"
    own.write_text(TEXT)
    assert data(home, "prices", "check", str(own))["activated"] == []


def test_a_book_in_force_that_cannot_be_read_any_more_is_named(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade that takes less than the release which put it into force."""
    odd = LATER.replace('name = "laptop"', 'name = "old"\nforgotten = true')
    texts = [odd, "no TOML", LATER]
    monkeypatch.setattr(SettingsStore, "activated_books", lambda _: texts)
    fill(home)
    result = invoke(home, "prices", "check", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [row["since"] for row in found["in_force"]] == ["2026-11-24", "2026-12-24"]
    assert len(found["activated"]) == 1
    said = {row["book"]: (row["level"], row["message"]) for row in found["findings"]}
    (name,) = (each for each in said if each.startswith("old@"))
    assert said[name][0] == "error"
    assert "`forgotten`" in said[name][1]
    assert any(each.startswith("?@") for each in said)
    result = invoke(home, "prices", "list", "--at", "2026-12-25")
    assert (result.exit_code, "7.00" in result.stdout) == (0, True)
    assert f"{name} is left out" in result.stderr
    with office_at(home) as office:  # nor does it keep others from being proposed
        later = LATER.replace("2026-12-24", "2027-01-24")
        assert office.propose_book(operator(), ProposeBook(text=later))["effective"] == "2027-01-24"


def test_files_that_clash_or_cannot_be_read_are_errors(home: Home, tmp_path: pathlib.Path) -> None:
    one, same, wrong, binary = (tmp_path / name for name in ("a.toml", "b.toml", "c.toml", "d"))
    one.write_text(TEXT)
    same.write_text(f"{TEXT}\n# the same day")
    wrong.write_text("name =")
    binary.write_bytes(b"\xff")
    missing = tmp_path / "missing.toml"
    paths = [str(path) for path in (one, same, wrong, binary, missing)]
    result = invoke(home, "prices", "check", *paths, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)["findings"]
    assert {row["level"] for row in found} == {"error"}
    assert {row["book"] for row in found} >= {"c.toml", "d", "missing.toml"}
    said = {row["book"]: row["message"] for row in found}
    assert said["missing.toml"] == "It cannot be read: No such file or directory."
    assert any("holds from 2026-11-24" in row["message"] for row in found)
    assert len(found) == 4
    nothing = invoke(home, "prices", "check", str(wrong))
    assert nothing.exit_code == 1
    assert "No book can be read." in nothing.stdout


def test_a_tier_sold_below_what_the_ledger_says_it_costs_is_a_warning(home: Home) -> None:
    fill(home)
    book = home.path / "book.toml"
    text = TEXT.replace("foreman", "m").replace("= 45_000_000", "= 1_000")
    book.write_text(text.replace("= 9_000_000", "= 1_000").replace("= 900_000", "= 100"))
    result = invoke(home, "prices", "check", str(book))
    assert result.exit_code == 0, result.exception
    assert "m premium is sold below cost" in result.stdout
    assert "premium costs less than high" in result.stdout


def test_prices_are_shown_for_a_tenant_at_a_time(home: Home) -> None:
    home.make()
    home.price_book.write_text(TEXT + RULES)
    words = ("prices", "list", "--tenant", "acme", "--at", "2026-11-30T23:00")
    found = data(home, *words)
    assert (found["tenant"], found["at"]) == ("acme", "2026-11-30T23:00Z")
    (high,) = [row for row in found["rows"] if row["tier"] == "high"]
    assert high["rate_ppm"] == 450_000
    assert high["prices"]["output_udollars_per_mtok"] == 2_700_000
    (high,) = [row for row in data(home, *words, "--batch")["rows"] if row["tier"] == "high"]
    assert high["rate_ppm"] == 225_000
    text = done(home, *words)
    assert "$2.70" in text
    assert "45 %" in text
    assert found["book"] in text
    assert "tenant local" in done(home, "prices", "list")


def test_a_class_that_costs_something_else_than_its_kin_is_shown(home: Home) -> None:
    assert "besides" not in done(home, "prices", "list")
    home.make()
    more = "reasoning_udollars_per_mtok = 9_000_000\ncache_write_udollars_per_mtok = 1_500_000\n"
    high = TEXT.index(".high]\n", TEXT.index("[price."))
    home.price_book.write_text(TEXT[: high + 7] + more + TEXT[high + 7 :])
    assert "cache write $1.50; reasoning $9.00" in done(home, "prices", "list")


def test_a_time_that_is_none_is_refused(home: Home) -> None:
    result = invoke(home, "prices", "list", "--at", "tomorrow")
    assert isinstance(result.exception, InvalidRequest)
