"""``tokenworks key``: create, list and revoke keys."""

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
from tokenworks.core.slo import Tier
from tokenworks.ledger.extras import BILLED
from tokenworks.ledger.grants import PERIODS
from tokenworks.ledger.quotas import KeyRecord, LimitState, Period
from tokenworks.live.home import Home


@click.group()
def command() -> None:
    """Create, list and revoke keys with quotas.

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
    **belongs: str | None,
) -> None:
    """Make a key and show its secret, once."""
    from tokenworks.cli.keys import check_tokens, create_key, dollars_option
    from tokenworks.live.clock import SystemClock

    nanodollars = dollars_option("--usd", usd)
    check_tokens("--tokens", tokens)
    labelled = words_of(labels, "--labels")
    with ledger_at(home, create=True) as store:
        new = create_key(
            store,
            SystemClock().unix_ns(),
            tenant=tenant,
            name=name,
            tier_default=Tier(tier),
            tokens=tokens,
            nanodollars=nanodollars,
            per=per,
            labels=labelled,
            secret=_secret(secret_env),
            **belongs,
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
