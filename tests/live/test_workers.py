"""Supervision: what comes up, goes down, comes back, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import errno
import os
import pathlib
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import uvloop

from tests.live.fake_worker import FakeWorker
from tests.live.processes import ended
from tokenworks.core.errors import ConfigInvalid, WorkerFailed, WorkerUnavailable
from tokenworks.core.ids import ModelName, PoolID, WorkerID
from tokenworks.core.orders import Passing
from tokenworks.core.ports import WorkerPort
from tokenworks.live.clock import SystemClock
from tokenworks.live.network import WorkerClient
from tokenworks.live.workers import (
    AttachedSpec,
    AttachedWorker,
    EmbeddedWorker,
    SupervisionLimits,
    Worker,
    WorkerSpec,
    _Supervisor,
    backoff_ns,
    client_of,
    sleep_ns,
)

MS = 1_000_000
HANG_S = 120
"""What takes longer than this hangs."""
QUICK = SupervisionLimits(
    health_period_ns=10 * MS, health_ns_max=2_000 * MS, backoff_first_ns=MS, backoff_ns_max=MS
)


STICKY = b"""{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 48,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
    "type": "object", "required": ["a"],
    "properties": {"a": {"type": "string", "pattern": "^(.{0,50}){0,50}$"}}}}}}"""
"""A grammar that reads a text in so many ways that the engine never ends its first step."""

ENDLESS = b'{"prompt": "a", "stream": true, "max_tokens": 1900, "ignore_eos": true}'


class Desk:
    """Notes what supervision says."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[WorkerPort | str] = asyncio.Queue()

    async def up(self) -> WorkerPort:
        event = await self.events.get()
        assert not isinstance(event, str), event
        return event

    async def down(self) -> str:
        event = await self.events.get()
        assert isinstance(event, str), event
        return event


def embedded(
    desk: Desk, path: str, limits: SupervisionLimits = QUICK, python: str = sys.executable
) -> EmbeddedWorker:
    spec = WorkerSpec(
        worker=WorkerID("w1"),
        pool=PoolID("p"),
        model=ModelName("foreman"),
        path=path,
        slots=2,
        context_tokens=4096,
        threads=1,
    )
    up, down = desk.events.put_nowait, desk.events.put_nowait
    return EmbeddedWorker(spec, SystemClock(), up, down, limits=limits, python=python)


def attached(desk: Desk, url: str, model: str = "foreman") -> AttachedWorker:
    spec = AttachedSpec(
        worker=WorkerID("w2"), pool=PoolID("p"), model=ModelName(model), url=url, api_key="k"
    )
    up, down = desk.events.put_nowait, desk.events.put_nowait
    return AttachedWorker(spec, SystemClock(), up, down, limits=QUICK)


async def pid_of(worker: EmbeddedWorker) -> int:
    """The process, once it was started."""
    while worker.pid is None:  # noqa: ASYNC110  no time passes: the loop polls
        await asyncio.sleep(0)
    return worker.pid


async def alternates(
    worker: Worker,
    desk: Desk,
    fell: Callable[[], Awaitable[None]],
    healed: Callable[[], None] = lambda: None,
    clients: list[WorkerPort] | None = None,
) -> None:
    """The promises of ``Worker``: up, down with a broken client, up again, down when stopped."""
    worker.start()
    first = await desk.up()
    if clients is not None:
        clients.append(first)
    assert worker.last_failure == ""
    assert (await first.get("/v1/models"))[0] == 200
    await fell()
    why = await desk.down()
    with pytest.raises(WorkerUnavailable, match="is down"):
        await first.get("/v1/models")
    healed()
    second = await desk.up()
    assert why in worker.last_failure
    assert (await second.get("/v1/models"))[0] == 200
    await worker.stop()
    assert "stopped" in await desk.down()
    assert desk.events.empty()


@pytest.mark.slow
def test_a_worker_whose_engine_is_stuck_is_started_again(model_path: pathlib.Path) -> None:
    async def main() -> None:
        desk = Desk()
        limits = msgspec.structs.replace(QUICK, stuck_ns_max=1_000 * MS)
        worker = embedded(desk, str(model_path), limits)
        clients: list[WorkerPort] = []
        watched = asyncio.Event()

        async def pause(duration_ns: int) -> None:
            # Else an engine that is only slow, because the machine is, would be taken for stuck.
            if duration_ns == limits.health_period_ns:
                await watched.wait()
            await sleep_ns(duration_ns)

        async def fell() -> None:
            (client,) = clients
            watched.set()
            with pytest.raises(WorkerFailed, match="its engine has been stuck for 1 s"):
                await client.post_stream("/v1/chat/completions", STICKY)
            watched.clear()

        worker._supervisor.pause = pause
        async with asyncio.timeout(HANG_S):
            await alternates(worker, desk, fell, clients=clients)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_a_loop_that_cannot_be_asked_is_not_stuck() -> None:
    async def main() -> None:
        asked = 0

        class Mute(WorkerClient):
            async def get(self, path: str) -> tuple[int, bytes]:
                nonlocal asked
                asked += 1
                if asked < 3:
                    raise WorkerFailed(path)
                await asyncio.sleep(60)
                raise AssertionError

        limits = msgspec.structs.replace(QUICK, health_period_ns=0, stuck_ns_max=MS)
        watcher = _Supervisor(
            "w", clock=SystemClock(), on_up=print, on_down=print, limits=limits, pause=sleep_ns
        )
        client = Mute("localhost", 1, None)
        assert "stuck" in await watcher.watch_loop(client, "/metrics")
        assert asked == 3

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_embedded_worker_comes_back_after_kill_9(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], model_path: pathlib.Path
) -> None:
    async def main() -> None:
        desk = Desk()
        worker = embedded(desk, str(model_path))
        clients: list[WorkerPort] = []

        async def fell() -> None:
            (client,) = clients
            stream = await client.post_stream("/v1/completions", ENDLESS)
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            with pytest.raises(WorkerFailed):
                await stream.read_all(10_000_000)

        async with asyncio.timeout(HANG_S):
            await alternates(worker, desk, fell, clients=clients)
        assert worker.pid is None

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_attached_worker_comes_back(run: Callable[[Awaitable[None]], None]) -> None:
    async def main() -> None:
        desk = Desk()
        async with FakeWorker() as server:
            server.api_key = "k"
            worker = attached(desk, server.url + "/v1/")

            async def fell() -> None:
                server.healthy = False

            await alternates(worker, desk, fell, lambda: setattr(server, "healthy", True))

    run(main())


def certified(folder: pathlib.Path) -> tuple[pathlib.Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1, as its own authority, and a server's use of it."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    return cert, context


@pytest.mark.parametrize("trusted", [True, False])
def test_a_server_behind_tls_is_trusted_by_its_certificate(
    run: Callable[[Awaitable[None]], None],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    trusted: bool,
) -> None:
    cert, context = certified(tmp_path)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))

    async def main() -> None:
        server = FakeWorker()
        server.tls = context
        async with server:
            client = client_of(attached(Desk(), server.url).spec)
            if not trusted:
                with pytest.raises(WorkerFailed, match="CERTIFICATE_VERIFY_FAILED"):
                    await client.get("/v1/models")
                return
            assert (await client.get("/v1/models"))[0] == 200
            for _ in range(2):
                stream = await client.post_stream("/v1/chat/completions", b'{"stream":true}')
                assert b"[DONE]" in await stream.read_all()
            assert server.received[0].headers["host"] == f"127.0.0.1:{server.port}"
            client.close()

    run(main())


def test_what_a_provider_serves_is_not_asked(run: Callable[[Awaitable[None]], None]) -> None:
    async def main() -> None:
        desk = Desk()
        async with FakeWorker() as server:
            server.api_key = "k"
            server.models_path = "/base/models"
            worker = attached(desk, server.url + "/base", model="*")
            worker.start()
            client = await desk.events.get()
            assert isinstance(client, WorkerClient)
            headers = ((b"accept", b"text/plain"), (b"content-type", b"application/json"))
            passing = Passing(method="POST", target="/chat/completions?a=b", headers=headers)
            stream = await client.pass_on(passing, b'{"stream":true}')
            await stream.read_all()
            (received,) = server.received
            assert received.path == "/base/chat/completions?a=b"
            assert received.headers["accept"] == "text/plain"
            assert received.headers["authorization"] == "Bearer k"
            assert (b"content-type", b"text/event-stream") in stream.headers
            await worker.stop()

    run(main())


@pytest.mark.slow
def test_a_hung_worker_is_killed(
    run: Callable[[Awaitable[None]], None], model_path: pathlib.Path
) -> None:
    limits = SupervisionLimits(
        health_period_ns=MS, health_ns_max=50 * MS, backoff_first_ns=MS, backoff_ns_max=MS
    )

    async def main() -> None:
        desk = Desk()
        worker = embedded(desk, str(model_path), limits)
        worker.start()
        await desk.up()
        assert worker.pid is not None
        watched = os.pidfd_open(worker.pid)
        os.kill(worker.pid, signal.SIGSTOP)
        assert "health checks in a row failed" in await desk.down()
        await ended(watched)
        await worker.stop()

    run(main())


@pytest.mark.slow
def test_stop_while_starting_leaves_nothing(
    run: Callable[[Awaitable[None]], None], model_path: pathlib.Path
) -> None:
    async def main() -> None:
        desk = Desk()
        worker = embedded(desk, str(model_path))
        worker.start()
        watched = os.pidfd_open(await pid_of(worker))
        await worker.stop()
        await ended(watched)
        assert desk.events.empty()

    run(main())


@asynccontextmanager
async def lasting(worker: Worker) -> AsyncIterator[None]:
    worker.start()
    try:
        yield
    finally:
        await worker.stop()


@pytest.mark.parametrize(
    ("body", "words", "ready_ns_max"),
    [
        ("import sys; sys.exit('no memory')", "no memory", 60_000 * MS),
        ("print('hello')", "ready line", 60_000 * MS),
        ("print('x' * 100_000)", "ready line", 60_000 * MS),
        ("print('{\"ready\": true}')", "ready line", 60_000 * MS),
        ("import sys; sys.stdin.read()", "not ready after 0.05 s", 50 * MS),
    ],
)
def test_a_process_that_does_not_come_up_says_why(
    run: Callable[[Awaitable[None]], None],
    tmp_path: pathlib.Path,
    body: str,
    words: str,
    ready_ns_max: int,
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{body}\n")
    script.chmod(0o755)

    async def main() -> None:
        desk = Desk()
        pauses: asyncio.Queue[int] = asyncio.Queue()

        async def pause(duration_ns: int) -> None:
            pauses.put_nowait(duration_ns)

        limits = SupervisionLimits(ready_ns_max=ready_ns_max, backoff_first_ns=5, backoff_ns_max=10)
        worker = embedded(desk, "m.gguf", limits, python=str(script))
        worker._supervisor.pause = pause
        async with lasting(worker):
            assert [await pauses.get() for _ in range(3)] == [5, 10, 10]
            assert words in worker.last_failure
        assert desk.events.empty()

    run(main())


def test_an_interpreter_that_is_not_there(run: Callable[[Awaitable[None]], None]) -> None:
    async def main() -> None:
        paused = asyncio.Event()

        async def pause(_duration_ns: int) -> None:
            paused.set()
            await asyncio.get_running_loop().create_future()

        worker = embedded(Desk(), "m.gguf", python="/nowhere/python")
        worker._supervisor.pause = pause
        async with lasting(worker):
            await paused.wait()
            assert "could not be started" in worker.last_failure

    run(main())


def test_a_process_that_ignores_sigterm_is_killed(
    run: Callable[[Awaitable[None]], None], tmp_path: pathlib.Path
) -> None:
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable}\nimport signal, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(tmp_path / 'fifo')!r}, 'w').close()\n"
        "sys.stdin.read()\n"
    )
    script.chmod(0o755)
    os.mkfifo(tmp_path / "fifo")

    async def main() -> None:
        limits = SupervisionLimits(stop_ns_max=50 * MS)
        worker = embedded(Desk(), "m.gguf", limits, python=str(script))
        worker.start()
        await asyncio.to_thread((tmp_path / "fifo").read_text)  # it ignores the signal by now
        watched = os.pidfd_open(await pid_of(worker))
        await worker.stop()
        await ended(watched)

    run(main())


FACTORY = """
import asyncio, sys
from tokenworks.live.clock import SystemClock
from tokenworks.live.workers import EmbeddedWorker, WorkerSpec
spec = WorkerSpec(worker="w", pool="p", model="foreman", path=sys.argv[1], slots=1,
                  context_tokens=512, threads=1)
async def main():
    worker = EmbeddedWorker(
        spec, SystemClock(), lambda _: print(worker.pid, flush=True), lambda _: None
    )
    worker.start()
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.slow
def test_a_worker_dies_with_its_factory(
    run: Callable[[Awaitable[None]], None], model_path: pathlib.Path
) -> None:
    async def main() -> None:
        factory = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", FACTORY, str(model_path)), stdout=asyncio.subprocess.PIPE
        )
        assert factory.stdout is not None
        watched = os.pidfd_open(int(await factory.stdout.readline()))
        factory.kill()
        await ended(watched)
        await factory.communicate()

    run(main())


def test_the_factory_keeps_its_secrets(
    run: Callable[[Awaitable[None]], None],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport os, sys\nsys.exit(repr(sorted(os.environ)))\n")
    script.chmod(0o755)

    async def main() -> None:
        paused = asyncio.Event()

        async def pause(_duration_ns: int) -> None:
            paused.set()
            await asyncio.get_running_loop().create_future()

        worker = embedded(Desk(), "m.gguf", python=str(script))
        worker._supervisor.pause = pause
        async with lasting(worker):
            await paused.wait()
        assert "TOKENWORKS_WORKER_KEY" in worker.last_failure
        assert "DATABASE_PASSWORD" not in worker.last_failure

    run(main())


def test_an_attached_server_must_serve_the_model(run: Callable[[Awaitable[None]], None]) -> None:
    async def main() -> None:
        paused: asyncio.Queue[int] = asyncio.Queue()

        async def pause(duration_ns: int) -> None:
            await paused.put(duration_ns)

        desk = Desk()
        async with FakeWorker() as server:
            worker = attached(desk, server.url, "another")
            worker._supervisor.pause = pause
            async with lasting(worker):
                await paused.get()
                assert "not 'another'" in worker.last_failure
                server.healthy = False
                await paused.get()
                await paused.get()
                assert "answered 503" in worker.last_failure
                await server.stop()
                await paused.get()
                await paused.get()
                assert "cannot connect" in worker.last_failure
        assert desk.events.empty()

    run(main())


@pytest.mark.parametrize(
    "url",
    [
        *(
            "ftp://a",
            "https://",
            "http://",
            "http://user:pw@a",
            "http://a?x=1",
            "http://a#b",
            "a:80",
        ),
        *("http://a:99999", "http://a b"),
    ],
)
def test_a_wrong_url_shows_at_once(url: str) -> None:
    with pytest.raises(ConfigInvalid):
        attached(Desk(), url)


def test_a_check_that_cannot_be_made_says_nothing_of_the_worker(
    run: Callable[[Awaitable[None]], None],
) -> None:
    async def main() -> None:
        desk = Desk()
        async with FakeWorker() as server:
            worker = attached(desk, server.url)
            client = client_of(worker.spec)
            client.close()
            assert await worker._supervisor.probe(client, "/health") == ""

    run(main())


def test_who_may_open_no_files_waits_and_blames_no_worker(
    run: Callable[[Awaitable[None]], None],
) -> None:
    async def main() -> None:
        desk, loop, tried = Desk(), asyncio.get_running_loop(), 0
        connect = loop.create_connection

        async def full(*args: Any, **named: Any) -> Any:
            nonlocal tried
            tried += 1
            if tried <= 2:
                raise OSError(errno.EMFILE, "Too many open files")
            return await connect(*args, **named)

        loop.create_connection = full  # type: ignore[method-assign,assignment]
        async with FakeWorker() as server:
            server.api_key = "k"
            worker = attached(desk, server.url)
            worker.start()
            await desk.up()
            assert tried == 3
            assert "no more files" in worker.last_failure
            assert desk.events.empty()
            client = client_of(worker.spec)
            client.close()
            with pytest.raises(WorkerUnavailable, match="closed"):
                await worker._list(client)
            await worker.stop()

    run(main())


def test_a_server_may_have_as_many_connections_as_slots() -> None:
    spec = attached(Desk(), "http://a").spec
    few, many = client_of(spec), client_of(msgspec.structs.replace(spec, slots=9_000))
    assert (few._connections_max, many._connections_max) == (512, 9_000)


def test_backoff_doubles_and_ends() -> None:
    limits = SupervisionLimits()
    waits = [backoff_ns(n, limits) for n in range(1, 20)]
    assert waits == sorted(waits)
    assert waits[0] == limits.backoff_first_ns
    assert waits[-1] == limits.backoff_ns_max
