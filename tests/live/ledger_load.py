"""Load on a store whose database breaks, and a checker of what is left of it.

``python -m tests.live.ledger_load URL OWNER COUNT`` is one more process: it says ``ready``, appends
from a line of its input on, says a line for each acknowledged reservation, and ends with ``fenced``
when it was taken over.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable

from tests.live.sql_store_cases import NOW, charged, check_chain, posted, reserved
from tokenworks.core.errors import LedgerUnavailable
from tokenworks.ledger.entries import Entry, Posted, Reserved
from tokenworks.live.store import SQLStore, postgres_store

CLIENTS = 12
PAUSE_S = 0.002


@dataclasses.dataclass
class Told:
    """What the clients were told."""

    acknowledged: list[Entry] = dataclasses.field(default_factory=list)
    refused: list[Entry] = dataclasses.field(default_factory=list)
    """Not stored, and not tried again."""
    refusals: int = 0


async def load(store: SQLStore, told: Told, stopped: Callable[[], bool]) -> None:
    """Reserve and settle by many clients until told to stop."""
    await asyncio.gather(*(_client(store, told, stopped, i) for i in range(CLIENTS)))


async def _client(store: SQLStore, told: Told, stopped: Callable[[], bool], client: int) -> None:
    turn = 0
    while not stopped():
        turn += 1
        hold = reserved(f"{store.owner}-{client}-{turn}", owner=store.owner)
        if await _told(store, told, hold, again=client % 2 == 0):
            await _told(store, told, posted(hold), again=True)


async def _told(store: SQLStore, told: Told, entry: Entry, *, again: bool) -> bool:
    while True:
        try:
            await store.append([entry])
        except LedgerUnavailable:
            told.refusals += 1
            await asyncio.sleep(PAUSE_S)
            if not again:
                told.refused.append(entry)
                return False
        else:
            told.acknowledged.append(entry)
            return True


def check(store: SQLStore, told: Told) -> None:
    """Nothing acknowledged is lost, nothing refused is stored, nothing is there twice; it adds up.

    Args:
        store: another process's, which takes over.
        told: what clients were told.
    """
    stored = list(store.load_entries())
    check_chain(store)
    by_place = {_place(entry): entry for entry in stored}
    assert max(Counter(map(_place, stored)).values()) == 1
    for entry in told.acknowledged:
        assert by_place[_place(entry)] == entry
    assert not {_place(entry) for entry in told.refused} & set(by_place)
    assert len(stored) == len(told.acknowledged)
    settled = {entry.request for entry in stored if isinstance(entry, Posted)}
    holds = {e.request for e in stored if isinstance(e, Reserved)} - settled
    money = sum(entry.charged_nanodollars for entry in stored if isinstance(entry, Posted))
    assert charged(store) == charged(store, by_hour=True) == money
    assert {hold.request for hold in store.take_over(NOW + 10**12)} == holds
    assert charged(store) == charged(store, by_hour=True) == money


def _place(entry: Entry) -> tuple[str, int, str]:
    return entry.request, entry.attempt, entry.phase


def main(url: str, owner: str, count: int) -> None:
    """One process that appends."""
    store = postgres_store(url, owner)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    try:
        for i in range(count):
            hold = reserved(f"{owner}-{i}", owner=owner)
            store.append_now([hold])
            sys.stdout.write(f"{hold.request}\n")
            sys.stdout.flush()
    except LedgerUnavailable as error:
        sys.stdout.write("fenced\n" if "taken over" in str(error) else f"{error}\n")
    finally:
        store.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
