"""What requests and answers look like where nothing is wrong: where mutation begins."""

from __future__ import annotations

from typing import Any

from tests.gateway.fake_desk import HEAD, MODEL, usage

_PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["a", "b"]}, "n": {"$ref": "#/$defs/n"}},
    "$defs": {"n": {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^[a-z]{1,9}$"}]}},
    "required": ["city"],
}
_FUNCTION = {"name": "weather", "description": "It rains.", "parameters": _SCHEMA}
_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city":"a"}'},
}

CHATS: tuple[dict[str, Any], ...] = (
    {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": True},
    {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "x"}, _PICTURE]},
            {"role": "assistant", "content": None, "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ],
        "tools": [{"type": "function", "function": _FUNCTION}],
        "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA}},
        "max_completion_tokens": 9,
        "stream_options": {"include_usage": True},
        "stop": ["a", "b"],
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": {"1": 2},
        "service_tier": "flex",
    },
    {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "n": 1,
        "temperature": 0.5,
        "top_p": 1,
        "seed": 1,
        "stop": "x",
        "user": "u",
        "service_tier": "auto",
        "stream": False,
    },
)
COMPLETIONS: tuple[dict[str, Any], ...] = (
    {"model": MODEL, "prompt": "Once", "max_tokens": 4, "echo": False, "suffix": "end"},
    {"model": MODEL, "prompt": [1, 2, 3], "stream": True, "logprobs": 2, "n": 1},
)
MESSAGES: tuple[dict[str, Any], ...] = (
    {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]},
    {
        "model": MODEL,
        "max_tokens": 2_000,
        "stream": True,
        "system": [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"},
                    },
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {
                        "type": "tool_use",
                        "id": "toolu_1",
                        "name": "weather",
                        "input": {"city": "a"},
                    },
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"},
                    {"type": "text", "text": "so?"},
                ],
            },
        ],
        "tools": [{"name": "weather", "description": "d", "input_schema": _SCHEMA}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1_024},
        "stop_sequences": ["x"],
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "top_k": 3,
    },
)
RESPONSES: tuple[dict[str, Any], ...] = (
    {"model": MODEL, "input": "hello", "stream": True, "store": False},
    {
        "model": MODEL,
        "instructions": "Be short.",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "rain"},
        ],
        "tools": [{"type": "function", "name": "weather", "parameters": _SCHEMA, "strict": True}],
        "tool_choice": {"type": "function", "name": "weather"},
        "text": {"format": {"type": "json_schema", "name": "a", "schema": _SCHEMA}},
        "reasoning": {"effort": "low"},
        "max_output_tokens": 20,
        "metadata": {"a": "b"},
    },
)
OTHERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/embeddings", {"model": MODEL, "input": ["a", "b"], "dimensions": 3}),
    ("/v1/moderations", {"model": MODEL, "input": "a"}),
    ("/v1/rerank", {"model": MODEL, "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}),
    ("/v1/images/generations", {"model": MODEL, "prompt": "a cat", "n": 2}),
    ("/v1/images/edits", {"model": MODEL, "prompt": "a cat", "images": [{"image_url": "x"}]}),
    ("/v1/audio/speech", {"model": MODEL, "input": "hello", "voice": "a"}),
    ("/v1/messages/count_tokens", {k: v for k, v in MESSAGES[1].items() if k != "max_tokens"}),
    ("/v1/responses/input_tokens", RESPONSES[1]),
)
REQUESTS: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("/v1/chat/completions", body) for body in CHATS),
    *(("/v1/completions", body) for body in COMPLETIONS),
    *(("/v1/messages", body) for body in MESSAGES),
    *(("/v1/responses", body) for body in RESPONSES),
    *OTHERS,
)


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk as workers send it."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"choices": [choice], **HEAD, **more}


def _call(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
    call: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
    if name is not None:
        call |= {"id": f"call_{index}", "type": "function"}
        call["function"]["name"] = name
    return chunk({"tool_calls": [call]})


_PROGRESS = {"total": 9, "cache": 1, "processed": 4, "time_ms": 1}
_USED = {**usage(7, 3, 2), "completion_tokens_details": {"reasoning_tokens": 1}}

EVENTS: tuple[dict[str, Any], ...] = (
    chunk({"content": "a"}),
    chunk({"content": ' "b\\n" é'}),
    chunk({"role": "assistant", "content": None}),
    chunk({"reasoning_content": "hm"}),
    chunk({"reasoning": "hm"}),
    chunk({"refusal": "no"}),
    chunk({"content": ""}),
    _call(0, "", "weather"),
    _call(0, '{"city":'),
    _call(0, '"a"}'),
    _call(1, "{}", "weather"),
    chunk({}, "stop"),
    chunk({"content": "c"}, "length"),
    chunk({}, "tool_calls"),
    {"choices": [], **HEAD, "usage": _USED},
    chunk({"content": "d"}, usage=usage(7, 2)),
    chunk({"role": "assistant", "content": None}, prompt_progress=_PROGRESS),
    {"error": {"message": "out of memory", "code": 500}},
    {"choices": [{"index": 0, "text": "e", "finish_reason": None}], **HEAD},
    {"choices": [{"index": 0, "text": "", "finish_reason": "stop", "matched_stop": "x"}], **HEAD},
    {
        "choices": [
            {"index": 1, "delta": {"content": "f"}, "logprobs": {"content": [{"token": "f"}]}}
        ]
    },
)
WHOLE: tuple[dict[str, Any], ...] = (
    {"data": [{"embedding": [0.1], "index": 0}], "usage": {"prompt_tokens": 5, "total_tokens": 5}},
    {"results": [{"index": 0, "relevance_score": 0.5}], "usage": {"total_tokens": 5}},
    {"data": [{"b64_json": "AAAA"}], "usage": {"input_tokens": 3, "output_tokens": 9}},
    {"text": "hello", "usage": {"type": "tokens", "input_tokens": 1, "input_token_details": {}}},
)

_CHOICE = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "logprobs": None}
_TEXT = {"index": 0, "text": "hello", "finish_reason": "length"}
PIECES: dict[str, tuple[dict[str, Any], ...]] = {
    "/v1/chat/completions": (
        {**HEAD, "choices": [{**_CHOICE, "finish_reason": "stop"}], "usage": usage(7, 2)},
        {"service_tier": None, "choices": [_CHOICE], "usage": usage(9, 3, 4), "x": [1.5, {}]},
        {"error": {"message": "out of memory", "code": 500}, "choices": []},
    ),
    "/v1/completions": (
        {**HEAD, "choices": [_TEXT], "usage": usage(7, 2), "service_tier": "default"},
        {"choices": [{"text": "", "finish_reason": None}], "usage": None},
    ),
}
"""Answers in one piece, as workers give them."""
