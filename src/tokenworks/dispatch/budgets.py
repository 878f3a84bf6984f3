"""Budgets: how many requests of a model may be asked for once more, by how many are asked for.

A bucket of whole numbers. Each request that is sent for the first time puts a part of one more
into it, and so does time, up to a size; each one more takes a whole. So what is asked for once
more stays a part of the load, however many workers fail, and one failure here or there is always
covered. What was put in since the last look is worked out at the next, so that a request which
takes nothing costs one addition.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tokenworks.core.units import NS_PER_S

ONE: Final = NS_PER_S
"""One more, in the bucket's units; so a nanosecond at one in a second puts in one unit."""
_PER_CENT: Final = ONE // 100

RETRIES_PER_S: Final = 1
"""Retries of a model that time alone gives."""
RETRIES_MIN: Final = 10
"""Retries of a model that can be saved up at least, however few slots its workers have."""


class Budget(msgspec.Struct, kw_only=True):
    """One bucket; it begins full.

    Attributes:
        left: what is in it, in units; None before the first look.
        seen: first sends until the last look.
        looked_ns: when that was.
    """

    left: int | None = None
    seen: int = 0
    looked_ns: int = 0

    def fill(self, firsts: int, now_ns: int, *, percent: int, per_s: int, size: int) -> int:
        """Put in what has come since the last look.

        Args:
            firsts: first sends until now, ever.
            now_ns: now.
            percent: of a whole, for each of them.
            per_s: wholes for each second.
            size: wholes up to which it is filled; what is in it already stays.

        Returns:
            What is in it, in units.
        """
        full = size * ONE
        if self.left is None:
            self.left = full
        elif self.left < full:
            sent = (firsts - self.seen) * percent * _PER_CENT
            passed = (now_ns - self.looked_ns) * per_s
            self.left = min(full, self.left + sent + passed)
        self.seen, self.looked_ns = firsts, now_ns
        return self.left

    def take(self) -> None:
        """Take out a whole, which must be there."""
        assert self.left is not None
        assert self.left >= ONE, self.left
        self.left -= ONE
