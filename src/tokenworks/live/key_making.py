"""Making keys, with limits of their own."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from typing import Final

import msgspec

from tokenworks.catalogue.packages import AMOUNT_MAX
from tokenworks.core.errors import InvalidRequest
from tokenworks.core.ids import EngineerID, KeyID, ModelName, TeamID, TenantID
from tokenworks.core.needs import checked_words, words_of
from tokenworks.core.scopes import MODELS_MAX, networks_of
from tokenworks.core.slo import Tier
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR, nanodollars_of
from tokenworks.ledger.actions import NAME_CHARS_MAX, CreateKey
from tokenworks.ledger.dates import parse_end
from tokenworks.ledger.grants import new_limit, parse_node
from tokenworks.ledger.office_port import NewKey
from tokenworks.ledger.quota_records import KeyRecord, Limit, Period, Unit
from tokenworks.ledger.store_port import LedgerStore

KEY_PREFIX: Final = "tw_"
SECRET_CHARS_MIN: Final = 8
SECRET_CHARS_MAX: Final = 512
"""Of a secret that is brought along; ours have 32 random characters."""

DIGITS_MAX: Final = 40
"""Of an amount on the command line."""


class KeyScopes(msgspec.Struct, frozen=True, kw_only=True):
    """What a key is limited to; see ``KeyRecord``."""

    models: tuple[ModelName, ...] = ()
    tiers: tuple[Tier, ...] = ()
    networks: tuple[str, ...] = ()
    expires_unix_ns: int | None = None


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
    return checked_scopes(
        unix_ns,
        tier_default,
        models=(models or "").replace(",", " ").split(),
        tiers=map(Tier, words),
        networks=(networks or "").replace(",", " ").split(),
        expires=expires,
        mark="--",
    )


def checked_scopes(
    unix_ns: int,
    tier_default: Tier,
    *,
    models: Iterable[str] = (),
    tiers: Iterable[Tier] = (),
    networks: Iterable[str] = (),
    expires: str | None = None,
    mark: str = "",
) -> KeyScopes:
    """What a key is to be limited to, in order and checked.

    Args:
        unix_ns: now.
        tier_default: the key's.
        models: see ``actions.CreateKey``, as for those that follow.
        tiers: likewise.
        networks: likewise.
        expires: likewise.
        mark: what stands before these names where they were given.

    Raises:
        InvalidRequest: one of them says what it cannot.
    """
    sold = tuple(sorted(set(tiers)))
    if sold and tier_default not in sold:
        raise InvalidRequest(
            f"{mark}tier is {tier_default.value}, which {mark}tiers leaves out.",
            hint=f"Give one of them as {mark}tier: requests that name no tier get it.",
        )
    return KeyScopes(
        models=tuple(map(ModelName, checked_words(models, f"{mark}models", MODELS_MAX))),
        tiers=sold,
        networks=tuple(map(str, networks_of(networks, f"{mark}from"))),
        expires_unix_ns=None if expires is None else parse_end(expires, f"{mark}expires", unix_ns),
    )


def new_secret() -> str:
    """A secret of ours."""
    return KEY_PREFIX + secrets.token_urlsafe(24)


def digest_of(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def make_key(wish: CreateKey, unix_ns: int) -> NewKey:
    """A key as somebody wishes it, which is nowhere yet.

    Args:
        wish: what for.
        unix_ns: now.

    Raises:
        InvalidRequest: the tenant, team or engineer has no name that a quota tree can hold, or
            something else cannot be.
    """
    _check_names(wish.tenant, wish.team, wish.engineer)
    if wish.secret is not None and wish.roles:
        raise InvalidRequest(
            "A key with a role has a secret that is made here.", hint="Leave `secret` out."
        )
    secret = new_secret() if wish.secret is None else _checked(wish.secret)
    scopes = checked_scopes(
        unix_ns,
        wish.tier,
        models=wish.models,
        tiers=wish.tiers,
        networks=wish.networks,
        expires=wish.expires,
    )
    record = KeyRecord(
        key=KeyID(f"key_{secrets.token_hex(6)}"),
        tenant=TenantID(wish.tenant),
        team=None if wish.team is None else TeamID(wish.team),
        engineer=None if wish.engineer is None else EngineerID(wish.engineer),
        name=check_text("name", wish.name, NAME_CHARS_MAX),
        secret_sha256=digest_of(secret),
        tier_default=wish.tier,
        created_unix_ns=unix_ns,
        revoked_unix_ns=None,
        labels=checked_words(wish.labels, "labels"),
        roles=tuple(sorted(set(wish.roles))),
        **msgspec.structs.asdict(scopes),
    )
    limits = _limits(record.key, wish.tokens, wish.nanodollars, wish.per, unix_ns)
    return NewKey(secret=secret, record=record, limits=limits)


def put_new_key(store: LedgerStore, new: NewKey) -> None:
    """Store a key's hash; its limits come first, so that it never goes without.

    Raises:
        InvalidRequest: another key has this secret.
        LedgerUnavailable: it is not stored.
    """
    digest = new.record.secret_sha256
    if any(digest in known.secrets_sha256 for known in store.load_keys()):
        raise InvalidRequest("There is a key with this secret.", hint="Take another secret.")
    for limit in new.limits:
        store.put_limit(limit)
    store.put_key(new.record)


def check_text(name: str, text: str, chars_max: int) -> str:
    """A text for people, if every terminal can show it.

    Raises:
        InvalidRequest: it is too long, or has what is no character.
    """
    if len(text) > chars_max or not (text.isprintable() or not text):
        raise InvalidRequest(
            f"{name} has {len(text)} characters, or some that cannot be shown.",
            hint=f"Write up to {chars_max} characters, all in one line.",
        )
    return text


def check_amount(name: str, amount: int) -> int:
    """Tokens or nano-dollars, if a limit can hold so much.

    Raises:
        InvalidRequest: it is less than none, or more than that.
    """
    if not 0 <= amount <= AMOUNT_MAX:
        raise InvalidRequest(
            f"{name} is {amount}; it must be from 0 to {AMOUNT_MAX}.",
            hint="Leave it out where there is to be no limit.",
        )
    return amount


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
        new_limit(parse_node(f"key:{key}"), unit, per, check_amount(unit, amount), unix_ns=unix_ns)
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
