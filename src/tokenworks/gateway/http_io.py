"""The pieces of ASGI and HTTP that the routes share: reading a body, its headers, answering."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from tokenworks.core.errors import InvalidRequest, RequestTooLarge, TokenworksError

BODY_BYTES_MAX: Final = 8_000_000
LABEL_LEN_MAX: Final = 128

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON: Final = b"application/json"


class ClientGone(Exception):
    """The caller hung up; there is nobody to answer."""


async def read_body(receive: Receive, bytes_max: int) -> bytes:
    """The whole body.

    Raises:
        RequestTooLarge: more than ``bytes_max``.
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
        if size > bytes_max:
            raise RequestTooLarge(
                f"The body has more than {bytes_max} bytes.", hint="Send a shorter prompt."
            )
        if part:
            parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def header(headers: Headers, name: bytes) -> bytes | None:
    """The first header of a name in lower case."""
    return next((value for each, value in headers if each == name), None)


def secret_of(headers: Headers) -> bytes | None:
    """The secret of the key, if there is one: a bearer's, else that of ``x-api-key``."""
    given = header(headers, b"authorization")
    if given is None:
        return header(headers, b"x-api-key") or None
    scheme, _, secret = given.partition(b" ")
    return (secret.strip() or None) if scheme.lower() == b"bearer" else None


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
    send: Send, status: int, body: bytes, headers: Headers, content_type: bytes = JSON
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


def broken() -> TokenworksError:
    """What callers are told of a mistake of ours; the log has the rest."""
    return TokenworksError("The gateway broke on this request.", hint="Report it.")


def check_json(headers: Headers) -> None:
    """Refuse a body that says it is something else than JSON.

    Raises:
        InvalidRequest: another content type.
    """
    kind = header(headers, b"content-type")
    if kind and b"json" not in kind.lower():
        raise InvalidRequest(
            f"The content type is {kind[:80].decode('latin-1')!r}.", hint="Send application/json."
        )
