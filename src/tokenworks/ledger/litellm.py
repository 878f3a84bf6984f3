"""LiteLLM's keys and budgets as ours; what has no counterpart here is said, not dropped.

Source:
    BerriAI/litellm: ``hash_token`` (a key is kept as the sha256 of its text in hex, as ours are);
    ``litellm/models/verification_token.py``, ``team.py``, ``user.py`` and ``budget.py``, which are
    what its management API answers; read 2026-11-24. ``list_budget`` of
    ``litellm/proxy/management_endpoints/budget_management_endpoints.py``; read 2026-11-28.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final, NamedTuple

import msgspec

from tokenworks.catalogue.packages import AMOUNT_MAX
from tokenworks.core.errors import InvalidRequest
from tokenworks.core.ids import EngineerID, KeyID, LimitID, TeamID, TenantID
from tokenworks.core.slo import Tier
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR, NS_PER_S, dollars_text
from tokenworks.ledger.grants import new_limit, parse_node
from tokenworks.ledger.litellm_prices import Record, amount
from tokenworks.ledger.quota_records import KeyRecord, Limit, LimitState, NodeID, Period

PERIODS: Final[Mapping[str, Period]] = {
    **dict.fromkeys(("1h", "60m", "3600s"), "hour"),
    **dict.fromkeys(("1d", "24h", "daily"), "day"),
    **dict.fromkeys(("1mo", "30d", "31d", "monthly"), "month"),
}
_CALENDAR: Final = ("1h", "60m", "3600s", "1d", "24h", "daily", "1mo", "monthly")
"""Durations that are a calendar hour, day or month there, too."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[^\w.@+-]+")
_BUDGET: Final = ("max_budget", "budget_duration", "reset_at", "budget_reset_at", "budget_id")
_TAKEN: Final = frozenset(
    (
        *_BUDGET,
        *("token", "key", "key_alias", "key_name", "team_id", "team_alias", "team_blocked"),
        *("user_id", "user_alias", "user_email", "blocked", "expires", "deleted_at"),
        *("spend", "budget_limits", "litellm_budget_table"),
    )
)
"""Fields that are taken up, or say when a period that is taken up ends."""
_RECORDS: Final = frozenset(
    (
        *("total_spend", "model_spend", "created_at", "created_by", "updated_at", "updated_by"),
        *("settings_updated_at", "last_active", "last_rotation_at", "rotation_count", "id"),
        *("deleted_by", "deleted_by_api_key", "litellm_changed_by", "object_permission_id"),
        *("keys", "key_count", "members_count", "password", "last_refreshed_at"),
    )
)
"""Fields that say what has been, or what another field or file says; nothing hangs on them."""


class LeftOut(NamedTuple):
    """A field that nothing here takes up.

    Attributes:
        node: whose.
        field: its name.
        value: what it says, short, and of an object its names alone: they may hold secrets.
    """

    node: NodeID
    field: str
    value: str


class Imported(NamedTuple):
    """What comes of LiteLLM's objects.

    Attributes:
        keys: records to be stored; they open with the secrets that LiteLLM gave out.
        limits: their budgets, and those of teams and users.
        notes: what is not quite the same here, each in a sentence.
        left_out: what has no counterpart.
    """

    keys: list[KeyRecord]
    limits: list[Limit]
    notes: list[str]
    left_out: list[LeftOut]


class _Maker:
    """What is made of the objects, and what is there already."""

    def __init__(
        self,
        tenant: TenantID,
        unix_ns: int,
        budgets: Mapping[str, Record],
        known: Iterable[KeyRecord],
        before: list[LimitState],
    ) -> None:
        self.tenant, self.unix_ns, self.budgets = tenant, unix_ns, budgets
        self.known = {record.key: record for record in known}
        self.before = before
        self.made = Imported([], [], [], [])

    def note(self, text: str) -> None:
        self.made.notes.append(text)

    def node(self, node: NodeID, row: Record) -> None:
        """Take up a node's budgets, and say what is left out."""
        table = row.get("litellm_budget_table") or {}
        windows = row.get("budget_limits") or []
        if not isinstance(table, Mapping) or not isinstance(windows, list):
            raise _odd(node, "litellm_budget_table" if table else "budget_limits")
        table = self.named(node, row, table)
        limits: dict[LimitID, Limit] = {}
        for part, spend in ((row, row), (table, row), *((window, {}) for window in windows)):
            if not isinstance(part, Mapping):
                raise _odd(node, "budget_limits")
            limit = self.budget(node, part, spend)
            if limit is None:
                continue
            other = limits.setdefault(limit.limit, limit)
            if other.amount != limit.amount:
                self.note(f"{limit.limit}: it has two budgets there; the smaller one holds.")
                limits[limit.limit] = min(limit, other, key=lambda each: each.amount)
        for limit in limits.values():
            self.put(limit)
        for prefix, part in (("", row), ("litellm_budget_table.", table)):
            self.made.left_out.extend(
                LeftOut(node, prefix + field, _shown(value))
                for field, value in part.items()
                if field not in _TAKEN | _RECORDS and not _is_empty(value)
            )

    def named(self, node: NodeID, row: Record, table: Record) -> Record:
        """The budget that a row names, which stands in the row itself or was given apart."""
        name = row.get("budget_id")
        if name is None or (table and table.get("budget_id", name) == name):
            return table
        found = self.budgets.get(str(name))
        if found is None:
            raise InvalidRequest(
                f"{node}: its budget is {name!r}, and no object that is given says what that is; "
                "it would be imported without a limit.",
                hint="Give what /budget/list answers by --budgets, too.",
            )
        return found

    def put(self, limit: Limit) -> None:
        for state in self.before:
            if state.limit.limit == limit.limit and state.limit.amount != limit.amount:
                was, now = dollars_text(state.limit.amount), dollars_text(limit.amount)
                self.note(f"{limit.limit}: the limit is {was} dollars here, and becomes {now}.")
        self.made.limits.append(limit)

    def budget(self, node: NodeID, row: Record, spent: Record) -> Limit | None:
        """A budget as a limit in money."""
        if row.get("max_budget") is None:
            return None
        dollars, said = amount(row, "max_budget", node), row.get("budget_duration")
        spend = Decimal(0) if spent.get("spend") is None else amount(spent, "spend", node)
        period = "lifetime" if said is None else PERIODS.get(str(said))
        if period is None:
            period = "lifetime"
            self.note(f"{node}: no period here is {said!r} long; the budget holds for life.")
        elif said is not None and said not in _CALENDAR:
            self.note(f"{node}: the budget's {said!r} is a calendar {period} here, UTC.")
        if period == "lifetime" and spend:
            dollars = max(Decimal(0), dollars - spend)
            self.note(f"{node}: of the budget {dollars} dollars are left, which is the limit.")
        elif spend:
            self.note(
                f"{node}: {spend} dollars of the running period's budget are spent there; here "
                f"all of it, {dollars} dollars, is open until the {period} ends."
            )
        nanodollars = (dollars * NANODOLLARS_PER_DOLLAR).to_integral_value(ROUND_HALF_EVEN)
        if nanodollars > AMOUNT_MAX:
            raise InvalidRequest(
                f"{node}: max_budget is {row['max_budget']}, more dollars than a limit can hold.",
                hint="Take the budget out of the file: none is no limit.",
            )
        return new_limit(
            node,
            "nanodollars",
            period,
            int(nanodollars),
            unix_ns=self.unix_ns,
            before=self.before,
        )

    def key(
        self,
        key: Record,
        teams: Mapping[str, Record],
        users: Mapping[str, Record],
        names: Mapping[str, str],
    ) -> None:
        """Make a key's record and its limits."""
        digest = _text(key, "token")
        if not _SHA256.fullmatch(digest):
            raise InvalidRequest(
                f"A key's token is {digest[:12]!r}..., not the sha256 of its secret in hex.",
                hint="Take the objects of /key/list?return_full_object=true as they are.",
            )
        team, user = key.get("team_id") or None, key.get("user_id") or None
        record = KeyRecord(
            key=KeyID(f"key_{digest[:12]}"),
            tenant=self.tenant,
            team=None if team is None else TeamID(names[f"team {team}"]),
            engineer=None if user is None else EngineerID(names[f"user {user}"]),
            name=str(key.get("key_alias") or key.get("key_name") or ""),
            secret_sha256=digest,
            tier_default=Tier.HIGH,
            created_unix_ns=self.unix_ns,
            revoked_unix_ns=self.revoked(
                f"key_{digest[:12]}", key, teams.get(str(team), {}), users.get(str(user), {})
            ),
            expires_unix_ns=_time(key, "expires"),
        )
        known = self.known.get(record.key)
        if known is not None:
            if known.revoked_unix_ns is not None and record.revoked_unix_ns is None:
                self.note(f"{record.key}: it is revoked here and stays so.")
            # What was set here since stays: a new secret, a tier, labels and limits.
            record = msgspec.structs.replace(
                known,
                tenant=record.tenant,
                team=record.team,
                engineer=record.engineer,
                name=record.name,
                revoked_unix_ns=known.revoked_unix_ns or record.revoked_unix_ns,
                expires_unix_ns=record.expires_unix_ns or known.expires_unix_ns,
            )
        self.made.keys.append(record)
        self.node(parse_node(f"key:{record.key}"), key)

    def revoked(self, name: str, key: Record, team: Record, user: Record) -> int | None:
        """When a key was closed; None while it opens the gate."""
        expires_unix_ns = _time(key, "expires")
        why = {
            "it is blocked there": key.get("blocked"),
            "it is deleted there": key.get("deleted_at"),
            "its team is blocked there": team.get("blocked") or key.get("team_blocked"),
            "its user is blocked there": user.get("blocked"),
            f"it expired at {key.get('expires')}": expires_unix_ns is not None
            and expires_unix_ns <= self.unix_ns,
        }
        reasons = [reason for reason, holds in why.items() if holds]
        if reasons:
            self.note(f"{name}: {' and '.join(reasons)}; it is revoked here, for ever.")
            return self.unix_ns
        return None


def import_keys(
    keys: Iterable[Record],
    teams: Iterable[Record] = (),
    users: Iterable[Record] = (),
    budgets: Iterable[Record] = (),
    *,
    tenant: TenantID,
    unix_ns: int,
    known: Iterable[KeyRecord] = (),
    before: Iterable[LimitState] = (),
) -> Imported:
    """Keys with their teams, users and budgets.

    A key that is closed there, expired, or in a team that is blocked comes as a revoked one; one
    that is revoked here stays so. Teams or users whose names are the same here get their id as part
    of their names, so give all of them at once.

    Args:
        keys: key objects, as ``/key/list?return_full_object=true`` gives them.
        teams: team objects, as ``/team/list`` gives them.
        users: user objects, as ``/user/list`` gives them.
        budgets: budget objects, as ``/budget/list`` gives them; others name them by their id.
        tenant: who pays for all of them.
        unix_ns: now.
        known: the keys that are here already.
        before: all limits as they stand now.

    Raises:
        InvalidRequest: an object is no such thing, its budget is no amount or is named and not
            given, or two teams or users have the same name however they are written.
    """
    parse_node(f"tenant:{tenant}")
    by_budget = {_text(budget, "budget_id"): budget for budget in budgets}
    maker = _Maker(tenant, unix_ns, by_budget, known, list(before))
    by_token = {_text(key, "token"): key for key in keys}
    by_team = {_text(team, "team_id"): team for team in teams}
    by_user = {_text(user, "user_id"): user for user in users}
    names: dict[str, str] = {}
    for level, kind, rows, aliases in (
        ("team", "team", by_team, ("team_alias",)),
        ("engineer", "user", by_user, ("user_alias", "user_email")),
    ):
        mentioned = {str(key[f"{kind}_id"]) for key in by_token.values() if key.get(f"{kind}_id")}
        unlisted: dict[str, Record] = {own: {} for own in sorted(mentioned - rows.keys())}
        for name, own in _names(maker, level, {**rows, **unlisted}, aliases).items():
            names[f"{kind} {name}"] = own
            node = parse_node(f"{level}:{tenant}/{own}")
            maker.node(node, rows.get(name, {}))
            if name in unlisted:
                maker.note(
                    f"{node}: no --{kind}s file has {name!r}; its budget, and whether it is "
                    "blocked, is not known."
                )
    for key in by_token.values():
        maker.key(key, by_team, by_user, names)
    return maker.made


def _names(
    maker: _Maker, level: str, rows: Mapping[str, Record], aliases: tuple[str, ...]
) -> dict[str, str]:
    """A name for each id, no two the same."""
    plain = {
        own: _name(next((row[alias] for alias in aliases if row.get(alias)), own))
        for own, row in rows.items()
    }
    count = Counter(plain.values())
    names = {
        own: name if count[name] == 1 else f"{name}-{_name(own)}" for own, name in plain.items()
    }
    for own, name in names.items():
        if name != plain[own]:
            maker.note(f"{level}:{maker.tenant}/{name}: another one is called {plain[own]!r}, too.")
    twice = [name for name, times in Counter(names.values()).items() if times > 1]
    if twice:
        raise InvalidRequest(
            f"Several of LiteLLM's {level}s would be called {twice[0]!r}.",
            hint="Give one of them another alias there, and ask it for the file again.",
        )
    return names


def _time(row: Record, field: str) -> int | None:
    """Nanoseconds since 1970 of a time, UTC unless it says otherwise."""
    if row.get(field) is None:
        return None
    try:
        found = datetime.datetime.fromisoformat(str(row[field]))
    except ValueError as error:
        raise InvalidRequest(
            f"{field} is {row[field]!r}, which is no time.",
            hint="Mend it in the file that is imported.",
        ) from error
    since = found.replace(tzinfo=found.tzinfo or datetime.UTC) - datetime.datetime(
        1970, 1, 1, tzinfo=datetime.UTC
    )
    return since // datetime.timedelta(seconds=1) * NS_PER_S


def _text(row: Record, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(
            f"An object has no {field!r}: {sorted(row)[:6]!r}.",
            hint="Take LiteLLM's answers as they are.",
        )
    return value


def _odd(node: NodeID, field: str) -> InvalidRequest:
    return InvalidRequest(
        f"{node}: {field} is no budget.", hint="Take LiteLLM's answers as they are."
    )


def _name(value: object) -> str:
    """A name that a node of the quota tree can have."""
    return _NAME.sub("-", str(value)).strip("-") or "unnamed"


def _is_empty(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        text = f"{{{', '.join(sorted(value))}}}"
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        text = f"[{len(value)} objects]"
    else:
        text = str(value) if isinstance(value, Decimal) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
