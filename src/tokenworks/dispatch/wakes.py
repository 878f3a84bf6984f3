"""When requests that wait are due: to be looked at once more, and to be turned away.

A heap of times and names. What has been sent or has ended since leaves a stale entry, which is
dropped when it comes up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush

from tokenworks.core.ids import RequestID
from tokenworks.dispatch.requests import Request

Wake = tuple[int, RequestID]
"""When something that waits is due."""


def put(heap: list[Wake], request: Request, deadline_ns: int, now_ns: int) -> None:
    """Have a request looked at when it becomes late, if that is to come, and at its deadline."""
    for wake in _wakes_of(request, deadline_ns, now_ns):
        heappush(heap, wake)


def of(waiting: Iterable[tuple[Request, int]], now_ns: int) -> list[Wake]:
    """The heap of all that wait, each with its deadline."""
    heap = [
        wake for request, deadline_ns in waiting for wake in _wakes_of(request, deadline_ns, now_ns)
    ]
    heapify(heap)
    return heap


def take_due(heap: list[Wake], now_ns: int) -> Iterator[RequestID]:
    """Take out what is due by now, the earliest first."""
    while heap and heap[0][0] <= now_ns:
        yield heappop(heap)[1]


def next_ns(heap: list[Wake], is_queued: Callable[[RequestID], bool]) -> int | None:
    """When the earliest is due of those that still wait; None if none does."""
    while heap and not is_queued(heap[0][1]):
        heappop(heap)
    return heap[0][0] if heap else None


def _wakes_of(request: Request, deadline_ns: int, now_ns: int) -> Iterator[Wake]:
    yield deadline_ns, request.request
    if now_ns < request.late_ns < deadline_ns:
        yield request.late_ns, request.request
