"""Predictions beside measurements, one by one and by kind."""

from __future__ import annotations

import msgspec
import pytest

from tokenworks.perf.calibration import Calibration
from tokenworks.perf.rows import Row
from tokenworks.perf.spread import spread_points, spreads
from tokenworks.perf.validate import bands_by_fold, check, report


def test_a_measurement_lies_in_its_interval_or_outside(
    some_rows: list[Row], calibration: Calibration
) -> None:
    checked = check(some_rows, calibration)
    bands = bands_by_fold(checked, calibration.bands)
    points = spread_points(checked, bands)
    assert len(points) == 2 * len(some_rows)
    assert all(point.low_ms <= point.predicted_ms <= point.high_ms for point in points)
    found = {(kind.by, kind.name, kind.target): kind for kind in spreads(points)}
    told = report(checked, [], how="x", calibration_rows=1, bands=calibration.bands)
    for group in told.groups:
        if group.by in {"mode", "engine", "system"}:
            kind = found.pop((group.by, group.name, "tpot"))
            assert kind.rows == group.rows
            assert kind.coverage80 == pytest.approx(group.tpot.coverage80)
            kind = found.pop((group.by, group.name, "ttft"))
            assert kind.coverage80 == pytest.approx(group.ttft.coverage80)
    assert not found


def test_one_measurement_is_all_of_its_quantiles(
    some_rows: list[Row], calibration: Calibration
) -> None:
    one = msgspec.structs.replace(some_rows[0], ttft_ms=None)
    checked = check([one], calibration)
    points = spread_points(checked, bands_by_fold(checked, {}))
    (point,) = points
    assert point.target == "tpot"
    assert point.high_ms == pytest.approx(2 * point.predicted_ms)
    for kind in spreads(points):
        ratio = point.measured_ms / point.predicted_ms
        assert (kind.low, kind.median, kind.high) == pytest.approx((ratio, ratio, ratio))
        assert kind.rows == 1
