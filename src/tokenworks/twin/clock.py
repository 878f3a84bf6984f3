"""A clock that jumps: the twin's time is what its driver says it is."""

from __future__ import annotations


class TwinClock:
    """A ``core.ports.Clock`` that stands still until it is moved.

    Args:
        unix_ns: the date at its start.
    """

    def __init__(self, unix_ns: int = 0) -> None:
        self._now_ns = 0
        self._unix_ns = unix_ns

    def now_ns(self) -> int:
        """See ``Clock``."""
        return self._now_ns

    def unix_ns(self) -> int:
        """See ``Clock``."""
        return self._unix_ns + self._now_ns

    def move_to(self, now_ns: int) -> None:
        """Let time pass; it never goes back."""
        assert now_ns >= self._now_ns, (now_ns, self._now_ns)
        self._now_ns = now_ns
