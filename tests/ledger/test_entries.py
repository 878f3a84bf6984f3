from __future__ import annotations

import typing

import msgspec
import pytest

from tests.ledger.ledger_samples import story
from tokenworks.core.errors import LedgerCorrupt
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


def test_every_transfer_names_two_accounts_and_an_amount() -> None:
    rows = [row for entry in story()[1] for row in entry.transfers()]
    assert {row.debit_account for row in rows} == {
        "wallet:tenant",
        "ad_network",
        "cost:pool:energy",
        "cost:pool:capital",
    }
    assert {row.credit_account for row in rows} == {"revenue:high", "ad_income", "supplier"}
    assert all(row.amount_nanodollars > 0 for row in rows)


def test_taking_back_leaves_no_trace() -> None:
    accounts = Accounts()
    rows = [
        Transfer(AccountID("a"), AccountID("b"), 5),
        Transfer(AccountID("b"), AccountID("c"), 2),
    ]
    accounts.move(rows)
    assert accounts.balances()[AccountID("b")] == Balance(2, 5)
    assert accounts.total("") == Balance(7, 7)
    accounts.check()
    accounts.take_back(rows)
    assert accounts.balances() == {}
    accounts.take_back(rows)
    with pytest.raises(LedgerCorrupt, match="below zero"):
        accounts.check()


def test_one_side_alone_is_noticed() -> None:
    accounts = Accounts()
    accounts._balances[AccountID("a")] = Balance(1, 0)
    with pytest.raises(LedgerCorrupt, match="differ"):
        accounts.check()
