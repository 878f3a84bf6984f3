"""An answer that comes whole is taken without the parser, and is what the parser makes of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenworks.live.network import WorkerClient, _Connection
from tokenworks.live.plain_head import PlainHead

START = b"HTTP/1.1 200 OK\r\n"
STARTS = (
    *(b"HTTP/1.1 200 Fine\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 204 OK\r\n"),
    *(b"HTTP/1.1 500 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"),
    *(b"HTTP/1.1 200 OK\n", b"\r\nHTTP/1.1 200 OK\r\n", b"nonsense\r\n"),
    *(b"\r\n\r\nHTTP/1.1 200 OK\r\n", b"HTTP/1.1 100\r\n\r\nHTTP/1.1 200 OK\r\n"),
)
LENGTHS = (
    *(b"Content-Length: %d\r\n", b"content-length:%d\r\n", b"Content-Length: \t%d \r\n"),
    *(b"Content-Length: 0%d\r\n", b"Content-Length: %d0\r\n", b"Content-Length: +%d\r\n"),
    *(
        b"Content-Length:\r\n %d\r\n",
        b"Content-Length: %d\n",
        b"Content-Length: 0000000000000%d\r\n",
    ),
    *(b"Transfer-Encoding: chunked\r\nX: %d\r\n", b"X-Content-Length: %d\r\n"),
    b"x: y\n\r\nContent-Length: %d\r\n",
)
OTHERS = (
    *(b"Content-Type: application/json\r\n", b"Content-Type: text/plain\r\n", b"Server: a\r\n"),
    *(b"Connection: close\r\n", b"Date: Sun, 29 Nov 2026 10:00:00 GMT\r\n", b"bad line\r\n"),
    *(b"Date: Sun, 29 Nov 2026 10:00:01 GMT\r\n", b"Content-Length: 3\r\n", b"x: 3\r\n"),
    b"X: " + 4_096 * b"x" + b"\r\n",
)
SHAPES = st.tuples(
    st.sampled_from([*[START] * 8, *STARTS]),
    st.lists(st.sampled_from(OTHERS), max_size=2),
    st.sampled_from([*[LENGTHS[0]] * 8, *LENGTHS]),
)
BODIES = st.sampled_from([b"{}", b"", b'{"choices":[]}', b"\r\n\r\n{}", b"0\r\n\r\n"])
STEPS = st.tuples(
    *(st.sampled_from([0, 0, 0, 1]), BODIES),
    *(st.sampled_from([*[0] * 9, *each]) for each in ([-1, 1], [20, 40, 60], range(1, 9))),
)
Answer = tuple[bytes, list[bytes], bytes, bytes, int, int]


class Transport:
    """What a connection writes to; it says what became of it."""

    def __init__(self) -> None:
        self.closed = False
        self.paused = 0

    def get_extra_info(self, name: str) -> Any:
        assert name == "socket"
        return self

    def setsockopt(self, *option: int) -> None:
        assert option

    def write(self, data: bytes) -> None:
        assert data

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def reads(answer: Answer) -> list[bytes]:
    """An answer as it comes: in one read or two, of the length that it says or not."""
    start, lines, length, body, more, cut = answer
    data = start + b"".join(lines) + length % max(0, len(body) + more) + b"\r\n" + body
    return [part for part in (data[:cut], data[cut:]) if part]


async def heard(answers: list[Answer], *, parsed: bool, **how: Any) -> list[Any]:
    """What comes of some answers on one connection, until it is closed."""
    client, transport, found = WorkerClient("x", 1, None), Transport(), list[Any]()
    connection = _Connection(client)
    client._open[connection] = True
    connection.connection_made(transport)  # type: ignore[arg-type]
    for answer in answers:
        if transport.closed:
            break
        stream = connection.exchange(b"POST", 0.0, with_body=True, **how)
        for data in reads(answer):
            if parsed:
                connection._plain = PlainHead()
            connection.data_received(data)
        was = (stream._ended, stream._failure, stream._begun, stream.content_type, stream.headers)
        idle = client._idle == [connection]
        found.append((was, stream.status, b"".join(stream._chunks), idle, transport.closed))
        found.append((connection._head_due_s, connection._framed, connection._keep_alive))
        if not idle:
            break
        client._idle.clear()
    return found


BLANKS, TERSE = ((start, list[bytes](), LENGTHS[0]) for start in STARTS[-2:])
PLAIN = (START, list[bytes](), LENGTHS[0])
ERROR = (b"HTTP/1.1 500 OK\r\n", list[bytes](), LENGTHS[0])


@given(
    st.lists(SHAPES, min_size=2, max_size=2),
    st.lists(STEPS, min_size=2, max_size=5),
    st.sampled_from(["", "", "events", "bodiless", "keep_headers"]),
)
@example([PLAIN, PLAIN], [(0, b"{}", 0, 0, 0), (0, b"", 0, 0, 0), (0, b"{}", 0, 0, 5)], "")
@example([PLAIN, PLAIN], [(0, b"{}", 0, 0, 0), (1, b"{}", 0, 0, 0)], "keep_headers")
@example([PLAIN, ERROR], [(0, b"{}", 0, 0, 0), (1, b"{}", 0, 0, 0)], "")
@example([BLANKS, TERSE], [(0, b"{}", 0, 0, 0), (1, b"{}", 0, 0, 0)], "")
@example([ERROR, ERROR], [(0, b"{}", 0, 0, 0), (1, b"{}", 0, 0, 0)], "")
def test_it_is_what_the_parser_makes_of_it(
    shapes: list[tuple[bytes, list[bytes], bytes]],
    steps: list[tuple[int, bytes, int, int, int]],
    how: str,
) -> None:
    answers: list[Answer] = []
    for shape, body, more, cut, said in steps:  # mostly alike, but for the length
        start, lines, length = shapes[shape]
        answers.append((start, lines, LENGTHS[said] if said else length, body, more, cut))
    given = {how: True} if how else {}
    taken = asyncio.run(heard(answers, parsed=False, **given))
    assert taken == asyncio.run(heard(answers, parsed=True, **given))


def plain(length: int, body: bytes, more: bytes = b"") -> bytes:
    return START + more + b"Content-Length: %d\r\n\r\n%b" % (length, body)


def test_a_head_that_says_the_same_but_for_the_length_is_known() -> None:
    known = PlainHead()
    assert known.body_of(plain(2, b"{}")) is None
    known.remember(plain(2, b"{}"), b"text/plain")
    assert known.content_type == b"text/plain"
    assert known.body_of(plain(11, b"hello world")) == b"hello world"
    assert known.body_of(plain(0, b"")) == b""
    assert known.body_of(plain(2, b"{}x")) is None
    assert known.body_of(plain(3, b"{}")) is None
    assert known.body_of(plain(2, b"{}", b"x: 3\r\n")) is None
    known.remember(plain(2, b"{}", b"x: 3\r\n"), b"text/html")
    assert known.body_of(plain(2, b"{}", b"x: 3\r\n")) == b"{}"
    assert known.body_of(plain(2, b"{}")) is None


@pytest.mark.parametrize(
    "data",
    [
        plain(2, b"{}x"),
        plain(3, b"{}"),
        plain(2, b"{}", b"content-length:2\r\n"),
        plain(2, b"{}", b"Transfer-Encoding: identity\r\n"),
        plain(2, b"{}", b"x: y\nTransfer-Encoding: chunked\r\n"),
        plain(2, b"{}", b"x: y\rTransfer-Encoding: chunked\r\n"),
        plain(2, b"{}", b"x: " + 4_096 * b"x" + b"\r\n"),
        plain(2, b"{}").replace(b"200", b"404"),
        plain(2, b"{}").replace(b"2\r", b"+2\r"),
        plain(2, b"{}").replace(b"2\r", b"0000000000000002\r"),
        START + b"\r\n",
        START,
    ],
)
def test_only_a_plain_head_is_remembered(data: bytes) -> None:
    known = PlainHead()
    known.remember(data, b"text/plain")
    assert known.body_of(data) is None
    assert known.content_type == b""
