"""What the manifests for Kubernetes share: weights, their token, accelerators and annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenworks.core.errors import ConfigInvalid
from tokenworks.plan.manifests.deployment import Deployment, Pool, Unit
from tokenworks.plan.manifests.yaml_text import Value

_VOLUME = "weights"


def weight_mounts(deployment: Deployment) -> list[Value]:
    """The volume mounts that show the weights to a container.

    Raises:
        ConfigInvalid: the weights are in a folder, and no volume claim holds it; or the other way
            round.
    """
    folder = deployment.weights.startswith("/")
    if folder != bool(deployment.volume_claim):
        raise ConfigInvalid(
            f"path is {deployment.weights!r} and volume_claim {deployment.volume_claim!r}.",
            hint="In Kubernetes a folder needs the claim of the volume that holds it, and a name "
            "of Hugging Face's takes none.",
        )
    if not folder:
        return []
    top = "/" + deployment.weights.strip("/").partition("/")[0]
    return [{"name": _VOLUME, "mountPath": top, "readOnly": True}]


def weight_volumes(deployment: Deployment) -> list[Value]:
    """The volumes of a pod for these mounts."""
    if not deployment.volume_claim:
        return []
    claim: Value = {"claimName": deployment.volume_claim, "readOnly": True}
    return [{"name": _VOLUME, "persistentVolumeClaim": claim}]


def token_variables(deployment: Deployment) -> list[Value]:
    """The environment that opens weights which need a token."""
    if not deployment.token_secret:
        return []
    reference: Value = {"name": deployment.token_secret, "key": "HF_TOKEN"}
    return [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}}]


def accelerator_limits(pool: Pool) -> Mapping[str, Value]:
    """The resources of a pod: the accelerators of a replica that one node holds."""
    return {"limits": {pool.resource: str(pool.accelerators_here)}}


def tier_annotations(unit: Unit) -> Mapping[str, Value]:
    """Which tiers an object serves, for those who look at the cluster."""
    return {"tokenworks/tiers": ",".join(unit.tiers) or "all"}


def filled(entries: Mapping[str, Value | None]) -> dict[str, Value]:
    """The entries that say something: neither None nor empty."""
    return {
        key: value
        for key, value in entries.items()
        if value is not None and not (isinstance(value, str | Sequence | Mapping) and not value)
    }
