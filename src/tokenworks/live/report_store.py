"""What the ledger says in sums: by tier, tenant, pool, key or model, straight from SQLite."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final, Literal

import msgspec

from tokenworks.core.errors import LedgerUnavailable
from tokenworks.core.ids import PoolID
from tokenworks.core.slo import Tier

By = Literal["tier", "tenant", "pool", "key", "model"]

_GROUPS_SQL: Final = """
SELECT CASE :by WHEN 'tier' THEN tier_delivered WHEN 'tenant' THEN tenant WHEN 'pool' THEN pool
                WHEN 'key' THEN key WHEN 'model' THEN model END AS name,
    count(*), sum(uncached_input_tokens + cached_input_tokens), sum(cached_input_tokens),
    sum(output_tokens), sum(charged_nanodollars), sum(ad_income_nanodollars),
    sum(cost_nanodollars), sum(worker_ns)
FROM entries
WHERE kind = 'posted' AND at_unix_ns >= :since AND at_unix_ns < :until
GROUP BY name ORDER BY name
"""

_TIERS_SQL: Final = """
SELECT tier_asked, tier_delivered, count(*) FROM entries
WHERE kind = 'posted' AND at_unix_ns >= :since AND at_unix_ns < :until
GROUP BY tier_asked, tier_delivered
"""

_POOLS_SQL: Final = """
SELECT pool, sum(coalesce(json_extract(CAST(payload AS TEXT), '$.energy_nanodollars'), 0)),
    sum(coalesce(json_extract(CAST(payload AS TEXT), '$.capital_nanodollars'), 0)),
    sum(CASE kind WHEN 'posted' THEN cost_nanodollars ELSE 0 END)
FROM entries
WHERE kind IN ('posted', 'accrued') AND at_unix_ns >= :since AND at_unix_ns < :until
GROUP BY pool ORDER BY pool
"""

_INTEGER_MAX: Final = 2**63 - 1


class ReportRow(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the answers of one group.

    Attributes:
        name: the group: a delivered tier, or the id of a tenant, pool, key or model.
        requests: answers billed, failed and disconnected ones too.
        input_tokens: whole prompts, cached tokens included.
        cached_input_tokens: of these, found in a prefix cache.
        output_tokens: tokens made.
        charged_nanodollars: paid by tenants.
        ad_income_nanodollars: paid by advertisers.
        cost_nanodollars: the answers' share of their workers' cost.
        worker_ns: time on workers.
    """

    name: str
    requests: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    charged_nanodollars: int
    ad_income_nanodollars: int
    cost_nanodollars: int
    worker_ns: int


class TierRow(msgspec.Struct, frozen=True, kw_only=True):
    """How many answers were asked for at one tier and delivered at another."""

    tier_asked: Tier
    tier_delivered: Tier
    requests: int


class PoolCost(msgspec.Struct, frozen=True, kw_only=True):
    """What a pool cost, and how much of it answers account for.

    Attributes:
        pool: the pool.
        energy_nanodollars: electricity, busy or idle.
        capital_nanodollars: machines, busy or idle.
        allocated_nanodollars: the sum of its answers' shares.
    """

    pool: PoolID
    energy_nanodollars: int
    capital_nanodollars: int
    allocated_nanodollars: int

    @property
    def idle_nanodollars(self) -> int:
        """Cost that no answer accounts for.

        Below zero while answers are billed whose interval of cost is not yet written.
        """
        return self.energy_nanodollars + self.capital_nanodollars - self.allocated_nanodollars


def report_rows(
    path: Path, by: By, *, since_unix_ns: int | None = None, until_unix_ns: int | None = None
) -> list[ReportRow]:
    """Sums over answers by group; tiers come slowest promise first, other groups by name.

    Args:
        path: the ledger's file; a factory may be writing to it.
        by: what to group by; ``tier`` is the delivered tier.
        since_unix_ns: count answers billed from then on.
        until_unix_ns: count answers billed before then.

    Raises:
        LedgerUnavailable: the file cannot be read.
    """
    found = _select(path, _GROUPS_SQL, since_unix_ns, until_unix_ns, by)
    fields = ReportRow.__struct_fields__
    rows = [msgspec.convert(dict(zip(fields, row, strict=True)), ReportRow) for row in found]
    return sorted(rows, key=lambda row: Tier(row.name).rank) if by == "tier" else rows


def tier_rows(
    path: Path, *, since_unix_ns: int | None = None, until_unix_ns: int | None = None
) -> list[TierRow]:
    """Answers by tier asked and tier delivered, slowest promise first; pairs that occurred only.

    Args:
        path: the ledger's file.
        since_unix_ns: count answers billed from then on.
        until_unix_ns: count answers billed before then.

    Raises:
        LedgerUnavailable: the file cannot be read.
    """
    fields = TierRow.__struct_fields__
    rows = [
        msgspec.convert(dict(zip(fields, row, strict=True)), TierRow)
        for row in _select(path, _TIERS_SQL, since_unix_ns, until_unix_ns)
    ]
    return sorted(rows, key=lambda row: (row.tier_asked.rank, row.tier_delivered.rank))


def pool_costs(
    path: Path, *, since_unix_ns: int | None = None, until_unix_ns: int | None = None
) -> list[PoolCost]:
    """Accrued and allocated cost by pool, in order of name.

    Args:
        path: the ledger's file.
        since_unix_ns: count entries written from then on.
        until_unix_ns: count entries written before then.

    Raises:
        LedgerUnavailable: the file cannot be read.
    """
    fields = PoolCost.__struct_fields__
    return [
        msgspec.convert(dict(zip(fields, row, strict=True)), PoolCost)
        for row in _select(path, _POOLS_SQL, since_unix_ns, until_unix_ns)
    ]


def _select(
    path: Path, sql: str, since_unix_ns: int | None, until_unix_ns: int | None, by: str = ""
) -> list[tuple[object, ...]]:
    numbers = {
        "by": by,
        "since": 0 if since_unix_ns is None else since_unix_ns,
        "until": _INTEGER_MAX if until_unix_ns is None else until_unix_ns,
    }
    try:
        # A report must not create the ledger that it was asked about.
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)
        with closing(connection):
            return connection.execute(sql, numbers).fetchall()
    except sqlite3.Error as error:
        raise LedgerUnavailable(
            f"{str(path)!r} could not be read: {error}.",
            hint="Give the path of a ledger that a factory has written.",
        ) from error
