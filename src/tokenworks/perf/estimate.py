"""Answers: TTFT and TPOT of a case, what that makes per GPU, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import mul
from typing import Final, NamedTuple

import msgspec

from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.calibration import (
    ROWS_FEW,
    SHARED_LEVELS,
    Calibration,
    Node,
    factors,
    group_key,
    grow,
    levels,
    likeness_of_load,
    likeness_without_load,
    nearness,
    nested,
    weigh,
)
from tokenworks.perf.case import Case, check_fits
from tokenworks.perf.passes import Pass, rates_of
from tokenworks.perf.speculative import tokens_per_step
from tokenworks.perf.terms import (
    DTYPE_AXIS,
    TPOT_TERMS,
    TTFT_TERMS,
    Terms,
    features,
    place,
    prepare,
    terms_of,
)

KNOTS_PER_OCTAVE: Final = 2
"""TPOT over the load is found at so many knots per doubling and is straight between them, in
logarithms; each knot is at least the one before, so more load is never faster for a user."""
CONCURRENCY_MAX: Final = 1e6
CURVES_MAX: Final = 4096
"""That an estimator keeps."""
LIKENESS_TRUSTED: Final = 0.6
"""Of the nearest measured row, from which on a group's own physics and residual speak alone; below,
trees over all groups have the rest of the say."""
POINTS_MAX: Final = 4096
"""That a curve keeps."""


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, with the interval that holds eight measurements in ten.

    Attributes:
        ttft_ms: to the first token.
        ttft_low_ms: lower end of its interval.
        ttft_high_ms: upper end.
        tpot_ms: per output token after it, as one user sees it.
        tpot_low_ms: lower end of its interval.
        tpot_high_ms: upper end.
        tokens_per_s_per_user: 1 / TPOT.
        tokens_per_s_per_gpu: of output, over all GPUs, while the load lasts.
        gpus: in all.
        batch: that runs on one decode worker; the rest waits.
        batch_max: for which there is memory on one decode worker.
        power_w: all in, of the GPUs; None where the catalogue has none.
        joule_per_token: of output.
        joule_per_token_bound: that the roofline allows.
        nearness: to measured rows: near, far, few or new.
        assumptions: that the answer rests on, for people.
    """

    ttft_ms: float
    ttft_low_ms: float
    ttft_high_ms: float
    tpot_ms: float
    tpot_low_ms: float
    tpot_high_ms: float
    tokens_per_s_per_user: float
    tokens_per_s_per_gpu: float
    gpus: int
    batch: float
    batch_max: float
    power_w: float | None
    joule_per_token: float | None
    joule_per_token_bound: float | None
    nearness: str
    assumptions: tuple[str, ...]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A place on a curve; logarithms of milliseconds.

    Attributes:
        tpot_log: of TPOT.
        ttft_log: of TTFT.
        floor_log: of the roofline's TPOT.
        nearest: likeness of the nearest measured row.
        batch: that runs at one worker.
        batch_max: that fits there.
    """

    tpot_log: float
    ttft_log: float
    floor_log: float
    nearest: float
    batch: float
    batch_max: float


class Forests(NamedTuple):
    """A calibration's trees, made quick to walk.

    Attributes:
        tpot: of time per output token.
        ttft: to the first token.
    """

    tpot: list[Node]
    ttft: list[Node]


def forests_of(calibration: Calibration) -> Forests:
    """The trees of a calibration."""
    return Forests(
        [nested(tree) for tree in calibration.tpot.trees],
        [nested(tree) for tree in calibration.ttft.trees],
    )


class Curve:
    """TTFT and TPOT of one case over its load."""

    def __init__(
        self, calibration: Calibration, case: Case, forests: Forests | None = None
    ) -> None:
        self._calibration = calibration
        self._forests = forests or forests_of(calibration)
        known = calibration.reference(case.device)
        self.reference = known.record.name
        self.measured = case.device.name in calibration.devices
        self._rates = rates_of(case.device)
        self.group = calibration.groups.get(group_key(case, self.reference))
        if case.version is None:
            dtype = place(case, 1.0)[DTYPE_AXIS]
            version, month = self.group.newest(dtype) if self.group else ("", None)
            case = msgspec.structs.replace(case, version=version, month=month)
        self.case = case
        self._ready = prepare(case, self._rates)
        # The same question of the measured device: what trees and residuals know is about that.
        self._known_case = msgspec.structs.replace(case, device=known.record)
        self._known_rates = known.rates
        self._known_ready = prepare(self._known_case, known.rates)
        of = levels(case, self.reference)
        self._tpot_factors = factors(calibration.tpot.factors, of, TPOT_TERMS)
        self._ttft_factors = factors(calibration.ttft.factors, of, TTFT_TERMS)
        shared = of[:SHARED_LEVELS]
        self._shared_factors = (
            factors(calibration.tpot.factors, shared, TPOT_TERMS),
            factors(calibration.ttft.factors, shared, TTFT_TERMS),
        )
        if self.group is not None:
            there = place(case, 1.0)
            self._fixed = likeness_without_load(self.group, there, case.version or "", case.month)
        self._assumed = self._assumptions()
        self._points: dict[float, Point] = {}
        self._knots: list[float] = []

    @property
    def speedup(self) -> float:
        """Tokens per step, over what drafting costs."""
        case = self.case
        return tokens_per_step(case.draft_tokens, case.acceptance) / (1 + case.draft_share)

    @property
    def step_factors(self) -> Pass:
        """What a decode step's nominal times are multiplied by."""
        return Pass(*self._tpot_factors[: len(Pass._fields)])

    def tpot_parts(self, concurrency: float) -> list[float]:
        """The terms of TPOT, calibrated: those of ``Pass``, then of prompts prefilled beside."""
        nominal = terms_of(self.case, self._rates, self._ready, concurrency).tpot
        return list(map(mul, self._tpot_factors, nominal))

    def prefill_share(self, concurrency: float) -> float:
        """Share of TPOT that prompts take which are prefilled beside; 0 where that is apart."""
        parts = self.tpot_parts(concurrency)
        return float(sum(parts[len(Pass._fields) :]) / sum(parts))

    @property
    def hidden(self) -> float:
        """Tokens per step that rows of the group show without saying so."""
        return self.group.hidden_tokens_per_step if self.group is not None else 1.0

    def bound_ms(self, concurrency: float) -> float:
        """The roofline's TPOT, without speculative decoding."""
        return terms_of(self.case, self._rates, self._ready, concurrency).tpot_bound

    def at(self, concurrency: float) -> Point:
        """The curve at a load; where a row doesn't say how many workers share it, the raw point."""
        found = self._raw(concurrency)
        if self.case.decode_workers is None:
            return found
        position = math.log2(max(concurrency, 1.0)) * KNOTS_PER_OCTAVE
        lower = int(position)
        while len(self._knots) < lower + 2:
            knot = self._raw(2 ** (len(self._knots) / KNOTS_PER_OCTAVE)).tpot_log
            self._knots.append(max(knot, self._knots[-1]) if self._knots else knot)
        one, two = self._knots[lower], self._knots[lower + 1]
        between = one + (position - lower) * (two - one)
        return msgspec.structs.replace(found, tpot_log=max(between, found.floor_log))

    def _raw(self, concurrency: float) -> Point:
        """Without the knots' order; each load is worked out once."""
        found = self._points.get(concurrency)
        if found is None:
            if len(self._points) >= POINTS_MAX:
                self._points.clear()
            found = self._points[concurrency] = self._work_out(concurrency)
        return found

    def _work_out(self, concurrency: float) -> Point:
        terms = terms_of(self.case, self._rates, self._ready, concurrency)
        tpot = math.log(sum(map(mul, self._tpot_factors, terms.tpot)))
        ttft = math.log(sum(map(mul, self._ttft_factors, terms.ttft)))
        group, nearest, trust = self.group, 0.0, 0.0
        if group is not None:
            load = likeness_of_load(group, math.log2(max(concurrency, 0.25)))
            nearest = max(map(mul, self._fixed, load))
            few = group.rows < ROWS_FEW
            trust = 0.0 if few else min(nearest / LIKENESS_TRUSTED, 1.0)
            heed = 1.0 if few else trust
            tpot += heed * weigh(group.tpot, self._fixed, load)
            ttft += heed * weigh(group.ttft, self._fixed, load)
        if trust < 1:
            more_tpot, more_ttft = self._trees(concurrency, terms)
            tpot, ttft = tpot + (1 - trust) * more_tpot, ttft + (1 - trust) * more_ttft
        gain = math.log(self.speedup)
        floor = math.log(terms.tpot_bound / self.hidden) - gain
        return Point(
            tpot_log=max(tpot - gain, floor),
            ttft_log=max(ttft, math.log(terms.ttft_bound)),
            floor_log=floor,
            nearest=nearest,
            batch=terms.batch,
            batch_max=terms.batch_max,
        )

    def _trees(self, concurrency: float, terms: Terms) -> tuple[float, float]:
        """How far the trees differ from physics, on the measured device."""
        calibration = self._calibration
        case = msgspec.structs.replace(self._known_case, concurrency=concurrency)
        if self._rates != self._known_rates:
            terms = terms_of(case, self._known_rates, self._known_ready, concurrency)
        totals = [
            list(map(mul, self._tpot_factors, terms.tpot)),
            list(map(mul, self._ttft_factors, terms.ttft)),
        ]
        parts = [
            list(map(mul, self._shared_factors[0], terms.tpot)),
            list(map(mul, self._shared_factors[1], terms.ttft)),
        ]
        seen = features(case, terms, place(case, concurrency), parts)
        tpot = grow(self._forests.tpot, calibration.tpot.mean, seen)
        ttft = grow(self._forests.ttft, calibration.ttft.mean, seen)
        return tpot - math.log(sum(totals[0])), ttft - math.log(sum(totals[1]))

    def predict(self, concurrency: float) -> Prediction:
        """The answer at a load.

        Raises:
            ConfigInvalid: the load is not between 1 and ``CONCURRENCY_MAX``.
        """
        if not 0 < concurrency <= CONCURRENCY_MAX:
            raise ConfigInvalid(
                f"{concurrency!r} requests at one time is no load.",
                hint=f"Take one between 1 and {CONCURRENCY_MAX:.0f}.",
            )
        case, point = self.case, self.at(concurrency)
        tpot, ttft = math.exp(point.tpot_log), math.exp(point.ttft_log)
        rows = self.group.rows if self.group is not None else 0
        near = nearness(rows, point.nearest, measured_device=self.measured)
        bands = self._calibration.bands
        tpot_low, tpot_high = bands[f"tpot/{case.mode}/{near}"]
        ttft_low, ttft_high = bands[f"ttft/{case.mode}/{near}"]
        workers = case.decode_workers or 1
        running = min(max(concurrency, 1.0), point.batch * workers)
        per_gpu = running / tpot * 1e3 / case.gpus
        power = case.device.all_in_power_w
        floor = math.exp(point.floor_log)
        return Prediction(
            ttft_ms=ttft,
            ttft_low_ms=ttft * math.exp(ttft_low),
            ttft_high_ms=ttft * math.exp(ttft_high),
            tpot_ms=tpot,
            tpot_low_ms=tpot * math.exp(tpot_low),
            tpot_high_ms=tpot * math.exp(tpot_high),
            tokens_per_s_per_user=1e3 / tpot,
            tokens_per_s_per_gpu=per_gpu,
            gpus=case.gpus,
            batch=point.batch,
            batch_max=point.batch_max,
            power_w=None if power is None else power * case.gpus,
            joule_per_token=None if power is None else power / per_gpu,
            joule_per_token_bound=(
                None if power is None else power * case.gpus * floor / running / 1e3
            ),
            nearness=near,
            assumptions=self._assumed,
        )

    def _assumptions(self) -> tuple[str, ...]:
        case, found = self.case, []
        if self.group is None:
            found.append("no measured rows of this model, engine, device and mode: shared factors")
        elif self.group.rows < ROWS_FEW:
            found.append(f"only {self.group.rows} measured rows of this group")
        if not self.measured:
            found.append(f"{case.device.name} was never measured: factors of {self.reference}")
        if self.hidden > 1:
            found.append(
                "rows of this group beat the roofline: up to "
                f"{self.hidden:.1f} tokens per step of speculative decoding that they don't declare"
            )
        if case.decode_workers is None:
            found.append("how many workers share the load is unknown")
        domain = self._rates.domain
        if case.decode.stage > domain > 0:
            found.append(
                f"a worker spans {-(-case.decode.stage // domain)} scale-up domains of {domain}"
            )
        if case.dtype == "fp4" and not case.device.fp4_flop_per_s:
            found.append(f"{case.device.name} has no FP4 arithmetic: weights are expanded")
        found += [f"{case.device.name}.{field} is assumed" for field in case.device.assumed()]
        return tuple(found)


class Estimator:
    """Answers many questions, and keeps the curves it has found."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._forests = forests_of(calibration)
        self._curves: dict[bytes, Curve] = {}

    def curve(self, case: Case) -> Curve:
        """The curve of a case over its load; its own load does not matter.

        Raises:
            ConfigInvalid: the catalogue knows too little of the device.
        """
        key = _key(case)
        found = self._curves.get(key)
        if found is None:
            if len(self._curves) >= CURVES_MAX:
                self._curves.clear()
            found = self._curves[key] = Curve(self._calibration, case, self._forests)
        return found

    def predict(self, case: Case, *, must_fit: bool = True) -> Prediction:
        """One answer.

        Raises:
            ConfigInvalid: the weights don't fit, or a figure is out of range.
        """
        if must_fit:
            check_fits(case)
        return self.curve(case).predict(case.concurrency)

    def sweep(self, case: Case, concurrencies: Iterable[float]) -> list[Prediction]:
        """One case under many loads, with one check that it fits.

        Raises:
            ConfigInvalid: as ``predict``.
        """
        check_fits(case)
        curve = self.curve(case)
        return [curve.predict(concurrency) for concurrency in concurrencies]


def _key(case: Case) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.replace(case, concurrency=0.0))
