"""``--system`` on the command line: kinds of worker by name, where their speed is from, by kind."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command_line import ask, data, done, invoke
from tests.doc_blocks import SHELLS, blocks, commands
from tokenworks.cli import twin_bound
from tokenworks.core.errors import ConfigInvalid, InvalidRequest
from tokenworks.live.home import Home

MIXED = ("--system", "vr-nvl72x1=2", "--system", "vr-nvl72x1+lpx", "--model", "gpt-oss-120b")
SHORT = ("--rate", "60", "--duration", "2")
PAGE = Path(__file__).parent.parent.parent / "docs" / "twin.md"
HAS_SCIPY = importlib.util.find_spec("scipy") is not None


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No linear programme, unless a test asks for one."""
    monkeypatch.setattr(twin_bound, "_has_scipy", lambda: False)


def test_a_run_says_what_its_workers_are_and_what_each_kind_came_to(home: Home) -> None:
    found = data(home, "twin", "run", *MIXED, *SHORT)
    assert found["scenario"] == "2 vr-nvl72x1, 1 vr-nvl72x1+lpx"
    gpus, shared = found["machines"]
    assert (gpus["mode"], gpus["gpus"], gpus["lpus"], gpus["workers"]) == ("gpu", 1, 0, 2)
    assert (shared["mode"], shared["source"], shared["lpus"]) == ("gpu+lpu", "projected", 256)
    assert "system lpx price_usd" in {each["what"] for each in shared["assumptions"]}
    assert shared["power_w"] > 160_000 > gpus["power_w"]
    assert shared["tokens_per_s_per_user"]["64"] > 2 * gpus["tokens_per_s_per_user"]["64"]
    assert [each["pool"] for each in found["kinds"]] == ["vr-nvl72x1", "vr-nvl72x1+lpx"]
    revenue = sum(each["revenue_nanodollars"] for each in found["kinds"])
    assert revenue == found["revenue_nanodollars"] > 0
    assert found["kinds"][1]["cost_usd_per_mtok"] > found["kinds"][0]["cost_usd_per_mtok"]


def test_a_run_is_shown_to_people_by_kind(home: Home) -> None:
    text = done(home, "twin", "run", *MIXED, *SHORT)
    for words in (
        "vr-nvl72x1+lpx: projected by 'keynote' of fp4 weights; the twin's law is slower by",
        "Assumed: ",
        "system lpx all_in_power_w = 160000",
        "By kind of worker, with the promises kept of the answers that ended there:",
        "ultra kept",
        "$ per 1M",
    ):
        assert words in text
    one = done(home, "twin", "run", "--system", "h200x4", "--model", "llama-3.1-70b", *SHORT)
    assert "calibrated on 63 measured rows of trtllm with fp8 weights" in one
    assert "the twin's law is off by at most" in one
    assert "By kind of worker" not in one


def test_a_run_in_closed_form_is_the_exact_one(home: Home) -> None:
    closed, exact = (
        data(home, "twin", "run", *MIXED, *SHORT, *words)["journal_digest"]
        for words in ((), ("--exact",))
    )
    assert closed == exact


def test_a_kind_that_did_nothing_has_no_cost_by_token(home: Home) -> None:
    idle = ("--system", "vr-nvl72=2", "--system", "hgx-h200:prefill", "--model", "gpt-oss-120b")
    text = done(home, "twin", "run", *idle, "--rate", "1", "--duration", "2")
    assert "hgx-h200:prefill" in text


def test_policies_are_compared_on_systems(home: Home) -> None:
    few = ("--policies", "economic,round-robin")
    found = data(home, "twin", "compare", *MIXED, *SHORT, *few)
    assert len(found["machines"]) == 2
    for row in found["policies"]:
        assert sum(each["output_tokens"] for each in row["kinds"]) == row["all"]["output_tokens"]
    assert "projected by 'keynote'" in done(home, "twin", "compare", *MIXED, *SHORT, *few)


def test_the_examples_of_the_page_run(home: Home) -> None:
    """For a second each; what is served has a test of its own."""
    shells = [block for block in blocks(PAGE) if block.language in SHELLS]
    every = [command for block in shells for command in commands(block)]
    asked = [shlex.split(command) for command in every if "--system" in command]
    assert len(asked) > 3
    for words in asked:
        if words[1] == "twin":
            assert done(home, *words[1:], "--duration", "1")


@pytest.mark.skipif(not HAS_SCIPY, reason="the extra plan is not installed")
def test_load_is_of_what_the_systems_carry(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twin_bound, "_has_scipy", lambda: True)
    found = data(home, "twin", "run", *MIXED, *SHORT, "--load", "0.5")
    assert found["speedup"] > 1
    assert 0 < found["fluid_bound_share"] <= 1


@pytest.mark.skipif(not HAS_SCIPY, reason="the extra plan is not installed")
def test_load_names_the_tiers_that_no_worker_can_keep(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin_bound, "_has_scipy", lambda: True)
    slow = ("--system", "hgx-h200x4", "--model", "gpt-oss-120b", *SHORT, "--load", "1")
    caught = invoke(home, "twin", "run", *slow).exception
    assert isinstance(caught, ConfigInvalid)
    assert "promised to premium, ultra. Leave these tiers out" in str(caught)
    assert data(home, "twin", "run", *slow, "--mix", "free=3,medium=1")["speedup"] > 0


BOOK = """
name = "mine"
effective = 2026-11-24
source = "mine"
ad_income_udollars_per_mtok = 0
"""


def own_book(model: str) -> str:
    lines = [BOOK]
    for place, tier in enumerate(("free", "medium", "high", "premium", "ultra")):
        lines += [f"[tier.{tier}]", "ttft_ms = 9000", f"interactivity_tokens_per_s = {place + 1}"]
        lines += ["grace_ms = 0", "patience_ms = 9000", "output_tokens_default = 100"]
        lines += [f'[price."{model}".{tier}]', "input_udollars_per_mtok = 1"]
        lines += ["cached_input_udollars_per_mtok = 1", f"output_udollars_per_mtok = {place}"]
    return "\n".join(lines)


def test_a_price_book_of_ones_own_holds(home: Home) -> None:
    home.make()
    path = home.path / "prices.toml"
    path.write_text(own_book("gpt-oss-120b"))
    plain = data(home, "twin", "run", *MIXED, *SHORT)
    found = data(home, "twin", "run", *MIXED, *SHORT, "--price-book", str(path))
    assert found["price_id"] != plain["price_id"]
    assert found["all"]["promise_kept_share"] == 1.0
    missing = invoke(home, "twin", "run", *MIXED, "--price-book", str(home.path / "none.toml"))
    assert "cannot be read" in str(missing.exception)
    path.write_text(own_book("another"))
    other = invoke(home, "twin", "run", *MIXED, "--price-book", str(path))
    assert "has no price" in str(other.exception)


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (("--system", "hgx-h200"), InvalidRequest, "gpt-oss-120b"),
        (("--model", "glm-5"), InvalidRequest, "--system hgx-h200=2"),
        (("--site", "colocation"), InvalidRequest, "--site is for systems"),
        ((*MIXED, "--workers", "3"), InvalidRequest, "--workers both say"),
        ((*MIXED, "--scenario", "mixed"), InvalidRequest, "--scenario both say"),
        ((*MIXED, "--site", "the moon"), ConfigInvalid, "us-hyperscale"),
        ((*MIXED, "--projection", "hope"), ConfigInvalid, "keynote"),
        ((*MIXED[:-1], "gpt-oss-12b"), ConfigInvalid, "gpt-oss-120b"),
        (("--system", "hgx-h20", "--model", "glm-5"), ConfigInvalid, "hgx-h200"),
    ],
)
def test_mistakes_say_what_would_be_right(
    home: Home, words: tuple[str, ...], kind: type[Exception], said: str
) -> None:
    error: Any = invoke(home, "twin", "run", *words).exception
    assert isinstance(error, kind)
    assert said in f"{error} {error.hint}"


def test_a_system_is_served(home: Home, when_ready: Any) -> None:
    """With its own model, and what was decided replays."""
    results = when_ready(home, lambda: ask(home, model="gpt-oss-120b"))
    serve = ("up", "--twin", "--port", "0", "--speedup", "50")
    result = invoke(home, *serve, *MIXED)
    assert result.exit_code == 0, result.exception
    assert "3 modelled workers of '2 vr-nvl72x1, 1 vr-nvl72x1+lpx'" in result.stdout
    (answer,) = results
    assert answer["usage"]["completion_tokens"] > 0
    again = data(home, "twin", "replay")
    assert again["decisions"]["identical"]
    assert again["timings_estimated"] == 0


def test_a_system_is_only_modelled(home: Home) -> None:
    refused: Any = invoke(home, "up", "--system", "hgx-h200").exception
    assert isinstance(refused, InvalidRequest)
    assert str(refused).startswith("--system is for modelled workers")
