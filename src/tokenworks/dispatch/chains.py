"""Prompts' blocks and who has them, kept as parts of chains that the same workers have.

A block's hash is chained on the one before it, so whoever has a block has all before it. A
*stretch* is a part of a chain with one set of workers; it is found by its first block and compared
by its last one. A prompt is made of few stretches, so asking after it and entering it take a few
look-ups in memory that nobody has touched for long, however many blocks it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from operator import ne
from typing import Final

from tokenworks.dispatch.stretch import Stretch

STRETCH_BLOCKS_MAX: Final = 64
"""A stretch grows to no more than so many blocks; growing copies it."""


class Chains:
    """All blocks of one generation of the prefix index.

    Attributes:
        size: how many blocks.
    """

    __slots__ = ("_compared", "_stretches", "size")

    def __init__(self) -> None:
        self._stretches: dict[int, Stretch] = {}  # by their first block
        self.size = 0
        # What ``match`` bisected last, and the result: who asks then enters the same prefix.
        self._compared: tuple[Stretch, Sequence[int], int, int] | None = None

    def match(self, prefix: Sequence[int], mask: int) -> tuple[int, int, int]:
        """The longest part of a prefix that some of these workers have, and which of them.

        Args:
            prefix: block hashes from the prompt's start.
            mask: the workers asked about.

        Returns:
            The number of blocks, the mask of the workers that have them all, and how many blocks
            anybody has: if that is not more, another generation may know better.
        """
        find, length = self._stretches.get, len(prefix)
        found = holders = 0
        while found < length:
            stretch = find(prefix[found])
            if stretch is None:
                break
            hit = stretch.mask & mask
            if not hit:
                return found, holders, found + 1
            holders = hit
            rest = found + stretch.stop - stretch.start
            if rest <= length and stretch.blocks[stretch.stop - 1] == prefix[rest - 1]:
                found = rest
            else:
                count = common(stretch, prefix, found, length)
                self._compared = (stretch, prefix, found, count)
                found += count
        return found, holders, found

    def match_beyond(self, prefix: Sequence[int], mask: int, found: int) -> tuple[int, int]:
        """The same for a prefix of which more blocks are asked for than were found elsewhere.

        Returns:
            0, 0 if no more are here.
        """
        find, length = self._stretches.get, len(prefix)
        start = deepest = holders = 0
        while start < length:
            stretch = find(prefix[start])
            if stretch is None:
                break
            start += common(stretch, prefix, start, length)
            if start > found:
                hit = stretch.mask & mask
                if not hit:
                    break
                deepest, holders = start, hit
        return deepest, holders

    def insert(self, prefix: Sequence[int], bit: int, before: Chains) -> None:
        """Note that a worker has a prefix.

        Args:
            prefix: block hashes from the prompt's start.
            bit: the worker's.
            before: an older generation: who has blocks there that are new here has them here, too.
        """
        find, length = self._stretches.get, len(prefix)
        found, last, at, count = 0, None, None, 0
        if self._compared is not None:
            if self._compared[1] is prefix:
                at, _, at_found, at_count = self._compared
            self._compared = None
        while found < length:
            stretch = find(prefix[found])
            if stretch is None:
                break
            if stretch is at and found == at_found:
                count = at_count
            else:
                count = common(stretch, prefix, found, length)
            found += count
            middle = stretch.start + count
            if middle == stretch.stop:
                last = stretch
            elif stretch.mask & bit:
                last = None
                continue
            else:
                self.size -= stretch.stop - middle
                self._add(stretch.blocks, middle, stretch.stop, stretch.mask, None)
                stretch.stop = middle
                last = stretch
            stretch.mask |= bit
        if found == length:
            return
        if before.size:
            found, last = self._recall(prefix, bit, before, found, last)
        if found < length:
            rest = tuple(prefix[found:])
            self._add(rest, 0, len(rest), bit, last)

    def _recall(
        self, prefix: Sequence[int], bit: int, before: Chains, found: int, last: Stretch | None
    ) -> tuple[int, Stretch | None]:
        """Take over from an older generation what follows in a prefix."""
        find, length, start = before._stretches.get, len(prefix), 0
        while start < length:
            stretch = find(prefix[start])
            if stretch is None:
                break
            rest = start + common(stretch, prefix, start, length)
            if rest > found:
                at = stretch.start - start
                mask = stretch.mask | bit
                last = self._add(stretch.blocks, at + max(start, found), at + rest, mask, last)
                found = rest
            start = rest
        return found, last

    def _add(
        self, blocks: tuple[int, ...], start: int, stop: int, mask: int, last: Stretch | None
    ) -> Stretch:
        """Enter blocks that are not here: as the end of a stretch before them, or as a new one."""
        count = stop - start
        self.size += count
        if last is not None and last.mask == mask:
            joined = last.stop - last.start + count
            if joined <= STRETCH_BLOCKS_MAX:
                last.blocks = last.blocks[last.start : last.stop] + blocks[start:stop]
                last.start, last.stop = 0, joined
                return last
        gone = self._stretches.get(blocks[start])
        if gone is not None:  # only if these hashes are no chain
            self.size -= gone.stop - gone.start
        stretch = self._stretches[blocks[start]] = Stretch(blocks, start, stop, mask)
        return stretch

    def has_any(self, mask: int) -> bool:
        """Whether some of these workers have a block."""
        return any(each.mask & mask for each in self._stretches.values())

    def sweep(self, stale: int) -> None:
        """Clear bits from all masks; blocks that nobody has any more go.

        What is left of a tuple is copied where it is less than half, as it alone would keep all.
        """
        self._compared = None
        kept: dict[int, Stretch] = {}
        for block, stretch in self._stretches.items():
            stretch.mask &= ~stale
            if stretch.mask:
                kept[block] = stretch
                count = stretch.stop - stretch.start
                if 2 * count < len(stretch.blocks):
                    stretch.blocks = stretch.blocks[stretch.start : stretch.stop]
                    stretch.start, stretch.stop = 0, count
        self._stretches = kept
        self.size = sum(each.stop - each.start for each in kept.values())

    def record(self) -> list[tuple[tuple[int, ...], bytes]]:
        """All stretches, in the order in which they were entered; masks are little-endian."""
        return [
            (each.blocks[each.start : each.stop], mask_bytes(each.mask))
            for each in self._stretches.values()
        ]

    @classmethod
    def restore(cls, record: list[tuple[tuple[int, ...], bytes]]) -> Chains:
        """What gave this record."""
        chains = cls()
        for blocks, mask in record:
            chains._add(blocks, 0, len(blocks), int.from_bytes(mask, "little"), None)
        return chains


def common(stretch: Stretch, prefix: Sequence[int], at: int, length: int) -> int:
    """How many blocks of a stretch a prefix has from one place on; the first one it has.

    Args:
        stretch: that is compared.
        prefix: block hashes from the prompt's start.
        at: the place in the prefix.
        length: of the prefix.

    >>> common(Stretch((4, 7, 8, 9), 1, 4, 1), (5, 6, 7, 8, 1), 2, 5)
    2
    """
    blocks, start = stretch.blocks, stretch.start
    high = stretch.stop - start
    if high > length - at:
        high = length - at
    if blocks[start + high - 1] == prefix[at + high - 1]:
        return high  # those before an equal one are equal
    differ = map(ne, blocks[start : start + high], prefix[at : at + high])
    return next(compress(range(high), differ))


def mask_bytes(mask: int) -> bytes:
    """A mask as the fewest little-endian bytes."""
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")
