"""The KV blocks of one modelled worker: counted, shared by prefix, and reused oldest first.

A block is *cached* when it holds a full block of a prompt whose hash is known; other requests that
begin alike share it. All other blocks in use are only counted. Cached blocks form chains, because a
block's hash covers all before it; a *stretch* is the part of a chain that the same sequences refer
to, and is split where they come to differ. So the cost of a request is that of the few stretches
that its prompt is made of, not of its blocks.

A stretch to which nobody refers stays until its place is needed. What was released first goes
first, a chain's end before its beginning, block by block; so eviction never breaks a chain.
"""

from __future__ import annotations

from collections import deque


class Stretch:
    """Consecutive cached blocks that the same sequences refer to.

    Attributes:
        blocks: their hashes; at least one.
        before: the stretch that the chain comes from; None at a prompt's beginning.
        after: how many stretches go on from its end.
        references: sequences that refer to it; these refer to all before it, too.
        released: number of the release that left it without a reference; 0 while it has some.
    """

    __slots__ = ("after", "before", "blocks", "references", "released")

    def __init__(self, blocks: tuple[int, ...], before: Stretch | None, references: int) -> None:
        self.blocks = blocks
        self.before = before
        self.after = 0
        self.references = references
        self.released = 0


Match = tuple[int, int, Stretch | None, int]
"""The cached part of a prompt: blocks, how many of them are referenced, the last stretch, and how
many blocks of that; only valid until the cache is changed."""

NO_MATCH: Match = (0, 0, None, 0)

Change = tuple[bool, tuple[int, ...]]
"""Blocks that became cached ones (true), or are no longer."""


class KVCache:
    """Blocks of one worker.

    Attributes:
        blocks_max: all that there are.
        available: blocks that can be had, those of cached prefixes without a reference included.
        available_min: the fewest that ever were.
        changes: what became of cached blocks, for whoever empties it; None keeps nothing.
        evicted: cached blocks that made room, since the beginning.
    """

    __slots__ = (
        "_cached",
        "_counted",
        "_released",
        "_releases",
        "_stretches",
        "available",
        "available_min",
        "blocks_max",
        "changes",
        "evicted",
    )

    def __init__(self, blocks_max: int) -> None:
        assert blocks_max >= 1, blocks_max
        self.blocks_max = self.available = self.available_min = blocks_max
        self.evicted = 0
        self.changes: list[Change] | None = None
        self._stretches: dict[int, Stretch] = {}  # by the hash of their first block
        self._cached = 0  # blocks of these
        self._counted = 0
        # In order; an entry is stale when its stretch has another number by now.
        self._releases: deque[tuple[int, Stretch]] = deque()
        self._released = 0

    def match(self, blocks: tuple[int, ...], blocks_max: int) -> Match:
        """Find the cached part of a prompt.

        Args:
            blocks: hashes from its start.
            blocks_max: how many of them may be taken from the cache.
        """
        stretches = self._stretches
        found = referenced = length = 0
        last = None
        while found < blocks_max:
            stretch = stretches.get(blocks[found])
            if stretch is None:
                break
            last, length = stretch, len(stretch.blocks)
            rest = min(found + length, blocks_max)
            if blocks[found:rest] != stretch.blocks:
                length = _common(stretch.blocks, blocks, found, rest)
                rest = found + length
            if stretch.references:
                referenced += length
            found = rest
            if length < len(stretch.blocks):
                break
        return found, referenced, last, length

    def pin(self, match: Match) -> Stretch | None:
        """Refer to what was found; the last stretch is what ``commit`` and ``release`` need."""
        found, referenced, last, length = match
        if last is None:
            return None
        if length < len(last.blocks):
            last = self._split(last, length)
        stretch: Stretch | None = last
        while stretch is not None:
            stretch.references += 1
            stretch.released = 0
            stretch = stretch.before
        self.available -= found - referenced
        return last

    def take(self, count: int) -> None:
        """Count blocks as in use; at most ``available``."""
        available = self.available = self.available - count
        assert available >= 0, (count, available)
        self.available_min = min(self.available_min, available)
        self._counted += count
        over = self._counted + self._cached - self.blocks_max
        if over > 0:
            self._evict(over)

    def commit(
        self, last: Stretch | None, blocks: tuple[int, ...], start: int, stop: int
    ) -> Stretch:
        """Make counted blocks of one sequence, which are computed now, cached ones.

        If another sequence has computed the same meanwhile, its block is shared and ours is free.

        Args:
            last: the last stretch that the sequence refers to; None if there is none.
            blocks: the sequence's chain.
            start: the first that is new: it refers to so many.
            stop: one after the last, greater than ``start``.

        Returns:
            The last stretch that it refers to now.
        """
        stretches = self._stretches
        self._counted -= stop - start
        while (stretch := stretches.get(blocks[start])) is not None:
            length = len(stretch.blocks)
            rest = min(start + length, stop)
            if blocks[start:rest] != stretch.blocks:
                length = _common(stretch.blocks, blocks, start, rest)
                if length < len(stretch.blocks):
                    stretch = self._split(stretch, length)
            if stretch.references:
                self.available += length
            stretch.references += 1
            stretch.released = 0
            last = stretch
            start += length
            if start == stop:
                return last
        self._cached += stop - start
        if self.changes is not None:
            self.changes.append((True, blocks[start:stop]))
        if last is not None:
            if last.references == 1 and not last.after:
                last.blocks += blocks[start:stop]
                return last
            last.after += 1
        stretch = stretches[blocks[start]] = Stretch(blocks[start:stop], last, 1)
        return stretch

    def release(self, last: Stretch | None, counted: int) -> None:
        """Let go of all that a sequence has.

        Args:
            last: the last stretch that it refers to.
            counted: its other blocks.
        """
        self._counted -= counted
        available = self.available + counted
        while last is not None:
            last.references -= 1
            if not last.references:
                self._released = last.released = self._released + 1
                self._releases.append((last.released, last))
                available += len(last.blocks)
            last = last.before
        self.available = available
        if len(self._releases) > 2 * self.blocks_max:
            self._releases = deque(each for each in self._releases if each[0] == each[1].released)

    def uncache(self, blocks: tuple[int, ...], first: int) -> int:
        """Free the end of a chain that nobody refers to and nothing builds on.

        Args:
            blocks: hashes from the chain's start.
            first: the first that may go.

        Returns:
            How many blocks were freed.
        """
        found, _, stretch, length = self.match(blocks, len(blocks))
        freed = 0
        if stretch is None or length < len(stretch.blocks):
            return 0  # another chain goes on from there
        while stretch is not None and found > first and not stretch.references:
            count = min(len(stretch.blocks), found - first)
            if stretch.after:
                break
            if self.changes is not None:
                self.changes.append((False, stretch.blocks[-count:]))
            freed += count
            found -= count
            if count < len(stretch.blocks):
                stretch.blocks = stretch.blocks[:-count]
                break
            del self._stretches[stretch.blocks[0]]
            stretch.released = 0
            stretch = stretch.before
            if stretch is not None:
                stretch.after -= 1
        self._cached -= freed
        return freed

    def bring(self, blocks: tuple[int, ...], first: int, stop: int) -> bool:
        """Make blocks cached ones that were kept elsewhere; whether the chain goes as far as these.

        Args:
            blocks: hashes from the chain's start.
            first: the first that is brought.
            stop: one after the last; there is room for them.
        """
        match = self.match(blocks, first)
        if match[0] < first:
            return False
        last = self.pin(match)
        self.take(stop - first)
        self.release(self.commit(last, blocks, first, stop), 0)
        return True

    def cached(self) -> set[int]:
        """Hashes of all cached blocks."""
        return {block for each in self._stretches.values() for block in each.blocks}

    def check(self) -> None:
        """Assert that the counts agree with each other and with the blocks."""
        stretches = self._stretches
        assert self._counted >= 0, self._counted
        assert self._counted + self._cached <= self.blocks_max, (self._counted, self._cached)
        assert self._cached == sum(len(each.blocks) for each in stretches.values()), self._cached
        alone = [each for each in stretches.values() if not each.references]
        left = self.blocks_max - self._counted - self._cached
        assert self.available == left + sum(len(each.blocks) for each in alone), self.available
        queued = dict(self._releases)
        after = dict.fromkeys(stretches.values(), 0)
        for first, stretch in stretches.items():
            assert stretch.blocks[0] == first, stretch.blocks
            assert (stretch.references == 0) == (stretch.released > 0), stretch.blocks
            assert not stretch.released or queued[stretch.released] is stretch, stretch.blocks
            before = stretch.before
            if before is not None:
                assert stretches[before.blocks[0]] is before, "a chain is broken"
                assert before.references >= stretch.references, stretch.blocks
                after[before] += 1
        assert all(each.after == count for each, count in after.items())

    def _split(self, stretch: Stretch, length: int) -> Stretch:
        """Cut a stretch in two; the first part is new, and about to be referred to."""
        first = Stretch(stretch.blocks[:length], stretch.before, stretch.references)
        first.after = 1
        stretch.before = first
        stretch.blocks = stretch.blocks[length:]
        self._stretches[first.blocks[0]] = first
        self._stretches[stretch.blocks[0]] = stretch
        return first

    def _evict(self, count: int) -> None:
        releases = self._releases
        self.evicted += count
        self._cached -= count
        while count:
            number, stretch = releases[0]
            if stretch.released != number:
                releases.popleft()
                continue
            blocks = stretch.blocks
            kept = len(blocks) - count
            if self.changes is not None:
                self.changes.append((False, blocks[max(0, kept) :]))
            if kept > 0:
                stretch.blocks = blocks[:kept]
                return
            releases.popleft()
            count = -kept
            del self._stretches[blocks[0]]
            if stretch.before is not None:
                stretch.before.after -= 1


def _common(cached: tuple[int, ...], blocks: tuple[int, ...], start: int, stop: int) -> int:
    """How many cached blocks a prompt has from one place on; the first one it has.

    Bisects: a hash covers all blocks before its own, so those before an equal one are equal.
    """
    low, high = 1, stop - start
    while low < high:
        middle = (low + high + 1) // 2
        if cached[middle - 1] == blocks[start + middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
