"""Which samples come when: copy-heavy short prompts first, then longer ones and the rest."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final

import arithmetic
import context
import drills
import small_talk
import tool_calls
from samples import Sample

Generator = Callable[[random.Random], Sample]


def _short_call(rng: random.Random) -> Sample:
    return tool_calls.tool_call(rng, tools_max=1, params_max=2)


def _middle_call(rng: random.Random) -> Sample:
    return tool_calls.tool_call(rng, tools_max=3, params_max=3)


COPY_FIRST: Final[tuple[tuple[Generator, int], ...]] = (
    (context.echo, 40),
    (_short_call, 45),
    (context.extract, 10),
    (context.lookup, 5),
)
MIDDLE: Final[tuple[tuple[Generator, int], ...]] = (
    (context.echo, 8),
    (_short_call, 25),
    (_middle_call, 30),
    (tool_calls.factory_call, 8),
    (context.extract, 8),
    (context.lookup, 5),
    (context.report, 5),
    (context.table, 5),
    (arithmetic.add, 2),
    (small_talk.talk, 2),
    (small_talk.explain, 2),
)
FULL: Final[tuple[tuple[Generator, int], ...]] = (
    (tool_calls.calls_in_turn, 46),
    (tool_calls.tool_call, 18),
    (_short_call, 5),
    (tool_calls.factory_call, 8),
    (tool_calls.no_tool, 3),
    (tool_calls.tool_result, 3),
    (context.report, 3),
    (context.table, 2),
    (context.lookup, 2),
    (context.extract, 2),
    (context.echo, 1),
    (arithmetic.add, 1),
    (arithmetic.times, 1),
    (arithmetic.units, 1),
    (arithmetic.money, 1),
    (arithmetic.date, 1),
    (small_talk.talk, 3),
    (small_talk.explain, 3),
)
# Goes on where FULL has left off: sums are declined, and most of the rest is calls.
MORE: Final[tuple[tuple[Generator, int], ...]] = (
    (drills.conversation, 34),
    (drills.one_call, 26),
    (_short_call, 3),
    (tool_calls.factory_call, 7),
    (tool_calls.no_tool, 5),
    (tool_calls.tool_result, 4),
    (context.report, 2),
    (context.table, 4),
    (context.lookup, 2),
    (context.extract, 2),
    (context.echo, 2),
    (arithmetic.units, 2),
    (small_talk.talk, 2),
    (small_talk.explain, 2),
    (small_talk.sums, 2),
)
# Tools that use every piece which words are cut into.
PIECES: Final[tuple[tuple[Generator, int], ...]] = (
    (drills.piece_conversation, 34),
    (drills.piece_call, 30),
    (drills.refusal, 8),
    (tool_calls.factory_call, 6),
    (tool_calls.tool_result, 4),
    (context.report, 2),
    (context.table, 3),
    (context.lookup, 2),
    (context.extract, 2),
    (context.echo, 2),
    (arithmetic.units, 2),
    (small_talk.talk, 2),
    (small_talk.explain, 2),
    (small_talk.sums, 1),
)
# Nearer to the scores: more single requests, more of them that no tool fulfils.
REFINE: Final[tuple[tuple[Generator, int], ...]] = (
    (drills.piece_conversation, 28),
    (drills.piece_call, 34),
    (drills.refusal, 13),
    (tool_calls.factory_call, 6),
    (tool_calls.tool_result, 4),
    (context.report, 2),
    (context.table, 5),
    (context.lookup, 2),
    (context.extract, 2),
    (context.echo, 1),
    (arithmetic.units, 2),
    (small_talk.talk, 2),
    (small_talk.explain, 2),
    (small_talk.sums, 1),
)


def stream(seed: int, mix: tuple[tuple[Generator, int], ...]) -> Iterator[Sample]:
    """Samples of a mix without end; the same seed gives the same samples."""
    rng = random.Random(seed)
    generators = [g for g, _ in mix]
    weights = [w for _, w in mix]
    while True:
        yield rng.choices(generators, weights)[0](rng)
