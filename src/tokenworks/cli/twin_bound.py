"""What the fluid bound makes of a run: the most it could earn, and how much it can carry."""

from __future__ import annotations

from collections.abc import Sequence

from tokenworks.core.units import NANODOLLARS_PER_DOLLAR
from tokenworks.plan.fluid_inputs import Demand, WorkerClass, merged, request_demand
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
    from tokenworks.plan.fluid_bound import fluid_bound

    members = _grouped(scenario, requests)
    groups = [merged(group) for group in members]
    bound = fluid_bound(_fleet(scenario, ended_ns), groups, scenario.book, members)
    return round(bound.bound_dollars * NANODOLLARS_PER_DOLLAR)


def capacity(scenario: Scenario, requests: Sequence[TwinRequest]) -> float | None:
    """How many times faster the requests may come for the fleet to be just able to serve all.

    None without scipy.
    """
    if not _has_scipy():
        return None
    from tokenworks.plan.fluid_bound import capacity_load

    groups = [merged(group) for group in _grouped(scenario, requests)]
    last_ns = max(1, *(request.at_ns for request in requests))
    return capacity_load(_fleet(scenario, last_ns), groups, scenario.book)


def _has_scipy() -> bool:
    from importlib.util import find_spec

    return find_spec("scipy") is not None


def _fleet(scenario: Scenario, until_ns: int) -> list[WorkerClass]:
    """Workers that differ in name only are one class; all are up from their start on."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, spec in enumerate(scenario.workers):
        kind = (spec.model, spec.timing, spec.slots, spec.kv_blocks, spec.block_tokens, spec.role)
        alike.setdefault(kind, []).append(place)
    fleet = []
    for number, places in enumerate(alike.values()):
        spec = scenario.workers[places[0]]
        fleet.append(
            WorkerClass(
                name=f"class-{number}",
                model=spec.model,
                timing=spec.timing,
                slots=spec.slots,
                kv_tokens=spec.kv_blocks * spec.block_tokens,
                up_ns=(
                    sum(max(0, until_ns - scenario.workers[place].start_ns) for place in places),
                ),
                prefills=spec.role != "decode",
                decodes=spec.role != "prefill",
            )
        )
    return fleet


def _grouped(scenario: Scenario, requests: Sequence[TwinRequest]) -> list[list[Demand]]:
    """Requests by model, tier and size, so that those of a group are nearly alike."""
    block_tokens = scenario.workers[0].block_tokens
    seen: set[int] = set()
    groups: dict[tuple[object, ...], list[Demand]] = {}
    for request in requests:
        hit = 0
        for block in request.blocks:
            if block not in seen:
                break
            hit += 1
        seen.update(request.blocks)
        output = min(request.output_tokens, request.output_tokens_max)
        one = request_demand(
            request.model,
            request.tier,
            input_tokens=request.input_tokens,
            hit_tokens=min(hit * block_tokens, request.input_tokens - 1),
            output_tokens=output,
        )
        # Sizes within a factor of four; what the bound loses by that, its certificate wins back.
        size = (request.input_tokens.bit_length() // 2, output.bit_length() // 2)
        key = (request.model, request.tier, size)
        groups.setdefault(key, []).append(one)
    return list(groups.values())
