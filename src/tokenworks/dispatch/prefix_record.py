"""The prefix index as snapshots hold it; apart from its code, which may be compiled."""

from __future__ import annotations

import msgspec


class PrefixRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The index as it is written into a snapshot; masks are little-endian bytes."""

    blocks_max: int
    ttl_ns: int
    young_since_ns: int
    young: list[tuple[tuple[int, ...], bytes]]
    old: list[tuple[tuple[int, ...], bytes]]
    exact: list[tuple[int, bytes]]
    exact_workers: bytes
    free: list[int]
    retired: list[int]
    next_index: int
