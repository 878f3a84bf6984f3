"""Which worker probably has which prompt prefix in its cache.

There are two ways to know what a worker has:

- **Approximate**, for engines that say nothing: a prefix is entered when it is sent. Such blocks
  live in two generations, each kept as ``chains``. What is sent goes into the young one; when that
  is half of the bound, or as old as ``ttl_ns``, it becomes the old one and what was old is
  forgotten. So a block that is not used is forgotten after one to two times ``ttl_ns``, and
  touching a block costs no move in a list. A whole prefix is entered at once, so no kept block ever
  builds on a forgotten one.
- **Exact**, for engines that publish what they store and remove: blocks stay until the engine says
  that they are gone. A hash that is removed while blocks build on it only shortens the match.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from tokenworks.dispatch.chains import Chains, mask_bytes
from tokenworks.dispatch.events import BlocksRemoved, BlocksStored
from tokenworks.dispatch.prefix_record import PrefixRecord

RETIRED_MAX: Final = 64
"""Lost workers whose bits stay in the masks until one sweep clears them all."""


class PrefixIndex:
    """Sets of workers are integers whose bit i stands for the worker of index i.

    Args:
        blocks_max: blocks in the index; the exact ones have a bound of their own of the same size.
        ttl_ns: how long an approximate block is believed in; 0 for ever.
    """

    __slots__ = (
        "_bits",
        "_blocks_max",
        "_exact",
        "_exact_workers",
        "_free",
        "_next_index",
        "_old",
        "_retired",
        "_ttl_ns",
        "_young",
        "_young_since_ns",
    )

    def __init__(self, blocks_max: int, ttl_ns: int = 0) -> None:
        assert blocks_max >= 0, blocks_max
        assert ttl_ns >= 0, ttl_ns
        # One object for each worker's bit: most blocks are with one worker, and their masks are
        # then one and the same object, which is at hand when a block is looked up.
        self._bits: list[int] = []
        self._young = Chains()
        self._old = Chains()
        self._exact: dict[int, int] = {}
        self._exact_workers = 0
        self._blocks_max = blocks_max
        self._ttl_ns = ttl_ns
        self._young_since_ns = 0
        self._free: list[int] = []
        self._retired: list[int] = []
        self._next_index = 0

    def __len__(self) -> int:
        """Blocks kept; one that is in both generations counts twice, as it does for the bound."""
        return self._young.size + self._old.size + len(self._exact)

    def resize(self, blocks_max: int, ttl_ns: int = 0) -> None:
        """Change the bounds; the generation that is too large goes."""
        assert blocks_max >= 0, blocks_max
        assert ttl_ns >= 0, ttl_ns
        self._blocks_max, self._ttl_ns = blocks_max, ttl_ns
        half = blocks_max // 2
        if self._old.size > half:
            self._old = Chains()
        if self._young.size > half:
            self._young = Chains()
        if len(self._exact) > blocks_max:
            self._exact = {}

    # Workers.

    def add_worker(self) -> int:
        """The index of a worker that has come up with an empty cache."""
        if self._free:
            return self._free.pop()
        self._bits.append(1 << self._next_index)
        self._next_index += 1
        return self._next_index - 1

    def remove_worker(self, index: int) -> None:
        """Forget a worker. Its bits stay until the next sweep, its index is not given out before.

        The caller never asks for an index that it removed, so stale bits are never seen.
        """
        assert 0 <= index < self._next_index, index
        assert index not in self._retired, index
        self._retired.append(index)
        self._exact_workers &= ~(1 << index)
        if len(self._retired) >= RETIRED_MAX:
            self._sweep(sum(1 << index for index in self._retired))
            self._free = sorted(self._free + self._retired, reverse=True)
            self._retired = []

    # What is sent.

    def insert(self, prefix: Sequence[int], index: int, now_ns: int) -> None:
        """Note that a worker is about to have a prefix; nothing for one whose cache is known.

        Args:
            prefix: block hashes from the prompt's start.
            index: the worker's.
            now_ns: the driver's clock.
        """
        bit = self._bits[index]
        if self._exact_workers & bit:
            return
        half = self._blocks_max // 2
        young = self._young
        due = self._ttl_ns and now_ns - self._young_since_ns >= self._ttl_ns
        if due or young.size + len(prefix) > half:
            if len(prefix) > half:
                prefix = prefix[:half]
            if due or young.size + len(prefix) > half:
                self._old = young
                young = self._young = Chains()
                self._young_since_ns = now_ns
        young.insert(prefix, bit, self._old)

    # What engines publish.

    def stored(self, blocks: Iterable[int], index: int) -> None:
        """A worker says that it has blocks; from now on its cache is taken as known.

        Blocks beyond the bound are not noted: a match is then shorter than the truth.
        """
        bit = self._bits[index]
        if not self._exact_workers & bit:
            self._exact_workers |= bit
            self._clear(bit)
        exact = self._exact
        for block in blocks:
            mask = exact.get(block)
            if mask is not None:
                exact[block] = mask | bit
            elif len(exact) < self._blocks_max:
                exact[block] = bit

    def removed(self, blocks: Iterable[int], index: int) -> None:
        """A worker says that it has dropped blocks."""
        bit, exact = 1 << index, self._exact
        for block in blocks:
            mask = exact.get(block, 0)
            if mask == bit:
                del exact[block]
            elif mask & bit:
                exact[block] = mask ^ bit

    def cleared(self, index: int) -> None:
        """A worker has dropped everything, or what it said has a gap: it has nothing we know of."""
        self._clear(1 << index)

    def told(self, event: BlocksStored | BlocksRemoved, index: int) -> None:
        """A worker's engine says what has become of its blocks."""
        if isinstance(event, BlocksStored):
            self.stored(event.blocks, index)
        elif event.blocks is None:
            self.cleared(index)
        else:
            self.removed(event.blocks, index)

    def is_exact(self, index: int) -> bool:
        """Whether a worker publishes what it has."""
        return bool(self._exact_workers >> index & 1)

    # Asking.

    def match(self, prefix: Sequence[int], mask: int) -> tuple[int, int]:
        """The longest part of a prefix that some of these workers have, and which of them.

        Args:
            prefix: block hashes from the prompt's start.
            mask: the workers asked about.

        Returns:
            The number of blocks, and the mask of the workers that have them all; 0, 0 if none.
        """
        if self._exact_workers & mask:
            return self._match_all(prefix, mask)
        found, holders, known = self._young.match(prefix, mask)
        if known == found < len(prefix) and self._old.size:
            deeper = self._old.match_beyond(prefix, mask, found)
            if deeper[0]:
                return deeper
        return found, holders

    def _match_all(self, prefix: Sequence[int], mask: int) -> tuple[int, int]:
        """The same where some caches are known: they may have holes, so it goes block by block."""
        find, known = self._exact.get, self._exact_workers & mask
        depth = holders = 0
        for block in prefix:
            known &= find(block, 0)
            if not known:
                break
            depth, holders = depth + 1, known
        guessed = mask & ~self._exact_workers
        deeper, others = self.match(prefix, guessed) if guessed else (0, 0)
        if deeper == depth:
            return depth, holders | others
        return (depth, holders) if depth > deeper else (deeper, others)

    # Written down.

    def record(self) -> PrefixRecord:
        """The whole index, in the order in which blocks were entered."""
        return PrefixRecord(
            blocks_max=self._blocks_max,
            ttl_ns=self._ttl_ns,
            young_since_ns=self._young_since_ns,
            young=self._young.record(),
            old=self._old.record(),
            exact=[(block, mask_bytes(mask)) for block, mask in self._exact.items()],
            exact_workers=mask_bytes(self._exact_workers),
            free=list(self._free),
            retired=list(self._retired),
            next_index=self._next_index,
        )

    @classmethod
    def restore(cls, record: PrefixRecord) -> PrefixIndex:
        """The index that gave this record."""
        index = cls(record.blocks_max, record.ttl_ns)
        index._young_since_ns = record.young_since_ns
        index._young = Chains.restore(record.young)
        index._old = Chains.restore(record.old)
        index._exact = {block: int.from_bytes(mask, "little") for block, mask in record.exact}
        index._exact_workers = int.from_bytes(record.exact_workers, "little")
        index._free = list(record.free)
        index._retired = list(record.retired)
        index._next_index = record.next_index
        index._bits = [1 << i for i in range(record.next_index)]
        return index

    def _sweep(self, stale: int) -> None:
        """Clear bits from all masks; blocks that nobody has any more go."""
        self._young.sweep(stale)
        self._old.sweep(stale)
        self._exact = {
            block: kept for block, mask in self._exact.items() if (kept := mask & ~stale)
        }

    def _clear(self, bit: int) -> None:
        known = any(mask & bit for mask in self._exact.values())
        if known or self._young.has_any(bit) or self._old.has_any(bit):
            self._sweep(bit)
