"""What decoding takes on hardware that nobody has measured: every way that fits, and its speed.

The physics are ``perf``'s: a roofline for each part of a step. What stands in for calibration is a
``Projection`` of the catalogue: the shares of peaks that software reaches, and a floor per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from tokenworks.catalogue.records import Dtype, Model, Projection, System
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.architecture import BYTES, Shape, shape_of
from tokenworks.perf.case import Layout, weight_bytes_per_gpu
from tokenworks.perf.demand import Sizes, decode_demand, prefill_demand
from tokenworks.perf.passes import Rates, rates_of
from tokenworks.perf.roofline import parts_ms, prefill_ms, reached
from tokenworks.perf.speculative import verified_tokens
from tokenworks.perf.split import MICRO_BATCHES, Lpus, crossing_bytes, keeping_up, paced_step_ms

NEAR: Final[Dtype] = "fp8"
"""In which attention, what is around it, and its KV cache are kept and computed."""

BATCHES: Final = 64
BATCH_PER_GROUP_MAX: Final = 4096


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """GPUs, and LPUs beside them, at the speed that software reaches.

    Attributes:
        name: of its systems.
        gpus: in a system.
        gpu_power_w: all in.
        memory_bytes: of a GPU, for weights and KV blocks.
        rates: that a GPU reaches.
        dtype: of feed-forward blocks.
        layer_latency_s: each step, per layer.
        lpus: of a rack; None where there are none.
        lpu_power_w: of a rack, all in.
    """

    name: str
    gpus: int
    gpu_power_w: float
    memory_bytes: float
    rates: Rates
    dtype: Dtype
    layer_latency_s: float
    lpus: Lpus | None = None
    lpu_power_w: float = 0.0


def machine_of(catalogue: Catalogue, systems: str, projection: Projection) -> Machine:
    """A machine by the names of its systems: ``vr-nvl72``, or with LPUs ``vr-nvl72+lpx``.

    Raises:
        ConfigInvalid: a system is unknown, has no GPUs, or lacks a number.
    """
    first, _, second = systems.partition("+")
    if "+" in second:
        raise ConfigInvalid(
            f"{systems!r} names more than two systems.",
            hint="Name one of GPUs, and at most one of LPUs beside it, as in vr-nvl72+lpx.",
        )
    system = catalogue.system(first)
    if not system.accelerator:
        raise ConfigInvalid(
            f"{first!r} has no GPUs, so nothing can be decoded on it alone.",
            hint="Pair LPUs with a system of GPUs, as in vr-nvl72+lpx.",
        )
    gpu = catalogue.accelerator(system.accelerator)
    share = projection.peak_share
    for field in ("scaleup_bandwidth_bytes_per_s", "scaleout_bandwidth_bytes_per_s"):
        gpu.known(field)
    domain = system.domain or system.accelerators
    machine = Machine(
        name=systems,
        gpus=system.accelerators,
        gpu_power_w=system.known("all_in_power_w") / system.accelerators,
        memory_bytes=gpu.known("memory_bytes") * projection.memory_share,
        rates=reached(rates_of(gpu), share, projection.flop_share or share, domain),
        dtype="fp4" if gpu.fp4_flop_per_s else "fp8",
        layer_latency_s=gpu.known("layer_latency_s")
        * projection.layer_latency_scales.get(gpu.name, 1.0),
    )
    return _with_lpus(catalogue, machine, catalogue.system(second), share) if second else machine


def _with_lpus(catalogue: Catalogue, machine: Machine, rack: System, share: float) -> Machine:
    return msgspec.structs.replace(
        machine,
        lpus=lpus_of(catalogue, rack, share),
        lpu_power_w=rack.known("all_in_power_w"),
    )


def lpus_of(catalogue: Catalogue, rack: System, share: float, racks: int = 1) -> Lpus:
    """The LPUs of some racks.

    Args:
        catalogue: that has the LPU.
        rack: one of them.
        share: of peaks that is reached.
        racks: how many.

    Raises:
        ConfigInvalid: the rack has no LPUs, or a number is not known.
    """
    if not rack.lpu:
        raise ConfigInvalid(
            f"{rack.name!r} has no LPUs.", hint="Only LPUs stand beside GPUs, as in vr-nvl72+lpx."
        )
    lpu = catalogue.accelerator(rack.lpu)
    return Lpus(
        count=racks * rack.lpus,
        rates=reached(rates_of(lpu), share, share, rack.lpus),
        memory_bytes=lpu.known("memory_bytes"),
        dtype="fp4" if lpu.fp4_flop_per_s else "fp8",
        link_bytes_per_ms=racks * rack.known("link_bandwidth_bytes_per_s") * share / 1e3,
        round_trip_ms=rack.known("link_latency_s") * 1e3,
    )


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
    domain = machine.rates.domain
    widest = min(domain, projection.replica_gpus_max or domain)
    groups = sorted({g for g in (1, 2, 4, 8, 16, 36) if g <= widest} | {widest})
    made = 1.0
    if model.name in projection.speculating:
        made = projection.lpu_tokens_per_step if machine.lpus else projection.tokens_per_step
    return [
        candidate
        for gpus in groups
        for tensor in sorted({t for t in (1, 2, 4, 8, gpus) if gpus % t == 0 and t <= gpus})
        for candidate in _candidates(work, layout_of(gpus, tensor), made)
    ]


def layout_of(gpus: int, tensor: int) -> Layout:
    """Experts over all GPUs of a replica; attention of a sequence, context included, over some."""
    return Layout(gpus=gpus, ep=gpus, dp=gpus // tensor, spreads_context=True)


def prefill_s_per_output(work: Work) -> float:
    """Seconds of one GPU that prefill adds to each token of output.

    New tokens attend to half of the context on the average, or to as many as sparse attention
    picks.
    """
    machine, shape = work.machine, work.shape
    pairs = work.context / 2
    if shape.sparse_tokens:
        pairs = min(pairs, shape.sparse_tokens)
    need = prefill_demand(shape, Layout(gpus=1), sizes_of(work), 1.0, pairs)
    each_ms = prefill_ms(need, machine.rates, machine.dtype, NEAR)
    return work.how.new_tokens_per_output * each_ms / 1e3


def sizes_of(work: Work) -> Sizes:
    """Bytes of weights and of the cache."""
    return Sizes(BYTES[work.machine.dtype], BYTES[NEAR], work.how.kv_bytes_per_value)


def _candidates(work: Work, layout: Layout, made: float) -> list[Candidate]:
    machine, shape, gpus = work.machine, work.shape, layout.gpus
    verified = verified_tokens(made)
    prefill_s = prefill_s_per_output(work)
    found = []
    for batch in batches(layout.dp):
        memory_bytes = held_bytes(work, layout, batch)
        if memory_bytes > machine.memory_bytes:
            break
        total_s = step_s(work, layout, batch, verified)
        decode_s = gpus * total_s / (batch * made)
        per_gpu = 1 / (decode_s + prefill_s)
        racks = 0.0
        if machine.lpus:
            racks = keeping_up(shape, machine.lpus, per_gpu * verified / made / 1e3)
        power_w = machine.gpu_power_w + racks * machine.lpu_power_w
        found.append(
            Candidate(
                gpus=gpus,
                tensor=gpus // layout.dp,
                batch=batch,
                interactivity_tokens_per_s=made / total_s,
                tokens_per_s_per_gpu=per_gpu,
                tokens_per_s_per_mw=per_gpu / power_w * 1e6,
                memory_bytes=memory_bytes,
                prefill_share=prefill_s / (decode_s + prefill_s),
                latency_share=floor_s(work) / total_s,
                lpu_racks_per_gpu=racks,
            )
        )
    return found


def batches(groups: int) -> Sequence[int]:
    """Batches to try for so many attention groups: as many each, in steps of about 14 %."""
    ratio = BATCH_PER_GROUP_MAX ** (1 / (BATCHES - 1))
    return sorted({groups * round(ratio**i) for i in range(BATCHES)})


def held_bytes(work: Work, layout: Layout, batch: float) -> float:
    """Bytes of weights and KV blocks that a GPU holds; LPUs hold feed-forward blocks instead."""
    machine, shape = work.machine, work.shape
    cache = shape.cache_bytes(work.context, work.how.kv_bytes_per_value)
    cache *= batch / layout.dp / layout.cache_split(shape.cache_heads)
    held = weight_bytes_per_gpu(shape, machine.dtype, layout, BYTES[NEAR])
    if machine.lpus:
        held -= shape.ffn_weights * BYTES[machine.dtype] / layout.gpus
    return held + cache


def floor_s(work: Work) -> float:
    """Seconds of a step that no batch and no rate shortens."""
    machine = work.machine
    round_trip_s = machine.lpus.round_trip_ms / 1e3 if machine.lpus else 0.0
    return work.shape.layers * (machine.layer_latency_s + round_trip_s)


def step_s(work: Work, layout: Layout, batch: float, verified: float) -> float:
    """Seconds that a step takes.

    Args:
        work: what is decoded.
        layout: of the replica.
        batch: sequences of the replica.
        verified: tokens of each that one step computes.

    With LPUs each micro-batch has floors of its own, and LPUs are as many as just keep up.
    """
    machine, shape = work.machine, work.shape
    need = decode_demand(shape, layout, sizes_of(work), batch, work.context, verified)
    parts = parts_ms(need, machine.rates, layout, machine.dtype, NEAR)
    if not machine.lpus:
        return (parts.attention_ms + parts.ffn_ms) / 1e3 + floor_s(work)
    gpu_ms = parts.attention_ms + MICRO_BATCHES * shape.layers * machine.layer_latency_s * 1e3
    link_ms = batch * verified / layout.gpus * crossing_bytes(shape) / machine.rates.scaleout
    return paced_step_ms(gpu_ms, link_ms, shape.layers * machine.lpus.round_trip_ms) / 1e3
