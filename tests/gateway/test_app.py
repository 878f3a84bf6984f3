"""Routes, keys, the shape of errors, health and metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.fake_desk import CHAT, MODEL, Caller, FakeClock, FakeDesk, Hold, answer, ask
from tokenworks.core.errors import CapacityExceeded, QuotaExceeded, TokenworksError
from tokenworks.gateway import http_io
from tokenworks.gateway.app import Gateway

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def served(run: Run, caller: Caller, desk: FakeDesk | None = None) -> Caller:
    gateway = Gateway(desk or FakeDesk(answer("a")), FakeClock())
    found: Caller = run(caller.call(gateway))
    assert found.complete
    assert int(found.headers.get("content-length", len(found.body))) == len(found.body)
    return found


def get(run: Run, path: str, **headers: str) -> Caller:
    return served(run, Caller("GET", path, headers=headers))


KEYED = ["/v1/models", "/v1/models/", "/v1/models/foreman", CHAT]


@pytest.mark.parametrize("path", KEYED)
@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer  ", "Bearer wrong", "Basic tw-secret", "tw-secret"]
)
def test_a_key_is_required(run: Run, path: str, authorization: str) -> None:
    method = "POST" if path == CHAT else "GET"
    body = ask()._parts if path == CHAT else b""
    caller = served(run, Caller(method, path, body, {"authorization": authorization}))
    assert caller.status == 401
    assert caller.json["error"] == {
        "message": caller.json["error"]["message"],
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }
    assert caller.headers["www-authenticate"] == "Bearer"
    assert "tw-secret" not in caller.body.decode()


@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
def test_no_key_is_required(run: Run, path: str) -> None:
    caller = get(run, path, authorization="")
    assert caller.status == 200
    assert "acme" not in caller.body.decode()


def test_the_scheme_may_be_written_anyhow(run: Run) -> None:
    assert get(run, "/v1/models", authorization="bEARER   tw-secret ").status == 200


def test_models(run: Run) -> None:
    caller = get(run, "/v1/models")
    assert caller.headers["content-type"] == "application/json"
    assert caller.json["object"] == "list"
    assert [row["id"] for row in caller.json["data"]] == ["foreman", "lab/other"]
    assert {row["object"] for row in caller.json["data"]} == {"model"}
    assert get(run, "/v1/models/").json["object"] == "list"


def test_one_model(run: Run) -> None:
    assert get(run, "/v1/models/foreman").json["id"] == "foreman"
    assert get(run, "/v1/models/lab/other").json["id"] == "lab/other"
    absent = get(run, "/v1/models/" + "x" * 5_000)
    assert absent.status == 404
    assert absent.json["error"]["code"] == "model_not_found"
    assert len(absent.body) < 500


def test_a_model_that_is_not_served(run: Run) -> None:
    caller = served(run, ask(model="gpt"))
    assert caller.status == 404
    assert caller.json["error"]["code"] == "model_not_found"
    assert "foreman" in caller.json["error"]["message"]
    desk = FakeDesk()
    desk.served = ()
    assert "none at present" in served(run, ask(), desk).json["error"]["message"]


@pytest.mark.parametrize("path", ["/", "", "/v1", "/v1/chat", CHAT + "/", "/v2/" + "x" * 9_000])
def test_wrong_paths(run: Run, path: str) -> None:
    caller = get(run, path)
    assert caller.status == 404
    assert caller.json["error"]["code"] == "route_not_found"
    assert CHAT in caller.json["error"]["message"]
    assert len(caller.body) < 500


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/foreman", "GET"),
        ("HEAD", "/healthz", "GET"),
        ("POST", "/metrics", "GET"),
    ],
)
def test_wrong_methods(run: Run, method: str, path: str, allowed: str) -> None:
    caller = served(run, Caller(method, path))
    assert caller.status == 405
    assert caller.headers["allow"] == allowed
    assert caller.json["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "x" * 5_000])
def test_wrong_content_types(run: Run, kind: str) -> None:
    caller = served(run, Caller("POST", CHAT, b"{}", {"content-type": kind}))
    assert caller.status == 400
    assert "content type" in caller.json["error"]["message"]
    assert len(caller.body) < 500


@pytest.mark.parametrize("kind", ["", "application/json", "Application/JSON; charset=utf-8"])
def test_right_content_types(run: Run, kind: str) -> None:
    caller = ask()
    caller.scope["headers"].append((b"content-type", kind.encode()))
    assert served(run, caller).status == 200


def test_a_body_in_parts(run: Run) -> None:
    (whole,) = ask()._parts
    parts = [whole[:5], b"", whole[5:], b""]
    assert served(run, Caller("POST", CHAT, parts)).status == 200


def test_a_body_that_is_too_large(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_io, "BODY_BYTES_MAX", 1_000)
    caller = Caller("POST", CHAT, [b" " * 400] * 5)
    served(run, caller)
    assert caller.status == 413
    assert caller.json["error"]["code"] == "request_too_large"
    assert len(caller._parts) == 2
    (whole,) = ask()._parts
    exact = Caller("POST", CHAT, whole + b" " * (1_000 - len(whole)))
    assert served(run, exact).status == 200


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"model":"foreman"}', b"\xff" * 100])
def test_bodies_that_are_wrong(run: Run, raw: bytes) -> None:
    caller = served(run, Caller("POST", CHAT, raw))
    assert caller.status == 400
    assert caller.json["error"]["type"] == "invalid_request_error"
    assert caller.json["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("error", "kind", "headers"),
    [
        (CapacityExceeded("full", retry_after_s=7), "rate_limit_error", {"retry-after": "7"}),
        (CapacityExceeded("full"), "rate_limit_error", {}),
        (QuotaExceeded("used up"), "insufficient_quota", {"x-should-retry": "false"}),
        (QuotaExceeded("used up", retry_after_s=9), "insufficient_quota", {"retry-after": "9"}),
    ],
)
def test_429(run: Run, error: TokenworksError, kind: str, headers: dict[str, str]) -> None:
    desk = FakeDesk()
    desk.open_error = error
    caller = served(run, ask(), desk)
    assert caller.status == 429
    assert caller.json["error"]["type"] == kind
    assert caller.json["error"]["code"] == error.code
    general = ("content-", "x-request-id")
    assert {k: v for k, v in caller.headers.items() if not k.startswith(general)} == headers


def test_health(run: Run) -> None:
    desk = FakeDesk()
    assert served(run, Caller("GET", "/healthz"), desk).json["status"] == "ok"
    desk.health = (False, "0 of 1 workers are up")
    sick = served(run, Caller("GET", "/healthz"), desk)
    assert sick.status == 503
    assert sick.json == {"status": "unavailable", "detail": "0 of 1 workers are up"}


def samples(gateway: Gateway, run: Run) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    caller = Caller("GET", "/metrics")
    run(caller.call(gateway))
    assert caller.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(caller.body.decode())
        for sample in family.samples
    }


def test_metrics(run: Run) -> None:
    desk, clock = FakeDesk(), FakeClock()
    gateway = Gateway(desk, clock)
    first, second, third = ask(), ask(), ask()
    script = answer("a", "b", "c")
    script.insert(2, lambda: clock.advance_ms(20))
    desk.script = script
    run(first.call(gateway))
    desk.script = [second.hang_up, Hold()]
    run(second.call(gateway))
    run(Caller("GET", "/nowhere").call(gateway))
    found = samples(gateway, run)

    def value(name: str, **labels: str) -> float:
        return found["tokenworks_" + name, frozenset(labels.items())]

    assert value("responses_total", route=CHAT, status="200") == 1
    assert value("responses_total", route=CHAT, status="499") == 1
    assert value("responses_total", route="other", status="404") == 1
    assert value("tokens_total", kind="uncached_input", tier="medium") == 7
    assert value("tokens_total", kind="cached_input", tier="medium") == 0
    assert value("tokens_total", kind="output", tier="medium") == 3
    asked = {"asked": "high", "delivered": "medium"}
    assert value("settled_requests_total", **asked, ending="done") == 1
    assert value("settled_requests_total", **asked, ending="disconnected") == 1
    assert value("revenue_dollars_total", tier="medium") == pytest.approx(3e-6)
    assert value("ttft_seconds_count", tier="high") == 1
    assert value("interactivity_tokens_per_second_sum", tier="high") == pytest.approx(100)
    assert value("open_requests") == 1  # the one that reads this
    assert third.sent == []


def test_open_requests_are_counted(run: Run) -> None:
    async def main() -> float | None:
        desk = FakeDesk()
        desk.queued = asyncio.Event()
        gateway = Gateway(desk, FakeClock())
        caller = ask()
        serving = asyncio.ensure_future(caller.call(gateway))
        await desk.entered.wait()
        during = gateway.metrics.registry.get_sample_value("tokenworks_open_requests")
        caller.hang_up()
        await serving
        assert gateway.metrics.registry.get_sample_value("tokenworks_open_requests") == 0
        return during

    assert run(main()) == 1


class BrokenDesk(FakeDesk):
    def healthy(self) -> tuple[bool, str]:
        raise ZeroDivisionError("a secret of ours")


def test_a_mistake_of_ours_is_answered_and_logged(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caller = served(run, Caller("GET", "/healthz"), BrokenDesk())
    assert caller.status == 500
    assert caller.json["error"]["code"] == "error"
    assert "secret of ours" not in caller.body.decode()
    assert "secret of ours" in caplog.text


def test_a_caller_who_is_gone_before_an_error_is_sent(run: Run) -> None:
    caller = Caller("GET", "/nowhere")

    async def gone(_: object) -> None:
        raise OSError("gone")

    caller.on_send = gone
    run(caller.call(Gateway(FakeDesk(), FakeClock())))
    assert caller.sent == []


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_other_kinds_of_connection_are_left_alone(run: Run, kind: str) -> None:
    caller = Caller("GET", "/")
    caller.scope["type"] = kind
    run(caller.call(Gateway(FakeDesk(), FakeClock())))
    assert caller.sent == []


def test_errors_are_json_objects_of_openais_shape(run: Run) -> None:
    for caller in (get(run, "/nowhere"), served(run, ask(model="gpt"))):
        error = json.loads(caller.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert caller.headers["content-type"] == "application/json"


def test_the_gateway_serves_what_the_desk_serves(run: Run) -> None:
    assert served(run, ask()).status == 200
    assert MODEL in FakeDesk().models()
