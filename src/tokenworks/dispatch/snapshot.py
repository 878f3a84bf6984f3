"""The dispatcher's whole memory as one record that can be encoded, hashed and restored."""

from __future__ import annotations

from typing import Final

import msgspec

from tokenworks.core.ids import ModelName, RequestID, TenantID, WorkerID
from tokenworks.dispatch.events import Configured
from tokenworks.dispatch.fleet import Worker
from tokenworks.dispatch.prefix_index import PrefixRecord
from tokenworks.dispatch.waiting import Request

SNAPSHOT_FORMAT: Final = 6

Wake = tuple[int, RequestID]
"""When something that waits is due; stale entries are dropped when they come up."""


class LineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One line: who waits, oldest first, whose turn it is, and who was set late."""

    requests: list[RequestID]
    rotation: list[TenantID]
    late: list[RequestID]


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One model: its workers in the order they came up, a line per tier rank, its last sends."""

    model: ModelName
    workers: list[WorkerID]
    lines: list[LineRecord]
    sent_ranks: list[int]
    changes: int


class Counts(msgspec.Struct, kw_only=True):
    """What happened since the first event.

    Attributes:
        events: all events.
        ignored: events that were late, repeated or over a limit, and changed nothing.
        sent: Send commands.
        rejected: Reject commands.
        finished: requests that ended whole.
        broken: requests that ended because a worker broke off in the middle of the answer.
        withdrawn: requests that ended because the client left.
        policy_faults: choices of a policy that could not be followed, and what it raised.
    """

    events: int = 0
    ignored: int = 0
    sent: int = 0
    rejected: int = 0
    finished: int = 0
    broken: int = 0
    withdrawn: int = 0
    policy_faults: int = 0


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a dispatcher remembers."""

    format: int
    now_ns: int
    configured: Configured | None
    timer_ns: int | None
    counts: Counts
    requests: list[Request]
    ended: list[RequestID]
    wakes: list[Wake]
    workers: list[Worker]
    models: list[ModelRecord]
    prefixes: PrefixRecord
    policy: bytes


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Snapshot)


def encode(snapshot: Snapshot) -> bytes:
    """A snapshot as bytes; the same memory gives the same bytes on any machine."""
    return _ENCODER.encode(snapshot)


def decode(data: bytes) -> Snapshot:
    """A snapshot from its bytes.

    Raises:
        msgspec.MsgspecError: these bytes are no snapshot of this format.
    """
    memory = _DECODER.decode(data)
    if memory.format != SNAPSHOT_FORMAT:
        raise msgspec.ValidationError(
            f"snapshot format {memory.format!r}; this version reads {SNAPSHOT_FORMAT}"
        )
    return memory
