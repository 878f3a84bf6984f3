"""Bits that look random and follow from a number alone."""

from __future__ import annotations

from typing import Final

WORD: Final = 2**64 - 1
"""The largest number of 64 bits."""
GOLDEN_GAMMA: Final = 0x9E3779B97F4A7C15
"""SplitMix64's step from one state to the next."""


def mix64(word: int) -> int:
    """Scatter 64 bits; different words stay different.

    Source:
        The finaliser of SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
        Generators", OOPSLA 2014, figure 17.

    >>> hex(mix64(GOLDEN_GAMMA))
    '0xe220a8397b1dcdaf'
    """
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)
