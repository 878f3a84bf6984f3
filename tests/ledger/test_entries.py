from __future__ import annotations

import typing

import msgspec
import pytest

from tests.ledger.ledger_samples import book, ledger, post, reserve, story
from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.slo import Measured
from tokenworks.ledger import entries
from tokenworks.ledger.accounts import AccountID, Accounts, Balance, Transfer


def test_entries_survive_their_record() -> None:
    _, made = story()
    for entry in made:
        again = msgspec.json.decode(msgspec.json.encode(entry), type=entries.Entry)
        assert again == entry


def test_the_kinds_are_those_of_the_union() -> None:
    kinds = tuple(kind.__struct_config__.tag for kind in typing.get_args(entries.Entry))
    assert kinds == entries.KINDS
    assert {entries.kind_of(entry) for entry in story()[1]} == set(kinds)


def test_every_attempt_has_two_phases() -> None:
    assert {type(entry).__name__: entry.phase for entry in story()[1]} == {
        "Reserved": "reserve",
        "Posted": "settle",
        "Voided": "settle",
        "CostAccrued": "accrue",
    }


def test_every_transfer_names_two_accounts_and_an_amount() -> None:
    made = ledger()
    reserve(made, prices=book(credit_ppm=500_000))
    slow = post(made, measured=Measured(ttft_ns=3 * 10**9, decode_ns=0, output_tokens=1))
    rows = [row for entry in (*story()[1], slow) for row in entry.transfers()]
    assert {row.debit_account for row in rows} == {
        "wallet:tenant",
        "ad_network",
        "credits",
        "cost:pool:energy",
        "cost:pool:capital",
    }
    assert {row.credit_account for row in rows} == {
        "revenue:high",
        "revenue:medium",
        "wallet:tenant",
        "ad_income",
        "supplier",
    }
    assert all(row.amount_nanodollars > 0 for row in rows)


def test_what_was_paid_is_the_charge_less_the_credit() -> None:
    made = ledger()
    reserve(made)
    entry = msgspec.structs.replace(post(made), credited_nanodollars=80)
    assert entry.paid_nanodollars == 127_600


def test_every_class_of_tokens_counts() -> None:
    made = ledger()
    reserve(made)
    classes = {
        "cache_write_tokens": 1,
        "reasoning_tokens": 2,
        "audio_input_tokens": 4,
        "image_input_tokens": 8,
        "audio_output_tokens": 16,
        "image_output_tokens": 32,
    }
    entry = post(made, uncached=0, cached=0, output=0, **classes)
    assert (entry.usage.prompt_tokens, entry.usage.completion_tokens) == (13, 50)
    assert entry.counted_tokens == 63


def test_balances_are_kept_on_both_sides() -> None:
    accounts = Accounts()
    accounts.move(
        [
            Transfer(AccountID("b"), AccountID("c"), 2),
            Transfer(AccountID("a"), AccountID("b"), 5),
        ]
    )
    assert list(accounts.balances()) == ["a", "b", "c"]
    assert accounts.balances()[AccountID("b")] == Balance(2, 5)
    assert accounts.total("") == Balance(7, 7)
    assert accounts.total("b") == Balance(2, 5)
    accounts.check()


@pytest.mark.parametrize(
    ("balance", "said"), [(Balance(1, 0), "differ"), (Balance(-1, -1), "below zero")]
)
def test_a_wrong_side_is_noticed(balance: Balance, said: str) -> None:
    accounts = Accounts()
    accounts._balances[AccountID("a")] = balance
    with pytest.raises(LedgerCorrupt, match=said):
        accounts.check()
