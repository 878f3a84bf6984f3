"""What an operator may get wrong in predictions and plans, and what is said then."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command_line import done, invoke
from tokenworks.core.errors import TokenworksError
from tokenworks.live.home import Home

PREDICT = ("perf", "predict", "llama-3.1-70b")
MIX = ("plan", "mix", "--start", "2026-12-01", "--power-mw", "5")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ((*PREDICT, "h201"), "no system and no accelerator 'h201'. Systems: Near it: hgx-h200"),
        ((*PREDICT, "hgx-h200", "--gpus", "3"), "3 GPUs cannot share the 64 heads"),
        ((*PREDICT, "hgx-h200", "--ep", "8"), "spread experts; llama-3.1-70b has none"),
        (("perf", "sweep", "deepseek-r1", "hgx-h100"), "None of 10 layouts of deepseek-r1 in fp8"),
        (("plan", "frontier", "vr-nvl72+lpx+lpx"), "names more than two systems"),
        (("plan", "frontier", "vr-nvl72", "--at", "1e9"), "The fastest does 1,4"),
        (
            ("plan", "frontier", "hgx-h100", "--model", "gpt-moe-2t", "--at", "10"),
            "It fits into the memory of none of them.",
        ),
        (("plan", "factory", "vr-nvl72", "--lpu-from", "premium"), "no system has LPUs beside it"),
        ((*MIX, "--speedup", "3"), "--speedup has no meaning without a trace"),
        ((*MIX, "--mtok-per-s", "-1"), "mtok_per_s is -1.0; it must be more than 0"),
        (("plan", "mix", "--power-mw", "1e12"), "more than 0, at most 100,000"),
        (
            (*MIX, "--systems", "vr-nvl72", "--without", "vr-nvl72"),
            "vr-nvl72: It is named in `without`, too.",
        ),
        ((*MIX, "--systems", "lpx"), "lpx: LPUs decode beside systems of GPUs only."),
        ((*MIX, "--systems", "vera-cpu-rack"), "It has neither GPUs nor LPUs."),
        ((*MIX, "--what-if", "site.idle_power_share=2"), "makes site.idle_power_share 2"),
        (("catalogue", "show", "h900"), "no record 'h900'. Near it: h200"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(
    home: Home, command: tuple[str, ...], says: str
) -> None:
    result = invoke(home, *command)
    assert isinstance(result.exception, TokenworksError)
    assert says in str(result.exception)


@pytest.mark.parametrize(
    "command",
    [
        ("plan", "frontier", "vr-nvl72"),
        ("plan", "factory", "vr-nvl72"),
        ("plan", "chart"),
        ("plan", "mix"),
        ("perf", "validate", __file__),
    ],
)
def test_a_picture_that_cannot_be_is_refused_before_anything_is_found(
    home: Home, command: tuple[str, ...]
) -> None:
    for path, says in (
        ("x.pdf", "'x.pdf' ends neither in .png nor in .svg"),
        ("/nowhere/x.svg", "there is no folder '/nowhere'"),
    ):
        result = invoke(home, *command, "--picture", path)
        assert result.exit_code == 2
        assert says in result.output
        assert "Best for" not in result.output


def test_a_trace_of_no_format_or_with_another_demand_is_refused(home: Home, tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("no trace\n")
    odd = invoke(home, *MIX, "--trace", str(trace))
    assert "is no known format. Name a trace of Mooncake, Azure or agents" in str(odd.exception)
    both = invoke(home, *MIX, "--trace", str(trace), "--mtok-per-s", "5")
    assert "--speedup makes a trace arrive faster" in str(both.exception)


def test_what_a_prediction_stretches_is_among_what_it_assumes(home: Home) -> None:
    text = done(home, *PREDICT, "hgx-h200", "--gpus", "16", "--dtype", "fp4")
    assert "Assumed: a worker spans 2 scale-up domains of 8." in text
    assert "Assumed: h200 has no FP4 arithmetic: weights are expanded." in text


def test_a_chart_is_computed_with_the_software_of_its_own(home: Home) -> None:
    own = done(home, "plan", "chart", "inferencex")
    assert own == done(home, "plan", "chart", "inferencex", "--projection", "inferencex")
    assert own != done(home, "plan", "chart", "inferencex", "--projection", "keynote")
