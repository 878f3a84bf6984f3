"""Accounts in double entry: every transfer debits one account and credits another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, NewType

from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.ids import PoolID, TenantID
from tokenworks.core.slo import Tier

AccountID = NewType("AccountID", str)

AD_NETWORK: Final = AccountID("ad_network")
"""Advertisers, who pay for the free tier."""

AD_INCOME: Final = AccountID("ad_income")
"""What advertisers paid."""

CREDITS: Final = AccountID("credits")
"""What was given back for broken promises."""

SUPPLIER: Final = AccountID("supplier")
"""Whoever is paid for energy and machines."""


def wallet(tenant: TenantID) -> AccountID:
    """What a tenant owes; debited as answers are billed, credited for broken promises."""
    return AccountID(f"wallet:{tenant}")


def revenue(tier: Tier) -> AccountID:
    """What was earned at a delivered tier."""
    return AccountID(f"revenue:{tier.value}")


def energy_cost(pool: PoolID) -> AccountID:
    """What a pool's electricity has cost."""
    return AccountID(f"cost:{pool}:energy")


def capital_cost(pool: PoolID) -> AccountID:
    """What a pool's machines have cost, by the hour."""
    return AccountID(f"cost:{pool}:capital")


class Transfer(NamedTuple):
    """Money from one account to another; the amount is above zero."""

    debit_account: AccountID
    credit_account: AccountID
    amount_nanodollars: int


class Balance(NamedTuple):
    """Both sides of an account, each the sum of all its transfers."""

    debits_nanodollars: int
    credits_nanodollars: int


def transfer(debit: AccountID, credit: AccountID, amount_nanodollars: int) -> tuple[Transfer, ...]:
    """One transfer, or none when there is nothing to move."""
    assert amount_nanodollars >= 0, amount_nanodollars
    return (Transfer(debit, credit, amount_nanodollars),) if amount_nanodollars else ()


class Accounts:
    """Balances of all accounts. It grows with tenants and pools, never with requests."""

    def __init__(self) -> None:
        self._balances: dict[AccountID, Balance] = {}

    def move(self, transfers: Iterable[Transfer]) -> None:
        """Carry out transfers."""
        for debit, credit, amount in transfers:
            self._add(debit, amount, 0)
            self._add(credit, 0, amount)

    def balances(self) -> dict[AccountID, Balance]:
        """Every account that money has moved through, sorted by name."""
        return {account: self._balances[account] for account in sorted(self._balances)}

    def total(self, prefix: str) -> Balance:
        """Both sides summed over the accounts whose name begins with a prefix."""
        rows = [row for account, row in self._balances.items() if account.startswith(prefix)]
        return Balance(
            sum(row.debits_nanodollars for row in rows),
            sum(row.credits_nanodollars for row in rows),
        )

    def check(self) -> None:
        """Compare both sides.

        Raises:
            LedgerCorrupt: debits differ from credits, or a side is below zero.
        """
        total = self.total("")
        if total.debits_nanodollars != total.credits_nanodollars:
            raise LedgerCorrupt(f"Debits and credits differ: {total!r}.")
        for account, row in self._balances.items():
            if min(row) < 0:
                raise LedgerCorrupt(f"{account!r} has a side below zero: {row!r}.")

    def _add(self, account: AccountID, debit: int, credit: int) -> None:
        before = self._balances.get(account, Balance(0, 0))
        self._balances[account] = Balance(
            before.debits_nanodollars + debit, before.credits_nanodollars + credit
        )
