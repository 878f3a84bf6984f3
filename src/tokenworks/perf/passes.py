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
from tokenworks.perf.architecture import BYTES, Shape, distinct_experts
from tokenworks.perf.case import Layout, attention_weight_bytes

HOP_MS: Final = 2e-3
"""Nominal latency of a collective's step: an NCCL all-reduce of few bytes takes 5 to 20 us on
eight GPUs, that is about 2 us for each of its log2(n) steps and directions."""
LAUNCH_MS: Final = 1e-3
"""Nominal time of a layer that has nothing to do; fitted factors say how many times that it is."""
SEQUENCE_MS: Final = 1e-2
"""Nominal time of sampling and bookkeeping for a sequence."""
STATE_HEADS: Final = 16
"""Over which tensor parallelism splits the state of linear layers."""


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
    read = min(context, shape.sparse_tokens) if shape.sparse_tokens else context
    tokens = batch * tokens_each
    return _pass(
        shape, rates, layout, dtype, cache_bytes, tokens, batch, read, shape.decode_flop_per_pair
    )


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
    pairs = context - tokens / 2
    return _pass(
        shape, rates, layout, dtype, cache_bytes, tokens, 1.0, pairs, shape.prefill_flop_per_pair
    )


def _pass(
    shape: Shape,
    rates: Rates,
    layout: Layout,
    dtype: Dtype,
    cache_bytes: float,
    tokens: float,
    sequences: float,
    pairs: float,
    flop_per_pair: float,
) -> Pass:
    tokens, sequences = tokens / layout.pp, sequences / layout.pp
    tp, stage, dp = layout.tp, layout.stage, layout.dp
    weight, near = BYTES[dtype], attention_weight_bytes(shape, dtype)
    peak = rates.flops(dtype)
    near_peak = rates.bf16 if near == 2 else rates.fp8 if near == 1 else peak
    own = max(tokens / dp, 1.0)
    always = shape.attention_weights * near / tp + shape.dense_weights * weight / stage
    always += shape.head_weights * 2 / tp
    experts = routed = 0.0
    if shape.moe_layers:
        each = shape.moe_layers * shape.expert_weights
        met = distinct_experts(shape.experts, shape.experts_active, max(tokens, 1.0))
        experts = met * each * weight / stage
        always += shape.experts_shared * each * weight / tp
        routed = 2 * tokens * each * (shape.experts_active + shape.experts_shared) / stage / peak
    near_pairs = shape.window_layers * min(pairs, shape.window_tokens)
    seen = shape.full_layers * pairs + near_pairs
    each_reads = shape.cache_elements * cache_bytes * seen / min(tp, shape.cache_heads)
    each_reads += 2 * shape.linear_layers * shape.state_bytes / min(tp, STATE_HEADS)
    matrix = 2 * own * shape.attention_weights / tp / near_peak
    matrix += 2 * tokens * shape.dense_weights / stage / peak + routed
    traffic, reduce, dispatch = _exchange(shape, rates, layout, own)
    return Pass(
        weights=always / rates.bandwidth,
        experts=experts / rates.bandwidth,
        cache=max(sequences / dp, 1.0) * each_reads / rates.bandwidth,
        matrix=matrix,
        attention=own * flop_per_pair / tp * seen / rates.bf16,
        traffic=traffic,
        reduce=reduce,
        dispatch=dispatch,
        layers=shape.layers * LAUNCH_MS,
        moe_layers=shape.moe_layers * LAUNCH_MS,
        linear_layers=shape.linear_layers * LAUNCH_MS,
        once=1.0,
        sequences=max(sequences / dp, 1.0) * SEQUENCE_MS,
    )


def _exchange(shape: Shape, rates: Rates, layout: Layout, own: float) -> tuple[float, float, float]:
    """Times of traffic, of all-reduces' and of exchanges' latencies.

    Source: a ring all-reduce moves 2 (n - 1) / n of its data through each member (Thakur et al.,
    IJHPCA 19, 2005), twice a layer (Megatron-LM, arXiv:1909.08053, section 3); latency grows with
    log2(n). Experts get a token's FP8 activations and send BF16 back: 3 bytes per element and
    expert on another accelerator (DeepSeek-V3, arXiv:2412.19437, section 3.2).
    """
    stage, tp, ep = layout.stage, layout.tp, layout.ep
    beyond = stage > rates.domain
    moved = 0.0
    if tp > 1:
        moved = 2 * (tp - 1) / tp * own * shape.hidden * 2 * shape.layers
        moved *= 2 if layout.dp == 1 else 1
    steps = math.log2(stage) if stage > 1 else 0.0
    dispatch = shape.layers * HOP_MS if beyond else 0.0
    dispatch += (layout.pp - 1) * 2 * HOP_MS
    if shape.moe_layers and ep > 1:
        copies = min(shape.experts_active, ep)
        moved += (1 - 1 / ep) * own * shape.hidden * 3 * copies * shape.moe_layers / tp
        dispatch += shape.moe_layers * HOP_MS * math.log2(ep)
    traffic = moved / rates.link
    if beyond:
        traffic += moved / rates.domain / rates.scaleout
    return traffic, shape.layers * steps * 2 * HOP_MS, dispatch


def bound_ms(step: Pass) -> float:
    """What no engine can beat: memory and arithmetic at nominal rates, perfectly overlapped.

    Source: the roofline model (Williams et al., CACM 52(4), 2009).

    >>> bound_ms(Pass(1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0, 0, 0))
    9
    """
    return max(step.weights + step.experts + step.cache, step.matrix + step.attention)
