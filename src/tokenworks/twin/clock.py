"""The twin's clock: it stands still while things are worked out, then jumps."""

from __future__ import annotations


class JumpingClock:
    """Implements ``core.ports.Clock``; only the driver moves it.

    Args:
        unix_ns: the date at which it reads 0.
    """

    __slots__ = ("_now_ns", "_unix_ns")

    def __init__(self, unix_ns: int = 0) -> None:
        self._now_ns = 0
        self._unix_ns = unix_ns

    def now_ns(self) -> int:
        """Nanoseconds since the run began."""
        return self._now_ns

    def unix_ns(self) -> int:
        """Nanoseconds since 1970, UTC, as far as the run is concerned."""
        return self._unix_ns + self._now_ns

    def jump(self, now_ns: int) -> None:
        """Go on to a time; never back."""
        assert now_ns >= self._now_ns, (now_ns, self._now_ns)
        self._now_ns = now_ns
