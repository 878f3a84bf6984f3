"""The twin's journal: a digest of every event and its commands, and a file of them if wanted.

The digest is blake2b over the MessagePack of ``(now_ns, event, commands)``, one after the other,
so it is the same for the same run on any machine. A file has the format of the live journal, which
its reader and its replay therefore understand.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path
from typing import IO, Final

import msgspec

import tokenworks
from tokenworks.dispatch.commands import Command
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Event

JOURNAL_FORMAT: Final = 1
"""That of ``live.journal``; a test reads the twin's files with its reader."""

_FRAME: Final = struct.Struct("<II")
_PIECE_BYTES: Final = 1 << 16
_DIGEST_BYTES: Final = 16
_COMMANDS_DIGEST_BYTES: Final = 8
_ENCODER: Final = msgspec.msgpack.Encoder()


class Journal:
    """Digests events and commands as they come."""

    __slots__ = ("_buffer", "_encode_into", "_hash")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._encode_into = _ENCODER.encode_into
        self._hash = hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def write(self, now_ns: int, event: Event, commands: list[Command]) -> None:
        """Take an event and what the dispatcher answered, before any command is carried out."""
        buffer = self._buffer
        self._encode_into((now_ns, event, commands), buffer, -1)
        if len(buffer) >= _PIECE_BYTES:
            self._hash.update(buffer)
            buffer.clear()

    def digest(self) -> str:
        """Of all until now, 32 hex digits."""
        self._hash.update(self._buffer)
        self._buffer.clear()
        return self._hash.hexdigest()

    def close(self) -> None:
        """Nothing more will come."""


class FileJournal(Journal):
    """Also writes a file that ``tokenworks journal replay`` replays.

    Args:
        path: a new file.
        dispatcher: that of the run, before its first event.
    """

    __slots__ = ("_file",)

    def __init__(self, path: Path, dispatcher: Dispatcher) -> None:
        super().__init__()
        self._file: IO[bytes] = path.open("xb", buffering=_PIECE_BYTES)
        header = {
            "format": JOURNAL_FORMAT,
            "package_version": tokenworks.__version__,
            "sequence": 1,
        }
        self._frame(b"H" + _ENCODER.encode(header))
        self._frame(b"S" + dispatcher.snapshot())

    def write(self, now_ns: int, event: Event, commands: list[Command]) -> None:
        """Take an event and what the dispatcher answered, before any command is carried out."""
        super().write(now_ns, event, commands)
        encoded = _ENCODER.encode(commands)
        digest = hashlib.blake2b(encoded, digest_size=_COMMANDS_DIGEST_BYTES).digest()
        self._frame(b"E" + _ENCODER.encode((now_ns, event)))
        self._frame(b"C" + digest)

    def close(self) -> None:
        """Nothing more will come; the file is whole."""
        self._file.close()

    def _frame(self, payload: bytes) -> None:
        length = len(payload)
        self._file.write(_FRAME.pack(length, zlib.crc32(payload, length)) + payload)
