"""What a model's architecture costs: bytes of weights and cache, and operations per token."""

from __future__ import annotations

from typing import Final

import msgspec

from tokenworks.catalogue.records import Dtype, Model

BYTES: Final[dict[Dtype, float]] = {"bf16": 2.0, "fp8": 1.0, "fp4": 0.5625, "int4": 0.53125}
"""Per weight, with its scales: one FP8 scale per 16 FP4 weights, one BF16 scale per 64 INT4 ones.

Source: NVFP4 as NVIDIA's Transformer Engine documents it (blocks of 16); group sizes of AWQ and
of Kimi K2's INT4 checkpoints are 32 to 128.
"""
STATE_BYTES: Final = 4.0
"""Per element of a linear layer's state, which engines keep in FP32."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A model's sizes in weights, cache elements and operations; per layer where it says so.

    Attributes:
        key: alike for models that differ in nothing which takes time.
        layers: in all.
        full_layers: that read the whole context.
        window_layers: that read ``window_tokens``.
        window_tokens: that these read.
        sparse_tokens: that decoding reads of a longer context; 0 where it reads all.
        linear_layers: with a state instead of a cache.
        state_bytes: of that, per layer and sequence.
        hidden: width.
        attention_weights: of all layers.
        head_weights: of the output projection; the embedding is as large.
        dense_weights: of all dense feed-forward layers.
        moe_layers: with experts.
        experts: routed, per layer.
        experts_active: of them, per token.
        experts_shared: beside them.
        expert_weights: of one.
        cache_heads: over which tensor parallelism can split the cache.
        cache_elements: per token and full layer.
        decode_flop_per_pair: of attention, per layer, token and token of context.
        prefill_flop_per_pair: likewise; MLA computes keys and values anew.
        mtp_layers: that draft tokens.
        attention_bytes: per weight of attention where experts have four bits.
    """

    key: str
    layers: int
    full_layers: int
    window_layers: int
    window_tokens: int
    sparse_tokens: int
    linear_layers: int
    state_bytes: float
    hidden: int
    attention_weights: float
    head_weights: float
    dense_weights: float
    moe_layers: int
    experts: int
    experts_active: int
    experts_shared: int
    expert_weights: float
    cache_heads: int
    cache_elements: int
    decode_flop_per_pair: float
    prefill_flop_per_pair: float
    mtp_layers: int
    attention_bytes: float

    @property
    def weights(self) -> float:
        """All of them, embedding and output projection included."""
        experts = self.moe_layers * self.expert_weights * (self.experts + self.experts_shared)
        return self.attention_weights + self.dense_weights + experts + 2 * self.head_weights

    @property
    def ffn_weights(self) -> float:
        """Those of feed-forward blocks."""
        return self.weights - self.attention_weights - 2 * self.head_weights

    @property
    def ffn_weights_active(self) -> float:
        """Of these, those that one token meets."""
        met = self.experts_active + self.experts_shared
        return self.dense_weights + self.moe_layers * self.expert_weights * met

    @property
    def active_weights(self) -> float:
        """Those that one token meets, without the embedding."""
        return self.attention_weights + self.ffn_weights_active + self.head_weights

    def cache_bytes(self, tokens: float, bytes_per_element: float) -> float:
        """KV cache and state of a sequence with so many tokens, not yet split over accelerators.

        Source: two vectors (keys and values) per head for grouped queries; for MLA one latent and
        one rotary vector per token (DeepSeek-V2, arXiv:2405.04434, section 2.1.3).

        >>> from tokenworks.perf.examples import DEEPSEEK
        >>> DEEPSEEK.cache_bytes(1000, 1)  # 61 layers x (512 + 64) x 1000
        35136000.0
        """
        near = self.window_layers * min(tokens, self.window_tokens)
        elements = self.cache_elements * (self.full_layers * tokens + near)
        return elements * bytes_per_element + self.linear_layers * self.state_bytes


def shape_of(model: Model) -> Shape:
    """A model's sizes.

    Source: the models' own configuration files; the sums are those of a transformer with gated
    feed-forward blocks (three matrices), as in Llama 3 (arXiv:2407.21783, section 3.2).

    >>> from tokenworks.perf.examples import LLAMA, DEEPSEEK
    >>> round(LLAMA.weights / 1e9, 1), round(DEEPSEEK.weights / 1e9), LLAMA.key
    (70.6, 671, 'gqa-80x8192-64.8')
    """
    if model.attention == "mla":
        attention, cache, decode, prefill = _latent(model)
    else:
        width = model.head_dim * (2 * model.heads + 2 * model.kv_heads)
        attention = float(model.hidden * width)
        cache = 2 * model.kv_heads * model.head_dim
        decode = prefill = 4.0 * model.heads * model.head_dim
    keys = model.linear_key_heads * model.linear_head_dim
    values = model.linear_value_heads * model.linear_head_dim
    linear = model.hidden * (2 * keys + 3 * values)
    moe = model.layers - model.dense_layers if model.experts else 0
    key = f"{model.attention}-{model.layers}x{model.hidden}-{model.heads}"
    key += f"-{model.experts}x{model.moe_intermediate}" if moe else f".{model.kv_heads}"
    return Shape(
        key=key,
        layers=model.layers,
        full_layers=model.layers - model.linear_layers - model.window_layers,
        window_layers=model.window_layers,
        window_tokens=model.window_tokens,
        sparse_tokens=model.sparse_tokens,
        linear_layers=model.linear_layers,
        state_bytes=values * model.linear_head_dim * STATE_BYTES,
        hidden=model.hidden,
        attention_weights=(model.layers - model.linear_layers) * attention
        + model.linear_layers * linear,
        head_weights=float(model.hidden * model.vocab),
        dense_weights=3.0 * model.hidden * model.intermediate * (model.layers - moe),
        moe_layers=moe,
        experts=model.experts,
        experts_active=model.experts_active,
        experts_shared=model.experts_shared,
        expert_weights=3.0 * model.hidden * model.moe_intermediate,
        cache_heads=1 if model.attention == "mla" else model.kv_heads,
        cache_elements=cache,
        decode_flop_per_pair=decode,
        prefill_flop_per_pair=prefill,
        mtp_layers=model.mtp_layers,
        attention_bytes=_attention_bytes(model),
    )


def _attention_bytes(model: Model) -> float:
    """Four-bit checkpoints of mixtures quantise experts; attention stays as it was published."""
    if not model.experts:
        return 0.0
    return 1.0 if model.checkpoint == "fp8" else 2.0


def _latent(model: Model) -> tuple[float, int, float, float]:
    """Weights, cache elements and operations per pair of MLA.

    Decoding multiplies queries into the latent space and reads that (DeepSeek-V2, section 2.1.2,
    "absorbed"); prefilling computes keys and values of each head.
    """
    latent = model.kv_lora_rank + model.qk_rope_head_dim
    query = model.qk_nope_head_dim + model.qk_rope_head_dim
    weights = (
        model.hidden * (model.q_lora_rank + latent)
        + model.q_lora_rank * model.heads * query
        + model.kv_lora_rank * model.heads * (model.qk_nope_head_dim + model.v_head_dim)
        + model.heads * model.v_head_dim * model.hidden
    )
    decode = 2.0 * model.heads * (latent + model.kv_lora_rank)
    prefill = 2.0 * model.heads * (query + model.v_head_dim)
    return float(weights), latent, decode, prefill


def distinct_experts(experts: int, active: int, tokens: float) -> float:
    """How many of a layer's experts a batch of tokens meets, on the average.

    Source: each token picks ``active`` of them; one is missed by all with (1 - active/experts)^n,
    for routing that is even, as aux-loss balanced routers aim at (DeepSeek-V3, arXiv:2412.19437,
    section 2.1.2).

    >>> distinct_experts(256, 8, 1), round(distinct_experts(256, 8, 32), 1)
    (8.0, 163.3)
    """
    return float(experts * (1 - (1 - active / experts) ** tokens))
