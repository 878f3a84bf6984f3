"""A ledger of ten million entries: how long a start, an invoice's sums, reports and the proof take.

Five million answers of a month, from 200 tenants with 2,000 keys between them, 3 models and 5
tiers, half of them in runs of ten answers and two in three asked for by agents, are put into a new
ledger through the store. Then each is timed once on a store that was just opened. The last line is
JSON; the exit is 1 if a figure is not what a release must reach.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bars.ledger_quota import FAST, WORK
from tokenworks.catalogue.price_book import PriceBook, parse_price_book
from tokenworks.core.ids import (
    AgentName,
    KeyID,
    LimitID,
    ModelName,
    RequestID,
    RunID,
    TeamID,
    TenantID,
)
from tokenworks.core.orders import Outcome, Payer, Usage
from tokenworks.core.slo import Tier
from tokenworks.ledger.audit import Audit
from tokenworks.ledger.entries import Entry, Reserved
from tokenworks.ledger.focus import focus_rows
from tokenworks.ledger.invoices import invoice_json, make_invoice
from tokenworks.ledger.ledger import posting
from tokenworks.ledger.quota_records import Limit, NodeID
from tokenworks.ledger.reports import report_lines
from tokenworks.ledger.rollup import RollupRow
from tokenworks.ledger.store_port import recover
from tokenworks.live.home import Home
from tokenworks.live.store import sqlite_store

MONTH_UNIX_NS = 1_790_812_800_000_000_000
"""2026-10-01."""
MONTH = "2026-10"
TENANT = TenantID("tenant7")
MONTH_NS = 31 * 24 * 3_600_000_000_000
TENANTS, KEYS = 200, 2_000
MODELS = ("small", "middle", "large")
MIX = {Tier.FREE: 40, Tier.MEDIUM: 30, Tier.HIGH: 20, Tier.PREMIUM: 7, Tier.ULTRA: 3}
BATCH = 4_000
AGENTS = 7
"""By name, one for each key; besides, one answer in 300 has a name that never comes again."""
RUN_LEN = 10
"""Answers of one run of an agent; as many after them belong to none."""
BARS_S = {
    "recovery_s": 2,
    "invoice_s": 2,
    "report_tier_s": 3,
    "report_tenant_s": 3,
    "report_hour_s": 3,
    "report_hour_of_tenant_s": 3,
    "focus_of_tenant_s": 3,
    "report_run_of_tenant_s": 3,
    "report_agent_s": 3,
    "report_hour_of_agent_s": 3,
}
"""The most that each may take."""


def book() -> PriceBook:
    """Three models at the prices of the book that ships."""
    text = Home(Path("/nowhere")).load_price_book().text
    head, _, prices = text.partition("[price.foreman.free]")
    prices = "[price.foreman.free]" + prices
    return parse_price_book(head + "".join(prices.replace("foreman", name) for name in MODELS))


def payer_of(payers: Sequence[Payer], number: int, dice: random.Random) -> Payer:
    """The payer of one answer: somebody, or whoever has begun the run that it belongs to."""
    run, alone = divmod(number // RUN_LEN, 2)
    key = dice.randrange(KEYS) if alone else run * 7 % KEYS
    agent = f"agent{key % AGENTS}"
    if not alone:
        return msgspec.structs.replace(payers[key], agent=AgentName(agent), run=RunID(f"run-{run}"))
    if number % 3:
        return payers[key]
    if number % 100 == RUN_LEN:
        agent = f"once-{number}"
    return msgspec.structs.replace(payers[key], agent=AgentName(agent))


def answers(count: int, prices: PriceBook) -> Iterator[list[Entry]]:
    """Reservations and settlements, in batches."""
    dice = random.Random(1)
    payers = [
        Payer(
            tenant=TenantID(f"tenant{i % TENANTS}"),
            team=TeamID(f"team{i % 7}"),
            engineer=None,
            key=KeyID(f"key_{i}"),
        )
        for i in range(KEYS)
    ]
    tiers, weights = list(MIX), list(MIX.values())
    batch: list[Entry] = []
    for i in range(count):
        at = MONTH_UNIX_NS + i * MONTH_NS // count
        hold = Reserved(
            at_unix_ns=at,
            request=RequestID(f"req_{i:024x}"),
            attempt=0,
            payer=payer_of(payers, i, dice),
            model=ModelName(MODELS[dice.randrange(3)]),
            tier_asked=dice.choices(tiers, weights)[0],
            batch=False,
            input_tokens_max=500,
            output_tokens_max=500,
            hold_nanodollars=10**9,
            price_id=prices.price_id,
            owner="fill",
            expires_ns=0,
        )
        usage = Usage(
            uncached_input_tokens=dice.randrange(400),
            cached_input_tokens=dice.randrange(100),
            output_tokens=dice.randrange(500),
        )
        outcome = Outcome(usage=usage, measured=FAST, ending="done")
        batch += (hold, posting(hold, at, outcome, WORK, prices))
        if len(batch) >= BATCH:
            yield batch
            batch = []
    yield batch


def fill(path: Path, count: int, prices: PriceBook) -> float:
    """Put everything into a new ledger; seconds."""
    began = time.monotonic()
    store = sqlite_store(path, "fill", sole=True)
    store.put_price_book(prices.price_id, prices.text, MONTH_UNIX_NS)
    for i in range(KEYS):
        limit = Limit(
            limit=LimitID(f"lim_{i}"),
            node=NodeID(f"key:key_{i}"),
            unit="tokens",
            period="month" if i % 2 else "lifetime",
            amount=10**12,
        )
        store.put_limit(limit)
    for done, batch in enumerate(answers(count, prices)):
        store.append_now(batch)
        if done % 250 == 0 and sys.stderr.isatty():
            print(f"\r{done * BATCH:,} entries", end="", file=sys.stderr, flush=True)
    store.close()
    return time.monotonic() - began


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds of one call, and what it gave."""
    began = time.monotonic()
    result = call()
    return round(time.monotonic() - began, 3), result


def measure(path: Path, prices: PriceBook, *, verify: bool) -> dict[str, Any]:
    """Each figure, on a store that was just opened."""
    unix_ns = MONTH_UNIX_NS + MONTH_NS - 1

    def start() -> None:
        store = sqlite_store(path, f"start-{time.monotonic_ns()}", sole=True)
        recover(store, unix_ns)
        store.close()

    def rows(**how: Any) -> list[RollupRow]:
        store = sqlite_store(path)
        found = store.rollups(MONTH_UNIX_NS, MONTH_UNIX_NS + MONTH_NS, **how)
        store.close()
        return found

    def report(*by: Any, where: Any = None, **how: Any) -> int:
        return len(report_lines(rows(**how, of=where), by, where))

    def invoice() -> int:
        made = make_invoice(TENANT, MONTH, rows(), books, unix_ns + MONTH_NS)
        assert made.charged_nanodollars > 0
        return len(invoice_json(made))

    def focus() -> int:
        found = rows(by_hour=True, of={"tenant": TENANT})
        return len(focus_rows(MONTH, found, books, unix_ns + MONTH_NS, tenant=TENANT))

    books, of = {prices.price_id: prices}, {"tenant": TENANT}
    of_agent = of | {"agent": "agent3"}
    calls: dict[str, Callable[[], object]] = {
        "recovery_s": start,
        "invoice_s": invoice,
        "report_tier_s": lambda: report("tier", by_payer=False),
        "report_tenant_s": lambda: report("tenant"),
        "report_hour_s": lambda: report("hour", by_hour=True, by_payer=False),
        "report_hour_of_tenant_s": lambda: report("hour", where=of, by_hour=True),
        "focus_of_tenant_s": focus,
        "report_run_of_tenant_s": lambda: report("run", where=of, by_run=True),
        "report_agent_s": lambda: report("agent", by_agent=True),
        "report_hour_of_agent_s": lambda: report("hour", where=of_agent, by_hour=True),
    }
    figures: dict[str, Any] = {name: timed(call)[0] for name, call in calls.items()}
    if verify:

        def prove() -> int:
            store = sqlite_store(path)
            audit = Audit({prices.price_id: prices})
            for _ in audit.read(store.blocks()):
                pass
            since = store.since(audit.progress.blocks)
            findings = audit.finish(since.sums, since.numbers, since.holds)
            store.close()
            assert not findings, findings[:3]
            return audit.progress.entries

        figures["verify_s"], entries = timed(prove)
        figures["verify_entries_per_s"] = round(entries / figures["verify_s"])
    return figures


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--no-verify", action="store_true")
    args = parser.parse_args()
    prices = book()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        fill_s = fill(path, args.entries // 2, prices)
        figures = {
            "bench": "ledger_10m",
            "entries": args.entries,
            "fill_s": round(fill_s, 1),
            "bytes_per_entry": round(path.stat().st_size / args.entries),
            **measure(path, prices, verify=not args.no_verify),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
    print(json.dumps(msgspec.to_builtins(figures)))
    missed = {name: figures[name] for name, most in BARS_S.items() if figures[name] >= most}
    if missed:
        sys.exit(f"slower than {BARS_S}: {missed}")


if __name__ == "__main__":
    main()
