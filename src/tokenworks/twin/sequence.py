"""One attempt of a request at a modelled worker, and where it can be."""

from __future__ import annotations

from typing import Final

from tokenworks.perf.timing import FS_PER_NS
from tokenworks.twin.kv_cache import Stretch

IDLE: Final = -1
"""In places of times and iterations: none."""

# Where a sequence is.
WAITING: Final = 0
PREFILLING: Final = 1
DECODING: Final = 2
ARRIVING: Final = 3  # it has its place, and its KV cache is on the way from another worker
HELD: Final = 4  # prefilled; its KV cache goes to another worker
GONE: Final = 5

# What an iteration has brought.
STARTED: Final = 0
FINISHED: Final = 1
HANDED: Final = 2


class Sequence:
    """One attempt of one request at one worker.

    Attributes:
        number: unique in the run; later ones are greater.
        place: of its request in the workload.
        worker: index of the worker that has it.
        attempt: which one.
        input_tokens: of the request's prompt.
        output_tokens: that it will have made at its end.
        blocks: hashes of the prompt's full blocks.
        hands_over: it is only prefilled here; another worker decodes.
        arrives: it was prefilled elsewhere; its KV cache comes when it has a place here.
        source: where it was prefilled, until its KV cache is here.
        state: where it is.
        made: tokens made, when it last stood in a queue or began to decode.
        kept: tokens that earlier attempts have made; it goes on after them.
        prompt: tokens to prefill: its prompt and what was made before it was preempted.
        computed: tokens of these in the KV cache.
        shared: blocks of its chain that it refers to in the prefix cache.
        last: the last stretch of these.
        cached_tokens: of its prompt, found in the prefix cache when it was first admitted.
        decodes_from: number of the iteration after which it decodes.
        ends_at: number of the iteration that makes its last token.
        phase: it needs a new block at iterations of this number modulo a block's tokens.
        after_fs: boundaries after this time see it; ``IDLE`` before it has come to the worker.
        preemptions: times it was preempted.
        itl_max_fs: the longest gap between two of its tokens.
        token_fs: when its latest token was made, if it was not in this worker's last iteration.
    """

    __slots__ = (
        "after_fs",
        "arrives",
        "attempt",
        "blocks",
        "cached_tokens",
        "computed",
        "decodes_from",
        "ends_at",
        "hands_over",
        "input_tokens",
        "itl_max_fs",
        "kept",
        "last",
        "made",
        "number",
        "output_tokens",
        "phase",
        "place",
        "preemptions",
        "prompt",
        "shared",
        "source",
        "state",
        "token_fs",
        "worker",
    )

    def __init__(
        self,
        number: int,
        place: int,
        worker: int,
        attempt: int,
        input_tokens: int,
        output_tokens: int,
        blocks: tuple[int, ...],
    ) -> None:
        self.number = number
        self.place = place
        self.worker = worker
        self.attempt = attempt
        self.input_tokens = self.prompt = input_tokens
        self.output_tokens = output_tokens
        self.blocks = blocks
        self.hands_over = self.arrives = False
        self.source: Sequence | None = None
        self.last: Stretch | None = None
        self.state = WAITING
        self.made = self.computed = self.shared = self.preemptions = self.kept = 0
        self.cached_tokens = 0
        self.decodes_from = self.phase = self.itl_max_fs = self.token_fs = 0
        self.after_fs = self.ends_at = IDLE

    @classmethod
    def kept_of(cls, stopped: Sequence, made: int, now_ns: int) -> Sequence:
        """What is left of an attempt that is stopped now: at most all but its last token."""
        kept = cls(
            stopped.number,
            stopped.place,
            stopped.worker,
            stopped.attempt,
            stopped.input_tokens,
            stopped.output_tokens,
            stopped.blocks,
        )
        kept._keep(stopped, made)
        kept.token_fs = now_ns * FS_PER_NS
        return kept

    def handed_over(self, number: int, worker: int) -> Sequence:
        """The same attempt where it will be decoded, before its KV cache is there.

        Args:
            number: of what goes on there.
            worker: who decodes.
        """
        following = Sequence(
            number,
            self.place,
            worker,
            self.attempt,
            self.input_tokens,
            self.output_tokens,
            self.blocks,
        )
        following.arrives = True
        following.source = self
        following.made = self.made
        following.token_fs = self.token_fs
        following.cached_tokens = self.cached_tokens
        return following

    def go_on_after(self, kept: Sequence) -> None:
        """Go on where an earlier attempt was stopped."""
        self._keep(kept, kept.made)
        self.token_fs = kept.token_fs

    def keep(self, made: int, cached_tokens: int) -> None:
        """Begin after tokens that were made before, at most all but its last one.

        Args:
            made: how many.
            cached_tokens: of its prompt, found in the prefix cache when the first was made.
        """
        self.made = self.kept = min(made, self.output_tokens - 1)
        self.prompt = self.input_tokens + self.made
        if self.made:
            self.cached_tokens = cached_tokens

    def _keep(self, stopped: Sequence, made: int) -> None:
        self.keep(made, stopped.cached_tokens)
        self.preemptions = stopped.preemptions
        self.itl_max_fs = stopped.itl_max_fs
