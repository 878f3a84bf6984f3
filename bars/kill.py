"""kill -9 of a factory under load, again and again: what was settled stays, the rest is freed.

python -m bars.kill --times 10
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from bars.client import Received
from bars.factory import Running, running
from bars.load import Load, posted_of, stream_until


async def load_and_kill(factory: Running, seconds: float, seed: int, streams: int) -> Load:
    """Load a factory, kill it in the middle, and give back what the clients saw."""
    load = Load()
    until = time.monotonic() + seconds + 30
    clients = [
        asyncio.create_task(stream_until(factory, load, until, seed * 1000 + i, 96, "foreman"))
        for i in range(streams)
    ]
    await asyncio.sleep(seconds)
    await asyncio.to_thread(factory.kill)
    await asyncio.gather(*clients)
    return load


def run_kills(home: Path, *, times: int, seed: int, streams: int = 24) -> dict[str, Any]:
    """So many kills of one factory's home; raises AssertionError where something is lost."""
    rng = random.Random(seed)
    settled: list[Received] = []
    killed_workers = 0
    for turn in range(times):
        with running(home, "--quiet") as factory:
            workers = len(factory.workers())
            seconds = rng.uniform(0.3, 3.0)
            load = asyncio.run(load_and_kill(factory, seconds, seed + turn, streams))
            killed_workers += workers
        settled += load.done()
    with running(home, "--quiet") as factory:
        assert factory.stop() == 0
    posted = posted_of(home)  # asserts that no hold is open and debits equal credits
    for r in settled:
        entry = posted.get(r.request)
        assert entry is not None, f"{r.request} was acknowledged and is not in the ledger"
        assert entry.usage.completion_tokens == r.output_tokens, (entry, r)
        assert entry.tier_delivered == r.service_tier, (entry, r)
    return {
        "kills": times,
        "acknowledged": len(settled),
        "in_ledger": len(posted),
        "workers_that_died_with_it": killed_workers,
    }


def main() -> None:
    """Run the bar and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run_kills(Path(folder), times=args.times, seed=args.seed)))


if __name__ == "__main__":
    main()
