"""The whole factory in this process, with a fake server attached instead of an engine."""

from __future__ import annotations

import gc
import http.client
import json
import resource
from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.command_line import ask, data, done, invoke
from tests.cli.conftest import Elsewhere
from tokenworks.cli import wiring
from tokenworks.cli.wiring import FILES_MAX
from tokenworks.core.errors import ConfigInvalid, LedgerCorrupt, LedgerUnavailable
from tokenworks.gateway.http_limits import LIMITS, fitting
from tokenworks.gateway.server import GatewayServer
from tokenworks.live.home import Home, packaged
from tokenworks.live.store import sqlite_store


def test_a_factory_starts_serves_and_stops(
    attached: Home, when_ready: Callable[..., list[Any]]
) -> None:
    results = when_ready(attached, lambda: ask(attached))
    result = invoke(attached, "up")
    assert result.exit_code == 0, result.exception
    assert "The factory is running." in result.stdout
    assert f"curl -sN http://127.0.0.1:" in result.stdout  # noqa: F541
    assert "The factory has stopped" in result.stderr
    (said,) = results
    assert said["choices"][0]["message"]["content"] == "Hello."
    assert not attached.url.exists()
    (row,) = data(attached, "key", "list")
    assert (row["name"], row["tenant"]) == ("operator", "local")
    assert row["used_tokens"] == said["usage"]["total_tokens"]
    assert data(attached, "journal", "replay")[0]["identical"]
    total = data(attached, "report")["rows"][-1]
    assert total["requests"] == 1
    assert total["revenue_nanodollars"] == row["used_nanodollars"] > 0


def test_a_running_factory_seldom_searches_for_cycles(
    attached: Home, when_ready: Callable[..., list[Any]]
) -> None:
    before = gc.get_threshold()
    results = when_ready(attached, lambda: (gc.get_threshold(), gc.get_freeze_count() > 0))
    assert invoke(attached, "up", "--quiet").exit_code == 0
    assert results == [(wiring.GC_THRESHOLDS, True)]
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)


def callers_let_in(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many callers each factory lets in at once, when it has begun to serve."""
    seen, serve = list[int](), GatewayServer.serve

    def serving(server: GatewayServer, application: Any) -> Any:
        seen.append(server.limits.connections_max)
        return serve(server, application)

    monkeypatch.setattr(GatewayServer, "serve", serving)
    return seen


def test_a_factory_may_open_as_many_files_as_the_system_allows(
    attached: Home, when_ready: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = callers_let_in(monkeypatch)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        results = when_ready(attached, lambda: resource.getrlimit(resource.RLIMIT_NOFILE))
        assert invoke(attached, "up", "--quiet").exit_code == 0
        most = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
        assert results == [(most, hard)]
        assert seen == [fitting(LIMITS, most).connections_max]  # not what fits into 512
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("files", "callers"), [(160, 51), (resource.RLIM_INFINITY, 12_000)])
def test_a_factory_lets_in_as_many_callers_as_its_files_serve(
    attached: Home,
    when_ready: Callable[..., list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    files: int,
    callers: int,
) -> None:
    seen = callers_let_in(monkeypatch)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    when_ready(attached, lambda: None)
    assert invoke(attached, "up", "--quiet").exit_code == 0
    assert seen == [callers]


def test_a_second_start_keeps_the_key_and_says_one_line_of_json(
    attached: Home, when_ready: Callable[..., list[Any]]
) -> None:
    attached.url.write_text("http://127.0.0.1:1\n")  # of a factory that was killed
    attached.write_private(attached.key, "tw_of_another_ledger\n")
    secrets = []
    for _ in range(2):
        when_ready(attached, lambda: None)
        facts = json.loads(invoke(attached, "up", "--json", "--host", "127.0.0.1").stdout)
        assert facts["ready"] is True
        assert facts["models"] == ["foreman"]
        assert facts["url"].startswith("http://127.0.0.1:")
        secrets.append(facts["key"])
    assert secrets[0] == secrets[1] == attached.read_key() != "tw_of_another_ledger"
    done(attached, "key", "revoke", data(attached, "key", "list")[0]["key"])
    when_ready(attached, lambda: None)
    assert invoke(attached, "up", "--quiet").stdout == ""
    assert attached.read_key() not in secrets  # a revoked key of the operator's is replaced


def test_a_second_factory_leaves_the_first_ones_address_alone(attached: Home) -> None:
    first = sqlite_store(attached.ledger, sole=True)
    attached.url.write_text("http://127.0.0.1:1\n")
    result = invoke(attached, "up")
    assert isinstance(result.exception, LedgerUnavailable)
    assert attached.url.exists()
    first.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("[gateway]\nport = 0\n[pool.x]\nengine='embedded'\nmodel='m'\n", "no price"),
        ("[pool.x]\nengine='embedded'\nmodel='foreman'\npath='no'\n", "There is no model file"),
        ("[pool.x]\nengine='embedded'\nmodel='foreman'\nslots=64\n", "slots of foreman can fill"),
        ("[pool.x]\nengine='attached'\nmodel='foreman'\nurls=['ftp://x']\n", "ftp"),
        (
            "[pool.x]\nengine='attached'\nmodel='foreman'\nurls=['http://h:1']\nkey_env='NO_KEY'\n",
            "key_env names the environment variable 'NO_KEY', which is not set",
        ),
    ],
)
def test_what_cannot_start_says_why_and_leaves_nothing_open(
    home: Home, settings: str, said: str
) -> None:
    home.make()
    home.settings.write_text(settings)
    result = invoke(home, "up", "--port", "0")
    assert isinstance(result.exception, ConfigInvalid)
    assert said in str(result.exception)
    if home.ledger.exists():
        sqlite_store(home.ledger, sole=True).close()  # it is free again


def test_a_corrupt_ledger_stops_the_start(attached: Home) -> None:
    attached.ledger.write_bytes(b"no database" * 100)
    assert isinstance(invoke(attached, "up").exception, LedgerCorrupt)


def test_a_key_for_attached_servers_comes_from_the_environment(
    attached: Home,
    elsewhere: Elsewhere,
    when_ready: Callable[..., list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAR_KEY", "far secret".replace(" ", "-"))
    elsewhere.worker.api_key = "far-secret"
    attached.settings.write_text(attached.settings.read_text() + "key_env = 'FAR_KEY'\n")
    results = when_ready(attached, lambda: ask(attached))
    assert invoke(attached, "up").exit_code == 0
    assert results[0]["choices"][0]["message"]["content"] == "Hello."


def test_what_breaks_a_part_of_the_factory_stops_all_of_it(
    attached: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: object) -> None:
        raise RuntimeError("a bug in housekeeping")

    monkeypatch.setattr(wiring.Driver, "housekeep", broken)
    result = invoke(attached, "up")
    assert isinstance(result.exception, RuntimeError)
    assert not attached.url.exists()
    sqlite_store(attached.ledger, sole=True).close()


def test_measured_curves_come_before_shipped_ones(home: Home) -> None:
    pool = home.load_settings().pool["laptop"]
    assert wiring.curve_of("laptop", pool, {"laptop": ((1, 5),)}) == ((1, 5),)
    if packaged("foreman.json").exists():
        assert wiring.curve_of("laptop", pool, {})[0][0] == 1


@pytest.mark.parametrize(
    ("gateway", "ledger", "status"),
    [
        ("", "[ledger]\npath = '{home}/common.sqlite'\n", 200),
        ("share_port = true\n", "", 404),  # the next request may find another factory
        ("share_port = true\n", "[ledger]\npath = '{home}/common.sqlite'\n", 200),
    ],
)
def test_files_are_kept_where_all_that_share_a_port_find_them(
    attached: Home, when_ready: Callable[..., list[Any]], gateway: str, ledger: str, status: int
) -> None:
    text = attached.settings.read_text().replace("[gateway]\n", f"[gateway]\n{gateway}")
    attached.settings.write_text(text + ledger.format(home=attached.path.parent))

    def list_files() -> int:
        url, key = attached.read_url(), attached.read_key()
        headers = {"Authorization": f"Bearer {key}"}
        connection = http.client.HTTPConnection((url or "").removeprefix("http://"))
        connection.request("GET", "/v1/files", headers=headers)
        with connection.getresponse() as response:
            found = response.status
        connection.close()
        return found

    results = when_ready(attached, list_files)
    result = invoke(attached, "up", "--quiet")
    assert result.exit_code == 0, result.exception
    assert results == [status]
    folder = attached.path.parent if gateway and ledger else attached.path
    assert (folder / "batches.sqlite").exists() == (status == 200)
