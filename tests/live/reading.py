"""Reads, in a task, what is handed to a sink."""

from __future__ import annotations

import asyncio

from tokenworks.core.errors import WorkerFailed
from tokenworks.core.ports import AnswerStream, Delivery


class Reading:
    """A sink that is read.

    Attributes:
        parts: what has come and was not read yet.
        over: whether the end has come.
        failure: why, if it was not by itself.
    """

    def __init__(self, source: AnswerStream | Delivery) -> None:
        self.parts: list[bytes] = []
        self.over = False
        self.failure: WorkerFailed | None = None
        self._changed = asyncio.Event()
        source.pipe(self)

    def data(self, data: bytes) -> None:
        assert data
        assert not self.over
        self.parts.append(data)
        self._changed.set()

    def ended(self, failure: WorkerFailed | None) -> None:
        assert not self.over
        self.over, self.failure = True, failure
        self._changed.set()

    async def read(self) -> bytes:
        """The next part; nothing at the end."""
        while not self.parts:
            if self.failure is not None:
                raise self.failure
            if self.over:
                return b""
            self._changed.clear()
            await self._changed.wait()
        return self.parts.pop(0)
