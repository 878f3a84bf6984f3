"""The tables of sums: written by whoever appends, read with what is not added to them yet."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from typing import Any, Final, NamedTuple

import msgspec

from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.orders import Payer
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR
from tokenworks.ledger.blocks import decode_entries
from tokenworks.ledger.extras import RUN, Use, uses
from tokenworks.ledger.quotas import UNIX_NS_MAX, NodeID, window_end, window_start
from tokenworks.ledger.rollup import (
    NOBODY,
    Kind,
    PayerNames,
    Rollup,
    RollupRow,
    Sums,
    is_of,
    merged,
    with_runs,
    without_run,
)
from tokenworks.live.database import Database
from tokenworks.live.ledger_sql import (
    BLOCKS,
    FORGET_SUMS,
    LAGGING,
    READ_USES_OF_RUN,
    UNROLLED_OF,
    add_sums,
    block_from,
    new_sum_tables,
    read_runs,
    read_sums,
    read_uses,
    sums_from,
)
from tokenworks.live.numbered_names import NumberedNames, NumberedRuns

REBUILD_BLOCKS: Final = 16
"""Blocks that are in memory at once when the tables are made again; one may have megabytes."""
REBUILD_ENTRIES: Final = 65_536
"""Entries whose sums are in memory then before they are written."""

_PAYER: Final = msgspec.json.Decoder(Payer)
_KIND: Final = msgspec.json.Decoder(Kind)


class NewNames(NamedTuple):
    """What got a number in a transaction that is not kept yet."""

    payers: dict[Payer, int]
    kinds: dict[Kind, int]
    runs: dict[Payer, int]


class SumTables:
    """Sums by hour and by month, for each payer and for all; every call says in which database.

    A payer there is all its runs together: callers name runs as they like, and a start reads all
    payers. What belongs to a run is summed once more, by itself.
    """

    def __init__(self) -> None:
        self._run_payers = NumberedRuns(_PAYER)
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
        by_run: bool = False,
        of: PayerNames | None = None,
    ) -> list[RollupRow]:
        """See ``LedgerStore.rollups``; the tables and the blocks after them, of one moment."""
        tail = [
            row
            for row in _tail(database).rows()
            if since <= row.start_unix_ns < until and (of is None or is_of(row.payer, of))
        ]
        # Whom to leave out is seen only where they are told apart, also if the sums are of all.
        by_name = by_payer or of is not None
        of_run = of is not None and "run" in of
        with_run = by_name and (of_run or (by_payer and by_run))
        found: list[RollupRow] = []
        if not of_run:
            found = self._found(database, since, until, by_hour=by_hour, by_payer=by_name, of=of)
        if with_run:
            runs = self._runs(database, since, until, by_hour=by_hour, of=of)
            found = with_runs(found, runs) if by_payer and by_run and not of_run else runs
        if not tail and (by_name, with_run) == (by_payer, by_payer and by_run):
            return found
        found += tail
        return merged(
            each.coarse(by_hour=by_hour, by_payer=by_payer, by_run=by_run) for each in found
        )

    def used(
        self, database: Database, since: int, until: int, runs: Collection[NodeID]
    ) -> list[Use]:
        """See ``extras.UsedRows``."""

        def use(payer: Payer, kind: int, tokens: int, dollars: int, rest: int) -> Use:
            paid = int(dollars) * NANODOLLARS_PER_DOLLAR + int(rest)
            return Use(payer, self._kinds.read(database, kind), int(tokens), paid)

        found = [
            use(self._payers.read(database, payer) if payer else NOBODY, *amounts)
            for months, start, stop in _parts(since, until)
            for payer, *amounts in database.query(
                read_uses("months" if months else "hours"), (start, stop)
            )
        ]
        for node in sorted(runs):
            tenant, _, run = node.removeprefix(RUN).partition("/")
            rows = database.query(READ_USES_OF_RUN, (tenant, run, since, until))
            found += [use(_PAYER.decode(name), *amounts) for name, *amounts in rows]
        tail = (row for row in _tail(database).rows() if since <= row.start_unix_ns < until)
        return [*found, *uses(tail, runs)]

    def _runs(
        self, database: Database, since: int, until: int, *, by_hour: bool, of: PayerNames | None
    ) -> list[RollupRow]:
        known = {name: of[name] for name in ("tenant", "run") if of is not None and name in of}
        rows = database.query(read_runs(known, by_start=by_hour), (*known.values(), since, until))
        found = (
            RollupRow(start, _PAYER.decode(name), self._kinds.read(database, kind), sums_from(sums))
            for start, name, kind, *sums in rows
        )
        return [row for row in found if of is None or is_of(row.payer, of)]

    def _found(
        self,
        database: Database,
        since: int,
        until: int,
        *,
        by_hour: bool,
        by_payer: bool,
        of: PayerNames | None,
    ) -> list[RollupRow]:
        """What the tables have over all runs, each row once."""
        hours = "hours" if by_payer else "factory_hours"
        payers = None
        if of is not None:
            every = self._payers.all(database)
            payers = [number for number, payer in every.items() if is_of(payer, of)]
            if not payers:
                return []
        read = functools.partial(read_sums, by_payer=by_payer, payers=payers)
        parts = [(False, since, until)] if by_hour else _parts(since, until)
        rows = [
            row
            for months, start, stop in parts
            for row in database.query(
                read("months" if months else hours, by_start=by_hour), (start, stop)
            )
        ]
        found = [
            RollupRow(
                start,
                self._payers.read(database, payer) if payer else NOBODY,
                self._kinds.read(database, kind),
                sums_from(sums),
            )
            for start, payer, kind, *sums in rows
        ]
        return found if len(parts) == 1 else merged(found)

    def write(self, database: Database, rollups: Iterable[Rollup]) -> NewNames:
        """Add sums to all tables inside a transaction; the new names hold once it is kept."""
        new = NewNames({}, {}, {})
        tables: dict[str, dict[tuple[int, int, int], Sums]] = {
            name: {} for name in ("hours", "run_hours", "months", "factory_hours")
        }
        for row in (row for rollup in rollups for row in rollup.rows()):
            start, of = row.start_unix_ns, row.payer
            every = of if of.run is None else without_run(of)
            payer = self._payers.write(database, every, new.payers)
            kind = self._kinds.write(database, row.kind, new.kinds)
            places = [
                ("hours", (start, payer, kind)),
                ("months", (window_start("month", start), payer, kind)),
                ("factory_hours", (start, 0, kind)),
            ]
            if of.run is not None:
                run = self._run_payers.write(database, of, new.runs)
                places.append(("run_hours", (start, run, kind)))
            for table, at in places:
                sums = tables[table].get(at)
                if sums is None:
                    tables[table][at] = list(row.sums)
                    continue
                for i, amount in enumerate(row.sums):
                    sums[i] += amount
        for table, rows in tables.items():
            if rows:
                database.change_many(add_sums(table), [[*at, *sums] for at, sums in rows.items()])
        return new

    def keep(self, names: NewNames) -> None:
        """Remember names whose transaction is kept."""
        self._payers.keep(names.payers)
        self._kinds.keep(names.kinds)
        self._run_payers.keep(names.runs)

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


def _parts(since: int, until: int) -> list[tuple[bool, int, int]]:
    """A time as whole months, and the hours before and after them: whether months, from, until."""
    start = window_start("month", since)
    first = since if since == start else window_end("month", start)
    last = until if until == UNIX_NS_MAX else window_start("month", until)
    if first >= last:
        return [(False, since, until)]
    parts = [(True, first, last), (False, since, first), (False, last, until)]
    return [part for part in parts if part[1] < part[2]]
