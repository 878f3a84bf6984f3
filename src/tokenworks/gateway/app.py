"""The gateway as one ASGI application: a table of routes and the shape of errors."""

from __future__ import annotations

import contextlib
import logging
import reprlib
from typing import Final

import msgspec

from tokenworks.core.errors import (
    MethodNotAllowed,
    ModelNotFound,
    RouteNotFound,
    TokenworksError,
    Unauthorized,
)
from tokenworks.core.ports import Clock, Desk
from tokenworks.core.units import NS_PER_S
from tokenworks.gateway.chat import ChatRoute
from tokenworks.gateway.http_io import (
    ClientGone,
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    bearer,
    broken,
    error_body,
    error_headers,
    respond,
)
from tokenworks.gateway.metrics import CONTENT_TYPE, GatewayMetrics
from tokenworks.gateway.request_ids import ids_of, with_ids

_log: Final = logging.getLogger("tokenworks.gateway")

METHODS: Final = {
    "/v1/chat/completions": "POST",
    "/v1/models": "GET",
    "/healthz": "GET",
    "/metrics": "GET",
}
MODEL_PREFIX: Final = "/v1/models/"


class Gateway:
    """Serves the factory's HTTP interface.

    Routes: ``POST /v1/chat/completions``, ``GET /v1/models``, ``GET /v1/models/<model>``,
    ``GET /healthz``, ``GET /metrics``. The first three need a key. The last two name no tenant, no
    key and no content.
    """

    def __init__(self, desk: Desk, clock: Clock, metrics: GatewayMetrics | None = None) -> None:
        self._desk = desk
        self._clock = clock
        self.metrics = metrics or GatewayMetrics()
        self._chat = ChatRoute(desk, clock, self.metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] != "http":
            assert scope["type"] in ("lifespan", "websocket"), scope["type"]
            return
        path, status = scope["path"], 200
        route = path if path in METHODS else "other"
        started = False

        async def counted(message: Message) -> None:
            nonlocal status, started
            if not started:
                status, started = message["status"], True
                unix_ns = self._clock.unix_ns()
                message["headers"] = with_ids(message["headers"], scope, unix_ns)
            try:
                await send(message)
            except OSError as error:  # ASGI's word for a caller who left
                raise ClientGone from error

        async def answer(error: TokenworksError, headers: Headers) -> None:
            nonlocal status
            status = error.status
            self.metrics.refuse(error)
            if not started:
                with contextlib.suppress(ClientGone):
                    await respond(counted, status, error_body(error), headers)

        self.metrics.open_requests += 1
        try:
            await self._route(scope, receive, counted)
        except ClientGone:
            status = 499
        except MethodNotAllowed as error:
            await answer(error, [(b"allow", _method(path).encode())])
        except TokenworksError as error:
            await answer(error, error_headers(error))
        except Exception:  # noqa: BLE001 - the last stop: logged, and answered as our fault
            named = ids_of(scope, self._clock.unix_ns())
            _log.exception("a request to %s broke: %s, to its caller %s", path, *named)
            await answer(broken(), [])
        finally:
            self.metrics.open_requests -= 1
            self.metrics.respond(route, status)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        wanted = _method(path)
        if not wanted:
            raise RouteNotFound(
                f"There is no {reprlib.repr(path)} here.", hint=f"Routes: {', '.join(METHODS)}."
            )
        if method != wanted:
            raise MethodNotAllowed(
                f"{reprlib.repr(path)} takes {wanted}, not {method}.", hint=f"Use {wanted}."
            )
        if path == "/v1/chat/completions":
            await self._chat(scope, receive, send)
        elif path == "/healthz":
            await self._health(send)
        elif path == "/metrics":
            await respond(send, 200, self.metrics.text(), [], CONTENT_TYPE)
        else:
            self._require_key(scope)
            await self._models(path.removeprefix("/v1/models").strip("/"), send)

    def _require_key(self, scope: Scope) -> None:
        secret = bearer(scope)
        if secret is None or self._desk.key_of(secret) is None:
            raise Unauthorized("There is no valid key.", hint="Send `Authorization: Bearer <key>`.")

    async def _health(self, send: Send) -> None:
        healthy, why = self._desk.healthy()
        body = msgspec.json.encode({"status": "ok" if healthy else "unavailable", "detail": why})
        await respond(send, 200 if healthy else 503, body, [])

    async def _models(self, name: str, send: Send) -> None:
        created = self._clock.unix_ns() // NS_PER_S
        rows = [
            {"id": model, "object": "model", "created": created, "owned_by": "tokenworks"}
            for model in self._desk.models()
            if not name or model == name
        ]
        if not name:
            await respond(send, 200, msgspec.json.encode({"object": "list", "data": rows}), [])
            return
        if not rows:
            raise ModelNotFound(
                f"There is no model {reprlib.repr(name)}.", hint="GET /v1/models lists them."
            )
        await respond(send, 200, msgspec.json.encode(rows[0]), [])


def _method(path: str) -> str:
    """The one method that a path takes; empty if there is no such path."""
    return "GET" if path.startswith(MODEL_PREFIX) else METHODS.get(path, "")
