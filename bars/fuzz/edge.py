"""The HTTP/1.1 edge: any bytes, cut anyhow, read by us and by two other parsers.

What must hold: no exception escapes; what is read, what is answered and whether the connection
stays open do not depend on how the bytes were cut; each request that was taken gets one answer, in
order; what is taken reads the same to h11 and to llhttp; nothing is kept beyond the limits.
"""

from __future__ import annotations

from collections.abc import Sequence

import h11
import httptools

from bars.fuzz.choices import Choices, cut, spliced
from tests.gateway.fake_desk import FakeServer, FakeTransport
from tokenworks.core.errors import TokenworksError, Unauthorized
from tokenworks.gateway.connection import Connection, Exchange
from tokenworks.gateway.http_limits import LIMITS, HTTPLimits
from tokenworks.gateway.openai_errors import OpenAIErrors

BODY_MAX = 1_000
SMALL = HTTPLimits(
    head_bytes_max=600,
    header_fields_max=8,
    target_bytes_max=100,
    ahead_bytes_max=300,
    discard_bytes_max=2_000,
)
LINES = (
    *(b"GET /a HTTP/1.1", b"POST /a HTTP/1.1", b"POST /later?x=1 HTTP/1.1", b"HEAD /a HTTP/1.1"),
    *(
        b"POST /closed HTTP/1.1",
        b"GET /a HTTP/1.0",
        b"GET http://x/a?b HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
    ),
    *(b"CONNECT x:1 HTTP/1.1", b"GET /%00%ff HTTP/1.1", b"get /a HTTP/1.1", b"GET  /a HTTP/1.1"),
    *(
        b"GET /\xc3\xa9 HTTP/1.1",
        b"GET /a",
        b"GET /a HTTP/2.0",
        b"PRI * HTTP/2.0",
        b"GET /a HTTP/1.1 ",
    ),
    *(b"GET /%2e%2e/a?%zz#f HTTP/1.1", b"GET https:// HTTP/1.1", b"PUT ?a HTTP/1.1"),
)
FIELDS = (
    *(b"host: x", b"Host: y", b"content-length: 5", b"Content-Length: 0", b"content-length: 5, 5"),
    *(
        b"content-length: +5",
        b"content-length: 05",
        b"content-length:",
        b"content-length: 99999999",
    ),
    *(b"transfer-encoding: chunked", b"Transfer-Encoding:chunked", b"transfer-encoding: identity"),
    *(b"transfer-encoding: chunked, chunked", b"transfer-encoding: xchunked", b"te: trailers"),
    *(b"transfer-encoding:\x0bchunked", b"transfer-encoding : chunked", b" folded", b"\tfolded"),
    *(
        b"connection: close",
        b"connection: keep-alive",
        b"Connection: Upgrade, close",
        b"upgrade: h2c",
    ),
    *(
        b"expect: 100-continue",
        b"expect: x",
        b"x-a: \xe9\xff",
        b"x-a: \0",
        b"x-a: a\rb",
        b"x-a: a\nb",
    ),
    *(b"x_a: 1", b": nameless", b"nocolon", b"x-a: " + b"v" * 200, b"x-a:", b"x-a: \t b \t"),
    *(b"proxy-connection: close", b"trailer: content-length", b"x-\xe9: 1", b"upgrade: websocket"),
)
BODIES = (
    *(
        b"",
        b"12345",
        b"5\r\nabcde\r\n0\r\n\r\n",
        b"0\r\n\r\n",
        b'5;a=b;c="d"\r\nabcde\r\n0\r\n\r\n',
    ),
    *(b"5\r\nabcde\r\n0\r\nx: y\r\n\r\n", b"5\r\nabcde\r\n0\r\ncontent-length: 1\r\n\r\n"),
    *(
        b"05\r\nabcde\r\n000\r\n\r\n",
        b"5 \r\nabcde\r\n0\r\n\r\n",
        b"5\nabcde\n0\n\n",
        b"-5\r\nabcde\r\n",
    ),
    *(
        b"0x5\r\nabcde\r\n0\r\n\r\n",
        b"fffffffff\r\n",
        b"5\r\nabcdef\r\n0\r\n\r\n",
        b"3e9\r\n" + b"z" * 1001,
    ),
    *(
        b"5;a\r\nabcde\r\n0;b=c\r\n\r\n",
        b'5;a="b;c"\r\nabcde\r\n0\r\n\r\n',
        b"\r\n\r\n",
        b"GET /b HTTP/1.1\r\n",
    ),
)
Served = tuple[str, str, bytes, bytes, bytes]


class Recorder:
    """An application that answers each request with itself; those to /later when it is told."""

    def __init__(self) -> None:
        self.served: list[Served] = []
        self.later: list[Exchange] = []
        self.refused: list[str] = []
        self.expected: list[bytes] = []

    def accept(self, exchange: Exchange) -> int | None:
        """Take bodies up to BODY_MAX."""
        assert exchange.head is not None
        if exchange.head.path == "/closed":
            self.refuse(exchange, Unauthorized("no"))
            return None
        return BODY_MAX

    def serve(self, exchange: Exchange) -> None:
        """Answer now or later."""
        head = exchange.head
        assert head is not None
        assert len(exchange.body) <= BODY_MAX
        self.served.append((head.method, head.path, head.raw_path, head.query, exchange.body))
        assert all(b"\r" not in v and b"\n" not in v and b"\0" not in v for _, v in head.headers())
        if head.path == "/later":
            self.later.append(exchange)
        else:
            self.answer(exchange)

    def answer(self, exchange: Exchange) -> None:
        """Say what was asked."""
        assert exchange.head is not None
        said = b"%d %b" % (len(self.served), exchange.body)
        self.expected.append(b"" if exchange.head.method == "HEAD" else said)
        status = 405 if exchange.head.method == "CONNECT" else 200  # else a tunnel would begin
        exchange.respond(status, said, b"text/plain")

    def refuse(self, exchange: Exchange, error: TokenworksError) -> None:
        """Say why not."""
        self.refused.append(str(error))
        said = OpenAIErrors().error_body(error)
        head = exchange.head is not None and exchange.head.method == "HEAD"
        self.expected.append(b"" if head else said)
        exchange.respond(error.status, said)


class End:
    """The connection's other end."""

    def __init__(self, limits: HTTPLimits) -> None:
        self.application, self.limits = Recorder(), limits
        self.server = FakeServer(self.application, limits)
        self.socket = FakeTransport()
        self.connection = Connection(self.server)
        self.connection.connection_made(self.socket)

    def feed(self, parts: Sequence[bytes], *, at_once: bool) -> End:
        """Send parts as long as they are taken; answer what waits."""
        for part in parts:
            while self.application.later and (at_once or not self.socket.reading):
                self.application.answer(self.application.later.pop(0))
            if self.socket.closed or self.socket.ended:
                break
            self.connection.data_received(part)
        while self.application.later:
            self.application.answer(self.application.later.pop(0))
        return self

    @property
    def received(self) -> bytes:
        """All that was answered."""
        return b"".join(self.socket.writes)

    @property
    def open(self) -> bool:
        """Whether more may be sent."""
        return not (self.socket.closed or self.socket.ended)


def requests(choices: Choices) -> bytes:
    """A few requests, more or less."""
    raw = b""
    for _ in range(1 + choices.below(4)):
        if choices.flag(16):
            raw += choices.raw(60)
            continue
        lines = [choices.of(LINES)]
        if not choices.flag(8):
            lines.append(b"host: x")
        lines += choices.some(FIELDS, 4)
        body = choices.of(BODIES) if choices.flag() else b""
        if choices.flag(4):
            lines.append(b"content-length: %d" % len(body))
        elif body[:1] in b"05f3" and body and choices.flag():
            lines.append(b"transfer-encoding: chunked")
        raw += b"\r\n" * choices.flag(8) + b"\r\n".join([*lines, b"", b""]) + body
    return spliced(choices, raw) if choices.flag() else raw


def one(data: bytes) -> None:
    """Check one input."""
    choices = Choices(data)
    limits = SMALL if choices.flag() else LIMITS
    raw = choices.rest() if choices.flag(8) else requests(choices)
    if not raw:
        return
    parts = cut(choices, raw)
    whole = End(limits).feed([raw], at_once=True)
    other = End(limits).feed(parts, at_once=choices.flag())
    a, b = whole.application, other.application
    assert a.served == b.served, ("cut", raw, parts, a.served, b.served)
    assert a.refused == b.refused, ("cut", raw, parts, a.refused, b.refused)
    assert _without_interim(whole.received) == _without_interim(other.received), ("cut", raw, parts)
    assert whole.open == other.open, ("cut", raw, parts)
    _check_answers(whole, raw)
    _agrees_with_h11(whole, raw)
    _agrees_with_llhttp(whole, raw)
    for end in (whole, other):
        if end.open:
            end.server.now_s += 1_000
            end.connection.sweep(end.server.now_s)
            assert not end.open, "what does not end is ended"
        end.connection.connection_lost(None)
        assert not end.server.connections


def _without_interim(received: bytes) -> bytes:
    """Whether a caller is asked to go on depends on whether it has gone on already."""
    return received.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")


class _Answers:
    """What llhttp reads of our answers."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._body = b""

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.bodies.append(self._body)


def _check_answers(end: End, raw: bytes) -> None:
    """Each that was taken or refused has one answer, in order."""
    expected = end.application.expected
    if b"HEAD" in raw:
        return  # the parser cannot be told that such an answer has no body
    answers = _Answers()
    httptools.HttpResponseParser(answers).feed_data(_without_interim(end.received))
    assert answers.bodies == expected, ("answers", raw, answers.bodies, expected)


def _h11_requests(raw: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Method, target and body of what h11 reads until it sees a mistake or an end.

    Empty lines before a request, which RFC 9112 lets a server pass over, it does not take.
    """
    found: list[tuple[bytes, bytes, bytes]] = []
    while raw:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        while raw.startswith(b"\r\n"):
            raw = raw[2:]
        connection.receive_data(raw)
        now, body = None, b""
        try:
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    now = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                else:
                    return found
        except h11.RemoteProtocolError:
            return found
        assert now is not None
        found.append((now.method, now.target, body))
        connection.send(h11.Response(status_code=405, headers=[("content-length", "0")]))
        connection.send(h11.EndOfMessage())
        if connection.our_state is not h11.DONE:
            return found
        raw = connection.trailing_data[0]
    return found


def _agrees_with_h11(end: End, raw: bytes) -> None:
    """Whatever we serve, h11 reads as the same requests, in the same order; it may read more.

    Those that were answered without being served lie between; h11 reads them over.
    """
    theirs = iter(_h11_requests(raw))
    for method, _, raw_path, query, body in end.application.served:
        target = raw_path + (b"?" + query if query else b"")
        for their_method, their_target, their_body in theirs:
            named = their_target.startswith((b"/", b"*"))
            same = their_target.removesuffix(b"?") == target or (
                not named and their_target.removesuffix(b"?").endswith(target.removeprefix(b"/"))
            )
            if (their_method.decode(), their_body) == (method, body) and same:
                break
        else:
            raise AssertionError(("h11 reads it otherwise", raw, end.application.served))


class _Requests:
    """What llhttp reads of requests."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.urls: list[bytes] = []
        self._body = self._url = b""

    def on_message_begin(self) -> None:
        self._body = self._url = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.urls.append(self._url)
        self.bodies.append(self._body)


def _agrees_with_llhttp(end: End, raw: bytes) -> None:
    """The same of llhttp, where it knows the methods, and until it thinks of an upgrade.

    It takes ``Proxy-Connection`` for ``Connection``, which RFC 9112 tells nobody to do.
    """
    if b"proxy-connection" in raw.lower():
        return
    seen = _Requests()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(raw)
    except (httptools.HttpParserInvalidMethodError, httptools.HttpParserUpgrade):
        return
    except httptools.HttpParserError as error:
        if "method" in str(error).lower():
            return
    theirs = iter(seen.bodies)
    for *_, body in end.application.served:
        if not any(each == body for each in theirs):
            raise AssertionError(("llhttp reads it otherwise", raw, end.application.served))
