"""The states of a request and the steps between them, as a table that can be printed."""

from __future__ import annotations

import enum
from typing import Final


class State(enum.StrEnum):
    """Where a request is; it begins queued, if only for the length of one decision."""

    QUEUED = "queued"
    SENT = "sent"
    ANSWERING = "answering"
    ENDED = "ended"

    __hash__ = str.__hash__


class Step(enum.StrEnum):
    """What moves a request from one state to the next."""

    SEND = "send"
    START = "start"
    FINISH = "finish"
    RETRY = "retry"
    BREAK = "break"
    PREEMPT = "preempt"
    REJECT = "reject"
    WITHDRAW = "withdraw"

    __hash__ = str.__hash__


TRANSITIONS: Final[dict[tuple[State, Step], State]] = {
    (State.QUEUED, Step.SEND): State.SENT,
    (State.QUEUED, Step.REJECT): State.ENDED,
    (State.QUEUED, Step.WITHDRAW): State.ENDED,
    (State.SENT, Step.START): State.ANSWERING,
    (State.SENT, Step.FINISH): State.ENDED,
    (State.SENT, Step.RETRY): State.QUEUED,
    (State.SENT, Step.PREEMPT): State.QUEUED,
    (State.SENT, Step.BREAK): State.ENDED,
    (State.SENT, Step.REJECT): State.ENDED,
    (State.SENT, Step.WITHDRAW): State.ENDED,
    (State.ANSWERING, Step.FINISH): State.ENDED,
    (State.ANSWERING, Step.PREEMPT): State.QUEUED,
    (State.ANSWERING, Step.BREAK): State.ENDED,
    (State.ANSWERING, Step.WITHDRAW): State.ENDED,
}
"""Every step that is possible; any other is a mistake of ours."""


def after(state: State, step: Step) -> State:
    """The state that a step leads to.

    >>> after(State.QUEUED, Step.SEND).value
    'sent'
    """
    target = TRANSITIONS.get((state, step))
    assert target is not None, (state, step)
    return target
