"""One modelled engine: continuous batching, chunked prefill, KV blocks, preemption.

It works as vLLM's scheduler does (vllm-project/vllm, ``v1/core/sched/scheduler.py``): first come
first served; each iteration gives every decoding sequence one token and fills what is left of its
token budget with chunks of prompts; a sequence is admitted when its prompt's blocks can be had; a
sequence that can't grow preempts the youngest, which is computed anew later.

Iterations that only decode, with nobody coming or going, are one step in closed form: from here to
the next sequence that ends or needs a block. Whoever comes meanwhile cuts the run at the end of the
iteration that is under way. ``exact`` makes every iteration a step of its own, to compare.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Final

from tokenworks.perf.timing import FS_PER_NS
from tokenworks.twin.kv_cache import KVCache
from tokenworks.twin.records import WorkerSpec, WorkerUse

WATERMARK_PER_MILLE: Final = 10
"""Blocks kept for growth when a sequence is admitted, of a thousand."""
GROWTH_TOKENS: Final = 512
"""A sequence that grows takes blocks for so many tokens at once."""

WAITING, PREFILLING, DECODING, GONE = range(4)


class Served:
    """One request in an engine."""

    __slots__ = (
        "blocks",
        "cached_tokens",
        "chain",
        "computed",
        "context",
        "finish_at",
        "index",
        "itl_max_fs",
        "joined_at",
        "made",
        "named",
        "nameless",
        "number",
        "output",
        "preemptions",
        "prompt",
        "state",
    )

    def __init__(self, index: int, prompt: int, output: int, chain: Sequence[int]) -> None:
        self.index = index
        self.prompt = prompt
        self.output = output
        self.chain = chain
        self.number = 0
        self.state = WAITING
        self.computed = 0
        self.context = 0
        self.made = 0
        self.cached_tokens = 0
        self.named = 0
        self.nameless = 0
        self.blocks = 0
        self.joined_at = 0
        self.finish_at = 0
        self.itl_max_fs = 0
        self.preemptions = 0


class Engine:
    """A worker's engine. Its driver submits, aborts, and steps it when ``due_ns`` comes.

    Args:
        spec: what it is.
        up_ns: when it came up.
        exact: step iteration by iteration.

    Attributes:
        due_ns: when it must be stepped next; None while it is idle.
        epoch: rises whenever ``due_ns`` changes; an older appointment is void.
        started: sequences whose first token was made in the last step.
        finished: sequences that ended in the last step.
    """

    def __init__(self, spec: WorkerSpec, up_ns: int, *, exact: bool = False) -> None:
        self.spec = spec
        self.cache = KVCache(spec.kv_blocks)
        self.due_ns: int | None = None
        self.epoch = 0
        self.started: list[Served] = []
        self.finished: list[Served] = []
        self._exact = exact
        self._timing = spec.timing
        self._launch_fs = spec.timing.launch_fs
        self._sequence_fs = spec.timing.sequence_fs
        self._token_fs = spec.timing.context_token_fs
        self._watermark = spec.kv_blocks * WATERMARK_PER_MILLE // 1_000
        self._growth = max(1, GROWTH_TOKENS // spec.block_tokens)
        self._waiting: deque[Served] = deque()
        self._prefilling: list[Served] = []
        self._chunks: list[int] = []
        self._running = 0
        self._decoding = 0
        self._context = 0
        self._iteration = 0
        self._run = 0
        self._from_fs = 0
        self._due_fs = 0
        self._number = 0
        self._finishes: list[tuple[int, int, Served]] = []
        self._grows: list[tuple[int, int, Served]] = []
        self._by_number: dict[int, Served] = {}
        self._aborted = False
        self._long_at: list[int] = []
        self._long_fs: list[int] = []
        self._up_ns = up_ns
        self._busy_fs = 0
        self._prefill_tokens = self._output_tokens = self._hit_tokens = 0
        self._preemptions = self._kv_blocks_max = 0

    # What a driver calls.

    def fits(self, prompt: int, output: int) -> bool:
        """Whether a request could ever run here."""
        blocks = -(-(prompt + output) // self.spec.block_tokens)
        return blocks + self._watermark <= self.spec.kv_blocks

    def submit(self, sequence: Served, now_ns: int) -> None:
        """Take a request, which fits."""
        self._waiting.append(sequence)
        if self.due_ns is None:
            self._from_fs = self._due_fs = now_ns * FS_PER_NS
            self._plan()
        elif self._run > 1 and self._running < self.spec.slots and len(self._waiting) == 1:
            self._cut(now_ns)

    def abort(self, sequence: Served, now_ns: int) -> None:
        """Stop working on a request; its blocks are free at the end of this iteration."""
        if sequence.state == WAITING:
            self._waiting.remove(sequence)
            sequence.state = GONE
            return
        self._aborted = True
        sequence.output = 0
        if self._run > 1:
            self._cut(now_ns)

    def step(self) -> None:
        """End what was due, and begin what comes next."""
        self.started, self.finished = [], []
        run, decoding, due_fs = self._run, self._decoding, self._due_fs
        spent_fs = due_fs - self._from_fs
        self._busy_fs += spent_fs
        self._from_fs = due_fs
        self._iteration = iteration = self._iteration + run
        if decoding:
            self._context += run * decoding
            self._output_tokens += run * decoding
            if run > 1:
                # The last iteration of a run is its longest: its context is.
                spent_fs = (
                    self._launch_fs
                    + decoding * self._sequence_fs
                    + (self._context - decoding) * self._token_fs
                )
            long_at, long_fs = self._long_at, self._long_fs
            while long_fs and long_fs[-1] <= spent_fs:
                long_at.pop()
                long_fs.pop()
            long_at.append(iteration)
            long_fs.append(spent_fs)
            finishes = self._finishes
            while finishes and finishes[0][0] <= iteration:
                at, _, sequence = heappop(finishes)
                if sequence.state == DECODING and sequence.finish_at == at:
                    sequence.made += at - sequence.joined_at
                    self._leave(sequence)
                    self.finished.append(sequence)
        if self._chunks:
            self._end_chunks()
        if self._aborted:
            self._drop_aborted()
        self._plan()

    def use(self, now_ns: int) -> WorkerUse:
        """What it did until now."""
        return WorkerUse(
            worker=self.spec.worker,
            up_ns=now_ns - self._up_ns,
            busy_ns=self._busy_fs // FS_PER_NS,
            iterations=self._iteration,
            prefill_tokens=self._prefill_tokens,
            output_tokens=self._output_tokens,
            hit_tokens=self._hit_tokens,
            evicted_blocks=self.cache.evicted,
            preemptions=self._preemptions,
            kv_blocks_max=self._kv_blocks_max,
        )

    # The end of a step.

    def _end_chunks(self) -> None:
        """Prompts have been computed for one more chunk; whose is whole has its first token."""
        size, left = self.spec.block_tokens, []
        for sequence, chunk in zip(self._prefilling, self._chunks, strict=False):
            sequence.computed += chunk
            self._prefill_tokens += chunk
            whole = min(len(sequence.chain), sequence.computed // size)
            if whole > sequence.named:
                self.cache.name(sequence.chain, sequence.named, whole)
                sequence.nameless -= whole - sequence.named
                sequence.named = whole
            # One that was aborted stays until it is dropped, a moment later.
            if sequence.computed < sequence.prompt + sequence.made or not sequence.output:
                left.append(sequence)
            else:
                self._join(sequence)
        done = len(self._chunks)
        self._prefilling[:done] = left
        self._chunks.clear()

    def _join(self, sequence: Served) -> None:
        """A prompt is whole: it has its first token, or after a preemption its next one."""
        iteration = self._iteration
        if not sequence.made:
            self.started.append(sequence)
        sequence.made += 1
        self._output_tokens += 1
        sequence.joined_at = iteration
        sequence.context = sequence.computed
        sequence.state = DECODING
        self._decoding += 1
        self._context += sequence.context
        left = sequence.output - sequence.made
        if not left:
            self._leave(sequence)
            self.finished.append(sequence)
            return
        sequence.finish_at = iteration + left
        heappush(self._finishes, (sequence.finish_at, sequence.number, sequence))
        self._watch_growth(sequence)

    def _watch_growth(self, sequence: Served) -> None:
        """Note when a sequence will need its next block, if it lives so long."""
        room = sequence.blocks * self.spec.block_tokens - sequence.context
        at = sequence.joined_at + room
        if at < sequence.finish_at:
            heappush(self._grows, (at, sequence.number, sequence))

    def _leave(self, sequence: Served) -> None:
        """Take a sequence out of the batch and give its blocks back."""
        if sequence.state == DECODING:
            joined = sequence.joined_at
            self._decoding -= 1
            self._context -= sequence.context + self._iteration - joined
            at = bisect_right(self._long_at, joined)
            if at < len(self._long_fs) and self._long_fs[at] > sequence.itl_max_fs:
                sequence.itl_max_fs = self._long_fs[at]
        self.cache.release(sequence.chain, sequence.named, sequence.nameless)
        sequence.named = sequence.nameless = sequence.blocks = 0
        sequence.state = GONE
        self._running -= 1
        del self._by_number[sequence.number]
        if not self._decoding:
            # Nobody is left who could ask for a gap before now.
            self._long_at.clear()
            self._long_fs.clear()

    def _drop_aborted(self) -> None:
        self._aborted = False
        for sequence in [each for each in self._by_number.values() if not each.output]:
            if sequence.state == PREFILLING:
                self._prefilling.remove(sequence)
            else:
                sequence.made += self._iteration - sequence.joined_at
            self._leave(sequence)

    # The beginning of a step.

    def _plan(self) -> None:
        """Grow, admit, and begin an iteration or a run of them."""
        if self._grows and self._grows[0][0] <= self._iteration:
            self._grow()
        if self._waiting:
            self._admit()
        self.epoch += 1
        decoding = self._decoding
        fs = self._launch_fs + decoding * self._sequence_fs + self._context * self._token_fs
        if self._prefilling:
            self._run = 1
            fs += self._prefill_fs()
        elif decoding:
            self._run = run = self._run_length()
            # As Timing.run_fs has it.
            fs = run * fs + self._token_fs * decoding * (run * (run - 1) // 2)
        else:
            self._run = 0
            self.due_ns = None
            return
        self._due_fs = due_fs = self._from_fs + fs
        self.due_ns = -(-due_fs // FS_PER_NS)

    def _run_length(self) -> int:
        """How many iterations until somebody ends or grows."""
        finishes, grows = self._finishes, self._grows
        while finishes[0][2].state != DECODING or finishes[0][2].finish_at != finishes[0][0]:
            heappop(finishes)
        if self._exact:
            return 1
        until = finishes[0][0]
        if grows and grows[0][0] < until:
            until = grows[0][0]
        return until - self._iteration

    def _prefill_fs(self) -> int:
        """Choose chunks of prompts for an iteration; what they add to it."""
        budget = self.spec.batch_tokens_max - self._decoding
        fs, chunks, timing = 0, self._chunks, self._timing
        for sequence in self._prefilling:
            if budget <= 0:
                break
            left = sequence.prompt + sequence.made - sequence.computed
            chunk = min(budget, left)
            chunks.append(chunk)
            fs += timing.prefill_fs(chunk, sequence.computed)
            budget -= chunk
        return fs

    def _cut(self, now_ns: int) -> None:
        """End a run with the iteration that is under way."""
        elapsed_fs = now_ns * FS_PER_NS - self._from_fs
        done = self._timing.iterations_within(self._decoding, self._context, max(0, elapsed_fs))
        if done + 1 >= self._run:
            return
        self._run = done + 1
        self._due_fs = self._from_fs + self._timing.run_fs(self._decoding, self._context, self._run)
        self.due_ns = -(-self._due_fs // FS_PER_NS)
        self.epoch += 1

    def _grow(self) -> None:
        """Take blocks for sequences that need one before the next iteration."""
        grows = self._grows
        while grows and grows[0][0] <= self._iteration:
            at, _, sequence = heappop(grows)
            room = sequence.blocks * self.spec.block_tokens - sequence.context
            if sequence.state != DECODING or at != sequence.joined_at + room:
                continue
            left = sequence.finish_at - self._iteration
            count = min(self._growth, -(-left // self.spec.block_tokens))
            while not self.cache.take(count):
                if count > 1:
                    count = 1
                    continue
                youngest = self._by_number[max(self._by_number)]
                self._preempt(youngest)
                if youngest is sequence:
                    break
            else:
                sequence.blocks += count
                sequence.nameless += count
                cache = self.cache
                self._kv_blocks_max = max(
                    self._kv_blocks_max, cache.blocks - cache.free - cache.idle
                )
                self._watch_growth(sequence)

    def _preempt(self, sequence: Served) -> None:
        """Stop a sequence for want of blocks; it will be computed anew, what it made included."""
        if sequence.state == DECODING:
            sequence.made += self._iteration - sequence.joined_at
        else:
            self._prefilling.remove(sequence)
        self._leave(sequence)
        sequence.state = WAITING
        sequence.computed = 0
        sequence.preemptions += 1
        self._preemptions += 1
        self._waiting.appendleft(sequence)

    def _admit(self) -> None:
        """Take in who waits, in order, as long as slots and blocks are there."""
        cache, size, waiting = self.cache, self.spec.block_tokens, self._waiting
        while waiting and self._running < self.spec.slots:
            sequence = waiting[0]
            tokens = sequence.prompt + sequence.made
            # The last token is always computed: the next one comes of it.
            usable = min(len(sequence.chain), (tokens - 1) // size)
            hit = min(usable, cache.match(sequence.chain))
            blocks = -(-tokens // size)
            lack = blocks - hit
            needed = lack + (self._watermark if self._running else 0)
            if needed > cache.free + cache.idle - hit and needed > cache.available_beside(
                sequence.chain, hit
            ):
                return
            waiting.popleft()
            cache.use(sequence.chain, hit)
            taken = cache.take(lack)
            assert taken, (lack, cache.free)
            used = cache.blocks - cache.free - cache.idle
            if used > self._kv_blocks_max:
                self._kv_blocks_max = used
            self._number += 1
            sequence.number = self._number
            sequence.state = PREFILLING
            sequence.named, sequence.nameless, sequence.blocks = hit, lack, blocks
            sequence.computed = hit * size
            if not sequence.made:
                sequence.cached_tokens = sequence.computed
                self._hit_tokens += sequence.computed
            self._by_number[sequence.number] = sequence
            self._prefilling.append(sequence)
            self._running += 1
