"""A place in a trace."""

from __future__ import annotations

import msgspec


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """A place in a trace.

    Attributes:
        parent: a valid ``traceparent``: version, trace, span that asks, flags.
        state: a ``tracestate``; empty if there is none.
    """

    parent: str
    state: str = ""
