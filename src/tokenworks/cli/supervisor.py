"""Several processes that serve one factory on one port: starts them, starts them again, ends them.

The first owns the dispatcher and the workers, and serves as the others do. See
docs/decisions/0017-one-dispatcher-for-several-processes.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, assert_never

import msgspec

from tokenworks.cli.membership import Alive, Hung, Member, Ready, Said, Shared
from tokenworks.core.errors import ConfigInvalid, FactoryError
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.gateway.http_limits import LIMITS
from tokenworks.gateway.server import cannot_listen
from tokenworks.live.clock import SystemClock
from tokenworks.live.home import Home
from tokenworks.live.quota_leases import DEAD_AFTER_NS
from tokenworks.live.workers import SupervisionLimits, backoff_ns

DEATHS_MAX: Final = 5
"""In a row, each within a minute of the last start; then the whole factory ends."""
PATIENCE: Final = SupervisionLimits(backoff_first_ns=200 * NS_PER_MS, backoff_ns_max=5 * NS_PER_S)
STOP_S_MAX: Final = LIMITS.drain_s_max + 15
"""From SIGTERM until a process is killed: it drains, then writes down what is open."""
OWNER_STOP_S_MAX: Final = STOP_S_MAX + 10
"""The same for the owner, which waits for the others."""
START_S_MAX: Final = 60
"""A process that is still starting is given so long before it is taken for hung."""
SILENT_S_MAX: Final = DEAD_AFTER_NS / NS_PER_S
"""Of one that has served; by then the others hold it for dead, and what it bills is refused."""
BACKLOG_MAX: Final = 128
LINE_BYTES_MAX: Final = 1 << 20
RESOURCE: Final = "OTEL_RESOURCE_ATTRIBUTES"

_log: Final = logging.getLogger("tokenworks.supervisor")

Serving = Callable[[int, list[str]], None]


class Supervisor:
    """The processes of one factory.

    Args:
        shared: what they start with; a port 0 is replaced by a free one.
        count: how many, at least 2.
        patience: how long to wait before a process starts again.

    Attributes:
        secret: the operator's key.

    Raises:
        ConfigInvalid: the port is taken, or another factory runs from this folder.
    """

    def __init__(self, shared: Shared, count: int, patience: SupervisionLimits = PATIENCE) -> None:
        assert count > 1, count
        self._count, self._patience = count, patience
        self._home = Home(Path(shared.home))
        self._stopping = asyncio.Event()
        self._broken: str | None = None
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._began_ns: dict[int, int] = {}
        self._models: dict[int, list[str]] = {}
        self._ready: set[int] = set()
        self._everybody = asyncio.Event()
        self._name = secrets.token_hex(6)
        with contextlib.ExitStack() as stack:
            self._home.make()
            self._sole = stack.enter_context(_sole(self._home))
            self._port = stack.enter_context(
                _bound(shared.host, shared.port, taken=shared.settings.gateway.share_port)
            )
            self.secret = self._prepare()
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenworks-")))
            self._path = str(folder / "owner")
            self._start = msgspec.json.encode(msgspec.structs.replace(shared, port=self._port))
            self._socket = stack.enter_context(socket.socket(socket.AF_UNIX))
            self._socket.bind(self._path)
            # It outlives its owner: who connects meanwhile waits for the next one.
            self._socket.listen(BACKLOG_MAX)
            self._close = stack.pop_all().close

    async def run(self, ready: Serving) -> None:
        """Until SIGINT or SIGTERM; a second one cuts off what is open.

        Args:
            ready: told the port and the models once all processes serve.

        Raises:
            FactoryError: a process could not be kept up.
        """
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, self._stop)
        lives = [asyncio.create_task(self._lives(index)) for index in range(self._count)]
        announce = asyncio.create_task(self._announce(ready))
        try:
            await asyncio.gather(*lives)
        finally:
            announce.cancel()
            self._stop()
            await asyncio.gather(*lives, announce, return_exceptions=True)
            for name in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(name)
            self._close()
        if self._broken is not None:
            raise FactoryError(self._broken, hint="What it said is above.")

    def _prepare(self) -> str:
        """Make the ledger, the shelf and the operator's key, before several do it at once."""
        from tokenworks.cli.wiring import operator_key

        store = self._home.open_ledger(f"supervisor-{self._name}", shared=True)
        try:
            secret = operator_key(self._home, store, SystemClock())
        finally:
            store.close()
        self._home.open_shelf().close()
        return secret

    def _stop(self) -> None:
        if not self._stopping.is_set():
            loop = asyncio.get_running_loop()
            loop.call_later(STOP_S_MAX, self._kill, range(1, self._count))
            loop.call_later(OWNER_STOP_S_MAX, self._kill, range(1))
        self._stopping.set()
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()

    def _kill(self, indices: range) -> None:
        for index in indices:
            process = self._processes.get(index)
            if process is not None:
                _log.error("process %d did not end in time: it is killed", index)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()

    async def _announce(self, ready: Serving) -> None:
        await self._everybody.wait()
        ready(self._port, self._models[0])

    async def _lives(self, index: int) -> None:
        """Keep one process up until all are to stop."""
        deaths, dead = 0, list[str]()
        while not self._stopping.is_set():
            self._began_ns[index] = time.monotonic_ns()
            name = f"factory-{self._name}-{index}-{len(dead)}"
            member = Member(
                index=index,
                count=self._count,
                path=self._path,
                descriptor=self._socket.fileno(),
                owner=name,
                dead=tuple(dead[-1:]),
            )
            status = await self._life(member)
            if self._stopping.is_set():
                return
            dead.append(name)
            stable = self._age_ns(index) >= self._patience.stable_ns
            deaths = 1 if stable else deaths + 1
            if index not in self._models or deaths >= DEATHS_MAX:
                self._broken = f"Process {index} ended with status {status}."
                self._stop()
                return
            wait_ns = backoff_ns(deaths, self._patience)
            _log.error(
                "process %d ended with status %d; it starts again in %.1f s",
                *(index, status, wait_ns / NS_PER_S),
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_ns / NS_PER_S):
                    await self._stopping.wait()

    async def _life(self, member: Member) -> int:
        """One process from its start to its end; returns its exit status."""
        process = await asyncio.create_subprocess_exec(
            *self._command(member),
            stdin=asyncio.subprocess.PIPE,  # its end tells the process that we are gone
            stdout=asyncio.subprocess.PIPE,
            # The lock, so that nobody starts from this folder while one of ours still lives.
            pass_fds=(self._sole, member.descriptor) if member.index == 0 else (self._sole,),
            start_new_session=True,  # so that Ctrl-C comes by here
            env=_environment(member.index),
            limit=LINE_BYTES_MAX,
        )
        self._processes[member.index] = process
        if self._stopping.is_set():
            process.terminate()
        try:
            assert process.stdin is not None
            with contextlib.suppress(ConnectionError):  # its status will say why
                process.stdin.write(self._start + b"\n")
                await process.stdin.drain()
            while line := await self._line(member.index, process):
                self._heard(member.index, msgspec.json.decode(line, type=Said))
            return await process.wait()
        finally:
            del self._processes[member.index]
            self._ready.discard(member.index)

    async def _line(self, index: int, process: asyncio.subprocess.Process) -> bytes:
        """What a process says next, empty once it has ended; one that is silent is killed."""
        assert process.stdout is not None
        try:
            async with asyncio.timeout(SILENT_S_MAX if index in self._ready else None):
                return await process.stdout.readline()
        except TimeoutError:
            _log.error("process %d stands still for %d s: it is killed", index, SILENT_S_MAX)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            return await process.stdout.readline()

    def _command(self, member: Member) -> tuple[str, ...]:
        words = (sys.executable, "-P", "-m", "tokenworks.cli.member")
        return (*words, msgspec.json.encode(member).decode())

    def _heard(self, index: int, said: Said) -> None:
        match said:
            case Ready():
                self._ready.add(index)
                self._models[index] = said.models
                if len(self._models) == self._count:
                    self._everybody.set()
            case Hung():
                for each in said.indices:
                    self._kill_hung(each)
            case Alive():
                pass
            case _:
                assert_never(said)

    def _kill_hung(self, index: int) -> None:
        """End a process that its owner cannot go on beside; it starts again as any that died."""
        process = self._processes.get(index)
        if process is None:
            return  # the next one will say by itself what it has
        if index not in self._ready and self._age_ns(index) < START_S_MAX * NS_PER_S:
            return  # it has nothing yet
        _log.error("process %d does not answer the first one: it is killed", index)
        with contextlib.suppress(ProcessLookupError):
            process.kill()

    def _age_ns(self, index: int) -> int:
        return time.monotonic_ns() - self._began_ns[index]


def _environment(index: int) -> dict[str, str]:
    """Ours, and a name by which OpenTelemetry tells the process from the others."""
    known = os.environ.get(RESOURCE, "")
    if "service.instance.id=" in known:
        return dict(os.environ)
    named = f"service.instance.id={socket.gethostname()}-{index}"
    return {**os.environ, RESOURCE: f"{known},{named}" if known else named}


@contextlib.contextmanager
def _sole(home: Home) -> Iterator[int]:
    """Be the only supervisor of a folder, until whoever has the descriptor has ended."""
    descriptor = os.open(home.path / "processes.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigInvalid(
                f"Another factory runs from {str(home.path)!r}.",
                hint="Stop it, or give this one a folder of its own with --home.",
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _bound(host: str, port: int, *, taken: bool) -> Iterator[int]:
    """Hold a port for processes that listen there, without listening.

    Args:
        host: where.
        port: 0 takes any.
        taken: whether others may listen there already.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        try:
            if port and not taken:
                socket.create_server((host, port), family=family).close()
            held = stack.enter_context(socket.socket(family))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind((host, port))
        except OSError as error:
            raise cannot_listen(host, port, error) from error
        yield int(held.getsockname()[1])
