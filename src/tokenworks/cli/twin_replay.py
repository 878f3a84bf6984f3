"""``tokenworks twin replay``: decide a recorded run again, and earn it again in the twin."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.cli.policy_file import Chosen, chosen, policy_file_option, policy_option
from tokenworks.cli.table import show
from tokenworks.core.errors import ConfigInvalid, JournalInvalid
from tokenworks.core.slo import Tier
from tokenworks.core.units import dollars_text
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.journal_records import JournalStart
from tokenworks.dispatch.snapshot import decode
from tokenworks.live.home import Home
from tokenworks.live.journal import journal_files, read_journal
from tokenworks.live.journal import replay as decide_again
from tokenworks.twin.driver import run
from tokenworks.twin.recorded import Reader, Recorded
from tokenworks.twin.report import Report, Sums, report
from tokenworks.twin.scenarios import decided


@click.command("replay")
@click.argument("journal", required=False, type=click.Path(exists=True, path_type=Path))
@policy_option
@policy_file_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def replay(
    home: Home,
    journal: Path | None,
    *,
    policy: str | None,
    policy_file: str | None,
    as_json: bool,
) -> None:
    """Replay JOURNAL: a file of a factory's journal, or a folder of them.

    Without it, the last run of the factory in --home. First, this release decides every recorded
    event again, and its commands are compared with those on record; where a policy of your own
    decided then, --policy-file says where it is. Then the recorded requests come to the recorded
    workers, modelled, under --policy or, without it, the one that decided: what would it have
    earned?

    Exits with 1 if any decision differs from the record.
    """
    who = chosen(None, policy_file)
    if policy:
        # An own policy decides again what it decided; a named one earns in its place.
        who = msgspec.structs.replace(who, settings=chosen(policy, None).settings)
    files = _files(journal or home.journal)
    decisions = _decisions(files, who)
    recorded = _read(files, _books(home), who)
    scenario = recorded.scenario
    if who.settings is not None:
        scenario = decided(scenario, who.settings)
    result = run(
        scenario,
        recorded.requests,
        dispatcher=Dispatcher(who.own),
        hooks=recorded.hooks(),
    )
    was = report(recorded.scenario, recorded.requests, recorded.result)
    again = report(scenario, recorded.requests, result)
    found = {
        "decisions": decisions,
        "left_out": recorded.left_out,
        "lengths_estimated": recorded.lengths_estimated,
        "timings_estimated": recorded.timings_estimated,
        "settings_changed": recorded.settings_changed,
        "price_id": scenario.book.price_id,
        "recorded": {"policy": recorded.scenario.configured.policy.name} | _figures(was),
        "replayed": {"policy": scenario.configured.policy.name}
        | _figures(again)
        | {"journal_digest": again.journal_digest},
    }
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    else:
        _say(found, was, again, recorded)
    if not decisions["identical"]:
        sys.exit(1)


def _files(where: Path) -> list[Path]:
    """The journal files of one run of a factory, oldest first.

    Raises:
        JournalInvalid: there is none.
    """
    if where.is_file():
        return [where]
    files = journal_files(where)
    if not files:
        raise JournalInvalid(f"There is no journal in {where}.", hint="`tokenworks up` writes one.")
    first = len(files) - 1
    while first and not _begins_a_run(files[first]):
        first -= 1
    return files[first:]


def _begins_a_run(path: Path) -> bool:
    start = next(iter(read_journal(path)), None)
    try:
        return isinstance(start, JournalStart) and decode(start.snapshot).configured is None
    except msgspec.MsgspecError:
        return True  # reading it will say what is wrong


def _decisions(files: list[Path], who: Chosen) -> dict[str, Any]:
    """Whether this release decides as was recorded."""
    restore = functools.partial(Dispatcher.restore, own_policies=who.own)
    events = commands = 0
    difference = None
    for path in files:
        found = decide_again(path, restore=restore)
        events, commands = events + found.events, commands + found.commands
        if found.first_difference is not None:
            difference = f"{path.name}: event {found.first_difference.index}"
            break
    return {
        "files": [path.name for path in files],
        "events": events,
        "commands": commands,
        "identical": difference is None,
        "first_difference": difference,
    }


def _read(files: list[Path], books: list[PriceBook], who: Chosen) -> Recorded:
    reader = Reader(functools.partial(Dispatcher.restore, own_policies=who.own))
    for path in files:
        reader.take(read_journal(path))
    return reader.recorded(files[0].stem, books)


def _books(home: Home) -> list[PriceBook]:
    """The folder's price books, one of which may have been in force; none if there are none."""
    try:
        return list(home.load_price_books().all())
    except ConfigInvalid:
        return []


def _figures(found: Report) -> dict[str, Any]:
    """What a journal can tell, too."""
    return {
        "requests": found.requests,
        "duration_s": found.duration_s,
        "revenue_nanodollars": found.revenue_nanodollars,
        "revenue_usd": found.revenue_usd,
        "all": _sums(found.all),
        "tiers": {tier.value: _sums(sums) for tier, sums in found.tiers.items()},
    }


def _sums(sums: Sums) -> dict[str, Any]:
    return {
        "requests": sums.requests,
        "done": sums.done,
        "rejected": sums.rejected,
        "failed": sums.failed,
        "promise_kept_share": sums.promise_kept_share,
        "input_tokens": sums.input_tokens,
        "cached_tokens": sums.cached_tokens,
        "output_tokens": sums.output_tokens,
        "ttft_ms": msgspec.to_builtins(sums.speeds.ttft_ms),
        "tpot_ms": msgspec.to_builtins(sums.speeds.tpot_ms),
        "revenue_nanodollars": sums.revenue_nanodollars,
        "delivered": {tier.value: count for tier, count in sums.delivered.items()},
    }


def _say(found: dict[str, Any], was: Report, again: Report, recorded: Recorded) -> None:
    """Print for people."""
    decisions = found["decisions"]
    same = "all as recorded"
    if not decisions["identical"]:
        same = f"the first that differs is in {decisions['first_difference']}"
    click.echo(f"{decisions['events']:,} events decided again: {same}.\n")
    names = [found[each]["policy"] for each in ("recorded", "replayed")]
    rows = []
    for tier in [*Tier, None]:
        if tier is not None and tier not in was.tiers:
            continue
        pair = [each.all if tier is None else each.tiers[tier] for each in (was, again)]
        rows.append(_row("total" if tier is None else tier.value, *pair))
    show(rows, as_json=False, empty="")
    change = again.revenue_nanodollars - was.revenue_nanodollars
    more = "less" if change < 0 else "more"
    click.echo(
        f"\nRecorded under {names[0]}: ${dollars_text(was.revenue_nanodollars)}. "
        f"In the twin under {names[1]}: ${dollars_text(again.revenue_nanodollars)}, "
        f"${dollars_text(abs(change))} {more}."
    )
    for count, what in (
        (recorded.left_out, "requests are left out: their callers left, or they had not ended"),
        (
            recorded.lengths_estimated,
            "have no answer on record; it has the mean length of its tier",
        ),
        (recorded.timings_estimated, "workers say only a speed curve; their iterations follow it"),
        (recorded.settings_changed, "times the settings changed; the first hold for all"),
    ):
        if count:
            click.echo(f"{count:,} {what}.")


def _row(name: str, was: Sums, again: Sums) -> dict[str, Any]:
    return {
        "tier": name,
        "requests": was.requests,
        "kept": _percent(was.promise_kept_share),
        "in the twin": _percent(again.promise_kept_share),
        "TTFT_ms_p50": _ms(was.speeds.ttft_ms.p50),
        "its TTFT_ms_p50": _ms(again.speeds.ttft_ms.p50),
        "TPOT_ms_p50": _ms(was.speeds.tpot_ms.p50),
        "its TPOT_ms_p50": _ms(again.speeds.tpot_ms.p50),
        "revenue_nanodollars": was.revenue_nanodollars,
        "its revenue_nanodollars": again.revenue_nanodollars,
    }


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _ms(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
