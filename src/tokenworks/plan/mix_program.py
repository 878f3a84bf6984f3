"""The mixed-integer programme of a mix: how many systems in which mode, and who is served there.

Columns (all >= 0):

- ``systems[p]``: integer, units of systems of GPUs in pool p. A pool runs one offer.
- ``lpus[k]``: integer, systems of LPUs beside the GPU systems of one kind that serve one model.
- ``on[k]``: 0 or 1, whether there are any: then they hold at least one copy of the weights.
- ``served[p, t]``: of tier t's demand, the share that pool p serves.
- ``share``: of what must be served, where that is what is asked for.

Rows: power, capital and crews bound systems; demand bounds what is served from above, what must be
served from below; each pool makes no more than its systems can at the highest utilisation.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping
from typing import Final, Literal

import msgspec

from tokenworks.catalogue.records import Site
from tokenworks.core.errors import ConfigInvalid
from tokenworks.plan.mix_cost import capital_usd, cost_per_h
from tokenworks.plan.mix_inputs import (
    SECONDS_PER_H,
    TOKENS_PER_MTOK,
    Hardware,
    Objective,
    Offer,
    Question,
    TierDemand,
)

Aim = Objective | Literal["share", "power", "capital"]
"""Besides what a question may ask for: the most of what must be served, and the least power or
capital for it."""

Row = tuple[str, ...]
LPUKey = tuple[str, str, str]
"""A system of GPUs, a system of LPUs and a model."""

SECONDS_MAX: Final = 8.0
GAP: Final = 1e-4
"""Between the plan and what no plan can beat, relative; the solver stops there or after
``SECONDS_MAX``."""
COST_BY_THE_WAY: Final = 1e-4
"""Of a plan for revenue: what a dollar of cost counts, so that nothing idle is bought."""


class Programme(msgspec.Struct, frozen=True, kw_only=True):
    """Columns and rows.

    Attributes:
        question: that it answers.
        hardware: by name.
        offers: one for each pool.
        whole: systems are.
        columns: index by name.
        gains: of the aim, by column.
        integers: columns that are whole.
        upper: of columns that have a bound.
        entries: (row, column, coefficient).
        limits: right-hand sides; every row is at most so much.
    """

    question: Question
    hardware: Mapping[str, Hardware]
    offers: tuple[Offer, ...]
    whole: bool
    columns: dict[tuple[object, ...], int]
    gains: list[float]
    integers: set[int]
    upper: dict[int, float]
    entries: list[tuple[Row, int, float]]
    limits: dict[Row, float]

    def column(self, *name: object, gain: float, whole: bool = False) -> int:
        """A new column."""
        index = self.columns[name] = len(self.gains)
        self.gains.append(gain)
        if whole:
            self.integers.add(index)
        return index

    def add(self, row: Row, column: int, value: float) -> None:
        """A coefficient; a row without a limit is at most 0."""
        self.limits.setdefault(row, 0.0)
        self.entries.append((row, column, value))


class Solution(msgspec.Struct, frozen=True, kw_only=True):
    """What a solver found.

    Attributes:
        value: of the aim.
        bound: that no solution beats.
        systems: of GPUs, by pool.
        lpus: of LPUs.
        served: tokens per second by pool and tier.
        duals: of the relaxation: what one more on the right-hand side of a row is worth.
        share: of what must be served, where that was the aim.
    """

    value: float
    bound: float
    systems: tuple[float, ...]
    lpus: dict[LPUKey, float]
    served: dict[tuple[int, str], float]
    duals: dict[Row, float]
    share: float | None = None


def programme(
    question: Question,
    hardware: Mapping[str, Hardware],
    offers: Collection[Offer],
    aim: Aim,
    *,
    whole: bool = True,
) -> Programme:
    """The programme of a question; its value is in dollars per hour, a share, watts or dollars.

    Args:
        question: demand, budgets and promises.
        hardware: by name.
        offers: one for each pool.
        aim: what is best.
        whole: systems are; otherwise only copies of weights on LPUs are.
    """
    made = Programme(
        question=question,
        hardware=hardware,
        offers=tuple(offers),
        whole=whole,
        columns={},
        gains=[],
        integers=set(),
        upper={},
        entries=[],
        limits={},
    )
    if aim != "power":
        made.limits["power",] = question.power_mw * 1e6
    if question.capital_usd is not None and aim != "capital":
        made.limits["capital",] = question.capital_usd
    _demand(made, aim)
    for p, offer in enumerate(made.offers):
        _pool(made, p, offer, aim)
    return made


def _demand(made: Programme, aim: Aim) -> None:
    share = made.column("share", gain=1.0) if aim == "share" else None
    if share is not None:
        made.upper[share] = 1.0
    for tier in made.question.tiers:
        made.limits["demand", tier.tier] = 1.0
        least = 1.0 if aim == "cost" else tier.at_least
        if not least:
            continue
        made.limits["must", tier.tier] = 0.0 if share is not None else -least
        if share is not None:
            made.add(("must", tier.tier), share, least)


def _pool(made: Programme, p: int, offer: Offer, aim: Aim) -> None:
    question = made.question
    n = _bought(made, offer.system, aim, "systems", p, each=offer.unit)
    # In units of one system's yield.
    made.add(("capacity", str(p)), n, -question.utilisation * offer.unit)
    for tier in question.tiers:
        if offer.keeps(tier, question.utilisation):
            z = made.column("served", p, tier.tier, gain=_gain(made, offer, tier, aim))
            made.add(("capacity", str(p)), z, tier.tokens_per_s / offer.tokens_per_s)
            made.add(("demand", tier.tier), z, 1.0)
            if ("must", tier.tier) in made.limits:
                made.add(("must", tier.tier), z, -1.0)
    if offer.lpu_system:
        _lpus(made, n, offer, aim)


def _lpus(made: Programme, n: int, offer: Offer, aim: Aim) -> None:
    key = (offer.system, offer.lpu_system, offer.work.model)
    if ("lpus", key) not in made.columns:
        m = _bought(made, offer.lpu_system, aim, "lpus", key)
        on = made.column("on", key, gain=0.0, whole=True)
        made.upper[on] = 1.0
        made.add(("copy", *key), on, float(offer.lpu_systems_min))
        made.add(("copy", *key), m, -1.0)
        made.add(("lpus", *key), m, -1.0)
        made.add(("on", *key), on, -_systems_max(made, offer))
    made.add(("on", *key), n, float(offer.unit))
    made.add(("lpus", *key), n, offer.lpu_systems * offer.unit)


def _systems_max(made: Programme, offer: Offer) -> float:
    """More systems than any plan has: all of the power, or all of the demand."""
    question = made.question
    asked = sum(tier.tokens_per_s for tier in question.tiers if tier.work.model == offer.work.model)
    slowest = min(each.tokens_per_s for each in made.offers if each.systems == offer.systems)
    rounded_up = sum(each.unit for each in made.offers)
    needed = asked / (slowest * question.utilisation) + rounded_up
    if ("power",) not in made.limits:
        return needed
    return min(needed, question.power_mw * 1e6 / made.hardware[offer.system].power_w + 1)


def _bought(made: Programme, system: str, aim: Aim, *name: object, each: int = 1) -> int:
    """A column of systems, so many each time, in all rows that bound them.

    They cost what they do idle; what work adds is the work's.
    """
    question, hardware = made.question, made.hardware[system]
    cost = cost_per_h(hardware, question.site, busy=0.0).usd * each
    capital = capital_usd(hardware, question.site) * each
    power_w = hardware.power_w * each
    costs = {
        "profit": cost,
        "cost": cost,
        "revenue": cost * COST_BY_THE_WAY,
        "share": 0.0,
        "power": power_w,
        "capital": capital,
    }
    column = made.column(*name, gain=-costs[aim], whole=made.whole)
    for row, value in ((("power",), power_w), (("capital",), capital)):
        if row in made.limits:
            made.add(row, column, value)
    release = max(question.start, hardware.ship)
    for day in sorted({max(question.start, kind.ship) for kind in made.hardware.values()}):
        # Crews can't put in place before it ships what has to be there by the end.
        if release >= day:
            made.limits["install", day.isoformat()] = crew_h(question, day)
            made.add(("install", day.isoformat()), column, hardware.install_h * each)
    return column


def crew_h(question: Question, day: datetime.date) -> float:
    """Hours that crews can work from a day on."""
    site = question.site
    return (question.by - day).days * site.install_crews * site.install_h_per_day


def _gain(made: Programme, offer: Offer, tier: TierDemand, aim: Aim) -> float:
    """What serving a tier's whole demand adds to the aim, its energy beyond idling taken off."""
    site, busy = made.question.site, tier.tokens_per_s / offer.tokens_per_s
    energy = busy * _work_usd_per_h(made.hardware[offer.system], site)
    if offer.lpu_system:
        lpu = made.hardware[offer.lpu_system]
        energy += busy * offer.lpu_systems * _work_usd_per_h(lpu, site)
    gains = {
        "profit": earned_per_h(tier) - energy,
        "revenue": earned_per_h(tier) - energy * COST_BY_THE_WAY,
        "cost": -energy,
    }
    return gains.get(aim, 0.0)


def _work_usd_per_h(hardware: Hardware, site: Site) -> float:
    return cost_per_h(hardware, site).usd - cost_per_h(hardware, site, busy=0.0).usd


def earned_per_h(tier: TierDemand) -> float:
    """Dollars that a tier's whole demand earns."""
    return tier.tokens_per_s * SECONDS_PER_H / TOKENS_PER_MTOK * tier.usd_per_output_mtok


def solve(made: Programme, *, duals: bool = True) -> Solution | None:
    """The best plan in whole systems; None where what must be served can't be.

    Args:
        made: to be solved.
        duals: find also what one more of each limit is worth: of the relaxation in which LPUs
            serve the models that they serve in the plan.

    Raises:
        ConfigInvalid: scipy, the ``plan`` extra, is missing.
    """
    try:
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError as error:
        raise ConfigInvalid(
            "Planning a mix needs scipy.", hint="pip install 'tokenworks[plan]'"
        ) from error
    if not made.gains:  # nothing keeps any promise
        return None if min(made.limits.values()) < 0 else _solution(made, [], 0.0, {})
    table, limits = _table(made)
    gains = np.array(made.gains)
    largest = float(np.max(np.abs(gains), initial=0.0)) or 1.0
    upper = np.full(len(gains), np.inf)
    for column, value in made.upper.items():
        upper[column] = value
    whole = np.zeros(len(gains))
    whole[sorted(made.integers)] = 1
    result = milp(
        -gains / largest,
        integrality=whole,
        bounds=Bounds(np.zeros(len(gains)), upper),
        constraints=LinearConstraint(table, -np.inf, limits),
        options={"time_limit": SECONDS_MAX, "mip_rel_gap": GAP},
    )
    if result.x is None:
        return None
    values = [
        float(round(value)) if i in made.integers else max(0.0, float(value))
        for i, value in enumerate(result.x)
    ]
    # A programme without integers has no bound besides its own value.
    least = result.fun if result.mip_dual_bound is None else result.mip_dual_bound
    bound = -float(least) * largest
    return _solution(made, values, bound, _duals(made, values) if duals else {})


def relaxed_value(made: Programme) -> float | None:
    """What the best plan is worth where systems come in parts; None where there is none."""
    found = _relaxed(made, None)
    return None if found is None else found[0]


def _duals(made: Programme, values: list[float]) -> dict[Row, float]:
    found = _relaxed(made, values)
    assert found is not None, "the plan itself is in the relaxation"
    return found[1]


def _relaxed(made: Programme, values: list[float] | None) -> tuple[float, dict[Row, float]] | None:
    import numpy as np
    from scipy.optimize import linprog

    table, limits = _table(made)
    gains = np.array(made.gains)
    largest = float(np.max(np.abs(gains), initial=0.0)) or 1.0
    bounds: list[tuple[float, float | None]] = [
        (0.0, made.upper.get(column)) for column in range(len(gains))
    ]
    for name, column in made.columns.items():
        if values is not None and name[0] == "on":
            bounds[column] = (values[column], values[column])
    result = linprog(-gains / largest, A_ub=table, b_ub=limits, bounds=bounds, method="highs")
    if result.status != 0:
        return None
    scales = _scales(made)
    duals = {
        row: -float(dual) * largest / scales[row]
        for row, dual in zip(made.limits, result.ineqlin.marginals, strict=True)
    }
    return -float(result.fun) * largest, duals


def _scales(made: Programme) -> dict[Row, float]:
    """The largest coefficient of each row, by which it is divided for the solver."""
    scales: dict[Row, float] = {}
    for row, _, value in made.entries:
        scales[row] = max(scales.get(row, 0.0), abs(value))
    return {row: scales.get(row, 0.0) or 1.0 for row in made.limits}


def _table(made: Programme) -> tuple[object, list[float]]:
    from scipy.sparse import csr_array

    scales = _scales(made)
    index = {row: i for i, row in enumerate(made.limits)}
    values = [value / scales[row] for row, _, value in made.entries]
    where = ([index[row] for row, _, _ in made.entries], [column for _, column, _ in made.entries])
    table = csr_array((values, where), shape=(len(index), len(made.gains)))
    return table, [limit / scales[row] for row, limit in made.limits.items()]


def _solution(
    made: Programme, values: list[float], bound: float, duals: dict[Row, float]
) -> Solution:
    served: dict[tuple[int, str], float] = {}
    lpus: dict[LPUKey, float] = {}
    systems = [0.0] * len(made.offers)
    share = None
    for name, column in made.columns.items():
        match name:
            case ("systems", int(p)):
                systems[p] = values[column] * made.offers[p].unit
            case ("lpus", (str(gpu), str(lpu), str(model))):
                lpus[gpu, lpu, model] = values[column]
            case ("served", int(p), str(tier)):
                served[p, tier] = values[column] * made.question.tier(tier).tokens_per_s
            case ("share",):
                share = values[column]
            case _:
                continue
    return Solution(
        value=sum(gain * value for gain, value in zip(made.gains, values, strict=True)),
        bound=bound,
        systems=tuple(systems),
        lpus=lpus,
        served=served,
        duals=duals,
        share=share,
    )
