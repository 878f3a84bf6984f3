"""A timing from physics: knots over the batch, straight in the KV cache that is read.

Physics bend: a mixture reads more of its experts the more sequences there are, and stages side by
side take as long as the slowest. The twin's law is straight in the context and between knots of the
batch, so that its runs of decode stay in closed form. It is never faster than the physics it is
made of, at any point of the grid that it is made from, unless it is to be in their middle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from typing import Final

import msgspec

from tokenworks.perf.timing import FS_PER_NS, Knot, Timing

KNOTS: Final = 24
"""Sizes of the batch that have a knot, in even proportion; fewer where they would be the same."""
CONTEXTS: Final = (256, 1_024, 4_096, 8_192, 16_384, 32_768)
"""Tokens of each sequence, of the grid; up to the most that a sequence may have."""
FS_PER_MS: Final = 10**12

Step = Callable[[int, float], float]
"""Milliseconds of an iteration that decodes: sequences, and tokens of context of each."""


class Tabulated(msgspec.Struct, frozen=True, kw_only=True):
    """A timing, and how far it is from its physics.

    Attributes:
        timing: with knots.
        excess: the most that it is slower than physics at a point of the grid, as a fraction; one
            that is central is as much faster elsewhere.
    """

    timing: Timing
    excess: float


def tabulated(
    step: Step,
    *,
    slots: int,
    context_max: int,
    kv_tokens: int,
    prefill_token_ms: float,
    prefill_pair_ms: float,
    central: bool = False,
) -> Tabulated:
    """Make a timing of an iteration's physics.

    Args:
        step: the physics; more sequences and longer contexts are never faster.
        slots: the largest batch.
        context_max: of a sequence.
        kv_tokens: of KV cache for all of them: no more context is asked of the physics.
        prefill_token_ms: what each token of prompt adds to an iteration.
        prefill_pair_ms: each pair of such a token and one before it.
        central: as far above as below, for what was measured and is no bound.

    >>> found = tabulated(lambda n, c: 1 + 0.5 * n + 1e-4 * n * c, slots=64, context_max=8192,
    ...                   kv_tokens=500_000, prefill_token_ms=0.1, prefill_pair_ms=0.0)
    >>> found.excess < 1e-6, found.timing.decode_fs(10, 10_000) // 10**9
    (True, 7000)
    """
    batches = sorted({round(slots ** (i / (KNOTS - 1))) for i in range(KNOTS)})
    contexts = [each for each in CONTEXTS if each < context_max] + [context_max]
    between = [(a + b) // 2 for a, b in pairwise(batches) if b - a > 1]
    grid = {
        n: [(n * c, step(n, c)) for c in _held(contexts, n, kv_tokens)]
        for n in (*batches, *between)
    }
    lines = _rising({n: _above(grid[n]) for n in batches})
    points = [(n, round(context), ms) for n, held in grid.items() for context, ms in held]
    ratios = _ratios(_timing(lines, 1.0, prefill_token_ms, prefill_pair_ms), points)
    lift = 1 / (math.sqrt(min(ratios) * max(ratios)) if central else min(ratios))
    timing = _timing(lines, lift, prefill_token_ms, prefill_pair_ms)
    # Of the timing as it is: its femtoseconds are whole ones, rounded up.
    return Tabulated(timing=timing, excess=max(1.0, *_ratios(timing, points)) - 1)


def _ratios(timing: Timing, points: Sequence[tuple[int, int, float]]) -> list[float]:
    """How many times the physics' own milliseconds a timing takes, for (batch, context, ms)."""
    return [timing.decode_fs(n, context) / FS_PER_MS / ms for n, context, ms in points]


def _rising(lines: dict[int, tuple[float, float]]) -> dict[int, tuple[float, float]]:
    """Let no knot be faster for a user than the one before, whatever context each user has.

    Each line lies above its own points only, so the next one may begin, or rise, lower.

    >>> _rising({1: (2.0, 0.2), 2: (1.0, 0.3), 4: (3.0, 0.1)})
    {1: (2.0, 0.2), 2: (2.0, 0.3), 4: (3.0, 0.15)}
    """
    found, floor, each_user = {}, 0.0, 0.0
    for n, (own_floor, each) in lines.items():
        floor, each_user = max(floor, own_floor), max(each_user, n * each)
        found[n] = floor, each_user / n
    return found


def _held(contexts: Sequence[int], sequences: int, kv_tokens: int) -> Sequence[int]:
    """Contexts for which there is room; two at least, for a line."""
    held = [each for each in contexts if each * sequences <= kv_tokens]
    return held if len(held) > 1 else contexts[:2]


def _timing(
    lines: dict[int, tuple[float, float]], lift: float, token_ms: float, pair_ms: float
) -> Timing:
    knots = tuple(
        Knot(n, math.ceil(floor * lift * FS_PER_MS), math.ceil(each * lift * FS_PER_MS))
        for n, (floor, each) in lines.items()
    )
    launch, sequence = _below([(knot.sequences, knot.floor_fs) for knot in knots])
    return Timing(
        launch_fs=max(FS_PER_NS, math.floor(launch)),
        sequence_fs=math.floor(sequence),
        context_token_fs=min(knot.context_token_fs for knot in knots),
        prefill_token_fs=math.ceil(token_ms * FS_PER_MS),
        prefill_context_fs=math.ceil(pair_ms * FS_PER_MS),
        knots=knots,
    )


def _above(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The line that is nowhere below some points and whose greatest excess is least.

    Source: its slope is that of a line through two of them, or 0; all of these are tried.
    """
    best = (math.inf, 0.0, 0.0)
    for slope in _slopes(points):
        floor = max(0.0, *(y - slope * x for x, y in points))
        worst = max((floor + slope * x) / y for x, y in points)
        best = min(best, (worst, floor, slope))
    return best[1], best[2]


def _below(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The line that is nowhere above some points and whose greatest shortfall is least."""
    best = (math.inf, 0.0, 0.0)
    for slope in _slopes(points):
        floor = min(y - slope * x for x, y in points)
        if floor > 0:
            worst = max(y / (floor + slope * x) for x, y in points)
            best = min(best, (worst, floor, slope))
    return best[1], best[2]


def _slopes(points: Sequence[tuple[float, float]]) -> set[float]:
    """Of lines through two of the points, those that do not fall; and 0."""
    return {0.0} | {
        (b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if b[1] > a[1]
    }
