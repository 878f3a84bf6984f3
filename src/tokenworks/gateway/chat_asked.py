"""A chat completion request that was checked."""

from __future__ import annotations

from tokenworks.gateway.dialect import Asked


class ChatRequest(Asked, frozen=True, kw_only=True):
    """A chat completion request after checking; its prompt is hashed in PREFIX_BLOCK_BYTES.

    Attributes:
        include_usage: whether the caller wants the stream's usage event.
    """

    include_usage: bool
