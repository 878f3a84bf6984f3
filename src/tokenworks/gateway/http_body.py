"""The body of a request: of a known length, or in chunks; bounded, however it is cut into reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from tokenworks.core.errors import InvalidRequest, RequestTooLarge
from tokenworks.gateway.http_head import FIELD, TOKEN

CHUNK_LINE_BYTES_MAX: Final = 1_024
"""A chunk's size with its extensions, which are not read."""

TRAILER_BYTES_MAX: Final = 8 * 1_024
_VALUE: Final = rb"(?:" + TOKEN + rb'|"[^"\\\x00-\x1f\x7f]*+")'
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;" + TOKEN + rb"(?:=" + _VALUE + rb")?+)*+\r\n")
_FIELD: Final = re.compile(FIELD)
_OF_FRAMING: Final = (b"content-length:", b"transfer-encoding:")
_CRLF: Final = b"\r\n"


class SizedBody:
    """A body whose length is known.

    Args:
        length: its bytes.
        take: gets the body part by part; None keeps it.

    Attributes:
        whole: the body, once it is there; empty if it was taken.
    """

    __slots__ = ("_left", "_parts", "_take", "whole")

    def __init__(self, length: int, take: Callable[[bytes], None] | None = None) -> None:
        self._left = length
        self._parts: list[bytes] = []
        self._take = self._parts.append if take is None else take
        self.whole: bytes | None = None

    def feed(self, data: bytes) -> bytes:
        """Take what is of the body; return what comes after it."""
        rest = b""
        if len(data) > self._left:
            data, rest = data[: self._left], data[self._left :]
        self._left -= len(data)
        self._take(data)
        if not self._left:
            self.whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        return rest


class ChunkedBody:
    """A body in chunks; extensions and trailers are checked for length and dropped.

    Args:
        bytes_max: the body may have no more.
        take: gets the body part by part; None keeps it.

    Attributes:
        whole: the body, once it is there; empty if it was taken.
    """

    __slots__ = ("_bytes_max", "_in_trailer", "_left", "_parts", "_rest", "_size", "_take", "whole")

    def __init__(self, bytes_max: int, take: Callable[[bytes], None] | None = None) -> None:
        self._bytes_max = bytes_max
        self._parts: list[bytes] = []
        self._take = self._parts.append if take is None else take
        self._rest = b""
        self._size = 0
        self._left = 0
        """Bytes of the present chunk that have not come, with its line end."""
        self._in_trailer = False
        self.whole: bytes | None = None

    def feed(self, data: bytes) -> bytes:
        """Take what is of the body; return what comes after it.

        Raises:
            InvalidRequest: a chunk is not as it must be.
            RequestTooLarge: more than ``bytes_max``.
        """
        data = self._rest + data if self._rest else data
        at = 0
        while self.whole is None:
            step = self._chunk(data, at) if self._left else self._line(data, at)
            if step == at:
                self._rest = data[at:]
                return b""
            at = step
        return data[at:]

    def _chunk(self, data: bytes, at: int) -> int:
        """Take of a chunk's bytes what is there; the place after it."""
        body = self._left - len(_CRLF)
        if body > 0:
            part = data[at : at + body]
            self._take(part)
            self._left -= len(part)
            return at + len(part)
        if len(data) - at < self._left:
            return at
        if data[at : at + len(_CRLF)] != _CRLF:
            raise InvalidRequest("A chunk of the request's body is longer than it says.")
        self._left = 0
        return at + len(_CRLF)

    def _line(self, data: bytes, at: int) -> int:
        """Take the line of a chunk's size, or one of the trailer; the place after it."""
        end = data.find(b"\n", at) + 1
        bytes_max = TRAILER_BYTES_MAX if self._in_trailer else CHUNK_LINE_BYTES_MAX
        if (end or len(data)) - at > bytes_max:
            raise InvalidRequest(f"A line between the request's chunks exceeds {bytes_max} bytes.")
        if not end:
            return at
        line = data[at:end]
        if self._in_trailer:
            self._trailer(line)
            return end
        match = _SIZE.fullmatch(line)
        if match is None:
            raise InvalidRequest("The size of a chunk of the body is no hexadecimal number.")
        size = int(match[1], 16)
        self._size += size
        if self._size > self._bytes_max:
            raise body_too_large(self._bytes_max)
        self._in_trailer = not size
        self._left = size + len(_CRLF) if size else 0
        return end

    def _trailer(self, line: bytes) -> None:
        self._size += len(line)
        field = line == _CRLF or _FIELD.fullmatch(line) is not None
        field = field and not line.lower().startswith(_OF_FRAMING)
        if not field or self._size > self._bytes_max + TRAILER_BYTES_MAX:
            raise InvalidRequest("The trailer of the request's body is not HTTP/1.1.")
        if line == _CRLF:
            self.whole = b"".join(self._parts)


def body_too_large(bytes_max: int) -> RequestTooLarge:
    """The refusal of a body."""
    return RequestTooLarge(
        f"The body has more than {bytes_max} bytes.", hint="Send a shorter prompt."
    )
