"""Attention on GPUs and feed-forward blocks on LPUs, or all of a model on LPUs: a decode step.

GPUs keep the KV cache and attention; LPUs hold feed-forward blocks in SRAM. Each layer's
activations go to the LPUs and come back (NVIDIA, "Inside the NVIDIA Groq 3 LPX", 2026:
attention-FFN disaggregation). LPUs can draft tokens beside it, which the step then verifies.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tokenworks.catalogue.records import Dtype
from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.architecture import BYTES, Shape
from tokenworks.perf.case import Layout
from tokenworks.perf.demand import EXCHANGE_BYTES, HEAD_BYTES, Sizes, decode_demand
from tokenworks.perf.passes import Rates
from tokenworks.perf.roofline import parts_ms

SRAM_SHARE: Final = 0.9
"""Of an LPU's SRAM that weights can take; the rest holds activations and programs."""
MICRO_BATCHES: Final = 3
"""That keep GPUs, links and LPUs busy at one time: one on each."""


class Lpus(msgspec.Struct, frozen=True, kw_only=True):
    """The LPUs of one rack, or of as many as serve one worker.

    Attributes:
        count: of them.
        rates: that one reaches.
        memory_bytes: of one.
        dtype: that they compute in.
        link_bytes_per_ms: that they reach to GPUs, one direction, of the whole.
        round_trip_ms: of a layer's activations, with the hops inside.
    """

    count: int
    rates: Rates
    memory_bytes: float
    dtype: Dtype
    link_bytes_per_ms: float
    round_trip_ms: float


def lpus_needed(shape: Shape, lpus: Lpus) -> int:
    """LPUs whose SRAM holds all feed-forward blocks.

    >>> from tokenworks.perf.examples import DEEPSEEK, H200
    >>> from tokenworks.perf.passes import rates_of
    >>> some = Lpus(count=1, rates=rates_of(H200), memory_bytes=5e8, dtype="fp8",
    ...             link_bytes_per_ms=1e9, round_trip_ms=0.002)
    >>> lpus_needed(DEEPSEEK, some)  # 657.7 GB / 0.45 GB
    1462
    """
    return -int(-shape.ffn_weights * BYTES[lpus.dtype] // (lpus.memory_bytes * SRAM_SHARE))


def crossing_bytes(shape: Shape) -> float:
    """Bytes to LPUs and back for each token.

    >>> from tokenworks.perf.examples import DEEPSEEK
    >>> crossing_bytes(DEEPSEEK)  # 3 x 7168 x 61 layers
    1311744.0
    """
    return EXCHANGE_BYTES * shape.hidden * shape.layers


def keeping_up(shape: Shape, lpus: Lpus, tokens_per_ms: float) -> float:
    """How many times these LPUs keep up with so many tokens, of large batches.

    Source: 2 FLOP a weight and token; the longer of arithmetic and the link.

    >>> from tokenworks.perf.examples import DEEPSEEK, H200
    >>> from tokenworks.perf.passes import rates_of
    >>> some = Lpus(count=1, rates=rates_of(H200), memory_bytes=5e8, dtype="fp8",
    ...             link_bytes_per_ms=1e9, round_trip_ms=0.002)
    >>> round(keeping_up(DEEPSEEK, some, 10), 3)  # 10 x 2 x 24.18e9 / 1.978e12, more than 0.013
    0.244
    """
    flop_per_ms = lpus.count * lpus.rates.flops(lpus.dtype)
    return tokens_per_ms * max(
        2 * shape.ffn_weights_active / flop_per_ms,
        crossing_bytes(shape) / lpus.link_bytes_per_ms,
    )


def lpu_ms(shape: Shape, lpus: Lpus, tokens: float, micro_batches: int) -> float:
    """Feed-forward blocks of a step on LPUs: each micro-batch reads the experts that it meets.

    Args:
        shape: the model.
        lpus: that hold its feed-forward blocks.
        tokens: of the whole step.
        micro_batches: that they come in.

    Raises:
        ConfigInvalid: they don't fit into the LPUs.
    """
    needed = lpus_needed(shape, lpus)
    if needed > lpus.count:
        raise ConfigInvalid(
            f"The feed-forward blocks do not fit into {lpus.count} LPUs.",
            hint=f"Take at least {needed} of them.",
        )
    layout = Layout(gpus=lpus.count)
    size = BYTES[lpus.dtype]
    need = decode_demand(shape, layout, Sizes(size, size, 0.0), tokens / micro_batches, 1)
    found = parts_ms(need, lpus.rates, layout, lpus.dtype, lpus.dtype)
    return micro_batches * found.ffn_ms


def step_ms(
    gpu_ms: float, lpu_ms: float, link_ms: float, latency_ms: float, micro_batches: int
) -> float:
    """A step in micro-batches that take turns on GPUs, links and LPUs.

    With one, attention, link and feed-forward blocks follow one another; with two, one's attention
    hides the other's feed-forward blocks, and with three the link too.

    Args:
        gpu_ms: of all micro-batches.
        lpu_ms: likewise.
        link_ms: likewise, without the wait for the way there and back.
        latency_ms: of that wait, in all layers of one micro-batch.
        micro_batches: 1 to 3.

    Source: FastAFD, Hao AI Lab, https://haoailab.com/blogs/fastafd/, section 3.

    >>> [step_ms(4.0, 3.0, 2.0, 1.0, count) for count in (1, 2, 3)]
    [10.0, 7.0, 4.0]
    """
    alone = (gpu_ms + lpu_ms + link_ms) / micro_batches + latency_ms
    if micro_batches == 1:
        return alone
    beside = lpu_ms + link_ms + 2 * latency_ms
    slowest = max(gpu_ms, beside) if micro_batches == 2 else max(gpu_ms, lpu_ms, link_ms)
    return max(alone, slowest)


def paced_step_ms(gpu_ms: float, link_ms: float, latency_ms: float) -> float:
    """A step in ``MICRO_BATCHES`` with LPUs that just keep up, so that they are always busy.

    See ``step_ms``, of which this is the solution for ``lpu_ms`` as long as the step itself.

    >>> paced_step_ms(4.0, 2.0, 1.0), step_ms(4.0, 4.5, 2.0, 1.0, 3)  # (4 + 2 + 3 x 1) / 2
    (4.5, 4.5)
    """
    alone = (gpu_ms + link_ms + MICRO_BATCHES * latency_ms) / (MICRO_BATCHES - 1)
    return max(gpu_ms, link_ms, alone)


def shared_ms(
    shape: Shape,
    lpus: Lpus,
    sequences: float,
    tokens_each: float,
    attention_ms: float,
    floor_ms: float,
    gpu_link_bytes_per_ms: float,
) -> float:
    """A step of GPUs with so many LPUs, in as many micro-batches as are quickest.

    Args:
        shape: the model.
        lpus: that hold its feed-forward blocks.
        sequences: that the step makes tokens for.
        tokens_each: that it computes for each.
        attention_ms: of the GPUs, for all of it.
        floor_ms: of the GPUs, for each micro-batch however small.
        gpu_link_bytes_per_ms: of all the GPUs to the LPUs, one direction.

    Raises:
        ConfigInvalid: the blocks don't fit into the LPUs.

    Source: see ``step_ms`` and ``lpu_ms``; the link is as fast as its slower end.

    >>> from tokenworks.perf.examples import DEEPSEEK, H200
    >>> from tokenworks.perf.passes import rates_of
    >>> some = Lpus(count=1462, rates=rates_of(H200), memory_bytes=5e8, dtype="fp8",
    ...             link_bytes_per_ms=1e9, round_trip_ms=0.002)
    >>> alone = lpu_ms(DEEPSEEK, some, 1, 1)
    >>> found = shared_ms(DEEPSEEK, some, 1, 1, 1.0, 0.5, 1e9)  # a sequence cannot be halved
    >>> round(found - alone, 3)  # 1.5 + 1,311,744 bytes at 1 GB/ms + 61 x 0.002
    1.623
    """
    tokens = sequences * tokens_each
    crossing = tokens * crossing_bytes(shape)
    link_ms = crossing / min(gpu_link_bytes_per_ms, lpus.link_bytes_per_ms)
    return min(
        step_ms(
            attention_ms + count * floor_ms,
            lpu_ms(shape, lpus, tokens, count),
            link_ms,
            shape.layers * lpus.round_trip_ms,
            count,
        )
        for count in range(1, min(MICRO_BATCHES, max(int(sequences), 1)) + 1)
    )


def whole_bytes(shape: Shape, dtype: Dtype) -> float:
    """What a whole model takes of SRAM: the output projection is kept in BF16.

    >>> from tokenworks.perf.examples import LLAMA
    >>> round(whole_bytes(LLAMA, "fp8") / 1e9, 1)  # 68.5 GB and 2 x 1.05 GB
    70.6
    """
    return (shape.attention_weights + shape.ffn_weights) * BYTES[
        dtype
    ] + shape.head_weights * HEAD_BYTES


def whole_ms(
    shape: Shape,
    lpus: Lpus,
    layer_latency_ms: float,
    batch: float,
    context: float,
    cache_bytes: float,
    tokens_each: float = 1.0,
) -> float:
    """A step of a whole model in SRAM: each layer has LPUs of its own, one after the other.

    As many micro-batches as there are layers are under way, so that sequences hardly slow each
    other down until each LPU has more to compute than to read; a batch gains nothing beyond it.

    Args:
        shape: the model.
        lpus: that hold it; each layer has as many as there are for it.
        layer_latency_ms: of the exchanges in a layer, however small the batch.
        batch: sequences of the whole.
        context: tokens that each has in its cache.
        cache_bytes: per element of the cache, which is in SRAM, too.
        tokens_each: that the step computes for each.

    Source: the roofline model (Williams et al., CACM 52(4), 2009), for each part by itself.
    """
    layout = Layout(gpus=lpus.count, pp=min(shape.layers, lpus.count), spreads_context=True)
    size = BYTES[lpus.dtype]
    need = decode_demand(shape, layout, Sizes(size, size, cache_bytes), batch, context, tokens_each)
    found = parts_ms(need, lpus.rates, layout, lpus.dtype, lpus.dtype)
    return found.attention_ms + found.ffn_ms + shape.layers * layer_latency_ms
