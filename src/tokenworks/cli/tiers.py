"""``tokenworks tiers``: promises and prices, and what this machine could promise."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec
import uvloop

from tokenworks.catalogue.price_book import PriceBook, parse_price_book
from tokenworks.cli.listing import Listing
from tokenworks.cli.table import show
from tokenworks.core.errors import ConfigInvalid, WorkerUnavailable
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_MS, UDOLLARS_PER_DOLLAR
from tokenworks.live.home import Home
from tokenworks.live.measure import Point, Proposal

READY_S_MAX = 60


@click.group(cls=Listing, invoke_without_command=True)
@click.option("--book", is_flag=True, help="Print the price book itself (TOML).")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_context
def command(ctx: click.Context, *, book: bool, as_json: bool) -> None:
    """Show each tier's promise and price; `tiers measure` proposes promises for this machine."""
    if ctx.invoked_subcommand is not None:
        return
    found = ctx.obj.load_price_book()
    if book:
        click.echo(found.text, nl=False)
        return
    show(_rows(found), as_json=as_json, empty="")
    if not as_json:
        click.echo(f"\nPrice book {found.price_id}, in force from {found.effective}.")


def _rows(book: PriceBook) -> list[dict[str, Any]]:
    rows = []
    for model, prices in book.prices.items():
        for tier in Tier:
            promise, price = book.promises[tier], prices[tier]
            rows.append(
                {
                    "tier": tier.value,
                    "model": model,
                    "interactivity_tokens_per_s": promise.interactivity_tokens_per_s,
                    "ttft_ms": promise.ttft_ns // NS_PER_MS,
                    "patience_ms": promise.patience_ns // NS_PER_MS,
                    "input_usd_per_mtok": price.input_udollars_per_mtok / UDOLLARS_PER_DOLLAR,
                    "cached_usd_per_mtok": (
                        price.cached_input_udollars_per_mtok / UDOLLARS_PER_DOLLAR
                    ),
                    "output_usd_per_mtok": price.output_udollars_per_mtok / UDOLLARS_PER_DOLLAR,
                }
            )
    return rows


@command.command()
@click.option("--pool", help="Which pool.  [default: the first embedded one]")
@click.option("--write", is_flag=True, help="Keep the curve and the promises in the home folder.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def measure(home: Home, pool: str | None, *, write: bool, as_json: bool) -> None:
    """Measure this machine's speed curve and propose promises.

    Starts the pool's workers, loads all of them at rising batch sizes, and takes 80 % of what one
    user saw. Run it while the factory is stopped, or they share the machine.
    """
    from tokenworks.live.measure import ROUNDS, batches_up_to, curve_of, propose

    settings = home.load_settings()
    name = pool or next((n for n, p in settings.pool.items() if p.engine == "embedded"), "")
    if name not in settings.pool or settings.pool[name].engine != "embedded":
        raise ConfigInvalid(
            f"There is no embedded pool {name!r}.", hint=f"Pools: {', '.join(settings.pool)}."
        )
    config = settings.pool[name]
    rounds = len(batches_up_to(config.slots)) * ROUNDS
    with click.progressbar(length=rounds, label="Measuring", file=sys.stderr) as bar:
        points = uvloop.run(_measure(home, name, lambda: bar.update(1)))
    proposals = propose(points)
    if write:
        home.make()
        curves = home.load_curves() | {name: curve_of(points)}
        book = with_promises(home.load_price_book().text, proposals)
        home.write_private(home.curves, msgspec.json.encode(curves).decode())
        home.write_private(home.price_book, book)
    if as_json:
        said = {"pool": name, "points": points, "proposals": proposals}
        click.echo(msgspec.json.format(msgspec.json.encode(said), indent=2))
        return
    show([msgspec.structs.asdict(p) for p in points], as_json=False, empty="")
    click.echo("\nPromises that this machine keeps with a fifth to spare:")
    show([msgspec.structs.asdict(p) for p in proposals], as_json=False, empty="")
    if write:
        click.echo(f"\nWritten to {home.curves} and {home.price_book}; restart the factory.")
    else:
        click.echo("\n--write keeps them.")


async def _measure(home: Home, name: str, progress: Callable[[], None]) -> list[Point]:
    from tokenworks.cli.wiring import embedded_spec
    from tokenworks.core.ids import PoolID, WorkerID
    from tokenworks.core.ports import WorkerPort
    from tokenworks.live.clock import SystemClock
    from tokenworks.live.measure import measure as measure_pool
    from tokenworks.live.workers import EmbeddedWorker

    config = home.load_settings().pool[name]
    clock = SystemClock()
    up: asyncio.Queue[WorkerPort] = asyncio.Queue(maxsize=config.workers)
    workers = [
        EmbeddedWorker(
            embedded_spec(WorkerID(f"{name}-{i}"), PoolID(name), config),
            clock,
            up.put_nowait,
            lambda _why: None,
        )
        for i in range(config.workers)
    ]
    try:
        for worker in workers:
            worker.start()
        try:
            async with asyncio.timeout(READY_S_MAX):
                clients = [await up.get() for _ in workers]
        except TimeoutError as error:
            failures = "; ".join(w.last_failure for w in workers if w.last_failure)
            raise WorkerUnavailable(
                f"The workers did not come up: {failures or 'no word'}.",
                hint="`tokenworks doctor` looks further.",
            ) from error
        return await measure_pool(clients, config.model, config.slots, clock, progress)
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))


def with_promises(text: str, proposals: list[Proposal]) -> str:
    """A price book's text with other promises; prices and comments stay.

    Raises:
        ConfigInvalid: the text has not the layout of the book that ships.
    """
    name = re.search(r'^name = "([^"]*)"', text, re.MULTILINE)
    if name is not None and not name[1].endswith("-measured"):
        text = f'{text[: name.start()]}name = "{name[1]}-measured"{text[name.end() :]}'
    for proposal in proposals:
        for field in ("ttft_ms", "interactivity_tokens_per_s"):
            pattern = rf"(^\[tier\.{proposal.tier}\](?:\n(?!\[).*)*?\n{field} = )[\d_]+"
            value = getattr(proposal, field)
            text, count = re.subn(pattern, rf"\g<1>{value}", text, count=1, flags=re.MULTILINE)
            if count != 1:
                raise ConfigInvalid(
                    f"The price book has no line `{field} = ...` under [tier.{proposal.tier}].",
                    hint="Write it as `tokenworks tiers --book` prints it.",
                )
    parse_price_book(text)
    return text
