"""How fast a system of the catalogue serves a model, and for how many: laws for the twin's workers.

An iteration of the twin makes one token of each sequence. A step that makes more of them, because
some were drafted, counts as that many iterations of as much less time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from tokenworks.catalogue.records import Accelerator, Dtype, Engine, Model, Projection, System
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.architecture import BYTES, Shape, shape_of
from tokenworks.perf.calibration import Calibration, Group, group_key
from tokenworks.perf.case import (
    Case,
    Layout,
    cache_bytes_per_element,
    check_fits,
    sequences_max,
    weight_bytes_per_gpu,
)
from tokenworks.perf.demand import Sizes, decode_demand, prefill_demand
from tokenworks.perf.estimate import Estimator
from tokenworks.perf.passes import Rates, rates_of
from tokenworks.perf.roofline import parts_ms, prefill_ms
from tokenworks.perf.speculative import verified_tokens
from tokenworks.perf.split import SRAM_SHARE, lpus_needed, shared_ms, whole_bytes, whole_ms
from tokenworks.perf.tabulated import Step, Tabulated, tabulated
from tokenworks.perf.terms import DTYPE_AXIS, DTYPES
from tokenworks.plan.projection import (
    NEAR,
    Machine,
    Work,
    layout_of,
    lpus_of,
    machine_of,
    sizes_of,
    step_s,
)

CONTEXT_TYPICAL: Final = 8_192
"""Tokens of one sequence, for what is laid out and for speed curves."""
CONTEXT_MAX: Final = 65_536
"""Tokens of one sequence that the law is made for; it goes on in a line beyond."""
SLOTS_PER_GROUP: Final = 256
"""Sequences of an attention group: the default of vLLM's ``max_num_seqs``."""
SLOTS_MAX: Final = 4_096
BUSY_PER_GPU: Final = 8
"""Sequences for each GPU at which its attention is split so that a step is shortest."""
ANSWER_TOKENS: Final = 1_024.0
"""Of the answers that measured engines are asked for."""
PROMPTS: Final = (1_024.0, 8_192.0)
"""Of the prompts whose times to first token tell what a token of prompt takes."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker of some hardware can do.

    Attributes:
        law: of its iterations.
        source: what that was made of.
        told: how, for people.
        gpus: of the worker.
        lpus: likewise.
        tensor: GPUs that share the attention of a sequence; 0 where there are none.
        groups: of GPUs that each attend to their own sequences; 1 where there are none.
        slots: sequences side by side.
        kv_tokens: of KV cache.
        cache_element_bytes: of KV cache.
        weight_bytes_each: that the fullest accelerator holds.
        link_bytes_per_s: at which KV cache moves to other workers; 0 where it cannot.
        made: tokens that a step makes of each sequence.
    """

    law: Tabulated
    source: Literal["calibrated", "projected"]
    told: str
    gpus: int
    lpus: int
    tensor: int
    groups: int
    slots: int
    kv_tokens: int
    cache_element_bytes: float
    weight_bytes_each: float
    link_bytes_per_s: int
    made: float


class Measured:
    """What was measured, and what answers for it."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.estimator = Estimator(calibration)

    def group(self, catalogue: Catalogue, case: Case) -> tuple[Case, Group] | None:
        """The case on the engine with the most measured rows of it; None if there are none."""
        if case.device.name not in self.calibration.devices:
            return None
        found = []
        for engine in catalogue.all_of(Engine):
            asked = msgspec.structs.replace(case, engine=engine.name)
            group = self.calibration.groups.get(group_key(asked, case.device.name))
            if group is not None:
                found.append((group.rows, asked, group))
        if not found:
            return None
        _, asked, group = max(found, key=lambda each: (each[0], each[1].engine))
        return asked, group


def gpu_pace(
    catalogue: Catalogue, system: System, gpus: int, model: Model, projection: Projection
) -> Pace:
    """GPUs that prefill and decode, projected.

    Raises:
        ConfigInvalid: the model does not fit, or the catalogue lacks a number.
    """
    machine = machine_of(catalogue, system.name, projection)
    made = projection.tokens_per_step if model.name in projection.speculating else 1.0
    shape, verified = shape_of(model), verified_tokens(made)

    def step_of(layout: Layout) -> Step:
        return lambda n, c: step_s(_work(machine, shape, c, projection), layout, n, verified) * 1e3

    return _projected(machine, shape, gpus, projection, made, step_of, holds_ffn=True, lpus=0)


def shared_pace(
    catalogue: Catalogue,
    system: System,
    gpus: int,
    rack: System,
    racks: int | None,
    model: Model,
    projection: Projection,
    *,
    prefills: bool,
) -> Pace:
    """Attention on GPUs and feed-forward blocks on LPUs, which also draft; projected.

    Args:
        catalogue: that has them.
        system: of the GPUs.
        gpus: of a worker.
        rack: of the LPUs.
        racks: of a worker; None for the fewest that hold the blocks.
        model: that is served.
        projection: of software.
        prefills: whether the GPUs prefill, too, and so hold the blocks besides.

    Raises:
        ConfigInvalid: the model does not fit, or the catalogue lacks a number.
    """
    machine = machine_of(catalogue, f"{system.name}+{rack.name}", projection)
    shape = shape_of(model)
    needed = -(-lpus_needed(shape, lpus_of(catalogue, rack, 1.0)) // rack.lpus)
    if racks is not None and racks < needed:
        raise ConfigInvalid(
            f"The feed-forward blocks of {model.name} do not fit into {racks} of {rack.name!r}.",
            hint=f"Take {rack.name}x{needed} or more, or leave the number out for the fewest.",
        )
    lpus = lpus_of(catalogue, rack, projection.peak_share, racks or needed)
    made = projection.lpu_tokens_per_step if model.name in projection.speculating else 1.0
    verified = verified_tokens(made)
    floor_ms = shape.layers * machine.layer_latency_s * 1e3

    def step_of(layout: Layout) -> Step:
        def step(sequences: int, context: float) -> float:
            sizes = sizes_of(_work(machine, shape, context, projection))
            need = decode_demand(shape, layout, sizes, sequences, context, verified)
            attention_ms = parts_ms(need, machine.rates, layout, machine.dtype, NEAR).attention_ms
            link = layout.gpus * machine.rates.scaleout
            return shared_ms(shape, lpus, sequences, verified, attention_ms, floor_ms, link)

        return step

    return _projected(
        machine, shape, gpus, projection, made, step_of, holds_ffn=prefills, lpus=lpus.count
    )


def _projected(
    machine: Machine,
    shape: Shape,
    gpus: int,
    projection: Projection,
    made: float,
    step_of: Callable[[Layout], Step],
    *,
    holds_ffn: bool,
    lpus: int,
) -> Pace:
    """A worker with GPUs, at the attention split whose step is shortest when it is busy."""
    each = _cache_bytes(shape, projection.kv_bytes_per_value)
    best: tuple[float, Layout, int, float] | None = None
    least = math.inf
    for tensor in sorted({t for t in (1, 2, 4, 8, gpus) if gpus % t == 0}):
        layout = layout_of(gpus, tensor)
        held = weight_bytes_per_gpu(shape, machine.dtype, layout, BYTES[NEAR])
        if not holds_ffn:
            held -= shape.ffn_weights * BYTES[machine.dtype] / gpus
        least = min(least, held)
        kv_tokens = int((machine.memory_bytes - held) * gpus / each)
        slots = _slots(layout.dp, kv_tokens)
        if slots < 1:
            continue
        busy = step_of(layout)(min(slots, BUSY_PER_GPU * gpus), CONTEXT_TYPICAL)
        if best is None or busy < best[0]:
            best = (busy, layout, kv_tokens, held)
    if best is None:
        raise ConfigInvalid(
            f"Weights of {least / 1e9:.0f} GB a GPU and a cache of {CONTEXT_TYPICAL:,} tokens do "
            f"not fit into {machine.memory_bytes / 1e9:.0f} GB on {gpus} GPUs of "
            f"{machine.name!r}.",
            hint="Take more GPUs a worker, as in vr-nvl72x16"
            + (
                ", or let it only decode, as in vr-nvl72x8+lpx:decode."
                if lpus and holds_ffn
                else "."
            ),
        )
    _, layout, kv_tokens, held = best
    slots = _slots(layout.dp, kv_tokens)
    sizes = sizes_of(_work(machine, shape, CONTEXT_TYPICAL, projection))
    token_ms, pair_ms = _prefill_parts(shape, sizes, machine.rates, machine.dtype, NEAR)
    return Pace(
        law=_law(step_of(layout), made, slots, kv_tokens, token_ms / gpus, pair_ms / gpus),
        source="projected",
        told=f"projected by {projection.name!r} of {machine.dtype} weights"
        + (f", {made:g} tokens a step with drafts" if made > 1 else ""),
        gpus=gpus,
        lpus=lpus,
        tensor=gpus // layout.dp,
        groups=layout.dp,
        slots=slots,
        kv_tokens=kv_tokens,
        cache_element_bytes=projection.kv_bytes_per_value,
        weight_bytes_each=held,
        link_bytes_per_s=0 if lpus and holds_ffn else round(gpus * machine.rates.scaleout * 1e3),
        made=made,
    )


def lpu_pace(
    catalogue: Catalogue, rack: System, racks: int | None, model: Model, projection: Projection
) -> Pace:
    """A whole model and its KV cache in the SRAM of LPUs, projected.

    Args:
        catalogue: that has them.
        rack: of LPUs.
        racks: of a worker; None for the fewest that hold it and one long sequence.
        model: that is served.
        projection: of software.

    Raises:
        ConfigInvalid: it does not fit, or the catalogue lacks a number.
    """
    shape = shape_of(model)
    one = lpus_of(catalogue, rack, projection.peak_share)
    room = one.count * one.memory_bytes * SRAM_SHARE
    held = whole_bytes(shape, one.dtype)
    each = _cache_bytes(shape, projection.kv_bytes_per_value)
    needed = math.ceil((held + 2 * CONTEXT_TYPICAL * each) / room)
    if racks is not None and racks < needed:
        raise ConfigInvalid(
            f"{model.name} of {held / 1e9:.0f} GB and a cache do not fit into {racks} of "
            f"{rack.name!r}.",
            hint=f"Take {rack.name}x{needed} or more, or leave the number out for the fewest.",
        )
    lpus = lpus_of(catalogue, rack, projection.peak_share, racks or needed)
    kv_tokens = int(((racks or needed) * room - held) / each)
    slots = _slots(shape.layers, kv_tokens)
    latency_ms = rack.known("lpu_layer_latency_s") * 1e3
    size = BYTES[lpus.dtype]
    sizes = Sizes(size, size, projection.kv_bytes_per_value)
    token_ms, pair_ms = _prefill_parts(shape, sizes, lpus.rates, lpus.dtype, lpus.dtype)

    def step(sequences: int, context: float) -> float:
        element = projection.kv_bytes_per_value
        return whole_ms(shape, lpus, latency_ms, sequences, context, element)

    return Pace(
        law=_law(step, 1.0, slots, kv_tokens, token_ms / lpus.count, pair_ms / lpus.count),
        source="projected",
        told=f"projected by {projection.name!r} of {lpus.dtype} weights in SRAM",
        gpus=0,
        lpus=lpus.count,
        tensor=0,
        groups=1,
        slots=slots,
        kv_tokens=kv_tokens,
        cache_element_bytes=projection.kv_bytes_per_value,
        weight_bytes_each=held / lpus.count,
        link_bytes_per_s=0,
        made=1.0,
    )


def measured_pace(
    catalogue: Catalogue, system: System, gpus: int, model: Model, measured: Measured
) -> Pace | None:
    """GPUs that were measured with this model, by the calibrated predictor; None if none were.

    Weights are of the fewest bits that were measured, and tensor parallelism is over all GPUs.

    Raises:
        ConfigInvalid: the model does not fit.
    """
    device = catalogue.accelerator(system.accelerator)
    shape = shape_of(model)
    layout = Layout(gpus=gpus)
    known = measured.group(catalogue, _case(shape, device, layout))
    if known is None:
        return None
    asked, group = known
    asked = msgspec.structs.replace(asked, dtype=_dtype(group))
    check_fits(asked)
    estimator = measured.estimator
    element = cache_bytes_per_element(asked.engine, asked.dtype)
    kv_tokens = int(sequences_max(asked) * (asked.isl + 0.6 * asked.osl))
    slots = max(1, _slots(1, kv_tokens))

    def step(sequences: int, context: float) -> float:
        # The prompt is in the cache, so that what is left is decoding.
        case = msgspec.structs.replace(asked, isl=max(1.0, context - asked.osl / 2), hit_share=1.0)
        return math.exp(estimator.curve(case).at(sequences).tpot_log)

    short, long = (
        math.exp(estimator.curve(msgspec.structs.replace(asked, isl=isl)).at(1.0).ttft_log)
        for isl in PROMPTS
    )
    sizes = Sizes(BYTES[asked.dtype], BYTES[asked.dtype], element)
    token_ms, pair_ms = _prefill_parts(shape, sizes, rates_of(device), asked.dtype, asked.dtype)
    more = PROMPTS[1] - PROMPTS[0]
    pairs = (PROMPTS[1] ** 2 - PROMPTS[0] ** 2) / 2
    scale = max(long - short, 0.0) / (token_ms * more + pair_ms * pairs)
    near = estimator.curve(asked).at(float(slots)).nearest
    return Pace(
        law=_law(step, 1.0, slots, kv_tokens, token_ms * scale, pair_ms * scale, central=True),
        source="calibrated",
        told=f"calibrated on {group.rows} measured rows of {asked.engine} with {asked.dtype} "
        f"weights; likeness of the nearest row {near:.2f}",
        gpus=gpus,
        lpus=0,
        tensor=gpus,
        groups=1,
        slots=slots,
        kv_tokens=kv_tokens,
        cache_element_bytes=element,
        weight_bytes_each=weight_bytes_per_gpu(shape, asked.dtype, layout),
        link_bytes_per_s=round(gpus * (device.scaleout_bandwidth_bytes_per_s or 0.0)),
        made=1.0,
    )


def _case(shape: Shape, device: Accelerator, layout: Layout) -> Case:
    return Case(
        shape=shape,
        device=device,
        engine="",
        dtype="fp8",
        isl=CONTEXT_TYPICAL - ANSWER_TOKENS / 2,
        osl=ANSWER_TOKENS,
        concurrency=1.0,
        decode=layout,
        prefill=layout,
    )


def _dtype(group: Group) -> Dtype:
    """Of the fewest bits that rows were measured with."""
    seen = {DTYPES[round(place[DTYPE_AXIS])] for place in group.places}
    wanted: tuple[Dtype, ...] = ("fp4", "int4", "fp8", "bf16")
    return next(each for each in wanted if each in seen)


def _prefill_parts(
    shape: Shape, sizes: Sizes, rates: Rates, dtype: Dtype, near: Dtype
) -> tuple[float, float]:
    """Milliseconds of one accelerator for a token of prompt, and for a pair with one before it.

    Where attention picks some tokens of a long context, a pair costs as much less.
    """
    one = Layout(gpus=1)
    token, both = (
        prefill_ms(prefill_demand(shape, one, sizes, 1.0, pairs), rates, dtype, near)
        for pairs in (0.0, 1.0)
    )
    picked = min(1.0, 2 * shape.sparse_tokens / CONTEXT_TYPICAL) if shape.sparse_tokens else 1.0
    return token, (both - token) * picked


def _law(
    step: Step,
    made: float,
    slots: int,
    kv_tokens: int,
    token_ms: float,
    pair_ms: float,
    *,
    central: bool = False,
) -> Tabulated:
    return tabulated(
        functools.cache(lambda n, c: step(n, c) / made),
        slots=slots,
        context_max=CONTEXT_MAX,
        kv_tokens=kv_tokens,
        prefill_token_ms=token_ms,
        prefill_pair_ms=pair_ms,
        central=central,
    )


def _slots(groups: int, kv_tokens: int) -> int:
    """Sequences of the typical context that there is room for, within the engines' limits."""
    return min(kv_tokens // CONTEXT_TYPICAL, SLOTS_PER_GROUP * groups, SLOTS_MAX)


def _cache_bytes(shape: Shape, element_bytes: float) -> float:
    """Of a token, on the average of a typical sequence."""
    return shape.cache_bytes(CONTEXT_TYPICAL, element_bytes) / CONTEXT_TYPICAL


def _work(machine: Machine, shape: Shape, context: float, projection: Projection) -> Work:
    return Work(machine=machine, shape=shape, context=round(context), how=projection)
