"""A running hash of all that a dispatcher was told and answered: two runs alike, or not."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from tokenworks.dispatch.commands import Command
from tokenworks.dispatch.events import Event

PIECE_BYTES: Final = 1 << 16


class JournalDigest:
    """Hashes events and commands as the live journal encodes them.

    Attributes:
        events: how many were told.
        commands: how many were answered.
    """

    def __init__(self) -> None:
        self.events = self.commands = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._encode = msgspec.msgpack.Encoder().encode_into
        self._buffer = bytearray(PIECE_BYTES)
        self._length = 0

    def add(self, now_ns: int, event: Event, commands: list[Command]) -> None:
        """Take up one event and its answer."""
        self.events += 1
        self.commands += len(commands)
        self._encode((now_ns, event, commands), self._buffer, self._length)
        self._length = len(self._buffer)
        if self._length >= PIECE_BYTES:
            self._flush()

    def hexdigest(self) -> str:
        """The hash of all until now, 32 hex digits."""
        self._flush()
        return self._hash.hexdigest()

    def _flush(self) -> None:
        self._hash.update(memoryview(self._buffer)[: self._length])
        self._buffer = bytearray()
        self._length = 0
