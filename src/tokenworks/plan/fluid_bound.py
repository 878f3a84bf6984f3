"""The most that any dispatch policy can earn, from a linear programme over a fleet and a demand.

It is an upper bound on revenue. Every approximation is in the bound's favour:

- Requests are divisible, are known beforehand and wait for nothing. No bursts, no queues, no TTFT.
- Time is charged as iterations cost it: a launch shared by its batch, each sequence, each token of
  context, each token and pair of prefill. Prefill shares its launches with decode for nothing, and
  slows nobody down. The first token of an answer comes with its prefill.
- No sequence is preempted. One that is makes a token with each prefill that it needs again; where
  computing prompt and answer anew is quicker than an iteration, that could beat the bound. No
  engine in the catalogue is like that.
- A promise of speed bounds the mean length of a request's iterations, grace included in full.
- Free is delivered at any speed.
- The prefix cache never evicts, and is one for all workers: each block that requests share is
  computed once, and held once. It is charged to one of them, whichever that is, so that what those
  are charged which a policy serves is at most what it must compute for them: each of their blocks
  once. Where cached tokens cost less, a request may also find all its shared blocks there and pay
  the cached price, or none and pay the full one, whichever earns more.
- A prompt in prefill takes no room in the KV cache.
- Where a class of a model only prefills or only decodes, KV moves everywhere at no cost, and so it
  does between classes whose engines hand it over.
- Prices are list prices; windows and discounts only lower them. Energy and capital are not taken
  off: they follow from the time that the fleet is up.
- Only answers that end within the windows count, so these must go on until the last one has ended.

Windows are coupled: work may be done in any window from a request's own to the last in which its
delivered tier's promise can still be kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.ids import ModelName
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.perf.timing import FS_PER_S
from tokenworks.plan.certificate import certified_dollars
from tokenworks.plan.fluid_inputs import (
    Demand,
    WorkerClass,
    findings,
    load_s,
    revenue_dollars,
)
from tokenworks.plan.fluid_program import (
    Fluid,
    Option,
    Solved,
    fluid_of,
    launch_unit_s,
    program_of,
    solve,
)


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one model that ask for a tier and get one.

    Attributes:
        model: asked for.
        asked: the tier asked for.
        delivered: the tier that is billed.
        worker_class: that decodes them.
        requests: how many.
        output_tokens: they are billed for.
        revenue_dollars: they bring.
        running: sequences of them that decode at one time, on the average of the time that the
            class is up, all its workers together.
    """

    model: ModelName
    asked: Tier
    delivered: Tier
    worker_class: str
    requests: float
    output_tokens: float
    revenue_dollars: float
    running: float


class ClassUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a class of workers does in the programme's solution.

    Attributes:
        name: of the class.
        prefill_share: of its time, spent on prefill.
        decode_shares: of its time, by the pace: (length of an iteration in seconds, share).
        worth_dollars_per_worker_s: what one more worker-second would earn, by window.
    """

    name: str
    prefill_share: float
    decode_shares: tuple[tuple[float, float], ...]
    worth_dollars_per_worker_s: tuple[float, ...]


class Bid(msgspec.Struct, frozen=True, kw_only=True):
    """What one more request like those of a group would earn.

    Attributes:
        group: its place in the demand.
        dollars_per_request: of one more, beyond what it takes from others.
        dollars_per_output_token: the same, by token.
    """

    group: int
    dollars_per_request: float
    dollars_per_output_token: float


class FluidBound(msgspec.Struct, frozen=True, kw_only=True):
    """The bound and what it is made of.

    Attributes:
        bound_dollars: no policy earns more.
        programme_dollars: the programme's own value, which takes each group as a whole; the bound
            is above it by what can be gained by picking within the groups.
        served: by asked and delivered tier and class; only what is not zero.
        uses: by class.
        bids: by group.
    """

    bound_dollars: float
    programme_dollars: float
    served: tuple[Served, ...]
    uses: tuple[ClassUse, ...]
    bids: tuple[Bid, ...]


def fluid_bound(
    fleet: Sequence[WorkerClass],
    groups: Sequence[Demand],
    book: PriceBook,
    members: Sequence[Sequence[Demand]] | None = None,
) -> FluidBound:
    """The most that a fleet can earn of a demand. Needs scipy, the ``plan`` extra.

    Args:
        fleet: at least one class.
        groups: requests that are nearly alike.
        book: prices and promises.
        members: each group's requests; without them the groups are taken to be of equals.
    """
    fluid = fluid_of(fleet, groups, book, tiers_up_to_asked)
    solved = solve(program_of(fluid))
    rounding = 1e-9 * sum(group.requests for group in groups)
    proven = certified_dollars(fluid, solved, members or [[group] for group in groups])
    return FluidBound(
        bound_dollars=proven + rounding,
        programme_dollars=solved.value,
        served=served_in(fluid, solved),
        uses=tuple(_use(fluid, solved, c) for c in range(len(fleet))),
        bids=tuple(
            Bid(
                group=g,
                dollars_per_request=solved.duals["demand", g] / group.requests,
                dollars_per_output_token=solved.duals["demand", g] / max(1, group.output_tokens),
            )
            for g, group in enumerate(groups)
        ),
    )


def tiers_up_to_asked(group: Demand) -> list[Tier]:
    """The tiers that may be delivered and billed."""
    return [tier for tier in Tier if tier.rank <= group.tier.rank]


def capacity_load(fleet: Sequence[WorkerClass], groups: Sequence[Demand], book: PriceBook) -> float:
    """How many times the demand a fleet can just serve whole, each request at its asked tier.

    At load 1.0, requests come at exactly that capacity. Free keeps its own promise here, and
    prefixes are found in the cache. Needs scipy, the ``plan`` extra.

    Args:
        fleet: at least one class.
        groups: at least one.
        book: promises; its prices play no part.
    """
    fluid = fluid_of(fleet, groups, book, lambda group: [group.tier], free_is_floor=False)
    program = program_of(fluid)
    program.gains[:] = [0.0] * len(program.gains)
    factor = program.column("factor", gain=1.0)
    for g in range(len(groups)):
        del program.upper["demand", g]
        program.add(("demand", g), factor, -1.0)
    return solve(program).value


def served_in(fluid: Fluid, solved: Solved) -> tuple[Served, ...]:
    """What a solution delivers."""
    iterations = iterations_in(fluid, solved)
    table: dict[tuple[ModelName, Tier, Tier, str], list[float]] = {}
    for option in fluid.options:
        group, worker = fluid.groups[option.group], fluid.fleet[option.place]
        sums = table.setdefault((group.model, group.tier, option.tier, worker.name), [0.0] * 4)
        for found in findings(group, fluid.book):
            key = ("served", option.group, option.tier, option.place, found)
            share = solved.columns.get(key, 0.0)
            sums[0] += share * group.requests
            sums[1] += share * group.output_tokens
            sums[2] += share * revenue_dollars(group, option.tier, fluid.book, found)
        up_s = sum(worker.up_ns) / NS_PER_S
        for c, w, m, share in decoded_in(fluid, solved, option):
            count, seconds = iterations[c, w, m]
            if share > 0 and count > 0:
                sums[3] += share * group.decode_tokens * seconds / count / up_s
    return tuple(
        Served(
            model=model,
            asked=asked,
            delivered=delivered,
            worker_class=name,
            requests=requests,
            output_tokens=tokens,
            revenue_dollars=dollars,
            running=running,
        )
        for (model, asked, delivered, name), (requests, tokens, dollars, running) in table.items()
        if requests > 0
    )


def decoded_in(
    fluid: Fluid, solved: Solved, option: Option
) -> Iterator[tuple[int, int, int, float]]:
    """(class, window, pace, share of the group's decode tokens) of an option."""
    if not fluid.groups[option.group].decode_tokens:
        return
    c = option.place
    for w in fluid.windows(option):
        for m in range(len(fluid.paces[c])):
            yield c, w, m, solved.columns["decoded", option.group, option.tier, c, w, m]


def iterations_in(fluid: Fluid, solved: Solved) -> dict[tuple[int, int, int], tuple[float, float]]:
    """Iterations by (class, window, pace): how many, and how long they take together."""
    table = {}
    for c, worker in enumerate(fluid.fleet):
        for w in range(len(worker.up_ns)):
            for m in range(len(fluid.paces[c])):
                count = solved.columns["launches", c, w, m] / launch_unit_s(worker)
                table[c, w, m] = (count, count * worker.timing.launch_fs / FS_PER_S)
    for option in fluid.options:
        load = load_s(fluid.groups[option.group], fluid.fleet[option.place].timing)
        for c, w, m, share in decoded_in(fluid, solved, option):
            count, seconds = table[c, w, m]
            table[c, w, m] = (count, seconds + share * load)
    return table


def _use(fluid: Fluid, solved: Solved, c: int) -> ClassUse:
    worker = fluid.fleet[c]
    up_s = max(sum(worker.up_ns), 1) / NS_PER_S
    windows = range(len(worker.up_ns))
    table = iterations_in(fluid, solved)
    shares = []
    for m in range(len(fluid.paces[c])):
        count = sum(table[c, w, m][0] for w in windows)
        seconds = sum(table[c, w, m][1] for w in windows)
        if count > 0 and seconds > 0:
            shares.append((seconds / count, seconds / up_s))
    used = sum(solved.used["time", c, w] for w in windows) / up_s
    return ClassUse(
        name=worker.name,
        prefill_share=max(0.0, used - sum(share for _, share in shares)),
        decode_shares=tuple(shares),
        worth_dollars_per_worker_s=tuple(max(0.0, solved.duals["time", c, w]) for w in windows),
    )
