"""The twin's clocks: one stands still while things are worked out, then jumps; one runs fast."""

from __future__ import annotations

from tokenworks.core.ports import Clock
from tokenworks.core.units import PPM


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


class FastClock:
    """Implements ``core.ports.Clock``: another clock's time, so many times as fast; dates are its.

    Args:
        clock: the other one.
        speedup: a millionth at least; more decimals than six are dropped.
    """

    __slots__ = ("_began_ns", "_clock", "_speedup_ppm")

    def __init__(self, clock: Clock, speedup: float) -> None:
        self._clock = clock
        self._speedup_ppm = round(speedup * PPM)
        assert self._speedup_ppm >= 1, speedup
        self._began_ns = clock.now_ns()

    @property
    def speedup(self) -> float:
        """How many times as fast it is."""
        return self._speedup_ppm / PPM

    def now_ns(self) -> int:
        """Nanoseconds on the fast clock."""
        return (self._clock.now_ns() - self._began_ns) * self._speedup_ppm // PPM

    def unix_ns(self) -> int:
        """The other clock's date: records carry the real one."""
        return self._clock.unix_ns()
