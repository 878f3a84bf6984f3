"""What the dispatcher wants done: a closed union of commands with the numbers that decided."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from tokenworks.core.ids import PoolID, RequestID, WorkerID

SendReason = Literal[
    "prefix_hit",
    "least_loaded",
    "slow_beats_late",
    "in_turn",
    "at_random",
    "least_cost",
    "best_score",
    "best_value",
    "session_home",
]
QueueReason = Literal["at_cap", "no_worker_up"]
RejectCode = Literal[
    "capacity_exceeded", "worker_unavailable", "worker_failed", "not_offered", "invalid_request"
]
RejectReason = Literal[
    "queue_full",
    "patience_over",
    "no_worker_up",
    "model_never_up",
    "retries_over",
    "retries_spent",
    "never_offered",
    "prompt_too_long",
]
TickReason = Literal["waiting", "scaling", "hedging"]


class Send(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Give a request to a worker.

    Attributes:
        request: what to send.
        worker: to whom.
        attempt: 1 the first time.
        reason: ``prefix_hit`` (the load is balanced and the worker has at least half of the
            prefix), ``least_loaded``, ``slow_beats_late`` (beyond the cap of the tier it
            asks for, because waiting longer would break the TTFT promise; it counts under a lower
            tier, breaks nobody's promise there and is billed at the tier delivered), or what
            another policy goes by: ``in_turn``, ``at_random``, ``least_cost``, ``best_score``,
            ``best_value`` (in money), ``session_home`` (the load is balanced and the worker had
            the last request of its session).
        running: requests on the worker, this one included.
        cap: requests at which the worker keeps the promises of all that run there.
        candidates: workers that could have taken it.
        hit_blocks: blocks of its prefix that the worker is believed to have.
        waited_ns: since the request arrived.
        value_nanodollars: what it is expected to add there, where the policy counts in money.
        prefill_worker: who computes its prompt and then hands its KV cache to ``worker``; None if
            that does it itself. ``hit_blocks`` are this one's.
    """

    request: RequestID
    worker: WorkerID
    attempt: int
    reason: SendReason
    running: int
    cap: int
    candidates: int
    hit_blocks: int
    waited_ns: int
    value_nanodollars: int = 0
    prefill_worker: WorkerID | None = None


class Hedge(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Give a request to a second worker; the first one keeps it, too, until one of them answers.

    The driver aborts the other one at once, and says in ``Started`` whose answer it is.

    Attributes:
        request: what to send.
        worker: to whom.
        attempt: one more than that of the first worker.
        reason: ``silent``: that one has said nothing for longer than it should.
        running: requests on the worker, this one included.
        cap: requests at which the worker keeps the promises of all that run there.
        candidates: workers that could have taken it.
        hit_blocks: blocks of its prefix that the worker is believed to have.
        silent_ns: since the first worker was sent it.
    """

    request: RequestID
    worker: WorkerID
    attempt: int
    reason: Literal["silent"]
    running: int
    cap: int
    candidates: int
    hit_blocks: int
    silent_ns: int


class Queue(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Keep a request waiting; for the record, there is nothing to do.

    Attributes:
        request: what waits.
        reason: ``at_cap`` (no worker can take it and keep its promises) or ``no_worker_up``.
        ahead: requests of this model in tiers not below its own that wait too.
        workers: workers of its model that are up.
        deadline_ns: when it will be rejected.
    """

    request: RequestID
    reason: QueueReason
    ahead: int
    workers: int
    deadline_ns: int


class Reject(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Refuse a request; this is its end.

    Attributes:
        request: what is refused.
        code: the code of an error in ``tokenworks.core.errors``.
        reason: what led to it; ``retries_spent``: so many requests of the model were sent again
            that this one is not.
        retry_after_ns: when a slot is expected for such a request; None if that is not known.
        ahead: requests of this model in tiers not below its own that wait.
        waited_ns: since the request arrived.
        attempts: times that it was sent.
        lacking: the label or adapter that no worker has, in words; unset if that is not why.
        kv_tokens_max: tokens of the largest KV cache, where no prompt like this fits into one.
    """

    request: RequestID
    code: RejectCode
    reason: RejectReason
    retry_after_ns: int | None
    ahead: int
    waited_ns: int
    attempts: int
    lacking: str | UnsetType = UNSET
    kv_tokens_max: int | UnsetType = UNSET


class Abort(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Stop a worker's work on a request; its slot counts as free from now on.

    Attributes:
        request: what to stop.
        worker: who has it.
        reason: ``withdrawn``, because the client left, or ``hedged``, because another worker has
            it; then the driver has done so already.
        held_ns: since the request was sent.
    """

    request: RequestID
    worker: WorkerID
    reason: Literal["withdrawn", "hedged"]
    held_ns: int


class Preempt(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Stop a worker's work on a request and keep what it has made; it waits to be sent again.

    Only workers that can (``WorkerUp.preempts``) are asked. When it is sent again, it goes on where
    it was.

    Attributes:
        request: what to stop.
        worker: who has it.
        displaced_by: the request of a higher tier that takes its place.
        reason: ``worth_more``, which is why.
        gained_nanodollars: what that adds, above what it would earn a tier lower.
        lost_nanodollars: what all that it displaces lose by it.
        held_ns: since the request was sent.
    """

    request: RequestID
    worker: WorkerID
    displaced_by: RequestID
    reason: Literal["worth_more"]
    gained_nanodollars: int
    lost_nanodollars: int
    held_ns: int


class Offload(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Move a session's KV blocks from a worker's cache to its host's memory, while a tool runs.

    Attributes:
        request: whose answer has just ended; the blocks are its prompt's.
        worker: who has them.
        first: the first of them.
        blocks: how many.
        reason: ``gone_before_it_is_needed``, because the cache is filled anew before the tool ends.
        tool_ns: how long the tool will take, as the agent says.
        filled_anew_ns: how long the cache takes to be filled anew.
        move_ns: how long they take over the link, one way.
        compute_ns: how long it takes to compute them.
    """

    request: RequestID
    worker: WorkerID
    first: int
    blocks: int
    reason: Literal["gone_before_it_is_needed"]
    tool_ns: int
    filled_anew_ns: int
    move_ns: int
    compute_ns: int


class Fetch(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Bring a session's KV blocks back; the ``Send`` that follows waits for that.

    Attributes:
        request: that goes on with the session; the blocks are its prompt's.
        worker: who has them below.
        first: the first of them.
        blocks: how many.
        reason: ``quicker_than_computing``.
        move_ns: how long they take over the link.
        compute_ns: how long it takes to compute them.
    """

    request: RequestID
    worker: WorkerID
    first: int
    blocks: int
    reason: Literal["quicker_than_computing"]
    move_ns: int
    compute_ns: int


class SetTimer(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Tell ``Ticked`` at this time; it replaces a timer that was set before.

    Attributes:
        at_ns: when, on the driver's clock; a time that has passed means at once.
        reason: ``waiting``, because something queued is due then, ``scaling``, to look then
            whether pools want other numbers of workers, or ``hedging``, because a worker should
            have answered by then.
        queued: requests that wait.
    """

    at_ns: int
    reason: TickReason
    queued: int


class Scale(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Give a pool other workers; see ``scaling``. A driver that cannot says so to its operator.

    Attributes:
        pool: which.
        workers: how many it wants.
        up: how many it has.
        reason: ``queue_wait``: start what is missing. ``idle``: stop ``worker``, which has nothing
            and is sent nothing any more.
        worker: who is to be stopped; None where more are wanted.
        pressure_ppm: the largest part of a TTFT promise that a request has waited.
    """

    pool: PoolID
    workers: int
    up: int
    reason: Literal["queue_wait", "idle"]
    worker: WorkerID | None
    pressure_ppm: int


Command = Send | Hedge | Queue | Reject | Abort | Preempt | Offload | Fetch | SetTimer | Scale
"""Everything that the dispatcher can want."""
