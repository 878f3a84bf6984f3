"""``tokenworks key``: create, list and revoke keys."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

import click
import msgspec

from tokenworks.cli.table import show
from tokenworks.core.errors import InvalidRequest
from tokenworks.core.ids import KeyID
from tokenworks.core.slo import Tier
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR
from tokenworks.live.home import Home


@click.group()
def command() -> None:
    """Create, list and revoke keys with quotas.

    A running factory takes up a change within a second. Secrets are shown once and kept hashed.
    """


@command.command()
@click.option("--tenant", default="local", show_default=True, help="Who pays.")
@click.option("--name", default="", help="A word to recognise the key by.")
@click.option(
    "--tier",
    type=click.Choice([tier.value for tier in Tier]),
    default=Tier.HIGH.value,
    show_default=True,
    help="The tier of requests that name none.",
)
@click.option("--tokens", type=click.IntRange(min=0), help="Hard limit, input and output together.")
@click.option("--usd", help="Hard limit in dollars, such as 2.50.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def create(
    home: Home,
    tenant: str,
    name: str,
    tier: str,
    tokens: int | None,
    usd: str | None,
    *,
    as_json: bool,
) -> None:
    """Make a key and show its secret, once."""
    from tokenworks.cli.wiring import create_key
    from tokenworks.live.clock import SystemClock
    from tokenworks.live.store import SQLiteStore

    home.make()
    quota = None if usd is None else _nanodollars(usd)
    store = SQLiteStore(home.ledger)
    try:
        new = create_key(
            store,
            SystemClock().unix_ns(),
            tenant=tenant,
            name=name,
            tier_default=Tier(tier),
            tokens_quota=tokens,
            nanodollars_quota=quota,
        )
    finally:
        store.close()
    row = {
        "secret": new.secret,
        "key": new.record.key,
        "tenant": tenant,
        "name": name,
        "tier": tier,
        "tokens_quota": tokens,
        "quota_nanodollars": quota,
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
    """Keys, their quotas, and what they have used."""
    from tokenworks.ledger.store_port import recover
    from tokenworks.live.store import SQLiteStore

    empty = "There is no key yet; `tokenworks key create` makes one."
    if not home.ledger.exists():
        show([], as_json=as_json, empty=empty)
        return
    store = SQLiteStore(home.ledger)
    try:
        ledger = recover(store, "key-list")
        rows = []
        for record in store.load_keys():
            use = ledger.use_of(record.key)
            rows.append(
                {
                    "key": record.key,
                    "tenant": record.tenant,
                    "name": record.name,
                    "tier": record.tier_default,
                    "used_tokens": use.used_tokens,
                    "tokens_quota": record.tokens_quota,
                    "used_nanodollars": use.used_nanodollars,
                    "quota_nanodollars": record.nanodollars_quota,
                    "revoked": record.revoked_unix_ns is not None,
                }
            )
    finally:
        store.close()
    show(rows, as_json=as_json, empty=empty)


@command.command()
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def revoke(home: Home, key: str, *, as_json: bool) -> None:
    """Revoke KEY (its id, as `key list` shows it) for ever."""
    from tokenworks.live.clock import SystemClock
    from tokenworks.live.store import SQLiteStore

    known = False
    if home.ledger.exists():
        store = SQLiteStore(home.ledger)
        try:
            known = store.revoke_key(KeyID(key), SystemClock().unix_ns())
        finally:
            store.close()
    if not known:
        raise InvalidRequest(
            f"There is no key {key!r}.", hint="`tokenworks key list` shows the ids."
        )
    if as_json:
        click.echo(msgspec.json.encode({"key": key, "revoked": True}).decode())
    else:
        click.echo(f"{key} is revoked.")


def _nanodollars(text: str) -> int:
    try:
        amount = Decimal(text) * NANODOLLARS_PER_DOLLAR
    except InvalidOperation:
        amount = Decimal(-1)
    if not amount.is_finite() or amount < 0 or amount != amount.to_integral_value():
        raise InvalidRequest(
            f"--usd is {text!r}; it must be dollars with at most nine decimals.",
            hint="Such as --usd 2.50.",
        )
    return int(amount)
