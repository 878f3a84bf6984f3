"""A request on its way through the factory: the seats of workers, the flight, and its answer.

An answer may change its worker once or more: the dispatcher takes one off that makes room for a
higher tier, and what its worker has made is kept. Whoever takes it waits until another worker goes
on, and finds no gap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from msgspec import UNSET

from tokenworks.core.errors import WorkerFailed
from tokenworks.core.orders import Order, Outcome, Receipt
from tokenworks.core.ports import ABORTED, AnswerStream, KeepingStream, Sink
from tokenworks.core.token_sums import completion_tokens, prompt_tokens
from tokenworks.dispatch.commands import Fetch
from tokenworks.dispatch.events import Arrived, Event, Failed, Finished, Withdrawn
from tokenworks.live.seat import Seat


class Sending(Protocol):
    """A try under way: a task, or what waits for a worker without one."""

    def cancel(self) -> object:
        """Stop it; nothing more is heard of it."""
        ...


class Rival:
    """A second try beside the first, at another worker; one of the two gives the answer.

    Attributes:
        attempt: its number.
        seat: of its worker.
        sent_ns: when that was sent it.
        sending: what stops it.
    """

    __slots__ = ("attempt", "seat", "sending", "sent_ns")

    def __init__(self, attempt: int, seat: Seat, sent_ns: int, sending: Sending) -> None:
        self.attempt, self.seat, self.sent_ns, self.sending = attempt, seat, sent_ns, sending


class Flight:
    """One request between its arrival and its settlement.

    Attributes:
        order: what it asks for.
        opened: done once a worker has begun its answer, or none will.
        cut_off_ns: when its answer ends at the latest.
        attempt: the try that is under way or has begun the answer; 0 while no worker has it.
        seat: of the worker that has it, or had it last.
        sent_ns: when that was sent it.
        worked_ns: how long workers had it that were told to stop.
        sending: what stops the try that may still begin the answer, or go on with it.
        kept: what a worker that was told to stop has made of it; None if none was.
        fetch: what is to be in its worker's cache before it is sent.
        delivery: its answer, from when that has begun until it is settled.
        rival: a second try; None if there is only one.
        settled: it was settled.
    """

    __slots__ = (
        *("attempt", "cut_off_ns", "delivery", "fetch", "kept", "opened", "order", "rival"),
        *("seat", "sending", "sent_ns", "settled", "worked_ns"),
    )

    def __init__(self, order: Order, opened: asyncio.Future[None], cut_off_ns: int) -> None:
        self.order = order
        self.opened = opened
        self.cut_off_ns = cut_off_ns
        self.attempt = self.sent_ns = self.worked_ns = 0
        self.seat: Seat | None = None
        self.sending: Sending | None = None
        self.rival: Rival | None = None
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

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent again when nobody knows what a worker has made of it.

        What we ask for in a worker's own words makes an answer, and changes nothing.
        """
        return self.order.passing is None or self.order.passing.repeatable

    def awaits(self, attempt: int) -> bool:
        """Whether this try may still begin the answer, or go on with it."""
        if self.attempt == attempt:
            return self.is_open
        return self.rival is not None and self.rival.attempt == attempt and self.is_open

    def cut_off(self) -> None:
        """Stop its answer, if that has begun."""
        if self.delivery is not None:
            self.delivery.abort()

    def drop_attempt(self) -> None:
        """Stop the tries under way; whatever they still say comes too late."""
        self.attempt = 0
        sending, self.sending = self.sending, None
        if sending is not None:
            sending.cancel()
        if self.rival is not None:
            self.rival.sending.cancel()
            self.rival = None

    def decide(self, attempt: int) -> None:
        """Stop the other try, if there are two: this one has an answer."""
        rival = self.rival
        if rival is None:
            return
        loser: Sending | None = rival.sending
        if rival.attempt == attempt:
            loser = self.sending
            self.go_on_with(rival)
        self.rival = None
        if loser is not None:
            loser.cancel()

    def without(self, seat: Seat, *, stop: bool = False) -> None:
        """Go on without a try that is over: with the other one of two, or with none.

        Args:
            seat: of whom it is over.
            stop: it is not over yet.
        """
        rival = self.rival
        if rival is None:
            self.attempt = 0  # it waits, also for who asks before the dispatcher has said so
            return
        lost: Sending | None = None
        if rival.seat is seat:
            self.rival, lost = None, rival.sending
        elif self.seat is seat:
            lost = self.sending
            self.go_on_with(rival)
        if stop and lost is not None:
            lost.cancel()

    def go_on_with(self, rival: Rival) -> None:
        """The second try is the only one."""
        self.attempt, self.seat, self.sent_ns = rival.attempt, rival.seat, rival.sent_ns
        self.sending, self.rival = rival.sending, None

    def stop(self, now_ns: int) -> None:
        """It makes room at its worker, and waits in its line; what was made of it is kept."""
        self.worked_ns += max(0, now_ns - self.sent_ns)
        self.drop_attempt()
        if self.delivery is not None:
            self.kept = self.delivery.stop()


class LiveDelivery:
    """One answer of real workers; implements ``core.ports.Delivery``, and ``Sink`` of its streams.

    Args:
        flight: of which request.
        stream: of the worker that has begun it.
        settle: bills it.

    Attributes:
        stream: of the worker that makes it now.
    """

    __slots__ = (
        *("_drained", "_end", "_failure", "_flight", "_next", "_paused", "_settle"),
        *("_sink", "_stopping", "_waiting", "stream"),
    )

    def __init__(
        self,
        flight: Flight,
        stream: AnswerStream,
        settle: Callable[[Flight, Outcome], Coroutine[Any, Any, Receipt]],
    ) -> None:
        self._flight, self.stream, self._settle = flight, stream, settle
        self._next: AnswerStream | None = None
        self._sink: Sink | None = None
        self._paused = False
        self._stopping = self._waiting = self._drained = False
        self._end: list[WorkerFailed | None] = []
        self._failure = ""

    # What the gateway asks.

    def pipe(self, sink: Sink) -> None:
        """See ``Delivery``."""
        seat = self._flight.seat
        if seat is not None and seat.preempts:
            self._sink = sink
            self.stream.pipe(self)
        else:
            self.stream.pipe(sink)

    def pause(self) -> None:
        """See ``Delivery``."""
        self._paused = True
        self.stream.pause()

    def resume(self) -> None:
        """See ``Delivery``."""
        self._paused = False
        self.stream.resume()

    def abort(self) -> None:
        """See ``Delivery``."""
        self.stream.abort()
        if self._next is not None:
            self._next.abort()
        self.break_off(ABORTED)

    def settle(self, outcome: Outcome) -> Coroutine[Any, Any, Receipt]:
        """See ``Delivery``."""
        return self._settle(self._flight, outcome)

    # What a worker's stream says, where the worker can be stopped.

    def data(self, data: bytes) -> None:
        """See ``Sink``."""
        assert self._sink is not None
        self._sink.data(data)

    def ended(self, failure: WorkerFailed | None) -> None:
        """See ``Sink``."""
        assert self._sink is not None
        if self._stopping:
            self._end.append(failure)
        elif failure is not None or not (self._waiting or self._failure or self._next):
            self._end_with(failure)
        else:
            self._drained = True
            self._turn()

    # What the driver says.

    @property
    def is_stopped(self) -> bool:
        """Whether its worker was stopped, and it waits for another one to go on."""
        return self._waiting

    @property
    def streams(self) -> tuple[AnswerStream, ...]:
        """Of the worker that makes it, and of another one that will go on."""
        return (self.stream,) if self._next is None else (self.stream, self._next)

    def stop(self) -> bytes | None:
        """Stop its worker.

        Returns:
            What another one goes on from; None if the answer has ended by itself.
        """
        stream = self._next or self.stream
        assert isinstance(stream, KeepingStream), "its worker has not said that it can"
        self._stopping = True
        kept = stream.stop()
        self._stopping = False
        self._waiting = kept is not None
        if self._waiting:
            assert self._next is None, "it makes room once"
        if self._end:
            self.ended(self._end.pop())
        return kept

    def go_on(self, stream: AnswerStream) -> None:
        """Another worker goes on with it."""
        assert self._waiting, "it was not stopped"
        self._next, self._waiting = stream, False
        self._turn()

    def break_off(self, why: str) -> None:
        """Nobody will go on with it; whoever reads it hears why."""
        if self._waiting:
            self._failure, self._waiting = why, False
            self._turn()

    def _turn(self) -> None:
        """Go from a stream that is drained to the next, or to the end, once one is there."""
        if not self._drained or self._waiting:
            return
        assert self._sink is not None
        self._drained = False
        if self._next is None:
            self._end_with(WorkerFailed(self._failure))
            return
        self.stream, self._next = self._next, None
        if self._paused:
            self.stream.pause()
        self.stream.pipe(self)

    def _end_with(self, failure: WorkerFailed | None) -> None:
        sink, self._sink = self._sink, None  # it has the answer: neither waits for the collector
        assert sink is not None
        sink.ended(failure)


def arrival_of(order: Order) -> Arrived:
    """What the dispatcher is told of a request that is reserved."""
    return Arrived(
        request=order.request,
        tenant=order.key.tenant,
        model=order.model,
        tier=order.tier,
        input_tokens_max=order.input_tokens_max,
        output_tokens_max=order.output_tokens_max,
        prefix=order.prefix,
        arrived_ns=order.arrived_ns,
        session=order.session,
        needs=UNSET if order.needs is None else order.needs,
        hints=UNSET if order.hints is None else order.hints,
        once=UNSET if order.passing is None else True,
        unheard=True if order.in_one_piece else UNSET,
    )


def ending_of(flight: Flight, seat: Seat, outcome: Outcome) -> Event:
    """What the dispatcher is told of an answer that is over."""
    request = flight.order.request
    if not flight.attempt:
        return Withdrawn(request=request)  # it made room, and no worker has it
    if outcome.ending == "failed":
        return Failed(request=request, worker=seat.worker, started=True)
    if outcome.ending == "disconnected":
        return Withdrawn(request=request)
    usage = outcome.usage
    return Finished(
        request=request,
        output_tokens=completion_tokens(usage),
        cached_input_tokens=usage.cached_input_tokens,
        input_tokens=prompt_tokens(usage),
    )
