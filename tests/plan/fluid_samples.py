"""Fleets, demands and a price book that are easy to work by hand."""

from __future__ import annotations

import msgspec

from tokenworks.catalogue.price_book import PriceBook, parse_price_book
from tokenworks.core.ids import ModelName
from tokenworks.core.slo import Promise, Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.perf.timing import FS_PER_S, Timing
from tokenworks.plan.fluid_inputs import Demand, WorkerClass

MODEL = ModelName("m")
MS = FS_PER_S // 1000
PROMISED = {Tier.FREE: 1, Tier.MEDIUM: 10, Tier.HIGH: 20, Tier.PREMIUM: 25, Tier.ULTRA: 50}
DOLLARS_PER_MTOK = {Tier.FREE: 0, Tier.MEDIUM: 3, Tier.HIGH: 6, Tier.PREMIUM: 45, Tier.ULTRA: 150}


def sample_book(
    *, input_share: float = 0.0, grace_ns: int = 0, ads: int = 0, credit_ppm: int = 0
) -> PriceBook:
    """The chart's output prices; input at a share of them, cached input at a tenth of that."""
    text = f"""
name = "sample"
effective = 2026-01-01
source = "for tests"
ad_income_udollars_per_mtok = {ads}
"""
    for tier in Tier:
        made = DOLLARS_PER_MTOK[tier] * 10**6
        text += f"""
[tier.{tier}]
ttft_ms = 1000
interactivity_tokens_per_s = {PROMISED[tier]}
grace_ms = 0
patience_ms = 1000
output_tokens_default = 100
credit_ppm = {credit_ppm}
[price.m.{tier}]
input_udollars_per_mtok = {int(made * input_share)}
cached_input_udollars_per_mtok = {int(made * input_share / 10)}
output_udollars_per_mtok = {made}
"""
    book = parse_price_book(text)
    promises: dict[Tier, Promise] = {
        tier: msgspec.structs.replace(promise, grace_ns=grace_ns)
        for tier, promise in book.promises.items()
    }
    return msgspec.structs.replace(book, promises=promises)


# Ten milliseconds and one more for each sequence: a batch of b makes b tokens in 10 + b ms.
PLAIN = Timing(
    launch_fs=10 * MS,
    sequence_fs=MS,
    context_token_fs=0,
    prefill_token_fs=MS,
    prefill_context_fs=0,
)


def worker(**changes: object) -> WorkerClass:
    """One worker that is up for 100 s."""
    plain = WorkerClass(
        name="plain",
        model=MODEL,
        timing=PLAIN,
        slots=10,
        kv_tokens=10**9,
        up_ns=(100 * NS_PER_S,),
    )
    return msgspec.structs.replace(plain, **changes)


def asks(tier: Tier, tokens: int, *, requests: int = 1, **changes: int) -> Demand:
    """Output without prompts."""
    plain = Demand(
        model=MODEL,
        tier=tier,
        requests=requests,
        uncached_input_tokens=0,
        cached_input_tokens=0,
        output_tokens=tokens,
        decode_tokens=tokens,
        context_tokens=0,
        held_tokens=0,
        hit_pairs=0,
        miss_pairs=0,
    )
    return msgspec.structs.replace(plain, **changes)
