"""A proof of a bound: prices of capacity at which no request can do better than it says.

By Lagrangian duality, any prices of the fleet's time, slots and KV cache bound the revenue of every
policy: what the fleet's time is worth at them, plus each request's own best surplus, which is zero
if it doesn't pay for what it takes. The programme's duals are good prices. Groups of requests that
are only nearly alike make the programme a little wrong, because a policy may pick the best of a
group; here every request is looked at by itself, so the sum is a bound whatever the groups were.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tokenworks.core.units import NS_PER_S
from tokenworks.perf.timing import FS_PER_S
from tokenworks.plan.fluid_inputs import (
    Demand,
    Found,
    allowance_s,
    findings,
    prefill_s,
    revenue_dollars,
)
from tokenworks.plan.fluid_program import (
    PACE_RATIO,
    ROWS_PER_PACE,
    Fluid,
    Option,
    Solved,
)

SPEED_FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.75, 3.0)
"""Multiples of the group's price of speed that are tried for each request; any is valid."""


class Prices(msgspec.Struct, frozen=True):
    """What capacity costs.

    Attributes:
        second: dollars of a worker-second, by (class, window).
        pace: by (class, window, pace): dollars of a token, of a second of its load, and of a token
            that it holds in the KV cache.
    """

    second: dict[tuple[int, int], float]
    pace: dict[tuple[int, int, int], tuple[float, float, float]]


def prices_of(fluid: Fluid, solved: Solved) -> Prices:
    """The duals, mended where the solver's rounding has an iteration cost less than it offers."""
    seconds, paces = {}, {}
    for c, worker in enumerate(fluid.fleet):
        launch_s = worker.timing.launch_fs / FS_PER_S
        for w in range(len(worker.up_ns)):
            second = max(0.0, solved.duals["time", c, w])
            shared = [max(0.0, solved.duals["all", name, c, w]) for name in ("slots", "kv")]
            for m, pace in enumerate(fluid.paces[c]):
                load, slots, kv = (
                    max(0.0, solved.duals.get((name, c, w, m), 0.0)) for name in ROWS_PER_PACE
                )
                offered = (pace.load_s or 0.0) * load
                offered += worker.slots * (slots * PACE_RATIO + shared[0])
                offered += worker.kv_tokens * (kv * PACE_RATIO + shared[1])
                second = max(second, offered / launch_s)
                paces[c, w, m] = (slots + shared[0], load, kv + shared[1])
            seconds[c, w] = second
    return Prices(seconds, paces)


def certified_dollars(fluid: Fluid, solved: Solved, members: Sequence[Sequence[Demand]]) -> float:
    """The bound that the duals prove. Needs numpy, which scipy brings along.

    Args:
        fluid: the programme's groups.
        solved: its solution.
        members: the requests of each group; their tiers, models and windows are within its own.
    """
    prices = prices_of(fluid, solved)
    total = sum(
        prices.second[c, w] * up_ns / NS_PER_S
        for c, worker in enumerate(fluid.fleet)
        for w, up_ns in enumerate(worker.up_ns)
    )
    for g, group in enumerate(members):
        options = [option for option in fluid.options if option.group == g]
        total += _surplus(fluid, solved, prices, options, group)
    return total


def _surplus(
    fluid: Fluid,
    solved: Solved,
    prices: Prices,
    options: Sequence[Option],
    members: Sequence[Demand],
) -> float:
    """What a group's requests can earn beyond the price of what they take, each by itself."""
    import numpy as np

    best = np.zeros(len(members))
    for option in options:
        made = np.array(_decode_dollars(fluid, solved, prices, option, members))
        for found in findings(fluid.groups[option.group], fluid.book):
            earned = [revenue_dollars(m, option.tier, fluid.book, found) for m in members]
            read = [
                _prefill_dollars(fluid, prices, place, members, found)
                for place in fluid.prefill_places(option)
            ]
            best = np.maximum(best, np.array(earned) - np.min(np.array(read), axis=0) - made)
    return float(best.sum())


def _prefill_dollars(
    fluid: Fluid, prices: Prices, place: tuple[int, int], members: Sequence[Demand], found: Found
) -> list[float]:
    timing = fluid.fleet[place[0]].timing
    return [prices.second[place] * prefill_s(each, timing, found) for each in members]


def _decode_dollars(
    fluid: Fluid,
    solved: Solved,
    prices: Prices,
    option: Option,
    members: Sequence[Demand],
) -> list[float]:
    """The least that each request's decode tokens can cost, at the pace that its promise allows.

    A request's tokens may be made at several paces; that their mean keeps the promise is priced by
    a multiplier, and any multiplier gives a lower bound.
    """
    import numpy as np

    tokens = np.array([float(each.decode_tokens) for each in members])
    read = np.array([each.context_tokens for each in members]) / np.maximum(tokens, 1.0)
    held = np.array([each.held_tokens for each in members]) / np.maximum(tokens, 1.0)
    # None only where no promise is priced or no token is decoded.
    allowed = [allowance_s(each, option.tier, fluid.book) for each in members]
    allowance = np.array([each or 0.0 for each in allowed])
    timing = fluid.fleet[option.place].timing
    fixed, reading, holding, counted = [], [], [], []
    for w in fluid.windows(option):
        for m, pace in enumerate(fluid.paces[option.place]):
            token, load, kv = prices.pace[option.place, w, m]
            second = prices.second[option.place, w] + load
            fixed.append(token + second * timing.sequence_fs / FS_PER_S)
            reading.append(second * timing.context_token_fs / FS_PER_S)
            holding.append(kv)
            counted.append(pace.counted_s)
    group = fluid.groups[option.group]
    speed = 0.0
    if option.allowance_s is not None:
        dual = solved.duals["speed", option.group, option.tier, option.place]
        speed = max(0.0, dual) / option.allowance_s / group.decode_tokens
    each_at = np.outer(read, reading) + np.outer(held, holding) + np.array(fixed)
    least = np.zeros(len(members))
    for factor in SPEED_FACTORS if speed else (0.0,):
        price = factor * speed
        bound = (each_at + price * np.array(counted)).min(axis=1) - price * allowance
        least = np.maximum(least, bound)
    return [float(each) for each in least * tokens]
