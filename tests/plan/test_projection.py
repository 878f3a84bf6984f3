"""Projected decoding obeys physics, and its frontier is the best of all ways."""

from __future__ import annotations

import itertools
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenworks.catalogue.records import Model
from tokenworks.core.errors import ConfigInvalid
from tokenworks.live.catalogue_files import read_catalogue
from tokenworks.plan.frontier import frontier
from tokenworks.plan.projection import (
    Work,
    batches,
    machine_of,
    prefill_s_per_output,
    shape_of,
    step_s,
)

CATALOGUE = read_catalogue()
HOW = CATALOGUE.projection("keynote")
MODELS = CATALOGUE.all_of(Model)
SYSTEMS = ("hgx-h100", "hgx-b200", "gb200-nvl72", "vr-nvl72", "vr-nvl72+lpx", "kyber-nvl144")
works = st.builds(
    lambda system, model, context: Work(
        machine=machine_of(CATALOGUE, system, HOW),
        shape=shape_of(model),
        context=context,
        how=HOW,
    ),
    st.sampled_from(SYSTEMS),
    st.sampled_from(MODELS),
    st.integers(1, 1_000_000),
)
splits = st.sampled_from([(1, 1), (8, 1), (8, 2), (8, 8), (72, 4), (72, 72)])


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_shapes_add_up_to_the_published_parameters(model: Model) -> None:
    shape = shape_of(model)
    total = shape.attention_weights + shape.ffn_weights + 2 * shape.head_weights
    assert total == pytest.approx(model.parameters, rel=0.03)
    assert shape.weights_active <= total


def test_a_shape_by_hand() -> None:
    shape = shape_of(CATALOGUE.model("gpt-oss-120b"))
    assert shape.kv_values == 18 * 2 * 8 * 64  # the 18 layers without a window
    assert shape.kv_values_fixed == 18 * 128 * 2 * 8 * 64
    shape = shape_of(CATALOGUE.model("deepseek-r1"))
    assert shape.kv_values == 61 * 576
    assert shape_of(CATALOGUE.model("glm-5")).context_tokens_max == 2048


def test_a_step_by_hand() -> None:
    """Llama 8B on one H200: weights, KV cache and nothing else."""
    machine = machine_of(CATALOGUE, "hgx-h200", HOW)
    shape = shape_of(CATALOGUE.model("llama-3.1-8b"))
    work = Work(machine=machine, shape=shape, context=1000, how=HOW)
    held, seconds = step_s(work, 1, 1, 2, 1)
    attention = 32 * 2 * 4096 * 128 * (32 + 8)
    dense, head = 32 * 3 * 4096 * 14336, 4096 * 128256
    kv = 2 * 1000 * 32 * 2 * 8 * 128
    assert held == pytest.approx(attention + dense + 4 * head + kv)
    bandwidth = 4.8e12 * HOW.peak_share
    assert seconds == pytest.approx((attention + dense + 2 * head + kv) / bandwidth)


@settings(max_examples=60, deadline=None)
@given(works, splits, st.integers(1, 4096), st.floats(1.0, 8.0), st.floats(1.01, 4.0))
def test_more_is_never_slower_and_more_work_never_faster(
    work: Work, split: tuple[int, int], batch: int, verified: float, factor: float
) -> None:
    gpus, tensor = split
    held, seconds = step_s(work, gpus, tensor, batch, verified)
    more_held, more_seconds = step_s(work, gpus, tensor, batch * factor, verified)
    assert more_held >= held
    assert more_seconds >= seconds
    assert step_s(work, gpus, tensor, batch, verified * factor)[1] >= seconds
    for field in ("bandwidth_bytes_per_s", "flop_per_s", "attention_flop_per_s"):
        faster = msgspec.structs.replace(
            work.machine, **{field: factor * getattr(work.machine, field)}
        )
        quicker = msgspec.structs.replace(work, machine=faster)
        assert step_s(quicker, gpus, tensor, batch, verified)[1] <= seconds
        assert prefill_s_per_output(quicker) <= prefill_s_per_output(work)


@settings(max_examples=60, deadline=None)
@given(works, splits, st.integers(1, 4096))
def test_no_step_is_faster_than_the_roofline(
    work: Work, split: tuple[int, int], batch: int
) -> None:
    gpus, tensor = split
    _, seconds = step_s(work, gpus, tensor, batch, 1)
    flop = 2 * (work.shape.attention_weights + work.shape.head_weights) * batch / gpus
    assert seconds >= flop / work.machine.attention_flop_per_s * (1 - 1e-9)
    read = work.shape.attention_weights / tensor
    assert seconds >= read / work.machine.bandwidth_bytes_per_s * (1 - 1e-9)


@pytest.mark.parametrize("systems", SYSTEMS)
def test_a_frontier_falls_as_speed_rises(systems: str) -> None:
    found = frontier(CATALOGUE, systems, "qwen3-235b", 32_000, HOW)
    speeds = [way.interactivity_tokens_per_s for way in found.best]
    rates = [way.tokens_per_s_per_mw for way in found.best]
    assert speeds == sorted(speeds)
    assert rates == sorted(rates, reverse=True)
    assert found.fastest_tokens_per_s == speeds[-1]
    assert found.at(speeds[-1] + 1) is None
    assert found.at(0) == found.best[0]
    machine = machine_of(CATALOGUE, systems, HOW)
    assert all(way.memory_bytes <= machine.memory_bytes for way in found.best)
    assert all((way.lpu_racks_per_gpu > 0) == ("+" in systems) for way in found.best)


def test_what_does_not_fit_has_no_frontier() -> None:
    found = frontier(CATALOGUE, "hgx-h100", "gpt-moe-2t", 128_000, HOW)
    assert found.best == ()
    assert found.fastest_tokens_per_s == 0


def test_what_cannot_be_computed_is_said() -> None:
    with pytest.raises(ConfigInvalid, match="'lpx' has no GPUs"):
        frontier(CATALOGUE, "lpx", "qwen3-235b", 1000, HOW)
    with pytest.raises(ConfigInvalid, match="'vr-nvl72' has no LPUs"):
        frontier(CATALOGUE, "gb200-nvl72+vr-nvl72", "qwen3-235b", 1000, HOW)
    with pytest.raises(ConfigInvalid, match="The context is 0 tokens"):
        frontier(CATALOGUE, "vr-nvl72", "qwen3-235b", 0, HOW)
    with pytest.raises(ConfigInvalid, match="It was trained for 40,960"):
        frontier(CATALOGUE, "vr-nvl72", "qwen3-235b", 50_000, HOW)
    gpu = msgspec.structs.replace(CATALOGUE.accelerator("rubin"), layer_latency_s=None)
    with pytest.raises(ConfigInvalid, match="no layer_latency_s of accelerator 'rubin'"):
        frontier(CATALOGUE.with_records(gpu), "vr-nvl72", "qwen3-235b", 1000, HOW)


def test_batches_rise_by_small_steps() -> None:
    tried = batches(4)
    assert tried[0] == 4
    assert tried[-1] == 4 * 4096
    assert all(b <= a + 4 or b / a < 1.35 for a, b in itertools.pairwise(tried))


def test_every_system_and_model_of_the_catalogue_has_an_answer() -> None:
    for system in ("gb300-nvl72", "hgx-h200", "hgx-rubin-nvl8", "feynman-nvl1152"):
        for model in MODELS:
            found = frontier(CATALOGUE, system, model.name, 8192, HOW)
            assert all(math.isfinite(way.tokens_per_s_per_mw) for way in found.best)
