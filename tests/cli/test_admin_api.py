"""The admin API of a factory that runs: what is changed is soon in force."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from tests.cli.command_line import READY_S_MAX, ask, data, done, invoke
from tokenworks.live.home import Home, packaged

FORCE_S_MAX = 60
"""How long a test waits for what should be in force at once; a busy machine may take its time."""


def call(home: Home, secret: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
    host = (home.read_url() or "").removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=READY_S_MAX)
    raw = None if body is None else json.dumps(body)
    connection.request(method, path, raw, {"Authorization": f"Bearer {secret}"})
    with connection.getresponse() as response:
        said = json.loads(response.read())
        status = response.status
    connection.close()
    return status, said


def manage(home: Home, secret: str, method: str, path: str, body: object = None) -> Any:
    status, said = call(home, secret, method, f"/admin/v1/{path}", body)
    assert status in (200, 201), said
    return said


def until(home: Home, secret: str, status: int) -> None:
    """Wait until ``GET /v1/models`` answers a key with a status."""
    deadline = time.monotonic() + FORCE_S_MAX
    while call(home, secret, "GET", "/v1/models")[0] != status:
        assert time.monotonic() < deadline


def test_a_factory_is_managed_while_it_serves(
    attached: Home, when_ready: Callable[..., list[Any]]
) -> None:
    chief = data(attached, "key", "create", "--role", "factory-admin", "--name", "chief")

    def act() -> Any:
        def done_by_chief(method: str, path: str, body: object = None) -> Any:
            return manage(attached, chief["secret"], method, path, body)

        made = done_by_chief("POST", "keys", {"tenant": "acme", "roles": ["admin"]})
        secret = made["secret"]
        until(attached, secret, 200)
        mine = manage(attached, secret, "GET", "keys")
        rotated = manage(attached, secret, "POST", f"keys/{made['key']}/rotate", {"overlap": "0m"})
        until(attached, secret, 401)
        text = packaged("laptop.toml").read_text() + "\n# dearer\n"
        day = time.strftime("%Y-%m-%d", time.gmtime())
        text = "\n".join(
            f"effective = {day}" if line.startswith("effective") else line
            for line in text.split("\n")
        )
        book = done_by_chief("POST", "prices", {"text": text})["book"]
        done_by_chief("POST", f"prices/{book}/activate", {"version": 0})
        ask(attached)
        done_by_chief("DELETE", "tenants/acme")
        until(attached, rotated["secret"], 401)
        refused = call(attached, rotated["secret"], "GET", "/admin/v1/me")
        operators = call(attached, attached.read_key() or "", "GET", "/admin/v1/me")
        deadline = time.monotonic() + FORCE_S_MAX
        with closing(attached.open_ledger()) as store:
            while book not in store.price_ids():
                assert time.monotonic() < deadline
        return mine, refused, operators, book

    results = when_ready(attached, act)
    assert invoke(attached, "up", "--quiet").exit_code == 0
    (found,) = results
    assert not isinstance(found, Exception), found
    mine, refused, operators, book = found
    assert [row["tenant"] for row in mine["data"]] == ["acme"]
    assert (refused[0], operators[0]) == (401, 403)
    assert book in data(attached, "prices", "list")["book"]
    log = data(attached, "audit", "list")
    assert [each["action"] for each in log[:4]] == [
        *("tenant.close", "book.activate", "book.propose", "key.rotate")
    ]
    assert data(attached, "audit", "verify")["records"] == log[0]["seq"]
    assert log[0]["by"]["id"] == chief["key"]


@pytest.mark.parametrize(
    ("setting", "host", "status"),
    [("local", "0.0.0.0", 404), ("off", "127.0.0.1", 404), ("on", "0.0.0.0", 200)],
)
def test_where_the_admin_api_is(
    attached: Home, when_ready: Callable[..., list[Any]], setting: str, host: str, status: int
) -> None:
    text = attached.settings.read_text()
    told = f"[gateway]\nhost = '{host}'\nadmin = '{setting}'"
    attached.settings.write_text(text.replace("[gateway]", told))
    secret = data(attached, "key", "create", "--role", "admin")["secret"]

    def act() -> Any:
        attached.write_private(attached.url, (attached.read_url() or "").replace(host, "127.0.0.1"))
        return call(attached, secret, "GET", "/admin/v1/me")

    results = when_ready(attached, act)
    assert invoke(attached, "up", "--quiet").exit_code == 0
    assert results[0][0] == status, results


def test_a_setting_that_is_none(attached: Home) -> None:
    text = attached.settings.read_text()
    attached.settings.write_text(text.replace("[gateway]", "[gateway]\nadmin = 'maybe'"))
    assert "maybe" in str(invoke(attached, "up").exception)
    assert done(attached, "--help")
