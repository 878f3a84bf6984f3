"""The twin's clock: it stands still while things are worked out, then jumps."""

from __future__ import annotations


class JumpingClock:
    """Implements ``core.ports.Clock``.

    Args:
        unix_ns: the date at which it reads 0.

    Attributes:
        at_ns: nanoseconds since the run began; only the driver sets it, and never back.
        skew_ns: how far it reads wrong; faults set it.
    """

    __slots__ = ("_unix_ns", "at_ns", "skew_ns")

    def __init__(self, unix_ns: int = 0) -> None:
        self.at_ns = 0
        self.skew_ns = 0
        self._unix_ns = unix_ns

    def now_ns(self) -> int:
        """Nanoseconds since the run began, as far as it knows; after a fault, less than before."""
        return self.at_ns + self.skew_ns

    def unix_ns(self) -> int:
        """Nanoseconds since 1970, UTC, as far as the run is concerned."""
        return self._unix_ns + self.at_ns + self.skew_ns
