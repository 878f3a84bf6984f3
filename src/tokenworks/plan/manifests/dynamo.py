"""NVIDIA Dynamo: a DynamoGraphDeployment of ``nvidia.com/v1beta1`` for each unit.

v1beta1 is the API's stored version; v1alpha1, which most examples still show, is deprecated. The
operator adds what several nodes of a replica need to find each other.
"""

from __future__ import annotations

from typing import Final

from tokenworks.plan.manifests.arguments import arguments, engine_words
from tokenworks.plan.manifests.deployment import Deployment, Pool, Unit, units
from tokenworks.plan.manifests.manifest import Manifest, heading
from tokenworks.plan.manifests.pods import (
    accelerator_limits,
    filled,
    tier_annotations,
    token_variables,
    weight_mounts,
    weight_volumes,
)
from tokenworks.plan.manifests.yaml_text import Value, yaml_text

DYNAMO_VERSION: Final = "1.6.1"
_TYPE: Final = {"aggregated": "worker", "prefill": "prefill", "decode": "decode"}
_ROUTER: Final = ("--router-mode", "kv", "--no-router-kv-events")
"""Requests go where their prefix is kept, by what was sent where: that needs no events."""


def dynamo_manifests(deployment: Deployment) -> tuple[Manifest, ...]:
    """A graph for each unit.

    Raises:
        ConfigInvalid: Dynamo's engine cannot run a pool so.
    """
    found = []
    for unit in units(deployment):
        version = f"Dynamo {DYNAMO_VERSION}, {engine_words(deployment, 'dynamo')}"
        text = yaml_text(_graph(deployment, unit), heading=heading(deployment, unit, version))
        name = f"{unit.name}-dynamo.yaml"
        found.append(Manifest(name=name, text=text, unit=unit.name, tiers=unit.tiers))
    return tuple(found)


def _graph(deployment: Deployment, unit: Unit) -> dict[str, Value]:
    frontend = _component(
        deployment,
        name="frontend",
        kind="frontend",
        replicas=1,
        command=("python3", "-m", "dynamo.frontend", *_ROUTER),
    )
    return {
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": unit.name, "annotations": tier_annotations(unit)},
        "spec": {
            "backendFramework": deployment.engine,
            "components": [frontend, *(_worker(deployment, pool) for pool in unit.pools)],
        },
    }


def _worker(deployment: Deployment, pool: Pool) -> dict[str, Value]:
    words = [*arguments(deployment, pool, "dynamo")]
    place = "--model" if deployment.engine == "vllm" else "--model-path"
    if pool.role != "aggregated" and deployment.engine == "vllm":
        words += ["--disaggregation-mode", pool.role]
    elif pool.role != "aggregated":
        # A prefill worker answers decode workers of other pods where it listens.
        words += ["--host", "0.0.0.0"]  # noqa: S104
    module = f"dynamo.{deployment.engine}"
    return _component(
        deployment,
        name=pool.name,
        kind=_TYPE[pool.role],
        replicas=pool.replicas,
        command=("python3", "-m", module, place, deployment.weights, *words),
        pool=pool,
    )


def _component(
    deployment: Deployment,
    *,
    name: str,
    kind: str,
    replicas: int,
    command: tuple[str, ...],
    pool: Pool | None = None,
) -> dict[str, Value]:
    image = f"nvcr.io/nvidia/ai-dynamo/{deployment.engine}-runtime:{DYNAMO_VERSION}"
    container = filled(
        {
            "name": "main",
            "image": deployment.image or image,
            "command": command[:3],
            "args": command[3:],
            "env": token_variables(deployment),
            "resources": accelerator_limits(pool) if pool else None,
            "volumeMounts": weight_mounts(deployment),
        }
    )
    spec = filled(
        {
            "nodeSelector": pool.node_selector if pool else None,
            "containers": [container],
            "volumes": weight_volumes(deployment),
        }
    )
    return filled(
        {
            "name": name,
            "type": kind,
            "replicas": replicas,
            "multinode": {"nodeCount": pool.nodes} if pool and pool.nodes > 1 else None,
            # The operator reads the version off an image's tag, which another image may lack.
            "runtimeVersionOverride": DYNAMO_VERSION if deployment.image else None,
            "podTemplate": {"spec": spec},
        }
    )
