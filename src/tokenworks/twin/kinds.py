"""Kinds of worker and a price book for runs that name none of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from tokenworks.catalogue.price_book import PriceBook, parse_price_book
from tokenworks.catalogue.timings import EngineTiming
from tokenworks.core.ids import ModelName, PoolID, WorkerID
from tokenworks.core.slo import Tier
from tokenworks.perf.calibrated import timing_of
from tokenworks.perf.timing import Timing
from tokenworks.twin.records import WorkerSpec

MODEL: Final = ModelName("twin")
_FS_PER_US: Final = 1_000_000_000

# Assumed: figures of the order of a 70B model in FP8 on a server of eight H100, an older one, and
# one that is built for low latency. A fleet of one's own is measured, and written down in a
# scenario file.
_EVEN: Final = WorkerSpec(
    worker=WorkerID("even"),
    pool=PoolID("even"),
    model=MODEL,
    timing=Timing(
        launch_fs=2_500 * _FS_PER_US,
        sequence_fs=20 * _FS_PER_US,
        context_token_fs=15_000_000,
        prefill_token_fs=10 * _FS_PER_US,
        prefill_context_fs=100_000,
    ),
    slots=256,
    kv_blocks=3_000,
    block_tokens=512,
    batch_tokens_max=8_192,
    context_tokens_typical=12_000,
    kv_bytes_per_token=163_840,
    link_bytes_per_s=50_000_000_000,
    power_w=10_200,
    idle_power_w=4_080,
    capital_udollars_per_hour=24_000_000,
)
_LARGE: Final = msgspec.structs.replace(
    _EVEN,
    worker=WorkerID("large"),
    pool=PoolID("large"),
    timing=Timing(
        launch_fs=6_500 * _FS_PER_US,
        sequence_fs=25 * _FS_PER_US,
        context_token_fs=20_000_000,
        prefill_token_fs=12 * _FS_PER_US,
        prefill_context_fs=120_000,
    ),
    power_w=6_500,
    idle_power_w=2_600,
    capital_udollars_per_hour=12_000_000,
)
_FAST: Final = msgspec.structs.replace(
    _EVEN,
    worker=WorkerID("fast"),
    pool=PoolID("fast"),
    timing=Timing(
        launch_fs=1_000 * _FS_PER_US,
        sequence_fs=30 * _FS_PER_US,
        context_token_fs=10_000_000,
        prefill_token_fs=14 * _FS_PER_US,
        prefill_context_fs=140_000,
    ),
    slots=64,
    kv_blocks=1_000,
    capital_udollars_per_hour=40_000_000,
)
KINDS: Final = {"even": _EVEN, "large": _LARGE, "fast": _FAST}
"""By name; ``worker`` and ``pool`` of each stand for themselves."""

# (TTFT ms, tokens/s/user, grace ms, patience ms, output price in dollars per 1M)
_TIERS: Final = {
    Tier.FREE: (30_000, 20, 300, 60_000, 0),
    Tier.MEDIUM: (15_000, 40, 300, 30_000, 3),
    Tier.HIGH: (10_000, 60, 300, 20_000, 6),
    Tier.PREMIUM: (6_000, 90, 300, 12_000, 45),
    Tier.ULTRA: (4_000, 130, 300, 8_000, 150),
}


_SOURCE: Final = (
    "Output prices: the public token-factory chart (NVIDIA GTC 2026 keynote); input at a fifth, "
    "cached input as much, so that the factory keeps what a hit saves; promises: assumed."
)


def twin_book(model: ModelName = MODEL, speeds: Mapping[Tier, int] | None = None) -> PriceBook:
    """The chart's five prices, with promises that the kinds of worker here can keep.

    Args:
        model: that it prices.
        speeds: tokens per second that each tier promises instead.
    """
    lines = [
        'name = "twin"',
        "effective = 2026-11-24",
        f'source = "{_SOURCE}"',
        "ad_income_udollars_per_mtok = 500_000",
    ]
    for tier, (ttft_ms, own_speed, grace_ms, patience_ms, _) in _TIERS.items():
        speed = own_speed if speeds is None else speeds[tier]
        lines += [
            f"[tier.{tier}]",
            f"ttft_ms = {ttft_ms}",
            f"interactivity_tokens_per_s = {speed}",
            f"grace_ms = {grace_ms}",
            f"patience_ms = {patience_ms}",
            "output_tokens_default = 2048",
        ]
    for tier, (*_, dollars) in _TIERS.items():
        lines += [
            f"[price.{_quoted(model)}.{tier}]",
            f"input_udollars_per_mtok = {dollars * 200_000}",
            f"cached_input_udollars_per_mtok = {dollars * 200_000}",
            f"output_udollars_per_mtok = {dollars * 1_000_000}",
        ]
    return parse_price_book("\n".join(lines) + "\n")


def _quoted(name: str) -> str:
    """A name as a key of TOML; as it is if it may be."""
    return name if name.isidentifier() and name.isascii() else f'"{name}"'


def measured_kind(name: str, engine: EngineTiming) -> WorkerSpec:
    """An engine of the catalogue as a kind of worker; its power at idle is assumed to be 2/5."""
    return WorkerSpec(
        worker=WorkerID(name),
        pool=PoolID(name),
        model=ModelName(engine.model),
        timing=timing_of(engine),
        slots=engine.batch_max,
        kv_blocks=engine.kv_tokens_assumed // _EVEN.block_tokens,
        block_tokens=_EVEN.block_tokens,
        batch_tokens_max=_EVEN.batch_tokens_max,
        context_tokens_typical=min(_EVEN.context_tokens_typical, engine.input_tokens_max),
        kv_bytes_per_token=engine.kv_bytes_per_token_assumed,
        power_w=engine.power_w,
        idle_power_w=2 * engine.power_w // 5,
        capital_udollars_per_hour=engine.capital_udollars_per_hour,
    )
