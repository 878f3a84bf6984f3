"""KV blocks are conserved, shared by prefix, and evicted oldest release first, tail first."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tokenworks.twin.kv_cache import KVCache


def chain(family: int, length: int) -> tuple[int, ...]:
    """A chain that shares its first two blocks with other families of the same parity."""
    return tuple(
        (family % 2 if depth < 2 else family + 10) * 100 + depth for depth in range(length)
    )


def test_a_prefix_is_found_by_its_length() -> None:
    kv = KVCache(20)
    blocks = chain(0, 9)
    kv.take(9)
    kv.commit(blocks, 0, 9)
    for length in range(10):
        assert kv.match(blocks, length) == length
    assert kv.match(chain(2, 9), 9) == 2
    assert kv.match(chain(1, 9), 9) == 0
    kv.release(blocks, 9, 0)
    assert kv.available == 20
    kv.check()


def test_the_oldest_release_goes_first_and_a_chain_from_its_end() -> None:
    kv = KVCache(10)
    first, second = chain(0, 4), chain(1, 4)
    for blocks in (first, second):
        kv.take(4)
        kv.commit(blocks, 0, 4)
    kv.release(first, 4, 0)
    kv.release(second, 4, 0)
    kv.take(5)
    assert (kv.match(first, 4), kv.match(second, 4), kv.evicted) == (1, 4, 3)
    kv.pin(first, 1, 0)
    kv.release(first, 1, 0)
    kv.take(4)
    assert (kv.match(first, 4), kv.match(second, 4)) == (1, 0)
    kv.check()


def test_blocks_that_two_have_computed_are_shared_and_one_copy_is_free() -> None:
    kv = KVCache(10)
    blocks = chain(0, 3)
    kv.take(3)
    kv.take(3)
    kv.commit(blocks, 0, 2)
    kv.commit(blocks, 0, 3)
    assert kv.available == 10 - 3 - 1
    kv.release(blocks, 2, 1)
    kv.release(blocks, 3, 0)
    kv.take(3)
    kv.commit(blocks, 0, 3)  # cached and released meanwhile
    assert kv.available == 7
    kv.check()


class KVCacheMachine(RuleBasedStateMachine):
    """Sequences that come, compute and go, as a worker would have them."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = KVCache(24)
        self.held: list[tuple[tuple[int, ...], int, int]] = []

    @rule(family=st.integers(0, 5), length=st.integers(1, 9), computed=st.integers(0, 9))
    def come(self, family: int, length: int, computed: int) -> None:
        blocks, kv = chain(family, length), self.kv
        hits = kv.match(blocks, length)
        referenced = kv.referenced(blocks, hits)
        if length - referenced > kv.available:
            return
        kv.pin(blocks, hits, referenced)
        kv.take(length - hits)
        shared = max(hits, min(computed, length))
        kv.commit(blocks, hits, shared)
        self.held.append((blocks, shared, length - shared))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        self.kv.release(*self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @invariant()
    def agrees(self) -> None:
        self.kv.check()
        shared = {block for blocks, shared, _ in self.held for block in blocks[:shared]}
        counted = sum(counted for _, _, counted in self.held)
        assert self.kv.available == 24 - len(shared) - counted
        for blocks, shared_count, _ in self.held:
            assert self.kv.match(blocks, len(blocks)) >= shared_count


TestKVCacheMachine = KVCacheMachine.TestCase
TestKVCacheMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
