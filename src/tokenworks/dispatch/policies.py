"""The field's routing policies, each in a few lines, and how a policy is made by name.

A policy here is an ordering (who of those that wait is next) and a picker (where it goes). None of
them knows promises or money; ``PolicySettings.batch_cap`` bounds what they send to one worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

import msgspec

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.slo import Tier
from tokenworks.dispatch.commands import SendReason
from tokenworks.dispatch.economics import Economics
from tokenworks.dispatch.events import Configured, Finished
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.pickers import others_first, permitted, pick_cache_aware
from tokenworks.dispatch.policy import Choice, Dice, MakePolicy, Policy
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.promises import Promises
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.workers import Worker

VTC_TENANTS_MAX: Final = 10_000
"""Tenants whose service is remembered; beyond it the least served are forgotten."""
VTC_OUTPUT_WEIGHT: Final = 2
"""What an output token counts of an input token in VTC."""

_SCORE: Final = 1 << 20
"""Scores of the scorer sum are integers from 0 to this."""


class Memory(msgspec.Struct, kw_only=True):
    """What the policies here remember, any of them.

    Attributes:
        dice: the state of the random numbers.
        turns: by model, the index of the worker that was last in turn.
        served: by tenant, the tokens that it was served, weighted; for VTC.
        last: the tenant that was sent last; for VTC.
    """

    dice: int = 0
    turns: dict[str, int] = {}
    served: dict[str, int] = {}
    last: str = ""


Order = Callable[["Routing", Fleet, int], Request]
Pick = Callable[["Routing", Fleet, Request, int], tuple[Worker, SendReason, int]]


class Routing:
    """A policy made of an ordering and a picker.

    Args:
        order: who is next of those that wait, of whom there is at least one.
        pick: where a request goes among workers, of whom there is at least one.
    """

    def __init__(self, order: Order, pick: Pick) -> None:
        self._order, self._pick = order, pick
        self.memory = Memory()
        self.index = PrefixIndex(0)
        self.imbalance_max = 0
        self.ttft_ns: list[int] = []

    def configure(self, configured: Configured, index: PrefixIndex) -> None:
        """See ``Policy``."""
        self.index = index
        self.imbalance_max = configured.limits.imbalance_requests_max
        self.ttft_ns = [configured.promises[tier].ttft_ns for tier in Tier]
        if not self.memory.dice:
            self.memory.dice = configured.policy.seed

    def arrived(self, fleet: Fleet, request: Request, now_ns: int) -> None:
        """See ``Policy``."""

    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:  # noqa: ARG002
        """See ``Policy``."""
        candidates = permitted(fleet, request, fleet.open)
        if not candidates:
            return None
        return self.choose(fleet, request, others_first(fleet, request, candidates))

    def choose(self, fleet: Fleet, request: Request, candidates: int) -> Choice:
        """Where a request goes among some workers, at least one."""
        worker, reason, hit_blocks = self._pick(self, fleet, request, candidates)
        return Choice(worker, reason, hit_blocks, request.rank, candidates.bit_count())

    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        """See ``Policy``."""
        while fleet.queued and fleet.open:
            request = self._order(self, fleet, now_ns)
            yield request, self.choose(fleet, request, others_first(fleet, request, fleet.open))

    def finished(self, fleet: Fleet, worker: Worker, request: Request, event: Finished) -> None:
        """See ``Policy``."""

    def record(self) -> bytes:
        """See ``Policy``."""
        return msgspec.msgpack.encode(self.memory)

    def restore(self, data: bytes) -> None:
        """See ``Policy``."""
        self.memory = msgspec.msgpack.decode(data, type=Memory)


class VTC(Routing):
    """The tenant that was served least is next; see ``least_served``."""

    def __init__(self) -> None:
        super().__init__(least_served, prefix_aware)

    def arrived(self, fleet: Fleet, request: Request, now_ns: int) -> None:  # noqa: ARG002
        """See ``Policy``; who was away does not come back with credit for that time."""
        served = self.memory.served
        waiting: set[str] = {head.tenant for line in fleet.lines for head in line.heads()}
        if request.tenant not in waiting:
            active = waiting or {self.memory.last}
            least = min(served.get(tenant, 0) for tenant in active)
            self._count(request, max(served.get(request.tenant, 0), least))

    def choose(self, fleet: Fleet, request: Request, candidates: int) -> Choice:
        """See ``Routing``."""
        self.memory.last = request.tenant
        return super().choose(fleet, request, candidates)

    def finished(self, fleet: Fleet, worker: Worker, request: Request, event: Finished) -> None:  # noqa: ARG002
        """See ``Policy``; counts what a tenant was served."""
        tokens = request.input_tokens_max + VTC_OUTPUT_WEIGHT * event.output_tokens
        self._count(request, self.memory.served.get(request.tenant, 0) + tokens)

    def _count(self, request: Request, tokens: int) -> None:
        served = self.memory.served
        served[request.tenant] = tokens
        if len(served) > VTC_TENANTS_MAX:
            del served[min(served, key=served.__getitem__)]


class StaticSplit(Routing):
    """Each tier has workers of its own, and there its promise bounds the batch."""

    def __init__(self) -> None:
        super().__init__(strict_priority, prefix_aware)
        self._split: tuple[int, ...] = ()
        self._full_percent = 100

    def configure(self, configured: Configured, index: PrefixIndex) -> None:
        """See ``Policy``."""
        super().configure(configured, index)
        self._split = configured.policy.split or (1,) * len(Tier)
        self._full_percent = configured.policy.full_percent

    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:  # noqa: ARG002
        """See ``Policy``."""
        start = sum(self._split[: request.rank])
        own = 0
        workers = fleet.workers[start : start + self._split[request.rank]]
        if request.needs is not None:
            may = permitted(fleet, request, fleet.up)
            # Where none of the tier's own has what it needs, those of other tiers serve it.
            permitted_own = [each for each in workers if may >> each.index & 1]
            workers = permitted_own or list(fleet.each(may))
        for worker in workers:
            # A promise that is made to anybody allows one request.
            cap = max(1, worker.caps[request.rank] * self._full_percent // 100)
            if len(worker.running) < cap:
                own |= 1 << worker.index
        candidates = fleet.admitting[request.rank] & own
        if not candidates:
            return None
        return self.choose(fleet, request, others_first(fleet, request, candidates))

    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        """See ``Policy``; a tier that is full stops no other."""
        for line in reversed(fleet.lines):
            while len(line):
                request = line.head()
                choice = self.place(fleet, request, now_ns)
                if choice is None:
                    break
                yield request, choice


# Orderings: who is next.


def first_come(_: Routing, fleet: Fleet, __: int) -> Request:
    """The one that was queued first, whatever its tier."""
    return min(
        (line.oldest() for line in fleet.lines if len(line)),
        key=lambda each: (each.queued_ns, -each.rank),
    )


def strict_priority(_: Routing, fleet: Fleet, __: int) -> Request:
    """The highest tier first; tenants of a tier take turns."""
    return next(line.head() for line in reversed(fleet.lines) if len(line))


def earliest_deadline(routing: Routing, fleet: Fleet, _: int) -> Request:
    """The one whose TTFT promise ends first.

    Source: Liu and Layland, "Scheduling Algorithms for Multiprogramming in a Hard-Real-Time
    Environment", JACM 20(1), 1973, section 7 (deadline driven scheduling).
    """
    return min(
        (line.oldest() for line in fleet.lines if len(line)),
        key=lambda each: (each.arrived_ns + routing.ttft_ns[each.rank], -each.rank),
    )


def least_served(routing: Routing, fleet: Fleet, _: int) -> Request:
    """The oldest request of the tenant that was served the fewest weighted tokens.

    Source: the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models",
    OSDI 2024, algorithm 2, with weights 1 and 2. Ours counts when an answer ends, not per
    iteration.
    """
    served = routing.memory.served
    return min(
        (head for line in fleet.lines for head in line.heads()),
        key=lambda each: (served.get(each.tenant, 0), each.queued_ns, each.request),
    )


# Pickers: where it goes.


def in_turn(
    routing: Routing, fleet: Fleet, request: Request, candidates: int
) -> tuple[Worker, SendReason, int]:
    """The next worker of the model after the last one."""
    turns = routing.memory.turns
    start = turns.get(request.model, -1) + 1
    worker = fleet.first(candidates >> start << start or candidates)
    turns[request.model] = worker.index
    return worker, "in_turn", 0


def at_random(
    routing: Routing, fleet: Fleet, _: Request, candidates: int
) -> tuple[Worker, SendReason, int]:
    """Any worker."""
    return _drawn(routing, fleet, candidates), "at_random", 0


def power_of_two(
    routing: Routing, fleet: Fleet, _: Request, candidates: int
) -> tuple[Worker, SendReason, int]:
    """The less loaded of two that are drawn.

    Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10),
    2001.
    """
    one, other = _drawn(routing, fleet, candidates), _drawn(routing, fleet, candidates)
    return (one if one.load <= other.load else other), "least_loaded", 0


def least_loaded(
    _: Routing, fleet: Fleet, __: Request, candidates: int
) -> tuple[Worker, SendReason, int]:
    """The worker with the fewest running requests."""
    return fleet.first(fleet.least_loaded(candidates)), "least_loaded", 0


def prefix_aware(
    routing: Routing, fleet: Fleet, request: Request, candidates: int
) -> tuple[Worker, SendReason, int]:
    """SGLang's rule; see ``pickers.pick_cache_aware``."""
    home = fleet.home(request)
    return pick_cache_aware(
        fleet, candidates, request.prefix, routing.index, routing.imbalance_max, home
    )


def kv_cost(
    routing: Routing, fleet: Fleet, request: Request, candidates: int
) -> tuple[Worker, SendReason, int]:
    """The least cost in KV blocks: what is left to prefill there, and what decodes there.

    Source: NVIDIA Dynamo 1.6, ``lib/kv-router`` selector ``default.rs``:
    ``cost = max(raw_prefill_blocks - overlap, 0) + decode_blocks`` with its default weights of one,
    no temperature; ties go to the lowest index.
    """
    hits = _hits(routing, fleet, request, candidates)

    def cost(worker: Worker) -> int:
        size = worker.block_tokens
        prefill = -(-(worker.prefill_tokens + request.input_tokens_max) // size)
        decode = -(-(worker.context_tokens + request.input_tokens_max) // size)
        return max(prefill - hits.get(worker.index, 0), 0) + decode

    # Workers come by their index, and of equals the first is taken.
    chosen = min(fleet.each(candidates), key=cost)
    return chosen, "least_cost", hits.get(chosen.index, 0)


def scorer_sum(
    routing: Routing, fleet: Fleet, request: Request, candidates: int
) -> tuple[Worker, SendReason, int]:
    """The highest sum of scores: prefix hit (weight 3), free slots (2) and free KV cache (2).

    Source: llm-d-inference-scheduler's default profile: ``prefix-cache-scorer`` weight 3,
    ``queue-scorer`` 2 and ``kv-cache-utilization-scorer`` 2, each in [0, 1], and the
    ``max-score-picker``.
    """
    hits = _hits(routing, fleet, request, candidates)
    blocks = max(1, len(request.prefix))
    spread = max(1, fleet.load_max - fleet.load_min)

    def score(worker: Worker) -> int:
        found = 3 * (_SCORE * hits.get(worker.index, 0) // blocks)
        found += 2 * (_SCORE * (fleet.load_max - worker.load) // spread)
        if worker.kv_blocks:
            used = min(worker.kv_blocks, worker.context_tokens // worker.block_tokens)
            found += 2 * (_SCORE * (worker.kv_blocks - used) // worker.kv_blocks)
        return found

    chosen = max(fleet.each(candidates), key=score)
    return chosen, "best_score", hits.get(chosen.index, 0)


def _drawn(routing: Routing, fleet: Fleet, candidates: int) -> Worker:
    dice = Dice(routing.memory.dice)
    number = dice.below(candidates.bit_count())
    routing.memory.dice = dice.state
    for _ in range(number):
        candidates &= candidates - 1
    return fleet.first(candidates)


def _hits(routing: Routing, fleet: Fleet, request: Request, candidates: int) -> dict[int, int]:
    """By index of the workers that have some of a prefix, how many blocks of it."""
    hits: dict[int, int] = {}
    while candidates:
        depth, holders = routing.index.match(request.prefix, candidates)
        if not depth:
            break
        candidates &= ~holders
        hits |= {worker.index: depth for worker in fleet.each(holders)}
    return hits


_MAKERS: Final[dict[str, MakePolicy]] = {
    "promises": Promises,
    "economic": Economics,
    "static-split": StaticSplit,
    "vtc": VTC,
    "round-robin": partial(Routing, first_come, in_turn),
    "random": partial(Routing, first_come, at_random),
    "power-of-two": partial(Routing, first_come, power_of_two),
    "least-loaded": partial(Routing, first_come, least_loaded),
    "prefix-aware": partial(Routing, first_come, prefix_aware),
    "kv-cost": partial(Routing, first_come, kv_cost),
    "scorer-sum": partial(Routing, first_come, scorer_sum),
    "strict-priority": partial(Routing, strict_priority, prefix_aware),
    "edf": partial(Routing, earliest_deadline, prefix_aware),
}
NAMES: Final = tuple(_MAKERS)
"""The policies that come with the package."""


def make(name: str, own: Mapping[str, MakePolicy]) -> Policy:
    """A policy by its name, the operator's own first.

    Raises:
        ConfigInvalid: there is none of that name.
    """
    maker = own.get(name) or _MAKERS.get(name)
    if maker is None:
        raise ConfigInvalid(
            f"There is no policy {name!r}.",
            hint=f"Take one of {', '.join([*NAMES, *own])}; --policy-file says where your own is.",
        )
    return maker()
