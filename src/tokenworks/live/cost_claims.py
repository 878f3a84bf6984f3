"""Who writes down what servers cost that several processes use: one of them, and then its heir."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tokenworks.core.ids import PoolID
from tokenworks.ledger.entries import CostAccrued, Entry
from tokenworks.live.database import Database


def claim(database: Database, owner: str, pools: Mapping[PoolID, str]) -> dict[PoolID, int]:
    """Take pools that are nobody's, or those of the dead, inside a transaction.

    Args:
        database: in a writing transaction.
        owner: the process, which lives.
        pools: pools, each with its servers.

    Returns:
        Those that are the process's, now or since before, each with the date until which its cost
        is written down.
    """
    found: dict[PoolID, int] = {}
    for pool, servers in pools.items():
        rows = database.query(
            "SELECT until_unix_ns, owner, (SELECT ended FROM owners WHERE owners.owner = "
            "cost_claims.owner) FROM cost_claims WHERE pool = ? AND servers = ?",
            (pool, servers),
        )
        if not rows:
            rows = [(0, owner, 0)]
            database.change("INSERT INTO cost_claims VALUES (?, ?, ?, 0)", (pool, servers, owner))
        until_unix_ns, holder, ended = rows[0]
        if ended != 0:
            database.change(
                "UPDATE cost_claims SET owner = ? WHERE pool = ? AND servers = ?",
                (owner, pool, servers),
            )
        if holder == owner or ended != 0:
            found[pool] = int(until_unix_ns)
    return found


def advance(
    database: Database, owner: str, pools: Mapping[PoolID, str], entries: Iterable[Entry]
) -> None:
    """Note how far the cost of a process's pools is written, in the transaction that writes it."""
    for entry in entries:
        if isinstance(entry, CostAccrued) and entry.pool in pools:
            database.change(
                "UPDATE cost_claims SET until_unix_ns = ? "
                "WHERE pool = ? AND servers = ? AND owner = ?",
                (entry.until_unix_ns, entry.pool, pools[entry.pool], owner),
            )
