"""Whether an answer of events that has just begun to come says anything yet."""

from __future__ import annotations

import re
from typing import Final

_NOTHING: Final = frozenset({b"", b"data: [DONE]", b"data:[DONE]"})
"""A whole answer of events that has none: neither a part of an answer nor why it ended."""
_NOTHING_BYTES_MAX: Final = 32
"""Of such an answer with its line ends, and without comments."""
_COMMENT: Final = re.compile(rb"^:[^\r\n]*", re.MULTILINE)
"""A line of events that keeps a connection open and says nothing."""
_NO_WORD: Final = (b":", b"")
"""What the first chunk begins with if comments may be all that came: a comment, or empty lines."""
_COMMENTS_BYTES_MAX: Final = 16 * 1024
"""Before an answer; with more of them it has begun."""


def nothing_of(chunks: list[bytes], size_bytes: int) -> bytes | None:
    r"""The first bytes of an answer, without comments, if they say nothing; else None.

    Args:
        chunks: all that has come, one at least.
        size_bytes: of them together.

    Returns:
        The end, if that has come without anything before it; nothing, if something may follow.

    >>> nothing_of([b": wait"], 6), nothing_of([b": wait", b"\n\ndata: [DONE]"], 20)
    (b'', b'data: [DONE]')
    >>> nothing_of([b"\n", b": the prompt waits for its turn\n\n"], 34), nothing_of([b"data: {"], 7)
    (b'', None)
    """
    if size_bytes > _NOTHING_BYTES_MAX and (
        size_bytes > _COMMENTS_BYTES_MAX or chunks[0].lstrip()[:1] not in _NO_WORD
    ):
        return None
    said = _COMMENT.sub(b"", b"".join(chunks)).strip()
    return said if said in _NOTHING else None
