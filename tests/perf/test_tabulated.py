"""A law made of physics is no faster than these, and close to them."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenworks.perf.tabulated import CONTEXTS, FS_PER_MS, Step, tabulated

PARTS = st.tuples(st.floats(0.1, 5), st.floats(0, 0.1), st.floats(1e-7, 1e-4), st.floats(0, 10))


def bent(parts: tuple[float, float, float, float], experts: float = 3.0) -> Step:
    """A floor, sequences, context, experts that more and more of are met; beside a second part."""
    floor, each, token, beside = parts

    def step(sequences: int, context: float) -> float:
        met = experts * (1 - 0.9**sequences)
        return max(floor + each * sequences + token * sequences * context + met, beside)

    return step


@given(PARTS, st.integers(1, 2048), st.integers(1, 64))
@example((2.25, 0.0, 1e-07, 0.0), 723, 1)  # an excess that was below the real one
@example((0.1015625, 0.0, 1e-07, 3.984375), 398, 1)
def test_no_batch_is_faster_than_its_physics(
    parts: tuple[float, float, float, float], slots: int, each: int
) -> None:
    step = bent(parts)
    found = tabulated(
        step,
        slots=slots,
        context_max=32_768,
        kv_tokens=10**9,
        prefill_token_ms=0.1,
        prefill_pair_ms=1e-6,
    )
    timing = found.timing
    assert found.excess >= 0
    for knot in timing.knots:
        for context in CONTEXTS:
            made = timing.decode_fs(knot.sequences, knot.sequences * context) / FS_PER_MS
            physics = step(knot.sequences, context)
            assert physics * (1 - 1e-9) <= made <= physics * (1 + found.excess + 1e-6)
    # And none is faster than the straight law that a bound on revenue goes by.
    batch = min(slots, each)
    for context in (0, 100, 10_000_000):
        least = timing.launch_fs + batch * timing.sequence_fs + context * timing.context_token_fs
        assert timing.decode_fs(batch, context) >= least
    assert timing.prefill_token_fs == FS_PER_MS // 10


def test_a_mixture_is_met_within_a_few_per_cent() -> None:
    found = tabulated(
        bent((0.5, 0.001, 1e-7, 0.0)),
        slots=256,
        context_max=32_768,
        kv_tokens=10**9,
        prefill_token_ms=0.1,
        prefill_pair_ms=0.0,
    )
    assert found.excess < 0.02


def test_a_central_law_is_as_far_above_as_below() -> None:
    step = bent((1.0, 0.0, 1e-4, 4.0))
    central, strict = (
        tabulated(
            step,
            slots=32,
            context_max=32_768,
            kv_tokens=10**9,
            prefill_token_ms=0.1,
            prefill_pair_ms=0.0,
            central=central,
        )
        for central in (True, False)
    )
    assert 1 + strict.excess == pytest.approx((1 + central.excess) ** 2)
    first, last = (each.timing.decode_fs(32, 32 * 8_192) for each in (central, strict))
    assert last / first == pytest.approx(math.sqrt(1 + strict.excess))


def test_no_more_context_is_asked_for_than_there_is_room() -> None:
    asked = []

    def step(sequences: int, context: float) -> float:
        asked.append((sequences, context))
        return 1.0 + 1e-5 * sequences * context

    tabulated(
        step,
        slots=64,
        context_max=32_768,
        kv_tokens=100_000,
        prefill_token_ms=0.1,
        prefill_pair_ms=0.0,
    )
    assert max(n * c for n, c in asked) <= 100_000
    assert (1, 32_768) in asked


def test_no_more_users_are_faster_at_a_knot_whatever_was_measured_there() -> None:
    """Each knot's line is found alone; a wave in what was measured must not make it the faster."""
    found = tabulated(
        lambda n, c: (8 + 0.05 * n + 1e-6 * n * c) * (1.05 if n % 2 else 1.0) - c / 1e5 * (n > 3),
        slots=64,
        context_max=32_768,
        kv_tokens=400_000,
        prefill_token_ms=0.1,
        prefill_pair_ms=0.0,
        central=True,
    )
    timing = found.timing
    for context in (0, 256, 8_192, 65_536):
        paces = [timing.decode_fs(n, n * context) for n, _, _ in timing.knots]
        assert paces == sorted(paces)
