"""The tables of sums: written by whoever appends, read with what is not added to them yet."""

from __future__ import annotations

import enum
import functools
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.orders import Payer
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR
from tokenworks.ledger.blocks import decode_entries
from tokenworks.ledger.extras import RUN, Use, uses
from tokenworks.ledger.quota_records import UNIX_NS_MAX, NodeID
from tokenworks.ledger.quotas import window_end, window_start
from tokenworks.ledger.rollup import (
    NOBODY,
    Kind,
    PayerField,
    PayerNames,
    RollupRow,
    Sums,
    is_of,
    merged,
    with_parts,
    without_agent,
    without_run,
)
from tokenworks.ledger.summing import Rollup
from tokenworks.live.database import Database
from tokenworks.live.ledger_sql import (
    BLOCKS,
    FORGET_SUMS,
    LAGGING,
    READ_USES_OF_RUN,
    TIME_TABLES,
    UNROLLED_OF,
    add_sums,
    block_from,
    new_sum_tables,
    read_runs,
    read_sums,
    read_uses,
    sums_from,
)
from tokenworks.live.numbered_names import NumberedNames, NumberedParts

REBUILD_BLOCKS: Final = 16
"""Blocks that are in memory at once when the tables are made again; one may have megabytes."""
REBUILD_ENTRIES: Final = 65_536
"""Entries whose sums are in memory then before they are written."""

_PAYER: Final = msgspec.json.Decoder(Payer)
_KIND: Final = msgspec.json.Decoder(Kind)


LOOKED_UP_MAX: Final = 10_000
"""Payers that are looked up one by one; more than that are read with all others."""


class Apart(enum.IntEnum):
    """What of payers is told apart in sums, each with all above it."""

    NOTHING = 0
    PAYERS = 1
    AGENTS = 2
    RUNS = 3


def told_apart(*, by_payer: bool, by_agent: bool, by_run: bool) -> Apart:
    """What ``LedgerStore.rollups`` is asked to tell apart."""
    if not by_payer:
        return Apart.NOTHING
    if by_run:
        return Apart.RUNS
    return Apart.AGENTS if by_agent else Apart.PAYERS


class NewNames(NamedTuple):
    """What got a number in a transaction that is not kept yet."""

    payers: dict[Payer, int]
    kinds: dict[Kind, int]
    agents: dict[Payer, int]
    runs: dict[Payer, int]


class SumTables:
    """Sums by hour and by month, for each payer and for all; every call says in which database.

    A payer there is all its agents and runs together: callers name these as they like, and a start
    reads all payers. What an agent asked for, and what belongs to a run, is summed once more, by
    itself.
    """

    def __init__(self) -> None:
        self._payers = NumberedNames("payers", _PAYER)
        self._agent_payers = NumberedParts("agent", _PAYER)
        self._run_payers = NumberedParts("run", _PAYER)
        self._kinds = NumberedNames("kinds", _KIND)

    def read(
        self,
        database: Database,
        since: int,
        until: int,
        apart: Apart = Apart.PAYERS,
        *,
        by_hour: bool = False,
        of: PayerNames | None = None,
    ) -> list[RollupRow]:
        """See ``LedgerStore.rollups``; the tables and the blocks after them, of one moment."""
        tail = [
            row
            for row in _tail(database).rows()
            if since <= row.start_unix_ns < until and (of is None or is_of(row.payer, of))
        ]
        asked = _Asked(database, since, until, by_hour, of)
        # Whom to leave out is seen only where they are told apart, also if the sums are of all.
        finest = max(apart, asked.apart)
        found = self._told_apart(asked, finest)
        if not tail and finest is apart:
            return found
        by = {
            "by_payer": apart >= Apart.PAYERS,
            "by_agent": apart >= Apart.AGENTS,
            "by_run": apart >= Apart.RUNS,
        }
        return merged(each.coarse(by_hour=by_hour, **by) for each in found + tail)

    def _told_apart(self, asked: _Asked, apart: Apart) -> list[RollupRow]:
        """What the tables have of those who are asked for."""
        if asked.apart is Apart.RUNS:
            return self._runs(asked)
        if asked.apart is Apart.AGENTS:
            found = self._agents(asked)
        elif apart is Apart.NOTHING:
            found = self._summed(asked, ("factory_hours", "months"), None)
        else:
            found = self._summed(asked, ("hours", "months"), self._payers.all(asked.database))
            if apart >= Apart.AGENTS:
                found = with_parts(found, self._agents(asked), without_agent)
        if apart is Apart.RUNS:
            found = with_parts(found, self._runs(asked), without_run)
        return found

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

    def _runs(self, asked: _Asked) -> list[RollupRow]:
        database, known = asked.database, asked.known("tenant", "run")
        sql = read_runs(known, by_start=asked.by_hour)
        rows = database.query(sql, (*known.values(), asked.since, asked.until))
        found = (
            RollupRow(start, _PAYER.decode(name), self._kinds.read(database, kind), sums_from(sums))
            for start, name, kind, *sums in rows
        )
        return [row for row in found if asked.of is None or is_of(row.payer, asked.of)]

    def _agents(self, asked: _Asked) -> list[RollupRow]:
        names = self._agent_payers.some(asked.database, asked.known("tenant", "agent"))
        return self._summed(asked, ("agent_hours", "agent_months"), names)

    def _summed(
        self, asked: _Asked, tables: tuple[str, str], names: Mapping[int, Payer] | None
    ) -> list[RollupRow]:
        """What the tables of hours and of months have, each row once.

        Args:
            asked: of whom, and when.
            tables: their names.
            names: all payers in them by number; None if payers are not told apart.
        """
        database, since, until, by_hour, of = asked
        payers = None
        if names is not None and of is not None:
            names = {number: payer for number, payer in names.items() if is_of(payer, of)}
            if not names:
                return []
            payers = list(names) if len(names) <= LOOKED_UP_MAX else None
        read = functools.partial(
            read_sums, by_start=by_hour, by_payer=names is not None, payers=payers
        )
        parts = [(False, since, until)] if by_hour else _parts(since, until)
        found = [
            RollupRow(
                start,
                NOBODY if names is None else names[payer],
                self._kinds.read(database, kind),
                sums_from(sums),
            )
            for months, start, stop in parts
            for start, payer, kind, *sums in database.query(read(tables[months]), (start, stop))
            if names is None or payer in names
        ]
        return found if len(parts) == 1 else merged(found)

    def write(self, database: Database, rollups: Iterable[Rollup]) -> NewNames:
        """Add sums to all tables inside a transaction; the new names hold once it is kept."""
        new = NewNames({}, {}, {}, {})
        tables: dict[str, dict[tuple[int, int, int], Sums]] = {
            name: {} for name in (*TIME_TABLES, "run_hours")
        }
        for row in (row for rollup in rollups for row in rollup.rows()):
            start, of = row.start_unix_ns, row.payer
            payer = self._payers.write(database, without_agent(of), new.payers)
            kind = self._kinds.write(database, row.kind, new.kinds)
            month = window_start("month", start)
            places = [
                ("hours", (start, payer, kind)),
                ("months", (month, payer, kind)),
                ("factory_hours", (start, 0, kind)),
            ]
            if of.agent is not None:
                agent = self._agent_payers.write(database, without_run(of), new.agents)
                places.append(("agent_hours", (start, agent, kind)))
                places.append(("agent_months", (month, agent, kind)))
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
        self._agent_payers.keep(names.agents)
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

        for table, months, by_payer in (
            ("hours", "months", True),
            ("factory_hours", "months", False),
            ("agent_hours", "agent_months", True),
        ):
            if of(table, by_payer=by_payer) != of(months, by_payer=by_payer):
                raise LedgerCorrupt(
                    f"The sums of the table {table!r} are not those of the table {months!r}.",
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


class _Asked(NamedTuple):
    """Which sums are asked for, and in which database."""

    database: Database
    since: int
    until: int
    by_hour: bool
    of: PayerNames | None

    @property
    def apart(self) -> Apart:
        """What must be told apart to find those who are asked for."""
        if self.of is None:
            return Apart.NOTHING
        if "run" in self.of:
            return Apart.RUNS
        return Apart.AGENTS if "agent" in self.of else Apart.PAYERS

    def known(self, *fields: PayerField) -> dict[str, str]:
        """The names that are given of some fields."""
        of = self.of or {}
        return {field: of[field] for field in fields if field in of}


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
