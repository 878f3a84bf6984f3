"""How soon a running factory heeds what is done to its keys.

A factory as ``tokenworks up`` starts it, in a process of its own. A change is made in its ledger as
``tokenworks key`` makes it, then the factory is asked again and again who may come in; the time is
from the moment at which the change is durable to the first answer that heeds it. JSON last.

python -m bench.key_changes --turns 50
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bars.factory import running
from tokenworks.ledger.actions import CreateKey
from tokenworks.live.clock import SystemClock
from tokenworks.live.home import Home
from tokenworks.live.key_making import digest_of, make_key, new_secret, put_new_key
from tokenworks.live.store import SQLStore, sqlite_store

WAIT_S_MAX = 30
STEP_S = 0.001


class Turns:
    """Changes, one after another, and how long each took to be heeded."""

    def __init__(self, port: int, store: SQLStore) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port)
        self.store = store
        self.heeded_ms: dict[str, list[float]] = {"create": [], "rotate": [], "revoke": []}

    def status(self, secret: str) -> int:
        """What the factory says to whoever has a secret."""
        headers = {"authorization": f"Bearer {secret}"}
        self.connection.request("GET", "/v1/models", headers=headers)
        response = self.connection.getresponse()
        response.read()
        return response.status

    def time(self, change: str, heeded: Callable[[], bool]) -> None:
        """Wait until a change that has just been made is heeded."""
        began_s = time.monotonic()
        while not heeded():
            assert time.monotonic() - began_s < WAIT_S_MAX, change
            time.sleep(STEP_S)
        self.heeded_ms[change].append((time.monotonic() - began_s) * 1_000)

    def turn(self) -> None:
        """Each change once, to a new key."""
        now = SystemClock().unix_ns()
        new = make_key(CreateKey(tenant="t"), now)
        put_new_key(self.store, new)
        first, second, key = new.secret, new_secret(), new.record.key
        self.time("create", lambda: self.status(first) == 200)
        assert self.store.rotate_key(key, digest_of(second), now)
        self.time("rotate", lambda: self.status(first) == 401)
        assert self.status(second) == 200
        assert self.store.revoke_key(key, now)
        self.time("revoke", lambda: self.status(second) == 401)


def main() -> None:
    """Run the turns and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--others", type=int, default=1_000, help="further keys in the ledger")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as factory:
        store = sqlite_store(Home(Path(folder)).ledger)
        for i in range(args.others):
            wish = CreateKey(tenant="others", name=f"{i}")
            put_new_key(store, make_key(wish, SystemClock().unix_ns()))
        turns = Turns(factory.port, store)
        for _ in range(args.turns):
            turns.turn()
        store.close()
    found = {
        change: {
            "p50_ms": round(statistics.median(ms), 1),
            "p90_ms": round(statistics.quantiles(ms, n=10)[-1], 1),
            "max_ms": round(max(ms), 1),
        }
        for change, ms in turns.heeded_ms.items()
    }
    print(json.dumps({"keys": args.others, "turns": args.turns, **found}))


if __name__ == "__main__":
    main()
