"""Anthropic's Messages requests, as the chat completion requests that ask for the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tokenworks.core.errors import InvalidRequest
from tokenworks.gateway.messages_request import (
    REFUSED,
    Thinking,
    read_count_request,
    read_messages_request,
)

HI = [{"role": "user", "content": "hi"}]
TOOL = {"name": "add", "description": "adds", "input_schema": {"type": "object"}}
PNG = {"type": "base64", "media_type": "image/png", "data": "QUJD"}
PNG_URL = "data:image/png;base64,QUJD"


def read(**more: Any) -> dict[str, Any]:
    body = {"model": "m", "max_tokens": 9, "messages": HI, **more}
    return read_messages_request(json.dumps(body).encode()).fields


def turns(*messages: dict[str, Any], system: object = None) -> list[dict[str, Any]]:
    found = read(messages=list(messages), system=system)["messages"]
    assert isinstance(found, list)
    return found


def refused(**more: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read(**more)
    return str(caught.value)


def test_the_least_request() -> None:
    assert read() == {"model": "m", "max_tokens": 9, "messages": HI}


def test_fields_of_both_apis_and_unknown_ones_pass() -> None:
    found = read(stream=True, temperature=0.5, top_p=0.9, top_k=4, min_p=0.1, stop_sequences=["x"])
    assert found.pop("stop") == ["x"]
    assert found == read() | {
        "stream": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
    }


def test_marks_for_anthropics_cache_are_left_out() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    blocks = [{"type": "text", "text": "hi", **mark}]
    found = read(
        messages=[{"role": "user", "content": blocks}],
        system=[{"type": "text", "text": "be", **mark}, {"type": "text", "text": "brief"}],
        tools=[TOOL | mark],
        context_management={"edits": []},
        diagnostics={"previous_message_id": "x"},
        **mark,
    )
    assert "cache_control" not in json.dumps(found)
    assert found["messages"] == [{"role": "system", "content": "be\nbrief"}, *HI]
    assert found.keys() == {"model", "max_tokens", "messages", "tools"}


@pytest.mark.parametrize("system", [[], "", None])
def test_a_system_prompt_of_nothing_is_none(system: object) -> None:
    assert read(system=system) == read()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused(name: str) -> None:
    assert f"`{name}`" in refused(**{name: "eu"})
    assert name not in read(**{name: None}) or read(**{name: None})[name] is None


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, None),
        ({"service_tier": "auto"}, "auto"),
        ({"service_tier": "standard_only"}, "default"),
        ({"service_tier": "ultra"}, "ultra"),
        ({"speed": "fast"}, "fast"),
        ({"speed": "fast", "service_tier": "auto"}, "fast"),
        ({"speed": "fast", "service_tier": "free"}, "free"),
        ({"speed": "standard"}, None),
    ],
)
def test_tiers(given: dict[str, str], asked: str | None) -> None:
    assert read(**given).get("service_tier") == asked


def test_tools_and_choices() -> None:
    function = {"name": "add", "description": "adds", "parameters": {"type": "object"}}
    assert read(tools=[TOOL])["tools"] == [{"type": "function", "function": function}]
    strict = read(tools=[{**TOOL, "type": "custom", "strict": True}])["tools"]
    assert strict[0]["function"]["strict"] is True
    assert "tools" not in read(tools=[])
    choices = {
        "auto": "auto",
        "any": "required",
        "none": "none",
        "tool": {"type": "function", "function": {"name": "add"}},
    }
    for kind, choice in choices.items():
        found = read(tool_choice={"type": kind, "name": "add"})
        assert found["tool_choice"] == choice
        assert "parallel_tool_calls" not in found
    one = read(tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert one["parallel_tool_calls"] is False


def test_thinking_and_effort() -> None:
    def thinking(**more: Any) -> tuple[Thinking, object]:
        body = {"model": "m", "max_tokens": 9, "messages": HI, **more}
        found = read_messages_request(json.dumps(body).encode())
        return found.thinking, found.fields.get("reasoning_effort")

    assert thinking() == (Thinking(), None)
    assert thinking(thinking={"type": "disabled"}) == (Thinking(), None)
    for budget, effort in ((1024, "low"), (4096, "medium"), (16_384, "high"), (90_000, "high")):
        value = {"type": "enabled", "budget_tokens": budget}
        assert thinking(thinking=value) == (Thinking(asked=True), effort)
    hidden = {"type": "adaptive", "display": "omitted"}
    assert thinking(thinking=hidden) == (Thinking(asked=True, shown=False), None)
    value = thinking(thinking={"type": "adaptive"}, output_config={"effort": "max"})
    assert value == (Thinking(asked=True), "high")


def test_an_answers_format() -> None:
    shape = {"type": "json_schema", "schema": {"type": "object"}}
    schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    wanted = {"type": "json_schema", "json_schema": schema}
    assert read(output_config={"format": shape})["response_format"] == wanted
    assert read(output_format=shape)["response_format"] == wanted


def test_who_the_user_is() -> None:
    assert read(metadata={"user_id": "u1"})["user"] == "u1"
    assert "user" not in read(metadata={})
    assert "user" not in read(metadata=None)


def test_a_conversation_with_tools_thoughts_and_pictures() -> None:
    found = turns(
        {"role": "user", "content": [{"type": "image", "source": PNG}, _text("what?")]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                _text("I add."),
                {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
                {"type": "tool_use", "id": "t2", "name": "add", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "3"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t2",
                    "is_error": True,
                    "content": [
                        _text("no"),
                        {"type": "image", "source": {"type": "url", "url": "http://x/y"}},
                    ],
                },
                _text("go on"),
            ],
        },
    )
    calls = [
        {"id": "t1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
        {"id": "t2", "type": "function", "function": {"name": "add", "arguments": "{}"}},
    ]
    assert found == [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": PNG_URL}},
                _text("what?"),
            ],
        },
        {
            "role": "assistant",
            "content": "I add.",
            "reasoning_content": "hm",
            "tool_calls": calls,
        },
        {"role": "tool", "tool_call_id": "t1", "content": "3"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "http://x/y"}},
                _text("go on"),
            ],
        },
    ]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def test_an_empty_result_and_an_empty_turn() -> None:
    result = {"type": "tool_result", "tool_use_id": "t"}
    for content in ({}, {"content": ""}, {"content": []}):
        message = {"role": "user", "content": [result | content]}
        assert turns(message) == [{"role": "tool", "tool_call_id": "t", "content": ""}]
    aside = {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}
    assert turns(aside) == [{"role": "assistant", "content": ""}]


def test_neighbours_of_one_role_are_one_turn() -> None:
    use = {"type": "tool_use", "id": "t", "name": "add", "input": {}}
    thought = {"type": "thinking", "thinking": "a", "signature": ""}
    found = turns(
        {"role": "user", "content": "one"},
        {"role": "user", "content": [_text("two")]},
        {"role": "assistant", "content": [thought]},
        {"role": "assistant", "content": [thought, use]},
        {"role": "assistant", "content": "said"},
        {"role": "system", "content": [_text("be brief")]},
        {"role": "user", "content": "on"},
    )
    assert [turn["role"] for turn in found] == ["user", "assistant", "system", "user"]
    assert found[0]["content"] == [_text("one"), _text("two")]
    assert found[1]["reasoning_content"] == "a\na"
    assert len(found[1]["tool_calls"]) == 1
    assert found[1]["content"] == [_text(""), _text("said")]


def test_documents() -> None:
    def document(source: dict[str, Any], **more: Any) -> object:
        block = {"type": "document", "source": source, **more}
        return turns({"role": "user", "content": [block, _text("?")]})[0]["content"]

    text = {"type": "text", "media_type": "text/plain", "data": "long"}
    assert document(text) == [_text("long"), _text("?")]
    head = _text("title: T\ncontext: C")
    assert document(text, title="T", context="C") == [head, _text("long"), _text("?")]
    assert document({"type": "content", "content": "in"}) == [_text("in"), _text("?")]
    inner = [_text("in"), {"type": "image", "source": PNG}]
    picture = {"type": "image_url", "image_url": {"url": PNG_URL}}
    assert document({"type": "content", "content": inner}) == [_text("in"), picture, _text("?")]
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "QQ=="}
    file = {"filename": "document.pdf", "file_data": "data:application/pdf;base64,QQ=="}
    assert document(pdf) == [{"type": "file", "file": file}, _text("?")]
    found = document(pdf, title="a.pdf")
    assert isinstance(found, list)
    assert found[1]["file"]["filename"] == "a.pdf"


def test_search_results() -> None:
    block = {
        "type": "search_result",
        "source": "http://x",
        "title": "T",
        "content": [_text("a"), _text("b")],
    }
    assert turns({"role": "user", "content": [block]})[0]["content"] == "T (http://x)\na\nb"


def test_counting_needs_no_limit() -> None:
    body = json.dumps({"model": "m", "messages": HI, "max_tokens": "x"}).encode()
    assert read_count_request(body).fields == {"model": "m", "messages": HI}


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"max_tokens": None}, "`max_tokens`"),
        ({"max_tokens": 0}, "`max_tokens`"),
        ({"max_tokens": True}, "`max_tokens`"),
        ({"messages": []}, "`messages`"),
        ({"messages": "hi"}, "`messages`"),
        ({"messages": ["hi"]}, "`messages[0]`"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "`messages[0]`"),
        ({"messages": [{"role": "user"}]}, "`messages[0].content`"),
        ({"messages": [{"role": "user", "content": []}]}, "`messages[0].content`"),
        ({"messages": [{"role": "user", "content": [1]}]}, "`messages[0].content[0]`"),
        ({"system": 1}, "`system`"),
        ({"system": [{"type": "image"}]}, "`system[0]`"),
        ({"tools": {}}, "`tools`"),
        ({"tools": [1]}, "`tools[0]`"),
        ({"tools": [{"name": "x"}]}, "`tools[0].input_schema`"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "only Anthropic's"),
        ({"tool_choice": "auto"}, "`tool_choice`"),
        ({"tool_choice": {"type": "x"}}, "`tool_choice`"),
        ({"tool_choice": {"type": ["auto"]}}, "`tool_choice`"),
        ({"thinking": {"type": "x"}}, "`thinking`"),
        ({"thinking": 1}, "`thinking`"),
        ({"thinking": {"type": "enabled"}}, "`thinking.budget_tokens`"),
        ({"thinking": {"type": "enabled", "budget_tokens": True}}, "`thinking.budget_tokens`"),
        ({"output_config": 1}, "`output_config`"),
        ({"output_config": {"effort": "x"}}, "`output_config.effort`"),
        ({"output_config": {"format": 1}}, "`output_config.format`"),
        ({"speed": "x"}, "`speed`"),
    ],
)
def test_what_is_wrong_is_named(more: dict[str, Any], place: str) -> None:
    assert place in refused(**more)


@pytest.mark.parametrize(
    ("role", "block", "place"),
    [
        ("user", {"type": "thinking"}, "of type 'thinking'"),
        ("user", {"type": "text"}, "content[0]`"),
        ("user", {"type": "image"}, "content[0].source`"),
        ("user", {"type": "image", "source": {"type": "file", "file_id": "f"}}, ".source`"),
        ("user", {"type": "document", "source": {"type": "content", "content": 1}}, "content`"),
        (
            "user",
            {"type": "document", "source": {"type": "content", "content": [{"type": "x"}]}},
            "source.content[0]`",
        ),
        ("user", {"type": "tool_result"}, "tool_use_id`"),
        ("user", {"type": "tool_result", "tool_use_id": "t", "content": 1}, "[0].content`"),
        ("assistant", {"type": "tool_use"}, "content[0]`"),
        ("assistant", {"type": "tool_use", "id": "t", "name": "n", "input": 1}, ".input`"),
        ("assistant", {"type": "server_tool_use"}, "of type 'server_tool_use'"),
    ],
)
def test_what_is_wrong_in_a_block_is_named(role: str, block: dict[str, Any], place: str) -> None:
    assert place in refused(messages=[{"role": role, "content": [block]}])


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b'"x"'])
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_messages_request(raw)
