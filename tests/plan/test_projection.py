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
from tokenworks.perf.architecture import shape_of
from tokenworks.perf.case import Layout
from tokenworks.perf.split import crossing_bytes
from tokenworks.plan.frontier import frontier
from tokenworks.plan.projection import (
    Work,
    batches,
    candidates,
    floor_s,
    held_bytes,
    layout_of,
    machine_of,
    prefill_s_per_output,
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
layouts = st.sampled_from(
    [layout_of(*each) for each in ((1, 1), (8, 1), (8, 2), (8, 8), (72, 4), (72, 72))]
)


def test_a_step_by_hand() -> None:
    """Llama 8B on one H200: weights, KV cache and a floor per layer, nothing else."""
    machine = machine_of(CATALOGUE, "hgx-h200", HOW)
    shape = shape_of(CATALOGUE.model("llama-3.1-8b"))
    work = Work(machine=machine, shape=shape, context=1000, how=HOW)
    attention = 32 * 2 * 4096 * 128 * (32 + 8)
    dense, head = 32 * 3 * 4096 * 14336, 4096 * 128256
    kv = 2 * 1000 * 32 * 2 * 8 * 128
    one = layout_of(1, 1)
    assert held_bytes(work, one, 2) == pytest.approx(attention + dense + 2 * head + kv)
    read_s = (attention + dense + 2 * head + kv) / (4.8e12 * HOW.peak_share)
    assert floor_s(work) == 32 * CATALOGUE.accelerator("h200").layer_latency_s
    assert step_s(work, one, 2, 1) == pytest.approx(read_s + floor_s(work))


def test_a_step_with_lpus_by_hand() -> None:
    """A huge batch waits for GPUs or their links; one sequence for three ways through all layers.

    The GPUs' part is a step without feed-forward blocks, with a floor for each micro-batch.
    """
    machine = machine_of(CATALOGUE, "vr-nvl72+lpx", HOW)
    shape = shape_of(CATALOGUE.model("gpt-moe-2t"))
    work = Work(machine=machine, shape=shape, context=1, how=HOW)
    layout = layout_of(72, 1)
    batch = 72 * 100_000
    crossing_s = batch / 72 * crossing_bytes(shape) / machine.rates.scaleout / 1e3
    assert step_s(work, layout, batch, 1) == pytest.approx(crossing_s, rel=1e-3)
    assert machine.lpus
    trip_s = shape.layers * machine.lpus.round_trip_ms / 1e3
    assert floor_s(work) == pytest.approx(shape.layers * machine.layer_latency_s + trip_s)
    assert step_s(work, layout, 72, 1) > floor_s(work)
    held = shape.attention_weights + 2 * shape.head_weights + shape.cache_bytes(1, 1)
    assert held_bytes(work, layout, 72) == pytest.approx(held)


@settings(max_examples=60)
@given(works, layouts, st.integers(1, 4096), st.floats(1.0, 8.0), st.floats(1.01, 4.0))
def test_more_is_never_slower_and_more_work_never_faster(
    work: Work, layout: Layout, batch: int, verified: float, factor: float
) -> None:
    seconds = step_s(work, layout, batch, verified)
    assert held_bytes(work, layout, batch * factor) >= held_bytes(work, layout, batch)
    assert step_s(work, layout, batch * factor, verified) >= seconds
    assert step_s(work, layout, batch, verified * factor) >= seconds
    rates = work.machine.rates
    for field in ("bandwidth", "fp8", "fp4", "link", "scaleout"):
        faster = msgspec.structs.replace(rates, **{field: factor * getattr(rates, field)})
        quicker = msgspec.structs.replace(
            work, machine=msgspec.structs.replace(work.machine, rates=faster)
        )
        assert step_s(quicker, layout, batch, verified) <= seconds
        assert prefill_s_per_output(quicker) <= prefill_s_per_output(work)


@settings(max_examples=60)
@given(works, layouts, st.integers(1, 4096))
def test_no_step_is_faster_than_the_roofline(work: Work, layout: Layout, batch: int) -> None:
    seconds, rates = step_s(work, layout, batch, 1), work.machine.rates
    flop = 2 * (work.shape.attention_weights + work.shape.head_weights) * batch / layout.gpus
    assert seconds >= flop / rates.fp8 / 1e3 * (1 - 1e-9)
    read = work.shape.attention_weights / layout.tp
    assert seconds >= read / rates.bandwidth / 1e3 * (1 - 1e-9)


def test_sparse_attention_prefills_no_more_pairs_than_it_picks() -> None:
    machine = machine_of(CATALOGUE, "vr-nvl72", HOW)
    shape = shape_of(CATALOGUE.model("glm-5"))
    near, far = (
        prefill_s_per_output(Work(machine=machine, shape=shape, context=context, how=HOW))
        for context in (2 * shape.sparse_tokens, 20 * shape.sparse_tokens)
    )
    assert near == far


def test_drafting_verifies_more_than_it_makes() -> None:
    machine = machine_of(CATALOGUE, "vr-nvl72", HOW)
    model = CATALOGUE.model("kimi-k2.5")
    alone = msgspec.structs.replace(HOW, speculating=())
    drafted, plain = (candidates(machine, model, 32_000, how)[0] for how in (HOW, alone))
    ratio = drafted.interactivity_tokens_per_s / plain.interactivity_tokens_per_s
    assert 1 < ratio < HOW.tokens_per_step


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
