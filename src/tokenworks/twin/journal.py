"""A running hash of all that a dispatcher was told and answered: two runs alike, or not."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from tokenworks.dispatch.commands import Command
from tokenworks.dispatch.events import Event

PIECE_EVENTS: Final = 256
"""Events that are encoded and hashed at once."""


class JournalDigest:
    """Hashes events and commands, encoded as MessagePack, in the order in which they came.

    Attributes:
        events: how many were told.
        commands: how many were answered.
    """

    def __init__(self) -> None:
        self.events = self.commands = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._encode = msgspec.msgpack.Encoder().encode
        self._piece: list[tuple[int, Event, list[Command]]] = []

    def add(self, now_ns: int, event: Event, commands: list[Command]) -> None:
        """Take up one event and its answer, neither of which changes any more."""
        self._piece.append((now_ns, event, commands))
        if len(self._piece) >= PIECE_EVENTS:
            self._flush()

    def hexdigest(self) -> str:
        """The hash of all until now, 32 hex digits."""
        self._flush()
        return self._hash.copy().hexdigest()

    def _flush(self) -> None:
        for entry in self._piece:
            self._hash.update(self._encode(entry))
        self.events += len(self._piece)
        self.commands += sum(len(commands) for _, _, commands in self._piece)
        self._piece.clear()
