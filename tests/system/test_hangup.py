"""A caller who hangs up stops a real worker, and pays for what was produced until then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bars.client import Received, chat
from bars.factory import Running, running
from bars.load import posted_of

pytestmark = pytest.mark.slow

LONG: dict[str, Any] = {
    "model": "foreman",
    "stream": True,
    "max_tokens": 1500,
    "ignore_eos": True,
    "messages": [{"role": "user", "content": "What can you do?"}],
}


@pytest.fixture
def factory(model_path: Path, tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, "--quiet") as found:
        yield found


@pytest.mark.parametrize("chunks", [1, 7])
def test_what_was_produced_is_billed(
    factory: Running, run: Callable[[Any], Any], chunks: int
) -> None:
    received: Received = run(chat(factory.port, factory.key, LONG, chunks_max=chunks))
    assert received.text_chunks >= chunks
    assert not received.done
    assert factory.stop() == 0  # finishes what is open: nothing is left but to settle it
    (entry,) = posted_of(factory.home).values()
    assert entry.ending == "disconnected"
    assert entry.usage.output_tokens >= received.text_chunks
    assert entry.usage.output_tokens < LONG["max_tokens"], "the worker was not stopped"
    assert entry.usage.prompt_tokens > 0
    assert entry.charged_nanodollars > 0


def test_one_that_asked_for_no_stream_is_stopped_too(
    factory: Running, run: Callable[[Any], Any]
) -> None:
    async def hang_up() -> None:
        asking = asyncio.create_task(
            chat(factory.port, factory.key, {**LONG, "stream": False, "service_tier": "ultra"})
        )
        both = b"tokenworks_open_requests 2"  # the chat and this question
        while both not in await _metrics(factory.port):
            pass
        asking.cancel()

    run(hang_up())
    assert factory.stop() == 0
    entries = list(posted_of(factory.home).values())
    # Hung up before a worker began, nothing is billed; after it, what was produced.
    assert all(entry.ending == "disconnected" for entry in entries)
    assert all(entry.usage.output_tokens < LONG["max_tokens"] for entry in entries)


async def _metrics(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    found = await reader.read()
    writer.close()
    return found
