"""The dispatcher's whole memory as one record that can be encoded, hashed and restored."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from tokenworks.core.ids import ModelName, RequestID, TenantID, WorkerID
from tokenworks.core.needs import Needs, Offers
from tokenworks.dispatch.budgets import Budget
from tokenworks.dispatch.events import Configured
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.kv_tiers import KVTiers
from tokenworks.dispatch.prefix_record import PrefixRecord
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.scaling import ScalingMemory
from tokenworks.dispatch.waiting import Line, Watched
from tokenworks.dispatch.wakes import Wake
from tokenworks.dispatch.workers import Worker

SNAPSHOT_FORMAT: Final = 8
SNAPSHOT_FORMATS: Final = (7, 8)
"""What can be read; the first has no budgets, which begin full."""


class LineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One line: who waits, oldest first, whose turn it is, and who was set late."""

    requests: list[RequestID]
    rotation: list[TenantID]
    late: list[RequestID]


class RestrictedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who waits for what only the same workers have: what one of them needs, a line per tier."""

    needs: Needs
    lines: list[LineRecord]


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One model: its workers in the order they came up, a line per tier rank, its last sends.

    Also what its workers offered, where its sessions are at home, and budgets; see ``Fleet``.
    """

    model: ModelName
    workers: list[WorkerID]
    lines: list[LineRecord]
    restricted: list[RestrictedRecord]
    sent_ranks: list[int]
    changes: int
    offered: list[Offers]
    sessions: list[tuple[TenantID, str, int]]
    firsts: int = 0
    retries: Budget = msgspec.field(default_factory=Budget)
    hedges: Budget = msgspec.field(default_factory=Budget)


class Counts(msgspec.Struct, kw_only=True):
    """What happened since the first event.

    Attributes:
        events: all events.
        ignored: events that were late, repeated or over a limit, and changed nothing.
        sent: Send commands.
        retried: requests that wait to be sent again, because a worker broke off.
        retries_refused: requests that were broken off and rejected, as too many had been.
        hedged: requests that were sent to a second worker.
        hedges_won: of these, such as the second one answered first.
        hedge_waste_ns: how long workers had requests that another one answered, all together.
        rejected: Reject commands.
        finished: requests that ended whole.
        broken: requests that ended because a worker broke off in the middle of the answer.
        withdrawn: requests that ended because the client left.
        displaced: requests that made room for others.
        policy_faults: choices of a policy that could not be followed, and what it raised.
    """

    events: int = 0
    ignored: int = 0
    sent: int = 0
    retried: int = 0
    retries_refused: int = 0
    hedged: int = 0
    hedges_won: int = 0
    hedge_waste_ns: int = 0
    rejected: int = 0
    finished: int = 0
    broken: int = 0
    withdrawn: int = 0
    displaced: int = 0
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
    scaling: ScalingMemory
    kv_tiers: KVTiers
    watched: Watched | None = None


def model_record(model: ModelName, fleet: Fleet) -> ModelRecord:
    """A model's workers and lines as they are written."""
    return ModelRecord(
        model=model,
        workers=[worker.worker for worker in fleet.workers],
        lines=[_line_record(line) for line in fleet.lines],
        restricted=[
            RestrictedRecord(needs=_needs_of(lines), lines=[_line_record(line) for line in lines])
            for lines in fleet.restricted.values()
        ],
        sent_ranks=list(fleet.sent_ranks),
        changes=fleet.changes,
        offered=list(fleet.offered),
        sessions=[(*session, index) for session, index in fleet.sessions.items()],
        firsts=fleet.firsts,
        retries=fleet.retries,
        hedges=fleet.hedges,
    )


def fleet_of(
    record: ModelRecord, workers: dict[WorkerID, Worker], requests: dict[RequestID, Request]
) -> Fleet:
    """The fleet that gave a record.

    Args:
        record: of it.
        workers: that are up, by name.
        requests: that have not ended, by name.
    """
    lines = [_line(line, requests) for line in record.lines]
    fleet = Fleet([workers[each] for each in record.workers], lines, record.sent_ranks)
    fleet.changes = record.changes
    fleet.regroup([[_line(line, requests) for line in each.lines] for each in record.restricted])
    fleet.offered = OrderedDict.fromkeys(record.offered)
    fleet.sessions = OrderedDict(
        ((tenant, session), index) for tenant, session, index in record.sessions
    )
    fleet.firsts, fleet.retries, fleet.hedges = record.firsts, record.retries, record.hedges
    return fleet


def _needs_of(lines: list[Line]) -> Needs:
    needs = next(line.oldest().needs for line in lines if len(line))
    assert needs is not None, "who needs nothing waits elsewhere"
    return needs


def _line_record(line: Line) -> LineRecord:
    return LineRecord(
        requests=[each.request for each in line.requests()],
        rotation=line.rotation(),
        late=line.late(),
    )


def _line(record: LineRecord, requests: dict[RequestID, Request]) -> Line:
    return Line.restore([requests[each] for each in record.requests], record.rotation, record.late)


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
    if memory.format not in SNAPSHOT_FORMATS:
        raise msgspec.ValidationError(
            f"snapshot format {memory.format!r}; this version reads {SNAPSHOT_FORMATS}"
        )
    return memory
