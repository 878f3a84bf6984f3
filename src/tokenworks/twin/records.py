"""What goes into a run of the twin and what comes out of it, as records."""

from __future__ import annotations

import enum
from array import array
from typing import Final, Literal

import msgspec
from msgspec import UNSET

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.ids import ModelName, PoolID, RequestID, TenantID, WorkerID
from tokenworks.core.needs import NO_OFFERS, Hints, Needs, Offers
from tokenworks.core.slo import Tier
from tokenworks.dispatch.events import Arrived, Configured, DecoderUp, PrefilledBy, WorkerUp
from tokenworks.perf.timing import Timing

Role = Literal["both", "prefill", "decode"]


class TwinRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request of a workload.

    Attributes:
        request: unique in the run.
        tenant: who asks.
        model: what it asks for.
        tier: at which tier.
        at_ns: when it arrives; for one that waits for others, not before.
        input_tokens: tokens of the prompt.
        output_tokens: tokens that the engine will make, if it may go on for so long.
        output_tokens_max: the most that it may make.
        blocks: hashes of the prompt's full KV blocks, each chained on the one before it and salted
            by tenant, in [0, 2**64); the rest of the prompt is shared with nobody.
        wait_for: requests that must have ended before it arrives.
        delay_ns: how long after the last of these it arrives: a tool's or a person's time.
        session: the conversation or agent that it belongs to.
        needs: what the worker must have; None if any of the model will do.
        hints: what the agent tells the dispatcher, and with it the session; None if nothing.
    """

    request: RequestID
    tenant: TenantID
    model: ModelName
    tier: Tier
    at_ns: int
    input_tokens: int
    output_tokens: int
    output_tokens_max: int
    blocks: tuple[int, ...] = ()
    wait_for: tuple[RequestID, ...] = ()
    delay_ns: int = 0
    session: str | None = None
    needs: Needs | None = None
    hints: Hints | None = None


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A modelled engine.

    Attributes:
        worker: its name.
        pool: its pool.
        model: what it serves.
        timing: how long its iterations take.
        slots: sequences that run side by side.
        kv_blocks: its KV cache.
        block_tokens: tokens in one block.
        batch_tokens_max: tokens that one iteration computes at most, decode and prefill together;
            longer prompts are prefilled in chunks.
        context_tokens_typical: of one sequence, for the speed curve that the dispatcher is told.
        curve: that curve, where it was measured.
        role: whether it prefills, decodes, or both.
        start_ns: how long it takes to come up.
        kv_bytes_per_token: what a KV transfer moves.
        link_bytes_per_s: how fast it moves.
        power_w: electric power at work.
        idle_power_w: and while it has nothing to do.
        capital_udollars_per_hour: write-down of its hardware.
        offers: labels and adapters that it has.
        preempts: it can stop a request whose driver keeps what it has made.
        host_kv_blocks: for so many there is a place in its host's memory.
        host_bytes_per_s: how fast blocks move there and back; 0 if there is no such place.
    """

    worker: WorkerID
    pool: PoolID
    model: ModelName
    timing: Timing
    slots: int
    kv_blocks: int
    block_tokens: int
    batch_tokens_max: int
    context_tokens_typical: int
    curve: tuple[tuple[int, int], ...] = ()
    role: Role = "both"
    start_ns: int = 0
    kv_bytes_per_token: int = 0
    link_bytes_per_s: int = 0
    power_w: int = 0
    idle_power_w: int = 0
    capital_udollars_per_hour: int = 0
    offers: Offers = NO_OFFERS
    preempts: bool = False
    host_kv_blocks: int = 0
    host_bytes_per_s: int = 0


CURVE_POINTS_MAX: Final = 12


def speed_curve(spec: WorkerSpec) -> tuple[tuple[int, int], ...]:
    """Pairs (batch, tokens per second per user) at the typical context, up to all slots.

    One that was measured is taken as it is. Else batches are spread evenly in proportion; a point
    with its predecessor's speed is left out.
    """
    if spec.curve:
        return spec.curve
    curve: list[tuple[int, int]] = []
    batches = {1, spec.slots}
    for step in range(1, CURVE_POINTS_MAX - 1):
        batches.add(round(spec.slots ** (step / (CURVE_POINTS_MAX - 1))))
    for batch in sorted(batches):
        speed = spec.timing.speed_tokens_per_s(batch, batch * spec.context_tokens_typical)
        if not curve or curve[-1][1] != speed:
            curve.append((batch, speed))
    return tuple(curve)


def worker_up(spec: WorkerSpec, prefilled_by: PrefilledBy | None = None) -> WorkerUp:
    """What the dispatcher is told of a worker that comes up.

    One that only decodes has a link of its own: its driver chooses who prefills for it.

    Args:
        spec: the worker.
        prefilled_by: who prefills for it, if it only decodes.
    """
    up = WorkerUp(
        worker=spec.worker,
        pool=spec.pool,
        model=spec.model,
        slots=spec.slots,
        curve=speed_curve(spec),
        timing=spec.timing,
        kv_blocks=spec.kv_blocks,
        block_tokens=spec.block_tokens,
        batch_tokens_max=spec.batch_tokens_max,
        link_bytes_per_s=spec.link_bytes_per_s if spec.role == "both" else 0,
        kv_bytes_per_token=spec.kv_bytes_per_token,
        offers=UNSET if spec.offers == NO_OFFERS else spec.offers,
        preempts=spec.preempts or UNSET,
        host_bytes_per_s=spec.host_bytes_per_s or UNSET,
    )
    return up if prefilled_by is None else DecoderUp.of(up, prefilled_by)


def arrival_of(request: TwinRequest, arrived_ns: int) -> Arrived:
    """What the dispatcher is told of a request that comes.

    Of its session only if its agent tells what it knows.
    """
    return Arrived(
        request=request.request,
        tenant=request.tenant,
        model=request.model,
        tier=request.tier,
        input_tokens_max=request.input_tokens,
        output_tokens_max=request.output_tokens_max,
        prefix=request.blocks,
        arrived_ns=arrived_ns,
        session=None if request.hints is None else request.session,
        needs=UNSET if request.needs is None else request.needs,
        hints=UNSET if request.hints is None else request.hints,
    )


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A factory to be run.

    Attributes:
        name: for people.
        workers: its engines.
        configured: promises, limits and policy, the dispatcher's first event.
        book: prices; each model of the workers has some.
        energy_udollars_per_kwh: price of electricity.
        obeys_scaling: workers start and stop as the dispatcher wants; else all start, and hooks
            may stop them.
    """

    name: str
    workers: tuple[WorkerSpec, ...]
    configured: Configured
    book: PriceBook
    energy_udollars_per_kwh: int = 0
    obeys_scaling: bool = True


class End(enum.IntEnum):
    """How a request ended."""

    OPEN = 0
    DONE = 1
    REJECTED = 2
    FAILED = 3
    WITHDRAWN = 4


NEVER: Final = -1
"""In the columns of ``Outcomes``: it did not come to that."""


class Outcomes:
    """What became of each request: columns, by the request's place in the workload.

    Attributes:
        arrived_ns: when it came.
        sent_ns: when it was last sent to a worker; ``NEVER`` if it was not.
        first_token_ns: when its first token was made; ``NEVER`` if none was, or nobody knows, as of
            a recorded answer in one piece.
        finished_ns: when it ended, however it did.
        output_tokens: tokens made.
        cached_tokens: of its prompt, found in the prefix cache.
        end: an ``End``.
        preemptions: times that an engine or the dispatcher stopped it to begin it anew.
        worker: index of the worker that had it last; ``NEVER`` if none had.
        itl_max_ns: the longest gap between two of its tokens.
        queued_ns: when it was last queued, if that was not when it came; else ``NEVER``.
        waited_ns: the longest that it was queued before that.
    """

    __slots__ = (
        "arrived_ns",
        "cached_tokens",
        "end",
        "finished_ns",
        "first_token_ns",
        "itl_max_ns",
        "output_tokens",
        "preemptions",
        "queued_ns",
        "sent_ns",
        "waited_ns",
        "worker",
    )

    def __init__(self, requests: int) -> None:
        self.arrived_ns = array("q", [NEVER]) * requests
        self.sent_ns = array("q", [NEVER]) * requests
        self.first_token_ns = array("q", [NEVER]) * requests
        self.finished_ns = array("q", [NEVER]) * requests
        self.output_tokens = array("q", [0]) * requests
        self.cached_tokens = array("q", [0]) * requests
        self.end = array("b", [End.OPEN]) * requests
        self.preemptions = array("q", [0]) * requests
        self.worker = array("q", [NEVER]) * requests
        self.itl_max_ns = array("q", [0]) * requests
        self.queued_ns = array("q", [NEVER]) * requests
        self.waited_ns = array("q", [0]) * requests

    def queued_since_ns(self, place: int) -> int:
        """When a request was last queued."""
        queued_ns = self.queued_ns[place]
        return self.arrived_ns[place] if queued_ns == NEVER else queued_ns

    def queue_again(self, place: int, now_ns: int) -> None:
        """A request that was sent is queued once more."""
        waited_ns = self.sent_ns[place] - self.queued_since_ns(place)
        self.waited_ns[place] = max(self.waited_ns[place], waited_ns)
        self.queued_ns[place] = now_ns

    def wait_ns_max(self, place: int) -> int:
        """The longest that a request was queued without a break; 0 for one that never came."""
        since_ns, until_ns = self.queued_since_ns(place), self.sent_ns[place]
        if until_ns == NEVER or until_ns < since_ns:
            until_ns = self.finished_ns[place]
        return max(self.waited_ns[place], until_ns - since_ns)


class WorkerUse(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker did in a run.

    Attributes:
        worker: its name.
        up_ns: how long it was up.
        busy_ns: how long of that it computed.
        iterations: it made.
        prefill_tokens: prompt tokens that it computed.
        output_tokens: it made.
        hit_tokens: prompt tokens found in its prefix cache.
        evicted_blocks: blocks of the prefix cache that made room.
        preemptions: sequences stopped for want of KV blocks.
        kv_blocks_max: the most blocks in use at once, cached ones left out.
    """

    worker: WorkerID
    up_ns: int
    busy_ns: int
    iterations: int
    prefill_tokens: int
    output_tokens: int
    hit_tokens: int
    evicted_blocks: int
    preemptions: int
    kv_blocks_max: int


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """Something that must hold in every run, and did not.

    Attributes:
        invariant: what must hold.
        at_ns: when that was seen, on the twin's clock.
        what: the request, worker, limit or part that it is about.
        numbers: what there was and what there should have been.
    """

    invariant: str
    at_ns: int
    what: str
    numbers: dict[str, int | str] = {}

    @classmethod
    def of(cls, invariant: str, at_ns: int, what: str, **numbers: int | str) -> Violation:
        """One with its numbers by name."""
        return cls(invariant=invariant, at_ns=at_ns, what=what, numbers=numbers)


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run.

    Attributes:
        outcomes: by request.
        workers: in the scenario's order.
        ended_ns: the twin's clock at the end.
        events: told to the dispatcher.
        commands: it answered.
        journal_digest: of all events and commands, 32 hex digits.
        cpu_ns: of this thread, from first to last event.
    """

    outcomes: Outcomes
    workers: tuple[WorkerUse, ...]
    ended_ns: int
    events: int
    commands: int
    journal_digest: str
    cpu_ns: int
