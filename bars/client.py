"""A plain HTTP client that counts what it receives; it shares no code with the factory."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass
class Received:
    """What one request brought."""

    status: int = 0
    request: str = ""
    retry_after_s: int | None = None
    done: bool = False
    text_chunks: int = 0
    finish_reason: str | None = None
    service_tier: str | None = None
    usage: dict[str, Any] | None = None
    error: str | None = None

    @property
    def output_tokens(self) -> int:
        """As the factory said."""
        return self.usage["completion_tokens"] if self.usage else 0


async def chat(
    port: int,
    key: str,
    body: dict[str, Any],
    *,
    chunks_max: int = 0,
    on_events: Callable[[Received], None] | None = None,
) -> Received:
    """Send one request and read its stream.

    Args:
        port: of a factory on loopback.
        key: the secret.
        body: the request.
        chunks_max: hang up after so many chunks with text; 0 reads to the end.
        on_events: called whenever something came.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    received = Received()
    try:
        payload = json.dumps(body).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n"
        )
        writer.write(head.encode() + payload)
        raw_head = await reader.readuntil(b"\r\n\r\n")
        chunked = _read_head(raw_head.decode(), received)
        if received.status != 200:
            received.error = (await reader.read()).decode(errors="replace")
            return received
        rest = b""
        while True:
            data = await (_chunk(reader) if chunked else reader.read(65536))
            if not data:
                return received
            *events, rest = (rest + data).split(b"\n\n")
            for event in events:
                _take(event.strip(), received)
            if on_events is not None:
                on_events(received)
            if chunks_max and received.text_chunks >= chunks_max:
                return received
    except (OSError, asyncio.IncompleteReadError) as error:
        received.error = repr(error)
        return received
    finally:
        writer.close()


def _read_head(head: str, received: Received) -> bool:
    lines = head.split("\r\n")
    received.status = int(lines[0].split()[1])
    chunked = False
    for line in lines[1:]:
        name, _, value = line.partition(":")
        match name.lower():
            case "x-request-id":
                received.request = value.strip()
            case "retry-after":
                received.retry_after_s = int(value)
            case "transfer-encoding":
                chunked = "chunked" in value
    return chunked


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    size = int((await reader.readuntil(b"\r\n")).strip(), 16)
    data = await reader.readexactly(size + 2)
    return data[:-2]


def _take(event: bytes, received: Received) -> None:
    if event == b"data: [DONE]":
        received.done = True
        return
    if not event.startswith(b"data: "):
        return
    chunk = json.loads(event[6:])
    if "error" in chunk:
        received.error = chunk["error"]["message"]
        return
    received.usage = chunk.get("usage") or received.usage
    received.service_tier = chunk.get("service_tier") or received.service_tier
    for choice in chunk["choices"]:
        delta = choice["delta"]
        received.text_chunks += bool(delta.get("content") or delta.get("tool_calls"))
        received.finish_reason = choice["finish_reason"] or received.finish_reason
