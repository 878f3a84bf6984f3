"""llm-d: model servers as plain Kubernetes objects, and the values of its router's Helm chart.

The model servers are Deployments, or LeaderWorkerSets where a replica takes several nodes. This is
how llm-d's own guides deploy since 0.7, when they gave up the ModelService chart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tokenworks.plan.manifests.arguments import IMAGE, arguments, engine_words
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

ROUTER_VERSION: Final = "0.9.0"
_PORT: Final = 8000
_ENGINE_PORT: Final = 8200
"""Of the engine behind the sidecar that a decode pod answers through."""
_RENDEZVOUS_PORT: Final = 20_000
_STARTUP_S: Final = 3600
"""That weights may take to load before a pod counts as broken."""
_CHART: Final = f"oci://ghcr.io/llm-d/charts/llm-d-router-standalone --version v{ROUTER_VERSION}"
_SIDECAR: Final = f"ghcr.io/llm-d/llm-d-router-disagg-sidecar:v{ROUTER_VERSION}"
_ROUTER_IMAGE: Final[Mapping[str, Value]] = {
    "registry": "ghcr.io/llm-d",
    "repository": "llm-d-router-endpoint-picker",
    "tag": f"v{ROUTER_VERSION}",
}


def llmd_manifests(deployment: Deployment) -> tuple[Manifest, ...]:
    """Two files for each unit: its model servers, and the values of the router before them.

    Raises:
        ConfigInvalid: the engine cannot run a pool so.
    """
    found = []
    for unit in units(deployment):
        version = f"llm-d router {ROUTER_VERSION}, {engine_words(deployment, 'llm-d')}"
        words = heading(deployment, unit, version)
        install = f"helm install {unit.name} {_CHART} -f {unit.name}-router.values.yaml"
        servers = [_server(deployment, unit, pool) for pool in unit.pools]
        files = {
            f"{unit.name}-modelservers.yaml": yaml_text(*servers, heading=words),
            f"{unit.name}-router.values.yaml": yaml_text(
                _router(deployment, unit), heading=[*words, install]
            ),
        }
        found += [
            Manifest(name=name, text=text, unit=unit.name, tiers=unit.tiers)
            for name, text in files.items()
        ]
    return tuple(found)


def _server(deployment: Deployment, unit: Unit, pool: Pool) -> dict[str, Value]:
    metadata: dict[str, Value] = {
        "name": f"{deployment.name}-{pool.name}",
        "annotations": tier_annotations(unit),
    }
    if pool.nodes == 1:
        labels = _labels(unit, pool)
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "replicas": pool.replicas,
                "selector": {"matchLabels": labels},
                "template": _template(deployment, pool, labels, first=True),
            },
        }
    # The router finds pods by their labels; only the first of a replica's pods answers.
    group: dict[str, Value] = {
        "size": pool.nodes,
        "restartPolicy": "RecreateGroupOnPodRestart",
        "leaderTemplate": _template(deployment, pool, _labels(unit, pool), first=True),
        "workerTemplate": _template(deployment, pool, {}, first=False),
    }
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": metadata,
        "spec": {"replicas": pool.replicas, "leaderWorkerTemplate": group},
    }


def _labels(unit: Unit, pool: Pool) -> dict[str, Value]:
    role: dict[str, Value] = {} if pool.role == "aggregated" else {"llm-d.ai/role": pool.role}
    return {"tokenworks/unit": unit.name, "tokenworks/pool": pool.name, **role}


def _template(
    deployment: Deployment, pool: Pool, labels: Mapping[str, Value], *, first: bool
) -> dict[str, Value]:
    beside = pool.role == "decode" and first
    memory: Value = {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}
    spec = filled(
        {
            "nodeSelector": pool.node_selector,
            "initContainers": [_sidecar(deployment)] if beside else [],
            "containers": [_container(deployment, pool, first=first)],
            "volumes": [memory, *weight_volumes(deployment)],
        }
    )
    return {"metadata": {"labels": labels}, "spec": spec} if labels else {"spec": spec}


def _container(deployment: Deployment, pool: Pool, *, first: bool) -> dict[str, Value]:
    port = _ENGINE_PORT if pool.role == "decode" else _PORT
    if deployment.engine == "vllm":
        command = ["vllm", "serve", deployment.weights]
    else:
        command = ["python3", "-m", "sglang.launch_server", "--model-path", deployment.weights]
    words = [*arguments(deployment, pool, "llm-d"), "--host", "0.0.0.0", "--port", str(port)]  # noqa: S104
    memory: Value = {"name": "shared-memory", "mountPath": "/dev/shm"}  # noqa: S108
    return filled(
        {
            "name": "modelserver",
            "image": deployment.image or IMAGE[deployment.engine],
            "command": command,
            "args": words + _node_words(deployment, pool, first=first),
            "env": [*token_variables(deployment), *_transfer_variables(deployment, pool)],
            "ports": [{"name": "modelserver", "containerPort": port}] if first else [],
            "resources": accelerator_limits(pool),
            "volumeMounts": [memory, *weight_mounts(deployment)],
            "startupProbe": _probe(_STARTUP_S // 10) if first else None,
            "readinessProbe": _probe(3) if first else None,
        }
    )


def _probe(failures_max: int) -> dict[str, Value]:
    check: Value = {"path": "/health", "port": "modelserver"}
    return {"httpGet": check, "periodSeconds": 10, "failureThreshold": failures_max}


def _node_words(deployment: Deployment, pool: Pool, *, first: bool) -> list[str]:
    """How the nodes of a replica find each other; Kubernetes fills in what is in parentheses."""
    if pool.nodes == 1:
        return []
    words = ["--nnodes", str(pool.nodes), "--node-rank", "$(LWS_WORKER_INDEX)"]
    if deployment.engine == "sglang":
        return [*words, "--dist-init-addr", f"$(LWS_LEADER_ADDRESS):{_RENDEZVOUS_PORT}"]
    words += ["--master-addr", "$(LWS_LEADER_ADDRESS)"]
    return words if first else [*words, "--headless"]


def _transfer_variables(deployment: Deployment, pool: Pool) -> list[Value]:
    if pool.role == "aggregated" or (deployment.engine, deployment.transfer) != ("vllm", "nixl"):
        return []
    address: Value = {"fieldRef": {"fieldPath": "status.podIP"}}
    return [{"name": "VLLM_NIXL_SIDE_CHANNEL_HOST", "valueFrom": address}]


def _sidecar(deployment: Deployment) -> dict[str, Value]:
    """What takes a request to the prefill pod that the router chose, and then to the engine."""
    vllm = "mooncake" if deployment.transfer == "mooncake" else "nixlv2"
    words = {
        "port": _PORT,
        "vllm-port": _ENGINE_PORT,
        "kv-connector": vllm if deployment.engine == "vllm" else "sglang",
        "secure-proxy": "false",
    }
    return {
        "name": "routing-proxy",
        "image": _SIDECAR,
        "args": [f"--{name}={value}" for name, value in words.items()],
        "ports": [{"name": "sidecar", "containerPort": _PORT}],
        "restartPolicy": "Always",
        "securityContext": {"allowPrivilegeEscalation": False, "runAsNonRoot": True},
    }


def _router(deployment: Deployment, unit: Unit) -> dict[str, Value]:
    picker: dict[str, Value] = {"replicas": 1, "image": _ROUTER_IMAGE}
    if unit.aggregated is None:
        config = yaml_text(_picker_config(deployment))
        picker["pluginsConfigFile"] = "plan.yaml"
        picker["pluginsCustomConfig"] = {"plan.yaml": config}
    servers: dict[str, Value] = {
        "type": deployment.engine,
        "targetPorts": [{"number": _PORT}],
        "matchLabels": {"tokenworks/unit": unit.name},
    }
    return {"router": {"epp": picker, "modelServers": servers}}


def _picker_config(deployment: Deployment) -> dict[str, Value]:
    """Every prompt is prefilled apart, as the plan counted on; who does it goes by cache and queue.

    Aggregated pools take the chart's own configuration.
    """
    engine: dict[str, Value] = (
        {} if deployment.engine == "vllm" else {"parameters": {"defaultEngine": deployment.engine}}
    )
    deciders: Value = {"deciders": {"prefill": "always-disagg-pd-decider"}}
    plugins: list[Value] = [
        {"type": "approx-prefix-cache-producer"},
        {"type": "metrics-data-source"},
        {"type": "core-metrics-extractor", **engine},
        {"type": "prefix-cache-scorer"},
        {"type": "queue-scorer"},
        {"type": "prefill-filter"},
        {"type": "decode-filter"},
        {"type": "max-score-picker"},
        {"type": "always-disagg-pd-decider"},
        {"type": "disagg-profile-handler", "parameters": deciders},
    ]
    profiles: list[Value] = [
        {
            "name": role,
            "plugins": [
                {"pluginRef": f"{role}-filter"},
                {"pluginRef": "max-score-picker"},
                {"pluginRef": "prefix-cache-scorer", "weight": 2},
                {"pluginRef": "queue-scorer", "weight": 1},
            ],
        }
        for role in ("prefill", "decode")
    ]
    return {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": plugins,
        "schedulingProfiles": profiles,
    }
