"""What a request says in headers of our own."""

from __future__ import annotations

import msgspec

from tokenworks.core.ids import AgentName, RunID
from tokenworks.core.needs import Hints, Needs
from tokenworks.core.trace_place import Trace


class OwnHeaders(msgspec.Struct, frozen=True, kw_only=True):
    """What a request's own headers say, with what its key asks for.

    Attributes:
        agent: who asks, if it is an agent.
        run: its run.
        needs: what the worker must have; None if any will do.
        session: the conversation that it belongs to.
        hints: what the agent knows of its request; None if it says nothing.
        caller_request: the caller's own name for its request.
        trace: where the request stands in the caller's trace.
    """

    agent: AgentName | None = None
    run: RunID | None = None
    needs: Needs | None = None
    session: str | None = None
    hints: Hints | None = None
    caller_request: str | None = None
    trace: Trace | None = None
