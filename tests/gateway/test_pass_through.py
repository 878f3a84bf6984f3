"""Requests passed on as they came, and what is held and billed for them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.gateway.fake_desk import Caller, FakeClock, FakeDesk, Hold, Step, event, usage
from tokenworks.core.errors import LedgerUnavailable, WorkerFailed
from tokenworks.core.ids import ModelName
from tokenworks.core.orders import Passing
from tokenworks.core.slo import Tier
from tokenworks.gateway import content_coding, pass_through
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.pass_through import ANY_MODEL, UsageWatch, output_limit, prompt_estimate
from tokenworks.gateway.worker_chunks import nothing_used

Run = Callable[[Coroutine[Any, Any, Any]], Any]
JSON = b"application/json"
ANSWER = b'{"id":"x","usage":{"input_tokens":3,"output_tokens":2}}'


class House:
    def __init__(self, run: Run, *script: Step, content_type: bytes = JSON) -> None:
        self.run, self.desk = run, FakeDesk(script or (ANSWER,))
        self.desk.served = (ANY_MODEL,)
        self.desk.content_type = content_type
        self.gateway = Gateway(self.desk, FakeClock(), passes_on=True)

    def ask(self, path: str, method: str = "POST", body: bytes = b"{}", **headers: str) -> Caller:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        caller = Caller(method, path, body if method == "POST" else b"", named)
        self.run(caller.call(self.gateway))
        return caller

    @property
    def passing(self) -> Passing:
        passing = self.desk.orders[-1].passing
        assert passing is not None
        return passing


def test_a_price_book_that_sells_it_no_more(run: Run) -> None:
    house = House(run)
    house.desk.served = ()
    found = house.ask("/v1/chat/completions")
    assert (found.status, json.loads(found.body)["error"]["code"]) == (404, "model_not_found")
    assert house.desk.orders == []


def test_a_request_and_its_answer_as_they_are(run: Run) -> None:
    house = House(run, ANSWER[:9], ANSWER[9:])
    house.desk.status = 201
    house.desk.headers = [
        (b"openai-version", b"1"),
        (b"set-cookie", b"a=b"),
        (b"content-length", b"9"),
        (b"x-request-id", b"theirs"),
        (b"connection", b"X-Hop"),
        (b"x-hop", b"theirs and ours alone"),
    ]
    body = json.dumps({"model": "gpt", "max_tokens": 7}).encode()
    found = house.ask(
        "/v1/chat/completions?a=b%20c",
        body=body,
        openai_beta="x",
        cookie="c=d",
        x_api_key="tw-other",
        x_tokenworks_session="s",
        accept_encoding="gzip",
        connection="keep-alive, X-Hop",
        x_hop="theirs and ours alone",
    )
    assert (found.status, found.body) == (201, ANSWER)
    assert found.headers["openai-version"] == "1"
    assert found.headers["content-type"] == "application/json"
    assert not {"set-cookie", "x-hop"} & found.headers.keys()
    assert found.headers["x-request-id"] == house.desk.orders[0].request
    order = house.desk.orders[0]
    assert (order.model, order.body, order.tier) == (ANY_MODEL, body, Tier.HIGH)
    assert (order.input_tokens_max, order.output_tokens_max) == (len(body) + 1, 7)
    assert order.session == "s"
    assert (house.passing.method, house.passing.target) == (
        "POST",
        "/chat/completions?a=b%20c",
    )
    assert dict(house.passing.headers) == {
        b"openai-beta": b"x",
        b"accept-encoding": b"identity",
    }
    outcome = house.desk.delivery.outcome
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (3, 2)
    assert (outcome.ending, outcome.metered_by) == ("done", "worker")
    assert not outcome.streamed


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_what_makes_no_tokens_costs_none(run: Run, method: str) -> None:
    house = House(run, b'{"data":[]}')
    found = house.ask("/v1/files/f%C3%A9", method)
    assert found.json == {"data": []}
    assert (house.passing.method, house.passing.target) == (method, "/files/f%C3%A9")
    assert house.ask("/files/f", method).status == 200
    assert house.passing.target == "/files/f"
    assert house.desk.orders[0].output_tokens_max == 1
    assert house.desk.deliveries[0].outcome.usage.completion_tokens == 0


@pytest.mark.parametrize(
    "path",
    [
        "/v1/organization/admin_api_keys",
        "/v1/files/../organization/users",
        "/v1/files/%2e%2e/organization/users",
        "/v1/files/..%2forganization",
        "/v1/%6fdels",
        "/v1/files/..%5corganization",
        "/v1xmodels",
        "/v1-models",
        "/v1/",
    ],
)
def test_paths_that_are_not_passed_on(run: Run, path: str) -> None:
    house = House(run)
    found = house.ask(path, "GET")
    assert (found.status, house.desk.orders) == (404, [])
    assert "/v1 and one of" in found.json["error"]["message"]


def test_a_key_is_needed_and_other_routes_stay(run: Run) -> None:
    house = House(run)
    assert house.ask("/v1/models", "GET", authorization="Bearer no").status == 401
    assert house.ask("/healthz", "GET").status == 200
    assert house.ask("/metrics", "GET").status == 200


EVENTS = b"text/event-stream; charset=utf-8"


def test_a_stream_is_passed_on_as_it_comes(run: Run) -> None:
    parts = [event({"n": 1}), event({"n": 2})[:5], event({"n": 2})[5:]]
    last = event({"choices": [], "usage": usage(5, 2)}) + b"data: [DONE]\n\n"
    house = House(run, *parts, last, content_type=EVENTS)
    found = house.ask("/v1/chat/completions")
    assert found.body == b"".join(parts) + last
    assert found.headers["content-type"] == EVENTS.decode()
    outcome = house.desk.delivery.outcome
    assert outcome.usage.prompt_tokens == 5
    assert outcome.streamed


def test_a_caller_who_leaves_pays_for_what_was_seen(run: Run) -> None:
    house = House(run, PART, PART, Hold(), content_type=EVENTS)
    caller = Caller("POST", "/v1/chat/completions", b"{}")
    caller.on_write = lambda count: caller.hang_up() if count == 1 else None
    run(caller.call(house.gateway))
    delivery = house.desk.delivery
    assert delivery.aborts >= 1
    assert delivery.outcome.ending == "disconnected"
    assert delivery.outcome.metered_by == "gateway"
    assert delivery.outcome.usage.completion_tokens >= 1


def test_a_provider_that_breaks_off_gives_no_whole_answer(run: Run) -> None:
    house = House(run, event({"n": 1}), WorkerFailed("It broke off."), content_type=EVENTS)
    found = house.ask("/v1/chat/completions")
    assert found.transport.aborted
    assert not found.transport.writes[-1].endswith(b"0\r\n\r\n")
    assert house.desk.delivery.outcome.ending == "failed"


def test_what_cannot_be_billed_has_no_end(run: Run) -> None:
    house = House(run)
    house.desk.settle_error = LedgerUnavailable("The disk is full.")
    found = house.ask("/v1/chat/completions")
    assert found.transport.aborted
    assert house.gateway.serving == {}


@pytest.mark.parametrize("status", [529, 999])
def test_statuses_that_http_does_not_name(run: Run, status: int) -> None:
    house = House(run, b'{"type":"error"}')
    house.desk.status = status
    found = house.ask("/v1/messages")
    assert (found.status, found.body) == (status, b'{"type":"error"}')
    assert house.desk.delivery.outcome.ending == "done"


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("POST", 204), ("GET", 304)])
def test_answers_without_a_body(run: Run, method: str, status: int) -> None:
    house = House(run, b"what is no body", content_type=b"")
    house.desk.status = status
    found = house.ask("/v1/files/f", method)
    head, _, rest = found.received.partition(b"\r\n\r\n")
    assert (found.status, rest) == (status, b"")
    assert b"transfer-encoding" not in head
    assert b"content-type" not in head
    assert not found.transport.closed


def test_a_mistake_of_ours_leaves_nothing_open(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a mistake")

    house = House(run)
    monkeypatch.setattr(UsageWatch, "feed", broken)
    found = house.ask("/v1/messages")
    assert found.transport.aborted
    assert house.desk.delivery.outcome.ending == "failed"
    assert house.desk.delivery.aborts == 1


def test_a_mistake_in_telling_usage_bills_nothing_and_holds_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(watch: UsageWatch) -> None:
        raise IndexError("of ours")

    house = House(run, ANSWER)
    monkeypatch.setattr(UsageWatch, "usage", broken)
    found = house.ask("/v1/chat/completions")
    assert found.transport.aborted
    outcome = house.desk.delivery.outcome
    assert (outcome.ending, outcome.usage) == ("failed", nothing_used())


def test_a_refusal_of_ours_has_the_callers_shape(run: Run) -> None:
    house = House(run)
    house.desk.open_error = WorkerFailed("Nobody is there.")
    assert house.ask("/v1/embeddings").json["error"]["code"] == "worker_failed"
    assert house.ask("/v1/messages").json["type"] == "error"
    refused = house.ask("/v1/messages/count_tokens", authorization="Bearer no")
    assert refused.json["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        (b"", 100),
        (b'{"max_tokens":5}', 5),
        (b'{"max_output_tokens" : 7, "max_tokens":5}', 7),
        (b'{"max_tokens":null}', 100),
        (b'{"max_tokens":0}', 1),
        (b'{"max_tokens":9999999}', 1 << 20),
    ],
)
def test_what_is_held(body: bytes, limit: int) -> None:
    assert output_limit(body, 100) == limit


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_usage_however_a_stream_is_cut(size: int) -> None:
    whole = (
        event({"type": "response.created", "response": {"usage": None}})
        + event({"type": "response.completed", "response": {"usage": {"input_tokens": 4}}})
    ).replace(b"\n", b"\r\n")
    watch = UsageWatch(EVENTS)
    for at in range(0, len(whole), size):
        watch.feed(whole[at : at + size])
    found = watch.usage()
    assert found is not None
    assert found.prompt_tokens == 4


def test_usage_that_is_not_told_or_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for content_type, body in ((b"audio/wav", ANSWER), (JSON, b'{"usage":{"input_tokens":-4}}')):
        watch = UsageWatch(content_type)
        watch.feed(body)
        assert watch.usage() is None
        assert watch.seen(watch.usage()).completion_tokens == 0
    monkeypatch.setattr(pass_through, "WATCHED_BYTES_MAX", 10)
    half = b'"usage":{"prompt_tokens":5,"prompt_tokens_details":{"\\ud800":1}}}'
    ends = ((ANSWER, 3), (b"x" * 70_000, None), (b'"usage":[1]}', None), (half, None))
    for end, prompt_tokens in ends:
        watch = UsageWatch(JSON)
        watch.feed(b'{"data":"long",')
        watch.feed(end)
        found = watch.usage()
        assert (None if found is None else found.prompt_tokens) == prompt_tokens
    assert ModelName("*") == ANY_MODEL


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (b"", ANSWER),
        (JSON, b"\n " + ANSWER),
        (EVENTS, b"data: " + ANSWER),
        (EVENTS, event({"usage": {"input_tokens": 3, "output_tokens": 1}}) + b"data: " + ANSWER),
    ],
)
def test_usage_in_odd_places(content_type: bytes, body: bytes) -> None:
    watch = UsageWatch(content_type)
    watch.feed(body)
    found = watch.usage()
    assert found is not None
    assert (found.prompt_tokens, found.completion_tokens) == (3, 2)


def told(**words: int) -> bytes:
    return event({"type": "x", "usage": words})


PART, TEXT = event({"type": "x", "delta": {}}), event({"choices": [{"text": "a"}]})
PING = event({"type": "ping"})
ROLE = event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
WORD = event({"choices": [{"delta": {"content": "a"}, "finish_reason": None}]})
CALL = event({"choices": [{"delta": {"role": "assistant", "tool_calls": [{"id": "c"}]}}]})
END = event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
UNREAD = b'data: {"choices":[{"text":"a"\n\n'


@pytest.mark.parametrize(
    ("events", "seen"),
    [
        ((told(input_tokens=9, output_tokens=1), PING, PART, PART, PART), (9, 3)),
        ((told(input_tokens=9, output_tokens=1),), (9, 1)),
        ((PART, told(input_tokens=9, output_tokens=4), PART), (9, 5)),
        ((TEXT, TEXT), (1, 2)),
        ((ROLE, WORD, WORD), (1, 2)),
        ((ROLE,), (1, 0)),
        ((CALL, WORD, END), (1, 2)),
        ((WORD, UNREAD), (1, 2)),
    ],
)
def test_what_was_seen_of_a_stream_that_breaks_off(
    run: Run, events: tuple[bytes, ...], seen: tuple[int, int]
) -> None:
    house = House(run, *events, WorkerFailed("It broke off."), content_type=EVENTS)
    house.ask("/v1/messages")
    usage = house.desk.delivery.outcome.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == seen


@pytest.mark.parametrize(("status", "prompt_tokens"), [(200, 25), (429, 0)])
def test_a_prompt_is_billed_when_a_stream_tells_no_usage(
    run: Run, status: int, prompt_tokens: int
) -> None:
    house = House(run, TEXT, b"data: [DONE]\n\n", content_type=EVENTS)
    house.desk.status = status
    picture = b'"data:image/png;base64,' + b"iVBOR/+=" * 50 + b'"'
    words = b'{"stream": true, "messages": ['
    body = words + picture + b" " * (100 - len(words) - 4) + b"]}"
    house.ask("/v1/chat/completions", body=body)
    outcome = house.desk.delivery.outcome
    assert outcome.metered_by == "gateway"
    assert outcome.usage.prompt_tokens == prompt_tokens
    assert outcome.usage.prompt_tokens <= house.desk.orders[0].input_tokens_max


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/responses/r?include=x"),
        ("POST", "/v1/responses/r/cancel"),
        ("POST", "/v1/batches"),
        ("POST", "/v1/chat/completions/c"),
    ],
)
def test_what_was_made_before_is_not_billed_again(run: Run, method: str, path: str) -> None:
    house = House(run)
    assert house.ask(path, method).body == ANSWER
    usage = house.desk.delivery.outcome.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (0, 0)


def test_a_caller_who_leaves_near_the_end_of_a_whole_answer_pays_for_it(run: Run) -> None:
    house = House(run, ANSWER[:20], ANSWER[20:])
    caller = Caller("POST", "/v1/embeddings", b"{}")
    caller.on_write = lambda _: caller.hang_up()
    run(caller.call(house.gateway))
    outcome = house.desk.delivery.outcome
    assert (outcome.ending, outcome.usage.prompt_tokens) == ("disconnected", 3)


def test_a_caller_who_leaves_long_before_the_end_keeps_no_slot(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_through, "LEFT_S_MAX", 0.0)
    house = House(run, ANSWER[:20], Hold(), ANSWER[20:])
    caller = Caller("POST", "/v1/embeddings", b"{}")
    caller.on_write = lambda _: caller.hang_up()
    run(caller.call(house.gateway))
    outcome = house.desk.delivery.outcome
    assert (outcome.ending, outcome.usage.prompt_tokens) == ("disconnected", 0)
    assert house.desk.delivery.aborts == 1


_RAW = zlib.compressobj(wbits=-zlib.MAX_WBITS)
RAW = _RAW.compress(ANSWER) + _RAW.flush()


def zipped(data: bytes) -> bytes:
    """Without the time: a test's case is the same in every process that collects it."""
    return gzip.compress(data, mtime=0)


BOMB = zipped(b"x" * 200_000)
LONG = zipped(b'{"a":"%b",' % (b"x" * 300_000) + ANSWER[1:])


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"gzip", zipped(ANSWER)),
        (b" X-GZip ", zipped(ANSWER[:9]) + zipped(ANSWER[9:])),
        (b"deflate", zlib.compress(ANSWER)),
        (b"deflate", RAW),
        (b"identity", ANSWER),
        (b"gzip", LONG),
    ],
)
def test_usage_of_an_answer_that_came_compressed(run: Run, coding: bytes, body: bytes) -> None:
    house = House(run, body[:4], body[4:])
    house.desk.headers = [(b"content-encoding", coding)]
    found = house.ask("/v1/responses")
    assert (found.status, found.body) == (200, body)
    outcome = house.desk.delivery.outcome
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (3, 2)
    assert outcome.metered_by == "worker"


@pytest.mark.parametrize(
    ("coding", "body", "made"),
    [
        (b"br", b"x" * 41, 11),
        (b"br", b"x" * 4_000, 100),
        (b"gzip, gzip", b"x" * 4, 1),
        (b"gzip", b"neither", 2),
        (b"gzip", zipped(ANSWER)[:20], 5),
        (b"gzip", BOMB, -(-len(BOMB) // 4)),
    ],
)
def test_an_answer_that_cannot_be_read_is_billed_by_its_length(
    run: Run, monkeypatch: pytest.MonkeyPatch, coding: bytes, body: bytes, made: int
) -> None:
    monkeypatch.setattr(content_coding, "DECODED_BYTES_MAX", 100_000)
    house = House(run, body)
    house.desk.headers = [(b"content-encoding", coding)]
    house.ask("/v1/responses", body=b'{"max_output_tokens": 100}      ')
    outcome = house.desk.delivery.outcome
    assert outcome.metered_by == "gateway"
    assert outcome.usage.prompt_tokens == 8
    assert outcome.usage.completion_tokens == made


def test_files_inside_a_prompt_are_no_text() -> None:
    sound = b"iVBOR/+=" * 100
    around = len(b'{"input_audio":{"format":"wav","data":}}')
    body = b'{"input_audio":{"format":"wav","data":"%b"}}' % sound
    assert prompt_estimate(body) == around // 4
    assert prompt_estimate(b'{"u":"data:text/plain;charset=utf-8;base64,%b"}' % sound) == 2
    assert prompt_estimate(b'{"a":"%b"}' % (b"a word " * 100)) == 177
    assert prompt_estimate(b'--x\r\ncontent-disposition: form-data; name="file"') == 0


@pytest.mark.parametrize(
    "said", [b"close, X-A", b"x-a", b",, X-A\t,keep-alive", b"content-length, authorization, X-A"]
)
def test_headers_of_one_connection_go_no_further(run: Run, said: bytes) -> None:
    house = House(run)
    house.desk.headers = [(b"connection", b"close"), (b"connection", said), (b"x-a", b"1")]
    house.desk.headers += [(b"proxy-connection", b"close"), (b"x-b", b"2")]
    found = house.ask(
        *("/v1/messages", "POST", b'{"a": 1}'),
        connection=said.decode(),
        x_a="1",
        x_b="2",
        proxy_connection="close",
    )
    assert found.status == 200
    assert found.body == ANSWER
    assert not {"x-a", "proxy-connection"} & found.headers.keys()
    assert found.headers["x-b"] == "2"
    assert dict(house.passing.headers) == {b"x-b": b"2", b"accept-encoding": b"identity"}
    assert house.desk.orders[0].body == b'{"a": 1}'


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/v1/batches/b/cancel"])
def test_files_and_batches_are_the_providers(run: Run, path: str) -> None:
    house = House(run, b"{}")
    house.ask(path)
    assert house.passing.target == path.removeprefix("/v1")
