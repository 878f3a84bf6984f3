"""The headers of our own: who the agent is, what its request needs, and what it knows of it."""

from __future__ import annotations

from typing import Final

from tokenworks.core.errors import InvalidRequest
from tokenworks.core.ids import AgentName, RunID
from tokenworks.core.needs import LABELS_MAX, PRIORITY_DEFAULT, PRIORITY_MAX, Hints, Needs, words_of
from tokenworks.core.trace_place import Trace
from tokenworks.core.traces import trace_of
from tokenworks.core.units import NS_PER_S
from tokenworks.gateway.http_io import LABEL_LEN_MAX, Headers, label_of
from tokenworks.gateway.own_words import OwnHeaders
from tokenworks.gateway.request_ids import REQUEST_ID, caller_id

PREFIX: Final = b"x-tokenworks-"

AGENT_HEADER: Final = b"x-tokenworks-agent"
"""The name of the agent that asks, for reports."""

RUN_HEADER: Final = b"x-tokenworks-run"
"""The agent's run, which may have limits of its own."""

LABELS_HEADER: Final = b"x-tokenworks-labels"
"""Data labels, beside those of the key: only workers that have them all may see the request."""

ADAPTER_HEADER: Final = b"x-tokenworks-adapter"
"""The LoRA adapter that is to be applied."""

SESSION_HEADER: Final = b"x-tokenworks-session"
"""The conversation that the request belongs to; its requests go to the same worker if they can."""

OUTPUT_HEADER: Final = b"x-tokenworks-output-tokens"
"""How long the agent expects the answer to be."""

TOOL_HEADER: Final = b"x-tokenworks-tool-seconds"
"""How long a tool will take after this answer, before the session goes on."""

ENDS_HEADER: Final = b"x-tokenworks-session-ends"
"""``true``: no request of the session follows."""

PRIORITY_HEADER: Final = b"x-tokenworks-priority"
"""How urgent the request is among those of its tenant that wait in the same tier; 9 goes first."""

LABELS_LEN_MAX: Final = LABELS_MAX * (LABEL_LEN_MAX + len(", "))
"""Characters of all labels of a request together."""
TOKENS_MAX: Final = 1 << 30
TOOL_S_MAX: Final = 86_400


def own_headers(headers: Headers, key_labels: tuple[str, ...]) -> OwnHeaders:
    """Read the headers of our own, and those that everybody passes on; others are ignored.

    Labels of several headers hold together, as whoever passes a request on may have set some.

    Args:
        headers: the request's, names in lower case.
        key_labels: data labels of its key, which hold whatever a header says.

    Raises:
        InvalidRequest: one of them says what it cannot, or another than that of labels comes twice.
    """
    values: dict[bytes, bytes] = {}
    passed: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _PASSED:
            passed[name] = passed[name] + b"," + value if name in passed else value
        elif name in _NAMES:
            if name in values and name != LABELS_HEADER:
                raise InvalidRequest(
                    f"The header {name.decode()} comes twice.", hint="Send it once."
                )
            values[name] = values[name] + b"," + value if name in values else value
    found = {
        name: label_of(name, value, LABELS_LEN_MAX if name == LABELS_HEADER else LABEL_LEN_MAX)
        for name, value in values.items()
    }
    if not (found or key_labels or passed):
        return NOTHING_SAID
    agent, run = found.get(AGENT_HEADER), found.get(RUN_HEADER)
    return OwnHeaders(
        agent=None if agent is None else AgentName(agent),
        run=None if run is None else RunID(run),
        needs=_needs(found, key_labels),
        session=found.get(SESSION_HEADER),
        hints=_hints(found),
        caller_request=caller_id(passed[REQUEST_ID]) if REQUEST_ID in passed else None,
        trace=_trace(passed) if _TRACEPARENT in passed else None,
    )


def _trace(passed: dict[bytes, bytes]) -> Trace | None:
    parent, state = passed[_TRACEPARENT], passed.get(_TRACESTATE, b"")
    return trace_of(bytes(parent).decode("latin-1"), bytes(state).decode("latin-1"))


def _needs(found: dict[bytes, str], key_labels: tuple[str, ...]) -> Needs | None:
    labels = words_of(found.get(LABELS_HEADER, ""), LABELS_HEADER.decode())
    labels = tuple(sorted({*labels, *key_labels}))
    if len(labels) > LABELS_MAX:
        raise InvalidRequest(
            f"The key and the header {LABELS_HEADER.decode()} have {len(labels)} labels together.",
            hint=f"Have at most {LABELS_MAX}.",
        )
    adapter = found.get(ADAPTER_HEADER)
    return Needs(labels=labels, adapter=adapter) if labels or adapter else None


def _hints(found: dict[bytes, str]) -> Hints | None:
    priority = _number(found, PRIORITY_HEADER, 0, PRIORITY_MAX)
    hints = Hints(
        output_tokens=_number(found, OUTPUT_HEADER, 1, TOKENS_MAX),
        tool_ns=_seconds(found, TOOL_HEADER),
        session_ends=_flag(found, ENDS_HEADER),
        priority=PRIORITY_DEFAULT if priority is None else priority,
    )
    return None if hints == _NO_HINTS else hints


def _number(found: dict[bytes, str], name: bytes, least: int, most: int) -> int | None:
    text = found.get(name)
    if text is None:
        return None
    if not (text.isdigit() and len(text) <= len(str(most)) and least <= int(text) <= most):
        raise _wrong(name, text, f"a whole number from {least} to {most}")
    return int(text)


def _seconds(found: dict[bytes, str], name: bytes) -> int | None:
    """Seconds with at most three decimals, as nanoseconds."""
    text = found.get(name)
    if text is None:
        return None
    whole, dot, part = text.partition(".")
    ms = f"{whole}{part:0<3}"
    right = whole.isdigit() and len(whole) <= len(str(TOOL_S_MAX)) and (part.isdigit() or not dot)
    if not right or len(part) > 3 or int(ms) > TOOL_S_MAX * 1_000:
        raise _wrong(name, text, f"seconds from 0 to {TOOL_S_MAX}, with at most three decimals")
    return int(ms) * (NS_PER_S // 1_000)


def _flag(found: dict[bytes, str], name: bytes) -> bool:
    text = found.get(name, "false").lower()
    if text not in ("true", "false"):
        raise _wrong(name, text, "true or false")
    return text == "true"


def _wrong(name: bytes, text: str, want: str) -> InvalidRequest:
    return InvalidRequest(
        f"The header {name.decode()} is {text[:LABEL_LEN_MAX]!r}; it must be {want}.",
        hint="Mend it or leave it out.",
    )


_TRACEPARENT: Final = b"traceparent"
_TRACESTATE: Final = b"tracestate"
_PASSED: Final = frozenset({REQUEST_ID, _TRACEPARENT, _TRACESTATE})
"""Of these nothing is refused: what cannot be used is left out."""

READ: Final = (PREFIX, *(name + b":" for name in sorted(_PASSED)))
"""How the headers that are read here begin."""

NOTHING_SAID: Final = OwnHeaders()
_NO_HINTS: Final = Hints()
_NAMES: Final = frozenset(
    {
        AGENT_HEADER,
        RUN_HEADER,
        LABELS_HEADER,
        ADAPTER_HEADER,
        SESSION_HEADER,
        OUTPUT_HEADER,
        TOOL_HEADER,
        ENDS_HEADER,
        PRIORITY_HEADER,
    }
)
