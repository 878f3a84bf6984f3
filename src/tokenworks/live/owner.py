"""The driver of the process that owns the dispatcher, for itself and for the other processes.

Only events and commands come by here: an answer's bytes go straight from a worker to the process
that has its caller.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable
from typing import Final

import msgspec

from tokenworks.core.ids import ModelName, RequestID, WorkerID
from tokenworks.core.ports import WorkerPort
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.dispatch.commands import Abort, Command, Queue, Reject, Scale, Send, SetTimer
from tokenworks.dispatch.events import (
    Arrived,
    Event,
    Failed,
    Finished,
    Started,
    Withdrawn,
    WorkerDown,
    WorkerUp,
)
from tokenworks.live.driver import Driver
from tokenworks.live.driver_parts import DriverParts
from tokenworks.live.frames import AskTexts, Message, Report, Texts, Welcome, WorkerGone, WorkerHere
from tokenworks.live.link import Link
from tokenworks.live.network import WorkerClient
from tokenworks.live.seat import Seat

REPORTS_NS_MAX: Final = 10 * NS_PER_S
"""How long an owner that is new waits for what fronts have running before those that do not say it
are to be killed. Until they have, no worker is used: what a front has running takes slots."""
HANG_UP_NS: Final = 50 * NS_PER_MS
"""From a front's death until its slots are free: workers hear of it from the kernel, too."""
# Without Final, which mypyc writes into the code: a test changes it, compiled or not.
TEXTS_S_MAX = 1.0

_log: Final = logging.getLogger("tokenworks.driver")


class OwnerDriver(Driver):
    """A driver whose dispatcher serves the fronts, too.

    What workers already make for fronts when an owner is new is not in its dispatcher: such workers
    are told of with so many slots less, until it has ended. Its dispatcher knows no worker at first
    and would refuse what fronts have waiting: that is told once there is one for it, free or not.

    Args:
        parts: see ``Driver``.
        fronts: indices of the fronts whose reports are waited for before a worker is used.
        text: this process's own metrics.
        on_hung: told the indices of fronts that say nothing, or that were hung up on: they are to
            be killed, since what they have running is not in the dispatcher.
    """

    def __init__(
        self,
        parts: DriverParts,
        *,
        fronts: frozenset[int],
        text: Callable[[], bytes],
        on_hung: Callable[[list[int]], None],
    ) -> None:
        super().__init__(parts)
        self._awaited = set(fronts)
        self._text, self._on_hung = text, on_hung
        self._names: dict[int, str] = {}
        self._links: dict[int, Link] = {}
        self._whose: dict[RequestID, Link] = {}
        self._taken_over: dict[RequestID, tuple[WorkerID, Link]] = {}
        self._ups: dict[WorkerID, WorkerUp] = {}
        self._settling = bool(fronts)
        self._early: dict[RequestID, Arrived] = {}
        self._announced: set[ModelName] = set()
        self._numbers = itertools.count()
        self._ignored = 0
        self._asked: dict[tuple[Link, int], asyncio.Future[bytes]] = {}
        self._errands: set[asyncio.Task[None]] = set()
        self._alone = asyncio.Event()
        self._alone.set()

    async def listen(self, sock: socket.socket) -> asyncio.Server:
        """Let fronts connect."""
        loop = asyncio.get_running_loop()
        if self._settling:
            loop.call_later(REPORTS_NS_MAX / NS_PER_S, self._remind)
        return await loop.create_unix_server(
            lambda: Link(self._take, self._lost, self._greet), sock=sock
        )

    async def alone(self) -> None:
        """Return once no front is connected."""
        await self._alone.wait()

    async def texts(self) -> dict[int, bytes]:
        """The metrics of all processes that answer in time, by index; this one's is 0."""
        number, links = next(self._numbers), dict(self._links)
        asked = {index: asyncio.get_running_loop().create_future() for index in links}
        for index, link in links.items():
            self._asked[link, number] = asked[index]
            link.send(AskTexts(number=number))
        if asked:
            await asyncio.wait(asked.values(), timeout=TEXTS_S_MAX)
        for link in links.values():
            del self._asked[link, number]
        said = {i: each for i, each in asked.items() if each.done() and not each.cancelled()}
        return {0: self._text()} | {i: each.result() for i, each in said.items()}

    # What fronts say.

    def _greet(self, link: Link) -> None:
        link.send(Welcome())

    def _take(self, link: Link, message: Message) -> None:
        # Three for each request; all else is rare.
        if type(message) is Started or type(message) is Finished:
            self._told(link, message)
            return
        if type(message) is Arrived:
            if self._whose.setdefault(message.request, link) is link:
                self.tell(message)
            else:
                link.close()
            return
        match message:
            case Report():
                self._reported(link, message)
            case Failed() | Withdrawn():
                self._told(link, message)
            case AskTexts():
                task = asyncio.get_running_loop().create_task(self._tell_texts(link, message))
                self._errands.add(task)
                task.add_done_callback(self._errands.discard)
            case Texts():
                assert link.index is not None
                asked = self._asked.get((link, message.number))
                if asked is not None and not asked.done():
                    asked.set_result(message.texts[link.index])
            case _:
                link.close()

    def _told(self, link: Link, event: Started | Finished | Failed | Withdrawn) -> None:
        request = event.request
        taken_over = self._taken_over.get(request)
        whose = self._whose.get(request) if taken_over is None else taken_over[1]
        if whose is not link:
            if whose is not None:
                link.close()
            return  # else it was rejected, which crossed with this
        if taken_over is not None:
            if not isinstance(event, Started):
                self._ended(request)
                if isinstance(event, Failed) and not event.started:
                    link.send(_failed(request))
            return
        self.tell(event)
        if type(event) is Started or (type(event) is Failed and not event.started):
            return
        if self._dispatcher.counts()["ignored"] != self._ignored:
            # Something was ignored since the last end, maybe this one. Then it crossed with its
            # worker's going down, after which it waits in a line again, or is at another worker:
            # nobody is there any more to take it. Where it did end this is ignored, too.
            self.tell(Withdrawn(request=request))
            self._ignored = self._dispatcher.counts()["ignored"]
        self._whose.pop(request, None)

    def _reported(self, link: Link, report: Report) -> None:
        if self._names.get(report.index) == report.name:
            # We hung up on it, and gave away the slots of what it still has running.
            self._on_hung([report.index])
            link.close()
            return
        self._names[report.index] = report.name
        link.index = report.index
        self._links[report.index] = link
        self._alone.clear()
        for request, worker in report.running:
            self._taken_over[request] = (worker, link)
        for name, up in self._ups.items():
            link.send(_here(self._seats[name], self._seats[name].client))
            if any(worker == name for _, worker in report.running):
                self._announce(up)
        if report.index in self._awaited:
            self._awaited.discard(report.index)
            self._announce_all()

    def _lost(self, link: Link) -> None:
        if link.index is not None and self._links.get(link.index) is link:
            del self._links[link.index]
            if not self._links:
                self._alone.set()
        for (whose, _), asked in self._asked.items():
            if whose is link:  # it will not say it any more
                asked.cancel()
        asyncio.get_running_loop().call_later(HANG_UP_NS / NS_PER_S, self._bury, link)

    def _bury(self, link: Link) -> None:
        """Free what a front that is gone had."""
        for request in [name for name, whose in self._whose.items() if whose is link]:
            if self._whose.pop(request, None) is not None:  # else its patience has just ended
                self.tell(Withdrawn(request=request))
        for request in [name for name, (_, whose) in self._taken_over.items() if whose is link]:
            self._ended(request)

    async def _tell_texts(self, link: Link, asked: AskTexts) -> None:
        link.send(Texts(number=asked.number, texts=await self.texts()))

    # What workers say.

    def worker_up(self, worker: WorkerID, client: WorkerPort) -> None:
        """See ``Driver``."""
        here = _here(self._seats[worker], client)
        for link in self._links.values():
            link.send(here)
        super().worker_up(worker, client)

    def worker_down(self, worker: WorkerID, why: str) -> None:
        """See ``Driver``."""
        for link in self._links.values():
            link.send(WorkerGone(worker=worker, why=why))
        super().worker_down(worker, why)

    def tell(self, event: Event) -> None:
        """See ``Driver``; of workers the dispatcher hears when it may use them."""
        if type(event) is Arrived and self._is_early(event):
            self._early[event.request] = event
            return
        if type(event) is Withdrawn and self._early.pop(event.request, None) is not None:
            return
        if type(event) is WorkerUp:
            self._ups[event.worker] = event
            self._announce(event)
            return
        if type(event) is WorkerDown:
            self._ups.pop(event.worker, None)
            for request, (worker, link) in list(self._taken_over.items()):
                if worker == event.worker:
                    del self._taken_over[request]
                    link.send(_failed(request))
        super().tell(event)

    def _ended(self, request: RequestID) -> None:
        """Something that was taken over has ended; its slot can be used."""
        worker, _ = self._taken_over.pop(request)
        up = self._ups.get(worker)
        if up is not None:
            self._announce(up)

    def _announce(self, up: WorkerUp) -> None:
        """Let the dispatcher use what of a worker nobody uses yet."""
        busy = sum(worker == up.worker for worker, _ in self._taken_over.values())
        if self._awaited:
            return
        if up.slots > busy:
            super().tell(msgspec.structs.replace(up, slots=up.slots - busy))
        elif up.model not in self._announced:
            # It has nothing free, but what comes for its model is to wait in a line, where patience
            # ends: a line is there for models that had a worker.
            super().tell(up)
            super().tell(WorkerDown(worker=up.worker, why="all its slots are taken over"))
        self._announced.add(up.model)
        self._tell_early()

    def _announce_all(self) -> None:
        for up in list(self._ups.values()):
            self._announce(up)

    def _is_early(self, event: Arrived) -> bool:
        """Whether no worker is known for it, and there will be one."""
        if event.model in self._announced:
            return False
        return self._settling or any(up.model == event.model for up in self._ups.values())

    def _tell_early(self) -> None:
        """Tell what is early no more; higher tiers first, as they would have been sent."""
        ready = [each for each in self._early.values() if not self._is_early(each)]
        for event in sorted(ready, key=lambda each: (-each.tier.rank, each.arrived_ns)):
            del self._early[event.request]
            super().tell(event)

    def _remind(self) -> None:
        """Have those killed that have not said what they have running."""
        self._settling = False
        self._tell_early()
        if self._awaited and not self._closed:
            _log.error("processes %s did not say what they have running", sorted(self._awaited))
            self._on_hung(sorted(self._awaited))
            loop = asyncio.get_running_loop()
            loop.call_later(REPORTS_NS_MAX / NS_PER_S, self._remind)

    # What the dispatcher says.

    def _carry_out(self, command: Command) -> None:
        if type(command) is Send:  # one for each request; all else is rare
            link = self._whose.get(command.request)
            if link is not None:
                link.send(command)
            elif command.request in self._flights:
                self._send(command)
            return
        if isinstance(command, SetTimer | Scale):
            super()._carry_out(command)
            return
        link = self._whose.get(command.request)
        if link is None:
            if command.request in self._flights or isinstance(command, Reject | Queue | Abort):
                super()._carry_out(command)
        elif not isinstance(command, Queue | Abort):
            link.send(command)
            if isinstance(command, Reject):
                del self._whose[command.request]


def _here(seat: Seat, client: WorkerPort | None) -> WorkerHere:
    """Where a worker is, if the settings don't say so."""
    if seat.config.engine == "attached":
        return WorkerHere(worker=seat.worker)
    assert isinstance(client, WorkerClient), "modelled workers have one process"
    return WorkerHere(
        worker=seat.worker, host=client.host, port=client.port, api_key=client.api_key or ""
    )


def _failed(request: RequestID) -> Reject:
    return Reject(
        request=request,
        code="worker_failed",
        reason="retries_over",
        retry_after_ns=None,
        ahead=0,
        waited_ns=0,
        attempts=1,
    )
