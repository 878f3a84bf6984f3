"""Requests in the dispatcher's memory."""

from __future__ import annotations

import msgspec

from tokenworks.core.ids import ModelName, RequestID, TenantID, WorkerID
from tokenworks.core.needs import Hints, Needs
from tokenworks.dispatch.states import State


class SecondTry(msgspec.Struct, frozen=True, kw_only=True):
    """That a request was sent to a second worker, too; see ``hedging``.

    Attributes:
        worker: which.
        sent_ns: when.
        prefill_tokens: of its prompt, expected to be computed there.
    """

    worker: WorkerID
    sent_ns: int
    prefill_tokens: int


class Request(msgspec.Struct, kw_only=True):
    """One request that has not ended.

    Attributes:
        request: its name.
        tenant: whose turn it takes.
        model: what it asks for.
        rank: its tier's rank.
        output_tokens_max: its output limit.
        input_tokens_max: a bound on its prompt.
        prefix: block hashes, cut to the limit.
        arrived_ns: when it came; TTFT counts from here.
        late_ns: from here on half of its TTFT promise is gone.
        state: where it is.
        attempt: times it was sent.
        worker: who has it, or broke it off last.
        sent_ns: when it was last sent.
        prefill_tokens: of its prompt, expected to be computed where it was sent.
        avoided: who was to compute it for the worker that broke it off last.
        prefiller: who computes its prompt for the worker that has it, until it begins to answer.
        session: the conversation that it belongs to.
        queued_ns: when it was last queued; patience counts from here.
        needs: what the worker must have; None if any of the model will do.
        hints: what its agent knows of it.
        answered: its answer has begun, at this or an earlier worker.
        displaced: it made room for another request.
        once: no second worker is asked; see ``Arrived``.
        unheard: nobody hears when its prompt has been read, see ``Arrived``; so it is never counted
            as left to prefill, which it would be until its answer ends.
        hedged: a second worker was asked.
        second: that worker, while it is not decided whose answer it gets.
    """

    request: RequestID
    tenant: TenantID
    model: ModelName
    rank: int
    output_tokens_max: int
    input_tokens_max: int
    prefix: tuple[int, ...]
    arrived_ns: int
    late_ns: int
    state: State = State.QUEUED
    attempt: int = 0
    worker: WorkerID | None = None
    sent_ns: int = 0
    prefill_tokens: int = 0
    prefiller: WorkerID | None = None
    avoided: WorkerID | None = None
    session: str | None = None
    queued_ns: int = 0
    needs: Needs | None = None
    hints: Hints | None = None
    answered: bool = False
    displaced: bool = False
    once: bool = False
    unheard: bool = False
    hedged: bool = False
    second: SecondTry | None = None
