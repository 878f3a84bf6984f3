"""The gateway as one ASGI application: its table of routes, and what it answers itself."""

from __future__ import annotations

import contextlib
import logging
import reprlib
from typing import Final

import msgspec

from tokenworks.core.errors import MethodNotAllowed, ModelNotFound, TokenworksError
from tokenworks.core.ports import Clock, Desk, Shelf
from tokenworks.core.units import NS_PER_S
from tokenworks.gateway.answer import Answers
from tokenworks.gateway.chat import Chat
from tokenworks.gateway.completions import Completions
from tokenworks.gateway.dialect import ErrorForm
from tokenworks.gateway.http_io import (
    ClientGone,
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    broken,
    read_body,
    respond,
)
from tokenworks.gateway.messages import Messages
from tokenworks.gateway.metrics import CONTENT_TYPE, GatewayMetrics
from tokenworks.gateway.openai_errors import OpenAIErrors
from tokenworks.gateway.responses import Responses
from tokenworks.gateway.routes import AnyDialect, Request, Response, Route, Routes, check_method
from tokenworks.gateway.whole_answers import WholeAnswers

_log: Final = logging.getLogger("tokenworks.gateway")

DIALECTS: Final[tuple[AnyDialect, ...]] = (Chat(), Completions(), Messages())
"""What answers can be asked for in, where nothing else is said."""

MODELS: Final = "/v1/models"


class Gateway:
    """Serves the factory's HTTP interface.

    Routes: those of ``DIALECTS``, ``responses`` and ``whole_answers.SERVICES``, ``GET /v1/models``,
    ``GET /v1/models/<model>``, ``GET /healthz``, ``GET /metrics``. The last
    two need no key, and name no tenant, no key and no content.

    Args:
        desk: the way into the factory.
        clock: time.
        dialects: what answers can be asked for in, besides Responses.
        shelf: where what tenants leave is kept; None keeps nothing.
        more: further routes.
    """

    def __init__(
        self,
        desk: Desk,
        clock: Clock,
        *,
        dialects: tuple[AnyDialect, ...] = DIALECTS,
        shelf: Shelf | None = None,
        more: tuple[Route, ...] = (),
    ) -> None:
        self._desk = desk
        self._clock = clock
        self.metrics = GatewayMetrics()
        self._answers = Answers(desk, clock, self.metrics, shelf)
        responses = Responses(clock, shelf)
        self._routes = Routes(
            (*dialects, responses),
            (
                Route(path=MODELS, handlers={"GET": self._models}),
                Route(path=MODELS + "/", handlers={"GET": self._models}),
                Route(path="/healthz", handlers={"GET": self._health}, keyed=False),
                Route(path="/metrics", handlers={"GET": self._metrics}, keyed=False),
                *responses.routes(),
                *WholeAnswers(self._answers, clock).routes(),
                *more,
            ),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] != "http":
            assert scope["type"] in ("lifespan", "websocket"), scope["type"]
            return
        path, status = scope["path"], 200
        errors: ErrorForm = OpenAIErrors()
        started = False

        async def counted(message: Message) -> None:
            nonlocal status, started
            if not started:
                status, started = message["status"], True
            try:
                await send(message)
            except OSError as error:  # ASGI's word for a caller who left
                raise ClientGone from error

        async def answer(error: TokenworksError, headers: Headers) -> None:
            nonlocal status
            status = error.status
            if not started:
                with contextlib.suppress(ClientGone):
                    await respond(counted, status, errors.error_body(error), headers)

        self.metrics.streams.inc()
        try:
            found = self._routes.find(path)
            errors = found.errors if isinstance(found, Route) else found
            if isinstance(found, Route):
                response = await self._handle(found, scope, receive)
                await respond(
                    counted, response.status, response.body, response.headers, response.content_type
                )
            else:
                check_method(path, scope["method"], ("POST",))
                await self._answers.serve(found, scope["headers"], receive, counted)
        except ClientGone:
            status = 499
        except MethodNotAllowed as error:
            allowed = ", ".join(found.handlers) if isinstance(found, Route) else "POST"
            await answer(error, [(b"allow", allowed.encode())])
        except TokenworksError as error:
            await answer(error, errors.error_headers(error))
        except Exception:  # noqa: BLE001 - the last stop: logged, and answered as our fault
            _log.exception("a request to %s broke", path)
            await answer(broken(), [])
        finally:
            self.metrics.streams.dec()
            self.metrics.responses.labels(self._routes.name(path), str(status)).inc()

    async def _handle(self, route: Route, scope: Scope, receive: Receive) -> Response:
        check_method(scope["path"], scope["method"], route.handlers)
        handler = route.handlers[scope["method"]]
        headers = scope["headers"]
        key = self._answers.key_of(headers) if route.keyed else None
        return await handler(
            Request(
                method=scope["method"],
                path=scope["path"],
                query=scope.get("query_string", b""),
                headers=headers,
                body=await read_body(receive, route.body_bytes_max),
                key=key,
            )
        )

    async def _metrics(self, _: Request) -> Response:
        return Response(body=self.metrics.text(), content_type=CONTENT_TYPE)

    async def _health(self, _: Request) -> Response:
        healthy, why = self._desk.healthy()
        body = msgspec.json.encode({"status": "ok" if healthy else "unavailable", "detail": why})
        return Response(body=body, status=200 if healthy else 503)

    async def _models(self, request: Request) -> Response:
        name = request.path.removeprefix(MODELS).strip("/")
        created = self._clock.unix_ns() // NS_PER_S
        rows = [
            {"id": model, "object": "model", "created": created, "owned_by": "tokenworks"}
            for model in self._desk.models()
            if not name or model == name
        ]
        if not name:
            return Response(body=msgspec.json.encode({"object": "list", "data": rows}))
        if not rows:
            raise ModelNotFound(
                f"There is no model {reprlib.repr(name)}.", hint="GET /v1/models lists them."
            )
        return Response(body=msgspec.json.encode(rows[0]))
