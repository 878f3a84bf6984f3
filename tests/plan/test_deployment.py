"""Deployments are read, checked, and split into what answers together."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from tests.plan.manifest_samples import MTP, deployment, kubernetes_samples, pair, pool
from tokenworks.core.errors import ConfigInvalid
from tokenworks.live.catalogue_files import read_catalogue
from tokenworks.plan.manifests.deployment import (
    POOLS_MAX,
    TEXT_CHARACTERS_MAX,
    check_deployment,
    parse_deployment,
    units,
)
from tokenworks.plan.manifests.feasible import check_accelerator, check_model

PLAIN: dict[str, Any] = {
    "name": "r1",
    "model": "r1",
    "engine": "vllm",
    "pools": [
        {
            "name": "all",
            "role": "aggregated",
            "replicas": 1,
            "batch": 8,
            "accelerators_per_node": 8,
        }
    ],
}


def test_toml_and_json_say_the_same() -> None:
    toml = (
        'name = "r1"\nmodel = "r1"\nengine = "vllm"\n[[pools]]\nname = "all"\n'
        'role = "aggregated"\nreplicas = 1\nbatch = 8\naccelerators_per_node = 8\n'
    )
    read = parse_deployment(toml, where="a.toml", form="toml")
    assert read == parse_deployment(json.dumps(PLAIN), where="a.json", form="json")
    assert read.weights == "r1"
    assert msgspec.structs.replace(read, path="elsewhere").weights == "elsewhere"


@pytest.mark.parametrize("kind", list(kubernetes_samples("vllm")))
def test_what_a_planner_made_can_be_kept_in_a_file(kind: str) -> None:
    planned = kubernetes_samples("vllm")[kind]
    text = msgspec.json.encode(planned).decode()
    assert parse_deployment(text, where="a.json", form="json") == planned


@pytest.mark.parametrize(
    ("text", "form", "said"),
    [
        ("name = ", "toml", "a file cannot be read: Invalid value"),
        ("{", "json", "a file cannot be read"),
        (json.dumps(PLAIN | {"engin": "vllm"}), "json", "unknown field `engin`.*docs/manifests"),
        (json.dumps(PLAIN | {"engine": "llama.cpp"}), "json", "Invalid enum value 'llama.cpp'"),
        (json.dumps(PLAIN | {"pools": [{"name": "all"}]}), "json", "missing required field"),
        ("x" * (TEXT_CHARACTERS_MAX + 1), "json", "has 1000001 characters; at most 1000000"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, form: Any, said: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse_deployment(text, where="a file", form=form)
    assert re.search(said, str(caught.value)), str(caught.value)


WRONG = {
    "no pool": (msgspec.structs.replace(deployment(), pools=()), "has 0 pools"),
    "too many": (
        deployment(*(pool(f"p{n}") for n in range(POOLS_MAX + 1))),
        f"has {POOLS_MAX + 1} pools.*several deployments",
    ),
    "a name": (deployment(name="R1"), "The name 'R1' cannot be used.*lower-case"),
    "a long name": (deployment(pool("p" * 25)), "cannot be used.*24 at most"),
    "a name that ends in a dash": (deployment(name="r-"), "The name 'r-' cannot"),
    "two of a name": (deployment(pool(), pool()), r"same name, of \['all', 'all'\]"),
    "mtp and a draft": (
        deployment(speculation=msgspec.structs.replace(MTP, draft="d")),
        "speculation.kind is 'mtp' and speculation.draft 'd'.*takes no draft",
    ),
    "no draft": (
        deployment(speculation=msgspec.structs.replace(MTP, kind="draft")),
        "speculation.kind is 'draft' and speculation.draft ''.*need one",
    ),
    "a model that is code": (deployment(model="$(rm)"), r"model is '\$\(rm\)'"),
    "a path of spaces": (deployment(path="/a b"), "path is '/a b'.*Use letters"),
    "an image of lines": (deployment(image="a\nb"), "image is"),
    "a draft that is a flag": (
        deployment(speculation=msgspec.structs.replace(MTP, kind="draft", draft="--x")),
        "speculation.draft is '--x'",
    ),
    "a part of a node": (
        deployment(pool(tp=6, attention_dp=2)),
        "tp 6 [*] pp 1 [*] attention_dp 2 = 12 accelerators, and a node has 8.*fill its nodes",
    ),
    "experts over too many": (
        deployment(pool(tp=8, ep=16)),
        "ep 16 does not divide tp 8 [*] attention_dp 1.*Take ep 1 or 8",
    ),
    "idle groups": (
        deployment(pool(attention_dp=8, batch=4)),
        "batch 4 is below attention_dp 8.*Raise batch",
    ),
    "short iterations": (
        deployment(pool(prefill_tokens=32)),
        "prefill_tokens 32 is below the 64 requests.*Raise prefill_tokens",
    ),
    "a tier of two words": (deployment(pool(tiers=["a b"])), "'a b' cannot stand in a manifest"),
    "a label with a quote": (
        deployment(pool(node_selector={"a": 'b"'})),
        "cannot stand in a manifest",
    ),
    "prefill alone": (
        deployment(pool("fill", role="prefill", tiers=["high"])),
        r"'fill' is a prefill pool for the tiers \['high'\], and no decode pool has the same",
    ),
    "decode alone": (
        deployment(*pair(tiers=["high"]), pool("more", role="decode")),
        r"'more' is a decode pool for the tiers \[\], and no prefill pool.*Add a prefill pool",
    ),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_what_contradicts_itself_is_refused_with_what_to_do(case: str) -> None:
    planned, said = WRONG[case]
    with pytest.raises(ConfigInvalid) as caught:
        check_deployment(planned)
    assert re.search(said, str(caught.value)), str(caught.value)


def test_pools_with_the_same_tiers_work_together() -> None:
    planned = deployment(
        pool("bulk"),
        *pair(tiers=["high", "ultra"]),
        pool("more", role="decode", tiers=["ultra", "high"]),
    )
    check_deployment(planned)
    bulk, fast = units(planned)
    assert (bulk.name, [p.name for p in bulk.pools], bulk.tiers) == ("r1-bulk", ["bulk"], ())
    assert (fast.name, [p.name for p in fast.pools]) == ("r1-write", ["fill", "write", "more"])
    assert fast.tiers == ("high", "ultra")
    (alone,) = units(deployment(pool("bulk")))
    assert alone.name == "r1"


@pytest.mark.parametrize(
    ("tp", "pp", "groups", "nodes", "here"),
    [(1, 1, 1, 1, 1), (8, 1, 1, 1, 8), (8, 2, 1, 2, 8), (2, 1, 16, 4, 8), (3, 1, 2, 1, 6)],
)
def test_accelerators_of_a_replica_fill_its_nodes(
    tp: int, pp: int, groups: int, nodes: int, here: int
) -> None:
    spread = pool(tp=tp, pp=pp, attention_dp=groups, batch=50)
    assert spread.accelerators == tp * pp * groups
    assert (spread.nodes, spread.accelerators_here) == (nodes, here)
    assert spread.group_batch * groups >= 50 > (spread.group_batch - 1) * groups


IMPOSSIBLE = {
    "too long": (
        "r1",
        {"max_model_tokens": 200_000},
        "max_model_tokens is 200000; DeepSeek R1 was trained for 163840.*or less",
    ),
    "no mtp": (
        "qwen3-32b",
        {"speculation": MTP},
        "'mtp'; Qwen3 32B has no layers that predict ahead",
    ),
    "heads": ("qwen3-32b", {"tp": 3}, "tp 3 does not divide the 64 heads of Qwen3 32B"),
    "stages": ("qwen3-32b", {"pp": 65}, "pp 65 is more than the 64 layers"),
    "no experts": (
        "qwen3-32b",
        {"attention_dp": 2},
        "ep is 1 and attention_dp 2; Qwen3 32B has no experts.*more replicas",
    ),
    "experts": ("gpt-oss-120b", {"tp": 64, "attention_dp": 3, "ep": 96}, "does not divide the 128"),
}


@pytest.mark.parametrize("case", list(IMPOSSIBLE))
def test_what_a_model_rules_out_is_refused_with_what_to_do(case: str) -> None:
    name, changes, said = IMPOSSIBLE[case]
    catalogue = read_catalogue()
    model = catalogue.model({"r1": "deepseek-r1"}.get(name, name))
    spread = {k: v for k, v in changes.items() if k in {"tp", "pp", "attention_dp", "ep"}}
    other = {k: v for k, v in changes.items() if k not in spread}
    with pytest.raises(ConfigInvalid) as caught:
        check_model(deployment(pool(**spread), **other), model)
    assert re.search(said, str(caught.value)), str(caught.value)


def test_what_a_model_allows_passes() -> None:
    catalogue = read_catalogue()
    wide = deployment(pool(attention_dp=8, ep=8), speculation=MTP, max_model_tokens=163_840)
    check_model(wide, catalogue.model("deepseek-r1"))
    check_model(deployment(pool(tp=8, pp=2)), catalogue.model("qwen3-32b"))
    boundless = msgspec.structs.replace(catalogue.model("qwen3-32b"), context_tokens_max=0)
    check_model(deployment(max_model_tokens=10**6), boundless)


def test_engines_run_on_gpus() -> None:
    catalogue = read_catalogue()
    planned = deployment(pool(accelerator="h200"))
    check_accelerator(planned, planned.pools[0], catalogue.accelerator("h200"))
    with pytest.raises(ConfigInvalid, match=r"'all' is placed on .*, an LPU; vllm runs on GPUs"):
        check_accelerator(planned, planned.pools[0], catalogue.accelerator("lp30"))
