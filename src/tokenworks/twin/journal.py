"""The twin's journal: a digest of every event and its commands, and a file of them if wanted.

The digest is blake2b over the MessagePack of ``(now_ns, event, commands)``, one after the other,
so it is the same for the same run on any machine. A file has the format of the live journal, which
its reader and its replay therefore understand.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO, Final

import msgspec

from tokenworks.dispatch.commands import Command
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Event
from tokenworks.dispatch.journal_format import event_records, start_records

_FILE_BUFFER_BYTES: Final = 1 << 16
_PENDING_MAX: Final = 256
_SHORT_ARRAY_LEN: Final = 16
"""MessagePack's arrays below this length have a head of one byte; those up to 65,535, of three."""
_DIGEST_BYTES: Final = 16
_ENCODER: Final = msgspec.msgpack.Encoder()


class Journal:
    """Digests events and commands as they come.

    They are encoded some at a time, so nobody may change a command, or its list, later on.
    """

    __slots__ = ("_buffer", "_hash", "_pending")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._hash = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        self._pending: list[tuple[int, Event, list[Command]]] = []

    def write(self, now_ns: int, event: Event, commands: list[Command]) -> None:
        """Take an event and what the dispatcher answered, before any command is carried out."""
        pending = self._pending
        pending.append((now_ns, event, commands))
        if len(pending) >= _PENDING_MAX:
            self._digest_pending()

    def digest(self) -> str:
        """Of all until now, 32 hex digits."""
        self._digest_pending()
        return self._hash.hexdigest()

    def close(self) -> None:
        """Nothing more will come."""

    def _digest_pending(self) -> None:
        pending, buffer = self._pending, self._buffer
        _ENCODER.encode_into(pending, buffer)
        # Without the head of the array, it does not matter how many were encoded together.
        head_bytes = 1 if len(pending) < _SHORT_ARRAY_LEN else 3
        with memoryview(buffer) as view:
            self._hash.update(view[head_bytes:])
        pending.clear()


class FileJournal(Journal):
    """Also writes a file that ``tokenworks journal replay`` replays.

    Args:
        path: a new file.
        dispatcher: that of the run, before its first event.
    """

    __slots__ = ("_file",)

    def __init__(self, path: Path, dispatcher: Dispatcher) -> None:
        super().__init__()
        self._file: IO[bytes] = path.open("xb", buffering=_FILE_BUFFER_BYTES)
        self._file.write(start_records(dispatcher, 1))

    def write(self, now_ns: int, event: Event, commands: list[Command]) -> None:
        """Take an event and what the dispatcher answered, before any command is carried out."""
        super().write(now_ns, event, commands)
        self._file.write(event_records([(now_ns, event, commands)]))

    def close(self) -> None:
        """Nothing more will come; the file is whole."""
        self._file.close()
