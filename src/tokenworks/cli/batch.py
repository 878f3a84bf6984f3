"""``tokenworks batch``: list, show, cancel and copy tenants' batches."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import click
import msgspec

from tokenworks.cli.listing import Listing
from tokenworks.cli.table import show as show_rows
from tokenworks.core.batches import Batch
from tokenworks.core.errors import InvalidRequest, NotFound
from tokenworks.core.ids import TenantID
from tokenworks.gateway.batches import told
from tokenworks.live.batch_room import StoredBatches
from tokenworks.live.clock import SystemClock
from tokenworks.live.home import Home


@click.group(cls=Listing)
def command() -> None:
    """List, show, cancel and copy tenants' batches, whether the factory runs or not.

    Callers begin them with POST /v1/batches.
    """


@command.command("list")
@click.option("--tenant", help="Only this tenant's.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def list_(home: Home, /, tenant: str | None, limit: int, *, as_json: bool) -> None:
    """Batches, the newest first."""
    with contextlib.closing(_open(home)) as room:
        found = room.known(tenant=None if tenant is None else TenantID(tenant), limit=limit)
    show_rows([_row(batch) for batch in found], as_json=as_json, empty="There are no batches.")


@command.command()
@click.argument("batch")
@click.pass_obj
def show(home: Home, /, batch: str) -> None:
    """All that is known of a batch, as JSON."""
    with contextlib.closing(_open(home)) as room:
        _print(_find(room, batch))


@command.command()
@click.argument("batch")
@click.pass_obj
def cancel(home: Home, /, batch: str) -> None:
    """End a batch now; a factory that runs writes its files within a second."""
    with contextlib.closing(_open(home)) as room:
        found = _find(room, batch)
        unix_ns = SystemClock().unix_ns()
        cancelled = asyncio.run(room.cancel(found.tenant, found.id, unix_ns))
    assert cancelled is not None, batch
    _print(cancelled)


@command.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def backup(home: Home, /, folder: Path, *, as_json: bool) -> None:
    """Copy all batches, and the files that they read and write, to FOLDER.

    A factory may go on. A file is missing whose tenant deletes it meanwhile. Copy the ledger first,
    by `tokenworks ledger backup`: what has ended in this copy and not in that one was not billed,
    and nothing is billed twice. To restore, move `batches.sqlite`, what SQLite has beside it
    (`-wal`, `-shm`) and `files` away, and put the copies there, with the ledger, before
    `tokenworks up`.
    """
    if not home.has_batches():
        raise InvalidRequest("There are no batches and files yet.", hint="Compare --home.")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        empty = not any(folder.iterdir())
    except OSError as error:
        raise InvalidRequest(
            f"{str(folder)!r} cannot be used: {error.strerror}.", hint="Name another folder."
        ) from error
    if not empty:
        raise InvalidRequest(f"{str(folder)!r} is not empty.", hint="Name another folder.")
    with contextlib.closing(home.open_batches()) as room:
        files, missing = room.copy_to(folder)
    row = {"folder": str(folder), "files": files, "missing": missing}
    show_rows([row], as_json=as_json, empty="")


def _open(home: Home) -> StoredBatches:
    home.make()
    return home.open_batches()


def _find(room: StoredBatches, batch: str) -> Batch:
    found = room.known(batch=batch, limit=1)
    if not found:
        raise NotFound(f"There is no batch {batch!r}.", hint="`tokenworks batch list` lists them.")
    return found[0]


def _row(batch: Batch) -> dict[str, Any]:
    return {
        "batch": batch.id,
        "tenant": batch.tenant,
        "key": batch.key,
        "endpoint": batch.endpoint,
        "status": batch.status.value,
        "total": batch.total,
        "completed": batch.completed,
        "failed": batch.failed,
    }


def _print(batch: Batch) -> None:
    more = {"tenant": batch.tenant, "key": batch.key}
    click.echo(msgspec.json.format(msgspec.json.encode({**told(batch), **more}), indent=2))
