"""The doctor finds each planted fault, and says how to mend it."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import resource
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tests.cli.command_line import done, fill, invoke
from tokenworks.cli import doctor
from tokenworks.cli.wiring import many_files
from tokenworks.core.units import NS_PER_S
from tokenworks.live import home as home_module
from tokenworks.live.clock import SystemClock
from tokenworks.live.home import Home, packaged

SETTINGS = packaged("factory.toml").read_text()


@pytest.fixture(autouse=True)
def _a_healthy_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, home: Home) -> None:
    """Weights that are whole, and a port that is free, whatever this machine has."""
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    for name in ("laptop.toml", "factory.toml"):
        shutil.copy(packaged(name), shipped)
    (shipped / "foreman-q8_0.gguf").write_text("abc")
    (shipped / "foreman.json").write_text(
        '{"sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",'
        '"context_tokens": 2048, "curve": [[1, 100]]}'
    )
    monkeypatch.setattr(home_module, "packaged", lambda name: shipped / name)
    monkeypatch.setattr(doctor, "ANSWER_S_MAX", 60)  # the machine may be busy
    monkeypatch.setattr(doctor, "FILES_MIN", 16)
    monkeypatch.setattr(doctor, "DISK_BYTES_MIN", 1)
    home.make()
    home.settings.write_text(SETTINGS.replace("port = 8000", "port = 0"))


def findings(home: Home) -> dict[str, dict[str, Any]]:
    result = invoke(home, "doctor", "--json")
    rows = json.loads(result.stdout)
    assert result.exit_code == (0 if all(row["ok"] for row in rows) else 1)
    assert all(row["mend"] for row in rows if not row["ok"])
    return {row["check"]: row for row in rows}


def fault(home: Home, check: str) -> dict[str, Any]:
    """The one thing that is wrong."""
    wrong = [row for row in findings(home).values() if not row["ok"]]
    assert [row["check"] for row in wrong] == [check]
    return wrong[0]


def test_a_healthy_machine_passes(home: Home) -> None:
    assert all(row["ok"] for row in findings(home).values())
    fill(home)
    found = findings(home)
    assert "0 open holds" in found["ledger"]["found"]
    assert "0 open holds" in found["ledger"]["found"]
    assert found["weights"]["found"] == "foreman-q8_0.gguf, checked"
    assert "no" not in {line.split()[1] for line in done(home, "doctor").splitlines()[2:]}


def test_a_folder_that_is_not_there_is_not_made(home: Home) -> None:
    shutil.rmtree(home.path)
    rows = findings(home)
    assert rows["folder"]["ok"]
    assert rows["disk"]["ok"]
    assert not home.path.exists()


def test_the_settings_that_ship_are_printed(home: Home) -> None:
    assert done(home, "doctor", "--settings") == SETTINGS


def test_wrong_settings(home: Home) -> None:
    home.settings.write_text("[pool.x]\nengine = 'imagined'\nmodel = 'm'\n")
    rows = findings(home)
    for check in ("settings", "price book", "weights", "port"):
        assert not rows[check]["ok"]
        assert "imagined" in rows[check]["found"]


def test_a_model_without_a_price(home: Home) -> None:
    home.settings.write_text(
        "[gateway]\nport = 0\n[pool.x]\nengine = 'attached'\nmodel = 'm'\nurls = ['http://h:1']\n"
    )
    rows = findings(home)
    assert "which has no price" in rows["price book"]["found"]
    assert rows["weights"]["found"] == "no embedded pool"


def test_a_wrong_price_book(home: Home) -> None:
    home.price_book.write_text("name = 1")
    assert "cannot be read" in fault(home, "price book")["found"]


def test_a_taken_port(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        home.settings.write_text(SETTINGS.replace("port = 8000", f"port = {port}"))
        assert f"127.0.0.1:{port} cannot be used" in fault(home, "port")["found"]


def test_damaged_weights(home: Home) -> None:
    home_module.packaged("foreman-q8_0.gguf").write_text("abd")
    assert "not the ones that were shipped" in fault(home, "weights")["found"]


def test_a_cache_too_small_for_its_slots(home: Home) -> None:
    text = home.settings.read_text().replace("16384", "4096")
    home.settings.write_text(text)
    assert "slots of foreman can fill 16384" in fault(home, "weights")["found"]


def test_a_second_pools_weights_are_looked_at_too(home: Home, tmp_path: pathlib.Path) -> None:
    more = "[pool.second]\nengine = 'embedded'\nmodel = 'foreman'\npath = '{}'\n"
    path = tmp_path / "mine.gguf"
    home.settings.write_text(home.settings.read_text() + more.format(path))
    assert "There is no model file" in fault(home, "weights")["found"]
    path.write_text("")
    assert findings(home)["weights"]["found"].endswith("mine.gguf, found")


def test_a_folder_that_others_can_read(home: Home) -> None:
    home.path.chmod(0o755)
    assert fault(home, "folder")["mend"] == f"chmod 700 {home.path}"


def test_a_corrupt_ledger(home: Home) -> None:
    home.ledger.write_bytes(b"no database at all" * 100)
    assert "not a readable ledger" in fault(home, "ledger")["found"]


def test_a_ledger_that_was_written_by_a_clock_ahead(home: Home) -> None:
    with closing(home.open_ledger()) as store:
        store.alive(SystemClock().unix_ns())
    assert findings(home)["ledger"]["ok"]
    with closing(home.open_ledger()) as store:
        store.alive(SystemClock().unix_ns() + 400 * NS_PER_S)
    row = fault(home, "ledger")
    assert "after this machine's clock" in row["found"]
    assert "no quota's hour" in row["mend"]


def test_a_ledger_whose_sums_are_wrong(home: Home) -> None:
    import sqlite3
    from contextlib import closing

    fill(home)
    with closing(sqlite3.connect(home.ledger)) as connection, connection:
        connection.execute("DROP TRIGGER blocks_are_never_edited")
        connection.execute(
            "UPDATE blocks SET payload = CAST(replace(CAST(payload AS TEXT), "
            "'\"done\"', '\"failed\"') AS BLOB)"
        )
    assert "was changed" in fault(home, "ledger")["found"]
    assert "ledger verify" in fault(home, "ledger")["mend"]


def test_a_report_that_does_not_follow_from_the_entries(home: Home) -> None:
    import sqlite3
    from contextlib import closing

    fill(home)
    with closing(sqlite3.connect(home.ledger)) as connection, connection:
        connection.execute("UPDATE hours SET charged_nanodollars = charged_nanodollars + 1")
    assert "sums of" in fault(home, "ledger")["found"]


def test_a_damaged_curve(home: Home) -> None:
    home.curves.write_text("[]")
    assert "curves.json" in fault(home, "speed curve")["found"]
    home.curves.write_text('{"laptop": [[1, 5]]}')
    assert findings(home)["speed curve"]["found"] == "measured here"


def test_a_file_that_cannot_be_looked_at(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Home) -> str:
        raise PermissionError(13, "Permission denied", "ledger.sqlite")

    monkeypatch.setitem(doctor.CHECKS, "ledger", refuse)
    assert "Permission denied" in fault(home, "ledger")["found"]


def test_a_small_machine(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "FILES_MIN", 1 << 40)
    monkeypatch.setattr("resource.getrlimit", lambda _: (1_024, 4_096))
    monkeypatch.setattr(doctor, "DISK_BYTES_MIN", 1 << 60)
    rows = findings(home)
    assert (rows["open files"]["found"], rows["open files"]["mend"]) == (
        "4096 open files allowed",
        "ulimit -Hn 65536",
    )
    assert "MB free" in rows["disk"]["found"]


def test_an_engine_that_is_missing_or_another(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.1")
    assert fault(home, "engine")["found"] == "xllamacpp 0.1"
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: None)
    assert "pip install" in fault(home, "engine")["mend"]


def test_a_processor_without_avx2(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    read = pathlib.Path.read_text
    monkeypatch.setattr(
        pathlib.Path,
        "read_text",
        lambda path, *a, **k: " sse4 " if path.name == "cpuinfo" else read(path, *a, **k),
    )
    monkeypatch.setattr(pathlib.Path, "exists", lambda path: path.is_file() or path.is_dir())
    if pathlib.Path("/proc/cpuinfo").is_file():
        assert "AVX2" in fault(home, "processor")["found"]


# A factory that runs, and one that was killed.


@pytest.fixture
def factory() -> Iterator[dict[str, Any]]:
    """Something that listens: ``factory["says"]`` is the status and body of its /healthz."""
    made: dict[str, Any] = {"says": (200, b'{"status": "ok", "detail": "2 of 2 workers are up"}')}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = made["says"]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    made["port"] = server.server_address[1]
    made["url"] = f"http://127.0.0.1:{made['port']}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_factory_that_answers(home: Home, factory: dict[str, Any]) -> None:
    home.url.write_text(factory["url"])
    assert "2 of 2 workers are up" in findings(home)["port"]["found"]


def test_a_factory_that_cannot_serve(home: Home, factory: dict[str, Any]) -> None:
    home.url.write_text(factory["url"])
    factory["says"] = (503, b'{"status": "unavailable", "detail": "the disk is full"}')
    assert "cannot serve: the disk is full" in fault(home, "port")["found"]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}"])
def test_somebody_else_at_the_factorys_address(
    home: Home, factory: dict[str, Any], body: bytes
) -> None:
    home.url.write_text(factory["url"])
    factory["says"] = (200, body)
    found = findings(home)["port"]
    assert found["ok"]
    assert "was killed" in found["found"]
    home.settings.write_text(SETTINGS.replace("port = 8000", f"port = {factory['port']}"))
    assert "cannot be used" in fault(home, "port")["found"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:abc", "http://[", "nonsense"])
def test_an_address_that_is_none(home: Home, url: str) -> None:
    home.url.write_text(url)
    assert f"(the factory at {url} was killed)" in findings(home)["port"]["found"]


def test_a_factory_that_was_killed(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    home.url.write_text(f"http://127.0.0.1:{port}")
    found = findings(home)["port"]
    assert found["ok"]
    assert f"(the factory at http://127.0.0.1:{port} was killed)" in found["found"]


def test_a_machine_without_a_limit(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1_024, resource.RLIM_INFINITY))
    assert findings(home)["open files"]["found"].startswith("any number")


@pytest.mark.parametrize(
    ("limits", "set_to"),
    [
        ((1_024, 4_096), [(4_096, 4_096)]),
        ((4_096, 4_096), []),
        ((1_024, resource.RLIM_INFINITY), [(1 << 17, resource.RLIM_INFINITY)]),
        ((1 << 20, 1 << 20), []),
    ],
)
def test_a_factory_opens_as_many_files_as_it_may(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], set_to: list[tuple[int, int]]
) -> None:
    done: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda _: limits)
    monkeypatch.setattr("resource.setrlimit", lambda _, given: done.append(given))
    many_files()
    assert done == set_to
