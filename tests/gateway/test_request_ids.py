"""A request's names: in every answer, in errors too, in the ledger's order and in the log."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.gateway.fake_desk import Caller, FakeClock, FakeDesk, Step, answer, ask
from tokenworks.core.errors import CapacityExceeded, WorkerFailed
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.request_ids import RequestNames, caller_id

Run = Callable[[Coroutine[Any, Any, Any]], Any]
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OURS = re.compile(r"req_[0-9a-f]{24}")


def served(run: Run, desk: FakeDesk, caller: Caller) -> Caller:
    run(caller.call(Gateway(desk, FakeClock())))
    return caller


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_tells_the_name_that_the_ledger_has(run: Run, stream: bool) -> None:
    desk = FakeDesk(answer("a"))
    caller = served(run, desk, ask(stream))
    assert caller.headers["x-request-id"] == desk.orders[0].request
    assert OURS.fullmatch(desk.orders[0].request)
    assert "x-tokenworks-request" not in caller.headers


@pytest.mark.parametrize("stream", [True, False])
def test_a_callers_own_name_comes_back_beside_ours(run: Run, stream: bool) -> None:
    desk = FakeDesk(answer("a"))
    caller = served(run, desk, ask(stream, named={"x-request-id": "mine-7"}))
    assert caller.headers["x-request-id"] == "mine-7"
    assert caller.headers["x-tokenworks-request"] == desk.orders[0].request != "mine-7"
    assert desk.orders[0].caller_request == "mine-7"


@pytest.mark.parametrize("name", ["", " ", "two words", "x" * 129, "é", "a\x7f"])
def test_a_name_that_cannot_be_shown_is_left_out(run: Run, name: str) -> None:
    assert caller_id(name.encode("latin-1")) is None
    desk = FakeDesk(answer("a"))
    caller = served(run, desk, ask(named={"x-request-id": name.replace("\x7f", "\tb")}))
    assert caller.headers["x-request-id"] == desk.orders[0].request
    assert desk.orders[0].caller_request is None


@pytest.mark.parametrize(
    "caller",
    [
        Caller("GET", "/nowhere", headers={"x-request-id": "mine"}),
        Caller("PUT", "/metrics", headers={"x-request-id": "mine"}),
        Caller("POST", "/v1/chat/completions", b"{", headers={"x-request-id": "mine"}),
        Caller("GET", "/v1/models", headers={"x-request-id": "mine", "authorization": ""}),
        Caller("GET", "/v1/models", headers={"x-request-id": "mine"}),
    ],
)
def test_every_other_answer_has_names_too(run: Run, caller: Caller) -> None:
    served(run, FakeDesk(), caller)
    assert caller.headers["x-request-id"] == "mine"
    assert OURS.fullmatch(caller.headers["x-tokenworks-request"])


def test_a_refusal_has_the_name_of_the_order_that_was_refused(run: Run) -> None:
    desk = FakeDesk()
    desk.open_error = CapacityExceeded("full", retry_after_s=1)
    caller = served(run, desk, ask())
    assert caller.status == 429
    assert caller.headers["x-request-id"] == desk.orders[0].request
    broken: list[Step] = [WorkerFailed("it broke")]
    desk = FakeDesk(broken)
    caller = served(run, desk, ask())
    assert caller.status == 502
    assert caller.headers["x-request-id"] == desk.orders[0].request


def test_the_log_of_a_mistake_of_ours_has_both_names(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    desk = FakeDesk()
    desk.open_error = ZeroDivisionError()  # type: ignore[assignment]
    caller = served(run, desk, ask(named={"x-request-id": "mine"}))
    assert caller.status == 500
    assert f"{desk.orders[0].request}, to its caller mine" in caplog.text


def test_names_rise_with_time() -> None:
    names = RequestNames()
    made = [names.new(ms * 1_000_000) for ms in range(5)]
    assert made == sorted(made)
    assert len({names.new(0) for _ in range(1_000)}) == 1_000


def test_a_callers_trace_is_in_the_order(run: Run) -> None:
    desk = FakeDesk(answer("a"))
    caller = ask(named={"traceparent": PARENT, "tracestate": "a=1\r\ntracestate: b=2"})
    served(run, desk, caller)
    trace = desk.orders[0].trace
    assert trace is not None
    assert (trace.parent, trace.state) == (PARENT, "a=1,b=2")


@pytest.mark.parametrize("parents", [["nonsense"], [PARENT, PARENT]])
def test_a_trace_that_is_not_valid_is_no_error(run: Run, parents: list[str]) -> None:
    desk = FakeDesk(answer("a"))
    caller = ask(named={"traceparent": "\r\ntraceparent: ".join(parents)})
    assert served(run, desk, caller).status == 200
    assert desk.orders[0].trace is None
