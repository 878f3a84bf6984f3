"""KV caches on their way from the worker that prefilled a prompt to the one that decodes it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from tokenworks.core.units import NS_PER_S
from tokenworks.twin.clock import JumpingClock
from tokenworks.twin.sequence import Sequence as Attempt
from tokenworks.twin.workers import Worker


class Transfers:
    """Takes each over its link, and frees it where it came from.

    Args:
        engines: all workers.
        clock: of the run.
        at: puts something on the agenda.
        publish: told of an engine that may have made room without an iteration; None if engines
            publish nothing.
    """

    __slots__ = ("_at", "_clock", "_engines", "_publish")

    def __init__(
        self,
        engines: Sequence[Worker],
        clock: JumpingClock,
        at: Callable[[int, Callable[[], None]], None],
        publish: Callable[[Worker], None] | None,
    ) -> None:
        self._engines, self._clock, self._at, self._publish = engines, clock, at, publish

    def start(self, engine: Worker) -> None:
        """Send the KV caches for which a worker has made room."""
        if not engine.arrivals and self._publish is None:
            return
        now_ns = self._clock.at_ns
        for sequence, size_bytes in engine.arrivals:
            delay_ns = -(-size_bytes * NS_PER_S // engine.spec.link_bytes_per_s)
            self._at(now_ns + delay_ns, functools.partial(self._arrived, sequence))
        engine.arrivals.clear()
        if self._publish is not None:
            self._at(now_ns, functools.partial(self._publish, engine))

    def _arrived(self, sequence: Attempt) -> None:
        source, sequence.source = sequence.source, None
        if source is None:
            return  # aborted, or a worker was lost
        now_ns, engines = self._clock.at_ns, self._engines
        engines[source.worker].release(source, now_ns)
        self.start(engines[source.worker])
        engines[sequence.worker].join(sequence, now_ns)
        self.start(engines[sequence.worker])
