"""Where a session's KV blocks wait while a tool runs: in the cache, or in the host's memory.

When an answer ends after which a tool is called, its session's own blocks stay in the worker's
prefix cache, and are gone if the tool takes longer than the cache takes to be filled anew. Where
the engine has a place for them in its host's memory they can be moved there and back over a link.

- **Down** (``Offload``), if the tool will take at least half of the time in which the cache is
  filled anew, and bringing the blocks back takes less time than computing them. They then also
  make room for others.
- **Up** (``Fetch``), when the session goes on at the worker that has them, under the same
  condition, before its request is sent.

Blocks that the session found in the cache when it began are others' as well and stay.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

import msgspec

from tokenworks.core.ids import TenantID, WorkerID
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.commands import Fetch, Offload
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.workers import Worker
from tokenworks.perf.timing import FS_PER_NS

PAUSED_MAX: Final = 10_000
"""Sessions that are remembered; those that went on longest ago are forgotten."""
WINDOW_NS: Final = 20 * NS_PER_S
"""How fast a cache fills is measured over about so long."""


class Paused(msgspec.Struct, kw_only=True):
    """What is remembered of a session.

    Attributes:
        worker: who had its last prompt.
        shared: blocks that it found when it began.
        blocks: of its last prompt, the full ones.
        last: the hash of the last of these, which stands for all of them.
        below: whether they were moved to the host's memory.
    """

    worker: WorkerID
    shared: int
    blocks: int
    last: int
    below: bool = False


class Filling(msgspec.Struct, kw_only=True):
    """How fast a worker's cache is filled: blocks since a time, and in the window before it."""

    since_ns: int = 0
    blocks: int = 0
    before: int = 0


class KVTiers(msgspec.Struct, kw_only=True):
    """Sessions that may pause, by tenant and name, and how fast workers' caches fill."""

    sessions: dict[str, Paused] = {}
    filling: dict[WorkerID, Filling] = {}

    def __post_init__(self) -> None:
        self.sessions = OrderedDict(self.sessions)  # a snapshot has a plain one

    def sent(self, request: Request, worker: Worker, hit_blocks: int, now_ns: int) -> Fetch | None:
        """A request of a session goes to a worker that has a place below; what it needs first."""
        assert request.session is not None, request.request
        own = len(request.prefix)
        self._fill(worker, max(0, own - hit_blocks), now_ns)
        key = _key(request.tenant, request.session)
        known = self.sessions.pop(key, None)
        shared = hit_blocks if known is None else known.shared
        found = None
        if known is not None and known.below and known.worker == worker.worker:
            found = _fetch(request, worker, known)
        if request.hints is None or not request.hints.session_ends:
            self.sessions[key] = Paused(
                worker=worker.worker,
                shared=min(shared, own),
                blocks=own,
                last=request.prefix[-1] if own else 0,
            )
            if len(self.sessions) > PAUSED_MAX:
                assert isinstance(self.sessions, OrderedDict)
                self.sessions.popitem(last=False)
        return found

    def paused(
        self, request: Request, workers: Mapping[WorkerID, Worker], now_ns: int
    ) -> Offload | None:
        """An answer has ended, perhaps for a tool to be called; whether its blocks go down.

        Args:
            request: whose answer it was.
            workers: that are up, by name.
            now_ns: now.
        """
        if request.session is None or request.hints is None or request.hints.tool_ns is None:
            return None
        session = self.sessions.get(_key(request.tenant, request.session))
        if session is None or session.last != (request.prefix or (0,))[-1]:
            return None  # another request of the session has come since
        worker = workers[session.worker]
        if not worker.host_bytes_per_s:
            return None  # it was measured again, without
        count = session.blocks - session.shared
        move_ns, compute_ns = _times_ns(worker, session.shared, count)
        anew_ns = self._anew_ns(worker, now_ns)
        if count <= 0 or anew_ns is None or move_ns >= compute_ns:
            return None
        if 2 * request.hints.tool_ns < anew_ns:
            return None
        session.below = True
        return Offload(
            request=request.request,
            worker=worker.worker,
            first=session.shared,
            blocks=count,
            reason="gone_before_it_is_needed",
            tool_ns=request.hints.tool_ns,
            filled_anew_ns=anew_ns,
            move_ns=move_ns,
            compute_ns=compute_ns,
        )

    def forget(self, worker: WorkerID) -> None:
        """A worker is lost with all that it has, below as well."""
        self.filling.pop(worker, None)
        lost = [key for key, each in self.sessions.items() if each.worker == worker]
        for key in lost:
            del self.sessions[key]

    def _fill(self, worker: Worker, blocks: int, now_ns: int) -> None:
        filling = self.filling.setdefault(worker.worker, Filling(since_ns=now_ns))
        if now_ns - filling.since_ns >= WINDOW_NS:
            again = now_ns - filling.since_ns < 2 * WINDOW_NS
            filling.before = filling.blocks if again else 0
            filling.since_ns, filling.blocks = now_ns, 0
        filling.blocks += blocks

    def _anew_ns(self, worker: Worker, now_ns: int) -> int | None:
        """How long the cache takes to be filled anew by what comes; None if that is not known."""
        filling = self.filling[worker.worker]
        blocks = filling.before + filling.blocks
        if not blocks or worker.kv_blocks is None:
            return None
        free = max(0, worker.kv_blocks - worker.context_tokens // worker.block_tokens)
        span_ns = now_ns - filling.since_ns + (WINDOW_NS if filling.before else 0)
        return free * max(1, span_ns) // blocks


def _fetch(request: Request, worker: Worker, known: Paused) -> Fetch | None:
    """Bring back what the session left, if its prompt begins with it."""
    if request.prefix[known.blocks - 1 : known.blocks] != (known.last,):
        return None
    count = known.blocks - known.shared
    move_ns, compute_ns = _times_ns(worker, known.shared, count)
    if move_ns >= compute_ns:
        return None
    return Fetch(
        request=request.request,
        worker=worker.worker,
        first=known.shared,
        blocks=count,
        reason="quicker_than_computing",
        move_ns=move_ns,
        compute_ns=compute_ns,
    )


def _times_ns(worker: Worker, first: int, count: int) -> tuple[int, int]:
    """How long it takes to move some blocks of a prompt over the link, and to compute them."""
    assert worker.host_bytes_per_s > 0, worker.worker
    tokens = max(0, count) * worker.block_tokens
    move_ns = -(-tokens * worker.kv_bytes_per_token * NS_PER_S // worker.host_bytes_per_s)
    if worker.timing is None:
        return move_ns, 0
    return move_ns, worker.timing.prefill_fs(tokens, first * worker.block_tokens) // FS_PER_NS


def _key(tenant: TenantID, session: str) -> str:
    """A session's name among all tenants'."""
    return f"{len(tenant)}:{tenant}/{session}"
