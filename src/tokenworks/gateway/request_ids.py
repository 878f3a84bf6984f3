"""A request's names: the one it has in the ledger, and the one its caller gave it."""

from __future__ import annotations

import itertools
import secrets
from typing import Final

from tokenworks.core.ids import RequestID
from tokenworks.core.units import NS_PER_MS
from tokenworks.gateway.http_io import Headers

REQUEST_ID: Final = b"x-request-id"
"""In a request, the caller's own name for it; in an answer, that name or else ours."""

OUR_ID: Final = b"x-tokenworks-request"
"""Our name, in answers to callers who gave one of their own."""

CHARS_MAX: Final = 128
_BITS: Final = 24
_DIGITS: Final = 18
"""Twelve of the time, six of the count."""


class RequestNames:
    """Gives requests names that no other has; they rise with time, so entries are easy to find.

    A name is the millisecond, a count, and what is drawn once for all names of a process. Two
    processes can give the same only in one millisecond, after the same draw, at the same count,
    which begins anywhere.
    """

    __slots__ = ("_count", "_drawn")

    def __init__(self) -> None:
        self._count = itertools.count(secrets.randbits(_BITS))
        self._drawn = f"{secrets.randbits(_BITS):06x}"

    def new(self, unix_ns: int) -> RequestID:
        """The next name, at this time."""
        count = next(self._count) & ((1 << _BITS) - 1)
        # A one in front keeps the zeros; to format the two takes five times as long.
        digits = hex(1 << _DIGITS * 4 | unix_ns // NS_PER_MS << _BITS | count)
        return RequestID(f"req_{digits[-_DIGITS:]}{self._drawn}")


def caller_id(value: bytes) -> str | None:
    """A caller's name for its request; None for one that cannot stand in a header or a log."""
    text = bytes(value).decode("latin-1").strip()
    fit = 0 < len(text) <= CHARS_MAX and text.isascii() and text.isprintable() and " " not in text
    return text if fit else None


def id_headers(request: RequestID, callers: str | None) -> Headers:
    """Both names as an answer tells them."""
    if callers is None:
        return [(REQUEST_ID, request.encode())]
    return [(REQUEST_ID, callers.encode()), (OUR_ID, request.encode())]
