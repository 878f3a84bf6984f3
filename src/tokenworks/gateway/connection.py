"""One connection of a caller: its requests one after another, and the answers in their order.

A request is read whole and handed to the application as an ``Exchange``. While that is being
served nothing more is parsed: what a caller sends ahead waits, bounded, as bytes.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, Protocol, cast

from tokenworks.core.errors import HeadTooLarge, RequestTimeout, TokenworksError
from tokenworks.gateway.http_body import ChunkedBody, SizedBody, body_too_large
from tokenworks.gateway.http_head import HEAD_END, Head
from tokenworks.gateway.http_io import JSON, Headers
from tokenworks.gateway.http_limits import HTTPLimits

CHUNK_LINES_MAX: Final = 4_096
"""Chunks of tokens are shorter than this; the lines they begin with are kept."""
KEPT_HEAD_BYTES_MAX: Final = 2_048
"""Of a head that is kept to compare the next one with; SDKs send some 600."""
NO_BODY: Final = frozenset({204, 304})
"""Statuses whose answers end with their heads."""


class Application(Protocol):
    """What is served; called on the event loop, and does not raise."""

    def accept(self, exchange: Exchange) -> int | None:
        """Look at a head: the most bytes that its body may have; None if it was answered."""
        ...

    def serve(self, exchange: Exchange) -> None:
        """Begin to answer a whole request."""
        ...

    def refuse(self, exchange: Exchange, error: TokenworksError) -> None:
        """Answer a request that cannot be read to its end, or whose head is none."""
        ...


class Server(Protocol):
    """What the connections of a server share.

    Attributes:
        limits: what callers may ask.
        application: what is served.
        date: the header line of the date, with its line end.
        draining: whether the server is about to stop.
        now_s: the event loop's time, to a second or so.
    """

    limits: HTTPLimits
    application: Application
    date: bytes
    draining: bool
    now_s: float

    def opened(self, connection: Connection) -> bool:
        """Keep account of a connection; False if there are too many."""
        ...

    def closed(self, connection: Connection) -> None:
        """It is gone."""
        ...


class BodySink(Protocol):
    """Takes a body as it comes, so that nobody keeps the whole; called on the event loop."""

    def data(self, data: bytes) -> None:
        """A part of it, which may be empty.

        Raises:
            TokenworksError: it is no good; nothing more comes.
        """
        ...

    def drop(self) -> None:
        """It will not come whole: its caller has left, or it was refused."""
        ...


class Exchange:
    """One request and the way to answer it, once: whole, or by ``begin``, ``write`` and ``end``.

    What is written for a caller who has left goes nowhere.

    Attributes:
        head: the request's; None if it could not be read.
        body: the request's, once it is there.
        status: what it was answered with; 0 before that.
        gone: whether the caller has left before the answer's end.
        on_gone: called when that happens.
        on_pause, on_resume: called when the caller does not take what was written, and when it
            does again.
        accepted: what the application keeps of the head's acceptance.
        sink: set at the head's acceptance, takes the body, and ``body`` stays empty.
        task: that answers it, if it has one.
    """

    __slots__ = (
        "_bodiless",
        "_chunked",
        "_connection",
        "accepted",
        "body",
        "ended",
        "gone",
        "head",
        "on_gone",
        "on_pause",
        "on_resume",
        "sink",
        "status",
        "task",
    )

    def __init__(self, connection: Connection, head: Head | None) -> None:
        self._connection = connection
        self._bodiless = self._chunked = False
        self.head = head
        self.body = b""
        self.status = 0
        self.gone = False
        self.ended = False
        self.accepted: object = None
        self.sink: BodySink | None = None
        self.task: asyncio.Task[None] | None = None
        self.on_gone: Callable[[], object] | None = None
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None

    @property
    def peer(self) -> str:
        """The address at the connection's other end; nothing if it is not known."""
        return self._connection.peer

    def hold_body(self) -> None:
        """Let the caller wait with the rest of its body; a little may still come."""
        self._connection.hold_body()

    def release_body(self) -> None:
        """Go on after ``hold_body``."""
        self._connection.release_body()

    def respond(
        self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers | None = None
    ) -> None:
        """A whole answer, in one write."""
        head = b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n" % (
            self._begin(status),
            content_type,
            len(body),
            b"" if headers is None else _lines(headers),
        )
        without = self.head is not None and self.head.method == "HEAD"
        self._connection.write(head if without else head + body)
        self._end()

    def begin(self, status: int, content_type: bytes, headers: Headers) -> None:
        """The head of an answer whose length is not known yet; goes out with what follows.

        Where HTTP has no body, after HEAD say, what is written goes nowhere.
        """
        assert self.head is not None
        self._bodiless = self.head.method == "HEAD" or status in NO_BODY
        self._chunked = not (self.head.http_1_0 or self._bodiless)
        coding = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        self._connection.held = b"%b%b%b%b\r\n" % (
            self._begin(status),
            b"content-type: %b\r\n" % content_type if content_type else b"",
            coding,
            _lines(headers),
        )

    def write(self, data: bytes) -> None:
        """A part of the body; not empty."""
        assert data
        if self._bodiless:
            return
        self._connection.write(_chunk(data) if self._chunked else data)

    def end(self, data: bytes = b"") -> None:
        """The last part of the body, which may be empty."""
        if self._bodiless:
            data = b""
        elif self._chunked:
            data = _chunk(data) + _LAST_CHUNK if data else _LAST_CHUNK
        self._connection.write(data)
        self._end()

    def break_off(self) -> None:
        """Close the connection without an end, so that what was sent is not taken for whole."""
        self.ended = True
        self.on_gone = self.on_pause = self.on_resume = None
        self._connection.break_off()

    def _begin(self, status: int) -> bytes:
        assert not self.status, "answered twice"
        self.status = status
        return self._connection.status_line(self, status)

    def _end(self) -> None:
        assert not self.ended, "ended twice"
        self.ended = True
        self.on_gone = self.on_pause = self.on_resume = None
        self._connection.answered(self)


class Connection(asyncio.Protocol):
    """The server's end of one socket."""

    __slots__ = (
        "_advancing",
        "_body",
        "_buffer",
        "_closing",
        "_deadline_s",
        "_exchange",
        "_last",
        "_last_head",
        "_paused_s",
        "_peer",
        "_reading",
        "_seen",
        "_server",
        "_serving",
        "_skip",
        "_transport",
        "_unread",
        "_withheld",
        "held",
    )

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self._buffer = b""
        self._seen = 0
        """Where in the buffer to look on for the end of a head."""
        self._last_head: Head | None = None
        self._exchange: Exchange | None = None
        """The request whose head has come and whose answer has not ended."""
        self._body: SizedBody | ChunkedBody | None = None
        self._unread = False
        """Whether a head has come without all of its body."""
        self._skip = 0
        """Bytes of the body of a request that was answered without it."""
        self._serving = False
        self._advancing = False
        self._last = False
        """Whether the connection closes after the present answer."""
        self._closing = False
        self._reading = True
        self._withheld = False
        """Whether the body's sink takes no more for now."""
        self._paused_s: float | None = None
        self._deadline_s: float | None = None
        self.held = b""
        """The head of an answer, until the first part of its body."""

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket, or send it away."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's only looks like one
        self._transport.set_write_buffer_limits(self._server.limits.write_bytes_high)
        name = self._transport.get_extra_info("peername")
        if isinstance(name, tuple):
            self._peer = str(name[0])
        if self._server.opened(self):
            self._wait(self._server.limits.idle_s_max)
        else:
            self._transport.write(
                b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n"
                b"content-length: 0\r\nconnection: close\r\n\r\n"
            )
            self._unread = True
            self._close()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self._closing:
            return
        self._buffer = self._buffer + data if self._buffer else data
        if not self._serving and self._paused_s is None:
            self._advance()
        elif len(self._buffer) > self._server.limits.ahead_bytes_max and self._reading:
            self._reading = False
            assert self._transport is not None
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """A caller who sends no more has left, or has its answers already."""
        if self._exchange is not None:
            self._drop()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - gone is gone
        """The caller is gone, or we closed."""
        self._transport = None
        self._closing = True
        self._server.closed(self)
        self._leave()

    def pause_writing(self) -> None:
        """The caller does not take what was written."""
        self._paused_s = self._server.now_s
        if self._exchange is not None and self._exchange.on_pause is not None:
            self._exchange.on_pause()

    def resume_writing(self) -> None:
        """It takes it again."""
        self._paused_s = None
        if self._exchange is not None and self._exchange.on_resume is not None:
            self._exchange.on_resume()
        elif not (self._serving or self._closing):
            self._go_on()

    # What the server calls.

    def sweep(self, now_s: float) -> None:
        """End what has taken too long."""
        paused_s, deadline_s = self._paused_s, self._deadline_s
        if paused_s is not None and now_s - paused_s >= self._server.limits.send_s_max:
            self._drop()
        elif deadline_s is None or now_s < deadline_s:
            return
        elif self._closing or not (self._buffer or self._body):
            self._drop()
        else:
            self._refuse(RequestTimeout("The request has not come to its end in time."))

    def drain(self) -> None:
        """Close unless a request is being read or served."""
        if self._exchange is None and not self._closing:
            self._close()

    # What an exchange calls.

    @property
    def peer(self) -> str:
        """See ``Exchange``; of a caller who has left, too."""
        return self._peer

    def write(self, data: bytes) -> None:
        """Send bytes, after the head that is held."""
        if self._transport is not None and not self._transport.is_closing():
            if self.held:
                data, self.held = self.held + data, b""
            self._transport.write(data)

    def status_line(self, exchange: Exchange, status: int) -> bytes:
        """The first lines of an answer."""
        head = exchange.head
        if head is None or self._server.draining or not head.keep_alive:
            self._last = True
        elif self._unread:
            discard_max = self._server.limits.discard_bytes_max
            length = head.length
            self._last = self._last or head.expects or length is None or length > discard_max
        return _first_line(status, last=self._last) + self._server.date

    def answered(self, exchange: Exchange) -> None:
        """An answer has been written."""
        if exchange is not self._exchange:
            return  # its caller has left
        self._serving = False
        self._exchange = None
        if self._last or self._closing or self._server.draining:
            self._close()
            return
        self._wait(self._server.limits.idle_s_max)
        self._go_on()

    def break_off(self) -> None:
        """Close at once: the answer has no end."""
        self._exchange = None
        self._drop()

    def hold_body(self) -> None:
        """See ``Exchange``."""
        self._withheld = True
        if self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def release_body(self) -> None:
        """See ``Exchange``."""
        self._withheld = False
        if not self._reading and self._transport is not None:
            self._reading = True
            self._transport.resume_reading()
        if self._body is not None:
            self._wait(self._server.limits.body_s_max)
        if self._buffer and not self._advancing:
            self._advance()

    # Reading.

    def _go_on(self) -> None:
        """Read on between two requests; not before the caller has taken the last answer."""
        if self._paused_s is not None:
            return
        if not self._reading and self._transport is not None:
            self._reading = True
            self._transport.resume_reading()
        if self._buffer and not self._advancing:
            self._advance()

    def _advance(self) -> None:
        """Go as far as what has come allows."""
        self._advancing = True
        try:
            # Nothing is read ahead of what is being served, nor for who takes no answers.
            while self._buffer and not (self._serving or self._closing or self._withheld):
                if self._paused_s is not None or not self._step():
                    break
        except TokenworksError as error:
            self._refuse(error)
        finally:
            self._advancing = False

    def _step(self) -> bool:
        """Whether what has come was enough for a step."""
        if self._skip:
            skipped = min(self._skip, len(self._buffer))
            self._skip -= skipped
            self._buffer = self._buffer[skipped:]
            self._unread = self._skip > 0
            return True
        if self._body is not None:
            self._buffer = self._body.feed(self._buffer)
            if self._body.whole is None:
                return False
            self._serve(self._body.whole)
            return True
        if self._buffer.startswith(b"\r\n"):
            # An empty line before a request is let pass, as RFC 9112 would have it.
            self._buffer, self._seen = self._buffer[2:], 0
            return True
        raw = self._cut_head()
        if raw is None:
            return False
        self._read_head(raw)
        return True

    def _cut_head(self) -> bytes | None:
        """A whole head, cut off from the buffer, if there is one."""
        buffer, limits = self._buffer, self._server.limits
        end = buffer.find(HEAD_END, self._seen) + len(HEAD_END)
        if end < len(HEAD_END):
            if not self._seen:
                self._wait(limits.head_s_max)
            self._seen = max(1, len(buffer) - len(HEAD_END) + 1)
            end = len(buffer)
            raw = None
        else:
            raw, self._buffer, self._seen = buffer[:end], buffer[end:], 0
        if end > limits.head_bytes_max:
            raise HeadTooLarge(f"The request's head exceeds {limits.head_bytes_max} bytes.")
        return raw

    def _read_head(self, raw: bytes) -> None:
        limits = self._server.limits
        target_max = limits.target_bytes_max
        if len(raw) > target_max and raw.find(b"\r\n") > target_max:
            raise HeadTooLarge(f"The request line exceeds {limits.target_bytes_max} bytes.")
        if raw.count(b"\r\n") - 2 > limits.header_fields_max:
            raise HeadTooLarge(f"The request has more than {limits.header_fields_max} headers.")
        head = Head(raw, self._last_head)
        self._last_head = head if len(raw) <= KEPT_HEAD_BYTES_MAX else None
        length = head.length
        exchange = self._exchange = Exchange(self, head)
        self._unread = length != 0
        bytes_max = self._server.application.accept(exchange)
        take = None if exchange.sink is None else exchange.sink.data
        if bytes_max is None:
            self._skip = length or 0
            if self._skip:
                self._wait(limits.body_s_max)
        elif length is None:
            self._begin_body(ChunkedBody(bytes_max, take), head)
        elif length > bytes_max:
            raise body_too_large(bytes_max)
        elif len(self._buffer) < length or (take is not None and length):
            self._begin_body(SizedBody(length, take), head)
        else:
            body, self._buffer = self._buffer[:length], self._buffer[length:]
            self._serve(body)

    def _begin_body(self, body: SizedBody | ChunkedBody, head: Head) -> None:
        self._body = body
        self._wait(self._server.limits.body_s_max)
        if head.expects and not self._buffer:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _serve(self, body: bytes) -> None:
        exchange = self._exchange
        assert exchange is not None
        self._body, self._unread = None, False
        self._serving, self._deadline_s = True, None
        exchange.body = body
        self._server.application.serve(exchange)

    # Ends.

    def _wait(self, seconds: float) -> None:
        self._deadline_s = self._server.now_s + seconds

    def _refuse(self, error: TokenworksError) -> None:
        """Answer a request that cannot be read, and read no more."""
        exchange = self._exchange
        if exchange is None:
            exchange = self._exchange = Exchange(self, None)
        self._unread, self._body, self._closing = True, None, True
        self._last = True
        self._server.application.refuse(exchange, error)

    def _close(self) -> None:
        """Close once everything is sent; a caller who still sends must see the answer first."""
        limits, transport = self._server.limits, self._transport
        self._closing = True
        unread = self._unread or bool(self._buffer)
        self._buffer = b""
        self._wait(limits.linger_s_max if unread else limits.send_s_max)
        if transport is None or transport.is_closing():
            return
        if unread:
            transport.write_eof()
        else:
            transport.close()

    def _drop(self) -> None:
        """Close at once, whatever is unsent."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()
        self._leave()

    def _leave(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.gone = True
            if exchange.on_gone is not None:
                exchange.on_gone()


_LAST_CHUNK: Final = b"0\r\n\r\n"
_CHUNK_LINES: Final[dict[int, bytes]] = {}


def _chunk(data: bytes) -> bytes:
    """Data as a chunk; the line before it is kept, since to format it for each takes longer."""
    size = len(data)
    line = _CHUNK_LINES.get(size)
    if line is None:
        line = b"%x\r\n" % size
        if size < CHUNK_LINES_MAX:
            _CHUNK_LINES[size] = line
    return b"".join((line, data, b"\r\n"))


def _lines(headers: Headers) -> bytes:
    lines = b"".join([b"%b: %b\r\n" % pair for pair in headers])
    assert lines.count(b"\n") == len(headers), headers
    return lines


@functools.cache
def _first_line(status: int, *, last: bool) -> bytes:
    """The status line, and whether the connection closes."""
    close = "connection: close\r\n" if last else ""
    known = status in HTTPStatus.__members__.values()  # a provider may say 529
    phrase = HTTPStatus(status).phrase if known else ""
    return f"HTTP/1.1 {status} {phrase}\r\n{close}".encode()
