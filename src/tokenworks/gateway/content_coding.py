"""Reads answers that came compressed though they were asked for plain, to find their usage."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

DECODED_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of one answer: a small one can say that it is very long, and the event loop reads it."""

PIECE_BYTES: Final = 64 * 1024
_PLAIN: Final = frozenset({b"", b"identity"})
_READ: Final = frozenset({b"gzip", b"x-gzip", b"deflate"})
_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS


def codings_of(headers: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """How an answer is coded, in the order of coding; nothing if it is plain.

    >>> codings_of([(b"content-encoding", b"GZip"), (b"x-a", b"br")])
    [b'gzip']
    >>> codings_of([(b"content-encoding", b"identity")])
    []
    """
    said = b",".join(value for name, value in headers if name == b"content-encoding")
    codings = [coding.strip().lower() for coding in said.split(b",")]
    return [] if _PLAIN.issuperset(codings) else codings


class Decoder:
    """Reads one answer.

    Args:
        codings: the answer's, one at least.

    Attributes:
        blind: whether it cannot be read, or no further: another coding than gzip and deflate,
            several of them, bytes that are neither, or more than ``DECODED_BYTES_MAX``.
        coded_bytes: what has come.
        cut: whether what has come is not the whole of it.
    """

    def __init__(self, codings: Sequence[bytes]) -> None:
        self.blind = len(codings) > 1 or codings[0] not in _READ
        self.coded_bytes = 0
        self.cut = False
        self._decoded_bytes = 0
        self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._may_be_raw = codings[0] == b"deflate"

    def feed(self, data: bytes) -> list[bytes]:
        """What a part of the answer holds, in pieces."""
        self.coded_bytes += len(data)
        pieces: list[bytes] = []
        self.cut = self.cut or bool(data)
        more = bool(data)
        while more and not self.blind:
            try:
                piece = self._inflate.decompress(data, PIECE_BYTES)
            except zlib.error:
                self.blind = not self._may_be_raw
                self._restart(-zlib.MAX_WBITS)  # some leave out what "deflate" begins with
                continue
            self._may_be_raw = False
            self._decoded_bytes += len(piece)
            self.blind = self._decoded_bytes > DECODED_BYTES_MAX
            pieces.append(piece)
            data = self._inflate.unconsumed_tail
            more = bool(data) or len(piece) == PIECE_BYTES  # of which some may be held back
            if self._inflate.eof:
                data = self._inflate.unused_data
                self.cut = more = bool(data)
                self._restart(_GZIP_OR_ZLIB)  # a gzip file may have several members
        return [piece for piece in pieces if piece]

    def _restart(self, window_bits: int) -> None:
        self._inflate = zlib.decompressobj(window_bits)
        self._may_be_raw = False
