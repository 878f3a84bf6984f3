"""Answers: TTFT and TPOT of a case, what that makes per GPU, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import mul
from typing import Final, NamedTuple

import msgspec

from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.calibration import (
    ROWS_FEW,
    SHARED_REACH,
    Calibration,
    Group,
    Learned,
    apart,
    base_levels,
    group_key,
    kinships,
    levels,
    likeness_without_load,
    load_likeness,
    nearness,
    sums,
)
from tokenworks.perf.case import Case, check_fits
from tokenworks.perf.passes import Pass, rates_of
from tokenworks.perf.speculative import tokens_per_step
from tokenworks.perf.terms import (
    DTYPE_AXIS,
    PLACE_SCALES,
    TPOT_TERMS,
    TTFT_TERMS,
    Prepared,
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
LENGTH_AXES: Final = 2
"""The first of a place's axes after its load: of prompt and answer."""
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


class Merged(NamedTuple):
    """Weights of all kinships under one load.

    Attributes:
        load: which of the calibration's.
        sites: likewise.
        tpot: of each site.
        ttft: likewise.
    """

    load: int
    sites: list[int]
    tpot: list[float]
    ttft: list[float]


class Neighbours:
    """What rows of other groups tell of a case, by how near its place is to theirs.

    Source: a Gaussian process's mean is a sum over rows of weight times covariance (Rasmussen and
    Williams, Gaussian Processes for Machine Learning, 2006, section 2.2); the exponential
    covariance is a product over axes, so that the load's part is left for last.
    """

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._merged: dict[tuple[str, ...], list[Merged]] = {}
        self._loads: dict[float, list[float]] = {}
        # Sites of one length, or of one layout, are as far from a place in that.
        self._lengths = {tuple(site[:LENGTH_AXES]): 0 for site in calibration.sites}
        self._layouts = {tuple(site[LENGTH_AXES:]): 0 for site in calibration.sites}
        for numbered in (self._lengths, self._layouts):
            numbered.update({each: number for number, each in enumerate(numbered)})
        self._length_of = [self._lengths[tuple(site[:LENGTH_AXES])] for site in calibration.sites]
        self._layout_of = [self._layouts[tuple(site[LENGTH_AXES:])] for site in calibration.sites]
        self._layouts_alike: dict[tuple[float, ...], list[float]] = {}

    def by_load(self, kins: tuple[str, ...], place_of: Sequence[float]) -> list[list[float]]:
        """Weights of TPOT, and of TTFT, under each of the calibration's loads."""
        merged = self._merged.get(kins)
        if merged is None:
            merged = self._merged[kins] = self._merge(kins)
        alike = self._alike(place_of[1:])
        tpot, ttft = [0.0] * len(self._calibration.loads), [0.0] * len(self._calibration.loads)
        for load, sites, for_tpot, for_ttft in merged:
            here = [alike[site] for site in sites]
            tpot[load] = sum(map(mul, for_tpot, here))
            ttft[load] = sum(map(mul, for_ttft, here))
        return [tpot, ttft]

    def _alike(self, site: Sequence[float]) -> list[float]:
        """How alike a place and each site are."""
        scales = PLACE_SCALES[1 : 1 + LENGTH_AXES], PLACE_SCALES[1 + LENGTH_AXES :]
        length, layout = tuple(site[:LENGTH_AXES]), tuple(site[LENGTH_AXES:])
        layouts = self._layouts_alike.get(layout)
        if layouts is None:
            if len(self._layouts_alike) >= POINTS_MAX:
                self._layouts_alike.clear()
            layouts = [
                math.exp(-apart(each, layout, scales[1]) / SHARED_REACH) for each in self._layouts
            ]
            self._layouts_alike[layout] = layouts
        lengths = [
            math.exp(-apart(each, length, scales[0]) / SHARED_REACH) for each in self._lengths
        ]
        return [
            lengths[one] * layouts[other]
            for one, other in zip(self._length_of, self._layout_of, strict=True)
        ]

    def _merge(self, kins: tuple[str, ...]) -> list[Merged]:
        found: dict[int, dict[int, tuple[float, float]]] = {}
        for kin in kins:
            for spot in self._calibration.shared.get(kin, ()):
                there = found.setdefault(spot.load, {})
                tpot, ttft = there.get(spot.site, (0.0, 0.0))
                there[spot.site] = tpot + spot.tpot, ttft + spot.ttft
        return [
            Merged(
                load,
                list(there),
                [tpot for tpot, _ in there.values()],
                [ttft for _, ttft in there.values()],
            )
            for load, there in found.items()
        ]

    def load(self, load_log2: float) -> list[float]:
        """How alike a load is to each of the calibration's."""
        found = self._loads.get(load_log2)
        if found is None:
            if len(self._loads) >= POINTS_MAX:
                self._loads.clear()
            loads = self._calibration.loads
            found = self._loads[load_log2] = load_likeness(load_log2, loads, SHARED_REACH)
        return found


class Within:
    """What rows of a case's own group tell of it."""

    def __init__(self, group: Group, case: Case) -> None:
        self.group = group
        fixed = likeness_without_load(group, place(case, 1.0), case.version or "", case.month)
        at: dict[float, list[float]] = {}
        for alike, there, tpot, ttft in zip(
            fixed, group.places, group.tpot, group.ttft, strict=True
        ):
            found = at.setdefault(there[0], [0.0, 0.0, 0.0])
            found[0] += alike * tpot
            found[1] += alike * ttft
            found[2] = max(found[2], alike)
        self._loads = list(at)
        self._tpot = [found[0] for found in at.values()]
        self._ttft = [found[1] for found in at.values()]
        self._nearest = [found[2] for found in at.values()]

    def at(self, load_log2: float) -> tuple[float, float, float]:
        """Residuals of TPOT and TTFT, and the likeness of the nearest row."""
        alike = load_likeness(load_log2, self._loads)
        tpot: float = sum(map(mul, self._tpot, alike))
        ttft: float = sum(map(mul, self._ttft, alike))
        return tpot, ttft, max(map(mul, self._nearest, alike))


class Scaled:
    """What calibration makes of the nominal terms of TPOT, or of TTFT.

    Attributes:
        factors: what each term is multiplied by.
    """

    def __init__(self, learned: Learned, case: Case, of: Sequence[str], count: int) -> None:
        logs = sums(learned.factors, base_levels(case.mode), count)
        self.factors = list(map(math.exp, logs))
        self._whole, *self._parts = sums(learned.levels, of, 1 + count)

    def total_log(self, terms: Sequence[float]) -> float:
        """Of a sum of factored terms."""
        return math.log(sum(map(mul, self.factors, terms)))

    def effect(self, terms: Sequence[float]) -> float:
        """What levels add to the logarithm, each term's by its share in the time."""
        parts: list[float] = list(map(mul, self.factors, terms))
        effect: float = sum(map(mul, self._parts, parts))
        return self._whole + effect / sum(parts)


class Curve:
    """TTFT and TPOT of one case over its load."""

    def __init__(
        self, calibration: Calibration, case: Case, neighbours: Neighbours | None = None
    ) -> None:
        self._calibration = calibration
        self._neighbours = neighbours or Neighbours(calibration)
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
        # The same question of the measured device: what residuals know is about that.
        self._known_case = msgspec.structs.replace(case, device=known.record)
        self._known_rates = known.rates
        self._known_ready: Prepared | None = None
        if self._rates != known.rates:
            self._known_ready = prepare(self._known_case, known.rates)
        of = levels(case, known.record)
        self._tpot = Scaled(calibration.tpot, case, of, TPOT_TERMS)
        self._ttft = Scaled(calibration.ttft, case, of, TTFT_TERMS)
        self._near = self._neighbours.by_load(kinships(case), place(case, 1.0))
        self._within = Within(self.group, case) if self.group is not None else None
        self._assumed = self._assumptions()
        self._points: dict[float, Point] = {}
        self._knots: list[float] = []

    @property
    def speedup(self) -> float:
        """Tokens per step, over what drafting costs."""
        case = self.case
        return tokens_per_step(case.draft_tokens, case.acceptance) / (1 + case.draft_share)

    def tpot_parts(self, concurrency: float) -> list[float]:
        """The terms of TPOT, calibrated: those of ``Pass``, then of prompts prefilled beside."""
        nominal = terms_of(self.case, self._rates, self._ready, concurrency).tpot
        return list(map(mul, self._tpot.factors, nominal))

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
        """The curve at a load; where a row doesn't say how many workers share it, the raw point.

        TTFT is not put in order: under more load it was measured shorter in one pair of
        neighbouring loads out of thirteen, and an order that rows break makes answers worse.
        """
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
        known = terms
        if self._known_ready is not None:
            known = terms_of(self._known_case, self._known_rates, self._known_ready, concurrency)
        load_log2 = math.log2(max(concurrency, 0.25))
        alike = self._neighbours.load(load_log2)
        tpot = self._tpot.total_log(terms.tpot) + self._tpot.effect(known.tpot)
        ttft = self._ttft.total_log(terms.ttft) + self._ttft.effect(known.ttft)
        tpot += sum(map(mul, self._near[0], alike))
        ttft += sum(map(mul, self._near[1], alike))
        nearest = 0.0
        if self._within is not None:
            more_tpot, more_ttft, nearest = self._within.at(load_log2)
            tpot, ttft = tpot + more_tpot, ttft + more_ttft
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
        self._neighbours = Neighbours(calibration)
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
            found = self._curves[key] = Curve(self._calibration, case, self._neighbours)
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
