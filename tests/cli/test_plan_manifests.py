"""``tokenworks plan manifests`` writes files that can be run, and the page shows what it writes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import doc_blocks
import pytest

from tests.cli.command_line import data, done, invoke
from tokenworks.catalogue.factory_config import parse_factory_config
from tokenworks.cli.twin_factory import modelled
from tokenworks.live.home import Home
from tokenworks.twin.scenarios import load_scenario

PAGE = Path(__file__).parent.parent.parent / "docs" / "manifests.md"
FILES = {
    block.words[0]: block.text
    for block in doc_blocks.blocks(PAGE)
    if block.language in {"toml", "text", "yaml"}
}
TARGETS = {
    "chat.toml": ("vllm", "dynamo", "llm-d", "ray", "tokenworks"),
    "r1.toml": ("sglang", "dynamo", "llm-d", "tokenworks"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the deployments of the page, to run commands in."""
    monkeypatch.chdir(tmp_path)
    for name in TARGETS:
        Path(name).write_text(FILES[name])
    return tmp_path


def test_the_page_shows_what_is_written(home: Home, here: Path) -> None:
    for name, targets in TARGETS.items():
        for target in targets:
            done(home, "plan", "manifests", name, "--for", target, "--out", "out")
    shown = {name: text for name, text in FILES.items() if name not in TARGETS}
    assert len(shown) == 6
    for name, text in shown.items():
        assert _fixed((here / "out" / name).read_text()) == _fixed(text), name


def _fixed(text: str) -> list[str]:
    """Without speeds, which follow from the calibration that ships."""
    return [line for line in text.splitlines() if not line.startswith(("curve = ", "# Predicted"))]


def test_the_commands_of_the_page_run(home: Home, here: Path) -> None:
    blocks = [block for block in doc_blocks.blocks(PAGE) if block.language == "bash"]
    commands = [command for block in blocks for command in doc_blocks.commands(block)]
    assert len(commands) == 5
    for command in commands:
        name, *arguments = shlex.split(command)
        assert name == "tokenworks"
        assert done(home, *arguments)
    assert {path.name for path in (here / "cluster").iterdir()} == {
        "r1-modelservers.yaml",
        "r1-router.values.yaml",
    }


@pytest.mark.usefixtures("here")
def test_files_are_printed_under_their_names(home: Home) -> None:
    assert done(home, "plan", "manifests", "chat.toml", "--for", "vllm") == FILES["chat-all.sh"]
    printed = done(home, "plan", "manifests", "r1.toml", "--for", "sglang")
    assert printed.startswith("# file: r1-prefill.sh\n#!/bin/sh\n")
    assert printed.endswith(f"\n# file: r1-decode.sh\n{FILES['r1-decode.sh']}")
    given = json.loads(done(home, "plan", "manifests", "r1.toml", "--for", "sglang", "--json"))
    assert [(f["name"], f["unit"], f["tiers"]) for f in given] == [
        ("r1-prefill.sh", "r1", ["premium"]),
        ("r1-decode.sh", "r1", ["premium"]),
    ]
    assert given[1]["text"] == FILES["r1-decode.sh"]


def test_a_file_that_somebody_changed_is_kept(home: Home, here: Path) -> None:
    command = ("plan", "manifests", "r1.toml", "--for", "sglang", "--out", "out")
    said = done(home, *command)
    assert "out/r1-decode.sh" in said
    assert "premium" in said
    assert done(home, *command) == said  # the same text is no change
    (here / "out" / "r1-decode.sh").write_text("mine")
    (here / "out" / "r1-prefill.sh").unlink()
    refused = invoke(home, *command)
    assert "has r1-decode.sh, with other text" in str(refused.exception)
    assert not (here / "out" / "r1-prefill.sh").exists()
    done(home, *command, "--force")
    assert (here / "out" / "r1-decode.sh").read_text() == FILES["r1-decode.sh"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", b"name: r1", "'a.yaml' ends neither in .toml nor in .json"),
        ("absent.toml", None, "'absent.toml' cannot be read: .*No such file"),
        ("bytes.toml", b"\xff", "'bytes.toml' cannot be read: .*utf-8"),
        ("wrong.json", b"{}", "wrong.json cannot be read: .*missing required field"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    home: Home, here: Path, name: str, text: bytes | None, said: str
) -> None:
    if text is not None:
        (here / name).write_bytes(text)
    result = invoke(home, "plan", "manifests", name, "--for", "vllm")
    with pytest.raises(Exception, match=said):
        raise result.exception or AssertionError(result.output)


@pytest.mark.usefixtures("here")
def test_the_catalogue_has_its_say(home: Home) -> None:
    chat = FILES["chat.toml"]
    for text, said in (
        (chat.replace("h200", "h20"), "The catalogue has no accelerator 'h20'"),
        (chat.replace("tp = 4", "tp = 3"), "tp 3 does not divide the 64 heads of gpt-oss 120B"),
        (chat.replace("h200", "lp30"), "runs on GPUs"),
    ):
        Path("wrong.toml").write_text(text)
        result = invoke(home, "plan", "manifests", "wrong.toml", "--for", "vllm")
        assert said in str(result.exception)
    Path("new.toml").write_text(chat.replace("openai/gpt-oss-120b", "us/new").replace("h200", ""))
    assert "us/new" in done(home, "plan", "manifests", "new.toml", "--for", "vllm")
    Path("own").mkdir()
    Path("own/mine.toml").write_text(
        'kind = "accelerator"\nname = "mine"\ntitle = "Mine"\nfamily = "gpu"\n'
    )
    Path("mine.toml").write_text(chat.replace("h200", "mine"))
    command = ("plan", "manifests", "mine.toml", "--for", "vllm", "--catalogue", "own")
    assert "each 4 mine accelerators" in done(home, *command)


def run(script: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(script), "--seed", "7"],
        env={"PATH": f"{script.parent}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_scripts_start_the_engine(home: Home, here: Path) -> None:
    pair = FILES["r1.toml"].replace('"sglang"', '"vllm"')
    (here / "pair.toml").write_text(pair)
    for name, target in (("chat.toml", "vllm"), ("r1.toml", "sglang"), ("pair.toml", "vllm")):
        done(home, "plan", "manifests", name, "--for", target, "--out", f"{name}.d")
    for name in ("vllm", "python3"):
        for folder in here.glob("*.d"):
            program = folder / name
            program.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
            program.chmod(0o755)
    words = run(here / "chat.toml.d" / "chat-all.sh", PORT="8123").stdout.splitlines()
    assert words[:2] == ["serve", "openai/gpt-oss-120b"]
    assert words[-4:] == ["--port", "8123", "--seed", "7"]
    script = here / "r1.toml.d" / "r1-decode.sh"
    assert "NODE_RANK: is 0 on the first node" in run(script).stderr
    assert "HEAD_ADDRESS: is the address" in run(script, NODE_RANK="0").stderr
    words = run(script, NODE_RANK="3", HEAD_ADDRESS="10.0.0.1").stdout.splitlines()
    assert words[words.index("--dist-init-addr") + 1] == "10.0.0.1:20000"
    script = here / "pair.toml.d" / "r1-decode.sh"
    second = {"NODE_RANK": "1", "HEAD_ADDRESS": "10.0.0.1"}
    assert "ADDRESS: is what other nodes reach" in run(script, **second).stderr
    words = run(script, ADDRESS="10.0.0.2", **second).stdout.splitlines()
    assert words[-3:] == ["--headless", "--seed", "7"]
    transfer = json.loads(words[words.index("--kv-transfer-config") + 1])
    assert transfer == {"kv_connector": "NixlConnector", "kv_role": "kv_consumer"}
    first = run(script, ADDRESS="10.0.0.1", NODE_RANK="0", HEAD_ADDRESS="10.0.0.1")
    assert "--headless" not in first.stdout


def test_our_own_factory_reads_what_is_written_for_it(home: Home, here: Path) -> None:
    for name in ("chat", "r1"):
        done(home, "plan", "manifests", f"{name}.toml", "--for", "tokenworks", "--out", "own")
    chat = parse_factory_config((here / "own" / "chat-factory.toml").read_text()).pool["chat"]
    assert chat.engine == "attached"
    assert len(chat.urls) == 6
    assert chat.slots == 128
    assert chat.cache_salt
    # 24 H200 at 1,370 W each.
    assert chat.power_w == 24 * 1_370
    assert [batch for batch, _ in chat.curve] == [1, 2, 4, 8, 16, 32, 64, 128]
    apart = parse_factory_config((here / "own" / "r1-factory.toml").read_text()).pool["r1"]
    assert apart.urls == ("http://r1:8000",)
    assert apart.slots == 512
    assert apart.power_w == (3 * 8 + 16) * 1_870


@pytest.mark.parametrize("name", ["chat", "r1"])
def test_the_planned_factory_runs_in_the_twin(home: Home, here: Path, name: str) -> None:
    done(home, "plan", "manifests", f"{name}.toml", "--for", "tokenworks", "--out", "own")
    scenario = str(here / "own" / f"{name}-twin.toml")
    ran = json.loads(
        done(
            home, "twin", "run", "--scenario", scenario, "--duration", "20", "--rate", "2", "--json"
        )
    )
    assert ran["all"]["done"] > 0.8 * ran["requests"] > 0
    assert not ran["violations"]
    served = modelled(scenario=scenario, engine=None, workers=None, speedup=1.0, output_tokens=300)
    assert len(served.specs()) == {"chat": 6, "r1": 4}[name]


def test_the_twins_workers_are_as_fast_as_perf_predicts(home: Home, here: Path) -> None:
    done(home, "plan", "manifests", "chat.toml", "--for", "tokenworks", "--out", "own")
    spec = load_scenario(here / "own" / "chat-twin.toml").scenario.workers[0]
    told = {
        load: data(
            home, "perf", "predict", "gpt-oss-120b", "h200", "--engine", "vllm", "--dtype", "fp4",
            "--gpus", "4", "--isl", "1024", "--osl", "512", "--concurrency", str(load),
        )
        for load in (1, 64)
    }  # fmt: skip
    for load, found in told.items():
        step_ms = spec.timing.decode_fs(load, load * 1280) / 1e12
        # About what is predicted, of which prefill beside it is a part.
        assert 0.5 * found["tpot_ms"] < step_ms < 1.2 * found["tpot_ms"]
    prompt_ms = (spec.timing.launch_fs + spec.timing.prefill_fs(1024, 0)) / 1e12
    assert 0.3 * told[1]["ttft_ms"] < prompt_ms < 1.5 * told[1]["ttft_ms"]


def test_what_the_catalogue_does_not_know_is_left_out_and_said(home: Home, here: Path) -> None:
    text = (here / "chat.toml").read_text()
    (here / "odd.toml").write_text(text.replace("openai/gpt-oss-120b", "acme/odd"))
    result = invoke(home, "plan", "manifests", "odd.toml", "--for", "tokenworks", "--out", "own")
    assert result.exit_code == 0
    assert "the catalogue does not know the model 'acme/odd'" in result.output
    assert [path.name for path in (here / "own").iterdir()] == ["chat-factory.toml"]
    pool = parse_factory_config((here / "own" / "chat-factory.toml").read_text()).pool["chat"]
    assert not pool.curve
    (here / "odd.toml").write_text(text.replace('accelerator = "h200"\n', ""))
    result = invoke(home, "plan", "manifests", "odd.toml", "--for", "tokenworks")
    assert "the catalogue does not know the accelerator of 'all'" in result.output


def test_addresses_are_the_deployments_or_names(home: Home, here: Path) -> None:
    text = (here / "chat.toml").read_text()
    urls = 'urls = ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]\n'
    (here / "own.toml").write_text(text + urls)
    printed = done(home, "plan", "manifests", "own.toml", "--for", "tokenworks")
    first = printed.split("# file: ")[1].partition("\n")[2]
    pool = parse_factory_config(first).pool["chat"]
    assert pool.urls == ("http://10.0.0.1:8000", "http://10.0.0.2:8000")
    # Six replicas behind two addresses.
    assert pool.slots == 384
    (here / "own.toml").write_text(text + 'urls = ["ftp://x"]\n')
    wrong = invoke(home, "plan", "manifests", "own.toml", "--for", "tokenworks")
    assert "'ftp://x' is no address of a server" in str(wrong.exception)
    (here / "own.toml").write_text(text.replace("replicas = 6", "replicas = 2000"))
    many = invoke(home, "plan", "manifests", "own.toml", "--for", "tokenworks")
    assert "answers at 2,000 addresses" in str(many.exception)
    (here / "own.toml").write_text(text.replace("replicas = 6", "replicas = 2000") + urls)
    many = invoke(home, "plan", "manifests", "own.toml", "--for", "tokenworks")
    assert "has 2,000 replicas" in str(many.exception)
