"""What requests for answers have in common: model, tier, limits, and what a worker gets of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tokenworks.core.ids import ModelName
from tokenworks.core.slo import Tier
from tokenworks.gateway.chat_fields import JSONObject, wrong
from tokenworks.gateway.json_body import encode

TIER_WORDS: Final = {
    **{tier.value: tier for tier in Tier},
    "flex": Tier.MEDIUM,
    "default": Tier.HIGH,
    "priority": Tier.PREMIUM,
    "fast": Tier.PREMIUM,
}
"""What ``service_tier`` may say; ``auto`` or nothing means the key's own tier."""

OUTPUT_TOKENS_MAX: Final = 262_144
MODEL_CHARS_MAX: Final = 256

_NOT_SENT: Final = frozenset({"service_tier", "max_completion_tokens", "cache_salt"})


def model_of(fields: JSONObject) -> ModelName:
    """The model asked for.

    Raises:
        InvalidRequest: it is missing, or no name.
    """
    model = fields.get("model")
    if not isinstance(model, str) or not 1 <= len(model) <= MODEL_CHARS_MAX:
        raise wrong("model", model, "the name of a model; GET /v1/models lists them")
    return ModelName(model)


def one_answer(fields: JSONObject, name: str) -> None:
    """Refuse a request for several answers.

    Raises:
        InvalidRequest: ``name`` is neither missing nor 1.
    """
    value = fields.get(name)
    if value not in (1, None) or isinstance(value, bool):
        raise wrong(name, value, "1; send the request again for another answer")


def tier_of(fields: JSONObject, default: Tier) -> Tier:
    """The tier asked for.

    Raises:
        InvalidRequest: no such tier.
    """
    word = fields.get("service_tier")
    if word is None or word == "auto":
        return default
    if not isinstance(word, str) or word not in TIER_WORDS:
        raise wrong("service_tier", word, f"one of {', '.join(['auto', *TIER_WORDS])}")
    return TIER_WORDS[word]


def flag(fields: JSONObject, name: str) -> bool:
    """A field that says yes or no; no where it is missing.

    Raises:
        InvalidRequest: it says something else.
    """
    value = fields.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise wrong(name, value, "true or false")
    return value


def include_usage(fields: JSONObject, *, stream: bool) -> bool:
    """Whether the caller of a stream wants its usage event.

    Raises:
        InvalidRequest: the options cannot be read.
    """
    options = fields.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise wrong("stream_options", options, "an object")
    return stream and flag(options, "include_usage")


def output_limit(fields: JSONObject) -> int | None:
    """The least of the limits that a request gives, if it gives one.

    Raises:
        InvalidRequest: a limit is out of bounds.
    """
    limits = []
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.get(name)
        if value is None:
            continue
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole and isinstance(value, int) and 1 <= value <= OUTPUT_TOKENS_MAX):
            raise wrong(name, value, f"a whole number from 1 to {OUTPUT_TOKENS_MAX}")
        limits.append(value)
    return min(limits) if limits else None


def take_tools(
    given: JSONObject, fields: JSONObject, worded: Callable[[str, object], JSONObject]
) -> None:
    """Tools of another dialect, worded as chat words them, into the fields of a chat.

    Args:
        given: the request.
        fields: take ``tools``, if there are any.
        worded: one tool, by its place in the request and what stands there.

    Raises:
        InvalidRequest: they are no list, or one is no tool.
    """
    tools = given.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise wrong("tools", tools, "a list of tools")
    if tools:
        fields["tools"] = [worded(f"tools[{i}]", tool) for i, tool in enumerate(tools)]


def worker_body(
    fields: JSONObject, output_tokens_max: int, adapter: str | None, *, in_one_piece: bool
) -> bytes:
    """The worker streams and says usage, or answers in one piece; tier and salt are ours alone."""
    sent = {k: v for k, v in fields.items() if k not in _NOT_SENT}
    sent["stream"] = not in_one_piece
    if in_one_piece:
        sent.pop("stream_options", None)  # engines refuse options of no stream
    else:
        options = fields.get("stream_options")
        kept = options if isinstance(options, dict) else {}
        sent["stream_options"] = {**kept, "include_usage": True}
    sent["max_tokens"] = output_tokens_max
    if adapter is not None:
        sent["model"] = adapter
    return encode(sent)
