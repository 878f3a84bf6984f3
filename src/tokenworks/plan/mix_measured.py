"""Offers from an engine as it was measured: workers that prefill and decode in one.

The speed of each is predicted by ``perf`` from rows of that engine, near or far.
"""

from __future__ import annotations

from typing import Final

from tokenworks.catalogue.records import Accelerator, Dtype, System
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.architecture import Shape, shape_of
from tokenworks.perf.case import Case, Layout
from tokenworks.perf.estimate import Estimator
from tokenworks.plan.mix_inputs import Offer, Work

OUTPUT_TOKENS_MAX: Final = 400
"""Of an answer, or half of the context where that is less. The length of answers matters little
beside context and new tokens of prompt, which are the work's."""
LOADS: Final = tuple(2**i for i in range(13))
"""Requests at one time at one worker."""
GPUS: Final = (1, 2, 4, 8, 16, 32)


class Measured:
    """Makes offers of one engine."""

    def __init__(self, estimator: Estimator, engine: str) -> None:
        self._estimator = estimator
        self.engine = engine

    def offers(self, catalogue: Catalogue, system: System, work: Work) -> list[Offer]:
        """Each layout and load of a system that fits in memory."""
        device = catalogue.accelerator(system.accelerator)
        shape = shape_of(catalogue.model(work.model))
        domain = system.domain or system.accelerators
        found: list[Offer] = []
        for gpus in sorted({g for g in GPUS if g < domain} | {domain}):
            for dp in sorted({1, gpus} if shape.experts else {1}):
                layout = Layout(gpus=gpus, ep=dp, dp=dp)
                found += self._offers(system, _case(shape, device, self.engine, layout, work), work)
        return found

    def _offers(self, system: System, case: Case, work: Work) -> list[Offer]:
        try:
            predictions = self._estimator.sweep(case, LOADS)
        except ConfigInvalid:  # it does not fit in memory
            return []
        replicas = system.accelerators // case.gpus
        return [
            Offer(
                system=system.name,
                mode="aggregated",
                work=work,
                gpus_per_replica=case.gpus,
                replicas=replicas,
                batch_max=load,
                interactivity_tokens_per_s=each.tokens_per_s_per_user,
                tokens_per_s=replicas * case.gpus * each.tokens_per_s_per_gpu,
                prefill_share=0.0,
                prefill_s_per_output=each.ttft_ms / 1e3 / case.osl,
            )
            for load, each in zip(LOADS, predictions, strict=True)
            if load <= each.batch_max
        ]


def _case(shape: Shape, device: Accelerator, engine: str, layout: Layout, work: Work) -> Case:
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
        decode=layout,
        prefill=layout,
        hit_share=max(0.0, 1 - work.new_tokens_per_output * output / prompt),
    )
