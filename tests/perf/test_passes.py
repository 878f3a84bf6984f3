"""A forward pass obeys physics, on any device, model and layout."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.case import (
    Case,
    Layout,
    attention_weight_bytes,
    check_fits,
    sequences_max,
    weight_bytes_per_gpu,
)
from tokenworks.perf.demand import Sizes, decode_demand, prefill_demand
from tokenworks.perf.examples import DEEPSEEK, H200, LLAMA
from tokenworks.perf.passes import Rates, bound_ms, decode_pass, prefill_pass, rates_of
from tokenworks.perf.roofline import parts_ms, prefill_ms, reached

RATES = rates_of(H200)
SIZES = Sizes(1.0, 1.0, 1.0)
SHAPES = st.sampled_from([LLAMA, DEEPSEEK])
DTYPES = st.sampled_from(["bf16", "fp8", "fp4", "int4"])
LAYOUTS = st.builds(
    lambda g, e, d, p: Layout(gpus=g * p, ep=min(e, g), dp=min(d, g), pp=p),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2]),
)


@given(SHAPES, DTYPES, LAYOUTS, st.floats(1, 2000), st.floats(1, 3), st.floats(10, 1e5))
def test_more_work_takes_longer_and_better_hardware_less(
    shape, dtype, layout, batch, more, context
) -> None:
    def times(rates: Rates, sequences: float, tokens: float) -> tuple[float, float]:
        step = decode_pass(shape, rates, layout, dtype, 2, sequences, tokens)
        assert all(part >= 0 for part in step)
        assert bound_ms(step) <= sum(step) + 1e-12
        return sum(step), bound_ms(step)

    at_rest = times(RATES, batch, context)
    for name in ("bandwidth", "bf16", "fp8", "fp4", "link", "scaleout"):
        better = msgspec.structs.replace(RATES, **{name: getattr(RATES, name) * more})
        for fast, slow in zip(times(better, batch, context), at_rest, strict=True):
            assert fast <= slow * (1 + 1e-9)
    for slow in (times(RATES, batch * more, context), times(RATES, batch, context * more)):
        assert all(a >= b * (1 - 1e-9) for a, b in zip(slow, at_rest, strict=True))


def test_a_prompt_in_the_cache_need_not_be_computed() -> None:
    whole = prefill_pass(LLAMA, RATES, Layout(gpus=4), "fp8", 2, 8000, 8000)
    rest = prefill_pass(LLAMA, RATES, Layout(gpus=4), "fp8", 2, 1000, 8000)
    assert rest.matrix == pytest.approx(whole.matrix / 8)
    assert rest.attention < whole.attention / 4


def test_sparse_attention_reads_no_more_than_it_picks() -> None:
    sparse = msgspec.structs.replace(DEEPSEEK, sparse_tokens=2048)
    one, other = (
        decode_pass(sparse, RATES, Layout(gpus=8), "fp8", 1, 8, context).cache
        for context in (4000, 400_000)
    )
    assert one == other


def test_a_cache_split_by_tokens_is_read_by_all() -> None:
    """One latent head: eight GPUs read it all, or each its part."""
    whole, spread = (
        decode_demand(DEEPSEEK, Layout(gpus=8, ep=8, spreads_context=each), SIZES, 8, 1000)
        for each in (False, True)
    )
    assert spread.cache_bytes == whole.cache_bytes / 8
    assert spread.reduced_bytes == whole.reduced_bytes / 2
    assert spread[:4] == whole[:4]
    dense = [
        decode_demand(LLAMA, Layout(gpus=8, spreads_context=each), SIZES, 8, 1000).reduced_bytes
        for each in (False, True)
    ]
    assert dense[0] == dense[1]


def test_a_pass_at_declared_rates_is_between_its_bounds() -> None:
    """No part overlaps another, and within a part memory and arithmetic do."""
    layout = Layout(gpus=8, ep=8)
    need = decode_demand(DEEPSEEK, layout, SIZES, 256, 4000)
    step = decode_pass(DEEPSEEK, RATES, layout, "fp8", 1, 256, 4000)
    near = msgspec.structs.replace(RATES, bf16=RATES.fp8)
    found = parts_ms(need, near, layout, "fp8", "fp8")
    total = found.attention_ms + found.ffn_ms
    assert bound_ms(step) * 0.5 < total
    nominal = step.weights + step.experts + step.cache + step.matrix + step.attention
    assert total <= nominal + step.traffic + need.head_flop / RATES.fp8
    slower = reached(near, 0.5, 0.5, 8)
    half = parts_ms(need, slower, layout, "fp8", "fp8")
    assert half.ffn_ms == pytest.approx(2 * found.ffn_ms)
    whole = prefill_demand(DEEPSEEK, layout, SIZES, 1000, 500)
    assert prefill_ms(whole, slower, "fp8", "fp8") == pytest.approx(
        2 * prefill_ms(whole, near, "fp8", "fp8")
    )
    assert weight_bytes_per_gpu(DEEPSEEK, "fp8", layout, 2.0) > weight_bytes_per_gpu(
        DEEPSEEK, "fp8", layout
    )


def test_a_device_of_which_too_little_is_known_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="too little of 'h200'"):
        rates_of(msgspec.structs.replace(H200, memory_bandwidth_bytes_per_s=None))
    bare = msgspec.structs.replace(
        H200,
        bf16_flop_per_s=None,
        scaleup_bandwidth_bytes_per_s=None,
        scaleout_bandwidth_bytes_per_s=None,
        scaleup_domain=None,
    )
    assert rates_of(bare).bf16 == RATES.fp8 / 2
    assert rates_of(bare).domain == 1


def test_beyond_the_domain_traffic_is_slower() -> None:
    near, far = (
        decode_pass(DEEPSEEK, rates, Layout(gpus=16, ep=16), "fp8", 1, 64, 1000)
        for rates in (msgspec.structs.replace(RATES, domain=16), RATES)
    )
    assert far.traffic > near.traffic
    assert far.dispatch > near.dispatch


def test_weights_that_do_not_fit_are_refused_with_what_would() -> None:
    layout = Layout(gpus=4)
    case = Case(
        shape=DEEPSEEK,
        device=H200,
        engine="vllm",
        dtype="fp8",
        isl=1000,
        osl=100,
        concurrency=1,
        decode=layout,
        prefill=layout,
    )
    with pytest.raises(ConfigInvalid, match="Take at least 8 of them"):
        check_fits(case)
    eight = Layout(gpus=8)
    fits = msgspec.structs.replace(case, decode=eight, prefill=eight)
    check_fits(fits)
    assert sequences_max(fits) > 100
    assert sequences_max(msgspec.structs.replace(case, decode=Layout(gpus=1))) < 100
    assert weight_bytes_per_gpu(DEEPSEEK, "fp8", Layout(gpus=16, pp=2)) == pytest.approx(
        weight_bytes_per_gpu(DEEPSEEK, "fp8", Layout(gpus=16)), rel=0.01
    )


def test_experts_of_four_bits_leave_attention_as_it_was() -> None:
    assert attention_weight_bytes(DEEPSEEK, "fp4") == 1.0
    assert attention_weight_bytes(LLAMA, "fp4") == 0.5625
    kept = msgspec.structs.replace(DEEPSEEK, attention_bytes=2.0)
    assert attention_weight_bytes(kept, "int4") == 2.0
