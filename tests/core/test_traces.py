"""Trace headers: what is valid is passed on as it is, what is not is left out."""

from __future__ import annotations

import pytest

from tokenworks.core.ids import RequestID
from tokenworks.core.trace_place import Trace
from tokenworks.core.traces import header_lines, trace_of

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_valid_parent_is_kept_with_its_state() -> None:
    assert trace_of(PARENT, "vendor=1,other=2") == Trace(parent=PARENT, state="vendor=1,other=2")
    later = PARENT.replace("00-", "01-", 1) + "-and-more"
    assert trace_of(later) == Trace(parent=later)


@pytest.mark.parametrize(
    "parent",
    [
        "",
        PARENT.upper(),
        PARENT[:-1],
        PARENT + "-more",
        PARENT + "\r\nx: y",
        PARENT.replace("00-4", "ff-4"),
        PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        PARENT.replace("00f067aa0ba902b7", "0" * 16),
        f"{PARENT},{PARENT}",
    ],
)
def test_a_parent_that_is_not_valid_is_none(parent: str) -> None:
    assert trace_of(parent) is None


@pytest.mark.parametrize("state", ["", "a=1\r\nx: y", "é=1", "x" * 513])
def test_a_state_that_cannot_be_passed_on_is_left_out(state: str) -> None:
    assert trace_of(PARENT, state) == Trace(parent=PARENT)


def test_lines_for_a_worker() -> None:
    request = RequestID("req_1")
    assert header_lines(request, None) == b"x-request-id: req_1\r\n"
    parent = f"traceparent: {PARENT}\r\n".encode()
    assert header_lines(request, trace_of(PARENT)) == b"x-request-id: req_1\r\n" + parent
    assert header_lines(request, trace_of(PARENT, "a=1")).endswith(b"tracestate: a=1\r\n")
