"""Chunks put together: what comes out is what OpenAI's own SDK accumulates."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.gateway.fake_desk import ROLE, STOP, chunk, event, token, usage, usage_event
from tokenworks.core.errors import WorkerFailed
from tokenworks.core.slo import Tier
from tokenworks.gateway.assemble import Assembler
from tokenworks.gateway.chat import ChatWriter
from tokenworks.gateway.event_stream import EventStream, payload
from tokenworks.gateway.openai_errors import OpenAIErrors
from tokenworks.gateway.worker_chunks import nothing_used


def each_read(*batches: bytes) -> Assembler:
    """What an assembler makes of events that are read one by one."""
    assembler = Assembler()
    for each in b"".join(batches).split(b"\n\n"):
        assembler.event(each)
    assembler.close([])
    return assembler


def assembled(*events: bytes) -> dict[str, Any]:
    assembler = each_read(*events)
    writer = ChatWriter(OpenAIErrors(), include_usage=False)
    writer.take_whole(assembler.completion())
    return msgspec.json.decode(writer.whole(nothing_used(), Tier.HIGH))


def streamed(*reads: bytes) -> Assembler:
    """What an event stream has an assembler take, and what it held back."""
    assembler = Assembler()
    stream = EventStream(assembler)
    for read in reads:
        stream.feed(read)
        stream.feed(b"")
    if stream.failure is not None:
        raise stream.failure
    assembler.close([*stream.held, stream.usage_event or b""])
    return assembler


def message(*events: bytes) -> Any:
    return assembled(*events)["choices"][0]["message"]


def test_a_plain_answer() -> None:
    whole = assembled(ROLE, token("hel"), token("lo"), STOP, usage_event(5, 2))
    assert whole == {
        "id": "chatcmpl-1",
        "created": 1,
        "model": "foreman",
        "object": "chat.completion",
        "service_tier": "high",
        "usage": usage(5, 2),
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
                "message": {"role": "assistant", "content": "hello"},
            }
        ],
    }


def test_many_events_at_once_and_comments() -> None:
    assert message(b": ping\n\n" + ROLE + token("a") + token("b"))["content"] == "ab"


def test_an_answer_without_anything() -> None:
    assert message(STOP) == {"role": "assistant", "content": None}
    assert assembled()["choices"] == []


def call(index: int, **fields: Any) -> bytes:
    return chunk({"tool_calls": [{"index": index, **fields}]})


def test_tool_calls_are_merged_by_index() -> None:
    found = message(
        ROLE,
        call(0, id="a", type="function", function={"name": "f", "arguments": ""}),
        call(1, id="b", type="function", function={"name": "g", "arguments": "{"}),
        call(0, function={"arguments": '{"x":'}),
        call(0, id=None, function={"name": None, "arguments": "1}"}),
        call(1, function={"arguments": "}"}),
    )
    assert found["content"] is None
    assert found["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_names_that_are_repeated_or_empty_at_first() -> None:
    found = message(
        call(0, id="", type="function", function={"name": "", "arguments": "{"}),
        call(0, id="a", type="function", function={"name": "f", "arguments": "}"}),
        call(0, id="a", type="function", function={"name": "f", "arguments": ""}),
    )
    assert found["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]


def test_reasoning_and_other_fields() -> None:
    found = message(
        chunk({"role": "assistant", "content": None, "reasoning_content": "think"}),
        chunk({"reasoning_content": "ing", "annotations": [{"a": 1}]}),
        chunk({"content": "so", "audio": {"id": "x", "data": "aa"}, "annotations": [{"b": 2}]}),
        chunk({"audio": {"data": "bb"}, "refusal": None, "score": 1}),
        chunk({"score": 2}),
    )
    assert found == {
        "role": "assistant",
        "content": "so",
        "reasoning_content": "thinking",
        "annotations": [{"a": 1}, {"b": 2}],
        "audio": {"id": "x", "data": "aabb"},
        "refusal": None,
        "score": 2,
    }


def logprobs(text: str) -> dict[str, Any]:
    return {"content": [{"token": text, "logprob": -0.5, "bytes": [97], "top_logprobs": []}]}


def with_logprobs(text: str) -> bytes:
    choice = {"index": 0, "finish_reason": None, "delta": {"content": text}}
    return event({"id": "x", "choices": [{**choice, "logprobs": logprobs(text)}]})


def test_logprobs_are_joined() -> None:
    whole = assembled(ROLE, with_logprobs("a"), with_logprobs("b"), STOP)
    found = whole["choices"][0]["logprobs"]
    assert [each["token"] for each in found["content"]] == ["a", "b"]


def test_logprobs_of_another_shape() -> None:
    def odd(value: object) -> bytes:
        return event({"choices": [{"index": 0, "delta": {}, "logprobs": {"refusal": value}}]})

    assert assembled(odd(None), odd([1]))["choices"][0]["logprobs"] == {"refusal": [1]}


def test_several_choices() -> None:
    def part(index: int, text: str) -> bytes:
        return event({"choices": [{"index": index, "delta": {"content": text}}]})

    found = assembled(part(1, "b"), part(0, "a"), part(1, "b"))["choices"]
    assert [(c["index"], c["message"]["content"]) for c in found] == [(0, "a"), (1, "bb")]


@pytest.mark.parametrize(
    "bad",
    [
        b"data: {\n\n",
        b"data: []\n\n",
        b'data: {"choices":[{"index":0,"delta":{"content":"\xff"}}]}\n\n',
        b"data: " + b"[" * 5_000 + b"\n\n",
        event({"choices": {"index": 0}}),
        event({"choices": [5]}),
        event({"choices": [{"index": [], "delta": {}}]}),
        event({"choices": [{"index": 0, "delta": "x"}]}),
    ],
)
def test_what_is_no_chunk(bad: bytes) -> None:
    with pytest.raises(WorkerFailed, match="cannot be read"):
        assembled(bad)


def test_logprobs_that_change_shape_are_no_chunk() -> None:
    with pytest.raises(WorkerFailed):
        assembled(with_logprobs("a"), event({"choices": [{"index": 0, "logprobs": 5}]}))


def test_a_tool_call_that_is_none() -> None:
    assert message(chunk({"tool_calls": ["odd"]}))["tool_calls"] == ["odd"]
    assert message(chunk({"tool_calls": "odd"}))["tool_calls"] == "odd"


PIECES = st.text(max_size=5)
DELTAS = st.one_of(
    PIECES.map(lambda text: {"content": text}),
    PIECES.map(lambda text: {"refusal": text}),
    PIECES.map(lambda text: {"reasoning_content": text}),
    st.tuples(st.integers(0, 1), PIECES).map(
        lambda t: {"tool_calls": [{"index": t[0], "function": {"arguments": t[1]}}]}
    ),
)
CALLS = [
    {"index": i, "id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": ""}}
    for i in (0, 1)
]


@given(st.lists(DELTAS, max_size=10))
def test_it_is_what_the_sdk_accumulates(deltas: list[dict[str, Any]]) -> None:
    events = [
        chunk({"role": "assistant", "content": None}),
        chunk({"tool_calls": [CALLS[0]]}),
        chunk({"tool_calls": [CALLS[1]]}),
        *(chunk(delta) for delta in deltas),
        chunk({}, "tool_calls"),
        usage_event(5, len(deltas)),
    ]
    state = ChatCompletionStreamState()
    for each in events:
        chunk_of = ChatCompletionChunk.model_validate_json(payload(each.strip()))
        state.handle_chunk(chunk_of)
    theirs = state.get_final_completion().model_dump(exclude_none=True)
    whole = assembled(*events)
    assert whole.pop("service_tier") == "high"
    ours = ChatCompletion.model_validate_json(msgspec.json.encode(whole)).model_dump(
        exclude_none=True
    )
    for choice in theirs["choices"]:
        choice["message"].pop("parsed", None)
        for each in choice["message"]["tool_calls"]:
            each["function"].pop("parsed_arguments", None)
            each.pop("index", None)
    assert ours == theirs


@given(
    st.lists(st.text(), min_size=1, max_size=8),
    st.sampled_from(["content", "reasoning_content"]),
    st.data(),
)
def test_texts_add_up_however_they_come(texts: list[str], name: str, data: st.DataObject) -> None:
    whole = b"".join([ROLE, *(chunk({name: text}) for text in texts), token("x"), STOP])
    events = [event + b"\n\n" for event in whole.split(b"\n\n")[:-1]]
    batches, begun = list[bytes](), 0
    while begun < len(events):
        size = data.draw(st.integers(1, len(events) - begun))
        batches.append(b"".join(events[begun : begun + size]))
        begun += size
    said = message(*batches)
    assert said.get(name) == "".join(texts) + ("x" if name == "content" else "")
    (choice,) = streamed(*batches).completion()["choices"]  # type: ignore[misc, str-unpack]
    assert choice["message"] == said


def test_a_long_answer_is_read_meanwhile() -> None:
    assembler = Assembler()
    for _ in range(500):
        assembler.event(token("a"))
    with pytest.raises(WorkerFailed, match="chunk"):
        assembler.event(b"data: [" + b" " * 70_000 + b"]")


def test_a_text_that_is_no_json_is_the_workers_fault() -> None:
    odd = token("b").replace(b'"b"', b'"\\x"')
    with pytest.raises(WorkerFailed, match="chunk"):
        each_read(token("a"), odd)
    with pytest.raises(WorkerFailed, match="text"):
        streamed(token("a"), odd + odd, STOP)


LOGPROBS = event(
    {
        "id": "c",
        "model": None,
        "choices": [
            {
                "index": 0,
                "delta": {"content": "p"},
                "finish_reason": None,
                "logprobs": {"content": [{"token": "p", "logprob": -1.5}]},
            }
        ],
    }
)


@pytest.mark.parametrize(
    "odd",
    [
        ROLE,
        b": ping\n\n",
        LOGPROBS * 3,
        chunk({"content": "b", "reasoning_content": "c"}) * 3,
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}),
        chunk({"reasoning_content": "c"}) * 2,
        chunk({"name": "n"}) * 2,
        event({"choices": [{"index": 1, "delta": {"content": "z"}, "finish_reason": None}]}) * 2,
    ],
)
def test_texts_that_were_cut_out_add_up_as_their_events_do(odd: bytes) -> None:
    reads = (ROLE, token("a"), token("b") * 20, odd, token("c") + token("d"), odd, token("e"))
    plain = each_read(*reads, STOP)
    assert streamed(*reads, STOP).completion() == plain.completion()
    assert streamed(b"".join((*reads, STOP))).completion() == plain.completion()


def test_a_long_answer_that_is_cut_up_is_read_meanwhile() -> None:
    assembler = Assembler()
    stream = EventStream(assembler)
    stream.feed(token("a") + token("x" * 70_000) + token("b").replace(b'"b"', b'"\\x"'))
    stream.feed(chunk({"role": "assistant", "content": "y" * 70_000}))
    assert stream.failure is not None
    assert "text" in str(stream.failure)


def test_an_answer_may_end_with_its_last_text() -> None:
    whole: Any = streamed(token("a"), token("b"), b"data: [DONE]\n\n").completion()
    assert whole["choices"][0]["message"]["content"] == "ab"
