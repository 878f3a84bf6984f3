"""The live driver: tells the dispatcher what happens and does what it says, on the real clock.

It is the gateway's ``Desk``. Every event is in the journal before its commands are carried out, and
``now`` never goes back.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, assert_never

import msgspec

from tokenworks.catalogue.price_book import PriceBook, PriceBooks
from tokenworks.core.errors import (
    CapacityExceeded,
    LedgerCorrupt,
    LedgerUnavailable,
    TokenworksError,
    WorkerFailed,
    WorkerUnavailable,
)
from tokenworks.core.gauges import Gauges
from tokenworks.core.ids import KeyID, ModelName, RequestID, WorkerID
from tokenworks.core.needs import NO_OFFERS, Needs
from tokenworks.core.orders import KeyView, Order, Outcome, Receipt
from tokenworks.core.ports import AnswerStream, TieredPort, WorkerPort
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.dispatch.commands import (
    Abort,
    Command,
    Fetch,
    Hedge,
    Offload,
    Preempt,
    Queue,
    Reject,
    Scale,
    Send,
    SetTimer,
)
from tokenworks.dispatch.events import (
    Event,
    Failed,
    Started,
    Ticked,
    Withdrawn,
    WorkerDown,
    WorkerUp,
)
from tokenworks.dispatch.settings import settings_for
from tokenworks.ledger.entries import VoidReason
from tokenworks.ledger.quota_records import KeyRecord, LimitState
from tokenworks.ledger.quotas import window_end
from tokenworks.live.bookkeeper import Bookkeeper
from tokenworks.live.cycles import search_for_cycles
from tokenworks.live.driver_parts import DriverParts
from tokenworks.live.flights import Flight, LiveDelivery, Rival, Sending, arrival_of, ending_of
from tokenworks.live.growth import in_words, scaling_of
from tokenworks.live.journal import JournalWriter
from tokenworks.live.network import OK, WorkerStream
from tokenworks.live.refusals import (
    at_fault,
    refuse_unserved,
    refused,
    rejection,
    sent_once,
    shutting_down,
)
from tokenworks.live.running import running_loop
from tokenworks.live.seat import Seat
from tokenworks.live.seats import gauges_of, work_of
from tokenworks.live.sending import Try, post
from tokenworks.live.token_counts import count_at_any

# Without Final, which mypyc writes into the code: tests change some of these, compiled or not.
ANSWER_NS_MAX = 3_000 * NS_PER_S
"""From the reservation to the end of the answer, queueing included; less than
``bookkeeper.HOLD_NS_MAX``."""
LINGER_NS_MAX = 5 * NS_PER_S
"""A worker that keeps its stream open this long after the answer was settled loses its socket.
Housekeeping looks after both, since a timer for each answer would cost more than it is worth."""
BREATHER_NS = 50 * NS_PER_MS
"""Between a worker's failure and the next try. If the worker is going down, supervision says so
meanwhile, and the request waits in its line instead of spending its tries."""
CLOSE_NS_MAX: Final = 5 * NS_PER_S
"""How long closing waits for answers that were cut off to be settled."""
FLIGHTS_MAX = 16_384
HOUSEKEEPING_NS = 200 * NS_PER_MS

_log: Final = logging.getLogger("tokenworks.driver")


class Driver:
    """The factory's desk, on the real clock.

    Args:
        parts: what it is made of.
    """

    def __init__(self, parts: DriverParts) -> None:
        clock, ledger, store, pools = parts.clock, parts.ledger, parts.store, parts.pools
        self._on_scale = parts.on_scale
        self._scaling = scaling_of(pools) if parts.scaling is None else parts.scaling
        self._clock, self._dispatcher = clock, parts.dispatcher
        self._policy, self._limits, self._speedup = parts.policy, parts.limits, parts.speedup
        self._journal: JournalWriter | None = parts.journal
        self._ledger, self._store, self._pools = ledger, store, pools
        self._bookkeeper = Bookkeeper(
            clock=parts.ledger_clock or clock,
            ledger=ledger,
            store=store,
            pools=pools,
            leases=parts.leases,
        )
        self._folders_books = self._books = parts.books
        self._book = parts.books.at(clock.unix_ns())
        self._seats: dict[WorkerID, Seat] = {}
        self._flights: dict[RequestID, Flight] = {}
        self._keys: dict[str, KeyView] = {}
        self._named: dict[KeyID, KeyView] = {}
        self._settings_version = -1
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keys_trouble: str | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._settled: list[AnswerStream] = []
        """Streams of answers that were settled in this round of housekeeping, and go on."""
        self._lingering: collections.deque[tuple[float, list[AnswerStream]]] = collections.deque()
        self._last_ns = 0
        self._closed, self._landed = False, asyncio.Event()

    # Life.

    def begin(self) -> None:
        """Free what a dead process held, and tell the dispatcher its settings.

        It waits for the store: call it before anything is served.
        """
        self._bookkeeper.begin()
        self._apply(self._read_settings(-1, self._ledger.date(self._clock.unix_ns())))
        book = self._books.at(self._clock.unix_ns())
        self._keep_book(book)
        self._open_book(book)

    async def housekeep(self) -> None:
        """Keys, expired holds, cost, leases and the journal's buffer, until cancelled.

        What waits for the store has a loop of its own, so that nothing else waits with it, and is
        not begun again before it has ended.
        """
        loops = [
            asyncio.ensure_future(_again_and_again(errand))
            for errand in (
                *(self._round, self.keep_up),
                *(self._bookkeeper.tend_leases, self._bookkeeper.claim_costs),
            )
        ]
        try:
            await asyncio.gather(*loops)
        except BaseException as error:  # noqa: BLE001 - raised again once all have ended
            stopped = error
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        raise stopped

    def housekeep_once(self) -> None:
        """One round of what waits for nobody; what fails is tried again in the next."""
        self._cut_off_late()
        self._bookkeeper.round()
        self._write_journal(lambda journal: journal.flush())
        search_for_cycles()  # now, while there is little: what is remembered is looked at once

    async def _round(self) -> None:
        self.housekeep_once()

    def _cut_off_late(self) -> None:
        """Stop answers that take too long, and streams that outlive their answers."""
        now_ns, now_s = self._clock.now_ns(), asyncio.get_running_loop().time()
        # The oldest come first.
        late = itertools.takewhile(lambda each: each.cut_off_ns <= now_ns, self._flights.values())
        for flight in tuple(late):
            flight.cut_off()
        if self._settled:  # they have a little time to end by themselves
            self._lingering.append((now_s + LINGER_NS_MAX / NS_PER_S, self._settled))
            self._settled = []
        while self._lingering and self._lingering[0][0] <= now_s:
            for stream in self._lingering.popleft()[1]:
                stream.abort()

    async def keep_up(self) -> None:
        """Read settings that have changed, and take up the next price book on its day."""
        await self._reload_settings()
        await self._turn_page()

    async def close(self) -> None:
        """End what is still open, write down the last cost and wait for every entry."""
        self._closed = True
        for flight in tuple(self._flights.values()):
            self._dismiss(flight)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_NS_MAX / NS_PER_S):
                while self._flights:
                    self._landed.clear()
                    await self._landed.wait()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._sending:
            task.cancel()
        while self._sending:
            await asyncio.gather(*self._sending, return_exceptions=True)
        await self._bookkeeper.close()
        self._write_journal(lambda journal: journal.close())
        self._journal = None

    # What the gateway asks.

    def key_of(self, secret_sha256: str) -> KeyView | None:
        """See ``Desk``."""
        return self._keys.get(secret_sha256)

    def key_named(self, key: KeyID) -> KeyView | None:
        """See ``Desk``."""
        return self._named.get(key)

    def models(self) -> tuple[ModelName, ...]:
        """See ``Desk``."""
        served = {ModelName(pool.model) for pool in self._pools.values()}
        return tuple(sorted(served & self._book.prices.keys()))

    def whole_models(self) -> frozenset[ModelName]:
        """See ``Desk``."""
        return frozenset(
            ModelName(pool.model) for pool in self._pools.values() if pool.whole_answers
        )

    def output_tokens_default(self, model: ModelName, tier: Tier) -> int:
        """See ``Desk``."""
        assert model in self._book.prices, model
        return self._book.promises[tier].output_tokens_default

    async def count_tokens(self, model: ModelName, body: bytes, needs: Needs | None) -> int:
        """See ``Desk``."""
        return await count_at_any(self._seats.values(), model, body, needs)

    def healthy(self) -> tuple[bool, str]:
        """See ``Desk``."""
        trouble = self._bookkeeper.trouble or self._keys_trouble
        if trouble is not None:
            return False, trouble
        up = sum(seat.client is not None for seat in self._seats.values())
        return up > 0, f"{up} of {len(self._seats)} workers are up"

    async def open(self, order: Order) -> LiveDelivery:
        """See ``Desk``."""
        if self._closed:
            raise shutting_down()
        if len(self._flights) >= FLIGHTS_MAX:
            raise CapacityExceeded(
                "Too many requests are open.", hint="Try again.", retry_after_s=1
            )
        assert order.request not in self._flights, order.request
        if order.needs is not None or order.extra_fields:
            refuse_unserved(order, self._pools)
        cut_off_ns = self._clock.now_ns() + ANSWER_NS_MAX
        await self._bookkeeper.reserve(order, self._book)
        if self._closed:
            self._bookkeeper.void(order.request, "rejected")
            raise shutting_down()
        loop = self._loop = running_loop(self._loop)
        flight = Flight(order, loop.create_future(), cut_off_ns)
        self._flights[order.request] = flight
        self.tell(arrival_of(order))
        try:
            await flight.opened
        except asyncio.CancelledError:
            self._withdraw(flight)
            raise
        assert flight.delivery is not None, order.request
        return flight.delivery

    async def settle(self, flight: Flight, outcome: Outcome) -> Receipt:
        """Tell the dispatcher that an answer ended, and bill it; returns when that is durable."""
        assert not flight.settled, flight.order.request
        assert flight.seat is not None
        flight.settled = True
        order, seat = flight.order, flight.seat
        if flight.sending is not None:
            flight.sending.cancel()  # it was to go on with the answer
            flight.sending = None
        self.tell(ending_of(flight, seat, outcome))
        worked_ns = flight.worked_ns
        if flight.attempt:
            worked_ns += max(0, self._clock.now_ns() - flight.sent_ns)
        self._flights.pop(order.request, None)
        work = work_of(seat, worked_ns)
        if not self._flights:
            self._landed.set()
        assert flight.delivery is not None, flight.order.request
        self._settled += [each for each in flight.delivery.streams if not each.is_over]
        flight.delivery = None  # it has the flight: neither is to wait for the collector of cycles
        entry = await self._bookkeeper.bill(order.request, outcome, work)
        return Receipt(
            tier_asked=entry.tier_asked,
            tier_delivered=entry.tier_delivered,
            charged_nanodollars=entry.charged_nanodollars,
            credited_nanodollars=entry.credited_nanodollars,
            cost_nanodollars=entry.energy_nanodollars + entry.capital_nanodollars,
            waited_ns=max(0, flight.sent_ns - order.arrived_ns),
            pool=entry.pool,
            worker=entry.worker,
        )

    def gauges(self) -> Gauges:
        """What the factory has now."""
        promises = self._book.promises
        return gauges_of(self._seats, self._dispatcher, self._bookkeeper, promises)

    # What workers say.

    def seat(self, seat: Seat) -> None:
        """Make a place for a worker that will come up."""
        self._seats[seat.worker] = seat

    def is_up(self, worker: WorkerID) -> bool:
        """Whether a worker can take requests, as the dispatcher was told."""
        return self._seats[worker].client is not None

    def worker_up(self, worker: WorkerID, client: WorkerPort) -> None:
        """A worker can take requests."""
        if self._closed:
            return
        seat = self._seats[worker]
        seat.client = client
        up = WorkerUp(
            worker=worker,
            pool=seat.pool,
            model=ModelName(seat.config.model),
            slots=seat.config.slots,
            curve=seat.curve,
            timing=seat.timing,
            kv_blocks=seat.kv_blocks,
        )
        if seat.batch_tokens_max is not None:
            up = msgspec.structs.replace(up, batch_tokens_max=seat.batch_tokens_max)
        if seat.config.offers != NO_OFFERS:
            up = msgspec.structs.replace(up, offers=seat.config.offers)
        if seat.preempts:
            up = msgspec.structs.replace(up, preempts=True)
        if seat.host_bytes_per_s:
            up = msgspec.structs.replace(
                up,
                kv_bytes_per_token=seat.kv_bytes_per_token,
                host_bytes_per_s=seat.host_bytes_per_s,
            )
        self.tell(up)

    def worker_down(self, worker: WorkerID, why: str) -> None:
        """A worker is gone, and what it was doing with it."""
        seat = self._seats[worker]
        seat.client = None
        if self._closed:
            return
        _log.warning("worker %s is down: %s", worker, why)
        lost: list[Flight] = []
        for flight in self._flights.values():
            if flight.rival is not None:
                flight.without(seat, stop=True)
            elif flight.seat is seat and flight.attempt and flight.is_open:
                # Headers that are in already must not begin an answer that the dispatcher is
                # about to queue again, nor go on with one that it is about to give up.
                flight.drop_attempt()
                if flight.delivery is not None:
                    flight.delivery.break_off(f"worker {worker} is down: {why}")
                elif not flight.repeatable:
                    lost.append(flight)
        self.tell(WorkerDown(worker=worker, why=why))
        for flight in lost:
            request = flight.order.request
            if self._flights.get(request) is flight:  # else the dispatcher has given it up
                flight.drop_attempt()  # before another worker is sent it
                self._end(flight, Withdrawn(request=request), "failed", sent_once(why))

    # The brain.

    def tell(self, event: Event) -> None:
        """Journal an event, hand it to the dispatcher and carry out what it says."""
        now_ns = self._clock.now_ns()
        if now_ns < self._last_ns:
            now_ns = self._last_ns
        self._last_ns = now_ns
        commands = self._dispatcher.handle(now_ns, event)
        if self._journal is not None:
            try:
                self._journal.write(now_ns, event, commands, self._dispatcher)
            except OSError as error:
                self._end_journal(error)
        for command in commands:
            self._carry_out(command)

    def now_ns(self) -> int:
        """The driver's clock."""
        return self._clock.now_ns()

    def loop_s(self, duration_ns: int) -> float:
        """How long so much time on the driver's clock is for the event loop, in seconds."""
        return duration_ns / (NS_PER_S * self._speedup)

    def _write_journal(self, write: Callable[[JournalWriter], None]) -> None:
        if self._journal is None:
            return
        try:
            write(self._journal)
        except OSError as error:
            self._end_journal(error)

    def _end_journal(self, error: OSError) -> None:
        """The journal is for replays; a factory whose disk refuses it goes on without one."""
        self._journal = None
        _log.error("the journal ends here, it cannot be written: %s", error)

    def _carry_out(self, command: Command) -> None:
        match command:
            case Send():
                self._send(command)
            case Hedge():
                self._hedge(command)
            case Reject():
                self._reject(command)
            case SetTimer():
                self._set_timer(command.at_ns)
            case Scale():
                self._scale(command)
            case Preempt():
                self._flights[command.request].stop(self._clock.now_ns())
            case Fetch():
                self._flights[command.request].fetch = command
            case Offload():
                self._offload(command)
            case Queue() | Abort():
                pass  # whoever withdraws a request stops its worker
            case _:
                assert_never(command)

    def _scale(self, command: Scale) -> None:
        """Let the operator know, and whoever can start and stop workers."""
        _log.warning("%s", in_words(command))
        if self._on_scale is not None and not self._closed:
            self._on_scale(command)

    def _set_timer(self, at_ns: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._closed:
            return
        delay_s = self.loop_s(max(0, at_ns - self._clock.now_ns()))
        self._timer = asyncio.get_running_loop().call_later(delay_s, self.tell, Ticked())

    def _offload(self, command: Offload) -> None:
        """Let a worker move what a session has read; whether it does is its own affair."""
        client = self._seats[command.worker].client
        assert isinstance(client, TieredPort), command
        prefix = self._flights[command.request].order.prefix[: command.first + command.blocks]
        errand = _quietly(client.offload(prefix, command.first))
        task = asyncio.get_running_loop().create_task(errand)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def _send(self, command: Send) -> None:
        flight = self._flights[command.request]
        if flight.delivery is None and flight.opened.done():
            return  # cancelled, and about to be withdrawn
        seat = self._seats[command.worker]
        flight.attempt, flight.seat, flight.sent_ns = command.attempt, seat, self._clock.now_ns()
        if not flight.is_open:
            return  # it had made its answer when it was to make room, and is about to be settled
        flight.sending = self._try(flight, seat, command.attempt)

    def _try(self, flight: Flight, seat: Seat, attempt: int) -> Sending:
        at_once = Try(flight, seat, attempt, self._heard)
        try:
            if at_once.post():
                return at_once
        except Exception:  # noqa: BLE001, S110 - a task meets the same, and says so
            pass
        return self._try_in_task(flight, seat, attempt, None)

    def _try_in_task(
        self, flight: Flight, seat: Seat, attempt: int, stream: WorkerStream | None
    ) -> asyncio.Task[None]:
        start = self._start(flight, seat, attempt, stream)
        task = asyncio.get_running_loop().create_task(start)
        self._sending.add(task)
        task.add_done_callback(functools.partial(self._sent, flight, seat, attempt, stream))
        return task

    def _heard(self, made: Try, stream: WorkerStream) -> None:
        """A worker has begun to answer what it was sent at once, or will not."""
        flight, seat, attempt = made.flight, made.seat, made.attempt
        try:
            if not flight.awaits(attempt):
                stream.abort()
            elif stream.has_begun and stream.status == OK:
                if flight.attempt == attempt:
                    flight.sending = None
                self._begin(flight, stream, attempt)
            else:  # there is something to wait for: its words, another connection or a breather
                sending = self._try_in_task(flight, seat, attempt, stream)
                if flight.attempt == attempt:
                    flight.sending = sending
                elif flight.rival is not None:
                    flight.rival.sending = sending
        except Exception as error:  # noqa: BLE001 - as of a task of its own
            stream.abort()
            self._broke(flight, seat, attempt, error)

    def _hedge(self, command: Hedge) -> None:
        flight, seat = self._flights[command.request], self._seats[command.worker]
        if flight.opened.done():
            return  # it has begun, or is about to be withdrawn
        sending = self._try(flight, seat, command.attempt)
        flight.rival = Rival(command.attempt, seat, self._clock.now_ns(), sending)
        if not flight.attempt:  # the first try has failed, which crossed with this
            flight.go_on_with(flight.rival)

    def _sent(
        self,
        flight: Flight,
        seat: Seat,
        attempt: int,
        stream: WorkerStream | None,
        task: asyncio.Task[None],
    ) -> None:
        """A try has begun its answer or failed."""
        self._sending.discard(task)
        error = None if task.cancelled() else task.exception()
        if stream is not None and task.cancelled():
            stream.abort()  # also if the task was not begun
        if error is not None:
            self._broke(flight, seat, attempt, error)

    def _broke(self, flight: Flight, seat: Seat, attempt: int, error: BaseException) -> None:
        """A try that breaks by a mistake of ours has failed."""
        _log.critical("sending %s broke", flight.order.request, exc_info=error)
        if not flight.repeatable:
            self._lose(flight, seat, attempt, "sending it broke")
        elif flight.awaits(attempt):
            self._give_up(flight, seat, "sending it broke")

    async def _start(
        self, flight: Flight, seat: Seat, attempt: int, sent: WorkerStream | None
    ) -> None:
        """Send the request, if it is not; open its delivery, or tell what went wrong."""
        stream: AnswerStream | None = None
        failure: WorkerFailed | WorkerUnavailable | None = None
        try:
            stream = await (post(flight, seat) if sent is None else sent.begun())
            passed = stream.status == OK or flight.order.passing is not None
            said = b"" if passed else await stream.read_all()
        except (WorkerFailed, WorkerUnavailable) as error:
            failure = error
        except asyncio.CancelledError:
            if stream is not None:
                stream.abort()
            raise
        if failure is not None:
            await self._not_begun(flight, seat, attempt, failure)
            return
        assert stream is not None
        if not flight.awaits(attempt):
            stream.abort()
            return
        if passed:
            if flight.attempt == attempt:
                flight.sending = None
            self._begin(flight, stream, attempt)
        elif flight.delivery is None and at_fault(flight.order, stream.status):
            # Another worker would refuse it, too. It says nothing of how long an answer takes.
            flight.decide(attempt)
            withdrawn = Withdrawn(request=flight.order.request)
            self._end(flight, withdrawn, "rejected", refused(stream.status, said))
        else:
            why = f"status {stream.status}: {said[:200]!r}"
            await self._broke_off(flight, seat, attempt, why)

    async def _not_begun(
        self, flight: Flight, seat: Seat, attempt: int, error: WorkerFailed | WorkerUnavailable
    ) -> None:
        """A try has failed before there was an answer to go by."""
        lack = error if isinstance(error, WorkerUnavailable) and error.ours else None
        if lack is not None and flight.delivery is None:
            self._turn_away(flight, seat, attempt, lack)
        elif isinstance(error, WorkerFailed) and not (error.unsent or flight.repeatable):
            self._lose(flight, seat, attempt, str(error))
        else:
            await self._broke_off(flight, seat, attempt, str(error))

    def _begin(self, flight: Flight, stream: AnswerStream, attempt: int) -> None:
        """A worker has begun an answer, or goes on with one."""
        if flight.rival is None:
            self.tell(Started(request=flight.order.request))
        else:
            flight.decide(attempt)
            assert flight.seat is not None
            self.tell(Started(request=flight.order.request, worker=flight.seat.worker))
        if flight.delivery is not None:
            flight.delivery.go_on(stream)
            return
        flight.delivery = LiveDelivery(flight, stream, self.settle)
        flight.opened.set_result(None)

    async def _broke_off(self, flight: Flight, seat: Seat, attempt: int, why: str) -> None:
        await asyncio.sleep(BREATHER_NS / NS_PER_S)
        if flight.awaits(attempt):
            _log.warning("worker %s broke off %s: %s", seat.worker, flight.order.request, why)
            self._give_up(flight, seat, why)

    def _turn_away(self, flight: Flight, seat: Seat, attempt: int, lack: WorkerUnavailable) -> None:
        """We lack what it takes to ask any worker: that is no fault of the one that was chosen."""
        if flight.awaits(attempt) and flight.rival is not None:
            self._give_up(flight, seat, str(lack))  # the other goes on, or is the last to lack it
        elif flight.awaits(attempt):
            _log.error("%s was turned away: %s", flight.order.request, lack)
            self._end(flight, Withdrawn(request=flight.order.request), "rejected", lack)

    def _lose(self, flight: Flight, seat: Seat, attempt: int, why: str) -> None:
        """A try has failed that may have been carried out, and must not be twice."""
        if flight.awaits(attempt):
            request = flight.order.request
            _log.warning("worker %s broke off %s, passed on once: %s", seat.worker, request, why)
            failed = Failed(request=request, worker=seat.worker, started=True)
            self._end(flight, failed, "failed", sent_once(why))

    def _give_up(self, flight: Flight, seat: Seat, why: str) -> None:
        """A try has failed; an answer that has begun ends with it, when that is settled."""
        if flight.delivery is None:
            flight.without(seat)
            self.tell(Failed(request=flight.order.request, worker=seat.worker, started=False))
        else:
            flight.delivery.break_off(why)

    def _end(
        self, flight: Flight, event: Event, reason: VoidReason, error: TokenworksError
    ) -> None:
        """A request ends before an answer has begun; its caller is told why."""
        del self._flights[flight.order.request]
        self._landed.set()
        self.tell(event)
        self._bookkeeper.void(flight.order.request, reason)
        flight.opened.set_exception(error)

    def _reject(self, command: Reject) -> None:
        flight = self._flights.get(command.request)
        if flight is None:
            return
        if flight.delivery is not None:  # it made room; what it has is all that it will get
            flight.delivery.break_off("no worker was free to go on with the answer in time")
            return
        del self._flights[command.request]
        failed = command.code == "worker_failed"
        self._bookkeeper.void(command.request, "failed" if failed else "rejected")
        if not flight.opened.done():
            flight.opened.set_exception(rejection(command, flight.order, self.loop_s))

    def _withdraw(self, flight: Flight) -> None:
        """Its ``open`` was cancelled, which may have crossed with its beginning or its end."""
        flight.cut_off()
        if flight.opened.done() and not flight.opened.cancelled():
            flight.opened.exception()  # nobody else will take it
        self._leave(flight, "withdrawn")

    def _dismiss(self, flight: Flight) -> None:
        """The factory closes: stop its answer, which is then settled, or its waiting."""
        if not flight.opened.done():
            self._leave(flight, "rejected")
            flight.opened.set_exception(shutting_down())
        else:
            flight.cut_off()

    def _leave(self, flight: Flight, reason: VoidReason) -> None:
        """Take a request out, wherever it is, unless it has ended."""
        request = flight.order.request
        if self._flights.pop(request, None) is None:
            return
        self._landed.set()
        flight.drop_attempt()
        self.tell(Withdrawn(request=request))
        self._bookkeeper.void(request, reason)

    # Settings.

    async def _reload_settings(self) -> None:
        """Read keys and limits that have changed; the loop goes on however long that takes."""
        # By the ledger's date: a clock that has gone back must not read a month that is over.
        unix_ns = self._ledger.date(self._clock.unix_ns())
        try:
            read = await asyncio.to_thread(self._read_settings, self._settings_version, unix_ns)
        except (LedgerUnavailable, LedgerCorrupt) as error:
            if self._keys_trouble is None:
                _log.error("keys cannot be read, so revoked ones still work: %s", error)
            self._keys_trouble = f"Keys and limits cannot be read: {error}"
        else:
            self._keys_trouble = None
            self._apply(read)

    def _read_settings(self, known_version: int, unix_ns: int) -> _Settings | None:
        """On any thread: keys and limits, unless their version is known."""
        # The version first: what changes while the rest is read is read again the next time. A key
        # before its limits, which were put before it.
        version = self._store.settings_version()
        if version == known_version:
            return None
        records, books = self._store.load_keys(), self._heeded(self._store.activated_books())
        return _Settings(version, records, self._store.read_limits(unix_ns), books)

    def _apply(self, read: _Settings | None) -> None:
        """On the loop: put keys and limits into force."""
        if read is None:
            return
        states, unix_ns = read.limits(), self._ledger.date(self._clock.unix_ns())
        if any(unix_ns >= window_end(each.limit.period, each.start_unix_ns) for each in states):
            return  # what was used of the window that has begun is not in it: read again
        self._ledger.set_limits(states)
        self._settings_version = read.version
        self._books = read.books
        self._keys, self._named = {}, {}
        for record in read.records:
            self._ledger.set_key(record)
            if record.revoked_unix_ns is None:
                view = self._named[record.key] = record.view()
                self._keys[record.secret_sha256] = view
                if record.old_secret_sha256 is not None:
                    self._keys[record.old_secret_sha256] = record.old_view()

    def _heeded(self, texts: list[str]) -> PriceBooks:
        """On any thread: the folder's price books, and those that were put into force since."""
        books, unread = self._folders_books.with_readable(texts)
        for _, error in unread:
            _log.error("a price book that was put into force is left out: %s", error)
        return books

    async def _turn_page(self) -> None:
        """Take up the next price book on its day, once it is kept."""
        book = self._books.at(self._clock.unix_ns())
        if book.price_id == self._book.price_id:
            return
        try:
            await asyncio.to_thread(self._keep_book, book)
        except (LedgerUnavailable, LedgerCorrupt) as error:
            _log.error("%s cannot be put into force: %s", book.price_id, error)
        else:
            self._open_book(book)

    def _keep_book(self, book: PriceBook) -> None:
        """On any thread: keep a price book's text for ever."""
        self._store.put_price_book(book.price_id, book.text, self._clock.unix_ns())

    def _open_book(self, book: PriceBook) -> None:
        """Put a price book into force."""
        self._book = book
        self.tell(settings_for(book, self._limits, self._policy, self._scaling))


class _Settings(NamedTuple):
    """Keys, and limits to be asked for when they are put into force, as of a version."""

    version: int
    records: list[KeyRecord]
    limits: Callable[[], list[LimitState]]
    books: PriceBooks


async def _again_and_again(errand: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(HOUSEKEEPING_NS / NS_PER_S)
        await errand()


async def _quietly(errand: Awaitable[None]) -> None:
    """What nobody waits for: a worker that is lost meanwhile says so elsewhere."""
    with contextlib.suppress(WorkerFailed, WorkerUnavailable):
        await errand
