"""Anthropic's own SDK, as it comes, at the gateway behind a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import pytest

from tests.gateway.fake_desk import (
    DONE,
    MODEL,
    ROLE,
    SECRET,
    FakeDesk,
    answer,
    chunk,
    token,
    usage_event,
)
from tests.gateway.test_server import serving
from tokenworks.core.errors import CapacityExceeded, ModelNotFound, QuotaExceeded, WorkerFailed

Run = Callable[[Coroutine[Any, Any, Any]], Any]
HELLO: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {"name": "f", "input_schema": {"type": "object", "properties": {"x": {}}}}


@asynccontextmanager
async def sdk(
    desk: FakeDesk, key: str = SECRET.decode()
) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with serving(desk) as server:
        host, port = server.address
        url = f"http://{host}:{port}"
        async with anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0) as client:
            yield client


def with_tools() -> FakeDesk:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"x":1}'}}
    return FakeDesk(
        [
            ROLE,
            chunk({"reasoning_content": "hm"}),
            token("I "),
            token("call."),
            chunk({"tool_calls": [call]}),
            chunk({"tool_calls": [more]}),
            chunk({}, "tool_calls"),
            usage_event(11, 7, cached=4),
            DONE,
        ]
    )


ASK: Any = {
    "model": MODEL,
    "max_tokens": 2_000,
    "messages": HELLO,
    "tools": [TOOL],
    "thinking": {"type": "enabled", "budget_tokens": 1_024},
}


def check(message: Any) -> None:
    thought, text, call = message.content
    assert (thought.type, thought.thinking) == ("thinking", "hm")
    assert thought.signature
    assert (text.type, text.text) == ("text", "I call.")
    assert (call.type, call.id, call.name, call.input) == ("tool_use", "c", "f", {"x": 1})
    assert message.stop_reason == "tool_use"
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (7, 4, 7)


def test_a_stream_with_thinking_and_tools(run: Run) -> None:
    async def go() -> None:
        desk = with_tools()
        async with sdk(desk) as client, client.messages.stream(**ASK) as stream:
            kinds = [event.type async for event in stream]
            check(await stream.get_final_message())
        assert kinds[0] == "message_start"
        assert kinds[-1] == "message_stop"
        assert desk.deliveries[0].outcomes[0].ending == "done"

    run(go())


def test_a_whole_message(run: Run) -> None:
    async def go() -> None:
        async with sdk(with_tools()) as client:
            check(await client.messages.create(**ASK))

    run(go())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (QuotaExceeded("The quota of acme is used up."), anthropic.RateLimitError),
        (CapacityExceeded("Full.", retry_after_s=3), anthropic.RateLimitError),
        (ModelNotFound("No such model."), anthropic.NotFoundError),
        (WorkerFailed("It broke."), anthropic.InternalServerError),
    ],
)
def test_errors(run: Run, error: Exception, kind: type[anthropic.APIStatusError]) -> None:
    async def go() -> None:
        desk = FakeDesk([])
        desk.open_error = error
        async with sdk(desk) as client:
            with pytest.raises(kind) as caught:
                await client.messages.create(model=MODEL, max_tokens=9, messages=HELLO)
        body: Any = caught.value.body
        assert body["type"] == "error"
        assert str(error) in body["error"]["message"]

    run(go())


def test_a_wrong_key_and_a_wrong_field(run: Run) -> None:
    async def go() -> None:
        async with sdk(FakeDesk([]), "tw-wrong") as client:
            with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
                await client.messages.create(model=MODEL, max_tokens=9, messages=HELLO)
        async with sdk(FakeDesk([])) as client:
            with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
                await client.messages.create(model=MODEL, max_tokens=0, messages=HELLO)

    run(go())


def test_a_worker_that_breaks_off(run: Run) -> None:
    async def go() -> None:
        desk = FakeDesk([*answer("a")[:2], WorkerFailed("It broke off.")])
        async with sdk(desk) as client:
            with pytest.raises(anthropic.APIStatusError, match="It broke off"):
                async with client.messages.stream(
                    model=MODEL, max_tokens=9, messages=HELLO
                ) as stream:
                    _ = [event async for event in stream]

    run(go())
