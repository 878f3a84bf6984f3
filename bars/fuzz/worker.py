"""The client that speaks to workers: any bytes for an answer, cut anyhow, ended anyhow.

What must hold: no exception escapes; an answer ends once, and nothing comes after its end; its
status and body do not depend on the cuts; a connection goes back to the pool only after a whole
answer, and then carries a second one.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from bars.fuzz.choices import Choices, cut, spliced
from tests.gateway.fake_desk import FakeTransport
from tokenworks.core.errors import WorkerFailed
from tokenworks.live.network import HEADER_BYTES_MAX, WorkerClient, _Connection

LINES = (
    *(b"HTTP/1.1 200 OK", b"HTTP/1.1 200", b"HTTP/1.0 200 OK", b"HTTP/1.1 100 Continue"),
    *(
        b"HTTP/1.1 204 No Content",
        b"HTTP/1.1 304 Not",
        b"HTTP/1.1 101 Switching",
        b"HTTP/1.1 503 No",
    ),
    *(b"HTTP/1.1 99999 X", b"HTTP/2 200", b"ICY 200 OK", b"HTTP/1.1 000 X", b"HTTP/1.1 103 Early"),
)
FIELDS = (
    *(b"content-length: 5", b"content-length: 0", b"content-length: 5, 5", b"content-length: -1"),
    *(b"Transfer-Encoding: chunked", b"transfer-encoding: gzip", b"connection: close"),
    *(b"connection: keep-alive", b"connection: upgrade", b"upgrade: h2c", b"content-type: text/x"),
    *(b"content-type: \xff", b"x: " + b"v" * 300, b"nocolon", b" folded", b"x:", b"x: a\0b"),
)
BODIES = (
    *(b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"zz\r\n"),
    *(
        b"5;a=b\r\nhello\r\n0\r\nx: y\r\n\r\n",
        b"hello world",
        b"ffffffffffffffffff\r\n",
        b"5\nhello\n0\n\n",
    ),
)


class _Transport(FakeTransport):
    """A socket of which a client asks for the socket itself."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The socket."""
        assert name == "socket", default
        return SimpleNamespace(setsockopt=lambda *_: None)


class _Taken:
    """Takes an answer; implements ``ports.Sink``."""

    def __init__(self) -> None:
        self.body, self.ends, self.failed = b"", 0, False

    def data(self, data: bytes) -> None:
        """A part."""
        assert data
        assert not self.ends, "bytes after the end"
        self.body += data

    def ended(self, failure: WorkerFailed | None) -> None:
        """The end."""
        self.ends += 1
        self.failed = failure is not None


def answers(choices: Choices) -> bytes:
    """What a worker sends after one request."""
    raw = b""
    for _ in range(1 + choices.below(3)):
        lines = [choices.of(LINES), *choices.some(FIELDS, 3)]
        body = choices.of(BODIES)
        if choices.flag():
            lines.append(b"content-length: %d" % len(body))
        end = b"\r\n" if not choices.flag(8) else b"\n"
        raw += end.join([*lines, b"", b""]) + body
    return spliced(choices, raw) if choices.flag() else raw


def _answer(parts: list[bytes], *, passed: bool, bodiless: bool, late: int) -> tuple[Any, ...]:
    """One exchange; the sink is there after so many parts."""
    client = WorkerClient("x", 1, None)
    connection = _Connection(client)
    socket = _Transport()
    connection.connection_made(socket)
    client._open[connection] = True  # noqa: SLF001
    client._sockets = 1  # noqa: SLF001
    stream = connection.exchange(b"request", 9.0, keep_headers=passed, bodiless=bodiless)
    taken = _Taken()
    for i, part in enumerate(parts):
        if i == late:
            stream.pipe(taken)
        if socket.closed:
            break
        connection.data_received(part)
    if stream._sink is None and not taken.ends:  # noqa: SLF001
        stream.pipe(taken)
    idle = bool(client._idle)  # noqa: SLF001
    if not idle:
        connection.connection_lost(None)
    elif not socket.closed:
        second = connection.exchange(b"again", 9.0)
        next_taken = _Taken()
        connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        second.pipe(next_taken)
        assert (second.status, next_taken.body, next_taken.failed) == (200, b"ok", False)
    assert taken.ends == 1, parts
    size = sum(len(name) + len(value) for name, value in stream.headers)
    assert size <= HEADER_BYTES_MAX
    return stream.status, taken.body, taken.failed


async def _both(data: bytes) -> None:
    choices = Choices(data)
    passed, bodiless = choices.flag(), choices.flag(8)
    raw = choices.rest() if choices.flag(8) else answers(choices)
    parts = cut(choices, raw)
    if not raw:
        return
    late = choices.below(len(parts) + 1)
    whole = _answer([raw], passed=passed, bodiless=bodiless, late=0)
    other = _answer(parts, passed=passed, bodiless=bodiless, late=late)
    if not whole[2] and not other[2]:
        # Bytes beyond a whole answer spoil it only where they come with it.
        assert whole == other, (raw, parts, whole, other)
    await asyncio.sleep(0)


_loop: list[asyncio.AbstractEventLoop] = []


def one(data: bytes) -> None:
    """Check one input."""
    if not _loop:
        _loop.append(asyncio.new_event_loop())
    _loop[0].run_until_complete(_both(data))
