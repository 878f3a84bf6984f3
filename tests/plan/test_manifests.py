"""Manifests use names that engines and orchestrators take, and say what the plan says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.plan.manifest_samples import (
    WIDE,
    containers,
    deployment,
    kubernetes_samples,
    pair,
    pool,
    samples,
    settings,
    shell_words,
)
from tests.plan.published_names import FOLDER, faults, published
from tests.plan.yaml_reader import read_yaml
from tokenworks.core.errors import ConfigInvalid
from tokenworks.plan.manifests.arguments import ENGINE_VERSION, IMAGE
from tokenworks.plan.manifests.deployment import Deployment, Engine
from tokenworks.plan.manifests.dynamo import DYNAMO_VERSION
from tokenworks.plan.manifests.llmd import ROUTER_VERSION
from tokenworks.plan.manifests.ray import RAY_VERSION
from tokenworks.plan.manifests.render import TARGETS

ENGINES: tuple[Engine, ...] = ("vllm", "sglang")
DYNAMO = published(f"dynamo-{DYNAMO_VERSION}")
LLMD = published(f"llm-d-router-{ROUTER_VERSION}")
RAY = published(f"ray-{RAY_VERSION}")
KUBERNETES = published("kubernetes-1.37")


def texts(planned: Deployment, target: str) -> dict[str, str]:
    return {file.name: file.text for file in TARGETS[target](planned)}


def check_words(words: list[str], starter: str, engine: Engine, *, more: list[str]) -> None:
    """Every flag is one that the engine takes at that version, and so is every choice."""
    names = published(f"{engine}-{ENGINE_VERSION[starter, engine]}")
    given = settings(words)
    assert set(given) <= {*names["flags"], *more}, set(given) - {*names["flags"], *more}
    if engine == "vllm":
        check_vllm(
            {flag[2:].replace("-", "_"): value for flag, value in given.items()}, names, json.loads
        )
    else:
        for flag, choices in names["choices"].items():
            assert given.get(flag, choices[0]) in choices, (flag, given[flag])


def check_vllm(given: dict[str, Any], names: dict[str, Any], parse: Any) -> None:
    for key in ("kv_cache_dtype", "quantization"):
        assert given.get(key, names[key][0]) in names[key], given[key]
    if "speculative_config" in given:
        guess = parse(given["speculative_config"])
        assert set(guess) <= set(names["speculative_config"])
        assert guess["method"] in names["speculative_methods"]
    if "kv_transfer_config" in given:
        transfer = parse(given["kv_transfer_config"])
        assert set(transfer) <= set(names["kv_transfer_config"])
        assert transfer["kv_connector"] in names["kv_connectors"]
        assert transfer["kv_role"] in names["kv_roles"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", list(samples("vllm")))
def test_scripts_use_the_flags_of_the_engine(engine: Engine, kind: str) -> None:
    planned = samples(engine)[kind]
    for text in texts(planned, engine).values():
        words = shell_words(text)
        assert words[-1] == "$@"
        check_words(words[:-1], "shell", engine, more=[])
        names = published(f"{engine}-{ENGINE_VERSION['shell', engine]}")
        for line in text.splitlines():
            if line.startswith("export "):
                assert line.split()[1].partition("=")[0] in names["environment"]
            if "set -- " in line:
                assert "--headless" in names["flags"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", list(kubernetes_samples("vllm")))
def test_dynamo_takes_its_graphs(engine: Engine, kind: str) -> None:
    planned = kubernetes_samples(engine)[kind]
    shapes = KUBERNETES["definitions"] | DYNAMO["definitions"]
    for text in texts(planned, "dynamo").values():
        (graph,) = read_yaml(text)
        assert faults(graph, shapes["DynamoGraphDeployment"], shapes) == []
        front, *workers = graph["spec"]["components"]
        (container,) = containers(front)
        given = settings(container["args"])
        assert set(given) <= set(DYNAMO["flags"]["frontend"])
        assert given["--router-mode"] in DYNAMO["router_modes"]
        names = [component["name"] for component in graph["spec"]["components"]]
        assert len({name.lower() for name in names}) == len(names)
        for worker in workers:
            (container,) = containers(worker)
            assert container["name"] == DYNAMO["main_container"]
            check_words(container["args"], "dynamo", engine, more=DYNAMO["flags"][engine])
            mode = settings(container["args"]).get("--disaggregation-mode", "agg")
            assert mode in DYNAMO["disaggregation_modes"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", list(kubernetes_samples("vllm")))
def test_kubernetes_takes_the_model_servers_of_llm_d(engine: Engine, kind: str) -> None:
    planned = kubernetes_samples(engine)[kind]
    shapes = KUBERNETES["definitions"]
    shape = {"Deployment": "V1Deployment", "LeaderWorkerSet": "LeaderWorkerSet"}
    for name, text in texts(planned, "llm-d").items():
        if "router" in name:
            continue
        for item in read_yaml(text):
            assert faults(item, shapes[shape[item["kind"]]], shapes) == []
            for container in containers(item):
                if container["name"] == "routing-proxy":
                    given = settings(container["args"])
                    assert set(given) <= set(LLMD["sidecar_flags"])
                    assert given["--kv-connector"] in LLMD["sidecar_connectors"]
                else:
                    check_words(container["args"], "llm-d", engine, more=[])
                    for word in container["args"]:
                        if "$(" in word:
                            assert word[2:].partition(")")[0] in KUBERNETES["environment"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", list(kubernetes_samples("vllm")))
def test_the_router_of_llm_d_takes_its_values(engine: Engine, kind: str) -> None:
    planned = kubernetes_samples(engine)[kind]
    shapes = LLMD["definitions"]
    files = texts(planned, "llm-d")
    for name, text in files.items():
        if "router" not in name:
            continue
        (values,) = read_yaml(text)
        assert faults(values, shapes["Values"], shapes) == []
        picker = values["router"]["epp"]
        for config_text in picker.get("pluginsCustomConfig", {}).values():
            (config,) = read_yaml(config_text)
            assert faults(config, shapes["EndpointPickerConfig"], shapes) == []
            known = {plugin["type"] for plugin in config["plugins"]}
            for profile in config["schedulingProfiles"]:
                assert {plugin["pluginRef"] for plugin in profile["plugins"]} <= known
        if "pluginsCustomConfig" in picker:
            assert picker["pluginsConfigFile"] in picker["pluginsCustomConfig"]
        # Whom the router looks for is who has these labels and answers.
        wanted = values["router"]["modelServers"]["matchLabels"].items()
        servers = read_yaml(files[name.replace("router.values", "modelservers")])
        for server in servers:
            spec = server["spec"]
            template = spec.get("template") or spec["leaderWorkerTemplate"]["leaderTemplate"]
            labels = template["metadata"]["labels"]
            assert wanted <= labels.items()
            if "template" in spec:
                assert spec["selector"]["matchLabels"].items() <= labels.items()
            else:
                assert "metadata" not in spec["leaderWorkerTemplate"]["workerTemplate"]
            assert labels.get(LLMD["role_label"], "decode") in {"prefill", "decode"}
            ports = [port for c in containers(template) for port in c["ports"]]
            assert values["router"]["modelServers"]["targetPorts"][0]["number"] in {
                port["containerPort"] for port in ports
            }


@pytest.mark.parametrize("kind", sorted({*samples("vllm")} - {"mooncake"}))
def test_ray_takes_its_configuration(kind: str) -> None:
    ((_, text),) = texts(samples("vllm")[kind], "ray").items()
    (config,) = read_yaml(text)
    shapes = RAY["definitions"]
    assert faults(config, shapes["ServeDeploySchema"], shapes) == []
    names = published(f"vllm-{ENGINE_VERSION['ray', 'vllm']}")
    for application in config["applications"]:
        given = application["args"]
        assert faults(given, shapes[RAY["builders"][application["import_path"]]], shapes) == []
        for llm in [
            *given.get("llm_configs", []),
            *(v for v in given.values() if "engine_kwargs" in v),
        ]:
            assert set(llm["engine_kwargs"]) <= set(names["engine_fields"])
            check_vllm(llm["engine_kwargs"], names, dict)


def test_versions_are_those_that_the_orchestrators_bring_along() -> None:
    for engine, version in DYNAMO["engines"].items():
        assert ENGINE_VERSION["dynamo", engine] == version
    assert ENGINE_VERSION["ray", "vllm"] == RAY["engines"]["vllm"]
    for engine, image in IMAGE.items():
        assert image.endswith(f":v{ENGINE_VERSION['shell', engine]}")
        assert ENGINE_VERSION["shell", engine] == ENGINE_VERSION["llm-d", engine]


def test_every_list_of_names_says_where_it_is_from() -> None:
    for path in FOLDER.glob("*.json"):
        names = json.loads(path.read_text())
        assert names["licence"] == "Apache-2.0"
        assert names["version"].split(";")[0] in path.name
        assert all(source.startswith("https://github.com/") for source in names["source"])
        assert names["what"]
        assert names["read"]


def test_flags_differ_between_versions_and_so_do_arguments() -> None:
    planned = deployment(pool(attention_dp=8, ep=4, batch=20), engine="sglang")
    (script,) = texts(planned, "sglang").values()
    now = settings(shell_words(script)[:-1])
    assert now["--attn-dp-size"] == "8"
    ((_, text),) = texts(planned, "dynamo").items()
    (graph,) = read_yaml(text)
    (container,) = containers(graph["spec"]["components"][1])
    before = settings(container["args"])
    assert before["--dp-size"] == "8"
    assert before["--enable-dp-attention"] == ""
    assert "--attn-dp-size" not in published("sglang-0.5.21")["flags"]
    # SGLang's cap is of all groups together; 20 requests over 8 groups are up to 3 in each.
    assert now["--max-running-requests"] == before["--max-running-requests"] == "24"


def test_a_replica_is_spread_as_planned() -> None:
    text = texts(deployment(pool(**WIDE)), "llm-d")["r1-modelservers.yaml"]
    (server,) = read_yaml(text)
    group = server["spec"]["leaderWorkerTemplate"]
    assert (server["spec"]["replicas"], group["size"]) == (2, 2)
    first, second = (
        group[name]["spec"]["containers"][0] for name in ("leaderTemplate", "workerTemplate")
    )
    assert first["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    given = settings(first["args"])
    assert given["--tensor-parallel-size"] == "1"
    assert given["--data-parallel-size"] == "16"
    assert given["--enable-expert-parallel"] == ""
    assert given["--max-num-seqs"] == "32"  # of each group; 512 in the replica
    assert "--headless" not in given
    assert "--headless" in settings(second["args"])
    assert "ports" not in second


def test_what_serves_a_tier_has_its_own_address() -> None:
    planned = samples("vllm")["tiers"]
    for target in ("vllm", "dynamo", "llm-d"):
        by_unit = {file.unit: file.tiers for file in TARGETS[target](planned)}
        assert by_unit == {"r1-bulk": ("free", "medium"), "r1-write": ("ultra", "premium")}
    (config,) = read_yaml(texts(planned, "ray")["r1-serve.yaml"])
    places = {a["name"]: a["route_prefix"] for a in config["applications"]}
    assert places == {"r1-bulk": "/r1-bulk", "r1-write": "/r1-write"}


def test_kubernetes_mounts_what_holds_the_weights() -> None:
    planned = kubernetes_samples("vllm")["claim"]
    for target in ("dynamo", "llm-d"):
        text = next(iter(texts(planned, target).values()))
        for container in containers(read_yaml(text)):
            (mount,) = [m for m in container["volumeMounts"] if m["name"] == "weights"]
            assert mount == {"name": "weights", "mountPath": "/models", "readOnly": True}
        assert "claimName: weights" in text
        assert "/models/r1" in text


def test_another_image_of_dynamo_says_which_version_it_is() -> None:
    ((_, text),) = texts(kubernetes_samples("vllm")["image"], "dynamo").items()
    (graph,) = read_yaml(text)
    for component in graph["spec"]["components"]:
        assert component["runtimeVersionOverride"] == DYNAMO_VERSION
        (container,) = containers(component)
        assert container["image"] == "registry.example/engine:mine"


REFUSED = {
    "vllm cannot spread experts over some": (
        "vllm",
        deployment(pool(tp=8, ep=4)),
        "ep is 4; vLLM spreads experts over all .* 8 .*Take ep 1 or 8, or the engine 'sglang'",
    ),
    "mooncake of vllm wants one width": (
        "vllm",
        deployment(
            pool("a", role="prefill", tp=2), pool("b", role="decode", tp=4), transfer="mooncake"
        ),
        r"transfer is 'mooncake' and tp is \[2, 4\].*transfer = 'nixl'",
    ),
    "sglang cannot draft with attention groups": (
        "sglang",
        deployment(
            pool(attention_dp=8), engine="sglang", speculation=samples("vllm")["draft"].speculation
        ),
        "attention_dp is 1, and it is 8.*'mtp' or 'eagle3'",
    ),
    "another engine": ("sglang", deployment(), "planned for vllm, and sglang was asked"),
    "the other engine": ("vllm", deployment(engine="sglang"), "planned for sglang, and vllm was"),
    "ray runs vllm": (
        "ray",
        deployment(engine="sglang"),
        "'sglang'; Ray Serve LLM .* runs vLLM only",
    ),
    "ray pairs two": (
        "ray",
        deployment(*pair(), pool("more", role="decode")),
        r"\['fill', 'write', 'more'\]; Ray Serve LLM pairs one prefill pool",
    ),
    "ray has nixl": ("ray", deployment(*pair(), transfer="mooncake"), "Take transfer = 'nixl'"),
    "ray has no node selector": (
        "ray",
        deployment(pool(node_selector={"a": "b"})),
        "has a node_selector; Ray Serve LLM places by accelerator",
    ),
    "ray keeps a group on a node": (
        "ray",
        deployment(pool(tp=16, attention_dp=2)),
        "tp 16 [*] pp 1 is more than the 8 accelerators of a node",
    ),
    "ray knows some accelerators": (
        "ray",
        deployment(pool(accelerator="rubin")),
        "knows no accelerator 'rubin'.*It knows h100, .*Leave accelerator out",
    ),
    "a folder in dynamo": (
        "dynamo",
        deployment(path="/models/r1"),
        "needs the claim of the volume",
    ),
    "a claim without a folder": ("llm-d", deployment(volume_claim="x"), "takes none"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_run_is_refused_with_what_to_do(case: str) -> None:
    target, planned, words = REFUSED[case]
    with pytest.raises(ConfigInvalid) as caught:
        TARGETS[target](planned)
    assert re.search(words, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("value", "shape", "said"),
    [
        (1, {"type": "string"}, "not string"),
        (True, {"type": "integer"}, "not integer"),
        ("c", {"enum": ["a", "b"]}, "not one of"),
        (0, {"type": "integer", "minimum": 1}, "below 1"),
        ("a b", {"type": "string", "pattern": "^[a-z]*$"}, "not like"),
        ("abc", {"type": "string", "maxLength": 2}, "too long"),
        ([1, 2], {"type": "array", "maxItems": 1}, "2 items"),
        ([{"b": 1}], {"type": "array", "items": {"$ref": "T"}}, r"[0] has no b"),
        ({}, {"type": "object", "required": ["a"]}, "lacks a"),
        ({"k": 1}, {"type": "object", "additionalProperties": {"type": "string"}}, ".k is 1"),
        ({"a": {"b": 2}}, {"properties": {"a": {"$ref": "T"}}}, ".a has no b"),
    ],
)
def test_the_check_against_shapes_can_fail(value: Any, shape: Any, said: str) -> None:
    named = {"T": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    (fault,) = faults(value, shape, named)
    assert said in fault
    assert faults({"a": 1}, named["T"], named) == []
