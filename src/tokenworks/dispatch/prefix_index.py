"""Which worker probably has which prompt prefix in its cache: block hash to a mask of workers.

The index is approximate: a prefix is entered when it is sent, and engines evict on their own.
A block's hash is chained on the one before it, so a worker that has a block has all before it.
Blocks are touched last to first, so that the least recently used block is never one that a kept
block builds on; eviction from that end keeps every chain whole.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import msgspec

RETIRED_MAX: Final = 64
"""Lost workers whose bits stay in the masks until one sweep clears them all."""


class PrefixRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The index as it is written into a snapshot; masks are little-endian bytes."""

    blocks_max: int
    hashes: list[int]
    masks: list[bytes]
    free: list[int]
    retired: list[int]
    next_index: int


class PrefixIndex:
    """Block hash to an integer whose bit i stands for the worker of index i."""

    __slots__ = ("_blocks", "_blocks_max", "_free", "_next_index", "_retired")

    def __init__(self, blocks_max: int) -> None:
        assert blocks_max >= 0, blocks_max
        self._blocks: OrderedDict[int, int] = OrderedDict()
        self._blocks_max = blocks_max
        self._free: list[int] = []
        self._retired: list[int] = []
        self._next_index = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def resize(self, blocks_max: int) -> None:
        """Change the bound; the least recently used blocks go."""
        assert blocks_max >= 0, blocks_max
        self._blocks_max = blocks_max
        while len(self._blocks) > blocks_max:
            self._blocks.popitem(last=False)

    def add_worker(self) -> int:
        """The index of a worker that has come up with an empty cache."""
        if self._free:
            return self._free.pop()
        self._next_index += 1
        return self._next_index - 1

    def remove_worker(self, index: int) -> None:
        """Forget a worker. Its bits stay until the next sweep, its index is not given out before.

        The caller never asks for an index that it removed, so stale bits are never seen.
        """
        assert 0 <= index < self._next_index, index
        assert index not in self._retired, index
        self._retired.append(index)
        if len(self._retired) >= RETIRED_MAX:
            self._sweep()

    def insert(self, prefix: Sequence[int], index: int) -> None:
        """Note that a worker is about to have a prefix.

        Args:
            prefix: block hashes from the prompt's start.
            index: the worker's.
        """
        blocks, bit = self._blocks, 1 << index
        move_to_end = blocks.move_to_end
        for block in reversed(prefix[: self._blocks_max]):
            mask = blocks.get(block)
            if mask is None:
                blocks[block] = bit
            else:
                blocks[block] = mask | bit
                move_to_end(block)
        while len(blocks) > self._blocks_max:
            blocks.popitem(last=False)

    def match(self, prefix: Sequence[int], mask: int) -> tuple[int, int]:
        """The longest part of a prefix that some of these workers have, and which of them.

        Gallops over the depth, then bisects: a prompt of n blocks takes about 2 log n look-ups.

        Args:
            prefix: block hashes from the prompt's start.
            mask: the workers asked about.

        Returns:
            The number of blocks, and the mask of the workers that have them all; 0, 0 if none.
        """
        blocks, length = self._blocks, len(prefix)
        found, holders, step = 0, 0, 1
        while found + step <= length:
            hit = blocks.get(prefix[found + step - 1], 0) & mask
            if not hit:
                break
            found, holders = found + step, hit
            step *= 2
        low, high = found, min(found + step - 1, length)
        while low < high:
            middle = (low + high + 1) // 2
            hit = blocks.get(prefix[middle - 1], 0) & mask
            if hit:
                low, holders = middle, hit
            else:
                high = middle - 1
        return low, holders

    def record(self) -> PrefixRecord:
        """The whole index, least recently used block first."""
        return PrefixRecord(
            blocks_max=self._blocks_max,
            hashes=list(self._blocks),
            masks=[
                mask.to_bytes((mask.bit_length() + 7) // 8, "little")
                for mask in self._blocks.values()
            ],
            free=list(self._free),
            retired=list(self._retired),
            next_index=self._next_index,
        )

    @classmethod
    def restore(cls, record: PrefixRecord) -> PrefixIndex:
        """The index that gave this record."""
        index = cls(record.blocks_max)
        index._blocks.update(
            (block, int.from_bytes(mask, "little"))
            for block, mask in zip(record.hashes, record.masks, strict=True)
        )
        index._free = list(record.free)
        index._retired = list(record.retired)
        index._next_index = record.next_index
        return index

    def _sweep(self) -> None:
        stale = sum(1 << index for index in self._retired)
        kept = ((block, mask & ~stale) for block, mask in self._blocks.items())
        self._blocks = OrderedDict((block, mask) for block, mask in kept if mask)
        self._free = sorted(self._free + self._retired, reverse=True)
        self._retired = []
