"""Extra budget on top of limits, and what every limit allows now."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

import msgspec

from tokenworks.core.ids import LimitID
from tokenworks.core.orders import Payer
from tokenworks.ledger.quota_records import Limit, LimitState, NodeID, Period
from tokenworks.ledger.quotas import node_id, nodes_of, window_end, window_start
from tokenworks.ledger.rollup import Kind, RollupRow

BILLED = frozenset({"done", "disconnected"})
"""What counts against a limit: answers that were billed."""


class Extra(msgspec.Struct, frozen=True, kw_only=True):
    """Budget on top of a limit, for one of its windows.

    Attributes:
        extra: its id.
        limit: on top of which limit.
        start_unix_ns: the start of the window that it is for.
        amount: how much, in the limit's unit.
        reason: why it is asked for.
        asked_by: who asks: an engineer's node; before people were known by it, any words.
        state: only what is approved counts.
        decided_by: who decided, likewise.
        at_unix_ns: when it was asked for or decided.
    """

    extra: str
    limit: LimitID
    start_unix_ns: int
    amount: int
    reason: str
    asked_by: str
    state: Literal["asked", "approved", "denied"]
    decided_by: str | None
    at_unix_ns: int


class Use(NamedTuple):
    """What a payer's answers of one kind have used; with a run, it counts for nothing but that."""

    payer: Payer
    kind: Kind
    tokens: int
    paid_nanodollars: int


UsedRows = Callable[[int, int, Collection[NodeID]], list[Use]]
"""What was used from one time up to another: all runs together, and some runs once more."""


AmountOf = Mapping[tuple[LimitID, int], int]
"""An amount for a limit's window that begins at a time; none is 0."""
_NOTHING: Final[AmountOf] = MappingProxyType({})


def limit_states(
    limits: Iterable[Limit],
    extras: Iterable[Extra],
    used: UsedRows,
    unix_ns: int,
    held: AmountOf = _NOTHING,
) -> list[LimitState]:
    """Every limit with its present window.

    Args:
        limits: the limits.
        extras: extra budget of any state and window.
        used: reads sums; called once per period, and once per month for carry-over.
        unix_ns: now.
        held: what processes still hold by lease of windows that have ended; it counts as used.
    """
    approved: dict[tuple[LimitID, int], int] = {}
    for extra in extras:
        if extra.state == "approved":
            place = (extra.limit, extra.start_unix_ns)
            approved[place] = approved.get(place, 0) + extra.amount
    limits = tuple(limits)
    uses = _Uses(used, frozenset(limit.node for limit in limits))
    states = []
    for limit in limits:
        start = window_start(limit.period, unix_ns)
        states.append(
            LimitState(
                limit=limit,
                start_unix_ns=start,
                used=uses.of(limit, start),
                carried=_carried(limit, approved, uses, held, start),
                extra=approved.get((limit.limit, start), 0),
            )
        )
    return states


class _Uses:
    """What was used of limits in windows, each window's sums read once."""

    def __init__(self, used: UsedRows, nodes: Collection[NodeID]) -> None:
        self._used, self._nodes = used, nodes
        self._runs = frozenset(node for node in nodes if node.startswith(RUN))
        self._found: dict[tuple[Period, int], dict[tuple[NodeID, str, str | None], int]] = {}

    def of(self, limit: Limit, start_unix_ns: int) -> int:
        window = (limit.period, start_unix_ns)
        found = self._found.get(window)
        if found is None:
            stop = window_end(limit.period, start_unix_ns)
            rows = self._used(start_unix_ns, stop, self._runs)
            found = self._found[window] = _by_node(rows, self._nodes)
        return found.get((limit.node, limit.unit, limit.tier), 0)


def run_node(payer: Payer) -> NodeID | None:
    """The node of a payer's run, if it has one."""
    return None if payer.run is None else node_id("run", payer.tenant, payer.run)


def uses(rows: Iterable[RollupRow], runs: Collection[NodeID]) -> Iterator[Use]:
    """Rows as ``UsedRows`` has them."""
    for row in rows:
        every = row.coarse(by_hour=False, by_payer=True).payer
        yield Use(every, row.kind, row.tokens, row.paid_nanodollars)
        if run_node(row.payer) in runs:
            yield Use(row.payer, row.kind, row.tokens, row.paid_nanodollars)


def _by_node(
    rows: Iterable[Use], nodes: Collection[NodeID]
) -> dict[tuple[NodeID, str, str | None], int]:
    """Use by node, unit, and the tier that was asked for and delivered; None for all tiers."""
    payers: dict[Payer, dict[tuple[str, str | None], int]] = {}
    for row in rows:
        kind = row.kind
        if kind.what not in BILLED:
            continue
        sums = payers.setdefault(row.payer, {})
        tokens, paid = row.tokens, row.paid_nanodollars
        for tier in (None, kind.tier_delivered) if kind.tier_asked is kind.tier_delivered else _ALL:
            sums["tokens", tier] = sums.get(("tokens", tier), 0) + tokens
            sums["nanodollars", tier] = sums.get(("nanodollars", tier), 0) + paid
    found: dict[tuple[NodeID, str, str | None], int] = {}
    for payer, sums in payers.items():
        run = run_node(payer)
        for node in nodes_of(payer) if run is None else (run,):
            if node in nodes:
                for (unit, of_tier), amount in sums.items():
                    place = (node, unit, of_tier)
                    found[place] = found.get(place, 0) + amount
    return found


_ALL: Final = (None,)
RUN: Final = "run:"
"""How the node of a run begins."""


def _carried(
    limit: Limit,
    approved: AmountOf,
    uses: _Uses,
    held: AmountOf,
    start_unix_ns: int,
) -> int:
    """What the months since a limit was set have left for the present one."""
    if not limit.carries_over:
        return 0
    carried, at = limit.carried_in, window_start("month", limit.created_unix_ns)
    while at < start_unix_ns:
        allowed = limit.amount + carried + approved.get((limit.limit, at), 0)
        taken = uses.of(limit, at) + held.get((limit.limit, at), 0)
        carried = min(limit.carry_over_max, max(0, allowed - taken))
        at = window_end("month", at)
    return carried
