"""A request's body as JSON: read once, in bounds."""

from __future__ import annotations

import msgspec

from tokenworks.core.errors import InvalidRequest


def decode_object(raw: bytes, example: str) -> dict[str, object]:
    """The object that a body holds.

    Args:
        raw: the body.
        example: what to send instead of something else.

    Raises:
        InvalidRequest: it is not JSON, or not an object.
    """
    try:
        fields = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise InvalidRequest(
            f"The body is not JSON: {error}.", hint="Send a JSON object in UTF-8."
        ) from error
    if not isinstance(fields, dict):
        raise InvalidRequest(
            f"The body is a JSON {type(fields).__name__}, not an object.", hint=f"Send {example}."
        )
    return fields


def encode(value: object) -> bytes:
    """JSON of what was decoded, or made of it.

    Raises:
        InvalidRequest: it is nested deeper than can be written.
    """
    try:
        return msgspec.json.encode(value)
    except RecursionError as error:
        raise InvalidRequest(
            "The body is nested too deeply.", hint="Send fewer levels of lists and objects."
        ) from error
