"""Blocks: entries that became durable together, each block chained on the one before by a hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from tokenworks.core.errors import InvalidRequest, LedgerCorrupt
from tokenworks.ledger.block_record import Block
from tokenworks.ledger.entries import CostAccrued, Entry, Posted, Reserved, Voided

GENESIS: Final = bytes(32)
"""The hash before the first block."""

ENTRIES_MAX: Final = 4_096
"""Entries in one block, unless a single append has more."""


class ChainHead(NamedTuple):
    """The last block of a chain: with its hash, all blocks up to it are the same or are not."""

    seq: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash.hex()}"


def parse_head(text: str) -> ChainHead:
    """A head as ``str`` writes it.

    Raises:
        InvalidRequest: it is none.

    >>> str(parse_head("7:" + 32 * "0f"))[:8]
    '7:0f0f0f'
    """
    found = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", text)
    if found is None:
        raise InvalidRequest(
            f"{text!r} is no head of a chain.", hint="`ledger verify` prints it: SEQ:HASH."
        )
    return ChainHead(int(found[1]), bytes.fromhex(found[2]))


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final[msgspec.json.Decoder[Entry]] = msgspec.json.Decoder(
    Reserved | Posted | Voided | CostAccrued
)


def encode_entries(entries: Iterable[Entry]) -> bytes:
    """Entries as a block's payload."""
    return _ENCODER.encode_lines(entries)


def decode_entries(block: Block) -> list[Entry]:
    """The entries of a block.

    Raises:
        LedgerCorrupt: one cannot be read, or there are more or fewer than the block says.
    """
    try:
        entries = _DECODER.decode_lines(block.payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LedgerCorrupt(f"Block {block.seq} cannot be decoded: {error}.") from error
    if len(entries) != block.count:
        raise LedgerCorrupt(
            f"Block {block.seq} has {len(entries)} entries and says that it has {block.count}."
        )
    return entries


def hash_of(
    before: bytes,
    *,
    seq: int,
    owner: str,
    number: int,
    at_unix_ns: int,
    count: int,
    payload: bytes,
) -> bytes:
    """The hash of a block, 32 bytes.

    Args:
        before: the hash of the block before it; ``GENESIS`` for the first.
        seq: as in ``Block``.
        owner: likewise.
        number: likewise.
        at_unix_ns: likewise.
        count: likewise.
        payload: likewise.
    """
    digest = hashlib.blake2b(before, digest_size=32)
    digest.update(f"{seq}\n{owner}\n{number}\n{at_unix_ns}\n{count}\n".encode())
    digest.update(payload)
    return digest.digest()


def check_block(block: Block, seq: int, before: bytes) -> None:
    """Compare a block with its place and its hash.

    Raises:
        LedgerCorrupt: a block is missing before it, or something in it was changed.
    """
    if block.seq != seq:
        raise LedgerCorrupt(f"Block {seq} is missing; block {block.seq} stands in its place.")
    found = hash_of(
        before,
        seq=block.seq,
        owner=block.owner,
        number=block.number,
        at_unix_ns=block.at_unix_ns,
        count=block.count,
        payload=block.payload,
    )
    if found != block.hash:
        raise LedgerCorrupt(
            f"Block {block.seq} was changed, or a block before it: its hash differs."
        )
