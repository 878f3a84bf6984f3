"""Arrival times drawn from a seed: Poisson, bursty, on and off, constant."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Final, Literal, get_args

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.units import NS_PER_S

Arrivals = Literal["poisson", "bursty", "on-off", "constant"]
ARRIVALS: Final[tuple[Arrivals, ...]] = get_args(Arrivals)
CV_DEFAULT: Final = 3.0
ON_S_DEFAULT: Final = 30.0
OFF_S_DEFAULT: Final = 90.0
REQUESTS_MAX: Final = 10_000_000

Gap = Callable[[random.Random], float]
"""Draws the time to the next arrival, in mean gaps."""


def poisson_gap(rng: random.Random) -> float:
    """Arrivals that know nothing of each other."""
    return rng.expovariate(1.0)


def gamma_gap(shape: float) -> Gap:
    """Gamma gaps of mean 1; the smaller the shape, the more they come in bursts."""
    return lambda rng: rng.gammavariate(shape, 1.0 / shape)


def weibull_gap(shape: float) -> Gap:
    """Weibull gaps of mean 1."""
    scale = 1.0 / math.gamma(1.0 + 1.0 / shape)
    return lambda rng: rng.weibullvariate(scale, shape)


def arrival_times(
    kind: Arrivals,
    rng: random.Random,
    *,
    rate_per_s: float,
    duration_s: float,
    cv: float = CV_DEFAULT,
    on_s: float = ON_S_DEFAULT,
    off_s: float = OFF_S_DEFAULT,
) -> Iterator[int]:
    """Instants in nanoseconds, ascending, before the duration's end.

    Args:
        kind: ``bursty`` has Gamma gaps with the coefficient of variation ``cv``; ``on-off`` is
            Poisson during exponential on-times and silent between them, at the same mean rate.
        rng: all that is drawn comes from it.
        rate_per_s: mean arrivals per second.
        duration_s: when they end.
        cv: see above; 1 is Poisson.
        on_s: mean length of an on-time.
        off_s: mean length of an off-time.

    Raises:
        ConfigInvalid: a rate, a time or a variation that is not above zero, or too many requests.
    """
    given = {"rate": rate_per_s, "duration": duration_s, "cv": cv, "on": on_s, "off": off_s}
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise ConfigInvalid(f"The arrivals' {name} is {value!r}; it must be above 0.")
    if rate_per_s * duration_s > REQUESTS_MAX:
        raise ConfigInvalid(
            f"{rate_per_s:g} requests per second for {duration_s:g} s are more than {REQUESTS_MAX}."
        )
    if kind == "on-off":
        return _on_off(rng, rate_per_s, duration_s, on_s, off_s)
    if kind == "constant":
        return iter([round(i * NS_PER_S / rate_per_s) for i in range(int(rate_per_s * duration_s))])
    gap = poisson_gap if kind == "poisson" else gamma_gap(1.0 / (cv * cv))
    return renewal(rng, gap, rate_per_s, 0.0, duration_s)


def renewal(
    rng: random.Random, gap: Gap, rate_per_s: float, since_s: float, until_s: float
) -> Iterator[int]:
    """Arrivals whose gaps are drawn one by one, at a mean rate, in one stretch of time."""
    at_s = since_s + gap(rng) / rate_per_s
    while at_s < until_s:
        yield round(at_s * NS_PER_S)
        at_s += gap(rng) / rate_per_s


def _on_off(
    rng: random.Random, rate_per_s: float, duration_s: float, on_s: float, off_s: float
) -> Iterator[int]:
    rate_on_per_s = rate_per_s * (on_s + off_s) / on_s
    start_s = 0.0
    while start_s < duration_s:
        stop_s = min(duration_s, start_s + rng.expovariate(1.0 / on_s))
        yield from renewal(rng, poisson_gap, rate_on_per_s, start_s, stop_s)
        start_s = stop_s + rng.expovariate(1.0 / off_s)
