"""``tokenworks ledger``: prove the books, copy them, look an answer up."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.cli.listing import Listing
from tokenworks.cli.table import show
from tokenworks.core.errors import ConfigInvalid, InvalidRequest
from tokenworks.core.ids import PriceID
from tokenworks.core.units import dollars_text
from tokenworks.ledger.audit import Audit, Finding, kept_book
from tokenworks.ledger.blocks import ChainHead, parse_head
from tokenworks.live.home import Home
from tokenworks.live.store import SQLStore

PROGRESS_BLOCKS = 256


@click.group(cls=Listing)
def command() -> None:
    """Prove the ledger, copy it, and look answers up.

    The ledger is a chain of blocks of entries; everything else is made from them and can be made
    again.
    """


def _there(home: Home) -> None:
    if not home.has_ledger():
        raise InvalidRequest("There is no ledger yet.", hint="`tokenworks up` starts one.")


@command.command()
@click.option(
    "--expect",
    multiple=True,
    metavar="SEQ:HASH",
    help="What verify printed, or the factory logged, as the chain's end at some time.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def verify(home: Home, expect: tuple[str, ...], *, as_json: bool) -> None:
    """Read every entry, redo every sum, and compare.

    Finds a changed byte in any old entry, a block that was removed or moved, an answer that was
    billed twice or without a reservation, a price that is not the book's, and sums and lists of
    open reservations that are not those of the entries. It may run beside a factory. Ends with 1
    if it finds something.

    Who can write to the database can also make a whole chain anew, or cut its end off, and nothing
    in the database shows that. So keep what is printed as the chain's end somewhere else, and give
    it back by --expect: all up to there must be as it was then.
    """
    _there(home)
    expected = [parse_head(text) for text in expect]
    store = home.open_ledger()
    try:
        with _bar(sum(store.block_numbers().values()), quiet=as_json) as bar:
            audit, findings = audited(store, bar.update, expected)
    finally:
        store.close()
    found = [msgspec.to_builtins(each) for each in findings]
    seen = {
        "blocks": audit.progress.blocks,
        "entries": audit.progress.entries,
        "open_holds": len(audit.open_holds()),
        "head": str(audit.head),
        "findings": found,
    }
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(seen), indent=2))
    else:
        for row in found:
            where = "" if row["block"] is None else f"block {row['block']}: "
            click.echo(where + row["what"])
        click.echo(
            f"{seen['entries']:,} entries in {seen['blocks']:,} blocks, {seen['open_holds']} "
            f"reservations open: {'all is well' if not found else f'{len(found)} findings'}."
        )
        click.echo(f"The chain ends with {audit.head}")
    if found:
        sys.exit(1)


@command.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def backup(home: Home, file: Path, *, as_json: bool) -> None:
    """Copy the ledger to FILE; a factory may go on writing.

    The copy is whole and of one moment. Prove it with `tokenworks ledger verify` in a folder of
    its own, as `ledger.sqlite`. Tenants' batches and files are not in it: copy them after it, by
    `tokenworks batch backup`.
    """
    from tokenworks.live.sqlite import copy_database

    _there(home)
    source = home.ledger_file()
    if source is None:
        raise ConfigInvalid(
            "The ledger is in a database server.", hint="Copy it with pg_dump, which may run now."
        )
    if file.exists():
        raise InvalidRequest(f"{str(file)!r} is there already.", hint="Name another file.")
    copy_database(source, file)
    file.chmod(0o600)
    row = {"file": str(file), "bytes": file.stat().st_size}
    show([row], as_json=as_json, empty="")


@command.command(name="show")
@click.argument("request")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def show_request(home: Home, request: str, *, as_json: bool) -> None:
    """Every entry of REQUEST (its id, as `x-request-id` says it), and its sum redone."""
    from tokenworks.ledger.entries import Posted

    _there(home)
    found = _entries_of(home, request)
    if not found:
        raise InvalidRequest(
            f"No entry of {request!r} is in the ledger.",
            hint="The id is in the answer's header x-request-id.",
        )
    rows = [{"kind": entry.__struct_config__.tag, **_fields(entry)} for entry in found]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
        return
    for row, entry in zip(rows, found, strict=True):
        click.echo(click.style(str(row.pop("kind")), bold=True))
        for name, value in row.items():
            click.echo(f"  {name} = {value}")
        if isinstance(entry, Posted):
            click.echo(f"  {_redone(entry)}")


@command.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def rebuild(home: Home, *, as_json: bool) -> None:
    """Make the sums behind reports and invoices again from the entries.

    Needed only if `verify` finds that they differ. Stop every factory that uses the ledger before:
    it takes about a minute for a million entries, and nobody else can write meanwhile.
    """
    from tokenworks.live.clock import SystemClock

    _there(home)
    store = home.open_ledger(sole=True)
    try:
        entries = store.rebuild_sums(SystemClock().unix_ns())
    finally:
        store.close()
    show([{"entries": entries}], as_json=as_json, empty="")


def audited(
    store: SQLStore, step: Callable[[int], object], expected: Sequence[ChainHead] = ()
) -> tuple[Audit, list[Finding]]:
    """An audit of everything that a store has, and what it has found.

    Args:
        store: a factory may be writing to it.
        step: called with a number of blocks whenever so many more are read.
        expected: see ``Audit``.

    Raises:
        ConfigInvalid, LedgerCorrupt: a price book that is kept cannot be read, or was changed.
    """
    books: dict[PriceID, PriceBook] = {}
    audit = Audit(books, expected)
    blocks = store.blocks()
    # A book is kept before anything is billed by it, so the books are read after the blocks.
    begun = list(itertools.islice(blocks, 1))
    _learn_books(store, books)
    for progress in audit.read(itertools.chain(begun, blocks)):
        if progress.blocks % PROGRESS_BLOCKS == 0:
            step(PROGRESS_BLOCKS)
    # A factory has gone on meanwhile; its sums are of the moment in which they are read.
    since = store.since(audit.progress.blocks)
    _learn_books(store, books)
    list(audit.read(since.blocks))
    return audit, audit.finish(since.sums, since.numbers, since.holds)


def _learn_books(store: SQLStore, books: dict[PriceID, PriceBook]) -> None:
    """Read the price books that are kept and are not known yet."""
    for price_id in store.price_ids():
        if price_id not in books:
            text = store.load_price_book(price_id)
            assert text is not None, price_id
            books[price_id] = kept_book(price_id, text)


def _entries_of(home: Home, request: str) -> list[Any]:
    """A request's entries; blocks that do not name it are not decoded."""
    from tokenworks.ledger.blocks import decode_entries

    name = request.encode()
    found: list[Any] = []
    store = home.open_ledger()
    try:
        numbers = store.block_numbers()
        with _bar(sum(numbers.values()), quiet=False) as bar:
            for block in store.blocks():
                if name in block.payload:
                    found += [each for each in decode_entries(block) if each.request == request]
                if block.seq % PROGRESS_BLOCKS == 0:
                    bar.update(PROGRESS_BLOCKS)
    finally:
        store.close()
    return found


def _bar(length: int, *, quiet: bool) -> Any:
    """A progress bar on standard error, where somebody is looking."""
    hidden = quiet or not sys.stderr.isatty()
    return click.progressbar(length=length, label="Reading blocks", file=sys.stderr, hidden=hidden)


def _fields(entry: Any) -> dict[str, Any]:
    """An entry's fields by name; records in it, too."""

    def plain(value: Any) -> Any:
        if isinstance(value, msgspec.Struct):
            return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
        return value

    return {name: plain(getattr(entry, name)) for name in entry.__struct_fields__}


def _redone(entry: Any) -> str:
    from tokenworks.core.orders import TOKEN_CLASSES
    from tokenworks.ledger.metering import sums_hold

    prices = entry.price.__struct_fields__
    parts = [
        f"{tokens} x {getattr(entry.price, price)}"
        for name, price in zip(TOKEN_CLASSES, prices, strict=True)
        if (tokens := getattr(entry.usage, name))
    ]
    held = "holds" if sums_hold(entry) else "DOES NOT HOLD"
    rate = f" x {entry.rate_ppm}/1,000,000" if entry.rate_ppm != 1_000_000 else ""
    charged = dollars_text(entry.charged_nanodollars)
    return f"({' + '.join(parts) or '0'}) / 1000{rate} nano-dollars = ${charged}: the sum {held}"
