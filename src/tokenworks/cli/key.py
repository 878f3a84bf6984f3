"""``tokenworks key``: create, list, rotate and revoke keys."""

from __future__ import annotations

import os
from typing import Any

import click
import msgspec

from tokenworks.cli.ledger_at import ledger_at, office_at
from tokenworks.cli.listing import Listing
from tokenworks.cli.table import show
from tokenworks.core.errors import InvalidRequest, NotFound
from tokenworks.core.needs import words_of
from tokenworks.core.slo import Tier
from tokenworks.ledger.actions import CreateKey, RevokeKey, RotateKey
from tokenworks.ledger.extras import BILLED
from tokenworks.ledger.facts import key_facts
from tokenworks.ledger.grants import PERIODS
from tokenworks.ledger.quota_records import ROLES, KeyRecord, LimitState, Period, Role
from tokenworks.live.home import Home


@click.group(cls=Listing)
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
@click.option(
    "--role",
    "roles",
    type=click.Choice(ROLES),
    multiple=True,
    help="What its holder may manage: its tenant (admin), or the whole factory.",
)
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
    roles: tuple[Role, ...],
    **scopes: str | None,
) -> None:
    """Make a key and show its secret, once."""
    from tokenworks.live.clock import SystemClock
    from tokenworks.live.key_making import check_tokens, dollars_option, read_scopes
    from tokenworks.live.office import operator

    nanodollars, unix_ns = dollars_option("--usd", usd), SystemClock().unix_ns()
    check_tokens("--tokens", tokens)
    labelled = words_of(labels, "--labels")
    limited = read_scopes(unix_ns, Tier(tier), **scopes)
    wish = CreateKey(
        tenant=tenant,
        name=name,
        tier=Tier(tier),
        tokens=tokens,
        nanodollars=nanodollars,
        per=per,
        labels=labelled,
        secret=_secret(secret_env),
        team=team,
        engineer=engineer,
        models=limited.models,
        tiers=limited.tiers,
        networks=limited.networks,
        roles=roles,
        expires=scopes["expires"],
    )
    with office_at(home, create=True) as office:
        new = office.create_key(operator(), wish)
    row = {
        "secret": new.secret,
        **_facts(new.record),
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
        **(_facts(record) if as_json else _shown(record)),
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


def _facts(record: KeyRecord) -> dict[str, Any]:
    return {**key_facts(record), "revoked": record.revoked_unix_ns is not None}


def _shown(record: KeyRecord) -> dict[str, Any]:
    """The same for people, in fewer columns."""
    facts = _facts(record)
    words = [", ".join(facts["models"]), ", ".join(facts["tiers"])]
    words += ["from " + ", ".join(facts["from"])] if facts["from"] else []
    words += [f"until {facts['expires']}"] if facts["expires"] else []
    until = facts["old_secret_until"]
    words += [f"its old secret until {until}"] if until else []
    return {
        **{name: facts[name] for name in ("key", "tenant", "team", "engineer")},
        "name": record.name or None,
        "tier": facts["tier"],
        "labels": ", ".join(record.labels) or None,
        "only": "; ".join(filter(None, words)) or None,
        "roles": ", ".join(record.roles) or None,
    }


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
    from tokenworks.ledger.dates import parse_span, time_text
    from tokenworks.live.key_making import digest_of
    from tokenworks.live.office import operator

    parse_span(overlap, "--overlap")
    _check_ledger(home, key)
    with office_at(home) as office:
        new = office.rotate_key(operator(), RotateKey(key=key, overlap=overlap))
    secret, until_unix_ns = new.secret, new.record.old_until_unix_ns
    assert until_unix_ns is not None
    if new.before.secret_sha256 == digest_of(home.read_key() or ""):  # the command line's own
        home.write_private(home.key, secret + "\n")
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
    from tokenworks.live.office import operator

    _check_ledger(home, key)
    with office_at(home) as office:
        office.revoke_key(operator(), RevokeKey(key=key))
    if as_json:
        click.echo(msgspec.json.encode({"key": key, "revoked": True}).decode())
    else:
        click.echo(f"{key} is revoked.")


def _check_ledger(home: Home, key: str) -> None:
    if not home.has_ledger():
        raise NotFound(f"There is no key {key!r} here.", hint="`tokenworks key create` makes one.")
