"""OpenAI's Responses request as a chat completion request, so that any worker can answer it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from tokenworks.core.errors import InvalidRequest
from tokenworks.gateway.chat_fields import JSONObject, wrong
from tokenworks.gateway.request_fields import take_tools

EXAMPLE: Final = '{"model": ..., "input": ...}'

REFUSED: Final = ("background", "conversation", "moderation", "prompt")
"""What would have to live on elsewhere, and does not here."""

KEPT: Final = (
    "frequency_penalty",
    "parallel_tool_calls",
    "presence_penalty",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "stream",
    "temperature",
    "top_p",
    "user",
)
"""Fields that chat completions have under the same name."""

TRANSLATED: Final = frozenset(
    {
        *("include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata"),
        *("previous_response_id", "reasoning", "store", "stream_options", "text", "tool_choice"),
        *("tools", "truncation", "model", "context_management", "prompt_cache_options"),
        *("prompt_cache_retention", "background_options", "access_programs", "image"),
        "top_logprobs",
    }
)
"""Fields that are written anew, or that say nothing to a worker; any other passes as it is."""

LOGPROBS: Final = "message.output_text.logprobs"
INPUT_ITEMS_MAX: Final = 4_096
_ROLES: Final = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}
"""Open models' templates know no developer."""

_arguments: Final = msgspec.json.Decoder(dict[str, object])

Turns = list[JSONObject]
"""Messages of a chat completion."""


class ResponsesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A Responses request, translated.

    Attributes:
        fields: the chat completion request that asks for the same.
        turns: its messages without the instructions, which hold for one response alone.
        items: the input as it came, as items.
        echo: what the response repeats of the request.
        store: whether the response is to be kept.
    """

    fields: JSONObject
    turns: Turns
    items: list[JSONObject]
    echo: JSONObject
    store: bool


def read_responses_request(given: JSONObject, before: Turns) -> ResponsesRequest:
    """Translate the body of ``POST /v1/responses``.

    Args:
        given: the body.
        before: the turns up to ``previous_response_id``.

    Raises:
        InvalidRequest: with the place at fault.
    """
    for name in REFUSED:
        if given.get(name) not in (None, False, [], {}):
            raise InvalidRequest(f"`{name}` is not offered here.", hint="Leave it out.")
    known = {*KEPT, *TRANSLATED, *REFUSED}
    fields: JSONObject = {name: value for name, value in given.items() if name not in known}
    fields |= {name: given[name] for name in KEPT if given.get(name) is not None}
    fields["model"] = given.get("model")
    items = _items(given.get("input"))
    turns = [*before, *_turns(items)]
    instructions = given.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise wrong("instructions", instructions, "text")
    first: Turns = [{"role": "system", "content": instructions}] if instructions else []
    fields["messages"] = [*first, *turns]
    if given.get("max_output_tokens") is not None:
        fields["max_completion_tokens"] = given["max_output_tokens"]
    _reasoning(given.get("reasoning"), fields)
    _text(given.get("text"), fields)
    _tools(given, fields)
    include = given.get("include")
    if isinstance(include, list) and LOGPROBS in include:
        raise InvalidRequest(
            f"`include` asks for {LOGPROBS}, which is not offered here.",
            hint="POST /v1/chat/completions gives log probabilities.",
        )
    store = given.get("store")
    if store is not None and not isinstance(store, bool):
        raise wrong("store", store, "true or false")
    return ResponsesRequest(
        fields=fields, turns=turns, items=items, echo=_echo(given), store=store is not False
    )


def previous_response(given: Mapping[str, object]) -> str | None:
    """The id of the response that a request goes on from.

    Raises:
        InvalidRequest: it is no id.
    """
    previous = given.get("previous_response_id")
    if previous is not None and not isinstance(previous, str):
        raise wrong("previous_response_id", previous, "the id of a stored response")
    return previous or None


def _echo(given: JSONObject) -> JSONObject:
    """What a response says of how it was asked for, with OpenAI's defaults."""
    reasoning = given.get("reasoning")
    text = given.get("text")
    told: JSONObject = {
        "background": False,
        "instructions": given.get("instructions"),
        "max_output_tokens": given.get("max_output_tokens"),
        "max_tool_calls": given.get("max_tool_calls"),
        "metadata": given.get("metadata") or {},
        "model": given.get("model"),
        "parallel_tool_calls": given.get("parallel_tool_calls") is not False,
        "previous_response_id": given.get("previous_response_id"),
        "prompt_cache_key": given.get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None}
        | (reasoning if isinstance(reasoning, dict) else {}),
        "safety_identifier": given.get("safety_identifier"),
        "store": given.get("store") is not False,
        "temperature": given.get("temperature", 1.0),
        "text": {"format": {"type": "text"}} | (text if isinstance(text, dict) else {}),
        "tool_choice": given.get("tool_choice") or "auto",
        "tools": given.get("tools") or [],
        "top_logprobs": given.get("top_logprobs") or 0,
        "top_p": given.get("top_p", 1.0),
        "truncation": "disabled",  # whatever was asked for: nothing is cut off here
        "user": given.get("user"),
    }
    return told


def _reasoning(value: object, fields: JSONObject) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        raise wrong("reasoning", value, "an object")
    if value.get("effort") is not None:
        fields["reasoning_effort"] = value["effort"]


def _text(value: object, fields: JSONObject) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        raise wrong("text", value, "an object")
    if value.get("verbosity") is not None:
        fields["verbosity"] = value["verbosity"]
    shape = value.get("format")
    kind = shape.get("type") if isinstance(shape, dict) else None
    if shape is None or kind == "text":
        return
    if isinstance(shape, dict) and kind == "json_object":
        fields["response_format"] = shape
    elif isinstance(shape, dict) and kind == "json_schema":
        schema = {k: v for k, v in shape.items() if k != "type"}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    else:
        raise wrong("text.format", shape, "of type text, json_object or json_schema")


def _tools(given: JSONObject, fields: JSONObject) -> None:
    take_tools(given, fields, _tool)
    choice = given.get("tool_choice")
    if choice is None or choice in ("auto", "none", "required"):
        if choice is not None:
            fields["tool_choice"] = choice
        return
    if isinstance(choice, dict) and choice.get("type") == "function":
        fields["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
        return
    raise wrong("tool_choice", choice, 'auto, none, required or {"type": "function", "name": ...}')


def _tool(place: str, tool: object) -> JSONObject:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or kind != "function":
        raise InvalidRequest(
            f"`{place}` is of type {str(kind)[:80]!r}, which runs at OpenAI.",
            hint="Describe it as a function, and run it yourself.",
        )
    names = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in names if tool.get(name) is not None}
    return {"type": "function", "function": function}


# Input


def _items(value: object) -> list[JSONObject]:
    if isinstance(value, str) and value:
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise wrong("input", value, "text, or a list of at least one item")
    if len(value) > INPUT_ITEMS_MAX:
        raise InvalidRequest(
            f"There are {len(value)} input items, more than {INPUT_ITEMS_MAX}.",
            hint="Send fewer, longer ones.",
        )
    return [_item(f"input[{i}]", item) for i, item in enumerate(value)]


def _item(place: str, item: object) -> JSONObject:
    if not isinstance(item, dict):
        raise wrong(place, item, "an object")
    kind = item.get("type") or ("message" if "role" in item else None)
    if kind not in ("message", "function_call", "function_call_output", "reasoning"):
        raise InvalidRequest(
            f"`{place}` is of type {str(kind)[:80]!r}, which no worker takes.",
            hint="Send messages, function calls with their outputs, and reasoning.",
        )
    return {"type": kind, **item}


def _turns(items: Iterable[JSONObject]) -> Turns:
    """Items as messages: calls and thoughts belong to the assistant's turn that they stand in."""
    turns: Turns = []
    for i, item in enumerate(items):
        place, kind = f"input[{i}]", item["type"]
        if kind == "message":
            _message(place, item, turns)
        elif kind == "function_call":
            calls = _own_turn(turns).setdefault("tool_calls", [])
            assert isinstance(calls, list), calls
            calls.append(_call(place, item))
        elif kind == "reasoning":
            _thought(item, turns)
        else:
            turns.append(_output(place, item))
    return turns


def _own_turn(turns: Turns) -> JSONObject:
    """The assistant's turn that is going on, or a new one."""
    if not turns or turns[-1]["role"] != "assistant":
        turns.append({"role": "assistant", "content": None})
    return turns[-1]


def _thought(item: JSONObject, turns: Turns) -> None:
    content = item.get("content")
    texts = [
        str(part.get("text") or "")
        for part in (content if isinstance(content, list) else [])
        if isinstance(part, dict)
    ]
    if any(texts):
        turns.append({"role": "assistant", "content": None, "reasoning_content": "\n".join(texts)})


def _message(place: str, item: JSONObject, turns: Turns) -> None:
    role = _ROLES.get(str(item.get("role")))
    if role is None:
        raise wrong(f"{place}.role", item.get("role"), f"one of {', '.join(_ROLES)}")
    content = _content(f"{place}.content", item.get("content"))
    last = turns[-1] if turns else {}
    if role == last.get("role") == "assistant" and last.get("content") is None:
        last["content"] = content  # the thought or the calls that this turn began with
    else:
        turns.append({"role": role, "content": content})


def _content(place: str, content: object) -> object:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise wrong(place, content, "text, or a list of at least one part")
    parts = [_part(f"{place}[{i}]", part) for i, part in enumerate(content)]
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(place: str, part: object) -> JSONObject:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind in ("input_text", "output_text", "text"):
        if isinstance(part.get("text"), str):
            return {"type": "text", "text": part["text"]}
        raise wrong(f"{place}.text", part.get("text"), "text")
    if isinstance(part, dict) and kind == "refusal":
        return {"type": "text", "text": str(part.get("refusal") or "")}
    if isinstance(part, dict) and kind == "input_image" and isinstance(part.get("image_url"), str):
        image: JSONObject = {"url": part["image_url"]}
        if part.get("detail") is not None:
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    if isinstance(part, dict) and kind == "input_file" and isinstance(part.get("file_data"), str):
        file = {name: part[name] for name in ("filename", "file_data") if part.get(name)}
        return {"type": "file", "file": file}
    if isinstance(part, dict) and kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    raise wrong(place, part, "a part of text, an image with its URL, or a file with its data")


def _call(place: str, item: JSONObject) -> JSONObject:
    for name in ("call_id", "name", "arguments"):
        if not isinstance(item.get(name), str):
            raise wrong(f"{place}.{name}", item.get(name), "text")
    function = {"name": item["name"], "arguments": object_arguments(str(item["arguments"]))}
    return {"id": item["call_id"], "type": "function", "function": function}


def object_arguments(text: str) -> str:
    r"""A call's arguments as every worker's chat template takes them: the JSON of an object.

    Others, which were cut off as a rule, stand in an object, so that the call keeps its place and
    its output, and the model sees what it had made.

    >>> object_arguments('{"x":1}'), object_arguments(""), object_arguments('{"x":')
    ('{"x":1}', '{}', '{"incomplete":"{\\"x\\":"}')
    >>> object_arguments(r'{"x":"\ud83d"}') == r'{"x":"\ud83d"}', object_arguments("1e400")
    (True, '{"incomplete":"1e400"}')
    """
    if not text:
        return "{}"
    try:
        _arguments.decode(text)
    except (msgspec.DecodeError, RecursionError):
        if not _is_lax_object(text):
            return msgspec.json.encode({"incomplete": text}).decode()
    return text


def _is_lax_object(text: str) -> bool:
    """Whether it is an object as Python reads JSON: with half a pair of surrogates, or 1e400."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def with_object_arguments(turns: Turns) -> Turns:
    """Turns that were kept, with such arguments; each is changed where it is."""
    for turn in turns:
        calls = turn.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call["function"]
            function["arguments"] = object_arguments(function["arguments"])
    return turns


def _output(place: str, item: JSONObject) -> JSONObject:
    """What a function gave: text, or parts of which a tool's message can hold the text."""
    if not isinstance(item.get("call_id"), str):
        raise wrong(f"{place}.call_id", item.get("call_id"), "the id of a function call")
    content = _content(f"{place}.output", item.get("output") or "")
    return {"role": "tool", "tool_call_id": item["call_id"], "content": content}
