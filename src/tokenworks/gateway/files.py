"""OpenAI's ``/v1/files``: what batches read, and what comes of them."""

from __future__ import annotations

import asyncio
import contextlib
import reprlib
import secrets
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

import msgspec

from tokenworks.core.batches import FILE_BYTES_MAX, FILE_KEPT_NS, FileRoom, StoredFile, Upload
from tokenworks.core.errors import (
    InvalidRequest,
    LedgerUnavailable,
    NotFound,
    RequestTooLarge,
    TokenworksError,
)
from tokenworks.core.ids import FileID
from tokenworks.core.orders import KeyView
from tokenworks.core.ports import Clock
from tokenworks.core.units import NS_PER_S
from tokenworks.gateway.chat_fields import JSONObject, wrong
from tokenworks.gateway.connection import Exchange
from tokenworks.gateway.form_stream import FormStream
from tokenworks.gateway.routes import Request, Response, Route

FILES_PATH: Final = "/v1/files"
FORM_BYTES: Final = 1024 * 1024
"""Of a form, beside its file."""

WRITE_BYTES: Final = 1024 * 1024
"""Of a file that comes are gathered for one write, and its caller waits meanwhile."""

READ_BYTES: Final = 256 * 1024
PAGE_MAX: Final = 10_000
NAME_CHARS_MAX: Final = 256
KEPT_S_MIN, KEPT_S_MAX = 3_600, 30 * 86_400
"""OpenAI's bounds of ``expires_after``."""

_FORM: Final = "a form with the fields purpose and file"


class IncomingFile:
    """Implements ``connection.BodySink``: takes a form, and writes its file as it comes.

    Args:
        exchange: whose body it is.
        begin: makes what takes the file; only once all else is there, for it must be dropped.
        content_type: of the form.

    Raises:
        InvalidRequest: the content type names no boundary.
        CapacityExceeded: see ``FileRoom.begin``.
    """

    def __init__(
        self, exchange: Exchange, begin: Callable[[], Upload], content_type: bytes
    ) -> None:
        self._exchange = exchange
        self._form = FormStream(content_type, "file", self._take)
        self._parts: list[bytes] = []
        self._gathered = 0
        self._writing: asyncio.Task[None] | None = None
        self._dropping: asyncio.Task[None] | None = None
        self._failure: TokenworksError | None = None
        self.bytes = 0
        self.upload = begin()

    def data(self, data: bytes) -> None:
        """See ``BodySink``."""
        if self._failure is not None:
            raise self._failure
        self._form.feed(data)
        if self._gathered >= WRITE_BYTES and self._writing is None:
            self._exchange.hold_body()
            self._writing = asyncio.get_running_loop().create_task(self._write())

    def drop(self) -> None:
        """See ``BodySink``."""
        if self._dropping is None:
            self._dropping = asyncio.get_running_loop().create_task(self._forget())

    async def whole(self) -> FormStream:
        """The form, once its file is written.

        Raises:
            InvalidRequest: it is no such form.
            LedgerUnavailable: the disk does not take it.
        """
        if self._writing is not None:
            await self._writing
        self._form.close()
        if self._gathered:
            await self._write()
        if self._failure is not None:
            raise self._failure
        return self._form

    def _take(self, data: bytes) -> None:
        self.bytes += len(data)
        if self.bytes > FILE_BYTES_MAX:
            raise RequestTooLarge(
                f"The file has more than {FILE_BYTES_MAX} bytes.",
                hint="Cut it into several files, each with a batch of its own.",
            )
        self._parts.append(data)
        self._gathered += len(data)

    async def _write(self) -> None:
        data, self._parts, self._gathered = b"".join(self._parts), [], 0
        try:
            if self._failure is None:
                await self.upload.write(data)
        except TokenworksError as error:
            self._failure = error
        except Exception as error:  # noqa: BLE001 - else a file without these bytes would be kept
            self._failure = LedgerUnavailable(
                f"The file could not be written: {error}.", hint="Try again."
            )
        finally:
            self._writing = None
            self._exchange.release_body()

    async def _forget(self) -> None:
        if self._writing is not None:
            await asyncio.wait({self._writing})
        with contextlib.suppress(TokenworksError):
            await self.upload.drop()


class Files:
    """Serves files.

    Args:
        room: keeps them; None where nothing is kept.
        clock: time.
    """

    def __init__(self, room: FileRoom | None, clock: Clock) -> None:
        self._room, self._clock = room, clock

    def routes(self) -> tuple[Route, ...]:
        """What can be done with files."""
        return (
            Route(
                path=FILES_PATH,
                handlers={"GET": self._list, "POST": self._create},
                body_bytes_max=FILE_BYTES_MAX + FORM_BYTES,
                takes=self._begin,
            ),
            Route(path=f"{FILES_PATH}/*", handlers={"GET": self._get, "DELETE": self._delete}),
            Route(path=f"{FILES_PATH}/*/content", handlers={"GET": self._get_content}),
        )

    @property
    def _there(self) -> FileRoom:
        if self._room is None:
            raise NotFound(
                "This factory keeps no files.",
                hint="Operators: with share_port they need [ledger] path.",
            )
        return self._room

    def _begin(self, exchange: Exchange, key: KeyView) -> None:
        """Make ready for a file, at its request's head."""
        head = exchange.head
        assert head is not None
        content_type = head.get(b"content-type") or b""
        if not content_type.lower().startswith(b"multipart/form-data"):
            raise InvalidRequest("A file comes in a form.", hint=f"Send {_FORM}.")
        room = self._there
        sink = IncomingFile(exchange, lambda: room.begin(key.tenant), content_type)
        exchange.sink, exchange.on_gone = sink, sink.drop

    async def _create(self, request: Request) -> Response:
        sink, key = request.exchange.sink, request.key
        assert isinstance(sink, IncomingFile)
        assert key is not None
        request.exchange.on_gone = None  # it is there: who leaves now has sent it
        try:
            file = self._described(await sink.whole(), sink.bytes, key)
            await self._there.keep(sink.upload, file)
        except BaseException:
            sink.drop()
            raise
        return Response(body=msgspec.json.encode(told(file)))

    def _described(self, form: FormStream, size: int, key: KeyView) -> StoredFile:
        purpose = form.fields.get("purpose")
        if purpose != "batch":
            raise wrong("purpose", purpose, "'batch': files are for batches")
        unix_ns = self._clock.unix_ns()
        return StoredFile(
            id=new_file_id(),
            tenant=key.tenant,
            name=_name(form.file_name or ""),
            purpose="batch",
            bytes=size,
            created_unix_ns=unix_ns,
            expires_unix_ns=unix_ns + kept_ns(_expires_after(form.fields)),
        )

    async def _list(self, request: Request) -> Response:
        assert request.key is not None
        query = query_of(request)
        limit = limit_of(query, PAGE_MAX, PAGE_MAX)
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise wrong("order", order, "asc or desc")
        found = await self._there.page(
            request.key.tenant,
            after=query.get("after"),
            limit=limit + 1,
            newest_first=order == "desc",
            purpose=query.get("purpose"),
        )
        return page_of([told(file) for file in found], limit)

    async def _get(self, request: Request) -> Response:
        return Response(body=msgspec.json.encode(told(await self._named(request))))

    async def _named(self, request: Request) -> StoredFile:
        file_id = request.path.removeprefix(FILES_PATH + "/").partition("/")[0]
        assert request.key is not None
        file = await self._there.get(request.key.tenant, FileID(file_id))
        if file is None:
            raise no_file(file_id)
        return file

    async def _get_content(self, request: Request) -> Response:
        file = await self._named(request)
        name = urllib.parse.quote(file.name)
        named = (b"content-disposition", f"attachment; filename*=UTF-8''{name}".encode())
        return Response(
            content_type=b"application/octet-stream", headers=[named], parts=self._content(file)
        )

    async def _content(self, file: StoredFile) -> AsyncIterator[bytes]:
        for offset in range(0, file.bytes, READ_BYTES):
            yield await self._there.read(file.id, offset, READ_BYTES)

    async def _delete(self, request: Request) -> Response:
        file_id = request.path.removeprefix(FILES_PATH + "/")
        assert request.key is not None
        if not await self._there.delete(request.key.tenant, FileID(file_id)):
            raise no_file(file_id)
        body = msgspec.json.encode({"id": file_id, "object": "file", "deleted": True})
        return Response(body=body)


def new_file_id() -> FileID:
    """A name that no other file has, and nobody guesses."""
    return FileID(f"file-{secrets.token_hex(12)}")


def told(file: StoredFile) -> JSONObject:
    """A file as callers see it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_unix_ns // NS_PER_S,
        "expires_at": file.expires_unix_ns // NS_PER_S,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def kept_ns(after: object) -> int:
    """How long a file is kept, by its owner's ``expires_after``.

    Raises:
        InvalidRequest: it is not what it should be.

    >>> kept_ns({"anchor": "created_at", "seconds": 3_600}) // 10**9
    3600
    """
    if after is None:
        return FILE_KEPT_NS
    if not isinstance(after, Mapping) or after.get("anchor") != "created_at":
        raise wrong("expires_after", after, '{"anchor": "created_at", "seconds": ...}')
    seconds = after.get("seconds")
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int)
        or not KEPT_S_MIN <= seconds <= KEPT_S_MAX
    ):
        want = f"a whole number from {KEPT_S_MIN} to {KEPT_S_MAX}"
        raise wrong("expires_after.seconds", seconds, want)
    return seconds * NS_PER_S


def query_of(request: Request) -> dict[str, str]:
    """A request's query."""
    return dict(urllib.parse.parse_qsl(request.query.decode("latin-1")))


def limit_of(query: Mapping[str, str], default: int, most: int) -> int:
    """How many rows a page may have.

    Raises:
        InvalidRequest: the query says something else than a number within bounds.
    """
    limit = query.get("limit", str(default))
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 6 and 1 <= int(limit) <= most):
        raise wrong("limit", limit, f"a whole number from 1 to {most}")
    return int(limit)


def page_of(rows: list[JSONObject], limit: int) -> Response:
    """A page of a list, of which one row more than the limit says that there are more."""
    data = rows[:limit]
    return Response(
        body=msgspec.json.encode(
            {
                "object": "list",
                "data": data,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
                "has_more": len(rows) > limit,
            }
        )
    )


def no_file(file_id: str) -> NotFound:
    """It is not there, or not for this caller."""
    return NotFound(
        f"There is no file {reprlib.repr(file_id)}.",
        hint="It has expired, was deleted, or is another tenant's.",
    )


def _expires_after(fields: Mapping[str, str]) -> object:
    anchor, seconds = (fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return None
    number = seconds and seconds.isascii() and seconds.isdecimal() and len(seconds) < 10
    return {"anchor": anchor, "seconds": int(seconds) if seconds and number else seconds}


def _name(given: str) -> str:
    """A file's name, without the folder that it may have been in."""
    name = given.replace("\\", "/").rpartition("/")[2].strip()
    if not (0 < len(name) <= NAME_CHARS_MAX and name.isprintable()):
        raise wrong("file", name[:64], f"named by 1 to {NAME_CHARS_MAX} printable characters")
    return name
