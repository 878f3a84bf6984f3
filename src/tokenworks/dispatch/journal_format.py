"""The journal's format: what the dispatcher was told and answered, as records of bytes.

A journal is a run of records ``[length u32][crc32 u32][payload]``, little-endian; the checksum
covers the length and the payload. A payload's first byte says what follows in MessagePack: ``H``
the header, ``S`` a snapshot of the dispatcher, ``E`` ``(now_ns, event)`` and ``C`` the 8-byte
digest of the commands that answered the event before it. Every journal begins with ``H`` and ``S``
and so replays alone. The real world and the modelled one write the same.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

import msgspec

import tokenworks
from tokenworks.core.errors import JournalInvalid
from tokenworks.dispatch.commands import Command
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Event
from tokenworks.dispatch.journal_header import JournalHeader
from tokenworks.dispatch.journal_records import Difference, JournalEntry, JournalStart, ReplayResult

JOURNAL_FORMAT: Final = 1
EVENT_BYTES_MAX: Final = 1 << 20
"""The largest record but for snapshots, and so the longest tail that a crash can tear."""

_FRAME: Final = struct.Struct("<II")
_checksum: Final = zlib.crc32
"""Of a payload, beginning with its length."""
_SNAPSHOT_BYTES_MAX: Final = 1 << 30
_DIGEST_BYTES: Final = 8
_KINDS: Final = b"HSEC"

_ENCODER: Final = msgspec.msgpack.Encoder()
_T = TypeVar("_T")


_HEADER_DECODER: Final = msgspec.msgpack.Decoder(JournalHeader)
_EVENT_DECODER: Final = msgspec.msgpack.Decoder(tuple[int, Event])


def commands_digest(commands: list[Command]) -> bytes:
    """Eight bytes that stand for a list of commands."""
    return hashlib.blake2b(_ENCODER.encode(commands), digest_size=_DIGEST_BYTES).digest()


# Writing.


def start_records(dispatcher: Dispatcher, sequence: int) -> bytes:
    """What a journal begins with.

    Args:
        dispatcher: as it is before the first event that will follow.
        sequence: the file's number, counted from 1 in its directory.
    """
    header = JournalHeader(
        format=JOURNAL_FORMAT, package_version=tokenworks.__version__, sequence=sequence
    )
    return _record(b"H" + _ENCODER.encode(header), EVENT_BYTES_MAX) + _record(
        b"S" + dispatcher.snapshot(), _SNAPSHOT_BYTES_MAX
    )


def event_records(told: Iterable[tuple[int, Event, list[Command]]]) -> bytes:
    """Events, each followed by the digest of what was answered.

    Args:
        told: when each was told, the event and the answer.
    """
    parts: list[bytes] = []
    for now_ns, event, commands in told:
        payload = b"E" + _ENCODER.encode((now_ns, event))
        length = len(payload)
        assert length <= EVENT_BYTES_MAX, (event, length)
        parts.append(_FRAME.pack(length, _checksum(payload, length)))
        parts.append(payload)
        # Two of three events of a request lead to none.
        parts.append(_commands_record(commands) if commands else _NO_COMMANDS)
    return b"".join(parts)


def _commands_record(commands: list[Command]) -> bytes:
    return _record(b"C" + commands_digest(commands), EVENT_BYTES_MAX)


def _record(payload: bytes, bytes_max: int) -> bytes:
    length = len(payload)
    assert length <= bytes_max, (payload[:1], length)
    return _FRAME.pack(length, _checksum(payload, length)) + payload


_NO_COMMANDS: Final = _commands_record([])

# Reading.


def entries_of(data: bytes, name: str) -> Iterator[JournalStart | JournalEntry]:
    """The start of a journal, then its events in order; a torn tail is where it ends.

    One that is torn before its snapshot is whole has nothing to tell.

    Args:
        data: the whole journal.
        name: of it, for errors.

    Raises:
        JournalInvalid: a record is damaged or out of place.
    """
    records = _records(data, name)
    first = next(records, None)
    if first is None:
        return
    if first[1] != b"H":
        raise JournalInvalid(f"{name} does not begin with a journal header.")
    header = _decode(name, first, _HEADER_DECODER)
    if header.format != JOURNAL_FORMAT:
        raise JournalInvalid(
            f"{name} has journal format {header.format!r}; this version reads {JOURNAL_FORMAT}.",
            hint=f"Read it with tokenworks {header.package_version}.",
        )
    start = next(records, None)
    if start is None:
        return
    if start[1] != b"S":
        raise JournalInvalid(f"{name} does not begin with a snapshot.")
    yield JournalStart(header=header, snapshot=start[2])
    pending: tuple[int, Event] | None = None
    for record in records:
        if record[1] == b"E":
            if pending is not None:
                yield JournalEntry(now_ns=pending[0], event=pending[1], commands_digest=None)
            pending = _decode(name, record, _EVENT_DECODER)
        elif record[1] == b"C" and pending is not None:
            yield JournalEntry(now_ns=pending[0], event=pending[1], commands_digest=record[2])
            pending = None
        else:
            raise JournalInvalid(f"{name}: the record at byte {record[0]} is out of place.")
    if pending is not None:
        yield JournalEntry(now_ns=pending[0], event=pending[1], commands_digest=None)


def replay_entries(
    records: Iterable[JournalStart | JournalEntry],
    name: str,
    restore: Callable[[bytes], Dispatcher] = Dispatcher.restore,
) -> ReplayResult:
    """Decide every event of a journal again, up to the first decision that differs.

    Args:
        records: see ``entries_of``.
        name: of the journal, for errors.
        restore: makes the dispatcher from the journal's snapshot.

    Raises:
        JournalInvalid: a record is damaged, or the snapshot is of another version.
    """
    dispatcher: Dispatcher | None = None
    events = commands_count = 0
    for record in records:
        if isinstance(record, JournalStart):
            try:
                dispatcher = restore(record.snapshot)
            except msgspec.MsgspecError as error:
                raise JournalInvalid(
                    f"{name} has a snapshot that this version cannot read: {error}.",
                    hint=f"Replay it with tokenworks {record.header.package_version}.",
                ) from error
            continue
        assert dispatcher is not None, name
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
"""Offset in the journal, kind, body."""


def _records(data: bytes, name: str) -> Iterator[_Record]:
    offset = 0
    while offset < len(data):
        payload = _payload_at(data, offset)
        if payload is None:
            if _is_torn(data, offset):
                return
            raise JournalInvalid(
                f"{name}: the record at byte {offset} is damaged.",
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
    return payload if _checksum(payload, length) == crc else None


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


def _decode(name: str, record: _Record, decoder: msgspec.msgpack.Decoder[_T]) -> _T:
    try:
        return decoder.decode(record[2])
    except msgspec.MsgspecError as error:
        raise JournalInvalid(
            f"{name}: the record at byte {record[0]} cannot be read: {error}.",
            hint="It was written by another version; its header names it.",
        ) from error
