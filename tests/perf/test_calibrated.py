"""A measured engine's timing says what was measured."""

from __future__ import annotations

import importlib.resources

import pytest

from tokenworks.catalogue.timings import parse_timings
from tokenworks.perf.calibrated import timing_of
from tokenworks.perf.timing import FS_PER_S

DATA = importlib.resources.files("tokenworks.catalogue") / "data" / "timings.toml"
TIMINGS = parse_timings(DATA.read_text())


@pytest.mark.parametrize(
    ("name", "batch", "prompt", "output", "tpot_s"),
    # Three rows as they were measured.
    [
        ("h200-70b-fp8-trtllm-tp4", 32, 1024, 1024, 0.010634),
        ("h200-70b-fp8-trtllm-tp4", 64, 8192, 1024, 0.037025),
        ("b200-70b-fp8-trtllm-tp4", 16, 8192, 1024, 0.010659),
    ],
)
def test_tpot_with_the_prefill_of_the_others_is_what_was_measured(
    name: str, batch: int, prompt: int, output: int, tpot_s: float
) -> None:
    timing = timing_of(TIMINGS.named(name))
    decode = timing.decode_fs(batch, batch * (prompt + output // 2))
    others = (batch - 1) * timing.prefill_fs(prompt, 0) / output
    assert (decode + others) / FS_PER_S == pytest.approx(tpot_s, rel=0.1)
