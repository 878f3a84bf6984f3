"""Tokenworks' own configuration for a deployment: a factory's pools, and a twin."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from tokenworks.catalogue.factory_config import SLOTS_MAX, WORKERS_MAX
from tokenworks.catalogue.records import Site
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.units import UDOLLARS_PER_DOLLAR
from tokenworks.plan.manifests.deployment import Deployment, Pool, Unit, units
from tokenworks.plan.manifests.manifest import Manifest, pool_words, tier_words
from tokenworks.plan.manifests.worker_model import BLOCK_TOKENS, WorkerModel

PORT: Final = 8000


def factory_manifest(
    deployment: Deployment, models: Mapping[str, WorkerModel], site: Site
) -> Manifest:
    """``factory.toml``: a pool of attached servers for each address.

    Args:
        deployment: that the servers run.
        models: of a worker, by pool; those that nobody knows are left out.
        site: whose electricity is paid.

    Raises:
        ConfigInvalid: it has more servers than a factory takes.
    """
    lines = [f"# {deployment.name}: {deployment.model}, as pools of a Tokenworks factory."]
    lines.append("# Copy it into the factory's folder as factory.toml; then run `tokenworks up`.")
    for unit in units(deployment):
        lines += ["", *_pool(deployment, unit, models, site)]
    return Manifest(
        name=f"{deployment.name}-factory.toml", text="\n".join(lines) + "\n", unit="", tiers=()
    )


def _pool(
    deployment: Deployment, unit: Unit, models: Mapping[str, WorkerModel], site: Site
) -> list[str]:
    lines = [f"# {unit.name}, for {tier_words(unit.tiers)}."]
    lines += [f"# {pool_words(pool)}" for pool in unit.pools]
    urls = _urls(unit)
    if any(pool.urls for pool in unit.pools):
        lines.append("# Where it answers is the deployment's own.")
    elif unit.aggregated:
        lines.append("# Names that stand for its replicas: write their addresses here.")
    else:
        lines.append(
            "# A name that stands for the router in front of them: write its address here."
        )
    slots = sum(p.batch * p.replicas for p in unit.pools if p.role != "prefill") // len(urls)
    lines += [
        f"[pool.{unit.name}]",
        'engine = "attached"',
        f"model = {json.dumps(deployment.model)}",
        f"urls = [{', '.join(map(json.dumps, urls))}]",
        f"slots = {max(1, min(slots, SLOTS_MAX))}",
    ]
    if deployment.engine == "vllm":
        lines.append("cache_salt = true")
    if all(pool.name in models for pool in unit.pools):
        lines += _costs([(pool, models[pool.name]) for pool in unit.pools], site)
        lines += _curve(unit, models, len(urls))
    return lines


def _urls(unit: Unit) -> list[str]:
    own = [url for pool in unit.pools for url in pool.urls]
    if not own:
        count = unit.aggregated.replicas if unit.aggregated else 1
        own = [f"http://{unit.name}-{i}:{PORT}" for i in range(count)]
        if count == 1:
            own = [f"http://{unit.name}:{PORT}"]
    if len(own) > WORKERS_MAX:
        raise ConfigInvalid(
            f"{unit.name!r} answers at {len(own):,} addresses; a factory takes {WORKERS_MAX:,}.",
            hint="Put a router in front of them and name it as `urls`, or split the pool.",
        )
    return own


def _costs(pools: Sequence[tuple[Pool, WorkerModel]], site: Site) -> list[str]:
    power_w = sum(pool.replicas * model.power_w for pool, model in pools)
    capital = sum(pool.replicas * model.capital_udollars_per_hour for pool, model in pools)
    return [
        "# Of the whole pool; from the catalogue.",
        f"power_w = {power_w}",
        f"energy_udollars_per_kwh = {round(site.usd_per_kwh * UDOLLARS_PER_DOLLAR)}",
        f"capital_udollars_per_hour = {capital}",
    ]


def _curve(unit: Unit, models: Mapping[str, WorkerModel], urls: int) -> list[str]:
    """The speed at one address, whose requests its replicas share."""
    first = unit.aggregated or unit.decode[0]
    model = models[first.name]
    replicas = sum(p.replicas for p in unit.pools if p.role != "prefill")
    shared = max(1, replicas // urls)
    points = {min(batch * shared, SLOTS_MAX): speed for batch, speed in reversed(model.curve)}
    points.setdefault(1, model.curve[0][1])
    text = ", ".join(f"[{batch}, {speed}]" for batch, speed in sorted(points.items()))
    return [
        f"# Predicted, {model.nearness} to measured rows; what is observed corrects it.",
        f"curve = [{text}]",
    ]


def twin_manifest(
    deployment: Deployment, models: Mapping[str, WorkerModel], site: Site, prices: str
) -> Manifest:
    """The same as a scenario of the twin, for ``tokenworks twin run`` and ``up --twin``.

    Args:
        deployment: that is modelled.
        models: of a worker, by pool; all of them.
        site: whose electricity is paid.
        prices: the file of the price book beside it.

    Raises:
        ConfigInvalid: it has more workers than a scenario takes.
    """
    count = sum(pool.replicas for pool in deployment.pools)
    if count > WORKERS_MAX:
        raise ConfigInvalid(
            f"Deployment {deployment.name!r} has {count:,} replicas; the twin takes "
            f"{WORKERS_MAX:,}.",
            hint="Model a part of it: with fewer replicas of each pool.",
        )
    lines = [
        f"# {deployment.name}: {deployment.model} on {deployment.engine}, modelled.",
        "# Run it by `tokenworks twin run --scenario FILE`, serve it by `tokenworks up --twin`.",
        f"name = {json.dumps(deployment.name)}",
        f"energy_udollars_per_kwh = {round(site.usd_per_kwh * UDOLLARS_PER_DOLLAR)}",
        f"price_book = {json.dumps(prices)}",
    ]
    if any(pool.role != "aggregated" for pool in deployment.pools):
        lines.append("# Who only prefills the dispatcher decides by itself, among all of these.")
    for pool in deployment.pools:
        lines += ["", *_worker(deployment, pool, models[pool.name])]
    return Manifest(
        name=f"{deployment.name}-twin.toml", text="\n".join(lines) + "\n", unit="", tiers=()
    )


def _worker(deployment: Deployment, pool: Pool, model: WorkerModel) -> list[str]:
    timing = model.timing
    return [
        f"# {pool_words(pool)}",
        f"[worker.{pool.name}]",
        f"count = {pool.replicas}",
        f"model = {json.dumps(deployment.model)}",
        f"slots = {pool.batch}",
        f"kv_blocks = {model.kv_blocks}",
        f"block_tokens = {BLOCK_TOKENS}",
        f"batch_tokens_max = {model.batch_tokens_max}",
        f"kv_bytes_per_token = {model.kv_bytes_per_token}",
        f"link_bytes_per_s = {model.link_bytes_per_s}",
        f"power_w = {model.power_w}",
        f"idle_power_w = {model.idle_power_w}",
        f"capital_udollars_per_hour = {model.capital_udollars_per_hour}",
        "",
        f"[worker.{pool.name}.timing]  # predicted, {model.nearness} to measured rows",
        f"launch_fs = {timing.launch_fs}",
        f"sequence_fs = {timing.sequence_fs}",
        f"context_token_fs = {timing.context_token_fs}",
        f"prefill_token_fs = {timing.prefill_token_fs}",
        f"prefill_context_fs = {timing.prefill_context_fs}",
    ]
