"""Chunks that come one by one pass by the parser; what they say is what the parser would find."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenworks.live import lone_chunks
from tokenworks.live.network import WorkerClient, WorkerStream, _Connection

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"a":1}\n\n'


class Socket(asyncio.Transport):
    """Takes what is written, and knows whether it was closed."""

    closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self

    def setsockopt(self, *_: object) -> None:
        pass


def received(reads: list[bytes]) -> tuple[WorkerStream, bytes, int]:
    """The stream of an answer that came in these reads, its body, and how often it was parsed."""

    async def main() -> tuple[WorkerStream, bytes, int]:
        client = WorkerClient("127.0.0.1", 1, None)
        connection = _Connection(client)
        connection.connection_made(Socket())
        client._open[connection] = True
        client._sockets = 1
        stream = connection.exchange(b"", 1e9, with_body=True)
        parsed, parser = 0, connection._parser

        class Parser:
            def feed_data(self, data: bytes) -> None:
                nonlocal parsed
                parsed += 1
                parser.feed_data(data)

            def __getattr__(self, name: str) -> Any:
                return getattr(parser, name)

        connection._parser = Parser()
        for data in reads:
            if stream._connection is not None:
                connection.data_received(data)
        return stream, b"".join(stream._chunks), parsed

    return asyncio.run(main())


def chunk(data: bytes, form: str = "%x") -> bytes:
    return (form % len(data)).encode() + b"\r\n" + data + b"\r\n"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


ODD = (b"x", b"1\r\n", b"\n\n", b"\r\n", b"1f\r\n", b"\n\n\r\n", b"0\r\n\r\n")
PARTS = st.lists(st.sampled_from([EVENT, *ODD]), min_size=1, max_size=8)
FORMS = st.lists(st.sampled_from(["%x", "%X", "0%x", "%x;x=1", "%x;a"]), min_size=8, max_size=8)
ENDS = st.sampled_from([b"0\r\n\r\n", b"00\r\n\r\n", b"0\r\nx: y\r\n\r\n", b""])


@given(PARTS, FORMS, ENDS, st.lists(st.integers(0, 400), max_size=12), st.booleans())
@example([EVENT] * 3, ["%x"] * 8, b"0\r\n\r\n", [], True)
def test_however_it_is_cut_the_answer_is_the_same(
    parts: list[bytes], forms: list[str], end: bytes, places: list[int], at_chunks: bool
) -> None:
    chunks = [chunk(part, form) for part, form in zip(parts, forms, strict=False)]
    if at_chunks:
        reads = [HEAD, *chunks, *([end] if end else [])]
    else:
        reads = cut(HEAD + b"".join(chunks) + end, places)
    stream, body, _ = received(reads)
    assert body == b"".join(parts)
    assert stream._failure is None
    assert stream._ended == bool(end)


def test_a_chunk_that_comes_alone_is_not_parsed() -> None:
    reads = [HEAD + chunk(EVENT), chunk(EVENT), chunk(EVENT * 300), chunk(b"x"), chunk(EVENT)]
    stream, body, parsed = received([*reads, b"0\r\n\r\n"])
    assert stream._ended
    assert body == EVENT * 302 + b"x" + EVENT
    assert parsed == 2


@pytest.mark.parametrize(
    "wrong",
    [
        b"-5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"1_0\r\n0123456789abcdef\r\n",
        b"5\nhello\r\n",
        b"5\r\nhello\n\n",
        b"5\r\nhellooo\r\n",
        b"\r\nhello\r\n",
        b"g\r\nhello\r\n",
    ],
)
def test_what_is_no_chunk_is_left_to_the_parser_which_refuses_it(wrong: bytes) -> None:
    before, alone = received([HEAD + chunk(EVENT) + wrong]), received([HEAD + chunk(EVENT), wrong])
    assert before[0]._failure == alone[0]._failure
    assert alone[0]._failure is not None
    assert "not HTTP" in alone[0]._failure
    assert alone[1] == before[1]


def test_sizes_are_kept_within_bounds() -> None:
    for size in range(1, lone_chunks.SIZES_MAX + 100):
        assert lone_chunks.one_chunk(chunk(b"x" * size)) == b"x" * size
    assert len(lone_chunks._sizes) == lone_chunks.SIZES_MAX
