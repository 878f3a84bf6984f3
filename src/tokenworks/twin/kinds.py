"""Kinds of worker and a price book for runs that name none of their own."""

from __future__ import annotations

from typing import Final

from tokenworks.catalogue.price_book import PriceBook, parse_price_book
from tokenworks.core.ids import ModelName, PoolID, WorkerID
from tokenworks.core.slo import Tier
from tokenworks.perf.timing import Timing
from tokenworks.twin.records import WorkerSpec

MODEL: Final = ModelName("twin")
_FS_PER_US: Final = 1_000_000_000

# Assumed: plausible figures for a model of 8 to 70 billion parameters on two or four H100; a fleet
# of one's own is measured, and written down in a scenario file.
_EVEN: Final = WorkerSpec(
    worker=WorkerID("even"),
    pool=PoolID("even"),
    model=MODEL,
    timing=Timing(
        launch_fs=3_200 * _FS_PER_US,  # 20 GB of weights at 6.5 TB/s, and launches
        sequence_fs=20 * _FS_PER_US,
        context_token_fs=20_000_000,  # 128 KiB of KV cache per token at 6.5 TB/s
        prefill_token_fs=16 * _FS_PER_US,  # 16 GFLOP per token at 1 PFLOP/s
        prefill_context_fs=500_000,  # 0.5 MFLOP per pair of tokens
    ),
    slots=64,
    kv_blocks=1_600,
    block_tokens=512,
    batch_tokens_max=2_048,
    context_tokens_typical=8_192,
    kv_bytes_per_token=131_072,
    link_bytes_per_s=50_000_000_000,
    power_w=1_400,
    idle_power_w=300,
    capital_udollars_per_hour=4_000_000,
)
_LARGE: Final = WorkerSpec(
    worker=WorkerID("large"),
    pool=PoolID("large"),
    model=MODEL,
    timing=Timing(
        launch_fs=6_000 * _FS_PER_US,
        sequence_fs=25 * _FS_PER_US,
        context_token_fs=20_000_000,
        prefill_token_fs=16 * _FS_PER_US,
        prefill_context_fs=500_000,
    ),
    slots=96,
    kv_blocks=2_400,
    block_tokens=512,
    batch_tokens_max=4_096,
    context_tokens_typical=8_192,
    kv_bytes_per_token=131_072,
    link_bytes_per_s=50_000_000_000,
    power_w=1_200,
    idle_power_w=250,
    capital_udollars_per_hour=2_500_000,
)
_FAST: Final = WorkerSpec(
    worker=WorkerID("fast"),
    pool=PoolID("fast"),
    model=MODEL,
    timing=Timing(
        launch_fs=1_800 * _FS_PER_US,
        sequence_fs=30 * _FS_PER_US,
        context_token_fs=10_000_000,
        prefill_token_fs=12 * _FS_PER_US,
        prefill_context_fs=400_000,
    ),
    slots=16,
    kv_blocks=800,
    block_tokens=512,
    batch_tokens_max=2_048,
    context_tokens_typical=8_192,
    kv_bytes_per_token=131_072,
    link_bytes_per_s=50_000_000_000,
    power_w=2_800,
    idle_power_w=700,
    capital_udollars_per_hour=9_000_000,
)
KINDS: Final = {"even": _EVEN, "large": _LARGE, "fast": _FAST}
"""By name; ``worker`` and ``pool`` of each stand for themselves."""

# (TTFT ms, tokens/s/user, grace ms, patience ms, output price in dollars per 1M)
_TIERS: Final = {
    Tier.FREE: (20_000, 25, 1_000, 30_000, 0),
    Tier.MEDIUM: (10_000, 50, 600, 20_000, 3),
    Tier.HIGH: (5_000, 75, 400, 15_000, 6),
    Tier.PREMIUM: (3_000, 120, 300, 10_000, 45),
    Tier.ULTRA: (2_000, 200, 200, 10_000, 150),
}


_SOURCE: Final = (
    "Output prices: the public token-factory chart (NVIDIA GTC 2026 keynote); input at a fifth, "
    "cached input at a fiftieth; promises: assumed."
)


def twin_book() -> PriceBook:
    """The chart's five prices, with promises that the kinds of worker here can keep."""
    lines = [
        'name = "twin"',
        "effective = 2026-11-24",
        f'source = "{_SOURCE}"',
        "ad_income_udollars_per_mtok = 500_000",
    ]
    for tier, (ttft_ms, speed, grace_ms, patience_ms, _) in _TIERS.items():
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
            f"[price.{MODEL}.{tier}]",
            f"input_udollars_per_mtok = {dollars * 200_000}",
            f"cached_input_udollars_per_mtok = {dollars * 20_000}",
            f"output_udollars_per_mtok = {dollars * 1_000_000}",
        ]
    return parse_price_book("\n".join(lines) + "\n")
