"""What the routes share of HTTP: reading headers, and what went wrong."""

from __future__ import annotations

from typing import Final, Protocol

from tokenworks.core.errors import InvalidRequest, TokenworksError

BODY_BYTES_MAX: Final = 8_000_000
LABEL_LEN_MAX: Final = 128

Headers = list[tuple[bytes, bytes]]

JSON: Final = b"application/json"


class ClientGone(Exception):
    """The caller hung up; there is nobody to answer."""


class HasHeaders(Protocol):
    """A request's head, or a whole request."""

    def get(self, name: bytes) -> bytes | None:
        """The value of the first header of a name in lower case."""
        ...


def secret_of(head: HasHeaders) -> bytes | None:
    """The secret of the key, if there is one: a bearer's, else that of ``x-api-key``."""
    given = head.get(b"authorization")
    if given is None:
        return head.get(b"x-api-key") or None
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


def broken() -> TokenworksError:
    """What callers are told of a mistake of ours; the log has the rest."""
    return TokenworksError("The gateway broke on this request.", hint="Report it.")


def check_json(head: HasHeaders) -> None:
    """Refuse a body that says it is something else than JSON.

    Raises:
        InvalidRequest: another content type.
    """
    kind = head.get(b"content-type")
    if kind and kind != JSON and kind.lower().find(b"json") < 0:
        raise InvalidRequest(
            f"The content type is {kind[:80].decode('latin-1')!r}.", hint="Send application/json."
        )
