"""The KV cache of one modelled engine: blocks in use, and blocks kept for their prefix.

Blocks are numbers, not objects. A block of a prompt that somebody may share has a hash and a count
of who uses it; all others are only counted. What nobody uses stays until its room is needed, the
least recently used first. A chain is released tail first, so what is kept is always whole from its
start and the depth of a hit can be found by jumps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class KVCache:
    """Blocks of one engine.

    Args:
        blocks: how many there are.

    Attributes:
        free: blocks that hold nothing.
        evicted: blocks of the prefix cache that made room until now.
    """

    __slots__ = ("_idle", "_users", "blocks", "evicted", "free")

    def __init__(self, blocks: int) -> None:
        assert blocks > 0, blocks
        self.blocks = blocks
        self.free = blocks
        self.evicted = 0
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def available(self) -> int:
        """Blocks that can be had: free ones, and those that are kept and not in use."""
        return self.free + len(self._idle)

    def in_use(self) -> int:
        """Blocks that somebody uses."""
        return self.blocks - self.free - len(self._idle)

    def match(self, chain: Sequence[int]) -> int:
        """How many blocks of a prompt are here, from its start."""
        users, length = self._users, len(chain)
        found, step = 0, 1
        while found + step <= length and chain[found + step - 1] in users:
            found += step
            step *= 2
        low, high = found, min(found + step - 1, length)
        while low < high:
            middle = (low + high + 1) // 2
            if chain[middle - 1] in users:
                low = middle
            else:
                high = middle - 1
        return low

    def idle_among(self, chain: Sequence[int], depth: int) -> int:
        """How many of the first blocks of a prompt are kept and not in use.

        Whoever uses a block uses all before it, so these are the last ones.
        """
        users, idle = self._users, 0
        while idle < depth and not users[chain[depth - 1 - idle]]:
            idle += 1
        return idle

    def use(self, chain: Sequence[int], depth: int) -> None:
        """Use the first blocks of a prompt, all of which are here."""
        users, idle = self._users, self._idle
        for block in chain[:depth]:
            count = users[block]
            if not count:
                del idle[block]
            users[block] = count + 1

    def take(self, count: int) -> bool:
        """Take blocks without a hash; False, and nothing happens, if there are not so many."""
        lack = count - self.free
        if lack > 0:
            idle = self._idle
            if lack > len(idle):
                return False
            users = self._users
            for _ in range(lack):
                block, _ = idle.popitem(last=False)
                del users[block]
            self.evicted += lack
            self.free = 0
            return True
        self.free -= count
        return True

    def name(self, chain: Sequence[int], start: int, stop: int) -> int:
        """Give hashes to blocks of a prompt that were taken without and are computed now.

        Those that somebody else has computed meanwhile are used instead, and ours are free again.

        Returns:
            How many blocks now have their hash; they count as used.
        """
        users, idle = self._users, self._idle
        for block in chain[start:stop]:
            count = users.get(block)
            if count is None:
                users[block] = 1
                continue
            if not count:
                del idle[block]
            users[block] = count + 1
            self.free += 1
        return stop - start

    def release(self, chain: Sequence[int], depth: int, nameless: int) -> None:
        """Use the first blocks of a prompt no more, and give back blocks without a hash."""
        users, idle = self._users, self._idle
        for block in reversed(chain[:depth]):
            count = users[block] - 1
            users[block] = count
            if not count:
                idle[block] = None
        self.free += nameless

    def check(self) -> None:
        """Compare counts with each other; a mistake of ours if they differ."""
        unused = {block for block, count in self._users.items() if not count}
        assert unused == set(self._idle), (len(unused), len(self._idle))
        assert all(count >= 0 for count in self._users.values())
        assert 0 <= self.free <= self.blocks - len(self._users), (self.free, len(self._users))
