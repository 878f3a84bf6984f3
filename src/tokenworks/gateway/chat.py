"""``POST /v1/chat/completions``: the hot route.

It needs nothing of the server but ASGI's receive and send, so a faster server replaces that alone.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

from tokenworks.core.errors import ModelNotFound, TokenworksError, Unauthorized, WorkerFailed
from tokenworks.core.ids import ModelName, RequestID
from tokenworks.core.orders import KeyView, Order, Outcome, Receipt
from tokenworks.core.ports import Clock, Delivery, Desk
from tokenworks.core.slo import Measured, Tier
from tokenworks.core.units import NS_PER_MS
from tokenworks.gateway.assemble import Assembler
from tokenworks.gateway.chat_request import ChatRequest, parse_chat_request
from tokenworks.gateway.event_stream import EventStream
from tokenworks.gateway.http_io import (
    Headers,
    Receive,
    Scope,
    Send,
    bearer,
    check_json,
    error_body,
    read_body,
    respond,
)
from tokenworks.gateway.metrics import GatewayMetrics

SEND_WAIT_NS_MIN: Final = NS_PER_MS
"""A send that takes longer than this waited for the caller to read; that time is the caller's."""


class Meter:
    """Times one answer at the moments it is sent."""

    __slots__ = ("_arrived_ns", "_first_ns", "_last_ns", "_waited_ns")

    def __init__(self, arrived_ns: int) -> None:
        self._arrived_ns = arrived_ns
        self._first_ns: int | None = None
        self._last_ns = arrived_ns
        self._waited_ns = 0

    def tokens_sent(self, now_ns: int) -> None:
        """A part of the answer goes out now."""
        if self._first_ns is None:
            self._first_ns = now_ns
            self._waited_ns = 0
        self._last_ns = now_ns - self._waited_ns

    def waited(self, duration_ns: int) -> None:
        """A send took this long."""
        if duration_ns >= SEND_WAIT_NS_MIN:
            self._waited_ns += duration_ns

    def measured(self, output_tokens: int) -> Measured:
        """The speed so far."""
        if self._first_ns is None:
            return Measured(ttft_ns=None, decode_ns=0, output_tokens=output_tokens)
        return Measured(
            ttft_ns=self._first_ns - self._arrived_ns,
            decode_ns=max(0, self._last_ns - self._first_ns),
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
            TokenworksError: before anything was sent.
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
        request = parse_chat_request(raw, key.tier_default, self._output_default)
        order = _order(request, key, arrived_ns)
        hangup = asyncio.ensure_future(_disconnected(receive))
        try:
            delivery = await self._open(order, hangup)
            if delivery is not None:
                answer = Answer(self, order, delivery, request, send)
                await answer.run(hangup)
        finally:
            hangup.cancel()

    def _output_default(self, model: ModelName, tier: Tier) -> int:
        if model not in self._desk.models():
            raise ModelNotFound(
                f"The model {model!r} is not served here.",
                hint=f"Models: {', '.join(self._desk.models()) or 'none at present'}.",
            )
        return self._desk.output_tokens_default(model, tier)

    async def _open(self, order: Order, hangup: asyncio.Future[None]) -> Delivery | None:
        """The delivery, or None if the caller left while it waited."""
        opening = asyncio.ensure_future(self._desk.open(order))
        try:
            both: set[asyncio.Future[Delivery] | asyncio.Future[None]] = {opening, hangup}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not opening.done():
                opening.cancel()
        if opening.done():
            return opening.result()
        await asyncio.wait({opening})
        if opening.cancelled() or opening.exception() is not None:
            return None
        return opening.result()

    def now_ns(self) -> int:
        """The driver's clock."""
        return self._clock.now_ns()

    async def settle(self, delivery: Delivery, outcome: Outcome) -> Receipt:
        """Bill and count one answer."""
        receipt = await delivery.settle(outcome)
        self._metrics.settle(outcome, receipt)
        return receipt


class Answer:
    """One answer on its way out."""

    __slots__ = ("_delivery", "_events", "_meter", "_order", "_request", "_route", "_send")

    def __init__(
        self, route: ChatRoute, order: Order, delivery: Delivery, request: ChatRequest, send: Send
    ) -> None:
        self._route, self._order, self._delivery = route, order, delivery
        self._request, self._send = request, send
        self._events = EventStream()
        self._meter = Meter(order.arrived_ns)

    async def run(self, hangup: asyncio.Future[None]) -> None:
        """Forward or assemble until the end, then settle, then close."""
        gone = False

        def leave(_: asyncio.Future[None]) -> None:
            nonlocal gone
            gone = True
            self._delivery.abort()

        hangup.add_done_callback(leave)
        failure: TokenworksError | None = None
        assembler = None if self._request.stream else Assembler()
        try:
            await (self._forward() if assembler is None else self._collect(assembler))
        except WorkerFailed as error:
            failure = error
        except BaseException:
            self._delivery.abort()
            await asyncio.shield(self._settle("disconnected"))
            raise
        hangup.remove_done_callback(leave)
        if gone:
            await self._settle("disconnected")
            return
        if failure is None and not self._events.done:
            failure = WorkerFailed(
                "The worker ended the stream before the answer was whole.", hint="Try again."
            )
        if failure is not None:
            self._delivery.abort()
            await self._settle("failed")
            await self._fail(failure)
            return
        receipt = await self._settle("done")
        await self._close(receipt.tier_delivered, assembler)

    async def _forward(self) -> None:
        events, meter, clock = self._events, self._meter, self._route.now_ns
        read, send = self._delivery.read, self._send
        await send(_start(200, b"text/event-stream", self._headers()))
        while not events.done and (data := await read()):
            before = events.token_events
            ready = events.feed(data)
            if not ready and events.token_events == before:
                continue
            sending_ns = clock()
            if events.token_events > before:
                meter.tokens_sent(sending_ns)
            if ready:
                await send({"type": "http.response.body", "body": ready, "more_body": True})
                meter.waited(clock() - sending_ns)

    async def _collect(self, assembler: Assembler) -> None:
        events = self._events
        while not events.done and (data := await self._delivery.read()):
            before = events.token_events
            ready = events.feed(data)
            if events.token_events > before:
                self._meter.tokens_sent(self._route.now_ns())
            assembler.add(ready)

    async def _settle(self, ending: str) -> Receipt:
        usage = self._events.usage_so_far()
        outcome = Outcome(
            usage=usage, measured=self._meter.measured(usage.output_tokens), ending=ending
        )
        return await self._route.settle(self._delivery, outcome)

    async def _close(self, tier: Tier, assembler: Assembler | None) -> None:
        if assembler is None:
            closing = self._events.closing(tier.value, include_usage=self._request.include_usage)
            await self._send({"type": "http.response.body", "body": closing})
            return
        assembler.add(b"\n\n".join(self._events.held))
        await respond(self._send, 200, assembler.completion(tier.value), self._headers())

    async def _fail(self, error: TokenworksError) -> None:
        if not self._request.stream:
            raise error
        body = b"data: " + error_body(error) + b"\n\n"
        await self._send({"type": "http.response.body", "body": body})

    def _headers(self) -> Headers:
        return [(b"x-request-id", self._order.request.encode())]


def _order(request: ChatRequest, key: KeyView, arrived_ns: int) -> Order:
    return Order(
        request=RequestID(f"req_{secrets.token_hex(12)}"),
        key=key,
        model=request.model,
        tier=request.tier,
        body=request.body,
        input_tokens_max=request.input_tokens_max,
        output_tokens_max=request.output_tokens_max,
        prefix=request.prefix,
        arrived_ns=arrived_ns,
    )


def _start(status: int, content_type: bytes, headers: Headers) -> dict[str, object]:
    return {
        "type": "http.response.start",
        "status": status,
        "headers": [(b"content-type", content_type), (b"cache-control", b"no-cache"), *headers],
    }


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
