"""The driver of a process whose dispatcher is in another one, the owner.

It reserves, sends to workers and bills as any driver does; where a request goes it asks the owner.
While the owner is away what runs goes on, and what waits is told to the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from typing import Final

from tokenworks.core.errors import WorkerUnavailable
from tokenworks.core.gauges import Gauges
from tokenworks.core.ids import RequestID
from tokenworks.core.orders import Order
from tokenworks.core.ports import WorkerPort
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.dispatch.commands import Command, Fetch, Hedge, Offload, Preempt, Reject, Send
from tokenworks.dispatch.events import Arrived, Event, Failed, Finished, Started, Withdrawn
from tokenworks.live.bookkeeper import Bookkeeper
from tokenworks.live.driver import Driver
from tokenworks.live.driver_parts import DriverParts
from tokenworks.live.flights import Flight, LiveDelivery
from tokenworks.live.frames import AskTexts, Message, Report, Texts, Welcome, WorkerGone, WorkerHere
from tokenworks.live.link import Link
from tokenworks.live.network import WorkerClient
from tokenworks.live.seat import Seat

OWNER_NS_MAX: Final = 10 * NS_PER_S
"""How long what waits goes on waiting for an owner to come back."""
RETRY_NS: Final = 50 * NS_PER_MS
# Without Final, which mypyc writes into the code: a test changes it, compiled or not.
TEXTS_S_MAX = 2.0


class FrontDriver(Driver):
    """A driver that asks the owner.

    Args:
        parts: see ``Driver``.
        index: of this process, at least 1.
        name: of this life of it.
        path: the owner's socket.
        reach: makes the way to an attached worker.
        embedded: how many connections may go to a worker that the owner has started.
        text: this process's own metrics.
        first_up: is set once there is a worker.
    """

    def __init__(
        self,
        parts: DriverParts,
        *,
        index: int,
        name: str,
        path: str,
        reach: Callable[[Seat], WorkerPort],
        embedded: Callable[[Seat], int],
        text: Callable[[], bytes],
        first_up: asyncio.Event,
    ) -> None:
        super().__init__(parts)
        # What pools cost is written down by the owner.
        self._bookkeeper = Bookkeeper(
            clock=self._clock,
            ledger=self._ledger,
            store=self._store,
            pools={},
            leases=parts.leases,
        )
        self._first_up = first_up
        self._index, self._name, self._path, self._text = index, name, path, text
        self._reach, self._embedded = reach, embedded
        self._link: Link | None = None
        self._away_since_ns = self._clock.now_ns()
        self._changed = asyncio.Event()
        self._arrivals: dict[RequestID, Arrived] = {}
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[dict[int, bytes]]] = {}

    async def keep_linked(self) -> None:
        """Connect to the owner, and to the next one whenever it is gone, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            with contextlib.suppress(OSError):
                await loop.create_unix_connection(lambda: Link(self._take, self._lost), self._path)
                await self._changed.wait()
            await asyncio.sleep(RETRY_NS / NS_PER_S)

    def unlink(self) -> None:
        """Leave the owner, once nothing is open any more."""
        if self._link is not None:
            self._link.close()

    async def texts(self) -> dict[int, bytes]:
        """The metrics of all processes, by index; of this one alone if the owner is away."""
        link, number = self._link, next(self._numbers)
        if link is not None:
            asked: asyncio.Future[dict[int, bytes]] = asyncio.get_running_loop().create_future()
            self._asked[number] = asked
            link.send(AskTexts(number=number))
            try:
                async with asyncio.timeout(TEXTS_S_MAX):
                    return await asked
            except TimeoutError:
                pass
            finally:
                del self._asked[number]
        return {self._index: self._text()}

    # What the gateway asks.

    def healthy(self) -> tuple[bool, str]:
        """See ``Desk``."""
        if self._link is None:
            return False, "the process that dispatches is being started again"
        return super().healthy()

    async def open(self, order: Order) -> LiveDelivery:
        """See ``Desk``."""
        if self._link is None and self._is_over():
            raise _no_owner()
        return await super().open(order)

    def gauges(self) -> Gauges:
        """What only this process has: the owner shows the rest."""
        storing, unstored, lag_ns = self._bookkeeper.lag()
        return Gauges(
            workers=(),
            queued={},
            promises={},
            costs={},
            dispatched={},
            storing=storing,
            unstored=unstored,
            ledger_lag_ns=lag_ns,
        )

    # The brain, elsewhere.

    def tell(self, event: Event) -> None:
        """Tell the owner, who knows of workers and settings by itself."""
        link = self._link
        if type(event) is Started:
            if link is not None:
                link.send_later(event)
        elif type(event) is Finished:
            self._arrivals.pop(event.request, None)
            if link is not None:
                link.send_later(event)
        elif type(event) is Arrived:
            self._arrivals[event.request] = event
            if link is not None:
                link.send(event)
        elif isinstance(event, Failed | Withdrawn):
            if isinstance(event, Withdrawn) or event.started:
                self._arrivals.pop(event.request, None)
            if link is not None:
                link.send(event)

    def housekeep_once(self) -> None:
        """See ``Driver``."""
        super().housekeep_once()
        if self._link is None and self._is_over():
            for flight in [each for each in self._flights.values() if _waits(each)]:
                self._leave(flight, "failed")
                if not flight.opened.done():
                    flight.opened.set_exception(_no_owner())

    def _is_over(self) -> bool:
        return self._clock.now_ns() - self._away_since_ns > OWNER_NS_MAX

    # What the owner says.

    def _take(self, link: Link, message: Message) -> None:
        if type(message) is Send:  # one for each request; all else is rare
            if message.request in self._flights:
                self._send(message)
            return
        match message:
            case Welcome():
                self._welcomed(link)
            case WorkerHere():
                self._worker_here(message)
            case WorkerGone():
                self._worker_gone(message)
            case Hedge() | Reject() | Preempt() | Fetch() | Offload():
                self._carry_out(message)
            case AskTexts():
                link.send(Texts(number=message.number, texts={self._index: self._text()}))
            case Texts():
                asked = self._asked.get(message.number)
                if asked is not None and not asked.done():
                    asked.set_result(message.texts)
            case _:
                link.close()

    def _welcomed(self, link: Link) -> None:
        """Tell an owner what runs, and what waits."""
        self._link = link
        running = [
            (flight.order.request, flight.seat.worker)
            for flight in self._flights.values()
            if flight.seat is not None and not _waits(flight)
        ]
        link.send(Report(index=self._index, name=self._name, running=running))
        for flight in self._flights.values():
            arrived = self._arrivals.get(flight.order.request)
            if _waits(flight) and arrived is not None and not flight.opened.done():
                link.send(arrived)

    def _lost(self, _: Link) -> None:
        self._changed.set()
        if self._link is None:
            return
        self._link, self._away_since_ns = None, self._clock.now_ns()
        for flight in self._flights.values():
            flight.decide(flight.attempt)  # the next owner is told of one worker each
        for asked in self._asked.values():
            if not asked.done():
                asked.set_result({self._index: self._text()})
        for seat in self._seats.values():
            if seat.config.engine == "embedded":  # it ends with its owner
                self._worker_gone(WorkerGone(worker=seat.worker, why="its owner has ended"))

    def _worker_here(self, here: WorkerHere) -> None:
        seat = self._seats[here.worker]
        if seat.client is not None:
            return
        client: WorkerPort
        if here.host:
            most = self._embedded(seat)
            client = WorkerClient(here.host, here.port, here.api_key, connections_max=most)
        else:
            client = self._reach(seat)
        self.worker_up(here.worker, client)
        self._first_up.set()

    def _worker_gone(self, gone: WorkerGone) -> None:
        client = self._seats[gone.worker].client
        if client is not None:
            client.close(f"worker {gone.worker} is down: {gone.why}")
            self.worker_down(gone.worker, gone.why)

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, Send | Hedge | Reject | Preempt | Fetch | Offload):
            if command.request not in self._flights:
                return  # it has left meanwhile, and the owner is about to hear of that
            if isinstance(command, Reject):
                self._arrivals.pop(command.request, None)
            super()._carry_out(command)

    async def close(self) -> None:
        """See ``Driver``."""
        await super().close()
        self.unlink()


def _waits(flight: Flight) -> bool:
    """Whether no worker has it, and its answer has not begun."""
    return flight.delivery is None and not flight.attempt


def _no_owner() -> WorkerUnavailable:
    return WorkerUnavailable(
        "The process that dispatches requests does not answer.",
        hint="It is being started again: try again.",
        retry_after_s=1,
    )
