"""How far predictions lie from measured rows, as fitted and cross-validated."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import msgspec

from tokenworks.core.rng import GOLDEN_GAMMA, WORD, mix64
from tokenworks.perf.calibration import Calibration, nearness
from tokenworks.perf.estimate import Estimator
from tokenworks.perf.fit import fit
from tokenworks.perf.rows import Row, Unread, configuration
from tokenworks.perf.speculative import hidden_tokens_per_step

FOLDS: Final = 5
GROUP_FOLDS: Final = 8
BAND_ROWS_MIN: Final = 25
"""Fewer errors than this make no band of their own."""
BAND_DEFAULT: Final = (-math.log(2), math.log(2))
NEARNESSES: Final = ("near", "far", "few", "new")
MODES: Final = ("agg", "disagg")
KINDS: Final = ("mode", "system", "engine", "model", "group")
TARGETS: Final = ("tpot", "ttft")
LISTED_MAX: Final = 200

LeftOut = Literal["configuration", "group", "architecture"]
"""What a fold leaves out as a whole: repeats of a configuration; a group of model name, device,
engine and mode; or the same with models of one architecture taken as one."""


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """A row and what was predicted for it.

    Attributes:
        row: as measured.
        tpot_ms: predicted.
        ttft_ms: predicted.
        nearness: to the rows that were fitted to.
        hidden: tokens per step that the row proves, which it doesn't declare.
        fold: that left it out; 0 without folds.
    """

    row: Row
    tpot_ms: float
    ttft_ms: float
    nearness: str
    hidden: float
    fold: int = 0


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """Errors as fractions of what was measured; None where nothing was.

    Attributes:
        rows: compared; those that could not be predicted count as an error of 1.0.
        median_ape: median of absolute errors.
        mape: mean of them.
        p90_ape: nine rows in ten are better.
        bias: geometric mean of predicted / measured, less 1.
        coverage80: rows whose measurement lies in the stated interval for eight in ten.
    """

    rows: int
    median_ape: float | None
    mape: float | None
    p90_ape: float | None
    bias: float | None
    coverage80: float | None


class GroupErrors(msgspec.Struct, frozen=True, kw_only=True):
    """Errors of some rows.

    Attributes:
        by: what they have in common: system, engine, model, mode, or all four.
        name: of that.
        rows: how many.
        tpot: of time per output token.
        ttft: of time to first token.
    """

    by: str
    name: str
    rows: int
    tpot: Errors
    ttft: Errors


class Hidden(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a group that beat the roofline, which only speculative decoding can.

    Attributes:
        group: of model, system, engine and mode.
        rows: that do.
        of: all rows of the group.
        tokens_per_step: that the fastest of them prove, at the least.
        twins: pairs of rows alike in every column whose TPOT is at least 1.5 times apart.
    """

    group: str
    rows: int
    of: int
    tokens_per_step: float
    twins: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that comparing shows.

    Attributes:
        how: ``as fitted`` by the calibration that was given, or what was left out of each fold.
        calibration_rows: that it was fitted to.
        rows: in the file.
        tpot: of all.
        ttft: of all.
        groups: by system, engine, model and mode.
        hidden_speculation: that rows show.
        unpredicted: rows that could not be read, and why.
        unpredicted_left_off: how many more there are.
        substituted: rows whose model, system or engine was taken for another, and for which.
        substituted_left_off: how many more there are.
        unmeasured: rows with a measurement that is none or with none at all; such measurements
            count nowhere.
        unmeasured_left_off: how many more there are.
    """

    how: str
    calibration_rows: int
    rows: int
    tpot: Errors
    ttft: Errors
    groups: list[GroupErrors]
    hidden_speculation: list[Hidden]
    unpredicted: list[Unread]
    unpredicted_left_off: int
    substituted: list[Unread]
    substituted_left_off: int
    unmeasured: list[Unread]
    unmeasured_left_off: int


Bands = dict[str, tuple[float, float]]


def check(rows: Iterable[Row], calibration: Calibration, fold: int = 0) -> list[Checked]:
    """What a calibration predicts for rows."""
    estimator, found = Estimator(calibration), []
    for row in rows:
        curve = estimator.curve(row.case)
        point = curve.at(row.case.concurrency)
        many = 0 if curve.group is None else curve.group.rows
        found.append(
            Checked(
                row=row,
                tpot_ms=math.exp(point.tpot_log),
                ttft_ms=math.exp(point.ttft_log),
                nearness=nearness(many, point.nearest, measured_device=curve.measured),
                hidden=_hidden(curve.bound_ms(row.case.concurrency), row.tpot_ms),
                fold=fold,
            )
        )
    return found


def _hidden(bound_ms: float, tpot_ms: float | None) -> float:
    return 1.0 if tpot_ms is None else hidden_tokens_per_step(bound_ms, tpot_ms)


def _group_name(row: Row) -> str:
    return f"{row.model} {row.system} {row.case.engine} {row.case.mode}"


def _left_out(row: Row, by: LeftOut) -> str:
    if by == "configuration":
        return configuration(row)
    model = row.model if by == "group" else row.case.shape.key
    return f"{model} {row.case.device.name} {row.case.engine} {row.case.mode}"


def cross_validate(
    rows: Sequence[Row],
    *,
    by: LeftOut,
    folds: int,
    seed: int = 1,
    kept_rows: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Checked]:
    """Predictions for each row by a calibration that was fitted without its fold.

    Args:
        rows: that were measured.
        by: what a fold leaves out as a whole.
        folds: how many.
        seed: of the folds and of what is kept.
        kept_rows: of each group left out, that are fitted to all the same, and not compared.
        progress: told before each fold.
    """
    names = sorted({_left_out(row, by) for row in rows}, key=lambda name: _dice(seed, name))
    fold_of = {name: number % folds for number, name in enumerate(names)}
    kept = _kept(rows, by, kept_rows, seed)
    found: list[Checked] = []
    for fold in range(folds):
        progress(f"fold {fold + 1} of {folds}, {by} left out")
        inside = [number for number, row in enumerate(rows) if fold_of[_left_out(row, by)] == fold]
        out = [rows[number] for number in inside if number not in kept]
        without = set(inside) - kept
        learned = [row for number, row in enumerate(rows) if number not in without]
        found += check(out, fit(learned, seed=seed), fold)
    return found


def _dice(seed: int, name: str) -> int:
    """An order that looks random and follows from the seed alone."""
    return mix64(zlib.crc32(name.encode()) + seed * GOLDEN_GAMMA & WORD)


def _kept(rows: Sequence[Row], by: LeftOut, count: int, seed: int) -> set[int]:
    members: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        members[_left_out(row, by)].append(number)
    kept = set()
    for _, numbers in sorted(members.items()):
        if count and len(numbers) > count:
            kept.update(sorted(numbers, key=lambda n: _dice(seed, rows[n].id))[:count])
    return kept


def bands_of(checked: Sequence[Checked]) -> Bands:
    """Intervals that hold eight errors in ten, for each target, mode and nearness.

    Where few errors are known, those of the next wider nearness count, and at last a factor of 2.
    """
    errors: dict[str, list[float]] = defaultdict(list)
    for each in checked:
        for target in TARGETS:
            error = _log_error(each, target)
            if error is not None:
                errors[f"{target}/{each.row.case.mode}/{each.nearness}"].append(error)
    found: Bands = {}
    for target in TARGETS:
        for mode in MODES:
            band = BAND_DEFAULT
            for near in reversed(NEARNESSES):
                key = f"{target}/{mode}/{near}"
                known = sorted(errors[key])
                if len(known) >= BAND_ROWS_MIN:
                    band = (round(_quantile(known, 0.1), 4), round(_quantile(known, 0.9), 4))
                found[key] = band
    return found


def predicted_ms(each: Checked, target: str) -> tuple[float, float | None]:
    """What was predicted for a target, and what was measured."""
    if target == "tpot":
        return each.tpot_ms, each.row.tpot_ms
    return each.ttft_ms, each.row.ttft_ms


def _log_error(each: Checked, target: str) -> float | None:
    predicted, measured = predicted_ms(each, target)
    return None if measured is None else math.log(measured / predicted)


def _quantile(ordered: Sequence[float], share: float) -> float:
    position = share * (len(ordered) - 1)
    lower = int(position)
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (position - lower) * (ordered[upper] - ordered[lower])


def calibrate(
    rows: Sequence[Row],
    *,
    source: str = "",
    seed: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """A calibration with its bands of error, which cross-validation finds.

    Args:
        rows: that were measured.
        source: of them, for people.
        seed: of trees and folds.
        progress: told what is being done.
    """
    checked = cross_validate(rows, by="configuration", folds=FOLDS, seed=seed, progress=progress)
    new = cross_validate(rows, by="architecture", folds=GROUP_FOLDS, seed=seed, progress=progress)
    few = cross_validate(
        rows, by="architecture", folds=GROUP_FOLDS, seed=seed, kept_rows=3, progress=progress
    )
    progress("all rows")
    calibration = fit(rows, source=source, seed=seed)
    return msgspec.structs.replace(calibration, bands=bands_of([*checked, *new, *few]))


def errors_of(
    checked: Sequence[Checked], target: str, bands: Callable[[Checked], Bands], unread: int = 0
) -> Errors:
    """Errors of predictions for one target.

    Args:
        checked: predictions.
        target: ``tpot`` or ``ttft``.
        bands: that hold for a prediction.
        unread: rows that could not be predicted.
    """
    absolute, logs, inside = [1.0] * unread, [], 0
    for each in checked:
        predicted, measured = predicted_ms(each, target)
        if measured is None:
            continue
        absolute.append(abs(predicted / measured - 1))
        log = math.log(measured / predicted)
        logs.append(log)
        key = f"{target}/{each.row.case.mode}/{each.nearness}"
        low, high = bands(each).get(key, BAND_DEFAULT)
        inside += low <= log <= high
    absolute.sort()
    if not absolute:
        return Errors(rows=0, median_ape=None, mape=None, p90_ape=None, bias=None, coverage80=None)
    return Errors(
        rows=len(absolute),
        median_ape=_quantile(absolute, 0.5),
        mape=sum(absolute) / len(absolute),
        p90_ape=_quantile(absolute, 0.9),
        bias=math.expm1(-sum(logs) / len(logs)) if logs else None,
        coverage80=inside / len(absolute),
    )


def bands_by_fold(checked: Sequence[Checked], bands: Bands | None) -> dict[int, Bands]:
    """Intervals that hold for each fold's predictions.

    Args:
        checked: predictions of all folds.
        bands: of the calibration; None makes a fold's from the errors of all other folds.
    """
    found: dict[int, Bands] = {}
    for fold in {each.fold for each in checked}:
        others = [each for each in checked if each.fold != fold]
        found[fold] = bands_of(others) if bands is None else bands
    return found


def report(
    checked: Sequence[Checked],
    unread: Sequence[Unread],
    *,
    how: str,
    calibration_rows: int,
    bands: Bands | None,
) -> Report:
    """Errors of all rows and of each kind.

    Args:
        checked: predictions.
        unread: rows without one.
        how: they were made.
        calibration_rows: that the calibration was fitted to.
        bands: of the calibration; None makes a fold's from the errors of all other folds.
    """
    per_fold = bands_by_fold(checked, bands)

    def bands_for(each: Checked) -> Bands:
        return per_fold[each.fold]

    groups = [
        GroupErrors(
            by=by,
            name=name,
            rows=len(members),
            tpot=errors_of(members, "tpot", bands_for),
            ttft=errors_of(members, "ttft", bands_for),
        )
        for (by, name), members in _by_kind(checked)
    ]
    substituted, substituted_left_off = _told(checked, "substituted")
    unmeasured, unmeasured_left_off = _told(checked, "unmeasured")
    return Report(
        how=how,
        calibration_rows=calibration_rows,
        rows=len(checked) + len(unread),
        tpot=errors_of(checked, "tpot", bands_for, len(unread)),
        ttft=errors_of(checked, "ttft", bands_for, len(unread)),
        groups=groups,
        hidden_speculation=_hidden_of(checked),
        unpredicted=list(unread[:LISTED_MAX]),
        unpredicted_left_off=max(len(unread) - LISTED_MAX, 0),
        substituted=substituted,
        substituted_left_off=substituted_left_off,
        unmeasured=unmeasured,
        unmeasured_left_off=unmeasured_left_off,
    )


def _by_kind(checked: Sequence[Checked]) -> list[tuple[tuple[str, str], list[Checked]]]:
    """Predictions by what they have in common, and its name."""
    kinds: dict[tuple[str, str], list[Checked]] = defaultdict(list)
    for each in checked:
        row = each.row
        kinds["system", row.system].append(each)
        kinds["engine", row.case.engine].append(each)
        kinds["model", row.model].append(each)
        kinds["mode", row.case.mode].append(each)
        kinds["group", _group_name(row)].append(each)
    return sorted(kinds.items(), key=lambda k: (KINDS.index(k[0][0]), k[0][1]))


def _told(checked: Sequence[Checked], field: str) -> tuple[list[Unread], int]:
    """What reading has to tell of rows that were predicted, and how many more there are."""
    told = [(each.row.id, getattr(each.row, field)) for each in checked]
    found = [Unread(id=name, why=why) for name, why in told if why]
    return found[:LISTED_MAX], max(len(found) - LISTED_MAX, 0)


HIDDEN_MIN: Final = 1.1
TWIN_RATIO: Final = 1.5


def _hidden_of(checked: Sequence[Checked]) -> list[Hidden]:
    members: dict[str, list[Checked]] = defaultdict(list)
    for each in checked:
        members[_group_name(each.row)].append(each)
    found = []
    for name, group in sorted(members.items()):
        faster = [each.hidden for each in group if each.hidden > HIDDEN_MIN]
        alike: dict[str, list[float]] = defaultdict(list)
        for each in group:
            if each.row.tpot_ms is not None:
                alike[configuration(each.row)].append(each.row.tpot_ms)
        twins = sum(max(times) / min(times) >= TWIN_RATIO for times in alike.values())
        if faster or twins:
            found.append(
                Hidden(
                    group=name,
                    rows=len(faster),
                    of=len(group),
                    tokens_per_step=max(faster, default=1.0),
                    twins=twins,
                )
            )
    return found
