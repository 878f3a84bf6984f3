"""The command-line arguments of vLLM and SGLang for a pool, at the versions that are named here.

Flags differ between versions, so each orchestrator's arguments are those of the engine's version
that it brings along. Tests hold every flag and every choice against the lists of names that the
engines' own parsers take at these versions (``tests/plan/published``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from tokenworks.core.errors import ConfigInvalid
from tokenworks.plan.manifests.deployment import Deployment, Engine, Pool, Speculation
from tokenworks.plan.manifests.yaml_text import Value

ENGINE_VERSION: Final[Mapping[tuple[str, Engine], str]] = {
    ("shell", "vllm"): "0.33.0",
    ("shell", "sglang"): "0.5.23",
    ("dynamo", "vllm"): "0.31.0",
    ("dynamo", "sglang"): "0.5.21",
    ("llm-d", "vllm"): "0.33.0",
    ("llm-d", "sglang"): "0.5.23",
    ("ray", "vllm"): "0.29.0",
}
"""By who starts the engine. Dynamo 1.6.1 and Ray 2.60.0 pin theirs; the others take any."""

_TITLE: Final[Mapping[Engine, str]] = {"vllm": "vLLM", "sglang": "SGLang"}
IMAGE: Final[Mapping[Engine, str]] = {
    "vllm": "docker.io/vllm/vllm-openai:v0.33.0",
    "sglang": "docker.io/lmsysorg/sglang:v0.5.23",
}
"""Of the versions that ``shell`` and ``llm-d`` name."""

_QUANTISATION: Final = {"fp8": "fp8", "nvfp4": "modelopt_fp4", "mxfp4": "mxfp4", "awq": "awq"}
_KV_DTYPE: Final[Mapping[Engine, Mapping[str, str]]] = {
    "vllm": {"bf16": "bfloat16", "fp8": "fp8", "fp4": "nvfp4"},
    "sglang": {"bf16": "bf16", "fp8": "fp8_e4m3", "fp4": "nvfp4"},
}
_METHOD: Final[Mapping[Engine, Mapping[str, str]]] = {
    "vllm": {"mtp": "mtp", "eagle3": "eagle3", "draft": "draft_model"},
    "sglang": {"mtp": "NEXTN", "eagle3": "EAGLE3", "draft": "STANDALONE"},
}
_CONNECTOR: Final = {"nixl": "NixlConnector", "mooncake": "MooncakeConnector"}
_ATTENTION_DP_SINCE: Final = (0, 5, 23)
"""SGLang's ``--attn-dp-size``, which takes the place of ``--enable-dp-attention``."""


def arguments(deployment: Deployment, pool: Pool, starter: str) -> tuple[str, ...]:
    """What follows the engine's command and the place of the weights; no host, port or node.

    Args:
        deployment: that the pool is of.
        pool: whose replicas are started.
        starter: who starts them, as in ``ENGINE_VERSION``.

    Raises:
        ConfigInvalid: the engine cannot run the pool so.
    """
    if deployment.engine == "vllm":
        return _vllm(deployment, pool)
    return _sglang(deployment, pool, ENGINE_VERSION[starter, "sglang"])


def engine_words(deployment: Deployment, starter: str) -> str:
    """The engine and its version, for people; ``starter`` as in ``ENGINE_VERSION``."""
    return f"{_TITLE[deployment.engine]} {ENGINE_VERSION[starter, deployment.engine]}"


def vllm_settings(deployment: Deployment, pool: Pool) -> dict[str, Value]:
    """VLLM's settings by the names of its ``EngineArgs``.

    Raises:
        ConfigInvalid: vLLM cannot run the pool so.
    """
    if pool.ep not in {1, pool.tp * pool.attention_dp}:
        raise ConfigInvalid(
            f"Pool {pool.name!r}: ep is {pool.ep}; vLLM spreads experts over all of tp {pool.tp} * "
            f"attention_dp {pool.attention_dp} accelerators, or over none.",
            hint=f"Take ep 1 or {pool.tp * pool.attention_dp}, or the engine 'sglang'.",
        )
    found: dict[str, Value] = {"tensor_parallel_size": pool.tp}
    if pool.pp > 1:
        found["pipeline_parallel_size"] = pool.pp
    if pool.attention_dp > 1:
        found["data_parallel_size"] = pool.attention_dp
    if pool.ep > 1:
        found["enable_expert_parallel"] = True
    found["max_num_seqs"] = pool.group_batch
    if pool.prefill_tokens is not None:
        found["max_num_batched_tokens"] = pool.prefill_tokens
    if deployment.max_model_tokens is not None:
        found["max_model_len"] = deployment.max_model_tokens
    if pool.memory_share is not None:
        found["gpu_memory_utilization"] = pool.memory_share
    if deployment.quantisation != "checkpoint":
        found["quantization"] = _QUANTISATION[deployment.quantisation]
    if deployment.kv_dtype != "auto":
        found["kv_cache_dtype"] = _KV_DTYPE["vllm"][deployment.kv_dtype]
    if deployment.speculation is not None:
        found["speculative_config"] = _vllm_speculation(deployment.speculation)
    if pool.role != "aggregated":
        found["kv_transfer_config"] = _vllm_transfer(deployment, pool)
    return found


def _vllm(deployment: Deployment, pool: Pool) -> tuple[str, ...]:
    words = ["--served-model-name", deployment.model]
    for name, value in vllm_settings(deployment, pool).items():
        words.append("--" + name.replace("_", "-"))
        if isinstance(value, Mapping):
            words.append(json.dumps(value, separators=(",", ":")))
        elif value is not True:
            words.append(str(value))
    return tuple(words)


def _vllm_speculation(spec: Speculation) -> dict[str, Value]:
    draft: dict[str, Value] = {"model": spec.draft} if spec.draft else {}
    method = _METHOD["vllm"][spec.kind]
    return {"method": method, **draft, "num_speculative_tokens": spec.tokens}


def _vllm_transfer(deployment: Deployment, pool: Pool) -> dict[str, Value]:
    if deployment.transfer == "mooncake":
        widths = {p.tp for p in deployment.pools if p.role != "aggregated"}
        if len(widths) > 1:
            raise ConfigInvalid(
                f"transfer is 'mooncake' and tp is {sorted(widths)}: with vLLM, Mooncake wants the "
                "same tp in prefill and decode pools.",
                hint="Take the same tp, or transfer = 'nixl'.",
            )
    return {
        "kv_connector": _CONNECTOR[deployment.transfer],
        "kv_role": "kv_producer" if pool.role == "prefill" else "kv_consumer",
    }


def _sglang(deployment: Deployment, pool: Pool, version: str) -> tuple[str, ...]:
    words = ["--served-model-name", deployment.model]
    words += ["--tp-size", str(pool.tp * pool.attention_dp)]
    if pool.pp > 1:
        words += ["--pp-size", str(pool.pp)]
    if pool.attention_dp > 1 and _numbers(version) >= _ATTENTION_DP_SINCE:
        words += ["--attn-dp-size", str(pool.attention_dp)]
    elif pool.attention_dp > 1:
        words += ["--dp-size", str(pool.attention_dp), "--enable-dp-attention"]
    if pool.ep > 1:
        words += ["--ep-size", str(pool.ep)]
    # SGLang divides both by the number of attention groups, so they are given for all of them.
    words += ["--max-running-requests", str(pool.group_batch * pool.attention_dp)]
    if pool.prefill_tokens is not None:
        words += ["--chunked-prefill-size", str(pool.prefill_tokens * pool.attention_dp)]
    if deployment.max_model_tokens is not None:
        words += ["--context-length", str(deployment.max_model_tokens)]
    if pool.memory_share is not None:
        words += ["--mem-fraction-static", str(pool.memory_share)]
    if deployment.quantisation != "checkpoint":
        words += ["--quantization", _QUANTISATION[deployment.quantisation]]
    if deployment.kv_dtype != "auto":
        words += ["--kv-cache-dtype", _KV_DTYPE["sglang"][deployment.kv_dtype]]
    if deployment.speculation is not None:
        words += _sglang_speculation(deployment.speculation, pool)
    if pool.role != "aggregated":
        words += ["--disaggregation-mode", pool.role]
        words += ["--disaggregation-transfer-backend", deployment.transfer]
    return tuple(words)


def _sglang_speculation(spec: Speculation, pool: Pool) -> list[str]:
    if spec.kind == "draft" and pool.attention_dp > 1:
        raise ConfigInvalid(
            f"Pool {pool.name!r}: SGLang drafts with a model of its own only where attention_dp is "
            f"1, and it is {pool.attention_dp}.",
            hint="Take speculation.kind 'mtp' or 'eagle3', attention_dp 1, or the engine 'vllm'.",
        )
    words = ["--speculative-algorithm", _METHOD["sglang"][spec.kind]]
    if spec.draft:
        words += ["--speculative-draft-model-path", spec.draft]
    words += ["--speculative-num-steps", str(spec.tokens)]
    words += ["--speculative-eagle-topk", "1"]
    return [*words, "--speculative-num-draft-tokens", str(spec.tokens + 1)]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
