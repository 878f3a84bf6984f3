"""The way to a worker: a small HTTP/1.1 client whose answers are bytes as they come.

It does what the factory needs and no more: POST with a streamed answer, GET with a whole one,
kept-alive connections, back-pressure, and an abort that closes the socket, which is how every
engine is told to stop.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Final, cast

import httptools

from tokenworks.core.errors import ConfigInvalid, WorkerFailed, WorkerUnavailable
from tokenworks.core.orders import JSON_TYPE, Passing
from tokenworks.core.ports import ABORTED, Sink
from tokenworks.core.units import NS_PER_S
from tokenworks.live.first_words import nothing_of
from tokenworks.live.plain_head import PlainHead
from tokenworks.live.running import running_loop
from tokenworks.live.worker_body import EVENT_PATHS

HEADER_BYTES_MAX: Final = 64 * 1024
STREAM_BYTES_HIGH: Final = 256 * 1024
"""Unread bytes of one answer above which its socket is no longer read."""

GET_BODY_BYTES_MAX: Final = 1024 * 1024
ERROR_BODY_BYTES_MAX: Final = 64 * 1024
CONNECT_NS_MAX: Final = 5 * NS_PER_S
HEAD_NS_MAX: Final = 600 * NS_PER_S
"""To the first bytes of an answer, so this bounds queueing plus prefill."""
WHOLE_NS_MAX: Final = 1_000 * NS_PER_S
"""Where an answer comes in one piece, so to its end; three tries end before a hold does."""

OK: Final = 200
HTTP_PORT: Final = 80
HTTPS_PORT: Final = 443
_BODILESS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
"""Methods whose requests say nothing of a length where there is no body."""

IDLE_NS_MAX: Final = 3 * NS_PER_S
"""llama.cpp, and vLLM's server too, close a connection after 5 s of silence: be gone before."""

SWEEP_NS_MAX: Final = NS_PER_S // 2
"""Between two looks at what takes too long: one timer for all connections of a client, where one
for each request would cost more than its time-out is worth."""

_SAID_NOTHING: Final = "the worker's answer ended before it said anything"
_NO_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE})


class WorkerStream:
    """One answer while it arrives. Not for use by two tasks at once.

    Attributes:
        status: the HTTP status.
        content_type: what the worker says its answer is; empty where it says nothing.
        headers: all that it said, names in lower case, if the request was passed on as it came.
    """

    __slots__ = (
        *("_again", "_begun", "_chunks", "_connection", "_ended", "_events", "_failure"),
        "_request",
        *("_sink", "_size_bytes", "_told", "_waiter", "_with_body"),
        *("content_type", "headers", "keeps_headers", "status"),
    )

    def __init__(self, connection: _Connection, *, with_body: bool, events: bool = False) -> None:
        self.status = 0
        self._with_body, self._events = with_body, events
        self._begun = False
        self.content_type = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.keeps_headers = False
        self._connection: _Connection | None = connection
        self._chunks: list[bytes] = []
        self._size_bytes = 0
        self._ended = False
        self._failure: str | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._told: Callable[[WorkerStream], None] | None = None
        self._request = b""
        self._again: WorkerClient | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the answer has begun; if ``told`` was called without, it has failed."""
        return self._begun

    @property
    def is_over(self) -> bool:
        """See ``AnswerStream``."""
        return self._connection is None

    async def begun(self) -> WorkerStream:
        """Of a request that was posted at once: the answer, when it has begun.

        That is another stream if the request met a kept connection which the worker has closed,
        as it is then sent once more, on a fresh one.

        Raises:
            WorkerFailed, WorkerUnavailable: see ``WorkerClient.post_stream``.
        """
        if self._again is not None:
            again = self._again._send(  # noqa: SLF001
                self._request, fresh=True, with_body=True, events=self._events
            )
            return await again
        await self._beginning()
        return self

    async def read(self) -> bytes:
        """Whatever part of the body has come since the last read, joined; ``b""`` at its end.

        Raises:
            WorkerFailed: the worker broke off, or ``abort`` was called; every byte that came
                before was handed out first.
        """
        while not self._chunks:
            if self._ended:
                return b""
            if self._failure is not None:
                raise WorkerFailed(self._failure)
            await self._more()
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._size_bytes = 0
        if self._connection is not None:
            self._connection.resume()
        return data

    async def read_all(self, bytes_max: int = ERROR_BODY_BYTES_MAX) -> bytes:
        """The rest of a small body, such as an error's; cut off and aborted after ``bytes_max``.

        Raises:
            WorkerFailed: the worker broke off.
        """
        whole = bytearray()
        while data := await self.read():
            whole += data
            if len(whole) > bytes_max:
                self.abort()
                return bytes(whole[:bytes_max])
        return bytes(whole)

    def pipe(self, sink: Sink) -> None:
        """See ``AnswerStream``."""
        assert self._sink is None, "two read one stream"
        self._sink = sink
        connection = self._connection
        if connection is not None:
            connection.resume()  # before the sink gets anything: it may pause it again
        self._flush()
        if connection is None:
            self._sink = None  # as in ``_on_end``
            sink.ended(None if self._failure is None else WorkerFailed(self._failure))

    def pause(self) -> None:
        """See ``AnswerStream``."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """See ``AnswerStream``."""
        if self._connection is not None:
            self._connection.resume()

    def abort(self) -> None:
        """Close the socket at once, so that the worker stops; harmless after the end."""
        if self._connection is not None:
            self._connection.fail(ABORTED)

    def _more(self) -> asyncio.Future[None]:
        """Done once more has come; not to be asked for after the end."""
        assert self._waiter is None or self._waiter.done(), "two tasks read one stream"
        assert self._connection is not None
        waiter = self._waiter = self._connection.loop.create_future()
        return waiter

    async def _beginning(self) -> None:
        """Return once the answer has begun; raises WorkerFailed if it never does.

        Cancelling closes the socket.
        """
        try:
            while not self._begun:
                if self._failure is not None:
                    raise WorkerFailed(self._failure)
                await self._more()
        except asyncio.CancelledError:
            self.abort()
            raise

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if self._begun:
            self._request = b""  # it will not be sent again, and may be large
        told, self._told = self._told, None
        if told is not None:
            told(self)

    # Called by the connection.

    def _on_status(self, status: int) -> bool:
        """Whether the answer has begun with its head."""
        self.status = status
        self._begun = status != OK or not self._with_body
        if self._begun:
            self._wake()
        return self._begun

    def _on_body(self, data: bytes) -> int:
        """How much waits to be read."""
        if self._sink is not None:
            self._sink.data(data)
            return 0
        self._chunks.append(data)
        self._size_bytes += len(data)
        if not self._begun and self._events and self.status == OK:
            end = nothing_of(self._chunks, self._size_bytes)
            if end is not None:
                if end and self._connection is not None:
                    self._connection.fail(_SAID_NOTHING)
                return 0
        self._begun = True
        if self._waiter is not None or self._told is not None:
            self._wake()
        return 0 if self._connection is None else self._size_bytes

    def _flush(self) -> None:
        if self._chunks and self._sink is not None:
            data = b"".join(self._chunks)
            self._chunks.clear()
            self._size_bytes = 0
            self._sink.data(data)

    def _on_end(self, failure: str | None) -> None:
        if not self._ended and self._failure is None:
            if failure is None and self._events and not self._begun and self.status == OK:
                failure = _SAID_NOTHING
            self._ended = failure is None
            self._begun = self._begun or self._ended
            self._failure = failure
        had, self._connection = self._connection, None
        if self._request and had is not None and had.lost_unanswered:
            self._again = had._client  # noqa: SLF001
        if self._sink is None:
            if self._waiter is not None or self._told is not None:
                self._wake()
        elif had is not None:
            # Whoever keeps the stream does not keep what took the answer.
            sink, self._sink = self._sink, None
            sink.ended(None if self._failure is None else WorkerFailed(self._failure))


class _Connection(asyncio.Protocol):
    """One socket: parses answers and hands them to the stream that it is lent to.

    Attributes:
        loop: the event loop that it is made on.
        lost_unanswered: whether the other side closed it between a request and the first byte of
            its answer.
    """

    def __init__(self, client: WorkerClient) -> None:
        self._client = client
        self.loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []
        self.on_body = self._parts.append
        """The parser's: what came in one read is handed on together, once all of it is parsed."""
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._stream: WorkerStream | None = None
        self._paused = False
        self._header_bytes = 0
        self._interim = False
        self._keep_alive = False
        self._bodiless = False
        self._framed = self._sized = False
        self._answered = False
        self.lost_unanswered = False
        self._idle_since_s = 0.0
        self._head_due_s: float | None = None
        self._plain = PlainHead()

    def exchange(
        self,
        request: bytes,
        head_due_s: float,
        *,
        keep_headers: bool = False,
        bodiless: bool = False,
        with_body: bool = False,
        events: bool = False,
    ) -> WorkerStream:
        """Send a request on this idle connection.

        Args:
            request: its bytes.
            head_due_s: when the answer's beginning is late, on the loop's clock.
            keep_headers: whether the stream keeps them.
            bodiless: whether the answer ends with its head, whatever that says.
            with_body: see ``WorkerClient.post_stream``.
            events: whether it is answered with events, and so fails where there are none.
        """
        assert self._stream is None
        assert self._transport is not None
        self._head_due_s = head_due_s
        self._answered = False
        self._header_bytes = 0
        self._framed, self._sized, self._bodiless = False, False, bodiless
        stream = self._stream = WorkerStream(self, with_body=with_body, events=events)
        stream.keeps_headers = keep_headers
        self._transport.write(request)
        return stream

    @property
    def usable(self) -> bool:
        """Whether the socket was still open when we last looked."""
        return self._transport is not None and not self._transport.is_closing()

    def pause(self) -> None:
        """Read the socket no more for now."""
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read the socket again after the stream was drained."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def rested(self, now_s: float) -> bool:
        """Whether it has been idle for so long that the worker may be about to close it."""
        return self._stream is None and now_s - self._idle_since_s >= IDLE_NS_MAX / NS_PER_S

    def late(self, now_s: float) -> bool:
        """Whether an answer's headers should have come."""
        return self._head_due_s is not None and now_s >= self._head_due_s

    def fail(self, why: str) -> None:
        """Close the socket now; the stream ends with this reason."""
        if self._parts:
            self._hand_on()
        stream, self._stream = self._stream, None
        if self._transport is not None:
            self._transport.abort()
        self._client._forget(self)  # noqa: SLF001  the two classes are one module's inside
        if stream is not None:
            stream._on_end(why)  # noqa: SLF001

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set up the socket."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's only looks like one
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Parse what came; bytes that nobody asked for close the connection."""
        stream = self._stream
        if stream is None:
            self.fail("the worker sent bytes that were not asked for")
            return
        begins, self._answered = not self._answered, True
        if begins and not (stream.keeps_headers or self._bodiless):
            body = self._plain.body_of(data)
            if body is not None:
                self._take(stream, body)
                return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(f"the worker's answer is not HTTP: {error!r}")
        if self._parts:
            self._hand_on()
        if begins and self._sized and self._stream is None and self._keep_alive and self.usable:
            self._plain.remember(data, stream.content_type)

    def _take(self, stream: WorkerStream, body: bytes) -> None:
        """Take a whole answer, as if the parser had said so."""
        stream.content_type = self._plain.content_type
        self._framed, self._interim, self._keep_alive = True, False, True
        stream._on_status(OK)  # noqa: SLF001
        if body:
            self._parts.append(body)
        self.on_message_complete()

    def _hand_on(self) -> None:
        """Give the stream what came for it, and stop reading when too many bytes wait."""
        parts = self._parts
        data = b"".join(parts)
        parts.clear()
        stream = self._stream
        if stream is not None:
            if stream._on_body(data) > STREAM_BYTES_HIGH:  # noqa: SLF001
                self.pause()
            if stream._begun:  # noqa: SLF001
                self._head_due_s = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side closed, or we did."""
        stream = self._stream
        self.lost_unanswered = stream is not None and not self._answered
        if stream is not None and stream.status and not self._framed:
            # With neither length nor chunks the end of the connection is the end of the body.
            self._stream = None
            stream._on_end(None)  # noqa: SLF001
        self.fail(f"the worker closed the connection: {exc!r}" if exc else "the worker broke off")
        self._transport = None

    # httptools

    def on_message_begin(self) -> None:
        """Close the connection if this answer was not asked for."""
        if self._stream is None:
            self.fail("the worker sent an answer that was not asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the header and note how the body is framed."""
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > HEADER_BYTES_MAX:
            self.fail(f"the worker's headers exceed {HEADER_BYTES_MAX} bytes")
            return
        stream = self._stream
        if stream is None:
            return
        lower = name.lower()
        if stream.keeps_headers:
            stream.headers.append((lower, value))
        if lower == b"content-length":
            self._framed = self._sized = True
        elif lower == b"transfer-encoding":
            self._framed = True
        elif lower == b"content-type":
            stream.content_type = value

    def on_headers_complete(self) -> None:
        """Let the caller of ``post_stream`` go on."""
        stream, status = self._stream, self._parser.get_status_code()
        self._interim = status < 200
        if stream is None:
            return
        if self._interim:
            stream.headers.clear()
            return
        self._keep_alive = self._parser.should_keep_alive()
        self._framed = self._framed or status in (204, 304)
        if stream._on_status(status) and not stream._with_body:  # noqa: SLF001
            self._head_due_s = None
        if self._bodiless:
            self._end(reuse=False)  # the parser waits for what will not come

    def on_message_complete(self) -> None:
        """End the stream and give the connection back."""
        if self._parts:
            self._hand_on()
        if not self._interim and self._stream is not None:
            self._end(reuse=self._keep_alive)

    def _end(self, *, reuse: bool) -> None:
        stream, self._stream = self._stream, None
        assert stream is not None
        self._head_due_s = None
        stream._on_end(None)  # noqa: SLF001
        if self._paused:
            self.resume()
        if reuse and self.usable:
            self._idle_since_s = self.loop.time()
            self._client._give_back(self)  # noqa: SLF001
        else:
            self.fail("done")


class WorkerClient:
    """Speaks to one worker; safe for many tasks of one event loop.

    Args:
        host: name or address.
        port: TCP port.
        api_key: sent as a bearer token; None sends none.
        connections_max: sockets open at once, busy and idle. A worker that gives each connection
            a thread, as llama.cpp does, needs more threads than this.
        base_path: put before every path, for servers that live below one.
        tls: how to trust a server that is spoken to by TLS; None speaks plain HTTP.
        connect_ns_max: how long connecting may take.
        head_ns_max: how long an answer's beginning may take.

    Raises:
        ConfigInvalid: the key or the base path cannot stand in an HTTP head.
    """

    def __init__(
        self,
        host: str,
        port: int,
        api_key: str | None,
        *,
        connections_max: int = 128,
        base_path: str = "",
        tls: ssl.SSLContext | None = None,
        connect_ns_max: int = CONNECT_NS_MAX,
        head_ns_max: int = HEAD_NS_MAX,
    ) -> None:
        assert connections_max > 0, connections_max
        for word in (host, api_key or "", base_path):
            if not word.isascii() or any(c <= " " or c == "\x7f" for c in word):
                raise ConfigInvalid(
                    "a worker's address or API key holds a character that HTTP cannot carry",
                    hint="Use printable ASCII without spaces.",
                )
        self.host = host
        self.port = port
        self.api_key = api_key
        self._connections_max = connections_max
        self._base_path = base_path
        self._tls = tls
        self._connect_s_max = connect_ns_max / NS_PER_S
        self._head_s_max = head_ns_max / NS_PER_S
        self._idle: list[_Connection] = []
        self._open: dict[_Connection, bool] = {}  # and whether it counts
        self._sockets = 0
        self._sweep_s = min(head_ns_max / 4, SWEEP_NS_MAX) / NS_PER_S
        self._sweeper: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed: str | None = None
        host_text = f"[{host}]" if ":" in host else host
        default = HTTP_PORT if tls is None else HTTPS_PORT
        named = host_text if port == default else f"{host_text}:{port}"
        self._own_headers = f"Host: {named}\r\n"
        if api_key is not None:
            self._own_headers += f"Authorization: Bearer {api_key}\r\n"
        self._headers = f"{self._own_headers}User-Agent: tokenworks\r\n"
        self._post_heads: dict[str, bytes] = {}

    def post_stream(
        self, path: str, body: bytes, lines: bytes = b"", content_type: str = JSON_TYPE
    ) -> Coroutine[None, None, WorkerStream]:
        """Send a body; returns when the answer has begun. Cancelling closes the socket.

        An answer of status 200 has begun with the first bytes of its body, since vLLM sends the
        head before it has a token, and one of events with the first that are no comment; any other
        with its head.

        A request that meets a kept connection which the worker has just closed is sent once more
        on a fresh one; nothing else is retried.

        Args:
            path: begins with ``/``; one of a few, since its head is kept.
            body: what is sent.
            lines: further header lines, each with its line end.
            content_type: what the body is.

        Raises:
            WorkerFailed: no connection, no answer, one that is not HTTP, or where events were asked
                for, one of status 200 that has none but its end.
            WorkerUnavailable: ``connections_max`` are busy, the client is closed, or this process
                may open no more files.
        """
        request = self._posted(path, body, lines, content_type)
        return self._send(request, with_body=True, events=path in EVENT_PATHS)

    def post_at_once(
        self,
        path: str,
        body: bytes,
        lines: bytes,
        content_type: str,
        told: Callable[[WorkerStream], None],
    ) -> WorkerStream | None:
        """Send a body on a kept connection; None if there is none.

        Nobody has to wait for it, which would take a task.

        Args:
            path: as of ``post_stream``, as is what follows.
            body: what is sent.
            lines: further header lines.
            content_type: what the body is.
            told: called once, not before this returns, when the answer has begun or will not;
                ``WorkerStream.begun`` then says which, and sends it once more where
                ``post_stream`` does. It must not raise.
        """
        loop = self._loop = running_loop(self._loop)
        now_s = loop.time()
        connection = self._take_idle(now_s)
        if connection is None:
            return None
        request = self._posted(path, body, lines, content_type)
        stream = connection.exchange(
            request, now_s + self._head_s_max, with_body=True, events=path in EVENT_PATHS
        )
        stream._told, stream._request = told, request  # noqa: SLF001
        return stream

    def _posted(self, path: str, body: bytes, lines: bytes, content_type: str) -> bytes:
        head = self._post_heads.get(path) or self._post_head(path)
        if content_type != JSON_TYPE:
            head = head.replace(JSON_TYPE.encode(), content_type.encode("latin-1"), 1)
        return b"%b%d\r\n%b\r\n%b" % (head, len(body), lines, body)

    async def pass_on(self, passing: Passing, body: bytes) -> WorkerStream:
        """Send a request as it came to us, under our own key; as ``post_stream`` otherwise.

        One that HTTP does not let be repeated is sent once: a kept connection that is closed before
        an answer does not tell whether the worker has carried it out.
        """
        head = f"{passing.method} {self._base_path}{passing.target} HTTP/1.1\r\n{self._own_headers}"
        lines = b"".join([b"%b: %b\r\n" % pair for pair in passing.headers])
        if body or passing.method not in _BODILESS:
            lines += b"content-length: %d\r\n" % len(body)
        request = b"%b%b\r\n%b" % (head.encode("latin-1"), lines, body)
        bodiless = passing.method == "HEAD"
        again = passing.repeatable
        return await self._send(request, keep_headers=True, bodiless=bodiless, again=again)

    async def _send(
        self,
        request: bytes,
        *,
        keep_headers: bool = False,
        bodiless: bool = False,
        again: bool = True,
        with_body: bool = False,
        fresh: bool = False,
        events: bool = False,
    ) -> WorkerStream:
        loop = asyncio.get_running_loop()
        connection = None if fresh else self._take_idle(loop.time())
        again = again and connection is not None
        while True:
            if connection is None:
                connection = await self._connect()
            due_s = loop.time() + self._head_s_max
            stream = connection.exchange(
                request,
                due_s,
                keep_headers=keep_headers,
                bodiless=bodiless,
                with_body=with_body,
                events=events,
            )
            try:
                await stream._beginning()  # noqa: SLF001
            except WorkerFailed:
                if not (again and connection.lost_unanswered):
                    raise
            else:
                return stream
            connection, again = None, False

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a small resource.

        It opens a connection of its own, beyond ``connections_max``, so that a health check
        neither waits for busy streams nor finds a stale socket.

        Raises:
            WorkerFailed: no connection, no answer, or more than ``GET_BODY_BYTES_MAX``.
        """
        head = f"GET {self._base_path}{path} HTTP/1.1\r\n{self._headers}Connection: close\r\n\r\n"
        connection = await self._connect(counted=False)
        due_s = connection.loop.time() + self._head_s_max
        stream = connection.exchange(head.encode("ascii"), due_s)
        try:
            await stream._beginning()  # noqa: SLF001
            body = await stream.read_all(GET_BODY_BYTES_MAX + 1)
        finally:
            stream.abort()
        if len(body) > GET_BODY_BYTES_MAX:
            raise WorkerFailed(f"{path} of {self.host} exceeds {GET_BODY_BYTES_MAX} bytes")
        return stream.status, body

    def close(self, why: str = "the connection to the worker was closed") -> None:
        """Close every socket; running reads raise WorkerFailed with this reason."""
        self._closed = self._closed or why  # the first reason is the true one
        for connection in tuple(self._open):
            connection.fail(self._closed)
        assert not self._open
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _post_head(self, path: str) -> bytes:
        assert path.startswith("/"), path
        assert len(self._post_heads) < 64, "paths are a closed set"
        head = self._post_heads[path] = (
            f"POST {self._base_path}{path} HTTP/1.1\r\n{self._headers}"
            f"Content-Type: {JSON_TYPE}\r\nContent-Length: "
        ).encode("ascii")
        return head

    def _sweep(self) -> None:
        """Close what has been idle for too long, and fail what should have answered."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for connection in tuple(self._open):
            if connection.late(now_s):
                connection.fail(f"no answer from the worker in {self._head_s_max:g} s")
            elif connection.rested(now_s):
                connection.fail("idle for too long")
        self._sweeper = loop.call_later(self._sweep_s, self._sweep) if self._open else None

    def _take_idle(self, now_s: float) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and not connection.rested(now_s):
                return connection
            connection.fail("idle for too long")
        return None

    async def _connect(self, *, counted: bool = True) -> _Connection:
        if self._closed is not None:
            raise WorkerUnavailable(self._closed)
        if counted and self._sockets >= self._connections_max:
            raise WorkerUnavailable(
                f"all {self._connections_max} connections to {self.host}:{self.port} are busy"
            )
        loop = asyncio.get_running_loop()
        self._sockets += counted
        connected = False
        try:
            async with asyncio.timeout(self._connect_s_max):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), self.host, self.port, ssl=self._tls
                )
            connected = True
        except (OSError, TimeoutError) as error:  # that of TLS is an OSError, too
            short = _short_of_files(error)
            if short is not None:
                lack = WorkerUnavailable(
                    f"The factory may open no more files: {short.strerror}.",
                    hint="Try again; operators: raise the limit, ulimit -n.",
                    retry_after_s=1,
                )
                lack.ours = True
                raise lack from error
            failure = WorkerFailed(
                f"cannot connect to the worker at {self.host}:{self.port}: {error!r}"
            )
            failure.unsent = True
            raise failure from error
        finally:
            if not connected:
                self._sockets -= counted
        self._open[connection] = counted
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._sweep_s, self._sweep)
        if self._closed is not None:  # it was closed while we waited
            connection.fail(self._closed)
            raise WorkerUnavailable(self._closed)
        return connection

    # Called by connections.

    def _give_back(self, connection: _Connection) -> None:
        if not self._open[connection]:
            connection.fail("done")  # it was for one small resource
            return
        self._idle.append(connection)

    def _forget(self, connection: _Connection) -> None:
        self._sockets -= self._open.pop(connection, False)
        if connection in self._idle:
            self._idle.remove(connection)


def _short_of_files(error: OSError) -> OSError | None:
    """What says that this process may open no more files, if that is why it cannot connect.

    A resolver that can open neither its settings nor a socket says that there is no such name.
    """
    if error.errno in _NO_FILES:
        return error
    if isinstance(error, socket.gaierror):
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as lack:
            return lack
    return None
