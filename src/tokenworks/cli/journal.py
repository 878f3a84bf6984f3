"""``tokenworks journal``: replay recorded decisions."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import click

from tokenworks.cli.listing import Listing
from tokenworks.cli.policy_file import load_policy, policy_file_option
from tokenworks.cli.table import show
from tokenworks.core.errors import JournalInvalid
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.live.home import Home


@click.group(cls=Listing)
def command() -> None:
    """Replay what the dispatcher decided.

    Every event is on record before its commands are carried out. A replay hands the same events to
    this release's dispatcher and compares its commands with the recorded ones.
    """


@command.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@policy_file_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def replay(home: Home, file: Path | None, *, policy_file: str | None, as_json: bool) -> None:
    """Replay FILE, or every journal file in the factory's folder.

    Exits with 1 if any decision differs.
    """
    from tokenworks.live.journal import journal_files
    from tokenworks.live.journal import replay as replay_file

    own = load_policy(policy_file)[1] if policy_file else {}
    restore = functools.partial(Dispatcher.restore, own_policies=own)
    files = [file] if file else journal_files(home.journal)
    if not files:
        raise JournalInvalid(
            f"There is no journal in {home.journal}.", hint="`tokenworks up` writes one."
        )
    rows = []
    for path in files:
        try:
            result = replay_file(path, restore=restore)
        except OSError as error:
            raise JournalInvalid(f"{path} cannot be read: {error.strerror}.") from error
        difference = result.first_difference
        rows.append(
            {
                "file": path.name,
                "events": result.events,
                "commands": result.commands,
                "identical": difference is None,
                "first_difference": None if difference is None else difference.index,
            }
        )
    show(rows, as_json=as_json, empty="")
    if not all(row["identical"] for row in rows):
        sys.exit(1)
