"""One forward pass as a sum of times at a device's nominal rates: what calibration then scales.

Times add up instead of overlapping: the factors that are fitted take up what overlaps, and a sum
of terms that each grow with the load and shrink with the hardware keeps the laws that hold in
truth: more bandwidth is never slower, more batch is never faster.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import msgspec

from tokenworks.catalogue.records import Accelerator, Dtype
from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.architecture import BYTES, Shape
from tokenworks.perf.case import Layout, attention_weight_bytes
from tokenworks.perf.demand import Demand, Sizes, decode_demand, prefill_demand

HOP_MS: Final = 2e-3
"""Nominal latency of a collective's step: an NCCL all-reduce of few bytes takes 5 to 20 us on
eight GPUs, that is about 2 us for each of its log2(n) steps and directions."""
LAUNCH_MS: Final = 1e-3
"""Nominal time of a layer that has nothing to do; fitted factors say how many times that it is."""
SEQUENCE_MS: Final = 1e-2
"""Nominal time of sampling and bookkeeping for a sequence."""


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """A device's nominal rates, per millisecond.

    Attributes:
        bandwidth: bytes of memory.
        bf16: operations.
        fp8: likewise.
        fp4: likewise; those of BF16 where the device has no FP4 and weights are expanded.
        link: bytes to others of its scale-up domain, one direction.
        scaleout: bytes to those beyond it.
        domain: accelerators of the scale-up domain.
    """

    bandwidth: float
    bf16: float
    fp8: float
    fp4: float
    link: float
    scaleout: float
    domain: int

    def flops(self, dtype: Dtype) -> float:
        """Operations for weights of a type; INT4 weights are expanded to BF16."""
        return {"bf16": self.bf16, "fp8": self.fp8, "fp4": self.fp4, "int4": self.bf16}[dtype]


def has_rates(device: Accelerator) -> bool:
    """Whether enough is known of a device for ``rates_of``."""
    fp8 = device.fp8_flop_per_s or device.bf16_flop_per_s
    return bool(device.memory_bytes and device.memory_bandwidth_bytes_per_s and fp8)


def rates_of(device: Accelerator) -> Rates:
    """A device's rates.

    Raises:
        ConfigInvalid: nothing is known of its memory or its speed.
    """
    memory, bandwidth = device.memory_bytes, device.memory_bandwidth_bytes_per_s
    fp8 = device.fp8_flop_per_s or device.bf16_flop_per_s
    if not memory or not bandwidth or not fp8:
        raise ConfigInvalid(
            f"The catalogue knows too little of {device.name!r} to predict its speed.",
            hint="Give memory_bytes, memory_bandwidth_bytes_per_s and fp8_flop_per_s in a record.",
        )
    bf16 = device.bf16_flop_per_s or fp8 / 2
    link = (device.scaleup_bandwidth_bytes_per_s or 1e11) / 2
    return Rates(
        bandwidth=bandwidth / 1e3,
        bf16=bf16 / 1e3,
        fp8=fp8 / 1e3,
        fp4=(device.fp4_flop_per_s or bf16) / 1e3,
        link=link / 1e3,
        scaleout=(device.scaleout_bandwidth_bytes_per_s or 5e10) / 1e3,
        domain=device.scaleup_domain or 1,
    )


class Pass(NamedTuple):
    """Nominal times of one forward pass, in milliseconds.

    Attributes:
        weights: reading those that every batch reads.
        experts: reading the experts that the batch meets.
        cache: reading KV cache and state.
        matrix: multiplying weights.
        attention: multiplying keys and values.
        traffic: moving activations between accelerators.
        reduce: latency of all-reduces.
        dispatch: latency of exchanging tokens between experts, and of leaving the domain.
        layers: launching layers.
        moe_layers: likewise, those with experts.
        linear_layers: likewise, those with a state.
        once: per pass.
        sequences: sampling.
    """

    weights: float
    experts: float
    cache: float
    matrix: float
    attention: float
    traffic: float
    reduce: float
    dispatch: float
    layers: float
    moe_layers: float
    linear_layers: float
    once: float
    sequences: float


def decode_pass(
    shape: Shape,
    rates: Rates,
    layout: Layout,
    dtype: Dtype,
    cache_bytes: float,
    batch: float,
    context: float,
    tokens_each: float = 1.0,
) -> Pass:
    """One step that makes a token for each sequence of a worker's batch.

    Args:
        shape: the model.
        rates: of the device.
        layout: of the worker.
        dtype: of weights.
        cache_bytes: per element of the cache.
        batch: sequences of the whole worker.
        context: tokens that each has in its cache.
        tokens_each: that the step computes for each: the drafted ones are verified in it.

    Source: roofline terms as in "LLM Inference Unveiled" (arXiv:2402.16363): bytes over bandwidth,
    operations over peak, and latency terms of section ``collectives``.

    >>> from tokenworks.perf.examples import H200, LLAMA
    >>> step = decode_pass(LLAMA, rates_of(H200), Layout(gpus=1), "fp8", 1, 1, 1000)
    >>> round(step.weights, 2)  # (80 layers' 68.5 GB + 2 x 1.05 GB of BF16 head) / 4.8 TB/s
    14.7
    >>> round(step.cache * 1e3)  # 163,840 bytes x 1000 / 4.8 TB/s, in us
    34
    """
    sizes = Sizes(BYTES[dtype], attention_weight_bytes(shape, dtype), cache_bytes)
    need = decode_demand(shape, layout, sizes, batch, context, tokens_each)
    return _timed(need, shape, rates, layout, dtype, batch)


def prefill_pass(
    shape: Shape,
    rates: Rates,
    layout: Layout,
    dtype: Dtype,
    cache_bytes: float,
    tokens: float,
    context: float,
) -> Pass:
    """Prefilling one prompt: each of its tokens attends to half the others on the average.

    Args:
        shape: the model.
        rates: of the device.
        layout: of the worker.
        dtype: of weights.
        cache_bytes: per element of the cache.
        tokens: that are computed.
        context: of the prompt with what the prefix cache holds.

    >>> from tokenworks.perf.examples import H200, LLAMA
    >>> step = prefill_pass(LLAMA, rates_of(H200), Layout(gpus=1), "fp8", 1, 1000, 1000)
    >>> round(step.matrix, 1)  # 2 x 68.5e9 x 1000 / 1.978 PF/s, in ms
    69.2
    """
    sizes = Sizes(BYTES[dtype], attention_weight_bytes(shape, dtype), cache_bytes)
    need = prefill_demand(shape, layout, sizes, tokens, context - tokens / 2)
    return _timed(need, shape, rates, layout, dtype, 1.0)


def _timed(
    need: Demand, shape: Shape, rates: Rates, layout: Layout, dtype: Dtype, sequences: float
) -> Pass:
    near, peak = attention_weight_bytes(shape, dtype), rates.flops(dtype)
    near_peak = rates.bf16 if near == 2 else rates.fp8 if near == 1 else peak
    reduce, dispatch = _latencies(shape, rates, layout)
    return Pass(
        weights=(need.near_bytes + need.always_bytes + need.head_bytes) / rates.bandwidth,
        experts=need.expert_bytes / rates.bandwidth,
        cache=need.cache_bytes / rates.bandwidth,
        matrix=need.near_flop / near_peak + (need.always_flop + need.expert_flop) / peak,
        attention=need.pair_flop / rates.bf16,
        traffic=moved_ms(need.reduced_bytes + need.exchanged_bytes, rates, layout),
        reduce=reduce,
        dispatch=dispatch,
        layers=shape.layers * LAUNCH_MS,
        moe_layers=shape.moe_layers * LAUNCH_MS,
        linear_layers=shape.linear_layers * LAUNCH_MS,
        once=1.0,
        sequences=max(sequences / layout.pp / layout.dp, 1.0) * SEQUENCE_MS,
    )


def moved_ms(moved_bytes: float, rates: Rates, layout: Layout) -> float:
    """Moving activations between a worker's accelerators, also beyond their scale-up domain.

    >>> from tokenworks.perf.examples import H200
    >>> moved_ms(4.5e8, rates_of(H200), Layout(gpus=8))  # at 450 GB/s
    1.0
    """
    traffic = moved_bytes / rates.link
    if layout.stage > rates.domain:
        traffic += moved_bytes / rates.domain / rates.scaleout
    return traffic


def _latencies(shape: Shape, rates: Rates, layout: Layout) -> tuple[float, float]:
    """Of all-reduces and of exchanges: they grow with log2 of those that take part."""
    stage = layout.stage
    steps = math.log2(stage) if stage > 1 else 0.0
    dispatch = shape.layers * HOP_MS if stage > rates.domain else 0.0
    dispatch += (layout.pp - 1) * 2 * HOP_MS
    if shape.moe_layers and layout.ep > 1:
        dispatch += shape.moe_layers * HOP_MS * math.log2(layout.ep)
    return shape.layers * steps * 2 * HOP_MS, dispatch


def bound_ms(step: Pass) -> float:
    """What no engine can beat: memory and arithmetic at nominal rates, perfectly overlapped.

    Source: the roofline model (Williams et al., CACM 52(4), 2009).

    >>> bound_ms(Pass(1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0, 0, 0))
    9
    """
    return max(step.weights + step.experts + step.cache, step.matrix + step.attention)
