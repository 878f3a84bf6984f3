"""What the fluid bound makes of a run: the most it could earn, and how much it can carry."""

from __future__ import annotations

from collections.abc import Sequence

from tokenworks.core.units import NANODOLLARS_PER_DOLLAR
from tokenworks.twin.bound import run_bound, run_capacity
from tokenworks.twin.records import Scenario, TwinRequest


def bound_nanodollars(
    scenario: Scenario, requests: Sequence[TwinRequest], ended_ns: int
) -> int | None:
    """The most that any policy could have earned; None without scipy, the ``plan`` extra.

    Args:
        scenario: the factory.
        requests: the workload.
        ended_ns: when the run was over.
    """
    if not _has_scipy():
        return None
    bound = run_bound(scenario, requests, max(1, ended_ns))
    return round(bound.bound_dollars * NANODOLLARS_PER_DOLLAR)


def capacity(scenario: Scenario, requests: Sequence[TwinRequest]) -> float | None:
    """How many times faster the requests may come for the fleet to be just able to serve all.

    None without scipy.
    """
    if not _has_scipy():
        return None
    return run_capacity(scenario, requests, 1 + max(request.at_ns for request in requests))


def _has_scipy() -> bool:
    from importlib.util import find_spec

    return find_spec("scipy") is not None
