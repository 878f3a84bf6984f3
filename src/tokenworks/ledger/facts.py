"""Keys, limits and extra budget as people, programs and the audit log read them: never a secret."""

from __future__ import annotations

import msgspec

from tokenworks.core.ids import TenantID
from tokenworks.core.scopes import tiers_by_rank
from tokenworks.ledger.audit_log import Facts
from tokenworks.ledger.dates import time_text
from tokenworks.ledger.extras import Extra
from tokenworks.ledger.quota_records import KeyRecord, Limit, LimitState
from tokenworks.ledger.quotas import window_end


def key_facts(record: KeyRecord) -> Facts:
    """What is known of a key, but for its secrets and what is made of them."""
    return {
        "key": record.key,
        "tenant": record.tenant,
        "team": record.team,
        "engineer": record.engineer,
        "name": record.name,
        "tier": record.tier_default.value,
        "labels": list(record.labels),
        "models": list(record.models),
        "tiers": tiers_by_rank(record.tiers),
        "from": list(record.networks),
        "roles": list(record.roles),
        "created": time_text(record.created_unix_ns),
        "expires": _time(record.expires_unix_ns),
        "old_secret_until": _time(record.old_until_unix_ns),
        "revoked": _time(record.revoked_unix_ns),
    }


class TenantRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who pays.

    Attributes:
        tenant: its id.
        name: for people.
        created_unix_ns: when it was made.
        closed_unix_ns: when it was closed; None if it is open.
    """

    tenant: TenantID
    name: str
    created_unix_ns: int
    closed_unix_ns: int | None = None


def tenant_facts(record: TenantRecord) -> Facts:
    """What is known of a tenant."""
    return {
        "tenant": record.tenant,
        "name": record.name,
        "created": time_text(record.created_unix_ns),
        "closed": _time(record.closed_unix_ns),
    }


def limit_facts(limit: Limit) -> Facts:
    """What a limit says; what is used of it is no part of it."""
    return {
        "limit": limit.limit,
        "node": limit.node,
        "unit": limit.unit,
        "period": limit.period,
        "tier": None if limit.tier is None else limit.tier.value,
        "amount": limit.amount,
        "carry_over_max": limit.carry_over_max,
        "package": limit.package,
    }


def state_facts(state: LimitState) -> Facts:
    """A limit with what is used and allowed of its present window.

    What open requests hold is known to the running factory alone, and is None.
    """
    ends = state.limit.period != "lifetime"
    end_unix_ns = window_end(state.limit.period, state.start_unix_ns)
    return {
        **limit_facts(state.limit),
        "used": state.used,
        "held": None,
        "allowed": state.allowed,
        "resets_at": time_text(end_unix_ns) if ends else None,
    }


def extra_facts(extra: Extra) -> Facts:
    """What is known of extra budget."""
    return {
        "extra": extra.extra,
        "limit": extra.limit,
        "window_start": time_text(extra.start_unix_ns),
        "amount": extra.amount,
        "reason": extra.reason,
        "asked_by": extra.asked_by,
        "state": extra.state,
        "decided_by": extra.decided_by,
        "at": time_text(extra.at_unix_ns),
    }


def _time(unix_ns: int | None) -> str | None:
    return None if unix_ns is None else time_text(unix_ns)
