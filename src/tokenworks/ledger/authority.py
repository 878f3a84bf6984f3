"""What somebody may manage: the whole factory, or one tenant, and never more than they have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from tokenworks.core.errors import Forbidden, InvalidRequest, NotFound
from tokenworks.core.ids import KeyID, TenantID
from tokenworks.core.scopes import networks_of
from tokenworks.ledger.audit_log import Actor
from tokenworks.ledger.grants import is_below
from tokenworks.ledger.quota_records import KeyRecord, Limit, NodeID, Role

FACTORY: Role = "factory-admin"
TENANT: Role = "admin"


class Who(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who manages.

    Attributes:
        actor: who, for the audit log.
        tenant: whose things they manage; None manages all.
        engineer: the engineer's node that they have proved to be, if any.
        key: the key that they came with, whose limits hold for what they make, too.
    """

    actor: Actor
    tenant: TenantID | None
    engineer: NodeID | None = None
    key: KeyRecord | None = None

    def check_tenant(self, tenant: str | None, what: str) -> None:
        """Refuse what is not theirs to manage.

        Raises:
            NotFound: it is another tenant's: of these they learn nothing.
        """
        if self.tenant is not None and tenant != self.tenant:
            raise NotFound(f"There is no {what} here.", hint="Compare the id.")

    def check_factory(self, what: str) -> None:
        """Refuse what is the whole factory's.

        Raises:
            Forbidden: they manage one tenant alone.
        """
        if self.tenant is not None:
            raise Forbidden(
                f"An administrator of the tenant {self.tenant!r} may not {what}.",
                hint="Ask an administrator of the factory.",
            )

    def check_key(self, record: KeyRecord) -> None:
        """Refuse to make, change or renew a key that may do more than they may.

        Raises:
            Forbidden: it may.
            NotFound: it is another tenant's.
        """
        self.check_rank(record)
        if self.key is not None:
            _check_within(record, self.key)

    def check_rank(self, record: KeyRecord) -> None:
        """Refuse a key of somebody who manages more than they do.

        Raises:
            Forbidden: it is.
            NotFound: it is another tenant's.
        """
        self.check_tenant(record.tenant, f"key {str(record.key)!r}")
        if FACTORY in record.roles:
            self.check_factory("manage a key with the role factory-admin")

    def check_node(self, node: NodeID, keys: Iterable[KeyRecord]) -> None:
        """Refuse to look at a node of another tenant's.

        Raises:
            NotFound: it is one.
        """
        if self.tenant is not None and not self.manages(node, keys):
            raise NotFound(f"There is no node {str(node)!r} here.", hint="Compare its name.")

    def manages(self, node: NodeID, keys: Iterable[KeyRecord]) -> bool:
        """Whether a node is their tenant or in it."""
        if self.tenant is None:
            return True
        tenants: dict[KeyID, TenantID] = {record.key: record.tenant for record in keys}
        return is_below(node, NodeID(f"tenant:{self.tenant}"), tenants)

    def check_limit(self, limit: Limit | None, node: NodeID, keys: Iterable[KeyRecord]) -> None:
        """Refuse to change a limit that holds for them.

        Args:
            limit: as it is; None if there is none yet.
            node: whose.
            keys: all.

        Raises:
            Forbidden: it is their own tenant's, or came with a package that was granted to them.
            NotFound: it is another tenant's.
        """
        self.check_node(node, keys)
        if node.startswith("tenant:"):
            self.check_factory("change its own tenant's limits")
        if limit is not None and limit.package is not None:
            self.check_factory(f"change what the package {limit.package!r} has brought")
        if self.key is not None and node == f"key:{self.key.key}":
            self.check_factory("change the limits of the key that it uses")


class _Scope(NamedTuple):
    name: str
    wide: bool


def _check_within(record: KeyRecord, own: KeyRecord) -> None:
    """Refuse a key whose limits are wider than those of the key that manages it."""
    scopes = [
        _Scope("models", bool(own.models) and not _subset(record.models, own.models)),
        _Scope("tiers", bool(own.tiers) and not _subset(record.tiers, own.tiers)),
        _Scope("from", bool(own.networks) and not _inside(record.networks, own.networks)),
        _Scope("labels", not set(own.labels) <= set(record.labels)),
        _Scope(
            "expires",
            own.expires_unix_ns is not None
            and (record.expires_unix_ns or 2**63) > own.expires_unix_ns,
        ),
    ]
    for name, wide in scopes:
        if wide:
            raise Forbidden(
                f"The key {own.key} is limited by `{name}` and cannot manage one that is less.",
                hint=f"Give `{name}` that lies within its own.",
            )


def _subset(words: Iterable[str], own: Iterable[str]) -> bool:
    asked = set(words)
    return bool(asked) and asked <= set(own)


def _inside(texts: tuple[str, ...], own: tuple[str, ...]) -> bool:
    wide = networks_of(own, "from")
    return bool(texts) and all(
        any(
            inner.version == outer.version
            and inner.network_address in outer
            and inner.broadcast_address in outer
            for outer in wide
        )
        for inner in networks_of(texts, "from")
    )


def prove_engineer(who: Who, named: str | None) -> str:
    """The engineer that somebody is: as they have proved, else as the command line says.

    Raises:
        InvalidRequest: neither.
    """
    found = named if who.engineer is None and who.actor.kind == "operator" else who.engineer
    if found is None:
        raise InvalidRequest(
            "Nobody can tell which engineer you are.",
            hint="Use a key with an engineer, or sign in as a person who is mapped to one.",
        )
    return found
