"""Deployments for the pools of a mix that was planned with a measured engine's speeds."""

from __future__ import annotations

from typing import Final, Literal

from tokenworks.catalogue.records import Accelerator, Model
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.plan.manifests.deployment import (
    NAME_CHARACTERS_MAX,
    Deployment,
    Engine,
    Pool,
    Quantisation,
)
from tokenworks.plan.mix import MixPlan, PoolPlan

TRAY_ACCELERATORS: Final = 4
"""Of a host in a rack: compute trays of NVL72 and its successors have four GPUs each."""
SERVER_ACCELERATORS_MAX: Final = 8
"""A system with so many is one host."""


def deployments_of(
    plan: MixPlan, catalogue: Catalogue, engine: Engine
) -> tuple[tuple[Deployment, ...], tuple[str, ...]]:
    """A deployment for each pool whose workers an engine runs alone.

    Args:
        plan: whose offers were the engine's.
        catalogue: that it was made from.
        engine: that was planned with.

    Returns:
        The deployments, and the tiers of pools that need LPUs, which no engine here runs.
    """
    found, left = [], []
    for i, pool in enumerate(plan.pools, 1):
        tiers = tuple(pool.tokens_per_s)
        if pool.mode == "disaggregated+lpu":
            left.append("+".join(tiers))
            continue
        name = f"{'-'.join(tiers)[: NAME_CHARACTERS_MAX - 4]}-{i}"
        found.append(_deployment(name, pool, tiers, catalogue, engine))
    return tuple(found), tuple(left)


def _deployment(
    name: str, pool: PoolPlan, tiers: tuple[str, ...], catalogue: Catalogue, engine: Engine
) -> Deployment:
    system, model = catalogue.system(pool.systems), catalogue.model(pool.model)
    device = catalogue.accelerator(system.accelerator)
    whole = system.accelerators <= SERVER_ACCELERATORS_MAX

    def made(
        role: Literal["aggregated", "prefill", "decode"], gpus: int, dp: int, count: int
    ) -> Pool:
        return Pool(
            name="all" if role == "aggregated" else role,
            role=role,
            replicas=count,
            batch=max(pool.batch_max if role != "prefill" else 1, dp),
            accelerators_per_node=system.accelerators if whole else TRAY_ACCELERATORS,
            tp=gpus // dp,
            attention_dp=dp,
            ep=dp,
            accelerator=device.name,
            tiers=tiers,
        )

    gpus, dp = pool.gpus_per_worker, pool.attention_dp
    pools: tuple[Pool, ...]
    if pool.prefill_workers is None or pool.prefill_gpus_per_worker is None:
        pools = (made("aggregated", gpus, dp, pool.workers),)
    else:
        pools = (
            made("prefill", pool.prefill_gpus_per_worker, 1, pool.prefill_workers),
            made("decode", gpus, dp, pool.workers),
        )
    paths = [alias for alias in model.aliases if "/" in alias]
    return Deployment(
        name=name,
        model=paths[0] if paths else model.name,
        engine=engine,
        pools=pools,
        quantisation=_quantisation(model, device),
    )


def _quantisation(model: Model, device: Accelerator) -> Quantisation:
    """Of the weights that were planned with: the fewest bits that the device computes in."""
    dtype = "fp4" if device.fp4_flop_per_s else "fp8" if device.fp8_flop_per_s else "bf16"
    if dtype in {model.checkpoint, "bf16"}:
        return "checkpoint"
    return "nvfp4" if dtype == "fp4" else "fp8"
