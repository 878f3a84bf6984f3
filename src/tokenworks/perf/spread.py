"""Predictions beside measurements, one by one and by kind: what a picture of errors shows."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from tokenworks.perf.validate import BAND_DEFAULT, TARGETS, Bands, Checked, predicted_ms

SPREAD_BY: Final = ("mode", "engine", "system")


class SpreadPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement and what was predicted for it.

    Attributes:
        id: of the row.
        mode: of serving.
        engine: that was measured.
        system: likewise.
        target: ``tpot`` or ``ttft``.
        measured_ms: by the row.
        predicted_ms: for it.
        low_ms: lower end of the interval that should hold eight measurements in ten.
        high_ms: upper end.
    """

    id: str
    mode: str
    engine: str
    system: str
    target: str
    measured_ms: float
    predicted_ms: float
    low_ms: float
    high_ms: float


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """How far measurements of one kind lie from predictions, as measured / predicted.

    Attributes:
        by: what they have in common: mode, engine or system.
        name: of that.
        target: ``tpot`` or ``ttft``.
        rows: how many.
        low: one measurement in ten is lower.
        median: half of them are.
        high: nine in ten are.
        stated_low: lower end of the interval that was stated; of all rows, the geometric mean.
        stated_high: upper end; likewise.
        coverage80: measurements inside their own interval.
    """

    by: str
    name: str
    target: str
    rows: int
    low: float
    median: float
    high: float
    stated_low: float
    stated_high: float
    coverage80: float


def spread_points(
    checked: Iterable[Checked], bands: Mapping[int, Bands]
) -> tuple[SpreadPoint, ...]:
    """Each measurement with its prediction and interval; those that measure nothing are left out.

    Args:
        checked: predictions.
        bands: by the fold that left a row out.
    """
    found = []
    for each in checked:
        case = each.row.case
        for target in TARGETS:
            predicted, measured = predicted_ms(each, target)
            if measured is None:
                continue
            key = f"{target}/{case.mode}/{each.nearness}"
            low, high = bands[each.fold].get(key, BAND_DEFAULT)
            found.append(
                SpreadPoint(
                    id=each.row.id,
                    mode=case.mode,
                    engine=case.engine,
                    system=each.row.system,
                    target=target,
                    measured_ms=measured,
                    predicted_ms=predicted,
                    low_ms=predicted * math.exp(low),
                    high_ms=predicted * math.exp(high),
                )
            )
    return tuple(found)


def spreads(points: Iterable[SpreadPoint]) -> tuple[Spread, ...]:
    """By mode, engine and system, and within them by name and target."""
    kinds: dict[tuple[int, str, str], list[SpreadPoint]] = defaultdict(list)
    for point in points:
        for i, by in enumerate(SPREAD_BY):
            kinds[i, getattr(point, by), point.target].append(point)
    return tuple(
        _spread(SPREAD_BY[i], name, target, members)
        for (i, name, target), members in sorted(kinds.items(), key=lambda kind: kind[0])
    )


def _spread(by: str, name: str, target: str, members: Sequence[SpreadPoint]) -> Spread:
    ratios = [point.measured_ms / point.predicted_ms for point in members]
    inside = sum(point.low_ms <= point.measured_ms <= point.high_ms for point in members)
    # Of one, the quantiles are itself.
    tenths = statistics.quantiles(
        ratios * 2 if len(ratios) == 1 else ratios, n=10, method="inclusive"
    )
    return Spread(
        by=by,
        name=name,
        target=target,
        rows=len(members),
        low=tenths[0],
        median=tenths[4],
        high=tenths[8],
        stated_low=statistics.geometric_mean(p.low_ms / p.predicted_ms for p in members),
        stated_high=statistics.geometric_mean(p.high_ms / p.predicted_ms for p in members),
        coverage80=inside / len(members),
    )
