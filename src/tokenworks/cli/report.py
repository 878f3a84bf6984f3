"""``tokenworks report``: tokens, revenue, cost and margin, straight from the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import click
import msgspec

from tokenworks.cli.table import show
from tokenworks.core.errors import InvalidRequest
from tokenworks.core.units import TOKENS_PER_MTOK, divide_half_even
from tokenworks.live.home import Home

NANODOLLARS_PER_PART = 100_000
_SUMS = (
    *("requests", "input", "cached", "output"),
    *("revenue_nanodollars", "ads_nanodollars", "cost_nanodollars"),
)
_BY = ("tier", "tenant", "pool", "key", "model")


@click.command()
@click.option("--by", type=click.Choice(_BY), default="tier", show_default=True, help="Group by.")
@click.option("--hours", type=click.FloatRange(min=0), help="Only the last so many hours.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Draw it to a file.")
@click.pass_obj
def command(home: Home, by: str, hours: float | None, png: Path | None, *, as_json: bool) -> None:
    """Tokens, revenue, cost and margin from the ledger.

    Revenue counts at the tier that was delivered. Cost is the answers' share of their workers'
    energy and capital; what nobody used is the row "(idle)".
    """
    from tokenworks.live.clock import SystemClock
    from tokenworks.live.report_store import pool_costs, report_rows, tier_rows

    since = None
    if hours is not None:
        since = SystemClock().unix_ns() - int(hours * 3_600_000_000_000)
    group = cast(Literal["tier", "tenant", "pool", "key", "model"], by)
    rows: list[dict[str, Any]] = []
    moved: list[dict[str, Any]] = []
    if home.ledger.exists():
        rows = [_row(by, row) for row in report_rows(home.ledger, group, since_unix_ns=since)]
        costs = pool_costs(home.ledger, since_unix_ns=since)
        idle = sum(max(0, cost.idle_nanodollars) for cost in costs)
        if rows or idle:
            rows.append(_idle_row(by, idle))
            rows.append(_total_row(by, rows))
        moved = [
            {"asked": row.tier_asked, "delivered": row.tier_delivered, "requests": row.requests}
            for row in tier_rows(home.ledger, since_unix_ns=since)
        ]
    if as_json:
        text = msgspec.json.encode({"by": by, "rows": rows, "asked_and_delivered": moved})
        click.echo(msgspec.json.format(text, indent=2))
    else:
        show(rows, as_json=False, empty="The ledger is empty; `tokenworks up` starts one.")
        below = [row for row in moved if row["asked"] != row["delivered"]]
        if below:
            click.echo("\nDelivered below the tier asked for, and billed as delivered:")
            show(below, as_json=False, empty="")
    if png is not None:
        from tokenworks.cli.picture import draw_report

        if not rows:
            raise InvalidRequest("There is nothing to draw.", hint="Ask the factory something.")
        draw_report(rows, by, png)
        click.echo(f"Drawn to {png}.", err=True)


def _row(by: str, row: Any) -> dict[str, Any]:
    return _line(
        by,
        row.name,
        requests=row.requests,
        input=row.input_tokens,
        cached=row.cached_input_tokens,
        output=row.output_tokens,
        revenue_nanodollars=row.charged_nanodollars,
        ads_nanodollars=row.ad_income_nanodollars,
        cost_nanodollars=row.cost_nanodollars,
    )


def _line(by: str, name: str, **sums: int) -> dict[str, Any]:
    """One line of the report: a name, its sums, and what follows from them."""
    earned = sums["revenue_nanodollars"] + sums["ads_nanodollars"]
    cost = sums["cost_nanodollars"]
    ratios = _per_mtok(earned, cost, sums["output"])
    return {by: name, **sums, "margin_nanodollars": earned - cost, **ratios}


def _per_mtok(earned: int, cost: int, output: int) -> dict[str, str | None]:
    """Dollars per 1M output tokens, to a hundredth of a cent."""

    def text(nanodollars: int) -> str | None:
        if not output:
            return None
        parts = divide_half_even(nanodollars * TOKENS_PER_MTOK, output * NANODOLLARS_PER_PART)
        return f"{parts // 10_000}.{parts % 10_000:04d}"

    return {"earned_usd_per_mtok": text(earned), "cost_usd_per_mtok": text(cost)}


def _idle_row(by: str, idle: int) -> dict[str, Any]:
    return _line(by, "(idle)", **(dict.fromkeys(_SUMS, 0) | {"cost_nanodollars": idle}))


def _total_row(by: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return _line(by, "total", **{name: sum(row[name] for row in rows) for name in _SUMS})
