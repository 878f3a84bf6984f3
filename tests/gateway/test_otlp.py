"""Spans and metrics as a collector gets them, by HTTP from the gateway under test."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from tests.gateway.fake_desk import (
    DONE,
    MODEL,
    ROLE,
    STOP,
    Caller,
    FakeClock,
    FakeDesk,
    Hold,
    answer,
    ask,
    chunk,
    usage_event,
)
from tests.gateway.otlp_receiver import WAIT_S_MAX, Receiver, attributes_of
from tokenworks.core.errors import CapacityExceeded, ConfigInvalid, LedgerUnavailable, WorkerFailed
from tokenworks.gateway import otlp as otlp_module
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.metrics import GatewayMetrics
from tokenworks.gateway.otlp import Otlp
from tokenworks.gateway.span_content import AnswerContent, asked_attributes, input_attributes
from tokenworks.gateway.telemetry import Telemetry, telemetry_of
from tokenworks.gateway.traced_desk import TracedDesk

Run = Callable[[Coroutine[Any, Any, Any]], Any]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
SERVER, CLIENT = "POST /v1/chat/completions", f"chat {MODEL}"
OK, ERROR = 0, 2


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Otlp.stop, "__defaults__", (WAIT_S_MAX,))  # the machine may be busy
    made = Receiver()
    yield made
    made.stop()


class House:
    """A gateway whose desk is traced, with its exporter."""

    def __init__(self, receiver: Receiver, *, content: bool = False, **parts: Any) -> None:
        self.desk, self.clock, self.metrics = FakeDesk(answer("Hel", "lo.")), FakeClock(), None
        self.metrics = GatewayMetrics()
        patience = {"spans_every_s": 0.01, "metrics_every_s": 0.02}
        self.otlp = Otlp(receiver.url, self.metrics.tallies, **patience | parts)
        self.metrics.registry.register(self.otlp)
        desk = TracedDesk(self.desk, self.clock, self.otlp, content=content)
        self.gateway = Gateway(desk, self.clock, metrics=self.metrics)

    async def serve(self, caller: Caller) -> Caller:
        return await caller.call(self.gateway)

    def counted(self, result: str) -> float | None:
        name = "tokenworks_telemetry_spans_total"
        return self.metrics.registry.get_sample_value(name, {"result": result})


@pytest.fixture
def house(receiver: Receiver) -> Iterator[Callable[..., House]]:
    made: list[House] = []

    def make(**parts: Any) -> House:
        made.append(House(receiver, **parts))
        made[-1].otlp.start()
        return made[-1]

    yield make
    receiver.hold.set()
    for each in made:
        each.otlp.stop()


def spans(receiver: Receiver) -> tuple[Any, Any]:
    receiver.until(lambda: {SERVER, CLIENT} <= receiver.spans.keys())
    return receiver.spans[SERVER], receiver.spans[CLIENT]


def test_a_request_is_two_spans_in_its_callers_trace(
    run: Run, receiver: Receiver, house: Callable[..., House]
) -> None:
    here = house()
    named = {
        "traceparent": PARENT,
        "tracestate": "vendor=1",
        "x-request-id": "mine",
        "x-tokenworks-session": "talk-1",
        "x-tokenworks-agent": "buyer",
    }
    asked = {"temperature": 0.5, "seed": 7, "stop": ["END"], "max_tokens": 9}
    caller = run(here.serve(ask(named=named, **asked)))
    assert caller.status == 200
    server, client = spans(receiver)
    assert server.trace_id.hex() == client.trace_id.hex() == TRACE
    assert server.parent_span_id.hex() == "00f067aa0ba902b7"
    assert client.parent_span_id == server.span_id
    assert (server.kind, client.kind) == (2, 3)  # SERVER, CLIENT
    assert server.trace_state == "vendor=1"
    order = here.desk.orders[0]
    assert order.trace is not None
    assert order.trace.parent == f"00-{TRACE}-{client.span_id.hex()}-01"
    assert order.trace.state == "vendor=1"
    found = attributes_of(server)
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "tokenworks.request.id": order.request,
        "tokenworks.request.caller_id": "mine",
    }
    assert attributes_of(client) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "tokenworks",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stop_sequences": ["END"],
        "gen_ai.conversation.id": "talk-1",
        "gen_ai.agent.name": "buyer",
        "gen_ai.response.model": MODEL,
        "gen_ai.response.time_to_first_chunk": 0.0,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.cache_creation.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": 0,
        "tokenworks.request.id": order.request,
        "tokenworks.request.caller_id": "mine",
        "tokenworks.tier.asked": "high",
        "tokenworks.tier.delivered": "medium",
        "tokenworks.ending": "done",
        "tokenworks.pool": "p",
        "tokenworks.worker": "w",
        "tokenworks.queue.wait": 0.0,
        "tokenworks.charged_nanodollars": 1_500,
        "tokenworks.credited_nanodollars": 0,
        "tokenworks.cost_nanodollars": 0,
    }
    assert client.status.code == server.status.code == OK
    assert client.start_time_unix_nano == client.end_time_unix_nano == here.clock.unix_ns()


def test_neither_key_nor_tenant_nor_content_leaves_unless_content_is_asked_for(
    run: Run, receiver: Receiver, house: Callable[..., House]
) -> None:
    here = house()
    run(here.serve(ask(messages=[{"role": "user", "content": "a secret plan"}])))
    sent = b"".join(span.SerializeToString() for span in spans(receiver))
    for word in (b"secret plan", b"Hel", b"acme", b"tw-secret", b"k1"):
        assert word not in sent


def test_content_is_sent_where_it_is_asked_for(
    run: Run, receiver: Receiver, house: Callable[..., House]
) -> None:
    here = house(content=True)
    call = {"index": 0, "id": "c1", "function": {"name": "drain", "arguments": '{"w":1}'}}
    here.desk.script = [
        ROLE,
        chunk({"content": "Hel"}),
        chunk({"content": "lo."}),
        chunk({"tool_calls": [call]}),
        STOP,
        usage_event(7, 3),
        DONE,
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "tool", "content": "42", "tool_call_id": "c0"},
    ]
    assert run(here.serve(ask(messages=messages))).status == 200
    _, client = spans(receiver)
    found = attributes_of(client)
    assert json.loads(found["gen_ai.input.messages"]) == [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
        {
            "role": "user",
            "parts": [{"type": "text", "content": "Hi"}],
        },
        {
            "role": "tool",
            "parts": [{"type": "tool_call_response", "id": "c0", "response": "42"}],
        },
    ]
    (said,) = json.loads(found["gen_ai.output.messages"])
    assert said["finish_reason"] == "stop"
    assert said["parts"] == [
        {"type": "text", "content": "Hello."},
        {"type": "tool_call", "id": "c1", "name": "drain", "arguments": '{"w":1}'},
    ]
    assert found["gen_ai.response.finish_reasons"] == ["stop"]
    assert found["gen_ai.response.id"] == "chatcmpl-1"


@pytest.mark.parametrize(
    ("error", "code", "status", "wrong"),
    [
        (CapacityExceeded("full"), "capacity_exceeded", 429, OK),
        (WorkerFailed("it broke"), "worker_failed", 502, ERROR),
        (ZeroDivisionError("ours"), "ZeroDivisionError", 500, ERROR),
    ],
)
def test_what_is_refused_ends_its_spans(
    run: Run,
    receiver: Receiver,
    house: Callable[..., House],
    error: Any,
    code: str,
    status: int,
    wrong: int,
) -> None:
    here = house()
    here.desk.open_error = error
    assert run(here.serve(ask())).status == status
    server, client = spans(receiver)
    assert attributes_of(client)["error.type"] == code
    assert attributes_of(server)["http.response.status_code"] == status
    assert (client.status.code, server.status.code) == (ERROR, wrong)


def test_callers_who_leave_end_their_spans(
    run: Run, receiver: Receiver, house: Callable[..., House]
) -> None:
    here = house()
    caller = ask()
    here.desk.script = [ROLE, caller.hang_up, Hold()]
    run(here.serve(caller))
    server, client = spans(receiver)
    assert attributes_of(client)["tokenworks.ending"] == "disconnected"
    assert attributes_of(client)["error.type"] == "disconnected"
    assert attributes_of(server)["http.response.status_code"] == 499


def test_callers_who_leave_while_they_wait_end_their_spans(
    run: Run, receiver: Receiver, house: Callable[..., House]
) -> None:
    here = house()

    async def main() -> None:
        here.desk.queued = asyncio.Event()
        caller = ask()
        serving = asyncio.ensure_future(here.serve(caller))
        await here.desk.entered.wait()
        caller.hang_up()
        await serving

    run(main())
    _, client = spans(receiver)
    assert attributes_of(client)["error.type"] == "disconnected"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LedgerUnavailable("no disk"), "ledger_unavailable"),
        (ZeroDivisionError(), "ZeroDivisionErr"),
    ],
)
def test_an_answer_that_cannot_be_billed_ends_its_spans(
    run: Run, receiver: Receiver, house: Callable[..., House], error: Exception, code: str
) -> None:
    here = house()
    here.desk.settle_error = error
    run(here.serve(ask()))
    _, client = spans(receiver)
    assert attributes_of(client)["error.type"].startswith(code)


def test_the_other_questions_go_to_the_desk(run: Run, house: Callable[..., House]) -> None:
    here = house()
    assert run(here.serve(Caller("GET", "/healthz"))).json["status"] == "ok"
    assert len(run(here.serve(Caller("GET", "/v1/models"))).json["data"]) == 2


def test_metrics_by_the_conventions_names_and_buckets(
    run: Run, receiver: Receiver, house: Callable[..., House]
) -> None:
    here = house()
    run(here.serve(ask()))
    receiver.until(lambda: receiver.metrics.get("gen_ai.client.token.usage"))
    receiver.until(lambda: receiver.metrics["gen_ai.server.time_to_first_token"])
    assert receiver.units == {
        "gen_ai.client.token.usage": "{token}",
        "gen_ai.server.request.duration": "s",
        "gen_ai.server.time_to_first_token": "s",
        "gen_ai.server.time_per_output_token": "s",
    }
    common = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "tokenworks",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
    }
    usage = {
        attributes_of(point)["gen_ai.token.type"]: point
        for point in receiver.metrics["gen_ai.client.token.usage"]
    }
    assert attributes_of(usage["input"]) == common | {"gen_ai.token.type": "input"}
    assert (usage["input"].count, usage["input"].sum) == (1, 7)
    assert list(usage["input"].explicit_bounds)[:3] == [1, 4, 16]
    assert list(usage["input"].bucket_counts)[:4] == [0, 0, 1, 0]
    assert not usage["input"].HasField("min")
    (duration,) = receiver.metrics["gen_ai.server.request.duration"]
    assert attributes_of(duration) == common
    assert list(duration.explicit_bounds)[-1] == 81.92


def test_who_sends_is_said_by_default_and_as_told(
    run: Run,
    receiver: Receiver,
    house: Callable[..., House],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(house().serve(ask()))
    receiver.until(lambda: receiver.resources)
    assert receiver.resources[-1]["service.name"] == "tokenworks"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "our-gateway")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=abc")
    run(house().serve(ask()))
    # What the first one still has to say may come in between, and after.
    receiver.until(lambda: "our-gateway" in {each["service.name"] for each in receiver.resources})
    receiver.until(lambda: receiver.headers.get("x-token") == "abc")


def test_a_sampler_that_drops_a_trace_drops_it_and_the_worker_is_told(
    run: Run,
    receiver: Receiver,
    house: Callable[..., House],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")
    here = house()
    run(here.serve(ask(named={"traceparent": PARENT[:-2] + "00"})))
    trace = here.desk.orders[0].trace
    assert trace is not None
    assert trace.parent.startswith(f"00-{TRACE}-")
    assert trace.parent.endswith("-00")
    run(here.serve(ask()))
    server, _ = spans(receiver)
    assert server.trace_id.hex() != TRACE
    assert receiver.span_count == 2


def test_signals_can_be_turned_off(
    run: Run,
    receiver: Receiver,
    house: Callable[..., House],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    here = house()
    run(here.serve(ask()))
    spans(receiver)
    here.otlp.stop()
    assert receiver.metrics == {}
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    here = house()
    count = receiver.span_count
    run(here.serve(ask()))
    receiver.until(lambda: receiver.metrics)
    here.otlp.stop()
    assert receiver.span_count == count


# What goes wrong on the way.


def test_a_collector_that_hangs_delays_no_answer_and_what_is_too_much_is_dropped(
    run: Run, receiver: Receiver, house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp_module, "BATCH_MAX", 2)
    receiver.hold.clear()
    # As many spans as are a batch are exported at once, and before there is no time for it.
    here = house(spans_max=4, spans_every_s=3_600.0, metrics_every_s=3_600.0)
    run(here.serve(ask()))
    assert receiver.asked.wait(WAIT_S_MAX)  # the thread waits for the collector from here on
    for _ in range(5):
        assert run(here.serve(ask())).complete
    assert here.counted("dropped") == 10 - 4
    assert receiver.span_count == 0
    receiver.hold.set()
    receiver.until(lambda: receiver.span_count == 6)
    here.otlp.stop()
    assert here.counted("exported") == 6


def test_a_collector_that_refuses_costs_its_spans_and_nothing_else(
    run: Run, receiver: Receiver, house: Callable[..., House]
) -> None:
    receiver.status = 400
    here = house()
    assert run(here.serve(ask())).status == 200
    here.otlp.stop()
    assert here.counted("failed") == 2
    assert here.counted("exported") == 0


def test_the_end_waits_for_a_hanging_collector_for_a_bounded_time(
    run: Run, receiver: Receiver, house: Callable[..., House]
) -> None:
    receiver.hold.clear()
    here = house()
    run(here.serve(ask()))
    assert receiver.asked.wait(WAIT_S_MAX)
    here.otlp.stop(wait_s=0.0)
    assert receiver.span_count == 0


def test_what_is_left_is_exported_at_the_end(
    run: Run, receiver: Receiver, house: Callable[..., House]
) -> None:
    here = house(spans_every_s=60.0, metrics_every_s=60.0)
    run(here.serve(ask()))
    here.otlp.stop()
    assert receiver.span_count == 2
    assert receiver.metrics["gen_ai.client.token.usage"]


# Settings and variables.


@pytest.mark.parametrize(
    ("otlp", "content", "variables", "wanted"),
    [
        ("", False, {}, None),
        ("", True, {}, None),
        ("http://c", False, {}, Telemetry(endpoint="http://c", content=False)),
        ("http://c", True, {}, Telemetry(endpoint="http://c", content=True)),
        ("http://c", True, {"OTEL_SDK_DISABLED": "TRUE"}, None),
        (
            "",
            False,
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"},
            Telemetry(endpoint=None, content=False),
        ),
        (
            "",
            False,
            {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c",
                "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "True",
            },
            Telemetry(endpoint=None, content=True),
        ),
        (
            "http://c",
            False,
            {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "EVENT_ONLY"},
            Telemetry(endpoint="http://c", content=False),
        ),
    ],
)
def test_what_is_exported(
    otlp: str, content: bool, variables: dict[str, str], wanted: Telemetry | None
) -> None:
    assert telemetry_of(otlp, content, variables) == wanted


def test_another_protocol_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="grpc"):
        telemetry_of("http://c", False, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})


def test_nothing_of_opentelemetry_is_imported_where_it_is_off() -> None:
    code = (
        "import sys, tokenworks.cli.wiring, tokenworks.gateway.traced_desk\n"
        "print(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# Content.


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"messages": 7}', b"\xff"])
def test_a_body_that_cannot_be_read_has_no_attributes(body: bytes) -> None:
    assert input_attributes(body) == {}
    assert asked_attributes(body) == {}


def test_of_pictures_only_that_they_are_there_is_content() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    parts = [{"type": "text", "text": "Hi"}, picture]
    body = json.dumps({"messages": [{"role": "user", "content": parts}]}).encode()
    (said,) = json.loads(str(input_attributes(body)["gen_ai.input.messages"]))
    assert said["parts"] == [{"type": "text", "content": "Hi"}, {"type": "image_url"}]


def test_content_that_is_too_long_is_left_out_and_measured() -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 300_000}]}).encode()
    assert input_attributes(body) == {"tokenworks.content.left_out_bytes": 300_056}
    answered = AnswerContent()
    for _ in range(50):
        answered.add(chunk({"content": "y" * 100_000}))
    found = answered.attributes()
    assert found.keys() == {"tokenworks.content.left_out_bytes"}


@pytest.mark.parametrize("data", [b"data: nonsense\n\n", b'data: {"choices":[{"index":"a"}]}\n\n'])
def test_an_answer_that_cannot_be_read_is_left_out(data: bytes) -> None:
    answered = AnswerContent()
    answered.add(data)
    answered.add(b"data: [DONE]\n\n")
    assert answered.attributes().keys() == {"tokenworks.content.left_out_bytes"}


def test_an_answer_in_one_piece_is_content_too() -> None:
    message = {"role": "assistant", "content": "Hi"}
    body = json.dumps({"id": "c", "choices": [{"message": message, "finish_reason": "stop"}]})
    answered = AnswerContent(in_one_piece=True)
    for part in (body[:9], body[9:]):
        answered.add(part.encode())
    found = answered.attributes()
    (said,) = json.loads(str(found["gen_ai.output.messages"]))
    assert said["parts"] == [{"type": "text", "content": "Hi"}]
    assert (found["gen_ai.response.id"], said["finish_reason"]) == ("c", "stop")
    answered.add(b"x")
    assert answered.attributes().keys() == {"tokenworks.content.left_out_bytes"}


@pytest.mark.parametrize("said", [b'{"id":"\xff"}', b'{"x":' * 9_999], ids=["bytes", "deep"])
def test_an_answer_in_one_piece_that_cannot_be_read_fails_by_itself(
    run: Run, receiver: Receiver, house: Callable[..., House], said: bytes
) -> None:
    here = house(content=True)
    here.desk.script, here.desk.in_one_piece = [said], frozenset({MODEL})
    here.gateway = Gateway(TracedDesk(here.desk, here.clock, here.otlp, content=True), here.clock)
    caller = run(here.serve(ask(stream=False)))
    assert (caller.status, caller.json["error"]["code"]) == (502, "worker_failed")
    found = attributes_of(spans(receiver)[1])
    assert (found["tokenworks.ending"], found["error.type"]) == ("failed", "worker_failed")
    assert found["tokenworks.content.left_out_bytes"] == len(said)


def test_what_comes_after_the_end_of_an_answer_is_not_read() -> None:
    answered = AnswerContent()
    for part in answer("a"):
        assert isinstance(part, bytes)
        answered.add(part)
    answered.add(b"data: nonsense\n\n")
    assert "gen_ai.output.messages" in answered.attributes()


# Other routes.


@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        ("/v1/completions", {"prompt": "Hi"}, "text_completion"),
        ("/v1/embeddings", {"input": "Hi"}, "embeddings"),
        ("/v1/responses", {"input": "Hi"}, "chat"),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5},
            "chat",
        ),
    ],
)
def test_each_route_has_its_own_name_and_its_operation(
    run: Run,
    receiver: Receiver,
    house: Callable[..., House],
    path: str,
    body: dict[str, Any],
    operation: str,
) -> None:
    here = house(content=True)
    if path == "/v1/embeddings":
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        here.desk.script = [json.dumps({"data": [], "usage": usage}).encode()]
    request = json.dumps({"model": MODEL, **body}).encode()
    named = {"content-type": "application/json"}
    run(here.serve(Caller("POST", path, request, named)))
    receiver.until(lambda: f"POST {path}" in receiver.spans)
    client = receiver.spans[f"{operation} {MODEL}"]
    assert attributes_of(receiver.spans[f"POST {path}"])["http.route"] == path
    assert attributes_of(client)["gen_ai.operation.name"] == operation
    assert ("gen_ai.output.messages" in attributes_of(client)) == (operation == "chat")
    receiver.until(lambda: receiver.metrics.get("gen_ai.server.request.duration"))
    (point,) = receiver.metrics["gen_ai.server.request.duration"]
    assert attributes_of(point)["gen_ai.operation.name"] == operation
