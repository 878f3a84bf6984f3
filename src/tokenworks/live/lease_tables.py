"""Leases in the database: who was granted how much of which limit's window."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from tokenworks.core.ids import LimitID
from tokenworks.core.units import NS_PER_HOUR, NS_PER_S
from tokenworks.ledger.extras import AmountOf
from tokenworks.ledger.leases import Shortage, WindowUse, by_node, grant
from tokenworks.ledger.quota_records import Limit, LimitState
from tokenworks.ledger.quotas import window_start
from tokenworks.live.database import Database, Value

BEFORE: Final = ""
"""The owner of what was used of a window before anybody leased it: its row says that this was
noted."""
BEYOND: Final = "-"
"""The owner of what was used beyond all leases, and by those who are dead; granted as used."""

PAST_NS_MAX: Final = 48 * NS_PER_HOUR
"""Leases of hours and days are kept for as long as an answer of theirs may still be billed, and
more; those of months until the next month has ended, and those for life for ever."""
WANTED_NS_MAX: Final = 60 * NS_PER_S
"""A want that is older moves nobody any more."""

_GRANT: Final = """
INSERT INTO leases VALUES (?, ?, ?, ?, ?) ON CONFLICT (owner, limit_id, start_unix_ns)
DO UPDATE SET granted = leases.granted + excluded.granted, used = leases.used + excluded.used
"""
_SPEND: Final = """
INSERT INTO leases VALUES {rows} ON CONFLICT (owner, limit_id, start_unix_ns)
DO UPDATE SET used = leases.used + excluded.used
"""
_SPEND_ROW: Final = "(?, ?, ?, 0, ?)"
SPEND_ROWS_MAX: Final = 64
"""In one statement: a statement costs more than a row does."""
_INHERIT: Final = """
INSERT INTO leases SELECT ?, limit_id, start_unix_ns, used, used FROM leases
WHERE owner = ? ON CONFLICT (owner, limit_id, start_unix_ns)
DO UPDATE SET granted = leases.granted + excluded.granted, used = leases.used + excluded.used
"""
_WANT: Final = """
INSERT INTO wanted VALUES (?, ?, ?) ON CONFLICT (limit_id, start_unix_ns)
DO UPDATE SET at_unix_ns = excluded.at_unix_ns
"""


_HELD: Final = """
SELECT leases.limit_id, leases.start_unix_ns, SUM(leases.granted - leases.used)
FROM limits JOIN leases ON leases.limit_id = limits.limit_id
WHERE limits.carry_over_max > 0 AND leases.granted > leases.used AND leases.start_unix_ns < ?
"""


_LEASED: Final = """
SELECT COUNT(*), SUM(used), SUM(CASE owner WHEN '' THEN 1 ELSE 0 END) FROM leases
WHERE limit_id = ? AND start_unix_ns = ?
"""


class Leasing:
    """What the writer must know to lease: the limits as they were last read, and how they stood."""

    def __init__(
        self,
        version: int = -1,
        limits: Sequence[Limit] = (),
        states: Sequence[LimitState] = (),
        held: AmountOf = MappingProxyType({}),
    ) -> None:
        self.version = version
        self.held = held
        self.limits_version = version
        self.by_node = by_node(limits)
        self.states = {(state.limit.limit, state.start_unix_ns): state for state in states}

    def limits_are(self, version: int, limits: Iterable[Limit]) -> None:
        """Know limits that were set since, but not yet how they stand."""
        self.limits_version, self.by_node = version, by_node(limits)


def lease(
    database: Database,
    owner: str,
    shortages: Sequence[Shortage],
    states: Mapping[tuple[LimitID, int], LimitState],
    unix_ns: int,
) -> list[int] | tuple[Shortage, WindowUse | None]:
    """Grant a process more, all or none, inside a transaction; see ``LedgerStore.lease``.

    Args:
        database: in a writing transaction.
        owner: the process.
        shortages: what it lacks.
        states: limits by id and window, each with what it allows and what was used of it when
            they were read, by everybody.
        unix_ns: now, for who wants something.
    """
    granted: list[int] = []
    refused: list[tuple[Shortage, WindowUse]] = []
    for short in shortages:
        state = states.get((short.limit, short.start_unix_ns))
        if state is None:
            return short, None
        use = _use(database, state)
        amount = grant(use, short.missing)
        if amount is None:
            refused.append((short, use))
        else:
            granted.append(amount)
    if refused:
        for short, _ in refused:
            database.change(_WANT, (short.limit, short.start_unix_ns, unix_ns))
        return refused[0]
    for short, amount in zip(shortages, granted, strict=True):
        database.change(_GRANT, (owner, short.limit, short.start_unix_ns, amount, 0))
    return granted


def _use(database: Database, state: LimitState) -> WindowUse:
    """How a window stands over all processes; its first lease notes what was used before it."""
    place = (state.limit.limit, state.start_unix_ns)
    rows = database.query(
        "SELECT granted, used FROM leases WHERE limit_id = ? AND start_unix_ns = ?", place
    )
    if state.limit.carries_over and database.query(
        "SELECT 1 FROM leases WHERE limit_id = ? AND start_unix_ns > ? LIMIT 1", place
    ):
        # By a clock ahead of ours the month is over, and its rest is given to the next one.
        return WindowUse(0, 0, 0)
    if not rows:
        database.change(_GRANT, (BEFORE, *place, state.used, state.used))
        rows = [(state.used, state.used)]
    return WindowUse(
        allowed=state.allowed,
        # A worker may have made more than was held: what is used is granted.
        granted=sum(max(int(each), int(used)) for each, used in rows),
        used=sum(int(used) for _, used in rows),
    )


def unknown(database: Database, places: Iterable[tuple[LimitID, int]]) -> bool:
    """Whether some window has leases, and what was used before them was never noted.

    So it is where a process had requests open under a limit before anybody leased of it.
    """
    found = (database.query(_LEASED, place)[0] for place in places)
    return any(known and not begun for known, _, begun in found)


def reconcile(database: Database, states: Iterable[LimitState]) -> None:
    """Note what was used of windows and is in no lease, inside a transaction.

    A limit may have been lifted and set again, or set while requests ran, or a process may have
    used the ledger alone: what the sums say is used is used.
    """
    for state in states:
        place = (state.limit.limit, state.start_unix_ns)
        known, leased, begun = database.query(_LEASED, place)[0]
        missed = max(0, state.used - int(leased or 0))
        if known and (missed or not begun):
            database.change(_GRANT, (BEFORE, *place, missed, missed))


def held(
    database: Database, before_unix_ns: int, limit: LimitID | None = None
) -> dict[tuple[LimitID, int], int]:
    """What processes are granted and have not used of windows that carry over, by limit and window.

    Args:
        database: what to read.
        before_unix_ns: only windows that begin before then.
        limit: only those of this limit.
    """
    sql, values = _HELD, [before_unix_ns]
    rows = (
        database.query(f"{sql} GROUP BY 1, 2", values)
        if limit is None
        else database.query(f"{sql} AND limits.limit_id = ? GROUP BY 1, 2", [*values, limit])
    )
    return {(LimitID(name), int(start)): int(amount) for name, start, amount in rows}


def cover(database: Database, owner: str, lacking: Sequence[Shortage]) -> None:
    """Grant a process what it uses and holds already, inside a transaction."""
    for part in lacking:
        database.change(_GRANT, (owner, part.limit, part.start_unix_ns, part.missing, 0))


def give_back(database: Database, owner: str, rest: Sequence[Shortage]) -> None:
    """Take parts of leases back, inside a transaction."""
    for part in rest:
        database.change(
            "UPDATE leases SET granted = granted - ? "
            "WHERE owner = ? AND limit_id = ? AND start_unix_ns = ?",
            (part.missing, owner, part.limit, part.start_unix_ns),
        )


def granted(database: Database, owner: str, places: Sequence[Shortage]) -> list[int]:
    """How much a process is granted of some limits' windows."""
    found: list[int] = []
    for place in places:
        rows = database.query(
            "SELECT granted FROM leases WHERE owner = ? AND limit_id = ? AND start_unix_ns = ?",
            (owner, place.limit, place.start_unix_ns),
        )
        found.append(int(rows[0][0]) if rows else 0)
    return found


def spend(database: Database, owner: str, spent: dict[tuple[LimitID, int], int]) -> None:
    """Count what a process has used, in the transaction that stores the entries.

    An answer may be longer than what was held for it; what is used is used all the same, and
    counts as granted where the whole is summed.
    """
    left = list(spent.items())
    while left:
        some, left = left[:SPEND_ROWS_MAX], left[SPEND_ROWS_MAX:]
        values: list[Value] = []
        for (limit, start_unix_ns), amount in some:
            values += (owner, limit, start_unix_ns, amount)
        database.change(_SPEND.format(rows=", ".join([_SPEND_ROW] * len(some))), values)


def spend_beyond(database: Database, spent: dict[tuple[LimitID, int], int]) -> None:
    """Count what a process has used of windows in which its ledger has not counted it.

    None of its leases covers that: what it leases later it will use besides.
    """
    for (limit, start_unix_ns), amount in spent.items():
        database.change(_GRANT, (BEYOND, limit, start_unix_ns, amount, amount))


def end(database: Database, owner: str) -> None:
    """Free what a dead process was granted and has not used; what it has used is nobody's.

    That does not say what was used before anybody leased.
    """
    database.change(_INHERIT, (BEYOND, owner))
    database.change("DELETE FROM leases WHERE owner = ?", (owner,))


def prune(database: Database, unix_ns: int) -> None:
    """Forget leases of windows that ended long ago, and old wants, inside a transaction."""
    month = window_start("month", unix_ns)
    month_before = window_start("month", month - 1)
    database.change(
        "DELETE FROM leases WHERE start_unix_ns < ? AND start_unix_ns NOT IN (0, ?, ?)",
        (unix_ns - PAST_NS_MAX, month_before, month),
    )
    database.change("DELETE FROM wanted WHERE at_unix_ns < ?", (unix_ns - WANTED_NS_MAX,))


def wanted(database: Database, since_unix_ns: int) -> list[tuple[LimitID, int]]:
    """Limits and windows of which some process has lacked something since a time."""
    rows = database.query(
        "SELECT limit_id, start_unix_ns FROM wanted WHERE at_unix_ns >= ?", (since_unix_ns,)
    )
    return [(LimitID(limit), int(start)) for limit, start in rows]
