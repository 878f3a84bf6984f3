"""One modelled engine: batching, chunks, prefix hits, preemption, aborts and losses."""

from __future__ import annotations

import pytest

from tests.twin.factory import MODEL, TIMING, worker
from tokenworks.perf.timing import FS_PER_NS
from tokenworks.twin.records import WorkerSpec
from tokenworks.twin.sequence import FINISHED, GONE, IDLE, STARTED, WAITING, Sequence
from tokenworks.twin.workers import KEY_SHIFT, Worker

US = 1_000


class Engine:
    """A worker whose boundaries are run one after the other; times in nanoseconds."""

    def __init__(self, spec: WorkerSpec, *, exact: bool = False) -> None:
        self.worker = Worker(0, spec, [], exact=exact)
        self.number = 0
        self.log: list[tuple[int, int, int]] = []
        self.now_ns = 0

    def add(self, at_ns: int, tokens: int, output: int, blocks: tuple[int, ...] = ()) -> Sequence:
        self.until(at_ns)
        self.number += 1
        sequence = Sequence(self.number, self.number, 0, 1, tokens, output, blocks)
        self.worker.submit(sequence, at_ns)
        return sequence

    def until(self, at_ns: int) -> None:
        while self.worker.key != IDLE and self.worker.key >> KEY_SHIFT <= at_ns:
            self.step()
        self.now_ns = at_ns

    def step(self) -> None:
        self.now_ns = self.worker.key >> KEY_SHIFT
        brought = self.worker.complete()
        self.log += [(self.now_ns, what, sequence.number) for what, sequence in brought]
        self.worker.plan(self.now_ns)
        self.worker.check()

    def finish(self) -> list[tuple[int, int, int]]:
        while self.worker.key != IDLE:
            self.step()
        assert self.worker.is_empty()
        return self.log


def rounded_up(fs: int) -> int:
    return -(-fs // FS_PER_NS)


def test_one_sequence_takes_what_the_timing_says() -> None:
    engine = Engine(worker())
    engine.add(1_000, 100, 20)
    prefill = TIMING.launch_fs + TIMING.prefill_fs(100, 0)
    first, last = (
        1_000 + rounded_up(prefill),
        1_000 + rounded_up(prefill + TIMING.run_fs(1, 100, 19)),
    )
    assert engine.finish() == [(first, STARTED, 1), (last, FINISHED, 1)]
    use = engine.worker.use()
    assert (use.iterations, use.prefill_tokens, use.output_tokens) == (20, 100, 20)
    assert use.kv_blocks_max == 8
    assert use.busy_ns == (prefill + TIMING.run_fs(1, 100, 19)) // FS_PER_NS


def test_a_prompt_that_makes_one_token_ends_with_its_prefill() -> None:
    engine = Engine(worker())
    engine.add(0, 100, 1)
    ended = rounded_up(TIMING.launch_fs + TIMING.prefill_fs(100, 0))
    assert engine.finish() == [(ended, STARTED, 1), (ended, FINISHED, 1)]


def test_a_long_prompt_is_prefilled_in_chunks_beside_decode() -> None:
    engine = Engine(worker(batch_tokens_max=64))
    short = engine.add(0, 10, 100)
    long = engine.add(0, 200, 2)
    engine.step()  # the first alone, and what came at the same time after it
    assert (short.made, long.computed) == (1, 0)
    chunks = []
    while not long.made:
        engine.step()
        chunks.append(long.computed)
    assert chunks == [63, 126, 189, 200]
    engine.finish()
    assert engine.worker.use().prefill_tokens == 210


def test_a_prefix_is_found_but_for_the_last_token() -> None:
    engine = Engine(worker())
    blocks = tuple(range(6))
    one = engine.add(0, 96, 2, blocks)
    engine.finish()
    two = engine.add(engine.now_ns, 96, 2, blocks)
    three = engine.add(engine.now_ns, 100, 2, blocks)
    engine.finish()
    assert (one.cached_tokens, two.cached_tokens, three.cached_tokens) == (0, 80, 96)
    assert engine.worker.use().hit_tokens == 176
    assert engine.worker.use().prefill_tokens == 96 + 16 + 4


def test_blocks_are_found_as_soon_as_they_are_computed() -> None:
    engine = Engine(worker(batch_tokens_max=64))
    engine.add(0, 192, 2, tuple(range(12)))
    engine.step()
    engine.step()
    other = engine.add(engine.now_ns, 192, 2, tuple(range(12)))
    engine.finish()
    assert 128 <= other.cached_tokens < 192


def test_the_youngest_is_preempted_and_computes_what_it_made_again() -> None:
    engine = Engine(worker(kv_blocks=12))
    old = engine.add(0, 80, 100)
    young = engine.add(0, 70, 100)
    engine.finish()
    assert (old.preemptions, young.preemptions) == (0, 1)
    assert (old.made, young.made) == (100, 100)
    assert young.prompt > 70
    use = engine.worker.use()
    assert use.preemptions == 1
    assert use.prefill_tokens == 150 + young.prompt
    assert use.kv_blocks_max <= 12
    assert use.output_tokens == 200
    # It waited for the older one's end, and that is its longest gap.
    assert young.itl_max_fs > 10 * old.itl_max_fs


def test_a_sequence_waits_for_a_slot_and_for_blocks() -> None:
    engine = Engine(worker(slots=1))
    engine.add(0, 50, 50)
    engine.add(1_000, 50, 50)
    numbers = [number for _, _, number in engine.finish()]
    assert numbers == [1, 1, 2, 2]
    engine = Engine(worker(kv_blocks=100))
    engine.add(0, 900, 20)
    engine.add(1_000, 900, 20)
    numbers = [number for _, _, number in engine.finish()]
    assert numbers == [1, 1, 2, 2]


def test_the_longest_gap_is_an_iteration_with_a_foreign_prefill() -> None:
    engine = Engine(worker())
    one = engine.add(0, 10, 60)
    engine.until(20_000 * US)
    two = engine.add(20_000 * US, 250, 60)
    engine.finish()
    assert one.itl_max_fs > TIMING.launch_fs + TIMING.prefill_fs(200, 0)
    assert two.itl_max_fs < TIMING.launch_fs + TIMING.prefill_fs(20, 0)


@pytest.mark.parametrize("at_us", [0, 1_000, 5_000, 30_000])
def test_an_abort_holds_from_the_next_boundary_on(at_us: int) -> None:
    engine = Engine(worker(slots=2, batch_tokens_max=40))
    sequences = [engine.add(0, 100, 50) for _ in range(3)]
    engine.until(at_us * US)
    for sequence in (sequences[1], sequences[2]):
        engine.worker.abort(sequence, at_us * US)
        engine.worker.abort(sequence, at_us * US)  # a repeated message does nothing
    log = engine.finish()
    assert [number for _, what, number in log if what == FINISHED] == [1]
    assert [each.state for each in sequences] == [GONE] * 3


def test_an_idle_worker_drops_at_once() -> None:
    engine = Engine(worker())
    sequence = engine.add(0, 100, 5)
    engine.worker.abort(sequence, 1)
    engine.finish()
    engine.worker.abort(sequence, engine.now_ns)
    assert engine.worker.key == IDLE


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("at_us", [100, 5_000, 31_000])
def test_a_lost_worker_tells_what_each_had_made(at_us: int, exact: bool) -> None:
    engine = Engine(worker(slots=1), exact=exact)
    one, two = engine.add(0, 100, 50), engine.add(0, 100, 50)
    engine.until(at_us * US)
    assert engine.worker.crash(at_us * US) == [one, two]
    made = 0
    if at_us > 100:
        prefilled = TIMING.launch_fs + TIMING.prefill_fs(100, 0)
        made = 1 + TIMING.iterations_within(1, 100, at_us * US * FS_PER_NS - prefilled)
    assert (one.made, two.made, two.state) == (made, 0, GONE)
    use = engine.worker.use()
    assert (use.output_tokens, use.busy_ns) == (made, at_us * US)
    assert engine.worker.is_empty()
    again = engine.add(at_us * US + 1, 100, 2)
    assert again.state != WAITING
    engine.finish()
    assert engine.worker.crash(engine.now_ns) == []


def test_a_spec_that_cannot_work_is_refused() -> None:
    with pytest.raises(AssertionError):
        Worker(0, worker(slots=300, batch_tokens_max=256), [], exact=False)
    assert worker().model == MODEL
