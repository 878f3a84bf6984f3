"""Many streams at once for a while: no error but honest 429s, and every token accounted for.

python -m bars.load --streams 64 --seconds 60
python -m bars.load --streams 256 --seconds 60 --twin 10    # modelled workers, 10 times as fast
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from bars.client import Received, chat
from bars.factory import Running, running
from bars.proof import proved
from tokenworks.ledger.entries import Posted
from tokenworks.live.store import sqlite_store

TIERS = ("free", "medium", "high", "premium", "ultra")
QUESTIONS = (
    "What can you do?",
    "Who are you?",
    "What is TTFT?",
    "What is a token factory?",
    "What is 348 + 77?",
    "Repeat: amber-17 copper_cloud x42",
    "Report:\nrevenue: 41.20 USD\ntokens: 5120 tokens\nWhat is the revenue?",
)


@dataclasses.dataclass
class Load:
    """What the clients saw."""

    received: list[Received] = dataclasses.field(default_factory=list)
    rss_bytes: list[int] = dataclasses.field(default_factory=list)

    def done(self) -> list[Received]:
        """Answers that came whole."""
        return [r for r in self.received if r.done]


def body_for(rng: random.Random, output_tokens_max: int, model: str) -> dict[str, Any]:
    """A request; half of them run to their limit, so that lengths differ."""
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": output_tokens_max,
        "service_tier": rng.choice(TIERS),
        "messages": [{"role": "user", "content": rng.choice(QUESTIONS)}],
    }
    if rng.random() < 0.5:
        body |= {"ignore_eos": True, "max_tokens": rng.randrange(8, output_tokens_max)}
    return body


async def stream_until(
    factory: Running, load: Load, until: float, seed: int, output_tokens_max: int, model: str
) -> None:
    """One client: ask, read, ask again; after a 429 wait as long as it says."""
    rng = random.Random(seed)
    while time.monotonic() < until and factory.process.poll() is None:
        try:
            body = body_for(rng, output_tokens_max, model)
            received = await chat(factory.port, factory.key, body)
        except OSError as error:
            received = Received(error=repr(error))
        load.received.append(received)
        if received.status == 429:
            left = until - time.monotonic()
            await asyncio.sleep(max(0.0, min(float(received.retry_after_s or 0), left)))


async def run_load(
    factory: Running,
    *,
    streams: int,
    seconds: float,
    seed: int,
    output_tokens_max: int = 128,
    model: str = "foreman",
) -> Load:
    """So many clients for so long."""
    load = Load()
    until = time.monotonic() + seconds

    async def watch() -> None:
        while time.monotonic() < until:
            load.rss_bytes.append(factory.rss_bytes())
            await asyncio.sleep(min(1.0, seconds / 20))

    clients = (
        stream_until(factory, load, until, seed * 1000 + i, output_tokens_max, model)
        for i in range(streams)
    )
    await asyncio.gather(watch(), *clients)
    return load


def check_load(load: Load, home: Path, *, by_chunk: bool = True) -> dict[str, Any]:
    """Compare the clients' count with the ledger's; raises AssertionError where they differ.

    Args:
        load: what the clients saw.
        home: of the factory, which has stopped.
        by_chunk: whether each chunk holds one token; a modelled worker's hold several.
    """
    statuses = collections.Counter(r.status for r in load.received)
    assert set(statuses) <= {200, 429}, (statuses, [r.error for r in load.received if r.error][:3])
    broken = [r for r in load.received if r.status == 200 and not (r.done and not r.error)]
    assert not broken, broken[:3]
    dishonest = [r for r in load.received if r.status == 429 and not r.retry_after_s]
    assert not dishonest, dishonest[:3]
    for r in load.done():
        # The closing token of an answer that ended by itself has no text.
        closing = 1 if r.finish_reason == "stop" else 0
        assert not by_chunk or r.output_tokens == r.text_chunks + closing, r
    posted = posted_of(home)
    done = load.done()
    assert len(posted) == len(done), (len(posted), len(done))
    for r in done:
        entry = posted[r.request]
        assert entry.usage.completion_tokens == r.output_tokens, (entry, r)
        assert r.usage is not None
        assert entry.usage.prompt_tokens == r.usage["prompt_tokens"], (entry, r)
        assert entry.tier_delivered == r.service_tier, (entry, r)
    quarter = max(1, len(load.rss_bytes) // 4)
    early = sum(load.rss_bytes[quarter : 2 * quarter]) / quarter
    late = sum(load.rss_bytes[-quarter:]) / quarter
    return {
        "answers": len(done),
        "refused_429": statuses[429],
        "output_tokens_clients": sum(r.output_tokens for r in done),
        "output_tokens_ledger": sum(entry.usage.completion_tokens for entry in posted.values()),
        "delivered": dict(sorted(collections.Counter(r.service_tier for r in done).items())),  # type: ignore[type-var]
        "rss_mb_early": round(early / 1e6, 1),
        "rss_mb_late": round(late / 1e6, 1),
    }


def posted_of(home: Path) -> dict[str, Posted]:
    """Settled answers by request; the ledger's books are proved on the way."""
    store = sqlite_store(home / "ledger.sqlite")
    try:
        return proved(store)
    finally:
        store.close()


def main() -> None:
    """Run the bar and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--twin", metavar="SPEEDUP", help="modelled workers, so much faster")
    parser.add_argument("--output-tokens", type=int, default=128, help="of an answer at most")
    args = parser.parse_args()
    words = ("--twin", "--speedup", args.twin) if args.twin else ()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), *words) as factory:
        load = asyncio.run(
            run_load(
                factory,
                streams=args.streams,
                seconds=args.seconds,
                seed=args.seed,
                output_tokens_max=args.output_tokens,
                model="twin" if args.twin else "foreman",
            )
        )
        cpu_s = factory.cpu_s()
        status = factory.stop()
        figures = check_load(load, Path(folder), by_chunk=not args.twin)
        figures |= {"exit_status": status, "factory_cpu_s": round(cpu_s, 2)}
        assert status == 0, status
        assert figures["rss_mb_late"] < figures["rss_mb_early"] * 1.05 + 5, figures
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
