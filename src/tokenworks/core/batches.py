"""Files and batches: many requests in one file, answered in spare capacity within a time."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal, Protocol

import msgspec

from tokenworks.core.ids import BatchID, FileID, KeyID, ModelName, RequestID, TenantID
from tokenworks.core.units import NS_PER_S

WINDOW_NS: Final = 86_400 * NS_PER_S
"""From a batch's beginning to its end at the latest; OpenAI's only ``completion_window``."""

FILE_KEPT_NS: Final = 30 * WINDOW_NS
"""A file that names no other time is kept so long."""

FILE_BYTES_MAX: Final = 200 * 1024 * 1024
LINES_MAX: Final = 50_000
LINE_BYTES_MAX: Final = 8_000_000
"""Of a batch's input, as OpenAI has it; a line is about as long as a request may be."""

CUSTOM_ID_CHARS_MAX: Final = 512
ERRORS_MAX: Final = 100
"""Of a batch's input that are told; more are not looked for."""

Purpose = Literal["batch", "batch_output"]
"""What a file is for: the input of a batch, or what came of one."""


class BatchStatus(enum.StrEnum):
    """Where a batch is, in OpenAI's words."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


NEXT: Final[Mapping[BatchStatus, frozenset[BatchStatus]]] = {
    BatchStatus.VALIDATING: frozenset(
        {BatchStatus.FAILED, BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING}
    ),
    BatchStatus.IN_PROGRESS: frozenset({BatchStatus.FINALIZING, BatchStatus.CANCELLING}),
    BatchStatus.FINALIZING: frozenset({BatchStatus.COMPLETED, BatchStatus.EXPIRED}),
    BatchStatus.CANCELLING: frozenset({BatchStatus.CANCELLED}),
    BatchStatus.FAILED: frozenset(),
    BatchStatus.COMPLETED: frozenset(),
    BatchStatus.EXPIRED: frozenset(),
    BatchStatus.CANCELLED: frozenset(),
}
"""Where a batch can go from where it is; nowhere from an end."""

ENDS: Final = frozenset(status for status, following in NEXT.items() if not following)

LineState = Literal["waiting", "staged", "done", "failed"]
"""Of a line: nobody has its answer; its answer is kept and about to be billed; answered and billed;
ended by its own fault. One that still waits when its batch ends has ended with it."""


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a tenant keeps here.

    Attributes:
        id: unique for ever.
        tenant: whose it is.
        name: what its owner calls it.
        purpose: what it is for.
        bytes: its length.
        created_unix_ns: since when it is here.
        expires_unix_ns: until when.
    """

    id: FileID
    tenant: TenantID
    name: str
    purpose: Purpose
    bytes: int
    created_unix_ns: int
    expires_unix_ns: int


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a batch's input.

    Attributes:
        code: for machines.
        message: for people.
        line: where, from 1; None for the whole file.
        param: the field at fault.
    """

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch.

    Attributes:
        id: unique for ever.
        tenant: whose it is, and who pays.
        key: whose key began it; its limits hold until the batch ends.
        endpoint: the gateway's route that each line asks.
        input_file: the lines.
        metadata: its owner's own words.
        status: where it is.
        at: when it came to each status where it has been.
        expires_unix_ns: when it ends at the latest.
        output_kept_ns: how long what comes of it is kept.
        errors: why it failed.
        output_file: the answers, once it has ended and if there are any.
        error_file: what became of all other lines, likewise.
        total: lines of its input.
        completed: lines that are answered and billed.
        failed: lines that went wrong by their own fault.
    """

    id: BatchID
    tenant: TenantID
    key: KeyID
    endpoint: str
    input_file: FileID
    metadata: dict[str, str]
    status: BatchStatus
    at: dict[BatchStatus, int]
    expires_unix_ns: int
    output_kept_ns: int = FILE_KEPT_NS
    errors: tuple[LineError, ...] = ()
    output_file: FileID | None = None
    error_file: FileID | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0

    @property
    def created_unix_ns(self) -> int:
        """When it began."""
        return self.at[BatchStatus.VALIDATING]


class Line(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request of a batch.

    Attributes:
        batch: whose it is.
        number: its place in the input, from 1; empty lines count.
        custom_id: its owner's name for it, unique in the batch.
        model: the model that it asks for.
        offset: of its first byte in the input.
        size: its bytes, without the line's end.
        request: the request that is about to be billed for it; None unless it is staged.
    """

    batch: BatchID
    number: int
    custom_id: str
    model: ModelName
    offset: int
    size: int
    request: RequestID | None = None


def may_move(status: BatchStatus, to: BatchStatus) -> bool:
    """Whether a batch can go from a status to another.

    >>> may_move(BatchStatus.VALIDATING, BatchStatus.COMPLETED)
    False
    """
    return to in NEXT[status]


def moved(batch: Batch, to: BatchStatus, unix_ns: int) -> Batch:
    """A batch in its next status; time does not go back, whatever the clock says."""
    assert may_move(batch.status, to), (batch.id, batch.status, to)
    at = {**batch.at, to: max(unix_ns, *batch.at.values())}
    return msgspec.structs.replace(batch, status=to, at=at)


Step = Literal["validate", "run", "finalize", "complete", "expire", "cancel"]
"""What is to be done: read the input; answer lines; answer no more of them; write what came of it,
as one that is answered, that has expired, or that was cancelled."""


def next_step(batch: Batch, unix_ns: int, waiting: int, staged: int) -> Step | None:
    """What is to be done with a batch; None for nothing, or nothing yet.

    Args:
        batch: as it stands.
        unix_ns: now.
        waiting: its lines that wait.
        staged: its lines that are about to be billed, without which it cannot end.
    """
    match batch.status:
        case BatchStatus.VALIDATING:
            return "validate"
        case BatchStatus.IN_PROGRESS:
            goes_on = (waiting or staged) and unix_ns < batch.expires_unix_ns
            return "run" if goes_on else "finalize"
        case BatchStatus.FINALIZING if not staged:
            return "expire" if waiting else "complete"
        case BatchStatus.CANCELLING if not staged:
            return "cancel"
        case _:
            return None


UNANSWERED: Final[Mapping[BatchStatus, str]] = {
    BatchStatus.EXPIRED: "This request could not be answered before its batch expired.",
    BatchStatus.CANCELLED: "This request was not answered before its batch was cancelled.",
}


def unanswered(batch: Batch, number: int, custom_id: str) -> bytes:
    """What the error file says of a line that its batch has ended before.

    Args:
        batch: after its end.
        number: the line's place.
        custom_id: the line's name.
    """
    error = {"code": f"batch_{batch.status}", "message": UNANSWERED[batch.status]}
    return output_line(f"{batch.id}_{number}", custom_id, None, error)


def output_line(
    name: str, custom_id: str, response: object, error: Mapping[str, str] | None = None
) -> bytes:
    """A line of an output or error file, in OpenAI's shape, without its end.

    Args:
        name: that no other line has.
        custom_id: of the line of the input.
        response: with status_code, request_id and body, if there is one.
        error: with code and message, if the line had none.
    """
    line = {"id": f"batch_req_{name}", "custom_id": custom_id, "response": response}
    return msgspec.json.encode({**line, "error": error})


class Upload(Protocol):
    """A file on its way in; one caller at a time."""

    async def write(self, data: bytes) -> None:
        """Add bytes.

        Raises:
            LedgerUnavailable: the disk does not take them.
        """
        ...

    async def drop(self) -> None:
        """Forget it, if it is not kept; a second time does nothing."""
        ...


class FileRoom(Protocol):
    """Keeps tenants' files. Every method raises ``LedgerUnavailable`` where it cannot."""

    def begin(self, tenant: TenantID) -> Upload:
        """Make ready for a file.

        Raises:
            CapacityExceeded: too many are on their way already.
        """
        ...

    async def keep(self, upload: Upload, file: StoredFile) -> None:
        """Keep a file that has come whole; returns once it is durable.

        Raises:
            QuotaExceeded: the tenant keeps as much as it may.
        """
        ...

    async def get(self, tenant: TenantID, file: FileID) -> StoredFile | None:
        """A file of this tenant."""
        ...

    async def delete(self, tenant: TenantID, file: FileID) -> bool:
        """Forget a file; whether there was one.

        Raises:
            InvalidRequest: a batch that has not ended reads it.
        """
        ...

    async def page(
        self,
        tenant: TenantID,
        *,
        after: str | None,
        limit: int,
        newest_first: bool,
        purpose: str | None,
    ) -> list[StoredFile]:
        """Files in the order in which they came, those after one; none if it is not there."""
        ...

    async def read(self, file: FileID, offset: int, size: int) -> bytes:
        """Bytes of a file, fewer at its end.

        Raises:
            NotFound: it is gone.
        """
        ...


class BatchRoom(Protocol):
    """Keeps batches and their lines. Every method raises ``LedgerUnavailable`` where it cannot.

    Anybody may create, read and cancel. The rest is for one process, which leads.
    """

    async def create(self, batch: Batch) -> None:
        """Keep a new batch.

        Raises:
            NotFound: its input is not the tenant's, or not kept any more.
            QuotaExceeded: the tenant has as many unfinished batches as it may.
        """
        ...

    async def get(self, tenant: TenantID, batch: BatchID) -> Batch | None:
        """A batch of this tenant."""
        ...

    async def page(self, tenant: TenantID, *, after: str | None, limit: int) -> list[Batch]:
        """Batches, the newest first, those after one; none if it is not there."""
        ...

    async def cancel(self, tenant: TenantID, batch: BatchID, unix_ns: int) -> Batch | None:
        """Begin to cancel a batch; None if there is none of this tenant.

        Raises:
            InvalidRequest: it has ended, or is about to.
        """
        ...

    async def lead(self) -> bool:
        """Be the process that runs this room's batches, until it ends; False if another one is."""
        ...

    async def unfinished(self) -> list[tuple[Batch, int, int]]:
        """Batches that have not ended, oldest first, with their lines that wait and are staged."""
        ...

    async def begin(self, batch: Batch, lines: Sequence[Line]) -> None:
        """All at once: keep the lines of a batch that was validated, and its status.

        Nothing happens if it was cancelled meanwhile.

        Args:
            batch: after its move.
            lines: that it has.
        """
        ...

    async def waiting(
        self, batch: BatchID, limit: int, without: Collection[ModelName] = ()
    ) -> list[Line]:
        """Lines that wait, in their order, except those for some models."""
        ...

    async def staged(self) -> list[Line]:
        """Lines whose answers are kept and about to be billed, of all batches."""
        ...

    async def stage(self, line: Line, request: RequestID, output: bytes) -> bool:
        """Keep an answer that is about to be billed as ``request``.

        Returns:
            False if the line's batch does not run any more; then nothing was kept.
        """
        ...

    async def unstage(self, line: Line) -> None:
        """It was not billed: throw the answer away, so that the line waits again."""
        ...

    async def finish(self, line: Line) -> None:
        """It is billed."""
        ...

    async def fail(self, line: Line, output: bytes) -> None:
        """A line that waits is at fault, or cannot be answered: keep what its error says."""
        ...

    async def finalize(self, batch: Batch) -> None:
        """Keep a batch after its move to where no line of it is staged any more.

        Nothing happens if it was cancelled meanwhile.
        """
        ...

    async def end(self, batch: Batch) -> Batch:
        """Write what came of a batch into files, and all at once its status and theirs.

        Lines that wait are told in its error file to have ended with it. No line of it may be
        staged.

        Args:
            batch: after its move to its end.

        Returns:
            It, with its files.
        """
        ...

    async def sweep(self, unix_ns: int) -> None:
        """Forget what has expired, and what nobody knows of."""
        ...
