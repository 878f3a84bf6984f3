"""A part of a chain of KV blocks that one set of workers has."""

from __future__ import annotations

import msgspec


class Stretch(msgspec.Struct, gc=False, eq=False):
    """Consecutive blocks of a chain: a part of a tuple, which others may share.

    Attributes:
        blocks: the hashes.
        start: where its first block is in there.
        stop: where its last block is, plus one; greater than ``start``.
        mask: the workers that have them.
    """

    blocks: tuple[int, ...]
    start: int
    stop: int
    mask: int
