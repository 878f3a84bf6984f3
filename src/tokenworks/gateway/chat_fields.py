"""The fields of a chat completion request: which are known, and what their values may be.

What an engine would answer with a 500, or pay for with its memory, is refused here with a 400 that
names the place.
"""

from __future__ import annotations

import reprlib
from typing import Final

import msgspec

from tokenworks.core.errors import InvalidRequest
from tokenworks.gateway.schema_limits import check_schemas

STOP_STRINGS_MAX: Final = 16
STOP_CHARS_MAX: Final = 256
TOP_LOGPROBS_MAX: Final = 20
LOGIT_BIAS_MAX: Final = 1_024
TOOLS_MAX: Final = 128
TOOL_NAME_CHARS_MAX: Final = 64
IMAGE_SCHEMES: Final = ("data:", "https://", "http://")
"""Whether a worker follows an address, and to which hosts, is its own setting."""

OPENAI_FIELDS: Final = frozenset(
    {
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "metadata",
        "modalities",
        "model",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
    }
)
SAMPLER_FIELDS: Final = frozenset({"ignore_eos", "min_p", "repeat_penalty", "top_k"})
"""Engines' own fields whose cost doesn't grow with their value."""

KNOWN_FIELDS: Final = OPENAI_FIELDS | SAMPLER_FIELDS | {"cache_salt"}
"""Any engine may be sent these; an engine's adapter decides about the others. A caller's salt is
mixed with its tenant's and goes no further."""

WORKER_FIELDS: Final = frozenset(
    {
        "best_of",
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "data_parallel_rank",
        "dry_allowed_length",
        "dry_base",
        "dry_multiplier",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "grammar",
        "grammar_lazy",
        "grammar_triggers",
        "grammar_type",
        "id_slot",
        "kv_transfer_params",
        "lora",
        "n_cmpl",
        "n_predict",
        "priority",
        "request_id",
        "return_progress",
        "rid",
        "use_beam_search",
    }
)
"""Fields by which engines let a caller exceed the output limit, get more answers than are counted,
hide what was read, steer the worker itself, or keep it busy for ever. llama.cpp's ``n_predict``
overrules ``max_tokens``; its ``dry_*`` look back as far as they are told, and its ``grammar`` can
have more readings than it will ever follow.
"""

JSONObject = dict[str, object]


def wrong(field: str, value: object, want: str) -> InvalidRequest:
    """The refusal of a value, which is shown in bounded length and depth."""
    shown = reprlib.repr(value)
    return InvalidRequest(f"`{field}` is {shown}; it must be {want}.", hint="Mend it and retry.")


def extra_fields(fields: JSONObject) -> tuple[str, ...]:
    """The names that are neither OpenAI's nor a safe sampler's.

    >>> extra_fields({"model": "m", "top_k": 4, "repeat_last_n": 9})
    ('repeat_last_n',)
    """
    return tuple(sorted(name for name in fields if name not in KNOWN_FIELDS))


def check_fields(fields: JSONObject) -> None:
    """Refuse what no engine may get.

    Raises:
        InvalidRequest: with the field at fault and what it should be.
    """
    taken = sorted(name for name in fields if name in WORKER_FIELDS)
    if taken:
        raise InvalidRequest(
            f"`{taken[0]}` is between the factory and its workers.",
            hint="Leave it out; `max_completion_tokens` limits the answer.",
        )
    _check_stop(fields.get("stop"))
    for name in ("top_logprobs", "n_probs"):
        value = fields.get(name)
        if value is not None and not _whole(value, TOP_LOGPROBS_MAX):
            raise wrong(name, value, f"a whole number from 0 to {TOP_LOGPROBS_MAX}")
    bias = fields.get("logit_bias")
    if bias is not None and not (isinstance(bias, dict | list) and len(bias) <= LOGIT_BIAS_MAX):
        raise wrong("logit_bias", bias, f"an object of at most {LOGIT_BIAS_MAX} tokens")
    _check_tools(fields.get("tools"))
    check_schemas(fields)


class Media:
    """What is in messages besides text.

    Attributes:
        kinds: the types of such parts; not every engine takes them.
        images: how many pictures.
        image_chars: characters of their addresses, which hold the picture itself if it is data.
    """

    __slots__ = ("image_chars", "images", "kinds")

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self.images = self.image_chars = 0


def check_messages(messages: list[object]) -> Media:
    """Refuse messages that a chat template cannot write.

    Returns:
        What engines that read text alone do not take.

    Raises:
        InvalidRequest: with the place at fault and what it should be.
    """
    media = Media()
    for i, message in enumerate(messages):
        place = f"messages[{i}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise wrong(place, message, 'an object with a "role"')
        content = message.get("content")
        if isinstance(content, list):
            _check_parts(f"{place}.content", content, media)
        elif content is not None and not isinstance(content, str):
            raise wrong(f"{place}.content", content, "a string or a list of parts")
        calls = message.get("tool_calls")
        if calls is not None:
            _check_calls(f"{place}.tool_calls", calls)
    return media


def _whole(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _check_stop(stop: object) -> None:
    strings = [stop] if isinstance(stop, str) else stop
    if strings is None:
        return
    if not isinstance(strings, list) or len(strings) > STOP_STRINGS_MAX:
        raise wrong("stop", stop, f"a string, or a list of at most {STOP_STRINGS_MAX}")
    for each in strings:
        if not isinstance(each, str) or not 1 <= len(each) <= STOP_CHARS_MAX:
            raise wrong("stop", each, f"strings of 1 to {STOP_CHARS_MAX} characters")


def _check_tools(tools: object) -> None:
    if tools is None:
        return
    if not isinstance(tools, list) or len(tools) > TOOLS_MAX:
        raise wrong("tools", tools, f"a list of at most {TOOLS_MAX} functions")
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            raise wrong(f"tools[{i}]", tool, 'an object with a "function"')
        if tool.get("type") != "function":
            raise wrong(f"tools[{i}].type", tool.get("type"), '"function"')
        name = function.get("name")
        if not isinstance(name, str) or not 1 <= len(name) <= TOOL_NAME_CHARS_MAX:
            want = f"a string of 1 to {TOOL_NAME_CHARS_MAX} characters"
            raise wrong(f"tools[{i}].function.name", name, want)
        description = function.get("description", "")
        if not isinstance(description, str):
            raise wrong(f"tools[{i}].function.description", description, "a string")
        parameters = function.get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            raise wrong(f"tools[{i}].function.parameters", parameters, "a JSON schema's object")


def _check_parts(place: str, parts: list[object], media: Media) -> None:
    for i, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or not isinstance(kind, str):
            raise wrong(f"{place}[{i}]", part, 'a part with a "type", such as text')
        if kind in ("text", "refusal"):
            if not isinstance(part.get(kind), str):
                raise wrong(f"{place}[{i}].{kind}", part.get(kind), "a string")
            continue
        media.kinds.add(kind)
        if kind == "image_url":
            image = part.get(kind)
            url = image.get("url") if isinstance(image, dict) else None
            if not isinstance(url, str) or not url.startswith(IMAGE_SCHEMES):
                # A file: address would show a caller what lies on the worker's disk.
                want = f'an object with a "url" that begins with {" or ".join(IMAGE_SCHEMES)}'
                raise wrong(f"{place}[{i}].image_url", image, want)
            media.images += 1
            media.image_chars += len(url)


def _check_calls(place: str, calls: object) -> None:
    if not isinstance(calls, list):
        raise wrong(place, calls, "a list of calls")
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise wrong(f"{place}[{i}]", call, 'an object with a "function" that has a name')
        given = function.get("arguments")
        if not isinstance(given, dict) and not _is_object(given):
            want = "the text of a JSON object"
            raise wrong(f"{place}[{i}].function.arguments", given, want)


def _is_object(text: object) -> bool:
    if not isinstance(text, str):
        return False
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return False
