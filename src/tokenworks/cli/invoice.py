"""``tokenworks invoice``: what a tenant owes for a month, on screen, as JSON or as PDF."""

from __future__ import annotations

import datetime
import difflib
import itertools
from collections.abc import Iterable
from pathlib import Path

import click
import msgspec

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.cli.table import show
from tokenworks.core.errors import InvalidRequest, LedgerCorrupt
from tokenworks.core.ids import PriceID, TenantID
from tokenworks.core.units import NS_PER_S, dollars_text
from tokenworks.ledger.audit import kept_book
from tokenworks.ledger.invoices import (
    Invoice,
    check_ended,
    decimal_text,
    entries_agree,
    invoice_json,
    make_invoice,
    price_ids,
)
from tokenworks.ledger.quotas import window_start
from tokenworks.ledger.rollup import RollupRow
from tokenworks.live.home import Home
from tokenworks.live.store import SQLStore

MONTH_HELP = "Year and month, UTC, like 2026-11.  [default: the last; with --draft, this one]"


@click.command()
@click.argument("tenant")
@click.option(
    "--month",
    help=MONTH_HELP,
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--pdf", type=click.Path(dir_okay=False, path_type=Path), help="Write a PDF.")
@click.option("--from-entries", is_flag=True, help="Redo it from every entry, and compare.")
@click.option("--draft", is_flag=True, help="Also before the month is over.")
@click.pass_obj
def command(
    home: Home,
    tenant: str,
    month: str | None,
    pdf: Path | None,
    *,
    as_json: bool,
    from_entries: bool,
    draft: bool,
) -> None:
    """The invoice of TENANT for a month, line by line.

    Lines are exact; what rounding each answer to a nano-dollar adds up to is shown beside them.
    """
    from tokenworks.live.clock import SystemClock

    unix_ns = SystemClock().unix_ns()
    month = month or default_month(unix_ns, draft=draft)
    since, until = check_ended(month, unix_ns, draft=draft)
    store = open_ledger(home)
    try:
        # A factory may go on: what it appends from here on is in neither.
        rows, last = store.rollups_and_last(since, until)
        check_tenant(store, rows, tenant)
        books = kept_books(store, price_ids(rows, TenantID(tenant)))
        made = make_invoice(TenantID(tenant), month, rows, books, unix_ns, draft=draft)
        counted = itertools.takewhile(lambda block: block.seq <= last, store.blocks())
        if from_entries and not entries_agree(made, counted):
            raise LedgerCorrupt(
                "The entries give another invoice than their sums do.",
                hint="`ledger verify` says which; `ledger rebuild` makes the sums again.",
            )
    finally:
        store.close()
    if as_json:
        click.echo(msgspec.json.format(invoice_json(made), indent=2))
    else:
        _show(made)
        if from_entries:
            click.echo("Redone from the entries: equal.")
    if pdf is not None:
        from tokenworks.cli.invoice_pdf import write_pdf

        write_pdf(made, pdf)
        click.echo(f"Written to {pdf}.", err=True)


def default_month(unix_ns: int, *, draft: bool) -> str:
    """The month that is meant where none is named: the last that has ended, or the present one.

    >>> default_month(1_767_312_000_000_000_000, draft=False)  # 2026-01-02
    '2025-12'
    """
    start = window_start("month", unix_ns)
    if not draft:
        start = window_start("month", start - 1)
    return datetime.datetime.fromtimestamp(start // NS_PER_S, datetime.UTC).strftime("%Y-%m")


def open_ledger(home: Home) -> SQLStore:
    """The factory's ledger, which must be there.

    Raises:
        InvalidRequest: there is none.
    """
    if not home.has_ledger():
        raise InvalidRequest("There is no ledger.", hint="`tokenworks up` starts one.")
    return home.open_ledger()


def check_tenant(store: SQLStore, rows: Iterable[RollupRow], tenant: str) -> None:
    """A tenant is one that has a key, or that something was billed to.

    Raises:
        InvalidRequest: neither.
    """
    known = {str(row.payer.tenant) for row in rows} | {key.tenant for key in store.load_keys()}
    known.discard("")  # of what no tenant caused
    if tenant in known:
        return
    near = difflib.get_close_matches(tenant, sorted(known), cutoff=0.5) or sorted(known)[:3]
    raise InvalidRequest(
        f"There is no tenant {tenant!r}: no key names it, and nothing is billed to it.",
        hint=f"Is it {' or '.join(near)}?" if near else "`tokenworks key list` names tenants.",
    )


def kept_books(store: SQLStore, ids: Iterable[PriceID]) -> dict[PriceID, PriceBook]:
    """The price books that the ledger keeps under some ids; those it lacks are left out.

    Raises:
        LedgerCorrupt: one was changed since.
    """
    texts = {each: store.load_price_book(each) for each in ids}
    return {each: kept_book(each, text) for each, text in texts.items() if text is not None}


def _show(made: Invoice) -> None:
    click.echo(f"Invoice {made.number}{' (draft)' if made.draft else ''}, {made.answers} answers\n")
    rows = [
        {
            "model": line.model,
            "tier": line.tier.value,
            "price book": line.price_id,
            "batch": line.batch,
            "tokens of": line.token_class.removesuffix("_tokens"),
            "tokens": line.tokens,
            "list $ per 1M": decimal_text(line.list_udollars_per_mtok, 6, 2),
            "rate %": decimal_text(line.rate_ppm, 4),
            "amount $": decimal_text(line.amount_attodollars, 18, 2),
        }
        for line in made.lines
    ]
    show(rows, as_json=False, empty="Nothing is billed.")
    click.echo(f"\nRounding ${decimal_text(made.rounding_attodollars, 18, 2)}")
    click.echo(f"Credits  ${dollars_text(made.credits_nanodollars)}")
    click.echo(f"Total    ${dollars_text(made.total_nanodollars)}")
    click.echo(f"Due      ${decimal_text(made.total_cents, 2, 2)}")
    click.echo(f"Content  {made.content_hash}")
