"""``/v1/files``: OpenAI's SDK at real rooms, and what is on the disk when things go wrong."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import pathlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import openai
import pytest

from tests.gateway.fake_desk import SECRET, Caller, FakeClock, FakeDesk
from tests.gateway.test_form_fields import TYPE, form, part
from tests.gateway.test_server import serving_gateway
from tokenworks.core.batches import StoredFile
from tokenworks.core.errors import LedgerUnavailable
from tokenworks.core.ids import FileID, TenantID
from tokenworks.gateway import files as module
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.http_limits import HTTPLimits
from tokenworks.live import file_room
from tokenworks.live.file_room import StoredFiles, StoredUpload
from tokenworks.live.sqlite import SQLiteDatabase

Run = Callable[[Coroutine[Any, Any, Any]], Any]
ACME, OTHER = TenantID("acme"), TenantID("other")
WHOLE = form(part("purpose", b"batch"), part("file", b'{"a": 1}\n', "in.jsonl"))


@pytest.fixture
def room(tmp_path: pathlib.Path) -> Iterator[StoredFiles]:
    made = StoredFiles(SQLiteDatabase(tmp_path / "batches.sqlite"), tmp_path / "files")
    yield made
    made.close()


def on_disk(tmp_path: pathlib.Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "files").iterdir())


@asynccontextmanager
async def sdk(room: StoredFiles | None) -> AsyncIterator[openai.AsyncOpenAI]:
    async with serving_gateway(Gateway(FakeDesk(), FakeClock(), files=room)) as server:
        url = f"http://{server.address[0]}:{server.address[1]}/v1"
        client = openai.AsyncOpenAI(base_url=url, api_key=SECRET.decode(), max_retries=0)
        async with client:
            yield client


async def put(client: openai.AsyncOpenAI, name: str, content: bytes, **more: Any) -> Any:
    return await client.files.create(file=(name, content), purpose="batch", **more)


def stored(
    name: str, tenant: TenantID = ACME, size: int = 1, expires_unix_ns: int = 9
) -> StoredFile:
    return StoredFile(
        id=FileID(name),
        tenant=tenant,
        name=name,
        purpose="batch",
        bytes=1,
        created_unix_ns=1,
        expires_unix_ns=expires_unix_ns,
    )


def test_openais_sdk_keeps_reads_lists_and_deletes(
    run: Run, room: StoredFiles, tmp_path: pathlib.Path
) -> None:
    content = bytes(range(256)) * 20_000  # several writes, and several reads

    async def go() -> None:
        async with sdk(room) as client:
            first = await put(client, "some/where/in.jsonl", content)
            assert (first.filename, first.bytes, first.purpose) == (
                "in.jsonl",
                len(content),
                "batch",
            )
            assert first.status == "processed"
            assert first.expires_at - first.created_at == 30 * 86_400
            after: Any = {"anchor": "created_at", "seconds": 3_600}
            second = await put(client, "two.jsonl", b"", expires_after=after)
            assert second.expires_at - second.created_at == 3_600
            assert await client.files.retrieve(first.id) == first
            assert (await client.files.content(first.id)).content == content
            assert (await client.files.content(second.id)).content == b""
            listed = [each.id async for each in client.files.list(limit=1)]
            assert listed == [second.id, first.id]
            assert [e.id async for e in client.files.list(order="asc")] == [first.id, second.id]
            assert not (await client.files.list(purpose="batch_output")).data
            assert on_disk(tmp_path) == sorted([first.id, second.id])
            assert (await client.files.delete(first.id)).deleted
            for gone in (client.files.retrieve(first.id), client.files.delete(first.id)):
                with pytest.raises(openai.NotFoundError, match="There is no file"):
                    await gone
            assert on_disk(tmp_path) == [second.id]

    run(go())


def test_what_a_tenant_keeps_no_other_sees(run: Run, room: StoredFiles) -> None:
    async def go() -> None:
        upload = room.begin(OTHER)
        await upload.write(b"x")
        await room.keep(upload, stored("file-theirs", OTHER))
        async with sdk(room) as client:
            assert not (await client.files.list()).data
            for name in ("file-theirs", "\x00", "..%2Fbatches.sqlite"):
                with pytest.raises(openai.NotFoundError):
                    await client.files.content(name)
                with pytest.raises(openai.NotFoundError):
                    await client.files.delete(name)
            assert not (await client.files.list(after="\x00")).data
        assert await room.read(FileID("file-theirs"), 0, 9) == b"x"

    run(go())


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([part("purpose", b"fine-tune"), part("file", b"x", "a")], "'batch': files are for"),
        ([part("purpose", b"batch"), part("file", b"x", "/")], "named by 1 to"),
        ([part("purpose", b"batch")], "no file in the field"),
        ([part("expires_after[seconds]", b"9")], "no file"),
        *(
            ([part("purpose", b"batch"), *after, part("file", b"x", "a")], "expires_after")
            for after in (
                [part("expires_after[seconds]", b"3600")],
                [part("expires_after[anchor]", b"created_at")],
                [
                    part("expires_after[anchor]", b"created_at"),
                    part("expires_after[seconds]", b"3599"),
                ],
                [
                    part("expires_after[anchor]", b"created_at"),
                    part("expires_after[seconds]", b"soon"),
                ],
            )
        ),
    ],
)
def test_what_is_no_file_for_a_batch_leaves_nothing(
    run: Run, room: StoredFiles, tmp_path: pathlib.Path, parts: list[bytes], said: str
) -> None:
    async def go() -> None:
        caller = await asked(room, form(*parts))
        assert caller.status == 400
        assert said in caller.json["error"]["message"]

    run(go())
    assert on_disk(tmp_path) == []
    assert not room._uploads.total()


async def asked(
    room: StoredFiles | None,
    body: bytes | list[bytes],
    limits: HTTPLimits | None = None,
    **headers: str,
) -> Caller:
    """An upload by a caller whose ends are both in the test's hands."""
    gateway = Gateway(FakeDesk(), FakeClock(), files=room)
    caller = Caller("POST", "/v1/files", body, {"content-type": TYPE.decode(), **headers})
    await caller.call(gateway, limits or HTTPLimits())
    await others()
    return caller


async def others() -> None:
    """Wait for what nobody else waits for."""
    while rest := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(rest)


def test_a_file_comes_in_a_form_and_may_come_in_chunks(run: Run, room: StoredFiles) -> None:
    async def go() -> None:
        caller = await asked(room, WHOLE, **{"content-type": "application/json"})
        assert (caller.status, "in a form" in caller.json["error"]["message"]) == (400, True)
        async with serving_gateway(Gateway(FakeDesk(), FakeClock(), files=room)) as server:
            await asyncio.to_thread(by_hand, *server.address)

    run(go())


def by_hand(host: str, port: int) -> None:
    connection = http.client.HTTPConnection(host, port)
    secret = {"authorization": f"Bearer {SECRET.decode()}"}

    def call(method: str, path: str, body: Any = None) -> tuple[Any, bytes]:
        kind = {} if body is None else {"content-type": TYPE.decode()}
        connection.request(method, path, body, {**secret, **kind})
        response = connection.getresponse()
        return response, response.read()

    response, said = call("POST", "/v1/files", (WHOLE[at : at + 7] for at in range(0, 400, 7)))
    file = json.loads(said)
    assert (response.status, file["bytes"]) == (200, 9), said
    response, said = call("GET", f"/v1/files/{file['id']}/content")
    assert said == b'{"a": 1}\n'
    assert "filename*=UTF-8''in.jsonl" in response.headers["content-disposition"]
    response, said = call("HEAD", f"/v1/files/{file['id']}/content")
    assert (response.status, said) == (200, b"")
    assert call("GET", f"/v1/files/{file['id']}/x")[0].status == 404
    for query in ("limit=0", "limit=x", "limit=10001", "order=up"):
        assert call("GET", f"/v1/files?{query}")[0].status == 400
    connection.close()


def test_bounds_of_a_file(
    run: Run, room: StoredFiles, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILE_BYTES_MAX", 8)
    monkeypatch.setattr(file_room, "FILES_MAX", 1)

    async def go() -> None:
        caller = await asked(room, WHOLE)
        assert (caller.status, caller.json["error"]["code"]) == (413, "request_too_large")
        monkeypatch.setattr(module, "FILE_BYTES_MAX", 9)
        assert (await asked(room, WHOLE)).status == 200
        caller = await asked(room, WHOLE)
        assert (caller.status, caller.json["error"]["code"]) == (429, "quota_exceeded")
        assert (await asked(None, WHOLE)).status == 404

    run(go())
    assert len(on_disk(tmp_path)) == 1


def test_only_so_many_files_come_at_once(
    run: Run, room: StoredFiles, tmp_path: pathlib.Path
) -> None:
    async def go() -> None:
        gateway = Gateway(FakeDesk(), FakeClock(), files=room)
        callers = [
            Caller("POST", "/v1/files", [WHOLE[:80], WHOLE[80:]], {"content-type": TYPE.decode()})
            for _ in range(file_room.UPLOADS_OF_TENANT_MAX)
        ]
        for caller in callers:
            caller.parts = caller.parts[:1]
            caller.begin(gateway)
        more = await asked(room, WHOLE)
        assert (more.status, more.headers["retry-after"]) == (429, "5")
        for caller in callers:  # who leaves makes room
            caller.hang_up()
        await others()
        assert on_disk(tmp_path) == []
        assert (await asked(room, WHOLE)).status == 200

    run(go())


def test_nothing_is_written_for_a_caller_who_has_left(
    run: Run, room: StoredFiles, tmp_path: pathlib.Path
) -> None:
    async def go() -> None:
        for begun in (False, True):
            upload = room.begin(ACME)
            if begun:
                await upload.write(b"x")
            await upload.drop()
            with pytest.raises(LedgerUnavailable, match="has left"):
                await upload.write(b"more")
            with pytest.raises(LedgerUnavailable, match="has left"):
                await room.keep(upload, stored("file-1"))
        gateway = Gateway(FakeDesk(), FakeClock(), files=room)
        caller = Caller("POST", "/v1/files", WHOLE, {"content-type": TYPE.decode()})
        caller.begin(gateway)
        assert caller.connection is not None
        caller.connection.eof_received()  # at once, before its file is looked at
        await others()
        assert room.database.query("SELECT id FROM files") == []

    run(go())
    assert on_disk(tmp_path) == []
    assert not room._uploads.total()


def test_a_form_without_a_boundary_takes_no_place(run: Run, room: StoredFiles) -> None:
    async def go() -> None:
        gateway = Gateway(FakeDesk(), FakeClock(), files=room)
        caller = Caller("POST", "/v1/files", WHOLE, {"content-type": "multipart/form-data"})
        caller.begin(gateway)
        await others()
        assert (caller.status, room._uploads.total()) == (400, 0)

    run(go())


def test_while_the_disk_is_busy_the_caller_waits(
    run: Run, room: StoredFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_BYTES", 64)
    content = bytes(range(256))
    body = form(part("purpose", b"batch"), part("file", content, "in.jsonl"))
    may_write = asyncio.Event()
    write = StoredUpload.write

    async def slowly(self: StoredUpload, data: bytes) -> None:
        await may_write.wait()
        await write(self, data)

    monkeypatch.setattr(StoredUpload, "write", slowly)

    async def go() -> None:
        gateway = Gateway(FakeDesk(), FakeClock(), files=room)
        caller = Caller("POST", "/v1/files", body, {"content-type": TYPE.decode()})
        caller.parts = [body[:240]]
        caller.begin(gateway)
        assert not caller.transport.reading
        assert caller.connection is not None
        caller.connection.data_received(body[240:260])  # was on its way already
        may_write.set()
        await others()
        assert caller.transport.reading
        caller.connection.data_received(body[260:])
        await others()
        assert caller.status == 200
        assert await room.read(caller.json["id"], 0, 999) == content

    run(go())


@pytest.mark.parametrize("write_bytes", [1, 1_000])
def test_a_disk_that_refuses_is_told(
    run: Run,
    room: StoredFiles,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    write_bytes: int,
) -> None:
    monkeypatch.setattr(module, "WRITE_BYTES", write_bytes)

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    async def go() -> None:
        monkeypatch.setattr(file_room.os, "write", full)
        gateway = Gateway(FakeDesk(), FakeClock(), files=room)
        caller = Caller("POST", "/v1/files", WHOLE, {"content-type": TYPE.decode()})
        caller.parts = [WHOLE[:-30]]
        caller.begin(gateway)
        await others()
        assert caller.connection is not None
        caller.connection.data_received(WHOLE[-30:])
        await others()
        assert (caller.status, caller.json["error"]["code"]) == (503, "ledger_unavailable")
        assert "No space left" in caller.json["error"]["message"]
        monkeypatch.undo()
        assert on_disk(tmp_path) == []

    run(go())


def test_files_leave_the_ledger_its_part_of_the_disk(
    run: Run, room: StoredFiles, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = os.statvfs(tmp_path)
    free = disk.f_bavail * disk.f_frsize

    async def go() -> None:
        monkeypatch.setattr(file_room, "FREE_BYTES_MIN", 2 * free)
        caller = await asked(room, WHOLE)
        assert (caller.status, caller.json["error"]["code"]) == (503, "ledger_unavailable")
        assert "but for what the ledger needs" in caller.json["error"]["message"]
        await others()
        assert on_disk(tmp_path) == []
        monkeypatch.setattr(file_room, "FREE_BYTES_MIN", 0)
        assert (await asked(room, WHOLE)).status == 200

    run(go())


def test_a_file_of_which_a_part_is_missing_is_not_kept(
    run: Run, room: StoredFiles, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_BYTES", 1)
    body = form(part("purpose", b"batch"), part("file", b"x" * 99, "in.jsonl"))
    write, failures = StoredUpload.write, [RuntimeError("can't start new thread")]

    async def once(self: StoredUpload, data: bytes) -> None:
        if failures:
            raise failures.pop()
        await write(self, data)

    monkeypatch.setattr(StoredUpload, "write", once)

    async def go() -> None:
        gateway = Gateway(FakeDesk(), FakeClock(), files=room)
        caller = Caller("POST", "/v1/files", body, {"content-type": TYPE.decode()})
        caller.parts = [body[:-40]]
        caller.begin(gateway)
        await others()
        assert not failures
        assert caller.connection is not None
        caller.connection.data_received(body[-40:])
        await others()
        assert (caller.status, caller.json["error"]["code"]) == (503, "ledger_unavailable")
        assert "can't start new thread" in caller.json["error"]["message"]

    run(go())
    assert on_disk(tmp_path) == []


def test_an_upload_that_stands_still_is_ended(
    run: Run, room: StoredFiles, tmp_path: pathlib.Path
) -> None:
    async def go() -> None:
        gateway = Gateway(FakeDesk(), FakeClock(), files=room)
        caller = Caller("POST", "/v1/files", WHOLE, {"content-type": TYPE.decode()})
        caller.parts = [WHOLE[:90]]
        caller.begin(gateway)
        assert caller.connection is not None
        caller.connection.sweep(HTTPLimits().body_s_max)
        await others()
        assert caller.status == 408
        assert on_disk(tmp_path) == []
        assert not room._uploads.total()

    run(go())


def test_a_reader_that_is_slow_or_leaves_holds_nothing(
    run: Run, room: StoredFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_BYTES", 4)

    async def go() -> None:
        sent = await asked(room, WHOLE)
        gateway = Gateway(FakeDesk(), FakeClock(), files=room)
        path = f"/v1/files/{sent.json['id']}/content"
        for leaves in (False, True):
            caller = Caller("GET", path)
            paused = asyncio.Event()

            def slow(count: int, caller: Caller = caller, paused: asyncio.Event = paused) -> None:
                if count == 0:
                    caller.stop_reading()
                    paused.set()

            caller.on_write = slow
            caller.begin(gateway)
            await paused.wait()
            assert len(caller.transport.writes) == 1
            if leaves:
                caller.hang_up()
            else:
                caller.read_again()
            await others()
            assert (caller.body == b'{"a": 1}\n') is not leaves
        file = await room.get(ACME, sent.json["id"])
        assert file is not None
        await room.delete(ACME, file.id)
        with pytest.raises(Exception, match="is gone"):
            await room.read(file.id, 0, 1)

    run(go())


def test_sweeping_forgets_what_is_old_or_nobodys(
    run: Run, room: StoredFiles, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        for name, expires in (("file-old", 9), ("file-new", 11), ("file-read", 9)):
            upload = room.begin(ACME)
            await upload.write(b"x")
            await room.keep(upload, stored(name, expires_unix_ns=expires))
        with room.database.writing():
            room.database.change("INSERT INTO read_files VALUES ('file-read', 'b')")
        (tmp_path / "files" / "1-2-3.part").write_bytes(b"of a process that died")
        with pytest.raises(Exception, match="A batch that has not ended reads"):
            await room.delete(ACME, FileID("file-read"))
        await room.run(lambda: room.sweep(10))
        assert on_disk(tmp_path) == ["1-2-3.part", "file-new", "file-read"]
        monkeypatch.setattr(file_room, "ORPHAN_S", -60.0)
        await room.run(lambda: room.sweep(10))
        assert on_disk(tmp_path) == ["file-new", "file-read"]

    run(go())


def test_sweeping_goes_on_where_a_file_is_renamed_meanwhile(
    run: Run, room: StoredFiles, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1-1-1.part", "1-1-2.part"):
        (tmp_path / "files" / name).write_bytes(b"x")
    scandir = os.scandir

    @contextmanager
    def listed(folder: pathlib.Path) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
            (folder / "1-1-1.part").rename(folder / "file-1")  # its upload has ended
            yield entries

    monkeypatch.setattr(file_room.os, "scandir", listed)
    monkeypatch.setattr(file_room, "ORPHAN_S", -60.0)
    run(room.run(lambda: room.sweep(10)))
    monkeypatch.undo()
    assert on_disk(tmp_path) == ["file-1"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "files").write_text("a file")
    database = SQLiteDatabase(tmp_path / "batches.sqlite")
    with pytest.raises(LedgerUnavailable, match="files"):
        StoredFiles(database, tmp_path / "files")
    database.close()
