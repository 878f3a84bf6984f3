"""Runs the gateway: listens, keeps account of connections, and drains before it stops."""

from __future__ import annotations

import asyncio
import email.utils
import functools
import logging
import os
import socket
import time
from typing import Final

from tokenworks.core.errors import ConfigInvalid
from tokenworks.gateway.connection import Application, Connection
from tokenworks.gateway.http_limits import LIMITS, HTTPLimits, fitting

BACKLOG_MAX: Final = 2_048
KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""A silent caller is asked after so many seconds, so often, so many times."""

LAST_TURNS: Final = 8
"""Of the event loop before it listens no more: connections are accepted in one, and read in another
soon after."""
SWEEP_S: Final = 1.0
"""Between two looks at whether a connection has taken too long; one timer serves them all."""
FILES_LEFT_MIN: Final = 8
"""With fewer that may still be opened nobody is let in: the event loop would take connections to
close them unanswered."""

_log: Final = logging.getLogger("tokenworks.gateway")


def listening(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket that listens there.

    Args:
        host: an address; one with colons is IPv6.
        port: of TCP.
        shared: whether other processes of this user may listen there, too; the kernel then gives
            each of them a part of the connections.

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.create_server((host, port), family=family, backlog=BACKLOG_MAX, reuse_port=shared)
    # What is accepted inherits these.
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A caller whose machine is gone says nothing: the kernel asks.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


def cannot_listen(host: str, port: int, error: OSError) -> ConfigInvalid:
    """Say that an address cannot be bound, once: ``create_server`` repeats it in the reason."""
    reason = str(error.strerror or error).partition(" (while ")[0]
    return ConfigInvalid(
        f"Cannot listen on {host}:{port}: {reason}.",
        hint="Choose another with --port, or stop what holds it.",
    )


class GatewayServer:
    """Binds first, so that a taken port is known before anything else starts.

    It implements ``connection.Server``.

    Args:
        host, port: where to listen; port 0 takes any.
        limits: what callers may ask of a connection.
        shared: whether others may listen there, too.
        files: how many this process may have open; None for any number. Callers get half of them.

    Attributes:
        address: where it listens.
        connections: those that are open.
        limits, application, date, draining, now_s: see ``connection.Server``.
    """

    application: Application

    def __init__(
        self,
        host: str,
        port: int,
        limits: HTTPLimits = LIMITS,
        *,
        shared: bool = False,
        files: int | None = None,
    ) -> None:
        """Bind.

        Raises:
            ConfigInvalid: the address cannot be bound.
        """
        try:
            self._socket = listening(host, port, shared=shared)
        except OSError as error:
            raise cannot_listen(host, port, error) from error
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self.limits = limits if files is None else fitting(limits, files)
        self._file_max = None if files is None else files - 1 - FILES_LEFT_MIN
        self._door: asyncio.Server | None = None
        """What takes connections; None while they wait where the kernel keeps them."""
        self._opening: asyncio.Task[None] | None = None
        self._short = False
        """Whether files were running out when that was looked at last."""
        self.date = _date()
        self.draining = False
        self.now_s = 0.0
        self.connections: set[Connection] = set()
        self._refused: set[Connection] = set()
        """Those of them that were refused, and are open until they have taken their answer."""
        self._sweeping: asyncio.TimerHandle | None = None
        self._stopped: asyncio.Event | None = None
        self._empty: asyncio.Event | None = None

    async def serve(self, application: Application) -> None:
        """Serve until ``stop``; then finish what is open, for at most ``drain_s_max``.

        What is open after that, or after a second ``stop``, goes on until the desk ends it.
        """
        loop = asyncio.get_running_loop()
        self.application = application
        self._stopped, self._empty = asyncio.Event(), asyncio.Event()
        self.sweep(loop.time())  # whose time the first connections have
        try:
            await self._open()
            self._tick()
            await self._stopped.wait()
            # Whoever has connected and asked by now is served: closing would reset them.
            for _ in range(LAST_TURNS):
                await asyncio.sleep(0)
            self.draining = True
            self._shut()
            self._socket.close()
            for connection in tuple(self.connections):
                connection.drain()
            if self.connections:
                enough = loop.call_later(self.limits.drain_s_max, self._empty.set)
                await self._empty.wait()
                enough.cancel()
        finally:
            self._shut()
            self._socket.close()
            if self._sweeping is not None:
                self._sweeping.cancel()

    def stop(self) -> None:
        """Begin to drain; called again, do not wait for what is still open."""
        if self._stopped is None or self._empty is None:
            self._socket.close()
            return
        if self._stopped.is_set():
            self._empty.set()
        self._stopped.set()

    def opened(self, connection: Connection) -> bool:
        """See ``connection.Server``."""
        self.connections.add(connection)
        count, limits = len(self.connections), self.limits
        if count >= limits.connections_max + limits.refused_max or not self._has_files():
            self._shut()
        # Whoever is refused and has not left yet takes nobody's place.
        if count - len(self._refused) <= limits.connections_max:
            return True
        self._refused.add(connection)
        return False

    def closed(self, connection: Connection) -> None:
        """See ``connection.Server``."""
        self.connections.discard(connection)
        if self._refused:
            self._refused.discard(connection)
        if self._door is None:
            self._reopen()
        if self.draining and not self.connections and self._empty is not None:
            self._empty.set()

    def sweep(self, now_s: float) -> None:
        """End what has taken too long until a time of the event loop's."""
        self.now_s, self.date = now_s, _date()
        for connection in tuple(self.connections):
            connection.sweep(now_s)

    async def _open(self) -> None:
        """Take connections, if there are files for them."""
        if not self._has_files():
            return
        loop, make = asyncio.get_running_loop(), functools.partial(Connection, self)
        handle = self._socket.dup()  # to be closed alone
        self._door = await loop.create_server(make, sock=handle, backlog=BACKLOG_MAX)
        if self.draining:
            self._shut()

    def _has_files(self) -> bool:
        """Whether as many files may still be opened as there must be for whoever comes."""
        try:
            lowest = os.dup(self._socket.fileno())  # the kernel gives the lowest that is free
        except OSError:
            return False
        os.close(lowest)
        return self._file_max is None or lowest <= self._file_max

    def _shut(self) -> None:
        """Take no connections for now: callers wait where the kernel keeps them."""
        door, self._door = self._door, None
        if door is not None:
            door.close()

    def _reopen(self) -> None:
        """Take connections again, once some of those that were refused are gone."""
        limits, opening = self.limits, self._opening
        most = limits.connections_max + limits.refused_max // 2
        if self.draining or len(self.connections) > most or not (opening is None or opening.done()):
            return
        self._opening = asyncio.get_running_loop().create_task(self._open())

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self.sweep(loop.time())
        short = not self._has_files()
        if short:
            if not self._short:
                _log.error(
                    "Fewer than %d files can still be opened: callers wait until there are more. "
                    "Raise `ulimit -n`, if it stays so.",
                    FILES_LEFT_MIN,
                )
            self._shut()
        elif self._door is None:
            self._reopen()
        self._short = short
        self._sweeping = loop.call_later(SWEEP_S, self._tick)


def _date() -> bytes:
    return f"date: {email.utils.formatdate(time.time(), usegmt=True)}\r\n".encode()
