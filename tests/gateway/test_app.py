"""Routes, keys, the shape of errors, health and metrics."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.fake_desk import CHAT, MODEL, Caller, FakeClock, FakeDesk, Hold, answer, ask
from tokenworks.core.errors import (
    CapacityExceeded,
    QuotaExceeded,
    TokenworksError,
    WorkerFailed,
)
from tokenworks.core.ids import RequestID
from tokenworks.core.orders import KeyView, Usage
from tokenworks.core.slo import Tier
from tokenworks.gateway.answer import Answer
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.assemble import Completion
from tokenworks.gateway.chat import Chat
from tokenworks.gateway.dialect import Asked
from tokenworks.gateway.event_stream import EventStream
from tokenworks.gateway.http_io import BODY_BYTES_MAX
from tokenworks.gateway.own_words import OwnHeaders
from tokenworks.gateway.routes import Request, Response, Route

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def served(run: Run, caller: Caller, desk: FakeDesk | None = None) -> Caller:
    gateway = Gateway(desk or FakeDesk(answer("a")), FakeClock())
    found: Caller = run(caller.call(gateway))
    assert found.complete
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
    body = ask().request if path == CHAT else b""
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


def test_the_key_may_come_as_anthropics_sdk_sends_it(run: Run) -> None:
    for secret, status in (("tw-secret", 200), ("wrong", 401), ("", 401)):
        assert get(run, "/v1/models", authorization="", **{"x-api-key": secret}).status == status
    both = {"authorization": "Bearer wrong", "x-api-key": "tw-secret"}
    assert get(run, "/v1/models", **both).status == 401


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


@pytest.mark.parametrize("path", ["/", "*", "/v1", "/v1/chat", CHAT + "/", "/v2/" + "x" * 8_000])
def test_wrong_paths(run: Run, path: str) -> None:
    caller = get(run, path)
    assert caller.status == 404
    assert caller.json["error"]["code"] == "route_not_found"
    assert "openapi.json" in caller.json["error"]["message"]
    assert len(caller.body) < 500


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/foreman", "GET"),
        ("HEAD", CHAT, "POST"),
        ("POST", "/metrics", "GET"),
        ("PUT", "/v1/responses/resp_1", "GET, DELETE"),
        ("DELETE", "/v1/responses/resp_1/input_items", "GET"),
        ("GET", "/v1/responses/resp_1/cancel", "POST"),
        ("POST", "/v1/files/file-1", "GET, DELETE"),
        ("DELETE", "/v1/files/file-1/content", "GET"),
        ("POST", "/v1/batches/batch_1", "GET"),
        ("GET", "/v1/batches/batch_1/cancel", "POST"),
    ],
)
def test_wrong_methods(run: Run, method: str, path: str, allowed: str) -> None:
    caller = served(run, Caller(method, path))
    assert caller.status == 405
    assert caller.headers["allow"] == allowed
    assert method == "HEAD" or caller.json["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "x" * 5_000])
def test_wrong_content_types(run: Run, kind: str) -> None:
    caller = served(run, Caller("POST", CHAT, b"{}", {"content-type": kind}))
    assert caller.status == 400
    assert "content type" in caller.json["error"]["message"]
    assert len(caller.body) < 500


@pytest.mark.parametrize("kind", ["", "application/json", "Application/JSON; charset=utf-8"])
def test_right_content_types(run: Run, kind: str) -> None:
    assert served(run, ask(named={"content-type": kind})).status == 200


def test_a_body_in_parts(run: Run) -> None:
    whole = ask().request
    parts = [whole[:5], b"", whole[5:], b""]
    assert served(run, Caller("POST", CHAT, parts)).status == 200


def test_a_body_that_is_too_large(run: Run) -> None:
    caller = Caller("POST", CHAT, b" " * (BODY_BYTES_MAX + 1))
    served(run, caller)
    assert caller.status == 413
    assert caller.json["error"]["code"] == "request_too_large"
    assert caller.headers["connection"] == "close"
    whole = ask().request
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
    general = ("content-", "date", "x-request-id")
    assert {k: v for k, v in caller.headers.items() if not k.startswith(general)} == headers


def test_a_head_alone(run: Run) -> None:
    whole, alone = get(run, "/v1/models"), served(run, Caller("HEAD", "/v1/models"))
    assert alone.headers.keys() == whole.headers.keys()
    assert alone.headers["content-length"] == str(len(whole.body))
    assert (alone.status, alone.body) == (200, b"")


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
    assert third.received == b""


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


def test_an_answer_leaves_nothing_for_the_collector_of_cycles(run: Run) -> None:
    def answers() -> int:
        return sum(isinstance(each, Answer) for each in gc.get_objects())

    async def main() -> int:
        desk = FakeDesk(answer("a"))
        caller = ask()
        await caller.call(Gateway(desk, FakeClock()))
        assert caller.status == 200
        desk.deliveries.clear()
        del caller
        await asyncio.sleep(0)
        return answers()

    gc.collect()
    gc.disable()
    try:
        before = answers()
        assert run(main()) == before
    finally:
        gc.enable()


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


def test_errors_are_json_objects_of_openais_shape(run: Run) -> None:
    for caller in (get(run, "/nowhere"), served(run, ask(model="gpt"))):
        error = json.loads(caller.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert caller.headers["content-type"] == "application/json"


def test_the_gateway_serves_what_the_desk_serves(run: Run) -> None:
    assert served(run, ask()).status == 200
    assert MODEL in FakeDesk().models()


# Further routes and dialects.


class Bare:
    """Errors of a shape of their own."""

    def error_body(self, error: TokenworksError) -> bytes:
        return b"bare " + error.code.encode()

    def error_headers(self, error: TokenworksError) -> list[tuple[bytes, bytes]]:
        return [(b"x-bare", str(error.status).encode())]


async def echo(request: Request) -> Response:
    assert request.key is not None
    said = b" ".join([request.path.encode(), request.query, request.body])
    kind = request.get(b"content-type") or b"none"
    return Response(status=201, body=said, content_type=kind, headers=[(b"x-more", b"1")])


async def list_files(_: Request) -> Response:
    return Response(body=b"[]")


FILES = (
    Route(path="/v1/notes", handlers={"GET": list_files, "POST": echo}, errors=Bare()),
    Route(path="/v1/notes/", handlers={"GET": echo}, body_bytes_max=5),
    Route(path="/v1/notes/parts/", handlers={"GET": list_files}),
)


def test_further_routes(run: Run) -> None:
    gateway = Gateway(FakeDesk(), FakeClock(), more=FILES)

    def ask_for(method: str, path: str, body: bytes = b"", **headers: str) -> Caller:
        found: Caller = run(Caller(method, path, body, headers).call(gateway))
        return found

    assert ask_for("GET", "/v1/notes").json == []
    made = ask_for("POST", "/v1/notes", b"x" * 6, **{"content-type": "text/x"})
    assert (made.status, made.body) == (201, b"/v1/notes  xxxxxx")
    assert (made.headers["content-type"], made.headers["x-more"]) == ("text/x", "1")
    assert ask_for("GET", "/v1/notes/f1/content").body == b"/v1/notes/f1/content  "
    assert ask_for("GET", "/v1/notes/parts/1").json == []
    assert ask_for("GET", "/v1/notes/f1", b"x" * 6).status == 413
    for wrong in ("x", ""):
        refused = ask_for("GET", "/v1/notes", authorization=wrong)
        assert (refused.status, refused.body) == (401, b"bare invalid_api_key")
        assert refused.headers["x-bare"] == "401"
    assert ask_for("DELETE", "/v1/notes").headers["allow"] == "GET, POST"


class Shout(Bare):
    """A dialect that does to bytes what can be seen."""

    path = "/v1/shout"
    fetch = None
    kept = None

    def read(
        self, raw: bytes, key: KeyView, own: OwnHeaders, output_default: Any, whole: Any = None
    ) -> Asked:
        return Chat().read(raw, key, own, output_default)

    def writer(self, asked: Asked, request: RequestID) -> Shout:
        return self

    def forward(self, ready: bytes) -> bytes:
        if b"silent" in ready:
            return b""
        return b"%d" % ready.count(b"data: ")

    def take_held(self, events: EventStream) -> None:
        pass

    def closing(self, events: EventStream, tier: Tier) -> bytes:
        return f"{len(events.held)} {tier}".encode()

    def take_whole(self, completion: Completion) -> None:
        self.taken = sorted(completion)

    def whole(self, usage: Usage, tier: Tier) -> bytes:
        return f"{self.taken} {usage.output_tokens} {tier}".encode()

    def error_event(self, error: TokenworksError) -> bytes:
        return b"went wrong: " + self.error_body(error)


def test_a_dialect_of_its_own(run: Run) -> None:
    desk = FakeDesk(answer("a", "silent", "b"))
    gateway = Gateway(desk, FakeClock(), dialects=(Shout(),))

    def shouted(stream: bool = True, **fields: Any) -> Caller:
        found: Caller = run(ask(stream, "/v1/shout", **fields).call(gateway))
        return found

    assert shouted().body == b"1111 medium"
    assert shouted().chunks == [b"1", b"1", b"1", b"1 medium", b""]
    assert shouted(stream=False).body.startswith(b"['choices', 'created', 'id', 'model', 'object'")
    refused = shouted(model="gpt")
    assert (refused.status, refused.body) == (404, b"bare model_not_found")
    desk.script = [*answer("a")[:2], WorkerFailed("broke off")]
    assert shouted().body == b"11went wrong: bare worker_failed"
    assert run(ask().call(gateway)).status == 404


def test_a_path_has_one_route() -> None:
    with pytest.raises(AssertionError, match="twice"):
        Gateway(FakeDesk(), FakeClock(), more=(Route(path=CHAT, handlers={}),))


def test_a_mistake_while_a_request_is_read_is_answered_and_logged(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> Asked:
        raise ZeroDivisionError("a secret of ours")

    monkeypatch.setattr(Chat, "read", read)
    caller = served(run, ask())
    assert caller.status == 500
    assert "secret of ours" not in caller.body.decode()
    assert "secret of ours" in caplog.text
