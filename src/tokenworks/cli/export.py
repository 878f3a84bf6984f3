"""``tokenworks export``: a month's charges for other programs."""

from __future__ import annotations

import csv
import datetime
import io
from decimal import Decimal
from pathlib import Path

import click

from tokenworks.cli.invoice import MONTH_HELP, check_tenant, default_month, kept_books, open_ledger
from tokenworks.cli.listing import Listing
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import TenantID
from tokenworks.ledger.focus import COLUMNS, FOCUS_VERSION, SCALE, Column, FocusRow, focus_rows
from tokenworks.ledger.invoices import check_ended, price_ids
from tokenworks.ledger.rollup import PayerNames
from tokenworks.live.home import Home


@click.group(cls=Listing)
def command() -> None:
    """Export a month's charges for other programs."""


@command.command()
@click.option(
    "--month",
    help=MONTH_HELP,
)
@click.option("--tenant", help="One tenant's only.")
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), help="To CSV.")
@click.option("--parquet", type=click.Path(dir_okay=False, path_type=Path), help="To Parquet.")
@click.option("--draft", is_flag=True, help="Also before the month is over.")
@click.pass_obj
def focus(
    home: Home,
    month: str | None,
    tenant: str | None,
    csv_file: Path | None,
    parquet: Path | None,
    *,
    draft: bool,
) -> None:
    """Cost and usage as FinOps FOCUS 1.2; CSV to the screen unless a file is named."""
    from tokenworks.live.clock import SystemClock

    unix_ns = SystemClock().unix_ns()
    month = month or default_month(unix_ns, draft=draft)
    since, until = check_ended(month, unix_ns, draft=draft)
    payer = None if tenant is None else TenantID(tenant)
    store = open_ledger(home)
    try:
        of: PayerNames | None = None if tenant is None else {"tenant": tenant}
        sums = store.rollups(since, until, by_hour=True, of=of)
        if tenant is not None:
            check_tenant(store, sums or store.rollups(since, until), tenant)
        books = kept_books(store, price_ids(sums, payer))
    finally:
        store.close()
    rows = focus_rows(month, sums, books, unix_ns, tenant=payer, draft=draft)
    try:
        if csv_file is not None:
            csv_file.write_text(csv_text(rows), encoding="utf-8", newline="")
        if parquet is not None:
            write_parquet(rows, parquet)
    except OSError as error:
        raise ConfigInvalid(
            f"The export cannot be written: {error.strerror}.", hint="Name another file."
        ) from error
    if csv_file is None and parquet is None:
        click.echo(csv_text(rows), nl=False)


def csv_text(rows: list[FocusRow]) -> str:
    """Rows as CSV, a null as nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [column.name for column in COLUMNS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_parquet(rows: list[FocusRow], path: Path) -> None:
    """Rows as Parquet: decimals of 38 digits, times in UTC.

    Raises:
        ConfigInvalid: pyarrow is missing.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigInvalid(
            "Parquet files need pyarrow.", hint="pip install 'tokenworks[export]'"
        ) from error
    types = {
        "string": pa.string(),
        "json": pa.string(),
        "decimal": pa.decimal128(38, SCALE),
        "datetime": pa.timestamp("s", tz="UTC"),
    }
    schema = pa.schema(
        [pa.field(each.name, types[each.type], nullable=each.nullable) for each in COLUMNS],
        metadata={"focus_version": FOCUS_VERSION},
    )
    columns = {each.name: [_value(each, row[each.name]) for row in rows] for each in COLUMNS}
    pq.write_table(pa.table(columns, schema=schema), path)


def _value(column: Column, text: str | None) -> str | Decimal | datetime.datetime | None:
    if text is None:
        return None
    if column.type == "decimal":
        return Decimal(text)
    return datetime.datetime.fromisoformat(text) if column.type == "datetime" else text
