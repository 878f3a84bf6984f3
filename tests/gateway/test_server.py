"""The gateway behind a real socket: a socket's habits, and OpenAI's own SDK as a caller."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
import uvloop

from tests.gateway.fake_desk import (
    CHAT,
    DONE,
    ROLE,
    SECRET,
    FakeClock,
    FakeDesk,
    Hold,
    answer,
    ask,
    chunk,
    token,
    usage_event,
)
from tokenworks.core.errors import CapacityExceeded, ConfigInvalid, QuotaExceeded, WorkerFailed
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.http_limits import LIMITS, HTTPLimits
from tokenworks.gateway.server import GatewayServer

Run = Callable[[Coroutine[Any, Any, Any]], Any]
HELLO: Any = [{"role": "user", "content": "hello"}]


@asynccontextmanager
async def serving(desk: FakeDesk) -> AsyncIterator[GatewayServer]:
    async with serving_gateway(Gateway(desk, FakeClock())) as server:
        yield server


@asynccontextmanager
async def serving_gateway(gateway: Gateway) -> AsyncIterator[GatewayServer]:
    server = GatewayServer("127.0.0.1", 0)
    task = asyncio.ensure_future(server.serve(gateway))
    try:
        yield server
    finally:
        server.stop()
        await task


@asynccontextmanager
async def sdk(desk: FakeDesk, key: str = SECRET.decode()) -> AsyncIterator[openai.AsyncOpenAI]:
    async with serving(desk) as server:
        host, port = server.address
        url = f"http://{host}:{port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
            yield client


class Socket:
    """A caller who writes bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one response."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.rstrip().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        if headers.get("transfer-encoding") != "chunked":
            body = await self.reader.readexactly(int(headers["content-length"]))
            return int(first.split()[1]), headers, body
        parts = []
        while part := await self.chunk():
            parts.append(part)
        return int(first.split()[1]), headers, b"".join(parts)

    async def chunk(self) -> bytes:
        size = int(await self.reader.readline(), 16)
        return (await self.reader.readexactly(size + 2))[:-2]


@asynccontextmanager
async def connection(server: GatewayServer) -> AsyncIterator[Socket]:
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        yield Socket(reader, writer)
    finally:
        writer.close()


def post(body: bytes | None = None, *more: str, **fields: Any) -> bytes:
    whole = ask(**fields).request
    body = whole if body is None else body
    head = [f"POST {CHAT} HTTP/1.1", "host: x", f"authorization: Bearer {SECRET.decode()}", *more]
    return "\r\n".join([*head, f"content-length: {len(body)}", "", ""]).encode() + body


GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


# OpenAI's SDK, as it comes.


def test_sdk_stream_with_tools(run: Run) -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"x":1}'}}
    desk = FakeDesk(
        [
            ROLE,
            token("hm"),
            chunk({"tool_calls": [call]}),
            chunk({"tool_calls": [more]}),
            chunk({}, "tool_calls"),
            usage_event(5, 3),
            DONE,
        ]
    )
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

    async def main() -> None:
        async with (
            sdk(desk) as client,
            client.chat.completions.stream(
                model="foreman",
                messages=HELLO,
                tools=[tool],
                service_tier="priority",
                stream_options={"include_usage": True},
            ) as stream,
        ):
            found = await stream.get_final_completion()
        (choice,) = found.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "hm"
        assert choice.message.tool_calls is not None
        assert choice.message.tool_calls[0].function.arguments == '{"x":1}'
        assert found.usage is not None
        assert found.usage.total_tokens == 8

    run(main())
    assert desk.orders[0].tier == "premium"
    assert json.loads(desk.orders[0].body)["tools"] == [tool]


def test_sdk_whole(run: Run) -> None:
    async def main() -> None:
        async with sdk(FakeDesk(answer("hel", "lo"))) as client:
            found = await client.chat.completions.create(
                model="foreman", messages=HELLO, extra_body={"service_tier": "ultra"}
            )
            assert found.choices[0].message.content == "hello"
            assert found.service_tier == "medium"
            assert found.usage is not None
            assert found.usage.completion_tokens == 2
            assert [model.id async for model in client.models.list()] == ["foreman", "lab/other"]
            assert (await client.models.retrieve("lab/other")).id == "lab/other"

    run(main())


def test_sdk_errors(run: Run) -> None:
    async def main() -> None:
        desk = FakeDesk(answer("a"))

        async def create(client: openai.AsyncOpenAI, **fields: Any) -> Any:
            return await client.chat.completions.create(model="foreman", messages=HELLO, **fields)

        async with sdk(desk, "wrong") as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                await create(client)
            assert refused.value.code == "invalid_api_key"
        async with sdk(desk) as client:
            with pytest.raises(openai.BadRequestError) as bad:
                await create(client, max_tokens=0)
            assert bad.value.code == "invalid_request"
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="gpt", messages=HELLO)
            desk.open_error = CapacityExceeded("full", retry_after_s=7)
            with pytest.raises(openai.RateLimitError) as full:
                await create(client)
            assert full.value.response.headers["retry-after"] == "7"
            assert full.value.type == "rate_limit_error"
            desk.open_error = QuotaExceeded("used up")
            with pytest.raises(openai.RateLimitError) as spent:
                await create(client.with_options(max_retries=5))
            assert spent.value.type == "insufficient_quota"
            assert len(desk.orders) == 2  # the quota's refusal was not tried again
            desk.open_error = None
            desk.script = [token("a"), WorkerFailed("broke off")]
            with pytest.raises(openai.InternalServerError):
                await create(client)
            with pytest.raises(openai.APIError, match="broke off"):
                _ = [each async for each in await create(client, stream=True)]

    run(main())


def test_sdk_that_leaves(run: Run) -> None:
    async def main() -> None:
        desk = FakeDesk([token("a"), Hold()])
        settled = asyncio.Event()

        async def tell() -> None:
            settled.set()

        desk.before_settle = tell
        async with sdk(desk) as client:
            stream = await client.chat.completions.create(
                model="foreman", messages=HELLO, stream=True
            )
            async for each in stream:
                assert each.choices[0].delta.content == "a"
                break
            await stream.close()
            await settled.wait()
            assert desk.delivery.outcome.ending == "disconnected"
            assert desk.delivery.outcome.usage.output_tokens == 1

    run(main())


# A socket's habits.


def test_a_connection_is_used_again(run: Run) -> None:
    async def main() -> None:
        desk = FakeDesk(answer("a"))
        async with serving(desk) as server, connection(server) as caller:
            for stream in (True, False, True):
                caller.write(post(stream=stream))
                status, headers, body = await caller.response()
                assert status == 200
                assert "server" not in headers
                assert body.endswith(DONE) is stream
                caller.write(GET)
                assert (await caller.response())[0] == 200
        assert [d.outcome.ending for d in desk.deliveries] == ["done"] * 3
        assert [d.aborts for d in desk.deliveries] == [0] * 3

    run(main())


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_sockets_are_quick_and_ask_after_silent_callers(loop_factory: Any) -> None:
    async def main() -> None:
        async with serving(FakeDesk()) as server, connection(server) as caller:
            caller.write(GET)
            assert (await caller.response())[0] == 200
            (served,) = server.connections
            assert served._transport is not None
            sock = served._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_idle_connections_are_kept_and_cost_little(run: Run) -> None:
    async def main() -> None:
        desk = FakeDesk(answer("a"))
        async with serving(desk) as server, contextlib.AsyncExitStack() as stack:
            idle = [await stack.enter_async_context(connection(server)) for _ in range(300)]
            for caller in idle[::50]:
                caller.write(post())
                assert (await caller.response())[0] == 200
            assert len(server.connections) == 300
            server.sweep(server.now_s + LIMITS.idle_s_max + 1)
            assert await idle[0].reader.read() == b""
            for _ in range(100):
                await asyncio.sleep(0)
            assert not server.connections

    run(main())


@asynccontextmanager
async def small_door(
    connections_max: int, refused_max: int
) -> AsyncIterator[tuple[GatewayServer, Callable[[], Coroutine[Any, Any, Socket]]]]:
    """A server of so few connections, and what makes one that asks at once."""
    limits = HTTPLimits(connections_max=connections_max, refused_max=refused_max)
    server = GatewayServer("127.0.0.1", 0, limits)
    task = asyncio.ensure_future(server.serve(Gateway(FakeDesk(), FakeClock())))
    try:
        async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:

            async def caller() -> Socket:
                made = await stack.enter_async_context(connection(server))
                made.write(GET)
                return made

            yield server, caller
    finally:
        server.stop()
        await task


async def turns() -> None:
    """Enough for whatever has come to be taken."""
    for _ in range(50):
        await asyncio.sleep(0)


def without_looks(server: GatewayServer) -> None:
    """Let it look no more, once a second, at whether its door is as it should be."""
    assert server._sweeping is not None
    server._sweeping.cancel()


def quickly(main: Coroutine[Any, Any, None]) -> None:
    """Run it on the loop of a factory, which takes one connection in each turn."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def test_who_comes_beyond_those_that_are_refused_waits() -> None:
    async def main() -> None:
        async with small_door(2, 2) as (server, caller):
            first, second = await caller(), await caller()
            assert [(await each.response())[0] for each in (first, second)] == [200, 200]
            without_looks(server)
            refused = [await caller() for _ in range(8)]
            assert [(await each.response())[0] for each in refused[:2]] == [503, 503]
            await turns()
            assert len(server.connections) == 4  # the other six wait, and are not closed
            waiting = refused[2:]
            for gone in refused[:2]:  # each makes room for one that is refused
                gone.writer.close()
                assert (await waiting.pop(0).response())[0] == 503
            for each in (first, second, *refused[2:4]):
                each.writer.close()
            assert {(await each.response())[0] for each in waiting} <= {200, 503}
            for each in waiting:
                each.writer.close()
            await turns()
            assert (await (await caller()).response())[0] == 200

    quickly(main())


def test_who_is_refused_and_stays_takes_nobodys_place() -> None:
    async def main() -> None:
        async with small_door(2, 3) as (server, caller):
            first, second = await caller(), await caller()
            assert [(await each.response())[0] for each in (first, second)] == [200, 200]
            refused = [await caller() for _ in range(2)]
            assert [(await each.response())[0] for each in refused] == [503, 503]
            first.writer.close()
            await turns()
            assert len(server.connections) == 3
            third, fourth = await caller(), await caller()
            assert [(await each.response())[0] for each in (third, fourth)] == [200, 503]

    quickly(main())


@pytest.mark.parametrize("left", ["none", "few"])
def test_nobody_is_let_in_while_files_run_out(
    left: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with small_door(9, 9) as (server, caller):
            early = await caller()
            assert (await early.response())[0] == 200
            listening = server._socket
            if left == "none":
                monkeypatch.setattr(server, "_socket", socket.socket())
                server._socket.close()  # of which there is no copy, as of no other file
            else:
                server._file_max = 0
            server._tick()
            late = await caller()
            await turns()
            assert len(server.connections) == 1
            early.write(GET)  # who is in is served
            assert (await early.response())[0] == 200
            server._tick()
            await turns()
            assert len(server.connections) == 1
            server._file_max = None
            monkeypatch.setattr(server, "_socket", listening)
            server._tick()
            assert (await late.response())[0] == 200

    quickly(main())
    (warned,) = caplog.messages
    assert warned.startswith("Fewer than 8 files can still be opened: callers wait")


def test_who_takes_one_of_the_last_files_is_the_last_to_be_let_in() -> None:
    async def main() -> None:
        async with small_door(9, 9) as (server, caller):
            await turns()
            without_looks(server)
            server._file_max = 0
            first, late = await caller(), await caller()
            assert (await first.response())[0] == 200
            await turns()
            assert len(server.connections) == 1
            server._file_max = None
            server._tick()
            assert (await late.response())[0] == 200

    quickly(main())


def test_half_of_the_files_are_for_callers() -> None:
    few = GatewayServer("127.0.0.1", 0, files=160)
    assert (few.limits.connections_max, few.limits.refused_max) == (51, 10)
    many = GatewayServer("127.0.0.1", 0, files=1 << 20)
    assert many.limits == LIMITS
    for server in (few, many):
        server.stop()


def test_eight_files_are_left() -> None:
    gc.collect()  # so that nothing closes a file meanwhile
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)  # which the server's socket gets, and what it looks for is the next
    for files, enough in ((free + 10, True), (free + 9, False)):
        server = GatewayServer("127.0.0.1", 0, files=files)
        assert server._has_files() is enough
        server.stop()


def test_a_door_that_opens_while_the_server_stops_is_shut(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        server = GatewayServer("127.0.0.1", 0)
        loop = asyncio.get_running_loop()
        create, doors = loop.create_server, list[asyncio.Server]()

        async def slowly(*args: Any, **more: Any) -> asyncio.Server:
            doors.append(await create(*args, **more))
            server.draining = True
            return doors[0]

        monkeypatch.setattr(loop, "create_server", slowly)
        await server._open()
        assert not doors[0].is_serving()
        server.stop()

    run(main())


def test_a_server_that_stops_waits_no_longer_than_it_may(run: Run) -> None:
    async def main() -> None:
        desk = FakeDesk([token("a"), Hold()])
        server = GatewayServer("127.0.0.1", 0, HTTPLimits(drain_s_max=0.0))
        gateway = Gateway(desk, FakeClock())
        task = asyncio.ensure_future(server.serve(gateway))
        async with connection(server) as caller:
            caller.write(post())
            await caller.reader.readuntil(b"\r\n\r\n")
            server.stop()
            await task
            assert gateway.serving
            desk.delivery.abort()  # as the desk does when it closes
            await asyncio.wait(gateway.serving.values())
            assert desk.delivery.outcome.ending == "failed"

    run(main())


def test_pipelined_requests_are_answered_in_order(run: Run) -> None:
    async def main() -> None:
        desk = FakeDesk(answer("a"))
        async with serving(desk) as server, connection(server) as caller:
            caller.write(post() + post(stream=False) + GET + post(model="gpt"))
            assert (await caller.response())[2].endswith(DONE)
            assert json.loads((await caller.response())[2])["object"] == "chat.completion"
            assert json.loads((await caller.response())[2])["status"] == "ok"
            assert (await caller.response())[0] == 404
        assert [d.outcome.ending for d in desk.deliveries] == ["done"] * 2

    run(main())


def test_a_caller_who_leaves_with_a_request_in_line(run: Run) -> None:
    async def main() -> None:
        more, settled = asyncio.Event(), asyncio.Event()
        desk = FakeDesk([token("a"), *[token("b" * 65_536)] * 400, Hold()])

        async def tell() -> None:
            settled.set()

        desk.before_settle = tell
        async with serving(desk) as server:
            async with connection(server) as caller:
                caller.write(post() + post())
                await caller.reader.readuntil(b"\r\n\r\n")
                more.set()
                caller.writer.transport.abort()
            await settled.wait()
            assert desk.delivery.outcome.ending == "disconnected"
            assert len(desk.orders) == 1

    run(main())


def test_a_caller_who_does_not_read_stops_the_worker(run: Run) -> None:
    async def main() -> None:
        desk = FakeDesk([*[token("b" * 65_536)] * 1_000, Hold()])
        settled = asyncio.Event()

        async def tell() -> None:
            settled.set()

        desk.before_settle = tell
        async with serving(desk) as server:
            raw = socket.create_connection(server.address)
            raw.sendall(post())
            reads = -1
            while not desk.deliveries or desk.delivery.reads > reads:
                reads = desk.delivery.reads if desk.deliveries else -1
                await probe(server)
            assert reads < 900
            raw.close()
            await settled.wait()
        assert desk.delivery.outcome.ending == "disconnected"

    async def probe(server: GatewayServer) -> None:
        """Many turns of the loop: enough for the other connection to move if it could."""
        async with connection(server) as caller:
            for _ in range(20):
                caller.write(GET)
                await caller.response()

    run(main())


def test_upgrades_are_not_taken(run: Run) -> None:
    async def main() -> None:
        desk = FakeDesk(answer("a"))
        async with serving(desk) as server, connection(server) as caller:
            caller.write(post(None, "connection: Upgrade, HTTP2-Settings", "upgrade: h2c"))
            assert (await caller.response())[0] == 200

    run(main())


def test_expect_continue(run: Run) -> None:
    async def main() -> None:
        desk = FakeDesk(answer("a"))
        async with serving(desk) as server, connection(server) as caller:
            whole = post(None, "expect: 100-continue", stream=False)
            head, body = whole.split(b"\r\n\r\n", 1)
            caller.write(head + b"\r\n\r\n")
            assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            caller.write(body)
            assert (await caller.response())[0] == 200

    run(main())


@pytest.mark.parametrize(
    "raw",
    [
        b"\0\0\0\0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
    ],
)
def test_what_is_not_http(run: Run, raw: bytes) -> None:
    async def main() -> None:
        async with serving(FakeDesk()) as server:
            async with connection(server) as caller:
                caller.write(raw)
                assert (await caller.response())[0] in (400, 404)
            async with connection(server) as caller:
                caller.write(GET)
                assert (await caller.response())[0] == 200

    run(main())


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nx: "], ids=["path", "header"])
def test_a_head_that_does_not_end(run: Run, start: bytes) -> None:
    async def main() -> None:
        async with serving(FakeDesk()) as server, connection(server) as caller:
            caller.write(start)
            for _ in range(100):
                caller.write(b"x" * LIMITS.head_bytes_max)
            status, headers, _ = await caller.response()
            assert status == 431
            assert headers["connection"] == "close"

    run(main())


def test_long_heads_and_bodies_that_are_fine(run: Run) -> None:
    async def main() -> None:
        desk = FakeDesk(answer("a"))
        messages = [{"role": "user", "content": "x" * 1_000_000}]
        async with serving(desk) as server, connection(server) as caller:
            for _ in range(2):
                caller.write(post(None, "x: " + "y" * 30_000, messages=messages, stream=False))
                assert (await caller.response())[0] == 200

    run(main())


def test_a_body_that_is_refused_unread(run: Run) -> None:
    async def main() -> None:
        async with serving(FakeDesk()) as server, connection(server) as caller:
            caller.write(post(b"x" * 3_000_000).replace(SECRET, b"wrong"))
            assert (await caller.response())[0] == 401
            caller.write(GET)
            assert (await caller.response())[0] == 200

    run(main())


def test_stopping_finishes_what_is_open(run: Run) -> None:
    async def main() -> None:
        desk = FakeDesk(answer("a"))
        begun, on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            begun.set()
            await on.wait()

        desk.before_settle = wait
        server = GatewayServer("127.0.0.1", 0)
        task = asyncio.ensure_future(server.serve(Gateway(desk, FakeClock())))
        async with connection(server) as caller:
            caller.write(post())
            await begun.wait()
            server.stop()
            on.set()
            assert (await caller.response())[2].endswith(DONE)
            await task

    run(main())


def test_who_has_asked_before_it_stops_is_served(run: Run) -> None:
    async def main() -> None:
        server = GatewayServer("127.0.0.1", 0)
        task = asyncio.ensure_future(server.serve(Gateway(FakeDesk(()), FakeClock())))
        async with connection(server) as earlier:
            earlier.write(GET)
            assert (await earlier.response())[0] == 200
        with socket.create_connection(server.address) as caller:
            caller.sendall(GET)  # the kernel has it, and the server does not know
            server.stop()
            await task
            assert caller.recv(4096).startswith(b"HTTP/1.1 200")

    run(main())


def test_stopping_twice_does_not_wait_for_what_is_open(run: Run) -> None:
    async def main() -> None:
        desk = FakeDesk(answer("a"))
        begun, on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            begun.set()
            await on.wait()

        desk.before_settle = wait
        server = GatewayServer("127.0.0.1", 0)
        task = asyncio.ensure_future(server.serve(Gateway(desk, FakeClock())))
        async with connection(server) as caller:
            caller.write(post())
            await begun.wait()
            server.stop()
            server.stop()
            await task
            on.set()
            assert (await caller.response())[2].endswith(DONE)

    run(main())


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_address_of_ipv6(run: Run) -> None:
    async def main() -> None:
        server = GatewayServer("::1", 0)
        task = asyncio.ensure_future(server.serve(Gateway(FakeDesk(), FakeClock())))
        async with connection(server) as caller:
            caller.write(GET)
            assert (await caller.response())[0] == 200
        server.stop()
        await task

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback here")
    run(main())


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host, port = taken.getsockname()
        with pytest.raises(ConfigInvalid) as caught:
            GatewayServer(host, port)
    said = os.strerror(errno.EADDRINUSE)
    assert caught.value.message == f"Cannot listen on {host}:{port}: {said}."


def test_a_port_that_is_shared(run: Run) -> None:
    async def main() -> None:
        desk = FakeDesk(answer("a"))
        first = GatewayServer("127.0.0.1", 0, shared=True)
        second = GatewayServer(*first.address, shared=True)
        with pytest.raises(ConfigInvalid):
            GatewayServer(*first.address)
        both = (first, second)
        tasks = [asyncio.ensure_future(each.serve(Gateway(desk, FakeClock()))) for each in both]
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(64):
                caller = await stack.enter_async_context(connection(first))
                caller.write(post(stream=False))
                assert (await caller.response())[0] == 200
            # A connection goes to either as its ports are mixed: not all of 64 to one of them.
            assert 0 < len(first.connections) < 64
            assert len(first.connections) + len(second.connections) == 64
            for each in both:
                each.stop()
        await asyncio.gather(*tasks)

    run(main())


def test_stopping_before_serving_frees_the_port() -> None:
    server = GatewayServer("127.0.0.1", 0)
    server.stop()
    again = GatewayServer(*server.address)
    again.stop()
