"""Who may manage: holders of keys with a role, and people who have signed in."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from tokenworks.core.errors import Forbidden, Unauthorized
from tokenworks.core.ids import TenantID
from tokenworks.core.scopes import Address
from tokenworks.ledger.audit_log import Actor
from tokenworks.ledger.authority import FACTORY, Who
from tokenworks.ledger.quota_records import KeyRecord, NodeID
from tokenworks.ledger.quotas import node_id
from tokenworks.live.oidc import Issuer
from tokenworks.live.settings_store import SettingsStore

TOKEN_DOTS: Final = 2
"""In a token of an issuer."""
HINT: Final = "`tokenworks key create --role admin` makes a key that may manage its tenant."


class Admission:
    """Finds out who shows a secret; a ``gateway.admin.Admission``.

    Keys are read anew for each request, so that one that is revoked manages nothing more.

    Args:
        store: where keys are.
        unix_ns: says what time it is.
        issuer: whom people sign in with; None for nobody.
    """

    def __init__(
        self, store: SettingsStore, unix_ns: Callable[[], int], issuer: Issuer | None = None
    ) -> None:
        self._store, self._unix_ns, self._issuer = store, unix_ns, issuer

    def who(self, secret: bytes, address: Address | None) -> Who:
        """See ``gateway.admin.Admission``."""
        record = self._record(hashlib.sha256(secret).hexdigest(), address)
        if record is None and self._issuer is not None and secret.count(b".") == TOKEN_DOTS:
            return self._issuer.who(secret.decode("latin-1"), address)
        if record is None:
            raise Unauthorized("The key is unknown or revoked.", hint=HINT)
        if not record.roles:
            stranger = Forbidden(f"The key {record.key} has no role.", hint=HINT)
            stranger.at_door = True
            raise stranger
        return who_holds(record, str(address))

    def _record(self, digest: str, address: Address | None) -> KeyRecord | None:
        """The key that a secret opens, now and from there."""
        record = self._store.key_opened_by(digest)
        if record is None or record.revoked_unix_ns is not None:
            return None
        view = record.view() if hmac.compare_digest(record.secret_sha256, digest) else None
        scopes = (view or record.old_view()).scopes
        if scopes is not None:
            scopes.check_date(self._unix_ns())
            scopes.check_address(address)
        return record


def who_holds(record: KeyRecord, source: str) -> Who:
    """Who comes with a key that has a role."""
    tenant: TenantID | None = None if FACTORY in record.roles else record.tenant
    engineer: NodeID | None = None
    if record.engineer is not None:
        engineer = node_id("engineer", record.tenant, record.engineer)
    return Who(
        actor=Actor(
            kind="key", id=record.key, name=record.name or None, source=source, tenant=tenant
        ),
        tenant=tenant,
        engineer=engineer,
        key=record,
    )
