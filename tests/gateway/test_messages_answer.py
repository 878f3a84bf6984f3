"""A worker's chunks as Anthropic's events and messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.fake_desk import event
from tokenworks.core.errors import (
    CapacityExceeded,
    Forbidden,
    InvalidRequest,
    QuotaExceeded,
    TokenworksError,
    Unauthorized,
    WorkerFailed,
    WorkerUnavailable,
)
from tokenworks.core.slo import Tier
from tokenworks.gateway import messages_answer
from tokenworks.gateway.assemble import Assembler
from tokenworks.gateway.event_stream import EventStream
from tokenworks.gateway.messages_answer import MessagesAnswer, MessagesErrors
from tokenworks.gateway.messages_request import Thinking
from tokenworks.gateway.worker_chunks import nothing_used

SILENT = Thinking()
USAGE = event(
    {
        "choices": [],
        "usage": {
            "prompt_tokens": 14,
            "completion_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 7, "cache_write_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 4},
        },
    }
)


def chunk(finish: str | None = None, stop: object = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    if stop is not None:
        choice["stop_reason"] = stop
    return event({"choices": [choice]})


def call(index: int, arguments: str, call_id: str | None = None, name: str | None = None) -> bytes:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    piece = {"index": index, "function": function} | ({"id": call_id} if call_id else {})
    return chunk(tool_calls=[piece])


def events(raw: bytes) -> list[dict[str, Any]]:
    found = []
    for each in raw.split(b"\n\n")[:-1]:
        head, _, data = each.partition(b"\n")
        body = json.loads(data.removeprefix(b"data: "))
        assert head == b"event: " + body["type"].encode()
        found.append(body)
    return found


def said(*chunks: bytes, thinking: Thinking = SILENT) -> tuple[list[dict[str, Any]], Any]:
    """The events that a stream's caller gets, and the message that another gets."""
    answer, assembler = MessagesAnswer("req_1", "m", thinking), Assembler()
    stream = EventStream(assembler)
    raw = b""
    for each in (*chunks, USAGE):
        ready = stream.feed(each)
        raw += answer.forward(ready)
    answer.take_held(stream)
    raw += answer.closing(stream, Tier.PREMIUM)
    assembler.close([*stream.held, stream.usage_event or b""])
    completion = assembler.completion()
    whole = MessagesAnswer("req_1", "m", thinking)
    whole.take_whole(completion)
    return events(raw), json.loads(whole.whole(stream.usage_so_far(), Tier.PREMIUM))


def blocks(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content blocks that events add up to."""
    made: list[dict[str, Any]] = []
    open_index = None
    for each in found:
        if each["type"] == "content_block_start":
            assert (open_index, each["index"]) == (None, len(made))
            open_index = each["index"]
            made.append(dict(each["content_block"]))
        elif each["type"] == "content_block_delta":
            assert each["index"] == open_index
            delta, block = each["delta"], made[-1]
            if delta["type"] == "input_json_delta":
                block["json"] = block.get("json", "") + delta["partial_json"]
            else:
                name = delta["type"].removesuffix("_delta")
                block[name] += delta[name]
        elif each["type"] == "content_block_stop":
            assert each["index"] == open_index
            open_index = None
    assert open_index is None
    for block in made:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block.pop("json", "{}"))
    return made


def test_text() -> None:
    found, whole = said(chunk(role="assistant", content=""), chunk(content="a"), chunk(content="b"))
    assert [each["type"] for each in found] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = found[0]["message"]
    assert start["usage"] == {
        "input_tokens": 0,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }
    usage = {
        "input_tokens": 5,
        "cache_creation_input_tokens": 2,
        "cache_read_input_tokens": 7,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 4},
        "service_tier": "priority",
        "tier_delivered": "premium",
    }
    assert found[-2]["usage"] == whole["usage"] == usage
    assert whole["content"] == blocks(found) == [{"type": "text", "text": "ab"}]
    assert {k: v for k, v in whole.items() if k not in ("content", "usage")} == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "stop_details": None,
    }
    assert start == whole | {"content": [], "usage": start["usage"], "stop_reason": None}


def test_an_answer_of_nothing() -> None:
    found, whole = said()
    assert [e["type"] for e in found] == ["message_start", "message_delta", "message_stop"]
    assert whole["content"] == []


def test_tools() -> None:
    found, whole = said(
        chunk(content="I add."),
        call(0, "", "c1", "add"),
        call(0, '{"a":'),
        call(0, "1}"),
        call(1, "", name="now"),
        chunk("tool_calls"),
    )
    assert found[-2]["delta"]["stop_reason"] == whole["stop_reason"] == "tool_use"
    assert whole["content"] == [
        {"type": "text", "text": "I add."},
        {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
        {"type": "tool_use", "id": "toolu_1_1", "name": "now", "input": {}},
    ]
    assert blocks(found) == whole["content"]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thinking(field: str) -> None:
    chunks = (chunk(**{field: "h"}), chunk(**{field: "m"}), chunk(content="a"))
    shown, whole = said(*chunks, thinking=Thinking(asked=True))
    thought = blocks(shown)[0]
    assert whole["content"][0] == thought
    assert thought.pop("signature")
    assert thought == {"type": "thinking", "thinking": "hm"}
    hidden, whole = said(*chunks, thinking=Thinking(asked=True, shown=False))
    thought = blocks(hidden)[0]
    assert whole["content"][0] == thought
    assert thought["signature"]
    assert thought["thinking"] == ""
    none, whole = said(*chunks)
    assert whole["content"] == blocks(none) == [{"type": "text", "text": "a"}]


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("content_filter", "refusal"),
        ("abort", "end_turn"),
    ],
)
def test_stop_reasons(finish: str, reason: str) -> None:
    found, whole = said(chunk(content="a"), chunk(finish))
    assert found[-2]["delta"]["stop_reason"] == whole["stop_reason"] == reason


def test_the_stop_string_that_was_met_is_told() -> None:
    found, whole = said(chunk(content="a"), chunk("stop", stop="END"))
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", "END")
    assert found[-2]["delta"]["stop_sequence"] == "END"
    _, whole = said(chunk(content="a"), chunk("stop", stop=151_643))
    assert whole["stop_reason"] == "end_turn"


def test_an_engine_that_ends_a_call_with_stop() -> None:
    _, whole = said(call(0, "{}", "c", "add"), chunk("stop"))
    assert whole["stop_reason"] == "tool_use"


def test_a_refusal_is_text() -> None:
    _, whole = said(chunk(refusal="no"))
    assert whole["content"] == [{"type": "text", "text": "no"}]


@pytest.mark.parametrize("text", ["{", "[1]", '"x"'])
def test_arguments_that_are_no_object(text: str) -> None:
    with pytest.raises(WorkerFailed, match="'add'"):
        said(call(0, text, "c", "add"))


@pytest.mark.parametrize(
    ("finish", "stop", "reason"),
    [
        ("length", None, "max_tokens"),
        ("content_filter", None, "refusal"),
        ("stop", "END", "stop_sequence"),
    ],
)
@pytest.mark.parametrize(
    ("text", "given"), [('{"x":"a', {}), ("1", {}), ("", {}), ('{"x":1}', {"x": 1})]
)
def test_arguments_that_are_cut_off_are_left_out(
    finish: str, stop: object, reason: str, text: str, given: object
) -> None:
    made = (call(0, '{"y":2}', "c", "add"), call(1, text, "d", "add"), chunk(finish, stop))
    _, whole = said(*made)
    first, last = whole["content"]
    assert (first["input"], last["input"], whole["stop_reason"]) == ({"y": 2}, given, reason)


def test_a_call_before_the_last_was_not_cut_off() -> None:
    with pytest.raises(WorkerFailed, match="not JSON"):
        said(call(0, "{", "c", "add"), call(1, "{", "d", "add"), chunk("length"))


def test_an_answer_of_nothing_that_is_cut_off() -> None:
    _, whole = said(chunk("length"))
    assert (whole["content"], whole["stop_reason"]) == ([], "max_tokens")


def test_a_call_that_comes_back() -> None:
    answer = MessagesAnswer("req_1", "m", SILENT)
    answer.forward(call(0, "{}", "c", "add") + call(1, "{}", "d", "add"))
    with pytest.raises(WorkerFailed, match="went back"):
        answer.forward(call(0, " "))


def test_what_came_before_a_mistake_is_told_however_it_is_cut() -> None:
    chunks = [chunk(content="a"), chunk(content="b"), b"data: 1\n\n"]
    said = []
    for parts in (chunks, [b"".join(chunks)]):
        answer = MessagesAnswer("req_1", "m", SILENT)
        raw = b"".join([answer.forward(part) for part in parts[:-1]])
        with pytest.raises(WorkerFailed, match="cannot be read"):
            answer.forward(parts[-1])
        said.append(raw + answer.error_event(WorkerFailed("no")))
    assert said[0] == said[1]
    assert [each["type"] for each in events(said[0])] == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_delta"),
        "error",
    ]


def test_an_endless_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages_answer, "ANSWER_CHARS_MAX", 3)
    answer = MessagesAnswer("req_1", "m", SILENT)
    answer.forward(chunk(content="abc"))
    with pytest.raises(WorkerFailed, match="characters"):
        answer.forward(chunk(content="d"))


def test_a_chunk_that_is_none() -> None:
    answer = MessagesAnswer("req_1", "m", SILENT)
    assert events(answer.forward(b": comment\n\n"))[0]["type"] == "message_start"
    with pytest.raises(WorkerFailed, match="cannot be read"):
        answer.forward(b"data: {\n\n")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("x"), "invalid_request_error"),
        (Unauthorized("x"), "authentication_error"),
        (Forbidden("x"), "permission_error"),
        (QuotaExceeded("x"), "rate_limit_error"),
        (CapacityExceeded("x"), "overloaded_error"),
        (WorkerUnavailable("x"), "overloaded_error"),
        (WorkerFailed("x"), "api_error"),
    ],
)
def test_errors(error: TokenworksError, kind: str) -> None:
    body = json.loads(MessagesErrors().error_body(error))
    told = {"type": kind, "message": "x", "code": error.code}
    assert body == {"type": "error", "error": told}
    assert events(MessagesAnswer("req_1", "m", SILENT).error_event(error)) == [body]
    assert MessagesErrors().error_headers(Unauthorized("x"))


def test_an_answer_that_is_none() -> None:
    completion: dict[str, Any] = {"choices": [{"message": {"content": 1}}]}
    with pytest.raises(WorkerFailed, match="cannot be read"):
        MessagesAnswer("req_1", "m", SILENT).take_whole(completion)


def test_an_answer_without_usage_or_message() -> None:
    answer = MessagesAnswer("req_1", "m", SILENT)
    answer.take_whole({"choices": [{}]})
    assert json.loads(answer.whole(nothing_used(), Tier.HIGH))["usage"]["output_tokens"] == 0
