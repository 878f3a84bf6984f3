"""A modelled engine in the manner of vLLM v1: continuous batching, chunked prefill, KV blocks.

An engine works in iterations. Between two of them, at a *boundary*, it takes up what has come
meanwhile: it lets go of aborted sequences, preempts the youngest if decode needs more KV blocks
than there are, and admits from its waiting queue. A boundary sees what came strictly before it; an
engine that has nothing to do sees at once what comes.

An iteration that only decodes is followed by others like it until a sequence ends, KV blocks run
out or something comes; such a *run* is worked out at once. Nobody who could not be admitted at its
beginning could be before its end, because it only uses up blocks. Time is in integer femtoseconds,
so a run ends at the same instant as its iterations one by one (``exact``) would.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

from tokenworks.perf.timing import FS_PER_NS, Timing
from tokenworks.twin.kv_cache import NO_MATCH, Change, KVCache
from tokenworks.twin.records import WorkerSpec, WorkerUse
from tokenworks.twin.sequence import (
    ARRIVING,
    DECODING,
    FINISHED,
    GONE,
    HANDED,
    HELD,
    IDLE,
    PREFILLING,
    STARTED,
    WAITING,
    Sequence,
)

KEY_SHIFT: Final = 12
"""A boundary's key on the driver's heap: its time in nanoseconds, then the worker's index."""
WORKERS_MAX: Final = 1 << KEY_SHIFT
WATERMARK_SHARE: Final = 100
"""One block in so many stays free at admission, so that decode can grow."""

# What a worker is told between boundaries.
_ABORT: Final = 0
_RELEASE: Final = 1
_JOIN: Final = 2
_PACE: Final = 3
_MOVE: Final = 4


class Worker:
    """One engine. Its driver calls ``complete`` and then ``plan`` at each of its boundaries.

    Args:
        index: its place in the scenario.
        spec: what it is.
        heap: where it puts ``key`` whenever that changes; entries that differ from it are stale.
        exact: work out each iteration by itself.
        publishes: keep what becomes of its prefix cache, for ``take_changes``.

    Attributes:
        key: the next boundary in nanoseconds, rounded up and shifted, and the index; ``IDLE``.
        arrivals: sequences whose KV cache can set out now, with the bytes; the driver empties it.
        tokens_max: of a sequence that it has KV blocks for, if that runs alone.
        backlog_tokens: to be prefilled, of all that wait or are at it.
    """

    __slots__ = (
        "_batch_tokens_max",
        "_block_tokens",
        "_busy_from_fs",
        "_busy_fs",
        "_chunks",
        "_context",
        "_context_token_fs",
        "_decoding",
        "_end_fs",
        "_ends",
        "_exact",
        "_gaps_at",
        "_gaps_fs",
        "_growing",
        "_heap",
        "_held",
        "_hung_until_fs",
        "_inbox",
        "_iteration",
        "_iterations",
        "_joined",
        "_kv",
        "_launch_fs",
        "_law",
        "_moves",
        "_paces",
        "_phases",
        "_preempted",
        "_prefill_context_fs",
        "_prefill_token_fs",
        "_prefilling",
        "_publishes",
        "_running",
        "_sequence_fs",
        "_slots",
        "_start_fs",
        "_timing",
        "_timings",
        "_waiting",
        "_watermark",
        "arrivals",
        "backlog_tokens",
        "evicted_before",
        "hit_tokens",
        "index",
        "key",
        "kv_blocks_max",
        "output_tokens",
        "preemptions",
        "prefill_tokens",
        "spec",
        "tokens_max",
        "up_ns",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        spec: WorkerSpec,
        heap: list[int],
        *,
        exact: bool,
        publishes: bool = False,
    ) -> None:
        assert 0 <= index < WORKERS_MAX, index
        assert 1 <= spec.slots <= spec.batch_tokens_max, spec
        assert spec.timing.launch_fs >= FS_PER_NS, "an iteration takes a nanosecond at least"
        self.index = index
        self.spec = spec
        self._heap = heap
        self._exact = exact
        self._publishes = publishes
        self._timings: deque[Timing] = deque()
        self._block_tokens = spec.block_tokens
        self._slots = spec.slots
        self.tokens_max = spec.kv_blocks * spec.block_tokens
        self._batch_tokens_max = spec.batch_tokens_max
        self._keep_pace(spec.timing)
        self._watermark = spec.kv_blocks // WATERMARK_SHARE
        self._busy_fs = self._iteration = self.prefill_tokens = self.output_tokens = 0
        self.hit_tokens = self.preemptions = self.kv_blocks_max = self.up_ns = 0
        self.evicted_before = 0
        self._empty()

    def _keep_pace(self, timing: Timing) -> None:
        """Go by a law; one with knots is taken at the batch of each run, in ``plan``."""
        self._law = timing
        self._paces: dict[int, Timing] | None = {} if timing.knots else None
        self._take_pace(timing.at(0))

    def _take_batch(self, paces: dict[int, Timing], sequences: int) -> None:
        pace = paces.get(sequences)
        if pace is None:
            pace = paces[sequences] = self._law.at(sequences)
        if pace is not self._timing:
            self._take_pace(pace)

    def _take_pace(self, timing: Timing) -> None:
        self._timing = timing
        self._launch_fs = timing.launch_fs
        self._sequence_fs = timing.sequence_fs
        self._context_token_fs = timing.context_token_fs
        self._prefill_token_fs = timing.prefill_token_fs
        self._prefill_context_fs = timing.prefill_context_fs

    def _empty(self) -> None:
        self.key = IDLE
        self.arrivals: list[tuple[Sequence, int]] = []
        self.backlog_tokens = 0
        self._kv = KVCache(self.spec.kv_blocks)
        if self._publishes:
            self._kv.changes = []
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Sequence, None] = {}  # in the order of admission
        self._held: dict[Sequence, None] = {}
        self._joined: list[Sequence] = []  # their next token ends the wait for their KV cache
        self._prefilling: list[Sequence] = []
        self._inbox: list[tuple[int, int, Sequence | None]] = []
        self._moves: deque[Callable[[KVCache], None]] = deque()
        while self._timings:
            self._keep_pace(self._timings.popleft())
        self._hung_until_fs = 0
        # The iterations in progress: when they began and end, and how many there are. None are
        # when it is idle; from the end of the last one until the next plan it counts as one.
        self._start_fs = self._end_fs = self._iterations = self._busy_from_fs = 0
        self._chunks: list[tuple[Sequence, int]] = []
        self._preempted = False
        # What decodes: sequences, their context, their ends, and when they need blocks.
        self._decoding = 0
        self._context = 0
        self._ends: list[tuple[int, int, Sequence]] = []
        self._phases: list[int] = []
        self._growing = 0  # blocks that the next iteration's decode needs
        # Of the iterations so far the last, and each that was longer than all after it.
        self._gaps_at: list[int] = []
        self._gaps_fs: list[int] = []

    # What a driver calls.

    def submit(self, sequence: Sequence, now_ns: int) -> None:
        """Queue a sequence that fits; it comes now."""
        sequence.after_fs = now_ns * FS_PER_NS
        waiting = self._waiting
        waiting.append(sequence)
        if not sequence.arrives:
            self.backlog_tokens += sequence.prompt
        if self._iterations == 0:
            self.plan(now_ns)
        elif self._iterations > 1 and len(waiting) == 1 and len(self._running) < self._slots:
            self._cut(now_ns)

    def abort(self, sequence: Sequence, now_ns: int) -> None:
        """Drop a sequence at the next boundary."""
        self._post(_ABORT, sequence, now_ns)

    def release(self, sequence: Sequence, now_ns: int) -> None:
        """Let go of the KV blocks of a sequence that was handed over."""
        self._post(_RELEASE, sequence, now_ns)

    def join(self, sequence: Sequence, now_ns: int) -> None:
        """Begin to decode a sequence whose KV cache has arrived."""
        self._post(_JOIN, sequence, now_ns)

    def pace(self, timing: Timing, now_ns: int) -> None:
        """Take another time for iterations, from the next boundary on."""
        self._timings.append(timing)
        self._post(_PACE, None, now_ns)

    def move(self, move: Callable[[KVCache], None], now_ns: int) -> None:
        """Do something to its cached blocks, at the next boundary."""
        self._moves.append(move)
        self._post(_MOVE, None, now_ns)

    def hang(self, until_ns: int, now_ns: int) -> None:
        """Stand still until a time; the iteration under way is still ended."""
        if self._iterations > 1:
            self._cut(now_ns)
        self._hung_until_fs = max(self._hung_until_fs, until_ns * FS_PER_NS)

    def take_changes(self) -> list[Change]:
        """What became of its prefix cache since the last time it was asked."""
        changes = self._kv.changes
        if changes:
            self._kv.changes = []
        return changes or []

    def complete(self) -> list[tuple[int, Sequence]]:
        """End the iterations in progress, at the boundary that ``key`` names.

        Returns:
            What they have brought: ``STARTED``, ``FINISHED`` or ``HANDED``, and who.
        """
        n, count = self._decoding, self._iterations
        elapsed_fs = self._end_fs - self._start_fs
        self._start_fs = self._end_fs
        self._iterations = 1
        iteration = self._iteration = self._iteration + count
        brought: list[tuple[int, Sequence]] = []
        if n:
            chunks = self._chunks
            if not chunks:
                growing = self._crossings(iteration - count, count)
                if growing:
                    self._kv.take(growing)
                if count > 1:  # the last of a run is the longest
                    elapsed_fs = (
                        self._launch_fs
                        + n * self._sequence_fs
                        + (self._context + n * (count - 1)) * self._context_token_fs
                    )
            self._context += n * count
            gaps_at, gaps_fs = self._gaps_at, self._gaps_fs
            while gaps_fs and gaps_fs[-1] <= elapsed_fs:
                gaps_fs.pop()
                gaps_at.pop()
            gaps_fs.append(elapsed_fs)
            gaps_at.append(iteration)
            if self._ends[0][0] <= iteration:
                self._finish(brought)
            if not chunks:
                return brought
        self._prefilled(brought)
        return brought

    def plan(self, now_ns: int) -> None:
        """Take up what has come and begin what follows."""
        start_fs = seen_fs = self._start_fs
        if self._inbox:
            self._attend(seen_fs)
        if not self._decoding and not self._prefilling:
            # Its last boundary was now or before, and it has had nothing to do since.
            self._busy_fs += start_fs - self._busy_from_fs
            start_fs = self._start_fs = self._busy_from_fs = now_ns * FS_PER_NS
            seen_fs = start_fs + 1
            if self._inbox:
                self._attend(seen_fs)
        n = self._decoding
        self._preempted = False
        if n and self._kv.available < n and self._growing_next() > self._kv.available:
            self._make_room()
            n = self._decoding
        if self._paces is not None:
            self._take_batch(self._paces, n)
        if self._prefilling or self._waiting:
            self._growing = self._growing_next() if n else 0
            first_fs = self._launch_fs + self._schedule(seen_fs)
            if self._chunks:
                if self._growing:
                    self._kv.take(self._growing)
                first_fs += n * self._sequence_fs + self._context * self._context_token_fs
                self._begin(1, first_fs, first_fs)
                return
        elif self._chunks:
            self._chunks = []
        if n:
            self._run(start_fs)
        else:
            self._iterations = 0
            self.key = IDLE
            self._gaps_at.clear()
            self._gaps_fs.clear()

    def iterations_by(self, now_ns: int) -> int:
        """How many iterations have ended by a time before the boundary that ``key`` names."""
        if self._iterations < 2:
            return self._iteration
        elapsed_fs = now_ns * FS_PER_NS - self._start_fs
        within = self._timing.iterations_within(self._decoding, self._context, elapsed_fs)
        return self._iteration + min(within, self._iterations - 1)

    def crash(self, now_ns: int) -> list[Sequence]:
        """Lose everything.

        Returns:
            The sequences that it had, with the tokens that each had made.
        """
        if self._iterations:
            self._busy_fs += now_ns * FS_PER_NS - self._busy_from_fs
            done = self._ended_by(now_ns)
            self._kv.take(self._crossings(self._iteration, done))
            self._iteration += done
        lost = [*self._running, *self._waiting, *self._held]
        for sequence in lost:
            if sequence.state == DECODING:
                sequence.made += self._iteration - sequence.decodes_from
                self.output_tokens += self._iteration - sequence.decodes_from
            sequence.state = GONE
        self.evicted_before += self._kv.evicted
        self.kv_blocks_max = max(self.kv_blocks_max, self._kv_blocks_max())
        self._empty()
        return lost

    def made_by(self, sequence: Sequence, now_ns: int) -> int:
        """Tokens that one of its sequences has made until now."""
        if sequence.state != DECODING:
            return sequence.made
        return sequence.made + self._iteration + self._ended_by(now_ns) - sequence.decodes_from

    def live(self) -> list[Sequence]:
        """What it has and was not told to drop."""
        dropped = {sequence for _, kind, sequence in self._inbox if kind in {_ABORT, _RELEASE}}
        every = (*self._running, *self._waiting, *self._held)
        return [sequence for sequence in every if sequence not in dropped]

    def cached(self) -> set[int]:
        """Hashes of the blocks in its prefix cache."""
        return self._kv.cached()

    def check(self) -> None:
        """Assert that what is counted and what is there agree."""
        self._kv.check()
        decoding = [each for each in self._running if each.state == DECODING]
        assert len(decoding) == self._decoding == len(self._phases), self._decoding
        contexts = [each.prompt + self._iteration - each.decodes_from for each in decoding]
        assert sum(contexts) == self._context, (contexts, self._context)
        assert sorted(each.phase for each in decoding) == self._phases, self._phases
        assert len(self._running) <= self._slots, len(self._running)
        assert (
            sum(
                each.prompt - each.computed
                for each in [*self._waiting, *self._prefilling]
                if not each.arrives
            )
            == self.backlog_tokens
        ), self.backlog_tokens

    def is_empty(self) -> bool:
        """Whether it has no sequence and all its blocks can be had."""
        return not self._running and not self._waiting and self._kv.available == self._kv.blocks_max

    def use(self) -> WorkerUse:
        """What it did until now; ``up_ns`` is the driver's to count."""
        return WorkerUse(
            worker=self.spec.worker,
            up_ns=self.up_ns,
            busy_ns=(self._busy_fs + self._start_fs - self._busy_from_fs) // FS_PER_NS,
            iterations=self._iteration,
            prefill_tokens=self.prefill_tokens,
            output_tokens=self.output_tokens,
            hit_tokens=self.hit_tokens,
            evicted_blocks=self.evicted_before + self._kv.evicted,
            preemptions=self.preemptions,
            kv_blocks_max=max(self.kv_blocks_max, self._kv_blocks_max()),
        )

    def _ended_by(self, now_ns: int) -> int:
        """Iterations of the run in progress that have ended by now, before its last boundary."""
        if not self._iterations or self._chunks or not self._decoding:
            return 0
        elapsed_fs = now_ns * FS_PER_NS - self._start_fs
        ended = self._timing.iterations_within(self._decoding, self._context, elapsed_fs)
        return min(ended, self._iterations - 1)  # the last one may hang

    def _kv_blocks_max(self) -> int:
        return self._kv.blocks_max - self._kv.available_min

    # The end of iterations.

    def _finish(self, brought: list[tuple[int, Sequence]]) -> None:
        """End all sequences that have made their last token by now."""
        ends, iteration = self._ends, self._iteration
        while ends and ends[0][0] <= iteration:
            at, _, sequence = heappop(ends)
            if sequence.ends_at != at:
                continue  # preempted or aborted since
            self._leave(sequence)
            del self._running[sequence]
            sequence.state = GONE
            brought.append((FINISHED, sequence))
        while ends and ends[0][2].ends_at != ends[0][0]:
            heappop(ends)

    def _next_end(self) -> None:
        ends = self._ends
        while ends and ends[0][2].ends_at != ends[0][0]:
            heappop(ends)

    def _leave(self, sequence: Sequence) -> None:
        """Take a decoding sequence out of the batch and let go of its blocks."""
        done = self._iteration - sequence.decodes_from
        context = sequence.prompt + done
        sequence.made += done
        self.output_tokens += done
        sequence.ends_at = IDLE
        self._decoding -= 1
        self._context -= context
        phases = self._phases
        del phases[bisect_left(phases, sequence.phase)]
        place = bisect_right(self._gaps_at, sequence.decodes_from)
        if place < len(self._gaps_fs) and self._gaps_fs[place] > sequence.itl_max_fs:
            sequence.itl_max_fs = self._gaps_fs[place]
        counted = -(-context // self._block_tokens) - sequence.shared
        self._kv.release(sequence.last, counted)
        sequence.last = None

    def _prefilled(self, brought: list[tuple[int, Sequence]]) -> None:
        """Note the chunks that were computed; a prompt's last one has made a token."""
        block_tokens, total, whole = self._block_tokens, 0, 0
        for sequence, tokens in self._chunks:
            total += tokens
            computed = sequence.computed = sequence.computed + tokens
            full = min(computed // block_tokens, len(sequence.blocks))
            if full > sequence.shared:
                sequence.last = self._kv.commit(
                    sequence.last, sequence.blocks, sequence.shared, full
                )
                sequence.shared = full
            if computed < sequence.prompt:
                continue
            whole += 1
            sequence.made += 1
            if sequence.made == sequence.kept + 1:
                brought.append((STARTED, sequence))
            if sequence.made > 1:  # it was preempted, or goes on
                gap_fs = self._start_fs - sequence.token_fs
                sequence.itl_max_fs = max(sequence.itl_max_fs, gap_fs)
            if sequence.made < sequence.output_tokens and not sequence.hands_over:
                self._decode(sequence)
                continue
            del self._running[sequence]
            if sequence.made == sequence.output_tokens:
                self._drop_blocks(sequence)
                sequence.state = GONE
                brought.append((FINISHED, sequence))
            else:
                sequence.state = HELD
                sequence.token_fs = self._start_fs
                self._held[sequence] = None
                brought.append((HANDED, sequence))
        # Only the last chunk can be a part, so whole prompts are the first ones.
        del self._prefilling[:whole]
        self.output_tokens += whole
        self.prefill_tokens += total
        self.backlog_tokens -= total

    def _decode(self, sequence: Sequence) -> None:
        """Begin to decode a sequence whose prompt is in the KV cache."""
        iteration, context = self._iteration, sequence.prompt
        sequence.state = DECODING
        sequence.decodes_from = iteration
        sequence.ends_at = iteration + sequence.output_tokens - sequence.made
        sequence.phase = (iteration + 1 - context) % self._block_tokens
        insort(self._phases, sequence.phase)
        self._decoding += 1
        self._context += context
        heappush(self._ends, (sequence.ends_at, sequence.number, sequence))

    def _drop_blocks(self, sequence: Sequence) -> None:
        """Let go of the blocks that were set aside for a prompt."""
        counted = -(-sequence.prompt // self._block_tokens) - sequence.shared
        self._kv.release(sequence.last, counted)
        sequence.last = None
        sequence.shared = 0

    # The beginning of iterations.

    def _attend(self, seen_fs: int) -> None:
        """Take up what a worker was told before a time."""
        inbox = self._inbox
        while inbox and inbox[0][0] < seen_fs:
            _, kind, sequence = inbox.pop(0)
            if sequence is None:
                if kind == _PACE:
                    self._keep_pace(self._timings.popleft())
                else:
                    self._moves.popleft()(self._kv)
                continue
            state = sequence.state
            if kind == _RELEASE:
                if state == HELD:
                    self._drop(sequence)
                    sequence.state = GONE
            elif kind == _JOIN:
                if state == ARRIVING:
                    self._begin_arrived(sequence)
            elif state != GONE:
                self._drop(sequence)
                sequence.state = GONE
        self._next_end()

    def _begin_arrived(self, sequence: Sequence) -> None:
        self._joined.append(sequence)
        self._decode(sequence)
        full = min(sequence.prompt // self._block_tokens, len(sequence.blocks))
        if full > sequence.shared:
            sequence.last = self._kv.commit(sequence.last, sequence.blocks, sequence.shared, full)
            sequence.shared = full

    def _drop(self, sequence: Sequence) -> None:
        """Take out a sequence, wherever it is."""
        state = sequence.state
        if state == WAITING:
            self._waiting.remove(sequence)
            if not sequence.arrives:
                self.backlog_tokens -= sequence.prompt
            return
        if state == DECODING:
            self._leave(sequence)
            self._next_end()
        else:
            if state == PREFILLING:
                self._prefilling.remove(sequence)
                self.backlog_tokens -= sequence.prompt - sequence.computed
            self._drop_blocks(sequence)
        del (self._held if state == HELD else self._running)[sequence]

    def _make_room(self) -> None:
        """Preempt the youngest until the next iteration has the blocks that it needs."""
        self._preempted = True
        while self._growing_next() > self._kv.available:
            sequence = next(reversed(self._running))
            if sequence.state == DECODING:
                sequence.token_fs = self._start_fs
            self._drop(sequence)
            self.preemptions += 1
            sequence.preemptions += 1
            sequence.arrives = False
            sequence.prompt = sequence.input_tokens + sequence.made
            sequence.computed = sequence.shared = 0
            sequence.state = WAITING
            self._waiting.appendleft(sequence)
            self.backlog_tokens += sequence.prompt

    def _schedule(self, seen_fs: int) -> int:
        """Choose chunks of prompts for the next iteration, and admit who can be.

        Returns:
            What they add to it, in femtoseconds.
        """
        budget = self._batch_tokens_max - self._decoding
        chunks = self._chunks = []
        # Chunks cost what Timing.prefill_fs says; here they are summed up before they are priced.
        pairs = 0
        for sequence in self._prefilling:
            tokens = min(sequence.prompt - sequence.computed, budget)
            chunks.append((sequence, tokens))
            pairs += tokens * sequence.computed + tokens * (tokens - 1) // 2
            budget -= tokens
            if not budget:
                break
        waiting, slots, running = self._waiting, self._slots, self._running
        while waiting and budget and len(running) < slots and not self._preempted:
            sequence = waiting[0]
            if sequence.after_fs >= seen_fs or not self._admit(sequence):
                break
            waiting.popleft()
            running[sequence] = None
            if sequence.arrives:
                continue
            tokens = min(sequence.prompt - sequence.computed, budget)
            chunks.append((sequence, tokens))
            pairs += tokens * sequence.computed + tokens * (tokens - 1) // 2
            budget -= tokens
        if not chunks:
            return 0
        tokens = self._batch_tokens_max - self._decoding - budget
        return tokens * self._prefill_token_fs + pairs * self._prefill_context_fs

    def _admit(self, sequence: Sequence) -> bool:
        """Give a sequence the blocks of its whole prompt, if there are enough."""
        block_tokens, kv, blocks = self._block_tokens, self._kv, sequence.blocks
        prompt = sequence.prompt
        # At least the last token is computed, because it makes the next one.
        most = prompt // block_tokens if sequence.arrives else (prompt - 1) // block_tokens
        match = kv.match(blocks, min(len(blocks), most)) if blocks else NO_MATCH
        hits = match[0]
        needed = -(-prompt // block_tokens)
        spare = self._watermark if self._running else 0
        if needed - match[1] + self._growing + spare > kv.available:
            return False
        if hits:
            sequence.last = kv.pin(match)
        kv.take(needed - hits)
        sequence.shared = hits
        tokens = hits * block_tokens
        if sequence.arrives:
            sequence.state = ARRIVING
            self.arrivals.append((sequence, (prompt - tokens) * self.spec.kv_bytes_per_token))
            return True
        self.hit_tokens += tokens
        self.backlog_tokens -= tokens
        sequence.computed = tokens
        if not sequence.made and not sequence.preemptions:
            sequence.cached_tokens = tokens
        sequence.state = PREFILLING
        self._prefilling.append(sequence)
        return True

    def _run(self, start_fs: int) -> None:
        """Begin a run of decode, as long as it can be."""
        n, context, iteration = self._decoding, self._context, self._iteration
        count = self._ends[0][0] - iteration
        if self._exact or (self._preempted and self._waiting):
            count = 1
        elif count > 1:
            available = self._kv.available
            if available < n * (count // self._block_tokens + 1):
                count = min(count, self._crossings_within(available))
            after_fs = IDLE
            if self._inbox:
                after_fs = self._inbox[0][0]
            elif self._waiting and self._waiting[0].after_fs >= start_fs:
                after_fs = self._waiting[0].after_fs
            if after_fs >= start_fs:
                within = self._timing.iterations_within(n, context, after_fs - start_fs)
                count = min(count, within + 1)
        first_fs = self._launch_fs + n * self._sequence_fs + context * self._context_token_fs
        grown_fs = self._context_token_fs * n * (count * (count - 1) // 2)
        self._begin(count, count * first_fs + grown_fs, first_fs)

    def _begin(self, count: int, elapsed_fs: int, first_fs: int) -> None:
        if self._hung_until_fs > self._start_fs:
            first_fs += self._hung_until_fs - self._start_fs
            count, elapsed_fs = 1, first_fs
        if self._joined:
            for sequence in self._joined:
                gap_fs = self._start_fs + first_fs - sequence.token_fs
                sequence.itl_max_fs = max(sequence.itl_max_fs, gap_fs)
            self._joined.clear()
        self._end_after(count, elapsed_fs)

    def _end_after(self, count: int, elapsed_fs: int) -> None:
        self._iterations = count
        end_fs = self._end_fs = self._start_fs + elapsed_fs
        self.key = (-(-end_fs // FS_PER_NS) << KEY_SHIFT) | self.index
        heappush(self._heap, self.key)

    def _cut(self, now_ns: int) -> None:
        """End a run at its first boundary after now."""
        n, context = self._decoding, self._context
        elapsed_fs = now_ns * FS_PER_NS - self._start_fs
        count = self._timing.iterations_within(n, context, elapsed_fs) + 1
        if count < self._iterations:
            self._end_after(count, self._timing.run_fs(n, context, count))

    def _post(self, kind: int, sequence: Sequence | None, now_ns: int) -> None:
        self._inbox.append((now_ns * FS_PER_NS, kind, sequence))
        if self._iterations == 0:
            self.plan(now_ns)
        elif self._iterations > 1:
            self._cut(now_ns)

    # KV blocks that decode needs.

    def _growing_next(self) -> int:
        """New blocks that the sequences need in the next iteration."""
        phases, phase = self._phases, (self._iteration + 1) % self._block_tokens
        return bisect_right(phases, phase) - bisect_left(phases, phase)

    def _crossings(self, iteration: int, count: int) -> int:
        """New blocks that the sequences need in so many iterations after one."""
        phases, block_tokens = self._phases, self._block_tokens
        full, rest = divmod(count, block_tokens)
        low = (iteration + 1) % block_tokens
        high = low + rest
        n = len(phases)
        if high <= block_tokens:
            some = bisect_left(phases, high) - bisect_left(phases, low)
        else:
            some = n - bisect_left(phases, low) + bisect_left(phases, high - block_tokens)
        return full * n + some

    def _crossings_within(self, available: int) -> int:
        """The most iterations for which so many blocks are enough; at least 1."""
        phases, block_tokens = self._phases, self._block_tokens
        full, rest = divmod(available, len(phases))
        low = (self._iteration + 1) % block_tokens
        place = bisect_left(phases, low) + rest
        n = len(phases)
        offset = phases[place] - low if place < n else phases[place - n] + block_tokens - low
        return full * block_tokens + offset
