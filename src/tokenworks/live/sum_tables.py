"""The tables of sums: written by whoever appends, read with what is not added to them yet."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.orders import Payer
from tokenworks.ledger.blocks import decode_entries
from tokenworks.ledger.quotas import UNIX_NS_MAX, window_end, window_start
from tokenworks.ledger.rollup import MEASURES, NOBODY, Kind, Rollup, RollupRow, Sums, merged
from tokenworks.live.database import Database
from tokenworks.live.ledger_sql import (
    BLOCKS,
    FORGET_SUMS,
    LAGGING,
    UNROLLED_OF,
    add_sums,
    block_from,
    new_sum_tables,
    read_sums,
    sums_from,
)
from tokenworks.live.numbered_names import NumberedNames

REBUILD_BLOCKS: Final = 16
"""Blocks that are in memory at once when the tables are made again; one may have megabytes."""
REBUILD_ENTRIES: Final = 65_536
"""Entries whose sums are in memory then before they are written."""

NewNames = tuple[dict[Payer, int], dict[Kind, int]]
"""Payers and kinds that got their numbers in a transaction that is not kept yet."""

_PAYER: Final = msgspec.json.Decoder(Payer)
_KIND: Final = msgspec.json.Decoder(Kind)


class SumTables:
    """Sums by hour and by month, for each payer and for all; every call says in which database."""

    def __init__(self) -> None:
        self._payers = NumberedNames("payers", _PAYER)
        self._kinds = NumberedNames("kinds", _KIND)

    def read(
        self,
        database: Database,
        since: int,
        until: int,
        *,
        by_hour: bool = False,
        by_payer: bool = True,
    ) -> list[RollupRow]:
        """See ``LedgerStore.rollups``; the tables and the blocks after them, of one moment."""
        hours = "hours" if by_payer else "factory_hours"
        read = functools.partial(read_sums, by_payer=by_payer)
        rows: list[tuple[Any, ...]] = []
        tables = 1
        if by_hour:
            rows += database.query(read(hours, by_start=True), (since, until))
        else:
            # Whole months from the one table, the hours before and after them from the other.
            first = since if since == window_start("month", since) else _next_month(since)
            last = until if until == UNIX_NS_MAX else window_start("month", until)
            if first < last:
                rows += database.query(read("months", by_start=False), (first, last))
                parts = (
                    [(since, first), (last, until)] if until != UNIX_NS_MAX else [(since, first)]
                )
            else:
                parts = [(since, until)]
            parts = [(start, stop) for start, stop in parts if start < stop]
            tables = len(parts) + (first < last)
            for start, stop in parts:
                rows += database.query(read(hours, by_start=False), (start, stop))
        found = [
            RollupRow(
                start,
                self._payers.read(database, payer) if payer else NOBODY,
                self._kinds.read(database, kind),
                sums_from(sums),
            )
            for start, payer, kind, *sums in rows
        ]
        lately = [each for each in _tail(database).rows() if since <= each.start_unix_ns < until]
        if not lately and tables == 1:
            return found
        found += lately
        return merged(each.coarse(by_hour=by_hour, by_payer=by_payer) for each in found)

    def write(self, database: Database, rollups: Iterable[Rollup]) -> NewNames:
        """Add sums to all tables inside a transaction; the new names hold once it is kept."""
        payers: dict[Payer, int] = {}
        kinds: dict[Kind, int] = {}
        hours: list[list[int]] = []
        coarse: dict[str, dict[tuple[int, int, int], Sums]] = {"months": {}, "factory_hours": {}}
        for row in (row for rollup in rollups for row in rollup.rows()):
            payer = self._payers.write(database, row.payer, payers)
            kind = self._kinds.write(database, row.kind, kinds)
            hours.append([row.start_unix_ns, payer, kind, *row.sums])
            month = window_start("month", row.start_unix_ns)
            for table, at in (
                ("months", (month, payer, kind)),
                ("factory_hours", (row.start_unix_ns, 0, kind)),
            ):
                sums = coarse[table].setdefault(at, [0] * len(MEASURES))
                for i, amount in enumerate(row.sums):
                    sums[i] += amount
        database.change_many(add_sums("hours"), hours)
        for table, rows in coarse.items():
            database.change_many(add_sums(table), [[*at, *sums] for at, sums in rows.items()])
        return payers, kinds

    def keep(self, names: NewNames) -> None:
        """Remember names whose transaction is kept."""
        self._payers.keep(names[0])
        self._kinds.keep(names[1])

    def compare(self, database: Database) -> None:
        """Compare the tables with each other, over all time.

        Raises:
            LedgerCorrupt: two of them differ.
        """

        def of(table: str, *, by_payer: bool) -> list[tuple[Any, ...]]:
            rows = database.query(
                read_sums(table, by_start=False, by_payer=by_payer), (0, UNIX_NS_MAX)
            )
            # Hours, summed apart, may have more dollars in their parts of one than a month has.
            return sorted((payer, kind, *sums_from(sums)) for _, payer, kind, *sums in rows)

        for table, by_payer in (("hours", True), ("factory_hours", False)):
            if of(table, by_payer=by_payer) != of("months", by_payer=by_payer):
                raise LedgerCorrupt(
                    f"The sums of the table {table!r} are not those of the table 'months'.",
                    hint="`tokenworks ledger rebuild` makes them again from the entries.",
                )

    def rebuild(self, database: Database) -> int:
        """Make the tables again from the blocks, inside a transaction; how many entries it took."""
        rolled = {
            str(owner): int(number)
            for owner, number in database.query("SELECT owner, rolled FROM owners")
        }
        for statement in FORGET_SUMS:
            database.change(statement)
        entries, after, rollup = 0, 0, Rollup()
        while page := database.query(f"{BLOCKS} LIMIT {REBUILD_BLOCKS}", (after,)):
            for block in map(block_from, page):
                after = block.seq
                if block.number <= rolled.get(block.owner, 0):
                    for entry in decode_entries(block):
                        rollup.add(entry)
            if rollup.entries >= REBUILD_ENTRIES:
                self.write(database, [rollup])
                entries, rollup = entries + rollup.entries, Rollup()
        self.write(database, [rollup])
        return entries + rollup.entries

    def migrate(self, database: Database) -> int:
        """Make tables of this release, and what is in them, inside a transaction."""
        for statement in new_sum_tables(database.dialect):
            database.change(statement)
        return self.rebuild(database)


def _tail(database: Database) -> Rollup:
    """The sums of all entries that are not in the tables yet."""
    tail = Rollup()
    for lagging in database.query(LAGGING):
        for row in database.query(UNROLLED_OF, lagging):
            for entry in decode_entries(block_from(row)):
                tail.add(entry)
    return tail


def _next_month(unix_ns: int) -> int:
    return window_end("month", window_start("month", unix_ns))
