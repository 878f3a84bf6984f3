"""The gateway as one ASGI application: a table of routes and the shape of errors."""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from tokenworks.core.errors import (
    MethodNotAllowed,
    RouteNotFound,
    TokenworksError,
    Unauthorized,
)
from tokenworks.core.ports import Clock, Desk
from tokenworks.core.units import NS_PER_S
from tokenworks.gateway.chat import ChatRoute
from tokenworks.gateway.http_io import (
    ClientGone,
    Receive,
    Scope,
    Send,
    bearer,
    error_body,
    error_headers,
    respond,
)
from tokenworks.gateway.metrics import CONTENT_TYPE, GatewayMetrics

_log: Final = logging.getLogger("tokenworks.gateway")


class Gateway:
    """Serves the factory's HTTP interface.

    Routes: ``POST /v1/chat/completions``, ``GET /v1/models``, ``GET /v1/models/<model>``,
    ``GET /healthz``, ``GET /metrics``. The first three need a key. The last two name no tenant, no
    key and no content.
    """

    def __init__(self, desk: Desk, clock: Clock) -> None:
        self._desk = desk
        self._clock = clock
        self.metrics = GatewayMetrics()
        self._chat = ChatRoute(desk, clock, self.metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] != "http":
            assert scope["type"] in ("lifespan", "websocket"), scope["type"]
            return
        path, status = scope["path"], 200
        route = path if path in self._methods() else "other"
        started = False

        async def counted(message: dict[str, object]) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = int(str(message["status"])), True
            await send(message)

        self.metrics.streams.inc()
        try:
            await self._route(scope, receive, counted)  # type: ignore[arg-type]
        except ClientGone:
            status = 499
        except TokenworksError as error:
            status = error.status
            if not started:
                await respond(send, error.status, error_body(error), error_headers(error))
        except Exception:  # noqa: BLE001 - the last stop: logged, and answered as our fault
            _log.exception("a request to %s broke", path)
            status = 500
            if not started:
                broken = TokenworksError("The gateway broke on this request.", hint="Report it.")
                await respond(send, 500, error_body(broken), [])
        finally:
            self.metrics.streams.dec()
            self.metrics.responses.labels(route, str(status)).inc()

    @staticmethod
    def _methods() -> dict[str, str]:
        return {
            "/v1/chat/completions": "POST",
            "/v1/models": "GET",
            "/healthz": "GET",
            "/metrics": "GET",
        }

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        is_model = path.startswith("/v1/models/")
        wanted = "GET" if is_model else self._methods().get(path)
        if wanted is None:
            raise RouteNotFound(
                f"There is no {path!r} here.", hint=f"Routes: {', '.join(self._methods())}."
            )
        if method != wanted:
            raise MethodNotAllowed(f"{path} takes {wanted}, not {method}.", hint=f"Use {wanted}.")
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
            raise RouteNotFound(f"There is no model {name!r}.", hint="GET /v1/models lists them.")
        await respond(send, 200, msgspec.json.encode(rows[0]), [])
