"""Keys and limits as they are stored, and what the quota tree answers: records alone."""

from __future__ import annotations

from typing import Final, Literal, NewType, get_args

import msgspec

from tokenworks.core.ids import EngineerID, KeyID, LimitID, ModelName, TeamID, TenantID
from tokenworks.core.orders import KeyView
from tokenworks.core.scopes import Scopes, networks_of
from tokenworks.core.slo import Tier

Level = Literal["tenant", "team", "engineer", "key", "run"]
LEVELS: Final[tuple[Level, ...]] = ("tenant", "team", "engineer", "key", "run")
"""From the outermost to the innermost."""

Unit = Literal["tokens", "nanodollars"]
Period = Literal["hour", "day", "month", "lifetime"]
Role = Literal["admin", "factory-admin"]
"""What a key's holder may manage besides asking: its tenant, or the whole factory."""
ROLES: Final[tuple[Role, ...]] = get_args(Role)

NodeID = NewType("NodeID", str)
"""A node of the quota tree: ``tenant:acme``, ``team:acme/search``, ``engineer:acme/ada``,
``key:key_1``, ``run:acme/nightly-7``."""

UNIX_NS_MAX: Final = 2**63 - 1


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is stored. Its secret is not: only the secret's hash.

    Attributes:
        key: its public id.
        tenant: who pays.
        team: the tenant's team that it belongs to, if any.
        engineer: the person that it belongs to, if any.
        name: for people.
        secret_sha256: 64 hex digits.
        tier_default: the tier of a request that names none.
        created_unix_ns: when it was made.
        revoked_unix_ns: when it was revoked; None while it opens the gate.
        expires_unix_ns: when it ceases to open the gate; None for never.
        old_secret_sha256: of the secret before the last that it was given anew, if it was.
        old_until_unix_ns: until when that opens the gate, too.
        labels: data labels of all its requests, sorted; see ``core.needs``.
        models: those that it may ask for, sorted; none for all, as with what follows.
        tiers: those that it may ask for, sorted by name.
        networks: ranges of addresses that its requests may come from, sorted.
        roles: what its holder may manage, sorted.
    """

    key: KeyID
    tenant: TenantID
    team: TeamID | None
    engineer: EngineerID | None
    name: str
    secret_sha256: str
    tier_default: Tier
    created_unix_ns: int
    revoked_unix_ns: int | None
    expires_unix_ns: int | None = None
    old_secret_sha256: str | None = None
    old_until_unix_ns: int | None = None
    labels: tuple[str, ...] = ()
    models: tuple[ModelName, ...] = ()
    tiers: tuple[Tier, ...] = ()
    networks: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ()

    @property
    def secrets_sha256(self) -> tuple[str, ...]:
        """The hashes of its secrets, the old one first."""
        old = self.old_secret_sha256
        return (self.secret_sha256,) if old is None else (old, self.secret_sha256)

    def scopes(self) -> Scopes | None:
        """Its limits, if it has any."""
        if not (self.models or self.tiers or self.networks or self.expires_unix_ns is not None):
            return None
        return Scopes(
            models=frozenset(self.models),
            tiers=frozenset(self.tiers),
            networks=networks_of(self.networks, self.key),
            expires_unix_ns=self.expires_unix_ns,
        )

    def old_view(self) -> KeyView:
        """The same for whoever comes with the old secret: until its time is over."""
        view, until_unix_ns = self.view(), self.old_until_unix_ns or 0
        scopes = view.scopes or Scopes()
        if scopes.expires_unix_ns is None or until_unix_ns < scopes.expires_unix_ns:
            scopes = msgspec.structs.replace(scopes, expires_unix_ns=until_unix_ns, replaced=True)
        return msgspec.structs.replace(view, scopes=scopes)

    def view(self) -> KeyView:
        """What the gateway may know."""
        return KeyView(
            key=self.key,
            tenant=self.tenant,
            team=self.team,
            engineer=self.engineer,
            tier_default=self.tier_default,
            labels=self.labels,
            scopes=self.scopes(),
        )


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """The most that a node of the quota tree may use in a period.

    Attributes:
        limit: its id.
        node: whose limit.
        unit: what it counts.
        period: a calendar hour, day or month in UTC, or the node's lifetime.
        amount: how much, in the unit.
        tier: count only requests asked for at this tier, and of these only those that got it: an
            answer whose promise was broken does not use up the grant. None counts all.
        carry_over_max: how much of a month's unused rest the next month adds at most.
        package: the package that brought it, if one did.
        created_unix_ns: when it was set, or set to another amount or ``carry_over_max``.
        carried_in: what the month of ``created_unix_ns`` has got of the months before it: what
            they left by the limit as it was then.
    """

    limit: LimitID
    node: NodeID
    unit: Unit
    period: Period
    amount: int
    tier: Tier | None = None
    carry_over_max: int = 0
    package: str | None = None
    created_unix_ns: int = 0
    carried_in: int = 0

    @property
    def carries_over(self) -> bool:
        """Whether its windows get what the ones before have left."""
        return self.carry_over_max > 0 and self.period == "month"


class LimitState(msgspec.Struct, frozen=True, kw_only=True):
    """A limit with what its present window allows and what is used of it.

    Attributes:
        limit: the limit.
        start_unix_ns: the window's start.
        used: spent in the window until now.
        carried: what the months before have left for it.
        extra: what was approved on top, for this window.
    """

    limit: Limit
    start_unix_ns: int
    used: int
    carried: int = 0
    extra: int = 0

    @property
    def allowed(self) -> int:
        """The most in this window."""
        return self.limit.amount + self.carried + self.extra


class QuotaNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """Why a limit cannot hold a request: used + held + asked is above allowed.

    Attributes:
        limit: which limit.
        node: whose.
        unit: what it counts; all four numbers are in it.
        period: its period.
        allowed: the most in this window.
        used: spent until now.
        held: reserved by open requests.
        asked: what this request would hold.
        resets_unix_ns: when the next window begins; None for a lifetime, or where the request is
            larger than any window.
    """

    limit: LimitID
    node: NodeID
    unit: Unit
    period: Period
    allowed: int
    used: int
    held: int
    asked: int
    resets_unix_ns: int | None


RefusedCode = Literal[
    "quota_exceeded",
    "invalid_api_key",
    "model_not_found",
    "capacity_exceeded",
    "not_reserved",
    "already_settled",
    "conflict",
]
"""Where ``core.errors`` has an error of that code, the edge raises it. The last three say that a
settlement came without a reservation, after another settlement, or with other content."""


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """The ledger will not do it; nothing has changed.

    Attributes:
        code: stable for machines.
        message: what happened, with the values.
        quota: the numbers, where a quota is what refused.
    """

    code: RefusedCode
    message: str
    quota: QuotaNumbers | None = None
