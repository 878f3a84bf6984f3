"""Anthropic's Messages request as a chat completion request, so that any worker can answer it.

What has no counterpart and changes nothing that a caller could see (cache marks, metadata that
only Anthropic reads) is left out; what would change the answer is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from tokenworks.core.errors import InvalidRequest
from tokenworks.gateway.chat_fields import JSONObject, wrong
from tokenworks.gateway.json_body import decode_object
from tokenworks.gateway.request_fields import take_tools

TRANSLATED: Final = frozenset(
    {
        "max_tokens",
        "messages",
        "metadata",
        "output_config",
        "output_format",
        "service_tier",
        "speed",
        "stop_sequences",
        "system",
        "thinking",
        "tool_choice",
        "tools",
    }
)
"""Fields that are written anew; any other but those below passes as it is."""

LEFT_OUT: Final = frozenset({"betas", "cache_control", "context_management", "diagnostics"})
"""Marks for Anthropic's own cache and reports. A worker here finds cached prefixes by itself, and a
conversation that nobody shortens is still the same conversation."""

REFUSED: Final = ("container", "fallbacks", "inference_geo", "mcp_servers")
"""What would run or stay somewhere, or answer otherwise, and cannot here."""

EFFORTS: Final = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""``output_config.effort`` as ``reasoning_effort``, of which engines know three."""

BUDGETS: Final = ((4_096, "low"), (16_384, "medium"))
"""A thinking budget below so many tokens is this effort, any other is high (assumed)."""

_ASIDE: Final = frozenset({"redacted_thinking"})
"""Blocks that only Anthropic can read; what they say is lost on any other worker."""


class Thinking(msgspec.Struct, frozen=True):
    """What a caller wants to see of the reasoning.

    Attributes:
        asked: whether it is to be sent at all.
        shown: whether its text is sent, or only that it took place.
    """

    asked: bool = False
    shown: bool = True


class MessagesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A Messages request, translated.

    Attributes:
        fields: the chat completion request that asks for the same.
        thinking: what the caller wants to see of the reasoning.
    """

    fields: JSONObject
    thinking: Thinking


def read_messages_request(raw: bytes) -> MessagesRequest:
    """Translate the body of ``POST /v1/messages``.

    Raises:
        InvalidRequest: with the place at fault, in Anthropic's names.
    """
    given = decode_object(raw, '{"model": ..., "max_tokens": ..., "messages": [...]}')
    return _translated(given, limit_needed=True)


def read_count_request(raw: bytes) -> MessagesRequest:
    """Translate the body of ``POST /v1/messages/count_tokens``, which limits nothing.

    Raises:
        InvalidRequest: as above.
    """
    given = decode_object(raw, '{"model": ..., "messages": [...]}')
    return _translated({k: v for k, v in given.items() if k != "max_tokens"}, limit_needed=False)


def _translated(given: JSONObject, *, limit_needed: bool) -> MessagesRequest:
    for name in REFUSED:
        if given.get(name) not in (None, [], {}):
            raise InvalidRequest(
                f"`{name}` cannot be kept here.", hint="Leave it out, or ask Anthropic itself."
            )
    fields = {k: v for k, v in given.items() if k not in TRANSLATED and k not in LEFT_OUT}
    if limit_needed:
        limit = given.get("max_tokens")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise wrong("max_tokens", limit, "a whole number of at least 1")
        fields["max_tokens"] = limit
    thinking, effort = _thinking(given.get("thinking"))
    effort = _output(given, fields) or effort
    if thinking.asked and effort is not None:
        fields["reasoning_effort"] = effort
    fields["messages"] = [*_system(given.get("system")), *_messages(given.get("messages"))]
    _tools(given, fields)
    if given.get("stop_sequences"):
        fields["stop"] = given["stop_sequences"]
    metadata = given.get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    if isinstance(user, str):
        fields["user"] = user
    tier = _service_tier(given)
    if tier is not None:
        fields["service_tier"] = tier
    return MessagesRequest(fields=fields, thinking=thinking)


def _service_tier(given: JSONObject) -> object:
    """``speed: fast`` is OpenAI's word too; ``standard_only`` is what OpenAI calls ``default``."""
    speed, tier = given.get("speed"), given.get("service_tier")
    if speed not in (None, "standard", "fast"):
        raise wrong("speed", speed, '"standard" or "fast"')
    if tier == "standard_only":
        return "default"
    return "fast" if speed == "fast" and tier in (None, "auto") else tier


def _thinking(value: object) -> tuple[Thinking, str | None]:
    """What is to be seen, and the effort that a budget stands for."""
    if value is None:
        return Thinking(), None
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or kind not in (
        "enabled",
        "disabled",
        "adaptive",
        "between_tools",
    ):
        want = 'an object with a "type": enabled, disabled, adaptive or between_tools'
        raise wrong("thinking", value, want)
    if kind == "disabled":
        return Thinking(), None
    shown = value.get("display") != "omitted"
    budget = value.get("budget_tokens")
    if kind == "enabled" and (isinstance(budget, bool) or not isinstance(budget, int)):
        raise wrong("thinking.budget_tokens", budget, "a whole number of tokens")
    if not isinstance(budget, int):
        return Thinking(asked=True, shown=shown), None
    effort = next((word for tokens, word in BUDGETS if budget < tokens), "high")
    return Thinking(asked=True, shown=shown), effort


def _output(given: JSONObject, fields: JSONObject) -> str | None:
    """Set the answer's format, and return the effort asked for."""
    config = given.get("output_config")
    if config is None:
        config = {}
    if not isinstance(config, dict):
        raise wrong("output_config", config, "an object")
    shape = config.get("format") or given.get("output_format")
    if shape is not None:
        if not isinstance(shape, dict) or shape.get("type") != "json_schema":
            raise wrong("output_config.format", shape, 'an object of type "json_schema"')
        schema = {"name": "answer", "schema": shape.get("schema"), "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    effort = config.get("effort")
    if effort is None:
        return None
    if effort not in EFFORTS:
        raise wrong("output_config.effort", effort, f"one of {', '.join(EFFORTS)}")
    return EFFORTS[effort]


# Tools


def _tools(given: JSONObject, fields: JSONObject) -> None:
    take_tools(given, fields, _tool)
    choice = given.get("tool_choice")
    if choice is None:
        return
    kind = choice.get("type") if isinstance(choice, dict) else None
    words = {"auto": "auto", "any": "required", "none": "none"}
    if isinstance(choice, dict) and kind == "tool":
        fields["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif isinstance(choice, dict) and isinstance(kind, str) and kind in words:
        fields["tool_choice"] = words[kind]
    else:
        want = 'an object with a "type": auto, any, tool or none'
        raise wrong("tool_choice", choice, want)
    if choice.get("disable_parallel_tool_use") is True:
        fields["parallel_tool_calls"] = False


def _tool(place: str, tool: object) -> JSONObject:
    if not isinstance(tool, dict):
        raise wrong(place, tool, "an object")
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise InvalidRequest(
            f"`{place}` is of type {str(kind)[:80]!r}, which only Anthropic's models and servers"
            " know.",
            hint="Describe it as a tool of your own, with an input_schema.",
        )
    function: JSONObject = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
    if not isinstance(function["parameters"], dict):
        raise wrong(f"{place}.input_schema", function["parameters"], "a JSON schema's object")
    for name in ("description", "strict"):
        if name in tool:
            function[name] = tool[name]
    return {"type": "function", "function": function}


# Messages


def _system(value: object, place: str = "system") -> list[JSONObject]:
    if value is None or value in ("", []):
        return []
    return [{"role": "system", "content": _texts(place, value)}]


def _texts(place: str, value: object) -> str:
    """Text, or text blocks joined by lines."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong(place, value, "text, or a list of text blocks")
    return "\n".join(_block_text(f"{place}[{i}]", block) for i, block in enumerate(value))


def _block_text(place: str, block: object) -> str:
    if isinstance(block, dict) and block.get("type") == "text":
        text = block.get("text")
        if isinstance(text, str):
            return text
    raise wrong(place, block, "a block of type text")


def _messages(value: object) -> list[JSONObject]:
    """Turns, one after another; neighbours of one role are one turn, as at Anthropic."""
    if not isinstance(value, list) or not value:
        raise wrong("messages", value, "a list of at least one message")
    turns: list[JSONObject] = []
    for i, message in enumerate(value):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(message, dict) or role not in ("user", "assistant", "system"):
            raise wrong(f"messages[{i}]", message, 'an object with a "role": user or assistant')
        place, content = f"messages[{i}].content", message.get("content")
        if role == "system":
            new: list[JSONObject] = _system(content, place)
        elif role == "assistant":
            new = [_assistant(place, content)]
        else:
            new = _user(place, content)
        for turn in new:
            _join(turns, turn)
    return turns


def _join(turns: list[JSONObject], turn: JSONObject) -> None:
    last = turns[-1] if turns else {}
    if turn["role"] not in ("user", "assistant") or last.get("role") != turn["role"]:
        turns.append(turn)
        return
    before, after = last.get("content"), turn.get("content")
    if before is None or after is None:
        last["content"] = after if before is None else before
    else:
        last["content"] = [*_as_parts(before), *_as_parts(after)]
    calls = [*_list(last.get("tool_calls")), *_list(turn.get("tool_calls"))]
    if calls:
        last["tool_calls"] = calls
    thoughts = [t for t in (last.get("reasoning_content"), turn.get("reasoning_content")) if t]
    if thoughts:
        last["reasoning_content"] = "\n".join(str(t) for t in thoughts)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _as_parts(content: object) -> list[object]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _plain(parts: list[JSONObject]) -> object:
    """Parts as an engine likes them best: one text is a string."""
    if len(parts) == 1 and parts[0].get("type") == "text":
        return parts[0]["text"]
    return parts


def _user(place: str, content: object) -> list[JSONObject]:
    """Tools' results are messages of their own, before what the user says besides."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results: list[JSONObject] = []
    parts: list[JSONObject] = []
    for i, block in enumerate(_blocks(place, content)):
        at = f"{place}[{i}]"
        if block.get("type") == "tool_result":
            result, seen = _tool_result(at, block)
            results.append(result)
            parts += seen
        else:
            parts += _part(at, block)
    if parts:
        results.append({"role": "user", "content": _plain(parts)})
    return results


def _blocks(place: str, content: object) -> Iterable[JSONObject]:
    if not isinstance(content, list) or not content:
        raise wrong(place, content, "text, or a list of at least one block")
    for i, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise wrong(f"{place}[{i}]", block, 'an object with a "type"')
        yield block


def _tool_result(place: str, block: JSONObject) -> tuple[JSONObject, list[JSONObject]]:
    """A tool's message, which is text alone, and the pictures that the tool gave besides."""
    call = block.get("tool_use_id")
    if not isinstance(call, str):
        raise wrong(f"{place}.tool_use_id", call, "the id of a tool_use block")
    content = block.get("content")
    seen: list[JSONObject] = []
    if content is None or isinstance(content, str):
        text = content or ""
    else:
        texts = []
        for i, part in enumerate(_blocks(f"{place}.content", content) if content else ()):
            for each in _part(f"{place}.content[{i}]", part):
                if each["type"] == "text":
                    texts.append(str(each["text"]))
                else:
                    seen.append(each)
        text = "\n".join(texts)
    if block.get("is_error") is True:
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": call, "content": text}, seen


def _part(place: str, block: JSONObject) -> list[JSONObject]:
    reader = _PARTS.get(str(block["type"]))
    if reader is None:
        raise InvalidRequest(
            f"`{place}` is a block of type {str(block['type'])[:80]!r}, which no worker takes.",
            hint=f"Send one of {', '.join(sorted(_PARTS))}.",
        )
    return reader(place, block)


def _text(place: str, block: JSONObject) -> list[JSONObject]:
    return [{"type": "text", "text": _block_text(place, block)}]


def _source(place: str, block: JSONObject) -> JSONObject:
    source = block.get("source")
    if not isinstance(source, dict):
        raise wrong(f"{place}.source", source, "an object")
    return source


def _url(place: str, source: JSONObject) -> str:
    """Where a picture or a document is: its own address, or itself as a data address."""
    kind = source.get("type")
    if kind == "url" and isinstance(source.get("url"), str):
        return str(source["url"])
    media, data = source.get("media_type"), source.get("data")
    if kind == "base64" and isinstance(media, str) and isinstance(data, str):
        return f"data:{media};base64,{data}"
    raise wrong(f"{place}.source", source, "a url, or base64 with media_type and data")


def _image(place: str, block: JSONObject) -> list[JSONObject]:
    url = _url(place, _source(place, block))
    return [{"type": "image_url", "image_url": {"url": url}}]


def _document(place: str, block: JSONObject) -> list[JSONObject]:
    source = _source(place, block)
    head = [f"{name}: {block[name]}" for name in ("title", "context") if block.get(name)]
    parts: list[JSONObject] = [{"type": "text", "text": "\n".join(head)}] if head else []
    if source.get("type") == "text" and isinstance(source.get("data"), str):
        return [*parts, {"type": "text", "text": source["data"]}]
    if source.get("type") == "content":
        inner, at = source.get("content"), f"{place}.source.content"
        if isinstance(inner, str):
            return [*parts, {"type": "text", "text": inner}]
        for i, each in enumerate(_blocks(at, inner)):
            if each["type"] not in ("text", "image"):
                raise wrong(f"{at}[{i}]", each, "a block of type text or image")
            parts += _part(f"{at}[{i}]", each)
        return parts
    name = block.get("title")
    file = {
        "filename": name if isinstance(name, str) else "document.pdf",
        "file_data": _url(place, source),
    }
    return [*parts, {"type": "file", "file": file}]


def _search_result(place: str, block: JSONObject) -> list[JSONObject]:
    text = _texts(f"{place}.content", block.get("content"))
    return [{"type": "text", "text": f"{block.get('title')} ({block.get('source')})\n{text}"}]


_PARTS: Final[dict[str, Callable[[str, JSONObject], list[JSONObject]]]] = {
    "text": _text,
    "image": _image,
    "document": _document,
    "search_result": _search_result,
}


def _assistant(place: str, content: object) -> JSONObject:
    """The model's own turn: what it said, what it thought, and the tools that it called."""
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    said: list[JSONObject] = []
    thought: list[str] = []
    calls: list[JSONObject] = []
    for i, block in enumerate(_blocks(place, content)):
        at, kind = f"{place}[{i}]", block["type"]
        if kind == "thinking":
            thought.append(str(block.get("thinking") or ""))
        elif kind == "tool_use":
            calls.append(_call(at, block))
        elif kind not in _ASIDE:
            said += _part(at, block)
    turn: JSONObject = {"role": "assistant", "content": _plain(said) if said else None}
    if any(thought):
        turn["reasoning_content"] = "\n".join(each for each in thought if each)
    if calls:
        turn["tool_calls"] = calls
    elif not said:
        turn["content"] = ""
    return turn


def _call(place: str, block: JSONObject) -> JSONObject:
    if not isinstance(block.get("id"), str) or not isinstance(block.get("name"), str):
        raise wrong(place, block, "a tool_use with an id and a name")
    given = block.get("input")
    if not isinstance(given, dict):
        raise wrong(f"{place}.input", given, "an object")
    arguments = msgspec.json.encode(given).decode()
    return {
        "id": block["id"],
        "type": "function",
        "function": {"name": block["name"], "arguments": arguments},
    }
