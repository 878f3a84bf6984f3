"""Reports: the ledger's sums by any of who, what, where and when."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from tokenworks.core.orders import TOKEN_CLASSES
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S, TOKENS_PER_MTOK, divide_half_even
from tokenworks.ledger.rollup import MEASURES, RollupRow, Sums

Dimension = Literal[
    "tenant",
    "team",
    "engineer",
    "key",
    "agent",
    "run",
    "model",
    "tier",
    "tier_asked",
    "pool",
    "hour",
    "day",
    "month",
    "price",
    "ending",
    "batch",
]
"""What to group by. ``tier`` is the one delivered; times are when the answer was asked for, UTC."""

IDLE: Final = "(idle)"
"""The name, in a dimension that only answers have, of cost that no answer accounts for."""

Name = str | None
"""A group's name in one dimension; None where an answer has none, such as no team."""

OF_POOLS: Final = frozenset({"pool", "hour", "day", "month"})
"""Dimensions that the cost of pools has, too, so that idle cost can be told apart by them."""

_CLASSES: Final = slice(1, 1 + len(TOKEN_CLASSES))
_PLACES: Final = {name: i for i, name in enumerate(MEASURES)}
_READ: Final = tuple(
    i for name, i in _PLACES.items() if "input" in name or name == "cache_write_tokens"
)
_CHARGED: Final = _PLACES["charged_nanodollars"]
_CREDITED: Final = _PLACES["credited_nanodollars"]
_ADS: Final = _PLACES["ad_income_nanodollars"]
_ENERGY: Final = _PLACES["energy_nanodollars"]
_CAPITAL: Final = _PLACES["capital_nanodollars"]
_ZEROS: Final = (0,) * len(MEASURES)
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_TIMES_MAX: Final = 16_384


class Line(NamedTuple):
    """One line of a report.

    Attributes:
        names: the group, a name for each dimension asked for.
        sums: one number for each of ``rollup.MEASURES``; energy and capital are what answers
            account for.
        idle_energy_nanodollars: electricity that no answer accounts for. Below zero while answers
            are billed whose pool's cost is not written down yet.
        idle_capital_nanodollars: machines, likewise.
    """

    names: tuple[Name, ...]
    sums: tuple[int, ...] = _ZEROS
    idle_energy_nanodollars: int = 0
    idle_capital_nanodollars: int = 0

    @property
    def requests(self) -> int:
        """Answers billed, failed and disconnected ones too."""
        return self.sums[0]

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens by class."""
        return dict(zip(TOKEN_CLASSES, self.sums[_CLASSES], strict=True))

    @property
    def input_tokens(self) -> int:
        """Whole prompts, cached tokens included."""
        return sum(self.sums[i] for i in _READ)

    @property
    def output_tokens(self) -> int:
        """Everything made, reasoning included."""
        return sum(self.sums[_CLASSES]) - self.input_tokens

    @property
    def charged_nanodollars(self) -> int:
        """Charges, before credits."""
        return self.sums[_CHARGED]

    @property
    def credited_nanodollars(self) -> int:
        """What was given back for broken promises."""
        return self.sums[_CREDITED]

    @property
    def revenue_nanodollars(self) -> int:
        """Charges less credits."""
        return self.sums[_CHARGED] - self.sums[_CREDITED]

    @property
    def ad_income_nanodollars(self) -> int:
        """Paid by advertisers."""
        return self.sums[_ADS]

    @property
    def energy_nanodollars(self) -> int:
        """Electricity, at work and idle."""
        return self.sums[_ENERGY] + self.idle_energy_nanodollars

    @property
    def capital_nanodollars(self) -> int:
        """Machines, at work and idle."""
        return self.sums[_CAPITAL] + self.idle_capital_nanodollars

    @property
    def idle_nanodollars(self) -> int:
        """Cost that no answer accounts for."""
        return self.idle_energy_nanodollars + self.idle_capital_nanodollars

    @property
    def cost_nanodollars(self) -> int:
        """Energy and capital, at work and idle."""
        return self.energy_nanodollars + self.capital_nanodollars

    @property
    def earned_nanodollars(self) -> int:
        """Revenue and ad income."""
        return self.revenue_nanodollars + self.ad_income_nanodollars

    @property
    def margin_nanodollars(self) -> int:
        """What was earned less what it cost."""
        return self.earned_nanodollars - self.cost_nanodollars


def per_mtok(nanodollars: int, tokens: int) -> int | None:
    """Nano-dollars per 1M tokens, rounded half to even; None for no token.

    >>> per_mtok(3, 1_000), per_mtok(3, 0)
    (3000, None)
    """
    return divide_half_even(nanodollars * TOKENS_PER_MTOK, tokens) if tokens else None


def report_lines(
    rows: Iterable[RollupRow], by: Sequence[Dimension], where: Mapping[Dimension, str] | None = None
) -> list[Line]:
    """Sums over answers by group, and what no answer accounts for.

    Reservations that were voided appear only where ``ending`` is grouped by or asked for. Idle cost
    belongs to pools and times: where each dimension in ``by`` is one of ``OF_POOLS`` it is part of
    their groups, else it has lines of its own, named ``IDLE``. Where ``where`` picks answers by
    anything else than those there is no idle cost.

    Args:
        rows: sums by hour where ``by`` or ``where`` has a time, else by any period.
        by: what to group by; nothing means one line.
        where: names that answers must have.

    Returns:
        Tiers slowest first, other groups by name, those without a name and ``IDLE`` last.
    """
    where = where or {}
    named = tuple(_NAMES[each] for each in by)
    idle_named = tuple(_NAMES[each] if each in OF_POOLS else _idle for each in by)
    wanted = [(_NAMES[each], name) for each, name in where.items()]
    idles = OF_POOLS.issuperset(where)
    voided = "ending" in by or "ending" in where
    answers: dict[tuple[Name, ...], Sums] = {}
    idle: dict[tuple[Name, ...], list[int]] = {}
    for row in rows:
        if wanted and any(of(row) != name for of, name in wanted):
            continue
        what = row.kind.what
        sign = 1 if what == "accrued" else -1
        if idles:
            spare = idle.setdefault(tuple([of(row) for of in idle_named]), [0, 0])
            spare[0] += sign * row.sums[_ENERGY]
            spare[1] += sign * row.sums[_CAPITAL]
        if sign < 0 and (voided or what != "voided"):
            names = tuple([of(row) for of in named])
            found = answers.get(names)
            if found is None:
                answers[names] = list(row.sums)
            else:
                answers[names] = [a + b for a, b in zip(found, row.sums, strict=True)]
    lines = {names: Line(names, tuple(sums)) for names, sums in answers.items()}
    for names, (energy, capital) in idle.items():
        if energy or capital:
            line = lines.get(names, Line(names))
            lines[names] = line._replace(
                idle_energy_nanodollars=energy, idle_capital_nanodollars=capital
            )
    return sorted(
        lines.values(),
        key=lambda line: [_order(each, name) for each, name in zip(by, line.names, strict=True)],
    )


def total_line(lines: Iterable[Line]) -> Line:
    """All lines as one, without a name."""
    total = Line(())
    for line in lines:
        total = Line(
            (),
            tuple([a + b for a, b in zip(total.sums, line.sums, strict=True)]),
            total.idle_energy_nanodollars + line.idle_energy_nanodollars,
            total.idle_capital_nanodollars + line.idle_capital_nanodollars,
        )
    return total


def asked_and_delivered(
    rows: Iterable[RollupRow], where: Mapping[Dimension, str] | None = None
) -> list[tuple[Tier, Tier, int]]:
    """Answers by tier asked and tier delivered, slowest promise first; pairs that occurred only."""
    lines = report_lines(rows, ("tier_asked", "tier"), where)
    return [
        (Tier(asked), Tier(delivered), line.requests)
        for line in lines
        for asked, delivered in [line.names]
        if asked is not None and delivered is not None and IDLE not in line.names
    ]


@functools.lru_cache(maxsize=_TIMES_MAX)
def _time(unix_ns: int, text: str) -> str:
    """A time as text, remembered: many rows share one.

    >>> _time(1_790_000_000_000_000_000, "%Y-%m-%dT%H:00Z")
    '2026-09-21T14:00Z'
    """
    return (_EPOCH + datetime.timedelta(seconds=unix_ns // NS_PER_S)).strftime(text)


def _idle(_row: RollupRow) -> Name:
    return IDLE


_NAMES: Final[Mapping[Dimension, Callable[[RollupRow], Name]]] = {
    "tenant": lambda row: row.payer.tenant,
    "team": lambda row: row.payer.team,
    "engineer": lambda row: row.payer.engineer,
    "key": lambda row: row.payer.key,
    "agent": lambda row: row.payer.agent,
    "run": lambda row: row.payer.run,
    "model": lambda row: row.kind.model,
    "tier": lambda row: row.kind.tier_delivered,
    "tier_asked": lambda row: row.kind.tier_asked,
    "pool": lambda row: row.kind.pool or None,
    "hour": lambda row: _time(row.start_unix_ns, "%Y-%m-%dT%H:00Z"),
    "day": lambda row: _time(row.start_unix_ns, "%Y-%m-%d"),
    "month": lambda row: _time(row.start_unix_ns, "%Y-%m"),
    "price": lambda row: row.kind.price_id or None,
    "ending": lambda row: row.kind.what,
    "batch": lambda row: "batch" if row.kind.batch else "interactive",
}
OF_PAYER: Final[frozenset[Dimension]] = frozenset(
    {"tenant", "team", "engineer", "key", "agent", "run"}
)
"""Those that tell payers apart; sums without them are far fewer."""
DIMENSIONS: Final = tuple(_NAMES)
"""All of them, as ``--by`` lists them."""


def _order(dimension: Dimension, name: Name) -> tuple[int, int, str]:
    if name is None or name == IDLE:
        return (1 if name is None else 2, 0, "")
    if dimension in ("tier", "tier_asked"):
        return (0, Tier(name).rank, "")
    return (0, 0, name)
