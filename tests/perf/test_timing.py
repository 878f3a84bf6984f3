"""Iterations computed at once take as long as iterations computed one by one."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.perf.timing import FS_PER_S, Knot, Timing

COSTS = st.integers(0, 10**9)
TIMINGS = st.builds(
    Timing,
    launch_fs=st.integers(1, 10**13),
    sequence_fs=COSTS,
    context_token_fs=COSTS,
    prefill_token_fs=COSTS,
    prefill_context_fs=st.integers(0, 10**4),
)
KNOTTED = st.builds(
    lambda timing, knots: msgspec.structs.replace(
        timing, knots=tuple(Knot(n, *knots[n]) for n in sorted(knots))
    ),
    TIMINGS,
    st.dictionaries(
        st.integers(1, 256), st.tuples(st.integers(1, 10**13), COSTS), min_size=1, max_size=5
    ),
).filter(lambda timing: all(timing.decode_fs(n, 0) > 0 for n in (1, 256)))
EITHER = st.one_of(TIMINGS, KNOTTED)


@given(EITHER, st.integers(1, 256), st.integers(0, 10**6), st.integers(0, 60))
def test_a_run_is_the_sum_of_its_iterations(
    timing: Timing, sequences: int, context: int, iterations: int
) -> None:
    one_by_one = sum(
        timing.decode_fs(sequences, context + sequences * i) for i in range(iterations)
    )
    assert timing.run_fs(sequences, context, iterations) == one_by_one


@given(EITHER, st.integers(1, 256), st.integers(0, 10**6), st.integers(0, 10**15))
def test_the_iterations_within_a_time_are_the_most_that_fit(
    timing: Timing, sequences: int, context: int, elapsed: int
) -> None:
    count = timing.iterations_within(sequences, context, elapsed)
    assert count >= 0
    assert timing.run_fs(sequences, context, count) <= elapsed
    assert timing.run_fs(sequences, context, count + 1) > elapsed


@given(TIMINGS, st.lists(st.integers(1, 4096), min_size=1, max_size=6), st.integers(0, 10**5))
def test_chunks_cost_what_the_whole_prompt_costs(
    timing: Timing, chunks: list[int], cached: int
) -> None:
    done, cost = cached, 0
    for chunk in chunks:
        cost += timing.prefill_fs(chunk, done)
        done += chunk
    assert cost == timing.prefill_fs(sum(chunks), cached)


def test_speed_is_what_one_user_sees() -> None:
    timing = Timing(
        launch_fs=FS_PER_S // 100,
        sequence_fs=FS_PER_S // 1000,
        context_token_fs=0,
        prefill_token_fs=0,
        prefill_context_fs=0,
    )
    assert [timing.speed_tokens_per_s(n, 0) for n in (1, 10)] == [90, 50]


def test_a_timing_without_knots_is_written_down_as_ever() -> None:
    """Journals that were recorded before there were knots are still what is written today."""
    timing = Timing(
        launch_fs=9,
        sequence_fs=0,
        context_token_fs=1,
        prefill_token_fs=2,
        prefill_context_fs=3,
    )
    said = {
        "launch_fs": 9,
        "sequence_fs": 0,
        "context_token_fs": 1,
        "prefill_token_fs": 2,
        "prefill_context_fs": 3,
    }
    assert msgspec.to_builtins(timing) == said
    knotted = msgspec.structs.replace(timing, knots=(Knot(1, 10, 1),))
    coded = msgspec.json.encode(knotted)
    assert msgspec.json.decode(coded, type=Timing) == knotted
    assert hash(knotted) != hash(timing)
