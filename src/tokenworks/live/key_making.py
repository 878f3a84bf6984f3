"""Making keys, with limits of their own."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

import msgspec

from tokenworks.catalogue.packages import AMOUNT_MAX
from tokenworks.ledger.dates import parse_end
from tokenworks.core.errors import InvalidRequest
from tokenworks.core.ids import EngineerID, KeyID, ModelName, TeamID, TenantID
from tokenworks.core.needs import words_of
from tokenworks.core.scopes import MODELS_MAX, networks_of
from tokenworks.core.slo import Tier
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR, nanodollars_of
from tokenworks.ledger.grants import new_limit, parse_node
from tokenworks.ledger.quotas import KeyRecord, Limit, Period, Unit
from tokenworks.ledger.store_port import LedgerStore

KEY_PREFIX: Final = "tw_"
SECRET_CHARS_MIN: Final = 8
SECRET_CHARS_MAX: Final = 512
"""Of a secret that is brought along; ours have 32 random characters."""

DIGITS_MAX: Final = 40
"""Of an amount on the command line."""


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key at the only moment when its secret is known.

    Attributes:
        secret: what a caller shows.
        record: what is stored.
        limits: the key's own.
    """

    secret: str
    record: KeyRecord
    limits: tuple[Limit, ...] = ()


class KeyScopes(msgspec.Struct, frozen=True, kw_only=True):
    """What a key is limited to; see ``KeyRecord``."""

    models: tuple[ModelName, ...] = ()
    tiers: tuple[Tier, ...] = ()
    networks: tuple[str, ...] = ()
    expires_unix_ns: int | None = None


NO_SCOPES: Final = KeyScopes()


def read_scopes(
    unix_ns: int,
    tier_default: Tier,
    *,
    models: str | None = None,
    tiers: str | None = None,
    networks: str | None = None,
    expires: str | None = None,
) -> KeyScopes:
    """What ``--models``, ``--tiers``, ``--from`` and ``--expires`` say.

    Raises:
        InvalidRequest: one of them says what it cannot, or nothing.
    """
    for name, text in {"--models": models, "--tiers": tiers, "--from": networks}.items():
        if text is not None and not text.strip(", "):
            raise InvalidRequest(f"{name} is empty.", hint="Leave it out to limit nothing.")
    words = words_of(tiers or "", "--tiers")
    for word in words:
        if word not in list(Tier):
            raise InvalidRequest(
                f"--tiers has {word!r}.",
                hint=f"Tiers are {', '.join(tier.value for tier in Tier)}.",
            )
    if words and tier_default not in words:
        raise InvalidRequest(
            f"--tier is {tier_default.value}, which --tiers leaves out.",
            hint="Give one of them as --tier: requests that name no tier get it.",
        )
    ranges = (networks or "").replace(",", " ").split()
    return KeyScopes(
        models=tuple(map(ModelName, words_of(models or "", "--models", MODELS_MAX))),
        tiers=tuple(map(Tier, words)),
        networks=tuple(map(str, networks_of(ranges, "--from"))),
        expires_unix_ns=None if expires is None else parse_end(expires, "--expires", unix_ns),
    )


def new_secret() -> str:
    """A secret of ours."""
    return KEY_PREFIX + secrets.token_urlsafe(24)


def digest_of(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create_key(
    store: LedgerStore,
    unix_ns: int,
    *,
    tenant: str,
    name: str,
    tier_default: Tier,
    team: str | None = None,
    engineer: str | None = None,
    tokens: int | None = None,
    nanodollars: int | None = None,
    per: Period = "lifetime",
    labels: tuple[str, ...] = (),
    secret: str | None = None,
    scopes: KeyScopes = NO_SCOPES,
) -> NewKey:
    """Make a key and store its hash; its limits come first, so that it never goes without.

    Args:
        store: where.
        unix_ns: now.
        tenant: who pays.
        name: for people.
        tier_default: the tier of requests that name none.
        team: the tenant's team that it belongs to, if any.
        engineer: the person that it belongs to, if any.
        tokens: the most tokens it may use in each period; None for no such limit.
        nanodollars: the most money, likewise.
        per: the period.
        labels: data labels of all its requests, sorted.
        secret: what callers have already; None makes a new one.
        scopes: what it is limited to.

    Raises:
        InvalidRequest: the tenant, team or engineer has no name that a quota tree can hold.
        LedgerUnavailable: it is not stored.
    """
    _check_names(tenant, team, engineer)
    secret = new_secret() if secret is None else _checked(secret)
    digest = digest_of(secret)
    if any(digest in known.secrets_sha256 for known in store.load_keys()):
        raise InvalidRequest("There is a key with this secret.", hint="Take another secret.")
    record = KeyRecord(
        key=KeyID(f"key_{secrets.token_hex(6)}"),
        tenant=TenantID(tenant),
        team=None if team is None else TeamID(team),
        engineer=None if engineer is None else EngineerID(engineer),
        name=name,
        secret_sha256=digest,
        tier_default=tier_default,
        created_unix_ns=unix_ns,
        revoked_unix_ns=None,
        labels=labels,
        **msgspec.structs.asdict(scopes),
    )
    limits = _limits(record.key, tokens, nanodollars, per, unix_ns)
    for limit in limits:
        store.put_limit(limit)
    store.put_key(record)
    return NewKey(secret=secret, record=record, limits=limits)


def _check_names(tenant: str, team: str | None, engineer: str | None) -> None:
    parse_node(f"tenant:{tenant}")
    for level, own in (("team", team), ("engineer", engineer)):
        if own is not None:
            parse_node(f"{level}:{tenant}/{own}")


def _checked(secret: str) -> str:
    """A secret that callers have already, if HTTP can carry it."""
    plain = secret.isascii() and secret.isprintable() and secret == secret.strip()
    if not SECRET_CHARS_MIN <= len(secret) <= SECRET_CHARS_MAX or not plain:
        raise InvalidRequest(
            f"The secret has {len(secret)} characters, or some that HTTP cannot carry.",
            hint=f"Take {SECRET_CHARS_MIN} to {SECRET_CHARS_MAX} printable ASCII characters.",
        )
    return secret


def _limits(
    key: KeyID, tokens: int | None, nanodollars: int | None, per: Period, unix_ns: int
) -> tuple[Limit, ...]:
    wanted: tuple[tuple[Unit, int | None], ...] = (
        ("tokens", tokens),
        ("nanodollars", nanodollars),
    )
    return tuple(
        new_limit(parse_node(f"key:{key}"), unit, per, amount, unix_ns=unix_ns)
        for unit, amount in wanted
        if amount is not None
    )


def check_tokens(option: str, tokens: int | None) -> None:
    """Refuse more tokens than a limit can hold.

    Raises:
        InvalidRequest: there are more.
    """
    if tokens is not None and tokens > AMOUNT_MAX:
        raise InvalidRequest(
            f"{option} is more than a limit can hold, {AMOUNT_MAX}.",
            hint="Leave it out where there is to be no limit.",
        )


def dollars_option(option: str, text: str | None) -> int | None:
    """Nano-dollars of an option in dollars.

    Raises:
        InvalidRequest: it is no such amount.
    """
    if text is None:
        return None
    amount = AMOUNT_MAX + 1 if len(text) > DIGITS_MAX else nanodollars_of(text)
    if amount is None:
        raise InvalidRequest(
            f"{option} is {text!r}; it must be dollars with at most nine decimals.",
            hint=f"Such as {option} 2.50.",
        )
    if amount > AMOUNT_MAX:
        raise InvalidRequest(
            f"{option} is {text[:DIGITS_MAX]}; the most is {AMOUNT_MAX // NANODOLLARS_PER_DOLLAR} "
            "dollars.",
            hint="Leave it out where there is to be no limit.",
        )
    return amount
