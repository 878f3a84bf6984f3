"""What people may change, as records: the command line and the admin API make the same ones."""

from __future__ import annotations

from typing import Final

import msgspec

from tokenworks.core.ids import LimitID, PriceID
from tokenworks.core.slo import Tier
from tokenworks.ledger.quota_records import Period, Role, Unit


class _Action(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True): ...


class CreateKey(_Action, frozen=True, kw_only=True, tag="key.create"):
    """Make a key.

    Attributes:
        tenant, team, engineer, name: as in ``KeyRecord``.
        tier: of requests that name none.
        labels, models, tiers, networks: likewise; networks are ``from`` in JSON.
        roles: what its holder may manage.
        expires: when it ends: a date, a whole hour (UTC), or a span such as ``30d``.
        tokens, nanodollars: limits of its own; None for no such limit.
        per: the period of these.
        secret: what callers have already; None makes a new one.
    """

    tenant: str
    name: str = ""
    tier: Tier = Tier.HIGH
    team: str | None = None
    engineer: str | None = None
    labels: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    tiers: tuple[Tier, ...] = ()
    networks: tuple[str, ...] = msgspec.field(default=(), name="from")
    roles: tuple[Role, ...] = ()
    expires: str | None = None
    tokens: int | None = None
    nanodollars: int | None = None
    per: Period = "lifetime"
    secret: str | None = None


class ChangeKey(_Action, frozen=True, kw_only=True, tag="key.change"):
    """Change what a key is limited to. What is left out stays; an empty list limits nothing.

    Its end is as in ``CreateKey``, or ``never``.
    """

    key: str
    name: str | None = None
    tier: Tier | None = None
    labels: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    tiers: tuple[Tier, ...] | None = None
    networks: tuple[str, ...] | None = msgspec.field(default=None, name="from")
    roles: tuple[Role, ...] | None = None
    expires: str | None = None


class RotateKey(_Action, frozen=True, kw_only=True, tag="key.rotate"):
    """Give a key a new secret; the old one works for a time, too."""

    key: str
    overlap: str = "24h"


class RevokeKey(_Action, frozen=True, kw_only=True, tag="key.revoke"):
    """Close a key for ever."""

    key: str


class SetLimit(_Action, frozen=True, kw_only=True, tag="limit.set"):
    """Set a limit, or change its amount; see ``Limit``."""

    node: str
    unit: Unit
    amount: int
    period: Period = "month"
    tier: Tier | None = None
    carry_over_max: int = 0


class LiftLimit(_Action, frozen=True, kw_only=True, tag="limit.lift"):
    """Remove a limit."""

    limit: LimitID


class GrantPackage(_Action, frozen=True, kw_only=True, tag="package.grant"):
    """Give a node the limits of a package, in place of those of the one it had."""

    node: str
    package: str


class AskExtra(_Action, frozen=True, kw_only=True, tag="extra.ask"):
    """Ask for extra budget in a limit's present window.

    Attributes:
        by: who asks, where nobody has proved who they are: the command line alone.
    """

    limit: LimitID
    amount: int
    reason: str
    by: str | None = None


class DecideExtra(_Action, frozen=True, kw_only=True, tag="extra.decide"):
    """Approve extra budget or deny it; ``by`` as of ``AskExtra``."""

    extra: str
    approve: bool
    by: str | None = None


class CreateTenant(_Action, frozen=True, kw_only=True, tag="tenant.create"):
    """Make a tenant: who pays. A key of a tenant that is not there makes it, too."""

    tenant: str
    name: str = ""


class ChangeTenant(_Action, frozen=True, kw_only=True, tag="tenant.change"):
    """Give a tenant another name for people."""

    tenant: str
    name: str


class CloseTenant(_Action, frozen=True, kw_only=True, tag="tenant.close"):
    """Close a tenant for ever: its keys are revoked, and it gets no others."""

    tenant: str


class ProposeBook(_Action, frozen=True, kw_only=True, tag="book.propose"):
    """Keep a price book's text, checked, for somebody to put into force."""

    text: str


class ActivateBook(_Action, frozen=True, kw_only=True, tag="book.activate"):
    """Put a price book that was proposed into force from its day on.

    Attributes:
        book: its id.
        version: how many books have been put into force, as the caller has seen it; with another
            number nothing changes.
    """

    book: PriceID
    version: int


Action = (
    CreateTenant
    | ChangeTenant
    | CloseTenant
    | ProposeBook
    | ActivateBook
    | CreateKey
    | ChangeKey
    | RotateKey
    | RevokeKey
    | SetLimit
    | LiftLimit
    | GrantPackage
    | AskExtra
    | DecideExtra
)


def kind_of(action: Action) -> str:
    """The name of what is done, such as ``key.create``."""
    kind = action.__struct_config__.tag
    assert isinstance(kind, str)
    return kind


NAME_CHARS_MAX: Final = 200
"""Of a key's or a tenant's name for people."""
REASON_CHARS_MAX: Final = 1_000
"""Of why somebody asks for extra budget."""
