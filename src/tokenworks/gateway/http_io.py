"""The pieces of ASGI that the routes share: reading a body, answering, OpenAI's error shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import msgspec

from tokenworks.core.errors import CallerError, InvalidRequest, RequestTooLarge, TokenworksError

BODY_BYTES_MAX: Final = 8_000_000

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_JSON: Final = (b"content-type", b"application/json")


class ClientGone(Exception):
    """The caller hung up before its body was read."""


async def read_body(receive: Receive) -> bytes:
    """The whole body.

    Raises:
        RequestTooLarge: more than BODY_BYTES_MAX.
        ClientGone: the connection closed first.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > BODY_BYTES_MAX:
            raise RequestTooLarge(
                f"The body has more than {BODY_BYTES_MAX} bytes.", hint="Send a shorter prompt."
            )
        if part:
            parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def bearer(scope: Scope) -> bytes | None:
    """The secret of the Authorization header, if there is one."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, secret = bytes(value).partition(b" ")
            if scheme.lower() == b"bearer" and secret.strip():
                return secret.strip()
    return None


async def respond(
    send: Send, status: int, body: bytes, headers: Headers, content_type: bytes = _JSON[1]
) -> None:
    """A whole response."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", content_type),
                (b"content-length", str(len(body)).encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


def error_body(error: TokenworksError) -> bytes:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error" if isinstance(error, CallerError) else "server_error"
    if error.status == 429:
        kind = "rate_limit_error" if error.retry_after_s is not None else "insufficient_quota"
    return msgspec.json.encode(
        {
            "error": {
                "message": str(error),
                "type": kind,
                "param": None,
                "code": error.code,
            }
        }
    )


def error_headers(error: TokenworksError) -> Headers:
    """``Retry-After`` where waiting helps."""
    if error.retry_after_s is None:
        return []
    return [(b"retry-after", str(error.retry_after_s).encode())]


def check_json(scope: Scope) -> None:
    """Refuse a body that says it is something else than JSON.

    Raises:
        InvalidRequest: another content type.
    """
    for name, value in scope["headers"]:
        if name == b"content-type" and b"json" not in bytes(value).lower():
            raise InvalidRequest(
                f"The content type is {bytes(value)!r}.", hint="Send application/json."
            )
