"""The quota tree above keys: hard limits at every level, all held in one step."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterable
from typing import Final, assert_never

from tokenworks.core.ids import LimitID, TenantID
from tokenworks.core.orders import Payer
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_HOUR, NS_PER_S
from tokenworks.ledger.quota_records import (
    UNIX_NS_MAX,
    Level,
    Limit,
    LimitState,
    NodeID,
    Period,
    QuotaNumbers,
    Refused,
)

_DAY_NS: Final = 24 * NS_PER_HOUR


class Window:
    """One limit over one period, as it stands.

    Attributes:
        carried: what it has got of the months before; part of ``allowed``.
        following: the window that got what this one has left, if one did.
        tied: how much of what is held was leased under a limit that may be lower by now; as it
            comes free it is not this process's any more.
        returned: what came free of that, and the store has not been told yet.
        lifted: its limit is not in force any more, or is in force anew with another window.
    """

    __slots__ = (
        *("allowed", "carried", "end_unix_ns", "following", "held", "lifted", "limit"),
        *("returned", "start_unix_ns", "tied", "used"),
    )

    def __init__(
        self, limit: Limit, start_unix_ns: int, allowed: int, used: int, carried: int = 0
    ) -> None:
        self.limit = limit
        self.carried = carried
        self.following: Window | None = None
        self.start_unix_ns = start_unix_ns
        self.end_unix_ns = window_end(limit.period, start_unix_ns)
        self.allowed = allowed
        self.used = used
        self.held = self.tied = self.returned = 0
        self.lifted = False

    @property
    def free(self) -> int:
        """What may still be held."""
        return self.allowed - self.used - self.held

    def amount(self, tier: Tier | None, tokens: int, nanodollars: int) -> int:
        """What it counts of an answer that was delivered at a tier."""
        if self.limit.tier not in (None, tier):
            return 0
        return tokens if self.limit.unit == "tokens" else nanodollars

    def release(self, hold: int, used: int) -> None:
        """Give a hold back, and count what was used of it; with amounts below zero, take it up."""
        self.held -= hold
        self.used += used
        if self.tied > 0 and hold > 0:
            tied = min(self.tied, hold)
            rest = max(0, tied - used)
            self.tied -= tied
            self.allowed -= rest
            self.returned += rest


class QuotaTree:
    """The limits in force and their windows. Checking all levels and holding is one step.

    Args:
        leased: this process may use only what it is granted by lease, so that a window begins with
            nothing; else the whole of every limit is its own.
    """

    def __init__(self, *, leased: bool = False) -> None:
        self._leased = leased
        self._windows: dict[LimitID, Window] = {}
        self._by_node: dict[NodeID, list[LimitID]] = {}
        self._of_payer: dict[Payer, tuple[LimitID, ...]] = {}
        self._together: dict[tuple[Window, ...], tuple[Window, ...]] = {}
        """What ``hold`` has returned: thousands of remembered holds have a few of these."""
        self._ended: dict[LimitID, list[Window]] = {}
        """Leased months that are over and carry over; the latest, and others that hold or have
        anything left."""
        self._lifted: list[Window] = []
        """Leased windows of limits that were lifted, while they hold or have anything."""
        self._month_unix_ns = 0

    def set(self, state: LimitState) -> Window:
        """Put a limit into force, or change what its window allows.

        A window that is known keeps what it has used, holds and was carried into it; a new one
        begins as told, or, where limits are leased, with nothing. So does that of a limit which
        from now on counts something else.
        """
        limit = state.limit
        self._together.clear()
        known = self._windows.get(limit.limit)
        if known is not None and not counts_alike(known.limit, limit):
            self.remove(limit.limit)
            known = None
        if known is None:
            window = _window_of(state) if not self._leased else _empty(state)
            self._by_node.setdefault(limit.node, []).append(limit.limit)
            self._of_payer.clear()
        elif self._leased:
            over = known.start_unix_ns < state.start_unix_ns
            window = self._next(known, state.start_unix_ns) if over else known
            window.limit = limit
        else:
            window = _changed(known, state)
        self._windows[limit.limit] = window
        return window

    def remove(self, limit: LimitID) -> None:
        """Lift a limit; open holds under it are not touched, and what was leased is in ``lifted``.

        A request that ends after that has used what nobody leased.
        """
        window = self._windows.pop(limit, None)
        if window is not None:
            self._by_node[window.limit.node].remove(limit)
            self._of_payer.clear()
            self._together.clear()
            ended = self._ended.pop(limit, [])
            if self._leased:
                for each in (*ended, window):
                    each.lifted = True
                    self._lifted.append(each)

    def window(self, limit: LimitID) -> Window | None:
        """The present window of a limit."""
        return self._windows.get(limit)

    def window_at(self, limit: LimitID, start_unix_ns: int) -> Window | None:
        """The window of a limit that begins at a time, if it is the present one or in ``ended``."""
        window = self._windows.get(limit)
        if window is not None and window.start_unix_ns == start_unix_ns:
            return window
        ended = self._ended.get(limit, ())
        return next((each for each in ended if each.start_unix_ns == start_unix_ns), None)

    def ended(self, unix_ns: int) -> list[Window]:
        """Leased windows that are over and whose rest the next ones get."""
        month_unix_ns = window_start("month", unix_ns)
        if month_unix_ns > self._month_unix_ns:
            self._month_unix_ns = month_unix_ns
            for name, window in self._windows.items():
                if window.limit.carries_over and unix_ns >= window.end_unix_ns:
                    self._windows[name] = self._next(window, unix_ns)
        return [window for windows in self._ended.values() for window in windows]

    def lifted(self) -> list[Window]:
        """Leased windows of limits that were lifted, each until nothing of it is left."""
        left = [each for each in self._lifted if each.held or each.returned or each.free]
        self._lifted = left
        return list(left)

    def list_lifted(self, windows: Iterable[Window]) -> None:
        """Have those whose limits were lifted in ``lifted`` again: they hold something anew."""
        self._lifted += [each for each in windows if each.lifted and each not in self._lifted]

    def windows(self) -> tuple[Window, ...]:
        """The present windows of all limits."""
        return tuple(self._windows.values())

    def hold(
        self, payer: Payer, tier: Tier, tokens: int, nanodollars: int, unix_ns: int
    ) -> tuple[Window, ...] | QuotaNumbers:
        """Hold an amount at every level above a request, or at none.

        Args:
            payer: the path through the tree.
            tier: the tier asked for.
            tokens: the most tokens that it may use.
            nanodollars: the most money.
            unix_ns: now, for the windows.

        Returns:
            The windows that hold it, or the outermost limit that cannot.
        """
        limits = self._of_payer.get(payer)
        if limits is None:
            limits = self._limits_of(payer)
        if not limits:
            return ()
        held: list[Window] = []
        for name in limits:
            window = self._windows[name]
            limit = window.limit
            if limit.tier is not None and limit.tier is not tier:
                continue
            if unix_ns >= window.end_unix_ns:
                window = self._windows[name] = self._next(window, unix_ns)
            asked = tokens if limit.unit == "tokens" else nanodollars
            if window.used + window.held + asked > window.allowed:
                return _numbers(window, asked)
            held.append(window)
        for window in held:
            window.held += tokens if window.limit.unit == "tokens" else nanodollars
        windows = tuple(held)
        known = self._together.get(windows)
        if known is not None:
            return known
        if len(self._together) >= PATHS_MAX:
            self._together.clear()
        self._together[windows] = windows
        return windows

    def shortages(
        self, payer: Payer, tier: Tier, tokens: int, nanodollars: int, unix_ns: int
    ) -> list[tuple[Window, int]]:
        """The windows that cannot hold a request, each with what it lacks; see ``hold``."""
        found = []
        for name in self._limits_of(payer):
            window = self._windows[name]
            limit = window.limit
            if limit.tier is not None and limit.tier is not tier:
                continue
            if unix_ns >= window.end_unix_ns:
                window = self._windows[name] = self._next(window, unix_ns)
            missing = (tokens if limit.unit == "tokens" else nanodollars) - window.free
            if missing > 0:
                found.append((window, missing))
        return found

    def _next(self, window: Window, unix_ns: int) -> Window:
        self._together.clear()
        if not self._leased:
            return next_window(window, unix_ns)
        limit = window.limit
        if limit.carries_over:
            before = self._ended.get(limit.limit, ())
            kept = [each for each in before if each.held or each.free > 0]
            self._ended[limit.limit] = [*kept, window]
        return Window(limit, window_start(limit.period, unix_ns), 0, 0)

    def _limits_of(self, payer: Payer) -> tuple[LimitID, ...]:
        found = tuple(limit for node in nodes_of(payer) for limit in self._by_node.get(node, ()))
        if len(self._of_payer) >= PAYERS_MAX:
            self._of_payer.clear()
        self._of_payer[payer] = found
        return found


PAYERS_MAX: Final = 100_000
"""Payers whose limits are remembered; runs come and go, so the memory is dropped when full."""
PATHS_MAX: Final = 10_000
"""Sets of windows that are remembered, likewise."""


def _empty(state: LimitState) -> Window:
    return Window(state.limit, state.start_unix_ns, 0, 0)


def _window_of(state: LimitState) -> Window:
    return Window(state.limit, state.start_unix_ns, state.allowed, state.used, state.carried)


def _changed(known: Window, state: LimitState) -> Window:
    """The present window of a limit that is set anew, given its window until now.

    What was carried in is the window's own knowledge, for it knows what is held of the months
    before; but what was carried in when the limit was changed is written in the limit.
    """
    limit = state.limit
    if known.start_unix_ns > state.start_unix_ns:
        # The window has begun since the state was read: what it has used must not be lost.
        _change(known, limit)
        return known
    window = known
    if known.start_unix_ns < state.start_unix_ns:
        if limit.created_unix_ns >= known.end_unix_ns:
            return _window_of(state)
        _change(known, limit)
        window = next_window(known, state.start_unix_ns)
        window.used = state.used
    _change(window, limit)
    window.allowed = limit.amount + window.carried + state.extra
    return window


def _change(window: Window, limit: Limit) -> None:
    """Put a limit in the place of another of the same name."""
    window.allowed += limit.amount - window.limit.amount
    window.limit = limit
    if limit.created_unix_ns >= window.start_unix_ns:
        _carry(window, limit.carried_in)


def _carry(window: Window, carried: int) -> None:
    window.allowed += carried - window.carried
    window.carried = carried


def counts_alike(one: Limit, other: Limit) -> bool:
    """Whether what was used of one limit is what was used of another."""
    return (one.node, one.unit, one.period, one.tier) == (
        other.node,
        other.unit,
        other.period,
        other.tier,
    )


def release(
    windows: Iterable[Window],
    hold_tokens: int,
    hold_nanodollars: int,
    *,
    tier: Tier | None = None,
    tokens: int = 0,
    nanodollars: int = 0,
) -> None:
    """Give a hold back, and count what was used of it in the same windows.

    Args:
        windows: those that ``QuotaTree.hold`` returned.
        hold_tokens: what was held.
        hold_nanodollars: what was held.
        tier: the tier delivered; None if nothing was.
        tokens: what was used.
        nanodollars: what was paid.
    """
    for window in windows:
        hold = hold_tokens if window.limit.unit == "tokens" else hold_nanodollars
        window.release(hold, window.amount(tier, tokens, nanodollars))
        if window.following is not None:
            _carry_on(window)


def next_window(window: Window, unix_ns: int) -> Window:
    """The window of the same limit at a later time, with what is carried over into it.

    Extra budget that was approved for the old window ends with it, but counts as unused rest. What
    is held of the old window counts as used while it is held: ``release`` carries over again.
    """
    limit = window.limit
    start_unix_ns = window_start(limit.period, unix_ns)
    after = Window(limit, start_unix_ns, limit.amount, 0)
    if limit.created_unix_ns >= start_unix_ns:  # by a clock that is ahead of ours
        _carry(after, limit.carried_in)
    elif limit.carries_over:
        _carry(after, _rest(window, start_unix_ns))
        window.following = after
    return after


def _carry_on(window: Window) -> None:
    """Carry over again what a window has left, from month to month as far as it makes a change."""
    after = window.following
    while after is not None:
        if after.limit.created_unix_ns >= after.start_unix_ns:
            return  # the limit was changed then, and what was carried in stays
        carried = _rest(window, after.start_unix_ns)
        if carried == after.carried:
            return
        _carry(after, carried)
        window, after = after, after.following


def _rest(window: Window, start_unix_ns: int) -> int:
    """What a window leaves for the month that begins at a time."""
    limit = window.limit
    carried = min(limit.carry_over_max, max(0, window.free))
    at_unix_ns = window.end_unix_ns
    while at_unix_ns < start_unix_ns:  # months in which nothing was asked
        grown = min(limit.carry_over_max, limit.amount + carried)
        if grown == carried:
            break
        carried, at_unix_ns = grown, window_end(limit.period, at_unix_ns)
    return carried


@functools.lru_cache(maxsize=4_096)
def nodes_of(payer: Payer) -> tuple[NodeID, ...]:
    """The nodes above a request, the outermost first.

    >>> nodes_of(Payer(tenant="acme", team="search", engineer=None, key="key_1"))
    ('tenant:acme', 'team:acme/search', 'key:key_1')
    """
    named: tuple[tuple[Level, str | None], ...] = (
        ("tenant", payer.tenant),
        ("team", payer.team),
        ("engineer", payer.engineer),
        ("key", payer.key),
        ("run", payer.run),
    )
    return tuple(node_id(level, payer.tenant, name) for level, name in named if name is not None)


def node_id(level: Level, tenant: TenantID, name: str) -> NodeID:
    """The id of a node: names of teams, engineers and runs are the tenant's own."""
    if level in ("tenant", "key"):
        return NodeID(f"{level}:{name}")
    return NodeID(f"{level}:{tenant}/{name}")


def window_start(period: Period, unix_ns: int) -> int:
    """The start of the calendar window, UTC, that holds a time.

    >>> window_start("day", 1_790_000_000_000_000_000) == 1_789_948_800_000_000_000
    True
    """
    match period:
        case "hour":
            return unix_ns - unix_ns % NS_PER_HOUR
        case "day":
            return unix_ns - unix_ns % _DAY_NS
        case "month":
            return _month_start(unix_ns // _DAY_NS)
        case "lifetime":
            return 0
        case _:
            assert_never(period)


def window_end(period: Period, start_unix_ns: int) -> int:
    """The end of a window, which is not part of it."""
    match period:
        case "hour":
            return start_unix_ns + NS_PER_HOUR
        case "day":
            return start_unix_ns + _DAY_NS
        case "month":
            day = _date(start_unix_ns)
            year, month = (day.year + 1, 1) if day.month == 12 else (day.year, day.month + 1)
            return _unix_ns(datetime.date(year, month, 1))
        case "lifetime":
            return UNIX_NS_MAX
        case _:
            assert_never(period)


@functools.lru_cache(maxsize=64)
def _month_start(days: int) -> int:
    """Of the month that holds a day, counted from 1970: each answer asks of a day or two."""
    return _unix_ns(_date(days * _DAY_NS).replace(day=1))


def _date(unix_ns: int) -> datetime.date:
    return datetime.date(1970, 1, 1) + datetime.timedelta(days=unix_ns // _DAY_NS)


def _unix_ns(day: datetime.date) -> int:
    return (day - datetime.date(1970, 1, 1)).days * _DAY_NS


def _numbers(window: Window, asked: int) -> QuotaNumbers:
    limit = window.limit
    resets = limit.period != "lifetime" and asked <= limit.amount
    return QuotaNumbers(
        limit=limit.limit,
        node=limit.node,
        unit=limit.unit,
        period=limit.period,
        allowed=window.allowed,
        used=window.used,
        held=window.held,
        asked=asked,
        resets_unix_ns=window.end_unix_ns if resets else None,
    )


def quota_refusal(
    numbers: QuotaNumbers, unix_ns: int, *, held_by: str = "open requests"
) -> Refused:
    """The refusal that says by how much a request is too large, and when to come again."""
    wait = ""
    if numbers.resets_unix_ns is not None:
        wait = (
            f" The {numbers.period} ends in {-(-(numbers.resets_unix_ns - unix_ns) // NS_PER_S)} s."
        )
    per = "for life" if numbers.period == "lifetime" else f"per {numbers.period}"
    return Refused(
        code="quota_exceeded",
        message=(
            f"{numbers.node!r} may use {numbers.allowed} {numbers.unit} {per}: "
            f"{numbers.used} used, {numbers.held} held by {held_by}, {numbers.asked} needed "
            f"for this one.{wait}"
        ),
        quota=numbers,
    )
