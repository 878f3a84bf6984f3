"""What a request is told that is turned away: why, who was ahead, and when to come again."""

from __future__ import annotations

from msgspec import UNSET

from tokenworks.core.ids import RequestID, WorkerID
from tokenworks.core.needs import nothing_offers
from tokenworks.core.slo import Promise
from tokenworks.dispatch import pickers
from tokenworks.dispatch.commands import Abort, Reject, RejectCode, RejectReason
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.requests import Request


def withdrawal(request: RequestID, worker: WorkerID, sent_ns: int, now_ns: int) -> Abort:
    """The command that stops a worker's work on a request whose client has left."""
    return Abort(request=request, worker=worker, reason="withdrawn", held_ns=now_ns - sent_ns)


def rejection(
    request: Request,
    code: RejectCode,
    reason: RejectReason,
    fleet: Fleet | None,
    promise: Promise,
    now_ns: int,
) -> Reject:
    """The command that turns a request away which is in no line any more.

    Args:
        request: that one.
        code: what its client is told.
        reason: what decided.
        fleet: its model's; None if that never had a worker.
        promise: of its tier.
        now_ns: now.
    """
    ahead, retry_after_ns, lacking, kv_tokens_max = 0, None, None, None
    if reason == "prompt_too_long":
        assert fleet is not None
        kv_tokens_max = fleet.kv_tokens_max(request.needs)
    elif fleet is not None:
        ahead = fleet.ahead(request.rank)
        # With no worker up nothing is known but how long the tier is ready to wait.
        retry_after_ns = pickers.retry_after_bounded(promise.patience_ns)
        workers = fleet.workers
        if request.needs is not None:
            workers = list(fleet.each(fleet.having(request.needs)))
            lacking = nothing_offers([each.offers for each in fleet.workers], request.needs)
        if workers:
            retry_after_ns = pickers.retry_after_ns(
                workers, request.rank, ahead, request.output_tokens_max, fleet.sent_ranks
            )
    return Reject(
        request=request.request,
        code=code,
        reason=reason,
        retry_after_ns=retry_after_ns,
        ahead=ahead,
        waited_ns=now_ns - request.arrived_ns,
        attempts=request.attempt,
        lacking=UNSET if lacking is None else lacking,
        kv_tokens_max=UNSET if kv_tokens_max is None else kv_tokens_max,
    )
