"""Many configurations of one model on one system, and which of them nobody need regret."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.case import Case, Layout, check_fits
from tokenworks.perf.estimate import Estimator, Prediction


class Swept(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration and what it does.

    Attributes:
        case: the configuration.
        prediction: for it.
    """

    case: Case
    prediction: Prediction


def layouts(gpus: Iterable[int], *, experts: bool) -> Iterator[Layout]:
    """Layouts of one worker: tensor parallelism, and for mixtures experts and attention spread.

    >>> [(each.gpus, each.ep, each.dp) for each in layouts([4], experts=True)]
    [(4, 1, 1), (4, 4, 1), (4, 4, 4)]
    """
    for count in gpus:
        yield Layout(gpus=count)
        if experts and count > 1:
            yield Layout(gpus=count, ep=count)
            yield Layout(gpus=count, ep=count, dp=count)


def sweep(
    estimator: Estimator, cases: Iterable[Case], concurrencies: Sequence[float]
) -> tuple[list[Swept], int]:
    """Predictions for each case under each load, and how many cases don't fit.

    Loads beyond the cache of the decode workers are left out: how long the rest waits is unknown.

    Args:
        estimator: that answers.
        cases: their own load does not matter.
        concurrencies: loads.
    """
    found, refused = [], 0
    for case in cases:
        try:
            check_fits(case)
        except ConfigInvalid:
            refused += 1
            continue
        curve = estimator.curve(case)
        for concurrency in concurrencies:
            loaded = msgspec.structs.replace(case, concurrency=concurrency)
            prediction = curve.predict(concurrency)
            if loaded.batch <= prediction.batch_max:
                found.append(Swept(case=loaded, prediction=prediction))
    return found, refused


def frontier(swept: Iterable[Swept]) -> list[Swept]:
    """Those that no other one beats in both speed for a user and output per GPU; fastest first."""
    ordered = sorted(
        swept,
        key=lambda s: (s.prediction.tokens_per_s_per_user, s.prediction.tokens_per_s_per_gpu),
        reverse=True,
    )
    best, found = 0.0, []
    for each in ordered:
        if each.prediction.tokens_per_s_per_gpu > best:
            best = each.prediction.tokens_per_s_per_gpu
            found.append(each)
    return found
