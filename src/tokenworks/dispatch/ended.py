"""Names of requests that have ended, kept for a while to recognise late messages."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from tokenworks.core.ids import RequestID


class EndedNames:
    """The last names of so many as are kept, the oldest first.

    Args:
        names: of such as ended before.
    """

    __slots__ = ("_known", "_order")

    def __init__(self, names: Iterable[RequestID] = ()) -> None:
        # An ordered dictionary takes twice the time of the two.
        self._order = deque(names)
        self._known = set(self._order)

    def has(self, name: RequestID) -> bool:
        """Whether a request of this name has ended, as far as is remembered."""
        return name in self._known

    def add(self, name: RequestID, kept_max: int) -> None:
        """Remember one that has just ended, and forget the oldest above a bound."""
        self._order.append(name)
        self._known.add(name)
        while len(self._order) > kept_max:
            self._known.discard(self._order.popleft())

    def names(self) -> list[RequestID]:
        """All of them, the oldest first."""
        return list(self._order)
