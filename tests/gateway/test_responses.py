"""The Responses API: OpenAI's SDK as it comes, what a worker gets, what is kept."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from tests.gateway.fake_desk import (
    DONE,
    KEY,
    MODEL,
    ROLE,
    SECRET,
    Caller,
    FakeClock,
    FakeDesk,
    FakeShelf,
    Step,
    answer,
    chunk,
    event,
    token,
    usage_event,
)
from tests.gateway.test_server import serving_gateway
from tokenworks.core.errors import InvalidRequest, LedgerUnavailable, WorkerFailed
from tokenworks.core.ids import TenantID
from tokenworks.core.ports import Shelved
from tokenworks.gateway import responses_answer
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.responses_request import read_responses_request

Run = Callable[[Coroutine[Any, Any, Any]], Any]
HELLO: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}


class House:
    """A gateway with a shelf, at a fake desk."""

    def __init__(self, *script: Step, shelf: bool = True) -> None:
        self.desk = FakeDesk(script or answer("a", "b"))
        self.shelf = FakeShelf()
        self.gateway = Gateway(self.desk, FakeClock(), shelf=self.shelf if shelf else None)

    @asynccontextmanager
    async def sdk(self) -> AsyncIterator[openai.AsyncOpenAI]:
        async with serving_gateway(self.gateway) as server:
            host, port = server.address
            url = f"http://{host}:{port}/v1"
            async with openai.AsyncOpenAI(
                base_url=url, api_key=SECRET.decode(), max_retries=0
            ) as client:
                yield client

    def turns(self, n: int = -1) -> Any:
        return json.loads(self.desk.orders[n].body)["messages"]


def with_tools() -> list[Step]:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"x":1}'}}
    return [
        ROLE,
        chunk({"reasoning_content": "hm"}),
        token("I "),
        token("call."),
        chunk({"tool_calls": [call]}),
        chunk({"tool_calls": [more]}),
        chunk({"tool_calls": [{"index": 1, "function": {"name": "g", "arguments": "{}"}}]}),
        chunk({}, "tool_calls"),
        usage_event(11, 7, cached=4),
        DONE,
    ]


def check(response: Any) -> None:
    thought, message, call, other = response.output
    assert (thought.type, thought.content[0].text, thought.summary) == ("reasoning", "hm", [])
    assert (message.type, message.content[0].text) == ("message", "I call.")
    assert (call.type, call.call_id, call.name, call.arguments) == (
        "function_call",
        "c",
        "f",
        '{"x":1}',
    )
    assert (other.name, other.arguments) == ("g", "{}")
    assert {item.status for item in response.output} == {"completed"}
    assert response.status == "completed"
    assert response.output_text == "I call."
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (11, 7, 18)
    assert usage.input_tokens_details.cached_tokens == 4


def test_a_stream_with_thoughts_and_calls(run: Run) -> None:
    async def go() -> None:
        house = House(*with_tools())
        async with (
            house.sdk() as client,
            client.responses.stream(model=MODEL, input="hello", tools=[TOOL]) as stream,
        ):
            events = [event async for event in stream]
            check(await stream.get_final_response())
        assert [event.sequence_number for event in events] == list(range(len(events)))
        kinds = [event.type for event in events]
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] == "response.completed"
        assert kinds.count("response.output_item.added") == 4
        assert kinds.count("response.output_item.done") == 4
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert deltas == ["I ", "call."]
        assert json.loads(house.desk.orders[0].body)["tools"] == [
            {
                "type": "function",
                "function": {"name": "f", "parameters": {"type": "object"}, "strict": True},
            }
        ]

    run(go())


def test_a_whole_response(run: Run) -> None:
    async def go() -> None:
        house = House(*with_tools())
        async with house.sdk() as client:
            made = await client.responses.create(
                model=MODEL, input="hello", instructions="be brief", metadata={"a": "b"}
            )
        check(made)
        assert made.instructions == "be brief"
        assert made.metadata == {"a": "b"}
        assert made.object == "response"
        assert house.turns() == [{"role": "system", "content": "be brief"}, *HELLO]

    run(go())


def test_a_conversation_goes_on_from_what_was_kept(run: Run) -> None:
    async def go() -> None:
        house = House(*with_tools())
        async with house.sdk() as client:
            create = client.responses.create
            first = await create(model=MODEL, input="hello", instructions="be brief")
            outputs: Any = [
                {"type": "function_call_output", "call_id": "c", "output": "3"},
                {"type": "function_call_output", "call_id": first.output[3].call_id, "output": ""},
            ]
            house.desk.script = answer("done")
            second = await create(model=MODEL, input=outputs, previous_response_id=first.id)
            calls = [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in first.output[2:]
            ]
            turns = [
                *HELLO,
                {
                    "role": "assistant",
                    "content": "I call.",
                    "reasoning_content": "hm",
                    "tool_calls": calls,
                },
                {"role": "tool", "tool_call_id": "c", "content": "3"},
                {"role": "tool", "tool_call_id": calls[1]["id"], "content": ""},
            ]
            assert house.turns() == turns
            assert second.previous_response_id == first.id
            count = client.responses.input_tokens.count
            assert (await count(model=MODEL, input="x", previous_response_id=first.id)).input_tokens
            _, counted, _ = house.desk.counted[-1]
            assert json.loads(counted)["messages"] == [
                *turns[:-2],
                {"role": "user", "content": "x"},
            ]
            await create(model=MODEL, input="more", previous_response_id=second.id, stream=True)
            assert house.turns() == [
                *turns,
                {"role": "assistant", "content": "done"},
                {"role": "user", "content": "more"},
            ]

    run(go())


def test_what_is_kept_can_be_read_and_forgotten(run: Run) -> None:
    async def go() -> None:
        house = House()
        async with house.sdk() as client:
            made = await client.responses.create(
                model=MODEL, input=[{"role": "user", "content": c} for c in "xyz"]
            )
            found = await client.responses.retrieve(made.id)
            assert found.to_dict() == made.to_dict()
            page = await client.responses.input_items.list(made.id, limit=2)
            assert [item.content for item in page.data] == ["z", "y"]
            everything = [item async for item in page]
            assert [item.content for item in everything] == ["z", "y", "x"]
            rising = await client.responses.input_items.list(made.id, order="asc")
            assert [item.content for item in rising.data] == ["x", "y", "z"]
            with pytest.raises(openai.BadRequestError, match="background"):
                await client.responses.cancel(made.id)
            await client.responses.delete(made.id)
            for gone in (
                client.responses.retrieve(made.id),
                client.responses.delete(made.id),
                client.responses.cancel(made.id),
                client.responses.create(model=MODEL, input="x", previous_response_id=made.id),
                client.responses.input_tokens.count(input="x", previous_response_id=made.id),
            ):
                with pytest.raises(openai.NotFoundError, match="no response"):
                    await gone

    run(go())


def ask(house: House, run: Run, path: str = "", method: str = "POST", **fields: Any) -> Caller:
    body = json.dumps({"model": MODEL, "input": "x", **fields}).encode()
    caller = Caller(method, f"/v1/responses{path}", body if method == "POST" else b"")
    run(caller.call(house.gateway))
    return caller


def test_what_is_not_to_be_kept(run: Run) -> None:
    for house, store in ((House(), False), (House(shelf=False), None)):
        found = ask(house, run, store=store).json
        assert found["store"] is False
        assert house.shelf.items == {}
        assert ask(house, run, "/" + found["id"], "GET").status == 404
        assert ask(house, run, previous_response_id=found["id"]).status == 404


def test_a_shelf_that_fails_takes_no_answer_away(run: Run, caplog: Any) -> None:
    house = House()

    async def put(_tenant: TenantID, _kind: str, _item: Shelved) -> None:
        raise LedgerUnavailable("The disk is full.")

    house.shelf.put = put  # type: ignore[method-assign]
    found = ask(house, run)
    assert (found.status, found.json["status"]) == (200, "completed")
    assert "is not kept: The disk is full." in caplog.text


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_off(run: Run, finish: str, reason: str, stream: bool) -> None:
    script: list[Step] = [token("a"), chunk({}, finish), usage_event(2, 1), DONE]
    found = ask(House(*script), run, stream=stream)
    response = found.events[-1]["response"] if stream else found.json
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": reason}
    assert response["output"][-1]["status"] == "incomplete"


def test_a_refusal(run: Run) -> None:
    script: list[Step] = [chunk({"refusal": "no"}), chunk({}, "stop"), usage_event(2, 1), DONE]
    house = House(*script)
    found = ask(house, run)
    assert found.json["output"][0]["content"] == [{"type": "refusal", "refusal": "no"}]
    ask(house, run, previous_response_id=found.json["id"])
    assert house.turns()[1] == {"role": "assistant", "content": "no"}
    kinds = [event["type"] for event in ask(house, run, stream=True).events]
    assert "response.refusal.done" in kinds


def test_an_answer_of_nothing(run: Run) -> None:
    house = House(chunk({}, "stop"), usage_event(2, 0), DONE)
    found = ask(house, run)
    assert found.json["output"] == []
    ask(house, run, previous_response_id=found.json["id"])
    assert house.turns()[1] == {"role": "assistant", "content": ""}


def posted(house: House, run: Run, path: str, *, stream: bool = False) -> Caller:
    body: Any = {"model": MODEL, "stream": stream, "input": "x"}
    if path != "/v1/responses":
        body = {"model": MODEL, "stream": stream, "max_tokens": 9, "messages": HELLO}
    caller = Caller("POST", path, json.dumps(body).encode())
    run(caller.call(house.gateway))
    return caller


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_a_whole_answer_says_what_is_billed_where_its_worker_says_nothing(
    run: Run, path: str
) -> None:
    house = House(ROLE, token("a"), token("b"), chunk({}, "stop"), DONE)
    caller = posted(house, run, path)
    outcome = house.desk.deliveries[0].outcome
    assert caller.json["usage"]["output_tokens"] == outcome.usage.output_tokens == 2


def other(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 1, "delta": delta, "finish_reason": finish}]})


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_choice_that_nobody_asked_for_is_left_out(run: Run, path: str, stream: bool) -> None:
    """It is billed as the worker says, which has made it."""
    both = [{"index": i, "delta": {"content": text}} for i, text in ((1, "y"), (0, "b"))]
    script = [other({"role": "assistant"}), ROLE, other({"content": "x"}), token("a")]
    script += [event({"choices": both}), other({}, "length"), token("c"), chunk({}, "stop")]
    house = House(*script, other({"content": "z"}), usage_event(2, 7), DONE)
    caller = posted(house, run, path, stream=stream)
    assert house.desk.delivery.outcome.usage.output_tokens == 7
    said = caller.events if stream else [caller.json]
    if stream and path == "/v1/messages":
        found = [each["delta"].get("text") for each in said if each.get("delta")]
        assert found == ["a", "b", "c", None]
    elif path == "/v1/messages":
        assert said[0]["content"] == [{"type": "text", "text": "abc"}]
        assert said[0]["stop_reason"] == "end_turn"
    else:
        response = said[-1]["response"] if stream else said[0]
        assert [part["text"] for part in response["output"][0]["content"]] == ["abc"]
        assert (response["status"], len(response["output"])) == ("completed", 1)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("number", [{}, {"index": None}, {"index": "0"}], ids=str)
def test_an_only_choice_is_the_first_however_it_is_numbered(
    run: Run, path: str, stream: bool, number: dict[str, Any]
) -> None:
    def said(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return event({"choices": [{**number, "delta": delta, "finish_reason": finish}]})

    house = House(said({"role": "assistant"}), said({"content": "abc"}), said({}, "length"))
    caller = posted(house, run, path, stream=stream)
    assert (caller.status, house.desk.delivery.outcome.ending) == (200, "done")
    for each in (b"abc", b"length" if "chat" in path else b"max_"):
        assert each in caller.body


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("done", [False, True])
def test_an_only_choice_with_another_number_is_no_empty_answer(
    run: Run, path: str, stream: bool, done: bool
) -> None:
    house = House(other({"role": "assistant"}), other({"content": "abc"}), other({}, "stop"))
    house.desk.script += [DONE] if done else []
    caller = posted(house, run, path, stream=stream)
    if "chat" in path and done:  # its words go on as they came
        assert (caller.status, house.desk.delivery.outcome.ending) == (200, "done")
        assert b"abc" in caller.body
        return
    assert house.desk.delivery.outcome.ending == "failed"  # and costs nothing
    said = [each for each in caller.events if each != "[DONE]"][-1] if stream else caller.json
    assert "worker_failed" in (said.get("code"), said.get("error", {}).get("code"))


@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_that_nobody_wants_to_see_is_of_the_choice_that_was_asked_for(
    run: Run, stream: bool
) -> None:
    house = House(ROLE, chunk({"reasoning_content": "Hm."}), DONE)
    caller = posted(house, run, "/v1/messages", stream=stream)
    assert (caller.status, house.desk.delivery.outcome.ending) == (200, "done")
    assert b"end_turn" in caller.body


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_has_ended_may_have_no_words(run: Run, path: str, stream: bool) -> None:
    mute = {"index": 0, "delta": {"content": ""}, "logprobs": {"content": [{"token": ""}]}}
    house = House(ROLE, event({"choices": [mute]}), chunk({}, "stop"), DONE)
    caller = posted(house, run, path, stream=stream)
    assert (caller.status, house.desk.delivery.outcome.ending) == (200, "done")


def tool_call(arguments: object, finish: str) -> list[Step]:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": arguments}}
    return [ROLE, chunk({"tool_calls": [call]}), chunk({}, finish), usage_event(2, 9), DONE]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_off_is_an_answer(run: Run, path: str, stream: bool) -> None:
    house = House(*tool_call('{"x":"a', "length"))
    caller = posted(house, run, path, stream=stream)
    assert (caller.status, house.desk.delivery.outcome.ending) == (200, "done")
    if stream:
        assert "error" not in [each["type"] for each in caller.events]
    elif path == "/v1/messages":
        (call,) = caller.json["content"]
        assert (call["name"], call["input"], caller.json["stop_reason"]) == ("f", {}, "max_tokens")
    else:
        (call,) = caller.json["output"]
        assert (call["arguments"], call["status"]) == ('{"x":"a', "incomplete")


@pytest.mark.parametrize("arguments", ['{"x":"a', "[1]", "[" * 5_000])
@pytest.mark.parametrize("by", ["previous_response_id", "hand"])
def test_what_was_made_of_a_call_goes_on_as_an_object(run: Run, arguments: str, by: str) -> None:
    """A worker's chat template would fail on arguments that are none, and with it the turn."""
    house = House(*tool_call(arguments, "length"))
    first = ask(house, run).json
    assert first["output"][0]["arguments"] == arguments
    output = {"type": "function_call_output", "call_id": "c", "output": "It was cut off."}
    if by == "hand":
        ask(house, run, input=[{"role": "user", "content": "x"}, *first["output"], output])
    else:
        ask(house, run, input=[output], previous_response_id=first["id"])
    _, called, answered = house.turns()
    (call,) = called["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"incomplete": arguments}
    assert (call["id"], answered["tool_call_id"]) == ("c", "c")


@pytest.mark.parametrize(
    ("path", "script"),
    [
        ("/v1/messages", tool_call('{"x":"a', "tool_calls")),
        ("/v1/messages", tool_call("[" * 5_000, "tool_calls")),
        ("/v1/messages", [ROLE, chunk({"refusal": 1}), chunk({}, "stop"), DONE]),
        ("/v1/responses", [ROLE, chunk({"refusal": 1}), chunk({}, "stop"), DONE]),
    ],
)
def test_a_whole_answer_that_cannot_be_told_is_not_billed(
    run: Run, path: str, script: list[Step]
) -> None:
    house = House(*script)
    caller = posted(house, run, path)
    assert (caller.status, house.desk.delivery.outcome.ending) == (502, "failed")
    assert caller.json["error"]["code"] == "worker_failed"
    assert house.shelf.items == {}


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [[DONE], [usage_event(2, 0), DONE], []], ids=len)
def test_an_answer_without_a_choice_is_none(
    run: Run, path: str, stream: bool, script: list[Step]
) -> None:
    house = House()
    house.desk.script = script
    caller = posted(house, run, path, stream=stream)
    assert (caller.status, house.desk.delivery.outcome.ending) == (502, "failed")
    assert caller.json["error"]["code"] == "worker_failed"
    house.desk.script = [ROLE, DONE]  # it has said who speaks, not what, nor why no more
    caller = posted(house, run, path, stream=stream)
    assert house.desk.deliveries[1].outcome.ending == "failed"
    said = caller.events[-1] if stream else caller.json
    assert "worker_failed" in (said.get("code"), said.get("error", {}).get("code"))


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_a_stream_whose_end_cannot_be_told_is_not_billed(run: Run, path: str) -> None:
    house = House(ROLE, token("a"), chunk({"content": "b", "refusal": 1}, "stop"), DONE)
    caller = posted(house, run, path, stream=True)
    assert (caller.status, house.desk.delivery.outcome.ending) == (200, "failed")
    assert caller.events[-1]["type"] == "error"
    assert house.shelf.items == {}


def test_a_mistake_as_a_whole_answer_is_taken_is_not_billed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_whole(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(responses_answer.ResponsesAnswer, "take_whole", take_whole)
    house = House()
    assert posted(house, run, "/v1/responses").status == 500
    assert house.desk.delivery.outcome.ending == "failed"


def test_a_worker_that_breaks_off(run: Run) -> None:
    async def go() -> None:
        house = House(token("a"), WorkerFailed("It broke off."))
        async with house.sdk() as client:
            stream = await client.responses.create(model=MODEL, input="x", stream=True)
            events: list[Any] = [event async for event in stream]
            failed, error = events[-2:]
            assert (failed.type, error.type) == ("response.failed", "error")
            assert "It broke off" in failed.response.error.message
            assert (error.code, error.message) == ("worker_failed", "It broke off.")
        assert house.shelf.items == {}

    run(go())


def test_a_call_that_comes_back(run: Run) -> None:
    def call(index: int) -> bytes:
        return chunk({"tool_calls": [{"index": index, "function": {"arguments": "{}"}}]})

    def kinds(*steps: Step) -> list[str]:
        found = ask(House(token("a"), *steps), run, stream=True).events
        assert [each["sequence_number"] for each in found] == list(range(len(found)))
        return [each["type"] for each in found]

    apart = kinds(call(0), call(1), call(0))
    assert apart[-1] == "error"
    assert kinds(call(0) + call(1) + call(0)) == apart, "what came before it is told all the same"


def test_an_endless_answer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses_answer, "ANSWER_CHARS_MAX", 1)
    found = ask(House(), run, stream=True).events[-1]
    assert found["type"] == "error"
    assert "characters" in found["message"]


def test_other_paths(run: Run) -> None:
    house = House()
    made = ask(house, run).json["id"]
    for path, method, status in (
        (f"/{made}/nothing", "GET", 404),
        (f"/{made}/nothing", "POST", 404),
        (f"/{made}?stream=true", "GET", 400),
        (f"/{made}/input_items?limit=0", "GET", 400),
        (f"/{made}/input_items?limit=x", "GET", 400),
        (f"/{made}/input_items?after=none", "GET", 200),
        (f"/{made}", "PUT", 405),
    ):
        assert ask(house, run, path, method).status == status, path


# What a worker gets


def fields(**given: Any) -> dict[str, Any]:
    return read_responses_request({"model": MODEL, "input": "x", **given}, []).fields


def test_fields() -> None:
    assert fields() == {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    kept = {"temperature": 0.5, "top_p": 0.5, "user": "u", "stream": True, "service_tier": "flex"}
    assert fields(**kept, min_p=0.1) == fields() | kept | {"min_p": 0.1}
    assert fields(max_output_tokens=5)["max_completion_tokens"] == 5
    assert fields(reasoning={"effort": "low", "summary": "auto"})["reasoning_effort"] == "low"
    assert "reasoning_effort" not in fields(reasoning={})
    assert fields(include=["reasoning.encrypted_content"], truncation="auto") == fields()


def test_formats_and_verbosity() -> None:
    schema = {"name": "a", "schema": {"type": "object"}, "strict": True}
    found = fields(text={"format": {"type": "json_schema", **schema}, "verbosity": "low"})
    assert found["response_format"] == {"type": "json_schema", "json_schema": schema}
    assert found["verbosity"] == "low"
    plain = {"type": "json_object"}
    assert fields(text={"format": plain})["response_format"] == plain
    assert "response_format" not in fields(text={"format": {"type": "text"}})


def test_tools_and_choices() -> None:
    assert "tools" not in fields(tools=[])
    for choice in ("auto", "none", "required"):
        assert fields(tool_choice=choice)["tool_choice"] == choice
    found = fields(tools=[TOOL], tool_choice={"type": "function", "name": "f"})
    assert found["tool_choice"] == {"type": "function", "function": {"name": "f"}}


def turns(*items: dict[str, Any]) -> list[dict[str, Any]]:
    found = fields(input=list(items))["messages"]
    assert isinstance(found, list)
    return found


def test_items() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": "fc"}
    sent = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "x", "text": "hm"}]}
    said = [{"type": "output_text", "text": "ok", "annotations": []}]
    assert turns(
        {"role": "developer", "content": "brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        thought,
        {"type": "message", "role": "assistant", "content": said},
        call,
        {**call, "arguments": ""},
        {"type": "function_call_output", "call_id": "c", "output": said},
        {"type": "reasoning", "summary": []},
        call,
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": "more"},
    ) == [
        {"role": "system", "content": "brief"},
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "ok",
            "reasoning_content": "hm",
            "tool_calls": [sent, sent],
        },
        {"role": "tool", "tool_call_id": "c", "content": "ok"},
        {"role": "assistant", "content": "no", "tool_calls": [sent]},
        {"role": "assistant", "content": "more"},
    ]


def test_parts() -> None:
    content = [
        {"type": "input_text", "text": "see"},
        {"type": "input_image", "image_url": "https://x/y", "detail": "low"},
        {"type": "input_image", "image_url": "data:x"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:y"},
        {"type": "input_audio", "input_audio": {"data": "z", "format": "wav"}},
    ]
    (turn,) = turns({"role": "user", "content": content})
    assert turn["content"] == [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "https://x/y", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:x"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:y"}},
        {"type": "input_audio", "input_audio": {"data": "z", "format": "wav"}},
    ]


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"input": ""}, "`input`"),
        ({"input": []}, "`input`"),
        ({"input": HELLO * 5_000}, "5000 input items"),
        ({"input": [1]}, "`input[0]`"),
        ({"input": [{"type": "web_search_call"}]}, "`input[0]`"),
        ({"input": [{"role": "x", "content": ""}]}, "`input[0].role`"),
        ({"input": [{"role": "user"}]}, "`input[0].content`"),
        ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, "content[0]`"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "content[0].text`"),
        ({"input": [{"type": "function_call"}]}, "`input[0].call_id`"),
        ({"input": [{"type": "function_call_output"}]}, "`input[0].call_id`"),
        ({"instructions": ["x"]}, "`instructions`"),
        ({"reasoning": 1}, "`reasoning`"),
        ({"text": 1}, "`text`"),
        ({"text": {"format": {"type": "x"}}}, "`text.format`"),
        ({"tools": 1}, "`tools`"),
        ({"tools": [{"type": "web_search"}]}, "`tools[0]`"),
        ({"tools": [1]}, "`tools[0]`"),
        ({"tool_choice": {"type": "x"}}, "`tool_choice`"),
        ({"store": 1}, "`store`"),
        ({"include": ["message.output_text.logprobs"]}, "`include`"),
        ({"background": True}, "`background`"),
        ({"prompt": {"id": "p"}}, "`prompt`"),
        ({"conversation": "c"}, "`conversation`"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], place: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        fields(**given)
    assert place in str(caught.value)


def test_a_wrong_id_and_a_wrong_body(run: Run) -> None:
    assert ask(House(), run, previous_response_id=1).status == 400
    assert ask(House(), run, model=None).status == 400
    assert KEY.tenant == "acme"
