"""The KV cache of one modelled engine: blocks in use, and blocks kept for their prefix.

Blocks are numbers, not objects. A block of a prompt that somebody may share has a hash; all others
are only counted. What nobody uses stays until its room is needed, the least recently released
first, tail first: so what is kept is always whole from its start, and the depth of a hit can be
found by jumps.

A hash maps to how many use it or, where nobody does, to minus the number of the release after which
that was so. Releases stand in a queue; a block whose number is another one was used again since.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class KVCache:
    """Blocks of one engine.

    Args:
        blocks: how many there are.

    Attributes:
        blocks: how many there are.
        free: blocks that hold nothing.
        idle: blocks that are kept for their prefix and not in use.
        evicted: blocks of the prefix cache that made room until now.
    """

    __slots__ = ("_queue", "_release", "_users", "blocks", "evicted", "free", "idle")

    def __init__(self, blocks: int) -> None:
        assert blocks > 0, blocks
        self.blocks = blocks
        self.free = blocks
        self.idle = 0
        self.evicted = 0
        self._users: dict[int, int] = {}
        self._release = 0
        self._queue: deque[tuple[Sequence[int], int, int]] = deque()

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

    def available_beside(self, chain: Sequence[int], depth: int) -> int:
        """Blocks that can be had while the first blocks of a prompt, which are here, are kept.

        Whoever uses a block uses all before it, so those that nobody uses are the last ones.
        """
        users, available = self._users, self.free + self.idle
        at = depth
        while at and users[chain[at - 1]] < 0:
            at -= 1
        return available - (depth - at)

    def use(self, chain: Sequence[int], depth: int) -> None:
        """Use the first blocks of a prompt, all of which are here."""
        users, woken = self._users, 0
        for block in chain[:depth]:
            count = users[block]
            if count < 0:
                users[block] = 1
                woken += 1
            else:
                users[block] = count + 1
        self.idle -= woken

    def take(self, count: int) -> bool:
        """Take blocks without a hash; False, and nothing happens, if there are not so many."""
        if count > self.free:
            lack = count - self.free
            if lack > self.idle:
                return False
            self._evict(lack)
        self.free -= count
        return True

    def _evict(self, lack: int) -> None:
        users, queue = self._users, self._queue
        self.free += lack
        self.idle -= lack
        self.evicted += lack
        while lack:
            chain, depth, number = queue.popleft()
            while depth and lack:
                depth -= 1
                block = chain[depth]
                if users.get(block) == number:
                    del users[block]
                    lack -= 1
            if depth:
                queue.appendleft((chain, depth, number))

    def name(self, chain: Sequence[int], start: int, stop: int) -> None:
        """Give hashes to blocks of a prompt that were taken without and are computed now.

        Those that somebody else has computed meanwhile are used instead, and ours are free again.
        """
        users, fresh = self._users, chain[start:stop]
        if users.keys().isdisjoint(fresh):
            users.update(dict.fromkeys(fresh, 1))
            return
        for block in fresh:
            count = users.get(block)
            if count is None:
                users[block] = 1
                continue
            self.free += 1
            if count < 0:
                self.idle -= 1
                users[block] = 1
            else:
                users[block] = count + 1

    def release(self, chain: Sequence[int], depth: int, nameless: int) -> None:
        """Use the first blocks of a prompt no more, and give back blocks without a hash."""
        self.free += nameless
        if not depth:
            return
        users, idled = self._users, 0
        self._release = number = self._release - 1
        for block in chain[:depth]:
            count = users[block]
            if count == 1:
                users[block] = number
                idled += 1
            else:
                users[block] = count - 1
        if idled:
            self.idle += idled
            self._queue.append((chain, depth, number))

    def check(self) -> None:
        """Compare counts with each other; a mistake of ours if they differ."""
        idle = sum(count < 0 for count in self._users.values())
        assert idle == self.idle, (idle, self.idle)
        assert 0 not in self._users.values()
        assert 0 <= self.free <= self.blocks - len(self._users), (self.free, len(self._users))
