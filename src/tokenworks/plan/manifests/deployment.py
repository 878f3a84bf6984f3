"""What a plan asks of a cluster: a model, its pools, and how each is spread over accelerators."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec

from tokenworks.core.errors import ConfigInvalid

TEXT_CHARACTERS_MAX: Final = 1_000_000
POOLS_MAX: Final = 24
NAME_CHARACTERS_MAX: Final = 24
"""Of a deployment and of a pool: together they name Kubernetes objects, which end at 63."""

_NAME: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_URL: Final = re.compile(r"https?://[A-Za-z0-9._:/@+\[\]-]+")
_PLAIN: Final = re.compile(r"[A-Za-z0-9/][A-Za-z0-9._:/@+-]*")

Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]

Engine = Literal["vllm", "sglang"]
ENGINES: Final[tuple[Engine, ...]] = ("vllm", "sglang")
Role = Literal["aggregated", "prefill", "decode"]
Quantisation = Literal["checkpoint", "fp8", "nvfp4", "mxfp4", "awq"]
KVDtype = Literal["auto", "bf16", "fp8", "fp4"]


class Speculation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are guessed ahead of the model.

    Attributes:
        kind: by the model's own MTP layers, by an EAGLE-3 head, or by a smaller model.
        tokens: guessed at a time.
        draft: the path or the name of head or model; empty for ``mtp``.
    """

    kind: Literal["mtp", "eagle3", "draft"]
    tokens: Annotated[int, msgspec.Meta(ge=1, le=64)]
    draft: str = ""


class Pool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Replicas of an engine that are alike.

    A replica takes ``tp * pp * attention_dp`` accelerators.

    Attributes:
        name: unique in its deployment.
        role: what it does of a request; prefill and decode pools with the same tiers work
            together.
        replicas: in the pool.
        tp: accelerators that each layer's attention is spread over.
        pp: stages that the layers are spread over.
        attention_dp: groups within a replica that each keep the attention and the KV cache of
            their own requests, and share the experts.
        ep: accelerators that the experts are spread over, whole experts each; 1 splits each
            expert as ``tp`` splits a layer.
        batch: the cap on requests that run at once in a replica, over all its groups.
        accelerators_per_node: that share one host.
        prefill_tokens: that a group prefills in one iteration, at most; the engine's default
            where none is given.
        memory_share: of an accelerator's memory that the engine takes.
        accelerator: its name in the catalogue.
        resource: what Kubernetes counts accelerators by.
        node_selector: labels that a Kubernetes node must have.
        tiers: that it serves; empty for all.
        urls: where its replicas, or the router in front of them, answer; for Tokenworks.
    """

    name: str
    role: Role
    replicas: Count
    batch: Count
    accelerators_per_node: Count
    tp: Count = 1
    pp: Count = 1
    attention_dp: Count = 1
    ep: Count = 1
    prefill_tokens: Tokens | None = None
    memory_share: Annotated[float, msgspec.Meta(ge=0.01, lt=1)] | None = None
    accelerator: str = ""
    resource: str = "nvidia.com/gpu"
    node_selector: dict[str, str] = {}
    tiers: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()

    @property
    def accelerators(self) -> int:
        """Of one replica."""
        return self.tp * self.pp * self.attention_dp

    @property
    def nodes(self) -> int:
        """That one replica takes."""
        return -(-self.accelerators // self.accelerators_per_node)

    @property
    def accelerators_here(self) -> int:
        """Of one replica on each of its nodes."""
        return self.accelerators // self.nodes

    @property
    def group_batch(self) -> int:
        """Requests at once in each attention group, rounded up."""
        return -(-self.batch // self.attention_dp)


class Deployment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model on one engine, as a plan places it.

    Attributes:
        name: in lower case, as Kubernetes wants it.
        model: the name that requests give.
        engine: that runs it.
        pools: at least one.
        path: where the weights are: a folder, or a name of Hugging Face's; empty for ``model``.
        quantisation: of the weights; ``checkpoint`` takes them as they are published.
        kv_dtype: of the KV cache; ``auto`` takes the model's.
        max_model_tokens: prompt and output together; the model's own limit where none is given.
        speculation: none where absent.
        transfer: what carries KV blocks from prefill to decode pools.
        image: of containers in Kubernetes, in place of the engine's or Dynamo's own.
        token_secret: the Kubernetes secret whose key ``HF_TOKEN`` opens the weights.
        volume_claim: the Kubernetes volume claim that holds ``path``, where that is a folder.
    """

    name: str
    model: str
    engine: Engine
    pools: tuple[Pool, ...]
    path: str = ""
    quantisation: Quantisation = "checkpoint"
    kv_dtype: KVDtype = "auto"
    max_model_tokens: Tokens | None = None
    speculation: Speculation | None = None
    transfer: Literal["nixl", "mooncake"] = "nixl"
    image: str = ""
    token_secret: str = ""
    volume_claim: str = ""

    @property
    def weights(self) -> str:
        """Where the engine finds them."""
        return self.path or self.model


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """Pools that answer together behind one address.

    Attributes:
        name: of the deployment and of its pool, or of the deployment alone where it has one unit.
        tiers: that it serves; empty for all.
        aggregated: the pool that prefills and decodes, if it is that kind.
        prefill: pools that only prefill.
        decode: pools that only decode.
    """

    name: str
    tiers: tuple[str, ...]
    aggregated: Pool | None
    prefill: tuple[Pool, ...] = ()
    decode: tuple[Pool, ...] = ()

    @property
    def pools(self) -> tuple[Pool, ...]:
        """All of them, those that prefill first."""
        return (self.aggregated,) if self.aggregated else self.prefill + self.decode


def parse_deployment(text: str, *, where: str, form: Literal["toml", "json"]) -> Deployment:
    """Read a deployment and check that it holds together.

    Args:
        text: the file.
        where: its name, for messages.
        form: how it is written.

    Raises:
        ConfigInvalid: it cannot be read, a key is unknown, or its values contradict each other.
    """
    if len(text) > TEXT_CHARACTERS_MAX:
        raise ConfigInvalid(f"{where} has {len(text)} characters; at most {TEXT_CHARACTERS_MAX}.")
    try:
        if form == "json":
            deployment = msgspec.json.decode(text, type=Deployment)
        else:
            deployment = msgspec.convert(tomllib.loads(text), Deployment)
    except (tomllib.TOMLDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise ConfigInvalid(
            f"{where} cannot be read: {error}.", hint="docs/manifests.md has a file that works."
        ) from error
    check_deployment(deployment)
    return deployment


def check_deployment(deployment: Deployment) -> None:
    """What no engine could run.

    Raises:
        ConfigInvalid: which value, and what to do instead.
    """
    if not 1 <= len(deployment.pools) <= POOLS_MAX:
        raise ConfigInvalid(
            f"Deployment {deployment.name!r} has {len(deployment.pools)} pools.",
            hint=f"Give it 1 to {POOLS_MAX}; several deployments can serve one model.",
        )
    _check_names(deployment)
    spec = deployment.speculation
    if spec is not None and (spec.kind == "mtp") != (not spec.draft):
        raise ConfigInvalid(
            f"speculation.kind is {spec.kind!r} and speculation.draft {spec.draft!r}.",
            hint="'mtp' is in the model and takes no draft; 'eagle3' and 'draft' need one.",
        )
    for pool in deployment.pools:
        _check_pool(pool)
    units(deployment)


def _check_names(deployment: Deployment) -> None:
    names = [deployment.name, *(pool.name for pool in deployment.pools)]
    for name in names:
        if not _NAME.fullmatch(name) or len(name) > NAME_CHARACTERS_MAX:
            raise ConfigInvalid(
                f"The name {name!r} cannot be used.",
                hint="Take lower-case letters, digits and dashes, a letter first, "
                f"{NAME_CHARACTERS_MAX} at most: Kubernetes wants it so.",
            )
    if len(set(names[1:])) < len(names) - 1:
        raise ConfigInvalid(f"Two pools have the same name, of {names[1:]}.", hint="Rename one.")
    draft = deployment.speculation.draft if deployment.speculation else ""
    words = {
        "model": deployment.model,
        "path": deployment.weights,
        "image": deployment.image or "unset",
        "token_secret": deployment.token_secret or "unset",
        "volume_claim": deployment.volume_claim or "unset",
        "speculation.draft": draft or "unset",
    }
    for key, value in words.items():
        if not _PLAIN.fullmatch(value):
            raise ConfigInvalid(
                f"{key} is {value!r}.", hint="Use letters, digits and any of . _ : / @ + - only."
            )


def _check_pool(pool: Pool) -> None:
    of = f"Pool {pool.name!r}"
    if pool.accelerators > pool.accelerators_per_node and (
        pool.accelerators % pool.accelerators_per_node
    ):
        raise ConfigInvalid(
            f"{of}: a replica takes tp {pool.tp} * pp {pool.pp} * attention_dp "
            f"{pool.attention_dp} = {pool.accelerators} accelerators, and a node has "
            f"{pool.accelerators_per_node}.",
            hint="Make it fill its nodes, or fit on one.",
        )
    if (pool.tp * pool.attention_dp) % pool.ep:
        raise ConfigInvalid(
            f"{of}: ep {pool.ep} does not divide tp {pool.tp} * attention_dp {pool.attention_dp}.",
            hint=f"Take ep 1 or {pool.tp * pool.attention_dp}.",
        )
    if pool.batch < pool.attention_dp:
        raise ConfigInvalid(
            f"{of}: batch {pool.batch} is below attention_dp {pool.attention_dp}, so groups of a "
            "replica would stand idle.",
            hint="Raise batch, or take fewer groups.",
        )
    if pool.prefill_tokens is not None and pool.prefill_tokens < pool.group_batch:
        raise ConfigInvalid(
            f"{of}: prefill_tokens {pool.prefill_tokens} is below the {pool.group_batch} requests "
            "that a group may run, each of which takes a token of every iteration.",
            hint="Raise prefill_tokens or lower batch.",
        )
    for url in pool.urls:
        if not _URL.fullmatch(url):
            raise ConfigInvalid(
                f"{of}: {url!r} is no address of a server.", hint="Write it as http://host:port."
            )
    plain = (*pool.node_selector, *(v for v in pool.node_selector.values() if v), *pool.tiers)
    for word in (*plain, pool.resource, pool.accelerator or "unset"):
        if not _PLAIN.fullmatch(word):
            raise ConfigInvalid(
                f"{of}: {word!r} cannot stand in a manifest.",
                hint="Use letters, digits and any of . _ : / @ + - only.",
            )


def units(deployment: Deployment) -> tuple[Unit, ...]:
    """Which pools answer together: each aggregated pool, and prefill with decode by their tiers.

    Raises:
        ConfigInvalid: a prefill pool has no decode pool for its tiers, or the other way round.
    """
    alone = [p for p in deployment.pools if p.role == "aggregated"]
    split = [p for p in deployment.pools if p.role != "aggregated"]
    kinds = list(dict.fromkeys(tuple(sorted(set(p.tiers))) for p in split))
    single = len(alone) + len(kinds) == 1
    found = [
        Unit(name=_unit_name(deployment, [p], single=single), tiers=p.tiers, aggregated=p)
        for p in alone
    ]
    for tiers in kinds:
        members = [p for p in split if tuple(sorted(set(p.tiers))) == tiers]
        prefill = tuple(p for p in members if p.role == "prefill")
        decode = tuple(p for p in members if p.role == "decode")
        if not prefill or not decode:
            (role, other) = ("prefill", "decode") if prefill else ("decode", "prefill")
            raise ConfigInvalid(
                f"Pool {members[0].name!r} is a {role} pool for the tiers {list(tiers)}, and no "
                f"{other} pool has the same tiers.",
                hint=f"Add a {other} pool with these tiers, or make the role 'aggregated'.",
            )
        found.append(
            Unit(
                name=_unit_name(deployment, decode, single=single),
                tiers=decode[0].tiers,
                aggregated=None,
                prefill=prefill,
                decode=decode,
            )
        )
    return tuple(found)


def _unit_name(deployment: Deployment, pools: Sequence[Pool], *, single: bool) -> str:
    return deployment.name if single else f"{deployment.name}-{pools[0].name}"
