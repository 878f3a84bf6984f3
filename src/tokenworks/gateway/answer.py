"""Serves answers, whatever the dialect: from a whole request to its settlement.

An answer has one task, which sleeps while the answer is made: each read of the worker's socket goes
to the caller's by calls alone. Where a worker answers in one piece, that is passed on at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Coroutine
from typing import Final

from tokenworks.core.errors import ModelNotFound, TokenworksError, WorkerFailed
from tokenworks.core.ids import ModelName, RequestID, TenantID, WorkerID
from tokenworks.core.orders import Ending, KeyView, Order, Outcome, Receipt
from tokenworks.core.ports import Clock, Delivery, Desk, Shelf, Shelved
from tokenworks.core.scopes import Scopes
from tokenworks.core.slo import Measured, Tier
from tokenworks.core.token_sums import completion_tokens
from tokenworks.core.units import NS_PER_MS
from tokenworks.gateway.assemble import Assembler
from tokenworks.gateway.connection import Exchange
from tokenworks.gateway.dialect import Asked, OutputDefault, Writer
from tokenworks.gateway.doorkeeper import models_for
from tokenworks.gateway.event_stream import EventStream
from tokenworks.gateway.http_io import JSON, ClientGone, Headers, check_json
from tokenworks.gateway.metrics import GatewayMetrics
from tokenworks.gateway.one_piece import OnePiece
from tokenworks.gateway.own_headers import NOTHING_SAID, READ, own_headers
from tokenworks.gateway.own_words import OwnHeaders
from tokenworks.gateway.request_ids import id_headers
from tokenworks.gateway.routes import AnyDialect

_log: Final = logging.getLogger("tokenworks.gateway")

SEND_WAIT_NS_MIN: Final = NS_PER_MS
"""A caller who takes no more for longer than this is slow, and that time is the caller's."""

# Without Final, which mypyc writes into the code: a test changes it, compiled or not.
UNMETERED_MAX = 1_000
"""Workers that are warned of, each once."""

EVENTS: Final = b"text/event-stream"
_NO_CACHE: Final = (b"cache-control", b"no-cache")


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


class Answers:
    """Serves answers through a desk.

    Attributes:
        whole: models whose workers answer in one piece; see ``Desk.whole_models``.
    """

    def __init__(
        self, desk: Desk, clock: Clock, metrics: GatewayMetrics, shelf: Shelf | None = None
    ) -> None:
        self.desk = desk
        self._shelf = shelf
        self.whole = desk.whole_models()
        self._unmetered: set[WorkerID] = set()
        """Who was warned of, for giving answers away."""
        self.clock, self.now_ns = clock, clock.now_ns
        """Asked at every chunk: without a look for it at the clock."""
        self.metrics = metrics

    def prepare(
        self,
        dialect: AnyDialect,
        exchange: Exchange,
        key: KeyView,
        request: RequestID,
        callers: str | None,
    ) -> Answer:
        """Check a whole request, and make ready to answer it.

        Args:
            dialect: what it speaks.
            exchange: the request.
            key: who asks.
            request: our name for it.
            callers: its caller's name for it.

        Raises:
            TokenworksError: what is wrong with it.
        """
        head = exchange.head
        assert head is not None
        check_json(head)
        arrived_ns = self.now_ns()
        own = NOTHING_SAID
        if key.labels or head.has(*READ):
            own = own_headers(head.headers(), key.labels)
        asked = dialect.read(exchange.body, key, own, self.output_default(key), self.whole)
        exchange.body = b""
        order = self.order(asked, key, arrived_ns, own, request, dialect.path)
        writer = dialect.writer(asked, request)
        return Answer(self, order, writer, exchange, callers, stream=asked.stream)

    def output_default(self, key: KeyView) -> OutputDefault:
        """What gives the output limit of a request of this key's that names none."""
        if key.scopes is None:
            return self._output_default
        return functools.partial(self._output_default, scopes=key.scopes)

    async def keep(self, tenant: TenantID, kind: str, item: Shelved) -> None:
        """Keep what an answer leaves.

        It has been made and billed: that it cannot be kept is said to the operator, and to the
        caller when it asks for it.
        """
        assert self._shelf is not None, kind
        try:
            await self._shelf.put(tenant, kind, item)
        except TokenworksError as error:
            _log.warning("%s %s of %s is not kept: %s", kind, item.id, tenant, error)

    async def opened(self, exchange: Exchange, order: Order) -> Delivery:
        """The delivery; a caller who leaves while it waits withdraws its request.

        Raises:
            ClientGone: the caller left.
        """
        task = exchange.task or asyncio.current_task()
        assert task is not None
        exchange.on_gone = task.cancel
        if exchange.gone:
            raise ClientGone
        try:
            return await self.desk.open(order)
        except asyncio.CancelledError:
            if exchange.gone and not task.uncancel():
                raise ClientGone from None
            raise

    async def settle(
        self, order: Order, delivery: Delivery, outcome: Outcome, ended_ns: int | None = None
    ) -> Receipt:
        """Bill and count an answer, which has ended now where no other time is given."""
        if ended_ns is None:
            ended_ns = self.now_ns()
        receipt = await delivery.settle(outcome)
        durable_ns = self.now_ns()
        self.metrics.tallies.count(order, outcome, receipt, ended_ns, durable_ns)
        return receipt

    def warn_unmetered(self, receipt: Receipt) -> None:
        """Say once of each worker that it made an answer in one piece and told no usage."""
        worker = receipt.worker
        if worker in self._unmetered or len(self._unmetered) >= UNMETERED_MAX:
            return
        self._unmetered.add(worker)
        _log.warning(
            "The worker %s tells no usage in its answers: they are billed nothing. Have its server "
            "tell it, or leave `whole_answers` out of the settings of the pool %s.",
            worker,
            receipt.pool,
        )

    def order(
        self,
        asked: Asked,
        key: KeyView,
        arrived_ns: int,
        own: OwnHeaders,
        request: RequestID,
        route: str,
        named: str | None = None,
    ) -> Order:
        """The request as the factory takes it.

        Args:
            asked: what is asked for.
            key: who asks.
            arrived_ns: when.
            own: what the request's own headers say.
            request: our name for it.
            route: the gateway's route, one of a few.
            named: the model as the caller names it, if that is not ``asked.model``.

        Raises:
            Forbidden: the key may not ask for that model, or that tier.
        """
        if key.scopes is not None:
            key.scopes.check_model(named or asked.model)
            key.scopes.check_tier(asked.tier)
        return Order(
            request=request,
            key=key,
            model=asked.model,
            tier=asked.tier,
            body=asked.body,
            input_tokens_max=asked.input_tokens_max,
            output_tokens_max=asked.output_tokens_max,
            prefix=asked.prefix,
            arrived_ns=arrived_ns,
            agent=own.agent,
            run=own.run,
            extra_fields=asked.extra_fields,
            cache_salt=asked.cache_salt,
            needs=own.needs,
            session=own.session,
            hints=own.hints,
            worker_path=asked.worker_path,
            route=route,
            content_type=asked.content_type,
            caller_request=own.caller_request,
            trace=own.trace,
            in_one_piece=asked.in_one_piece,
        )

    def _output_default(self, model: ModelName, tier: Tier, scopes: Scopes | None = None) -> int:
        if scopes is not None:
            scopes.check_model(model)
        if model not in self.desk.models():
            models = models_for(self.desk, scopes)
            raise ModelNotFound(
                f"The model {model!r} is not served here.",
                hint=f"Models: {', '.join(models) or 'none at present'}.",
            )
        return self.desk.output_tokens_default(model, tier)


class Answer:
    """One answer on its way out. However it ends, it is settled once, and the caller is told.

    It implements ``ports.Sink``.
    """

    __slots__ = (
        "_answers",
        "_assembler",
        "_callers",
        "_delivery",
        "_events",
        "_exchange",
        "_failure",
        "_meter",
        "_order",
        "_over",
        "_paused_ns",
        "_piece",
        "_stream",
        "_waiter",
        "_writer",
    )

    def __init__(
        self,
        answers: Answers,
        order: Order,
        writer: Writer,
        exchange: Exchange,
        callers: str | None,
        *,
        stream: bool,
    ) -> None:
        self._callers = callers
        self._answers, self._order, self._writer, self._exchange = answers, order, writer, exchange
        self._stream = stream
        self._piece = OnePiece(order.worker_path) if order.in_one_piece else None
        """Takes it where it comes whole; nothing else does then."""
        self._assembler = None if stream or order.in_one_piece else Assembler()
        self._events = EventStream(self._assembler)
        self._meter = Meter(order.arrived_ns)
        self._delivery: Delivery | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._over = False
        """Whether nothing more is taken from the worker."""
        self._failure: Exception | None = None
        self._paused_ns: int | None = None

    async def run(self) -> None:
        """Open, forward or assemble until the end, settle, close.

        Raises:
            TokenworksError: what went wrong; ``tell`` tells the caller.
            ClientGone: the caller left, and what was made for it is settled.
        """
        exchange = self._exchange
        delivery = self._delivery = await self._answers.opened(exchange, self._order)
        exchange.on_gone = self._left
        if exchange.gone:
            self._left()
        exchange.on_pause, exchange.on_resume = self._pause, self._resume
        delivery.pipe(self)
        if not self._over:
            await self._until_over(delivery)
        if self._failure is None and (self._piece is not None or not exchange.gone):
            self._failure = self._wrong()  # a piece is read to know what is billed
        failure = self._failure
        if exchange.gone:
            await self._settle(delivery, "disconnected")
            if failure is None or isinstance(failure, TokenworksError):
                raise ClientGone
            raise failure
        if failure is not None:
            delivery.abort()
            try:
                await self._settle(delivery, "failed")
            except TokenworksError as error:
                raise error from failure
            raise failure
        receipt = await self._settle(delivery, "done")
        last = self._last(receipt)
        if self._writer.kept is not None:
            await self._answers.keep(self._order.key.tenant, *self._writer.kept)
        if exchange.gone:
            raise ClientGone
        self._close(last)
        self._delivery = None  # which knows this, its sink

    def tell(self, error: TokenworksError) -> bool:
        """End a stream that has begun with an error event; False if none has begun."""
        if not self._exchange.status:
            return False
        self._exchange.end(self._writer.error_event(error))
        return True

    def _left(self) -> None:
        """The caller has left: the worker stops now."""
        assert self._delivery is not None
        self._delivery.abort()
        self._stop(None)

    async def _until_over(self, delivery: Delivery) -> None:
        """Return once the answer has ended, or cannot go on."""
        assert self._exchange.task is not None
        self._waiter = self._exchange.task.get_loop().create_future()
        cancelled: asyncio.CancelledError | None = None
        try:
            await self._waiter
        except asyncio.CancelledError as error:
            cancelled = error
        if cancelled is not None:
            self._stop(None)
            delivery.abort()
            with contextlib.suppress(TokenworksError):
                await self._settle(delivery, "failed")
            raise cancelled

    # What comes from the worker, and what the caller does meanwhile.

    def data(self, data: bytes) -> None:
        """See ``Sink``."""
        if self._over:
            return
        try:
            self._take(data)
        except Exception as error:  # noqa: BLE001 - raised again once the answer is settled
            self._failure = self._failure or error
            self._stop(error)

    def ended(self, failure: WorkerFailed | None) -> None:
        """See ``Sink``."""
        self._stop(failure)

    def _take(self, data: bytes) -> None:
        if self._piece is not None:
            self._piece.feed(data)
            return
        events = self._events
        before = events.token_events
        ready = events.feed(data)
        more = events.token_events != before
        if more or events.finished:
            now_ns = self._answers.now_ns()
            if more:
                self._meter.tokens_sent(now_ns)
            if events.finished:
                self._meter.ended(now_ns)
        if ready and self._stream:
            written = self._writer.forward(ready)
            if written:
                if not self._exchange.status:
                    self._begin()
                self._exchange.write(written)
        if events.done:
            self._stop(None)

    def _stop(self, failure: Exception | None) -> None:
        if self._over:
            return
        self._over, self._failure = True, self._failure or failure
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _pause(self) -> None:
        if self._delivery is not None and self._paused_ns is None:
            self._paused_ns = self._answers.now_ns()
            self._delivery.pause()

    def _resume(self) -> None:
        if self._delivery is not None and self._paused_ns is not None:
            self._meter.waited(self._answers.now_ns() - self._paused_ns)
            self._paused_ns = None
            self._delivery.resume()

    # The end.

    def _wrong(self) -> Exception | None:
        """What an answer that has ended lacks, or says that its writer cannot tell."""
        if self._piece is None:
            lacking = missing(self._events, self._assembler)
            if lacking is not None:
                return lacking
        try:
            if self._piece is not None:
                self._piece.read()
            elif self._assembler is None:
                self._writer.take_held(self._events)
            else:
                self._writer.take_whole(self._assembler.completion())
        except Exception as error:  # noqa: BLE001 - raised again once the answer is settled
            return error
        return None

    def _settle(self, delivery: Delivery, ending: Ending) -> Coroutine[object, object, Receipt]:
        """Bill and count the answer."""
        now_ns = self._answers.now_ns()
        if self._piece is None:
            streamed = self._stream
            outcome = outcome_of(self._events, self._meter, now_ns, ending, streamed=streamed)
        else:
            outcome = self._piece.outcome(now_ns - self._order.arrived_ns, ending)
        return self._answers.settle(self._order, delivery, outcome, now_ns)

    def _begin(self) -> None:
        """Say 200, at the first bytes: what fails before them is answered with its own status."""
        self._exchange.begin(200, EVENTS, [_NO_CACHE, *self._headers()])

    def _last(self, receipt: Receipt) -> bytes:
        """The whole body, or the end of a stream."""
        tier = receipt.tier_delivered
        if self._piece is not None:
            if self._piece.usage is None:
                self._answers.warn_unmetered(receipt)
            return self._piece.naming(tier)
        if self._assembler is not None:
            return self._writer.whole(self._events.usage_so_far(), tier)
        return self._writer.closing(self._events, tier)

    def _close(self, last: bytes) -> None:
        if not self._stream:
            self._exchange.respond(200, last, JSON, self._headers())
            return
        if not self._exchange.status:
            self._begin()
        self._exchange.end(last)

    def _headers(self) -> Headers:
        return id_headers(self._order.request, self._callers)


def missing(events: EventStream, assembler: Assembler | None) -> Exception | None:
    """What an answer that has ended lacks; it is whole with or without ``[DONE]``.

    Args:
        events: all that came.
        assembler: gets the events that were held back, if the answer is to be one object.
    """
    if events.failure is not None:
        return events.failure
    if not (events.done or events.finished):
        return WorkerFailed(
            "The worker ended the stream before the answer was whole.", hint="Try again."
        )
    if not (events.finished or events.token_events):
        return WorkerFailed(
            "The worker ended the stream before the answer had begun.", hint="Try again."
        )
    if assembler is not None:
        try:
            told = events.usage_event
            assembler.close(events.held if told is None else [*events.held, told])
        except WorkerFailed as failure:
            return failure
    return None


def outcome_of(
    events: EventStream, meter: Meter, now_ns: int, ending: Ending, *, streamed: bool = False
) -> Outcome:
    """What is billed of an answer that came as events."""
    usage = events.usage_so_far()
    return Outcome(
        usage=usage,
        measured=meter.measured(completion_tokens(usage), now_ns),
        ending=ending,
        metered_by=events.metered_by,
        streamed=streamed,
    )
