"""Workers and their supervision: each is up with a client, or down with a reason.

``EmbeddedWorker`` owns a process and starts it again when it fails; ``AttachedWorker`` watches a
server that somebody else runs. Both tell the same two callbacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import ssl
import sys
import urllib.parse
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

import msgspec

from tokenworks.catalogue.factory_config import ANY_MODEL
from tokenworks.core.errors import ConfigInvalid, FactoryError, WorkerFailed, WorkerUnavailable
from tokenworks.core.ids import ModelName, PoolID, WorkerID
from tokenworks.core.ports import Clock, WorkerPort
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.live.network import HEAD_NS_MAX, HTTP_PORT, HTTPS_PORT, WHOLE_NS_MAX, WorkerClient

KEY_VARIABLE: Final = "TOKENWORKS_WORKER_KEY"
"""Where the worker process finds its API key."""

READY_LINE_BYTES_MAX: Final = 4096
LAST_WORDS_BYTES_MAX: Final = 2000
CONNECTIONS_PER_SLOT_MAX: Final = 2
"""The embedded worker has as many threads for connections, and some for health checks."""

ATTACHED_CONNECTIONS_MAX: Final = 512
"""To one server, if its slots are not more."""
ENVIRONMENT_PASSED: Final = (
    *("PATH", "HOME", "TMPDIR", "LANG", "LC_", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_"),
    *("OMP_", "GGML_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "SYSTEMROOT"),
)
"""Beginnings of the variables a worker gets; the factory's secrets are not among them."""

STOPPED: Final = "it was stopped"

_log = logging.getLogger(__name__)

Pause = Callable[[int], Awaitable[None]]
OnUp = Callable[[WorkerPort], None]
OnDown = Callable[[str], None]


class SupervisionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How patient supervision is.

    Attributes:
        ready_ns_max: from starting a process to its ready line.
        health_period_ns: between two health checks.
        health_ns_max: how long one check may take.
        health_failures_max: consecutive failed checks at which a worker is down.
        stuck_ns_max: how long the embedded engine's loop may be busy with one step. A step reads
            at most 2,048 tokens of prompts, which a large model on few cores does in a minute.
        stop_ns_max: from SIGTERM to SIGKILL.
        backoff_first_ns: the wait after a first failure; it doubles with each one that follows.
        backoff_ns_max: the longest wait.
        stable_ns: a worker that was up this long starts to count its failures anew.
    """

    ready_ns_max: int = 60 * NS_PER_S
    health_period_ns: int = 1 * NS_PER_S
    health_ns_max: int = 5 * NS_PER_S
    health_failures_max: int = 3
    stuck_ns_max: int = 180 * NS_PER_S
    stop_ns_max: int = 5 * NS_PER_S
    backoff_first_ns: int = 200 * NS_PER_MS
    backoff_ns_max: int = 30 * NS_PER_S
    stable_ns: int = 60 * NS_PER_S


def backoff_ns(failures: int, limits: SupervisionLimits) -> int:
    """How long to wait after so many failures in a row.

    >>> limits = SupervisionLimits(backoff_first_ns=100, backoff_ns_max=700)
    >>> [backoff_ns(n, limits) for n in (1, 2, 3, 4, 10_000)]
    [100, 200, 400, 700, 700]
    """
    assert failures >= 1, failures
    doublings = min(failures - 1, limits.backoff_ns_max.bit_length())
    return min(limits.backoff_first_ns << doublings, limits.backoff_ns_max)


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An embedded worker to be started.

    Attributes:
        worker: its name.
        pool: the pool that it belongs to.
        model: the model name it answers to.
        path: a GGUF file whose sha256 the caller has checked.
        slots: sequences it runs at once.
        context_tokens: KV tokens of all slots together; each slot has its equal share, at most
            the model's own context, and refuses a longer prompt with 400.
        threads: CPU threads of the model.
        clients: processes that send it requests, each over connections of its own.
    """

    worker: WorkerID
    pool: PoolID
    model: ModelName
    path: str
    slots: int
    context_tokens: int
    threads: int
    clients: int = 1

    @property
    def connections_max(self) -> int:
        """How many sockets its client may hold open."""
        return self.slots * CONNECTIONS_PER_SLOT_MAX


class AttachedSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A server that somebody else runs.

    Attributes:
        worker: its name.
        pool: the pool that it belongs to.
        model: the model name it must list under ``/v1/models``.
        url: ``http://host:port``, with or without ``/v1`` at its end.
        api_key: sent as a bearer token; None sends none.
        slots: requests that it runs at once.
        whole_answers: it is asked for answers in one piece, and may say nothing for as long as they
            take.
    """

    worker: WorkerID
    pool: PoolID
    model: ModelName
    url: str
    api_key: str | None = None
    slots: int = 1
    whole_answers: bool = False


class Worker(Protocol):
    """What supervision promises, whatever the worker is.

    ``on_up(client)`` is called when it can take requests, ``on_down(why)`` when it no longer can;
    they alternate, beginning with ``on_up``, and neither may raise. Before ``on_down`` the client
    is closed, so running answers raise ``WorkerFailed`` with the same reason.
    """

    def start(self) -> None:
        """Begin to supervise, in the running event loop. Called once."""
        ...

    async def stop(self) -> None:
        """End it, calling ``on_down`` if it was up; returns when nothing of it is left."""
        ...

    @property
    def last_failure(self) -> str:
        """Why it last went down or did not come up; empty if that never happened."""
        ...


async def sleep_ns(duration_ns: int) -> None:
    """The pause of the real world."""
    await asyncio.sleep(duration_ns / NS_PER_S)


class _Supervisor:
    """The part that both kinds share: lives, one after another, with a pause between them."""

    def __init__(
        self,
        name: str,
        *,
        clock: Clock,
        on_up: OnUp,
        on_down: OnDown,
        limits: SupervisionLimits | None,
        pause: Pause,
    ) -> None:
        self.name = name
        self.limits = limits or SupervisionLimits()
        self.pause = pause
        self.last_failure = ""
        self._clock = clock
        self._on_up = on_up
        self._on_down = on_down
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, life: Callable[[], Coroutine[Any, Any, str]]) -> None:
        assert self._task is None, f"{self.name} was started twice"
        self._task = asyncio.create_task(self._lives(life), name=f"worker {self.name}")
        self._task.add_done_callback(self._report)

    async def stop(self) -> None:
        self._stopping.set()
        if self._task is not None:
            await self._task

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def _report(self, task: asyncio.Task[None]) -> None:
        """Supervision that ends by a mistake of ours must not end in silence."""
        if not task.cancelled() and task.exception() is not None:
            _log.critical("supervision of worker %s broke", self.name, exc_info=task.exception())

    async def serve(self, client: WorkerClient, ends: Coroutine[Any, Any, str]) -> str:
        """Be up with this client until ``ends`` says why not; returns that reason."""
        self._on_up(client)
        why = STOPPED
        try:
            why = await self.unless_stopped(ends) or why
        finally:
            client.close(f"worker {self.name} is down: {why}")
            self._on_down(why)
        return why

    async def unless_stopped(self, wait: Coroutine[Any, Any, str]) -> str | None:
        """What ``wait`` returns, or None when ``stop`` was called first and it was cancelled."""
        waiting = asyncio.create_task(wait)
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else None
        finally:
            waiting.cancel()
            stopping.cancel()
            await asyncio.gather(waiting, stopping, return_exceptions=True)

    async def watch(self, client: WorkerClient, path: str) -> str:
        """Check health for ever; returns why, once too many checks in a row failed."""
        failures, why = 0, ""
        while failures < self.limits.health_failures_max:
            await self.pause(self.limits.health_period_ns)
            why = await self.probe(client, path)
            failures = failures + 1 if why else 0
        return f"{failures} health checks in a row failed, the last because {why}"

    async def probe(self, client: WorkerClient, path: str) -> str:
        """One health check: why it failed, or an empty string."""
        try:
            async with asyncio.timeout(self.limits.health_ns_max / NS_PER_S):
                status, _ = await client.get(path)
        except TimeoutError:
            return f"{path} took more than {self.limits.health_ns_max / NS_PER_S:g} s"
        except WorkerUnavailable:
            return ""  # we cannot ask: that says nothing of the worker
        except FactoryError as error:
            return str(error)
        return "" if status == 200 else f"{path} answered {status}"

    async def watch_loop(self, client: WorkerClient, path: str) -> str:
        """Wait until the engine's loop is stuck; returns that it is.

        Args:
            client: to the worker.
            path: what only that loop can answer, so an answer that fails proves nothing.
        """
        limit_s = self.limits.stuck_ns_max / NS_PER_S
        while True:
            await self.pause(self.limits.health_period_ns)
            try:
                async with asyncio.timeout(limit_s):
                    await client.get(path)
            except TimeoutError:
                return f"its engine has been stuck for {limit_s:g} s"
            except FactoryError:
                continue  # that is for ``watch`` to judge

    async def _lives(self, life: Callable[[], Coroutine[Any, Any, str]]) -> None:
        failures = 0
        while not self._stopping.is_set():
            began_ns = self._clock.now_ns()
            why = await life()
            if self._stopping.is_set():
                return
            self.last_failure = why
            lived_ns = self._clock.now_ns() - began_ns
            failures = 1 if lived_ns >= self.limits.stable_ns else failures + 1
            wait_ns = backoff_ns(failures, self.limits)
            _log.warning(
                "worker %s is down (%s); next try in %.1f s", self.name, why, wait_ns / NS_PER_S
            )
            await self.unless_stopped(self._paused(wait_ns))

    async def _paused(self, duration_ns: int) -> str:
        await self.pause(duration_ns)
        return ""


class _Ready(msgspec.Struct, frozen=True):
    """The line a worker process prints when it can serve."""

    ready: bool
    address: str
    pid: int


class EmbeddedWorker:
    """A process of ours that runs the embedded engine; implements ``Worker``.

    Start it from the thread that lives as long as the factory: the kernel kills the process when
    the *thread* that started it ends.

    Args:
        spec: what to start.
        clock: to tell a stable worker from one that keeps failing.
        on_up, on_down: see ``Worker``.
        limits: patience.
        pause: how to wait.
        python: the interpreter, which must have tokenworks.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        clock: Clock,
        on_up: OnUp,
        on_down: OnDown,
        *,
        limits: SupervisionLimits | None = None,
        pause: Pause = sleep_ns,
        python: str = sys.executable,
    ) -> None:
        self.spec = spec
        self.pid: int | None = None
        """The process that is up or starting; None between two of them."""
        self._python = python
        self._supervisor = _Supervisor(
            spec.worker, clock=clock, on_up=on_up, on_down=on_down, limits=limits, pause=pause
        )

    @property
    def last_failure(self) -> str:
        """See ``Worker``."""
        return self._supervisor.last_failure

    def start(self) -> None:
        """See ``Worker``."""
        self._supervisor.start(self._life)

    async def stop(self) -> None:
        """See ``Worker``; SIGTERM, and SIGKILL after ``stop_ns_max``."""
        await self._supervisor.stop()

    async def _life(self) -> str:
        """One process from its start to its end; returns why it ended."""
        supervisor = self._supervisor
        api_key = secrets.token_urlsafe(32)
        try:
            process = await self._spawn(api_key)
        except OSError as error:
            return f"its process could not be started: {error!r}"
        self.pid = process.pid
        last_words = asyncio.create_task(_tail(process.stderr))
        try:
            address = await supervisor.unless_stopped(self._ready(process))
            if address is None:
                why = STOPPED
            else:
                host, port = _host_port(address)
                limit = self.spec.connections_max
                client = WorkerClient(host, port, api_key, connections_max=limit)
                why = await supervisor.serve(client, self._ended(process, client))
        except WorkerFailed as error:
            why = error.message
        finally:
            await self._end(process, gently=supervisor.stopping)
            self.pid = None
            words = await last_words
        return f"{why}; its last words: {words}" if words else why

    async def _spawn(self, api_key: str) -> asyncio.subprocess.Process:
        spec = self.spec
        environment = {k: v for k, v in os.environ.items() if k.startswith(ENVIRONMENT_PASSED)}
        environment[KEY_VARIABLE] = api_key
        return await asyncio.create_subprocess_exec(
            *(self._python, "-P", "-m", "tokenworks.live.embedded"),
            *("--model", spec.path, "--alias", spec.model, "--slots", str(spec.slots)),
            *("--context-tokens", str(spec.context_tokens), "--threads", str(spec.threads)),
            *("--clients", str(spec.clients)),
            stdin=asyncio.subprocess.PIPE,  # its end tells the worker that we are gone
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            limit=READY_LINE_BYTES_MAX,
            start_new_session=True,  # so that Ctrl-C goes to the factory alone
        )

    async def _ready(self, process: asyncio.subprocess.Process) -> str:
        """The address of a process that can serve; raises WorkerFailed if there will be none."""
        assert process.stdout is not None
        limit_s = self._supervisor.limits.ready_ns_max / NS_PER_S
        line = b""
        try:
            async with asyncio.timeout(limit_s):
                line = await process.stdout.readline()
                if not line:
                    status = await process.wait()
                    raise WorkerFailed(f"its process ended before it was ready, status {status}")
            return msgspec.json.decode(line, type=_Ready).address
        except TimeoutError:
            raise WorkerFailed(f"its process was not ready after {limit_s:g} s") from None
        except (ValueError, msgspec.DecodeError) as error:
            raise WorkerFailed(f"its ready line {line!r} is wrong: {error}") from error

    async def _ended(self, process: asyncio.subprocess.Process, client: WorkerClient) -> str:
        """Wait for the process to end, or to fail its health checks or to stick; returns which.

        llama.cpp answers ``/health`` from another thread than the one that makes tokens.
        """
        exited = asyncio.create_task(process.wait())
        sick = asyncio.create_task(self._supervisor.watch(client, "/health"))
        stuck = asyncio.create_task(self._supervisor.watch_loop(client, "/metrics"))
        tasks = (exited, sick, stuck)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                return f"its process ended, status {exited.result()}"
            return sick.result() if sick.done() else stuck.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _end(self, process: asyncio.subprocess.Process, *, gently: bool) -> None:
        """Leave no process: SIGTERM first if it is to stop gently, then SIGKILL."""
        # Until every pipe is at its end, asyncio in Python 3.11 does not call a process ended.
        rest = asyncio.create_task(_tail(process.stdout))
        if gently:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(self._supervisor.limits.stop_ns_max / NS_PER_S):
                    await process.wait()
            except TimeoutError:
                _log.warning("worker %s ignored SIGTERM", self.spec.worker)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await rest
        assert process.stdin is not None
        process.stdin.close()


class AttachedWorker:
    """An OpenAI-compatible server at a URL, whoever runs it; implements ``Worker``.

    Args:
        spec: where it is.
        clock, on_up, on_down, limits, pause: as for ``EmbeddedWorker``.

    Raises:
        ConfigInvalid: the URL is not a plain ``http://host[:port][/path]``.
    """

    def __init__(
        self,
        spec: AttachedSpec,
        clock: Clock,
        on_up: OnUp,
        on_down: OnDown,
        *,
        limits: SupervisionLimits | None = None,
        pause: Pause = sleep_ns,
    ) -> None:
        self.spec = spec
        client_of(spec)  # a wrong URL shows at once
        # A provider's URL is what its paths follow; a server's may end in /v1 or not.
        self._models = "/models" if spec.model == ANY_MODEL else "/v1/models"
        self._supervisor = _Supervisor(
            spec.worker, clock=clock, on_up=on_up, on_down=on_down, limits=limits, pause=pause
        )

    @property
    def last_failure(self) -> str:
        """See ``Worker``."""
        return self._supervisor.last_failure

    def start(self) -> None:
        """See ``Worker``."""
        self._supervisor.start(self._life)

    async def stop(self) -> None:
        """See ``Worker``; the server itself is left alone."""
        await self._supervisor.stop()

    async def _life(self) -> str:
        client = client_of(self.spec)
        try:
            if await self._supervisor.unless_stopped(self._serves(client)) is None:
                return STOPPED
            watched = self._supervisor.watch(client, self._models)
            return await self._supervisor.serve(client, watched)
        except FactoryError as error:
            return error.message
        finally:
            client.close()

    async def _serves(self, client: WorkerClient) -> str:
        """The model's name once the server lists it; raises WorkerFailed if it doesn't."""
        supervisor = self._supervisor
        try:
            while (said := await self._list(client)) is None:
                await supervisor.pause(supervisor.limits.health_period_ns)
            status, body = said
            if status != 200:
                raise WorkerFailed(f"{self._models} answered {status}")
            names = [model.id for model in msgspec.json.decode(body, type=_ModelList).data]
        except TimeoutError:
            raise WorkerFailed(f"{self._models} did not answer in time") from None
        except msgspec.DecodeError as error:
            raise WorkerFailed(f"{self._models} answered {body[:200]!r}: {error}") from error
        if self.spec.model not in (*names, ANY_MODEL):
            raise WorkerFailed(f"it serves {names!r}, not {self.spec.model!r}")
        return self.spec.model

    async def _list(self, client: WorkerClient) -> tuple[int, bytes] | None:
        """What the server answers to which models it has; None if we cannot ask."""
        try:
            async with asyncio.timeout(self._supervisor.limits.health_ns_max / NS_PER_S):
                return await client.get(self._models)
        except WorkerUnavailable as lack:
            if not lack.ours:
                raise
            self._supervisor.last_failure = lack.message
            return None


class _ModelEntry(msgspec.Struct, frozen=True):
    id: str


class _ModelList(msgspec.Struct, frozen=True):
    """What ``/v1/models`` answers, as far as it concerns us."""

    data: list[_ModelEntry]


def client_of(spec: AttachedSpec) -> WorkerClient:
    """The way to a server that somebody else runs.

    Raises:
        ConfigInvalid: the URL is not a plain ``http://host[:port][/path]``.
    """
    parts = urllib.parse.urlsplit(spec.url)
    if (
        parts.scheme not in ("http", "https") or not parts.hostname
        or parts.username is not None or parts.query or parts.fragment
    ):  # fmt: skip
        raise ConfigInvalid(
            f"worker {spec.worker!r} has the URL {spec.url!r}, which is not http://host[:port]",
            hint="It may begin with https://; keys go into their own setting.",
        )
    try:
        secure = parts.scheme == "https"
        port = parts.port or (HTTPS_PORT if secure else HTTP_PORT)
    except ValueError as error:
        raise ConfigInvalid(f"worker {spec.worker!r}: {error} in {spec.url!r}") from error
    base = parts.path.rstrip("/")
    return WorkerClient(
        parts.hostname,
        port,
        spec.api_key,
        connections_max=max(ATTACHED_CONNECTIONS_MAX, spec.slots),
        base_path=base if spec.model == ANY_MODEL else base.removesuffix("/v1"),
        tls=ssl.create_default_context() if secure else None,
        head_ns_max=WHOLE_NS_MAX if spec.whole_answers else HEAD_NS_MAX,
    )


def _host_port(address: str) -> tuple[str, int]:
    parts = urllib.parse.urlsplit(address)
    assert parts.hostname is not None, address
    assert parts.port is not None, address
    return parts.hostname, parts.port


async def _tail(stream: asyncio.StreamReader | None) -> str:
    """Read to the end and keep the last bytes: a process that nobody reads would block."""
    assert stream is not None
    kept = b""
    while data := await stream.read(LAST_WORDS_BYTES_MAX):
        kept = (kept + data)[-LAST_WORDS_BYTES_MAX:]
    return kept.decode(errors="replace").strip()
