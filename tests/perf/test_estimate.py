"""Answers obey physics whatever they were calibrated on, and say how sure they are."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.errors import ConfigInvalid
from tokenworks.live.calibration_file import read_calibration
from tokenworks.live.catalogue_files import read_catalogue
from tokenworks.perf import estimate as estimate_module
from tokenworks.perf.architecture import shape_of
from tokenworks.perf.calibration import Calibration
from tokenworks.perf.case import Case, Layout
from tokenworks.perf.estimate import Curve, Estimator
from tokenworks.perf.sweep import frontier, layouts, sweep

CATALOGUE = read_catalogue()
CALIBRATION = read_calibration()
SHAPES = {
    name: shape_of(CATALOGUE.model(name))
    for name in ("deepseek-r1", "llama-3.1-70b", "gpt-oss-120b", "glm-5", "gpt-moe-2t")
}
DEVICES = ("h100", "h200", "b200", "gb200", "gb300", "rubin", "mi355x")


def case_of(
    model: str = "deepseek-r1",
    device: str = "b200",
    engine: str = "trtllm",
    gpus: int = 8,
    **changes: object,
) -> Case:
    layout = Layout(gpus=gpus)
    case = Case(
        shape=SHAPES[model],
        device=CATALOGUE.accelerator(device),
        engine=engine,
        dtype="fp8",
        isl=1024,
        osl=1024,
        concurrency=32,
        decode=layout,
        prefill=layout,
    )
    return msgspec.structs.replace(case, **changes)


CASES = st.builds(
    case_of,
    st.sampled_from(sorted(SHAPES)),
    st.sampled_from(DEVICES[:6]),
    st.sampled_from(["trtllm", "sglang", "vllm", "another"]),
    st.sampled_from([1, 2, 4, 8]),
    dtype=st.sampled_from(["bf16", "fp8", "fp4", "int4"]),
    isl=st.floats(1, 1e5),
    osl=st.floats(1, 1e4),
    mode=st.sampled_from(["agg", "disagg"]),
    hit_share=st.sampled_from([0.0, 0.5]),
    draft_tokens=st.sampled_from([0, 2]),
    acceptance=st.sampled_from([0.5, 0.8]),
)
LOADS = st.floats(1, 5000)


@settings(max_examples=150)
@given(CASES, LOADS, st.floats(1, 20), st.floats(1, 3))
def test_more_load_is_never_faster_and_more_bandwidth_never_slower(
    case: Case, load: float, more: float, wider: float
) -> None:
    curve = Curve(CALIBRATION, case)
    assert curve.at(load * more).tpot_log >= curve.at(load).tpot_log - 1e-9
    bandwidth = case.device.memory_bandwidth_bytes_per_s
    assert bandwidth is not None
    faster = msgspec.structs.replace(case.device, memory_bandwidth_bytes_per_s=bandwidth * wider)
    better = Curve(CALIBRATION, msgspec.structs.replace(case, device=faster)).at(load)
    assert better.tpot_log <= curve.at(load).tpot_log + 1e-9
    assert better.ttft_log <= curve.at(load).ttft_log + 1e-9


@settings(max_examples=150)
@given(CASES, LOADS)
def test_nothing_beats_the_roofline_nor_its_energy(case: Case, load: float) -> None:
    curve = Curve(CALIBRATION, case)
    found = curve.predict(load)
    floor = curve.bound_ms(load) / curve.hidden / curve.speedup
    assert found.tpot_ms >= floor * (1 - 1e-9)
    running = min(load, found.batch * (case.decode_workers or 1))
    assert found.tokens_per_s_per_gpu <= running / floor * 1e3 / found.gpus * (1 + 1e-9)
    assert found.joule_per_token is not None
    assert found.joule_per_token_bound is not None
    assert found.joule_per_token >= found.joule_per_token_bound * (1 - 1e-9)
    assert found.tpot_low_ms <= found.tpot_ms <= found.tpot_high_ms
    assert math.isfinite(found.ttft_ms)


def test_one_sequence_never_outruns_the_memory() -> None:
    """The bound by hand: 68.5 GB of layers and 2.1 GB of head over 4.8 TB/s."""
    found = Curve(CALIBRATION, case_of("llama-3.1-70b", "h200", gpus=1)).predict(1)
    assert found.tpot_ms > 70.5 / 4.8


def test_answers_say_what_they_rest_on(calibration: Calibration) -> None:
    estimator = Estimator(calibration)
    measured = estimator.predict(case_of())
    assert measured.nearness == "near"
    assert measured.power_w == 8 * CATALOGUE.accelerator("b200").all_in_power_w
    assert not any("never measured" in text for text in measured.assumptions)
    new = estimator.predict(case_of("gpt-moe-2t", "rubin", gpus=16, dtype="fp4"))
    assert new.nearness == "new"
    assert any("rubin was never measured: factors of gb300" in text for text in new.assumptions)
    assert any("shared factors" in text for text in new.assumptions)
    assert new.tpot_high_ms / new.tpot_low_ms > measured.tpot_high_ms / measured.tpot_low_ms
    few = estimator.predict(case_of("glm-5", "gb200", mode="disagg", dtype="fp4"))
    assert few.nearness in {"few", "far", "near"}
    unknown = estimator.curve(case_of(mode="disagg", decode_workers=None)).predict(8)
    assert any("workers share the load is unknown" in text for text in unknown.assumptions)
    bare = msgspec.structs.replace(CATALOGUE.accelerator("b200"), all_in_power_w=None)
    assert estimator.predict(case_of(device="b200", isl=777.0)).power_w is not None
    nameless = estimator.predict(msgspec.structs.replace(case_of(), device=bare))
    assert nameless.power_w is nameless.joule_per_token is nameless.joule_per_token_bound is None


def test_groups_of_few_rows_and_of_hidden_speculation_say_so(calibration: Calibration) -> None:
    """A group that is made up of one that ships: few rows, and twice the roofline's speed."""
    case = case_of()
    curve = Curve(calibration, case)
    assert curve.group is not None
    key = next(key for key, group in calibration.groups.items() if group is curve.group)
    small = msgspec.structs.replace(curve.group, rows=3, hidden_tokens_per_step=2.0)
    groups = calibration.groups | {key: small}
    found = Curve(msgspec.structs.replace(calibration, groups=groups), case).predict(32)
    assert found.nearness == "few"
    assert "only 3 measured rows of this group" in found.assumptions
    assert any("2.0 tokens per step" in text for text in found.assumptions)


def test_speculative_decoding_pays_where_the_batch_is_small() -> None:
    plain, drafted = (
        Curve(CALIBRATION, case_of(draft_tokens=count, acceptance=0.8)) for count in (0, 3)
    )
    assert drafted.speedup == pytest.approx(2.952)
    assert drafted.predict(1).tpot_ms < plain.predict(1).tpot_ms / 1.5


@pytest.mark.parametrize("load", [0, -1, 1e9, math.nan])
def test_a_load_must_be_one(load: float) -> None:
    with pytest.raises(ConfigInvalid, match="is no load"):
        Curve(CALIBRATION, case_of()).predict(load)


def test_an_estimator_keeps_curves_and_forgets_them(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate_module, "CURVES_MAX", 1)
    monkeypatch.setattr(estimate_module, "POINTS_MAX", 3)
    estimator = Estimator(calibration)
    one = estimator.curve(case_of())
    assert estimator.curve(case_of(concurrency=7.0)) is one
    estimator.curve(case_of(isl=2000.0))
    assert estimator.curve(case_of()) is not one
    for gpus in (8, 16, 32, 64):
        estimator.curve(case_of(gpus=gpus))
    assert [p.tpot_ms for p in estimator.sweep(case_of(), [1, 4])] == [
        estimator.predict(case_of(concurrency=load)).tpot_ms for load in (1.0, 4.0)
    ]
    with pytest.raises(ConfigInvalid, match="do not fit"):
        estimator.predict(case_of(gpus=1))
    assert estimator.predict(case_of(gpus=1), must_fit=False).gpus == 1


def test_a_sweep_keeps_those_that_none_beats(catalogue: Catalogue) -> None:
    base = case_of(dtype="fp4")
    cases = [
        msgspec.structs.replace(base, decode=layout, prefill=layout)
        for layout in layouts([1, 4, 8], experts=True)
    ]
    swept, refused = sweep(Estimator(CALIBRATION), cases, [1.0, 16.0, 256.0])
    assert refused == 1
    assert len(swept) == 18
    best = frontier(swept)
    speeds = [each.prediction.tokens_per_s_per_user for each in best]
    outputs = [each.prediction.tokens_per_s_per_gpu for each in best]
    assert speeds == sorted(speeds, reverse=True)
    assert outputs == sorted(outputs)
    for each in swept:
        assert any(
            b.prediction.tokens_per_s_per_user >= each.prediction.tokens_per_s_per_user
            and b.prediction.tokens_per_s_per_gpu >= each.prediction.tokens_per_s_per_gpu
            for b in best
        )
    assert [layout.gpus for layout in layouts([1, 2], experts=False)] == [1, 2]


def test_prefill_takes_a_share_of_steps_where_it_is_beside() -> None:
    shares = [Curve(CALIBRATION, case_of()).prefill_share(load) for load in (1, 8, 64)]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert 0 < shares[-1] < 1
    assert Curve(CALIBRATION, case_of(mode="disagg")).prefill_share(64) == 0
