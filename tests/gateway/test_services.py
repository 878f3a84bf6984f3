"""Embeddings, rerankers, moderation, pictures and sound: passed on as they are, and billed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.gateway.fake_desk import MODEL, Caller, FakeClock, FakeDesk, Hold, Step
from tests.gateway.test_form_fields import TYPE, form, part
from tokenworks.core.errors import WorkerFailed
from tokenworks.core.orders import Usage
from tokenworks.core.slo import Tier
from tokenworks.gateway import services
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.chat_request import IMAGE_TOKENS_MAX
from tokenworks.gateway.services import SERVICES
from tokenworks.gateway.told_usage import told_usage

Run = Callable[[Coroutine[Any, Any, Any]], Any]
EMBEDDINGS = "/v1/embeddings"
ANSWER = (
    b'{"object":"list","data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":3,"total_tokens":3}}'
)


class House:
    def __init__(self, run: Run, *script: Step, content_type: bytes = b"application/json") -> None:
        self.run, self.desk, self.clock = run, FakeDesk(script or (ANSWER,)), FakeClock()
        self.desk.content_type = content_type

    def ask(
        self, path: str = EMBEDDINGS, body: bytes = b"", type_: str = "", **fields: Any
    ) -> Caller:
        body = body or json.dumps({"model": MODEL, **fields}).encode()
        caller = Caller("POST", path, body, {"content-type": type_ or "application/json"})
        self.run(caller.call(Gateway(self.desk, self.clock)))
        return caller


def test_embeddings(run: Run) -> None:
    house = House(run, ANSWER[:20], ANSWER[20:])
    found = house.ask(input=["a", "b"], service_tier="flex", dimensions=4)
    assert (found.status, found.body) == (200, ANSWER)
    assert found.headers["content-type"] == "application/json"
    assert found.headers["x-tokenworks-tier"] == "medium"
    (order,) = house.desk.orders
    assert found.headers["x-request-id"] == order.request
    assert json.loads(order.body) == {"model": MODEL, "input": ["a", "b"], "dimensions": 4}
    assert (order.worker_path, order.tier) == (EMBEDDINGS, Tier.MEDIUM)
    outcome = house.desk.delivery.outcome
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (3, 0)
    assert (outcome.ending, outcome.measured.decode_ns) == ("done", 0)


@pytest.mark.parametrize("when", ["it waits", "it is made"])
def test_a_caller_who_leaves(run: Run, when: str) -> None:
    async def main() -> None:
        desk = FakeDesk([ANSWER[:9], Hold()])
        desk.queued = asyncio.Event()
        gateway = Gateway(desk, FakeClock())
        body = json.dumps({"model": MODEL, "input": "a"}).encode()
        caller = Caller("POST", EMBEDDINGS, body)
        caller.begin(gateway)
        await desk.entered.wait()
        if when == "it is made":
            desk.queued.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        caller.hang_up()
        await asyncio.wait(gateway.serving.values())
        if when == "it waits":
            assert desk.withdrawn == [desk.orders[0].request]
        else:
            assert desk.delivery.aborts
            assert desk.delivery.outcome.ending == "disconnected"
            assert desk.delivery.outcome.usage.prompt_tokens == 0

    run(main())


def test_sound_comes_back_as_it_is(run: Run) -> None:
    house = House(run, b"RIFF\x00", content_type=b"audio/wav")
    found = house.ask("/v1/audio/speech", input="hello", voice="v")
    assert (found.body, found.headers["content-type"]) == (b"RIFF\x00", "audio/wav")
    assert house.desk.delivery.outcome.usage.completion_tokens == 0
    quiet = House(run, b"{}", content_type=b"").ask(input="x")
    assert quiet.headers["content-type"] == "application/json"


def test_a_form_is_passed_on_as_it_came(run: Run) -> None:
    body = form(part("model", MODEL.encode()), part("file", b"RIFF" * 100, "a.wav"))
    told = b'{"text":"hi","usage":{"type":"tokens","input_tokens":14,"output_tokens":2}}'
    house = House(run, told)
    found = house.ask("/v1/audio/transcriptions", body, TYPE.decode())
    assert found.body == told
    (order,) = house.desk.orders
    assert (order.body, order.content_type) == (body, TYPE.decode())
    assert order.input_tokens_max > len(body) // 16
    assert house.desk.delivery.outcome.usage.prompt_tokens == 14


def test_sound_that_is_measured_in_seconds_is_not_billed_by_tokens(run: Run) -> None:
    house = House(run, b'{"text":"hi","usage":{"type":"duration","seconds":9}}')
    body = form(part("model", MODEL.encode()))
    assert house.ask("/v1/audio/translations", body, TYPE.decode()).status == 200
    assert house.desk.delivery.outcome.usage.prompt_tokens == 0


@pytest.mark.parametrize(
    ("path", "fields", "read", "made"),
    [
        (EMBEDDINGS, {"input": "x" * 98}, 100, 1),
        ("/v1/moderations", {"input": "x" * 98}, 100, 1),
        ("/v1/rerank", {"query": "q" * 8, "documents": ["d" * 6] * 2}, 19 + 2 * 10, 1),
        ("/v1/images/generations", {"prompt": "x", "n": 2}, 3, 16_384),
        ("/v1/images/generations", {"prompt": "x"}, 3, 8_192),
        ("/v1/images/edits", {"prompt": "x", "images": [1]}, 3 + IMAGE_TOKENS_MAX, 8_192),
        ("/v1/audio/speech", {"input": "x" * 8}, 10, 80),
    ],
)
def test_what_is_held(run: Run, path: str, fields: Any, read: int, made: int) -> None:
    house = House(run)
    assert house.ask(path, **fields).status == 200
    (order,) = house.desk.orders
    assert (order.input_tokens_max, order.output_tokens_max) == (read, made)


def test_what_is_held_for_a_form(run: Run) -> None:
    house = House(run)
    body = form(part("model", MODEL.encode()), part("prompt", b"x"), part("n", b"3"))
    assert house.ask("/v1/images/edits", body, TYPE.decode()).status == 200
    (order,) = house.desk.orders
    assert order.input_tokens_max == 3 + 10 * IMAGE_TOKENS_MAX
    assert order.output_tokens_max == 3 * 8_192


@pytest.mark.parametrize(
    ("path", "fields", "place"),
    [
        (EMBEDDINGS, {}, "`input`"),
        (EMBEDDINGS, {"input": ""}, "`input`"),
        (EMBEDDINGS, {"input": "x", "model": 4}, "`model`"),
        (EMBEDDINGS, {"input": "x", "service_tier": "x"}, "`service_tier`"),
        ("/v1/rerank", {"documents": ["d"]}, "`query`"),
        ("/v1/rerank", {"query": "q", "documents": "d"}, "`documents`"),
        ("/v1/rerank", {"query": "q", "documents": ["d"] * 5_000}, "`documents`"),
        ("/v1/images/generations", {"prompt": "x", "n": 11}, "`n`"),
        ("/v1/images/generations", {"prompt": "x", "n": "many"}, "`n`"),
        ("/v1/images/generations", {"prompt": "x", "n": True}, "`n`"),
    ],
)
def test_what_is_wrong_is_named(run: Run, path: str, fields: Any, place: str) -> None:
    house = House(run)
    found = house.ask(path, **fields)
    assert (found.status, house.desk.orders) == (400, [])
    assert place in found.json["error"]["message"]


def test_forms_where_none_belongs(run: Run) -> None:
    body = form(part("model", MODEL.encode()))
    house = House(run)
    assert "takes JSON" in house.ask(EMBEDDINGS, body, TYPE.decode()).json["error"]["message"]
    caller = Caller(
        "POST",
        "/v1/audio/transcriptions",
        body,
        {"content-type": TYPE.decode(), "x-tokenworks-adapter": "a"},
    )
    run(caller.call(Gateway(house.desk, house.clock)))
    assert caller.json["error"]["code"] == "not_offered"


def test_an_adapter_is_the_model(run: Run) -> None:
    house = House(run)
    body = json.dumps({"model": MODEL, "input": "x"}).encode()
    caller = Caller("POST", EMBEDDINGS, body, {"x-tokenworks-adapter": "tuned"})
    run(caller.call(Gateway(house.desk, house.clock)))
    assert json.loads(house.desk.orders[0].body)["model"] == "tuned"


@pytest.mark.parametrize(
    "script",
    [
        (b"{", WorkerFailed("It broke off.")),
        (b'{"usage":{"prompt_tokens":-1}}',),
    ],
)
def test_a_worker_that_fails(run: Run, script: tuple[Step, ...]) -> None:
    house = House(run, *script)
    assert house.ask(input="x").status == 502
    assert house.desk.delivery.outcome.ending == "failed"
    assert house.desk.delivery.outcome.usage.prompt_tokens == 0


def test_an_endless_answer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "ANSWER_BYTES_MAX", 3)
    house = House(run, b"1234")
    assert house.ask(input="x").status == 502
    assert house.desk.delivery.aborts == 1


def test_every_service_has_an_example_and_needs_a_key(run: Run) -> None:
    for service in SERVICES:
        assert "model" in service.example
        caller = Caller("POST", service.path, b"{}", {"authorization": "Bearer no"})
        run(caller.call(Gateway(FakeDesk(), FakeClock())))
        assert caller.status == 401


PICTURE_USAGE = (
    b'{"usage":{"input_tokens":9,"input_tokens_details":{"image_tokens":4},'
    b'"output_tokens":7,"output_tokens_details":{"image_tokens":7}}}'
)
ANTHROPIC_EVENTS = (
    b'event: message_start\ndata: {"message":{"usage":{"input_tokens":377,"output_tokens":1,'
    b'"cache_read_input_tokens":9,"cache_creation_input_tokens":4}}}\n\n'
    b'event: message_delta\ndata: {"usage":{"output_tokens":65,"input_tokens":null}}\n\n'
)
EVENTS_WITH_USAGE = (
    b'data: {"type":"a","usage":{"input_tokens":1,"output_tokens":1}}\n\n'
    b'event: b\ndata: {"type":"b","usage":{"input_tokens":2,"output_tokens":3}}\n\n'
)


def used(read: int, made: int, cached_input_tokens: int = 0, **more: int) -> Usage:
    return Usage(
        uncached_input_tokens=read,
        cached_input_tokens=cached_input_tokens,
        output_tokens=made,
        **more,
    )


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b"", None),
        (b'{"data":[]}', None),
        (b'{"text":"\\"usage\\""}', None),
        (b'{"usage":null}', None),
        (b'{"usage":{"seconds":4}}', None),
        (b'{"usage"', None),
        (b'{"usage":{"prompt_tokens":3,"total_tokens":3}}', used(3, 0)),
        (b'{"usage":{"total_tokens":5}}', used(5, 0)),
        (b'{"usage":{"total_tokens":5,"output_tokens":2}}', used(3, 2)),
        (
            PICTURE_USAGE,
            used(5, 0, image_input_tokens=4, image_output_tokens=7),
        ),
        (
            EVENTS_WITH_USAGE,
            used(2, 3),
        ),
        (
            b'data: {"usage":{"input_tokens":1}}\r\n\r\ndata: {"x":"\\"usage\\""}\r\n\r\n',
            used(1, 0),
        ),
        (b'data: "usage"\n\n', None),
        (b'data: {"response":{"usage":{"input_tokens":4,"output_tokens":1}}}\n\n', used(4, 1)),
        (b'data: {"response":{"usage":null}}\n\n', None),
        (ANTHROPIC_EVENTS, used(377, 65, cached_input_tokens=9, cache_write_tokens=4)),
        (b'{"message":"\\"usage\\" is unknown","usage":{"input_tokens":2}}', used(2, 0)),
    ],
)
def test_usage_in_many_words(body: bytes, usage: Usage | None) -> None:
    assert told_usage(body) == usage
