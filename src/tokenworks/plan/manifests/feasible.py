"""What a model or an accelerator of the catalogue rules out, before anybody starts it."""

from __future__ import annotations

from tokenworks.catalogue.records import Accelerator, Model
from tokenworks.core.errors import ConfigInvalid
from tokenworks.plan.manifests.deployment import Deployment, Pool


def check_accelerator(deployment: Deployment, pool: Pool, accelerator: Accelerator) -> None:
    """Whether the engine runs on it.

    Raises:
        ConfigInvalid: it does not.
    """
    if accelerator.family != "gpu":
        raise ConfigInvalid(
            f"Pool {pool.name!r} is placed on {accelerator.title}, an {accelerator.family.upper()}"
            f"; {deployment.engine} runs on GPUs.",
            hint="Place it on a GPU; LPUs take their vendor's own software.",
        )


def check_model(deployment: Deployment, model: Model) -> None:
    """Whether the model can be spread and sped up so.

    Raises:
        ConfigInvalid: which value it rules out, and what to do instead.
    """
    length = deployment.max_model_tokens
    if length is not None and 0 < model.context_tokens_max < length:
        raise ConfigInvalid(
            f"max_model_tokens is {length}; {model.title} was trained for "
            f"{model.context_tokens_max}.",
            hint=f"Take {model.context_tokens_max} or less.",
        )
    spec = deployment.speculation
    if spec is not None and spec.kind == "mtp" and not model.mtp_layers:
        raise ConfigInvalid(
            f"speculation.kind is 'mtp'; {model.title} has no layers that predict ahead.",
            hint="Take 'eagle3' or 'draft', which bring their own model.",
        )
    for pool in deployment.pools:
        _check_pool(pool, model)


def _check_pool(pool: Pool, model: Model) -> None:
    of = f"Pool {pool.name!r}"
    if model.heads % pool.tp:
        raise ConfigInvalid(
            f"{of}: tp {pool.tp} does not divide the {model.heads} heads of {model.title}.",
            hint="Take a tp that does, or attention_dp for a model with experts.",
        )
    if pool.pp > model.layers:
        raise ConfigInvalid(
            f"{of}: pp {pool.pp} is more than the {model.layers} layers of {model.title}.",
            hint="Take fewer stages.",
        )
    if not model.experts and (pool.ep > 1 or pool.attention_dp > 1):
        raise ConfigInvalid(
            f"{of}: ep is {pool.ep} and attention_dp {pool.attention_dp}; {model.title} has no "
            "experts to share.",
            hint="Take 1 for both, and more replicas.",
        )
    if model.experts % pool.ep:
        raise ConfigInvalid(
            f"{of}: ep {pool.ep} does not divide the {model.experts} experts of {model.title}.",
            hint="Take an ep that does.",
        )
