"""Whose place a request of a higher tier may take: who runs there for less, and what that costs.

A request is displaced once at most. What it has made is kept: its driver sends prompt and answer
so far to the next worker, which computes them again and goes on. So it loses time, and with that
perhaps its tier, but no token, and none is billed twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from tokenworks.core.ids import RequestID
from tokenworks.dispatch.commands import Preempt
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.market import Kind
from tokenworks.dispatch.pickers import permitted
from tokenworks.dispatch.policy import Choice, is_well_formed
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.workers import RANKS, Worker
from tokenworks.perf.timing import FS_PER_S

WORKERS_MAX: Final = 32
"""Workers that are looked at for somebody who makes room."""
VICTIMS_MAX: Final = 2
"""Requests that one may displace."""


class Displacement(NamedTuple):
    """Who goes where, and who makes room there.

    Attributes:
        choice: where it goes once they are gone.
        victims: who makes room.
        gained_nanodollars: what it adds there, above what it would earn a tier lower.
        lost_nanodollars: what its victims lose, their prompts computed again included.
    """

    choice: Choice
    victims: tuple[Request, ...]
    gained_nanodollars: int
    lost_nanodollars: int


def victims_on(
    worker: Worker, rank: int, requests: Mapping[RequestID, Request]
) -> tuple[Request, ...] | None:
    """The fewest that must go for one more of a tier to keep all promises that run there.

    Of the lowest tiers, and of these who was sent last; none that was displaced before. None if
    more than ``VICTIMS_MAX`` had to go, or higher tiers.

    Args:
        worker: that can stop a request without losing others.
        rank: the tier of who is to come.
        requests: all that have not ended.
    """
    running, counts = len(worker.running), list(worker.counts)
    taken: list[Request] = []
    latest_first = list(reversed(worker.running.items()))
    for name, counted in sorted(latest_first, key=lambda each: each[1]):
        victim = requests[name]
        if counted >= rank or len(taken) == VICTIMS_MAX:
            return None
        if victim.rank >= rank or victim.displaced or victim.prefiller is not None:
            continue
        if victim.second is not None:
            continue  # it is about to be one less
        taken.append(victim)
        running -= 1
        counts[counted] -= 1
        caps = [worker.caps[each] for each in RANKS if counts[each]]
        if running < min(worker.slots, worker.caps[rank], *caps):
            return tuple(taken)
    return None


def best_of(
    fleet: Fleet,
    rank: int,
    may: int,
    requests: Mapping[RequestID, Request],
    weigh: Callable[[Worker, tuple[Request, ...]], Displacement],
) -> Displacement | None:
    """What is worth most of some displacements; None if none is worth anything.

    Args:
        fleet: the model's workers.
        rank: the tier of who is to come.
        may: workers that could take it; the first of them are looked at.
        requests: all that have not ended.
        weigh: what it is worth where some make room.
    """
    best: Displacement | None = None
    most = 0
    for worker in itertools.islice(fleet.each(may), WORKERS_MAX):
        victims = victims_on(worker, rank, requests)
        if victims is None:
            continue
        found = weigh(worker, victims)
        worth = found.gained_nanodollars - found.lost_nanodollars
        if worth > most:
            best, most = found, worth
    return best


def loss_nanodollars(kind: Kind, revenue: Sequence[int], counted: int, tokens: int) -> int:
    """What one that makes room loses: its tier, and the time to compute all again.

    Args:
        kind: of its worker.
        revenue: of one request, by tier rank, in nano-dollars.
        counted: the tier rank under which it counts there.
        tokens: of its prompt and of what it has made.
    """
    tier = max(0, revenue[counted] - revenue[counted - 1]) if counted else 0
    return tier + kind.timing.prefill_fs(tokens, 0) * kind.price_nanodollars // FS_PER_S


def preempt(
    victim: Request, worker: Worker, request: Request, found: Displacement, now_ns: int
) -> Preempt:
    """The command that takes one of its victims off its worker for a request."""
    return Preempt(
        request=victim.request,
        worker=worker.worker,
        displaced_by=request.request,
        reason="worth_more",
        gained_nanodollars=found.gained_nanodollars,
        lost_nanodollars=found.lost_nanodollars,
        held_ns=now_ns - victim.sent_ns,
    )


def is_right(
    fleet: Fleet, request: Request, found: Displacement, requests: Mapping[RequestID, Request]
) -> bool:
    """Whether a displacement can be done: of lower tiers, where engines allow it, and in money."""
    choice = found.choice
    worker = choice.worker
    gone = len(found.victims)
    return (
        fleet.by_index.get(worker.index) is worker
        and worker.preempts
        and choice.prefiller is None
        and is_well_formed(choice)
        and 0 <= choice.rank < len(RANKS)
        and 0 <= choice.hit_blocks <= len(request.prefix)
        and permitted(fleet, request, 1 << worker.index) > 0
        and 0 < gone <= VICTIMS_MAX
        and len(worker.running) - gone < worker.slots
        and found.gained_nanodollars > found.lost_nanodollars
        and len({victim.request for victim in found.victims}) == gone
        and all(
            requests.get(victim.request) is victim
            and victim.request in worker.running
            and victim.rank < request.rank
            and not victim.displaced
            and victim.second is None
            for victim in found.victims
        )
    )
