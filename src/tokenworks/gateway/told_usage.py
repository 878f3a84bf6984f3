"""Usage as services other than chat word it, found in whole bodies."""

from __future__ import annotations

from typing import Final

import msgspec

from tokenworks.core.orders import Usage
from tokenworks.gateway.event_stream import payload, usage_of

_USAGE: Final = b'"usage"'
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


class _Told(msgspec.Struct):
    usage: dict[str, object] | None = None
    response: dict[str, object] | None = None


_decoder: Final = msgspec.json.Decoder(_Told)


def told_usage(body: bytes) -> Usage | None:
    """What a body of JSON or of events says was used, the last word of several.

    Images, audio and embeddings call it ``input_tokens`` or ``prompt_tokens``; rerankers give
    ``total_tokens`` alone; the Responses API puts it into the response that its last event holds.

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
    if body[:1] == b"{":
        return _read(body)
    for event in reversed(body.replace(b"\r\n", b"\n").split(b"\n\n")):
        if _USAGE in event:
            found = _read(payload(event))
            if found is not None:
                return found
    return None


def _read(text: bytes) -> Usage | None:
    try:
        told = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # a text that only looks like it
    usage = told.usage
    if usage is None and told.response is not None:
        inner = told.response.get("usage")
        usage = inner if isinstance(inner, dict) else None
    return None if usage is None else _as_chat(usage)


def _as_chat(usage: dict[str, object]) -> Usage | None:
    """In the words of chat completions."""
    read = _first(usage, ("prompt_tokens", "input_tokens"))
    made = _first(usage, ("completion_tokens", "output_tokens"))
    total = usage.get("total_tokens")
    if read is None and made is None and total is None:
        return None
    if read is None and isinstance(total, int) and isinstance(made, int | None):
        read = total - (made or 0)
    told = {"prompt_tokens": read, "completion_tokens": 0 if made is None else made}
    for name, names in _DETAILS.items():
        details = _first(usage, names)
        if details is not None:
            told[name] = details
    return usage_of(told)


def _first(fields: dict[str, object], names: tuple[str, ...]) -> object:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def nothing_used() -> Usage:
    """Usage of an answer that was not measured, which nobody pays for."""
    return Usage(uncached_input_tokens=0, cached_input_tokens=0, output_tokens=0)
