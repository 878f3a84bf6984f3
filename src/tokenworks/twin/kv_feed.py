"""What an engine publishes of its prefix cache: numbered messages, so that a gap is noticed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from tokenworks.core.ids import WorkerID
from tokenworks.dispatch.events import BlocksRemoved, BlocksStored, Event
from tokenworks.twin.kv_cache import Change
from tokenworks.twin.workers import Worker

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


class Publishing:
    """Brings what engines publish to the dispatcher.

    Args:
        feeds: by worker.
        told_up: by worker, whether the dispatcher knows of it now; whoever owns it changes it.
        tell: tells the dispatcher.
        send: brings a message of a worker over the network; None if it is heard at once.
    """

    __slots__ = ("_feeds", "_send", "_tell", "_told_up")

    def __init__(
        self,
        feeds: Sequence[Feed],
        told_up: Sequence[bool],
        tell: Callable[[Event], None],
        send: Callable[[int, Callable[[], None]], None] | None,
    ) -> None:
        self._feeds, self._told_up, self._tell, self._send = feeds, told_up, tell, send

    def publish(self, engine: Worker) -> None:
        """An engine says what has become of its prefix cache, if the dispatcher knows of it."""
        index = engine.index
        changes = engine.take_changes()
        if not changes or not self._told_up[index]:
            return
        life, number = self._feeds[index].publish()
        if self._send is None:
            self._heard(index, life, number, changes)
        else:
            self._send(index, functools.partial(self._heard, index, life, number, changes))

    def catch_up(self) -> None:
        """Ask each engine for the number of what it published last; that shows a gap."""
        for index, feed in enumerate(self._feeds):
            if self._told_up[index]:
                for event in feed.catch_up():
                    self._tell(event)

    def _heard(self, index: int, life: int, number: int, changes: list[Change]) -> None:
        for event in self._feeds[index].hear(life, number, changes):
            self._tell(event)
