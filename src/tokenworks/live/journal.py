"""The journal: every event the dispatcher was told, so that each decision can be made again.

A file is a run of records ``[length u32][crc32 u32][payload]``, little-endian; the checksum covers
the length and the payload. A payload's first byte says what follows in MessagePack: ``H`` the
header, ``S`` a snapshot of the dispatcher, ``E`` ``(now_ns, event)`` and ``C`` the 8-byte digest of
the commands that answered the event before it. Every file begins with ``H`` and ``S`` and so
replays alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final, TypeVar

import msgspec

import tokenworks
from tokenworks.core.errors import ConfigInvalid, JournalInvalid
from tokenworks.dispatch.commands import Command
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Event

JOURNAL_FORMAT: Final = 1
BYTES_MAX: Final = 64 << 20
FILES_MAX: Final = 16
EVENT_BYTES_MAX: Final = 1 << 20
"""The largest record but for snapshots, and so the longest tail that a crash can tear."""

_FRAME: Final = struct.Struct("<II")
_NAME: Final = re.compile(r"journal-(\d{10})\.twj")
_SNAPSHOT_BYTES_MAX: Final = 1 << 30
_BUFFER_BYTES: Final = 1 << 16
_DIGEST_BYTES: Final = 8
_KINDS: Final = b"HSEC"

_ENCODER: Final = msgspec.msgpack.Encoder()
_T = TypeVar("_T")


class JournalHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Who wrote a file.

    Attributes:
        format: of the records.
        package_version: of the dispatcher that decided.
        sequence: the file's number, counted from 1 in its directory.
    """

    format: int
    package_version: str
    sequence: int


class JournalStart(msgspec.Struct, frozen=True, kw_only=True):
    """The first thing read from a file: its header and the dispatcher's memory at its start."""

    header: JournalHeader
    snapshot: bytes


class JournalEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One event.

    Attributes:
        now_ns: the driver's clock.
        event: what the dispatcher was told.
        commands_digest: of what it answered; None if the process ended before it answered.
    """

    now_ns: int
    event: Event
    commands_digest: bytes | None


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Where a replay decided otherwise than the record says.

    Attributes:
        index: of the event in its file, from 0.
        now_ns: the driver's clock.
        event: what the dispatcher was told.
        commands: what it answers now.
        digest_recorded: of what it answered then.
        digest_replayed: of what it answers now.
    """

    index: int
    now_ns: int
    event: Event
    commands: list[Command]
    digest_recorded: bytes
    digest_replayed: bytes


class ReplayResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay found: events and commands counted, and the first difference if any."""

    events: int
    commands: int
    first_difference: Difference | None


_HEADER_DECODER: Final = msgspec.msgpack.Decoder(JournalHeader)
_EVENT_DECODER: Final = msgspec.msgpack.Decoder(tuple[int, Event])


def commands_digest(commands: list[Command]) -> bytes:
    """Eight bytes that stand for a list of commands."""
    return hashlib.blake2b(_ENCODER.encode(commands), digest_size=_DIGEST_BYTES).digest()


def journal_files(directory: Path) -> list[Path]:
    """The journal's files, oldest first.

    Raises:
        ConfigInvalid: the folder cannot be read.
    """
    try:
        return _listed(directory) if directory.is_dir() else []
    except OSError as error:
        raise _unusable(directory, error) from error


def _listed(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


class JournalWriter:
    """Puts a dispatcher's events and decisions on record; one process per directory.

    Records are buffered: what was not flushed is lost with the process. The ledger, not the
    journal, keeps what money depends on.

    Args:
        directory: where the files go; made if it is missing.
        bytes_max: a file that has reached this is followed by a new one.
        files_max: files kept, the current one included; the oldest go.

    Raises:
        ConfigInvalid: the directory cannot be made or read.
    """

    def __init__(
        self, directory: Path, *, bytes_max: int = BYTES_MAX, files_max: int = FILES_MAX
    ) -> None:
        assert bytes_max >= 1, bytes_max
        assert files_max >= 1, files_max
        self._directory = directory
        self._bytes_max = bytes_max
        self._files_max = files_max
        self._bytes = 0
        self._file: IO[bytes] | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(directory, error) from error
        files = journal_files(directory)
        self._sequence = int(files[-1].stem.removeprefix("journal-")) if files else 0

    def write(
        self, now_ns: int, event: Event, commands: list[Command], dispatcher: Dispatcher
    ) -> None:
        """Record an event and what it led to, before any command is carried out.

        A full file is closed and a new one begun, with the dispatcher's memory as it is now.

        Args:
            now_ns: what the dispatcher was told of the time.
            event: what it was told.
            commands: what it answered.
            dispatcher: itself, after this event. A journal that is begun later than with its first
                event begins with its memory, and has the events from the next one on.
        """
        if self._file is None:
            if dispatcher.counts()["events"] > 1:
                self._begin(dispatcher)
                return
            self._begin(Dispatcher())
        self._write(b"E", _ENCODER.encode((now_ns, event)), EVENT_BYTES_MAX)
        self._write(b"C", commands_digest(commands), EVENT_BYTES_MAX)
        if self._bytes >= self._bytes_max:
            self.close()
            self._begin(dispatcher)

    def flush(self) -> None:
        """Hand what is buffered to the operating system."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Flush and make the current file durable; a second call does nothing."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _begin(self, dispatcher: Dispatcher) -> None:
        self._sequence += 1
        path = self._directory / f"journal-{self._sequence:010d}.twj"
        self._file = path.open("xb", buffering=_BUFFER_BYTES)
        header = JournalHeader(
            format=JOURNAL_FORMAT,
            package_version=tokenworks.__version__,
            sequence=self._sequence,
        )
        self._write(b"H", _ENCODER.encode(header), EVENT_BYTES_MAX)
        self._write(b"S", dispatcher.snapshot(), _SNAPSHOT_BYTES_MAX)
        self._bytes = 0  # a large snapshot must not make every event begin a new file
        self._file.flush()
        for old in _listed(self._directory)[: -self._files_max]:
            old.unlink()

    def _write(self, kind: bytes, body: bytes, bytes_max: int) -> None:
        assert self._file is not None
        length = 1 + len(body)
        assert length <= bytes_max, (kind, length)
        frame = _FRAME.pack(length, _checksum(length, kind + body))
        self._file.write(frame + kind + body)
        self._bytes += len(frame) + length


def read_journal(path: Path) -> Iterator[JournalStart | JournalEntry]:
    """The start of a file, then its events in order; a torn tail is where it ends.

    A file that is torn before its snapshot is whole has nothing to tell.

    Raises:
        JournalInvalid: a record is damaged or out of place.
    """
    records = _records(path)
    first = next(records, None)
    if first is None:
        return
    if first[1] != b"H":
        raise JournalInvalid(f"{path} does not begin with a journal header.")
    header = _decode(path, first, _HEADER_DECODER)
    if header.format != JOURNAL_FORMAT:
        raise JournalInvalid(
            f"{path} has journal format {header.format!r}; this version reads {JOURNAL_FORMAT}.",
            hint=f"Read it with tokenworks {header.package_version}.",
        )
    start = next(records, None)
    if start is None:
        return
    if start[1] != b"S":
        raise JournalInvalid(f"{path} does not begin with a snapshot.")
    yield JournalStart(header=header, snapshot=start[2])
    pending: tuple[int, Event] | None = None
    for record in records:
        if record[1] == b"E":
            if pending is not None:
                yield JournalEntry(now_ns=pending[0], event=pending[1], commands_digest=None)
            pending = _decode(path, record, _EVENT_DECODER)
        elif record[1] == b"C" and pending is not None:
            yield JournalEntry(now_ns=pending[0], event=pending[1], commands_digest=record[2])
            pending = None
        else:
            raise JournalInvalid(f"{path}: the record at byte {record[0]} is out of place.")
    if pending is not None:
        yield JournalEntry(now_ns=pending[0], event=pending[1], commands_digest=None)


def replay(
    path: Path, *, restore: Callable[[bytes], Dispatcher] = Dispatcher.restore
) -> ReplayResult:
    """Decide every event of a file again, up to the first decision that differs.

    Args:
        path: a journal file.
        restore: makes the dispatcher from the file's snapshot.

    Raises:
        JournalInvalid: a record is damaged, or the snapshot is of another version.
    """
    dispatcher: Dispatcher | None = None
    events = commands_count = 0
    for record in read_journal(path):
        if isinstance(record, JournalStart):
            try:
                dispatcher = restore(record.snapshot)
            except msgspec.MsgspecError as error:
                raise JournalInvalid(
                    f"{path} has a snapshot that this version cannot read: {error}.",
                    hint=f"Replay it with tokenworks {record.header.package_version}.",
                ) from error
            continue
        assert dispatcher is not None, path
        commands = dispatcher.handle(record.now_ns, record.event)
        digest = commands_digest(commands)
        if record.commands_digest is not None and digest != record.commands_digest:
            difference = Difference(
                index=events,
                now_ns=record.now_ns,
                event=record.event,
                commands=commands,
                digest_recorded=record.commands_digest,
                digest_replayed=digest,
            )
            return ReplayResult(events=events, commands=commands_count, first_difference=difference)
        events += 1
        commands_count += len(commands)
    return ReplayResult(events=events, commands=commands_count, first_difference=None)


_Record = tuple[int, bytes, bytes]
"""Offset in the file, kind, body."""


def _records(path: Path) -> Iterator[_Record]:
    data = path.read_bytes()
    offset = 0
    while offset < len(data):
        payload = _payload_at(data, offset)
        if payload is None:
            if _is_torn(data, offset):
                return
            raise JournalInvalid(
                f"{path}: the record at byte {offset} is damaged.",
                hint="Events before it replay; take the rest from a copy of the file.",
            )
        yield offset, payload[:1], payload[1:]
        offset += _FRAME.size + len(payload)


def _payload_at(data: bytes, offset: int) -> bytes | None:
    """The payload of a whole and undamaged record at an offset, or None."""
    start = offset + _FRAME.size
    if start > len(data):
        return None
    length, crc = _FRAME.unpack_from(data, offset)
    if length == 0 or start + length > len(data) or data[start] not in _KINDS:
        return None
    payload = data[start : start + length]
    return payload if _checksum(length, payload) == crc else None


def _is_torn(data: bytes, offset: int) -> bool:
    """Whether what begins here is a last record that was not written to its end.

    It is if the rest is zeros (blocks that a file system gave out and never filled), or if the
    record would go on past the end of the file and no whole record follows inside it: a damaged
    length would hide such records.
    """
    rest = len(data) - offset
    if not data[offset:].strip(b"\0"):
        return True
    if rest < _FRAME.size:
        return True
    length, _ = _FRAME.unpack_from(data, offset)
    if _FRAME.size + length <= rest or length > _SNAPSHOT_BYTES_MAX:
        return False
    if length > EVENT_BYTES_MAX and data[offset + _FRAME.size : offset + _FRAME.size + 1] != b"S":
        return False
    ends = min(len(data), offset + EVENT_BYTES_MAX)
    return all(_payload_at(data, at) is None for at in range(offset + 1, ends))


def _unusable(directory: Path, error: OSError) -> ConfigInvalid:
    return ConfigInvalid(
        f"The journal's folder {str(directory)!r} cannot be used: {error.strerror}.",
        hint="It must be a folder that you may read and write.",
    )


def _checksum(length: int, payload: bytes) -> int:
    return zlib.crc32(payload, length)


def _decode(path: Path, record: _Record, decoder: msgspec.msgpack.Decoder[_T]) -> _T:
    try:
        return decoder.decode(record[2])
    except msgspec.MsgspecError as error:
        raise JournalInvalid(
            f"{path}: the record at byte {record[0]} cannot be read: {error}.",
            hint="It was written by another version; its header names it.",
        ) from error
