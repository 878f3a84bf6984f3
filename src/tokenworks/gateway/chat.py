"""``POST /v1/chat/completions``: the hot route.

It needs nothing of the server but ASGI's receive and send, so a faster server replaces that alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Final

from tokenworks.core.errors import ModelNotFound, TokenworksError, Unauthorized, WorkerFailed
from tokenworks.core.ids import ModelName
from tokenworks.core.orders import Ending, KeyView, Order, Outcome, Receipt
from tokenworks.core.ports import Clock, Delivery, Desk
from tokenworks.core.slo import Measured, Tier
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.gateway.assemble import Assembler
from tokenworks.gateway.chat_request import ChatRequest, parse_chat_request
from tokenworks.gateway.event_stream import EventStream
from tokenworks.gateway.http_io import (
    ClientGone,
    Headers,
    Receive,
    Scope,
    Send,
    bearer,
    broken,
    check_json,
    error_body,
    read_body,
    respond,
)
from tokenworks.gateway.metrics import GatewayMetrics
from tokenworks.gateway.own_headers import OwnHeaders, own_headers
from tokenworks.gateway.request_ids import id_headers, new_request_id, remember

_log: Final = logging.getLogger("tokenworks.gateway")

SEND_WAIT_NS_MIN: Final = NS_PER_MS
"""A send that takes longer than this waited for the caller to read; that time is the caller's."""

SEND_NS_MAX: Final = 60 * NS_PER_S
"""A caller who reads nothing for this long has left, though its connection stands: it must not keep
a worker's slot."""

SEND_CHECK_S: Final = 5
"""Between two looks at whether a send is stuck; looking costs less than a timeout for each send."""


class Meter:
    """Times one answer at the moments it is sent."""

    __slots__ = ("_arrived_ns", "_ended_ns", "_first_ns", "_last_ns", "_waited_ns")

    def __init__(self, arrived_ns: int) -> None:
        self._arrived_ns = arrived_ns
        self._ended_ns: int | None = None
        self._first_ns: int | None = None
        self._last_ns = arrived_ns
        self._waited_ns = 0

    def tokens_sent(self, now_ns: int) -> None:
        """A part of the answer goes out now."""
        self._last_ns = now_ns - self._waited_ns
        if self._first_ns is None:
            self._first_ns = self._last_ns

    def waited(self, duration_ns: int) -> None:
        """A send took this long."""
        if duration_ns >= SEND_WAIT_NS_MIN:
            self._waited_ns += duration_ns

    def ended(self, now_ns: int) -> None:
        """The worker has said why it stopped."""
        if self._ended_ns is None:
            self._ended_ns = now_ns - self._waited_ns

    def measured(self, output_tokens: int, now_ns: int) -> Measured:
        """The speed so far.

        Args:
            output_tokens: what the worker made. Where none of it was text to send, as before a
                stop string or an immediate end, the end of the answer counts as its first token.
            now_ns: the time of settling, which is that end if the worker never named one.
        """
        first_ns, last_ns = self._first_ns, self._last_ns
        if first_ns is None and output_tokens > 0:
            ended_ns = self._ended_ns
            first_ns = last_ns = now_ns - self._waited_ns if ended_ns is None else ended_ns
        if first_ns is None:
            return Measured(ttft_ns=None, decode_ns=0, output_tokens=output_tokens)
        return Measured(
            ttft_ns=first_ns - self._arrived_ns,
            decode_ns=last_ns - first_ns,
            output_tokens=output_tokens,
        )


class ChatRoute:
    """Serves chat completions through a desk."""

    def __init__(self, desk: Desk, clock: Clock, metrics: GatewayMetrics) -> None:
        self._desk = desk
        self._clock = clock
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, from its first byte to its settlement.

        Raises:
            TokenworksError: what went wrong. The caller of this route answers with it if nothing
                was sent yet; else the stream has ended with it already.
            ClientGone: the caller hung up, and what was made for it is settled.
        """
        secret = bearer(scope)
        key = self._desk.key_of(secret) if secret else None
        if key is None:
            raise Unauthorized(
                "There is no valid key." if secret is None else "The key is unknown or revoked.",
                hint="Send `Authorization: Bearer <key>`; `tokenworks key create` makes one.",
            )
        check_json(scope)
        raw = await read_body(receive)
        arrived_ns = self._clock.now_ns()
        own = own_headers(scope, key.labels)
        request = parse_chat_request(
            raw,
            key.tier_default,
            self._output_default,
            key.tenant,
            None if own.needs is None else own.needs.adapter,
        )
        order = self._order(request, key, arrived_ns, own)
        remember(scope, order.request)
        hangup = asyncio.ensure_future(_disconnected(receive))
        try:
            delivery = await self._open(order, hangup)
            await Answer(self, order, delivery, request, send).run(hangup)
        finally:
            hangup.cancel()

    def _order(self, request: ChatRequest, key: KeyView, arrived_ns: int, own: OwnHeaders) -> Order:
        return Order(
            request=new_request_id(self._clock.unix_ns()),
            key=key,
            model=request.model,
            tier=request.tier,
            body=request.body,
            input_tokens_max=request.input_tokens_max,
            output_tokens_max=request.output_tokens_max,
            prefix=request.prefix,
            arrived_ns=arrived_ns,
            agent=own.agent,
            run=own.run,
            extra_fields=request.extra_fields,
            cache_salt=request.cache_salt,
            needs=own.needs,
            session=own.session,
            hints=own.hints,
            caller_request=own.caller_request,
            trace=own.trace,
        )

    def _output_default(self, model: ModelName, tier: Tier) -> int:
        if model not in self._desk.models():
            raise ModelNotFound(
                f"The model {model!r} is not served here.",
                hint=f"Models: {', '.join(self._desk.models()) or 'none at present'}.",
            )
        return self._desk.output_tokens_default(model, tier)

    async def _open(self, order: Order, hangup: asyncio.Future[None]) -> Delivery:
        """The delivery; a caller who leaves while it waits withdraws its request."""
        opening = asyncio.ensure_future(self._desk.open(order))
        both: set[asyncio.Future[Delivery] | asyncio.Future[None]] = {opening, hangup}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                opening.cancel()
                await asyncio.wait({opening})
        except asyncio.CancelledError:
            if not opening.cancel() and opening.exception() is None:
                # It opened in the moment that we were stopped: nobody else would end it.
                await self._drop(order, opening.result())
            raise
        if opening.cancelled():
            raise ClientGone
        return opening.result()

    async def _drop(self, order: Order, delivery: Delivery) -> None:
        delivery.abort()
        usage = EventStream().usage_so_far()
        measured = Measured(ttft_ns=None, decode_ns=0, output_tokens=0)
        outcome = Outcome(usage=usage, measured=measured, ending="failed")
        await self.settle(order, delivery, outcome)

    def now_ns(self) -> int:
        """The driver's clock."""
        return self._clock.now_ns()

    async def settle(self, order: Order, delivery: Delivery, outcome: Outcome) -> Receipt:
        """Bill and count one answer; once begun it is carried through, whoever stops waiting."""
        ended_ns = self._clock.now_ns()
        receipt = await asyncio.shield(asyncio.ensure_future(delivery.settle(outcome)))
        self._metrics.settle(order, outcome, receipt, ended_ns, self._clock.now_ns())
        return receipt


class Answer:
    """One answer on its way out. However it ends, it is settled once, and the caller is told."""

    __slots__ = (
        "_assembler",
        "_delivery",
        "_events",
        "_meter",
        "_order",
        "_request",
        "_route",
        "_send",
        "_sending_ns",
        "_started",
        "_watch",
    )

    def __init__(
        self, route: ChatRoute, order: Order, delivery: Delivery, request: ChatRequest, send: Send
    ) -> None:
        self._route, self._order, self._delivery = route, order, delivery
        self._request, self._send = request, send
        self._events = EventStream()
        self._meter = Meter(order.arrived_ns)
        self._assembler = None if request.stream else Assembler()
        self._started = False
        self._sending_ns: int | None = None
        self._watch: asyncio.TimerHandle | None = None

    async def run(self, hangup: asyncio.Future[None]) -> None:
        """Forward or assemble until the end, then settle, then close.

        Args:
            hangup: done once the caller has left.

        Raises:
            TokenworksError: what went wrong; a stream that had begun has ended with it.
            ClientGone: the caller left.
        """
        try:
            await self._run(hangup)
        except TokenworksError as error:
            await self._tell(error)
            raise
        except ClientGone:
            raise
        except Exception:
            await self._tell(broken())
            raise

    async def _run(self, hangup: asyncio.Future[None]) -> None:
        failure = await self._pass_on(hangup)
        if hangup.done() or isinstance(failure, ClientGone):
            self._delivery.abort()
            await self._settle("disconnected")
            if failure is None or isinstance(failure, TokenworksError | ClientGone):
                raise ClientGone
            raise failure
        if failure is not None:
            self._delivery.abort()
            try:
                await self._settle("failed")
            except TokenworksError as error:
                raise error from failure
            raise failure
        receipt = await self._settle("done")
        await self._close(receipt.tier_delivered)

    async def _pass_on(self, hangup: asyncio.Future[None]) -> Exception | None:
        """Move the answer, and return what stopped it, if anything did."""

        def leave(_: asyncio.Future[None]) -> None:
            self._delivery.abort()

        hangup.add_done_callback(leave)
        try:
            with self._watched():
                assembler = self._assembler
                await (self._forward() if assembler is None else self._collect(assembler))
        except asyncio.CancelledError:
            self._delivery.abort()
            with contextlib.suppress(TokenworksError):
                await self._settle("failed")
            raise
        except Exception as error:  # noqa: BLE001 - raised again once the answer is settled
            return error
        finally:
            hangup.remove_done_callback(leave)
        return None

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Break off a send within that is stuck.

        Raises:
            ClientGone: the caller has read nothing for SEND_NS_MAX.
        """
        task = asyncio.current_task()
        assert task is not None
        self._look(task)
        try:
            yield
        except asyncio.CancelledError:
            if self._watch is None and not task.uncancel():
                raise ClientGone from None
            raise
        finally:
            if self._watch is not None:
                self._watch.cancel()

    def _look(self, task: asyncio.Task[object]) -> None:
        """Stop a send that is stuck; else look again later."""
        since = self._sending_ns
        if since is not None and self._route.now_ns() - since >= SEND_NS_MAX:
            self._watch = None
            task.cancel()
        else:
            loop = asyncio.get_running_loop()
            self._watch = loop.call_later(SEND_CHECK_S, self._look, task)

    async def _forward(self) -> None:
        events, meter, clock = self._events, self._meter, self._route.now_ns
        read, send = self._delivery.read, self._send
        while not events.done and (data := await read()):
            before = events.token_events
            ready = events.feed(data)
            if events.finished:
                meter.ended(clock())
            if not ready and events.token_events == before:
                continue
            sending_ns = self._sending_ns = clock()
            if events.token_events > before:
                meter.tokens_sent(sending_ns)
            if ready:
                if not self._started:
                    await self._start()
                await send({"type": "http.response.body", "body": ready, "more_body": True})
                meter.waited(clock() - sending_ns)
            self._sending_ns = None
        self._check_whole()

    async def _collect(self, assembler: Assembler) -> None:
        events = self._events
        while not events.done and (data := await self._delivery.read()):
            before = events.token_events
            ready = events.feed(data)
            if events.token_events > before:
                self._meter.tokens_sent(self._route.now_ns())
            if events.finished:
                self._meter.ended(self._route.now_ns())
            assembler.add(ready)
        self._check_whole()
        assembler.add(b"\n\n".join([*events.held, events.usage_event or b""]))

    def _check_whole(self) -> None:
        """A clean end after ``finish_reason`` is an end, with or without ``[DONE]``."""
        if self._events.failure is not None:
            raise self._events.failure
        if not (self._events.done or self._events.finished):
            raise WorkerFailed(
                "The worker ended the stream before the answer was whole.", hint="Try again."
            )

    async def _settle(self, ending: Ending) -> Receipt:
        usage = self._events.usage_so_far()
        measured = self._meter.measured(usage.completion_tokens, self._route.now_ns())
        outcome = Outcome(
            usage=usage,
            measured=measured,
            ending=ending,
            metered_by=self._events.metered_by,
        )
        return await self._route.settle(self._order, self._delivery, outcome)

    async def _start(self) -> None:
        """Say 200, at the first bytes: what fails before them is answered with its own status."""
        self._started = True
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-cache"),
            *self._headers(),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _close(self, tier: Tier) -> None:
        self._sending_ns = self._route.now_ns()
        with self._watched():
            if self._assembler is not None:
                body = self._assembler.completion(tier.value)
                await respond(self._send, 200, body, self._headers())
                return
            if not self._started:
                await self._start()
            include_usage = self._request.include_usage
            closing = self._events.closing(tier.value, include_usage=include_usage)
            await self._send({"type": "http.response.body", "body": closing})

    async def _tell(self, error: TokenworksError) -> None:
        """End a stream that has begun with an error event, as OpenAI does."""
        if self._started:
            body = b"data: " + error_body(error) + b"\n\n"
            self._sending_ns = self._route.now_ns()
            with self._watched():
                await self._send({"type": "http.response.body", "body": body})

    def _headers(self) -> Headers:
        return id_headers(self._order.request, self._order.caller_request)


async def _disconnected(receive: Receive) -> None:
    """Returns when the caller has left."""
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except Exception:  # noqa: BLE001
        # A server that cannot listen any more has lost its caller.
        _log.exception("the server broke while it listened for a disconnect")
