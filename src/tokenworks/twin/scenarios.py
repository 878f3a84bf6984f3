"""Factories to try policies on: fleets by name, with promises and prices."""

from __future__ import annotations

from typing import Final

import msgspec

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import ModelName, PoolID, WorkerID
from tokenworks.core.slo import Tier
from tokenworks.dispatch.events import Configured, Limits, PolicySettings, TokenPrice
from tokenworks.perf.timing import Timing
from tokenworks.twin.records import Scenario, WorkerSpec
from tokenworks.twin.workload import SHIFTING, Mix

MODEL: Final = ModelName("large")
BLOCK_TOKENS: Final = 512
QUEUE_LEN_MAX: Final = 10_000
PREFIX_BLOCKS_MAX: Final = 2_000_000
PREFIX_TTL_NS: Final = 600_000_000_000

LARGE: Final = Timing(
    launch_fs=2_500_000_000_000,
    sequence_fs=20_000_000_000,
    context_token_fs=15_000_000,
    prefill_token_fs=10_000_000_000,
    prefill_context_fs=100_000,
)
"""Assumed: 2.5 ms an iteration, 20 us a sequence, 15 ns a token of context, 100,000 tokens/s of
prefill: the order of an eight-GPU H100 server with a 70B model in FP8."""
SLOW: Final = Timing(
    launch_fs=4_000_000_000_000,
    sequence_fs=25_000_000_000,
    context_token_fs=20_000_000,
    prefill_token_fs=12_000_000_000,
    prefill_context_fs=120_000,
)
"""Assumed: an older server, too slow for ultra in any useful batch."""
FAST: Final = Timing(
    launch_fs=1_000_000_000_000,
    sequence_fs=30_000_000_000,
    context_token_fs=10_000_000,
    prefill_token_fs=14_000_000_000,
    prefill_context_fs=140_000,
)
"""Assumed: a low-latency server with little memory."""


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """Groups of like workers, and the mix that they are tried on.

    Attributes:
        groups: pool, timing, workers, slots, KV blocks, power at work in watts, write-down in
            micro-dollars per hour.
        mix: tiers and tenants.
    """

    groups: tuple[tuple[str, Timing, int, int, int, int, int], ...]
    mix: Mix = Mix()


FLEETS: Final[dict[str, Fleet]] = {
    "homogeneous": Fleet(groups=(("large", LARGE, 8, 256, 3_000, 10_200, 24_000_000),)),
    "mixed": Fleet(
        groups=(
            ("slow", SLOW, 6, 256, 3_000, 6_500, 12_000_000),
            ("fast", FAST, 2, 64, 1_000, 10_200, 40_000_000),
        )
    ),
    "shifting": Fleet(groups=(("large", LARGE, 8, 256, 3_000, 10_200, 24_000_000),), mix=SHIFTING),
}
"""Power and write-down are assumed."""


def scenario(
    name: str, book: PriceBook, *, policy: PolicySettings, workers: int | None = None
) -> Scenario:
    """A factory by name.

    Args:
        name: one of ``FLEETS``.
        book: promises and prices; it prices ``MODEL``.
        policy: who decides.
        workers: as many instead, in the fleet's proportions.

    Raises:
        ConfigInvalid: there is no such fleet, or the book has no price for its model.
    """
    fleet = fleet_of(name)
    if MODEL not in book.prices:
        raise ConfigInvalid(
            f"The price book {book.price_id!r} has no price for {MODEL!r}.",
            hint=f"Add [price.{MODEL}.free] and the other four tiers.",
        )
    total = sum(group[2] for group in fleet.groups)
    specs: list[WorkerSpec] = []
    for pool, timing, count, slots, kv_blocks, power_w, capital in fleet.groups:
        wanted = count if workers is None else max(1, round(workers * count / total))
        specs += [
            WorkerSpec(
                worker=WorkerID(f"{pool}-{number}"),
                pool=PoolID(pool),
                model=MODEL,
                timing=timing,
                slots=slots,
                kv_blocks=kv_blocks,
                block_tokens=BLOCK_TOKENS,
                batch_tokens_max=8_192,
                context_tokens_typical=12_000,
                power_w=power_w,
                idle_power_w=power_w * 4 // 10,
                capital_udollars_per_hour=capital,
            )
            for number in range(wanted)
        ]
    return Scenario(
        name=name,
        workers=tuple(specs),
        configured=Configured(
            promises=book.promises,
            limits=Limits(
                queue_len_max=dict.fromkeys(Tier, QUEUE_LEN_MAX),
                prefix_blocks_max=PREFIX_BLOCKS_MAX,
                prefix_ttl_ns=PREFIX_TTL_NS,
            ),
            policy=policy,
            prices=token_prices(book),
        ),
        book=book,
        energy_udollars_per_kwh=80_000,
    )


def fleet_of(name: str) -> Fleet:
    """A fleet by name.

    Raises:
        ConfigInvalid: there is none.
    """
    if name not in FLEETS:
        raise ConfigInvalid(
            f"There is no scenario {name!r}.", hint=f"Take one of {', '.join(FLEETS)}."
        )
    return FLEETS[name]


def token_prices(book: PriceBook) -> dict[ModelName, dict[Tier, TokenPrice]]:
    """What the dispatcher is told of a price book: list prices, and ads where the tier is free."""
    return {
        model: {
            tier: TokenPrice(
                input_udollars_per_mtok=price.input_udollars_per_mtok,
                cached_udollars_per_mtok=price.cached_input_udollars_per_mtok,
                output_udollars_per_mtok=price.output_udollars_per_mtok
                + (book.ad_income_udollars_per_mtok if tier is Tier.FREE else 0),
            )
            for tier, price in prices.items()
        }
        for model, prices in book.prices.items()
    }
