"""What one accelerator reads, computes and moves in one forward pass, whatever it is.

Times are made of it in two ways: ``passes`` adds nominal times up, which calibration then scales,
and ``roofline`` takes each part at declared rates, for hardware that nobody has measured.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tokenworks.perf.architecture import Shape, distinct_experts
from tokenworks.perf.case import Layout

HEAD_BYTES: Final = 2.0
"""Per weight of the output projection, which engines keep in BF16."""
STATE_HEADS: Final = 16
"""Over which tensor parallelism splits the state of linear layers."""
EXCHANGE_BYTES: Final = 3.0
"""Per hidden element that goes to an expert or an LPU elsewhere: FP8 out, BF16 back.

Source: DeepSeek-V3, arXiv:2412.19437, section 3.2; FastAFD, Hao AI Lab,
https://haoailab.com/blogs/fastafd/, for LPUs.
"""


class Sizes(NamedTuple):
    """Bytes of each.

    Attributes:
        weight: of feed-forward blocks.
        near: weight of attention and what is around it.
        cache: element of the KV cache.
    """

    weight: float
    near: float
    cache: float


class Demand(NamedTuple):
    """Bytes and operations of one accelerator, for one pass over all layers of its stage.

    Attributes:
        near_bytes: weights of attention that are read.
        head_bytes: weights of the output projection.
        always_bytes: weights of feed-forward blocks that every batch reads.
        expert_bytes: weights of the routed experts that the batch meets.
        cache_bytes: KV cache and state.
        near_flop: on weights of attention.
        head_flop: on the output projection.
        always_flop: on feed-forward blocks that every token meets.
        expert_flop: on routed experts.
        pair_flop: of attention, on keys and values.
        reduced_bytes: of all-reduces, through its links.
        exchanged_bytes: of tokens to experts on others and back.
    """

    near_bytes: float
    head_bytes: float
    always_bytes: float
    expert_bytes: float
    cache_bytes: float
    near_flop: float
    head_flop: float
    always_flop: float
    expert_flop: float
    pair_flop: float
    reduced_bytes: float
    exchanged_bytes: float


def decode_demand(
    shape: Shape,
    layout: Layout,
    sizes: Sizes,
    batch: float,
    context: float,
    tokens_each: float = 1.0,
) -> Demand:
    """A step that makes a token for each sequence of a worker's batch.

    Args:
        shape: the model.
        layout: of the worker.
        sizes: in bytes.
        batch: sequences of the whole worker.
        context: tokens that each has in its cache.
        tokens_each: that the step computes for each: the drafted ones are verified in it.

    >>> from tokenworks.perf.examples import DEEPSEEK
    >>> step = decode_demand(DEEPSEEK, Layout(gpus=8), Sizes(1, 1, 1), 32, 1000)
    >>> round(step.expert_bytes / 1e9, 1)  # 163.3 of 256 experts x 58 layers x 44.04 MB / 8
    52.1
    >>> round(step.cache_bytes / 1e9, 3)  # 32 x 1000 x 61 x 576, whole on each GPU
    1.124
    """
    read = min(context, shape.sparse_tokens) if shape.sparse_tokens else context
    return _demand(
        shape, layout, sizes, batch * tokens_each, batch, read, shape.decode_flop_per_pair
    )


def prefill_demand(
    shape: Shape, layout: Layout, sizes: Sizes, tokens: float, pairs: float
) -> Demand:
    """One prompt.

    Args:
        shape: the model.
        layout: of the worker.
        sizes: in bytes.
        tokens: that are computed.
        pairs: tokens that each of them attends to, on the average.

    >>> from tokenworks.perf.examples import LLAMA
    >>> step = prefill_demand(LLAMA, Layout(gpus=1), Sizes(1, 1, 1), 1000, 500)
    >>> round(step.pair_flop / 1e12, 2)  # 80 layers x 4 x 64 x 128 x 1000 x 500
    1.31
    """
    return _demand(shape, layout, sizes, tokens, 1.0, pairs, shape.prefill_flop_per_pair)


def _demand(
    shape: Shape,
    layout: Layout,
    sizes: Sizes,
    tokens: float,
    sequences: float,
    pairs: float,
    flop_per_pair: float,
) -> Demand:
    """See ``decode_demand``.

    Source: 2 FLOP a weight and token; a ring all-reduce moves 2 (n - 1) / n of its data through
    each member (Thakur et al., IJHPCA 19, 2005), twice a layer (Megatron-LM, arXiv:1909.08053,
    section 3), once where feed-forward blocks have groups of their own, and in Helix parallelism
    (arXiv:2507.07120), where the exchange of tokens takes the place of the second.
    """
    tokens, sequences = tokens / layout.pp, sequences / layout.pp
    tp, stage, ep = layout.tp, layout.stage, layout.ep
    own = max(tokens / layout.dp, 1.0)
    always_bytes = shape.dense_weights * sizes.weight / stage
    always_flop = 2 * tokens * shape.dense_weights / stage
    expert_bytes = expert_flop = exchanged = 0.0
    if shape.moe_layers:
        each = shape.moe_layers * shape.expert_weights
        met = distinct_experts(shape.experts, shape.experts_active, max(tokens, 1.0))
        expert_bytes = met * each * sizes.weight / stage
        expert_flop = 2 * tokens * each * shape.experts_active / stage
        always_bytes += shape.experts_shared * each * sizes.weight / tp
        always_flop += 2 * tokens * each * shape.experts_shared / stage
        if ep > 1:
            moved = own * shape.hidden * EXCHANGE_BYTES * shape.moe_layers / tp
            exchanged = (1 - 1 / ep) * min(shape.experts_active, ep) * moved
    reduced = 0.0
    if tp > 1:
        reduced = 2 * (tp - 1) / tp * own * shape.hidden * 2 * shape.layers
        exchanges = layout.spreads_context and shape.moe_layers > 0
        reduced *= 2 if layout.dp == 1 and not exchanges else 1
    seen = shape.full_layers * pairs + shape.window_layers * min(pairs, shape.window_tokens)
    cache = shape.cache_elements * sizes.cache * seen / layout.cache_split(shape.cache_heads)
    cache += 2 * shape.linear_layers * shape.state_bytes / min(tp, STATE_HEADS)
    return Demand(
        near_bytes=shape.attention_weights * sizes.near / tp,
        head_bytes=shape.head_weights * HEAD_BYTES / tp,
        always_bytes=always_bytes,
        expert_bytes=expert_bytes,
        cache_bytes=max(sequences / layout.dp, 1.0) * cache,
        near_flop=2 * own * shape.attention_weights / tp,
        head_flop=2 * own * shape.head_weights / tp,
        always_flop=always_flop,
        expert_flop=expert_flop,
        pair_flop=own * flop_per_pair / tp * seen,
        reduced_bytes=reduced,
        exchanged_bytes=exchanged,
    )
