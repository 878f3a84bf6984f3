"""The gateway as one application: its table of routes, and what it answers itself."""

from __future__ import annotations

import asyncio
import logging
import reprlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Final

import msgspec

from tokenworks.core.batches import BatchRoom, FileRoom
from tokenworks.core.errors import MethodNotAllowed, ModelNotFound, TokenworksError
from tokenworks.core.ids import RequestID
from tokenworks.core.orders import KeyView
from tokenworks.core.ports import Clock, Desk, Shelf
from tokenworks.core.scopes import Network
from tokenworks.core.units import NS_PER_S
from tokenworks.gateway.admin import Admin
from tokenworks.gateway.answer import Answer, Answers
from tokenworks.gateway.batches import Batches
from tokenworks.gateway.chat import Chat
from tokenworks.gateway.completions import Completions
from tokenworks.gateway.connection import Exchange
from tokenworks.gateway.dialect import ErrorForm, Fetch
from tokenworks.gateway.doorkeeper import Doorkeeper, models_for
from tokenworks.gateway.files import Files
from tokenworks.gateway.http_io import BODY_BYTES_MAX, JSON, ClientGone, Headers, broken
from tokenworks.gateway.messages import Messages
from tokenworks.gateway.metrics import CONTENT_TYPE, GatewayMetrics
from tokenworks.gateway.openai_errors import OpenAIErrors
from tokenworks.gateway.openapi import OPENAPI_PATH, document
from tokenworks.gateway.pass_through import BODY_BYTES_MAX as PASSED_BYTES_MAX
from tokenworks.gateway.pass_through import PassThrough
from tokenworks.gateway.request_ids import REQUEST_ID, RequestNames, caller_id, id_headers
from tokenworks.gateway.responses import Responses
from tokenworks.gateway.routes import AnyDialect, Request, Response, Route, Routes, check_method
from tokenworks.gateway.services import Services
from tokenworks.gateway.strangers import Strangers
from tokenworks.gateway.token_counts import TokenCounts

_log: Final = logging.getLogger("tokenworks.gateway")

DIALECTS: Final[tuple[AnyDialect, ...]] = (Chat(), Completions(), Messages())
"""What answers can be asked for in, where nothing else is said."""

MODELS: Final = "/v1/models"
_POST: Final = {"POST": None}.keys()
_OPENAI: Final = OpenAIErrors()
_ANTHROPIC: Final = Messages()
_MESSAGES: Final = ("/v1/messages", "/messages")
"""How paths begin whose errors are worded as Anthropic's."""
BROKE: Final = "a request to %s broke: %s, to its caller %s"


class _Accepted:
    """What is known of a request from its head."""

    __slots__ = (
        "answer",
        "callers",
        "dialect",
        "errors",
        "key",
        "name",
        "passing",
        "request",
        "route",
    )

    def __init__(self, request: RequestID, callers: str | None) -> None:
        self.request, self.callers = request, callers
        self.name = "other"
        self.errors: ErrorForm = _OPENAI
        self.dialect: AnyDialect | None = None
        self.route: Route | None = None
        self.passing: PassThrough | None = None
        self.key: KeyView | None = None
        self.answer: Answer | None = None

    def ids(self) -> Headers:
        """The request's names, as its answer tells them."""
        return id_headers(self.request, self.callers)


class Gateway:
    """Serves the factory's HTTP interface.

    Routes: those of ``DIALECTS``, ``responses`` and ``services.SERVICES``, ``GET /v1/models``,
    ``GET /v1/models/<model>``, ``GET /healthz``, ``GET /metrics``. The last two need no key, and
    name no tenant, no key and no content.

    Args:
        desk: the way into the factory.
        clock: time.
        metrics: where it counts; None for some of its own.
        dialects: what answers can be asked for in, besides Responses.
        shelf: where what tenants leave is kept; None keeps nothing.
        admin: how people manage the factory; None if not here.
        files: where their files are kept; None keeps none.
        batches: where their batches are kept; None keeps none. Somebody else runs them.
        more: further routes.
        passes_on: pass on all that needs a key as it comes; see ``pass_through``.
        trusted_proxies: see ``Doorkeeper``.
        scrape: gives ``/metrics`` where several processes serve together; None for its own.

    Attributes:
        metrics: what it counts.
        serving: requests that are being answered, with their tasks.
    """

    def __init__(
        self,
        desk: Desk,
        clock: Clock,
        *,
        metrics: GatewayMetrics | None = None,
        dialects: tuple[AnyDialect, ...] = DIALECTS,
        shelf: Shelf | None = None,
        admin: Admin | None = None,
        files: FileRoom | None = None,
        batches: BatchRoom | None = None,
        more: tuple[Route, ...] = (),
        passes_on: bool = False,
        trusted_proxies: tuple[Network, ...] = (),
        scrape: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        self._desk = desk
        self._door = Doorkeeper(desk, clock, trusted_proxies)
        self._strangers = Strangers(trusted_proxies)
        self._clock = clock
        self.metrics = metrics or GatewayMetrics()
        self._scrape = scrape
        self._answers = Answers(desk, clock, self.metrics, shelf)
        self._passing = PassThrough(self._answers) if passes_on else None
        responses = Responses(clock, shelf)
        self._names, self._manages = RequestNames(), admin is not None
        self.serving: dict[Exchange, asyncio.Task[None]] = {}
        self._routes = Routes(
            (*dialects, responses),
            (
                Route(path=MODELS, handlers={"GET": self._models}),
                Route(path=MODELS + "/", handlers={"GET": self._models}),
                Route(path="/healthz", handlers={"GET": self._health}, keyed=False),
                Route(path="/metrics", handlers={"GET": self._metrics}, keyed=False),
                Route(path=OPENAPI_PATH, handlers={"GET": self._openapi}, keyed=False),
                *responses.routes(),
                *TokenCounts(desk, responses).routes(),
                *Services(self._answers, clock).routes(),
                *(() if admin is None else admin.routes()),
                *Files(files, clock).routes(),
                *Batches(batches, clock).routes(),
                *more,
            ),
        )

    # What a connection calls; see ``connection.Application``.

    def _accepted(self, exchange: Exchange) -> _Accepted:
        """What is known of a request, which has a name as soon as anything is."""
        found = exchange.accepted
        if not isinstance(found, _Accepted):
            callers = None if exchange.head is None else exchange.head.get(REQUEST_ID)
            found = exchange.accepted = _Accepted(
                self._names.new(self._clock.unix_ns()),
                None if callers is None else caller_id(callers),
            )
        return found

    def accept(self, exchange: Exchange) -> int | None:
        """Find the route and check the key, before the body is read."""
        head = exchange.head
        assert head is not None
        accepted = self._accepted(exchange)
        if head.path.startswith(_MESSAGES):
            accepted.errors = _ANTHROPIC
        try:
            if self._passing is not None and not self._routes.is_open(head.path):
                accepted.name, accepted.passing = "passed on", self._passing
                accepted.key = self._door.admit(exchange, head)
                return PASSED_BYTES_MAX
            found = self._routes.find(head.path)
            if isinstance(found, Route):
                accepted.errors, accepted.route, keyed = found.errors, found, found.keyed
                accepted.name = self._routes.name(head.path)
                allowed, bytes_max = found.handlers.keys(), found.body_bytes_max
            else:
                accepted.errors, accepted.dialect, keyed = found, found, True
                accepted.name = head.path
                allowed, bytes_max = _POST, BODY_BYTES_MAX
            if head.method not in allowed:
                check_method(head.path, head.method, allowed)
            if keyed:
                accepted.key = self._door.admit(exchange, head)
            takes = None if accepted.route is None else accepted.route.takes
            if takes is not None and head.method == "POST" and accepted.key is not None:
                takes(exchange, accepted.key)
        except MethodNotAllowed as error:
            self._fail(exchange, error, [(b"allow", ", ".join(allowed).encode())])
        except TokenworksError as error:
            self._fail(exchange, error)
        else:
            return bytes_max
        return None

    def refuse(self, exchange: Exchange, error: TokenworksError) -> None:
        """Answer a request that cannot be read."""
        if exchange.sink is not None:
            exchange.sink.drop()
        self._fail(exchange, error)

    def serve(self, exchange: Exchange) -> None:
        """Begin to answer a whole request."""
        accepted = exchange.accepted
        assert isinstance(accepted, _Accepted)
        work: Coroutine[object, object, None]
        try:
            if accepted.passing is not None:
                work = accepted.passing.serve(exchange, accepted)
            elif accepted.dialect is not None and accepted.key is not None:
                if accepted.dialect.fetch is None:
                    work = self._answer(exchange, accepted, accepted.dialect).run()
                else:
                    work = self._fetch(exchange, accepted, accepted.dialect.fetch, accepted.key)
            else:
                work = self._handle(exchange, accepted)
        except TokenworksError as error:
            self._fail(exchange, error)
        except Exception:  # noqa: BLE001 - logged, and answered as our fault
            _log.exception(BROKE, accepted.name, accepted.request, accepted.callers)
            self._fail(exchange, broken())
        else:
            task = asyncio.get_running_loop().create_task(self._finish(exchange, accepted, work))
            self.serving[exchange] = exchange.task = task

    async def _fetch(
        self, exchange: Exchange, accepted: _Accepted, fetch: Fetch, key: KeyView
    ) -> None:
        """Answer a request that may go on from what was kept."""
        await self._answer(exchange, accepted, await fetch(exchange.body, key)).run()

    def _answer(self, exchange: Exchange, accepted: _Accepted, dialect: AnyDialect) -> Answer:
        assert accepted.key is not None
        answer = accepted.answer = self._answers.prepare(
            dialect, exchange, accepted.key, accepted.request, accepted.callers
        )
        return answer

    async def _finish(
        self, exchange: Exchange, accepted: _Accepted, work: Coroutine[object, object, None]
    ) -> None:
        self.metrics.open_requests += 1
        failure: TokenworksError | None = None
        try:
            await work
        except ClientGone:
            pass
        except TokenworksError as error:
            failure = error
        except Exception:  # noqa: BLE001 - the last stop: logged, and answered as our fault
            _log.exception(BROKE, accepted.name, accepted.request, accepted.callers)
            failure = broken()
        finally:
            self.metrics.open_requests -= 1
            del self.serving[exchange]
            # Each knows the other, which only the collector of cycles would take apart.
            answer, accepted.answer, exchange.task = accepted.answer, None, None
        if failure is None:
            self.metrics.respond(accepted.name, 499 if exchange.gone else exchange.status)
        elif answer is not None and answer.tell(failure):
            self.metrics.refuse(failure)
            self.metrics.respond(accepted.name, failure.status)
        elif exchange.status:
            # Neither a status nor an event can say what went wrong: it just has no end.
            self.metrics.refuse(failure)
            self.metrics.respond(accepted.name, failure.status)
            if not exchange.ended:
                exchange.break_off()
        else:
            self._fail(exchange, failure)

    def _fail(
        self, exchange: Exchange, error: TokenworksError, headers: Headers | None = None
    ) -> None:
        accepted = self._accepted(exchange)
        more = accepted.errors.error_headers(error) if headers is None else headers
        self.metrics.refuse(error)
        self.metrics.respond(accepted.name, error.status)
        self._strangers.note(exchange, error)
        body = accepted.errors.error_body(error)
        exchange.respond(error.status, body, JSON, [*more, *accepted.ids()])

    async def _handle(self, exchange: Exchange, accepted: _Accepted) -> None:
        """Another route than an answer's."""
        head, route = exchange.head, accepted.route
        assert head is not None
        assert route is not None
        method = "GET" if head.method == "HEAD" and "HEAD" not in route.handlers else head.method
        response = await route.handlers[method](
            Request(
                method=head.method,
                path=head.path,
                query=head.query,
                headers=head.headers(),
                body=exchange.body,
                key=accepted.key,
                id=accepted.request,
                exchange=exchange,
            )
        )
        headers = [*response.headers, *accepted.ids()]
        if exchange.gone:
            return
        if response.parts is not None:
            exchange.begin(response.status, response.content_type, headers)
            await send_parts(exchange, response.parts)
        else:
            exchange.respond(response.status, response.body, response.content_type, headers)

    # Routes of its own.

    async def _metrics(self, _: Request) -> Response:
        text = self.metrics.text() if self._scrape is None else await self._scrape()
        return Response(body=text, content_type=CONTENT_TYPE)

    async def _openapi(self, _: Request) -> Response:
        return Response(body=msgspec.json.encode(document(admin=self._manages)))

    async def _health(self, _: Request) -> Response:
        healthy, why = self._desk.healthy()
        body = msgspec.json.encode({"status": "ok" if healthy else "unavailable", "detail": why})
        return Response(body=body, status=200 if healthy else 503)

    async def _models(self, request: Request) -> Response:
        name = request.path.removeprefix(MODELS).strip("/")
        assert request.key is not None
        scopes = request.key.scopes
        if name and scopes is not None:
            scopes.check_model(name)
        created = self._clock.unix_ns() // NS_PER_S
        rows = [
            {"id": model, "object": "model", "created": created, "owned_by": "tokenworks"}
            for model in models_for(self._desk, scopes)
            if not name or model == name
        ]
        if not name:
            return Response(body=msgspec.json.encode({"object": "list", "data": rows}))
        if not rows:
            raise ModelNotFound(
                f"There is no model {reprlib.repr(name)}.", hint="GET /v1/models lists them."
            )
        return Response(body=msgspec.json.encode(rows[0]))


async def send_parts(exchange: Exchange, parts: AsyncIterator[bytes]) -> None:
    """Send a long body as its caller takes it, after its head; stops once that has left."""
    may_go_on = asyncio.Event()
    may_go_on.set()
    exchange.on_pause, exchange.on_resume = may_go_on.clear, may_go_on.set
    exchange.on_gone = may_go_on.set
    async for part in parts:
        exchange.write(part)
        await may_go_on.wait()
        if exchange.gone:
            return
    exchange.end()
