"""How a request is put to the worker that was chosen for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tokenworks.core.errors import WorkerUnavailable
from tokenworks.core.orders import Order
from tokenworks.core.ports import AnswerStream, KeepingPort, TieredPort
from tokenworks.core.traces import header_lines
from tokenworks.dispatch.commands import Fetch
from tokenworks.live.flights import Flight
from tokenworks.live.network import WorkerClient, WorkerStream
from tokenworks.live.seat import Seat
from tokenworks.live.worker_body import worker_body


class Try:
    """A request that was put to a worker at once, until that has begun to answer.

    Args:
        flight: which.
        seat: of the worker.
        attempt: its number.
        told: called once, when the worker has begun to answer or will not.
    """

    __slots__ = ("_told", "attempt", "flight", "seat", "stream")

    def __init__(
        self, flight: Flight, seat: Seat, attempt: int, told: Callable[[Try, WorkerStream], None]
    ) -> None:
        self.flight, self.seat, self.attempt = flight, seat, attempt
        self._told: Callable[[Try, WorkerStream], None] | None = told
        self.stream: WorkerStream | None = None

    def post(self) -> bool:
        """Send it, if that needs no waiting; whether it was sent."""
        flight, seat = self.flight, self.seat
        client, order = seat.client, flight.order
        if (
            not isinstance(client, WorkerClient)
            or order.passing is not None
            or flight.fetch is not None
            or flight.kept is not None
        ):
            return False
        lines = header_lines(order.request, order.trace)
        path, kind = order.worker_path, order.content_type
        self.stream = client.post_at_once(path, _body_for(order, seat), lines, kind, self._heard)
        return self.stream is not None

    def cancel(self) -> None:
        """See ``Sending``."""
        self._told = None
        if self.stream is not None:
            self.stream.abort()

    def _heard(self, stream: WorkerStream) -> None:
        told, self._told = self._told, None
        self.stream = None  # from now on it is stopped by who has it
        if told is not None:
            told(self, stream)


def post(flight: Flight, seat: Seat) -> Awaitable[AnswerStream]:
    """Send a request to a worker; awaiting it returns when that has begun to answer.

    What is to be in the worker's cache before is fetched; what another one has made is gone on
    with.

    Raises:
        WorkerUnavailable: the worker is down, or cannot go on with an answer; on awaiting, it
            cannot be asked now.
        WorkerFailed: (on awaiting) it broke off.
    """
    client, order, fetch = seat.client, flight.order, flight.fetch
    if client is None:
        raise WorkerUnavailable(f"Worker {seat.worker} is down.")
    if order.passing is not None:
        return client.pass_on(order.passing, order.body)
    flight.fetch = None
    if fetch is not None and fetch.worker == seat.worker:
        assert isinstance(client, TieredPort), fetch
        return _post_after(fetch, client, flight, seat)
    body = _body_for(order, seat)
    if flight.kept is None:
        lines = header_lines(order.request, order.trace)
        return client.post_stream(order.worker_path, body, lines, order.content_type)
    if not isinstance(client, KeepingPort):
        raise WorkerUnavailable(f"Worker {seat.worker} cannot go on with an answer.")
    return client.go_on_stream(order.worker_path, body, flight.kept)


def _body_for(order: Order, seat: Seat) -> bytes:
    embedded = seat.config.engine == "embedded"
    return worker_body(order, embedded=embedded, cache_salt=seat.config.cache_salt)


async def _post_after(fetch: Fetch, client: TieredPort, flight: Flight, seat: Seat) -> AnswerStream:
    await client.fetch(flight.order.prefix[: fetch.first + fetch.blocks], fetch.first)
    return await post(flight, seat)
