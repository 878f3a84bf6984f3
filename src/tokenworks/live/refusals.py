"""What callers are told of requests that were not served."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from msgspec import UNSET

from tokenworks.catalogue.factory_config import PoolConfig
from tokenworks.core.errors import (
    CapacityExceeded,
    InvalidRequest,
    NotOffered,
    TokenworksError,
    WorkerFailed,
    WorkerUnavailable,
)
from tokenworks.core.ids import PoolID
from tokenworks.core.needs import nothing_offers
from tokenworks.core.orders import CHAT_PATH, Order
from tokenworks.core.units import NS_PER_MS
from tokenworks.dispatch.commands import Reject

CALLER_AT_FAULT: Final = frozenset({400, 413, 422})
"""A worker's statuses that blame the request. Others, such as 401, blame how we reach it."""

NO_SUCH_PATH: Final = frozenset({404, 405, 501})
"""Said by a worker that serves no embeddings, sound and so on; every worker serves chat."""


def refuse_unserved(order: Order, pools: Mapping[PoolID, PoolConfig]) -> None:
    """Refuse what no pool can serve, before anything is held for it.

    Raises:
        InvalidRequest: it may make the embedded engine allocate until it dies.
        NotOffered: no pool has what it needs.
    """
    if order.extra_fields and any(
        pool.engine == "embedded" and pool.model == order.model for pool in pools.values()
    ):
        raise InvalidRequest(
            f"The engine of {order.model!r} does not take {order.extra_fields[0]!r}.",
            hint="Leave it out; text, OpenAI's own fields and common samplers pass.",
        )
    if order.needs is not None:
        offers = [pool.offers for pool in pools.values() if pool.model == order.model]
        lacking = nothing_offers(offers, order.needs)
        if lacking is not None:
            raise not_offered(order, lacking)


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
    if command.reason == "retries_spent":
        return WorkerFailed(
            f"A worker broke off this request, and so many of {order.model!r} were broken off that "
            "it is not sent again.",
            hint=f"Try again in {wait_s} s; `tokenworks doctor` tells the operator why.",
            retry_after_s=wait_s,
        )
    return WorkerFailed(
        f"Workers broke off this request {command.attempts} times.", hint="Try again."
    )


def sent_once(why: str) -> WorkerFailed:
    """Why a request that was passed on, and may not be repeated, has no answer."""
    return WorkerFailed(
        f"The provider broke off after the request was sent to it: {why}",
        hint="It may have been carried out: look before you send it again.",
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


def at_fault(order: Order, status: int) -> bool:
    """Whether a worker's status blames the request."""
    nowhere = status in NO_SUCH_PATH and order.worker_path != CHAT_PATH
    return status in CALLER_AT_FAULT or nowhere


def refused(status: int, said: bytes) -> InvalidRequest:
    """The worker found the request itself at fault."""
    return InvalidRequest(
        f"The worker refused the request with status {status}: {words_of_error(said)}",
        hint="Mend the request and send it again.",
    )


def words_of_error(said: bytes) -> str:
    """A worker's own words out of its error body."""
    try:
        found = msgspec.json.decode(said)
        return str(found["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return said[:200].decode(errors="replace")
