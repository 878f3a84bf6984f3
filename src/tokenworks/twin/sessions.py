"""Agents: sessions of many turns whose prompts grow, with tools to wait for and helpers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

import msgspec

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.units import NS_PER_S
from tokenworks.twin.arrivals import Arrivals, arrival_times
from tokenworks.twin.traces import MOONCAKE_BLOCK_TOKENS, Row, Trace

DEPTH_MAX: Final = 1
"""Helpers start no helpers."""


class Agents(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What agents do, as means; lengths and times are log-normal.

    Attributes:
        kinds: kinds of agent; all of a kind begin with the same instructions and tools.
        instruction_tokens: of a kind.
        task_tokens: what the session is about.
        turns_mean: requests of one session, one after another.
        turns_max: at most.
        output_tokens: made in a turn.
        result_tokens: what a tool gives back, put behind the output in the next prompt.
        tool_s: how long a tool takes.
        branch_share: chance that a turn starts helpers, for which the next turn waits.
        branches_max: helpers that one turn starts at most.
        context_tokens_max: a session whose prompt would be longer ends.
        sigma: of the log-normal distributions.
    """

    kinds: int = 8
    instruction_tokens: int = 4_096
    task_tokens: int = 1_500
    turns_mean: float = 8.0
    turns_max: int = 64
    output_tokens: int = 250
    result_tokens: int = 800
    tool_s: float = 4.0
    branch_share: float = 0.1
    branches_max: int = 3
    context_tokens_max: int = 100_000
    sigma: float = 0.8


def agent_trace(
    agents: Agents,
    seed: int,
    *,
    rate_per_s: float,
    duration_s: float,
    kind: Arrivals = "poisson",
    limit: int | None = None,
) -> Trace:
    """Sessions that begin within a duration, with all their turns.

    A turn's prompt is the whole of the turn before, its output and the tool's result, so that it
    finds all of it in the prefix cache. A helper begins with its parent's prompt.

    Args:
        agents: what they do.
        seed: all that is drawn follows from it.
        rate_per_s: sessions that begin per second.
        duration_s: how long sessions begin.
        kind: how they arrive.
        limit: the first so many requests only.

    Raises:
        ConfigInvalid: a figure that cannot be, or no session begins.
    """
    _check(agents)
    rng = random.Random(seed)  # noqa: S311
    grower = _Grower(agents, rng)
    starts = arrival_times(kind, rng, rate_per_s=rate_per_s, duration_s=duration_s)
    rows: list[Row] = []
    for number, at_ns in enumerate(list(starts)):
        if limit is not None and len(rows) >= limit:
            break
        rows.extend(grower.session(f"agent-{number}", at_ns))
    if not rows:
        raise ConfigInvalid("No session begins.", hint="Raise the rate or the duration.")
    # A session's rows all carry its start; cut at its end, who is waited for is there.
    return Trace(rows=tuple(rows[:limit]), block_tokens=MOONCAKE_BLOCK_TOKENS)


def _check(agents: Agents) -> None:
    for name, value in msgspec.structs.asdict(agents).items():
        lowest = 0 if name in {"branch_share", "branches_max", "tool_s", "sigma"} else 1
        if value < lowest or (name == "branch_share" and value > 1):
            raise ConfigInvalid(f"The agents' {name} is {value!r}; it must be {lowest} or more.")


class _Context:
    """A prompt as it grows: its tokens and the ids of its blocks, the full ones."""

    __slots__ = ("blocks", "tokens")

    def __init__(self, tokens: int = 0, blocks: tuple[int, ...] = ()) -> None:
        self.tokens, self.blocks = tokens, blocks


class _Grower:
    """Draws sessions; each new text gets new block ids."""

    def __init__(self, agents: Agents, rng: random.Random) -> None:
        self._agents, self._rng = agents, rng
        self._next_id = 0
        nothing = _Context()
        self._kinds = [self._grown(nothing, agents.instruction_tokens) for _ in range(agents.kinds)]

    def session(self, name: str, at_ns: int) -> list[Row]:
        """The rows of a session and of its helpers, each behind those that it waits for."""
        start = self._kinds[self._rng.randrange(len(self._kinds))]
        context = self._grown(start, self._tokens(self._agents.task_tokens))
        rows = self._turns(name, at_ns, context, (), 0)
        return [msgspec.structs.replace(row, family=name) for row in rows]

    def _turns(
        self, name: str, at_ns: int, context: _Context, wait_for: tuple[str, ...], depth: int
    ) -> Iterator[Row]:
        agents, rng = self._agents, self._rng
        delay_ns = 0
        for turn in range(self._turn_count(depth)):
            if context.tokens > agents.context_tokens_max:
                return
            request, output = f"{name}-{turn}", self._tokens(agents.output_tokens)
            yield Row(
                at_ns=at_ns,
                input_tokens=context.tokens,
                output_tokens=output,
                block_ids=context.blocks,
                request=request,
                session=name,
                wait_for=wait_for,
                delay_ns=delay_ns,
            )
            context = self._grown(context, output)
            wait_for = (request,)
            if depth < DEPTH_MAX and agents.branches_max and rng.random() < agents.branch_share:
                for helper in range(rng.randint(1, agents.branches_max)):
                    task = self._grown(context, self._tokens(agents.task_tokens))
                    rows = list(
                        self._turns(f"{request}-{helper}", at_ns, task, (request,), depth + 1)
                    )
                    yield from rows
                    if rows and rows[-1].request is not None:
                        wait_for = (*wait_for, rows[-1].request)
            delay_ns = round(self._spread(agents.tool_s) * NS_PER_S)
            context = self._grown(context, self._tokens(agents.result_tokens))

    def _turn_count(self, depth: int) -> int:
        mean = self._agents.turns_mean / (depth + 1)
        count = 1 + int(self._rng.expovariate(1.0 / (mean - 1))) if mean > 1 else 1
        return min(count, self._agents.turns_max)

    def _grown(self, context: _Context, tokens: int) -> _Context:
        total = context.tokens + tokens
        count = total // MOONCAKE_BLOCK_TOKENS - len(context.blocks)
        fresh = range(self._next_id, self._next_id + count)
        self._next_id += count
        return _Context(total, context.blocks + tuple(fresh))

    def _tokens(self, mean: int) -> int:
        return max(1, round(self._spread(mean)))

    def _spread(self, mean: float) -> float:
        sigma = self._agents.sigma
        return mean * self._rng.lognormvariate(-sigma * sigma / 2, sigma)
