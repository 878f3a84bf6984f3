"""What will happen in a run beside the boundaries of workers, and when the next of it is due.

At one nanosecond, hand-overs that have waited too long come first, then the dispatcher's timer,
then actions in the order they were put here, then arrivals in the order of the workload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush

from tokenworks.twin.handovers import FAR_NS, Handovers
from tokenworks.twin.records import TwinRequest
from tokenworks.twin.workers import KEY_SHIFT


class Agenda:
    """Timer, actions, hand-overs that wait, and arrivals.

    Args:
        requests: the workload.
        arrivals: places of those that come at a time of their own, by that.

    Attributes:
        bound: boundaries with a smaller key come before all that is here; ``FAR_NS`` if there is
            nothing. ``renew`` finds it.
        handovers: KV caches that wait for room.
    """

    __slots__ = (
        "_actions",
        "_added",
        "_arrivals",
        "_arrivals_ns",
        "_arrived",
        "_timer_ns",
        "bound",
        "handovers",
    )

    def __init__(self, requests: Sequence[TwinRequest], arrivals: list[int]) -> None:
        self._actions: list[tuple[int, int, Callable[[], None]]] = []
        self._added = 0
        self._timer_ns = FAR_NS
        self._arrivals = arrivals
        self._arrivals_ns = [requests[place].at_ns for place in arrivals]
        self._arrivals_ns.append(FAR_NS)
        self._arrived = 0
        self.handovers = Handovers()
        self.bound = 0

    @property
    def next_ns(self) -> int:
        """When the next of it is due, unless there is nothing."""
        return (self.bound >> KEY_SHIFT) - 1

    def renew(self) -> None:
        """Find the bound again."""
        next_ns = self._arrivals_ns[self._arrived]
        if self._timer_ns < next_ns:
            next_ns = self._timer_ns
        if self._actions and self._actions[0][0] < next_ns:
            next_ns = self._actions[0][0]
        if self.handovers.waiting:
            next_ns = min(next_ns, self.handovers.next_ns())
        self.bound = FAR_NS if next_ns == FAR_NS else (next_ns + 1) << KEY_SHIFT

    def add(self, at_ns: int, action: Callable[[], None]) -> None:
        """Put down an action; its time has not passed."""
        self._added += 1
        heappush(self._actions, (at_ns, self._added, action))
        self.bound = min(self.bound, (at_ns + 1) << KEY_SHIFT)

    def set_timer(self, at_ns: int) -> None:
        """Let the timer go off at this time, and at no other."""
        self._timer_ns = at_ns
        self.renew()

    def take_timer(self, now_ns: int) -> bool:
        """Whether the timer goes off; it is then set no more."""
        if self._timer_ns > now_ns:
            return False
        self.set_timer(FAR_NS)
        return True

    def take_action(self, now_ns: int) -> Callable[[], None] | None:
        """The first action that is due."""
        if not self._actions or self._actions[0][0] > now_ns:
            return None
        action = heappop(self._actions)[2]
        self.renew()
        return action

    def take_arrival(self) -> int:
        """The place of the next request that comes; there is one."""
        place = self._arrivals[self._arrived]
        self._arrived += 1
        self.renew()
        return place
