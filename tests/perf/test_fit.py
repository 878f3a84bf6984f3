"""Fitting learns what rows say, gives the same for the same seed, and says how far off it is."""

from __future__ import annotations

import builtins
import math
from typing import Any

import msgspec
import pytest

from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf import fit as fit_module
from tokenworks.perf import validate as validate_module
from tokenworks.perf.calibration import Calibration, nearness
from tokenworks.perf.fit import fit
from tokenworks.perf.rows import Row, Unread
from tokenworks.perf.validate import (
    BAND_DEFAULT,
    bands_of,
    calibrate,
    check,
    cross_validate,
    report,
)


@pytest.fixture(scope="module")
def fitted(some_rows: list[Row]) -> Calibration:
    return fit(some_rows, source="a few")


def test_what_was_fitted_to_is_foretold(some_rows: list[Row], fitted: Calibration) -> None:
    checked = check(some_rows, fitted)
    found = report(checked, [], how="as fitted", calibration_rows=fitted.rows, bands={})
    assert found.tpot.median_ape < 0.05
    assert found.ttft.median_ape < 0.15
    assert set(fitted.devices) == {"h100", "h200", "b200", "b300", "gb200", "gb300"}
    assert fit(some_rows, source="a few") == fitted


@pytest.mark.heavy
def test_what_ships_was_fitted_to_these_rows(rows: list[Row], calibration: Calibration) -> None:
    assert calibration.rows == len(rows)
    sample = rows[::10]
    found = report(
        check(sample, calibration),
        [],
        how="as fitted",
        calibration_rows=calibration.rows,
        bands=calibration.bands,
    )
    assert found.tpot.median_ape < 0.02
    assert found.ttft.median_ape < 0.04
    assert set(calibration.bands) == {
        f"{target}/{mode}/{near}"
        for target in ("tpot", "ttft")
        for mode in ("agg", "disagg")
        for near in ("near", "far", "few", "new")
    }
    whole = report(
        check(rows, calibration), [], how="", calibration_rows=1, bands=calibration.bands
    )
    named = {each.group for each in whole.hidden_speculation}
    assert any("DeepSeek" in group and "disagg" in group for group in named)


def test_rows_of_a_few_are_too_few(some_rows: list[Row]) -> None:
    blank = [msgspec.structs.replace(row, tpot_ms=None) for row in some_rows]
    with pytest.raises(ConfigInvalid, match="0 measured rows are too few"):
        fit(blank)


def test_more_rows_than_a_matrix_holds_are_refused(
    some_rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "ROWS_MAX", 100)
    with pytest.raises(ConfigInvalid, match="are too many") as refused:
        fit(some_rows)
    assert "20 to 100" in refused.value.hint


@pytest.mark.heavy
def test_three_rows_of_a_group_that_is_twice_as_slow_move_its_others(rows: list[Row]) -> None:
    """And the more of them are measured, the nearer answers come; other groups stay."""
    sample = rows[::12]
    mine = [row for row in rows if row.model == "zhipuai/GLM-5" and row.case.mode == "agg"]
    slow = [msgspec.structs.replace(row, tpot_ms=2 * (row.tpot_ms or 0)) for row in mine]
    rest = [row for row in sample if row.model != "zhipuai/GLM-5"]
    other = [row for row in rest if row.model.startswith("meta-llama")]

    def off(learned: list[Row], of: list[Row]) -> float:
        found = report(check(of, fit(learned)), [], how="", calibration_rows=1, bands={})
        assert found.tpot.median_ape is not None
        return found.tpot.median_ape

    none, three, many = (off([*rest, *slow[:count]], slow[12:]) for count in (0, 3, 12))
    assert none > 0.5
    assert many < three < 0.5 * none
    assert off([*rest, *slow[:12]], other) == pytest.approx(off(rest, other), abs=0.02)


def test_without_numpy_fitting_says_what_to_install(
    some_rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name == "numpy":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigInvalid, match=r"tokenworks\[plan\]"):
        fit(some_rows)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps enough to see that all parts work."""
    monkeypatch.setattr(fit_module, "STEPS_MAX", 30)
    monkeypatch.setattr(validate_module, "FOLDS", 2)
    monkeypatch.setattr(validate_module, "GROUP_FOLDS", 2)


@pytest.mark.heavy
@pytest.mark.usefixtures("quick")
def test_cross_validation_leaves_out_what_it_says(rows: list[Row]) -> None:
    sample = rows[::30]
    said: list[str] = []
    checked = cross_validate(sample, by="configuration", folds=2, seed=3, progress=said.append)
    assert sorted(each.row.id for each in checked) == sorted(row.id for row in sample)
    assert said == [f"fold {n} of 2, configuration left out" for n in (1, 2)]
    assert {each.fold for each in checked} == {0, 1}
    # The same architecture under another name stays.
    named = cross_validate(sample, by="group", folds=2)
    assert "new" in {each.nearness for each in named}
    new = cross_validate(sample, by="architecture", folds=2)
    assert {each.nearness for each in new} == {"new"}
    after = cross_validate(sample, by="architecture", folds=2, kept_rows=3)
    assert len(after) < len(new)
    assert {each.nearness for each in after} <= {"few", "new"}
    found = report(checked, [], how="folds", calibration_rows=9, bands=None)
    assert found.how == "folds"
    assert 0.3 < found.tpot.coverage80 <= 1


@pytest.mark.usefixtures("quick")
def test_calibrating_is_fitting_with_bands(rows: list[Row]) -> None:
    sample = rows[::40]
    found = calibrate(sample, source="here", seed=2)
    assert found.source == "here"
    assert found.seed == 2
    assert len(found.bands) == 16
    assert calibrate(sample, source="here", seed=2) == found


def test_bands_hold_eight_in_ten_or_take_what_is_wider(
    some_rows: list[Row], fitted: Calibration
) -> None:
    checked = check(some_rows, fitted)
    blank = msgspec.structs.replace(some_rows[0], tpot_ms=None, ttft_ms=None)
    bands = bands_of([*checked, *check([blank], fitted)])
    assert bands["tpot/agg/new"] == BAND_DEFAULT
    low, high = bands["tpot/agg/near"]
    errors = [
        math.log(each.row.tpot_ms / each.tpot_ms)
        for each in checked
        if each.row.case.mode == "agg" and each.nearness == "near" and each.row.tpot_ms
    ]
    inside = sum(low - 1e-3 <= error <= high + 1e-3 for error in errors) / len(errors)
    assert inside == pytest.approx(0.8, abs=0.05)


def test_rows_that_cannot_be_predicted_count_as_wholly_wrong(
    some_rows: list[Row], fitted: Calibration
) -> None:
    unread = [Unread(id=str(number), why="odd") for number in range(201)]
    blank = msgspec.structs.replace(some_rows[0], tpot_ms=None, ttft_ms=None)
    checked = check([*some_rows[:20], blank], fitted)
    found = report(checked, unread, how="x", calibration_rows=1, bands={})
    assert (found.rows, found.tpot.rows, found.ttft.rows) == (222, 221, 221)
    assert found.tpot.median_ape == 1.0
    assert (len(found.unpredicted), found.unpredicted_left_off) == (200, 1)
    nothing = report([], unread[:1], how="x", calibration_rows=1, bands={})
    assert nothing.tpot.mape == 1.0
    assert nothing.tpot.bias is None
    empty = report(check([blank], fitted), [], how="x", calibration_rows=1, bands={})
    assert (empty.tpot.rows, empty.tpot.median_ape) == (0, None)


def test_nearness_is_named() -> None:
    assert nearness(0, 0.0, measured_device=True) == "new"
    assert nearness(50, 0.9, measured_device=False) == "new"
    assert nearness(3, 1.0, measured_device=True) == "few"
    assert nearness(50, 0.9, measured_device=True) == "near"
    assert nearness(50, 0.1, measured_device=True) == "far"
