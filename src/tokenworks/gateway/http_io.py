"""The pieces of ASGI that the routes share: reading a body, answering, OpenAI's error shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import msgspec

from tokenworks.core.errors import (
    CallerError,
    InvalidRequest,
    QuotaExceeded,
    RequestTooLarge,
    TokenworksError,
)

BODY_BYTES_MAX: Final = 8_000_000
LABEL_LEN_MAX: Final = 128

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_JSON: Final = (b"content-type", b"application/json")


class ClientGone(Exception):
    """The caller hung up; there is nobody to answer."""


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


def label_of(header: bytes, value: bytes, len_max: int = LABEL_LEN_MAX) -> str:
    """What a caller says in a header of our own.

    Args:
        header: the header's name in lower case.
        value: of it.
        len_max: characters that it may have.

    Raises:
        InvalidRequest: it is empty, too long, or not plain text.
    """
    text = bytes(value).decode("latin-1").strip()
    if not (0 < len(text) <= len_max and text.isascii() and text.isprintable()):
        raise InvalidRequest(
            f"The header {header.decode()} is {text[:LABEL_LEN_MAX]!r}.",
            hint=f"Give 1 to {len_max} printable ASCII characters.",
        )
    return text


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
        kind = "insufficient_quota" if isinstance(error, QuotaExceeded) else "rate_limit_error"
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
    """When to come again, and how to be let in.

    OpenAI's SDKs try again after any 429 unless ``x-should-retry`` says no; a quota that is used up
    stays so.
    """
    headers: Headers = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    elif isinstance(error, QuotaExceeded):
        headers.append((b"x-should-retry", b"false"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def broken() -> TokenworksError:
    """What callers are told of a mistake of ours; the log has the rest."""
    return TokenworksError("The gateway broke on this request.", hint="Report it.")


def check_json(scope: Scope) -> None:
    """Refuse a body that says it is something else than JSON.

    Raises:
        InvalidRequest: another content type.
    """
    for name, value in scope["headers"]:
        if name == b"content-type" and value and b"json" not in bytes(value).lower():
            raise InvalidRequest(
                f"The content type is {bytes(value[:80]).decode('latin-1')!r}.",
                hint="Send application/json.",
            )
