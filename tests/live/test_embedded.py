"""The embedded engine as a process: what it serves, and that it never outlives its factory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.live.processes import WAIT_S_MAX, ended
from tokenworks.core.ids import ModelName, PoolID, WorkerID
from tokenworks.live import embedded, workers
from tokenworks.live.clock import SystemClock
from tokenworks.live.network import WorkerClient
from tokenworks.live.workers import EmbeddedWorker, WorkerSpec

pytestmark = pytest.mark.slow

PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "What is 12 plus 30? Say it, and say why."}]
STREAM = {"stream": True, "stream_options": {"include_usage": True}, "messages": MESSAGES}


def spec_of(model_path: pathlib.Path) -> WorkerSpec:
    return WorkerSpec(
        worker=WorkerID("w1"),
        pool=PoolID("p"),
        model=ModelName("foreman"),
        path=str(model_path),
        slots=2,
        context_tokens=4096,
        threads=1,
    )


@asynccontextmanager
async def engine(model_path: pathlib.Path) -> AsyncIterator[WorkerClient]:
    up: asyncio.Queue[WorkerClient] = asyncio.Queue()
    worker = EmbeddedWorker(spec_of(model_path), SystemClock(), up.put_nowait, lambda _why: None)
    worker.start()
    try:
        yield await up.get()
    finally:
        await worker.stop()


async def ask(client: WorkerClient, **request: Any) -> tuple[int, list[Any]]:
    """Status and events of an answer, or its error."""
    stream = await client.post_stream(PATH, json.dumps({**STREAM, **request}).encode())
    text = await stream.read_all(10_000_000)
    if stream.status != 200:
        return stream.status, [json.loads(text)]
    *events, end, rest = text.decode().split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    return stream.status, [json.loads(event[6:]) for event in events]


def test_streams_with_usage_and_a_warm_prefix(
    run: Callable[[Awaitable[None]], None], model_path: pathlib.Path
) -> None:
    async def main() -> None:
        async with engine(model_path) as client:
            for cached in (False, True):
                status, events = await ask(
                    client, max_tokens=6, ignore_eos=True, timings_per_token=True, temperature=0
                )
                assert status == 200
                first, *middle, last, usage = events
                assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}
                assert last["choices"][0]["finish_reason"] == "length"
                made = [event["timings"]["predicted_n"] for event in middle]
                assert made == sorted(made)
                assert made[-1] <= 6
                assert usage["choices"] == []
                assert usage["usage"]["completion_tokens"] == 6
                hits = usage["usage"]["prompt_tokens_details"]["cached_tokens"]
                assert (hits > 0) == cached

    run(main())


def test_tools_are_understood(
    run: Callable[[Awaitable[None]], None], model_path: pathlib.Path
) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "add", "parameters": parameters}}

    async def main() -> None:
        async with engine(model_path) as client:
            for choice in ("auto", "required"):
                status, _ = await ask(client, tools=[tool], tool_choice=choice, max_tokens=40)
                assert status == 200

    run(main())


def test_refusals_have_a_shape(
    run: Callable[[Awaitable[None]], None], model_path: pathlib.Path
) -> None:
    async def main() -> None:
        async with engine(model_path) as client:
            long = [{"role": "user", "content": "word " * 5000}]
            status, (answer,) = await ask(client, messages=long)
            assert status == 400
            assert answer["error"]["type"] == "exceed_context_size_error"
            stream = await client.post_stream(PATH, b"{nope")
            assert stream.status == 400
            assert b'"invalid_request_error"' in await stream.read_all()
            stranger = WorkerClient(client.host, client.port, "x" * 32)
            stream = await stranger.post_stream(PATH, b"{}")
            assert stream.status == 401
            assert (await stranger.get("/slots"))[0] == 401
            stranger.close()

    run(main())


async def busy_slots(client: WorkerClient) -> int:
    status, body = await client.get("/slots")
    assert status == 200
    return sum(slot["is_processing"] for slot in json.loads(body))


def test_closing_the_socket_frees_the_slot_and_health_never_queues(
    run: Callable[[Awaitable[None]], None], model_path: pathlib.Path
) -> None:
    request = json.dumps({**STREAM, "max_tokens": 1900, "ignore_eos": True}).encode()

    async def main() -> None:
        async with engine(model_path) as client:
            streams = [await client.post_stream(PATH, request) for _ in range(2)]
            queued = [asyncio.create_task(client.post_stream(PATH, request)) for _ in range(2)]
            assert await busy_slots(client) == 2
            assert (await client.get("/health"))[0] == 200
            assert await busy_slots(client) == 2, "health was answered while all slots were busy"
            for task in queued:
                task.cancel()
            await asyncio.gather(*queued, return_exceptions=True)
            for stream in streams:
                stream.abort()
            async with asyncio.timeout(WAIT_S_MAX):
                while await busy_slots(client) > 0:
                    pass

    run(main())


def arguments(model_path: pathlib.Path) -> list[str]:
    return [
        *(sys.executable, "-P", "-m", "tokenworks.live.embedded", "--model", str(model_path)),
        *("--alias", "foreman", "--slots", "1", "--context-tokens", "512", "--threads", "1"),
    ]


@asynccontextmanager
async def process(
    command: list[str], key: str = "k" * 32
) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=pipe, env={embedded.KEY_VARIABLE: key}
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        assert child.stdin is not None
        child.stdin.close()
        await child.communicate()


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (lambda child: child.send_signal(signal.SIGTERM), 0),
        (lambda child: child.stdin.close(), embedded.EXIT_ORPHANED),
    ],
)
def test_ends_when_told_to(
    run: Callable[[Awaitable[None]], None],
    model_path: pathlib.Path,
    end: Callable[[asyncio.subprocess.Process], None],
    status: int,
) -> None:
    async def main() -> None:
        async with process(arguments(model_path)) as child:
            assert child.stdout is not None
            ready = json.loads(await child.stdout.readline())
            assert ready["pid"] == child.pid
            assert await child.stdout.read() == b"", "stdout carries the ready line alone"
            end(child)
            assert await child.wait() == status

    run(main())


PARENT = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
if os.fork() == 0:  # holds the pipe open, so that only the kernel's signal can end the worker
    os.close(1)
    sys.stdin.read()
    os._exit(0)
child.wait()
"""


def test_dies_with_its_parent_even_when_the_pipe_stays_open(
    run: Callable[[Awaitable[None]], None], model_path: pathlib.Path
) -> None:
    async def main() -> None:
        async with process([sys.executable, "-c", PARENT, *arguments(model_path)]) as parent:
            assert parent.stdout is not None
            pid = json.loads(await parent.stdout.readline())["pid"]
            watched = os.pidfd_open(pid)
            parent.kill()
            await ended(watched)

    run(main())


@pytest.mark.parametrize(
    ("extra", "key", "words"),
    [
        (["--slots", "0"], "k" * 32, b"at least 1"),
        ([], "short", b"TOKENWORKS_WORKER_KEY"),
        (["--model", "/nowhere.gguf"], "k" * 32, b"nowhere"),
    ],
)
def test_says_why_it_will_not_start(
    run: Callable[[Awaitable[None]], None],
    model_path: pathlib.Path,
    extra: list[str],
    key: str,
    words: bytes,
) -> None:
    async def main() -> None:
        async with process([*arguments(model_path), *extra], key) as child:
            out, err = await child.communicate()
            assert out == b""
            assert words in err
            assert child.returncode not in (0, None)

    run(main())


def test_the_engine_is_told_its_limits() -> None:
    command = "--model m.gguf --alias foreman --slots 3 --context-tokens 96 --threads 2"
    p = embedded.engine_parameters(embedded.parse_arguments(command.split()), "secret")
    assert (p.model.path, p.model_alias, p.api_keys) == ("m.gguf", {"foreman"}, ["secret"])
    assert (p.n_parallel, p.n_ctx, p.kv_unified) == (3, 96, False)
    assert (p.cpuparams.n_threads, p.cpuparams_batch.n_threads) == (2, 2)
    assert (p.hostnames, p.port) == (["127.0.0.1"], 0)
    assert p.n_threads_http > 3 * workers.CONNECTIONS_PER_SLOT_MAX
    assert not p.ui
    assert p.cors_origins == ""


def test_both_ends_agree_on_the_key() -> None:
    assert embedded.KEY_VARIABLE == workers.KEY_VARIABLE
    assert embedded.HTTP_THREADS_PER_SLOT >= workers.CONNECTIONS_PER_SLOT_MAX
