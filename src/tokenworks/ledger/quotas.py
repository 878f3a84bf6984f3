"""Keys, what they may use in all, and the refusal that says by how much a request is too large."""

from __future__ import annotations

from typing import Literal

import msgspec

from tokenworks.core.ids import KeyID, TenantID
from tokenworks.core.orders import KeyView
from tokenworks.core.slo import Tier
from tokenworks.ledger.entries import Reserved


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is stored. Its secret is not: only the secret's hash.

    Attributes:
        key: its public id.
        tenant: who pays.
        name: for people.
        secret_sha256: 64 hex digits.
        tier_default: the tier of a request that names none.
        tokens_quota: input and output tokens over the key's whole life; None for no limit.
        nanodollars_quota: money over the key's whole life; None for no limit.
        created_unix_ns: when it was made.
        revoked_unix_ns: when it was revoked; None while it opens the gate.
    """

    key: KeyID
    tenant: TenantID
    name: str
    secret_sha256: str
    tier_default: Tier
    tokens_quota: int | None
    nanodollars_quota: int | None
    created_unix_ns: int
    revoked_unix_ns: int | None

    def view(self) -> KeyView:
        """What the gateway may know."""
        return KeyView(key=self.key, tenant=self.tenant, tier_default=self.tier_default)


class KeyUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a key has used and what its open requests hold."""

    used_tokens: int = 0
    used_nanodollars: int = 0
    held_tokens: int = 0
    held_nanodollars: int = 0

    def add(
        self,
        *,
        used_tokens: int = 0,
        used_nanodollars: int = 0,
        held_tokens: int = 0,
        held_nanodollars: int = 0,
    ) -> KeyUse:
        """The same with amounts, which may be negative, added."""
        return KeyUse(
            used_tokens=self.used_tokens + used_tokens,
            used_nanodollars=self.used_nanodollars + used_nanodollars,
            held_tokens=self.held_tokens + held_tokens,
            held_nanodollars=self.held_nanodollars + held_nanodollars,
        )


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


class QuotaNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """Why a quota cannot hold a request: used + held + asked is above the quota.

    Attributes:
        unit: which quota; all four numbers are in it.
        quota: the limit.
        used: spent until now.
        held: reserved by open requests.
        asked: what this request would hold.
    """

    unit: Literal["tokens", "nanodollars"]
    quota: int
    used: int
    held: int
    asked: int


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


def quota_refusal(record: KeyRecord, use: KeyUse, hold: Reserved) -> Refused | None:
    """Why a key's quotas cannot take one more hold; None when they can.

    Args:
        record: the key.
        use: what it has used and holds.
        hold: what a request would hold as well.
    """
    numbers: list[QuotaNumbers] = []
    if record.tokens_quota is not None:
        numbers.append(
            QuotaNumbers(
                unit="tokens",
                quota=record.tokens_quota,
                used=use.used_tokens,
                held=use.held_tokens,
                asked=hold.hold_tokens,
            )
        )
    if record.nanodollars_quota is not None:
        numbers.append(
            QuotaNumbers(
                unit="nanodollars",
                quota=record.nanodollars_quota,
                used=use.used_nanodollars,
                held=use.held_nanodollars,
                asked=hold.hold_nanodollars,
            )
        )
    for row in numbers:
        if row.used + row.held + row.asked > row.quota:
            return Refused(
                code="quota_exceeded",
                message=(
                    f"Key {record.key!r} has a quota of {row.quota} {row.unit}: {row.used} used, "
                    f"{row.held} held by open requests, {row.asked} needed for this one."
                ),
                quota=row,
            )
    return None
