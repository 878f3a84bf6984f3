"""What tenants leave for later, on either database and on the tests' own shelf."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.fake_desk import FakeShelf
from tokenworks.core.errors import QuotaExceeded
from tokenworks.core.ids import TenantID
from tokenworks.core.ports import Shelf, Shelved
from tokenworks.live import shelf as module
from tokenworks.live.postgres import PostgresDatabase
from tokenworks.live.shelf import DatabaseShelf
from tokenworks.live.sqlite import SQLiteDatabase

Run = Callable[[Coroutine[Any, Any, Any]], Any]
ACME, OTHER = TenantID("acme"), TenantID("other")


@pytest.fixture(params=["sqlite", "postgres", "fake"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelf]:
    if request.param == "fake":
        yield FakeShelf()
        return
    database: SQLiteDatabase | PostgresDatabase
    if request.param == "sqlite":
        database = SQLiteDatabase(tmp_path / "shelf.sqlite")
    else:
        server = request.getfixturevalue("postgres")
        database = PostgresDatabase(server.create())
    found = DatabaseShelf(database)
    yield found
    found.close()


def item(n: int, data: bytes = b"x") -> Shelved:
    return Shelved(id=f"i{n}", unix_ns=n, data=data)


def test_what_is_put_is_there_for_its_tenant_alone(run: Run, shelf: Shelf) -> None:
    async def go() -> None:
        await shelf.put(ACME, "a", item(1, b"one\x00"))
        assert await shelf.get(ACME, "a", "i1") == item(1, b"one\x00")
        for tenant, kind, item_id in ((OTHER, "a", "i1"), (ACME, "b", "i1"), (ACME, "a", "i2")):
            assert await shelf.get(tenant, kind, item_id) is None
            assert not await shelf.delete(tenant, kind, item_id)
        await shelf.put(ACME, "a", Shelved(id="i1", unix_ns=9, data=b"two"))
        assert await shelf.get(ACME, "a", "i1") == item(1, b"two")
        assert await shelf.delete(ACME, "a", "i1")
        assert await shelf.get(ACME, "a", "i1") is None

    run(go())


def test_an_id_that_can_be_no_ones_is_not_there(run: Run, shelf: Shelf) -> None:
    async def go() -> None:
        for item_id in ("\x00", "i\x001", "\N{REPLACEMENT CHARACTER}", "i" * 8_000):
            assert await shelf.get(ACME, "a", item_id) is None
            assert not await shelf.delete(ACME, "a", item_id)
            assert await shelf.page(ACME, "a", after=item_id, limit=1, newest_first=True) == []

    run(go())


def test_pages(run: Run, shelf: Shelf) -> None:
    async def ids(after: str | None, newest_first: bool, limit: int = 2) -> list[str]:
        found = await shelf.page(ACME, "a", after=after, limit=limit, newest_first=newest_first)
        return [each.id for each in found]

    async def go() -> None:
        assert await ids(None, True) == []
        for n in range(5):
            await shelf.put(ACME, "a", item(n))
        await shelf.put(ACME, "b", item(9))
        await shelf.put(OTHER, "a", item(8))
        assert await ids(None, True) == ["i4", "i3"]
        assert await ids("i3", True) == ["i2", "i1"]
        assert await ids("i0", True) == []
        assert await ids(None, False, 9) == ["i0", "i1", "i2", "i3", "i4"]
        assert await ids("i3", False) == ["i4"]
        assert await ids("nobody", True) == await ids("nobody", False) == []
        await shelf.delete(ACME, "a", "i4")
        await shelf.put(ACME, "a", item(5))
        assert await ids(None, True) == ["i5", "i3"]

    run(go())


def database_shelf(tmp_path: Path) -> DatabaseShelf:
    return DatabaseShelf(SQLiteDatabase(tmp_path / "shelf.sqlite"))


@pytest.mark.parametrize(("name", "most"), [("ITEMS_MAX", 3), ("BYTES_MAX", 30)])
def test_a_tenant_may_not_keep_everything(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    monkeypatch.setattr(module, name, most)
    shelf = database_shelf(tmp_path)

    async def go() -> None:
        for n in range(3):
            await shelf.put(ACME, "a", item(n, b"0123456789"))
        with pytest.raises(QuotaExceeded, match="keeps 3 of a with 30 bytes"):
            await shelf.put(ACME, "a", item(3))
        await shelf.put(ACME, "a", item(2, b"again"))
        await shelf.put(OTHER, "a", item(3))

    run(go())


def test_what_is_too_old_is_swept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEEP_EVERY", 2)
    shelf = database_shelf(tmp_path)

    async def go() -> None:
        await shelf.put(ACME, "a", item(1))
        await shelf.put(ACME, "a", item(2))
        late = Shelved(id="late", unix_ns=module.KEPT_NS + 2, data=b"")
        await shelf.put(ACME, "a", late)
        assert await shelf.get(ACME, "a", "i1") is None
        assert await shelf.get(ACME, "a", "i2") is not None

    run(go())


def test_it_outlives_its_process(run: Run, tmp_path: Path) -> None:
    shelf = database_shelf(tmp_path)
    run(shelf.put(ACME, "a", item(1)))
    shelf.close()
    assert run(database_shelf(tmp_path).get(ACME, "a", "i1")) == item(1)
