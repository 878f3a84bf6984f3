"""The journal: every event the dispatcher was told, so that each decision can be made again.

``dispatch.journal_format`` says what its files hold. Every file replays alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from tokenworks.core.errors import ConfigInvalid
from tokenworks.dispatch.commands import Command
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Event
from tokenworks.dispatch.journal_format import (
    entries_of,
    event_records,
    replay_entries,
    start_records,
)
from tokenworks.dispatch.journal_records import JournalEntry, JournalStart, ReplayResult

BYTES_MAX: Final = 64 << 20
FILES_MAX: Final = 16

_NAME: Final = re.compile(r"journal-(\d{10})\.twj")
_BUFFER_BYTES: Final = 1 << 16
_EVENTS_MAX: Final = 128
"""Events that are encoded together: one by one each takes a quarter more, and for many more of them
the answers that are under way would have to wait."""
_EVENT_BYTES: Final = 256
"""About what one takes, so that small files do not wait for many."""


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

    What was not flushed is lost with the process: events wait to be encoded together, and records
    to be written. The ledger, not the journal, keeps what money depends on.

    Args:
        directory: where the files go; made if it is missing.
        bytes_max: a file that has reached this is followed by a new one; it may have some events
            more.
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
        self._events: list[tuple[int, Event, list[Command]]] = []
        self._events_max = min(_EVENTS_MAX, 1 + bytes_max // _EVENT_BYTES)
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

        A full file is closed and a new one begun, with the dispatcher's memory as it is now. Nobody
        may change the event or the list of commands after this.

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
        self._events.append((now_ns, event, commands))
        if len(self._events) >= self._events_max:
            self._encode()
        if self._bytes >= self._bytes_max:  # by a flush, too
            self.close()
            self._begin(dispatcher)

    def flush(self) -> None:
        """Hand what is buffered to the operating system."""
        if self._file is not None:
            self._encode()
            self._file.flush()

    def close(self) -> None:
        """Flush and make the current file durable; a second call does nothing."""
        if self._file is not None:
            self.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _begin(self, dispatcher: Dispatcher) -> None:
        self._sequence += 1
        path = self._directory / f"journal-{self._sequence:010d}.twj"
        self._file = path.open("xb", buffering=_BUFFER_BYTES)
        self._write(start_records(dispatcher, self._sequence))
        self._bytes = 0  # a large snapshot must not make every event begin a new file
        self._file.flush()
        for old in _listed(self._directory)[: -self._files_max]:
            old.unlink()

    def _encode(self) -> None:
        events, self._events = self._events, []
        self._write(event_records(events))

    def _write(self, records: bytes) -> None:
        assert self._file is not None
        self._file.write(records)
        self._bytes += len(records)


def read_journal(path: Path) -> Iterator[JournalStart | JournalEntry]:
    """The start of a file, then its events in order; a torn tail is where it ends.

    Raises:
        JournalInvalid: a record is damaged or out of place.
    """
    return entries_of(path.read_bytes(), str(path))


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
    return replay_entries(read_journal(path), str(path), restore)


def _unusable(directory: Path, error: OSError) -> ConfigInvalid:
    return ConfigInvalid(
        f"The journal's folder {str(directory)!r} cannot be used: {error.strerror}.",
        hint="It must be a folder that you may read and write.",
    )
