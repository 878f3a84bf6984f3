"""``tokenworks batch``: what an operator sees of batches, and can end."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

from tests.cli.command_line import data, done, invoke
from tokenworks.core.batches import Batch, BatchStatus, StoredFile, moved
from tokenworks.core.errors import InvalidRequest, NotFound
from tokenworks.core.ids import BatchID, FileID, KeyID, TenantID
from tokenworks.live.home import Home


def begin(home: Home, name: str, tenant: str, text: bytes = b"") -> None:
    room = home.open_batches()
    mine, file = TenantID(tenant), FileID(f"file-{name}")
    batch = Batch(
        id=BatchID(f"batch_{name}"),
        tenant=mine,
        key=KeyID("k"),
        endpoint="/v1/chat/completions",
        input_file=file,
        metadata={},
        status=BatchStatus.VALIDATING,
        at={BatchStatus.VALIDATING: 1_700_000_000_000_000_000},
        expires_unix_ns=1_700_086_400_000_000_000,
    )

    async def put() -> None:
        upload = room.files.begin(mine)
        await upload.write(text)
        stored = StoredFile(
            id=file,
            tenant=mine,
            name="in.jsonl",
            purpose="batch",
            bytes=len(text),
            created_unix_ns=1,
            expires_unix_ns=2,
        )
        await room.files.keep(upload, stored)
        await room.create(batch)

    asyncio.run(put())
    room.close()


def test_batches_are_listed_shown_and_cancelled(home: Home) -> None:
    assert "There are no batches." in done(home, "batch", "list")
    begin(home, "a", "acme")
    begin(home, "b", "other")
    rows = data(home, "batch", "list")
    assert [(row["batch"], row["tenant"]) for row in rows] == [
        ("batch_b", "other"),
        ("batch_a", "acme"),
    ]
    (row,) = data(home, "batch", "list", "--tenant", "acme")
    assert (row["status"], row["total"]) == ("validating", 0)
    assert "batch_b" in done(home, "batch", "list", "--limit", "1")
    shown = json.loads(done(home, "batch", "show", "batch_a"))
    assert (shown["id"], shown["tenant"], shown["key"]) == ("batch_a", "acme", "k")
    assert json.loads(done(home, "batch", "cancel", "batch_a"))["status"] == "cancelling"
    assert isinstance(invoke(home, "batch", "show", "batch_x").exception, NotFound)
    room = home.open_batches()
    ended = asyncio.run(room.get(TenantID("acme"), BatchID("batch_a")))
    assert ended is not None
    asyncio.run(room.end(moved(ended, BatchStatus.CANCELLED, 0)))
    room.close()
    assert isinstance(invoke(home, "batch", "cancel", "batch_a").exception, InvalidRequest)


def test_a_copy_has_the_batches_and_what_they_read(home: Home, tmp_path: Path) -> None:
    copy, words = tmp_path / "copy", ("batch", "backup", str(tmp_path / "copy"))
    refused = invoke(home, *words).exception
    assert isinstance(refused, InvalidRequest)
    assert "no batches" in str(refused)
    home.make()
    begin(home, "a", "acme", b"{}\n")
    begin(home, "gone", "acme")
    (home.path / "files" / "file-gone").unlink()
    (row,) = data(home, *words)
    assert row == {"folder": str(copy), "files": 1, "missing": 1}
    assert "not empty" in str(invoke(home, *words).exception)
    below = copy / "batches.sqlite" / "copy"
    unusable = invoke(home, "batch", "backup", str(below)).exception
    assert isinstance(unusable, InvalidRequest)
    assert "cannot be used: Not a directory" in str(unusable)
    restored = Home(copy)
    assert [row["batch"] for row in data(restored, "batch", "list")] == ["batch_gone", "batch_a"]
    room = restored.open_batches()
    assert asyncio.run(room.files.read(FileID("file-a"), 0, 10)) == b"{}\n"
    room.close()
    modes = {path.stat().st_mode & 0o77 for path in copy.rglob("*") if path.name != "batches.lock"}
    assert modes == {0}


def test_a_copy_takes_the_place_of_what_a_killed_factory_left(home: Home, tmp_path: Path) -> None:
    home.make()
    begin(home, "kept", "acme")
    done(home, "batch", "backup", str(tmp_path / "copy"))
    room = home.open_batches()  # an open one keeps its last commits beside the database, as
    begin(home, "since", "acme")  # one that is killed leaves them
    left = Home(shutil.copytree(home.path, tmp_path / "left"))
    room.close()
    assert (left.path / "batches.sqlite-wal").stat().st_size > 0
    for path in left.path.glob("batches.sqlite*"):
        path.unlink()
    shutil.copy(tmp_path / "copy" / "batches.sqlite", left.path)
    assert [row["batch"] for row in data(left, "batch", "list")] == ["batch_kept"]
