"""How long an iteration of an engine takes, and how far a run of decode gets, in closed form.

Time in here is an integer number of femtoseconds: the smallest coefficient, attention over one
pair of tokens, is about a picosecond, and sums stay exact. Because they do, a run of decode that
is computed at once ends at the same instant as one that is computed iteration by iteration.
"""

from __future__ import annotations

from bisect import bisect_left
from math import isqrt
from typing import Final, NamedTuple

import msgspec

FS_PER_NS: Final = 1_000_000
FS_PER_S: Final = 10**15


class Knot(NamedTuple):
    """An iteration that decodes, at one size of the batch.

    Attributes:
        sequences: that decode.
        floor_fs: without the KV cache that is read.
        context_token_fs: each token of KV cache that is read.
    """

    sequences: int
    floor_fs: int
    context_token_fs: int


class Timing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An engine's speed as the cost of one iteration, all in femtoseconds and added up.

    Source: the additive form is that of the iteration models of Vidur (Agrawal et al., MLSys 2024,
    section 4) and Sarathi-Serve (OSDI 2024, section 3): a floor for launches and weights, linear
    terms for sequences, for the KV cache that is read and for prefilled tokens, and the quadratic
    term of prefill's attention.

    A mixture of experts reads more of them the more sequences there are, and stages that work side
    by side take as long as the slowest. Where decode so bends with the batch, ``knots`` say how: it
    is straight between two of them. A run of decode has one batch, so it stays in closed form.

    Attributes:
        launch_fs: each iteration: kernel launches, and the weights, which are read once.
        sequence_fs: each sequence that decodes.
        context_token_fs: each token of KV cache that these read.
        prefill_token_fs: each token of prompt that is computed.
        prefill_context_fs: each pair of such a token and one before it in its context.
        knots: by growing batch; none where the law above is all. Where there are some, no batch
            is faster than ``launch_fs``, ``sequence_fs`` and ``context_token_fs`` say.
    """

    launch_fs: int
    sequence_fs: int
    context_token_fs: int
    prefill_token_fs: int
    prefill_context_fs: int
    knots: tuple[Knot, ...] = ()

    def at(self, sequences: int) -> Timing:
        """The law for one size of the batch, which has no knots.

        Below the first knot it is that one's; above the last, the last two go on in a line.

        >>> timing = Timing(launch_fs=90, sequence_fs=0, context_token_fs=1, prefill_token_fs=0,
        ...                 prefill_context_fs=0, knots=(Knot(1, 100, 1), Knot(5, 140, 3)))
        >>> [timing.at(n).decode_fs(n, 10) for n in (0, 1, 3, 5, 7)]
        [110, 110, 140, 170, 200]
        >>> timing.at(3).at(5) == timing.at(3)
        True
        """
        knots = self.knots
        if not knots:
            return self
        above = bisect_left(knots, (sequences,))
        if above == 0 or len(knots) == 1:
            _, floor_fs, context_token_fs = knots[0]
        else:
            left, low_fs, low_each_fs = knots[min(above, len(knots) - 1) - 1]
            right, high_fs, high_each_fs = knots[min(above, len(knots) - 1)]
            part, whole = sequences - left, right - left
            floor_fs = low_fs + (high_fs - low_fs) * part // whole
            context_token_fs = low_each_fs + (high_each_fs - low_each_fs) * part // whole
        return Timing(
            launch_fs=floor_fs,
            sequence_fs=0,
            context_token_fs=max(context_token_fs, 0),
            prefill_token_fs=self.prefill_token_fs,
            prefill_context_fs=self.prefill_context_fs,
        )

    def slower(self, numerator: int, denominator: int) -> Timing:
        """All of it so many times as long, rounded down.

        >>> timing = Timing(launch_fs=90, sequence_fs=0, context_token_fs=1, prefill_token_fs=0,
        ...                 prefill_context_fs=0, knots=(Knot(1, 100, 1),))
        >>> timing.slower(3, 2).knots
        (Knot(sequences=1, floor_fs=150, context_token_fs=1),)
        """
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name != "knots"}
        return Timing(
            **{name: value * numerator // denominator for name, value in fields.items()},
            knots=tuple(
                Knot(n, floor * numerator // denominator, each * numerator // denominator)
                for n, floor, each in self.knots
            ),
        )

    def decode_fs(self, sequences: int, context_tokens: int) -> int:
        """One iteration that decodes.

        Args:
            sequences: how many decode; each makes one token.
            context_tokens: of all of them together, before the iteration.
        """
        if self.knots:
            return self.at(sequences).decode_fs(sequences, context_tokens)
        return (
            self.launch_fs + sequences * self.sequence_fs + context_tokens * self.context_token_fs
        )

    def prefill_fs(self, tokens: int, context_tokens: int) -> int:
        """What prefilling a chunk of one prompt adds to an iteration.

        Args:
            tokens: in the chunk.
            context_tokens: of the prompt before the chunk, cached ones included.
        """
        # Each token attends to all before it; within the chunk, to half of it on average.
        pairs = tokens * context_tokens + tokens * (tokens - 1) // 2
        return tokens * self.prefill_token_fs + pairs * self.prefill_context_fs

    def run_fs(self, sequences: int, context_tokens: int, iterations: int) -> int:
        """A run of decode in which nobody comes or goes; each iteration's context is longer.

        >>> timing = Timing(launch_fs=100, sequence_fs=10, context_token_fs=1, prefill_token_fs=0,
        ...                 prefill_context_fs=0)
        >>> timing.run_fs(2, 50, 3), sum(timing.decode_fs(2, 50 + 2 * i) for i in range(3))
        (516, 516)
        """
        if self.knots:
            return self.at(sequences).run_fs(sequences, context_tokens, iterations)
        first = self.decode_fs(sequences, context_tokens)
        grown = self.context_token_fs * sequences * (iterations * (iterations - 1) // 2)
        return iterations * first + grown

    def iterations_within(self, sequences: int, context_tokens: int, elapsed_fs: int) -> int:
        """How many iterations of a run have ended after a time: the most that ``run_fs`` allows.

        >>> timing = Timing(launch_fs=100, sequence_fs=10, context_token_fs=1, prefill_token_fs=0,
        ...                 prefill_context_fs=0)
        >>> [timing.iterations_within(2, 50, t) for t in (0, 169, 170, 341, 342, 516)]
        [0, 0, 1, 1, 2, 3]
        """
        if self.knots:
            return self.at(sequences).iterations_within(sequences, context_tokens, elapsed_fs)
        first = self.decode_fs(sequences, context_tokens)
        step = self.context_token_fs * sequences
        if step == 0:
            return elapsed_fs // first
        # step/2 n^2 + (first - step/2) n <= elapsed, solved for n and rounded down. The root may be
        # rounded down first: a whole number is at most a root if it is at most its whole part.
        linear = 2 * first - step
        return (isqrt(linear * linear + 8 * step * elapsed_fs) - linear) // (2 * step)

    def speed_tokens_per_s(self, sequences: int, context_tokens: int) -> int:
        """What one user sees while so many decode, rounded down.

        Args:
            sequences: how many decode, at least 1.
            context_tokens: of all of them together.
        """
        return FS_PER_S // self.decode_fs(sequences, context_tokens)
