"""Requests that only some workers may serve: who of them goes, beside those that any may serve.

They wait in lines of their own, one per tier for each set of workers that have what they need, so
that one for which no worker is free holds nobody up who could go elsewhere. A policy is asked for
each of them as for a newcomer; it sees which workers may serve it. These sets take turns, and a few
are looked at each time: labels are the callers' to choose, and no choice of theirs slows others.

**Order.** Before a request that any worker may serve takes a place, those of its tier and above
that need that worker are asked first: they have fewer places to go. Whoever is on time and finds
none has the worker that will be ready for it first kept free of lower tiers, as far as the policy
keeps to caps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.oversight import Oversight
from tokenworks.dispatch.pickers import nearest
from tokenworks.dispatch.policy import Choice
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.workers import RANKS, Worker

HEADS_MAX: Final = 4
"""Tenants of one line that are looked at; the first of them may fit nowhere for long."""

SETS_MAX: Final = 8
"""Sets of workers with a free one whose lines are looked at in one tier, those next in turn."""

_DEAREST_FIRST: Final = tuple(reversed(RANKS))


def drain(policy: Oversight, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
    """Who of those that wait goes now, and where, where some wait that only some may serve.

    Each is sent before the next one is asked for.
    """
    restart = True
    while restart and fleet.queued and fleet.open:
        restart = False
        hidden = _keep_free(policy, fleet, now_ns)
        try:
            for request, choice in policy.drain(fleet, now_ns):
                first = _ahead(policy, fleet, request, choice, now_ns)
                yield first or (request, choice)
                if first is not None:
                    restart = True  # who is kept free for it need not be any more
                    break
        finally:
            for worker in hidden:
                fleet.unhide(worker)
    while found := _any(policy, fleet, fleet.up, 0, now_ns):
        yield found


def _keep_free(policy: Oversight, fleet: Fleet, now_ns: int) -> list[Worker]:
    """Hide a worker from lower tiers for each first in line that is on time and must wait."""
    hidden, looked = [], 0
    for may, lines in fleet.restricted.items():
        rank = next(rank for rank in _DEAREST_FIRST if len(lines[rank]))
        if not rank or not may or now_ns >= lines[rank].head().late_ns:
            continue
        if looked == SETS_MAX:
            break
        looked += 1
        if may & fleet.open and policy.place(fleet, lines[rank].head(), now_ns) is not None:
            continue
        worker = nearest(fleet, may, rank)
        fleet.hide(worker, rank)
        hidden.append(worker)
    return hidden


def _ahead(
    policy: Oversight, fleet: Fleet, request: Request, choice: Choice, now_ns: int
) -> tuple[Request, Choice] | None:
    """Who that needs one of the workers of a choice goes before the request that is to have them.

    Those of lower tiers do not.
    """
    wanted = 1 << choice.worker.index
    if choice.prefiller is not None:
        wanted |= 1 << choice.prefiller.index
    return _any(policy, fleet, wanted, request.rank, now_ns)


def _any(
    policy: Oversight, fleet: Fleet, wanted: int, rank_min: int, now_ns: int
) -> tuple[Request, Choice] | None:
    """The first, from the top tier down, that one of some workers may serve and that finds a place.

    There, or at another worker; None if none does.
    """
    if not fleet.open:
        return None
    for rank in _DEAREST_FIRST[: len(RANKS) - rank_min]:
        sets = (
            may
            for may, lines in fleet.restricted.items()
            if len(lines[rank]) and may & wanted and may & fleet.open
        )
        for may in list(itertools.islice(sets, SETS_MAX)):
            lines = fleet.restricted[may] = fleet.restricted.pop(may)  # next are the others
            for request in itertools.islice(lines[rank].heads(), HEADS_MAX):
                choice = policy.place(fleet, request, now_ns)
                if choice is not None:
                    return request, choice
    return None
