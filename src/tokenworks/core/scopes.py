"""What a key may be used for, until when and from where."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from typing import Final

import msgspec

from tokenworks.core.errors import Forbidden, InvalidRequest, Unauthorized
from tokenworks.core.ids import ModelName
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NETWORKS_MAX: Final = 64
"""Of one key, and of proxies."""
MODELS_MAX: Final = 256
"""Of one key."""
ANOTHER_KEY: Final = "Ask whoever gave you the key, or use another."


class Scopes(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of a key that has any. What is empty limits nothing.

    Attributes:
        models: those that it may ask for.
        tiers: those that it may ask for.
        networks: where its requests may come from.
        expires_unix_ns: when it ceases to open the gate; None for never.
        replaced: whether that is because its secret has been replaced.
    """

    models: frozenset[ModelName] = frozenset()
    tiers: frozenset[Tier] = frozenset()
    networks: tuple[Network, ...] = ()
    expires_unix_ns: int | None = None
    replaced: bool = False

    def check_date(self, unix_ns: int) -> None:
        """Refuse a key whose time is over.

        Raises:
            Unauthorized: it is.
        """
        expires_unix_ns = self.expires_unix_ns
        if expires_unix_ns is None or unix_ns < expires_unix_ns:
            return
        at = datetime.datetime.fromtimestamp(expires_unix_ns // NS_PER_S, datetime.UTC)
        if self.replaced:
            raise Unauthorized(
                f"The key's secret was replaced; this one was valid until {at:%Y-%m-%dT%H:%MZ}.",
                hint="Use the new secret.",
            )
        raise Unauthorized(f"The key has expired at {at:%Y-%m-%dT%H:%MZ}.", hint=ANOTHER_KEY)

    def check_address(self, address: Address | None) -> None:
        """Refuse a caller from elsewhere.

        Raises:
            Forbidden: it is, or nobody knows where it is.
        """
        if self.networks and not (address is not None and within(address, self.networks)):
            elsewhere = Forbidden(
                f"The key may not be used from {address or 'an unknown address'}; it may be from "
                f"{', '.join(map(str, self.networks))}.",
                hint=ANOTHER_KEY,
            )
            elsewhere.at_door = True
            raise elsewhere

    def check_model(self, model: str | None) -> None:
        """Refuse a model.

        Raises:
            Forbidden: the key may not use it, or it is not known and the key may not use all.
        """
        if self.models and model not in self.models:
            named = f"the model {model!r}" if model else "what names no model"
            raise Forbidden(
                f"The key may not use {named}; it may use {', '.join(sorted(self.models))}.",
                hint="Name one of these as `model`.",
            )

    def check_tier(self, tier: Tier) -> None:
        """Refuse a tier.

        Raises:
            Forbidden: the key may not ask for it.
        """
        if self.tiers and tier not in self.tiers:
            raise Forbidden(
                f"The key may not ask for the tier {tier.value}; it may ask for "
                f"{', '.join(tiers_by_rank(self.tiers))}.",
                hint="Name one of these as `service_tier`.",
            )


def tiers_by_rank(tiers: Iterable[Tier]) -> list[str]:
    """Names of tiers, the slowest promise first.

    >>> tiers_by_rank({Tier.ULTRA, Tier.FREE})
    ['free', 'ultra']
    """
    return [tier.value for tier in sorted(tiers, key=lambda tier: tier.rank)]


def within(address: Address, networks: Iterable[Network]) -> bool:
    """Whether an address is in one of some networks."""
    return any(address in network for network in networks)


def address_of(text: str) -> Address | None:
    """An address as proxies and sockets write it; None if it is none.

    IPv4 inside IPv6 is IPv4; a scope, which anybody may word as they like, is not part of it.

    >>> address_of("::ffff:10.0.0.1"), address_of("[2001:db8::1]:443"), address_of("10.0.0.1:80")
    (IPv4Address('10.0.0.1'), IPv6Address('2001:db8::1'), IPv4Address('10.0.0.1'))
    >>> address_of("fe80::1%eth0")
    IPv6Address('fe80::1')
    """
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def networks_of(texts: Iterable[str], what: str) -> tuple[Network, ...]:
    """Ranges of addresses: in the order of their text, each once.

    Args:
        texts: each an address, or a range such as ``10.0.0.0/8`` or ``2001:db8::/32``.
        what: they are, for the error.

    Raises:
        InvalidRequest: one is neither, or there are too many.
    """
    found: dict[str, Network] = {}
    for text in texts:
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            raise InvalidRequest(
                f"{what} has {text[:128]!r}, which is no range of addresses.",
                hint="Such as 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32.",
            ) from error
        found[str(network)] = network
    if len(found) > NETWORKS_MAX:
        raise InvalidRequest(f"{what} has {len(found)} ranges, more than {NETWORKS_MAX}.")
    return tuple(found[text] for text in sorted(found))
