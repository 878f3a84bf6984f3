"""Command lines of vLLM and SGLang: a script per pool, run once per replica and node."""

from __future__ import annotations

import shlex
from typing import Final

from tokenworks.plan.manifests.arguments import arguments, engine_words
from tokenworks.plan.manifests.deployment import Deployment, Pool, Unit, units
from tokenworks.plan.manifests.manifest import Manifest, heading

_RENDEZVOUS_PORT: Final = 20_000


def shell_manifests(deployment: Deployment) -> tuple[Manifest, ...]:
    """A script for each pool.

    Raises:
        ConfigInvalid: the engine cannot run a pool so.
    """
    return tuple(
        Manifest(
            name=f"{deployment.name}-{pool.name}.sh",
            text=_script(deployment, unit, pool),
            unit=unit.name,
            tiers=unit.tiers,
        )
        for unit in units(deployment)
        for pool in unit.pools
    )


def _script(deployment: Deployment, unit: Unit, pool: Pool) -> str:
    lines = ["#!/bin/sh"]
    lines += [f"# {line}" for line in heading(deployment, unit, engine_words(deployment, "shell"))]
    lines += [
        f"# Starts pool {pool.name}: run it once per replica and node. PORT is where it answers;",
        "# what else it needs it asks for. Arguments are handed on to the engine.",
    ]
    if pool.role != "aggregated":
        lines.append("# A router in front sends each request to a prefill and to a decode replica.")
    lines.append("set -eu")
    words = arguments(deployment, pool, "shell")
    if pool.nodes > 1:
        lines.append(': "${NODE_RANK:?is 0 on the first node of a replica, then 1, 2, ...}"')
        lines.append(': "${HEAD_ADDRESS:?is the address of the first node of this replica}"')
    if deployment.engine == "vllm":
        lines += _vllm_lines(deployment, pool)
        command = ["vllm", "serve", deployment.weights]
    else:
        command = ["python3", "-m", "sglang.launch_server", "--model-path", deployment.weights]
    rows = [" ".join(map(shlex.quote, command)), *_rows(words)]
    rows += ['--host 0.0.0.0 --port "${PORT:-8000}"', *_node_rows(deployment, pool), '"$@"']
    return "\n".join([*lines, "exec " + " \\\n  ".join(rows)]) + "\n"


def _vllm_lines(deployment: Deployment, pool: Pool) -> list[str]:
    lines = []
    if pool.role != "aggregated" and deployment.transfer == "nixl":
        lines.append(
            'export VLLM_NIXL_SIDE_CHANNEL_HOST="${ADDRESS:?is what other nodes reach this one by}"'
        )
        lines.append('export VLLM_NIXL_SIDE_CHANNEL_PORT="${SIDE_PORT:-5600}"')
    elif pool.role != "aggregated":
        lines.append('export VLLM_MOONCAKE_BOOTSTRAP_PORT="${SIDE_PORT:-8998}"')
    if pool.nodes > 1:
        lines.append('[ "$NODE_RANK" = 0 ] || set -- --headless "$@"')
    return lines


def _node_rows(deployment: Deployment, pool: Pool) -> list[str]:
    rows = []
    if deployment.engine == "sglang" and pool.role == "prefill":
        rows.append('--disaggregation-bootstrap-port "${SIDE_PORT:-8998}"')
    if pool.nodes > 1:
        meet = '--master-addr "$HEAD_ADDRESS"'
        if deployment.engine == "sglang":
            meet = f'--dist-init-addr "$HEAD_ADDRESS:{_RENDEZVOUS_PORT}"'
        rows.append(f'--nnodes {pool.nodes} --node-rank "$NODE_RANK" {meet}')
    return rows


def _rows(words: tuple[str, ...]) -> list[str]:
    """A flag and its value on each row."""
    rows: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            rows.append([word])
        else:
            rows[-1].append(word)
    return [" ".join(map(shlex.quote, row)) for row in rows]
