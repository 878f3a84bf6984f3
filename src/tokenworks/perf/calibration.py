"""What fitting leaves behind, factors and residuals, and what they make of nominal times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import sub, truediv
from typing import Final

import msgspec

from tokenworks.catalogue.records import Accelerator
from tokenworks.perf.architecture import Shape
from tokenworks.perf.case import Case
from tokenworks.perf.passes import Rates
from tokenworks.perf.terms import DTYPE_AXIS, PLACE_SCALES

ROWS_FEW: Final = 12
"""Below this, a group counts as little measured."""
SHARED_REACH: Final = 2.0
"""How many times as far likeness reaches between groups as within one."""
VERSION_STEP: Final = 1.0
"""How far two versions of an engine lie apart."""
MONTHS: Final = 4.0
"""After which likeness falls to 1/e."""
MONTHS_UNKNOWN: Final = 0.3
"""How far an undated row lies from a dated one."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one model on one engine, device and mode.

    Attributes:
        rows: how many were measured.
        places: distinct ones.
        versions: of the engine, at each place.
        months: when, or None.
        tpot: weights of the places for TPOT's residual.
        ttft: likewise, for TTFT's.
        hidden_tokens_per_step: that some rows show; 1 where none beats the roofline.
    """

    rows: int
    places: list[list[float]]
    versions: list[str]
    months: list[float | None]
    tpot: list[float]
    ttft: list[float]
    hidden_tokens_per_step: float

    def newest(self, dtype: float) -> tuple[str, float | None]:
        """Version and month of the newest rows, of those with a dtype where there are any."""
        found = list(zip(self.places, self.versions, self.months, strict=True))
        alike = [each for each in found if each[0][DTYPE_AXIS] == dtype] or found
        _, version, month = max(alike, key=lambda each: (each[2] or -1.0, each[1]))
        return version, month


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device that was measured, as it was described when factors were fitted.

    Attributes:
        record: of the catalogue.
        rates: nominal.
    """

    record: Accelerator
    rates: Rates


class Spot(msgspec.Struct, frozen=True, array_like=True):
    """Weights of rows that were measured at one place under one load.

    Attributes:
        site: which of the calibration's.
        load: likewise.
        tpot: for TPOT's residual.
        ttft: for TTFT's.
    """

    site: int
    load: int
    tpot: float
    ttft: float


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """What fitting found for TPOT, or for TTFT.

    Attributes:
        factors: logarithms of what terms are multiplied by: of all, and of aggregated systems.
        levels: by level, what it adds to the logarithm, and what for each term by its share.
    """

    factors: dict[str, list[float]]
    levels: dict[str, list[float]]


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that fitting leaves.

    Attributes:
        rows: that it was fitted to.
        source: of them.
        seed: of the folds.
        tpot: what was learned of time per output token.
        ttft: likewise, to the first token.
        groups: by ``group_key``.
        sites: distinct places of all groups, without their load.
        loads: distinct ones, log2.
        shared: weights of them, by ``kinships``.
        bands: lower and upper end of log(measured / predicted) of eight rows in ten, by
            ``target/mode/nearness``.
        devices: that were measured, by name.
    """

    rows: int
    source: str
    seed: int
    tpot: Learned
    ttft: Learned
    groups: dict[str, Group]
    sites: list[list[float]]
    loads: list[float]
    shared: dict[str, list[Spot]]
    bands: dict[str, tuple[float, float]]
    devices: dict[str, Device]

    def reference(self, device: Accelerator) -> Device:
        """The measured device that is most like one: itself, or the nearest in arithmetic.

        Memory bandwidth does not choose, so that more of it never makes anything slower.
        """
        known = self.devices.get(device.name)
        if known is not None:
            return known
        return min(self.devices.values(), key=lambda d: (_apart(d.record, device), d.record.name))


def _apart(one: Accelerator, other: Accelerator) -> float:
    speed = math.log((one.fp8_flop_per_s or 1.0) / (other.fp8_flop_per_s or 1.0))
    domain = math.log((one.scaleup_domain or 1) / (other.scaleup_domain or 1))
    four = math.log((one.fp4_flop_per_s or 1e15) / (other.fp4_flop_per_s or 1e15))
    return abs(speed) + abs(domain) + abs(four)


def group_key(case: Case, device: str) -> str:
    """What is calibrated as one: model, engine, device and mode."""
    return f"{case.shape.key}|{case.engine}|{device}|{case.mode}"


LEVELS: Final = (
    "all",
    "mode",
    "engine",
    "engine mode",
    "generation mode",
    "engine device",
    "engine device mode",
    "dtype",
    "model",
    "model engine",
    "model device",
    "class",
    "class engine",
    "workers mode",
    "group",
)
"""The kinds of ``levels``, in their order."""


def levels(case: Case, device: Accelerator) -> tuple[str, ...]:
    """What a case has in common with others, from all of them to its group alone.

    A level that was never measured adds nothing, so what is new is predicted by what is shared.

    Args:
        case: the question.
        device: the measured one whose levels count.
    """
    engine, mode, key, name = case.engine, case.mode, case.shape.key, device.name
    generation = "fp4" if device.fp4_flop_per_s else "fp8"
    kind = model_class(case.shape)
    known = "unknown" if case.decode_workers is None else "known"
    return (
        "all",
        f"mode {mode}",
        f"engine {engine}",
        f"engine {engine} mode {mode}",
        f"generation {generation} mode {mode}",
        f"engine {engine} device {name}",
        f"engine {engine} device {name} mode {mode}",
        f"dtype {case.dtype}",
        f"model {key}",
        f"model {key} engine {engine}",
        f"model {key} device {name}",
        f"class {kind}",
        f"class {kind} engine {engine}",
        f"workers {known} mode {mode}",
        f"group {group_key(case, name)}",
    )


KINSHIPS: Final = ("all", "class engine", "model mode")
"""The kinds of ``kinships``, in their order."""


def kinships(case: Case) -> tuple[str, ...]:
    """Within which rows of other groups tell of a case, by how near their places are."""
    return (
        "all",
        f"class {model_class(case.shape)} engine {case.engine}",
        f"model {case.shape.key} mode {case.mode}",
    )


def model_class(shape: Shape) -> str:
    """Models of one kind of attention and of feed-forward blocks.

    >>> from tokenworks.perf.examples import DEEPSEEK, LLAMA
    >>> model_class(DEEPSEEK), model_class(LLAMA)
    ('mla moe', 'gqa dense')
    """
    attention = "mla" if shape.cache_heads == 1 else "gqa"
    return f"{attention} {'moe' if shape.experts else 'dense'}"


def sums(table: dict[str, list[float]], of: Sequence[str], count: int) -> list[float]:
    """What levels add up to, number by number; those that are missing add nothing.

    >>> sums({"all": [0.0, 1.0], "mode agg": [0.5, -1.0]}, ["all", "mode agg", "new"], 2)
    [0.5, 0.0]
    """
    total = [0.0] * count
    for level in of:
        found = table.get(level)
        if found is not None:
            total = [a + b for a, b in zip(total, found, strict=True)]
    return total


def base_levels(mode: str) -> tuple[str, ...]:
    """The levels whose factors multiply nominal times, before anything else is known."""
    return ("all", "agg") if mode == "agg" else ("all",)


def likeness_without_load(
    group: Group, place: Sequence[float], version: str, month: float | None
) -> list[float]:
    """How alike a case and each place of its group are, load left out, from 0 to 1."""
    found = []
    for there, other, when in zip(group.places, group.versions, group.months, strict=True):
        far = apart(there[1:], place[1:], PLACE_SCALES[1:])
        if other != version:
            far += VERSION_STEP
        if when is not None and month is not None:
            far += abs(when - month) / MONTHS
        elif when is not month:
            far += MONTHS_UNKNOWN
        found.append(math.exp(-far))
    return found


def apart(one: Sequence[float], other: Sequence[float], scales: Sequence[float]) -> float:
    """How far two places are apart: the sum over axes, each in units of its scale.

    >>> apart([1.0, 5.0], [3.0, 4.0], [2.0, 4.0])
    1.25
    """
    far: float = sum(map(truediv, map(abs, map(sub, one, other)), scales))
    return far


def load_likeness(load_log2: float, loads: Sequence[float], reach: float = 1.0) -> list[float]:
    """The part of the likeness that the load makes: see ``PLACE_SCALES``.

    >>> load_likeness(3.0, [3.0, 7.5])[0], round(load_likeness(3.0, [3.0, 7.5])[1], 3)
    (1.0, 0.368)
    """
    scale = PLACE_SCALES[0] * reach
    return [math.exp(-abs(there - load_log2) / scale) for there in loads]


def nearness(rows: int, nearest: float, *, measured_device: bool) -> str:
    """How well a case is surrounded by measured rows: what its error bar depends on."""
    if rows == 0 or not measured_device:
        return "new"
    if rows < ROWS_FEW:
        return "few"
    return "near" if nearest > 0.6 else "far"
