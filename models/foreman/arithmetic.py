"""Samples that reckon in small written steps: sums, units, money, dates.

Each step is one that a small model can do at a glance: two digits and a carry, one digit times one
digit, one number of days against one month.
"""

from __future__ import annotations

import calendar
import datetime
import random
from decimal import Decimal

from samples import Sample


def _sample(task: str, question: str, answer: str) -> Sample:
    return Sample(task=task, messages=({"role": "user", "content": question},), answer=answer)


def add_steps(a: int, b: int) -> str:
    """The column addition of a and b, units first.

    >>> add_steps(48, 7)
    '8+7=15, 4+0+1=5'
    """
    steps, carry = [], 0
    x, y = str(a)[::-1], str(b)[::-1]
    for i in range(max(len(x), len(y))):
        p, q = int(x[i]) if i < len(x) else 0, int(y[i]) if i < len(y) else 0
        total = p + q + carry
        steps.append(f"{p}+{q}+1={total}" if carry else f"{p}+{q}={total}")
        carry = total // 10
    return ", ".join(steps)


def add(rng: random.Random, *, unseen: bool = False) -> Sample:
    """Two numbers added by columns."""
    top = rng.choice((100, 1000, 1000))
    a, b = rng.randrange(1, top), rng.randrange(1, top)
    asked = rng.choice(
        (f"What is {a} + {b}?", f"{a} + {b} = ?", f"Add {a} and {b}.", f"{a} plus {b}?")
    )
    return _sample("add", asked, f"{a}+{b}: {add_steps(a, b)}. Answer: {a + b}.")


def times_steps(a: int, digit: int) -> str:
    """The column product of a and one digit, units first.

    >>> times_steps(48, 7)
    '8x7=56, 4x7+5=33'
    """
    steps, carry = [], 0
    for char in str(a)[::-1]:
        total = int(char) * digit + carry
        steps.append(f"{char}x{digit}+{carry}={total}" if carry else f"{char}x{digit}={total}")
        carry = total // 10
    return ", ".join(steps)


def times(rng: random.Random, *, unseen: bool = False) -> Sample:
    """Tokens from a speed and a time, or a plain product with one digit."""
    digit, a = rng.randrange(2, 10), rng.randrange(2, 1000)
    steps = f"{a}x{digit}: {times_steps(a, digit)}"
    if rng.random() < 0.5:
        asked = rng.choice((f"What is {a} x {digit}?", f"{a} times {digit}?"))
        return _sample("times", asked, f"{steps}. Answer: {a * digit}.")
    asked = rng.choice(
        (
            f"How many tokens are {a} tokens/s for {digit} s?",
            f"A worker makes {a} tokens/s. How many tokens in {digit} s?",
        )
    )
    return _sample("times", asked, f"{steps}. Answer: {a * digit} tokens.")


_UNITS = (
    ("kW", "W", 3),
    ("MW", "kW", 3),
    ("s", "ms", 3),
    ("M tokens", "tokens", 6),
    ("k tokens", "tokens", 3),
    ("GB", "MB", 3),
    ("USD", "cents", 2),
)


def units(rng: random.Random, *, unseen: bool = False) -> Sample:
    """A quantity in another unit, by moving the point."""
    big, small, places = rng.choice(_UNITS)
    if rng.random() < 0.6:
        a = Decimal(rng.randrange(1, 1000)) / rng.choice((1, 1, 10))
        result = format((a * 10**places).quantize(Decimal(1)), "f")
        asked = rng.choice((f"How many {small} are {a} {big}?", f"Convert {a} {big} to {small}."))
        return _sample("units", asked, f"{a} x {10**places} = {result} {small}.")
    b = rng.randrange(1, 100) * 10**places
    asked = rng.choice((f"How many {big} are {b} {small}?", f"Convert {b} {small} to {big}."))
    return _sample("units", asked, f"{b} / {10**places} = {b // 10**places} {big}.")


def money(rng: random.Random, *, unseen: bool = False) -> Sample:
    """The price of some million tokens."""
    usd, millions = rng.randrange(2, 200), rng.randrange(2, 10)
    asked = rng.choice(
        (
            f"What do {millions}M tokens cost at ${usd} per 1M tokens?",
            f"Price of {millions}M tokens at {usd} USD per 1M?",
        )
    )
    steps = f"{usd}x{millions}: {times_steps(usd, millions)}"
    return _sample("money", asked, f"{steps}. Answer: {usd * millions} USD.")


def date(rng: random.Random, *, unseen: bool = False) -> Sample:
    """A date some days later, over at most one month's end."""
    start = datetime.date(2024, 1, 1) + datetime.timedelta(days=rng.randrange(0, 2500))
    days = rng.randrange(1, 29)
    end = start + datetime.timedelta(days=days)
    length = calendar.monthrange(start.year, start.month)[1]
    total = start.day + days
    steps = f"{start.day}+{days}={total}"
    if total > length:
        steps += f", month has {length}, {total}-{length}={total - length}"
    asked = rng.choice((f"What date is {days} days after {start}?", f"{start} plus {days} days?"))
    return _sample("date", asked, f"{steps}. Answer: {end}.")
