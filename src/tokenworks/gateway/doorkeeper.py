"""Who may come in: the key of a request, until when and from where it may be used."""

from __future__ import annotations

from tokenworks.core.errors import Unauthorized
from tokenworks.core.ids import ModelName
from tokenworks.core.orders import KeyView
from tokenworks.core.ports import Clock, Desk
from tokenworks.core.scopes import Address, Network, Scopes, address_of, within
from tokenworks.gateway.connection import Exchange
from tokenworks.gateway.http_head import Head
from tokenworks.gateway.http_io import Headers


class Doorkeeper:
    """Looks at heads. A key without limits costs it nothing more than to be known.

    Args:
        desk: knows the keys.
        clock: time.
        trusted_proxies: where proxies are whose ``x-forwarded-for`` is believed.
    """

    def __init__(self, desk: Desk, clock: Clock, trusted_proxies: tuple[Network, ...]) -> None:
        self._desk, self._clock, self._trusted = desk, clock, trusted_proxies

    def admit(self, exchange: Exchange, head: Head) -> KeyView:
        """Who asks.

        Raises:
            Unauthorized: there is no key, none that is known, or its time is over.
            Forbidden: the key may not be used from there.
        """
        digest = head.secret_sha256()
        key = self._desk.key_of(digest) if digest else None
        if key is None:
            raise Unauthorized(
                "The key is unknown or revoked." if digest else "There is no valid key.",
                hint="Send `Authorization: Bearer <key>`; `tokenworks key create` makes one.",
            )
        scopes = key.scopes
        if scopes is not None:
            scopes.check_date(self._clock.unix_ns())
            if scopes.networks:
                scopes.check_address(self._address(exchange, head))
        return key

    def _address(self, exchange: Exchange, head: Head) -> Address | None:
        return caller_address(exchange.peer, head.headers(), self._trusted)


def caller_address(
    peer: str, headers: Headers, trusted_proxies: tuple[Network, ...]
) -> Address | None:
    """Where a request comes from: the nearest address that is not a trusted proxy's.

    Each proxy adds to the header's end whom it was asked by; what stands before an address that
    is not trusted, anybody may have written.

    Args:
        peer: the connection's other end.
        headers: the request's.
        trusted_proxies: see ``Doorkeeper``.
    """
    found = address_of(peer)
    if found is None or not within(found, trusted_proxies):
        return found
    told = [value for name, value in headers if name == b"x-forwarded-for"]
    for text in reversed(b",".join(told).decode("latin-1").split(",") if told else []):
        found = address_of(text)
        if found is None or not within(found, trusted_proxies):
            break
    return found


def models_for(desk: Desk, scopes: Scopes | None) -> tuple[ModelName, ...]:
    """The models that a key may use, of those that are served."""
    models = desk.models()
    if scopes is None or not scopes.models:
        return models
    return tuple(model for model in models if model in scopes.models)
