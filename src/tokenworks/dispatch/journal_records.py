"""What is read from a journal, and what deciding it again has found."""

from __future__ import annotations

import msgspec

from tokenworks.dispatch.commands import Command
from tokenworks.dispatch.events import Event
from tokenworks.dispatch.journal_header import JournalHeader


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
