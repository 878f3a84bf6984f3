"""Attention on GPUs and experts on LPUs: one decode step that two kinds of hardware share.

GPUs keep the KV cache and attention; LPUs hold the experts in SRAM. Each layer's activations go to
the LPUs and come back (NVIDIA, "Inside the NVIDIA Groq 3 LPX", 2026: attention-FFN
disaggregation). LPUs can draft tokens beside it, which the step then verifies.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tokenworks.catalogue.records import Dtype
from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.architecture import BYTES, Shape, distinct_experts
from tokenworks.perf.case import Layout
from tokenworks.perf.passes import Pass, Rates, decode_pass

LINK_BYTES: Final = 3.0
"""Per hidden element, token and layer: FP8 out, BF16 back (FastAFD, Hao AI Lab, 2026)."""
SRAM_SHARE: Final = 0.9
"""Of an LPU's SRAM that experts can take; the rest holds activations and programs."""


class Lpus(msgspec.Struct, frozen=True, kw_only=True):
    """The LPUs that serve one worker.

    Attributes:
        count: of them.
        rates: of one.
        memory_bytes: of one.
        dtype: that they compute in.
        link_bytes_per_ms: between GPUs and LPUs, one direction, of the whole.
        link_latency_ms: of one crossing, with the hops inside.
        share: of nominal rates that a real step reaches.
    """

    count: int
    rates: Rates
    memory_bytes: float
    dtype: Dtype
    link_bytes_per_ms: float
    link_latency_ms: float
    share: float = 0.5


class SplitStep(msgspec.Struct, frozen=True, kw_only=True):
    """One decode step over both, in milliseconds.

    Attributes:
        gpu_ms: attention and what else stays there.
        lpu_ms: experts.
        link_ms: activations, both ways.
        step_ms: of the whole, with as much at one time as micro-batches allow.
    """

    gpu_ms: float
    lpu_ms: float
    link_ms: float
    step_ms: float


def lpus_needed(shape: Shape, lpus: Lpus) -> int:
    """LPUs whose SRAM holds all routed experts.

    >>> from tokenworks.perf.examples import DEEPSEEK, H200
    >>> from tokenworks.perf.passes import rates_of
    >>> some = Lpus(count=1, rates=rates_of(H200), memory_bytes=5e8, dtype="fp8",
    ...             link_bytes_per_ms=1e9, link_latency_ms=0.001)
    >>> lpus_needed(DEEPSEEK, some)  # 653.9 GB / 0.45 GB
    1454
    """
    held = shape.moe_layers * shape.experts * shape.expert_weights * BYTES[lpus.dtype]
    return -int(-held // (lpus.memory_bytes * SRAM_SHARE))


def split_step(
    shape: Shape,
    rates: Rates,
    layout: Layout,
    dtype: Dtype,
    cache_bytes: float,
    batch: float,
    context: float,
    lpus: Lpus,
    *,
    factors: Pass | None = None,
    tokens_each: float = 1.0,
    micro_batches: int = 2,
) -> SplitStep:
    """A step of a worker whose experts are on LPUs.

    With one micro-batch, attention, link and experts follow one another; with two, one's attention
    hides the other's experts, and with three the link too (FastAFD, section 3).

    Args:
        shape: a mixture of experts.
        rates: of the GPU.
        layout: of the GPUs.
        dtype: of the weights on GPUs.
        cache_bytes: per element.
        batch: sequences of the worker.
        context: tokens in each one's cache.
        lpus: that hold the experts.
        factors: that the GPU's nominal times are multiplied by; None takes them as they are.
        tokens_each: verified in a step for each sequence.
        micro_batches: 1 to 3.

    Raises:
        ConfigInvalid: the model has no experts, or they don't fit into the LPUs.
    """
    _check_held(shape, lpus)
    step = decode_pass(
        shape, rates, layout, dtype, cache_bytes, batch, context, tokens_each=tokens_each
    )
    tokens = batch * tokens_each
    active = 2 * tokens * shape.moe_layers * shape.expert_weights * shape.experts_active
    routed = active / layout.stage / rates.flops(dtype)
    stays = step._replace(experts=0.0, dispatch=0.0, matrix=max(step.matrix - routed, 0.0))
    parts = stays if factors is None else [a * b for a, b in zip(stays, factors, strict=True)]
    gpu = sum(parts)
    lpu = _experts_ms(shape, lpus, tokens, micro_batches)
    moved = tokens * shape.hidden * LINK_BYTES * shape.moe_layers / lpus.link_bytes_per_ms
    link = moved + micro_batches * 2 * shape.moe_layers * lpus.link_latency_ms
    # What one micro-batch does itself follows one another; others hide behind the slowest part.
    alone = (gpu + lpu + link) / micro_batches
    slowest = max(gpu, lpu, link) if micro_batches > 2 else max(gpu, lpu + link)
    whole = alone if micro_batches == 1 else max(alone, slowest)
    return SplitStep(gpu_ms=gpu, lpu_ms=lpu, link_ms=link, step_ms=whole)


def _check_held(shape: Shape, lpus: Lpus) -> None:
    if not shape.moe_layers:
        raise ConfigInvalid(
            "A model without experts has no part that LPUs could take over.",
            hint="Let LPUs draft for it instead: --draft-tokens.",
        )
    needed = lpus_needed(shape, lpus)
    if needed > lpus.count:
        raise ConfigInvalid(
            f"The experts do not fit into {lpus.count} LPUs.",
            hint=f"Take at least {needed} of them.",
        )


def _experts_ms(shape: Shape, lpus: Lpus, tokens: float, micro_batches: int) -> float:
    """Experts on LPUs: each micro-batch reads those that it meets."""
    part = tokens / micro_batches
    each = shape.moe_layers * shape.expert_weights
    met = distinct_experts(shape.experts, shape.experts_active, max(part, 1.0))
    read = met * each * BYTES[lpus.dtype] / lpus.count / lpus.rates.bandwidth
    work = 2 * part * each * shape.experts_active / lpus.count / lpus.rates.flops(lpus.dtype)
    return micro_batches * max(read, work) / lpus.share
