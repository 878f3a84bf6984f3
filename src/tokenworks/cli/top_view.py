"""A factory on a terminal: plain lines of plain characters, made for 80 columns and 24 rows."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Final, NamedTuple

from tokenworks.cli.top_facts import Facts, Reading, TierFacts, WorkerFacts, facts_of

SPAN_READINGS_MAX: Final = 61
"""Readings that are remembered: at one a second, the last minute."""

RATE_READINGS: Final = 10
"""Rates are taken over the last so many readings."""

COLUMNS_MIN: Final = 40
ROWS_MIN: Final = 8
BAR: Final = 16
SORTS: Final = ("name", "load", "pool")
KEYS: Final = "q quit   s sort: {sort}   a {other}"


class Line(NamedTuple):
    """A line of the screen."""

    text: str
    bold: bool = False


class View:
    """What is on the screen, from one reading to the next.

    Args:
        url: the factory's.

    Attributes:
        trouble: why there is no new reading, if that is so.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._readings: collections.deque[Reading] = collections.deque(maxlen=SPAN_READINGS_MAX)
        self._sort = 0
        self._since_start = False
        self.trouble = ""

    def take(self, reading: Reading) -> None:
        """A new reading."""
        self._readings.append(reading)
        self.trouble = ""

    def press(self, key: str) -> None:
        """A key: ``s`` sorts workers in another way, ``a`` shows another span."""
        if key == "s":
            self._sort = (self._sort + 1) % len(SORTS)
        elif key == "a":
            self._since_start = not self._since_start

    def facts(self) -> Facts | None:
        """What the factory did in the span that is shown; None before the first reading."""
        if not self._readings:
            return None
        now, first = self._readings[-1], self._readings[0]
        recent = self._readings[-min(RATE_READINGS + 1, len(self._readings))]
        single = now is first
        before = None if self._since_start or single else first
        return facts_of(now, before, None if single else recent)

    def lines(self, columns: int, rows: int) -> list[Line]:
        """The screen, at most so many rows of at most so many columns."""
        columns, rows = max(columns, COLUMNS_MIN), max(rows, ROWS_MIN)
        facts = self.facts()
        found = [Line(f"tokenworks top   {self._url}", bold=True)]
        if self.trouble:
            found.append(Line(f"No answer, trying again: {self.trouble}", bold=True))
        if facts is not None:
            found += [*_summary(facts), Line(""), *_tiers(facts), Line("")]
            found += _workers(facts, SORTS[self._sort], rows - len(found) - 1)
        other = "last minute" if self._since_start else "since the start"
        found = found[: rows - 1]
        found.append(Line(KEYS.format(sort=SORTS[self._sort], other=other)))
        return [Line(line.text[:columns].rstrip(), line.bold) for line in found]


def plain(facts: Facts, url: str) -> str:
    """All of it once, without a screen."""
    found = [Line(f"tokenworks top   {url}"), *_summary(facts), Line(""), *_tiers(facts), Line("")]
    found += _workers(facts, "name", len(facts.workers) + 1)
    return "\n".join(line.text.rstrip() for line in found)


def _summary(facts: Facts) -> list[Line]:
    up = sum(worker.up for worker in facts.workers)
    refused = ", ".join(f"{code} {count}" for code, count in sorted(facts.refusals.items()))
    span = "since the start" if facts.since_start else f"last {facts.span_s:.0f} s"
    margin = None
    if facts.revenue_dollars > 0:
        margin = 1 - facts.cost_dollars / facts.revenue_dollars
    requests = "request" if facts.open_requests == 1 else "requests"
    return [
        Line(
            f"workers    {up} of {len(facts.workers)} up, {facts.open_requests} {requests} open, "
            f"{facts.queued} waiting   [{span}]"
        ),
        Line(
            f"requests   {number(facts.answers_per_s)}/s answered, "
            f"{number(facts.refusals_per_s)}/s refused{': ' + refused if refused else ''}"
        ),
        Line(
            f"tokens     {number(facts.output_tokens_per_s)}/s out, "
            f"{number(facts.input_tokens_per_s)}/s in, {percent(facts.cached_share)} of it cached"
        ),
        Line(
            f"money      {dollars(facts.revenue_dollars)} earned, {dollars(facts.cost_dollars)} "
            f"spent, margin {percent(margin)}; per 1M out "
            f"{dollars(facts.earned_dollars_per_mtok)} and {dollars(facts.spent_dollars_per_mtok)}"
        ),
        Line(
            f"ledger     lag {duration(facts.ledger_lag_s)}, commit p99 "
            f"{duration(facts.ledger_commit_s_p99)}, {facts.ledger_unstored} to be stored again"
        ),
    ]


_TIER_COLUMNS: Final[tuple[tuple[str, int, Callable[[TierFacts], str]], ...]] = (
    ("tok/s", 7, lambda tier: number(tier.output_tokens_per_s)),
    ("queued", 7, lambda tier: str(tier.queued)),
    ("wait", 7, lambda tier: duration(tier.wait_s_p50)),
    ("TTFT", 7, lambda tier: duration(tier.ttft_s_p50)),
    ("p99", 7, lambda tier: duration(tier.ttft_s_p99)),
    ("promise", 8, lambda tier: duration(tier.promised_ttft_s)),
    ("tok/s/u", 8, lambda tier: number(tier.tokens_per_s_p50)),
    ("promise", 8, lambda tier: number(tier.promised_tokens_per_s)),
    ("kept", 6, lambda tier: percent(_share(tier.kept, tier.broken))),
    ("$", 7, lambda tier: money(tier.revenue_dollars)),
)


def _share(kept: int, broken: int) -> float | None:
    return kept / (kept + broken) if kept + broken else None


def _tiers(facts: Facts) -> list[Line]:
    head = "tier".ljust(8) + "".join(name.rjust(width) for name, width, _ in _TIER_COLUMNS)
    return [
        Line(head, bold=True),
        *(
            Line(
                tier.tier.ljust(8)
                + "".join(show(tier).rjust(width) for _, width, show in _TIER_COLUMNS)
            )
            for tier in facts.tiers
        ),
    ]


def _workers(facts: Facts, sort: str, rows: int) -> list[Line]:
    """The workers' table in at most so many rows, two at least."""
    order: dict[str, Callable[[WorkerFacts], tuple[object, ...]]] = {
        "name": lambda each: (each.worker,),
        "load": lambda each: (-each.running / max(1, each.slots), each.worker),
        "pool": lambda each: (each.pool, each.worker),
    }
    workers = sorted(facts.workers, key=order[sort])
    head = f"{'worker':<18} {'pool':<12} {'model':<16} {'state':<5} running"
    found = [Line(head, bold=True)]
    room = max(1, rows - 1)
    shown = workers if len(workers) <= room else workers[: room - 1]
    for each in shown:
        full = min(BAR, round(BAR * each.running / max(1, each.slots)))
        bar = f"[{'#' * full}{'.' * (BAR - full)}] {each.running}/{each.slots}" if each.up else ""
        state = "up" if each.up else "down"
        found.append(
            Line(
                f"{cut(each.worker, 18):<18} {cut(each.pool, 12):<12} {cut(each.model, 16):<16} "
                f"{state:<5} {bar}"
            )
        )
    if len(shown) < len(workers):
        found.append(Line(f"and {len(workers) - len(shown)} more in a taller window"))
    return found


def cut(text: str, width: int) -> str:
    """A text in so many columns.

    >>> cut("meta-llama/Llama-3.1-8B", 10)
    'meta-llam~'
    """
    return text if len(text) <= width else text[: width - 1] + "~"


def number(value: float | None) -> str:
    """In five columns or so.

    >>> [number(value) for value in (None, 0, 0.25, 12.34, 1234.5, 250_000, 3.2e9)]
    ['-', '0', '0.25', '12.3', '1,234', '250k', '3200M']
    """
    if value is None:
        return "-"
    if value >= 1e7:
        return f"{value / 1e6:.0f}M"
    if value >= 1e5:
        return f"{value / 1e3:.0f}k"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """In six columns.

    >>> [duration(value) for value in (None, 0.0, 0.0004, 0.0123, 0.5, 2.5, 600.0)]
    ['-', '0ms', '0.4ms', '12ms', '500ms', '2.5s', '600s']
    """
    if seconds is None:
        return "-"
    if seconds >= 100:
        return f"{seconds:.0f}s"
    if seconds >= 1:
        return f"{seconds:.3g}s"
    ms = seconds * 1_000
    return f"{ms:.0f}ms" if ms >= 10 or ms == 0 else f"{ms:.2g}ms"


def percent(share: float | None) -> str:
    """A share of one; 100 % is all of it, nothing less.

    >>> [percent(share) for share in (None, 0.0, 0.999, 1.0)]
    ['-', '0%', '99%', '100%']
    """
    return "-" if share is None else f"{int(share * 100)}%"


def money(value: float) -> str:
    """Dollars in five columns.

    >>> [money(value) for value in (0.0, 0.00012, 1.234, 250.0, 12_345.6)]
    ['0', '0.0001', '1.23', '250', '12.3k']
    """
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1_000:.1f}k"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 0.01 else f"{value:.4f}"


def dollars(value: float | None) -> str:
    """The same with its sign.

    >>> dollars(1.234), dollars(None)
    ('$1.23', '-')
    """
    return "-" if value is None else f"${money(value)}"
