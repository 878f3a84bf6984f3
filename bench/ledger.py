"""CPU of reserve and settle, durable with group commit, against a bare SQLite insert loop.

Each event is one reservation or one settlement: checked against four limits, encoded, chained by
its block's hash, summed up, and durable by one sync per batch. The control inserts the same events
as plain rows with all their fields, by ``executemany`` in batches of the same size, into a table
whose primary key is (request, attempt, phase), with the same WAL and syncs; nothing else. ``lean``
is a control with nine columns. Runs alternate; figures are medians. The last line is JSON; the exit
is 1 if an event takes more than twice the CPU of the control.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bars.ledger_quota import FAST, TTL_NS, WORK, key_of
from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.ids import EngineerID, KeyID, LimitID, ModelName, RequestID, TeamID, TenantID
from tokenworks.core.orders import KeyView, Order, Outcome, Usage
from tokenworks.core.slo import Tier
from tokenworks.ledger.entries import Entry, Posted, Reserved
from tokenworks.ledger.quota_records import Limit, NodeID
from tokenworks.ledger.store_port import recover
from tokenworks.live.home import Home
from tokenworks.live.store import sqlite_store

RATIO_MAX = 2
"""The bar: CPU of an event to that of the bare insert loop."""
COLUMNS = 49
"""Of a posting; a reservation has fewer, and the rest are null."""
START_UNIX_NS = 1_790_000_000_000_000_000
NODES = ("tenant:acme", "team:acme/search", "engineer:acme/ada", "key:key_0")
USAGE = Usage(uncached_input_tokens=120, cached_input_tokens=60, output_tokens=200)
OUTCOME = Outcome(usage=USAGE, measured=FAST, ending="done")


def orders(count: int) -> list[Order]:
    """Requests of one key."""
    view = KeyView(key=KeyID("key_0"), tenant=TenantID("acme"), tier_default=Tier.HIGH)
    return [
        Order(
            request=RequestID(f"req_{i:024x}"),
            key=view,
            model=ModelName("foreman"),
            tier=Tier.HIGH,
            body=b"",
            input_tokens_max=200,
            output_tokens_max=400,
            prefix=(),
            arrived_ns=0,
        )
        for i in range(count)
    ]


def run_ledger(
    folder: Path, book: PriceBook, wanted: Sequence[Order], batch: int
) -> tuple[float, list[Entry]]:
    """CPU seconds, and the entries."""
    store = sqlite_store(folder / "ledger.sqlite", "bench", sole=True)
    key = msgspec.structs.replace(key_of(0), team=TeamID("search"), engineer=EngineerID("ada"))
    store.put_key(key)
    for i, node in enumerate(NODES):
        store.put_limit(
            Limit(
                limit=LimitID(f"lim_{i}"),
                node=NodeID(node),
                unit="nanodollars" if i == 0 else "tokens",
                period="month",
                amount=10**17,
            )
        )
    ledger = recover(store, START_UNIX_NS)
    kept: list[Entry] = []
    began = time.process_time()
    entries: list[Entry] = []
    for i, order in enumerate(wanted):
        unix_ns = START_UNIX_NS + i
        held = ledger.reserve(0, unix_ns, order, book, TTL_NS)
        posted = ledger.post(unix_ns, order.request, outcome=OUTCOME, work=WORK)
        assert isinstance(held, Reserved)
        assert isinstance(posted, Posted)
        entries += (held, posted)
        if len(entries) >= batch:
            store.append_now(entries)
            kept += entries
            entries = []
    if entries:
        store.append_now(entries)
        kept += entries
    cpu_s = time.process_time() - began
    store.close()
    return cpu_s, kept


def flat(entry: Entry) -> tuple[Any, ...]:
    """An entry's fields as a plain row of ``COLUMNS`` columns."""
    row: list[Any] = [entry.request, entry.attempt, entry.phase]  # type: ignore[attr-defined]
    for name in entry.__struct_fields__:
        value = getattr(entry, name)
        if isinstance(value, msgspec.Struct):
            row += msgspec.structs.astuple(value)
        elif name not in {"request", "attempt"}:
            row.append(str(value) if isinstance(value, Tier) else value)
    return tuple(row + [None] * (COLUMNS - len(row)))


def run_bare(folder: Path, name: str, rows: Sequence[tuple[Any, ...]], batch: int) -> float:
    """CPU seconds of inserting rows."""
    connection = sqlite3.connect(folder / f"{name}.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    columns = ", ".join(f"c{i}" for i in range(3, len(rows[0])))
    connection.execute(
        f"CREATE TABLE rows (request TEXT, attempt INTEGER, phase TEXT, {columns}, "
        "PRIMARY KEY (request, attempt, phase))"
    )
    insert = f"INSERT INTO rows VALUES ({', '.join('?' * len(rows[0]))})"
    began = time.process_time()
    for at in range(0, len(rows), batch):
        connection.execute("BEGIN")
        connection.executemany(insert, rows[at : at + batch])
        connection.execute("COMMIT")
    cpu_s = time.process_time() - began
    connection.close()
    return cpu_s


def alternated(runs: int, *calls: Callable[[], float]) -> Iterator[float]:
    """The median of each call, after as many runs of all of them in turn."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(runs):
        for figures, call in zip(found, calls, strict=True):
            figures.append(call())
    return (statistics.median(figures) for figures in found)


def case(requests: int, batch: int, runs: int) -> dict[str, Any]:
    """One batch size."""
    book = Home(Path("/nowhere")).load_price_book()
    wanted = orders(requests)
    with tempfile.TemporaryDirectory() as name:
        _, entries = run_ledger(Path(name), book, wanted, batch)
    rows = [flat(entry) for entry in entries]
    lean = [row[:9] for row in rows]

    def timed(call: Callable[[Path], float]) -> Callable[[], float]:
        def go() -> float:
            with tempfile.TemporaryDirectory() as name:
                return call(Path(name))

        return go

    ours_s, bare_s, lean_s = alternated(
        runs,
        timed(lambda folder: run_ledger(folder, book, wanted, batch)[0]),
        timed(lambda folder: run_bare(folder, "bare", rows, batch)),
        timed(lambda folder: run_bare(folder, "lean", lean, batch)),
    )
    events = 2 * requests
    return {
        "batch": batch,
        "ledger_us_per_event": round(ours_s / events * 1e6, 2),
        "bare_us_per_event": round(bare_s / events * 1e6, 2),
        "lean_us_per_event": round(lean_s / events * 1e6, 2),
        "ratio_to_bare": round(ours_s / bare_s, 2),
        "ratio_to_lean": round(ours_s / lean_s, 2),
        "events_per_cpu_s": round(events / ours_s),
    }


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    cases = []
    for batch in args.batches:
        cases.append(case(args.requests, batch, args.runs))
        print("  ".join(f"{name} {value}" for name, value in cases[-1].items()), flush=True)
    print(json.dumps({"bench": "ledger", "requests": args.requests, "cases": cases}))
    missed = [each["batch"] for each in cases if each["ratio_to_bare"] > RATIO_MAX]
    if missed:
        sys.exit(f"more than {RATIO_MAX} times the control at batches of {missed}")


if __name__ == "__main__":
    main()
