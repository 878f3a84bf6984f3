"""Where a request stands in its caller's trace, as W3C Trace Context writes it."""

from __future__ import annotations

import re
from typing import Final

from tokenworks.core.ids import RequestID
from tokenworks.core.trace_place import Trace

STATE_CHARS_MAX: Final = 512
"""Of a ``tracestate``; a longer one is dropped, as the recommendation allows."""

_PARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[ -~]*)?"
)
_STATE: Final = re.compile(rf"[ -~\t]{{1,{STATE_CHARS_MAX}}}")


def trace_of(parent: str, state: str = "") -> Trace | None:
    """What a caller's headers say; None if they are not valid, which is no error.

    Args:
        parent: its ``traceparent``.
        state: its ``tracestate``; empty if it has none.

    Source:
        https://www.w3.org/TR/trace-context/ section 3.

    >>> trace_of("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a=1").state
    'a=1'
    >>> trace_of("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more") is None
    True
    >>> trace_of("00-00000000000000000000000000000000-00f067aa0ba902b7-01") is None
    True
    """
    found = _PARENT.fullmatch(parent)
    if found is None or (found.group(1) is not None and parent.startswith("00")):
        return None
    return Trace(parent=parent, state=state if _STATE.fullmatch(state) else "")


def header_lines(request: RequestID, trace: Trace | None) -> bytes:
    r"""What a worker is told of a request beside its body: whole header lines.

    >>> header_lines(RequestID("req_1"), None)
    b'x-request-id: req_1\r\n'
    """
    lines = f"x-request-id: {request}\r\n"
    if trace is not None:
        lines += f"traceparent: {trace.parent}\r\n"
        if trace.state:
            lines += f"tracestate: {trace.state}\r\n"
    return lines.encode("ascii")
