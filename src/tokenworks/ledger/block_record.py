"""A block: entries that became durable together, as they are stored."""

from __future__ import annotations

import msgspec


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """One group of entries as it is stored.

    Attributes:
        seq: its place in the ledger, from 1, without gaps.
        owner: the process that wrote it.
        number: its place among that process's blocks, from 1, without gaps; a process that does
            not know whether its block was stored asks by this number.
        at_unix_ns: when its last entry was made.
        count: entries in it.
        payload: the entries, a JSON array a line.
        hash: blake2b of the previous block's hash, the fields above and the payload.
    """

    seq: int
    owner: str
    number: int
    at_unix_ns: int
    count: int
    payload: bytes
    hash: bytes
