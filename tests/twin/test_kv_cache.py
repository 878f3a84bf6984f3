"""KV blocks are conserved, shared by prefix, and evicted oldest release first, tail first."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tokenworks.twin.kv_cache import KVCache, Stretch


def chain(family: int, length: int) -> tuple[int, ...]:
    """A chain that shares its first two blocks with other families of the same parity."""
    return tuple(
        (family % 2 if depth < 2 else family + 10) * 100 + depth for depth in range(length)
    )


def hits(kv: KVCache, blocks: tuple[int, ...]) -> int:
    return kv.match(blocks, len(blocks))[0]


def test_a_prefix_is_found_by_its_length() -> None:
    kv = KVCache(20)
    blocks = chain(0, 9)
    kv.take(9)
    last = kv.commit(None, blocks, 0, 9)
    for length in range(10):
        assert kv.match(blocks, length)[:2] == (length, length)
    assert hits(kv, chain(2, 9)) == 2
    assert hits(kv, chain(1, 9)) == 0
    kv.release(last, 0)
    assert kv.match(blocks, 9)[:2] == (9, 0)
    assert kv.available == 20
    kv.check()


def test_the_oldest_release_goes_first_and_a_chain_from_its_end() -> None:
    kv = KVCache(10)
    first, second = chain(0, 4), chain(1, 4)
    lasts = []
    for blocks in (first, second):
        kv.take(4)
        lasts.append(kv.commit(None, blocks, 0, 4))
    for last in lasts:
        kv.release(last, 0)
    kv.take(5)
    assert (hits(kv, first), hits(kv, second), kv.evicted) == (1, 4, 3)
    kv.release(kv.pin(kv.match(first, 1)), 0)
    kv.take(4)
    assert (hits(kv, first), hits(kv, second)) == (1, 0)
    kv.check()


def test_blocks_that_two_have_computed_are_shared_and_one_copy_is_free() -> None:
    kv = KVCache(10)
    blocks = chain(0, 3)
    kv.take(3)
    kv.take(3)
    one = kv.commit(None, blocks, 0, 2)
    two = kv.commit(None, blocks, 0, 3)
    assert kv.available == 10 - 3 - 1
    kv.release(one, 1)
    kv.release(two, 0)
    kv.take(3)
    assert kv.commit(None, blocks, 0, 3) is two  # cached and released meanwhile
    assert kv.available == 7
    kv.check()


def test_a_stretch_grows_while_one_sequence_has_it_and_splits_where_two_differ() -> None:
    kv = KVCache(20)
    blocks = chain(0, 6)
    kv.take(6)
    last = kv.commit(None, blocks, 0, 3)
    assert kv.commit(last, blocks, 3, 6) is last
    other = kv.pin(kv.match(chain(2, 6), 6))
    assert other is not None
    assert other.blocks == blocks[:2]
    assert (other.references, last.references, last.before) == (2, 1, other)
    kv.release(last, 0)
    kv.check()
    assert kv.match(blocks, 6)[:2] == (6, 2)


def test_releases_that_were_taken_up_again_are_forgotten() -> None:
    kv = KVCache(4)
    kv.take(1)
    last: Stretch | None = kv.commit(None, (7,), 0, 1)
    for _ in range(100):
        kv.release(last, 0)
        last = kv.pin(kv.match((7,), 1))
        kv.check()
    kv.take(3)
    assert kv.evicted == 0


class KVCacheMachine(RuleBasedStateMachine):
    """Sequences that come, compute and go, as a worker would have them."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = KVCache(24)
        self.held: list[tuple[Stretch | None, tuple[int, ...], int, int]] = []

    @rule(family=st.integers(0, 5), length=st.integers(1, 9), computed=st.integers(0, 9))
    def come(self, family: int, length: int, computed: int) -> None:
        blocks, kv = chain(family, length), self.kv
        match = kv.match(blocks, length)
        if length - match[1] > kv.available:
            return
        last = kv.pin(match)
        kv.take(length - match[0])
        shared = max(match[0], min(computed, length))
        for start in range(match[0], shared):
            last = kv.commit(last, blocks, start, start + 1)
        self.held.append((last, blocks, shared, length - shared))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.held) - 1))
        last, blocks, shared, counted = self.held[index]
        if counted:
            last = self.kv.commit(last, blocks, shared, len(blocks))
            self.held[index] = last, blocks, len(blocks), 0

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        last, _, _, counted = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.kv.release(last, counted)

    @rule(family=st.integers(0, 5), length=st.integers(1, 9), first=st.integers(0, 9))
    def leave(self, family: int, length: int, first: int) -> None:
        blocks, kv = chain(family, length), self.kv
        before = kv.cached()
        freed = kv.uncache(blocks, first)
        gone = before - kv.cached()
        assert len(gone) == freed
        assert gone <= set(blocks[first:])

    @rule(family=st.integers(0, 5), length=st.integers(1, 9), first=st.integers(0, 8))
    def come_back(self, family: int, length: int, first: int) -> None:
        blocks, kv = chain(family, length), self.kv
        if first < length <= kv.available:
            reached = hits(kv, blocks[:first]) == first
            assert kv.bring(blocks, first, length) == reached
            assert not reached or hits(kv, blocks) == length

    @invariant()
    def agrees(self) -> None:
        self.kv.check()
        shared = {block for _, blocks, shared, _ in self.held for block in blocks[:shared]}
        assert self.kv.available == 24 - len(shared) - sum(held[3] for held in self.held)
        for _, blocks, shared_count, _ in self.held:
            assert hits(self.kv, blocks) >= shared_count


TestKVCacheMachine = KVCacheMachine.TestCase
TestKVCacheMachine.settings = settings(max_examples=60, stateful_step_count=60)
