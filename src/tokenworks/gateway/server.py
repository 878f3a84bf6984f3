"""Runs the gateway under uvicorn: uvloop, httptools, loopback unless told otherwise.

This is the one file that a faster server replaces.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn

from tokenworks.core.errors import ConfigInvalid
from tokenworks.gateway.app import Gateway

BACKLOG_MAX: Final = 2_048
CONNECTIONS_MAX: Final = 12_000
IDLE_S_MAX: Final = 75
DRAIN_S_MAX: Final = 20


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the factory has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class GatewayServer:
    """Binds first, so that a taken port is known before anything else starts."""

    def __init__(self, host: str, port: int) -> None:
        """Bind.

        Raises:
            ConfigInvalid: the address cannot be bound.
        """
        try:
            self._socket = socket.create_server((host, port), backlog=BACKLOG_MAX)
        except OSError as error:
            raise ConfigInvalid(
                f"Cannot listen on {host}:{port}: {error.strerror or error}.",
                hint="Choose another with --port, or stop what holds it.",
            ) from error
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._server: _Server | None = None

    async def serve(self, gateway: Gateway) -> None:
        """Serve until ``stop``; then finish what is open, for at most DRAIN_S_MAX."""
        config = uvicorn.Config(
            gateway,
            loop="uvloop",
            http="httptools",
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
        """Begin to drain."""
        if self._server is not None:
            self._server.should_exit = True
        else:
            self._socket.close()
