"""Mix plans on the command line: text, JSON, pictures, and what is wrong with a question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from tests.cli.command_line import data, done, invoke
from tests.doc_blocks import blocks
from tokenworks.cli import plan_mix_picture
from tokenworks.cli.plan_mix_demand import cached_share
from tokenworks.core.errors import ConfigInvalid, InvalidRequest, TokenworksError
from tokenworks.live.home import Home
from tokenworks.twin.traces import Row

MIX = ("plan", "mix")
SMALL = (*MIX, "--start", "2026-12-01", "--power-mw", "10", "--systems", "vr-nvl72,lpx")
PAGE = Path(__file__).parent.parent.parent / "docs" / "planning-mix.md"


def test_it_runs_with_no_file_and_says_all_that_it_rests_on(home: Home) -> None:
    text = done(home, *MIX, "--start", "2026-12-01")
    first = text.splitlines()[0]
    assert first.startswith("Best for profit: ")
    assert "vr-nvl72" in first
    for said in ("Pools:", "Tiers:", "one more MW", "the promise of ultra", "LPUs", "Left out:"):
        assert said in text
    assert "system lpx: all_in_power_w 160000, " in text
    assert "demand, where none is given" in text


@pytest.mark.parametrize("option", ["--systems", "--without", "--tiers"])
def test_a_list_that_names_none_is_refused(home: Home, option: str) -> None:
    result = invoke(home, *MIX, option, " ,")
    assert isinstance(result.exception, InvalidRequest)
    assert f"{option} names none" in str(result.exception)


def test_a_context_beyond_the_models_is_refused(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    tier = '[tier.a]\nmodel = "deepseek-r1"\nrequests_per_s = 1\ninteractivity_tokens_per_s = 9\n'
    path.write_text(tier + "usd_per_mtok = 1\nprompt_tokens = 10_000_000\n")
    result = invoke(home, *SMALL, str(path))
    assert isinstance(result.exception, ConfigInvalid)
    assert "deepseek-r1 is asked for 10,000,200 tokens of context" in str(result.exception)


@pytest.mark.heavy
def test_the_json_holds_what_the_text_says_and_adds_up(home: Home) -> None:
    found = data(home, *SMALL, "--tornado", "--sweep", "share:ultra", "--what-if", "lpx.ship=+800d")
    plan = found["plan"]
    cost = sum(plan["cost_per_h"].values())
    assert plan["profit_usd_per_h"] == pytest.approx(plan["revenue_usd_per_h"] - cost)
    assert plan["value_usd_per_h"] == pytest.approx(plan["profit_usd_per_h"])
    made = sum(tier["served_tokens_per_s"] for tier in plan["tiers"]) * 3.6e-3
    assert plan["usd_per_mtok"] == pytest.approx(cost / made)
    (other,) = found["what_ifs"]
    assert other["plan"]["lpu_power_share"] == 0
    assert other["plan"]["profit_usd_per_h"] <= plan["profit_usd_per_h"] * (1 + 1e-4)
    assert found["tornado"]
    assert found["sweep"]["points"]
    assert found["question"]["by"] == "2027-12-01"
    assumed = {each["what"]: each["value"] for each in found["assumptions"]}
    assert assumed["system lpx price_usd"] == 3e6


@pytest.mark.heavy
def test_everything_asked_for_is_said(home: Home) -> None:
    text = done(
        home,
        *(*SMALL, "--tiers", "free,ultra", "--sweep", "share:ultra", "--tornado"),
        *("--what-if", "vr-nvl72.ship=2028-01-01", "--what-if", "power_mw=+100%", "--progress"),
    )
    assert "LPUs come in or go out between" in text
    assert "Nothing that decodes can be bought" in text
    assert "With one figure lower or higher" in text
    text = done(
        home, *SMALL, "--tiers", "free", "--sweep", "interactivity:free", "--without", "lpx"
    )
    assert "LPUs have no share anywhere." in text
    text = done(home, *SMALL, "--tiers", "premium", "--sweep", "interactivity:premium")
    assert "LPUs have a share at every point." in text
    poor = done(home, *SMALL, "--tiers", "free", "--pue", "30", "--capital-usd", "1e9")
    assert "Nothing is worth buying." in poor
    assert "of 1,000 million dollars" in poor


def test_steps_are_told_on_standard_error(home: Home) -> None:
    result = invoke(home, *SMALL, "--tiers", "free", "--progress")
    assert "Planning: the best mix …" in result.stderr
    assert not invoke(home, *SMALL, "--tiers", "free", "--no-progress").stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--tiers", "gold"), "no tier 'gold'"),
        (("--systems", "vr-nvl27"), "Near it: vr-nvl72"),
        (("--mix", "free"), "--mix has 'free'"),
        (("--sweep", "ultra"), "Write interactivity:premium or share:ultra"),
        (("--sweep", "share:gold"), "no tier 'gold'"),
        (("--sweep", "share:ultra", "--tornado", "--out", "x.svg"), "one of --sweep and --tornado"),
        (("--power-mw", "0.01"), "The smallest takes"),
        (("--by", "2026-12-01"), "later than 2026-12-01"),
        (("--systems", "gb200-nvl72"), "Promise "),
        (("--site", "moon"), "no site 'moon'"),
    ],
)
def test_what_is_wrong_is_said(home: Home, options: tuple[str, ...], says: str) -> None:
    result = invoke(home, *SMALL, *options)
    assert isinstance(result.exception, TokenworksError)
    assert says in str(result.exception)


def test_a_file_is_read_and_options_override_it(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(done(home, *MIX, "--example"))
    found = data(home, *MIX, str(file), "--power-mw", "15")
    assert found["question"]["power_mw"] == 15
    assert found["question"]["by"] == "2027-03-31"
    assert [tier["tier"] for tier in found["plan"]["tiers"]] == ["high", "premium"]
    assert not any(each.startswith("demand") for each in found["rules"])
    clash = invoke(home, *MIX, str(file), "--mix", "free=1")
    assert isinstance(clash.exception, InvalidRequest)
    file.write_bytes(b"\xff")
    assert isinstance(invoke(home, *MIX, str(file)).exception, ConfigInvalid)


def test_an_engine_as_it_was_measured_may_be_planned_with(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(
        'power_mw = 2\nsystems = ["hgx-h200"]\n[tier.high]\nmodel = "llama-3.1-70b"\n'
        "requests_per_s = 100\nprompt_tokens = 2000\ninteractivity_tokens_per_s = 40\n"
    )
    found = data(home, *MIX, str(file), "--engine", "tensorrt-llm")
    assert {pool["mode"] for pool in found["plan"]["pools"]} <= {"aggregated", "disaggregated"}
    assert any("as calibrated" in rule for rule in found["rules"])
    assert not any(each["what"].startswith("projection") for each in found["assumptions"])
    unknown = invoke(home, *MIX, str(file), "--engine", "abacus")
    assert "no engine 'abacus'" in str(unknown.exception)


def test_a_trace_gives_demand(home: Home, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 3000 * i, "input_length": 1024, "output_length": 100, "hash_ids": [0, i + 1]}
        for i in range(11)
    ]
    trace.write_text("\n".join(map(json.dumps, rows)))
    found = data(
        home, *SMALL, "--trace", str(trace), "--speedup", "100", "--mix", "high=3,premium=1"
    )
    high, premium = found["question"]["tiers"]
    assert high["requests_per_s"] == pytest.approx(3 * premium["requests_per_s"])
    assert high["prompt_tokens"] == 1024
    # Ten of eleven find the first half of their prompt in the cache.
    assert high["cached_share"] == pytest.approx(10 / 22)
    for text, says in (
        ("num_prefill_tokens,num_decode_tokens\n5,5\n", "no arrival times"),
        (json.dumps(rows[0]), "takes no time"),
    ):
        trace.write_text(text)
        result = invoke(home, *SMALL, "--trace", str(trace))
        assert isinstance(result.exception, ConfigInvalid), result.exception
        assert says in str(result.exception)
    trace.write_text("\n".join(map(json.dumps, rows)))
    refused = invoke(home, *SMALL, "--trace", str(trace), "--speedup", "0")
    assert "the speedup 0.0" in str(refused.exception)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    same = Row(at_ns=0, input_tokens=10, output_tokens=1, block_ids=(1,))
    assert cached_share([same, same]) == 9 / 20
    assert cached_share([]) == 0


@pytest.mark.parametrize(
    ("options", "ending"),
    [
        ((), "png"),
        (("--sweep", "share:ultra"), "svg"),
        (("--sweep", "interactivity:free"), "png"),
        (("--tornado",), "svg"),
    ],
)
def test_pictures_are_drawn(
    home: Home, tmp_path: Path, options: tuple[str, ...], ending: str
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"picture.{ending}"
    done(home, *SMALL, "--tiers", "free,ultra", *options, "--out", str(path))
    assert path.stat().st_size > 5_000


def test_a_picture_of_costs_shows_the_margin_where_it_fits(home: Home, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "costs.svg"
    for tiers, drawn in (("free", True), ("ultra", False)):
        done(home, *SMALL, "--tiers", tiers, "--out", str(path))
        assert ("<!-- margin -->" in path.read_text()) is drawn
    done(home, *SMALL, "--tiers", "free", "--pue", "30", "--out", str(path))
    assert "nothing: 0 MW" in path.read_text()


def test_a_swing_without_a_plan_has_one_bar(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "plan.toml"
    file.write_text(
        'power_mw = 0.25\nsystems = ["vr-nvl72"]\n[tier.high]\nrequests_per_s = 3000\n'
        "prompt_tokens = 1000\nat_least = 1\n"
    )
    seen: list[Any] = []
    drawn = plan_mix_picture.draw_tornado
    monkeypatch.setattr(
        plan_mix_picture, "draw_tornado", lambda *given: (seen.append(given[1]), drawn(*given))
    )
    done(home, *MIX, str(file), "--tornado", "--out", str(tmp_path / "tornado.svg"))
    assert any(each.low_usd_per_h is None or each.high_usd_per_h is None for each in seen[0])


def commands_of_the_page() -> list[list[str]]:
    """Their words, without comments and redirections."""
    return [
        line.partition("#")[0].partition(">")[0].split()[1:]
        for block in blocks(PAGE)
        if block.language == "bash"
        for line in block.text.splitlines()
        if line.startswith("tokenworks plan mix")
    ]


@pytest.mark.heavy
def test_the_examples_of_the_page_run(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    commands = commands_of_the_page()
    assert len(commands) >= 6
    (tmp_path / "plan.toml").write_text(done(home, *MIX, "--example"))
    for words in commands:
        done(home, *words)
    assert {path.name for path in tmp_path.iterdir()} >= {"plan.toml", "crossover.svg", "pools"}


@pytest.mark.heavy
def test_the_help_teaches_by_examples_that_work(home: Home, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text = click.unstyle(done(home, *MIX, "--help"))
    assert "mixed-integer programme" in text
    examples = [
        line.split()[1:] for line in text.splitlines() if "  tokenworks plan mix --" in line
    ]
    assert len(examples) == 6
    here = [words for words in examples[1:4] if words not in commands_of_the_page()]
    assert len(here) == 2
    for words in here:
        done(home, *(str(tmp_path / w) if w.endswith((".svg", ".png")) else w for w in words))


def test_the_pools_of_an_engine_become_deployments(home: Home, tmp_path: Path) -> None:
    file, folder = tmp_path / "plan.toml", tmp_path / "pools"
    file.write_text(
        'power_mw = 2\nstart = 2026-12-01\nsystems = ["hgx-h200", "gb200-nvl72"]\n'
        '[tier.high]\nmodel = "deepseek-r1"\nrequests_per_s = 60\nprompt_tokens = 6000\n'
        "interactivity_tokens_per_s = 50\nttft_s = 3\nusd_per_mtok = 20\n"
        '[tier.medium]\nmodel = "llama-3.1-8b"\nrequests_per_s = 100\nprompt_tokens = 200\n'
        "interactivity_tokens_per_s = 30\n"
    )
    asked = (*MIX, str(file), "--engine", "vllm")
    plan = data(home, *asked)["plan"]
    done(home, *asked, "--deployments", str(folder))
    written = sorted(folder.iterdir())
    assert len(written) == len(plan["pools"])
    modes = {pool["mode"] for pool in plan["pools"]}
    assert modes == {"aggregated", "disaggregated"}
    for path in written:
        deployment = json.loads(path.read_text())
        (tier,) = deployment["pools"][0]["tiers"]
        (pool,) = (p for p in plan["pools"] if tier in p["tokens_per_s"])
        roles = {each["role"]: each for each in deployment["pools"]}
        decode = roles.get("decode") or roles["aggregated"]
        assert decode["replicas"] == pool["workers"]
        assert decode["tp"] * decode["attention_dp"] == pool["gpus_per_worker"]
        if "prefill" in roles:
            assert roles["prefill"]["replicas"] == pool["prefill_workers"]
        for target in ("vllm", "llm-d"):
            assert done(home, "plan", "manifests", str(path), "--for", target)
        done(home, "plan", "manifests", str(path), "--for", "tokenworks", "--out", str(tmp_path))
        scenario = str(tmp_path / f"{path.stem}-twin.toml")
        ran = data(home, "twin", "run", "--scenario", scenario, "--duration", "5", "--rate", "2")
        assert ran["all"]["done"] > 0
    for engine, says in (((), "whole workers of an engine"), (("trtllm",), "no manifests of trt")):
        options = ("--engine", *engine) if engine else ()
        wrong = invoke(home, *MIX, str(file), *options, "--deployments", str(folder))
        assert says in str(wrong.exception)


def test_pools_with_lpus_are_left_to_others(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(
        'power_mw = 100\nstart = 2026-12-01\nsystems = ["vr-nvl72", "lpx"]\n'
        '[tier.high]\nmodel = "deepseek-r1"\nrequests_per_s = 20000\nprompt_tokens = 8000\n'
        "interactivity_tokens_per_s = 150\nusd_per_mtok = 30\n"
    )
    asked = (*MIX, str(file), "--engine", "sglang", "--deployments", str(tmp_path / "pools"))
    result = invoke(home, *asked)
    assert "Not written: the pool of high, whose LPUs no engine here runs." in result.output
