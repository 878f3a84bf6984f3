"""People sign in with a provider that really runs, and manage a factory that really runs."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import oidc_provider_mock
import pytest

from tests.cli.command_line import READY_S_MAX, data, invoke
from tests.cli.test_admin_api import call
from tokenworks.cli import login as login_module
from tokenworks.core.errors import ConfigInvalid, IssuerUnavailable, Unauthorized
from tokenworks.live.home import Home

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
"""The provider calls its library by names that are to go."""

PEOPLE = (
    oidc_provider_mock.User(
        sub="ada", claims={"email": "ada@acme.example", "groups": ["acme-team"], "login": "ada"}
    ),
    oidc_provider_mock.User(sub="eve", claims={"groups": ["ops"]}),
    oidc_provider_mock.User(sub="mallory", claims={"groups": ["visitors"]}),
)


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with oidc_provider_mock.run_server_in_thread(user_claims=PEOPLE, require_nonce=True) as server:
        yield f"http://localhost:{server.server_port}"


def settle(home: Home, issuer: str) -> None:
    with home.settings.open("a") as file:
        file.write(
            f"\n[oidc]\nissuer = '{issuer}'\naudience = 'tokenworks'\nengineer_claim = 'login'\n"
            "[oidc.groups]\nacme-team = 'tenant:acme'\nops = 'factory'\n"
        )


def get(url: str, form: dict[str, str] | None = None) -> str | None:
    """Ask for a page as a browser does; where it leads."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=READY_S_MAX)
    body = None if form is None else urllib.parse.urlencode(form)
    headers = {"content-type": "application/x-www-form-urlencoded"}
    target = f"{parts.path}?{parts.query}"
    connection.request("GET" if form is None else "POST", target, body, headers)
    with connection.getresponse() as response:
        response.read()
        where = response.headers["location"]
    connection.close()
    return where


class Browser:
    """Signs somebody in; ``changes`` are other in what it comes back with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sub, self.form = "ada", dict[str, str]()
        self.changes: dict[str, str] = {}
        self.answers: list[Any] = []
        self.threads: list[Any] = []
        monkeypatch.setenv("CLIENT_SECRET", "a client's secret")
        monkeypatch.setattr(login_module.webbrowser, "open", self.open)

    def open(self, url: str) -> bool:
        self.threads.append(threading.Thread(target=self._come_back, args=(url,)))
        self.threads[-1].start()
        return True

    def _come_back(self, url: str) -> None:
        where = get(url, {"sub": self.sub, **self.form})
        assert where is not None
        parts = urllib.parse.urlsplit(where)
        query = dict(urllib.parse.parse_qsl(parts.query)) | self.changes
        get(f"http://{parts.netloc}/favicon.ico")
        get(parts._replace(query=urllib.parse.urlencode(query)).geturl())

    def login(self, home: Home, *words: str) -> Any:
        secret = ("--client-secret-env", "CLIENT_SECRET")
        result = invoke(home, "login", "--json", *secret, *words)
        for thread in self.threads:
            thread.join()
        if result.exception is not None:
            return result.exception
        return json.loads(result.stdout)


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Browser:
    return Browser(monkeypatch)


def test_people_sign_in_and_manage_what_their_groups_do(
    attached: Home, issuer: str, browser: Browser, when_ready: Callable[..., list[Any]]
) -> None:
    settle(attached, issuer)
    tokens = {}
    for browser.sub in ("ada", "eve", "mallory"):
        tokens[browser.sub] = browser.login(attached)["token"]

    def act() -> Any:
        def of(who: str, method: str, path: str, body: object = None) -> Any:
            return call(attached, tokens[who], method, f"/admin/v1/{path}", body)

        made = of("ada", "POST", "keys", {"tenant": "acme", "engineer": "ada"})
        head, claims, _ = tokens["ada"].split(".")
        forged = f"{head}.{claims}.{tokens['eve'].split('.')[2]}"
        return [
            of("ada", "GET", "me"),
            of("eve", "GET", "me"),
            made,
            of("ada", "POST", "keys", {"tenant": "other"}),
            of("ada", "POST", "keys", {"tenant": "acme", "roles": ["factory-admin"]}),
            of("mallory", "GET", "me"),
            call(attached, forged, "GET", "/admin/v1/me"),
            call(attached, tokens["eve"], "GET", "/v1/models"),
        ]

    results = when_ready(attached, act)
    assert invoke(attached, "up", "--quiet").exit_code == 0
    assert not isinstance(results[0], Exception), results[0]
    ada, eve, *others = results[0]
    assert ada[1] == {
        "kind": "person",
        "id": f"{issuer} ada",
        "name": "ada@acme.example",
        "from": "127.0.0.1",
        "manages": "tenant:acme",
        "engineer": "engineer:acme/ada",
    }
    assert eve[1]["manages"] == "the factory"
    assert [status for status, _ in others] == [201, 404, 403, 403, 401, 401]
    log = data(attached, "audit", "list", "--by", f"{issuer} ada")
    assert [(each["action"], each["outcome"]) for each in log] == [
        *[("key.create", "refused")] * 2,
        ("key.create", "done"),
    ]
    assert (log[2]["by"]["name"], log[2]["tenant"]) == ("ada@acme.example", "acme")
    text = json.dumps(log)
    assert not any(token in text for token in tokens.values())


def test_what_a_browser_comes_back_with(home: Home, issuer: str, browser: Browser) -> None:
    words = ("--issuer", issuer, "--client-id", "another")
    assert browser.login(home, *words)["subject"] == "ada"
    for changes, message in (
        ({"state": "another"}, "another sign-in"),
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"code": ""}, "has refused"),
        ({"code": "wrong"}, "invalid_grant"),
    ):
        browser.changes = changes
        error = browser.login(home, *words)
        assert isinstance(error, Unauthorized)
        assert message in str(error)
    browser.changes, browser.form = {}, {"action": "deny"}
    assert "another sign-in" in str(browser.login(home, *words))  # it leaves the state out
    assert not home.path.exists()


def test_nobody_to_sign_in_with(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(invoke(home, "login").exception, ConfigInvalid)
    monkeypatch.setenv("EMPTY", "")
    unset = invoke(
        home, "login", "--issuer", "x", "--client-id", "x", "--client-secret-env", "EMPTY"
    )
    assert "is not set" in str(unset.exception)
    words = ("--issuer", "http://127.0.0.1:1", "--client-id", "x")
    assert isinstance(invoke(home, "login", *words).exception, IssuerUnavailable)


def test_nobody_signs_in(home: Home, issuer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_module, "WAIT_S_MAX", 0)
    monkeypatch.setattr(login_module, "TURN_S", 0.01)
    words = ("--issuer", issuer, "--client-id", "x", "--no-browser")
    result = invoke(home, "login", *words)
    assert isinstance(result.exception, Unauthorized)
    assert f"Sign in here:\n  {issuer}/oauth2/authorize?" in result.stderr
