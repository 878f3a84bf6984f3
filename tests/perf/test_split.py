"""A step that GPUs and LPUs share, caches that are kept elsewhere, and drafted tokens."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.catalogue.records import Storage
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.architecture import shape_of
from tokenworks.perf.examples import DEEPSEEK
from tokenworks.perf.kv_tiers import fetches
from tokenworks.perf.passes import rates_of
from tokenworks.perf.split import (
    Lpus,
    crossing_bytes,
    keeping_up,
    lpu_ms,
    lpus_needed,
    paced_step_ms,
    shared_ms,
    step_ms,
    whole_ms,
)


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
        round_trip_ms=2e-3,
    )


@given(*[st.floats(0, 100)] * 4)
def test_micro_batches_hide_what_they_can(gpu: float, lpu: float, link: float, wait: float) -> None:
    one, two, three = (step_ms(gpu, lpu, link, wait, count) for count in (1, 2, 3))
    assert one == pytest.approx(gpu + lpu + link + wait)
    assert two >= max(gpu, lpu + link)
    assert three >= max(gpu, lpu, link)
    assert three >= wait
    assert three <= one * (1 + 1e-9)


@given(*[st.floats(0, 100)] * 3)
def test_a_paced_step_is_as_long_as_its_lpus_take(gpu: float, link: float, wait: float) -> None:
    step = paced_step_ms(gpu, link, wait)
    assert step_ms(gpu, step, link, wait, 3) == pytest.approx(step)


def test_lpus_that_keep_up_take_no_longer_than_the_gpus(lpus: Lpus) -> None:
    """A large batch computes; so as many as keep up with its tokens take just the step's time."""
    tokens, step = 100_000.0, 20.0
    share = keeping_up(DEEPSEEK, lpus, tokens / step)
    assert lpu_ms(DEEPSEEK, lpus, tokens, 3) <= share * step * (1 + 1e-9)


def test_micro_batches_and_drafts_are_more_work(lpus: Lpus) -> None:
    plain = lpu_ms(DEEPSEEK, lpus, 72, 1)
    assert lpu_ms(DEEPSEEK, lpus, 72, 3) > plain
    assert lpu_ms(DEEPSEEK, lpus, 4 * 72, 1) > plain


def test_what_lpus_cannot_hold_is_refused(lpus: Lpus) -> None:
    few = msgspec.structs.replace(lpus, count=256)
    with pytest.raises(ConfigInvalid, match=f"at least {lpus_needed(DEEPSEEK, lpus)} of them"):
        lpu_ms(DEEPSEEK, few, 8, 1)


def test_a_slow_tier_can_cost_more_than_computing_anew(catalogue: Catalogue) -> None:
    shape = shape_of(catalogue.model("llama-3.1-70b"))
    size = shape.cache_bytes(100_000, 1)
    found = fetches(catalogue.all_of(Storage), size, 8, 5000.0)
    assert found[0].tier != found[-1].tier
    assert found[0].fetch_ms < found[-1].fetch_ms
    assert found[0].saved_ms > 0
    (slow,) = fetches([catalogue.all_of(Storage)[0]], size * 1e6, 8, 5000.0)
    assert slow.saved_ms < 0


@given(st.integers(1, 4096), st.floats(0, 20), st.floats(0, 2), st.integers(0, 4))
def test_a_shared_step_is_bounded_by_each_part_and_no_slower_with_more_lpus(
    lpus: Lpus, sequences: int, attention: float, floor: float, more: int
) -> None:
    def step(count: int) -> float:
        some = msgspec.structs.replace(
            lpus,
            count=lpus.count * count,
            link_bytes_per_ms=lpus.link_bytes_per_ms * count,
        )
        return shared_ms(DEEPSEEK, some, sequences, 2.0, attention, floor, 1e9)

    found = step(1)
    crossing = 2 * sequences * crossing_bytes(DEEPSEEK) / 1e9
    assert found >= max(attention + floor, crossing, lpu_ms(DEEPSEEK, lpus, 2.0 * sequences, 1))
    assert step(1 + more) <= found


def test_a_sequence_alone_is_not_split_into_micro_batches(lpus: Lpus) -> None:
    alone = shared_ms(DEEPSEEK, lpus, 1, 5.0, 3.0, 1.0, 1e12)
    assert alone > 3.0 + 1.0 + lpu_ms(DEEPSEEK, lpus, 5.0, 1)
    assert shared_ms(DEEPSEEK, lpus, 3, 5.0, 3.0, 0.1, 1e12) < alone


@given(st.integers(1, 512), st.integers(0, 100_000))
def test_a_model_in_sram_gains_little_from_a_batch(lpus: Lpus, batch: int, context: int) -> None:
    found = whole_ms(DEEPSEEK, lpus, 2e-3, batch, context, 1.0)
    assert found >= DEEPSEEK.layers * 2e-3
    assert whole_ms(DEEPSEEK, lpus, 2e-3, batch + 1, context, 1.0) >= found
    assert whole_ms(DEEPSEEK, lpus, 2e-3, batch, context + 1, 1.0) >= found
    doubled = msgspec.structs.replace(lpus, count=2 * lpus.count)
    assert whole_ms(DEEPSEEK, doubled, 2e-3, batch, context, 1.0) <= found * (1 + 1e-9)
    if batch <= DEEPSEEK.layers:  # each is in a layer of its own
        assert found == whole_ms(DEEPSEEK, lpus, 2e-3, 1, context, 1.0)
