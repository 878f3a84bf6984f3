"""Growing small regression trees by gradient boosting, over binned features.

Source: Friedman, Annals of Statistics 29(5), 2001; histograms as in LightGBM (Ke et al., 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from tokenworks.perf.calibration import Tree

LEAST: Final = -1e300
"""A threshold that every number exceeds: it parts what is known from what is not."""


class Boosting(msgspec.Struct, frozen=True, kw_only=True):
    """How trees are grown.

    Attributes:
        trees: how many.
        depth: of each, at most.
        rate: that each tree's answer is scaled by.
        leaf_rows: that a leaf has at least.
        ridge: added to a leaf's count of rows.
        row_share: of rows that each tree sees.
        column_share: of features that each tree sees.
        bins: of each feature.
    """

    trees: int = 150
    depth: int = 5
    rate: float = 0.08
    leaf_rows: int = 15
    ridge: float = 3.0
    row_share: float = 0.8
    column_share: float = 0.3
    bins: int = 40


def boost(
    features: Sequence[Sequence[float]], wanted: Sequence[float], seed: int, how: Boosting
) -> list[Tree]:
    """Trees whose sum approaches what is wanted, least squares.

    Args:
        features: a list of numbers for each row; NaN where one is not known.
        wanted: by row.
        seed: of the rows and features that each tree sees.
        how: they are grown.
    """
    import numpy as np

    values: Any = np.asarray(features, float)
    goal = np.asarray(wanted, float)
    edges = [_edges(values[:, column], how.bins) for column in range(values.shape[1])]
    binned = np.zeros(values.shape, np.int64)
    for column, edge in enumerate(edges):
        known = values[:, column]
        places = np.searchsorted(edge, known, side="left") + 1
        binned[:, column] = np.where(np.isnan(known), 0, places)
    dice = np.random.default_rng(seed)
    found, said = [], np.zeros(len(goal))
    for _ in range(how.trees):
        rows = np.flatnonzero(dice.random(len(goal)) < how.row_share)
        size = max(1, int(binned.shape[1] * how.column_share))
        columns = np.sort(dice.choice(binned.shape[1], size, replace=False))
        tree = Tree([], [], [])
        _grow(tree, binned, goal - said, rows, columns, edges, how, how.depth)
        found.append(tree)
        said += _say(tree, values)
    return found


def _edges(known: Any, bins: int) -> Any:
    import numpy as np

    known = known[np.isfinite(known)]
    distinct = np.unique(known)
    if len(distinct) > bins:
        distinct = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)))
    return (distinct[1:] + distinct[:-1]) / 2


def _grow(
    tree: Tree,
    binned: Any,
    left_over: Any,
    rows: Any,
    columns: Any,
    edges: Any,
    how: Boosting,
    depth: int,
) -> None:
    """Append a subtree in preorder."""
    node = len(tree.feature)
    residual = left_over[rows]
    tree.feature.append(-1)
    tree.right.append(0)
    answer = how.rate * residual.sum() / (len(rows) + how.ridge)
    tree.value.append(float(answer))
    split = None if depth == 0 else _split(binned[rows][:, columns], residual, how)
    if split is None:
        return
    column, threshold = int(columns[split[0]]), split[1]
    goes_right = binned[rows, column] > threshold
    tree.feature[node] = column
    tree.value[node] = float(edges[column][threshold - 1]) if threshold else LEAST
    _grow(tree, binned, left_over, rows[~goes_right], columns, edges, how, depth - 1)
    tree.right[node] = len(tree.feature)
    _grow(tree, binned, left_over, rows[goes_right], columns, edges, how, depth - 1)


def _split(binned: Any, residual: Any, how: Boosting) -> tuple[int, int] | None:
    """The column and bin whose split gains most; None where none gains."""
    import numpy as np

    width = how.bins + 2
    count = binned.shape[1]
    index = (np.arange(count) * width + binned).ravel()
    sums = np.bincount(index, np.repeat(residual, count), count * width)
    sums = sums.reshape(count, width).cumsum(1)
    rows = np.bincount(index, minlength=count * width).reshape(count, width).cumsum(1)
    all_sum, all_rows = residual.sum(), len(residual)
    gain = sums**2 / (rows + how.ridge)
    gain += (all_sum - sums) ** 2 / (all_rows - rows + how.ridge)
    gain -= all_sum**2 / (all_rows + how.ridge)
    gain[(rows < how.leaf_rows) | (all_rows - rows < how.leaf_rows)] = -1.0
    best = int(gain.argmax())
    if gain.flat[best] <= 1e-6:
        return None
    return best // width, best % width


def _say(tree: Tree, values: Any) -> Any:
    """What a tree says of each row."""
    import numpy as np

    feature, value = np.asarray(tree.feature), np.asarray(tree.value)
    right, node = np.asarray(tree.right), np.zeros(len(values), np.int64)
    everyone = np.arange(len(values))
    while True:
        asked = feature[node]
        inner = asked >= 0
        if not inner.any():
            return value[node]
        more = values[everyone, np.maximum(asked, 0)] > value[node]
        node = np.where(inner, np.where(more, right[node], node + 1), node)
