"""The place for KV blocks in a host's memory: what is there, and when its link is free."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from tokenworks.core.units import NS_PER_S


class HostTier:
    """Blocks by their hashes; those that were used longest ago make room.

    Args:
        blocks_max: for how many there is room.
        block_bytes: of one.
        bytes_per_s: of the link, one transfer after the other.

    Attributes:
        moved_down: blocks that came, since the beginning.
        moved_up: blocks that were brought back.
    """

    __slots__ = (
        "_blocks",
        "_blocks_max",
        "_free_ns",
        "_ns_per_block",
        "moved_down",
        "moved_up",
    )

    def __init__(self, blocks_max: int, block_bytes: int, bytes_per_s: int) -> None:
        assert blocks_max >= 0, blocks_max
        assert bytes_per_s > 0, bytes_per_s
        self._blocks_max = blocks_max
        self._ns_per_block = -(-block_bytes * NS_PER_S // bytes_per_s)
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._free_ns = 0
        self.moved_down = self.moved_up = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def transfer(self, blocks: int, now_ns: int) -> int:
        """When so many blocks are over the link, which then is free again."""
        self._free_ns = max(self._free_ns, now_ns) + blocks * self._ns_per_block
        return self._free_ns

    def put(self, blocks: Sequence[int]) -> None:
        """Keep blocks that have come."""
        self.moved_down += len(blocks)
        for block in blocks:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._blocks_max:
            self._blocks.popitem(last=False)

    def has(self, blocks: Sequence[int]) -> int:
        """How many of some blocks are here, from the first one on."""
        count = 0
        for block in blocks:
            if block not in self._blocks:
                break
            self._blocks.move_to_end(block)
            count += 1
        return count

    def clear(self) -> None:
        """Lose all, as a crash does."""
        self._blocks.clear()
