"""Fitted factors, residuals and trees, and what they make of nominal times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul
from typing import Final, TypeAlias

import msgspec

from tokenworks.catalogue.records import Accelerator
from tokenworks.perf.case import Case
from tokenworks.perf.passes import Rates
from tokenworks.perf.terms import DTYPE_AXIS, PLACE_SCALES

ROWS_FEW: Final = 12
"""Below this, a group is too small for its own physics: trees over all groups speak first."""
VARIANCE: Final = 0.15
"""Of residuals' logarithms before anything near was measured."""
GROUP_LIKENESS: Final = 0.5
"""That all rows of a group have beside what nearness gives them: a group is off as a whole."""
NOISE: Final = 0.004
"""Of the logarithm between repeats of one run."""
VERSION_STEP: Final = 1.0
"""How far two versions of an engine lie apart."""
MONTHS: Final = 4.0
"""After which likeness falls to 1/e."""
MONTHS_UNKNOWN: Final = 0.3
"""How far an undated row lies from a dated one."""


class Tree(msgspec.Struct, frozen=True, array_like=True):
    """A regression tree in preorder; a node's left child follows it.

    Attributes:
        feature: that a node asks about; negative at a leaf.
        value: the threshold, or what a leaf adds.
        right: where the right child is.
    """

    feature: list[int]
    value: list[float]
    right: list[int]


Node: TypeAlias = "float | tuple[int, float, Node, Node]"
"""A leaf's answer, or a feature, a threshold, and what follows if it is not or is exceeded."""


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


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """What fitting found for TPOT, or for TTFT.

    Attributes:
        factors: logarithms of them, by level; those of a case's levels add up.
        trees: for groups with few rows.
        mean: that the trees start from.
    """

    factors: dict[str, list[float]]
    trees: list[Tree]
    mean: float


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that fitting leaves.

    Attributes:
        rows: that it was fitted to.
        source: of them.
        seed: of the trees and folds.
        tpot: what was learned of time per output token.
        ttft: likewise, to the first token.
        groups: by ``group_key``.
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


def levels(case: Case, device: str) -> tuple[str, ...]:
    """The levels whose factors add up for a case: shared by all, by engine, by device, and so on.

    A level that was never measured adds nothing, so what is new is predicted by what is shared.
    """
    engine, key = case.engine, case.shape.key
    return (
        "all",
        f"mode {case.mode}",
        f"engine {engine}",
        f"device {device}",
        f"engine {engine} device {device}",
        f"engine {engine} device {device} mode {case.mode}",
        f"dtype {case.dtype}",
        f"engine {engine} dtype {case.dtype}",
        f"model {key}",
        f"model {key} engine {engine}",
        f"group {group_key(case, device)}",
    )


SHARED_LEVELS: Final = 8
"""So many of a case's first levels say nothing of its model: what trees look at, which have to
answer for models that were never measured, is made of these alone."""


def factors(table: dict[str, list[float]], of: Sequence[str], count: int) -> list[float]:
    """What each term is multiplied by.

    >>> factors({"all": [0.0, 1.0], "mode agg": [0.0, -1.0]}, ["all", "mode agg", "new"], 2)
    [1.0, 1.0]
    """
    sums = [0.0] * count
    for level in of:
        found = table.get(level)
        if found is not None:
            sums = [a + b for a, b in zip(sums, found, strict=True)]
    return [math.exp(value) for value in sums]


def likeness_without_load(
    group: Group, place: Sequence[float], version: str, month: float | None
) -> list[float]:
    """How alike a case and each place of its group are, load left out, from 0 to 1."""
    scales = PLACE_SCALES[1:]
    found = []
    for there, other, when in zip(group.places, group.versions, group.months, strict=True):
        far = sum(
            abs(a - b) / scale for a, b, scale in zip(there[1:], place[1:], scales, strict=True)
        )
        if other != version:
            far += VERSION_STEP
        if when is not None and month is not None:
            far += abs(when - month) / MONTHS
        elif when is not month:
            far += MONTHS_UNKNOWN
        found.append(math.exp(-far))
    return found


def likeness_of_load(group: Group, load_log2: float) -> list[float]:
    """The part of the likeness that the load makes: see ``PLACE_SCALES``."""
    scale = PLACE_SCALES[0]
    return [math.exp(-abs(there[0] - load_log2) / scale) for there in group.places]


def weigh(weights: Sequence[float], fixed: Sequence[float], load: Sequence[float]) -> float:
    """A kriged residual: each place's weight by how alike it is.

    Source: simple kriging with the exponential covariance (Rasmussen and Williams, Gaussian
    Processes for Machine Learning, 2006, sections 2.2 and 4.2).

    >>> weigh([0.5, 1.0], [1.0, 0.5], [1.0, 0.5])  # 0.75, and 0.5 x (0.5 + 1)
    1.5
    """
    total: float = sum(map(mul, map(mul, weights, fixed), load))
    return total + GROUP_LIKENESS * sum(weights)


def nested(tree: Tree, node: int = 0) -> Node:
    """A tree as tuples in tuples, which are quick to walk.

    >>> nested(Tree([0, -1, -1], [1.0, -0.5, 0.5], [2, 0, 0]))
    (0, 1.0, -0.5, 0.5)
    """
    if tree.feature[node] < 0:
        return tree.value[node]
    left, right = nested(tree, node + 1), nested(tree, tree.right[node])
    return tree.feature[node], tree.value[node], left, right


def grow(trees: Sequence[Node], mean: float, values: Sequence[float]) -> float:
    """What a forest of boosted trees says.

    Source: gradient boosting (Friedman, Annals of Statistics 29(5), 2001).

    >>> grow([(0, 1.0, -0.5, 0.5)], 10.0, [2.0])
    10.5
    """
    total = mean
    for tree in trees:
        node = tree
        while isinstance(node, tuple):
            feature, threshold, left, right = node
            node = right if values[feature] > threshold else left
        total += node
    return total


def nearness(rows: int, nearest: float, *, measured_device: bool) -> str:
    """How well a case is surrounded by measured rows: what its error bar depends on."""
    if rows == 0 or not measured_device:
        return "new"
    if rows < ROWS_FEW:
        return "few"
    return "near" if nearest > 0.6 else "far"
