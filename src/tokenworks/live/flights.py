"""A request on its way through the factory: the seats of workers, the flight, and its answer.

An answer may change its worker once or more: the dispatcher takes one off that makes room for a
higher tier, and what its worker has made is kept. Whoever reads it waits until another worker goes
on, and finds no gap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from tokenworks.catalogue.factory_config import CurvePoint, PoolConfig
from tokenworks.core.errors import WorkerFailed
from tokenworks.core.ids import PoolID, WorkerID
from tokenworks.core.orders import Order, Outcome, Receipt
from tokenworks.core.ports import AnswerStream, KeepingStream, WorkerPort
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.commands import Fetch
from tokenworks.perf.timing import Timing

LINGER_NS_MAX: Final = 5 * NS_PER_S
"""A worker that keeps its stream open this long after the answer was settled loses its socket."""


class Seat(msgspec.Struct, kw_only=True):
    """A worker's place in the factory: what it is, and its client while it is up.

    What is not known of its engine is None; see ``WorkerUp``.

    Attributes:
        preempts: its client is a ``KeepingPort``, and its streams are ``KeepingStream``.
        host_bytes_per_s: its client is a ``TieredPort``, and this is how fast; 0 if it is none.
    """

    worker: WorkerID
    pool: PoolID
    config: PoolConfig
    curve: tuple[CurvePoint, ...]
    timing: Timing | None = None
    kv_blocks: int | None = None
    batch_tokens_max: int | None = None
    kv_bytes_per_token: int = 0
    preempts: bool = False
    host_bytes_per_s: int = 0
    client: WorkerPort | None = None


class Flight:
    """One request between its arrival and its settlement.

    Attributes:
        order: what it asks for.
        opened: its answer, once a worker has begun one.
        cut_off_ns: when its answer ends at the latest.
        attempt: the try that is under way or has begun the answer; 0 while no worker has it.
        seat: of the worker that has it, or had it last.
        sent_ns: when that was sent it.
        worked_ns: how long workers had it that were told to stop.
        sending: the try that may still begin the answer, or go on with it.
        kept: what a worker that was told to stop has made of it; None if none was.
        fetch: what is to be in its worker's cache before it is sent.
        delivery: its answer; the same as ``opened`` holds.
        settled: it was settled.
    """

    __slots__ = (
        *("attempt", "cut_off_ns", "delivery", "fetch", "kept", "opened", "order", "seat"),
        *("sending", "sent_ns", "settled", "worked_ns"),
    )

    def __init__(self, order: Order, opened: asyncio.Future[LiveDelivery], cut_off_ns: int) -> None:
        self.order = order
        self.opened = opened
        self.cut_off_ns = cut_off_ns
        self.attempt = self.sent_ns = self.worked_ns = 0
        self.seat: Seat | None = None
        self.sending: asyncio.Task[None] | None = None
        self.kept: bytes | None = None
        self.fetch: Fetch | None = None
        self.delivery: LiveDelivery | None = None
        self.settled = False

    @property
    def is_open(self) -> bool:
        """Whether nobody makes its answer, and somebody still waits for that."""
        if self.delivery is None:
            return not self.opened.done()
        return self.delivery.is_stopped

    def awaits(self, attempt: int) -> bool:
        """Whether this try may still begin the answer, or go on with it."""
        return self.attempt == attempt and self.is_open

    def drop_attempt(self) -> None:
        """Stop the try under way; whatever it still says comes too late."""
        self.attempt = 0
        if self.sending is not None:
            self.sending.cancel()

    def stop(self, now_ns: int) -> None:
        """It makes room at its worker, and waits in its line; what was made of it is kept."""
        self.worked_ns += max(0, now_ns - self.sent_ns)
        self.drop_attempt()
        if self.delivery is not None:
            self.kept = self.delivery.stop()


class LiveDelivery:
    """One answer of real workers; implements ``core.ports.Delivery``.

    Args:
        flight: of which request.
        stream: of the worker that has begun it.
        cut_off_s: how long it may take, on the event loop's clock.
        settle: bills it.
    """

    __slots__ = ("_cut_off", "_failure", "_flight", "_gone_on", "_next", "_settle", "_stream")

    def __init__(
        self,
        flight: Flight,
        stream: AnswerStream,
        cut_off_s: float,
        settle: Callable[[Flight, Outcome], Awaitable[Receipt]],
    ) -> None:
        self._flight, self._stream, self._settle = flight, stream, settle
        self._next: AnswerStream | None = None
        self._gone_on: asyncio.Event | None = None
        self._failure = ""
        self._cut_off = asyncio.get_running_loop().call_later(cut_off_s, self._abort_streams)

    # What the gateway asks.

    async def read(self) -> bytes:
        """See ``Delivery``."""
        while True:
            data = await self._stream.read()
            if data or self._gone_on is None:
                return data
            await self._gone_on.wait()
            if self._next is None:
                raise WorkerFailed(self._failure)
            self._stream, self._next, self._gone_on = self._next, None, None

    def abort(self) -> None:
        """See ``Delivery``."""
        self._cut_off.cancel()
        self._abort_streams()

    async def settle(self, outcome: Outcome) -> Receipt:
        """See ``Delivery``."""
        self._cut_off.cancel()
        loop = asyncio.get_running_loop()
        self._cut_off = loop.call_later(LINGER_NS_MAX / NS_PER_S, self._abort_streams)
        return await self._settle(self._flight, outcome)

    # What the driver says.

    @property
    def is_stopped(self) -> bool:
        """Whether its worker was stopped, and it waits for another one to go on."""
        return self._gone_on is not None and not self._gone_on.is_set()

    def stop(self) -> bytes | None:
        """Stop its worker.

        Returns:
            What another one goes on from; None if the answer has ended by itself.
        """
        stream = self._next or self._stream
        assert isinstance(stream, KeepingStream), "its worker has not said that it can"
        kept = stream.stop()
        if kept is not None:
            assert self._next is None, "it makes room once"
            self._gone_on = asyncio.Event()
        return kept

    def go_on(self, stream: AnswerStream) -> None:
        """Another worker goes on with it."""
        assert self._gone_on is not None, "it was not stopped"
        self._next = stream
        self._gone_on.set()

    def break_off(self, why: str) -> None:
        """Nobody will go on with it; whoever reads it hears why."""
        if self._gone_on is not None and not self._gone_on.is_set():
            self._failure = why
            self._gone_on.set()

    def _abort_streams(self) -> None:
        self._stream.abort()
        if self._next is not None:
            self._next.abort()
        self.break_off("the request was aborted")
