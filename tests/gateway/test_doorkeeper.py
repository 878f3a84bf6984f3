"""What a limited key is refused, on every route, and that the refusal says what it may do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from tests.gateway.fake_desk import (
    CHAT,
    KEY,
    MODEL,
    SECRET,
    SECRET_SHA256,
    Caller,
    FakeClock,
    FakeDesk,
    answer,
)
from tokenworks.core.ids import ModelName
from tokenworks.core.orders import KeyView
from tokenworks.core.scopes import Scopes, networks_of
from tokenworks.core.slo import Tier
from tokenworks.gateway import strangers
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.pass_through import ANY_MODEL, named_model

Run = Callable[[Coroutine[Any, Any, Any]], Any]
OTHER = ModelName("lab/other")
HELLO = [{"role": "user", "content": "hello"}]
LINE = (
    "turned away in 0 s: 4 requests with an unknown, revoked or expired key, 1 with one that may "
    "not be used for this or from there; most from 2.2.2.2 (3), 1.1.1.1 (1)"
)
ROUTES = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": HELLO},
    "/v1/responses/input_tokens": {"input": "hello"},
    "/v1/embeddings": {"input": "hello"},
    "/v1/rerank": {"query": "hello", "documents": ["a"]},
}


class House(FakeDesk):
    """A factory with one key, which has scopes."""

    def __init__(self, run: Run, *, passes_on: bool = False, proxies: str = "", **scopes: Any):
        super().__init__(answer("hi"))
        self.run, self.key = run, msgspec.structs.replace(KEY, scopes=Scopes(**scopes))
        self.clock = FakeClock()
        trusted = networks_of(proxies.split(), "proxies")
        self.gateway = Gateway(self, self.clock, passes_on=passes_on, trusted_proxies=trusted)

    def key_of(self, secret_sha256: str) -> KeyView | None:
        return self.key if secret_sha256 == SECRET_SHA256 else None

    def ask(
        self, path: str, body: Any = None, peer: str = "", method: str = "POST", **headers: str
    ) -> Caller:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        raw = b"" if body is None else json.dumps(body).encode()
        caller = Caller(method, path, raw, named)
        if peer:
            caller.transport._extra["peername"] = (peer, 4711)
        self.run(caller.call(self.gateway))
        return caller

    def get(self, path: str, peer: str = "", **headers: str) -> Caller:
        return self.ask(path, None, peer, "GET", **headers)


def refusal(found: Caller, path: str = "") -> str:
    """The words of a refusal, in the route's own dialect."""
    assert found.status == 403
    error = found.json["error"]
    assert error["code"] == "not_permitted"
    anthropic = path.startswith("/v1/messages")
    assert error["type"] == ("permission_error" if anthropic else "permission_denied")
    return str(error["message"])


@pytest.mark.parametrize("path", ROUTES)
def test_models_on_every_route(run: Run, path: str) -> None:
    house = House(run, models=frozenset({MODEL}))
    for model in (OTHER, "no such model"):  # it is not said which models there are besides
        words = refusal(house.ask(path, {"model": model, **ROUTES[path]}), path)
        assert f"may not use the model {model!r}; it may use {MODEL}." in words
    assert not house.orders
    assert not house.counted
    house.ask(path, {"model": MODEL, **ROUTES[path]})
    assert house.orders or house.counted


@pytest.mark.parametrize("path", [path for path in ROUTES if "messages" not in path])
def test_tiers_on_every_route(run: Run, path: str) -> None:
    house = House(run, tiers=frozenset({Tier.HIGH, Tier.FREE}))
    asked = {"model": MODEL, **ROUTES[path]}
    words = refusal(house.ask(path, {**asked, "service_tier": "ultra"}), path)
    assert "may not ask for the tier ultra; it may ask for free, high." in words
    assert not house.orders
    assert not house.counted
    house.ask(path, asked)
    house.ask(path, {**asked, "service_tier": "free"})
    assert len(house.orders) + len(house.counted) == 2


def test_an_output_limit_hides_no_model(run: Run) -> None:
    house = House(run, models=frozenset({MODEL}))
    asked = {"model": OTHER, "messages": HELLO, "max_tokens": 3}
    assert MODEL in refusal(house.ask("/v1/chat/completions", asked))
    assert not house.orders


def test_only_what_a_key_may_use_is_listed(run: Run) -> None:
    house = House(run, models=frozenset({OTHER, ModelName("not served")}))
    assert [row["id"] for row in house.get("/v1/models").json["data"]] == [OTHER]
    assert house.get(f"/v1/models/{OTHER}").json["id"] == OTHER
    assert OTHER in refusal(house.get(f"/v1/models/{MODEL}"))
    asked = {"model": "not served", "messages": HELLO}
    missing = house.ask("/v1/chat/completions", asked)
    assert missing.status == 404
    assert MODEL not in missing.json["error"]["message"]
    tiers = House(run, tiers=frozenset({Tier.HIGH}))
    assert len(tiers.get("/v1/models").json["data"]) == 2
    assert tiers.get(f"/v1/models/{MODEL}").status == 200


def test_a_key_that_is_revoked_while_its_connection_is_open(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(run)
    caller = house.ask(CHAT, {"model": MODEL, "messages": HELLO})
    assert (caller.status, len(house.orders)) == (200, 1)
    monkeypatch.setattr(house, "key_of", lambda secret_sha256: None)
    caller.transport.writes.clear()

    async def again() -> None:
        assert caller.connection is not None
        caller.connection.data_received(caller.head + caller.request)  # as the first time

    run(again())
    assert (caller.status, len(house.orders)) == (401, 1)


def test_a_key_whose_time_is_over(run: Run) -> None:
    clock = FakeClock()
    house = House(run, expires_unix_ns=clock.unix_ns() + 1_000_000)
    assert house.get("/v1/models").status == 200
    house.clock.advance_ms(1)
    for found in (house.get("/v1/models"), house.ask("/v1/messages", {})):
        assert found.status == 401
        assert "The key has expired at 2023-11-14T22:13Z." in found.json["error"]["message"]


NETWORKS = {"networks": networks_of(["10.0.0.0/8", "2001:db8::/32"], "networks")}


def test_addresses(run: Run) -> None:
    house = House(run, **NETWORKS)
    for peer in ("10.0.0.9", "::ffff:10.0.0.9", "2001:db8::1"):
        assert house.get("/v1/models", peer).status == 200
    forged = {"x_forwarded_for": "10.0.0.9"}
    for peer, named in (("192.0.2.1", "192.0.2.1"), ("", "an unknown address")):
        words = refusal(house.get("/v1/models", peer, **forged))
        assert f"not be used from {named}; it may be from 10.0.0.0/8, 2001:db8::/32." in words
    assert house.get("/healthz", "192.0.2.1").status == 200
    assert House(run, models=frozenset({MODEL})).get("/v1/models", "192.0.2.1").status == 200


@pytest.mark.parametrize(
    ("told", "good"),
    [
        ("10.0.0.9", True),
        ("10.0.0.9:5123", True),
        ("203.0.113.5, 10.0.0.9", True),
        ("10.0.0.9, 203.0.113.5", False),
        ("10.0.0.9, 192.0.2.7", True),
        ("203.0.113.5, 192.0.2.7", False),
        ("10.0.0.9, nonsense", False),
        ("10.0.0.9, ", False),
        ("192.0.2.7", False),
        ("", False),
    ],
)
def test_addresses_behind_a_proxy(run: Run, told: str, *, good: bool) -> None:
    house = House(run, proxies="192.0.2.0/24", **NETWORKS)
    found = house.get("/v1/models", "192.0.2.1", x_forwarded_for=told)
    assert found.status == (200 if good else 403)
    elsewhere = house.get("/v1/models", "203.0.113.1", x_forwarded_for="10.0.0.9")
    assert "from 203.0.113.1;" in refusal(elsewhere)


def test_several_headers_of_a_proxy_are_one(run: Run) -> None:
    house = House(run, proxies="192.0.2.0/24", **NETWORKS)
    caller = Caller("GET", "/v1/models", b"", {"x-forwarded-for": "10.0.0.9"})
    caller.transport._extra["peername"] = ("192.0.2.1", 1)
    caller.head = caller.head[:-2] + b"X-Forwarded-For: 203.0.113.5\r\n\r\n"
    run(caller.call(house.gateway))
    assert "from 203.0.113.5;" in refusal(caller)


def test_what_is_passed_on(run: Run) -> None:
    house = House(run, passes_on=True, models=frozenset({ModelName("gpt")}))
    house.served = (ANY_MODEL,)
    house.script, house.content_type = [b"{}"], b"application/json"
    assert house.ask("/v1/chat/completions", {"model": "gpt"}).status == 200
    assert [order.model for order in house.orders] == [ANY_MODEL]
    assert "may not use the model 'o9'; it may use gpt." in refusal(
        house.ask("/v1/chat/completions", {"model": "o9"})
    )
    for found in (
        house.get("/v1/models"),
        house.get("/v1/files/f"),
        house.ask("/v1/batches", {"input_file_id": "f"}),
    ):
        assert "may not use what names no model" in refusal(found)
    assert len(house.orders) == 1
    tier = House(run, passes_on=True, tiers=frozenset({Tier.FREE}))
    tier.served = (ANY_MODEL,)
    assert "the tier high" in refusal(tier.ask("/v1/chat/completions", {"model": "gpt"}))
    free = House(run, passes_on=True, tiers=frozenset({Tier.HIGH}))
    free.served, free.script = (ANY_MODEL,), [b"{}"]
    assert free.get("/v1/files/f").status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 200_000,
        b'["model", "a"]',
        b'"model"',
        b'{"model": 1}',
        b'{"Model": "a"}',
        b'{"model": "a", "model": "b"}',
        b'{"model": "a", "m\\u006fdel": "b"}',
        b'{"model": "a", "MODEL": "b"}',
        b'{"in": {"model": "a"}}',
        '{"model": "a"}'.encode("utf-16"),
    ],
)
def test_a_model_that_could_be_read_in_two_ways_is_none(body: bytes) -> None:
    assert named_model(body) is None
    assert named_model(b'{"in": [{"model": "b"}], "model": "a"}') == "a"


def test_keys_that_open_nothing_are_said_in_one_line_for_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, run: Run
) -> None:
    monkeypatch.setattr(strangers, "LINE_S_MIN", 0.0)
    monkeypatch.setattr(strangers, "ADDRESSES_MAX", 2)
    house = House(run, networks=networks_of(["10.0.0.0/8"], "from"))
    wrong, right = {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {SECRET.decode()}"}
    came = [("1.1.1.1", wrong), ("2.2.2.2", wrong), ("2.2.2.2", wrong), ("3.3.3.3", wrong)]
    came += [("2.2.2.2", right), ("10.1.1.1", right), ("4.4.4.4", {"authorization": ""})]

    async def burst() -> None:
        for peer, headers in came:
            caller = Caller("GET", "/v1/models", headers=headers)
            caller.transport._extra["peername"] = (peer, 4711)
            caller.begin(house.gateway)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(burst())
    run(burst())
    said = [record.getMessage() for record in caplog.records]
    assert said == [LINE, LINE]
    assert b'tokenworks_refusals_total{code="invalid_api_key"} 10.0' in house.gateway.metrics.text()
