"""Ray Serve LLM: one configuration for ``serve deploy``, with an application for each unit."""

from __future__ import annotations

from typing import Final

from tokenworks.core.errors import ConfigInvalid
from tokenworks.plan.manifests.arguments import engine_words, vllm_settings
from tokenworks.plan.manifests.deployment import Deployment, Pool, Unit, units
from tokenworks.plan.manifests.manifest import Manifest, pool_words, tier_words
from tokenworks.plan.manifests.yaml_text import Value, yaml_text

RAY_VERSION: Final = "2.60.0"
_ACCELERATOR: Final = {
    "h100": "H100",
    "h200": "H200",
    "b200": "B200",
    "b300": "B300",
    "gb200": "GB200",
    "gb300": "GB300",
    "mi300x": "AMD-Instinct-MI300X-OAM",
    "mi325x": "AMD-Instinct-MI325X-OAM",
    "mi355x": "AMD-Instinct-MI355X-OAM",
}
"""The catalogue's name to Ray's."""


def ray_manifests(deployment: Deployment) -> tuple[Manifest, ...]:
    """One file.

    Raises:
        ConfigInvalid: Ray Serve LLM cannot run the deployment so.
    """
    if deployment.engine != "vllm":
        raise ConfigInvalid(
            f"engine is {deployment.engine!r}; Ray Serve LLM {RAY_VERSION} runs vLLM only.",
            hint="Take engine = 'vllm', or another target: dynamo and llm-d run SGLang.",
        )
    found = units(deployment)
    version = f"Ray {RAY_VERSION}, {engine_words(deployment, 'ray')}"
    heading = [f"{deployment.name}: {deployment.model}. {version}."]
    applications: list[Value] = []
    for unit in found:
        place = "/" if len(found) == 1 else f"/{unit.name}"
        heading.append(f"{place} serves {tier_words(unit.tiers)}:")
        heading += [pool_words(pool) for pool in unit.pools]
        path, given = _application(deployment, unit)
        applications.append(
            {
                "name": unit.name,
                "route_prefix": place,
                "import_path": f"ray.serve.llm:{path}",
                "args": given,
            }
        )
    config: dict[str, Value] = {
        "http_options": {"host": "0.0.0.0", "port": 8000},  # noqa: S104
        "applications": applications,
    }
    name = f"{deployment.name}-serve.yaml"
    return (Manifest(name=name, text=yaml_text(config, heading=heading), unit="", tiers=()),)


def _application(deployment: Deployment, unit: Unit) -> tuple[str, dict[str, Value]]:
    if unit.aggregated is not None:
        config = _llm_config(deployment, unit.aggregated)
        if unit.aggregated.attention_dp > 1:
            return "build_dp_openai_app", {"llm_config": config}
        return "build_openai_app", {"llm_configs": [config]}
    if len(unit.pools) > 2:
        names = [pool.name for pool in unit.pools]
        raise ConfigInvalid(
            f"Unit {unit.name!r} has the pools {names}; Ray Serve LLM pairs one prefill pool with "
            "one decode pool.",
            hint="Merge the pools of each role, or give each pair tiers of its own.",
        )
    if deployment.transfer != "nixl":
        raise ConfigInvalid(
            f"transfer is {deployment.transfer!r}; between its pools, Ray Serve LLM {RAY_VERSION} "
            "knows NIXL.",
            hint="Take transfer = 'nixl'.",
        )
    prefill, decode = unit.pools
    return "build_pd_openai_app", {
        "prefill_config": _llm_config(deployment, prefill),
        "decode_config": _llm_config(deployment, decode),
    }


def _llm_config(deployment: Deployment, pool: Pool) -> dict[str, Value]:
    if pool.node_selector:
        raise ConfigInvalid(
            f"Pool {pool.name!r} has a node_selector; Ray Serve LLM places by accelerator.",
            hint="Give the pool its accelerator, and leave node_selector to Kubernetes.",
        )
    if pool.attention_dp > 1 and pool.tp * pool.pp > pool.accelerators_per_node:
        raise ConfigInvalid(
            f"Pool {pool.name!r}: tp {pool.tp} * pp {pool.pp} is more than the "
            f"{pool.accelerators_per_node} accelerators of a node; with attention_dp, Ray Serve "
            "LLM keeps each group on one node.",
            hint="Lower tp or pp, or take attention_dp 1.",
        )
    source: dict[str, Value] = {"model_id": deployment.model}
    if deployment.path:
        source["model_source"] = deployment.path
    config: dict[str, Value] = {"model_loading_config": source}
    if pool.accelerator:
        if pool.accelerator not in _ACCELERATOR:
            raise ConfigInvalid(
                f"Pool {pool.name!r}: Ray {RAY_VERSION} knows no accelerator {pool.accelerator!r}.",
                hint=f"It knows {', '.join(_ACCELERATOR)}. Leave accelerator out to place by the "
                "number of GPUs alone.",
            )
        config["accelerator_type"] = _ACCELERATOR[pool.accelerator]
    config["engine_kwargs"] = vllm_settings(deployment, pool)
    # Ray starts a Serve replica for each attention group, and multiplies num_replicas itself.
    config["deployment_config"] = {
        "num_replicas": pool.replicas,
        "max_ongoing_requests": pool.group_batch,
    }
    return config
