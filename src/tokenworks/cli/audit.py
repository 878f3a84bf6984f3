"""``tokenworks audit``: who changed what, and the proof that the list is whole."""

from __future__ import annotations

from typing import Any, get_args

import click
import msgspec

from tokenworks.cli.ledger_at import ledger_at
from tokenworks.cli.listing import Listing
from tokenworks.cli.table import show
from tokenworks.core.errors import LedgerCorrupt
from tokenworks.ledger.audit_log import AuditRecord, Outcome, verify
from tokenworks.ledger.blocks import parse_head
from tokenworks.ledger.dates import time_text
from tokenworks.ledger.quota_records import UNIX_NS_MAX
from tokenworks.live.home import Home

LIST_MAX = 1_000


@click.group(cls=Listing)
def command() -> None:
    """Who changed which key, limit or price, when and from where.

    Each change writes its record in the same step, and what was refused is in the list, too. No
    secret stands in it. Each record holds the hash of the one before it.
    """


@command.command(name="list")
@click.option("--tenant", help="Only what is this tenant's.")
@click.option("--action", help="Only this action, such as key.create.")
@click.option("--by", help="Only what this key, person or user has done.")
@click.option(
    "--outcome", type=click.Choice(get_args(Outcome)), help="Only what was done, or was refused."
)
@click.option("--before", type=click.IntRange(min=1), help="Only records before this number.")
@click.option(
    "--limit",
    type=click.IntRange(1, LIST_MAX),
    default=50,
    show_default=True,
    help="At most so many, the newest first.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, with what was before and after.")
@click.pass_obj
def list_records(
    home: Home,
    /,
    tenant: str | None,
    action: str | None,
    by: str | None,
    outcome: Outcome | None,
    before: int | None,
    limit: int,
    *,
    as_json: bool,
) -> None:
    """The latest records, the newest first."""
    found: list[AuditRecord] = []
    if home.has_ledger():
        with ledger_at(home) as store:
            found = store.audit_records(
                before_seq=UNIX_NS_MAX if before is None else before,
                limit=limit,
                tenant=tenant,
                action=action,
                actor=by,
                outcome=outcome,
            )
    if as_json:
        rows = [{**msgspec.to_builtins(each), "at": time_text(each.at_unix_ns)} for each in found]
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
        return
    show([_row(each) for each in found], as_json=False, empty="Nothing is written down here yet.")


def _row(record: AuditRecord) -> dict[str, Any]:
    who = record.by
    row = {
        "by": f"{who.kind} {who.id}" + (f" ({who.name})" if who.name else ""),
        "from": who.source,
        "action": record.action,
        "with": record.subject,
        "tenant": record.tenant,
        "outcome": record.outcome if record.error is None else f"{record.outcome}: {record.error}",
    }
    shown = {name: None if text is None else _shown(text) for name, text in row.items()}
    return {"seq": record.seq, "at": time_text(record.at_unix_ns), **shown}


def _shown(text: str) -> str:
    """A text as a terminal may have it: whoever was refused may have written anything into it.

    >>> _shown("key_" + chr(27) + "[31m")
    'key_?[31m'
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@command.command(name="verify")
@click.option(
    "--expect",
    multiple=True,
    metavar="SEQ:HASH",
    help="What verify printed as the log's end at some time.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def verify_log(home: Home, expect: tuple[str, ...], *, as_json: bool) -> None:
    """Read the whole log, and prove that no record was changed, removed or put in.

    Who can write to the database can also make a whole log anew, or cut its end off, and nothing in
    the database shows that. So keep what is printed as its end somewhere else, and give it back by
    --expect: all up to there must be as it was then. Ends with 1 if it is not.
    """
    expected = [parse_head(text) for text in expect]
    try:
        with ledger_at(home) as store:
            head = verify(store.audit_payloads(), expected)
    except LedgerCorrupt as error:
        raise LedgerCorrupt(
            error.message, hint="Keep the ledger as it is, and compare it with a copy."
        ) from error
    if as_json:
        click.echo(msgspec.json.encode({"records": head.seq, "head": str(head)}).decode())
        return
    records = "record" if head.seq == 1 else "records"
    click.echo(f"{head.seq:,} {records}, and none was changed. The log ends with {head}")
