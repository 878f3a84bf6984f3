"""What an engine publishes of its prefix cache: numbered messages, so that a gap is noticed."""

from __future__ import annotations

from tokenworks.core.ids import WorkerID
from tokenworks.dispatch.events import BlocksRemoved, BlocksStored
from tokenworks.twin.kv_cache import Change

Heard = list[BlocksStored | BlocksRemoved]


class Feed:
    """The messages of one engine, as it sends them and as they are heard.

    A message of an engine that was lost since, and one that was overtaken by a later one, is late
    and tells nothing. After a gap, nothing is known any more of what the engine had before.

    Args:
        worker: whose.

    Attributes:
        gaps: counts the gaps that were noticed.
    """

    __slots__ = ("_expected", "_life", "_published", "_worker", "gaps")

    def __init__(self, worker: WorkerID) -> None:
        self._worker = worker
        self.gaps = self._life = 0
        self._published = self._expected = 0

    def publish(self) -> tuple[int, int]:
        """The life of the engine and the number of its next message."""
        self._published += 1
        return self._life, self._published - 1

    def hear(self, life: int, number: int, changes: list[Change]) -> Heard:
        """What a message that has come tells the dispatcher."""
        if life != self._life or number < self._expected:
            return []
        told = self._forget() if number > self._expected else []
        self._expected = number + 1
        for stored, blocks in changes:
            kind = BlocksStored if stored else BlocksRemoved
            told.append(kind(worker=self._worker, blocks=blocks))
        return told

    def catch_up(self) -> Heard:
        """Expect what will be published next; tells if something before it was not heard."""
        told = self._forget() if self._expected < self._published else []
        self._expected = self._published
        return told

    def end_life(self) -> None:
        """The engine is lost: what it said counts no more."""
        self._life += 1
        self._published = self._expected = 0

    def _forget(self) -> Heard:
        self.gaps += 1
        return [BlocksRemoved(worker=self._worker, blocks=None)]
