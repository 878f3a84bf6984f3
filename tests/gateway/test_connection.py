"""A connection under abuse: what is not HTTP, what does not end, and what comes cut anyhow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httptools
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.gateway.fake_desk import FakeClock as Clock
from tests.gateway.fake_desk import FakeDesk, FakeServer, FakeTransport, Hold, ask, token
from tokenworks.core.errors import InvalidRequest, TokenworksError, Unauthorized
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.connection import Connection, Exchange
from tokenworks.gateway.http_head import Head
from tokenworks.gateway.http_limits import LIMITS, HTTPLimits
from tokenworks.gateway.openai_errors import OpenAIErrors

Run = Callable[[Coroutine[Any, Any, Any]], Any]
BODY_MAX = 1_000
SMALL = HTTPLimits(
    head_bytes_max=600,
    header_fields_max=5,
    target_bytes_max=100,
    ahead_bytes_max=300,
    discard_bytes_max=2_000,
)


class Echo:
    """Answers a request with itself, at once or, under /later, when it is told.

    Attributes:
        served: requests whose whole body has come.
        later: those that are still to be answered.
        refused: what could not be read.
    """

    def __init__(self) -> None:
        self.served: list[tuple[str, str, bytes, bytes]] = []
        self.later: list[Exchange] = []
        self.refused: list[TokenworksError] = []

    def accept(self, exchange: Exchange) -> int | None:
        assert exchange.head is not None
        if exchange.head.path == "/closed":
            self.refuse(exchange, Unauthorized("no"))
            return None
        return BODY_MAX

    def serve(self, exchange: Exchange) -> None:
        head = exchange.head
        assert head is not None
        self.served.append((head.method, head.path, head.query, exchange.body))
        if head.path == "/later":
            self.later.append(exchange)
        else:
            self.answer(exchange)

    def answer(self, exchange: Exchange) -> None:
        assert exchange.head is not None
        exchange.respond(200, exchange.head.path.encode() + b" " + exchange.body, b"text/plain")

    def refuse(self, exchange: Exchange, error: TokenworksError) -> None:
        self.refused.append(error)
        exchange.respond(error.status, OpenAIErrors().error_body(error))


class End:
    """A connection to an ``Echo``, its socket in the test's hands."""

    def __init__(self, limits: HTTPLimits = LIMITS, *, full: bool = False) -> None:
        self.echo = Echo()
        self.server = FakeServer(self.echo, limits)
        self.server.full = full
        self.connection = Connection(self.server)
        self.socket = FakeTransport()
        self.socket._extra["peername"] = ("127.0.0.1", 4711)
        self.connection.connection_made(self.socket)

    def feed(self, *parts: bytes) -> End:
        for part in parts:
            self.connection.data_received(part)
        return self

    @property
    def received(self) -> bytes:
        return b"".join(self.socket.writes)

    @property
    def statuses(self) -> list[int]:
        return [int(part[:3]) for part in self.received.split(b"HTTP/1.1 ")[1:]]

    @property
    def open(self) -> bool:
        return not (self.socket.closed or self.socket.ended)

    def wait(self, seconds: float) -> End:
        self.server.now_s += seconds
        self.connection.sweep(self.server.now_s)
        return self


def get(path: str = "/a", *lines: str, version: str = "1.1") -> bytes:
    host = ["host: x"] if version == "1.1" else []
    return "\r\n".join([f"GET {path} HTTP/{version}", *host, *lines, "", ""]).encode("latin-1")


def test_who_has_left_is_still_known() -> None:
    end = End()
    end.feed(get("/later"))
    end.connection.connection_lost(None)
    assert end.echo.later[0].gone
    assert end.echo.later[0].peer == "127.0.0.1"


def post(body: bytes, path: str = "/a", *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "host: x", *lines, f"content-length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


def chunked(*parts: bytes, path: str = "/a", trailer: bytes = b"", ext: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(part), ext, part) for part in parts)
    return head + body + b"0\r\n" + trailer + b"\r\n"


# What is HTTP.


def test_requests_one_after_another() -> None:
    end = End().feed(get("/a?q=1"), post(b"x" * 9), chunked(b"ab", b"c"), get("/b"))
    assert end.echo.served == [
        ("GET", "/a", b"q=1", b""),
        ("POST", "/a", b"", b"x" * 9),
        ("POST", "/a", b"", b"abc"),
        ("GET", "/b", b"", b""),
    ]
    assert end.statuses == [200] * 4
    assert len(end.socket.writes) == 4, "an answer is one write"
    assert end.open


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", b""),
        ("/v1/models/a%2Fb%20c", "/v1/models/a/b c", b""),
        ("/a?b=%20?c", "/a", b"b=%20?c"),
        ("http://x:80/a/b?c", "/a/b", b"c"),
        ("HTTPS://x", "/", b""),
        ("http://x?a/b", "/", b"a/b"),
        ("http://[::1]:80/?", "/", b""),
        ("*", "*", b""),
        ("/%ff", "/\N{REPLACEMENT CHARACTER}", b""),
    ],
)
def test_targets(target: str, path: str, query: bytes) -> None:
    head = Head(get(target))
    assert (head.path, head.query) == (path, query)


def test_headers_are_found_however_they_are_written() -> None:
    raw = get("/", "X-One:  two words \t", "x-empty:", "X-ONE: again", "y-x-one: no")
    head = Head(raw)
    assert head.get(b"x-one") == b"two words"
    assert head.get(b"x-empty") == b""
    assert head.get(b"one") is None
    assert head.has(b"x-o")
    assert not head.has(b"z")
    assert head.headers() == [
        (b"host", b"x"),
        (b"x-one", b"two words"),
        (b"x-empty", b""),
        (b"x-one", b"again"),
        (b"y-x-one", b"no"),
    ]


def test_a_head_is_answered_without_a_body() -> None:
    end = End().feed(get("/a").replace(b"GET", b"HEAD"))
    assert b"content-length: 3" in end.received
    assert end.received.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "line",
    [
        "connection: close",
        "Connection: Keep-Alive, Close",
        "connection: keep-alive\r\nconnection: close",
    ],
)
def test_a_caller_may_ask_to_close(line: str) -> None:
    end = End().feed(get("/a", line) + get("/b"))
    assert end.statuses == [200]
    assert b"connection: close\r\n" in end.received
    assert end.socket.ended, "what it sent beyond is not read, so that it sees the answer"
    assert End().feed(get("/a", line)).socket.closed


def test_http_1_0() -> None:
    end = End().feed(get("/later", version="1.0"))
    (exchange,) = end.echo.later
    exchange.begin(200, b"text/event-stream", [])
    assert end.socket.writes == []
    exchange.write(b"part")
    exchange.end(b"end")
    assert end.received.endswith(b"\r\n\r\npartend")
    assert b"transfer-encoding" not in end.received
    assert end.socket.closed


def test_an_answer_in_parts() -> None:
    end = End().feed(get("/later"))
    (exchange,) = end.echo.later
    exchange.begin(200, b"text/event-stream", [(b"x-a", b"b")])
    exchange.write(b"part")
    exchange.end()
    head, _, body = end.received.partition(b"\r\n\r\n")
    assert head.endswith(b"transfer-encoding: chunked\r\nx-a: b")
    assert body == b"4\r\npart\r\n0\r\n\r\n"
    assert end.open


def test_a_header_of_ours_has_one_line() -> None:
    end = End().feed(get("/later"))
    with pytest.raises(AssertionError):
        end.echo.later[0].respond(200, b"", headers=[(b"x-a", b"b\r\nc: d")])


def test_empty_lines_before_a_request_are_let_pass() -> None:
    assert End().feed(b"\r\n\r\n" + get("/a") + b"\r\n" + get("/b")).statuses == [200, 200]


def test_an_offer_to_upgrade_is_ignored() -> None:
    lines = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQ")
    end = End().feed(post(b"body", "/a", *lines), get("/b"))
    assert end.statuses == [200, 200]
    assert end.echo.served[0][3] == b"body"


@pytest.mark.parametrize("more", [b"", b"b"])
def test_a_caller_may_wait_before_it_sends_the_body(more: bytes) -> None:
    head, body = post(b"body", "/a", "expect: 100-Continue").split(b"\r\n\r\n")
    end = End().feed(head + b"\r\n\r\n" + body[: len(more)])
    waits = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert end.received == (b"" if more else waits)
    assert end.feed(body[len(more) :]).statuses[-1] == 200


# However it is cut.

REQUESTS = [
    get("/a"),
    get("/b?c", "x-y: z"),
    post(b"some body"),
    post(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
    chunked(b"abc", b"d" * 40),
    chunked(b"x", trailer=b"a: b\r\nc: d\r\n", ext=b';q=1;r="a b";s'),
    chunked(),
    b"\r\n" + get("/closed"),
    post(b"unread", "/closed"),
    post(b"y" * (BODY_MAX + 1)),
    chunked(b"z" * BODY_MAX, b"z"),
    get("/a", "connection: close"),
    get("/a", version="1.0"),
    b"GET / HTTP/1.1\r\n\r\n",
    b"nonsense\r\n\r\n",
]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(REQUESTS), max_size=6), st.data())
def test_it_does_not_matter_how_requests_are_cut(parts: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=12)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) if a < b]
    whole, cut, bytewise = End().feed(raw), End().feed(*pieces), End()
    bytewise.feed(*(raw[i : i + 1] for i in range(len(raw))))
    for end in (cut, bytewise):
        assert end.echo.served == whole.echo.served
        assert list(map(str, end.echo.refused)) == list(map(str, whole.echo.refused))
        assert end.received == whole.received
    assert cut.open == whole.open == bytewise.open


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.sampled_from(REQUESTS),
            st.sampled_from([b"\r\n", b"\n", b": ", b"POST / HTTP/1.1", b"host: x", b"0", b"5"]),
        ),
        max_size=10,
    )
)
@example([b"\r\n" * 400, b"x"])
def test_any_bytes_are_answered_or_waited_for(parts: list[bytes]) -> None:
    end = End(SMALL).feed(*(part for part in parts if part))
    assert all(status in (200, 400, 401, 408, 413, 431) for status in end.statuses)
    if end.open:
        end.wait(1_000)
        assert not end.open, "what does not end is ended"


class Reference:
    """What llhttp reads of one request."""

    def __init__(self) -> None:
        self.url, self.body, self.done = b"", b"", False

    def on_url(self, url: bytes) -> None:
        if not self.done:
            self.url += url

    def on_body(self, body: bytes) -> None:
        if not self.done:
            self.body += body

    def on_message_complete(self) -> None:
        self.done = True


@settings(max_examples=500)
@given(
    st.sampled_from(REQUESTS[:7]),
    st.integers(0, 200),
    st.integers(0, 3),
    st.sampled_from(
        [b"", b" ", b"\r", b"\n", b"\r\n", b":", b"0", b"\t", b"\0", b"content-length: 1\r\n"]
    ),
)
def test_what_is_taken_reads_the_same_to_another_parser(
    request: bytes, at: int, dropped: int, put: bytes
) -> None:
    raw = request[:at] + put + request[at + dropped :]
    end = End().feed(raw)
    assume(end.echo.served)
    reference = Reference()
    parser = httptools.HttpRequestParser(reference)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserInvalidMethodError:
        assume(reference.done)  # it knows only some methods
    except httptools.HttpParserError:
        assert reference.done, "only what comes after the request may be wrong"
    method, path, query, body = end.echo.served[0]
    assert raw.lstrip(b"\r\n").startswith(method.encode() + b" ")
    assert reference.done
    assert reference.body == body
    assert reference.url.removesuffix(b"?") == path.encode() + (b"?" + query if query else b"")


# What is not, and what two readers could read in two ways.

HOST = b"host: x\r\n"
TWO_WAYS = {
    "length and coding": b"content-length: 3\r\ntransfer-encoding: chunked\r\n",
    "coding and length": b"transfer-encoding: chunked\r\ncontent-length: 3\r\n",
    "two lengths": b"content-length: 3\r\ncontent-length: 4\r\n",
    "the same length twice": b"content-length: 3\r\nContent-Length: 3\r\n",
    "a list of lengths": b"content-length: 3, 3\r\n",
    "a length below zero": b"content-length: -3\r\n",
    "a length with a sign": b"content-length: +3\r\n",
    "a length in hexadecimal": b"content-length: 0x3\r\n",
    "a length of other digits": "content-length: \u0663\r\n".encode(),
    "no length": b"content-length:\r\n",
    "an endless length": b"content-length: " + b"1" * 30 + b"\r\n",
    "another coding": b"transfer-encoding: identity\r\n",
    "a coding after chunked": b"transfer-encoding: chunked, gzip\r\n",
    "a coding before chunked": b"transfer-encoding: gzip, chunked\r\n",
    "nearly chunked": b"transfer-encoding: xchunked\r\n",
    "a tab after chunked": b"transfer-encoding: chunked\t\r\n",
    "two spaces before chunked": b"transfer-encoding:  chunked\r\n",
    "a vertical tab": b"transfer-encoding: \x0bchunked\r\n",
    "two codings": b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
    "a space before the colon": b"content-length : 3\r\n",
    "a folded line": b"x-a: b\r\n content-length: 3\r\n",
    "a line that begins with a tab": b"\tcontent-length: 3\r\n",
    "a bare line feed": b"x-a: b\ncontent-length: 3\r\n",
    "a bare carriage return": b"x-a: b\rcontent-length: 3\r\n",
    "a null": b"x-a: b\0\r\n",
    "no name": b": b\r\n",
    "no colon": b"x-a\r\n",
    "a name of other letters": "x-\xe9: b\r\n".encode("latin-1"),
    "two hosts": b"Host: y\r\n",
}


@pytest.mark.parametrize("name", TWO_WAYS)
def test_a_head_that_can_be_read_in_two_ways(name: str) -> None:
    end = End().feed(
        b"POST /a HTTP/1.1\r\n" + HOST + TWO_WAYS[name] + b"\r\nGET /b HTTP/1.1\r\n\r\n"
    )
    assert end.statuses == [400]
    assert b"connection: close\r\n" in end.received
    assert end.echo.served == []
    assert end.feed(get("/c")).statuses == [400], "nothing more is read"


@pytest.mark.parametrize(
    "line",
    [
        b"GET /a HTTP/1.1\n",
        b"GET /a HTTP/1.2\r\n",
        b"GET a HTTP/1.1\r\n",
        b"GET ftp://x/a HTTP/1.1\r\n",
        b"CONNECT x:443 HTTP/1.1\r\n",
        b"GET http:///a HTTP/1.1\r\n",
        b'GET http://x"/a HTTP/1.1\r\n',
        b"GET http://user@x/a HTTP/1.1\r\n",
        b"GET http://x:y/a HTTP/1.1\r\n",
        b"GET /a HTTP/2.0\r\n",
        b"GET /a http/1.1\r\n",
        b"GET /a\r\n",
        b"GET  /a HTTP/1.1\r\n",
        b"GET\t/a HTTP/1.1\r\n",
        b"GET /a HTTP/1.1 \r\n",
        b" GET /a HTTP/1.1\r\n",
        b"G(T /a HTTP/1.1\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\n",
        b"GET /a\0 HTTP/1.1\r\n",
        b"\0\0\0\r\n",
        b"\x16\x03\x01\x02\x00\x01\r\n",
    ],
)
def test_a_first_line_that_is_none(line: bytes) -> None:
    end = End().feed(line + HOST + b"\r\n")
    assert end.statuses == [400]
    assert not end.open


def test_a_caller_of_http_1_0_may_not_send_chunks() -> None:
    end = End().feed(chunked(b"a").replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert end.statuses == [400]


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"0x1\r\nx\r\n",
        b"1 1\r\nx\r\n",
        b"1 \r\nx\r\n",
        b"1 ;a\r\nx\r\n",
        b"1; a\r\nx\r\n",
        b'1;a="b\r\nx\r\n',
        b" 1\r\nx\r\n",
        b"\r\n",
        b"1\nx\r\n",
        b"1;a\nb\r\nx\r\n",
        b"1\r\nxy\r\n",
        b"1\r\nx\n0\r\n\r\n",
        b"fffffffff\r\n",
        b"1;" + b"a" * 2_000,
        b"0\r\na: b\n\r\n",
        b"0\r\n a: b\r\n\r\n",
        b"0\r\na : b\r\n\r\n",
        b"0\r\nContent-Length: 3\r\n\r\n",
        b"0\r\n" + b"a: b\r\n" * 2_000,
    ],
)
def test_chunks_that_are_none(body: bytes) -> None:
    head = chunked().partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    for end in (End().feed(head + body), End().feed(head, *(bytes([c]) for c in body))):
        assert end.statuses == [400]
        assert end.echo.served == []
        assert not end.open


# What is too large, and too slow.


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (get("/" + "x" * 100), 431),
        (get("/a", *["x: y"] * 5), 431),
        (get("/a", "x: " + "y" * 600), 431),
        (b"GET /" + b"x" * 600, 431),
        (get("/" + "x" * 70, *["x: y"] * 4), 200),
    ],
)
def test_heads_have_limits(raw: bytes, status: int) -> None:
    end = End(SMALL).feed(raw)
    assert end.statuses == [status]
    assert end.open == (status == 200)


def test_a_body_that_is_too_large_is_refused_before_it_comes() -> None:
    head = post(b"x" * 9).replace(b"content-length: 9", b"content-length: 9000000")
    end = End().feed(head)
    assert end.statuses == [413]
    assert end.socket.ended
    assert not end.socket.closed, "it must see the answer before its socket is cut"
    end.feed(b"x" * 9_000)
    assert end.statuses == [413]
    assert end.connection.eof_received() is False
    assert End().feed(head).wait(5).socket.aborted


def test_chunks_that_are_too_many_are_refused_as_soon_as_that_is_known() -> None:
    raw = chunked(b"x" * BODY_MAX, b"y" * 9)
    assert End().feed(raw[: raw.index(b"9\r\n") + 3]).statuses == [413]


@pytest.mark.parametrize(
    ("sent", "seconds", "status"),
    [
        (b"", LIMITS.idle_s_max, None),
        (get("/a"), LIMITS.idle_s_max, 200),
        (b"G", LIMITS.head_s_max, 408),
        (get("/a")[:-2], LIMITS.head_s_max, 408),
        (post(b"xyz")[:-1], LIMITS.body_s_max, 408),
        (chunked(b"xyz")[:-1], LIMITS.body_s_max, 408),
        (post(b"xyz", "/closed")[:-1], LIMITS.body_s_max, 401),
    ],
)
def test_who_takes_too_long_is_sent_away(sent: bytes, seconds: float, status: int | None) -> None:
    end = End()
    if sent:
        end.feed(sent)
    end.wait(seconds - 1)
    assert end.open
    end.wait(1)
    assert not end.open
    assert end.statuses == ([] if status is None else [status])
    if status == 408:
        assert end.wait(LIMITS.linger_s_max).socket.aborted


def test_a_head_that_comes_byte_by_byte_has_no_more_time() -> None:
    end = End()
    for byte in get("/a", "x: " + "y" * 100):
        end.feed(bytes([byte])).wait(1)
        if not end.open:
            break
    assert end.statuses == [408]


def test_a_request_that_is_served_has_time() -> None:
    end = End().feed(get("/later")).wait(10_000)
    assert end.open
    end.echo.answer(end.echo.later[0])
    assert end.statuses == [200]


def test_a_caller_who_never_takes_the_end_is_dropped() -> None:
    end = End().feed(get("/a", "connection: close"))
    assert (end.socket.closed, end.socket.aborted) == (True, False)
    assert end.wait(LIMITS.send_s_max).socket.aborted


# A request that is answered before its body has come.


def test_the_body_of_a_refused_request_is_read_over() -> None:
    raw = post(b"z" * 1_500, "/closed")
    end = End(SMALL).feed(raw[:200])
    assert end.statuses == [401]
    end.feed(raw[200:] + get("/a"))
    assert end.statuses == [401, 200]
    assert end.echo.served == [("GET", "/a", b"", b"")]


@pytest.mark.parametrize(
    "raw",
    [
        post(b"z" * 3_000, "/closed")[:200],
        chunked(b"abc", path="/closed"),
        post(b"abc", "/closed", "expect: 100-continue")[:-3],
    ],
)
def test_a_body_that_cannot_be_read_over_ends_the_connection(raw: bytes) -> None:
    end = End(SMALL).feed(raw)
    assert end.statuses == [401]
    assert b"connection: close" in end.received
    assert end.feed(get("/a")).statuses == [401]


# Requests ahead, and callers who leave.


def test_requests_ahead_wait_and_are_bounded() -> None:
    end = End(SMALL).feed(get("/later"), get("/a"), get("/later") + post(b"x"))
    assert end.statuses == []
    assert end.socket.reading
    end.feed(*[get("/b")] * 20)
    assert not end.socket.reading
    end.echo.answer(end.echo.later.pop())
    assert end.statuses == [200, 200]
    assert end.socket.reading
    end.echo.answer(end.echo.later.pop())
    assert end.statuses == [200] * 24
    assert [path for _, path, _, _ in end.echo.served][:4] == ["/later", "/a", "/later", "/a"]


def test_who_takes_no_answer_gets_no_further_one() -> None:
    end = End(SMALL)
    end.socket.on_write = lambda _: end.connection.pause_writing()
    end.feed(get("/a") * 3)
    assert end.statuses == [200]
    end.feed(*[get("/b")] * 20)
    assert end.statuses == [200]
    assert not end.socket.reading
    end.connection.resume_writing()
    assert end.statuses == [200] * 2
    end.socket.on_write = None
    end.connection.resume_writing()
    assert end.statuses == [200] * 23
    assert end.socket.reading


def test_many_requests_in_one_read_are_a_loop_and_no_recursion() -> None:
    end = End().feed(get("/a") * 5_000)
    assert end.statuses == [200] * 5_000


@pytest.mark.parametrize("how", ["lost", "end of file"])
def test_a_caller_who_leaves_while_it_is_served(how: str) -> None:
    end = End().feed(get("/later"), get("/a"))
    (exchange,) = end.echo.later
    told: list[bool] = []
    exchange.on_gone = lambda: told.append(True)
    if how == "lost":
        end.socket.closed = True
        end.connection.connection_lost(None)
    else:
        assert end.connection.eof_received() is False
        assert end.socket.aborted
        end.connection.connection_lost(None)
    assert told == [True]
    assert exchange.gone
    end.echo.answer(exchange)
    assert end.received == b""
    assert len(end.echo.served) == 1
    assert end.server.connections == set()


def test_a_caller_who_sends_no_more_gets_what_was_answered() -> None:
    end = End().feed(get("/a"))
    assert end.connection.eof_received() is False
    assert not end.socket.aborted


def test_a_caller_who_does_not_read() -> None:
    end = End().feed(get("/later"))
    (exchange,) = end.echo.later
    told: list[str] = []
    end.connection.pause_writing()
    end.connection.resume_writing()
    exchange.on_pause = lambda: told.append("pause")
    exchange.on_resume = lambda: told.append("resume")
    end.connection.pause_writing()
    end.wait(LIMITS.send_s_max - 1)
    assert end.open
    end.connection.resume_writing()
    end.wait(LIMITS.send_s_max)
    assert end.open
    end.connection.pause_writing()
    assert end.wait(LIMITS.send_s_max).socket.aborted
    assert told == ["pause", "resume", "pause"]


# A server that is full, or stops.


def test_a_server_that_is_full() -> None:
    end = End(full=True)
    assert end.statuses == [503]
    assert not end.open
    assert end.feed(get("/a")).statuses == [503]


def test_a_server_that_stops_lets_requests_end() -> None:
    idle, begun, body, served = End(), End().feed(b"GE"), End().feed(post(b"xy")[:-1]), End()
    served.feed(get("/later"))
    for end in (idle, begun, body, served):
        end.server.draining = True
        end.connection.drain()
    assert (idle.open, begun.open, body.open, served.open) == (False, False, True, True)
    assert b"connection: close" in body.feed(b"y").received
    served.echo.answer(served.echo.later[0])
    assert b"connection: close" in served.received
    assert not body.open
    assert not served.open


def test_an_answer_that_began_before_the_server_stops_ends_its_connection() -> None:
    end = End().feed(get("/later"))
    (exchange,) = end.echo.later
    exchange.begin(200, b"text/event-stream", [])
    exchange.write(b"a")
    end.server.draining = True
    end.connection.drain()
    exchange.end(b"b")
    assert end.received.endswith(b"1\r\nb\r\n0\r\n\r\n")
    assert end.socket.closed


# The gateway behind it.


@pytest.mark.parametrize("raw", [b"GET /healthz HTTP/1.1\r\n\r\n", b"x" * 70_000])
def test_the_gateway_answers_what_is_no_request(raw: bytes) -> None:
    desk = FakeDesk()
    server = FakeServer(Gateway(desk, Clock()))
    connection, transport = Connection(server), FakeTransport()
    connection.connection_made(transport)
    connection.data_received(raw)
    (answer,) = transport.writes
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    assert b"x-request-id: req_" in answer
    assert b'"type":"invalid_request_error"' in answer


def test_bytes_ahead_do_not_hide_that_a_caller_left(run: Run) -> None:
    async def main() -> None:
        desk = FakeDesk([token("a"), Hold()])
        gateway = Gateway(desk, Clock())
        caller = ask()
        caller.parts = [caller.request, get("/healthz")]
        serving = asyncio.ensure_future(caller.call(gateway))
        await desk.entered.wait()
        caller.hang_up()
        await serving
        assert desk.orders
        assert desk.deliveries == [] or desk.delivery.outcome.ending == "disconnected"

    run(main())


def test_a_bad_head_says_what_is_wrong() -> None:
    with pytest.raises(InvalidRequest, match="2 `Host`"):
        Head(get("/a", "HOST: y"))
    with pytest.raises(InvalidRequest, match="0 `Host`"):
        Head(b"GET /a HTTP/1.1\r\n\r\n")
