"""Fitting: factors of the physics, and a Gaussian process over what they leave.

It needs numpy and scipy (``pip install 'tokenworks[plan]'``); answering needs neither.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.calibration import (
    KINSHIPS,
    LEVELS,
    SHARED_REACH,
    Calibration,
    Device,
    Group,
    Learned,
    Spot,
    base_levels,
    group_key,
    kinships,
    levels,
    likeness_without_load,
    load_likeness,
)
from tokenworks.perf.passes import rates_of
from tokenworks.perf.rows import Row, configuration
from tokenworks.perf.speculative import hidden_tokens_per_step
from tokenworks.perf.terms import PLACE_SCALES, Terms, place, prepare, terms_of

SHARED_RIDGE: Final = 0.006
"""Pulls the logarithms of factors of all rows to zero, that is to nominal rates."""
OUTLIER: Final = 0.15
"""Beyond this error of the logarithm a row's pull grows no more (pseudo-Huber loss)."""
STEPS_MAX: Final = 200
ROWS_MIN: Final = 20
ROWS_MAX: Final = 8000
"""A Gaussian process over n rows takes n x n numbers."""
HIDDEN_MIN: Final = 1.1
"""Tokens per step below which a row that beats the roofline counts as noise."""


class Variance(NamedTuple):
    """Of logarithms, of what rows of a level have in common.

    Attributes:
        whole: of all of their time.
        parts: of each term, as far as it makes the time.
    """

    whole: float
    parts: float


class Prior(NamedTuple):
    """What is believed of residuals before anything is measured.

    Attributes:
        special: ridge that pulls what is special of aggregated systems to what is shared.
        residual_max: what lies further is taken for a mistake of the row.
        levels: by kind; a kind that is missing has nothing in common.
        kinships: of rows at one place, likewise.
        group: of rows at one place in one group.
        agg: between repeats of a run.
        disagg: likewise.
    """

    special: float
    residual_max: float
    levels: dict[str, Variance]
    kinships: dict[str, float]
    group: float
    agg: float
    disagg: float


TPOT: Final = Prior(
    special=0.06,
    residual_max=1.0,
    levels={
        "all": Variance(0.0034, 0.0048),
        "mode": Variance(0.0023, 0.0055),
        "engine": Variance(0.011, 0.069),
        "engine mode": Variance(0.0097, 0.011),
        "generation mode": Variance(0.0, 0.016),
        "engine device": Variance(0.0015, 0.0026),
        "engine device mode": Variance(0.0, 0.0031),
        "dtype": Variance(0.0064, 0.019),
        "model": Variance(0.0, 0.0026),
        "model engine": Variance(0.0027, 0.0),
        "model device": Variance(0.0014, 0.13),
        "class": Variance(0.0, 0.0052),
        "workers mode": Variance(0.04, 0.1),
        "group": Variance(0.022, 0.28),
    },
    kinships={"all": 0.042, "class engine": 0.006, "model mode": 0.01},
    group=0.054,
    agg=0.0021,
    disagg=0.014,
)
TTFT: Final = Prior(
    special=0.3,
    residual_max=1.5,
    levels={
        "all": Variance(0.0072, 0.0052),
        "mode": Variance(0.054, 0.0),
        "engine": Variance(0.095, 0.0),
        "engine mode": Variance(0.044, 0.0),
        "generation mode": Variance(0.005, 0.0),
        "engine device": Variance(0.0, 0.38),
        "engine device mode": Variance(0.0051, 0.028),
        "model engine": Variance(0.0, 0.0097),
        "model device": Variance(0.026, 0.088),
        "class": Variance(0.003, 0.5),
        "class engine": Variance(0.0, 0.13),
        "workers mode": Variance(0.011, 0.12),
        "group": Variance(0.049, 0.16),
    },
    kinships={"all": 0.14, "class engine": 0.072, "model mode": 0.029},
    group=0.2,
    agg=0.0117,
    disagg=0.06,
)
"""Both found by the likelihood of the measured rows that ship, and by leaving groups out:
docs/measurements/2026-11-29-perf.md."""


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """A row ready for fitting.

    Attributes:
        row: as read.
        terms: nominal times.
        place: of it, rounded.
        levels: that it shares with others.
        kinships: likewise.
    """

    row: Row
    terms: Terms
    place: tuple[float, ...]
    levels: tuple[str, ...]
    kinships: tuple[str, ...]


def fit(rows: Sequence[Row], *, source: str = "", seed: int = 1) -> Calibration:
    """Everything that rows teach, but for the bands of error, which cross-validation finds.

    Args:
        rows: that have both TTFT and TPOT; others are left out.
        source: of them, for people.
        seed: of the folds, to be kept.

    Raises:
        ConfigInvalid: too few rows or too many, or numpy and scipy are not installed.
    """
    ready = [_ready(row) for row in rows if row.ttft_ms and row.tpot_ms]
    if not ROWS_MIN <= len(ready) <= ROWS_MAX:
        raise ConfigInvalid(
            f"{len(ready)} measured rows are too {'few' if len(ready) < ROWS_MIN else 'many'} "
            "to fit to.",
            hint=f"Give {ROWS_MIN} to {ROWS_MAX} with silicon_ttft_ms and silicon_tpot_ms.",
        )
    members: dict[str, list[int]] = defaultdict(list)
    for number, each in enumerate(ready):
        members[each.levels[-1]].append(number)
    groups = {
        group_key(ready[numbers[0]].row.case, ready[numbers[0]].row.case.device.name): _group(
            [ready[number] for number in numbers]
        )
        for numbers in members.values()
    }
    shared, alike = _likeness(ready), _alike(ready, members, groups)
    goals = ([each.row.tpot_ms for each in ready], [each.row.ttft_ms for each in ready])
    nominal = ([each.terms.tpot for each in ready], [each.terms.ttft for each in ready])
    learned, weights = [], []
    for prior, times, goal in zip((TPOT, TTFT), nominal, goals, strict=True):
        table, weight = _learn(ready, prior, times, goal, shared, alike)
        learned.append(table)
        weights.append(weight)
    for numbers, group in zip(members.values(), groups.values(), strict=True):
        _weigh(group, [ready[n] for n in numbers], [[w[n] for n in numbers] for w in weights])
    sites, loads, spots = _spots(ready, weights)
    return Calibration(
        rows=len(ready),
        source=source,
        seed=seed,
        tpot=learned[0],
        ttft=learned[1],
        groups=groups,
        sites=sites,
        loads=loads,
        shared=spots,
        bands={},
        devices=_devices(rows),
    )


def _ready(row: Row) -> Fitted:
    case, rates = row.case, rates_of(row.case.device)
    return Fitted(
        row=row,
        terms=terms_of(case, rates, prepare(case, rates), case.concurrency),
        place=tuple(round(x, 4) for x in place(case, case.concurrency)),
        levels=levels(case, case.device),
        kinships=kinships(case),
    )


def _devices(rows: Sequence[Row]) -> dict[str, Device]:
    found = {row.case.device.name: row.case.device for row in rows}
    return {
        name: Device(record=msgspec.structs.replace(record, provenance={}), rates=rates_of(record))
        for name, record in sorted(found.items())
    }


def _group(ready: Sequence[Fitted]) -> Group:
    """A group's places, not yet weighed."""
    spots = list(dict.fromkeys(map(_when, ready)))
    proofs = sorted(
        hidden_tokens_per_step(each.terms.tpot_bound, each.row.tpot_ms or 1.0) for each in ready
    )
    hidden = proofs[int(0.98 * (len(proofs) - 1))]
    return Group(
        rows=len(ready),
        places=[list(there) for there, _, _ in spots],
        versions=[version for _, version, _ in spots],
        months=[month for _, _, month in spots],
        tpot=[0.0] * len(spots),
        ttft=[0.0] * len(spots),
        hidden_tokens_per_step=round(hidden, 2) if hidden > HIDDEN_MIN else 1.0,
    )


def _when(each: Fitted) -> tuple[tuple[float, ...], str, float | None]:
    """What tells rows of one group apart."""
    case = each.row.case
    month = None if case.month is None else round(case.month, 2)
    return each.place, case.version or "", month


def _weigh(group: Group, ready: Sequence[Fitted], weights: Sequence[Sequence[float]]) -> None:
    """Add up the weights of a group's repeats."""
    at = {spot: number for number, spot in enumerate(dict.fromkeys(map(_when, ready)))}
    for prior, given, found in zip((TPOT, TTFT), weights, (group.tpot, group.ttft), strict=True):
        for each, weight in zip(ready, given, strict=True):
            found[at[_when(each)]] += prior.group * weight
        found[:] = [round(float(value), 5) for value in found]


def _likeness(ready: Sequence[Fitted]) -> Any:
    """How alike the places of all rows are, as far as other groups are concerned."""
    numpy, _ = _numeric()
    places = numpy.asarray([each.place for each in ready])
    far = numpy.zeros((len(ready), len(ready)))
    for axis, scale in enumerate(PLACE_SCALES):
        column = places[:, axis] / (scale * SHARED_REACH)
        far += numpy.abs(column[:, None] - column[None, :])
    return numpy.exp(-far)


def _alike(
    ready: Sequence[Fitted], members: dict[str, list[int]], groups: dict[str, Group]
) -> list[tuple[Any, Any]]:
    """Rows of each group, and how alike their places, versions and dates are."""
    numpy, _ = _numeric()
    found = []
    for numbers, group in zip(members.values(), groups.values(), strict=True):
        spots = list(zip(group.places, group.versions, group.months, strict=True))
        loads = [there[0] for there in group.places]
        rows = [
            numpy.multiply(
                likeness_without_load(group, there, version, month),
                load_likeness(there[0], loads),
            )
            for there, version, month in spots
        ]
        at = {(tuple(there), *rest): number for number, (there, *rest) in enumerate(spots)}
        index = [at[_when(ready[number])] for number in numbers]
        found.append((numpy.asarray(numbers), numpy.asarray(rows)[numpy.ix_(index, index)]))
    return found


def _learn(
    ready: Sequence[Fitted],
    prior: Prior,
    times: Sequence[Sequence[float]],
    goal: Sequence[float | None],
    shared: Any,
    alike: Sequence[tuple[Any, Any]],
) -> tuple[Learned, Any]:
    """Factors and levels, and each row's weight.

    The logarithm of a time is that of the factored sum, and a Gaussian process: each level and
    each term's share of the time has a normal effect (the first order of a factor of its own), and
    places that are alike have alike residuals. All are estimated together, so a group of three
    rows moves as far as three rows tell.

    Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, sections 2.2 and
    2.7; partial pooling: Gelman and Hill, Data Analysis Using Regression and Multilevel Models,
    2007, chapter 12.
    """
    numpy, _ = _numeric()
    wanted, nominal = numpy.log(numpy.asarray(goal, float)), numpy.asarray(times)
    table, parts = _factors(nominal, wanted, ready, prior)
    total = parts.sum(1)
    shares = parts / total[:, None]
    left = numpy.clip(wanted - numpy.log(total), -prior.residual_max, prior.residual_max)
    inner = shares @ shares.T
    covariance = numpy.diag(
        [prior.agg if each.row.case.mode == "agg" else prior.disagg for each in ready]
    )
    for number, kind in enumerate(LEVELS):
        if kind in prior.levels:
            codes = _codes([each.levels[number] for each in ready])
            whole, of_parts = prior.levels[kind]
            covariance += (codes[:, None] == codes[None, :]) * (whole + of_parts * inner)
    for number, kind in enumerate(KINSHIPS):
        codes = _codes([each.kinships[number] for each in ready])
        covariance += (codes[:, None] == codes[None, :]) * (prior.kinships[kind] * shared)
    for numbers, likeness in alike:
        covariance[numpy.ix_(numbers, numbers)] += prior.group * likeness
    weights = numpy.linalg.solve(covariance, left)
    effects: dict[str, list[float]] = {}
    for number, kind in enumerate(LEVELS):
        if kind in prior.levels:
            whole, of_parts = prior.levels[kind]
            names = numpy.asarray([each.levels[number] for each in ready])
            for name in sorted(set(names)):
                mine = names == name
                effect = [whole * weights[mine].sum(), *(of_parts * weights[mine] @ shares[mine])]
                effects[str(name)] = [round(float(value), 5) for value in effect]
    return Learned(factors=table, levels=effects), weights


def _codes(names: Sequence[str]) -> Any:
    numpy, _ = _numeric()
    return numpy.unique(numpy.asarray(names), return_inverse=True)[1]


def _factors(
    times: Any, wanted: Any, ready: Sequence[Fitted], prior: Prior
) -> tuple[dict[str, list[float]], Any]:
    """Logarithms of factors, and the times that they make: least pseudo-Huber error of log time.

    Repeats of a configuration share the weight of one row, and a group has the weight of the
    square root of its configurations, so that no group has all the say.
    """
    numpy, optimize = _numeric()
    names = [configuration(each.row) for each in ready]
    repeats = Counter(names)
    group_of = dict(zip(names, (each.levels[-1] for each in ready), strict=True))
    sizes = Counter(group_of.values())
    weight = numpy.asarray(
        [
            1 / repeats[name] / math.sqrt(sizes[each.levels[-1]])
            for name, each in zip(names, ready, strict=True)
        ]
    )
    weight *= len(ready) / weight.sum()
    chosen = numpy.asarray([[1.0, each.row.case.mode == "agg"] for each in ready])
    ridge = numpy.asarray([[SHARED_RIDGE], [prior.special]])

    def loss(flat: Any) -> tuple[float, Any]:
        table = flat.reshape(2, -1)
        parts = numpy.exp(chosen @ table) * times
        total = parts.sum(1)
        error = numpy.log(total) - wanted
        bend = numpy.sqrt(1 + (error / OUTLIER) ** 2)
        value = (weight * OUTLIER**2 * (bend - 1)).sum() + (ridge * table * table).sum()
        pull = (weight * error / bend / total)[:, None] * parts
        return float(value), (chosen.T @ pull + 2 * ridge * table).ravel()

    found = optimize.minimize(
        loss,
        numpy.zeros(2 * times.shape[1]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": STEPS_MAX},
    )
    table = found.x.reshape(2, -1).round(4)
    parts = numpy.exp(chosen @ table) * times
    return dict(zip(base_levels("agg"), table.tolist(), strict=True)), parts


def _spots(
    ready: Sequence[Fitted], weights: Sequence[Any]
) -> tuple[list[list[float]], list[float], dict[str, list[Spot]]]:
    """Sites, loads, and what all rows of a kinship at one site under one load weigh together."""
    sites = {site: n for n, site in enumerate(sorted({each.place[1:] for each in ready}))}
    loads = {load: n for n, load in enumerate(sorted({each.place[0] for each in ready}))}
    found: dict[str, dict[tuple[int, int], list[float]]] = {}
    for row, each in enumerate(ready):
        at = sites[each.place[1:]], loads[each.place[0]]
        for kind, name in zip(KINSHIPS, each.kinships, strict=True):
            spot = found.setdefault(name, {}).setdefault(at, [0.0, 0.0])
            for target, prior in enumerate((TPOT, TTFT)):
                spot[target] += prior.kinships[kind] * float(weights[target][row])
    shared = {
        name: [Spot(site, load, round(a, 5), round(b, 5)) for (site, load), (a, b) in spots.items()]
        for name, spots in found.items()
    }
    return [list(site) for site in sites], list(loads), shared


def _numeric() -> tuple[Any, Any]:
    try:
        import numpy as np
        from scipy import optimize
    except ImportError as error:
        raise ConfigInvalid(
            "Fitting needs numpy and scipy.", hint="Run pip install 'tokenworks[plan]'."
        ) from error
    return np, optimize
