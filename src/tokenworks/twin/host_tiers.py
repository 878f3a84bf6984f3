"""What moves between workers' caches and their hosts' memory in a run, and who waits for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from tokenworks.dispatch.commands import Fetch, Offload
from tokenworks.twin.host_tier import HostTier
from tokenworks.twin.kv_cache import KVCache
from tokenworks.twin.workers import Worker

At = Callable[[int, Callable[[], None]], None]


class HostTiers:
    """The hosts of a run's workers.

    Args:
        engines: all workers; those without a place in their host's memory are never asked.
        at: puts something on the agenda.
        moved: told of an engine whose blocks were moved, which an idle one does at once and with
            no boundary of its own.
    """

    __slots__ = ("_at", "_engines", "_lives", "_moved", "_tiers", "ready_ns")

    def __init__(self, engines: Sequence[Worker], at: At, moved: Callable[[Worker], None]) -> None:
        self._engines, self._at, self._moved = engines, at, moved
        self._tiers = {
            engine.index: HostTier(
                engine.spec.host_kv_blocks,
                engine.spec.block_tokens * engine.spec.kv_bytes_per_token,
                engine.spec.host_bytes_per_s,
            )
            for engine in engines
            if engine.spec.host_bytes_per_s
        }
        self._lives = dict.fromkeys(self._tiers, 0)
        self.ready_ns: dict[int, int] = {}
        """By place of a request: when what it waits for is in the cache."""

    def move(
        self,
        index: int,
        place: int,
        blocks: tuple[int, ...],
        command: Offload | Fetch,
        now_ns: int,
    ) -> None:
        """Do what the dispatcher wants.

        Args:
            index: of the worker.
            place: of the request whose prompt has the blocks.
            blocks: of that prompt.
            command: which of them go where.
            now_ns: now.
        """
        chain = blocks[: command.first + command.blocks]
        if isinstance(command, Offload):
            self.down(index, chain, command.first, now_ns)
            return
        done_ns = self.up(index, chain, command.first, now_ns)
        if done_ns is not None:
            self.ready_ns[place] = done_ns

    def down(self, index: int, chain: tuple[int, ...], first: int, now_ns: int) -> None:
        """Move a chain from one block on down; they leave the cache when all of them are there."""
        done_ns = self._tiers[index].transfer(len(chain) - first, now_ns)
        self._move_at(done_ns, index, functools.partial(self._left, index, chain, first))

    def up(self, index: int, chain: tuple[int, ...], first: int, now_ns: int) -> int | None:
        """Bring back what is still there of a chain from one block on.

        Returns:
            When it is in the cache; None if nothing is there.
        """
        tier = self._tiers[index]
        count = tier.has(chain[first:])
        if not count:
            return None
        tier.moved_up += count
        done_ns = tier.transfer(count, now_ns)
        self._move_at(done_ns, index, functools.partial(_came, chain[: first + count], first))
        return done_ns

    def lose(self, index: int) -> None:
        """A worker is gone, and what its host kept for it."""
        tier = self._tiers.get(index)
        if tier is not None:
            tier.clear()
            self._lives[index] += 1

    def _move_at(self, at_ns: int, index: int, move: Callable[[KVCache], None]) -> None:
        """Let an engine move blocks then, unless it is lost before."""
        life = self._lives[index]

        def act() -> None:
            if self._lives[index] == life:
                self._engines[index].move(move, at_ns)
                self._moved(self._engines[index])

        self._at(at_ns, act)

    def _left(self, index: int, chain: tuple[int, ...], first: int, cache: KVCache) -> None:
        """The copy is whole: what still is in the cache, and used by nobody, leaves it."""
        if cache.match(chain, len(chain))[0] == len(chain):
            self._tiers[index].put(chain[first:])
            cache.uncache(chain, first)


def _came(chain: tuple[int, ...], first: int, cache: KVCache) -> None:
    """Blocks have come back: they are cached ones again, if there is room for all of them."""
    if cache.available >= len(chain):
        cache.bring(chain, first, len(chain))
