"""A request's names: the one it has in the ledger, and the one its caller gave it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Final

from tokenworks.core.ids import RequestID
from tokenworks.core.units import NS_PER_MS
from tokenworks.gateway.http_io import Headers, Scope

REQUEST_ID: Final = b"x-request-id"
"""In a request, the caller's own name for it; in an answer, that name or else ours."""

OUR_ID: Final = b"x-tokenworks-request"
"""Our name, in answers to callers who gave one of their own."""

CHARS_MAX: Final = 128
_SCOPE: Final = "tokenworks.request"


def new_request_id(unix_ns: int) -> RequestID:
    """A name that no other request has; names rise with time, so entries are easy to find."""
    return RequestID(f"req_{unix_ns // NS_PER_MS:012x}{secrets.token_hex(6)}")


def remember(scope: Scope, request: RequestID) -> None:
    """Let whatever answers this request later know its name."""
    scope[_SCOPE] = request


def caller_id(value: bytes) -> str | None:
    """A caller's name for its request; None for one that cannot stand in a header or a log."""
    text = bytes(value).decode("latin-1").strip()
    fit = 0 < len(text) <= CHARS_MAX and text.isascii() and text.isprintable() and " " not in text
    return text if fit else None


def id_headers(request: RequestID, callers: str | None) -> Headers:
    """Both names as an answer tells them."""
    if callers is None:
        return [(REQUEST_ID, request.encode())]
    return [(REQUEST_ID, callers.encode()), (OUR_ID, request.encode())]


def ids_of(scope: Scope, unix_ns: int) -> tuple[RequestID, str | None]:
    """The names of a request, of which ours is made now if it has none yet."""
    request = scope.get(_SCOPE) or new_request_id(unix_ns)
    remember(scope, request)
    found: Iterable[bytes] = (value for name, value in scope["headers"] if name == REQUEST_ID)
    first = next(iter(found), None)
    return request, None if first is None else caller_id(first)


def with_ids(headers: Headers, scope: Scope, unix_ns: int) -> Headers:
    """The headers of an answer, with its names where they are missing."""
    if any(name == REQUEST_ID for name, _ in headers):
        return headers
    return [*headers, *id_headers(*ids_of(scope, unix_ns))]
