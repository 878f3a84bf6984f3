"""Leases: how many processes share one limit and never use more of it than there is.

Each process is granted a part of a limit's window and holds its requests against that part alone.
What all processes were granted never exceeds what the window allows, and what a process has used
never exceeds what it was granted; so all together they never use more than is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from tokenworks.core.ids import LimitID
from tokenworks.ledger.entries import Entry, Posted
from tokenworks.ledger.quota_records import Limit, LimitState, NodeID
from tokenworks.ledger.quotas import nodes_of, window_start

SHARE: Final = 8
"""A process is granted at most this part of what is left, so that the last of it is in small
pieces and little lies idle with one process while another is refused."""


Counted = Callable[[Posted], Mapping[tuple[LimitID, int], int]]
"""Says how much a process's ledger has counted of an answer in which windows, by limit and start;
it is not asked of those that failed, which use nothing."""


class Shortage(NamedTuple):
    """What a request lacks of one limit in this process.

    Attributes:
        limit: the limit.
        start_unix_ns: its window.
        missing: how much more than it was granted the process needs, in the limit's unit.
    """

    limit: LimitID
    start_unix_ns: int
    missing: int


class WindowUse(NamedTuple):
    """A limit's window over all processes.

    Attributes:
        allowed: the most in this window.
        granted: to all processes, what they have used included.
        used: spent by all of them.
    """

    allowed: int
    granted: int
    used: int


def grant(use: WindowUse, missing: int) -> int | None:
    """How much to grant a process that lacks an amount; None if so much is not left.

    >>> grant(WindowUse(allowed=1000, granted=200, used=50), 10)
    100
    >>> grant(WindowUse(allowed=1000, granted=990, used=50), 10)
    10
    >>> grant(WindowUse(allowed=1000, granted=991, used=50), 10)
    """
    free = use.allowed - use.granted
    if missing > free:
        return None
    return max(missing, free // SHARE)


def by_node(limits: Iterable[Limit]) -> dict[NodeID, list[Limit]]:
    """Limits by the node that they are on."""
    found: dict[NodeID, list[Limit]] = {}
    for limit in limits:
        found.setdefault(limit.node, []).append(limit)
    return found


def spent(
    entries: Iterable[Entry], limits: Mapping[NodeID, Sequence[Limit]]
) -> dict[tuple[LimitID, int], int]:
    """What some entries use of every limit's window, by limit and the window's start."""
    sums: dict[tuple[LimitID, int], int] = {}
    for entry in _using(entries):
        for place, amount in _uses(entry, limits):
            sums[place] = sums.get(place, 0) + amount
    return sums


def _using(entries: Iterable[Entry]) -> list[Posted]:
    """Those that use limits: answers, unless their worker broke off."""
    return [each for each in entries if isinstance(each, Posted) and each.ending != "failed"]


def _uses(
    entry: Posted, limits: Mapping[NodeID, Sequence[Limit]]
) -> list[tuple[tuple[LimitID, int], int]]:
    """What one answer uses of every limit above it; see ``spent``."""
    tokens, nanodollars = entry.counted_tokens, entry.paid_nanodollars
    asked, reserved_unix_ns = entry.tier_asked, entry.reserved_unix_ns
    kept = asked if asked is entry.tier_delivered else None
    found: list[tuple[tuple[LimitID, int], int]] = []
    for node in nodes_of(entry.payer):
        for limit in limits.get(node, ()):
            if limit.tier is None or limit.tier is kept:
                place = limit.limit, window_start(limit.period, reserved_unix_ns)
                found.append((place, tokens if limit.unit == "tokens" else nanodollars))
    return found


def split(
    entries: Sequence[Entry],
    limits: Mapping[NodeID, Sequence[Limit]],
    counted: Counted | None,
) -> tuple[dict[tuple[LimitID, int], int], dict[tuple[LimitID, int], int]]:
    """What some entries use, as ``spent``: what their process has leased for it, and the rest.

    Args:
        entries: entries of one process.
        limits: see ``spent``.
        counted: what windows have counted of an entry, be their limits still set or not; None
            where its leases cover all.
    """
    if counted is None:
        return spent(entries, limits), {}
    own: dict[tuple[LimitID, int], int] = {}
    beyond: dict[tuple[LimitID, int], int] = {}
    for entry in _using(entries):
        known = counted(entry)
        for place, amount in known.items():
            if amount:
                own[place] = own.get(place, 0) + amount
        for place, amount in _uses(entry, limits):
            if place not in known:
                beyond[place] = beyond.get(place, 0) + amount
    return own, beyond


def with_spent(states: Sequence[LimitState], entries: Iterable[Entry]) -> list[LimitState]:
    """Limits as they stand after some entries that came when they had been read."""
    more = spent(entries, by_node(state.limit for state in states))
    return [
        msgspec.structs.replace(
            state, used=state.used + more.get((state.limit.limit, state.start_unix_ns), 0)
        )
        for state in states
    ]
