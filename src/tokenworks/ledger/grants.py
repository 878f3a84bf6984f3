"""Limits as they are set and granted: names of nodes, names of limits, packages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, get_args

import msgspec

from tokenworks.catalogue.packages import Package
from tokenworks.core.errors import Conflict, InvalidRequest
from tokenworks.core.ids import KeyID, LimitID, TenantID
from tokenworks.core.slo import Tier
from tokenworks.ledger.extras import Extra
from tokenworks.ledger.quota_records import (
    LEVELS,
    KeyRecord,
    Limit,
    LimitState,
    NodeID,
    Period,
    Unit,
)
from tokenworks.ledger.quotas import node_id, window_start

NODE_CHARS_MAX: Final = 400
PERIODS: Final[tuple[Period, ...]] = get_args(Period)
NODE_HINT: Final = (
    "Such as tenant:acme, team:acme/search, engineer:acme/ada, key:key_1 or run:acme/nightly-7."
)


def parse_node(text: str) -> NodeID:
    """The id of a node of the quota tree.

    Raises:
        InvalidRequest: the text is none.

    >>> parse_node("engineer:acme/ada")
    'engineer:acme/ada'
    """
    level, _, name = text.partition(":")
    tenant, slash, own = name.partition("/")
    plain = level in ("tenant", "key")
    if (
        level not in LEVELS
        or not tenant
        or text.split() != [text]
        or not text.isprintable()
        or len(text) > NODE_CHARS_MAX
        or (bool(slash) if plain else not own)
    ):
        shown = text[:NODE_CHARS_MAX]
        raise InvalidRequest(f"{shown!r} is no node of the quota tree.", hint=NODE_HINT)
    return NodeID(text)


def limit_id(node: NodeID, unit: Unit, period: Period, tier: Tier | None) -> LimitID:
    """The name of a limit; a node has one for each unit, period and tier.

    >>> limit_id(NodeID("engineer:acme/ada"), "tokens", "month", Tier.PREMIUM)
    'engineer:acme/ada#tokens-month-premium'
    """
    parts = ["usd" if unit == "nanodollars" else unit, period, *([] if tier is None else [tier])]
    return LimitID(f"{node}#{'-'.join(parts)}")


def new_limit(
    node: NodeID,
    unit: Unit,
    period: Period,
    amount: int,
    *,
    unix_ns: int,
    tier: Tier | None = None,
    carry_over_max: int = 0,
    package: str | None = None,
    before: Iterable[LimitState] = (),
) -> Limit:
    """A limit, to be put into the store; it takes the place of one of the same name.

    What months before the present one had left, they had by the limit of that time: where its
    amount or ``carry_over_max`` changes, the present month keeps what was carried into it.

    Args:
        node: whose.
        unit: what it counts.
        period: over what time.
        amount: how much, in the unit.
        unix_ns: now.
        tier: as in ``Limit``.
        carry_over_max: likewise.
        package: likewise.
        before: all limits as they stand now.

    Raises:
        InvalidRequest: it carries over and is not by month.
    """
    if carry_over_max and period != "month":
        raise InvalidRequest(f"A limit per {period} carries nothing over.", hint="Only months do.")
    name = limit_id(node, unit, period, tier)
    since_unix_ns, carried_in = unix_ns, 0
    for state in before:
        known = state.limit
        if known.limit != name:
            continue
        if (known.amount, known.carry_over_max) == (amount, carry_over_max):
            since_unix_ns, carried_in = known.created_unix_ns, known.carried_in
        else:
            carried_in = min(carry_over_max, state.carried)
    return Limit(
        limit=name,
        node=node,
        unit=unit,
        period=period,
        amount=amount,
        tier=tier,
        carry_over_max=carry_over_max,
        package=package,
        created_unix_ns=since_unix_ns,
        carried_in=carried_in,
    )


def granted(
    node: NodeID, package: Package, before: Iterable[LimitState], unix_ns: int
) -> tuple[list[Limit], list[LimitID]]:
    """What granting a package to a node changes.

    Args:
        node: who gets it.
        package: what.
        before: all limits as they stand now.
        unix_ns: now.

    Returns:
        Limits to put, and limits to remove: those of the node's package until now that the new one
        has not. Limits that were set by hand stay unless the package has the same.
    """
    before = list(before)
    put = [
        new_limit(
            node,
            each.unit,
            each.period,
            each.amount,
            unix_ns=unix_ns,
            tier=each.tier,
            carry_over_max=each.carry_over_max,
            package=package.name,
            before=before,
        )
        for each in package.limits
    ]
    kept = {limit.limit for limit in put}
    gone = [
        limit.limit
        for limit in (state.limit for state in before)
        if limit.node == node and limit.package is not None and limit.limit not in kept
    ]
    return put, gone


def is_below(node: NodeID, above: NodeID, tenants: dict[KeyID, TenantID]) -> bool:
    """Whether a node is another one, or belongs to the tenant that the other one is.

    Args:
        node: the one.
        above: the other.
        tenants: whose each key is.

    >>> is_below(NodeID("key:key_1"), NodeID("tenant:acme"), {KeyID("key_1"): TenantID("acme")})
    True
    """
    if node == above:
        return True
    level, _, name = above.partition(":")
    own_level, _, own = node.partition(":")
    if level != "tenant" or own_level == "tenant":
        return False
    tenant = tenants.get(KeyID(own)) if own_level == "key" else own.partition("/")[0]
    return tenant == name


def tenant_of(node: NodeID, keys: Iterable[KeyRecord]) -> TenantID | None:
    """Whose a node is; None for a key that is not there.

    >>> tenant_of(NodeID("team:acme/search"), ())
    'acme'
    """
    level, _, name = node.partition(":")
    if level == "key":
        return next((record.tenant for record in keys if record.key == name), None)
    return TenantID(name.partition("/")[0])


def parse_person(text: str, keys: Iterable[KeyRecord]) -> NodeID:
    """The engineer that a text names, who has a key that is open.

    A person is known by that id alone: two spellings of one name would be two who decide.

    Raises:
        InvalidRequest: the text is no engineer's node, or nobody with a key is that one.
    """
    for record in keys:
        if record.revoked_unix_ns is None and record.engineer is not None:
            node = node_id("engineer", record.tenant, record.engineer)
            if node == text:
                return node
    raise InvalidRequest(
        f"{text!r} is nobody who has a key.",
        hint="Name an engineer as `tokenworks key list` has them, such as engineer:acme/ada; "
        "`tokenworks key create --engineer` makes a key.",
    )


def decide(
    extra: Extra, limits: Iterable[Limit], *, approve: bool, by: NodeID, unix_ns: int
) -> Extra:
    """Extra budget after somebody decided on it.

    Args:
        extra: what was asked for.
        limits: all limits.
        approve: whether it is given.
        by: who decides, as ``parse_person`` finds them.
        unix_ns: now.

    Raises:
        Conflict: it was decided before.
        InvalidRequest: its limit is gone, its window has ended, or who asked
            for it would approve it, or may be the one who would.
    """
    if extra.state != "asked":
        raise Conflict(
            f"{extra.extra!r} was {extra.state} by {extra.decided_by!r}.", hint="Ask again."
        )
    if approve:
        if not extra.asked_by.startswith("engineer:"):
            raise InvalidRequest(
                f"Nobody can tell who {extra.asked_by!r} is, who has asked for {extra.extra!r}.",
                hint="Deny it, and ask again by an engineer's id.",
            )
        if by == extra.asked_by:
            raise InvalidRequest(
                f"{by!r} has asked for {extra.extra!r} and cannot approve it.",
                hint="Let somebody else decide.",
            )
        limit = next((each for each in limits if each.limit == extra.limit), None)
        if limit is None:
            raise InvalidRequest(f"The limit {extra.limit!r} is gone.", hint="Deny it.")
        if window_start(limit.period, unix_ns) != extra.start_unix_ns:
            raise InvalidRequest(
                f"The {limit.period} that {extra.extra!r} was asked for has ended.",
                hint="Deny it, and ask again.",
            )
    return msgspec.structs.replace(
        extra, state="approved" if approve else "denied", decided_by=by, at_unix_ns=unix_ns
    )
