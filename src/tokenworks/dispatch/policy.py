"""What a policy is asked, and the pure functions that policies are made of.

A policy decides; the dispatcher checks and does. A choice that names a worker which is not up, has
no slot or serves another model is dropped and counted as a fault, and so is a policy that raises:
the request is then placed by load. One that cannot take its settings is replaced by the plain one
until they change, and one that cannot write its memory down begins anew where that is read. So a
wrong policy can cost money, but no request is lost, sent twice or sent to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, Protocol, get_args

import msgspec

from tokenworks.core.rng import GOLDEN_GAMMA, WORD, mix64
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.commands import SendReason
from tokenworks.dispatch.events import Configured, Finished
from tokenworks.dispatch.fleet import Fleet, Worker
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.waiting import Request

RETRY_AFTER_NS_MIN: Final = NS_PER_S
RETRY_AFTER_NS_MAX: Final = 120 * NS_PER_S
_RATE_SCALE: Final = 10**18
_RANKS: Final = len(Tier)


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


def is_possible(fleet: Fleet, request: Request, choice: Choice) -> bool:
    """Whether a choice names workers of the fleet, one with a slot free, and a prefix hit.

    Who is to prefill for another must be able to hand its KV cache over, and that one to take it.
    """
    worker, prefiller = choice.worker, choice.prefiller
    by_index = fleet.by_index
    if prefiller is not None and not (
        by_index.get(prefiller.index) is prefiller is not worker
        and prefiller.hands_over
        and worker.hands_over
        and permitted(fleet, request, 1 << prefiller.index)
    ):
        return False
    return (
        by_index.get(worker.index) is worker
        and len(worker.running) < worker.slots
        and 0 <= choice.rank < _RANKS
        and 0 <= choice.hit_blocks <= len(request.prefix)
        and (request.needs is None or permitted(fleet, request, 1 << worker.index) > 0)
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


def permitted(fleet: Fleet, request: Request, candidates: int) -> int:
    """Filter: those of some workers that have the labels and the adapter that a request needs."""
    if request.needs is None:
        return candidates
    return candidates & fleet.serving(request.needs)


def others_first(fleet: Fleet, request: Request, candidates: int) -> int:
    """Filter: without the worker that broke this request off, if there are others."""
    if request.worker is None:
        return candidates
    left = candidates
    for worker in fleet.each(candidates):
        if worker.worker == request.worker:
            left ^= 1 << worker.index
    return left or candidates


def pick_cache_aware(
    fleet: Fleet,
    candidates: int,
    prefix: Sequence[int],
    index: PrefixIndex,
    imbalance_max: int,
    home: int = 0,
) -> tuple[Worker, SendReason, int]:
    """Picker: the longest prefix while the load is balanced, else the least loaded.

    The load is balanced if running requests differ by at most ``imbalance_max`` in the fleet. Then,
    if some candidate has at least half of the prefix, the one that has most of it is taken.
    Otherwise the least loaded is taken; ties go to the longest prefix. Ties that are left go to the
    least loaded, then to the lowest index. A request of a session goes where the last one of it
    went, while the load is balanced and nobody has half of its prefix instead.

    Args:
        fleet: the model's workers.
        candidates: those that may take it, at least one.
        prefix: block hashes from the prompt's start.
        index: who has what.
        imbalance_max: see above.
        home: the worker of the request's session, as a set; empty if there is none.

    Returns:
        The worker, why, and how many blocks of the prefix it is believed to have.

    Source:
        SGLang's ``cache_aware`` routing policy, sgl-project/sglang,
        ``sgl-router/src/policies/cache_aware.rs`` (commit 026f853): shortest queue when loads
        differ by more than an absolute threshold, else the worker with the highest match if the
        match rate exceeds ``cache_threshold``. Ours differs in three points: there is no relative
        threshold, the share that counts is 1/2, and below it the least loaded worker is taken
        where SGLang takes the one with the smallest tree.
    """
    home &= candidates
    if not prefix and not home:
        return fleet.first(fleet.least_loaded(candidates)), "least_loaded", 0
    depth, holders = index.match(prefix, candidates)
    single = candidates & (candidates - 1) == 0
    balanced = single or fleet.load_max - fleet.load_min <= imbalance_max
    if depth and balanced and 2 * depth >= len(prefix):
        holders = holders & home or holders
        if holders & (holders - 1):
            holders = fleet.least_loaded(holders)
        return fleet.first(holders), "prefix_hit", depth
    if home and balanced:
        return fleet.first(home), "session_home", index.match(prefix, home)[0]
    tied = fleet.least_loaded(candidates)
    if not depth:
        return fleet.first(tied), "least_loaded", 0
    if not tied & holders:
        depth, holders = index.match(prefix, tied)
    return fleet.first(tied & holders or tied), "least_loaded", depth


def pick_fastest(fleet: Fleet, candidates: int) -> Worker:
    """Picker beyond the caps: who gives most speed with one more; ties to the lowest index."""
    return max(fleet.each(candidates), key=lambda each: each.speeds[len(each.running) + 1])


def nearest(fleet: Fleet, candidates: int, rank: int) -> Worker:
    """Picker: who will first be able to take a request of this tier, by requests still to end.

    That worker is kept free of lower tiers while the request waits; otherwise they would fill
    every slot that ends, and a higher tier could never begin where its cap is the smaller one.
    Ties go to the least loaded, then to the lowest index.
    """
    return min(
        fleet.each(candidates),
        key=lambda each: (len(each.running) - min(each.limit, each.caps[rank]), each.load),
    )


def retry_after_ns(
    workers: Sequence[Worker],
    rank: int,
    ahead: int,
    output_tokens_max: int,
    sent_ranks: Collection[int],
) -> int:
    """The time until a slot is expected for a request at its place in line, within the bounds.

    A worker ends as many requests per second as it runs over its mean service time; one that runs
    nothing counts as if it ran one. Of what ends, higher tiers go on taking the part that they took
    of the last sends; the rest serves the place in line, which is ``ahead + 1``.

    Args:
        workers: workers of the model that are up, at least one.
        rank: the request's tier.
        ahead: requests of the model in tiers not below its own that wait.
        output_tokens_max: its output limit, for workers of which no answer has ended yet.
        sent_ranks: tiers at which the model's last sends competed.
    """
    rate = sum(
        max(1, len(worker.running)) * _RATE_SCALE // worker.service_ns_expected(output_tokens_max)
        for worker in workers
    )
    if sent_ranks:
        rate = rate * sum(each <= rank for each in sent_ranks) // len(sent_ranks)
    return retry_after_bounded(-(-(ahead + 1) * _RATE_SCALE // max(1, rate)))


def retry_after_bounded(wait_ns: int) -> int:
    """A time to wait as it may be told: at least one second, at most two minutes."""
    return min(RETRY_AFTER_NS_MAX, max(RETRY_AFTER_NS_MIN, wait_ns))
