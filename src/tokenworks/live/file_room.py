"""Tenants' files: each a file of a folder, listed in a SQLite database beside it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from tokenworks.core.batches import FILE_BYTES_MAX, StoredFile, Upload
from tokenworks.core.errors import (
    CapacityExceeded,
    InvalidRequest,
    LedgerUnavailable,
    NotFound,
    QuotaExceeded,
)
from tokenworks.core.ids import FileID, TenantID
from tokenworks.live.sqlite import PRIVATE, SQLiteDatabase

FILES_MAX: Final = 10_000
BYTES_MAX: Final = 100 * FILE_BYTES_MAX
"""Of one tenant's files. What comes of a batch is kept beyond that: it has been paid for."""

UPLOADS_MAX: Final = 16
UPLOADS_OF_TENANT_MAX: Final = 4
"""Files on their way in at once, in this process."""

FREE_BYTES_MIN: Final = 200_000_000
"""Of the disk, left to the ledger beside the files: without it nobody is served any more."""

ORPHAN_S: Final = 3_600.0
"""A file on the disk that is in no list for so long was left by a process that died."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL,
    name TEXT NOT NULL, purpose TEXT NOT NULL, bytes INTEGER NOT NULL,
    created_unix_ns INTEGER NOT NULL, expires_unix_ns INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS files_by_tenant ON files (tenant, number);
CREATE INDEX IF NOT EXISTS files_by_end ON files (expires_unix_ns);
CREATE TABLE IF NOT EXISTS read_files (
    file TEXT NOT NULL, batch TEXT NOT NULL, PRIMARY KEY (file, batch)) WITHOUT ROWID;
"""
"""``read_files`` has what batches that have not ended read, which must stay."""

_COLUMNS: Final = "id, tenant, name, purpose, bytes, created_unix_ns, expires_unix_ns"
_READ: Final = "EXISTS (SELECT 1 FROM read_files WHERE file = files.id)"
_NUL: Final = "\x00"
_PART: Final = ".part"

T = TypeVar("T")


class StoredUpload:
    """Implements ``core.batches.Upload``; its bytes are in a file that nobody knows of yet."""

    def __init__(self, path: Path, left: Callable[[], None]) -> None:
        self.path = path
        self._left = left
        self._lock = threading.Lock()
        """Its caller may leave while a thread writes: a descriptor that was closed is another's."""
        self._descriptor: int | None = None
        self._ended = False

    async def write(self, data: bytes) -> None:
        """See ``Upload``."""
        await asyncio.to_thread(self._write, data)

    async def drop(self) -> None:
        """See ``Upload``."""
        if not self._ended:
            await asyncio.to_thread(self.end)
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self.path.unlink, missing_ok=True)

    def _write(self, data: bytes, *, sync: bool = False) -> None:
        with self._lock, on_disk(self.path):
            if self._ended:
                raise OSError(errno.EBADF, "its caller has left")
            if self._descriptor is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                self._descriptor = os.open(self.path, flags, PRIVATE)
            if data:
                check_room(self._descriptor, len(data))
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
            if sync:
                os.fsync(self._descriptor)

    def sync(self) -> None:
        """All of it is on the disk, under the name it has now."""
        self._write(b"", sync=True)

    def end(self) -> None:
        """Nothing more comes."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._left()
            if self._descriptor is not None:
                with contextlib.suppress(OSError):
                    os.close(self._descriptor)


class StoredFiles:
    """Implements ``core.batches.FileRoom``.

    Args:
        database: a connection of its own; one thread at a time uses it.
        folder: where files are; it is made if it is missing.

    Attributes:
        database: the same.

    Raises:
        LedgerUnavailable: the folder cannot be made, or the database not be written.
    """

    def __init__(self, database: SQLiteDatabase, folder: Path) -> None:
        self.database, self._folder = database, folder
        self._lock = threading.Lock()
        self._uploads: Counter[TenantID] = Counter()
        self._parts = 0
        with on_disk(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
        database.script(_SCHEMA)

    def begin(self, tenant: TenantID) -> StoredUpload:
        """See ``FileRoom``."""
        full = self._uploads.total() >= UPLOADS_MAX
        if full or self._uploads[tenant] >= UPLOADS_OF_TENANT_MAX:
            raise CapacityExceeded(
                f"{UPLOADS_MAX if full else UPLOADS_OF_TENANT_MAX} files are on their way already.",
                hint="Try again.",
                retry_after_s=5,
            )
        self._uploads[tenant] += 1
        return StoredUpload(self._new_part(), lambda: self._uploads.subtract([tenant]))

    async def keep(self, upload: Upload, file: StoredFile) -> None:
        """See ``FileRoom``."""
        assert isinstance(upload, StoredUpload)
        await self.run(lambda: self._keep(upload, file))

    async def get(self, tenant: TenantID, file: FileID) -> StoredFile | None:
        """See ``FileRoom``."""
        return await self.run(lambda: self.find(tenant, file))

    async def delete(self, tenant: TenantID, file: FileID) -> bool:
        """See ``FileRoom``."""
        return await self.run(lambda: self._delete(tenant, file))

    async def page(
        self,
        tenant: TenantID,
        *,
        after: str | None,
        limit: int,
        newest_first: bool,
        purpose: str | None,
    ) -> list[StoredFile]:
        """See ``FileRoom``."""
        if _NUL in (after or "") or _NUL in (purpose or ""):
            return []
        than, order = ("<", "DESC") if newest_first else (">", "ASC")
        sql, values = f"SELECT {_COLUMNS} FROM files WHERE tenant = ?", [str(tenant)]
        if after is not None:
            sql += f" AND number {than} (SELECT number FROM files WHERE tenant = ? AND id = ?)"
            values += [tenant, after]
        if purpose is not None:
            sql += " AND purpose = ?"
            values.append(purpose)
        sql += f" ORDER BY number {order} LIMIT ?"
        rows = await self.run(lambda: self.database.query(sql, (*values, limit)))
        return [_file(row) for row in rows]

    async def read(self, file: FileID, offset: int, size: int) -> bytes:
        """See ``FileRoom``."""
        return await asyncio.to_thread(self._read, file, offset, size)

    async def run(self, work: Callable[[], T]) -> T:
        """Do something with the database, alone, on another thread."""

        def alone() -> T:
            with self._lock:
                return work()

        return await asyncio.to_thread(alone)

    def close(self) -> None:
        """Let go of the database."""
        with self._lock:
            self.database.close()

    # Inside ``run``, for whoever shares the database.

    def find(self, tenant: TenantID, file: str) -> StoredFile | None:
        """A file of this tenant."""
        if _NUL in file:
            return None
        sql = f"SELECT {_COLUMNS} FROM files WHERE tenant = ? AND id = ?"
        rows = self.database.query(sql, (tenant, file))
        return _file(rows[0]) if rows else None

    def write_out(self, pieces: Iterator[bytes]) -> tuple[Path, int]:
        """Write a file that is in no list yet; where it is, and its bytes."""
        upload, size = StoredUpload(self._new_part(), lambda: None), 0
        try:
            for piece in pieces:
                upload._write(piece)  # noqa: SLF001 - its own room's
                size += len(piece)
            upload.sync()
        except BaseException:
            upload.path.unlink(missing_ok=True)
            raise
        finally:
            upload.end()
        return upload.path, size

    def place(self, part: Path, file: FileID) -> None:
        """Give what was written its name, durably."""
        with on_disk(part):
            part.replace(self.path_of(file))
            descriptor = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def insert(self, file: StoredFile) -> None:
        """List a file, inside a transaction."""
        self.database.change(
            f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
            tuple(getattr(file, name) for name in _COLUMNS.split(", ")),
        )

    def copy_to(self, folder: Path, file: FileID) -> bool:
        """Copy a file to another folder, durably; whether it is there."""
        with on_disk(folder):
            try:
                read = self.path_of(file).open("rb")
            except FileNotFoundError:
                return False
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with read, os.fdopen(os.open(folder / file, flags, PRIVATE), "wb") as written:
                shutil.copyfileobj(read, written)
                written.flush()
                os.fsync(written.fileno())
        return True

    def path_of(self, file: FileID) -> Path:
        """Where a file is that is listed."""
        return self._folder / file

    def sweep(self, unix_ns: int) -> None:
        """Forget what has expired, and what is in no list."""
        old = self.database.query(
            f"SELECT id FROM files WHERE expires_unix_ns <= ? AND NOT {_READ}", (unix_ns,)
        )
        with self.database.writing():
            # Again in one step: a batch may have begun to read one since.
            self.database.change(
                f"DELETE FROM files WHERE expires_unix_ns <= ? AND NOT {_READ}", (unix_ns,)
            )
        for (name,) in old:
            self._unlink_unlisted(FileID(name))
        for name in self._late():
            self._unlink_unlisted(FileID(name))

    def _late(self) -> list[str]:
        """Files that nobody has written to for long, however others come and go meanwhile."""
        late = []
        with on_disk(self._folder), os.scandir(self._folder) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat().st_mtime < time.time() - ORPHAN_S:
                        late.append(entry.name)
        return late

    def _unlink_unlisted(self, file: FileID) -> None:
        if not self.database.query("SELECT 1 FROM files WHERE id = ?", (file,)):
            with on_disk(self._folder):
                self.path_of(file).unlink(missing_ok=True)

    def _new_part(self) -> Path:
        self._parts += 1
        return self._folder / f"{os.getpid()}-{time.time_ns()}-{self._parts}{_PART}"

    def _keep(self, upload: StoredUpload, file: StoredFile) -> None:
        upload.sync()
        self.place(upload.path, file.id)
        upload.end()
        try:
            with self.database.writing():
                self._check_share(file)
                self.insert(file)
        except QuotaExceeded:
            with on_disk(self._folder):
                self.path_of(file.id).unlink(missing_ok=True)
            raise

    def _check_share(self, file: StoredFile) -> None:
        ((count, size),) = self.database.query(
            "SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM files WHERE tenant = ?", (file.tenant,)
        )
        if count >= FILES_MAX or size + file.bytes > BYTES_MAX:
            raise QuotaExceeded(
                f"{file.tenant!r} keeps {count} files with {size} bytes here.",
                hint=f"Delete some: {FILES_MAX} and {BYTES_MAX} bytes are the most.",
            )

    def _delete(self, tenant: TenantID, file: FileID) -> bool:
        if self.find(tenant, file) is None:
            return False
        with self.database.writing():
            gone = self.database.change(
                f"DELETE FROM files WHERE tenant = ? AND id = ? AND NOT {_READ}", (tenant, file)
            )
        if not gone and self.find(tenant, file) is not None:
            raise InvalidRequest(
                f"A batch that has not ended reads the file {file!r}.",
                hint="Cancel the batch, or wait for its end.",
            )
        self._unlink_unlisted(file)
        return gone > 0

    def _read(self, file: FileID, offset: int, size: int) -> bytes:
        with on_disk(self._folder):
            try:
                with self.path_of(file).open("rb") as opened:
                    opened.seek(offset)
                    return opened.read(size)
            except FileNotFoundError as error:
                raise NotFound(f"The file {file!r} is gone.", hint="Send it again.") from error


def check_room(where: Path | int, size: int) -> None:
    """Leave the ledger its part of the disk.

    Args:
        where: a folder, or a file's descriptor.
        size: bytes that are about to be written there.

    Raises:
        OSError: they would take of it.
    """
    disk = os.statvfs(where)
    if disk.f_bavail * disk.f_frsize < FREE_BYTES_MIN + size:
        raise OSError(errno.ENOSPC, "the disk is full but for what the ledger needs")


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Turn the disk's errors into ours."""
    try:
        yield
    except OSError as error:
        raise LedgerUnavailable(
            f"{path.name!r} could not be read or written: {error.strerror}.",
            hint="Look at the disk that holds the factory's folder.",
        ) from error


def _file(row: tuple[Any, ...]) -> StoredFile:
    return StoredFile(**dict(zip(_COLUMNS.split(", "), row, strict=True)))
