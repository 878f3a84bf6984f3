"""A pool's workers as the twin models them: timing, memory and cost, as they are predicted."""

from __future__ import annotations

import datetime
from typing import Final

import msgspec

from tokenworks.catalogue.records import Accelerator, Dtype, Model, Site, System
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.units import UDOLLARS_PER_DOLLAR
from tokenworks.perf.architecture import shape_of
from tokenworks.perf.case import Case, Layout, cache_bytes_per_element, check_fits, sequences_max
from tokenworks.perf.estimate import Estimator
from tokenworks.perf.timing import Timing
from tokenworks.plan.manifests.deployment import Deployment, Pool
from tokenworks.plan.mix_cost import cost_per_h
from tokenworks.plan.mix_inputs import Hardware
from tokenworks.plan.worker_speed import LOADS, PREFILL_TOKENS, decode_steps, prefiller

FS_PER_MS: Final = 10**12
PROMPTS: Final = (1024.0, 8192.0)
"""Lengths that timings are found at."""
ANSWER_TOKENS: Final = 512.0
BLOCK_TOKENS: Final = 512
_DTYPE: Final[dict[str, Dtype]] = {"fp8": "fp8", "nvfp4": "fp4", "mxfp4": "fp4", "awq": "int4"}


class WorkerModel(msgspec.Struct, frozen=True, kw_only=True):
    """One worker of a pool.

    Attributes:
        timing: of its iterations.
        kv_blocks: of ``BLOCK_TOKENS`` that its memory holds.
        kv_bytes_per_token: of its cache.
        link_bytes_per_s: beyond its scale-up domain.
        batch_tokens_max: of an iteration.
        power_w: at work.
        idle_power_w: with nothing to do.
        capital_udollars_per_hour: of its hardware, its network and its people.
        curve: (batch, tokens/s of each user) while it also prefills.
        nearness: of the predictions to measured rows.
    """

    timing: Timing
    kv_blocks: int
    kv_bytes_per_token: int
    link_bytes_per_s: int
    batch_tokens_max: int
    power_w: int
    idle_power_w: int
    capital_udollars_per_hour: int
    curve: tuple[tuple[int, int], ...]
    nearness: str


def worker_model(
    catalogue: Catalogue,
    estimator: Estimator,
    deployment: Deployment,
    pool: Pool,
    model: Model,
    site: Site,
) -> WorkerModel:
    """A pool's worker, as its engine was measured.

    Args:
        catalogue: that has the pool's accelerator.
        estimator: that predicts.
        deployment: that the pool is of.
        pool: with an accelerator.
        model: of the deployment.
        site: whose prices hold.

    Raises:
        ConfigInvalid: the weights do not fit, or the catalogue lacks a number.
    """
    device = catalogue.accelerator(pool.accelerator)
    layout = Layout(gpus=pool.accelerators, ep=pool.ep, dp=pool.attention_dp, pp=pool.pp)
    short, long = (
        Case(
            shape=shape_of(model),
            device=device,
            engine=deployment.engine,
            dtype=_DTYPE.get(deployment.quantisation, model.checkpoint),
            isl=prompt,
            osl=ANSWER_TOKENS,
            concurrency=1.0,
            decode=layout,
            prefill=layout,
        )
        for prompt in PROMPTS
    )
    check_fits(long)
    element = cache_bytes_per_element(short.engine, short.dtype)
    power_w = device.known("all_in_power_w") * layout.gpus
    return WorkerModel(
        timing=timing(estimator, short, long, pool.batch),
        kv_blocks=max(1, int(sequences_max(long) * (long.isl + 0.6 * long.osl) / BLOCK_TOKENS)),
        kv_bytes_per_token=round(short.shape.cache_bytes(1.0, element)),
        link_bytes_per_s=round((device.scaleout_bandwidth_bytes_per_s or 0.0) * layout.gpus),
        batch_tokens_max=max(
            (pool.prefill_tokens or PREFILL_TOKENS) * pool.attention_dp, pool.batch
        ),
        power_w=round(power_w),
        idle_power_w=round(power_w * site.idle_power_share),
        capital_udollars_per_hour=round(
            _capital_usd_per_h(catalogue, device, site) * layout.gpus * UDOLLARS_PER_DOLLAR
        ),
        curve=_curve(estimator, short, pool.batch),
        nearness=estimator.predict(short).nearness,
    )


def timing(estimator: Estimator, short: Case, long: Case, batch_max: int) -> Timing:
    """The twin's five figures, from predictions at two lengths and two batches.

    Args:
        estimator: that predicts.
        short: of a worker that does both.
        long: the same with longer prompts.
        batch_max: sequences at a time.
    """
    alone = [prefiller(estimator, _whole(case)) for case in (short, long)]
    ends = []
    for case, beside in zip((short, long), alone, strict=True):
        steps = list(decode_steps(estimator, case, beside))
        fitting = [step for step in steps if step.batch <= batch_max] or steps[:1]
        ends.append((fitting[0], fitting[-1]))
    contexts = [case.isl + case.osl / 2 for case in (short, long)]
    (one, many), (_, far) = ends
    # A step is launch + batch x sequence + batch x context x token; batches differ by length.
    near_each = (many.step_ms - one.step_ms) / max(many.batch - one.batch, 1.0)
    far_each = (far.step_ms - one.step_ms) / max(far.batch - one.batch, 1.0)
    token_ms = max(0.0, (far_each - near_each) / (contexts[1] - contexts[0]))
    sequence_ms = max(0.0, near_each - token_ms * contexts[0])
    launch_ms = max(1e-3, one.step_ms - one.batch * (sequence_ms + token_ms * contexts[0]))
    (a, b), (c, d) = [
        (case.isl, max(1e-6, each.ttft_ms - launch_ms))
        for case, each in zip((short, long), alone, strict=True)
    ]
    pair_ms = max(0.0, 2 * (d / c - b / a) / (c - a))
    prefill_ms = max(0.0, d / c - pair_ms * c / 2)
    return Timing(
        launch_fs=round(launch_ms * FS_PER_MS),
        sequence_fs=round(sequence_ms * FS_PER_MS),
        context_token_fs=round(token_ms * FS_PER_MS),
        prefill_token_fs=round(prefill_ms * FS_PER_MS),
        prefill_context_fs=round(pair_ms * FS_PER_MS),
    )


def _whole(case: Case) -> Case:
    """Where each group has requests of its own, a prompt that comes alone keeps one group busy.

    What all of them prefill together is told by a worker that is one group.
    """
    layout = msgspec.structs.replace(case.prefill, dp=1)
    return msgspec.structs.replace(case, decode=layout, prefill=layout)


def _curve(estimator: Estimator, case: Case, batch_max: int) -> tuple[tuple[int, int], ...]:
    curve = estimator.curve(case)
    found = [(load, curve.predict(load)) for load in LOADS if load <= batch_max]
    return tuple(
        (load, max(1, int(each.tokens_per_s_per_user)))
        for load, each in found
        if load <= each.batch_max
    )


def _capital_usd_per_h(catalogue: Catalogue, device: Accelerator, site: Site) -> float:
    """Of one accelerator, in the system with the lowest price for it; 0 where none has one."""
    found = []
    for system in catalogue.all_of(System):
        if system.accelerator != device.name or system.price_usd is None:
            continue
        hardware = Hardware(
            name=system.name,
            accelerators=system.accelerators,
            power_w=system.all_in_power_w or 0.0,
            price_usd=system.price_usd,
            install_h=0.0,
            ship=datetime.date.min,
        )
        cost = cost_per_h(hardware, site)
        found.append((cost.capital_usd + cost.network_usd + cost.people_usd) / system.accelerators)
    return min(found, default=0.0)
