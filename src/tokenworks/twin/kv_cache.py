"""The KV blocks of one modelled worker: counted, shared by prefix, and reused oldest first.

A block is *cached* when it holds a full block of a prompt whose hash is known; other requests that
begin alike share it. All other blocks in use are only counted. A sequence refers to its chain from
the prompt's start without a gap, so along a chain references never rise. A cached block to which
nobody refers any more stays until its place is needed; what was released first goes first, and of
one release the chain's end before its beginning, so eviction never breaks a chain.
"""

from __future__ import annotations

from collections import deque


class KVCache:
    """Blocks of one worker.

    Attributes:
        blocks_max: all that there are.
        available: blocks that can be had, those of cached prefixes without a reference included.
        evicted: cached blocks that made room, since the beginning.
    """

    __slots__ = (
        "_cached",
        "_counted",
        "_queued",
        "_releases",
        "_stamp",
        "available",
        "blocks_max",
        "evicted",
    )

    def __init__(self, blocks_max: int) -> None:
        assert blocks_max >= 1, blocks_max
        self.blocks_max = blocks_max
        self.available = blocks_max
        self.evicted = 0
        # By hash: how many refer to it, or minus the stamp of the release that left it alone.
        self._cached: dict[int, int] = {}
        self._counted = 0
        # Releases in order, each with its blocks from the chain's beginning to its end. A block
        # that was taken up again since is recognised by its value in _cached.
        self._releases: deque[tuple[int, list[int]]] = deque()
        self._queued = 0
        self._stamp = 0

    def match(self, blocks: tuple[int, ...], blocks_max: int) -> int:
        """How many blocks of a chain are cached; gallops, then bisects.

        Args:
            blocks: hashes from the prompt's start.
            blocks_max: how many of them may be taken from the cache.
        """
        cached = self._cached
        found, step = 0, 1
        while found + step <= blocks_max:
            if blocks[found + step - 1] not in cached:
                break
            found += step
            step *= 2
        low, high = found, min(found + step - 1, blocks_max)
        while low < high:
            middle = (low + high + 1) // 2
            if blocks[middle - 1] in cached:
                low = middle
            else:
                high = middle - 1
        return low

    def referenced(self, blocks: tuple[int, ...], hits: int, least: int = 1) -> int:
        """How many of a chain's first cached blocks have so many references at least."""
        cached = self._cached
        low, high = 0, hits
        while low < high:
            middle = (low + high) // 2
            if cached[blocks[middle]] >= least:
                low = middle + 1
            else:
                high = middle
        return low

    def pin(self, blocks: tuple[int, ...], hits: int, referenced: int) -> None:
        """Refer to the first cached blocks of a chain; as many are referenced already."""
        cached = self._cached
        for block in blocks[:referenced]:
            cached[block] += 1
        if referenced < hits:
            cached.update(dict.fromkeys(blocks[referenced:hits], 1))
            self.available -= hits - referenced

    def take(self, count: int) -> None:
        """Count blocks as in use; at most ``available``."""
        assert count <= self.available, (count, self.available)
        self.available -= count
        self._counted += count
        over = self._counted + len(self._cached) - self.blocks_max
        if over > 0:
            self._evict(over)

    def commit(self, blocks: tuple[int, ...], start: int, stop: int) -> None:
        """Make counted blocks of one sequence, which are computed now, cached ones.

        If another sequence has computed the same meanwhile, its block is shared and ours is free.

        Args:
            blocks: the sequence's chain; it refers to the first ``start`` already.
            start: the first that is new.
            stop: one after the last.
        """
        cached = self._cached
        self._counted -= stop - start
        while start < stop:
            references = cached.get(blocks[start])
            if references is None:
                break
            if references > 0:
                cached[blocks[start]] = references + 1
                self.available += 1
            else:
                cached[blocks[start]] = 1  # ours is free and this one no longer
            start += 1
        cached.update(dict.fromkeys(blocks[start:stop], 1))

    def release(self, blocks: tuple[int, ...], cached_blocks: int, counted: int) -> None:
        """Let go of all that a sequence has.

        Args:
            blocks: its chain.
            cached_blocks: how many of them it refers to.
            counted: other blocks of its.
        """
        self._counted -= counted
        self.available += counted
        if not cached_blocks:
            return
        cached = self._cached
        shared = self.referenced(blocks, cached_blocks, 2)
        for block in blocks[:shared]:
            cached[block] -= 1
        alone = blocks[shared:cached_blocks]
        if alone:
            self._stamp += 1
            cached.update(dict.fromkeys(alone, -self._stamp))
            self._releases.append((self._stamp, list(alone)))
            self.available += len(alone)
            self._queued += len(alone)
            if self._queued > 3 * self.blocks_max:
                self._compact()

    def check(self) -> None:
        """Assert that the counts agree with each other and with the blocks."""
        unreferenced = sum(1 for value in self._cached.values() if value < 0)
        used = self._counted + len(self._cached) - unreferenced
        assert self._counted >= 0, self._counted
        assert self.available == self.blocks_max - used, (self.available, used)
        assert self._counted + len(self._cached) <= self.blocks_max, self._counted
        queued = [
            block
            for stamp, blocks in self._releases
            for block in blocks
            if self._cached.get(block) == -stamp
        ]
        assert len(queued) == len(set(queued)) == unreferenced, (len(queued), unreferenced)

    def _evict(self, count: int) -> None:
        cached, releases = self._cached, self._releases
        self.evicted += count
        popped = 0
        while count:
            stamp, blocks = releases[0]
            while blocks and count:
                block = blocks.pop()
                popped += 1
                if cached.get(block) == -stamp:
                    del cached[block]
                    count -= 1
            if not blocks:
                releases.popleft()
        self._queued -= popped

    def _compact(self) -> None:
        """Forget blocks in the queue that were taken up again since."""
        cached = self._cached
        kept = (
            (stamp, [block for block in blocks if cached.get(block) == -stamp])
            for stamp, blocks in self._releases
        )
        self._releases = deque(release for release in kept if release[1])
        self._queued = sum(len(blocks) for _, blocks in self._releases)
