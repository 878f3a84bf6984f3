"""The most that any policy could earn of a workload on a scenario's factory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.ids import ModelName, RequestID
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.perf.timing import Timing
from tokenworks.plan.fluid_bound import FluidBound, capacity_load, fluid_bound
from tokenworks.plan.fluid_inputs import (
    Demand,
    WorkerClass,
    load_s,
    merged,
    prefill_s,
    request_demand,
    revenue_dollars,
)
from tokenworks.twin.records import Scenario, TwinRequest, WorkerSpec

CELLS = 4
"""Groups that a model's and tier's requests of a window are split into, by what they earn of a
second. The bound holds for any number; more make it tighter and slower to find."""


class BoundInputs(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario and a workload as the fluid programme sees them.

    Attributes:
        fleet: workers that are alike, together.
        groups: requests that are nearly alike, together.
        members: each group's requests.
        book: prices and promises.
    """

    fleet: tuple[WorkerClass, ...]
    groups: tuple[Demand, ...]
    members: tuple[tuple[Demand, ...], ...]
    book: PriceBook


def run_bound(
    scenario: Scenario,
    requests: Sequence[TwinRequest],
    horizon_ns: int,
    *,
    windows: int = 1,
    cells: int = CELLS,
) -> FluidBound:
    """A bound on the revenue of all answers that end within the horizon.

    One window for the whole run is a bound, though a loose one if the mix of tiers changes within
    it: capacity of a quiet hour then serves the next one. With more windows, an answer that is to
    keep a promise is made before the promise is lost. That is a bound too, because no such answer
    can be in work later.

    Needs scipy, the ``plan`` extra.

    Args:
        scenario: the factory.
        requests: the workload.
        horizon_ns: when the run is cut off; let it last until the last answer has ended.
        windows: of equal length. One takes a second for ten thousand requests; twelve take ten to
            twenty seconds with one cell, and minutes with four.
        cells: groups per model, tier and window.
    """
    given = bound_inputs(scenario, requests, horizon_ns, windows=windows, cells=cells)
    return fluid_bound(given.fleet, given.groups, given.book, given.members)


def run_capacity(scenario: Scenario, requests: Sequence[TwinRequest], horizon_ns: int) -> float:
    """How many times the workload the factory can just serve in the horizon at the asked tiers.

    For a load of 1.0, let the requests come this many times as fast.

    Args:
        scenario: the factory.
        requests: the workload.
        horizon_ns: over which they come.
    """
    given = bound_inputs(scenario, requests, horizon_ns)
    return capacity_load(given.fleet, given.groups, given.book)


def bound_inputs(
    scenario: Scenario,
    requests: Sequence[TwinRequest],
    horizon_ns: int,
    *,
    windows: int = 1,
    cells: int = CELLS,
) -> BoundInputs:
    """What the programme is told; requests of models that no worker serves earn nothing."""
    fleet = fleet_of(scenario.workers, horizon_ns, windows)
    served = {worker.model: worker.timing for worker in reversed(fleet)}
    block_tokens = {spec.model: spec.block_tokens for spec in scenario.workers}
    width_ns = -(-horizon_ns // windows)
    coming: dict[ModelName, list[tuple[TwinRequest, int]]] = {model: [] for model in served}
    for request, at_ns in zip(requests, earliest_ns(requests), strict=True):
        if request.model in served and at_ns < horizon_ns:
            coming[request.model].append((request, at_ns))
    found: list[tuple[TwinRequest, int, tuple[int, int]]] = []
    for model, some in coming.items():
        firsts = [at_ns // width_ns for _, at_ns in some]
        prefixes = found_tokens([request for request, _ in some], firsts, block_tokens[model])
        found += [(*each, prefix) for each, prefix in zip(some, prefixes, strict=True)]
    kinds: dict[tuple[ModelName, Tier, int, bool], list[Demand]] = {}
    for request, at_ns, (hit, reach) in found:
        demand = request_demand(
            request.model,
            request.tier,
            input_tokens=request.input_tokens,
            hit_tokens=hit,
            reach_tokens=reach,
            output_tokens=max(1, min(request.output_tokens, request.output_tokens_max)),
        )
        first = at_ns // width_ns
        lasts = () if request.wait_for else _lasts(scenario.book, demand, at_ns, width_ns, windows)
        placed = msgspec.structs.replace(demand, window_first=first, windows_last=lasts)
        key = (request.model, request.tier, first, bool(request.wait_for))
        kinds.setdefault(key, []).append(placed)
    members = [
        cell
        for (model, *_), alike in sorted(kinds.items())
        for cell in _split(alike, served[model], scenario.book, cells)
    ]
    groups = tuple(merged(list(cell)) for cell in members)
    return BoundInputs(fleet=fleet, groups=groups, members=tuple(members), book=scenario.book)


def fleet_of(
    workers: Sequence[WorkerSpec], horizon_ns: int, windows: int = 1
) -> tuple[WorkerClass, ...]:
    """Workers that are alike, as one class each, named for the first one's pool."""
    width_ns = -(-horizon_ns // windows)
    alike: dict[WorkerClass, list[int]] = {}
    for spec in workers:
        kind = WorkerClass(
            name=spec.pool,
            model=spec.model,
            timing=spec.timing,
            slots=spec.slots,
            kv_tokens=spec.kv_blocks * spec.block_tokens,
            up_ns=(),
            prefills=spec.role != "decode",
            decodes=spec.role != "prefill",
            hands_over=spec.link_bytes_per_s > 0,
        )
        up_ns = alike.setdefault(kind, [0] * windows)
        for window in range(windows):
            end_ns = min(horizon_ns, (window + 1) * width_ns)
            up_ns[window] += max(0, end_ns - max(window * width_ns, spec.start_ns))
    return tuple(msgspec.structs.replace(kind, up_ns=tuple(up_ns)) for kind, up_ns in alike.items())


def earliest_ns(requests: Sequence[TwinRequest]) -> list[int]:
    """The first instant at which each request can come, if those it waits for take no time."""
    place = {request.request: i for i, request in enumerate(requests)}
    found: dict[RequestID, int] = {}
    for i in _parents_first(requests, place):
        request = requests[i]
        waits = [found[name] for name in request.wait_for if name in found]
        found[request.request] = max([request.at_ns, *(w + request.delay_ns for w in waits)])
    return [found[request.request] for request in requests]


def _parents_first(requests: Sequence[TwinRequest], place: dict[RequestID, int]) -> list[int]:
    """Places such that a request comes after all that it waits for."""
    order: list[int] = []
    done: set[int] = set()
    stack_len_max = 1 + sum(len(request.wait_for) for request in requests)
    for start in range(len(requests)):
        stack = [start]
        while stack:
            i = stack[-1]
            needs = (place[name] for name in requests[i].wait_for if name in place)
            missing = [j for j in needs if j not in done]
            if i not in done and missing:
                stack += missing
                assert len(stack) <= stack_len_max, "requests wait for each other in a circle"
                continue
            stack.pop()
            if i not in done:
                done.add(i)
                order.append(i)
    return order


def found_tokens(
    requests: Sequence[TwinRequest], first: Sequence[int], block_tokens: int
) -> list[tuple[int, int]]:
    """How many tokens of each prompt are in blocks booked on others, and in blocks others have.

    Each block is booked on one of the requests that have it, of which a policy must compute it for
    one at least, on each worker that serves some of them. Who comes in an earlier window bears it,
    so that it is charged no later than it is computed; of these, who asks for the highest tier:
    it is the last to be turned away.

    Args:
        requests: of one model.
        first: the window in which each arrives.
        block_tokens: of that model's workers.
    """
    order = sorted(
        range(len(requests)), key=lambda i: (first[i], -requests[i].tier.rank, requests[i].at_ns, i)
    )
    bearer: dict[int, int] = {}
    count: dict[int, int] = {}
    for i in order:
        for block in requests[i].blocks:
            bearer.setdefault(block, i)
            count[block] = count.get(block, 0) + 1
    found = []
    for i, request in enumerate(requests):
        # Who has a block has all before it, so both kinds come first in the prompt.
        theirs = sum(bearer[block] != i for block in request.blocks)
        shared = sum(count[block] > 1 for block in request.blocks)
        tokens = (min(request.input_tokens, n * block_tokens) for n in (theirs, shared))
        found.append((next(tokens), next(tokens)))
    return found


def _lasts(
    book: PriceBook, demand: Demand, at_ns: int, width_ns: int, windows: int
) -> tuple[int, ...]:
    """By tier, the window in which an answer's promise is lost for certain; for free, the last."""
    lasts = []
    for tier in Tier:
        promise = book.promises[tier]
        if tier is Tier.FREE or promise.interactivity_tokens_per_s == 0:
            lasts.append(windows - 1)
            continue
        decode_ns = demand.decode_tokens * NS_PER_S // promise.interactivity_tokens_per_s
        end_ns = at_ns + promise.ttft_ns + decode_ns + 1 + promise.grace_ns
        lasts.append(min(windows - 1, end_ns // width_ns))
    return tuple(lasts)


def _split(
    alike: list[Demand], timing: Timing, book: PriceBook, cells: int
) -> list[tuple[Demand, ...]]:
    """Cells of requests that earn about as much of a worker's second."""

    def worth(demand: Demand) -> float:
        seconds = prefill_s(demand, timing) + load_s(demand, timing)
        return (revenue_dollars(demand, demand.tier, book) + 1e-12) / (seconds + 1e-12)

    ranked = sorted(alike, key=worth)
    edges = [len(ranked) * i // cells for i in range(cells + 1)]
    split = (tuple(ranked[a:b]) for a, b in pairwise(edges))
    return [cell for cell in split if cell]
