"""Tokens of an issuer: only its own, for us, in their time, signed by keys that it has now."""

from __future__ import annotations

import base64
import contextlib
import hmac
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

from tests.ledger.ledger_samples import NOW
from tokenworks.catalogue.factory_config import OIDCConfig
from tokenworks.core.errors import Forbidden, IssuerUnavailable, Unauthorized
from tokenworks.core.scopes import address_of
from tokenworks.live import oidc
from tokenworks.live.oidc import Issuer, fetch_json

NOW_S = NOW // 10**9
WAIT_S_MAX = 60
RSA = RSAKey.generate_key(2048, {"kid": "first"})
OTHER = RSAKey.generate_key(2048, {"kid": "first"})
EC = ECKey.generate_key("P-256", {"kid": "ec"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})


class Provider(http.server.ThreadingHTTPServer):
    """What an issuer says of itself and its keys, on a socket.

    Attributes:
        keys: those that it has.
        asked: paths that were asked for.
        changes: what is other in its metadata.
        raw: what it answers in place of all that, if anything.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.keys: list[Key] = [RSA]
        self.asked: list[str] = []
        self.changes: dict[str, Any] = {}
        self.raw: tuple[int, bytes] | None = None
        self.goes_on, self.was_asked = threading.Event(), threading.Event()
        self.goes_on.set()

    def answer(self, path: str) -> tuple[int, bytes]:
        self.asked.append(path)
        self.was_asked.set()
        assert self.goes_on.wait(WAIT_S_MAX)
        if self.raw is not None:
            return self.raw
        if path == "/keys":
            public = [key.as_dict(private=key.key_type == "oct") for key in self.keys]
            return 200, json.dumps({"keys": [*public, "nonsense", {"kty": "RSA"}]}).encode()
        told = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        return 200, json.dumps(told | self.changes).encode()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Provider)
        status, raw = self.server.answer(self.path)
        self.send_response(status)
        self.send_header("content-length", f"{len(raw)}")
        self.end_headers()
        self.wfile.write(raw)

    do_POST = do_GET  # noqa: N815 - the name is http.server's

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    for name in ("FETCH_S_MAX", "WAIT_S_MAX"):
        monkeypatch.setattr(oidc, name, WAIT_S_MAX)  # the machine may be busy
    made = Provider()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


class World:
    """An issuer and who checks its tokens, with a clock in the test's hands."""

    def __init__(self, provider: Provider, **more: Any) -> None:
        self.provider, self.now_s = provider, 1_000.0
        groups = {"ops": "factory", "acme-team": "tenant:acme", "b-team": "tenant:b"}
        self.config = OIDCConfig(
            issuer=provider.url, audience="tokenworks", groups=groups, engineer_claim="login"
        )
        self.config = msgspec.structs.replace(self.config, **more)
        self.issuer = Issuer(self.config, lambda: NOW, lambda: self.now_s)

    def token(self, key: Key = RSA, header: dict[str, Any] | None = None, **changes: Any) -> str:
        claims = {
            "iss": self.config.issuer,
            "aud": "tokenworks",
            "sub": "u1",
            "iat": NOW_S - 10,
            "exp": NOW_S + 600,
            "groups": ["acme-team", "others"],
            "email": "ada@acme.example",
        } | changes
        claims = {name: value for name, value in claims.items() if value is not None}
        algorithm = {"RSA": "RS256", "EC": "ES256", "OKP": "Ed25519", "oct": "HS256"}[key.key_type]
        told = {"alg": algorithm, "kid": key.kid} | (header or {})
        told = {name: value for name, value in told.items() if value is not None}
        return jwt.encode(told, claims, key, algorithms=[told["alg"]])

    def who(self, token: str) -> Any:
        return self.issuer.who(token, address_of("10.0.0.1"))

    def refused(self, token: str) -> str:
        with pytest.raises(Unauthorized) as error:
            self.who(token)
        assert token not in str(error.value)
        return error.value.message


@pytest.fixture
def world(provider: Provider) -> World:
    return World(provider)


def test_whoever_is_in_a_group_manages_what_it_manages(world: World) -> None:
    ada = world.who(world.token(login="ada"))
    assert (ada.tenant, ada.engineer, ada.key) == ("acme", "engineer:acme/ada", None)
    assert ada.actor.kind == "person"
    assert ada.actor.id == f"{world.config.issuer} u1"
    assert (ada.actor.name, ada.actor.source, ada.actor.tenant) == (
        *("ada@acme.example", "10.0.0.1"),
        "acme",
    )
    chief = world.who(world.token(groups=["acme-team", "ops"], login="eve", email="\x1b"))
    assert (chief.tenant, chief.engineer, chief.actor.name) == (None, None, None)
    assert world.who(world.token(groups="b-team", login=5)).tenant == "b"
    with pytest.raises(Forbidden, match="several tenants: tenant:acme, tenant:b"):
        world.who(world.token(groups=["acme-team", "b-team"]))
    for nothing in ([], ["others"], None, {"acme-team": 1}, [["ops"]], 5):
        with pytest.raises(Forbidden, match="none of your groups"):
            world.who(world.token(groups=nothing))


def test_groups_may_lie_inside_another_claim(provider: Provider) -> None:
    inside = World(provider, groups_claim="realm.roles")
    assert inside.who(inside.token(realm={"roles": ["ops"]})).tenant is None
    assert inside.who(inside.token(**{"realm.roles": ["b-team"]})).tenant == "b"
    with pytest.raises(Forbidden):
        inside.who(inside.token(realm="ops"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"iss": "https://evil.example"}, "another issuer's"),
        ({"iss": None}, "another issuer's"),
        ({"aud": "another"}, "not for 'tokenworks'"),
        ({"aud": ["another"]}, "not for"),
        ({"aud": None}, "not for"),
        ({"aud": 5}, "not for"),
        ({"aud": {"tokenworks": 1}}, "not for"),
        ({"exp": 10**400}, "until when"),
        ({"exp": float("inf")}, "until when"),
        ({"exp": float("nan")}, "until when"),
        ({"sub": "\x1b[31m"}, "names nobody"),
        ({"sub": 5}, "names nobody"),
        ({"exp": NOW_S - 61}, "has expired"),
        ({"exp": None}, "until when"),
        ({"exp": True}, "until when"),
        ({"exp": "never"}, "until when"),
        ({"iat": None}, "until when"),
        ({"iat": NOW_S + 61}, "not valid yet"),
        ({"nbf": NOW_S + 61}, "not valid yet"),
        ({"iat": NOW_S - 24 * 3_600 - 1}, "more than 24 hours ago"),
        ({"sub": None}, "names nobody"),
        ({"sub": ""}, "names nobody"),
        ({"sub": "x" * 256}, "names nobody"),
    ],
)
def test_what_a_token_must_say(world: World, changes: dict[str, Any], words: str) -> None:
    assert words in world.refused(world.token(**changes))


def test_clocks_may_be_a_minute_apart(world: World) -> None:
    assert world.who(world.token(exp=NOW_S - 59)).tenant == "acme"
    assert world.who(world.token(iat=NOW_S + 59, nbf=NOW_S + 59)).tenant == "acme"
    assert world.who(world.token(aud=["another", "tokenworks"])).tenant == "acme"
    assert world.who(world.token(header={"typ": "at+JWT"})).tenant == "acme"


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def test_a_token_that_nobody_signed_is_refused(world: World) -> None:
    _, claims, signature = world.token().split(".")
    for header in ({"alg": "none"}, {"alg": "None", "kid": "first"}, {"alg": ["RS256"]}, {}):
        for end in ("", signature):
            world.refused(f"{part(header)}.{claims}.{end}")
    assert world.provider.asked == []


def test_a_public_key_is_no_secret_to_sign_with(world: World) -> None:
    said = f"{part({'alg': 'HS256', 'kid': 'first'})}.{world.token().split('.')[1]}"
    digest = hmac.digest(RSA.as_pem(private=False), said.encode(), "sha256")
    end = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    message = world.refused(f"{said}.{end}")
    assert "signed in a way" in message or "algorithm" in message
    world.provider.keys = [OctKey.generate_key(256, {"kid": "shared"}), RSA]
    world.refused(world.token(world.provider.keys[0]))


def test_signed_by_somebody_else(world: World) -> None:
    assert "bad_signature" in world.refused(world.token(OTHER))
    head, claims, _ = world.token().split(".")
    forged = part({"iss": world.config.issuer, "sub": "u1", "groups": ["ops"]})
    assert "bad_signature" in world.refused(f"{head}.{forged}.{world.token().split('.')[2]}")
    own = {"alg": "RS256", "kid": "first", "jwk": OTHER.as_dict(private=False)}
    world.refused(world.token(OTHER, header=own))
    assert "bad_signature" in world.refused(f"{head}.{claims}.{part('x')}")


@pytest.mark.parametrize(
    "token",
    [
        "a.b.c",
        "..",
        "é.é.é",
        "x" * 17_000 + ".a.b",
        f"{part([])}.{part({})}.{part('')}",
        "\udcff.a.b",
    ],
)
def test_what_is_no_token(world: World, token: str) -> None:
    world.refused(token)


def test_tokens_of_another_kind(world: World) -> None:
    assert "another kind" in world.refused(world.token(header={"typ": "logout+jwt"}))
    _, claims, signature = world.token().split(".")
    head = part({"alg": "RS256", "kid": "first", "crit": ["x"], "x": 1})
    assert "unsupported_header" in world.refused(f"{head}.{claims}.{signature}")
    text = jws.serialize_compact({"alg": "RS256", "kid": "first"}, b"[1]", RSA)
    world.refused(text)


def test_keys_of_all_kinds(world: World) -> None:
    world.provider.keys = [RSA, EC, ED]
    for key in world.provider.keys:
        assert world.who(world.token(key)).tenant == "acme"
    world.refused(world.token(EC, header={"kid": "first"}))  # that one is no such key
    assert "does not have" in world.refused(world.token(header={"kid": None}))


def test_a_token_need_not_name_the_only_key(provider: Provider) -> None:
    world = World(provider)
    assert world.who(world.token(header={"kid": None})).tenant == "acme"


def test_a_key_that_is_not_for_this_is_not_taken(world: World) -> None:
    for more in ({"use": "enc"}, {"alg": "PS256"}):
        world.provider.keys = [RSAKey.import_key(RSA.as_dict(private=True) | more)]
        world.now_s += 10_000
        assert "does not have" in world.refused(world.token())


def test_keys_are_asked_for_when_they_change_and_no_oftener(world: World) -> None:
    new = RSAKey.generate_key(2048, {"kid": "second"})
    assert world.who(world.token())
    assert world.who(world.token())
    assert len(world.provider.asked) == 2  # the metadata, and the keys
    world.provider.keys = [RSA, new]
    assert "does not have" in world.refused(world.token(new))  # asked a moment ago
    world.now_s += oidc.ASK_AGAIN_S
    assert world.who(world.token(new))
    assert len(world.provider.asked) == 4
    for _ in range(5):
        world.refused(world.token(OTHER, header={"kid": "third"}))
    assert len(world.provider.asked) == 4
    world.provider.keys = [new]  # the old one is given up
    world.now_s += oidc.KEYS_FRESH_S + 1
    assert "does not have" in world.refused(world.token())


def test_an_issuer_that_does_not_answer(world: World) -> None:
    world.provider.raw = (500, b"{}")
    with pytest.raises(IssuerUnavailable, match="status 500"):
        world.who(world.token())
    with pytest.raises(IssuerUnavailable, match="a moment ago"):
        world.who(world.token())
    assert len(world.provider.asked) == 1
    world.provider.raw = None
    world.now_s += oidc.ASK_AGAIN_S
    assert world.who(world.token())
    world.provider.raw = (500, b"{}")
    world.now_s += oidc.KEYS_FRESH_S + 1
    assert world.who(world.token())  # by the keys of before
    world.now_s += oidc.KEYS_KEPT_S
    with pytest.raises(IssuerUnavailable):
        world.who(world.token())


def test_an_issuer_that_is_slow_holds_nobody_for_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "WAIT_S_MAX", 0.05)
    monkeypatch.setattr(oidc, "JOIN_S_MAX", 0.0)
    world.provider.goes_on.clear()
    for _ in range(2):  # who has it asked, and whoever comes meanwhile
        with pytest.raises(IssuerUnavailable, match="in time") as error:
            world.who(world.token())
        assert error.value.retry_after_s == oidc.ASK_AGAIN_S
    asking = world.issuer._asking
    assert asking is not None
    world.provider.goes_on.set()
    assert asking.wait(WAIT_S_MAX)
    assert world.who(world.token())  # what came too late serves all the same
    world.provider.goes_on.clear()
    world.now_s += oidc.KEYS_FRESH_S + 1
    for _ in range(2):
        assert world.who(world.token())  # by the keys of before
    assert "does not have" in world.refused(world.token(OTHER, header={"kid": "third"}))
    asking = world.issuer._asking
    world.provider.goes_on.set()
    assert asking is not None
    assert asking.wait(WAIT_S_MAX)
    assert len(world.provider.asked) == 4  # two questions, whoever comes


def test_several_who_come_at_once_wait_for_one_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "JOIN_S_MAX", WAIT_S_MAX)
    world.provider.goes_on.clear()
    token = world.token()
    with ThreadPoolExecutor(3) as threads:
        found = [threads.submit(world.who, token) for _ in range(3)]
        assert world.provider.was_asked.wait(WAIT_S_MAX)
        world.provider.goes_on.set()
        assert len({each.result().actor.id for each in found}) == 1
    assert len(world.provider.asked) == 2


def test_a_head_that_comes_letter_by_letter_is_not_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(oidc, "FETCH_S_MAX", 0.3)
    over = threading.Event()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
            while not over.wait(0.01):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, args=(listening,))
        thread.start()
        with pytest.raises(IssuerUnavailable, match="does not answer"):
            fetch_json(f"http://127.0.0.1:{listening.getsockname()[1]}/")
        over.set()
        thread.join()


def test_an_issuer_that_is_down_behind_a_proxy_is_named_by_its_status(world: World) -> None:
    world.provider.raw = (503, b"<html>no upstream</html>")
    with pytest.raises(IssuerUnavailable, match="answers with status 503") as caught:
        world.issuer.metadata()
    assert "up" in caught.value.hint


@pytest.mark.parametrize(
    "raw",
    [
        (200, b"no JSON"),
        (200, b"[]"),
        (302, b"{}"),
        (200, b'{"issuer": "https://evil.example"}'),
        (200, b'"' + b"x" * oidc.ANSWER_BYTES_MAX + b'"'),
        (200, b"[" * 100_000),
    ],
)
def test_an_issuer_that_answers_nonsense(world: World, raw: tuple[int, bytes]) -> None:
    world.provider.raw = raw
    with pytest.raises(IssuerUnavailable):
        world.who(world.token())


def test_an_issuer_whose_keys_are_elsewhere_unprotected(world: World) -> None:
    for uri in ("http://keys.example/", "ftp://127.0.0.1/", "", None, "file:///etc/passwd"):
        world.provider.changes = {"jwks_uri": uri}
        with pytest.raises(IssuerUnavailable, match="not https"):
            world.who(world.token())
        world.now_s += oidc.ASK_AGAIN_S
    world.provider.changes = {"jwks_uri": world.provider.url}  # no list of keys
    with pytest.raises(IssuerUnavailable, match="no list of keys"):
        world.who(world.token())


def test_an_issuer_that_is_not_there() -> None:
    with pytest.raises(IssuerUnavailable, match="does not answer"):
        fetch_json("http://127.0.0.1:1/")
    with pytest.raises(IssuerUnavailable, match="not https"):
        fetch_json("https:///")


def test_what_an_issuer_refuses(provider: Provider) -> None:
    provider.raw = (400, b'{"error": "invalid_grant"}')
    with pytest.raises(Unauthorized, match="invalid_grant"):
        fetch_json(f"{provider.url}/token", {"code": "x"})


def test_a_token_answers_one_sign_in(world: World) -> None:
    token = world.token(nonce="a")
    assert world.issuer.claims(token, "tokenworks", "a")["sub"] == "u1"
    with pytest.raises(Unauthorized, match="another sign-in"):
        world.issuer.claims(token, "tokenworks", "b")
