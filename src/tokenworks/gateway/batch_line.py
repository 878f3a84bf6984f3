"""One line of a batch: asked as its own request would be, kept before it is billed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from tokenworks.core.batches import Batch, Line, output_line
from tokenworks.core.errors import InvalidRequest, TokenworksError, WorkerFailed
from tokenworks.core.ids import RequestID
from tokenworks.core.orders import KeyView, Order, Outcome, Receipt
from tokenworks.core.ports import Clock, Delivery, Shelf
from tokenworks.core.slo import Measured, Tier
from tokenworks.gateway.answer import Answers, Meter, missing, outcome_of
from tokenworks.gateway.assemble import Assembler, Completion
from tokenworks.gateway.chat import Chat
from tokenworks.gateway.completions import Completions
from tokenworks.gateway.dialect import Asked, Writer
from tokenworks.gateway.event_stream import EventStream
from tokenworks.gateway.http_io import JSON
from tokenworks.gateway.json_body import decode_object, encode
from tokenworks.gateway.one_piece import OnePiece
from tokenworks.gateway.openai_errors import OpenAIErrors
from tokenworks.gateway.own_headers import own_headers
from tokenworks.gateway.request_ids import RequestNames
from tokenworks.gateway.responses import Responses
from tokenworks.gateway.routes import AnyDialect
from tokenworks.gateway.services import (
    SERVICES,
    Collector,
    Service,
    read_whole,
    whole_outcome,
)
from tokenworks.gateway.worker_chunks import nothing_used

OUTPUT_BYTES_MAX: Final = 32 * 1024 * 1024
"""Of one line's answer."""

EVENTS_BYTES_MAX: Final = 256 * 1024 * 1024
"""Of the events that it comes in, most of which are not text."""

EMBEDDINGS: Final = "/v1/embeddings"
ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/responses", EMBEDDINGS)
"""What a batch's lines may ask."""

_EXAMPLE: Final = '{"custom_id": ..., "method": "POST", "url": ..., "body": {...}}'
_ERRORS: Final = OpenAIErrors()


class NotStaged(Exception):
    """The batch ended before the answer was kept: it is not billed."""


class LineRun:
    """One try of one line.

    Attributes:
        batch, line: which.
        request: the name that the try has in the ledger.
        asked: whether the factory knows of it.
        opening: whether it has asked for a worker that has not begun yet.
        closing: whether its answer is being kept and billed, which must not be stopped.
    """

    def __init__(self, batch: Batch, line: Line, request: RequestID) -> None:
        self.batch, self.line, self.request = batch, line, request
        self.asked = self.opening = self.closing = False


class BatchLines:
    """Answers lines through a desk.

    Args:
        answers: opens and settles.
        clock: time.
        shelf: where responses are kept.
    """

    def __init__(self, answers: Answers, clock: Clock, shelf: Shelf | None) -> None:
        self._answers, self._clock = answers, clock
        self._names = RequestNames()
        dialects: tuple[AnyDialect, ...] = (Chat(), Completions(), Responses(clock, shelf))
        self._dialects = {dialect.path: dialect for dialect in dialects}
        (self._embeddings,) = (each for each in SERVICES if each.path == EMBEDDINGS)
        assert {*self._dialects, EMBEDDINGS} == set(ENDPOINTS)

    def begin(self, batch: Batch, line: Line) -> LineRun:
        """A try of a line, with a name that the ledger does not know."""
        return LineRun(batch, line, self._names.new(self._clock.unix_ns()))

    async def answer(
        self,
        run: LineRun,
        raw: bytes,
        key: KeyView,
        stage: Callable[[bytes], Awaitable[bool]],
    ) -> None:
        """Answer a line, keep the answer and bill it, in this order.

        Cancelling this stops its worker, and nothing is billed; unless it is closing.

        Args:
            run: the try.
            raw: the line.
            key: whose batch it is.
            stage: keeps what the output file will say; False if the batch has ended.

        Raises:
            NotStaged: the batch has ended.
            InDoubt: it is kept, and may be billed or not.
            TokenworksError: it is not billed, and this is why.
        """
        body = _body_of(raw)
        key = msgspec.structs.replace(key, tier_default=Tier.FREE)
        endpoint = run.batch.endpoint
        if endpoint == EMBEDDINGS:
            await self._whole(run, self._embeddings, body, key, stage)
        else:
            dialect = self._dialects[endpoint]
            if dialect.fetch is not None:
                dialect = await dialect.fetch(body, key)
            await self._events(run, dialect, body, key, stage)

    def failed(self, run: LineRun, error: TokenworksError) -> bytes:
        """What the error file says of a line that went wrong."""
        body = msgspec.Raw(_ERRORS.error_body(error))
        return _output(run, error.status, body)

    async def _events(
        self,
        run: LineRun,
        dialect: AnyDialect,
        body: bytes,
        key: KeyView,
        stage: Callable[[bytes], Awaitable[bool]],
    ) -> None:
        own = own_headers([], key.labels)
        answers = self._answers
        asked = dialect.read(body, key, own, answers.output_default(key), answers.whole)
        order = self._order(run, asked, key)
        if asked.in_one_piece:
            await self._piece(run, order, stage)
            return
        writer: Writer = dialect.writer(asked, run.request)
        delivery = await self._open(run, order)
        taker = _Taker(delivery, self._clock, order.arrived_ns)

        async def make() -> tuple[bytes, Outcome]:
            writer.take_whole(await taker.whole())
            # What is asked for free is delivered free, so that this is known before it is billed.
            outcome = outcome_of(taker.events, taker.meter, self._clock.now_ns(), "done")
            return writer.whole(outcome.usage, Tier.FREE), outcome

        await self._bill(run, order, delivery, make, stage)
        if writer.kept is not None:
            await self._answers.keep(key.tenant, *writer.kept)

    async def _piece(
        self, run: LineRun, order: Order, stage: Callable[[bytes], Awaitable[bool]]
    ) -> None:
        delivery = await self._open(run, order)
        piece = OnePiece(order.worker_path)

        async def make() -> tuple[bytes, Outcome]:
            said, failure = await Collector(delivery).collect()
            if failure is not None:
                raise failure
            piece.feed(said)
            piece.read()
            outcome = piece.outcome(self._clock.now_ns() - order.arrived_ns, "done")
            return _in_one_line(piece.naming(Tier.FREE.value)), outcome

        receipt = await self._bill(run, order, delivery, make, stage)
        if piece.usage is None:
            self._answers.warn_unmetered(receipt)

    async def _whole(
        self,
        run: LineRun,
        service: Service,
        body: bytes,
        key: KeyView,
        stage: Callable[[bytes], Awaitable[bool]],
    ) -> None:
        asked = read_whole(service, body, JSON, key, own_headers([], key.labels))
        order = self._order(run, asked, key)
        delivery = await self._open(run, order)

        async def make() -> tuple[bytes, Outcome]:
            said, failure = await Collector(delivery).collect()
            elapsed_ns = self._clock.now_ns() - order.arrived_ns
            outcome, failure = whole_outcome(said, failure, elapsed_ns, "done")
            if failure is not None:
                raise failure
            return _in_one_line(said), outcome

        await self._bill(run, order, delivery, make, stage)

    def _order(self, run: LineRun, asked: Asked, key: KeyView) -> Order:
        own, route = own_headers([], key.labels), run.batch.endpoint
        now_ns = self._clock.now_ns()
        order = self._answers.order(asked, key, now_ns, own, run.request, route)
        assert order.tier is Tier.FREE, order
        return msgspec.structs.replace(order, batch=True)

    async def _open(self, run: LineRun, order: Order) -> Delivery:
        run.asked = run.opening = True
        try:
            return await self._answers.desk.open(order)
        finally:
            run.opening = False

    async def _bill(
        self,
        run: LineRun,
        order: Order,
        delivery: Delivery,
        make: Callable[[], Awaitable[tuple[bytes, Outcome]]],
        stage: Callable[[bytes], Awaitable[bool]],
    ) -> Receipt:
        try:
            told, outcome = await make()
            await _keep(run, told, stage)
        except BaseException:
            delivery.abort()
            nothing = Measured(ttft_ns=None, decode_ns=0, output_tokens=0)
            failed = Outcome(usage=nothing_used(), measured=nothing, ending="failed")
            with contextlib.suppress(TokenworksError):
                await self._answers.settle(order, delivery, failed)
            raise
        return await self._answers.settle(order, delivery, outcome)


class _Taker:
    """Takes an answer that comes as events; implements ``ports.Sink``."""

    def __init__(self, delivery: Delivery, clock: Clock, arrived_ns: int) -> None:
        self._delivery, self._clock = delivery, clock
        self._assembler = Assembler()
        self.events, self.meter = EventStream(self._assembler), Meter(arrived_ns)
        self._bytes = 0
        self._failure: Exception | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def whole(self) -> Completion:
        """The whole answer.

        Raises:
            WorkerFailed: there is none.
        """
        self._delivery.pipe(self)
        await self._over
        failure = self._failure or missing(self.events, self._assembler)
        if failure is not None:
            raise failure
        return self._assembler.completion()

    def data(self, data: bytes) -> None:
        """See ``Sink``."""
        if self._over.done():
            return
        try:
            self._take(data)
        except Exception as error:  # noqa: BLE001 - raised again by ``whole``
            self._end(error)

    def ended(self, failure: WorkerFailed | None) -> None:
        """See ``Sink``."""
        self._end(failure)

    def _take(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._bytes > EVENTS_BYTES_MAX:
            raise WorkerFailed(f"A worker's answer has over {EVENTS_BYTES_MAX} bytes.")
        before = self.events.token_events
        self.events.feed(data)
        now_ns = self._clock.now_ns()
        if self.events.token_events != before:
            self.meter.tokens_sent(now_ns)
        if self.events.finished:
            self.meter.ended(now_ns)
        if self.events.done:
            self._end(None)

    def _end(self, failure: Exception | None) -> None:
        if not self._over.done():
            self._failure = failure
            self._over.set_result(None)


def _in_one_line(said: bytes) -> bytes:
    """A worker's JSON, however it was spaced."""
    try:
        return encode(msgspec.json.decode(said))
    except (ValueError, RecursionError) as error:
        raise WorkerFailed(f"A worker's answer is not JSON: {error}.") from error


async def _keep(run: LineRun, told: bytes, stage: Callable[[bytes], Awaitable[bool]]) -> None:
    """Keep an answer, which is then billed.

    Raises:
        NotStaged: the batch has ended.
    """
    if len(told) > OUTPUT_BYTES_MAX:
        raise WorkerFailed(f"A worker's answer has over {OUTPUT_BYTES_MAX} bytes.")
    run.closing = True
    if not await stage(_output(run, 200, msgspec.Raw(told))):
        raise NotStaged


def _output(run: LineRun, status: int, body: msgspec.Raw) -> bytes:
    response = {"status_code": status, "request_id": run.request, "body": body}
    return output_line(run.request, run.line.custom_id, response)


def _body_of(raw: bytes) -> bytes:
    """The request that a line holds, without what a batch decides.

    Raises:
        InvalidRequest: it wants a stream.
    """
    body = decode_object(raw, _EXAMPLE).get("body")
    if not isinstance(body, dict):
        raise InvalidRequest("The line's body is no object.", hint=f"Send {_EXAMPLE}.")
    if body.get("stream"):
        raise InvalidRequest("A batch's lines are not streamed.", hint="Leave `stream` out.")
    left_out = ("service_tier", "stream", "stream_options")
    return encode({name: value for name, value in body.items() if name not in left_out})
