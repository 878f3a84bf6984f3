"""``tokenworks key``: create, list, rotate and revoke keys."""

from __future__ import annotations

import os
from typing import Any

import click
import msgspec

from tokenworks.cli.ledger_at import ledger_at
from tokenworks.cli.table import show
from tokenworks.core.errors import InvalidRequest
from tokenworks.core.ids import KeyID
from tokenworks.core.needs import words_of
from tokenworks.core.scopes import tiers_by_rank
from tokenworks.core.slo import Tier
from tokenworks.ledger.extras import BILLED
from tokenworks.ledger.grants import PERIODS
from tokenworks.ledger.quotas import UNIX_NS_MAX, KeyRecord, LimitState, Period
from tokenworks.live.home import Home


@click.group()
def command() -> None:
    """Create, list, rotate and revoke keys with quotas.

    A running factory takes up a change within a second. Secrets are shown once and kept hashed.
    `tokenworks quota` sets limits for whole tenants, teams and engineers.
    """


def _secret(variable: str | None) -> str | None:
    """A secret that is brought along: not on the command line, where others could read it."""
    if variable is None:
        return None
    found = os.environ.get(variable)
    if not found:
        raise InvalidRequest(f"The variable {variable!r} is not set.", hint="Set it to the secret.")
    return found


@command.command()
@click.option("--tenant", default="local", show_default=True, help="Who pays.")
@click.option("--team", help="The tenant's team that it belongs to.")
@click.option("--engineer", help="The person that it belongs to.")
@click.option("--name", default="", help="A word to recognise the key by.")
@click.option(
    "--tier",
    type=click.Choice([tier.value for tier in Tier]),
    default=Tier.HIGH.value,
    show_default=True,
    help="The tier of requests that name none.",
)
@click.option("--labels", default="", help="Data labels of all its requests, such as eu,medical.")
@click.option("--models", help="The models that it may ask for, such as a,b; else all.")
@click.option("--tiers", help="The tiers that it may ask for, such as high,premium; else all.")
@click.option("--from", "networks", help="Where it may be used, such as 10.0.0.0/8; else anywhere.")
@click.option("--expires", help="When it ends: 2027-01-31 (the day's beginning, UTC), or 30d.")
@click.option("--tokens", type=click.IntRange(min=0), help="Hard limit, input and output together.")
@click.option("--usd", help="Hard limit in dollars, such as 2.50.")
@click.option(
    "--per",
    type=click.Choice(PERIODS),
    default="lifetime",
    show_default=True,
    help="Over what time the limits hold (UTC).",
)
@click.option(
    "--secret-env",
    metavar="VARIABLE",
    help="The environment variable with a secret that callers have already; else a new one.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def create(
    home: Home,
    /,
    tenant: str,
    name: str,
    tier: str,
    tokens: int | None,
    usd: str | None,
    per: Period,
    labels: str,
    *,
    secret_env: str | None,
    as_json: bool,
    team: str | None,
    engineer: str | None,
    **scopes: str | None,
) -> None:
    """Make a key and show its secret, once."""
    from tokenworks.live.key_making import check_tokens, create_key, dollars_option, read_scopes
    from tokenworks.live.clock import SystemClock

    nanodollars, unix_ns = dollars_option("--usd", usd), SystemClock().unix_ns()
    check_tokens("--tokens", tokens)
    labelled = words_of(labels, "--labels")
    limited = read_scopes(unix_ns, Tier(tier), **scopes)
    with ledger_at(home, create=True) as store:
        new = create_key(
            store,
            unix_ns,
            tenant=tenant,
            name=name,
            tier_default=Tier(tier),
            tokens=tokens,
            nanodollars=nanodollars,
            per=per,
            labels=labelled,
            secret=_secret(secret_env),
            team=team,
            engineer=engineer,
            scopes=limited,
        )
    row = {
        "secret": new.secret,
        "key": new.record.key,
        "tenant": tenant,
        "team": new.record.team,
        "engineer": new.record.engineer,
        "name": name,
        "tier": tier,
        "labels": list(labelled),
        **_scopes_row(new.record),
        "limits": [limit.limit for limit in new.limits],
    }
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(row), indent=2))
        return
    click.echo(new.secret)
    click.echo(f"{new.record.key} of tenant {tenant}; the secret is not shown again.", err=True)


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def list_keys(home: Home, *, as_json: bool) -> None:
    """Keys, their own limits, and what they have used of them.

    Limits of their engineers, teams and tenants hold, too: `tokenworks quota list` shows them.
    """
    from tokenworks.live.clock import SystemClock

    records: list[KeyRecord] = []
    states: list[LimitState] = []
    used: dict[str, tuple[int, int]] = {}
    if home.has_ledger():
        with ledger_at(home) as store:
            records, states = store.load_keys(), store.limit_states(SystemClock().unix_ns())
            for row in store.rollups(by_hour=False):
                if row.kind.what in BILLED:
                    tokens, nanodollars = used.get(row.payer.key, (0, 0))
                    paid = nanodollars + row.paid_nanodollars
                    used[row.payer.key] = (tokens + row.tokens, paid)
    limits: dict[str, list[LimitState]] = {}
    for state in states:
        limits.setdefault(state.limit.node, []).append(state)
    rows = [
        _row(
            record,
            used.get(record.key, (0, 0)),
            limits.get(f"key:{record.key}", []),
            as_json=as_json,
        )
        for record in records
    ]
    show(rows, as_json=as_json, empty="There is no key yet; `tokenworks key create` makes one.")


def _row(
    record: KeyRecord, used: tuple[int, int], states: list[LimitState], *, as_json: bool
) -> dict[str, Any]:
    from tokenworks.cli.quota import amount_text

    row: dict[str, Any] = {
        "key": record.key,
        "tenant": record.tenant,
        "team": record.team,
        "engineer": record.engineer,
        "name": record.name if as_json else record.name or None,
        "tier": record.tier_default,
        "labels": list(record.labels) if as_json else ", ".join(record.labels) or None,
        **(_scopes_row(record) if as_json else {"only": _scopes_text(record)}),
        "used_tokens": used[0],
        "used_nanodollars": used[1],
    }
    if as_json:
        row["limits"] = [
            {
                "limit": state.limit.limit,
                "unit": state.limit.unit,
                "period": state.limit.period,
                "used": state.used,
                "allowed": state.allowed,
            }
            for state in states
        ]
    else:
        row["used of allowed"] = (
            "; ".join(
                f"{amount_text(state.limit.unit, state.used, bare=True)} of "
                f"{amount_text(state.limit.unit, state.allowed)} per {state.limit.period}"
                for state in states
            )
            or None
        )
    return row | {"revoked": record.revoked_unix_ns is not None}


def _scopes_row(record: KeyRecord) -> dict[str, Any]:
    return {
        "models": list(record.models),
        "tiers": tiers_by_rank(record.tiers),
        "from": list(record.networks),
        "expires": _time(record.expires_unix_ns),
        "old_secret_until": _time(record.old_until_unix_ns),
    }


def _scopes_text(record: KeyRecord) -> str | None:
    row = _scopes_row(record)
    words = [", ".join(row["models"]), ", ".join(row["tiers"])]
    words += ["from " + ", ".join(row["from"])] if row["from"] else []
    words += [f"until {row['expires']}"] if row["expires"] else []
    until = row["old_secret_until"]
    words += [f"its old secret until {until}"] if until else []
    return "; ".join(filter(None, words)) or None


def _time(unix_ns: int | None) -> str | None:
    from tokenworks.ledger.dates import time_text

    return None if unix_ns is None else time_text(unix_ns)


@command.command()
@click.argument("key")
@click.option(
    "--overlap", default="24h", show_default=True, help="How long the old secret works, too."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def rotate(home: Home, key: str, *, overlap: str, as_json: bool) -> None:
    """Give KEY (its id, as `key list` shows it) a new secret, and show it, once.

    Quotas, limits and usage stay with the key. A secret before the old one works no more.
    """
    from tokenworks.live.key_making import digest_of, new_secret
    from tokenworks.ledger.dates import parse_span, time_text
    from tokenworks.live.clock import SystemClock

    until_unix_ns = SystemClock().unix_ns() + parse_span(overlap, "--overlap")
    if until_unix_ns > UNIX_NS_MAX:
        raise InvalidRequest(f"--overlap is {overlap!r}, which is too long.", hint="Such as 24h.")
    secret, known = new_secret(), False
    if home.has_ledger():
        with ledger_at(home) as store:
            own = digest_of(home.read_key() or "")
            mine = any((each.key, each.secret_sha256) == (key, own) for each in store.load_keys())
            known = store.rotate_key(KeyID(key), digest_of(secret), until_unix_ns)
        if known and mine:  # the command line's own
            home.write_private(home.key, secret + "\n")
    if not known:
        raise InvalidRequest(
            f"There is no key {key!r}, or it is revoked.",
            hint="`tokenworks key list` shows the ids.",
        )
    until = time_text(until_unix_ns)
    if as_json:
        row = {"secret": secret, "key": key, "old_secret_until": until}
        click.echo(msgspec.json.encode(row).decode())
        return
    click.echo(secret)
    click.echo(f"The old secret of {key} works until {until}; this is not shown again.", err=True)


@command.command()
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def revoke(home: Home, key: str, *, as_json: bool) -> None:
    """Revoke KEY (its id, as `key list` shows it) for ever."""
    from tokenworks.live.clock import SystemClock

    known = False
    if home.has_ledger():
        with ledger_at(home) as store:
            known = store.revoke_key(KeyID(key), SystemClock().unix_ns())
    if not known:
        raise InvalidRequest(
            f"There is no key {key!r}.", hint="`tokenworks key list` shows the ids."
        )
    if as_json:
        click.echo(msgspec.json.encode({"key": key, "revoked": True}).decode())
    else:
        click.echo(f"{key} is revoked.")
