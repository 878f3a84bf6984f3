"""LiteLLM's keys, budgets and prices, as ours; what has no counterpart here is said, not dropped.

Source:
    BerriAI/litellm: ``hash_token`` (a key is kept as the sha256 of its text in hex, as ours are);
    the key, team and user objects of its management API; the fields of
    ``model_prices_and_context_window.json``, dollars per token as decimals.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final, NamedTuple

from tokenworks.core.errors import InvalidRequest
from tokenworks.core.ids import EngineerID, KeyID, TeamID, TenantID
from tokenworks.core.slo import Tier
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR
from tokenworks.ledger.grants import new_limit, parse_node
from tokenworks.ledger.quotas import KeyRecord, Limit, NodeID, Period

Record = Mapping[str, object]
"""One of LiteLLM's objects; numbers with a point are decimals."""

UDOLLARS_PER_MTOK: Final = 10**12
"""Of a dollar per token."""

PERIODS: Final[Mapping[str, Period]] = {
    **dict.fromkeys(("1h", "60m", "3600s"), "hour"),
    **dict.fromkeys(("1d", "24h", "daily"), "day"),
    **dict.fromkeys(("1mo", "30d", "31d", "monthly"), "month"),
}
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[^\w.@+-]+")
_LEFT_OUT: Final = (
    *("models", "expires", "tpm_limit", "rpm_limit", "max_parallel_requests"),
    *("model_max_budget", "allowed_routes", "soft_budget"),
)
"""Fields of a key that nothing here takes up."""

_CLASSES: Final = {
    "input_udollars_per_mtok": "input_cost_per_token",
    "cached_input_udollars_per_mtok": "cache_read_input_token_cost",
    "output_udollars_per_mtok": "output_cost_per_token",
    "cache_write_udollars_per_mtok": "cache_creation_input_token_cost",
    "reasoning_udollars_per_mtok": "output_cost_per_reasoning_token",
    "audio_input_udollars_per_mtok": "input_cost_per_audio_token",
    "audio_output_udollars_per_mtok": "output_cost_per_audio_token",
}
_SERVICE: Final = {Tier.FREE: "_flex", Tier.MEDIUM: "_flex", Tier.PREMIUM: "_priority"}
_SERVICE_OF_ULTRA: Final = ("_ultrafast", "_priority")


class Imported(NamedTuple):
    """What comes of LiteLLM's objects.

    Attributes:
        keys: records to be stored; they open with the secrets that LiteLLM gave out.
        limits: their budgets, and those of teams and users.
        notes: what has no counterpart, or only a nearby one, each in a sentence.
    """

    keys: list[KeyRecord]
    limits: list[Limit]
    notes: list[str]


def import_keys(
    keys: Iterable[Record],
    teams: Iterable[Record] = (),
    users: Iterable[Record] = (),
    *,
    tenant: TenantID,
    unix_ns: int,
) -> Imported:
    """Keys with their teams, users and budgets.

    Args:
        keys: key objects, as ``/key/list?return_full_object=true`` gives them.
        teams: team objects, as ``/team/list`` gives them.
        users: user objects, as ``/user/list`` gives them.
        tenant: who pays for all of them.
        unix_ns: now.

    Raises:
        InvalidRequest: an object is no such thing, or its budget is no amount.
    """
    made = Imported([], [], [])
    names: dict[str, str] = {}
    for team in teams:
        name = names[_text(team, "team_id")] = _name(team.get("team_alias") or team["team_id"])
        _budget(made, parse_node(f"team:{tenant}/{name}"), team, unix_ns)
    for user in users:
        name = _name(user.get("user_alias") or user.get("user_email") or _text(user, "user_id"))
        names[_text(user, "user_id")] = name
        _budget(made, parse_node(f"engineer:{tenant}/{name}"), user, unix_ns)
    for key in keys:
        record = _key(key, names, tenant, unix_ns)
        made.keys.append(record)
        _budget(made, parse_node(f"key:{record.key}"), key, unix_ns)
        made.notes.extend(
            f"{record.key}: {field} = {key[field]!r} has no counterpart and is left out."
            for field in _LEFT_OUT
            if key.get(field)
        )
    return made


def price_tables(
    models: Mapping[str, Record], wanted: Sequence[str] = ()
) -> tuple[dict[str, dict[Tier, dict[str, int]]], list[str]]:
    """Prices per model and tier, in micro-dollars per 1M tokens, and notes.

    High is LiteLLM's plain price; medium and free are its flex price, premium its priority price,
    ultra its ultrafast price or else priority; where it has none, the plain one. A price is exact,
    or rounded half to even to a micro-dollar per 1M tokens and noted.

    Args:
        models: LiteLLM's price map.
        wanted: names of models; none means all that are priced per token.

    Raises:
        InvalidRequest: a model is not in the map, or has no price per token.
    """
    tables: dict[str, dict[Tier, dict[str, int]]] = {}
    notes: list[str] = []
    for model in wanted or sorted(models):
        row = models.get(model)
        if row is None or "input_cost_per_token" not in row or "output_cost_per_token" not in row:
            if wanted:
                raise InvalidRequest(
                    f"{model!r} has no price per token in the price map.",
                    hint="Name a model as the map's keys do.",
                )
            continue
        tables[model] = {tier: _prices(model, row, tier, notes) for tier in Tier}
    return tables, list(dict.fromkeys(notes))


def _prices(model: str, row: Record, tier: Tier, notes: list[str]) -> dict[str, int]:
    suffixes = _SERVICE_OF_ULTRA if tier is Tier.ULTRA else (_SERVICE.get(tier, ""),)
    prices: dict[str, int] = {}
    for ours, theirs in _CLASSES.items():
        fields = (*(theirs + suffix for suffix in suffixes), theirs)
        found = next((field for field in fields if row.get(field) is not None), None)
        if found is not None:
            prices[ours] = _udollars(model, row, found, notes)
    prices.setdefault("cached_input_udollars_per_mtok", prices["input_udollars_per_mtok"])
    return prices


def _udollars(model: str, row: Record, field: str, notes: list[str]) -> int:
    exact = _amount(row, field) * UDOLLARS_PER_MTOK
    rounded = exact.to_integral_value(rounding=ROUND_HALF_EVEN)
    if rounded != exact:
        notes.append(f"{model}: {field} = {row[field]} is rounded to {rounded} micro-dollars.")
    return int(rounded)


def _key(key: Record, names: Mapping[str, str], tenant: TenantID, unix_ns: int) -> KeyRecord:
    digest = _text(key, "token")
    if not _SHA256.fullmatch(digest):
        raise InvalidRequest(
            f"A key's token is {digest[:12]!r}..., not the sha256 of its secret in hex.",
            hint="Take the objects of /key/list?return_full_object=true as they are.",
        )
    team, user = key.get("team_id"), key.get("user_id")
    return KeyRecord(
        key=KeyID(f"key_{digest[:12]}"),
        tenant=tenant,
        team=None if team is None else TeamID(names.get(str(team)) or _name(team)),
        engineer=None if user is None else EngineerID(names.get(str(user)) or _name(user)),
        name=str(key.get("key_alias") or key.get("key_name") or ""),
        secret_sha256=digest,
        tier_default=Tier.HIGH,
        created_unix_ns=unix_ns,
        revoked_unix_ns=unix_ns if key.get("blocked") else None,
    )


def _budget(made: Imported, node: NodeID, row: Record, unix_ns: int) -> None:
    """A node's budget as a limit in money."""
    if row.get("max_budget") is None:
        return
    dollars, said = _amount(row, "max_budget"), row.get("budget_duration")
    period = "lifetime" if said is None else PERIODS.get(str(said))
    if period is None:
        period = "lifetime"
        made.notes.append(f"{node}: no period here is {said!r} long; the budget holds for life.")
    if period == "lifetime" and row.get("spend") is not None:
        dollars = max(Decimal(0), dollars - _amount(row, "spend"))
        made.notes.append(f"{node}: of the budget {dollars} dollars are left, which is the limit.")
    amount = (dollars * NANODOLLARS_PER_DOLLAR).to_integral_value(rounding=ROUND_HALF_EVEN)
    made.limits.append(new_limit(node, "nanodollars", period, int(amount), unix_ns=unix_ns))


def _amount(row: Record, field: str) -> Decimal:
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or value < 0:
        raise InvalidRequest(f"{field} is {value!r}; it must be a number of 0 or more.")
    return Decimal(value)


def _text(row: Record, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(
            f"An object has no {field!r}: {sorted(row)[:6]!r}.",
            hint="Take LiteLLM's answers as they are.",
        )
    return value


def _name(value: object) -> str:
    """A name that a node of the quota tree can have."""
    return _NAME.sub("-", str(value)).strip("-") or "unnamed"
