"""Manifests by who they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from tokenworks.core.errors import ConfigInvalid
from tokenworks.plan.manifests.deployment import Deployment
from tokenworks.plan.manifests.dynamo import dynamo_manifests
from tokenworks.plan.manifests.llmd import llmd_manifests
from tokenworks.plan.manifests.manifest import Manifest
from tokenworks.plan.manifests.ray import ray_manifests
from tokenworks.plan.manifests.shell import shell_manifests


def _vllm(deployment: Deployment) -> tuple[Manifest, ...]:
    return _for_engine(deployment, "vllm")


def _sglang(deployment: Deployment) -> tuple[Manifest, ...]:
    return _for_engine(deployment, "sglang")


def _for_engine(deployment: Deployment, engine: str) -> tuple[Manifest, ...]:
    if deployment.engine != engine:
        raise ConfigInvalid(
            f"Deployment {deployment.name!r} is planned for {deployment.engine}, and {engine} "
            "was asked for.",
            hint=f"Ask for {deployment.engine}, or plan for {engine}: what a pool does per second "
            "differs between engines.",
        )
    return shell_manifests(deployment)


TARGETS: Final[Mapping[str, Callable[[Deployment], tuple[Manifest, ...]]]] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "dynamo": dynamo_manifests,
    "llm-d": llmd_manifests,
    "ray": ray_manifests,
}
"""By the word that asks for them; each raises ConfigInvalid where it cannot run a deployment."""
