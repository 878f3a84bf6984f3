"""``tokenworks quota``: the quota tree, its limits, packages and extra budget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import click
import msgspec

from tokenworks.catalogue.packages import AMOUNT_MAX
from tokenworks.cli.ledger_at import ledger_at, office_at
from tokenworks.cli.listing import Listing
from tokenworks.cli.table import show
from tokenworks.core.errors import InvalidRequest, NotFound
from tokenworks.core.ids import LimitID
from tokenworks.core.orders import Payer
from tokenworks.core.slo import Tier
from tokenworks.core.units import dollars_text
from tokenworks.ledger.actions import AskExtra, DecideExtra, GrantPackage, LiftLimit, SetLimit
from tokenworks.ledger.extras import Extra
from tokenworks.ledger.facts import state_facts
from tokenworks.ledger.grants import (
    PERIODS,
    is_below,
    parse_node,
)
from tokenworks.ledger.quota_records import KeyRecord, Limit, LimitState, NodeID, Period, Unit
from tokenworks.ledger.quotas import nodes_of
from tokenworks.ledger.store_port import LedgerStore
from tokenworks.live.home import Home
from tokenworks.live.key_making import DIGITS_MAX, check_tokens, dollars_option
from tokenworks.live.office import operator

_json = click.option("--json", "as_json", is_flag=True, help="As JSON.")
_PERSON: Final = "an engineer with a key, such as engineer:acme/ada."


@click.group(cls=Listing)
def command() -> None:
    """Limits on tenants, teams, engineers, keys and runs, all hard.

    A request passes only if every limit above it can hold its prompt and the most it may answer.
    A running factory takes up a change within a second.

    \b
    A node of the quota tree is one of
      tenant:acme           a tenant, with everybody in it
      team:acme/search      a team of the tenant acme
      engineer:acme/ada     a person of it, whichever key she uses
      key:key_1a2b3c        one key
      run:acme/nightly-7    one run of an agent

    \b
    For example
      tokenworks quota set tenant:acme --usd 500 --per month
      tokenworks quota set engineer:acme/ada --tokens 5000000 --tier premium --carry-over 1000000
      tokenworks quota grant engineer:acme/ada --package pro
      tokenworks quota list --node tenant:acme
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with this character


@command.command(name="set")
@click.argument("node")
@click.option("--tokens", type=click.IntRange(min=0), help="At most so many, input and output.")
@click.option("--usd", help="At most so many dollars, such as 2.50.")
@click.option(
    "--per", type=click.Choice(PERIODS), default="month", show_default=True, help="In each, UTC."
)
@click.option(
    "--tier",
    type=click.Choice([tier.value for tier in Tier]),
    help="Count only what is asked for and delivered at this tier.  [default: all]",
)
@click.option("--carry-over", help="At most so much of a month's rest is added to the next month.")
@_json
@click.pass_obj
def set_limit(
    home: Home,
    /,
    node: str,
    tokens: int | None,
    usd: str | None,
    per: Period,
    tier: str | None,
    carry_over: str | None,
    *,
    as_json: bool,
) -> None:
    """Set a limit on NODE, or change it.

    A node has one limit for each of tokens or dollars, period and tier; setting it again changes
    its amount and keeps what is used and what this month was given by the months before, up to
    the new --carry-over. A limit of 0 closes the gate.
    """
    from tokenworks.live.clock import SystemClock

    if (tokens is None) is (usd is None):
        raise InvalidRequest(
            "A limit is in tokens or in dollars.", hint="Give either --tokens or --usd."
        )
    unit: Unit = "tokens" if usd is None else "nanodollars"
    amount = tokens if usd is None else dollars_option("--usd", usd)
    assert amount is not None
    check_tokens("--tokens", tokens)
    place = parse_node(node)
    wish = SetLimit(
        node=node,
        unit=unit,
        amount=amount,
        period=per,
        tier=None if tier is None else Tier(tier),
        carry_over_max=0 if carry_over is None else _amount("--carry-over", carry_over, unit),
    )
    with office_at(home, create=True) as office:
        limit = office.set_limit(operator(), wish)
        _say_limits(office.store, [limit.limit], SystemClock().unix_ns(), as_json=as_json)
        _warn_of_nobody(office.store, place)


@command.command()
@click.argument("node")
@click.option("--package", required=True, help="One of `tokenworks quota packages`.")
@_json
@click.pass_obj
def grant(home: Home, /, node: str, package: str, *, as_json: bool) -> None:
    """Grant NODE the limits of a package.

    Limits of the package it had before go; limits that were set by hand stay, unless the package
    has one for the same tokens or dollars, period and tier.
    """
    from tokenworks.live.clock import SystemClock

    place = parse_node(node)
    with office_at(home, create=True) as office:
        put = office.grant(operator(), GrantPackage(node=node, package=package))
        names = [limit.limit for limit in put]
        _say_limits(office.store, names, SystemClock().unix_ns(), as_json=as_json)
        _warn_of_nobody(office.store, place)


@command.command(name="list")
@click.option("--node", help="Only this node; of a tenant, everything in it.")
@_json
@click.pass_obj
def list_limits(home: Home, /, node: str | None, *, as_json: bool) -> None:
    """Limits with what is used and allowed now, and extra budget that waits for a decision.

    Allowed is the limit, what was carried over and what was approved on top. What open requests
    hold at the moment is known to the running factory alone and not shown here.
    """
    from tokenworks.live.clock import SystemClock

    above = None if node is None else parse_node(node)
    now_unix_ns = SystemClock().unix_ns()
    states: list[LimitState] = []
    extras: list[Extra] = []
    if home.has_ledger():
        with ledger_at(home) as store:
            tenants = {record.key: record.tenant for record in store.load_keys()}
            states = [
                state
                for state in store.limit_states(now_unix_ns)
                if above is None or is_below(state.limit.node, above, tenants)
            ]
            limits = {state.limit.limit: state.limit for state in states}
            extras = [extra for extra in store.load_extras() if extra.limit in limits]
    if as_json:
        said = {"limits": [state_facts(state) for state in states], "extras": extras}
        click.echo(msgspec.json.format(msgspec.json.encode(said), indent=2))
        return
    where = "" if node is None else f" on {node} or in it"
    hint = "`tokenworks quota set --help` says how to set one."
    _show_states(states, f"There is no limit{where}; {hint}")
    asked = [_asked(extra, limits[extra.limit]) for extra in extras if extra.state == "asked"]
    if asked:
        click.echo("\nExtra budget asked for; `tokenworks quota approve` or `deny` decides:")
        show(asked, as_json=False, empty="")


@command.command()
@click.argument("limit")
@_json
@click.pass_obj
def remove(home: Home, /, limit: str, *, as_json: bool) -> None:
    """Lift LIMIT, as `quota list` names it."""
    with office_at(home) as office:
        office.lift_limit(operator(), LiftLimit(limit=LimitID(limit)))
    if as_json:
        click.echo(msgspec.json.encode({"limit": limit, "removed": True}).decode())
    else:
        click.echo(f"{limit} is lifted.")


@command.command()
@click.argument("limit")
@click.option("--amount", required=True, help="How much more: tokens, or dollars, as LIMIT counts.")
@click.option("--reason", required=True, help="Why; whoever decides reads it.")
@click.option("--by", required=True, help=f"Who asks: {_PERSON}")
@_json
@click.pass_obj
def extra(home: Home, /, limit: str, amount: str, reason: str, by: str, *, as_json: bool) -> None:
    """Ask for extra budget on top of LIMIT, in its present window only.

    It counts once somebody else has approved it. Both are known by their ids, and nobody proves
    here to be who --by says: who may run this command may ask and approve.
    """
    with office_at(home) as office:
        found = _limit(office.store, limit)
        more = _amount("--amount", amount, found.unit)
        wish = AskExtra(limit=found.limit, amount=more, reason=reason, by=by)
        new = office.ask_extra(operator(), wish)
    _say_extra(new, found, as_json=as_json)


def _decision(name: str, words: str, *, approve: bool) -> click.Command:
    @command.command(name=name, help=words)
    @click.argument("extra")
    @click.option("--by", required=True, help=f"Who decides: {_PERSON}")
    @_json
    @click.pass_obj
    def decided(home: Home, /, extra: str, by: str, *, as_json: bool) -> None:
        with office_at(home) as office:
            wish = DecideExtra(extra=extra, approve=approve, by=by)
            new = office.decide_extra(operator(), wish)
            limits = office.store.load_limits()
        limit = next((each for each in limits if each.limit == new.limit), None)
        _say_extra(new, limit, as_json=as_json)

    return decided


approve = _decision(
    "approve",
    "Approve EXTRA, as `quota list` names it and somebody else asked for: it counts at once.",
    approve=True,
)
deny = _decision("deny", "Deny EXTRA, as `quota list` names it.", approve=False)


@command.command()
@click.option("--example", is_flag=True, help="Print an example of `packages.toml`.")
@_json
@click.pass_obj
def packages(home: Home, /, *, example: bool, as_json: bool) -> None:
    """Packages of limits that can be granted, from `packages.toml` in the factory's folder."""
    from tokenworks.catalogue.packages import EXAMPLE

    if example:
        click.echo(EXAMPLE, nl=False)
        return
    found = home.load_packages().values()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(list(found)), indent=2))
        return
    rows = [
        {
            "package": package.name,
            "limit": amount_text(limit.unit, limit.amount),
            "per": limit.period,
            "tier": limit.tier,
            "carry over": amount_text(limit.unit, limit.carry_over_max)
            if limit.carry_over_max
            else None,
            "about": package.about,
        }
        for package in found
        for limit in package.limits
    ]
    show(
        rows,
        as_json=False,
        empty=f"There is no {home.packages}; `quota packages --example` prints one.",
    )


def amount_text(unit: Unit, amount: int, *, bare: bool = False) -> str:
    """An amount for people.

    >>> amount_text("tokens", 5_000), amount_text("nanodollars", 2_500_000_000)
    ('5,000 tokens', '$2.50')
    """
    if unit == "nanodollars":
        return f"${dollars_text(amount)}"
    return f"{amount:,}" if bare else f"{amount:,} tokens"


def _amount(option: str, text: str, unit: Unit) -> int:
    if unit == "nanodollars":
        amount = dollars_option(option, text)
        assert amount is not None
        return amount
    if not (text.isascii() and text.isdecimal()):
        raise InvalidRequest(
            f"{option} is {text!r}; it must be a number of tokens.", hint="Such as 1000000."
        )
    tokens = AMOUNT_MAX + 1 if len(text) > DIGITS_MAX else int(text)
    check_tokens(option, tokens)
    return tokens


def _limit(store: LedgerStore, name: str) -> Limit:
    for limit in store.load_limits():
        if limit.limit == name:
            return limit
    raise NotFound(
        f"There is no limit {name!r} here.", hint="`tokenworks quota list` shows their names."
    )


def _warn_of_nobody(store: LedgerStore, node: NodeID) -> None:
    """Say so where no key is under a node: it may be misspelt. Runs come and go."""
    if node.startswith("run:"):
        return
    if not any(node in _nodes(record) for record in store.load_keys()):
        click.echo(f"No key is under {node} yet.", err=True)


def _nodes(record: KeyRecord) -> tuple[NodeID, ...]:
    return nodes_of(
        Payer(tenant=record.tenant, team=record.team, engineer=record.engineer, key=record.key)
    )


def _say_limits(
    store: LedgerStore, names: Iterable[LimitID], unix_ns: int, *, as_json: bool
) -> None:
    wanted = set(names)
    states = [state for state in store.limit_states(unix_ns) if state.limit.limit in wanted]
    if as_json:
        text = msgspec.json.encode({"limits": [state_facts(state) for state in states]})
        click.echo(msgspec.json.format(text, indent=2))
    else:
        _show_states(states, "")


def _show_states(states: Iterable[LimitState], empty: str) -> None:
    rows = []
    for state in states:
        facts, unit = state_facts(state), state.limit.unit
        rows.append(
            {
                "limit": facts["limit"],
                "used": amount_text(unit, state.used, bare=True),
                "allowed": amount_text(unit, state.allowed),
                "resets at": facts["resets_at"],
                "package": facts["package"],
            }
        )
    show(rows, as_json=False, empty=empty)


def _asked(extra: Extra, limit: Limit) -> dict[str, Any]:
    return {
        "extra": extra.extra,
        "limit": extra.limit,
        "amount": amount_text(limit.unit, extra.amount),
        "by": extra.asked_by,
        "reason": extra.reason,
    }


def _say_extra(extra: Extra, limit: Limit | None, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(extra), indent=2))
        return
    amount = str(extra.amount) if limit is None else amount_text(limit.unit, extra.amount)
    decided = "" if extra.decided_by is None else f" by {extra.decided_by}"
    click.echo(f"{extra.extra}: {amount} on top of {extra.limit}, {extra.state}{decided}.")
