"""Many clients against one quota: never above it, and nearly all of it usable.

Each round has a key with a limit of so many tokens for life. Clients, spread over processes that
share the ledger, reserve, use a part and settle until they are refused. Then what was used, as the
store says, must not be above the limit, and must be at least 95 % of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.live.postgres_server import PostgresServer, find_programs
from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.ids import KeyID, LimitID, ModelName, PoolID, RequestID, TenantID, WorkerID
from tokenworks.core.orders import KeyView, Order, Outcome, Usage
from tokenworks.core.slo import Measured, Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.ledger.entries import Posted, Reserved
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.quota_records import KeyRecord, Limit, NodeID, Refused
from tokenworks.ledger.store_port import LedgerStore, join, recover
from tokenworks.ledger.work import Work
from tokenworks.live.clock import SystemClock
from tokenworks.live.home import Home
from tokenworks.live.quota_leases import QuotaLeases
from tokenworks.live.store import SQLStore, postgres_store, sqlite_store

USABLE_PER_CENT_MIN = 95
STORE_HELP = "a file, postgresql://..., or postgres for a server of its own; else a new file"
TTL_NS = 600 * NS_PER_S
FAST = Measured(ttft_ns=1, decode_ns=0, output_tokens=1)
WORK = Work(
    pool=PoolID("pool"),
    worker=WorkerID("worker"),
    worker_ns=1,
    energy_nanodollars=1,
    capital_nanodollars=1,
)


def open_store(url: str, owner: str, *, sole: bool) -> SQLStore:
    """A store by its URL: a file's path, or PostgreSQL."""
    if url.startswith("postgresql:"):
        return postgres_store(url, owner, sole=sole)
    return sqlite_store(Path(url), owner, sole=sole)


@contextlib.contextmanager
def store_url(given: str) -> Iterator[str]:
    """The URL of the store that a bar is played on.

    Args:
        given: a file, a URL, ``postgres`` for a PostgreSQL server of the bar's own, or nothing for
            a new file.
    """
    if given == "postgres":
        programs = find_programs()
        if programs is None:
            sys.exit("PostgreSQL's server is not installed: apt-get install postgresql")
        server = PostgresServer(programs)
        try:
            server.start()
            yield server.create()
        finally:
            server.stop()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield given or str(Path(folder) / "ledger.sqlite")


def key_of(number: int) -> KeyRecord:
    """The key of one round."""
    return KeyRecord(
        key=KeyID(f"key_{number}"),
        tenant=TenantID("acme"),
        team=None,
        engineer=None,
        name="",
        secret_sha256=f"{number:064x}",
        tier_default=Tier.HIGH,
        created_unix_ns=number,
        revoked_unix_ns=None,
    )


def limit_of(number: int, tokens: int) -> Limit:
    """Its limit."""
    return Limit(
        limit=LimitID(f"lim_{number}"),
        node=NodeID(f"key:key_{number}"),
        unit="tokens",
        period="lifetime",
        amount=tokens,
    )


class Process:
    """What one process has: a ledger over its store, and its clients."""

    def __init__(self, url: str, name: str, *, sole: bool) -> None:
        self.clock = SystemClock()
        self.store = open_store(url, name, sole=sole)
        self.book: PriceBook = Home(Path("/nowhere")).load_price_book()
        self.dice = random.Random(name)
        unix_ns = self.clock.unix_ns()
        self.ledger: Ledger = (recover if sole else join)(self.store, unix_ns)
        self.leases = None if sole else QuotaLeases(self.ledger, self.store, self.clock)
        self.name = name

    async def round(self, number: int, clients: int) -> tuple[int, int]:
        """Until every client is refused; answers, and refusals."""
        self.ledger.set_key(key_of(number))
        self.ledger.set_limits(self.store.limit_states(self.clock.unix_ns()))
        tending = asyncio.create_task(self._tend())
        try:
            counts = await asyncio.gather(*(self._client(number, i) for i in range(clients)))
        finally:
            tending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await tending
        return sum(counts), clients

    async def finish(self) -> None:
        """Give back what is leased and idle, so that the next round's start is the same."""
        if self.leases is not None:
            await self.leases.give_back_idle(self.clock.unix_ns())

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            if self.leases is not None:
                await self.leases.tend()

    async def _client(self, number: int, client: int) -> int:
        answers = 0
        view = KeyView(key=KeyID(f"key_{number}"), tenant=TenantID("acme"), tier_default=Tier.HIGH)
        while True:
            order = Order(
                request=RequestID(f"{self.name}-{number}-{client}-{answers}"),
                key=view,
                model=ModelName("foreman"),
                tier=Tier.HIGH,
                body=b"",
                input_tokens_max=self.dice.randrange(1, 50),
                output_tokens_max=self.dice.randrange(1, 50),
                prefix=(),
                arrived_ns=0,
            )
            held = await self._reserve(order)
            if isinstance(held, Refused):
                return answers
            stored = self.store.append([held])
            usage = Usage(
                uncached_input_tokens=order.input_tokens_max,
                cached_input_tokens=0,
                output_tokens=self.dice.randrange(order.output_tokens_max + 1),
            )
            await asyncio.sleep(0)
            outcome = Outcome(usage=usage, measured=FAST, ending="done")
            posted = self.ledger.post(
                self.clock.unix_ns(), order.request, outcome=outcome, work=WORK
            )
            assert isinstance(posted, Posted), posted
            await stored
            await self.store.append([posted])
            answers += 1

    async def _reserve(self, order: Order) -> Reserved | Refused:
        if self.leases is not None:
            return await self.leases.reserve(order, self.book, TTL_NS)
        now_ns, unix_ns = self.clock.now_ns(), self.clock.unix_ns()
        return self.ledger.reserve(now_ns, unix_ns, order, self.book, TTL_NS)


def serve(url: str, name: str, sole: bool, pipe: Connection) -> None:  # noqa: FBT001
    """A child: plays the rounds that it is told."""
    process = Process(url, name, sole=sole)

    async def play() -> None:
        pipe.send("ready")
        while (told := await asyncio.to_thread(pipe.recv)) is not None:
            pipe.send(await process.round(*told))
        await process.finish()

    asyncio.run(play())
    process.store.close()


def used_tokens(store: LedgerStore, number: int) -> int:
    """What the store says that a round's key has used."""
    return sum(
        row.tokens
        for row in store.rollups(by_hour=False)
        if row.payer.key == f"key_{number}" and row.kind.what == "done"
    )


def play(url: str, *, processes: int, clients: int, rounds: int, tokens: int) -> dict[str, Any]:
    """All rounds; raises where the bar is missed."""
    context = multiprocessing.get_context("spawn")
    pipes, children = [], []
    keeper = open_store(url, "keeper", sole=False)
    for i in range(processes):
        ours, theirs = context.Pipe()
        child = context.Process(target=serve, args=(url, f"p{i}", processes == 1, theirs))
        child.start()
        pipes.append(ours)
        children.append(child)
    for pipe in pipes:
        assert pipe.recv() == "ready"
    began, answers, shares = time.monotonic(), 0, []
    for number in range(rounds):
        keeper.put_key(key_of(number))
        keeper.put_limit(limit_of(number, tokens))
        for pipe in pipes:
            pipe.send((number, clients // processes))
        answers += sum(pipe.recv()[0] for pipe in pipes)
        used = used_tokens(keeper, number)
        assert used <= tokens, f"round {number}: {used} tokens used of {tokens}"
        assert used * 100 >= tokens * USABLE_PER_CENT_MIN, f"round {number}: only {used}"
        shares.append(used / tokens)
    wall_s = time.monotonic() - began
    for pipe, child in zip(pipes, children, strict=True):
        pipe.send(None)
        child.join()
        assert child.exitcode == 0
    keeper.close()
    return {
        "bar": "ledger_quota",
        "store": "postgres" if url.startswith("postgresql:") else "sqlite",
        "processes": processes,
        "clients": clients,
        "rounds": rounds,
        "answers": answers,
        "used_share_min": round(min(shares), 4),
        "used_share_max": round(max(shares), 4),
        "wall_s": round(wall_s, 1),
    }


def main() -> None:
    """Parse the command line and play."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="", help=STORE_HELP)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=40_000)
    args = parser.parse_args()
    with store_url(args.store) as url:
        done = play(
            url,
            processes=args.processes,
            clients=args.clients,
            rounds=args.rounds,
            tokens=args.tokens,
        )
    json.dump(done, sys.stdout)
    print()


if __name__ == "__main__":
    main()
