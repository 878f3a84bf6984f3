"""Sums of answers that are alike: a few additions for each answer, read when somebody asks.

One thread adds. Another may read: what it finds is some moment's, give or take an answer.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, NamedTuple

from tokenworks.core.ids import ModelName
from tokenworks.core.orders import CHAT_PATH, TOKEN_CLASSES, Ending, Order, Outcome, Receipt
from tokenworks.core.slo import Tier
from tokenworks.core.token_sums import completion_tokens, prompt_tokens
from tokenworks.core.units import NS_PER_S


def _ns(*bounds_s: float) -> tuple[int, ...]:
    return tuple(round(bound * NS_PER_S) for bound in bounds_s)


# As OpenTelemetry's conventions for generative AI recommend for their metrics.
TOKENS: Final = tuple(4**power for power in range(14))
DURATION_NS: Final = tuple(10_000_000 << doubling for doubling in range(14))
TTFT_NS: Final = _ns(
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
)
TPOT_NS: Final = _ns(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)

INTERACTIVITY: Final = (5, 10, 25, 50, 100, 200, 400, 1_000, 2_000)
"""Tokens per second that one user sees."""

WAIT_NS: Final = _ns(0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
COMMIT_NS: Final = _ns(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Buckets:
    """How many values were at most each bound, and what they add up to.

    >>> buckets = Buckets((10, 20))
    >>> for value in (10, 11, 99):
    ...     buckets.add(value)
    >>> buckets.counts, buckets.total
    ([1, 1, 1], 120.0)
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """By the least bound that is not below the value; the last is for those above all."""
        self.total = 0.0

    def add(self, value: int) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add_quotient(self, value: float) -> None:
        """Count one that is not a whole number, which takes twice as long to compare."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def join(self, other: Buckets) -> None:
        """Count what another has counted between the same bounds."""
        assert self.bounds == other.bounds, (self.bounds, other.bounds)
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


OPERATIONS: Final = {
    CHAT_PATH: "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/moderations": "moderation",
    "/v1/rerank": "rerank",
    "/v1/images/generations": "generate_content",
    "/v1/images/edits": "generate_content",
    "/v1/images/variations": "generate_content",
    "/v1/audio/speech": "generate_content",
    "/v1/audio/transcriptions": "transcription",
    "/v1/audio/translations": "transcription",
}
"""``gen_ai.operation.name`` by where a worker takes a request; the conventions' words where they
have one."""

OTHER: Final = "other"
"""Of what is passed on as it comes."""


class Kind(NamedTuple):
    """What answers of one tally have in common; each is one of a few."""

    operation: str
    model: ModelName
    asked: Tier
    delivered: Tier
    ending: Ending


class Tally:
    """Answers of one kind.

    Attributes:
        answers: how many.
        tokens: by class, in the order of ``TOKEN_CLASSES``.
        charged_nanodollars, credited_nanodollars: to and of their tenants.
        cost_nanodollars: of their workers.
        input_tokens, output_tokens: of one answer.
        duration_ns: from arrival to the end.
        ttft_ns: where a first token was seen.
        tpot_ns, interactivity: after that, where there were more.
        waited_ns: from arrival to being sent to a worker.
        commit_ns: from the end until the bill was durable.
    """

    __slots__ = (
        *("answers", "tokens", "charged_nanodollars", "credited_nanodollars", "cost_nanodollars"),
        *("input_tokens", "output_tokens", "duration_ns", "ttft_ns", "tpot_ns", "interactivity"),
        *("waited_ns", "commit_ns"),
    )

    def __init__(self) -> None:
        self.answers = 0
        self.tokens = [0] * len(TOKEN_CLASSES)
        self.charged_nanodollars = self.credited_nanodollars = self.cost_nanodollars = 0
        self.input_tokens, self.output_tokens = Buckets(TOKENS), Buckets(TOKENS)
        self.duration_ns, self.ttft_ns = Buckets(DURATION_NS), Buckets(TTFT_NS)
        self.tpot_ns, self.interactivity = Buckets(TPOT_NS), Buckets(INTERACTIVITY)
        self.waited_ns, self.commit_ns = Buckets(WAIT_NS), Buckets(COMMIT_NS)

    def add(
        self, order: Order, outcome: Outcome, receipt: Receipt, ended_ns: int, durable_ns: int
    ) -> None:
        """Count an answer; see ``Tallies.add``."""
        usage, measured = outcome.usage, outcome.measured
        uncached, cached = usage.uncached_input_tokens, usage.cached_input_tokens
        prompt, made = prompt_tokens(usage), completion_tokens(usage)
        tokens = self.tokens
        tokens[0] += uncached
        tokens[1] += cached
        tokens[2] += usage.output_tokens
        if prompt + made != uncached + cached + usage.output_tokens:
            for index, name in _RARE:
                tokens[index] += getattr(usage, name)
        self.answers += 1
        self.charged_nanodollars += receipt.charged_nanodollars
        self.credited_nanodollars += receipt.credited_nanodollars
        self.cost_nanodollars += receipt.cost_nanodollars
        self.input_tokens.add(prompt)
        self.output_tokens.add(made)
        self.duration_ns.add(ended_ns - order.arrived_ns)
        self.waited_ns.add(receipt.waited_ns)
        self.commit_ns.add(durable_ns - ended_ns)
        if measured.ttft_ns is None:
            return
        self.ttft_ns.add(measured.ttft_ns)
        gaps, decode_ns = measured.output_tokens - 1, measured.decode_ns
        if gaps > 0 and decode_ns > 0:
            self.tpot_ns.add_quotient(decode_ns / gaps)
            self.interactivity.add_quotient(gaps * NS_PER_S / decode_ns)


_RARE: Final = tuple(enumerate(TOKEN_CLASSES))[3:]
"""Classes of which most answers have none."""


class Tallies(dict[Kind, Tally]):
    """All answers, by kind. Models and tiers are of the settings, so there are not many."""

    def __init__(self) -> None:
        super().__init__()
        self._of: dict[tuple[str, ModelName, Tier, Tier, Ending], Tally] = {}
        """The same by the parts of a kind: a name for each answer would cost more than the look."""

    def count(
        self, order: Order, outcome: Outcome, receipt: Receipt, ended_ns: int, durable_ns: int
    ) -> None:
        """Count one settled answer.

        Args:
            order: that was asked.
            outcome: what came of it.
            receipt: what was billed.
            ended_ns: when the answer ended, on the driver's clock.
            durable_ns: when its bill was durable.
        """
        operation, model = OPERATIONS.get(order.worker_path, OTHER), order.model
        kind = operation, model, receipt.tier_asked, receipt.tier_delivered, outcome.ending
        tally = self._of.get(kind)
        if tally is None:
            tally = self._of[kind] = self[Kind(*kind)] = Tally()
        tally.add(order, outcome, receipt, ended_ns, durable_ns)
