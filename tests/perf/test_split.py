"""A step that GPUs and LPUs share, caches that are kept elsewhere, and drafted tokens."""

from __future__ import annotations

import msgspec
import pytest

from tokenworks.catalogue.records import Storage
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.architecture import shape_of
from tokenworks.perf.case import Layout
from tokenworks.perf.examples import DEEPSEEK, LLAMA
from tokenworks.perf.kv_tiers import fetches
from tokenworks.perf.passes import Pass, Rates, decode_pass, rates_of
from tokenworks.perf.split import Lpus, lpus_needed, split_step

LAYOUT = Layout(gpus=72, ep=72, dp=72)


@pytest.fixture(scope="module")
def rubin(catalogue: Catalogue) -> Rates:
    return rates_of(catalogue.accelerator("rubin"))


@pytest.fixture(scope="module")
def lpus(catalogue: Catalogue) -> Lpus:
    chip = catalogue.accelerator("lp30")
    assert chip.memory_bytes is not None
    return Lpus(
        count=1536,
        rates=rates_of(chip),
        memory_bytes=chip.memory_bytes,
        dtype="fp8",
        link_bytes_per_ms=1.92e10,
        link_latency_ms=1e-3,
    )


def test_lpus_take_the_experts_off_the_gpus(rubin: Rates, lpus: Lpus) -> None:
    whole = decode_pass(DEEPSEEK, rubin, LAYOUT, "fp8", 1, 72, 100_000)
    steps = [
        split_step(DEEPSEEK, rubin, LAYOUT, "fp8", 1, 72, 100_000, lpus, micro_batches=count)
        for count in (1, 2, 3)
    ]
    assert all(step.gpu_ms < sum(whole) - whole.experts + 1e-9 for step in steps)
    one, two, three = steps
    assert one.step_ms == pytest.approx(one.gpu_ms + one.lpu_ms + one.link_ms)
    assert two.step_ms >= max(two.gpu_ms, two.lpu_ms + two.link_ms)
    assert three.step_ms >= max(three.gpu_ms, three.lpu_ms, three.link_ms)


def test_factors_scale_the_part_of_the_gpus_only(rubin: Rates, lpus: Lpus) -> None:
    twice = Pass(*[2.0] * len(Pass._fields))
    plain, scaled = (
        split_step(DEEPSEEK, rubin, LAYOUT, "fp8", 1, 72, 1000, lpus, factors=factors)
        for factors in (None, twice)
    )
    assert scaled.gpu_ms == pytest.approx(2 * plain.gpu_ms)
    assert scaled.lpu_ms == plain.lpu_ms


def test_verifying_drafts_is_more_work(rubin: Rates, lpus: Lpus) -> None:
    plain, verified = (
        split_step(DEEPSEEK, rubin, LAYOUT, "fp8", 1, 72, 1000, lpus, tokens_each=count)
        for count in (1.0, 4.0)
    )
    assert verified.link_ms > plain.link_ms
    assert verified.lpu_ms > plain.lpu_ms


def test_what_lpus_cannot_hold_is_refused(rubin: Rates, lpus: Lpus) -> None:
    few = msgspec.structs.replace(lpus, count=256)
    with pytest.raises(ConfigInvalid, match=f"at least {lpus_needed(DEEPSEEK, lpus)} of them"):
        split_step(DEEPSEEK, rubin, LAYOUT, "fp8", 1, 8, 1000, few)
    with pytest.raises(ConfigInvalid, match="without experts"):
        split_step(LLAMA, rubin, LAYOUT, "fp8", 1, 8, 1000, lpus)


def test_a_slow_tier_can_cost_more_than_computing_anew(catalogue: Catalogue) -> None:
    shape = shape_of(catalogue.model("llama-3.1-70b"))
    size = shape.cache_bytes(100_000, 1)
    found = fetches(catalogue.all_of(Storage), size, 8, 5000.0)
    assert found[0].tier != found[-1].tier
    assert found[0].fetch_ms < found[-1].fetch_ms
    assert found[0].saved_ms > 0
    (slow,) = fetches([catalogue.all_of(Storage)[0]], size * 1e6, 8, 5000.0)
    assert slow.saved_ms < 0
