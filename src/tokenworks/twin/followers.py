"""Requests that wait for others: each comes when the last of these has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenworks.core.ids import RequestID
from tokenworks.twin.records import TwinRequest


class Followers:
    """Who waits for whom, by places in the workload.

    Args:
        requests: the workload.
        places: of each request.

    Attributes:
        leaders: those that wait for nobody, by arrival.
        of: by request, those that wait for it.
    """

    __slots__ = ("_waits", "leaders", "of")

    def __init__(self, requests: Sequence[TwinRequest], places: Mapping[RequestID, int]) -> None:
        assert all(request.at_ns >= 0 for request in requests), "a request comes before the run"
        self._waits: dict[int, int] = {}
        self.of: dict[int, list[int]] = {}
        self.leaders: list[int] = []
        for place, request in enumerate(requests):
            if request.wait_for:
                self._waits[place] = len(request.wait_for)
                for name in request.wait_for:
                    self.of.setdefault(places[name], []).append(place)
            else:
                self.leaders.append(place)
        self.leaders.sort(key=lambda place: requests[place].at_ns)

    def freed_by(self, place: int) -> list[int]:
        """Those that wait for nobody any more, now that this one has ended."""
        freed = []
        for follower in self.of[place]:
            self._waits[follower] -= 1
            if not self._waits[follower]:
                freed.append(follower)
        return freed
