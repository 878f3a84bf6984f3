"""How a request is put to the worker that was chosen for it."""

from __future__ import annotations

from collections.abc import Awaitable

from tokenworks.core.errors import WorkerUnavailable
from tokenworks.core.ports import AnswerStream, KeepingPort, TieredPort
from tokenworks.core.traces import header_lines
from tokenworks.dispatch.commands import Fetch
from tokenworks.live.flights import Flight
from tokenworks.live.seat import Seat
from tokenworks.live.worker_body import worker_body


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
    embedded = seat.config.engine == "embedded"
    body = worker_body(order, embedded=embedded, cache_salt=seat.config.cache_salt)
    if flight.kept is None:
        lines = header_lines(order.request, order.trace)
        return client.post_stream(order.worker_path, body, lines, order.content_type)
    if not isinstance(client, KeepingPort):
        raise WorkerUnavailable(f"Worker {seat.worker} cannot go on with an answer.")
    return client.go_on_stream(order.worker_path, body, flight.kept)


async def _post_after(fetch: Fetch, client: TieredPort, flight: Flight, seat: Seat) -> AnswerStream:
    await client.fetch(flight.order.prefix[: fetch.first + fetch.blocks], fetch.first)
    return await post(flight, seat)
