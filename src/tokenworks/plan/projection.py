"""What decoding takes on hardware that nobody has measured: rooflines, and a floor per layer.

A decode step reads weights and KV cache and computes on them; each part takes the longer of the
two, at a share of the hardware's peaks. Launches and small collectives add a floor per layer. What
software reaches is a ``Projection`` of the catalogue; measured engines are ``perf``'s business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from tokenworks.catalogue.records import Accelerator, Model, Projection, System
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.errors import ConfigInvalid

BYTES_PER_WEIGHT: Final = {"bf16": 2.0, "fp8": 1.0, "fp4": 0.5625, "int4": 0.53}
"""With their scales: NVFP4 has one byte for 16 weights, INT4 one of 16 bits for 128 and more."""

LINK_BYTES_PER_VALUE: Final = 3
"""Out in FP8 and back in BF16, for each hidden value, MoE layer and token.

Source: FastAFD, Hao AI Lab, https://haoailab.com/blogs/fastafd/.
"""

BATCHES: Final = 64
BATCH_PER_GROUP_MAX: Final = 4096


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is to a roofline; counts over all layers unless they say otherwise.

    Attributes:
        layers: of the model.
        moe_layers: of them.
        hidden: width.
        attention_weights: of projections around attention, and of linear attention.
        dense_weights: of dense feed-forward blocks.
        shared_weights: of experts that every token takes.
        expert_weights: of all routed experts.
        experts: in each MoE layer.
        experts_active: per token.
        head_weights: that make tokens of the last layer's output.
        kv_values: per token of context.
        kv_values_fixed: per sequence, whatever its context.
        decode_flop_per_pair: of attention, for a new token and one of its context.
        prefill_flop_per_pair: likewise.
        context_tokens_max: that attention reads of a cache; infinite where it reads all.
    """

    layers: int
    moe_layers: int
    hidden: int
    attention_weights: float
    dense_weights: float
    shared_weights: float
    expert_weights: float
    experts: int
    experts_active: int
    head_weights: float
    kv_values: float
    kv_values_fixed: float
    decode_flop_per_pair: float
    prefill_flop_per_pair: float
    context_tokens_max: float

    @property
    def ffn_weights_active(self) -> float:
        """Of feed-forward blocks, per token."""
        routed = self.expert_weights * self.experts_active / max(1, self.experts)
        return self.dense_weights + self.shared_weights + routed

    @property
    def ffn_weights(self) -> float:
        """Of feed-forward blocks."""
        return self.dense_weights + self.shared_weights + self.expert_weights

    @property
    def weights_active(self) -> float:
        """Per token, embeddings left out."""
        return self.attention_weights + self.ffn_weights_active + self.head_weights


def shape_of(model: Model) -> Shape:
    """A model's shape.

    Source: DeepSeek-V2, section 2.1, for latent attention, whose decode absorbs the projections of
    keys and values; Vaswani et al. 2017 for the rest. The unit is weights and values, not bytes.
    """
    full = model.layers - model.linear_layers - model.window_layers
    if model.attention == "mla":
        latent = model.kv_lora_rank + model.qk_rope_head_dim
        q_dim = model.qk_nope_head_dim + model.qk_rope_head_dim
        attention = (
            model.hidden * model.q_lora_rank
            + model.q_lora_rank * model.heads * q_dim
            + model.hidden * latent
            + model.kv_lora_rank * model.heads * (model.qk_nope_head_dim + model.v_head_dim)
            + model.heads * model.v_head_dim * model.hidden
        )
        kv_values = float(latent)
        decode = 2 * model.heads * (latent + model.kv_lora_rank)
        prefill = 2 * model.heads * (q_dim + model.v_head_dim)
    else:
        attention = 2 * model.hidden * model.head_dim * (model.heads + model.kv_heads)
        kv_values = 2.0 * model.kv_heads * model.head_dim
        decode = prefill = 4 * model.heads * model.head_dim
    linear = model.hidden * model.linear_head_dim
    linear *= 2 * model.linear_key_heads + 3 * model.linear_value_heads
    state = model.linear_value_heads * model.linear_head_dim**2 * 4  # in FP32: 4 bytes a value
    moe_layers = model.layers - model.dense_layers if model.experts else 0
    expert = 3 * model.hidden * model.moe_intermediate
    return Shape(
        layers=model.layers,
        moe_layers=moe_layers,
        hidden=model.hidden,
        attention_weights=(model.layers - model.linear_layers) * attention
        + model.linear_layers * linear,
        dense_weights=model.dense_layers * 3.0 * model.hidden * model.intermediate,
        shared_weights=moe_layers * float(model.experts_shared * expert),
        expert_weights=moe_layers * float(model.experts * expert),
        experts=model.experts,
        experts_active=model.experts_active,
        head_weights=float(model.hidden * model.vocab),
        kv_values=full * kv_values,
        kv_values_fixed=model.window_layers * model.window_tokens * kv_values
        + model.linear_layers * state,
        decode_flop_per_pair=float(full * decode),
        prefill_flop_per_pair=float(full * prefill),
        context_tokens_max=model.sparse_tokens or math.inf,
    )


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """GPUs, and LPUs beside them, at the speed that software reaches.

    Attributes:
        name: of its systems.
        domain: GPUs that scale-up links connect.
        gpus: in a system.
        gpu_power_w: all in.
        memory_bytes: of a GPU, for weights and KV blocks.
        bandwidth_bytes_per_s: of it.
        flop_per_s: for weights of feed-forward blocks.
        attention_flop_per_s: for attention and what is around it.
        weight_bytes: of a weight of feed-forward blocks.
        scaleup_bytes_per_s: one direction.
        scaleout_bytes_per_s: likewise.
        layer_latency_s: each step, per layer.
        lpu_flop_per_s: of a rack of LPUs; 0 where there are none.
        lpu_link_bytes_per_s: likewise.
        lpu_link_latency_s: there and back.
        lpu_memory_bytes: of a rack.
        lpu_power_w: of a rack, all in.
    """

    name: str
    domain: int
    gpus: int
    gpu_power_w: float
    memory_bytes: float
    bandwidth_bytes_per_s: float
    flop_per_s: float
    attention_flop_per_s: float
    weight_bytes: float
    scaleup_bytes_per_s: float
    scaleout_bytes_per_s: float
    layer_latency_s: float
    lpu_flop_per_s: float = 0.0
    lpu_link_bytes_per_s: float = 0.0
    lpu_link_latency_s: float = 0.0
    lpu_memory_bytes: float = 0.0
    lpu_power_w: float = 0.0


def machine_of(catalogue: Catalogue, systems: str, projection: Projection) -> Machine:
    """A machine by the names of its systems: ``vr-nvl72``, or with LPUs ``vr-nvl72+lpx``.

    Raises:
        ConfigInvalid: a system is unknown, has no GPUs, or lacks a number.
    """
    first, _, second = systems.partition("+")
    system = catalogue.system(first)
    if not system.accelerator:
        raise ConfigInvalid(
            f"{first!r} has no GPUs, so nothing can be decoded on it alone.",
            hint="Pair LPUs with a system of GPUs, as in vr-nvl72+lpx.",
        )
    gpu = catalogue.accelerator(system.accelerator)
    share = projection.peak_share
    flop_share = projection.flop_share or share
    fp8 = gpu.fp8_flop_per_s or gpu.bf16_flop_per_s
    machine = Machine(
        name=systems,
        domain=system.domain or system.accelerators,
        gpus=system.accelerators,
        gpu_power_w=_known(system, "all_in_power_w") / system.accelerators,
        memory_bytes=_known(gpu, "memory_bytes") * projection.memory_share,
        bandwidth_bytes_per_s=_known(gpu, "memory_bandwidth_bytes_per_s") * share,
        flop_per_s=(gpu.fp4_flop_per_s or fp8 or _known(gpu, "fp8_flop_per_s")) * flop_share,
        attention_flop_per_s=(fp8 or _known(gpu, "fp8_flop_per_s")) * flop_share,
        weight_bytes=BYTES_PER_WEIGHT["fp4" if gpu.fp4_flop_per_s else "fp8"],
        scaleup_bytes_per_s=_known(gpu, "scaleup_bandwidth_bytes_per_s") / 2 * share,
        scaleout_bytes_per_s=_known(gpu, "scaleout_bandwidth_bytes_per_s") * share,
        layer_latency_s=_known(gpu, "layer_latency_s")
        * projection.layer_latency_scales.get(gpu.name, 1.0),
    )
    return _with_lpus(catalogue, machine, catalogue.system(second), share) if second else machine


def _with_lpus(catalogue: Catalogue, machine: Machine, rack: System, share: float) -> Machine:
    if not rack.lpu:
        raise ConfigInvalid(
            f"{rack.name!r} has no LPUs.", hint="Only LPUs stand beside GPUs, as in vr-nvl72+lpx."
        )
    lpu = catalogue.accelerator(rack.lpu)
    return msgspec.structs.replace(
        machine,
        lpu_flop_per_s=rack.lpus * (lpu.fp4_flop_per_s or _known(lpu, "fp8_flop_per_s")) * share,
        lpu_link_bytes_per_s=_known(rack, "link_bandwidth_bytes_per_s") * share,
        lpu_link_latency_s=_known(rack, "link_latency_s"),
        lpu_memory_bytes=rack.lpus * _known(lpu, "memory_bytes"),
        lpu_power_w=_known(rack, "all_in_power_w"),
    )


def _known(record: Accelerator | System, field: str) -> float:
    value = getattr(record, field)
    if value is None:
        raise ConfigInvalid(
            f"The catalogue has no {field} of {record.kind} {record.name!r}.",
            hint="Add it to a record of yours, as assumed if nothing public says it.",
        )
    return float(value)


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What is decoded, on what and how.

    Attributes:
        machine: that decodes.
        shape: of the model.
        context: tokens of each sequence.
        how: software does it.
    """

    machine: Machine
    shape: Shape
    context: int
    how: Projection


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way to decode, and what it gives.

    Attributes:
        gpus: of one replica.
        tensor: GPUs that share the attention of a sequence.
        batch: sequences that a replica decodes at a time.
        interactivity_tokens_per_s: that each sees.
        tokens_per_s_per_gpu: made, with the time that prefill takes counted.
        tokens_per_s_per_mw: of all-in power.
        memory_bytes: that each GPU holds.
        prefill_share: of the GPUs' time.
        latency_share: of a step that is floor, whatever the batch.
        lpu_racks_per_gpu: that keep up.
    """

    gpus: int
    tensor: int
    batch: int
    interactivity_tokens_per_s: float
    tokens_per_s_per_gpu: float
    tokens_per_s_per_mw: float
    memory_bytes: float
    prefill_share: float
    latency_share: float
    lpu_racks_per_gpu: float


def candidates(
    machine: Machine, model: Model, context_tokens: int, projection: Projection
) -> list[Candidate]:
    """Every way to decode that fits in memory: replica sizes, attention splits and batches."""
    work = Work(machine=machine, shape=shape_of(model), context=context_tokens, how=projection)
    widest = min(machine.domain, projection.replica_gpus_max or machine.domain)
    groups = sorted({g for g in (1, 2, 4, 8, 16, 36) if g <= widest} | {widest})
    accepted = 1.0
    if model.name in projection.speculating:
        with_lpus = machine.lpu_flop_per_s > 0
        accepted = projection.lpu_tokens_per_step if with_lpus else projection.tokens_per_step
    return [
        candidate
        for gpus in groups
        for tensor in sorted({t for t in (1, 2, 4, 8, gpus) if gpus % t == 0 and t <= gpus})
        for candidate in _candidates(work, gpus, tensor, accepted)
    ]


def prefill_s_per_output(work: Work) -> float:
    """Seconds of one GPU that prefill adds to each token of output.

    Source: 2 FLOP a weight and token; new tokens attend to half of the context on the average.
    """
    machine, shape = work.machine, work.shape
    pairs = min(work.context / 2, shape.context_tokens_max)
    each = 2 * (shape.attention_weights + shape.head_weights) / machine.attention_flop_per_s
    each += 2 * shape.ffn_weights_active / machine.flop_per_s
    each += shape.prefill_flop_per_pair * pairs / machine.attention_flop_per_s
    return work.how.new_tokens_per_output * each


def _candidates(work: Work, gpus: int, tensor: int, accepted: float) -> list[Candidate]:
    machine, shape = work.machine, work.shape
    verified = accepted + 1 if accepted > 1 else 1.0
    prefill_s = prefill_s_per_output(work)
    floor_s = shape.layers * (machine.layer_latency_s + machine.lpu_link_latency_s)
    found = []
    for batch in batches(gpus // tensor):
        memory_bytes, busy_s = step_s(work, gpus, tensor, batch, verified)
        if memory_bytes > machine.memory_bytes:
            break
        total_s = busy_s + floor_s
        decode_s = gpus * total_s / (batch * accepted)
        per_gpu = 1 / (decode_s + prefill_s)
        racks = _lpu_racks(machine, shape, per_gpu * verified / accepted)
        power_w = machine.gpu_power_w + racks * machine.lpu_power_w
        found.append(
            Candidate(
                gpus=gpus,
                tensor=tensor,
                batch=batch,
                interactivity_tokens_per_s=accepted / total_s,
                tokens_per_s_per_gpu=per_gpu,
                tokens_per_s_per_mw=per_gpu / power_w * 1e6,
                memory_bytes=memory_bytes,
                prefill_share=prefill_s / (decode_s + prefill_s),
                latency_share=floor_s / total_s,
                lpu_racks_per_gpu=racks,
            )
        )
    return found


def _lpu_racks(machine: Machine, shape: Shape, tokens_per_s: float) -> float:
    """Racks of LPUs that keep up with the tokens that a GPU sends."""
    if not machine.lpu_flop_per_s:
        return 0.0
    moved_bytes = LINK_BYTES_PER_VALUE * shape.hidden * shape.layers
    return tokens_per_s * max(
        2 * shape.ffn_weights_active / machine.lpu_flop_per_s,
        moved_bytes / machine.lpu_link_bytes_per_s,
    )


def batches(groups: int) -> Sequence[int]:
    """Batches to try for so many attention groups: as many each, in steps of about 14 %."""
    ratio = BATCH_PER_GROUP_MAX ** (1 / (BATCHES - 1))
    return sorted({groups * round(ratio**i) for i in range(BATCHES)})


def step_s(
    work: Work, gpus: int, tensor: int, batch: float, verified: float
) -> tuple[float, float]:
    """Bytes that a GPU holds and seconds that a step takes, its floor left out.

    Args:
        work: what is decoded.
        gpus: of the replica, over which experts are spread.
        tensor: GPUs that share the attention of a sequence, context included.
        batch: sequences of the replica.
        verified: tokens of each that one step computes.

    Source: the roofline of Williams et al. 2009 for each part; distinct experts of n tokens are
    E (1 - (1 - k/E)^n); ring all-reduce moves 2 (t-1)/t of its data.
    """
    machine, shape = work.machine, work.shape
    tokens = batch * verified
    local = tokens / (gpus / tensor)
    bandwidth, attention_flop_per_s = machine.bandwidth_bytes_per_s, machine.attention_flop_per_s
    attention = shape.attention_weights / tensor
    head = 2 * shape.head_weights / tensor  # in BF16
    read = min(work.context, shape.context_tokens_max)
    sequences = batch / (gpus / tensor) / tensor
    fixed = shape.kv_values_fixed
    kv_bytes = work.how.kv_bytes_per_value
    kv_held = sequences * (shape.kv_values * work.context + fixed) * kv_bytes
    kv_read = sequences * (shape.kv_values * read + fixed) * kv_bytes
    around_flop = 2 * local * (shape.attention_weights + shape.head_weights) / tensor
    pairs_flop = local * shape.decode_flop_per_pair / tensor * read
    seconds = max((attention + head) / bandwidth, around_flop / attention_flop_per_s)
    seconds += max(kv_read / bandwidth, pairs_flop / attention_flop_per_s)
    if tensor > 1:
        moved = 2 * (tensor - 1) / tensor * local * shape.hidden * 2 * shape.layers
        seconds += moved / machine.scaleup_bytes_per_s
    held = attention + 2 * head + kv_held
    if machine.lpu_flop_per_s:
        moved = local / tensor * shape.hidden * LINK_BYTES_PER_VALUE * shape.layers
        return held, max(seconds, moved / machine.scaleout_bytes_per_s)
    held += shape.ffn_weights * machine.weight_bytes / gpus
    return held, seconds + _ffn_s(machine, shape, gpus, tensor, tokens, local)


def _ffn_s(
    machine: Machine, shape: Shape, gpus: int, tensor: int, tokens: float, local: float
) -> float:
    """Feed-forward blocks of a step, on GPUs."""
    bandwidth, bytes_each = machine.bandwidth_bytes_per_s, machine.weight_bytes
    always = (shape.dense_weights / gpus + shape.shared_weights / tensor) * bytes_each
    always_flop = 2 * tokens * (shape.dense_weights + shape.shared_weights) / gpus
    seconds = max(always / bandwidth, always_flop / machine.flop_per_s)
    if not shape.experts:
        return seconds
    active: float = shape.experts_active / shape.experts
    distinct: float = 1 - (1 - active) ** tokens
    routed = shape.expert_weights / gpus
    seconds += max(
        routed * bytes_each * distinct / bandwidth,
        2 * tokens * routed * active / machine.flop_per_s,
    )
    if gpus > 1:
        copies = min(shape.experts_active, gpus) * (1 - 1 / gpus)
        moved = copies * local / tensor * shape.hidden * LINK_BYTES_PER_VALUE * shape.moe_layers
        seconds += moved / machine.scaleup_bytes_per_s
    return seconds
