"""Runs the gateway under uvicorn: uvloop, httptools, loopback unless told otherwise.

This is the one file that a faster server replaces.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tokenworks.core.errors import ConfigInvalid
from tokenworks.gateway.app import Gateway

BACKLOG_MAX: Final = 2_048
CONNECTIONS_MAX: Final = 12_000
_UPGRADE: Final = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
HEAD_BYTES_MAX: Final = 64 * 1024
"""A head that spans several reads of the socket may have no more."""

IDLE_S_MAX: Final = 75
DRAIN_S_MAX: Final = 20


def _hide_upgrade(data: bytes) -> bytes:
    """The same head with its ``Upgrade`` under another name; HTTP lets a server ignore an offer."""
    end = data.find(b"\r\n\r\n")
    found = _UPGRADE.search(data, 0, end if end >= 0 else len(data))
    if found is None:
        return data
    return data[: found.start()] + b"\r\nx-ignored-upgrade:" + data[found.end() :]


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP connection, with a bound on a request's head and two repairs.

    Neither httptools nor uvicorn bounds a head. Where a caller sends its next request before it has
    the answer to the last, uvicorn tells only the newest of them of a lost connection. And a body
    that comes with an offer to upgrade, which Java's HTTP client makes on every connection, is
    lost to the parser, unless the offer is hidden from it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._head_ended = False
        self._unanswered: list[RequestResponseCycle] = []

    def data_received(self, data: bytes) -> None:
        """Parse, and give up on a head that does not end."""
        in_head, self._head_ended = self._in_head, False
        if in_head:
            data = _hide_upgrade(data)
        super().data_received(data)
        if not in_head or self._head_ended or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES_MAX:
            self.send_400_response("The request's head is too long.")

    def on_headers_complete(self) -> None:
        """Begin a request."""
        super().on_headers_complete()
        self._in_head, self._head_ended, self._head_bytes = False, True, 0
        waiting = [cycle for cycle in self._unanswered if not cycle.response_complete]
        self._unanswered = [*waiting, self.cycle]

    def on_message_complete(self) -> None:
        """Expect the next head."""
        super().on_message_complete()
        self._in_head = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every request of this connection that its caller is gone."""
        for cycle in self._unanswered:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the factory has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; an address with colons is IPv6.

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG_MAX)


class GatewayServer:
    """Binds first, so that a taken port is known before anything else starts."""

    def __init__(self, host: str, port: int) -> None:
        """Bind.

        Raises:
            ConfigInvalid: the address cannot be bound.
        """
        try:
            self._socket = listening(host, port)
        except OSError as error:
            raise ConfigInvalid(
                f"Cannot listen on {host}:{port}: {error.strerror or error}.",
                hint="Choose another with --port, or stop what holds it.",
            ) from error
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._server: _Server | None = None

    async def serve(self, gateway: Gateway) -> None:
        """Serve until ``stop``; then finish what is open, for at most DRAIN_S_MAX.

        What is open after that, or after a second ``stop``, goes on until the desk ends it.
        """
        config = uvicorn.Config(
            gateway,
            loop="uvloop",
            http=_Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=True,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=IDLE_S_MAX,
            timeout_graceful_shutdown=DRAIN_S_MAX,
        )
        self._server = _Server(config)
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Begin to drain; called again, do not wait for what is still open."""
        if self._server is not None:
            self._server.force_exit = self._server.should_exit
            self._server.should_exit = True
        else:
            self._socket.close()
