"""What a policy is asked, and what it answers; ``pickers`` has what policies are made of.

A policy decides; the dispatcher checks and does. A choice that names a worker which is not up, has
no slot or serves another model is dropped and counted as a fault, and so is a policy that raises:
the request is then placed by load. One that cannot take its settings is replaced by the plain one
until they change, and one that cannot write its memory down begins anew where that is read. So a
wrong policy can cost money, but no request is lost, sent twice or sent to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol, get_args

import msgspec

from tokenworks.core.rng import GOLDEN_GAMMA, WORD, mix64
from tokenworks.dispatch.commands import SendReason
from tokenworks.dispatch.events import Configured, Finished
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.workers import Worker


class Choice(msgspec.Struct, frozen=True, gc=False):
    """Where a request goes, and what decided.

    Attributes:
        worker: who takes it.
        reason: why.
        hit_blocks: blocks of its prefix that the worker is believed to have.
        rank: the tier under which it counts there.
        candidates: workers that could have taken it.
        value_nanodollars: what it is expected to add, where a policy counts in money.
        prefiller: another worker that is to compute its prompt, and has the hit; None if ``worker``
            does that itself.
    """

    worker: Worker
    reason: SendReason
    hit_blocks: int
    rank: int
    candidates: int
    value_nanodollars: int = 0
    prefiller: Worker | None = None


REASONS: Final = frozenset(get_args(SendReason))
_INT_MAX: Final = 1 << 62


def is_well_formed(choice: Choice) -> bool:
    """Whether the parts of a choice are of their types, which nobody has checked in an own policy.

    What is not a choice at all may raise.
    """
    if type(choice) is not Choice:
        return False
    numbers = (choice.hit_blocks, choice.rank, choice.candidates, choice.value_nanodollars)
    return choice.reason in REASONS and all(
        type(each) is int and -_INT_MAX < each < _INT_MAX for each in numbers
    )


class Policy(Protocol):
    """Decides where requests go and who is next. It has no clock and no dice of its own."""

    def configure(self, configured: Configured, index: PrefixIndex) -> None:
        """Take settings; called before all else, and again when they change."""
        ...

    def arrived(self, fleet: Fleet, request: Request, now_ns: int) -> None:
        """Learn of a newcomer, before it is placed or queued."""
        ...

    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        """Where a newcomer goes now, asked when nobody else waits; None lets it wait."""
        ...

    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        """Who of those that wait goes now, and where, one after the other.

        Each is sent before the next one is asked for.
        """
        ...

    def finished(self, fleet: Fleet, worker: Worker, request: Request, event: Finished) -> None:
        """Learn from an answer that is whole; it is off the worker already."""
        ...

    def record(self) -> bytes:
        """All that it remembers; the same memory gives the same bytes."""
        ...

    def restore(self, data: bytes) -> None:
        """Remember what ``record`` gave; ``configure`` came before."""
        ...


MakePolicy = Callable[[], Policy]
"""How a policy is made; by this an operator's own comes into the dispatcher."""


class Forgetful:
    """The parts of a policy that learns nothing."""

    def arrived(self, fleet: Fleet, request: Request, now_ns: int) -> None:
        """See ``Policy``."""

    def finished(self, fleet: Fleet, worker: Worker, request: Request, event: Finished) -> None:
        """See ``Policy``."""

    def record(self) -> bytes:
        """See ``Policy``."""
        return b""

    def restore(self, data: bytes) -> None:
        """See ``Policy``."""
        assert not data, data


class Dice:
    """Random numbers as a pure function of a seed and how many were drawn.

    Source: SplitMix64, Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
    OOPSLA 2014, figure 17.

    >>> dice = Dice(1234567)
    >>> dice.below(2**64), dice.below(2**64), dice.below(6)
    (6457827717110365317, 3203168211198807973, 3)
    """

    __slots__ = ("state",)

    def __init__(self, seed: int) -> None:
        self.state = seed & WORD

    def below(self, bound: int) -> int:
        """A number from 0 to ``bound`` - 1."""
        self.state = (self.state + GOLDEN_GAMMA) & WORD
        return (mix64(self.state) * bound) >> 64
