"""Fitting: shared and special factors, kriged residuals and trees.

It needs numpy and scipy (``pip install 'tokenworks[plan]'``); answering needs neither.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.boosting import Boosting, boost
from tokenworks.perf.calibration import (
    GROUP_LIKENESS,
    NOISE,
    ROWS_FEW,
    SHARED_LEVELS,
    VARIANCE,
    Calibration,
    Device,
    Group,
    Learned,
    factors,
    group_key,
    grow,
    levels,
    likeness_of_load,
    likeness_without_load,
    nested,
)
from tokenworks.perf.passes import rates_of
from tokenworks.perf.rows import Row
from tokenworks.perf.speculative import hidden_tokens_per_step
from tokenworks.perf.terms import (
    TPOT_TERMS,
    TTFT_TERMS,
    Terms,
    features,
    place,
    prepare,
    terms_of,
)

SHARED_RIDGE: Final = 0.006
"""Pulls the logarithms of shared factors to zero, that is to nominal rates."""
SPECIAL_RIDGE: Final = 0.06
"""Pulls what is special of an engine, a device or a model to what is shared."""
OUTLIER: Final = 0.15
"""Beyond this error of the logarithm a row's pull grows no more (pseudo-Huber loss)."""
RESIDUAL_MAX: Final = 1.5
"""Of the logarithm: what lies further is taken for a mistake of the row."""
STEPS_MAX: Final = 400
ROWS_MIN: Final = 20
HIDDEN_MIN: Final = 1.1
"""Tokens per step below which a row that beats the roofline counts as noise."""


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """A row ready for fitting.

    Attributes:
        row: as read, with its version and month.
        device: that its factors belong to.
        terms: nominal times.
        levels: whose factors add up for it.
    """

    row: Row
    device: str
    terms: Terms
    levels: tuple[str, ...]


def fit(
    rows: Sequence[Row], *, source: str = "", seed: int = 1, how: Boosting | None = None
) -> Calibration:
    """Everything that rows teach, but for the bands of error, which cross-validation finds.

    Args:
        rows: that have both TTFT and TPOT; others are left out.
        source: of them, for people.
        seed: of the trees.
        how: the trees are grown.

    Raises:
        ConfigInvalid: too few rows, or numpy and scipy are not installed.
    """
    ready = [_ready(row) for row in rows if row.ttft_ms and row.tpot_ms]
    if len(ready) < ROWS_MIN:
        raise ConfigInvalid(
            f"{len(ready)} measured rows are too few to fit to.",
            hint=f"Give at least {ROWS_MIN} with silicon_ttft_ms and silicon_tpot_ms.",
        )
    goals = (
        [math.log(each.row.tpot_ms or 1.0) for each in ready],
        [math.log(each.row.ttft_ms or 1.0) for each in ready],
    )
    tables = (
        _factors([each.terms.tpot for each in ready], goals[0], ready),
        _factors([each.terms.ttft for each in ready], goals[1], ready),
    )
    seen, physics = _seen(ready, *tables)
    learned, trees_say = [], []
    for table, goal in zip(tables, goals, strict=True):
        mean = sum(goal) / len(goal)
        trees = boost(seen, [value - mean for value in goal], seed, how or Boosting())
        learned.append(Learned(factors=table, trees=trees, mean=mean))
        quick = [nested(tree) for tree in trees]
        trees_say.append([grow(quick, mean, values) for values in seen])
    members: dict[str, list[int]] = defaultdict(list)
    for number, each in enumerate(ready):
        members[group_key(each.row.case, each.device)].append(number)
    groups = {}
    for key, numbers in members.items():
        said = trees_say if len(numbers) < ROWS_FEW else physics
        left = [
            [goal[number] - base[number] for number in numbers]
            for goal, base in zip(goals, said, strict=True)
        ]
        groups[key] = _group([ready[number] for number in numbers], left[0], left[1])
    return Calibration(
        rows=len(ready),
        source=source,
        seed=seed,
        tpot=learned[0],
        ttft=learned[1],
        groups=groups,
        bands={},
        devices=_devices(rows),
    )


def _seen(
    ready: Sequence[Fitted], tpot: dict[str, list[float]], ttft: dict[str, list[float]]
) -> tuple[list[list[float]], tuple[list[float], list[float]]]:
    """Features of each row, and what physics with its factors says: logarithms of milliseconds."""
    seen = []
    physics: tuple[list[float], list[float]] = ([], [])
    for each in ready:
        mine = [
            _multiply(factors(tpot, each.levels, TPOT_TERMS), each.terms.tpot),
            _multiply(factors(ttft, each.levels, TTFT_TERMS), each.terms.ttft),
        ]
        for says, times in zip(physics, mine, strict=True):
            says.append(math.log(sum(times)))
        case, shared = each.row.case, each.levels[:SHARED_LEVELS]
        parts = [
            _multiply(factors(tpot, shared, TPOT_TERMS), each.terms.tpot),
            _multiply(factors(ttft, shared, TTFT_TERMS), each.terms.ttft),
        ]
        seen.append(features(case, each.terms, place(case, case.concurrency), parts))
    return seen, physics


def _multiply(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one * other for one, other in zip(ones, others, strict=True)]


def _ready(row: Row) -> Fitted:
    case, rates = row.case, rates_of(row.case.device)
    device = case.device.name
    terms = terms_of(case, rates, prepare(case, rates), case.concurrency)
    return Fitted(row=row, device=device, terms=terms, levels=levels(case, device))


def _devices(rows: Sequence[Row]) -> dict[str, Device]:
    found = {row.case.device.name: row.case.device for row in rows}
    return {
        name: Device(record=msgspec.structs.replace(record, provenance={}), rates=rates_of(record))
        for name, record in sorted(found.items())
    }


def _factors(
    terms: Sequence[Sequence[float]], goal: Sequence[float], ready: Sequence[Fitted]
) -> dict[str, list[float]]:
    """Logarithms of factors by level: least pseudo-Huber error of log time, with ridges.

    A term's factor is the product of its levels'; ridges pull what is special to what is shared
    (hierarchical shrinkage: Gelman and Hill, Data Analysis Using Regression and Multilevel Models,
    2007, chapter 12).
    """
    numpy, optimize, sparse = _numeric()
    names = sorted({name for each in ready for name in each.levels})
    column = {name: number for number, name in enumerate(names)}
    rows = numpy.repeat(numpy.arange(len(ready)), [len(each.levels) for each in ready])
    columns = [column[name] for each in ready for name in each.levels]
    chosen = sparse.csr_matrix((numpy.ones(len(rows)), (rows, columns)))
    turned = chosen.T.tocsr()
    times, wanted = numpy.asarray(terms), numpy.asarray(goal)
    ridge = numpy.full((len(names), 1), SPECIAL_RIDGE)
    ridge[column["all"]] = SHARED_RIDGE

    def loss(flat: Any) -> tuple[float, Any]:
        table = flat.reshape(len(names), -1)
        parts = numpy.exp(chosen @ table) * times
        total = parts.sum(1)
        error = numpy.log(total) - wanted
        bend = numpy.sqrt(1 + (error / OUTLIER) ** 2)
        value = (OUTLIER**2 * (bend - 1)).sum() + (ridge * table * table).sum()
        slope = turned @ ((error / bend / total)[:, None] * parts) + 2 * ridge * table
        return float(value), slope.ravel()

    start = numpy.zeros(len(names) * times.shape[1])
    options = {"maxiter": STEPS_MAX, "maxcor": 20}
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    table = found.x.reshape(len(names), -1)
    return {
        name: [round(float(value), 4) for value in table[number]]
        for name, number in column.items()
        if abs(table[number]).max() > 1e-3
    }


def _group(ready: Sequence[Fitted], tpot: Sequence[float], ttft: Sequence[float]) -> Group:
    """Kriging weights of a group's places, those of repeats added up."""
    numpy, _, _ = _numeric()
    spots: dict[tuple[Any, ...], int] = {}
    at = []
    for each in ready:
        case = each.row.case
        there = tuple(round(x, 4) for x in place(case, case.concurrency))
        month = None if case.month is None else round(case.month, 2)
        at.append(spots.setdefault((there, case.version or "", month), len(spots)))
    proofs = sorted(
        hidden_tokens_per_step(each.terms.tpot_bound, each.row.tpot_ms or 1.0) for each in ready
    )
    hidden = proofs[int(0.98 * (len(proofs) - 1))]
    group = Group(
        rows=len(ready),
        places=[list(there) for there, _, _ in spots],
        versions=[version for _, version, _ in spots],
        months=[month for _, _, month in spots],
        tpot=[],
        ttft=[],
        hidden_tokens_per_step=round(hidden, 2) if hidden > HIDDEN_MIN else 1.0,
    )
    rows = [
        [
            a * b + GROUP_LIKENESS
            for a, b in zip(
                likeness_without_load(group, list(there), version, month),
                likeness_of_load(group, there[0]),
                strict=True,
            )
        ]
        for there, version, month in spots
    ]
    # Repeats of a place share its covariance; their mean counts, with less noise.
    counts = numpy.bincount(at, minlength=len(spots))
    covariance = VARIANCE * numpy.asarray(rows) + numpy.diag(NOISE / counts)
    for residuals, weights in ((tpot, group.tpot), (ttft, group.ttft)):
        bounded = numpy.clip(residuals, -RESIDUAL_MAX, RESIDUAL_MAX)
        means = numpy.bincount(at, bounded, len(spots)) / counts
        solved = VARIANCE * numpy.linalg.solve(covariance, means)
        weights.extend(round(float(value), 4) for value in solved)
    return group


def _numeric() -> tuple[Any, Any, Any]:
    try:
        import numpy as np
        from scipy import optimize, sparse
    except ImportError as error:
        raise ConfigInvalid(
            "Fitting needs numpy and scipy.", hint="Run pip install 'tokenworks[plan]'."
        ) from error
    return np, optimize, sparse
