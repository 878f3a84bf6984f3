"""KV caches that wait for room on another worker, and for how long they may."""

from __future__ import annotations

from collections import deque
from typing import Final

from tokenworks.core.units import NS_PER_S
from tokenworks.twin.sequence import WAITING, Sequence

HANDOVER_NS_MAX: Final = 480 * NS_PER_S
"""Who prefilled a prompt holds it for so long; then the attempt fails. Without a bound two workers
that prefill for each other could wait for each other's blocks for ever.

Source: vLLM's NIXL connector, ``VLLM_NIXL_ABORT_REQUEST_TIMEOUT``, 480 s by default."""
FAR_NS: Final = 1 << 200
"""Later than anything: when nothing will happen."""


class Handovers:
    """Those that had no room at once, the first one first.

    Attributes:
        waiting: when each has waited too long, and the sequence that waits; also some that no
            longer do.
    """

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, Sequence]] = deque()

    def add(self, sequence: Sequence, now_ns: int) -> None:
        """Take one that comes now, if it waits."""
        if sequence.state == WAITING:
            self.waiting.append((now_ns + HANDOVER_NS_MAX, sequence))

    def next_ns(self) -> int:
        """When the first has waited too long, in the far future if none waits."""
        waiting = self.waiting
        while waiting:
            due_ns, sequence = waiting[0]
            if sequence.source is not None and sequence.state == WAITING:
                return due_ns
            waiting.popleft()
        return FAR_NS
