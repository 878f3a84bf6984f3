"""What an engine is told besides what the caller asked for."""

from __future__ import annotations

from typing import Final

from tokenworks.core.orders import CHAT_PATH, Order

COMPLETIONS_PATH: Final = "/v1/completions"
EVENT_PATHS: Final = frozenset({CHAT_PATH, COMPLETIONS_PATH})
"""Where an engine answers with events."""
_TELL_PROGRESS: Final = b'{"return_progress":true,'
"""llama.cpp then says how much of the prompt it has read: a disconnect is billed exactly."""


def worker_body(order: Order, *, embedded: bool, cache_salt: bool) -> bytes:
    """The body for a worker.

    Args:
        order: the request.
        embedded: whether the embedded engine gets it, which tells how far a prompt is read.
        cache_salt: whether the engine keeps callers' caches apart by a salt.
    """
    body = order.body
    if order.worker_path in EVENT_PATHS:
        if embedded:
            return _TELL_PROGRESS + body[1:]
        if cache_salt:
            return b'{"cache_salt":"%b",' % order.cache_salt.encode() + body[1:]
    return body
