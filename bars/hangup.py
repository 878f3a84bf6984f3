"""A caller leaves after each chunk of a stream: billed is what was made, and the worker stops.

The worker is one of ours that makes a chunk when it is told to and counts them, and so it is known
what it had made when its connection closed. ``step`` lets it wait for the caller after each chunk:
exactly what it made must be billed. ``paced`` lets it go on by itself, as workers do: what is
billed lies between what the caller had and what the worker made until it noticed. Callers leave by
closing (FIN) and by resetting (RST) their connection. Those who asked for a whole answer have seen
nothing of it when they leave; the worker has made so many chunks by then, and all have arrived.

python -m bars.hangup
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import itertools
import json
import socket
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from bars.factory import running
from bars.proof import proved
from bars.scripted_worker import CHUNKS, PROMPT_TOKENS, TEXT, ScriptedWorker
from bench.gateway_peers import tool
from tokenworks.ledger.entries import Posted
from tokenworks.live.home import packaged
from tokenworks.live.store import sqlite_store

WAIT_S_MAX = 60
PACE_MS = 2
WAYS = ("close", "reset")
ROUTES = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
FACTORY = """
[gateway]
pass_through = {passing}

[pool.worker]
engine = "attached"
model = "{model}"
urls = ["{url}"]
slots = 64
curve = [[1, 400], [64, 400]]
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """One caller.

    Attributes:
        dialect: what it speaks.
        way: how it leaves.
        index: after how many chunks.
        telling: whether the worker says in each chunk what was used so far.
        pace_ms: 0 for a worker that waits for it after each chunk.
        stream: whether it asks for a stream.
    """

    dialect: str
    way: str
    index: int
    telling: bool = False
    pace_ms: int = 0
    stream: bool = True

    @property
    def name(self) -> str:
        """What the ledger calls its run."""
        telling = "told" if self.telling else "seen"
        shape = "stream" if self.stream else "whole"
        return f"{self.dialect}.{shape}.{telling}.{self.pace_ms}.{self.way}.{self.index}"


@dataclasses.dataclass(frozen=True)
class Left:
    """What became of it.

    Attributes:
        made: chunks with a token that the worker had sent when it noticed.
        noticed_ms: from the caller's leaving to that.
    """

    case: Case
    made: int
    noticed_ms: float


def cases(*, passing: bool, chunks: int = CHUNKS, paced: bool = False) -> Iterator[Case]:
    """Every index, in every dialect, by every way of leaving.

    Args:
        passing: for a factory that passes requests on as they are.
        chunks: of a stream.
        paced: whether the worker goes on by itself.
    """
    kinds = [(False, True)]
    if not passing:
        kinds += [(True, True), *([] if paced else [(False, False)])]
    for dialect, (telling, stream), way in itertools.product(ROUTES, kinds, WAYS):
        if not telling or dialect == "chat":
            for index in range(chunks + 1):
                pace_ms = PACE_MS if paced else 0
                yield Case(dialect, way, index, telling=telling, pace_ms=pace_ms, stream=stream)


async def leave(worker: ScriptedWorker, port: int, key: str, case: Case) -> Left:
    """Ask, read so many chunks, leave; returns once the worker's connection has closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    worker.telling, worker.pace_s = case.telling, case.pace_ms / 1e3
    writer.write(_request(case, key))
    stream = await worker.next_stream()
    received = b""
    if not case.stream:
        for _ in range(case.index):
            stream.step()
        await _turn(port)
    while case.stream and received.count(TEXT) < case.index:
        if not case.pace_ms:
            stream.step()
        had = received.count(TEXT)
        while received.count(TEXT) == had:
            data = await reader.read(65536)
            assert data, received
            received += data
    left_s = _leave(writer, case.way)
    await stream.closed.wait()
    return Left(case, stream.made, (stream.closed_s - left_s) * 1e3)


def _request(case: Case, key: str) -> bytes:
    body: dict[str, Any] = {"model": "scripted", "stream": case.stream}
    match case.dialect:
        case "completions":
            body |= {"prompt": "hello", "max_tokens": CHUNKS}
        case "responses":
            body |= {"input": "hello", "max_output_tokens": CHUNKS}
        case _:
            turns = [{"role": "user", "content": "hello"}]
            body |= {"messages": turns, "max_tokens": CHUNKS}
    raw = json.dumps(body).encode()
    head = (
        f"POST {ROUTES[case.dialect]} HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {key}\r\n"
        f"X-Tokenworks-Run: {case.name}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


async def _turn(port: int) -> None:
    """Return once the gateway has read what lay in its sockets: it answers what came later."""
    for _ in range(2):  # it may have found both in one look at its sockets, and this one first
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()


def _leave(writer: asyncio.StreamWriter, way: str) -> float:
    """Close the connection; when, on the loop's clock."""
    if way == "reset":
        at_once = struct.pack("ii", 1, 0)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    left_s = time.monotonic()
    writer.transport.abort()  # closes the socket in the loop's next turn
    return left_s


def prepare(home: Path, worker: str, *, passing: bool) -> None:
    """Make a factory's folder: a pool of one worker, prices, and a limit that is checked."""
    home.mkdir()
    model = "*" if passing else "scripted"
    url = worker + ("/v1" if passing else "")
    words = {"passing": str(passing).lower(), "model": model, "url": url}
    (home / "factory.toml").write_text(FACTORY.format(**words))
    prices = packaged("laptop.toml").read_text().replace("price.foreman", f'price."{model}"')
    (home / "price_book.toml").write_text(prices)
    tool(home, "quota", "set", "tenant:local", "--tokens", str(10**12))


@contextlib.asynccontextmanager
async def factory(home: Path, *, passing: bool) -> AsyncIterator[tuple[ScriptedWorker, int, str]]:
    """A factory before a scripted worker, the worker, and the factory's port and key."""
    async with ScriptedWorker() as worker:
        await asyncio.to_thread(prepare, home, worker.url, passing=passing)
        with contextlib.ExitStack() as stack:
            up = await asyncio.to_thread(stack.enter_context, running(home, "--quiet"))
            yield worker, up.port, up.key
            assert await asyncio.to_thread(up.stop) == 0


async def run(home: Path, *, passing: bool, paced: bool = False) -> list[Left]:
    """All cases, one after another."""
    found = []
    async with factory(home, passing=passing) as (worker, port, key):
        for case in cases(passing=passing, paced=paced):
            async with asyncio.timeout(WAIT_S_MAX):
                found.append(await leave(worker, port, key, case))
    return found


def posted_by_run(home: Path) -> dict[str, Posted]:
    """What the ledger has of each case, proved; no hold is open."""
    store = sqlite_store(home / "ledger.sqlite")
    try:
        entries = proved(store).values()
    finally:
        store.close()
    found = {str(entry.payer.run): entry for entry in entries}
    assert len(found) == len(entries), "two entries of one run"
    return found


def faults(left: list[Left], posted: dict[str, Posted], *, passing: bool) -> list[str]:
    """Cases whose bill is not what was made."""
    found = []
    for each in left:
        case, entry = each.case, posted.get(each.case.name)
        if entry is None:
            if case.index:
                found.append(f"{case.name}: nothing billed, {each.made} made")
            continue  # it left before the worker's answer was there: its reservation is void
        billed, made = entry.usage.completion_tokens, each.made
        fewest = case.index if case.pace_ms else made
        if passing and case.dialect == "messages":
            fewest, made = (
                max(fewest, 1),
                max(made, 1),
            )  # Anthropic tells of one before there is any
        if not fewest <= billed <= made:
            found.append(f"{case.name}: {billed} billed, {each.made} made")
        if case.telling and case.index and entry.usage.prompt_tokens != PROMPT_TOKENS:
            found.append(f"{case.name}: {entry.usage.prompt_tokens} billed of the prompt")
        if entry.ending != "disconnected":
            found.append(f"{case.name}: ended as {entry.ending}")
    return found


def figures(left: list[Left], posted: dict[str, Posted]) -> dict[str, Any]:
    """Times in milliseconds, and chunks that were made and not billed."""
    times = sorted(each.noticed_ms for each in left)
    billed = {name: entry.usage.completion_tokens for name, entry in posted.items()}
    unbilled = collections.Counter(
        max(0, each.made - billed.get(each.case.name, 0)) for each in left
    )
    return {
        "streams": len(left),
        "noticed_ms_p50": round(times[len(times) // 2], 3),
        "noticed_ms_p99": round(times[int(len(times) * 0.99)], 3),
        "noticed_ms_max": round(times[-1], 3),
        "void": sum(each.case.name not in posted for each in left),
        "made_but_not_billed": dict(sorted(unbilled.items())),
    }


def main() -> None:
    """Run the bar; the last line is JSON."""
    argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0]).parse_args()
    found: dict[str, Any] = {}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for passing in (False, True):
            for paced in (False, True):
                name = f"{'passed on' if passing else 'translated'}, {'paced' if paced else 'step'}"
                home = Path(folder) / name.replace(", ", "-").replace(" ", "-")
                left = asyncio.run(run(home, passing=passing, paced=paced))
                posted = posted_by_run(home)
                wrong += faults(left, posted, passing=passing)
                found[name] = figures(left, posted)
                print(f"{name:20}", found[name], flush=True)
    print("\n".join(wrong[:20]))
    print(json.dumps({"bar": "hangup", **found, "faults": len(wrong)}))
    assert not wrong


if __name__ == "__main__":
    main()
