"""``tokenworks report``: tokens, revenue, cost and margin, straight from the ledger."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import click
import msgspec

from tokenworks.cli.ledger_at import ledger_at
from tokenworks.cli.period import Period, parse_period
from tokenworks.cli.table import show
from tokenworks.core.errors import InvalidRequest
from tokenworks.core.slo import Tier
from tokenworks.core.units import TOKENS_PER_MTOK, divide_half_even
from tokenworks.ledger.dates import time_text
from tokenworks.ledger.quotas import window_end, window_start
from tokenworks.ledger.reports import (
    DIMENSIONS,
    OF_PAYER,
    OF_POOLS,
    Dimension,
    Line,
    asked_and_delivered,
    report_lines,
    total_line,
)
from tokenworks.ledger.rollup import PayerField, RollupRow
from tokenworks.ledger.store_port import LedgerStore
from tokenworks.live.home import Home

FILTERS: Final[tuple[Dimension, ...]] = (
    *("tenant", "team", "engineer", "key", "agent", "run", "model", "pool"),
)
NANODOLLARS_PER_PART: Final = 100_000


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    for name in reversed(FILTERS):
        command = click.option(f"--{name}", help=f"Only answers of this {name}.")(command)
    return command


@click.command()
@click.option(
    "--by", multiple=True, type=click.Choice(DIMENSIONS), help="Group by.  [default: tier]"
)
@click.option("--hours", type=click.FloatRange(min=0), help="Only the last so many hours.")
@click.option("--month", help="Only this month, such as 2026-11.")
@click.option(
    "--since", help="Only from then on: a date, or a whole hour such as 2026-11-01T13:00."
)
@click.option("--until", help="Only before then.")
@click.option(
    "--tier", type=click.Choice([tier.value for tier in Tier]), help="Only delivered at this tier."
)
@_filters
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Draw it to a file.")
@click.pass_obj
def command(
    home: Home,
    /,
    by: tuple[Dimension, ...],
    png: Path | None,
    *,
    as_json: bool,
    **given: Any,
) -> None:
    """Tokens, revenue, cost and margin from the ledger.

    Give --by several times to group by several things at once: `report --by month --by tenant`.
    Times are UTC, in whole hours, by when an answer was asked for.

    Revenue is charges less credits, and counts at the tier that was delivered. Cost is the answers'
    share of their workers' energy and capital; what nobody used is the row "(idle)", or, by pool
    and time, part of its group. It is below zero for the seconds until a pool's cost is written.
    Reservations that were given back are counted only by ending.
    """
    from tokenworks.live.clock import SystemClock

    now_unix_ns = SystemClock().unix_ns()
    times = {name: given.pop(name) for name in ("since", "until", "hours", "month")}
    period = parse_period(now_unix_ns, **times)
    where = {cast(Dimension, name): value for name, value in given.items() if value is not None}
    by = tuple(dict.fromkeys(by)) or ("tier",)
    rows = _read(home, {*by, *where}, where, period, now_unix_ns)
    lines = report_lines(rows, by, where)
    if lines:
        names = ("total", *(None,) * (len(by) - 1))
        lines.append(total_line(lines)._replace(names=names))
    moved = [
        {"asked": asked.value, "delivered": delivered.value, "requests": requests}
        for asked, delivered, requests in asked_and_delivered(rows, where)
    ]
    table = [_named(by, line) | _measures(line) for line in lines]
    if as_json:
        ends = {"since": period.since_unix_ns, "until": period.until_unix_ns}
        said = {
            "by": by,
            **{name: None if at is None else time_text(at) for name, at in ends.items()},
        }
        text = msgspec.json.encode(said | {"rows": table, "asked_and_delivered": moved})
        click.echo(msgspec.json.format(text, indent=2))
    else:
        below = [row for row in moved if row["asked"] != row["delivered"]]
        _say(by, table, below, period, narrowed=bool(where))
    if png is not None:
        from tokenworks.cli.picture import draw_report

        if not table:
            raise InvalidRequest("There is nothing to draw.", hint="Ask the factory something.")
        draw_report(table, by, png)
        click.echo(f"Drawn to {png}.", err=True)


def _read(
    home: Home,
    by: Collection[Dimension],
    where: Mapping[Dimension, str],
    period: Period,
    now_unix_ns: int,
) -> list[RollupRow]:
    """The ledger's sums over a period, split as finely as the grouping needs."""
    if not home.has_ledger():
        return []
    of = {cast(PayerField, name): value for name, value in where.items() if name in OF_PAYER}
    with ledger_at(home) as store:
        read = functools.partial(
            store.rollups,
            by_payer=not OF_PAYER.isdisjoint(by),
            by_agent="agent" in by,
            by_run="run" in by,
            of=of or None,
        )
        if "hour" in by or "day" in by:
            return read(*period, by_hour=True)
        if "month" not in by:
            return read(*period)
        return [
            row._replace(start_unix_ns=month)
            for month, since, until in _months(store, period, now_unix_ns)
            for row in read(since, until)
        ]


def _months(
    store: LedgerStore, period: Period, now_unix_ns: int
) -> Iterator[tuple[int, int, int | None]]:
    """The months of a period: the start of each, and from when to when the period has part of it.

    Without a start it begins a month before the first block, whose cost reaches back a little.
    """
    since, until = period
    if since is None:
        first = next(iter(store.blocks()), None)
        if first is None:
            return
        month = window_start("month", max(0, window_start("month", first.at_unix_ns) - 1))
        since = 0
    else:
        month = window_start("month", since)
    end = now_unix_ns if until is None else until
    while since < end:
        stop = window_end("month", month)
        yield month, since, until if stop >= end else stop
        month = since = stop


def _named(by: Sequence[Dimension], line: Line) -> dict[str, Any]:
    return dict(zip(by, line.names, strict=True))


def _measures(line: Line) -> dict[str, Any]:
    return {
        "requests": line.requests,
        "input": line.input_tokens,
        "cached": line.tokens["cached_input_tokens"],
        "output": line.output_tokens,
        "tokens": line.tokens,
        "charged_nanodollars": line.charged_nanodollars,
        "credited_nanodollars": line.credited_nanodollars,
        "revenue_nanodollars": line.revenue_nanodollars,
        "ads_nanodollars": line.ad_income_nanodollars,
        "energy_nanodollars": line.energy_nanodollars,
        "capital_nanodollars": line.capital_nanodollars,
        "idle_nanodollars": line.idle_nanodollars,
        "cost_nanodollars": line.cost_nanodollars,
        "margin_nanodollars": line.margin_nanodollars,
        "earned_usd_per_mtok": _per_mtok(line.earned_nanodollars, line.output_tokens),
        "cost_usd_per_mtok": _per_mtok(line.cost_nanodollars, line.output_tokens),
    }


def _per_mtok(nanodollars: int, output: int) -> str | None:
    """Dollars per 1M output tokens, to a hundredth of a cent.

    >>> _per_mtok(3_000, 1_000), _per_mtok(-50, 1_000), _per_mtok(1, 0)
    ('3.0000', '-0.0500', None)
    """
    if not output:
        return None
    parts = divide_half_even(nanodollars * TOKENS_PER_MTOK, output * NANODOLLARS_PER_PART)
    return f"{'-' if parts < 0 else ''}{abs(parts) // 10_000}.{abs(parts) % 10_000:04d}"


def _say(
    by: Sequence[Dimension],
    table: list[dict[str, Any]],
    below: list[dict[str, Any]],
    period: Period,
    *,
    narrowed: bool,
) -> None:
    """Print for people: fewer columns, and what needs a look below."""
    words = period.words()
    hidden = {"tokens", "charged_nanodollars", "energy_nanodollars", "capital_nanodollars"}
    if not any(row["credited_nanodollars"] for row in table):
        hidden.add("credited_nanodollars")
    if not OF_POOLS.issuperset(by) or not any(row["idle_nanodollars"] for row in table):
        hidden.add("idle_nanodollars")  # a row of its own says it, or there is none
    show(
        [{name: value for name, value in row.items() if name not in hidden} for row in table],
        as_json=False,
        empty="The ledger has nothing that fits."
        if words or narrowed
        else "The ledger is empty; `tokenworks up` starts one.",
    )
    if words and table:
        click.echo(f"\nAsked for {words}.")
    if below:
        click.echo("\nDelivered below the tier asked for, and billed as delivered:")
        show(below, as_json=False, empty="")
