"""What tests of the command line share: running it, and a home with something in it."""

from __future__ import annotations

import http.client
import json
from typing import Any

from click.testing import CliRunner, Result

from tests.ledger import ledger_samples
from tests.ledger.ledger_samples import key_record, outcome
from tokenworks.cli.main import cli
from tokenworks.core.ids import RequestID
from tokenworks.core.slo import Measured, Tier
from tokenworks.ledger.entries import CostAccrued, Entry, Posted
from tokenworks.ledger.work import Work
from tokenworks.live.home import Home
from tokenworks.live.store import sqlite_store

HOUR_NS = 3_600_000_000_000
READY_S_MAX = 60


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


def fill(home: Home, at_unix_ns: int = 5, *, keys: bool = True) -> None:
    """A ledger with two keys, four answers, one of them below the tier asked, and cost."""
    home.make()
    store = sqlite_store(home.ledger, "me")
    store.put_price_book(ledger_samples.BOOK.price_id, ledger_samples.BOOK.text, at_unix_ns)
    records = (key_record(), key_record("other", tenant="second", team=None, engineer=None))
    made = ledger_samples.ledger(*records)
    if keys:
        for record in records:
            store.put_key(record)
    entries: list[Entry] = []
    slow = Measured(ttft_ns=1, decode_ns=10**12, output_tokens=20)
    for name, key, tier, measured in (
        ("a", "key", Tier.HIGH, ledger_samples.FAST),
        ("b", "other", Tier.PREMIUM, ledger_samples.FAST),
        ("c", "key", Tier.HIGH, slow),
        ("d", "key", Tier.FREE, ledger_samples.FAST),
    ):
        entries.append(ledger_samples.reserve(made, name, key=key, tier=tier, unix_ns=at_unix_ns))
        posted = made.post(
            at_unix_ns, RequestID(name), outcome=outcome(measured=measured), work=WORK
        )
        assert isinstance(posted, Posted), posted
        entries.append(posted)
    cost = made.accrue(
        at_unix_ns,
        ledger_samples.POOL,
        from_unix_ns=at_unix_ns - 5,
        until_unix_ns=at_unix_ns,
        energy_nanodollars=1_000_000,
        capital_nanodollars=6,
    )
    assert isinstance(cost, CostAccrued), cost
    store.append_now([*entries, cost])
    store.close()


WORK = Work(
    pool=ledger_samples.POOL,
    worker=ledger_samples.WORKER,
    worker_ns=7,
    energy_nanodollars=2_000,
    capital_nanodollars=1_000,
)


def ask(home: Home, **more: object) -> dict[str, Any]:
    """One question to the factory that runs from a home."""
    host = (home.read_url() or "").removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=READY_S_MAX)
    headers = {"Authorization": f"Bearer {home.read_key()}", "Content-Type": "application/json"}
    asked = {"model": "foreman", "messages": [{"role": "user", "content": "hi"}], **more}
    connection.request("POST", "/v1/chat/completions", json.dumps(asked), headers)
    with connection.getresponse() as response:
        said: dict[str, Any] = json.loads(response.read())
    connection.close()
    return said
