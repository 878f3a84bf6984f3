"""Samples for training alone: the same tasks as in the scores, packed tighter and made harder.

A conversation asks for each of its tools once, so that every call must be read off a signature and
none can be copied from an earlier turn; between the calls come results to tell, and requests that
no tool fulfils.
"""

from __future__ import annotations

import random
from typing import Any, Final

from samples import Sample, call_text
from tool_calls import (
    NO_TOOL,
    ToolMaker,
    request_for,
    result_for,
    value_for,
    with_system,
)
from words import PLAIN, compound, cutting, made_up

PARAMS_MAX: Final = (2, 3, 3, 4)


def awkward(rng: random.Random) -> str:
    """A string that looks like a number or a code: it needs quotes all the same."""
    shape = rng.randrange(6)
    size = rng.choice((3, 4, 5, 6))
    if shape == 0:
        return "".join(rng.choice("0123456789") for _ in range(size))
    if shape < 3:
        return "".join(rng.choice("0123456789abcdef") for _ in range(size))
    if shape == 3:
        return f"20{rng.randrange(20, 32)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}"
    if shape == 4:
        return made_up(rng).upper()[:4] + f"-{rng.randrange(10, 1000)}"
    return f"{rng.randrange(1, 100)}{made_up(rng)}-{rng.choice(PLAIN)}"


def hard_value(rng: random.Random, spec: dict[str, Any]) -> tuple[Any, str]:
    """``value_for``, with more strings that look like numbers."""
    if spec == {"type": "string"} and rng.random() < 0.3:
        text = awkward(rng)
        return text, rng.choice((text, text, text, f'"{text}"'))
    return value_for(rng, spec)


class PieceMaker(ToolMaker):
    """Draws tools that use every piece words are cut into, and more of the rare kinds of name."""

    styles = (0.75, 0.86, 0.95)

    def _word(self, listed: list[str]) -> str:
        rng = self._rng
        kind = rng.random()
        if kind < 0.25:
            return rng.choice(listed)
        if kind < 0.6:
            return compound(rng)
        return cutting(rng) if kind < 0.8 else made_up(rng)


def _refused(rng: random.Random, maker: ToolMaker, taken: set[str]) -> str:
    """A request for a tool that shares no word with the given ones."""
    verb, noun = maker.words()
    while verb in taken or noun in taken:
        verb, noun = maker.words()
    return request_for(rng, maker.make(verb, noun, 2))[0]


def conversation(
    rng: random.Random, *, make: type[ToolMaker] = ToolMaker, tools_max: int = 5
) -> Sample:
    """Each tool is asked for once, in any order, with results and refusals between."""
    maker = make(rng)
    alike = rng.choice((0.2, 0.5, 0.8))
    box = maker.toolbox(rng.randint(2, tools_max), rng.choice(PARAMS_MAX), alike=alike)
    taken = {word for made in box for word in (made.verb, made.noun)}
    turns: list[tuple[str, str]] = []
    for made in rng.sample(box, len(box)):
        if rng.random() < 0.12:
            turns.append((_refused(rng, maker, taken), NO_TOOL))
        text, arguments = request_for(rng, made, hard_value)
        turns.append((text, call_text(made.spec["function"]["name"], arguments)))
        if rng.random() < 0.15:
            result, said = result_for(rng, maker)
            turns.append((f"<tool_response>\n{result}\n</tool_response>", said))
    return Sample(
        task="conversation",
        messages=with_system(rng, turns[0][0]),
        tools=tuple(made.spec for made in box),
        answer=turns[0][1],
        later=tuple(turns[1:]),
    )


def one_call(rng: random.Random, *, make: type[ToolMaker] = ToolMaker) -> Sample:
    """One request with one to four tools, more of them alike than in the scores."""
    box = make(rng).toolbox(rng.randint(1, 4), 3, alike=rng.choice((0.35, 0.7)))
    made = rng.choice(box)
    text, arguments = request_for(rng, made, hard_value)
    name = made.spec["function"]["name"]
    return Sample(
        task="one_call",
        messages=with_system(rng, text),
        tools=tuple(other.spec for other in box),
        answer=call_text(name, arguments),
        call={"name": name, "arguments": arguments},
    )


def refusal(rng: random.Random) -> Sample:
    """One request that none of one to four tools fulfils."""
    maker = PieceMaker(rng)
    box = maker.toolbox(rng.randint(1, 4), 3)
    taken = {word for made in box for word in (made.verb, made.noun)}
    return Sample(
        task="refusal",
        messages=with_system(rng, _refused(rng, maker, taken)),
        tools=tuple(made.spec for made in box),
        answer=NO_TOOL,
    )


def piece_conversation(rng: random.Random) -> Sample:
    """``conversation`` with the tools of ``PieceMaker``."""
    return conversation(rng, make=PieceMaker)


def piece_call(rng: random.Random) -> Sample:
    """``one_call`` with the tools of ``PieceMaker``."""
    return one_call(rng, make=PieceMaker)
