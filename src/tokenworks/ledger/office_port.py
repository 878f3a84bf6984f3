"""What changes and shows keys, limits, tenants and prices for people, as a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from tokenworks.ledger.actions import (
    ActivateBook,
    AskExtra,
    ChangeKey,
    ChangeTenant,
    CloseTenant,
    CreateKey,
    CreateTenant,
    DecideExtra,
    GrantPackage,
    LiftLimit,
    ProposeBook,
    RevokeKey,
    RotateKey,
    SetLimit,
)
from tokenworks.ledger.audit_log import AuditRecord, Facts, Outcome
from tokenworks.ledger.authority import Who
from tokenworks.ledger.extras import Extra
from tokenworks.ledger.quota_records import KeyRecord, Limit


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key at the only moment when its secret is known.

    Attributes:
        secret: what a caller shows; None of a key that an earlier request of the same
            ``Request.once`` has made.
        record: what is stored.
        limits: the key's own.
    """

    secret: str | None
    record: KeyRecord
    limits: tuple[Limit, ...] = ()


class RotatedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key at the moment when its new secret is known.

    Attributes:
        secret: what a caller shows from now on.
        record: as it is stored now.
        before: as it was.
    """

    secret: str
    record: KeyRecord
    before: KeyRecord


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """How somebody asks.

    Attributes:
        request: the request's name, for the audit log.
        once: two creations with the same word by one caller are one.
    """

    request: str | None = None
    once: str | None = None


NOT_SAID = Asked()


class Office(Protocol):
    """Makes changes for somebody, and says what is there, as far as they manage it.

    Every method takes who asks, and may raise besides what it names:

    Raises:
        Forbidden, NotFound: see ``Who``.
        Conflict: what is there now does not allow it, or ``once`` belongs to another creation.
        InvalidRequest: what is asked for cannot be.
        LedgerUnavailable: it could not be stored or written down, and nothing has changed.
    """

    def create_tenant(self, who: Who, wish: CreateTenant, asked: Asked = NOT_SAID) -> Facts:
        """Make a tenant."""
        ...

    def change_tenant(self, who: Who, wish: ChangeTenant, asked: Asked = NOT_SAID) -> Facts:
        """Rename a tenant."""
        ...

    def close_tenant(self, who: Who, wish: CloseTenant, asked: Asked = NOT_SAID) -> Facts:
        """Close a tenant for ever, and revoke its keys."""
        ...

    def create_key(self, who: Who, wish: CreateKey, asked: Asked = NOT_SAID) -> NewKey:
        """Make a key."""
        ...

    def change_key(self, who: Who, wish: ChangeKey, asked: Asked = NOT_SAID) -> KeyRecord:
        """Change what a key is limited to."""
        ...

    def rotate_key(self, who: Who, wish: RotateKey, asked: Asked = NOT_SAID) -> RotatedKey:
        """Give a key a new secret."""
        ...

    def revoke_key(self, who: Who, wish: RevokeKey, asked: Asked = NOT_SAID) -> KeyRecord:
        """Close a key for ever; a second time changes nothing."""
        ...

    def set_limit(self, who: Who, wish: SetLimit, asked: Asked = NOT_SAID) -> Limit:
        """Set a limit on a node, or change it."""
        ...

    def lift_limit(self, who: Who, wish: LiftLimit, asked: Asked = NOT_SAID) -> Limit:
        """Remove a limit."""
        ...

    def grant(self, who: Who, wish: GrantPackage, asked: Asked = NOT_SAID) -> list[Limit]:
        """Give a node the limits of a package."""
        ...

    def ask_extra(self, who: Who, wish: AskExtra, asked: Asked = NOT_SAID) -> Extra:
        """Ask for extra budget."""
        ...

    def decide_extra(self, who: Who, wish: DecideExtra, asked: Asked = NOT_SAID) -> Extra:
        """Approve extra budget, or deny it."""
        ...

    def propose_book(self, who: Who, wish: ProposeBook, asked: Asked = NOT_SAID) -> Facts:
        """Keep a price book for somebody to put into force; with what is odd about it."""
        ...

    def activate_book(self, who: Who, wish: ActivateBook, asked: Asked = NOT_SAID) -> Facts:
        """Put a price book into force from its day on."""
        ...

    def tenants(self, who: Who) -> list[Facts]:
        """Tenants, by name."""
        ...

    def keys(self, who: Who) -> list[KeyRecord]:
        """Keys, by id."""
        ...

    def limits(self, who: Who) -> list[Facts]:
        """Limits with what is used and allowed now, by name."""
        ...

    def packages(self, who: Who) -> list[Facts]:
        """Packages that can be granted."""
        ...

    def extras(self, who: Who) -> list[Extra]:
        """Extra budget, the oldest first."""
        ...

    def books(self, who: Who) -> Sequence[Facts]:
        """Price books that were proposed here, the oldest first, with what is in force."""
        ...

    def records(
        self,
        who: Who,
        *,
        before_seq: int | None = None,
        limit: int,
        tenant: str | None = None,
        action: str | None = None,
        actor: str | None = None,
        outcome: Outcome | None = None,
    ) -> list[AuditRecord]:
        """The audit log, the newest first. A tenant's administrators see who acts for it alone."""
        ...
