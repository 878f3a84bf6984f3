"""Tenants' batches and their lines, in the SQLite database that lists their files."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from tokenworks.core.batches import (
    ENDS,
    Batch,
    BatchStatus,
    Line,
    LineState,
    StoredFile,
    may_move,
    moved,
    unanswered,
)
from tokenworks.core.errors import InvalidRequest, NotFound, QuotaExceeded
from tokenworks.core.ids import BatchID, FileID, ModelName, RequestID, TenantID
from tokenworks.core.units import NS_PER_S
from tokenworks.live.file_room import StoredFiles, check_room, on_disk
from tokenworks.live.sqlite import PRIVATE, SQLiteDatabase, copy_database

BATCHES: Final = "batches.sqlite"
FILES: Final = "files"
"""The database, and the folder of what it lists, wherever they lie."""

BATCHES_MAX: Final = 100
"""Of one tenant that have not ended."""

KEPT_NS: Final = 90 * 86_400 * NS_PER_S
"""A batch that has ended is kept so long."""

SPARE_BYTES: Final = 16 << 20
"""Of the database, kept free for answers to come; what is beyond that goes back to the disk."""
PIECE_BYTES: Final = 64 << 20

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL,
    status TEXT NOT NULL, ended_unix_ns INTEGER, data BLOB NOT NULL,
    waiting INTEGER NOT NULL DEFAULT 0, staged INTEGER NOT NULL DEFAULT 0,
    done INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS batches_by_tenant ON batches (tenant, number);
CREATE INDEX IF NOT EXISTS batches_by_end ON batches (ended_unix_ns);
CREATE TABLE IF NOT EXISTS lines (
    batch TEXT NOT NULL, number INTEGER NOT NULL, custom_id TEXT NOT NULL, model TEXT NOT NULL,
    offset INTEGER NOT NULL, size INTEGER NOT NULL, state TEXT NOT NULL, request TEXT,
    output BLOB, PRIMARY KEY (batch, number));
CREATE INDEX IF NOT EXISTS lines_by_state ON lines (state, batch, number);
"""
"""A batch's row counts its lines by state; ``ended_unix_ns`` is NULL until it has ended."""

_BATCH: Final = "SELECT data, done, failed, waiting, staged FROM batches"
_LINE: Final = "SELECT batch, number, custom_id, model, offset, size, request FROM lines"
_NUL: Final = "\x00"
_OF_FILES: Final[Mapping[str, Sequence[LineState]]] = {
    "output": ("done",),
    "errors": ("failed", "waiting"),
}
"""Which lines of a batch that ends are told in which file."""

_Values = tuple[str | bytes, ...]
_decoder: Final = msgspec.json.Decoder(Batch)


class StoredBatches:
    """Implements ``core.batches.BatchRoom``.

    Args:
        files: whose database it shares.
        lock: the file that the process that leads has locked.

    Attributes:
        files: the same.
    """

    def __init__(self, files: StoredFiles, lock: Path) -> None:
        self.files = self._files = files
        self._database, self._lock = files.database, lock
        self._locked: int | None = None
        self._database.script(_SCHEMA)

    def copy_to(self, folder: Path) -> tuple[int, int]:
        """Copy everything to a folder that is empty; factories may go on meanwhile.

        The database is of one moment. A file that it lists is never changed, and is missing where
        its tenant deleted it before its turn came.

        Returns:
            How many files were copied, and how many were missing.

        Raises:
            LedgerUnavailable: one of the disks cannot be read or written.
            LedgerCorrupt: the database is none.
        """
        target, copied, missing = folder / BATCHES, 0, 0
        copy_database(self._database.path, target)
        with on_disk(folder):
            target.chmod(PRIVATE)
            (folder / FILES).mkdir(mode=0o700)
        with contextlib.closing(SQLiteDatabase(target, create=False)) as copy:
            listed = [row[0] for row in copy.query("SELECT id FROM files")]
        for name in listed:
            if self._files.copy_to(folder / FILES, FileID(name)):
                copied += 1
            else:
                missing += 1
        return copied, missing

    async def create(self, batch: Batch) -> None:
        """See ``BatchRoom``."""
        await self._files.run(lambda: self._create(batch))

    async def get(self, tenant: TenantID, batch: BatchID) -> Batch | None:
        """See ``BatchRoom``."""
        return await self._files.run(lambda: self._find(tenant, batch))

    async def page(self, tenant: TenantID, *, after: str | None, limit: int) -> list[Batch]:
        """See ``BatchRoom``."""
        if _NUL in (after or ""):
            return []
        sql, values = f"{_BATCH} WHERE tenant = ?", [str(tenant)]
        if after is not None:
            sql += " AND number < (SELECT number FROM batches WHERE tenant = ? AND id = ?)"
            values += [tenant, after]
        sql += " ORDER BY number DESC LIMIT ?"
        rows = await self._files.run(lambda: self._database.query(sql, (*values, limit)))
        return [_batch(row) for row in rows]

    async def cancel(self, tenant: TenantID, batch: BatchID, unix_ns: int) -> Batch | None:
        """See ``BatchRoom``."""
        return await self._files.run(lambda: self._cancel(tenant, batch, unix_ns))

    async def lead(self) -> bool:
        """See ``BatchRoom``."""
        return await asyncio.to_thread(self._lead)

    async def unfinished(self) -> list[tuple[Batch, int, int]]:
        """See ``BatchRoom``."""
        sql = f"{_BATCH} WHERE ended_unix_ns IS NULL ORDER BY number"
        rows = await self._files.run(lambda: self._database.query(sql))
        return [(_batch(row), row[3], row[4]) for row in rows]

    async def begin(self, batch: Batch, lines: Sequence[Line]) -> None:
        """See ``BatchRoom``."""
        await self._files.run(lambda: self._begin(batch, lines))

    async def waiting(
        self, batch: BatchID, limit: int, without: Collection[ModelName] = ()
    ) -> list[Line]:
        """See ``BatchRoom``."""
        sql = f"{_LINE} WHERE state = 'waiting' AND batch = ?"
        if without:
            sql += f" AND model NOT IN ({', '.join('?' * len(without))})"
        sql += " ORDER BY number LIMIT ?"

        def look() -> list[tuple[Any, ...]]:
            self._check_room(0)  # what no disk keeps is not made
            return self._database.query(sql, (batch, *without, limit))

        return [_line(row) for row in await self._files.run(look)]

    async def staged(self) -> list[Line]:
        """See ``BatchRoom``."""
        sql = f"{_LINE} WHERE state = 'staged'"
        return [_line(row) for row in await self._files.run(lambda: self._database.query(sql))]

    async def stage(self, line: Line, request: RequestID, output: bytes) -> bool:
        """See ``BatchRoom``."""

        def stage() -> bool:
            self._check_room(len(output))
            sets = ", request = ?, output = ?"
            return self._move(line, "waiting", "staged", sets, (request, output))

        return await self._files.run(stage)

    async def unstage(self, line: Line) -> None:
        """See ``BatchRoom``."""
        await self._files.run(
            lambda: self._move(line, "staged", "waiting", ", request = NULL, output = NULL")
        )

    async def finish(self, line: Line) -> None:
        """See ``BatchRoom``."""
        await self._files.run(lambda: self._move(line, "staged", "done"))

    async def fail(self, line: Line, output: bytes) -> None:
        """See ``BatchRoom``."""
        await self._files.run(
            lambda: self._move(line, "waiting", "failed", ", output = ?", (output,))
        )

    async def finalize(self, batch: Batch) -> None:
        """See ``BatchRoom``."""

        def finalize() -> None:
            with self._database.writing():
                self._write(batch, BatchStatus.IN_PROGRESS)

        await self._files.run(finalize)

    async def end(self, batch: Batch) -> Batch:
        """See ``BatchRoom``."""
        # Others use the database while its long files are written.
        made = await asyncio.to_thread(self._write_files, batch)
        return await self._files.run(lambda: self._end(batch, made))

    def known(
        self, *, tenant: TenantID | None = None, batch: str | None = None, limit: int
    ) -> list[Batch]:
        """For an operator: batches of all tenants or of one, the newest first.

        Args:
            tenant: only its batches.
            batch: only that one.
            limit: how many at most.
        """
        wanted = {"tenant": tenant, "id": batch}
        asked = {name: str(value) for name, value in wanted.items() if value is not None}
        where = " AND ".join(["TRUE", *(f"{name} = ?" for name in asked)])
        sql = f"{_BATCH} WHERE {where} ORDER BY number DESC LIMIT ?"
        return [_batch(row) for row in self._database.query(sql, (*asked.values(), limit))]

    async def sweep(self, unix_ns: int) -> None:
        """See ``BatchRoom``."""

        def sweep() -> None:
            with self._database.writing():
                self._database.change(
                    "DELETE FROM batches WHERE ended_unix_ns <= ?", (unix_ns - KEPT_NS,)
                )
            self._files.sweep(unix_ns)

        await self._files.run(sweep)
        # Piece by piece: others use the database in between.
        while await self._files.run(lambda: self._database.shrink(SPARE_BYTES, PIECE_BYTES)):
            pass

    def close(self) -> None:
        """Let go of the lock, and of the database."""
        self._files.close()
        if self._locked is not None:
            os.close(self._locked)
            self._locked = None

    # On any thread.

    def _lead(self) -> bool:
        if self._locked is not None:
            return True
        with on_disk(self._lock):
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
        self._locked = descriptor
        return True

    def _create(self, batch: Batch) -> None:
        with self._database.writing():
            file = self._files.find(batch.tenant, batch.input_file)
            if file is None:
                raise NotFound(
                    f"There is no file {batch.input_file!r}.", hint="Send it to /v1/files first."
                )
            if file.purpose != "batch":
                raise InvalidRequest(
                    f"The file {file.id!r} is for {file.purpose}.",
                    hint="Send one whose purpose is batch.",
                )
            ((count,),) = self._database.query(
                "SELECT COUNT(*) FROM batches WHERE tenant = ? AND ended_unix_ns IS NULL",
                (batch.tenant,),
            )
            if count >= BATCHES_MAX:
                raise QuotaExceeded(
                    f"{batch.tenant!r} has {count} batches that have not ended.",
                    hint=f"Wait for one to end: {BATCHES_MAX} are the most.",
                )
            self._database.change(
                "INSERT INTO batches (id, tenant, status, data) VALUES (?, ?, ?, ?)",
                (batch.id, batch.tenant, batch.status, msgspec.json.encode(batch)),
            )
            self._database.change(
                "INSERT INTO read_files VALUES (?, ?)", (batch.input_file, batch.id)
            )

    def _find(self, tenant: TenantID, batch: BatchID) -> Batch | None:
        if _NUL in batch:
            return None
        sql = f"{_BATCH} WHERE tenant = ? AND id = ?"
        rows = self._database.query(sql, (tenant, batch))
        return _batch(rows[0]) if rows else None

    def _cancel(self, tenant: TenantID, name: BatchID, unix_ns: int) -> Batch | None:
        with self._database.writing():
            batch = self._find(tenant, name)
            if batch is None or batch.status is BatchStatus.CANCELLING:
                return batch
            if not may_move(batch.status, BatchStatus.CANCELLING):
                raise InvalidRequest(
                    f"The batch {name!r} is {batch.status}, and cannot be cancelled.",
                    hint="Its files have what came of it.",
                )
            cancelled = moved(batch, BatchStatus.CANCELLING, unix_ns)
            self._write(cancelled, batch.status)
        return cancelled

    def _begin(self, batch: Batch, lines: Sequence[Line]) -> None:
        with self._database.writing():
            if not self._write(batch, BatchStatus.VALIDATING):
                return
            self._database.change_many(
                "INSERT INTO lines (batch, number, custom_id, model, offset, size, state)"
                " VALUES (?, ?, ?, ?, ?, ?, 'waiting')",
                (
                    (line.batch, line.number, line.custom_id, line.model, line.offset, line.size)
                    for line in lines
                ),
            )
            self._database.change(
                "UPDATE batches SET waiting = ? WHERE id = ?", (len(lines), batch.id)
            )

    def _write(self, batch: Batch, before: BatchStatus) -> bool:
        """Put a batch in the place of what it was, inside a transaction; False if it was not."""
        ended = batch.at[batch.status] if batch.status in ENDS else None
        changed = self._database.change(
            "UPDATE batches SET status = ?, ended_unix_ns = ?, data = ?"
            " WHERE id = ? AND status = ?",
            (batch.status, ended, msgspec.json.encode(batch), batch.id, before),
        )
        if changed and ended is not None:
            self._database.change("DELETE FROM lines WHERE batch = ?", (batch.id,))
            self._database.change("DELETE FROM read_files WHERE batch = ?", (batch.id,))
        return changed > 0

    def _check_room(self, size: int) -> None:
        with on_disk(self._database.path):
            check_room(self._lock.parent, size)

    def _move(
        self, line: Line, before: LineState, to: LineState, sets: str = "", values: _Values = ()
    ) -> bool:
        """Bring a line from a state to another; False if it is not there."""
        where = "batch = ? AND number = ? AND state = ?"
        if to == "staged":
            where += " AND EXISTS (SELECT 1 FROM batches WHERE id = batch"
            where += f" AND status = '{BatchStatus.IN_PROGRESS}')"
        with self._database.writing():
            changed = self._database.change(
                f"UPDATE lines SET state = ?{sets} WHERE {where}",
                (to, *values, line.batch, line.number, before),
            )
            if changed:
                self._database.change(
                    f"UPDATE batches SET {before} = {before} - 1, {to} = {to} + 1 WHERE id = ?",
                    (line.batch,),
                )
        return changed > 0

    def _write_files(self, batch: Batch) -> list[StoredFile]:
        """What came of a batch, each in a file with a name of its own; again, in its place."""
        made = []
        for kind, states in _OF_FILES.items():
            part, size = self._files.write_out(self._pieces(batch, states))
            if not size:
                part.unlink()
                continue
            name = f"{batch.id}_{kind}"
            file = StoredFile(
                id=FileID(f"file-{name.removeprefix('batch_')}"),
                tenant=batch.tenant,
                name=f"{name}.jsonl",
                purpose="batch_output",
                bytes=size,
                created_unix_ns=batch.at[batch.status],
                expires_unix_ns=batch.at[batch.status] + batch.output_kept_ns,
            )
            self._files.place(part, file.id)
            made.append(file)
        return made

    def _pieces(self, batch: Batch, states: Sequence[LineState]) -> Iterator[bytes]:
        rows = self._database.stream(
            "SELECT number, custom_id, output FROM lines WHERE batch = ?"
            f" AND state IN ({', '.join('?' * len(states))}) ORDER BY number",
            (batch.id, *states),
        )
        for number, custom_id, output in rows:
            said = output if output is not None else unanswered(batch, number, custom_id)
            yield said + b"\n"

    def _end(self, batch: Batch, made: Sequence[StoredFile]) -> Batch:
        named = {file.name.removeprefix(f"{batch.id}_"): file.id for file in made}
        with self._database.writing():
            batch = msgspec.structs.replace(
                batch,
                output_file=named.get("output.jsonl"),
                error_file=named.get("errors.jsonl"),
            )
            before = (BatchStatus.FINALIZING, BatchStatus.CANCELLING)
            if any(self._write(batch, status) for status in before):
                for file in made:
                    self._files.insert(file)
        return batch


def _batch(row: tuple[Any, ...]) -> Batch:
    return msgspec.structs.replace(_decoder.decode(row[0]), completed=row[1], failed=row[2])


def _line(row: tuple[Any, ...]) -> Line:
    names = ("batch", "number", "custom_id", "model", "offset", "size", "request")
    return Line(**dict(zip(names, row, strict=True)))
