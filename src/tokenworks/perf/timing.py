"""How long an iteration of an engine takes, and how far a run of decode gets, in closed form.

Time in here is an integer number of femtoseconds: the smallest coefficient, attention over one
pair of tokens, is about a picosecond, and sums stay exact. Because they do, a run of decode that
is computed at once ends at the same instant as one that is computed iteration by iteration.
"""

from __future__ import annotations

from math import isqrt
from typing import Final

import msgspec

FS_PER_NS: Final = 1_000_000
FS_PER_S: Final = 10**15


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """An engine's speed as the cost of one iteration, all in femtoseconds and added up.

    Source: the additive form is that of the iteration models of Vidur (Agrawal et al., MLSys 2024,
    section 4) and Sarathi-Serve (OSDI 2024, section 3): a floor for launches and weights, linear
    terms for sequences, for the KV cache that is read and for prefilled tokens, and the quadratic
    term of prefill's attention.

    Attributes:
        launch_fs: each iteration: kernel launches, and the weights, which are read once.
        sequence_fs: each sequence that decodes.
        context_token_fs: each token of KV cache that these read.
        prefill_token_fs: each token of prompt that is computed.
        prefill_context_fs: each pair of such a token and one before it in its context.
    """

    launch_fs: int
    sequence_fs: int
    context_token_fs: int
    prefill_token_fs: int
    prefill_context_fs: int

    def decode_fs(self, sequences: int, context_tokens: int) -> int:
        """One iteration that decodes.

        Args:
            sequences: how many decode; each makes one token.
            context_tokens: of all of them together, before the iteration.
        """
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
