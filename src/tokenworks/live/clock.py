"""The real clock: the machine's own, one reading that never goes back and one that is a date."""

from __future__ import annotations

import time


class SystemClock:
    """Implements ``core.ports.Clock`` on the operating system's clocks."""

    __slots__ = ()

    def now_ns(self) -> int:
        """Nanoseconds on a clock that never goes back; its zero means nothing."""
        return time.monotonic_ns()

    def unix_ns(self) -> int:
        """Nanoseconds since 1970, UTC, for records; an operator may set it back."""
        return time.time_ns()
