"""Sums of entries by hour, payer and kind of answer: reports, invoices and balances come from them.

They are derived: ``summing.Rollup`` can always make them again from the entries, and ``tokenworks
ledger verify`` does so. A store adds each block's entries to the sums it keeps, per hour and month.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from tokenworks.core.ids import KeyID, ModelName, PoolID, PriceID, TenantID
from tokenworks.core.orders import TOKEN_CLASSES, Payer
from tokenworks.core.slo import Tier
from tokenworks.ledger.accounts import (
    AD_INCOME,
    AD_NETWORK,
    CREDITS,
    SUPPLIER,
    AccountID,
    Accounts,
    Balance,
    capital_cost,
    energy_cost,
    revenue,
    transfer,
    wallet,
)

NOBODY: Final = Payer(tenant=TenantID(""), team=None, engineer=None, key=KeyID(""))
"""Who pays for a pool's cost as it runs: the factory itself."""


class Kind(NamedTuple):
    """What entries of one row have in common besides their payer.

    Attributes:
        what: an ending (``done``, ``disconnected``, ``failed``), ``voided``, or ``accrued`` for
            the cost of a pool over time.
        model: the model asked for; empty for ``accrued``.
        tier_asked: None for ``accrued``.
        tier_delivered: None for what was voided or accrued.
        pool: empty for what was voided.
        price_id: the price book; empty for what was voided or accrued.
        rate_ppm: what was charged of the list price.
        batch: whether it could wait.
    """

    what: str
    model: ModelName
    tier_asked: Tier | None
    tier_delivered: Tier | None
    pool: PoolID
    price_id: PriceID
    rate_ppm: int
    batch: bool


PayerField = Literal["tenant", "team", "engineer", "key", "agent", "run"]
PayerNames = Mapping[PayerField, str]
"""Names that payers must have, by the field of ``Payer``; those of the factory itself have none."""


def without_run(payer: Payer) -> Payer:
    """The payer of all runs: there are as many of them as callers like."""
    return payer if payer.run is None else msgspec.structs.replace(payer, run=None)


def without_agent(payer: Payer) -> Payer:
    """The payer of all agents and runs: callers name both, and are known by their keys alone."""
    if payer.agent is None:
        return without_run(payer)
    return msgspec.structs.replace(payer, agent=None, run=None)


def is_of(payer: Payer, names: PayerNames) -> bool:
    """Whether a payer has these names."""
    return all(getattr(payer, field) == name for field, name in names.items())


MEASURES: Final = (
    "requests",
    *TOKEN_CLASSES,
    "charged_nanodollars",
    "credited_nanodollars",
    "ad_income_nanodollars",
    "energy_nanodollars",
    "capital_nanodollars",
)
"""What is summed. ``energy`` and ``capital`` of an answer are its share; of ``accrued``, all."""

Sums = list[int]
"""One number for each of ``MEASURES``."""

Row = tuple[int, Payer, Kind]
"""The start of the hour or month (nanoseconds since 1970), who, and what."""


class RollupRow(NamedTuple):
    """One row with its sums."""

    start_unix_ns: int
    payer: Payer
    kind: Kind
    sums: Sums

    def __getattr__(self, name: str) -> int:
        """A measure by its name."""
        try:
            return self.sums[_PLACES[name]]
        except KeyError:
            raise AttributeError(name) from None

    def coarse(
        self, *, by_hour: bool, by_payer: bool, by_agent: bool = False, by_run: bool = False
    ) -> RollupRow:
        """The row to which this one's sums belong when some things are not told apart.

        Runs are told apart with their agents, and agents by payer only.
        """
        payer = self.payer
        if not by_payer:
            payer = NOBODY
        elif not by_run:
            payer = without_run(payer) if by_agent else without_agent(payer)
        start = self.start_unix_ns if by_hour else 0
        return RollupRow(start, payer, self.kind, self.sums)

    @property
    def tokens(self) -> int:
        """All tokens, read and made."""
        return sum(self.sums[1 : 1 + len(TOKEN_CLASSES)])

    @property
    def paid_nanodollars(self) -> int:
        """Charges less credits."""
        return self.charged_nanodollars - self.credited_nanodollars


_PLACES: Final[Mapping[str, int]] = {name: i for i, name in enumerate(MEASURES)}


assert MEASURES[1:10] == TOKEN_CLASSES


def merged(rows: Iterable[RollupRow]) -> list[RollupRow]:
    """Rows with equal hour, payer and kind added up."""
    sums: dict[Row, Sums] = {}
    for row in rows:
        found = sums.get(row[:3])
        if found is None:
            sums[row[:3]] = list(row.sums)
        else:
            for i, amount in enumerate(row.sums):
                found[i] += amount
    return [RollupRow(*row, found) for row, found in sums.items()]


def with_parts(
    rows: Iterable[RollupRow], parts: Iterable[RollupRow], whole: Callable[[Payer], Payer]
) -> list[RollupRow]:
    """Rows with some parts of them told apart.

    Args:
        rows: sums, each row once.
        parts: the sums of answers that belong to a run, or were asked for by an agent.
        whole: the payer of whose row a part is.
    """
    rest = {row[:3]: list(row.sums) for row in rows}
    parts = list(parts)
    for start_unix_ns, payer, kind, sums in parts:
        left = rest.setdefault((start_unix_ns, whole(payer), kind), [0] * len(MEASURES))
        for i, amount in enumerate(sums):
            left[i] -= amount
    return [*(RollupRow(*row, left) for row, left in rest.items() if any(left)), *parts]


def balances(rows: Iterable[RollupRow]) -> dict[AccountID, Balance]:
    """The balance of every account that the entries behind some rows have moved money through."""
    accounts = Accounts()
    for row in rows:
        kind = row.kind
        if kind.what == "accrued":
            accounts.move(
                transfer(energy_cost(kind.pool), SUPPLIER, row.energy_nanodollars)
                + transfer(capital_cost(kind.pool), SUPPLIER, row.capital_nanodollars)
            )
        elif kind.tier_delivered is not None:
            tenant = wallet(row.payer.tenant)
            accounts.move(
                transfer(tenant, revenue(kind.tier_delivered), row.charged_nanodollars)
                + transfer(CREDITS, tenant, row.credited_nanodollars)
                + transfer(AD_NETWORK, AD_INCOME, row.ad_income_nanodollars)
            )
    accounts.check()
    return accounts.balances()
