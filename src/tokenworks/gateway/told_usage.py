"""Usage as services other than chat word it, found in whole bodies."""

from __future__ import annotations

import json
from typing import Final

import msgspec

from tokenworks.core.orders import Usage
from tokenworks.gateway.chat_fields import JSONObject
from tokenworks.gateway.chunk_reading import usage_of
from tokenworks.gateway.event_stream import payload

_USAGE: Final = b'"usage"'
_SPACE_MAX: Final = 64
"""Before an object; more of it was never seen."""

_DETAILS: Final = {
    "prompt_tokens_details": (
        "prompt_tokens_details",
        "input_tokens_details",
        "input_token_details",
    ),
    "completion_tokens_details": (
        "completion_tokens_details",
        "output_tokens_details",
        "output_token_details",
    ),
}


_APART: Final = ("cache_read_input_tokens", "cache_creation_input_tokens")
"""Anthropic's, which ``input_tokens`` does not include."""


class _Told(msgspec.Struct):
    usage: dict[str, object] | None = None
    response: dict[str, object] | None = None
    message: dict[str, object] | str | None = None


_decoder: Final = msgspec.json.Decoder(_Told)


def told_usage(body: bytes) -> Usage | None:
    """What a body of JSON or of events says was used.

    Images, audio and embeddings call it ``input_tokens`` or ``prompt_tokens``; rerankers give
    ``total_tokens`` alone; the Responses API puts it into the response that its last event holds.
    Anthropic says in its first event what was read and in its last what was made, and leaves
    cached tokens out of ``input_tokens``: of several words on one figure the last counts.

    Returns:
        None where the body says nothing of tokens, as for sound that is measured in seconds.

    Raises:
        WorkerFailed: its figures cannot be.

    >>> told_usage(b'{"usage":{"total_tokens":5}}').prompt_tokens
    5
    >>> told_usage(b"RIFF") is None
    True
    """
    if _USAGE not in body:
        return None
    if body[:_SPACE_MAX].lstrip()[:1] == b"{":
        return as_usage(usage_words(body))
    told: JSONObject = {}
    for event in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        if _USAGE in event:
            told |= usage_words(payload(event))
    return as_usage(told)


def usage_at_end(end: bytes) -> Usage | None:
    """What the end of a long body of JSON says was used; None if it says nothing.

    Raises:
        WorkerFailed: its figures cannot be.

    >>> usage_at_end(b'0.1]}], "usage": {"prompt_tokens": 5}, "model": "m"}').prompt_tokens
    5
    """
    # In a text the quotes would be escaped.
    rest = end[end.rfind(_USAGE) :] if _USAGE in end else b""
    try:
        text = rest.partition(b":")[2].decode().lstrip()
        _, size = json.JSONDecoder().raw_decode(text)
        told = msgspec.json.decode(text[:size])  # which takes half of a character for no text
    except (ValueError, msgspec.DecodeError, RecursionError):
        return None
    return as_usage(told) if isinstance(told, dict) else None


def usage_words(text: bytes) -> JSONObject:
    """What one JSON object says of usage, in its own words; nothing if it says nothing."""
    try:
        told = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}  # a text that only looks like it
    usage = told.usage
    for outer in (told.response, told.message):
        if usage is None and isinstance(outer, dict):
            inner = outer.get("usage")
            usage = inner if isinstance(inner, dict) else None
    return {} if usage is None else {k: v for k, v in usage.items() if v is not None}


def as_usage(told: JSONObject) -> Usage | None:
    """Usage in any of these words; None if they say nothing of tokens.

    Raises:
        WorkerFailed: the figures cannot be.
    """
    read = _first(told, ("prompt_tokens", "input_tokens"))
    made = _first(told, ("completion_tokens", "output_tokens"))
    total = told.get("total_tokens")
    if read is None and made is None and total is None:
        return None
    if read is None and isinstance(total, int) and isinstance(made, int | None):
        read = total - (made or 0)
    usage = {"prompt_tokens": read or 0, "completion_tokens": 0 if made is None else made}
    for name, names in _DETAILS.items():
        details = _first(told, names)
        if details is not None:
            usage[name] = details
    cached, kept = (told.get(name) or 0 for name in _APART)
    if (cached or kept) and isinstance(cached, int) and isinstance(kept, int):
        usage["prompt_tokens"] = (read if isinstance(read, int) else 0) + cached + kept
        usage["prompt_tokens_details"] = {"cached_tokens": cached, "cache_write_tokens": kept}
    return usage_of(usage)


def _first(fields: JSONObject, names: tuple[str, ...]) -> object:
    return next((fields[name] for name in names if fields.get(name) is not None), None)
