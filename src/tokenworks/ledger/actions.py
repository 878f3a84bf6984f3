"""What people may change, as records: the command line and the admin API make the same ones."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from tokenworks.core.ids import LimitID, PriceID
from tokenworks.core.slo import Tier
from tokenworks.ledger.quotas import Period, Role, Unit


class _Action(
    msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True
): ...


class CreateKey(_Action, tag="key.create"):
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
        once: two creations with the same word by one caller are one.
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
    once: str | None = None


class ChangeKey(_Action, tag="key.change"):
    """Change what a key is limited to. What is left out stays; an empty list limits nothing."""

    key: str
    name: str | None = None
    tier: Tier | None = None
    labels: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    tiers: tuple[Tier, ...] | None = None
    networks: tuple[str, ...] | None = msgspec.field(default=None, name="from")
    roles: tuple[Role, ...] | None = None
    expires: str | None = None


class RotateKey(_Action, tag="key.rotate"):
    """Give a key a new secret; the old one works for a time, too."""

    key: str
    overlap: str = "24h"


class RevokeKey(_Action, tag="key.revoke"):
    """Close a key for ever."""

    key: str


class SetLimit(_Action, tag="limit.set"):
    """Set a limit, or change its amount; see ``Limit``."""

    node: str
    unit: Unit
    amount: int
    period: Period = "month"
    tier: Tier | None = None
    carry_over_max: int = 0


class LiftLimit(_Action, tag="limit.lift"):
    """Remove a limit."""

    limit: LimitID


class GrantPackage(_Action, tag="package.grant"):
    """Give a node the limits of a package, in place of those of the one it had."""

    node: str
    package: str


class AskExtra(_Action, tag="extra.ask"):
    """Ask for extra budget in a limit's present window.

    Attributes:
        by: who asks, where nobody has proved who they are: the command line alone.
        once: as of ``CreateKey``.
    """

    limit: LimitID
    amount: int
    reason: str
    by: str | None = None
    once: str | None = None


class DecideExtra(_Action, tag="extra.decide"):
    """Approve extra budget or deny it; ``by`` as of ``AskExtra``."""

    extra: str
    approve: bool
    by: str | None = None


class ProposeBook(_Action, tag="book.propose"):
    """Keep a price book's text, checked, for somebody to put into force."""

    text: str


class ActivateBook(_Action, tag="book.activate"):
    """Put a price book that was proposed into force from its day on.

    Attributes:
        book: its id.
        version: how many books have been put into force, as the caller has seen it; with another
            number nothing changes.
    """

    book: PriceID
    version: int


Action = (
    CreateKey
    | ChangeKey
    | RotateKey
    | RevokeKey
    | SetLimit
    | LiftLimit
    | GrantPackage
    | AskExtra
    | DecideExtra
    | ProposeBook
    | ActivateBook
)

ActionKind = Literal[
    "key.create",
    "key.change",
    "key.rotate",
    "key.revoke",
    "limit.set",
    "limit.lift",
    "package.grant",
    "extra.ask",
    "extra.decide",
    "book.propose",
    "book.activate",
]
REASON_CHARS_MAX: Final = 1_000
"""Of why somebody asks for extra budget."""
