"""What tests of the command line share: running it, and a home with something in it."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from tests.ledger import ledger_samples
from tests.ledger.ledger_samples import BOOK, key_record, outcome
from tokenworks.cli.main import cli
from tokenworks.core.ids import PoolID, RequestID, WorkerID
from tokenworks.core.slo import Measured, Tier
from tokenworks.ledger.entries import Entry
from tokenworks.live.home import Home
from tokenworks.live.store import SQLiteStore

HOUR_NS = 3_600_000_000_000


def invoke(home: Home, *arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli, ["--home", str(home.path), *arguments], input=text)


def done(home: Home, *arguments: str, text: str | None = None) -> str:
    """What a command that succeeds prints."""
    result = invoke(home, *arguments, text=text)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def data(home: Home, *arguments: str) -> Any:
    """The same, parsed."""
    return json.loads(done(home, *arguments, "--json"))


def fill(home: Home, at_unix_ns: int = 5) -> None:
    """A ledger with two keys, four answers, one of them below the tier asked, and cost."""
    home.make()
    store = SQLiteStore(home.ledger)
    made = ledger_samples.ledger(key_record(), key_record("other", tenant="second"))
    for record in (key_record(), key_record("other", tenant="second")):
        store.put_key(record)
    entries: list[Entry] = []
    slow = Measured(ttft_ns=1, decode_ns=10**12, output_tokens=20)
    for name, key, tier, measured in (
        ("a", "key", Tier.HIGH, ledger_samples.FAST),
        ("b", "other", Tier.PREMIUM, ledger_samples.FAST),
        ("c", "key", Tier.HIGH, slow),
        ("d", "key", Tier.FREE, ledger_samples.FAST),
    ):
        entries.append(ledger_samples.reserve(made, name, key=key, tier=tier))
        entries.append(
            made.post(
                at_unix_ns,
                RequestID(name),
                outcome=outcome(measured=measured),
                pool=PoolID("pool"),
                worker=WorkerID("pool-0"),
                worker_ns=7,
                cost_nanodollars=3_000,
                book=BOOK,
            )
        )
    entries.append(ledger_samples.accrue(made, energy=1_000_000))
    store.append_now(entries)
    store.close()
