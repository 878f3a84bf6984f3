"""An answer in one piece: what the worker is asked, what the caller gets, and what is billed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.fake_desk import (
    DONE,
    MODEL,
    ROLE,
    SECRET,
    STOP,
    Caller,
    FakeClock,
    FakeDesk,
    Hold,
    Step,
    answer,
    ask,
    chunk,
    token,
    usage,
)
from tokenworks.core.errors import WorkerFailed
from tokenworks.core.orders import Outcome
from tokenworks.core.slo import Tier
from tokenworks.gateway import answer as answers
from tokenworks.gateway import one_piece
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.chunk_reading import usage_of
from tokenworks.gateway.one_piece import OnePiece

Run = Callable[[Coroutine[Any, Any, Any]], Any]
MS = 1_000_000
COMPLETIONS = "/v1/completions"
MESSAGE = {"role": "assistant", "content": "abc"}
CHOICE = {"index": 0, "message": MESSAGE, "logprobs": None, "finish_reason": "stop"}
HEAD = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "foreman"}


def said(*, choices: object = (CHOICE,), **more: Any) -> bytes:
    """A whole answer of a worker's."""
    return json.dumps({**HEAD, "choices": choices, "usage": usage(7, 3), **more}).encode()


class House:
    """A gateway whose workers answer in one piece."""

    def __init__(self, *script: Step) -> None:
        self.desk = FakeDesk(script, in_one_piece=frozenset({MODEL}))
        self.clock = FakeClock()
        self.gateway = Gateway(self.desk, self.clock)

    async def serve(self, caller: Caller) -> Caller:
        return await caller.call(self.gateway)

    @property
    def outcome(self) -> Outcome:
        return self.desk.delivery.outcome


def pass_ms(house: House, ms: int) -> Step:
    return lambda: house.clock.advance_ms(ms)


def test_a_worker_is_asked_for_all_of_it(run: Run) -> None:
    house = House()
    body = said()
    house.desk.script = [pass_ms(house, 30), body[:40], pass_ms(house, 20), body[40:]]
    caller = run(house.serve(ask(stream=False, stream_options={"include_usage": True}, seed=1)))
    (order,) = house.desk.orders
    asked = json.loads(order.body)
    assert (asked["stream"], asked["seed"], "stream_options" in asked) == (False, 1, False)
    assert order.in_one_piece
    assert (caller.status, caller.complete) == (200, True)
    assert caller.headers["content-type"] == "application/json"
    assert caller.headers["x-request-id"] == order.request
    assert caller.json == {**json.loads(body), "service_tier": "medium"}
    assert caller.body == b'{"service_tier":"medium",' + body[1:]
    outcome = house.outcome
    assert (outcome.ending, outcome.metered_by) == ("done", "worker")
    assert (outcome.usage.prompt_tokens, outcome.usage.output_tokens) == (7, 3)
    measured = outcome.measured
    assert (measured.ttft_ns, measured.decode_ns, measured.output_tokens) == (None, 50 * MS, 3)
    assert house.desk.delivery.aborts == 0


@pytest.mark.parametrize("fields", [{}, {"tools": []}], ids=["quick", "careful"])
def test_a_caller_of_a_stream_gets_one(run: Run, fields: dict[str, Any]) -> None:
    house = House(*answer("a", "b"))
    caller = run(house.serve(ask(**fields)))
    (order,) = house.desk.orders
    asked = json.loads(order.body)
    assert (asked["stream"], asked["stream_options"]) == (True, {"include_usage": True})
    assert not order.in_one_piece
    assert caller.events[-1] == "[DONE]"


@pytest.mark.parametrize("fields", [{}, {"tools": []}], ids=["quick", "careful"])
def test_other_models_are_streamed(run: Run, fields: dict[str, Any]) -> None:
    house = House(*answer("a", "b"))
    caller = run(house.serve(ask(stream=False, **{**fields, "model": "lab/other"})))
    (order,) = house.desk.orders
    assert json.loads(order.body)["stream"]
    assert caller.json["choices"][0]["message"]["content"] == "ab"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
def test_dialects_that_translate_are_streamed(run: Run, path: str) -> None:
    house = House(*answer("a", "b"))
    request = {
        "/v1/messages": {"max_tokens": 9, "messages": [{"role": "user", "content": "x"}]},
        "/v1/responses": {"input": "x"},
    }[path]
    caller = Caller("POST", path, json.dumps({"model": MODEL, **request}).encode())
    run(house.serve(caller))
    assert caller.status == 200
    (order,) = house.desk.orders
    assert (json.loads(order.body)["stream"], order.in_one_piece) == (True, False)


def completion(**fields: Any) -> Caller:
    body = json.dumps({"model": MODEL, "prompt": "Once", **fields}).encode()
    return Caller("POST", COMPLETIONS, body, {"authorization": f"Bearer {SECRET.decode()}"})


def test_a_text_completion(run: Run) -> None:
    choice = {"index": 0, "text": " upon", "logprobs": None, "finish_reason": "length"}
    house = House(said(object="text_completion", choices=[choice]))
    caller = run(house.serve(completion()))
    assert caller.json["choices"] == [choice]
    assert caller.json["service_tier"] == "medium"
    assert not json.loads(house.desk.orders[0].body)["stream"]
    wrong = House(said())
    assert run(wrong.serve(completion())).json["error"]["code"] == "worker_failed"


@pytest.mark.parametrize(
    "body",
    [
        said(service_tier=None),
        said(service_tier="default", choices=[CHOICE | {"message": {"service_tier": "x"}}]),
        said(service_tier="default").replace(b"service_tier", b"service\\u005Ftier"),
        said(service_tier="default").replace(b"service_tier", b"\\u0073ervice_tie\\u0072"),
        b"\n " + said() + b"\r\n",
        b'{\n"choices":[{"message":{},"finish_reason":"stop"}]}',
    ],
)
def test_the_tier_stands_once_whatever_the_worker_says_of_one(run: Run, body: bytes) -> None:
    caller = run(House(body).serve(ask(stream=False)))
    assert caller.json == {**json.loads(body), "service_tier": "medium"}
    assert caller.body.startswith(b'{"service_tier":"medium",')


def test_unknown_fields_and_odd_texts_pass(run: Run) -> None:
    message = {"content": '"usage":{"\u00e9\U0001f600\\', "reasoning_content": "hm", "x": [1.5]}
    body = said(choices=[CHOICE | {"message": message, "y": {}}], z=[{"a": None}])
    caller = run(House(body).serve(ask(stream=False)))
    assert caller.json == {**json.loads(body), "service_tier": "medium"}


WRONG: dict[str, list[Step]] = {
    "nothing": [],
    "no JSON": [b"<html>busy</html>"],
    "events": answer("a", "b"),
    "cut off": [said()[:-1]],
    "more after it": [said() + b"x"],
    "not text": [said().replace(b"abc", b"a\xffc")],
    "a list": [b"[]"],
    "too deep": [b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"],
    "no choices": [said(choices=[])],
    "choices of null": [said(choices=None)],
    "a choice of null": [said(choices=[None])],
    "no message": [said(choices=[{"index": 0, "finish_reason": "stop"}])],
    "a message of text": [said(choices=[CHOICE | {"message": "abc"}])],
    "an odd reason": [said(choices=[CHOICE | {"finish_reason": 1}])],
    "not begun": [said(choices=[CHOICE | {"message": {"content": ""}, "finish_reason": None}])],
    "an odd begin": [said(choices=[CHOICE | {"index": 0, "text": 1}])],
    "an error": [json.dumps({"error": {"message": "out of memory"}}).encode()],
    "an error beside choices": [said(error="out of memory")],
    "odd usage": [said(usage={"prompt_tokens": "7", "completion_tokens": 1})],
    "usage below zero": [said(usage=usage(7, -1))],
    "broken off": [said()[:30], WorkerFailed("broke off")],
    "broken off at its end": [said(), WorkerFailed("broke off")],
}


@pytest.mark.parametrize("script", WRONG.values(), ids=WRONG.keys())
def test_what_is_no_answer_is_a_failure_that_nobody_pays(run: Run, script: list[Step]) -> None:
    house = House(*script)
    caller = run(house.serve(ask(stream=False)))
    assert (caller.status, caller.json["error"]["code"]) == (502, "worker_failed")
    assert caller.complete
    assert house.outcome.ending == "failed"
    assert house.outcome.usage.completion_tokens == 0
    assert house.desk.delivery.aborts == 1


def test_a_worker_that_streams_all_the_same_is_told_to_its_operator(run: Run) -> None:
    async def main() -> None:
        caller = await House(*answer("a", "b")).serve(ask(stream=False))
        assert caller.status == 502
        assert "has streamed it" in caller.json["error"]["message"]
        assert "whole_answers" in caller.json["error"]["message"]

    run(main())


@pytest.mark.parametrize("message", [{"content": "a"}, {"tool_calls": [{"id": "1"}]}])
def test_an_answer_that_does_not_say_why_it_ended(run: Run, message: dict[str, Any]) -> None:
    house = House(said(choices=[{"index": 0, "message": message}]))
    assert run(house.serve(ask(stream=False))).status == 200
    assert house.outcome.ending == "done"


def test_however_deep_it_is_what_was_read_can_be_told() -> None:
    def told(depth: int) -> bool:
        piece = OnePiece("/v1/chat/completions")
        piece.feed(said(service_tier="x")[:-1] + b',"x":%b%b}' % (b"[" * depth, b"]" * depth))
        try:
            piece.read()
        except WorkerFailed:
            return False
        return piece.naming("high").startswith(b'{"service_tier":"high",')

    assert told(100)
    for depth in range(800, 1_000):  # where Python's limit is, or none
        told(depth)
    assert not told(100_000)


def test_a_begin_that_cannot_be_read() -> None:
    piece = OnePiece("/v1/chat/completions")
    piece.feed(b'{"choices":[{"message":{"content":"a","x":1e999}}]}')
    with pytest.raises(WorkerFailed, match="cannot be read"):
        piece.read()


def test_without_usage_nothing_is_billed(run: Run) -> None:
    house = House(said(usage=None))
    caller = run(house.serve(ask(stream=False)))
    assert caller.status == 200
    outcome = house.outcome
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (0, 0)
    assert (outcome.metered_by, outcome.measured.ttft_ns) == ("gateway", None)
    assert outcome.measured.output_tokens == outcome.measured.decode_ns == 0


def test_a_worker_that_tells_no_usage_is_warned_of_once(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(said())
    run(house.serve(ask(stream=False)))
    assert caplog.messages == []
    house.desk.script = [said(usage=None)]
    for _ in range(3):
        run(house.serve(ask(stream=False)))
    (warned,) = caplog.messages
    assert warned.startswith("The worker w tells no usage in its answers: they are billed nothing.")
    assert "`whole_answers`" in warned
    monkeypatch.setattr(answers, "UNMETERED_MAX", 0)
    caplog.clear()
    run(House(said(usage=None)).serve(ask(stream=False)))
    assert caplog.messages == []


def test_an_answer_has_a_bound(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_piece, "BODY_BYTES_MAX", 50)
    house = House(said()[:40], said()[40:60], said()[60:])
    caller = run(house.serve(ask(stream=False)))
    assert "over 50 bytes" in caller.json["error"]["message"]
    assert house.outcome.ending == "failed"


# A caller who leaves.


@pytest.mark.parametrize(("read", "tokens"), [(0, 0), (40, 0), (None, 3)])
def test_a_caller_who_leaves_pays_what_was_told(run: Run, read: int | None, tokens: int) -> None:
    caller = ask(stream=False)
    came = said()[:read]
    script: list[Step] = [came] if came else []
    house = House(*script, caller.hang_up, Hold())
    run(house.serve(caller))
    assert house.outcome.ending == "disconnected"
    assert house.outcome.usage.completion_tokens == tokens
    assert house.desk.delivery.aborts >= 1
    assert caller.received == b""


def test_a_caller_who_leaves_while_its_answer_is_settled(run: Run) -> None:
    async def main() -> None:
        house, caller = House(said()), ask(stream=False)

        async def leave() -> None:
            caller.hang_up()

        house.desk.before_settle = leave
        await house.serve(caller)
        assert house.outcome.ending == "done"
        assert caller.received == b""

    run(main())


def test_a_caller_who_leaves_before_the_worker_answers(run: Run) -> None:
    async def main() -> None:
        house = House(said())
        house.desk.queued = asyncio.Event()
        caller = ask(stream=False)
        serving = asyncio.ensure_future(house.serve(caller))
        await house.desk.entered.wait()
        caller.hang_up()
        await serving
        assert house.desk.withdrawn == [house.desk.orders[0].request]
        assert house.desk.deliveries == []

    run(main())


# Both ways tell the same.

TEXTS = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=5)


@settings(max_examples=60)
@given(TEXTS, st.booleans(), st.integers(0, 9), st.integers(1, 90))
def test_streamed_or_in_one_piece_it_is_the_same(
    texts: list[str], calls: bool, prompt: int, cut: int
) -> None:
    called = {"index": 0, "id": "c", "type": "function", "function": {"name": "f"}}
    more = [chunk({"tool_calls": [called]})] if calls else []
    told = usage(prompt, len(texts))
    event = b'data: {"choices":[],"usage":%b}\n\n' % json.dumps(told).encode()
    stream = [ROLE, *map(token, texts), *more, STOP, event, DONE]

    def call(house: House) -> tuple[Any, Outcome]:
        house.desk.tier_delivered = Tier.HIGH
        caller = asyncio.run(house.serve(ask(stream=False)))
        assert caller.status == 200
        return caller.json, house.outcome

    streamed = House(*stream)
    streamed.desk.in_one_piece = frozenset()
    streamed.gateway = Gateway(streamed.desk, streamed.clock)
    whole, outcome = call(streamed)
    assert outcome.usage == usage_of(told)
    body = json.dumps({k: v for k, v in whole.items() if k != "service_tier"}).encode()
    again, billed = call(House(body[:cut], body[cut:]))
    assert again == whole
    assert (billed.usage, billed.ending, billed.metered_by) == (
        outcome.usage,
        outcome.ending,
        outcome.metered_by,
    )
