"""A head that is like the one before is not read again, and says the same as if it were."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenworks.core.errors import InvalidRequest
from tokenworks.gateway import http_head
from tokenworks.gateway.http_head import Head

START = b"POST /v1/chat/completions?a=1 HTTP/1.1\r\nHost: x\r\n"
LENGTHS = (
    *(b"Content-Length: 12\r\n", b"content-length:7\r\n", b"Content-Length: \t12 \r\n"),
    *(b"Content-Length: -1\r\n", b"Content-Length: 1 2\r\n", b"Content-Length: 012\r\n"),
    *(b"Content-Length: \r\n", b"Content-Length: 1234567890123456\r\n", b"CONTENT-LENGTH: 0\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: +5\r\n", b"X-Content-Length: 5\r\n"),
)
OTHERS = (
    *(b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"Authorization: Bearer a\r\n"),
    *(b"Authorization: Bearer b\r\n", b"x: 12\r\n", b"Host: y\r\n", b"12\r\n", b"bad line\r\n"),
)
LINES = st.lists(st.sampled_from([*LENGTHS, *OTHERS]), max_size=4)


def head(lines: list[bytes]) -> bytes:
    return START + b"".join(lines) + b"\r\n"


def says(raw: bytes, like: Head | None) -> dict[str, Any] | str:
    try:
        read = Head(raw, like)
    except InvalidRequest as error:
        return error.message
    names = ("method", "path", "query", "raw_path", "http_1_0", "length", "keep_alive", "expects")
    found = {name: getattr(read, name) for name in names}
    for name in (b"authorization", b"content-length", b"x", b"host"):
        found[name.decode()] = read.get(name)
    for prefixes in ((b"exp", b"x-content"), (b"content-",), ()):
        found[str(prefixes)] = read.has(*prefixes)
    return found | {"headers": read.headers(), "key": read.secret_sha256()}


@given(LINES, LINES, st.integers(0, 1), st.binary(max_size=3), st.integers(0, 200))
@example([LENGTHS[0]], [LENGTHS[2]], 0, b"", 0)
def test_it_says_what_it_says_alone(
    before: list[bytes], after: list[bytes], alike: int, spoilt: bytes, at: int
) -> None:
    if alike:  # but for one line
        after = [*before[:-1], *after[-1:]]
    try:
        like = Head(head(before))
    except InvalidRequest:
        return
    like.get(b"x")
    like.get(b"content-length")
    like.has(b"exp", b"x-content")
    like.secret_sha256()
    raw = head(after)
    raw = raw[:at] + spoilt + raw[at:]
    alone = says(raw, None)
    assert says(raw, like) == alone
    # One that was taken over stands for the next one as well.
    if not isinstance(alone, str):
        assert says(raw, Head(raw, like)) == alone


def test_a_secret_is_hashed_once_for_heads_that_say_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [b"Authorization: Bearer a\r\n", b"Content-Length: 12\r\n"]
    first = Head(head(lines))
    digest = first.secret_sha256()
    assert digest == hashlib.sha256(b"a").hexdigest()
    other = Head(head([OTHERS[3], lines[1]]), first)
    assert other.secret_sha256() == hashlib.sha256(b"b").hexdigest()
    monkeypatch.setattr(http_head, "secret_of", None)
    assert Head(head([lines[0], b"Content-Length: 7\r\n"]), first).secret_sha256() == digest
    assert first.secret_sha256() == digest


def test_only_another_length_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [b"a: 1\r\n", b"Content-Length: 12\r\n", b"b: 2\r\n"]
    like = Head(head(lines))

    class Never:
        def fullmatch(self, raw: bytes) -> None:
            raise LookupError(raw)

    monkeypatch.setattr(http_head, "_HEAD", Never())
    lines[1] = b"Content-Length: 3456\r\n"
    assert Head(head(lines), like).length == 3456
    for line in (b"content-length: 12\r\n", b"Content-Length: x\r\n"):
        with pytest.raises(LookupError):
            Head(head([lines[0], line, lines[2]]), like)
    with pytest.raises(LookupError):
        Head(head([b"a: 2\r\n", *lines[1:]]), like)
    with pytest.raises(LookupError):
        Head(head([*lines[:2], b"b: 3\r\n"]), like)
