"""Chunks of HTTP that come one by one, as the tokens of an answer do while it is made.

Such a read is one chunk from its first byte to its last: it needs no parser, if the parser waits
for a chunk before it and after it.
"""

from __future__ import annotations

import re
from typing import Final

_EVENT_END: Final = b"\n\n"
_LINE_END: Final = b"\r\n"
_SIZE_BYTES_MAX: Final = 4
_SIZE: Final = re.compile(rb"[1-9A-Fa-f][0-9A-Fa-f]*")
SIZES_MAX: Final = 4_096
_sizes: dict[bytes, int] = {}
"""Sizes as they were written: those of tokens are few."""


def ends_with_chunk(data: bytes, body: bytes) -> bool:
    r"""Whether a read ends where a chunk does, for sure; those that carry events mostly show it.

    Args:
        data: what came, after a head that says it is chunked, or without one.
        body: the last that the parser has found in it.

    >>> ends_with_chunk(b"3\r\nx\n\n\r\n", b"x\n\n")
    True
    >>> ends_with_chunk(b"5\r\nx\n\n\r\n", b"x\n\n\r\n")
    False
    """
    # Only the chunk's own line end is left for what follows: a line of a size cannot end so, and
    # where a trailer does, the answer has ended.
    return body.endswith(_EVENT_END) and data.endswith(_EVENT_END + _LINE_END)


def one_chunk(data: bytes) -> bytes:
    r"""What is in a chunk of HTTP, if that is all there is, and of the plainest kind; else nothing.

    >>> one_chunk(b"5\r\nhello\r\n"), one_chunk(b"5;x\r\nhello\r\n"), one_chunk(b"0\r\n\r\n")
    (b'hello', b'', b'')
    """
    at = data.find(_LINE_END, 0, _SIZE_BYTES_MAX + len(_LINE_END))
    if at <= 0:
        return b""
    line = data[:at]
    size = _sizes.get(line)
    if size is None:
        if _SIZE.fullmatch(line) is None:
            return b""
        size = int(line, 16)
        if len(_sizes) < SIZES_MAX:
            _sizes[line] = size
    begin = at + len(_LINE_END)
    if len(data) != begin + size + len(_LINE_END) or not data.endswith(_LINE_END):
        return b""
    return data[begin : begin + size]
