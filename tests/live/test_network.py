"""The HTTP client to workers, against a worker that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from tests.live.driver_world import until
from tests.live.fake_worker import FakeWorker, Script
from tests.live.reading import Reading
from tokenworks.core.errors import ConfigInvalid, WorkerFailed, WorkerUnavailable
from tokenworks.core.orders import Passing
from tokenworks.live import network
from tokenworks.live.clock import SystemClock
from tokenworks.live.network import WorkerClient, WorkerStream

PATH = "/v1/chat/completions"
BODY = json.dumps({"stream": True, "stream_options": {"include_usage": True}}).encode()


@asynccontextmanager
async def pair(script: Script | None = None) -> AsyncIterator[tuple[FakeWorker, WorkerClient]]:
    async with FakeWorker(script) as worker:
        client = WorkerClient(worker.host, worker.port, "secret")
        try:
            yield worker, client
        finally:
            client.close()


Source = Callable[[WorkerStream], WorkerStream | Reading]
HOW = pytest.mark.parametrize("source", [lambda stream: stream, Reading], ids=["read", "pipe"])
"""Both ways to take an answer keep the same promises."""


async def whole(stream: WorkerStream | Reading, parts: list[bytes] | None = None) -> bytes:
    parts = [] if parts is None else parts
    while data := await stream.read():
        parts.append(data)
    return b"".join(parts)


async def streams_and_reuses() -> None:
    async with pair() as (worker, client):
        for _ in range(3):
            stream = await client.post_stream(PATH, BODY)
            assert stream.status == 200
            text = await whole(stream)
            assert text.endswith(b"data: [DONE]\n\n")
            assert text.count(b'"tok "') == 8
            assert await stream.read() == b""
            late = Reading(stream)
            assert (late.parts, late.over, late.failure) == ([], True, None)
            stream.pause()
            stream.resume()
            stream.abort()  # harmless after the end
        assert worker.connections == 1
        first = worker.received[0]
        assert (first.method, first.path, first.body) == ("POST", PATH, BODY)
        assert first.headers["authorization"] == "Bearer secret"
        assert first.headers["content-type"] == "application/json"
        assert await client.get("/health") == (200, b'{"status": "ok"}')
        assert worker.connections == 2


def test_a_body_may_be_something_else_than_json(run: Callable[[Awaitable[None]], None]) -> None:
    async def test() -> None:
        async with pair() as (worker, client):
            form = "multipart/form-data; boundary=x\xe9"
            stream = await client.post_stream(PATH, BODY, content_type=form)
            assert stream.content_type == b"text/event-stream"
            await whole(stream)
            stream = await client.post_stream(PATH, BODY)
            await whole(stream)
            types = [each.headers["content-type"] for each in worker.received]
            assert types == [form, "application/json"]

    run(test())


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_streams_on_kept_connections(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(streams_and_reuses())


def test_further_headers_come_before_the_body() -> None:
    async def main() -> None:
        async with pair() as (server, client):
            await whole(await client.post_stream(PATH, BODY, b"x-a: 1\r\nx-b: 2\r\n"))
            await whole(await client.post_stream(PATH, BODY))
            first, second = server.received
            assert (first.headers["x-a"], first.headers["x-b"]) == ("1", "2")
            assert "x-a" not in second.headers
            assert first.body == second.body == BODY

    asyncio.run(main())


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_nagle_is_off(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        async with pair() as (_, client):
            stream = await client.post_stream(PATH, BODY)
            (connection,) = client._open
            assert connection._transport is not None
            sock = connection._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
            await whole(stream)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@HOW
def test_each_read_is_what_has_come(run: Callable[[Awaitable[None]], None], source: Source) -> None:
    async def main() -> None:
        async with pair() as (worker, client):
            worker.gate.close()
            stream = source(await client.post_stream(PATH, BODY))
            assert b'"role"' in await stream.read()
            for _ in range(7):
                worker.gate.permit(1)
                assert (await stream.read()).count(b'"tok "') == 1
            worker.gate.permit(1)
            assert (await whole(stream)).endswith(b"[DONE]\n\n")

    run(main())


@HOW
def test_what_came_before_a_break_is_handed_out(
    run: Callable[[Awaitable[None]], None], source: Source
) -> None:
    async def main() -> None:
        async with pair(Script(break_after=3)) as (worker, client):
            stream = source(await client.post_stream(PATH, BODY))
            await worker.until(lambda: worker.running == 0)
            parts: list[bytes] = []
            with pytest.raises(WorkerFailed):
                await whole(stream, parts)
            assert b"".join(parts).count(b'"tok "') == 3
            with pytest.raises(WorkerFailed):
                await stream.read()

    run(main())


@HOW
def test_abort_stops_the_worker(run: Callable[[Awaitable[None]], None], source: Source) -> None:
    async def main() -> None:
        async with pair() as (worker, client):
            worker.gate.close()
            stream = await client.post_stream(PATH, BODY)
            reading = source(stream)
            stream.abort()
            await worker.until(lambda: worker.aborted == 1)
            await reading.read()  # the head and the first event came together
            with pytest.raises(WorkerFailed, match="the factory is stopping"):
                await reading.read()
            worker.gate.open()
            await whole(await client.post_stream(PATH, BODY))
            assert worker.connections == 2

    run(main())


def test_cancelling_a_post_closes_its_socket(run: Callable[[Awaitable[None]], None]) -> None:
    async def main() -> None:
        async with pair() as (worker, client):
            worker.gate.close()
            unstreamed = asyncio.create_task(client.post_stream(PATH, b"{}"))
            await worker.until(lambda: len(worker.received) == 1)
            unstreamed.cancel()
            with pytest.raises(asyncio.CancelledError):
                await unstreamed
            assert not client._open
            assert client._sockets == 0

    run(main())


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_a_process_without_file_descriptors_does_not_blame_the_worker(
    run: Callable[[Awaitable[None]], None], code: int
) -> None:
    async def test() -> None:
        async with pair() as (_, client):

            async def full(*_: object, **__: object) -> None:
                raise OSError(code, "Too many open files")

            loop = asyncio.get_running_loop()
            loop.create_connection = full  # type: ignore[method-assign,assignment]
            with pytest.raises(WorkerUnavailable, match="may open no more files") as caught:
                await client.post_stream(PATH, BODY)
            assert caught.value.ours
            assert caught.value.retry_after_s == 1

    run(test())


def test_a_stale_connection_is_retried_once(run: Callable[[Awaitable[None]], None]) -> None:
    async def main() -> None:
        async with pair() as (worker, client):
            worker.scripts = [Script(), Script(early_close=True), Script()]
            for _ in range(2):
                await whole(await client.post_stream(PATH, BODY))
            assert worker.connections == 2
            worker.scripts = [Script(early_close=True), Script(early_close=True)]
            with pytest.raises(WorkerFailed):
                await client.post_stream(PATH, BODY)
            assert len(worker.received) == 5
            worker.scripts = [Script(early_close=True)]  # on a fresh connection: no retry
            with pytest.raises(WorkerFailed):
                await client.post_stream(PATH, BODY)

    run(main())


def test_a_name_that_cannot_be_looked_up_for_want_of_files(
    run: Callable[[Awaitable[None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with pair() as (_, client):

            async def unknown(*_: object, **__: object) -> None:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

            loop = asyncio.get_running_loop()
            loop.create_connection = unknown  # type: ignore[method-assign,assignment]
            with pytest.raises(WorkerFailed, match="not known"):
                await client.post_stream(PATH, BODY)

            def full(*_: object) -> int:
                raise OSError(errno.EMFILE, "Too many open files")

            with monkeypatch.context() as patched:
                patched.setattr(os, "open", full)
                with pytest.raises(WorkerUnavailable, match="may open no more files"):
                    await client.post_stream(PATH, BODY)

    run(test())


@pytest.mark.parametrize(("method", "sent"), [("POST", 2), ("PATCH", 2), ("PUT", 3), ("DELETE", 3)])
def test_what_is_passed_on_meets_a_stale_connection(
    run: Callable[[Awaitable[None]], None], method: str, sent: int
) -> None:
    passing = Passing(method=method, target=PATH, headers=())

    async def main() -> None:
        async with pair() as (worker, client):
            worker.scripts = [Script(), Script(early_close=True), Script()]
            await whole(await client.post_stream(PATH, BODY))
            broken = pytest.raises(WorkerFailed) if sent == 2 else contextlib.nullcontext()
            with broken as caught:
                await whole(await client.pass_on(passing, BODY))
            assert caught is None or not caught.value.unsent
            assert len(worker.received) == sent

    run(main())


def test_idle_connections_are_dropped(
    run: Callable[[Awaitable[None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with pair() as (worker, client):
            await whole(await client.post_stream(PATH, BODY))
            monkeypatch.setattr(network, "IDLE_NS_MAX", 0)
            await whole(await client.post_stream(PATH, BODY))
            assert worker.connections == 2
            assert client._sockets == 1

    run(main())


def test_the_sweep_closes_idle_connections_and_leaves_busy_ones(
    run: Callable[[Awaitable[None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with pair() as (worker, client):
            worker.gate.close()
            two = [await client.post_stream(PATH, BODY) for _ in range(2)]
            worker.gate.open()
            for each in two:
                await whole(each)
            worker.gate.close()
            stream = await client.post_stream(PATH, BODY)
            assert (len(client._open), len(client._idle)) == (2, 1)
            client._sweep()
            assert (len(client._open), len(client._idle)) == (2, 1)
            monkeypatch.setattr(network, "IDLE_NS_MAX", 0)
            client._sweep()
            assert (len(client._open), client._idle) == (1, [])
            worker.gate.open()
            assert (await whole(stream)).endswith(b"[DONE]\n\n")
            client._sweep()
            assert (client._open, client._sockets) == ({}, 0)
            assert client._sweeper is None

    run(main())


def test_connections_are_limited(run: Callable[[Awaitable[None]], None]) -> None:
    async def main() -> None:
        async with FakeWorker() as worker:
            client = WorkerClient(worker.host, worker.port, None, connections_max=1)
            worker.gate.close()
            stream = await client.post_stream(PATH, BODY)
            with pytest.raises(WorkerUnavailable, match="busy"):
                await client.post_stream(PATH, BODY)
            assert (await client.get("/health"))[0] == 200
            worker.gate.open()
            await whole(stream)
            await whole(await client.post_stream(PATH, BODY))
            assert "authorization" not in worker.received[0].headers
            client.close()

    run(main())


def test_close_breaks_what_runs(run: Callable[[Awaitable[None]], None]) -> None:
    async def main() -> None:
        async with pair() as (worker, client):
            worker.gate.close()
            stream = await client.post_stream(PATH, BODY)
            await stream.read()
            client.close("the worker is down")
            with pytest.raises(WorkerFailed, match="is down"):
                await stream.read()
            with pytest.raises(WorkerUnavailable, match="is down"):
                await client.post_stream(PATH, BODY)

    run(main())


def test_errors_are_answers(run: Callable[[Awaitable[None]], None]) -> None:
    async def main() -> None:
        async with pair(Script(status=400)) as (_, client):
            stream = await client.post_stream(PATH, BODY)
            assert stream.status == 400
            assert b'"no"' in await stream.read_all()
            stream = await client.post_stream(PATH, BODY)
            assert len(await stream.read_all(5)) == 5

    run(main())


def test_a_body_that_ends_with_the_connection(run: Callable[[Awaitable[None]], None]) -> None:
    async def main() -> None:
        async with pair(Script(framing="close")) as (_, client):
            text = await whole(await client.post_stream(PATH, BODY))
            assert text.endswith(b"[DONE]\n\n")

    run(main())


@asynccontextmanager
async def raw(answer: bytes, head_ns_max: int = 60 * 10**9) -> AsyncIterator[WorkerClient]:
    """A client of a server that answers any request's head with these bytes, then listens on."""

    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await reader.read()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    client = WorkerClient(host, port, None, head_ns_max=head_ns_max)
    try:
        yield client
    finally:
        client.close()
        server.close()
        await asyncio.gather(*(task for task in tasks if task is not None))
        await server.wait_closed()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * network.HEADER_BYTES_MAX + b"\r\n\r\n", "headers"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "not HTTP"),
    ],
)
def test_nonsense_is_a_failed_worker(
    run: Callable[[Awaitable[None]], None], answer: bytes, why: str
) -> None:
    async def main() -> None:
        async with raw(answer) as client:
            with pytest.raises(WorkerFailed, match=why):
                await client.post_stream(PATH, BODY)
            assert client._sockets == 0

    run(main())


def test_a_silent_worker_has_failed(run: Callable[[Awaitable[None]], None]) -> None:
    async def main() -> None:
        async with raw(b"HTTP/1.1 200 OK\r\n", head_ns_max=50_000_000) as client:
            with pytest.raises(WorkerFailed, match=r"no answer from the worker in 0\.05 s"):
                await client.post_stream(PATH, BODY)
            assert client._sockets == 0

    run(main())


def test_a_head_alone_is_no_answer(run: Callable[[Awaitable[None]], None]) -> None:
    """A server may send it before its engine has made a token; an error it sends with one."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def main() -> None:
        async with raw(head) as client:
            posting = asyncio.ensure_future(client.post_stream(PATH, BODY))
            await until(lambda: any(each._framed for each in client._open))
            (connection,) = client._open
            assert not posting.done()
            connection.data_received(b"2\r\nok\r\n")
            stream = await posting
            assert (stream.status, await stream.read()) == (200, b"ok")
        for late in (head, head + b"2\r\n\n\n\r\n"):  # of which an empty line is no part
            async with raw(late, head_ns_max=50_000_000) as client:
                with pytest.raises(WorkerFailed, match=r"no answer from the worker in 0\.05 s"):
                    await client.post_stream(PATH, BODY)
        refusal = b"HTTP/1.1 503 No\r\nContent-Length: 9\r\n\r\n"
        async with raw(refusal, head_ns_max=50_000_000) as client:
            stream = await client.post_stream(PATH, BODY)
            assert stream.status == 503
            with pytest.raises(WorkerFailed, match=r"no answer from the worker in 0\.05 s"):
                await stream.read_all()
        async with raw(head) as client:
            posting = asyncio.ensure_future(client.post_stream(PATH, BODY))
            await until(lambda: any(each._framed for each in client._open))
            next(iter(client._open)).connection_lost(None)
            with pytest.raises(WorkerFailed, match="broke off"):
                await posting
        async with raw(head + b"0\r\n\r\n") as client:
            stream = await client.post_stream("/v1/audio/transcriptions", BODY)
            assert (stream.status, await stream.read()) == (200, b"")  # of silence
        async with raw(head.replace(b"200 OK", b"503 No")) as client:
            assert (await client.post_stream(PATH, BODY)).status == 503

    run(main())


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


WAITING = b": the prompt waits for its turn\r\n\r\n"


@pytest.mark.parametrize(
    "said",
    [
        b"0\r\n\r\n",
        b"e\r\ndata: [DONE]\n\n\r\n",
        b"d\r\ndata:[DONE]\n\n\r\n0\r\n\r\n",
        chunked(b": ping\n\n"),
        chunked(b": ping\n\ndata: [DONE]\n\n"),
        chunked(WAITING, b"\n: pi", b"ng\n\n", WAITING, b"data: [DONE]\n\n"),
    ],
)
def test_events_that_end_before_they_begin_are_no_answer(
    run: Callable[[Awaitable[None]], None], said: bytes
) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def main() -> None:
        async with raw(head + said) as client:
            with pytest.raises(WorkerFailed, match="before it said anything") as caught:
                await client.post_stream(PATH, BODY)
            assert not caught.value.unsent
        async with raw(head.replace(b"200 OK", b"503 No") + said) as client:
            assert (await client.post_stream(PATH, BODY)).status == 503

    run(main())


def test_an_answer_has_not_begun_with_comments(run: Callable[[Awaitable[None]], None]) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    token = b'data: {"choices":[{"text":"a"}]}\n\n'

    async def main() -> None:
        async with raw(head + chunked(WAITING)[:-5], head_ns_max=50_000_000) as client:
            with pytest.raises(WorkerFailed, match=r"no answer from the worker in 0\.05 s"):
                await client.post_stream(PATH, BODY)
        async with raw(head + chunked(WAITING, WAITING, token)) as client:
            stream = await client.post_stream(PATH, BODY)
            assert await stream.read_all() == WAITING + WAITING + token
        async with raw(head + chunked(*[WAITING] * 500)) as client:  # which has no end
            assert await (await client.post_stream(PATH, BODY)).read_all() == WAITING * 500

    run(main())


def test_interim_answers_are_skipped(run: Callable[[Awaitable[None]], None]) -> None:
    answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    async def main() -> None:
        async with raw(answer) as client:
            stream = await client.post_stream(PATH, BODY)
            assert (stream.status, await stream.read_all()) == (200, b"ok")

    run(main())


@pytest.mark.parametrize("whole", [True, False])
def test_a_stream_that_has_ended_does_not_keep_what_took_it(
    run: Callable[[Awaitable[None]], None], whole: bool
) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    class Taken:
        def __init__(self) -> None:
            self.over = asyncio.Event()

        def data(self, data: bytes) -> None:
            assert data in {b"ok", b"o", b"k"}

        def ended(self, failure: WorkerFailed | None) -> None:
            assert failure is None
            self.over.set()

    async def main() -> None:
        async with raw(answer if whole else answer[:-1]) as client:
            stream = await client.post_stream(PATH, BODY)
            sink = Taken()
            (connection,) = client._open
            stream.pipe(sink)
            assert sink.over.is_set() == whole
            if not whole:
                connection.data_received(b"k")
            assert sink.over.is_set()
            gone = weakref.ref(sink)
            del sink
            assert gone() is None

    run(main())


def test_who_pauses_at_the_first_bytes_gets_no_more(
    run: Callable[[Awaitable[None]], None],
) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"

    class Slow:
        def __init__(self, stream: WorkerStream) -> None:
            self.stream = stream
            self.got = b""

        def data(self, data: bytes) -> None:
            self.got += data
            self.stream.pause()

        def ended(self, failure: WorkerFailed | None) -> None:
            pass

    async def main() -> None:
        async with raw(answer) as client:
            stream = await client.post_stream(PATH, BODY)
            sink = Slow(stream)
            assert stream._chunks  # they came with the head
            stream.pipe(sink)
            assert sink.got == b"ok"
            (connection,) = client._open
            assert connection._paused

    run(main())


def test_an_answer_to_head_ends_with_its_head(run: Callable[[Awaitable[None]], None]) -> None:
    answer = (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    )
    passing = Passing(method="HEAD", target="/v1/models", headers=())

    async def main() -> None:
        async with raw(answer) as client:
            stream = await client.pass_on(passing, b"")
            assert (stream.status, await stream.read_all()) == (200, b"")
            assert stream.headers == [(b"content-length", b"2")]
            assert client._sockets == 0

    run(main())


def test_an_answer_too_many_closes_the_connection(
    run: Callable[[Awaitable[None]], None],
) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" * 2

    async def main() -> None:
        async with raw(answer) as client:
            stream = await client.post_stream(PATH, BODY)
            assert await stream.read_all() == b"ok"
            assert client._sockets == 0

    run(main())


def test_get_limits_its_body(
    run: Callable[[Awaitable[None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "GET_BODY_BYTES_MAX", 3)

    async def main() -> None:
        async with raw(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfour") as client:
            with pytest.raises(WorkerFailed, match="exceeds 3 bytes"):
                await client.get("/health")

    run(main())


def test_get_closes_its_connection_even_if_the_worker_does_not(
    run: Callable[[Awaitable[None]], None],
) -> None:
    async def main() -> None:
        async with raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as client:
            assert await client.get("/health") == (200, b"ok")
            assert (client._open, client._idle, client._sockets) == ({}, [], 0)

    run(main())


def test_back_pressure_stops_reading(
    run: Callable[[Awaitable[None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "STREAM_BYTES_HIGH", 1000)

    async def main() -> None:
        size = 8_000_000
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
        async with raw(head + b"x" * size) as client:
            stream = await client.post_stream(PATH, BODY)
            (connection,) = client._open
            await stream.read()
            while not connection._paused:  # noqa: ASYNC110  no time passes: the loop polls
                await asyncio.sleep(0)
            assert stream._size_bytes < size
            rest = len(await whole(stream))
            assert 0 < rest < size
            assert not connection._paused
            assert client._idle == [connection]

    run(main())


def test_a_sink_that_waits_stops_reading(run: Callable[[Awaitable[None]], None]) -> None:
    async def main() -> None:
        size = 8_000_000
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
        async with raw(head + b"x" * size) as client:
            stream = await client.post_stream(PATH, BODY)
            sink = Reading(stream)
            stream.pause()
            for _ in range(1_000):
                await asyncio.sleep(0)
            assert sum(map(len, sink.parts)) < size
            assert not sink.over
            stream.resume()
            assert len(await whole(sink)) == size
            assert sink.over

    run(main())


def test_refused_connection(run: Callable[[Awaitable[None]], None]) -> None:
    async def main() -> None:
        async with FakeWorker() as worker:
            port = worker.port
        client = WorkerClient("127.0.0.1", port, None)
        with pytest.raises(WorkerFailed, match="cannot connect") as caught:
            await client.post_stream(PATH, BODY)
        assert caught.value.unsent
        with pytest.raises(WorkerFailed, match="cannot connect"):
            await client.get("/health")
        assert client._sockets == 0

    run(main())


@pytest.mark.parametrize("key", ["a b", "a\r\nX: y", "ключ"])
def test_keys_cannot_smuggle_headers(key: str) -> None:
    with pytest.raises(ConfigInvalid):
        WorkerClient("127.0.0.1", 1, key)


def test_clock_never_goes_back() -> None:
    clock = SystemClock()
    before_ns, after_ns = clock.now_ns(), clock.now_ns()
    assert before_ns <= after_ns
    assert clock.unix_ns() > 1_700_000_000 * 10**9
