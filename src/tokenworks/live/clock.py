"""The real clock: the machine's own, one reading that never goes back and one that is a date."""

from __future__ import annotations

import time


class SystemClock:
    """Implements ``core.ports.Clock`` on the operating system's clocks."""

    __slots__ = ()

    # Read a dozen times for each request: nothing of ours stands between.
    now_ns = staticmethod(time.monotonic_ns)
    """Nanoseconds on a clock that never goes back; its zero means nothing."""
    unix_ns = staticmethod(time.time_ns)
    """Nanoseconds since 1970, UTC, for records; an operator may set it back."""
