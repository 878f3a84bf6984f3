"""Clients that ask, read and ask again over kept connections, and check every answer whole.

They cost little, so that two cores are enough for client, gateway and worker.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import time
from typing import Any

import httptools

from bench.fake_worker import MODEL, TOKEN

CONNECTIONS_PER_ADDRESS = 5_000
"""Of one loopback address; the kernel has some 28,000 ports for each."""

CONNECTING_MAX = 100
_CONTENT = b'"delta":{"content":"'
_SENT_NS = re.compile(rb'"delta":\{"content":"(\d{20})"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode:
    """What is asked for.

    Attributes:
        stream: as an event stream.
        tokens: of each answer.
        pace_us: between two of them; 0 for all at once.
    """

    stream: bool
    tokens: int
    pace_us: int = 0

    def body(self) -> bytes:
        """The request's."""
        fields: dict[str, Any] = {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "You are a patient assistant."},
                {"role": "user", "content": "What does a token factory make, and for whom?"},
            ],
            "max_tokens": self.tokens,
            "temperature": 0.7,
        }
        if self.stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.pace_us:
            fields["user"] = f"pace_us={self.pace_us}"
        return json.dumps(fields).encode()

    def fault(self, status: int, body: bytes) -> str | None:
        """Why an answer is not whole; None if it is."""
        if status != 200:
            return f"status {status}: {body[:300]!r}"
        used = b'"completion_tokens":%d' % self.tokens
        if self.stream:
            whole = (
                body.count(_CONTENT) == self.tokens
                and body.count(b'"finish_reason":"length"') == 1
                and body.endswith(b"data: [DONE]\n\n")
            )
        else:
            whole = (TOKEN * self.tokens).encode() in body and b'"finish_reason":"length"' in body
        if not whole or used not in body:
            return f"not whole: {len(body)} bytes, ... {body[-300:]!r}"
        return None


@dataclasses.dataclass
class Seen:
    """What the clients saw.

    Attributes:
        answers: whole ones.
        faults: what was wrong with the others; the first of each kind.
        failed: how many others.
        ttft_ns: from sending a request to its first token.
        added_gap_ns: of a paced token: how much later after the one before it came than it was
            sent after it.
        wall_s: from the first request to the last answer.
    """

    answers: int = 0
    failed: int = 0
    faults: list[str] = dataclasses.field(default_factory=list)
    ttft_ns: list[int] = dataclasses.field(default_factory=list)
    added_gap_ns: list[int] = dataclasses.field(default_factory=list)
    wall_s: float = 0.0

    def add(self, other: Seen) -> None:
        """Put another's with this one's."""
        self.answers += other.answers
        self.failed += other.failed
        self.faults += other.faults
        self.ttft_ns += other.ttft_ns
        self.added_gap_ns += other.added_gap_ns
        self.wall_s += other.wall_s


class Client(asyncio.Protocol):
    """One connection that asks until a time, or so often."""

    def __init__(
        self, request: bytes, mode: Mode, seen: Seen, until_ns: int, asks_max: int | None
    ) -> None:
        self._request, self._mode, self._seen = request, mode, seen
        self._until_ns, self._asks_left = until_ns, asks_max
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._parts: list[bytes] = []
        self._sent_ns = self._now_ns = self._delay_ns = 0
        self._first = True
        self.begun = asyncio.get_running_loop().create_future()
        """Done with the first token of the first answer."""
        self.ended = asyncio.get_running_loop().create_future()

    def last(self) -> None:
        """Let the answer that is open be the last."""
        self._asks_left = 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._parts.clear()
        self._first, self._delay_ns = True, 0
        self._sent_ns = time.monotonic_ns()
        self._transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer is open until it is whole."""
        if not self.ended.done():
            self._fail(f"the connection was lost: {exc!r}")

    def _fail(self, fault: str) -> None:
        self._seen.failed += 1
        if len(self._seen.faults) < 10:
            self._seen.faults.append(fault)
        self._end()

    def _end(self) -> None:
        for future in (self.begun, self.ended):
            if not future.done():
                future.set_result(None)
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Parse, at the time at which it came."""
        self._now_ns = time.monotonic_ns()
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        """See httptools."""
        self._parts.append(data)
        if self._first and (_CONTENT in data or not self._mode.stream):
            self._first = False
            self._seen.ttft_ns.append(self._now_ns - self._sent_ns)
            if not self.begun.done():
                self.begun.set_result(None)
        if self._mode.pace_us:
            for found in _SENT_NS.finditer(data):
                delay_ns = self._now_ns - int(found[1])
                if self._delay_ns:
                    self._seen.added_gap_ns.append(delay_ns - self._delay_ns)
                self._delay_ns = delay_ns

    def on_message_complete(self) -> None:
        """Check the answer, and ask again."""
        fault = self._mode.fault(self._parser.get_status_code(), b"".join(self._parts))
        if fault is not None:
            self._fail(fault)
            return
        self._seen.answers += 1
        if self._asks_left is not None:
            self._asks_left -= 1
        if self._asks_left == 0 or time.monotonic_ns() >= self._until_ns:
            self._end()
        else:
            self._ask()


def request_for(port: int, key: str, mode: Mode) -> bytes:
    """The bytes of a request."""
    body = mode.body()
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"User-Agent: bench\r\nAccept: */*\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


class Crowd:
    """So many clients at once, spread evenly over ports."""

    def __init__(
        self,
        ports: list[int],
        key: str,
        mode: Mode,
        *,
        clients: int,
        seconds: float = 3600.0,
        asks_max: int | None = None,
    ) -> None:
        self.seen = Seen()
        self._ports, self._key, self._mode = ports, key, mode
        self._clients = clients
        self._until_ns = time.monotonic_ns() + int(seconds * 1e9)
        self._asks_max = asks_max
        self._open: list[Client] = []
        self._slots = asyncio.Semaphore(CONNECTING_MAX)

    async def run(self) -> Seen:
        """Ask until it is over."""
        await self.begin()
        return await self.end()

    async def begin(self, *, wait: bool = False) -> None:
        """Connect, and wait for each connection's first token if that is wanted."""
        self._began_s = time.monotonic()
        await asyncio.gather(*(self._connect(i, wait=wait) for i in range(self._clients)))

    async def _connect(self, number: int, *, wait: bool) -> None:
        loop = asyncio.get_running_loop()
        port = self._ports[number % len(self._ports)]
        request = request_for(port, self._key, self._mode)
        source = f"127.0.0.{1 + number // CONNECTIONS_PER_ADDRESS}"
        async with self._slots:
            try:
                _, client = await loop.create_connection(
                    lambda: Client(request, self._mode, self.seen, self._until_ns, self._asks_max),
                    "127.0.0.1",
                    port,
                    local_addr=(source, 0) if number >= CONNECTIONS_PER_ADDRESS else None,
                )
            except OSError as error:
                self.seen.failed += 1
                self.seen.faults.append(f"cannot connect: {error!r}")
                return
            self._open.append(client)
            if wait:
                await client.begun

    def last(self) -> None:
        """Let the answers that are open be the last ones."""
        for client in self._open:
            client.last()

    async def end(self) -> Seen:
        """Wait for the last answer."""
        await asyncio.gather(*(client.ended for client in self._open))
        self.seen.wall_s = time.monotonic() - self._began_s
        return self.seen
