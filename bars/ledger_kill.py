"""A process that appends is killed again and again: what it acknowledged is there, once.

Each round forks a process that recovers the ledger, frees what the one before it left open, and
lets clients reserve and settle through group commit. It says each settlement that is durable; at a
random moment it gets SIGKILL. In the end every settlement that was said must be in the ledger with
its charge, the audit must find nothing, and no reservation may be open.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bars.ledger_quota import (
    FAST,
    STORE_HELP,
    TTL_NS,
    WORK,
    key_of,
    limit_of,
    open_store,
    store_url,
    used_tokens,
)
from bars.proof import proved
from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.ids import KeyID, ModelName, RequestID, TenantID
from tokenworks.core.orders import KeyView, Order, Outcome, Usage
from tokenworks.core.slo import Tier
from tokenworks.ledger.entries import Posted
from tokenworks.ledger.quota_records import Refused
from tokenworks.ledger.store_port import recover
from tokenworks.live.clock import SystemClock
from tokenworks.live.home import Home
from tokenworks.live.store import SQLStore

CLIENTS = 24
ROUND_S_MAX = 0.08
READY_S_MAX = 60
EARLY_SHARE = 0.2
"""Lives that may end while they still recover."""
TOKENS = 10**12


class Child:
    """One life of the process."""

    def __init__(self, url: str, owner: str, out: int) -> None:
        self.out, self.owner = out, owner
        self.clock = SystemClock()
        self.store: SQLStore = open_store(url, owner, sole=True)
        self.book: PriceBook = Home(Path("/nowhere")).load_price_book()
        unix_ns = self.clock.unix_ns()
        self.store.put_price_book(self.book.price_id, self.book.text, unix_ns)
        self.ledger = recover(self.store, unix_ns)
        freed = self.ledger.void_orphans(unix_ns)
        if freed:
            self.store.append_now(freed)
        self.dice = random.Random(owner)

    async def serve(self) -> None:
        """Serve until killed."""
        os.write(self.out, b"ready\n")
        await asyncio.gather(*(self._client(i) for i in range(CLIENTS)))

    async def _client(self, client: int) -> None:
        view = KeyView(key=KeyID("key_0"), tenant=TenantID("acme"), tier_default=Tier.HIGH)
        turn = 0
        while True:
            turn += 1
            order = Order(
                request=RequestID(f"{self.owner}-{client}-{turn}"),
                key=view,
                model=ModelName("foreman"),
                tier=Tier.HIGH,
                body=b"",
                input_tokens_max=40,
                output_tokens_max=40,
                prefix=(),
                arrived_ns=0,
            )
            held = self.ledger.reserve(
                self.clock.now_ns(), self.clock.unix_ns(), order, self.book, TTL_NS
            )
            assert not isinstance(held, Refused), held
            stored = self.store.append([held])
            usage = Usage(
                uncached_input_tokens=self.dice.randrange(41),
                cached_input_tokens=0,
                output_tokens=self.dice.randrange(41),
            )
            outcome = Outcome(usage=usage, measured=FAST, ending="done")
            await asyncio.sleep(0)
            posted = self.ledger.post(
                self.clock.unix_ns(), order.request, outcome=outcome, work=WORK
            )
            assert isinstance(posted, Posted), posted
            await self.store.append([posted])
            await stored
            os.write(self.out, f"{posted.request} {posted.charged_nanodollars}\n".encode())


def one_life(url: str, owner: str, dice: random.Random, lines_min: int) -> dict[str, int]:
    """Start a process, kill it at a random moment, and return what it acknowledged.

    Args:
        url: of the store.
        owner: its name.
        dice: decides the moment.
        lines_min: it is not killed before it has said so many, of which the first is no request.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            asyncio.run(Child(url, owner, write).serve())
        finally:
            os._exit(1)
    os.close(write)
    said = b""
    if dice.random() >= EARLY_SHARE or lines_min:
        assert select.select([read], [], [], READY_S_MAX)[0], "the process did not come up"
    while said.count(b"\n") < lines_min:
        assert select.select([read], [], [], READY_S_MAX)[0], "the process acknowledged nothing"
        said += os.read(read, 1 << 16)
    time.sleep(dice.uniform(0, ROUND_S_MAX))
    os.kill(pid, signal.SIGKILL)
    while part := os.read(read, 1 << 16):
        said += part
    os.close(read)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), f"{owner} ended by itself: {said[-200:]!r}"
    *lines, _ = said.split(b"\n")  # the last line may be torn
    pairs = (line.decode().split() for line in lines if line != b"ready")
    return {request: int(charged) for request, charged in pairs}


def play(url: str, *, kills: int, seed: int) -> dict[str, Any]:
    """All lives, then the proof; raises where the bar is missed."""
    setup = open_store(url, "setup", sole=False)
    setup.put_key(key_of(0))
    setup.put_limit(limit_of(0, TOKENS))
    setup.close()
    dice, said, began = random.Random(seed), {}, time.monotonic()
    for i in range(kills):
        # The first has time to acknowledge something, however slow the machine and its disk are.
        said |= one_life(url, f"life{seed}-{i}", dice, 0 if i else 2)
    last = Child(url, f"life{seed}-last", -1)
    try:
        stored = proved(last.store)
        lost = {
            request
            for request, charged in said.items()
            if request not in stored or stored[request].charged_nanodollars != charged
        }
        assert not lost, f"acknowledged and lost: {sorted(lost)[:5]}"
        assert last.ledger.open_holds() == ()
        (window,) = last.ledger.windows()
        assert window.used == used_tokens(last.store, 0)
    finally:
        last.store.close()
    return {
        "bar": "ledger_kill",
        "store": "postgres" if url.startswith("postgresql:") else "sqlite",
        "seed": seed,
        "kills": kills,
        "acknowledged": len(said),
        "stored": len(stored),
        "wall_s": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Parse the command line and play."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="", help=STORE_HELP)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with store_url(args.store) as url:
        done = play(url, kills=args.kills, seed=args.seed)
    json.dump(done, sys.stdout)
    print()


if __name__ == "__main__":
    main()
