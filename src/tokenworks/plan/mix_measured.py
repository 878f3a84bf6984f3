"""Offers from an engine as it was measured: prefill and decode together, apart, and with LPUs.

The speed of each is predicted by ``perf`` from rows of that engine, near or far. No row has LPUs:
there what perf says of a step's parts decides what the LPUs take over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import msgspec

from tokenworks.catalogue.records import Accelerator, Dtype, Projection, System
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.architecture import Shape
from tokenworks.perf.case import Case, Layout, cache_bytes_per_element, check_fits
from tokenworks.perf.estimate import Curve, Estimator
from tokenworks.perf.passes import Pass, Rates, bound_ms, decode_pass, rates_of
from tokenworks.perf.split import (
    MICRO_BATCHES,
    Lpus,
    crossing_bytes,
    keeping_up,
    lpu_ms,
    lpus_needed,
    step_ms,
)
from tokenworks.plan.mix_inputs import Offer, Work
from tokenworks.plan.projection import lpus_of
from tokenworks.plan.worker_speed import LOADS, Prefiller, decode_steps, prefiller

OUTPUT_TOKENS_MAX: Final = 400
"""Of an answer, or half of the context where that is less. The length of answers matters little
beside context and new tokens of prompt, which are the work's."""
GPUS: Final = (1, 2, 4, 8, 16, 32)
PREFILL_GPUS_MAX: Final = 8
"""Of a worker that prefills only: a wider one is faster for nobody, and wastes more."""
UNIT_MAX: Final = 4
"""Servers that workers of both kinds share, where a server is a scale-up domain of its own."""
SERVER_GPUS_MAX: Final = 8


class Rack(msgspec.Struct, frozen=True, kw_only=True):
    """LPUs that stand beside GPUs.

    Attributes:
        name: of the system.
        lpus: of one rack, at the speed that software is declared to reach.
    """

    name: str
    lpus: Lpus


def rack_of(catalogue: Catalogue, name: str, projection: Projection) -> Rack:
    """A system of LPUs.

    Raises:
        ConfigInvalid: it has none, or lacks a number.
    """
    rack = catalogue.system(name)
    return Rack(name=rack.name, lpus=lpus_of(catalogue, rack, projection.peak_share))


class Decoder(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that decodes, under one load.

    Attributes:
        gpus: of it.
        attention_dp: groups of it.
        batch: sequences that it decodes at a time.
        tokens_per_ms: of output.
        step_ms: that each user waits for a token.
        racks: of LPUs that keep up.
        copies: racks that hold the feed-forward weights once.
    """

    gpus: int
    attention_dp: int
    batch: int
    tokens_per_ms: float
    step_ms: float
    racks: float = 0.0
    copies: int = 0


class Measured:
    """Makes offers of one engine."""

    def __init__(self, estimator: Estimator, engine: str) -> None:
        self._estimator = estimator
        self.engine = engine

    def offers(
        self, system: System, device: Accelerator, shape: Shape, work: Work, rack: Rack | None
    ) -> list[Offer]:
        """Each mode, layout and load of a system that fits in memory.

        Args:
            system: of GPUs.
            device: in it.
            shape: of the model.
            work: that is done.
            rack: of LPUs beside it, for the offers that need them; None for all others.
        """
        asked = _case(shape, device, self.engine, work)
        layouts = list(_layouts(system, shape))
        prefilling = self._prefilling(asked, layouts)
        prefillers = _unbeaten(list(prefilling.values()))
        found: list[Offer] = []
        for layout in layouts:
            together = msgspec.structs.replace(asked, decode=layout, prefill=layout)
            if not _fits(together):
                continue
            if rack is None:
                found += self._together(system, together, work)
            beside = prefilling[layout.gpus]
            for decoder in self._decoders(together, beside, rack.lpus if rack else None):
                for each in prefillers:
                    found += _apart(system, decoder, each, asked.osl, work, rack)
        return found

    def _together(self, system: System, case: Case, work: Work) -> Iterator[Offer]:
        """Workers that prefill and decode.

        Source: Little's law: a request is there for its TTFT and its answer.
        """
        curve = self._estimator.curve(case)
        replicas = system.accelerators // case.decode.gpus
        for load in LOADS:
            found = curve.predict(load)
            if load > found.batch_max:
                break
            stay_ms = found.ttft_ms + case.osl * found.tpot_ms
            yield Offer(
                system=system.name,
                mode="aggregated",
                work=work,
                gpus_per_replica=case.decode.gpus,
                attention_dp=case.decode.dp,
                replicas=replicas,
                batch_max=load,
                interactivity_tokens_per_s=found.tokens_per_s_per_user,
                tokens_per_s=replicas * load * case.osl / stay_ms * 1e3,
                prefill_share=0.0,
                prefill_s_per_output=found.ttft_ms / 1e3 / case.osl,
                waits=True,
            )

    def _prefilling(self, case: Case, layouts: list[Layout]) -> dict[int, Prefiller]:
        """Workers that prefill only, by their GPUs: one for each size that fits in memory."""
        own = (
            msgspec.structs.replace(case, decode=layout, prefill=layout)
            for layout in layouts
            if layout.dp == 1
        )
        return {each.prefill.gpus: prefiller(self._estimator, each) for each in own if _fits(each)}

    def _decoders(self, case: Case, beside: Prefiller, lpus: Lpus | None) -> Iterator[Decoder]:
        """A worker that decodes only, under each load that fits."""
        for step in decode_steps(self._estimator, case, beside):
            if lpus is not None:
                yield from _with_lpus(self._estimator.curve(case), lpus, *step)
                continue
            yield Decoder(
                gpus=case.decode.gpus,
                attention_dp=case.decode.dp,
                batch=max(1, round(step.batch)),
                tokens_per_ms=step.batch / step.step_ms,
                step_ms=step.step_ms,
            )


def _with_lpus(curve: Curve, lpus: Lpus, batch: float, tpot_ms: float) -> Iterator[Decoder]:
    """The same batch with feed-forward blocks on LPUs, in one micro-batch or more."""
    case, shape = curve.case, curve.case.shape
    copies = math.ceil(lpus_needed(shape, lpus) / lpus.count)
    whole = msgspec.structs.replace(
        lpus, count=copies * lpus.count, link_bytes_per_ms=copies * lpus.link_bytes_per_ms
    )
    rates, moved = rates_of(case.device), batch * crossing_bytes(shape)
    link_ms = max(moved / case.decode.gpus / rates.scaleout, moved / whole.link_bytes_per_ms)
    latency_ms = shape.layers * whole.round_trip_ms
    load_ms, floor_ms = _attention_ms(curve, rates, batch, tpot_ms)
    for micro in range(1, MICRO_BATCHES + 1):
        feed_ms = lpu_ms(shape, whole, batch, micro)
        gpu_ms = load_ms + micro * floor_ms
        all_ms = step_ms(gpu_ms, feed_ms, link_ms, latency_ms, micro)
        made = batch / all_ms
        yield Decoder(
            gpus=case.decode.gpus,
            attention_dp=case.decode.dp,
            batch=max(1, round(batch)),
            tokens_per_ms=made,
            step_ms=all_ms,
            racks=max(copies * feed_ms / all_ms, keeping_up(shape, lpus, made)),
            copies=copies,
        )


def _fits(case: Case) -> bool:
    try:
        check_fits(case)
    except ConfigInvalid:
        return False
    return True


def _unbeaten(workers: list[Prefiller]) -> list[Prefiller]:
    """Those that no other beats both in what a GPU does and in its TTFT; wide ones are too few."""
    return [
        each
        for each in workers
        if each.gpus <= PREFILL_GPUS_MAX
        and not any(
            other.ttft_ms <= each.ttft_ms
            and other.tokens_per_ms / other.gpus > each.tokens_per_ms / each.gpus
            for other in workers
        )
    ]


def _layouts(system: System, shape: Shape) -> Iterator[Layout]:
    domain = system.domain or system.accelerators
    for gpus in sorted({g for g in GPUS if g < domain} | {domain}):
        for dp in sorted({1, gpus} if shape.experts else {1}):
            yield Layout(gpus=gpus, ep=dp, dp=dp)


def _attention_of(shape: Shape) -> Shape:
    """A model without its feed-forward blocks."""
    return msgspec.structs.replace(shape, dense_weights=0.0, moe_layers=0)


def _attention_ms(curve: Curve, rates: Rates, batch: float, tpot_ms: float) -> tuple[float, float]:
    """What a step's attention takes on GPUs: what grows with the batch, and each layer's floor.

    The step's parts are shared out as the calibrated factors have them, and the roofline holds.
    """
    case = curve.case

    def nominal(shape: Shape) -> Pass:
        element = cache_bytes_per_element(case.engine, case.dtype)
        context = case.isl + case.osl / 2
        return decode_pass(shape, rates, case.decode, case.dtype, element, batch, context)

    attention, whole = nominal(_attention_of(case.shape)), nominal(case.shape)
    parts = curve.tpot_parts(batch)[: len(whole)]
    near = Pass(
        *(
            part * mine / all_of_it if all_of_it else 0.0
            for part, mine, all_of_it in zip(parts, attention, whole, strict=True)
        )
    )
    scale = tpot_ms / sum(parts)
    floor = near.reduce + near.layers + near.linear_layers
    return max(scale * (sum(near) - floor), bound_ms(attention)), scale * floor


def _apart(
    system: System,
    decoder: Decoder,
    prefiller: Prefiller,
    output_tokens: float,
    work: Work,
    rack: Rack | None,
) -> Iterator[Offer]:
    """Whole workers of both kinds in a unit of systems, as many as keep up with each other."""
    best = 0.0
    for unit, decoders, prefills in _splits(system.accelerators, decoder, prefiller):
        made = min(decoders * decoder.tokens_per_ms, prefills * prefiller.tokens_per_ms) / unit
        if made <= best:
            continue
        best = made
        busy = made * unit / (decoders * decoder.tokens_per_ms)
        prefilling = prefills * prefiller.gpus
        yield Offer(
            system=system.name,
            lpu_system=rack.name if rack else "",
            mode="disaggregated+lpu" if rack else "disaggregated",
            work=work,
            unit=unit,
            gpus_per_replica=decoder.gpus,
            attention_dp=decoder.attention_dp,
            replicas=decoders,
            prefill_gpus_per_replica=prefiller.gpus,
            prefill_replicas=prefills,
            batch_max=decoder.batch,
            interactivity_tokens_per_s=1e3 / decoder.step_ms,
            tokens_per_s=made * 1e3,
            prefill_share=prefilling / (prefilling + decoders * decoder.gpus),
            prefill_s_per_output=prefiller.ttft_ms / 1e3 / output_tokens,
            lpu_systems=busy * decoders * decoder.racks / unit,
            lpu_systems_min=decoder.copies,
        )


def _splits(gpus: int, decoder: Decoder, prefiller: Prefiller) -> Iterator[tuple[int, int, int]]:
    """Units of systems, and how many workers of either kind they hold.

    In one system they share its GPUs; in several servers, each server has workers of one kind.
    """
    need = prefiller.gpus * decoder.tokens_per_ms / prefiller.tokens_per_ms
    share = need / (need + decoder.gpus)
    for prefills in _around(share * gpus / prefiller.gpus):
        decoders = (gpus - prefills * prefiller.gpus) // decoder.gpus
        if decoders > 0:
            yield 1, decoders, prefills
    if gpus > SERVER_GPUS_MAX:
        return
    for unit in range(2, UNIT_MAX + 1):
        for servers in _around(share * unit):
            if servers < unit:
                yield (
                    unit,
                    (unit - servers) * (gpus // decoder.gpus),
                    servers * (gpus // prefiller.gpus),
                )


def _around(count: float) -> set[int]:
    """The whole numbers beside it, at least 1.

    >>> sorted(_around(2.3)), sorted(_around(0.2))
    ([2, 3], [1])
    """
    return {max(1, math.floor(count)), max(1, math.ceil(count))}


def _case(shape: Shape, device: Accelerator, engine: str, work: Work) -> Case:
    dtype: Dtype = "fp4" if device.fp4_flop_per_s else "fp8" if device.fp8_flop_per_s else "bf16"
    output = max(1.0, min(OUTPUT_TOKENS_MAX, work.context_tokens / 2))
    prompt = max(1.0, work.context_tokens - output / 2)
    return Case(
        shape=shape,
        device=device,
        engine=engine,
        dtype=dtype,
        isl=prompt,
        osl=output,
        concurrency=1.0,
        decode=Layout(gpus=1),
        prefill=Layout(gpus=1),
        hit_share=max(0.0, 1 - work.new_tokens_per_output * output / prompt),
    )
