"""The chat route, from a caller's first byte to the settlement, in every way that it can end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.gateway.fake_desk import (
    DONE,
    MODEL,
    ROLE,
    STOP,
    Caller,
    FakeClock,
    FakeDesk,
    Hold,
    Step,
    answer,
    ask,
    chunk,
    event,
    progress,
    token,
    usage_event,
)
from tokenworks.core.errors import (
    CapacityExceeded,
    LedgerUnavailable,
    QuotaExceeded,
    TokenworksError,
    WorkerFailed,
    WorkerUnavailable,
)
from tokenworks.core.needs import Hints, Needs
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.gateway.answer import SEND_WAIT_NS_MIN, Meter
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.chat import ChatWriter

Run = Callable[[Coroutine[Any, Any, Any]], Any]
MS = 1_000_000


class House:
    """A gateway at a fake desk."""

    def __init__(self, script: list[Step] | None = None) -> None:
        self.desk = FakeDesk(answer("a", "b", "c") if script is None else script)
        self.clock = FakeClock()
        self.gateway = Gateway(self.desk, self.clock)

    async def serve(self, caller: Caller) -> Caller:
        return await caller.call(self.gateway)

    def responses(self, status: int) -> float | None:
        labels = {"route": "/v1/chat/completions", "status": str(status)}
        return self.gateway.metrics.registry.get_sample_value("tokenworks_responses_total", labels)


def test_stream(run: Run) -> None:
    house = House()
    caller = run(house.serve(ask(service_tier="priority")))
    assert caller.status == 200
    assert caller.complete
    assert caller.headers["content-type"] == "text/event-stream"
    assert caller.headers["x-request-id"] == house.desk.orders[0].request
    *tokens, stop, done = caller.events
    assert [t["choices"][0]["delta"].get("content") for t in tokens] == [None, "a", "b", "c"]
    assert stop["choices"][0]["finish_reason"] == "stop"
    assert stop["service_tier"] == "medium"
    assert done == "[DONE]"
    assert all("service_tier" not in t for t in tokens)
    outcome = house.desk.delivery.outcome
    assert outcome.ending == "done"
    assert outcome.usage.output_tokens == 3
    assert house.desk.delivery.aborts == 0
    assert house.responses(200) == 1


def test_an_agent_names_itself_and_its_run(run: Run) -> None:
    house = House()
    named = {"x-tokenworks-agent": "scout", "x-tokenworks-run": "nightly-7"}
    run(house.serve(ask(named=named)))
    run(house.serve(ask()))
    assert [(each.agent, each.run) for each in house.desk.orders] == [
        ("scout", "nightly-7"),
        (None, None),
    ]


def test_an_agent_says_what_it_needs_and_knows(run: Run) -> None:
    house = House()
    named = {
        "x-tokenworks-labels": "eu",
        "x-tokenworks-adapter": "support",
        "x-tokenworks-session": "s1",
        "x-tokenworks-tool-seconds": "3",
    }
    run(house.serve(ask(named=named)))
    run(house.serve(ask()))
    asked, plain = house.desk.orders
    assert asked.needs == Needs(labels=("eu",), adapter="support")
    assert (asked.session, asked.hints) == ("s1", Hints(tool_ns=3 * NS_PER_S))
    assert json.loads(asked.body)["model"] == "support"
    assert asked.cache_salt != plain.cache_salt
    assert (plain.needs, plain.session, plain.hints) == (None, None, None)


@pytest.mark.parametrize("name", ["a\tb", "x" * 129, "\xe9"])
def test_a_name_that_is_no_plain_text_is_refused(run: Run, name: str) -> None:
    house = House()
    caller = run(house.serve(ask(named={"x-tokenworks-run": name})))
    assert caller.status == 400
    assert "x-tokenworks-run" in caller.json["error"]["message"]
    assert house.desk.orders == []


def test_stream_with_usage(run: Run) -> None:
    caller = run(House().serve(ask(stream_options={"include_usage": True})))
    stop, said, _ = caller.events[-3:]
    assert said["choices"] == []
    assert said["usage"]["total_tokens"] == 10
    assert stop["service_tier"] == said["service_tier"] == "medium"


def test_whole(run: Run) -> None:
    house = House()
    caller = run(house.serve(ask(stream=False)))
    assert caller.status == 200
    assert caller.complete
    assert caller.headers["x-request-id"] == house.desk.orders[0].request
    assert caller.json["object"] == "chat.completion"
    assert caller.json["service_tier"] == "medium"
    assert caller.json["choices"][0]["message"] == {"role": "assistant", "content": "abc"}
    assert caller.json["usage"]["total_tokens"] == 10
    assert house.desk.delivery.outcome.ending == "done"


def test_the_order(run: Run) -> None:
    house = House()
    run(house.serve(ask(service_tier="ultra", max_tokens=9)))
    (order,) = house.desk.orders
    assert order.request.startswith("req_")
    assert (order.key.key, order.model, order.tier) == ("k1", MODEL, Tier.ULTRA)
    assert order.output_tokens_max == 9
    assert order.arrived_ns == house.clock.now_ns()
    assert json.loads(order.body)["max_tokens"] == 9


@pytest.mark.parametrize("stream", [True, False])
def test_a_stream_that_comes_at_once(run: Run, *, stream: bool) -> None:
    whole = b"".join(step for step in answer("a", "b") if isinstance(step, bytes))
    caller = run(House([whole]).serve(ask(stream=stream)))
    assert caller.complete
    assert caller.status == 200


@pytest.mark.parametrize("stream", [True, False])
def test_an_end_without_done_is_an_end(run: Run, *, stream: bool) -> None:
    house = House([ROLE, token("a"), STOP])
    caller = run(house.serve(ask(stream=stream)))
    assert caller.complete
    assert house.desk.delivery.outcome.ending == "done"
    assert house.desk.delivery.outcome.usage.output_tokens == 1


def test_an_answer_of_closing_events_alone(run: Run) -> None:
    house = House([STOP, DONE])
    caller = run(house.serve(ask()))
    assert caller.status == 200
    assert [each if each == "[DONE]" else each["service_tier"] for each in caller.events] == [
        "medium",
        "[DONE]",
    ]
    assert house.desk.delivery.outcome.measured.ttft_ns is None


def test_a_last_token_that_comes_with_the_finish_is_timed(run: Run) -> None:
    house = House([])
    last: Step = chunk({"content": "b"}, "stop")
    house.desk.script = [token("a"), timed(house, 10), last, DONE]
    caller = run(house.serve(ask()))
    assert caller.events[1]["choices"][0]["delta"] == {"content": "b"}
    outcome = house.desk.delivery.outcome
    assert outcome.usage.output_tokens == 2
    assert outcome.measured.decode_ns == 10 * MS


# A caller who leaves.


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("chunks", range(6))
def test_a_caller_who_leaves_after_any_chunk(run: Run, chunks: int, *, stream: bool) -> None:
    caller = ask(stream=stream)
    tokens = [token(str(i)) for i in range(5)]
    script: list[Step] = [progress(9, 2, 9), *tokens[:chunks], caller.hang_up, Hold()]
    house = House([*script, *tokens[chunks:], STOP, DONE])
    run(house.serve(caller))
    delivery = house.desk.delivery
    assert delivery.aborts >= 1
    assert delivery.outcome.ending == "disconnected"
    assert delivery.outcome.usage.output_tokens == chunks
    assert delivery.outcome.usage.prompt_tokens == 9
    assert delivery.outcome.usage.cached_input_tokens == 2
    assert house.responses(499) == 1
    assert not caller.received or not caller.complete


def test_a_caller_who_leaves_between_finish_and_done(run: Run) -> None:
    caller = ask()
    house = House([token("a"), STOP, caller.hang_up, Hold()])
    run(house.serve(caller))
    assert house.desk.delivery.outcome.ending == "disconnected"
    assert house.desk.delivery.outcome.usage.output_tokens == 1


def test_a_caller_who_leaves_while_queued(run: Run) -> None:
    async def main() -> None:
        house = House()
        house.desk.queued = asyncio.Event()
        caller = ask()
        serving = asyncio.ensure_future(house.serve(caller))
        await house.desk.entered.wait()
        caller.hang_up()
        await serving
        assert house.desk.withdrawn == [house.desk.orders[0].request]
        assert house.desk.deliveries == []
        assert caller.received == b""
        assert house.responses(499) == 1

    run(main())


class LateDesk(FakeDesk):
    """Its deliveries open although they are cancelled: the worker was faster."""

    async def open(self, order: Any) -> Any:
        try:
            return await super().open(order)
        except asyncio.CancelledError:
            self.queued = None
            return await super().open(order)


def test_an_answer_that_opens_as_its_caller_leaves_is_settled(run: Run) -> None:
    async def main() -> None:
        house = House()
        desk = LateDesk([Hold()])
        desk.queued = asyncio.Event()
        house.gateway = Gateway(desk, house.clock)
        caller = ask()
        serving = asyncio.ensure_future(house.serve(caller))
        await desk.entered.wait()
        caller.hang_up()
        await serving
        assert desk.delivery.outcome.ending == "disconnected"
        assert desk.delivery.aborts >= 1

    run(main())


def test_a_caller_who_leaves_before_the_body_ends(run: Run) -> None:
    caller = ask()
    caller.parts = [caller.request[:5]]
    house = House()
    caller.begin(house.gateway)
    caller.hang_up()
    assert house.desk.orders == []
    assert caller.received == b""


@pytest.mark.parametrize("writes", range(4))
def test_a_caller_who_leaves_at_any_write(run: Run, writes: int) -> None:
    caller = ask()

    def leave(before: int) -> None:
        if before == writes:
            caller.hang_up()

    caller.on_write = leave
    house = House()
    run(house.serve(caller))
    outcome = house.desk.delivery.outcome
    assert outcome.ending == "disconnected"
    assert outcome.usage.output_tokens == writes
    assert house.desk.delivery.aborts >= 1
    assert house.responses(499) == 1


def test_a_caller_who_leaves_while_its_answer_is_settled(run: Run) -> None:
    async def main() -> None:
        house, caller = House(), ask()

        async def leave() -> None:
            caller.hang_up()

        house.desk.before_settle = leave
        await house.serve(caller)
        assert house.desk.delivery.outcome.ending == "done"
        assert house.responses(499) == 1
        assert not caller.complete

    run(main())


# A worker that fails.


@pytest.mark.parametrize("before", [[], [progress(9, 0, 9)]], ids=["nothing", "progress"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_worker_that_fails_before_the_first_byte(
    run: Run, before: list[Step], *, stream: bool
) -> None:
    house = House([*before, WorkerFailed("broke off")])
    caller = run(house.serve(ask(stream=stream)))
    assert caller.status == 502
    assert caller.json["error"]["code"] == "worker_failed"
    assert house.desk.delivery.outcome.ending == "failed"
    assert house.desk.delivery.aborts == 1
    assert house.responses(502) == 1


FAILURES: dict[str, list[Step]] = {
    "broken off": [WorkerFailed("broke off")],
    "ended early": [],
    "error event": [event({"error": {"message": "out of memory"}})],
    "nonsense": [b"data: {\n\n"],
}


@pytest.mark.parametrize("name", sorted(FAILURES))
def test_a_worker_that_fails_in_the_middle_of_a_stream(run: Run, name: str) -> None:
    house = House([ROLE, token("a"), *FAILURES[name]])
    caller = run(house.serve(ask()))
    assert caller.status == 200
    assert caller.complete
    *tokens, last = caller.events
    assert len(tokens) == 2
    assert last["error"]["code"] == "worker_failed"
    assert last["error"]["type"] == "server_error"
    assert house.desk.delivery.outcome.ending == "failed"
    assert house.desk.delivery.outcome.usage.output_tokens == 1
    assert house.desk.delivery.aborts == 1
    assert house.responses(502) == 1


@pytest.mark.parametrize("name", sorted(FAILURES))
def test_a_worker_that_fails_in_the_middle_of_a_whole_answer(run: Run, name: str) -> None:
    house = House([ROLE, token("a"), *FAILURES[name]])
    caller = run(house.serve(ask(stream=False)))
    assert caller.status == 502
    assert caller.complete
    assert caller.json["error"]["code"] == "worker_failed"
    assert house.desk.delivery.outcome.ending == "failed"


def test_chunks_that_cannot_be_put_together_are_not_billed(run: Run) -> None:
    odd = event({"choices": [{"index": [], "finish_reason": None, "delta": {"content": "x"}}]})
    for script in ([odd], [STOP, odd]):
        house = House([*script, DONE])
        caller = run(house.serve(ask(stream=False)))
        assert caller.status == 502
        assert house.desk.delivery.outcome.ending == "failed"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (WorkerUnavailable("no worker", retry_after_s=3), 503),
        (CapacityExceeded("full", retry_after_s=2), 429),
        (QuotaExceeded("used up"), 429),
        (WorkerFailed("broke off 3 times"), 502),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_desk_that_refuses(
    run: Run, error: TokenworksError, status: int, *, stream: bool
) -> None:
    house = House()
    house.desk.open_error = error
    caller = run(house.serve(ask(stream=stream)))
    assert caller.status == status
    assert caller.json["error"]["code"] == error.code
    wait = error.retry_after_s
    assert caller.headers.get("retry-after") == (None if wait is None else str(wait))


# A ledger that cannot write, and our own mistakes.

NO_DISK = LedgerUnavailable("no disk", retry_after_s=5)


def test_a_ledger_that_cannot_write_the_end_of_a_stream(run: Run) -> None:
    house = House()
    house.desk.settle_error = NO_DISK
    caller = run(house.serve(ask()))
    assert caller.status == 200
    assert caller.complete
    assert caller.events[-1]["error"]["code"] == "ledger_unavailable"
    assert len(house.desk.delivery.outcomes) == 1
    assert house.responses(503) == 1


@pytest.mark.parametrize(
    "script", [answer("a"), [STOP, DONE], [token("a"), WorkerFailed("x")]], ids=str
)
def test_a_ledger_that_cannot_write_a_whole_answer(run: Run, script: list[Step]) -> None:
    house = House(script)
    house.desk.settle_error = NO_DISK
    caller = run(house.serve(ask(stream=False)))
    assert caller.status == 503
    assert caller.headers["retry-after"] == "5"
    assert caller.json["error"]["code"] == "ledger_unavailable"
    assert len(house.desk.delivery.outcomes) == 1


def test_a_ledger_that_cannot_write_when_nothing_was_sent(run: Run) -> None:
    house = House([STOP, DONE])
    house.desk.settle_error = NO_DISK
    caller = run(house.serve(ask()))
    assert caller.status == 503


def test_a_ledger_that_cannot_write_after_a_failure(run: Run) -> None:
    house = House([token("a"), WorkerFailed("x")])
    house.desk.settle_error = NO_DISK
    caller = run(house.serve(ask()))
    assert caller.events[-1]["error"]["code"] == "ledger_unavailable"


def test_a_ledger_that_cannot_write_after_the_caller_left(run: Run) -> None:
    caller = ask()
    house = House([token("a"), caller.hang_up, Hold()])
    house.desk.settle_error = NO_DISK
    run(house.serve(caller))
    assert house.responses(503) == 1
    assert len(house.desk.delivery.outcomes) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_mistake_at_settlement_is_told(
    run: Run, caplog: pytest.LogCaptureFixture, *, stream: bool
) -> None:
    house = House()
    house.desk.settle_error = AssertionError("ours")
    caller = run(house.serve(ask(stream=stream)))
    assert caller.complete
    error = caller.events[-1]["error"] if stream else caller.json["error"]
    assert caller.status == (200 if stream else 500)
    assert error["code"] == "error"
    assert error["type"] == "server_error"
    assert "ours" not in caller.body.decode()
    assert "ours" in caplog.text
    assert house.responses(500) == 1


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("sent", [0, 1])
def test_a_mistake_in_the_middle_is_settled_and_told(
    run: Run,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    sent: int,
    *,
    left: bool,
) -> None:
    house, caller = House([*[token("a")] * sent, token("b"), Hold()]), ask()

    def forward(_: ChatWriter, ready: bytes) -> bytes:
        if b'"b"' in ready:
            if left:
                caller.hang_up()
            raise ZeroDivisionError("ours")
        return ready

    monkeypatch.setattr(ChatWriter, "forward", forward)
    run(house.serve(caller))
    assert left or caller.complete
    assert house.desk.delivery.outcome.ending == ("disconnected" if left else "failed")
    assert house.desk.delivery.aborts == 1
    assert house.responses(500) == 1
    assert "ZeroDivisionError" in caplog.text


# An event loop that stops.


async def cancelled_at(house: House, caller: Caller, moment: asyncio.Event) -> None:
    caller.begin(house.gateway)
    (serving,) = house.gateway.serving.values()
    await moment.wait()
    serving.cancel("the loop stops")
    with pytest.raises(asyncio.CancelledError):
        await serving


@pytest.mark.parametrize("broken", [False, True])
def test_a_loop_that_stops_in_the_middle(run: Run, *, broken: bool) -> None:
    async def main() -> None:
        now = asyncio.Event()
        house = House([token("a"), now.set, Hold()])
        house.desk.settle_error = NO_DISK if broken else None
        await cancelled_at(house, ask(), now)
        assert house.desk.delivery.outcome.ending == "failed"
        assert house.desk.delivery.aborts == 1

    run(main())


def test_a_loop_that_stops_while_a_request_is_queued(run: Run) -> None:
    async def main() -> None:
        house = House()
        house.desk.queued = asyncio.Event()
        await cancelled_at(house, ask(), house.desk.entered)
        assert len(house.desk.withdrawn) == 1
        assert house.desk.deliveries == []

    run(main())


# Speed.


def timed(house: House, ms: int) -> Step:
    return lambda: house.clock.advance_ms(ms)


@pytest.mark.parametrize("stream", [True, False])
def test_the_meter_reads_send_times(run: Run, *, stream: bool) -> None:
    house = House([])
    steps: list[Step] = [timed(house, 40), ROLE, timed(house, 60), token("a")]
    for text in ("b", "c"):
        steps += [timed(house, 10), token(text)]
    house.desk.script = [*steps, timed(house, 5), STOP, usage_event(5, 3), DONE]
    run(house.serve(ask(stream=stream)))
    outcome = house.desk.delivery.outcome
    assert outcome.streamed is stream
    measured = outcome.measured
    assert measured.ttft_ns == 100 * MS
    assert measured.decode_ns == 20 * MS
    assert measured.output_tokens == 3


@pytest.mark.parametrize("slow_at", range(6))
def test_a_caller_who_reads_slowly_does_not_lower_the_delivered_speed(
    run: Run, slow_at: int
) -> None:
    house = House([])
    steps: list[Step] = [timed(house, 50), ROLE]
    for text in "abcd":
        steps += [timed(house, 10), token(text)]
    house.desk.script = [*steps, STOP, usage_event(5, 4), DONE]
    caller = ask()

    def read_slowly(before: int) -> None:
        if before == slow_at:
            caller.stop_reading()
            house.clock.advance_ms(5_000)
            caller.read_again()

    caller.on_write = read_slowly
    run(house.serve(caller))
    measured = house.desk.delivery.outcome.measured
    assert measured.ttft_ns == 60 * MS
    assert measured.decode_ns == 30 * MS


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("usage_tokens", [0, 1, 4])
def test_an_answer_without_text_is_timed_at_its_end(
    run: Run, usage_tokens: int, *, stream: bool
) -> None:
    house = House([])
    steps: list[Step] = [timed(house, 40), ROLE, timed(house, 10), STOP, timed(house, 500)]
    house.desk.script = [*steps, usage_event(5, usage_tokens), DONE]
    run(house.serve(ask(stream=stream)))
    measured = house.desk.delivery.outcome.measured
    assert measured.ttft_ns == (50 * MS if usage_tokens else None)
    assert measured.decode_ns == 0
    assert measured.output_tokens == usage_tokens


@pytest.mark.parametrize("stream", [True, False])
def test_a_token_that_is_a_probability_alone_is_timed(run: Run, *, stream: bool) -> None:
    odds = {"content": [{"token": "", "logprob": -0.1, "top_logprobs": []}]}
    choice = {"finish_reason": None, "index": 0, "delta": {"content": ""}, "logprobs": odds}
    house = House([])
    steps: list[Step] = [timed(house, 30), event({"choices": [choice]}), timed(house, 20)]
    house.desk.script = [*steps, event({"choices": [choice]}), timed(house, 9), STOP, DONE]
    run(house.serve(ask(stream=stream)))
    measured = house.desk.delivery.outcome.measured
    assert (measured.ttft_ns, measured.decode_ns) == (30 * MS, 20 * MS)
    assert measured.output_tokens == 2


@pytest.mark.parametrize("odds", [None, [], {"content": []}, {"content": None}, "x"])
def test_a_probability_of_nothing_is_no_token(run: Run, odds: object) -> None:
    choice = {"finish_reason": None, "index": 0, "delta": {"content": ""}, "logprobs": odds}
    house = House([event({"choices": [choice]}), STOP, DONE])
    run(house.serve(ask()))
    assert house.desk.delivery.outcome.measured.ttft_ns is None


def test_tokens_that_only_usage_knows_of_are_timed_at_settling(run: Run) -> None:
    caller = ask()
    house = House([])
    told = usage_event(5, 3)
    house.desk.script = [told, timed(house, 70), caller.hang_up, Hold()]
    run(house.serve(caller))
    outcome = house.desk.delivery.outcome
    assert outcome.ending == "disconnected"
    assert outcome.measured.ttft_ns == 70 * MS


def test_short_sends_are_the_factorys_own_time() -> None:
    meter = Meter(0)
    meter.tokens_sent(5)
    meter.waited(SEND_WAIT_NS_MIN - 1)
    meter.tokens_sent(10)
    meter.waited(SEND_WAIT_NS_MIN)
    meter.tokens_sent(20 + SEND_WAIT_NS_MIN)
    assert meter.measured(3, 0).decode_ns == 15


def test_a_worker_is_not_read_while_the_caller_does_not_read(run: Run) -> None:
    async def main() -> None:
        house = House([ROLE, token("a"), token("b"), STOP, DONE])
        caller, stuck = ask(), asyncio.Event()

        def stop(before: int) -> None:
            if before == 1:
                caller.stop_reading()
                stuck.set()

        caller.on_write = stop
        serving = asyncio.ensure_future(house.serve(caller))
        await stuck.wait()
        assert house.desk.delivery.paused
        assert house.desk.delivery.reads == 2
        caller.read_again()
        await serving
        assert house.desk.delivery.outcome.ending == "done"

    run(main())


@pytest.mark.parametrize("slow_s", [59, 60])
def test_a_caller_who_reads_nothing_for_long_has_left(run: Run, slow_s: int) -> None:
    async def main() -> None:
        house, caller = House(), ask()

        def read_nothing(before: int) -> None:
            if before == 2:
                caller.stop_reading()
                assert caller.connection is not None
                caller.connection.sweep(slow_s)
                if slow_s < 60:
                    caller.read_again()

        caller.on_write = read_nothing
        await house.serve(caller)
        outcome = house.desk.delivery.outcome
        assert caller.transport.aborted == (slow_s == 60)
        if slow_s < 60:
            assert outcome.ending == "done"
            return
        assert outcome.ending == "disconnected"
        assert outcome.usage.output_tokens == 2
        assert house.desk.delivery.aborts >= 1
        assert house.responses(499) == 1

    run(main())


def test_tool_calls_pass_through(run: Run) -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    house = House([ROLE, chunk({"tool_calls": [call]}), chunk({}, "tool_calls"), DONE])
    caller = run(house.serve(ask()))
    assert caller.events[1]["choices"][0]["delta"]["tool_calls"] == [call]
    assert house.desk.delivery.outcome.usage.output_tokens == 1
