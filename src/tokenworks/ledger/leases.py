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
from tokenworks.core.orders import Payer
from tokenworks.core.slo import Tier
from tokenworks.core.token_sums import completion_tokens, prompt_tokens
from tokenworks.core.units import NS_PER_HOUR
from tokenworks.ledger.entries import Entry, Posted
from tokenworks.ledger.quota_records import Limit, LimitState, NodeID
from tokenworks.ledger.quotas import Window, nodes_of, window_start

SHARE: Final = 8
"""A process is granted at most this part of what is left, so that the last of it is in small
pieces and little lies idle with one process while another is refused."""


Counted = Callable[[Posted], tuple[Window, ...]]
"""Says which windows of a process's ledger have counted an answer; it is not asked of those that
failed, which use nothing."""

_Alike = tuple[Payer, Tier, Tier, int, tuple[Window, ...]]
"""What answers have in common that use the same of every limit's windows: who pays, the tiers asked
for and delivered, the hour, which lies in one window of each period, and who has counted them."""


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
    for alike, (tokens, nanodollars) in _together(entries, _by_nobody).items():
        for place, in_tokens in _places(alike, limits):
            sums[place] = sums.get(place, 0) + (tokens if in_tokens else nanodollars)
    return sums


def _by_nobody(_: Posted) -> tuple[Window, ...]:
    return ()


def _together(entries: Iterable[Entry], counted: Counted) -> dict[_Alike, list[int]]:
    """Answers that use the same windows, with the tokens and nano-dollars that they use together.

    Reservations use nothing yet, and answers whose worker broke off nothing at all.
    """
    sums: dict[_Alike, list[int]] = {}
    for entry in entries:
        if not isinstance(entry, Posted) or entry.ending == "failed":
            continue
        usage, reserved_unix_ns = entry.usage, entry.reserved_unix_ns
        hour_unix_ns = reserved_unix_ns - reserved_unix_ns % NS_PER_HOUR
        windows = counted(entry)
        alike = (entry.payer, entry.tier_asked, entry.tier_delivered, hour_unix_ns, windows)
        amounts = sums.get(alike)
        if amounts is None:
            amounts = sums[alike] = [0, 0]
        amounts[0] += prompt_tokens(usage) + completion_tokens(usage)
        amounts[1] += entry.charged_nanodollars - entry.credited_nanodollars
    return sums


def _places(
    alike: _Alike, limits: Mapping[NodeID, Sequence[Limit]]
) -> list[tuple[tuple[LimitID, int], bool]]:
    """The windows of all limits above some answers, and whether they count tokens, not money."""
    payer, asked, delivered, hour_unix_ns, _ = alike
    kept = asked if asked is delivered else None
    return [
        ((limit.limit, window_start(limit.period, hour_unix_ns)), limit.unit == "tokens")
        for node in nodes_of(payer)
        for limit in limits.get(node, ())
        if limit.tier is None or limit.tier is kept
    ]


def split(
    entries: Sequence[Entry],
    limits: Mapping[NodeID, Sequence[Limit]],
    counted: Counted | None,
) -> tuple[dict[tuple[LimitID, int], int], dict[tuple[LimitID, int], int]]:
    """What some entries use, as ``spent``: what their process has leased for it, and the rest.

    Args:
        entries: entries of one process.
        limits: see ``spent``.
        counted: what windows have counted an entry, be their limits still set or not; None where
            its leases cover all.
    """
    if counted is None:
        return spent(entries, limits), {}
    own: dict[tuple[LimitID, int], int] = {}
    beyond: dict[tuple[LimitID, int], int] = {}
    for alike, (tokens, nanodollars) in _together(entries, counted).items():
        known: set[tuple[LimitID, int]] = set()
        for window in alike[4]:
            place = (window.limit.limit, window.start_unix_ns)
            known.add(place)
            amount = window.amount(alike[2], tokens, nanodollars)
            if amount:
                own[place] = own.get(place, 0) + amount
        for place, in_tokens in _places(alike, limits):
            if place not in known:
                amount = tokens if in_tokens else nanodollars
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
