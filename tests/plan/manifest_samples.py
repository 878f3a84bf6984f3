"""Deployments of every kind that an engine runs, and what their manifests say to whom."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tokenworks.plan.manifests.deployment import Deployment, Engine, Pool, Speculation

R1 = "deepseek-ai/DeepSeek-R1"


def pool(name: str = "all", **changes: Any) -> Pool:
    plain = {"role": "aggregated", "replicas": 2, "batch": 64, "accelerators_per_node": 8}
    return msgspec.convert(plain | {"name": name} | changes, Pool)


def deployment(*pools: Pool, engine: Engine = "vllm", **changes: Any) -> Deployment:
    plain = Deployment(name="r1", model=R1, engine=engine, pools=pools or (pool(tp=8),))
    return msgspec.structs.replace(plain, **changes)


def pair(**changes: Any) -> tuple[Pool, Pool]:
    """A prefill and a decode pool."""
    return pool("fill", role="prefill", **changes), pool("write", role="decode", **changes)


MTP = Speculation(kind="mtp", tokens=2)
WIDE = {"attention_dp": 16, "ep": 16, "batch": 512}


def samples(engine: Engine) -> dict[str, Deployment]:
    """By what is special about them."""
    eagle = Speculation(kind="eagle3", tokens=3, draft="lmsys/EAGLE3-R1")
    draft = Speculation(kind="draft", tokens=4, draft="Qwen/Qwen3-0.6B")
    kinds: dict[str, dict[str, Any]] = {
        quantisation: {"quantisation": quantisation}
        for quantisation in ("fp8", "nvfp4", "mxfp4", "awq")
    }
    kinds |= {f"kv {dtype}": {"kv_dtype": dtype} for dtype in ("bf16", "fp8", "fp4")}
    found = {name: deployment(engine=engine, **changes) for name, changes in kinds.items()}
    return found | {
        "plain": deployment(engine=engine),
        "limits": deployment(
            pool(tp=4, pp=2, memory_share=0.85, prefill_tokens=4096, accelerator="h200"),
            engine=engine,
            max_model_tokens=65_536,
        ),
        "mtp": deployment(engine=engine, speculation=MTP),
        "eagle3": deployment(engine=engine, speculation=eagle),
        "draft": deployment(engine=engine, speculation=draft),
        "experts": deployment(pool(attention_dp=8, ep=8, prefill_tokens=8192), engine=engine),
        "nodes": deployment(pool(**WIDE), engine=engine),
        "pair": deployment(*pair(tp=2), engine=engine),
        "mooncake": deployment(*pair(tp=2), engine=engine, transfer="mooncake"),
        "wide pair": deployment(*pair(**WIDE), engine=engine, speculation=MTP, kv_dtype="fp8"),
        "tiers": deployment(
            pool("bulk", tp=8, tiers=["free", "medium"]),
            *pair(tp=4, tiers=["ultra", "premium"]),
            engine=engine,
        ),
        "folder": deployment(engine=engine, path="/models/r1/v1"),
    }


KUBERNETES = {
    "token": {"token_secret": "hf-token"},
    "image": {"image": "registry.example/engine:mine"},
    "claim": {"path": "/models/r1", "volume_claim": "weights"},
    "selector": {
        "pools": (
            pool(tp=8, node_selector={"example.com/gpu": "H200", "idle": ""}, tiers=["high"]),
        )
    },
}


def kubernetes_samples(engine: Engine) -> dict[str, Deployment]:
    """Those above that run in Kubernetes, and what only Kubernetes needs."""
    found = {name: each for name, each in samples(engine).items() if name != "folder"}
    return found | {
        name: deployment(engine=engine, **changes) for name, changes in KUBERNETES.items()
    }


def shell_words(text: str) -> list[str]:
    """The words of the command that a script executes."""
    (command,) = text.split("\nexec ")[1:]
    return shlex.split(command.replace("\\\n", " "))


def containers(value: object) -> Iterator[Mapping[str, Any]]:
    """Every container below a value."""
    if isinstance(value, Mapping):
        yield from value.get("initContainers", [])
        yield from value.get("containers", [])
        for item in value.values():
            yield from containers(item)
    elif isinstance(value, list):
        for item in value:
            yield from containers(item)


def settings(words: list[str]) -> dict[str, str]:
    """Flags with what follows each; nothing for one that stands alone."""
    found: dict[str, str] = {}
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag, _, value = word.partition("=")
            assert flag not in found, flag
            found[flag] = value
        elif flag:
            assert not found[flag], word
            found[flag] = word
    return found
