"""What callers are told of requests that were not served."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
from msgspec import UNSET

from tokenworks.core.errors import (
    CapacityExceeded,
    InvalidRequest,
    NotOffered,
    TokenworksError,
    WorkerFailed,
    WorkerUnavailable,
)
from tokenworks.core.orders import Order
from tokenworks.core.units import NS_PER_MS
from tokenworks.dispatch.commands import Reject


def rejection(command: Reject, order: Order, loop_s: Callable[[int], float]) -> TokenworksError:
    """The dispatcher's refusal, for the caller.

    Args:
        command: the refusal.
        order: what was refused.
        loop_s: how long a time on the driver's clock is for the caller, in seconds.
    """
    wait_ns = command.retry_after_ns
    wait_s = None if wait_ns is None else max(1, math.ceil(loop_s(wait_ns)))
    waited_ms = command.waited_ns // NS_PER_MS
    if command.code == "capacity_exceeded":
        return CapacityExceeded(
            f"The {order.tier} tier is full: {command.ahead} requests are ahead, and this one "
            f"waited {waited_ms} ms.",
            hint=f"Try again in {wait_s} s.",
            retry_after_s=wait_s or 1,
        )
    if command.code == "not_offered":
        assert command.lacking is not UNSET, command
        return not_offered(order, command.lacking)
    if command.code == "invalid_request":
        return InvalidRequest(
            f"This prompt is too long for {order.model!r}: it may have {order.input_tokens_max} "
            f"tokens, and the largest KV cache of its workers holds {command.kv_tokens_max}.",
            hint="Shorten it; operators: give the workers a longer context.",
        )
    if command.code == "worker_unavailable":
        having = "" if command.lacking is UNSET else f" with {command.lacking}"
        return WorkerUnavailable(
            f"No worker for {order.model!r}{having} is up ({command.reason}).",
            hint="Try again; `tokenworks doctor` tells the operator why.",
            retry_after_s=wait_s,
        )
    return WorkerFailed(
        f"Workers broke off this request {command.attempts} times.", hint="Try again."
    )


def shutting_down() -> CapacityExceeded:
    """The factory takes no more."""
    return CapacityExceeded("The factory is shutting down.", hint="Try again.", retry_after_s=5)


def not_offered(order: Order, lacking: str) -> NotOffered:
    """No worker has what a request needs."""
    return NotOffered(
        f"No worker of {order.model!r} has {lacking}, which the request needs.",
        hint="Ask for what is offered; operators: give a pool `labels` or `adapters`.",
    )


def words_of_error(said: bytes) -> str:
    """A worker's own words out of its error body."""
    try:
        found = msgspec.json.decode(said)
        return str(found["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return said[:200].decode(errors="replace")
