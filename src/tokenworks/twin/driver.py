"""The twin's driver: it feeds a workload to the dispatcher and its commands to modelled engines.

What happens at the same nanosecond happens in this order: boundaries of workers by their index,
then what is on the agenda, in an order that ``agenda`` says.
"""

from __future__ import annotations

import functools
import gc
import time
from collections import abc
from collections.abc import Callable
from heapq import heappop
from typing import Final, assert_never

import msgspec
from msgspec import UNSET, UnsetType

from tokenworks.core.ids import RequestID, WorkerID
from tokenworks.core.needs import NO_OFFERS
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
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import (
    Event,
    Failed,
    Finished,
    Started,
    Ticked,
    Withdrawn,
    WorkerDown,
)
from tokenworks.perf.timing import FS_PER_NS, Timing
from tokenworks.twin.agenda import Agenda
from tokenworks.twin.bookkeeper import Bookkeeper
from tokenworks.twin.clock import JumpingClock
from tokenworks.twin.followers import Followers
from tokenworks.twin.handovers import FAR_NS
from tokenworks.twin.host_tiers import HostTiers
from tokenworks.twin.journal import Journal
from tokenworks.twin.kv_feed import Feed, Publishing
from tokenworks.twin.network import Kind, Network
from tokenworks.twin.prefillers import Prefillers
from tokenworks.twin.records import (
    NEVER,
    End,
    Outcomes,
    RunResult,
    Scenario,
    TwinRequest,
    arrival_of,
    worker_up,
)
from tokenworks.twin.rivals import Rivals, attempt_of
from tokenworks.twin.scaling import Scaling
from tokenworks.twin.sequence import GONE, HANDED, IDLE, STARTED, Sequence
from tokenworks.twin.transfers import Transfers
from tokenworks.twin.workers import KEY_SHIFT, WORKERS_MAX, Worker

PROGRESS_REQUESTS: Final = 1_000
"""Requests that end between two reports of progress."""

_WORKER_MASK: Final = WORKERS_MAX - 1
# To look up an enum's member takes a quarter of a microsecond.
_OPEN: Final = End.OPEN
_DONE: Final = End.DONE


class Hooks:
    """What faults and checkers may do in a run; each method does nothing until overridden."""

    def begin(self, driver: Driver) -> None:
        """Before the first event; put on the agenda what is to happen."""

    def told(self, now_ns: int, event: Event, commands: list[Command]) -> None:
        """After each event, before its commands are carried out; so only call ``at`` from here."""

    def end(self, driver: Driver) -> None:
        """After the last event."""


def run(
    scenario: Scenario,
    requests: abc.Sequence[TwinRequest],
    *,
    exact: bool = False,
    dispatcher: Dispatcher | None = None,
    progress: Callable[[int, int], None] | None = None,
    journal: Journal | None = None,
    hooks: Hooks | None = None,
    network: Network | None = None,
    bookkeeper: Bookkeeper | None = None,
    publishes: bool = False,
    probe_ns: int | None = None,
) -> RunResult:
    """Run a workload through a factory until nothing is left to happen.

    Args:
        scenario: the factory.
        requests: the workload, by arrival time.
        exact: work out each iteration by itself; slow, and with the same result.
        dispatcher: a new one that was told nothing; made here if it is None.
        progress: called now and then with the requests that have ended, and all.
        journal: takes all events and commands; if it is None, only their digest is kept.
        hooks: faults and checkers.
        network: between dispatcher and workers; a direct one if it is None.
        bookkeeper: reserves and bills; nobody does if it is None.
        publishes: engines publish what becomes of their prefix caches, at their boundaries; as
            there are more of these with ``exact``, such runs differ from those without.
        probe_ns: how often workers are asked about what they were sent, which a network that
            loses messages needs, as the live one has a deadline for an answer's head; None for
            never.
    """
    driver = Driver(
        scenario,
        requests,
        exact=exact,
        dispatcher=Dispatcher() if dispatcher is None else dispatcher,
        progress=progress,
        journal=Journal() if journal is None else journal,
        hooks=hooks,
        network=Network() if network is None else network,
        bookkeeper=bookkeeper,
        publishes=publishes,
        probe_ns=probe_ns,
    )
    collects = gc.isenabled()
    gc.disable()  # nothing here makes cycles, and looking for them takes a third of the time
    try:
        return driver.run()
    finally:
        if collects:
            gc.enable()


class Driver:
    """One run. Hooks may use its public methods.

    Attributes:
        bookkeeper: reserves and bills; None if nobody does.
        clock: the run's time.
        feeds: by worker, what is published of its prefix cache; empty if nothing is.
        outcomes: what became of each request until now.
        requests: the workload.
        scenario: what is run.
        rivals: second attempts of requests that two workers have.
        stopping: attempts that are over, of which their workers may not have heard yet.
        workers: in the scenario's order.
    """

    def __init__(
        self,
        scenario: Scenario,
        requests: abc.Sequence[TwinRequest],
        *,
        exact: bool,
        dispatcher: Dispatcher,
        progress: Callable[[int, int], None] | None,
        journal: Journal,
        hooks: Hooks | None,
        network: Network,
        bookkeeper: Bookkeeper | None,
        publishes: bool,
        probe_ns: int | None,
    ) -> None:
        self.clock = JumpingClock()
        self.outcomes = Outcomes(len(requests))
        self.requests, self.scenario = requests, scenario
        self._heap: list[int] = []
        self.workers = [
            Worker(index, spec, self._heap, exact=exact, publishes=publishes)
            for index, spec in enumerate(scenario.workers)
        ]
        self.feeds = [Feed(spec.worker) for spec in scenario.workers] if publishes else []
        self.bookkeeper, self._probe_ns = bookkeeper, probe_ns
        self._read_ns: int | None = None  # the clock's latest reading, once it is wrong
        self._handle = dispatcher.handle
        self._journal = journal
        self._record = journal.write
        self._hooks, self._progress = hooks, progress
        self._network = network
        self._direct = network.is_direct()
        self._now_ns = 0
        self._events = self._commands = self._ended = self._sequences = 0
        self._places = {each.request: place for place, each in enumerate(requests)}
        assert len(self._places) == len(requests), "two requests have the same name"
        self._indices = {spec.worker: index for index, spec in enumerate(scenario.workers)}
        assert len(self._indices) == len(scenario.workers), "two workers have the same name"
        self._up_since_ns: list[int | None] = [None] * len(self.workers)
        self._told_up = [False] * len(self.workers)
        self._lost = [False] * len(self.workers)  # and the dispatcher does not know yet
        # Each request's latest attempt, while it is at a worker, and whether it has answered.
        self._attempts: list[Sequence | None] = [None] * len(requests)
        self._answering = bytearray(len(requests))
        self.rivals = Rivals(self._attempts, self.outcomes)
        self._kept: dict[int, Sequence] = {}  # of those that wait to go on
        self.stopping: set[Sequence] = set()
        # Attempts that were the last of their requests and have not made all tokens.
        self._broken: list[Sequence] = []
        self._one_stage = [spec.role != "decode" for spec in scenario.workers]
        self._prefills = [spec.role == "prefill" for spec in scenario.workers]
        self._prefillers = Prefillers(scenario.workers, self.workers, self._up_since_ns)
        self._scaling = Scaling(scenario)
        self._followers = Followers(requests, self._places)
        send = None if self._direct else functools.partial(self._message, "blocks")
        self._publishing = Publishing(self.feeds, self._told_up, self._tell, send)
        publish = self._publishing.publish if publishes else None
        self._transfer = Transfers(self.workers, self.clock, self.at, publish).start
        self._hosts = HostTiers(self.workers, self.at, self._transfer)
        self._agenda = Agenda(requests, self._followers.leaders)

    # For hooks.

    def at(self, at_ns: int, action: Callable[[], None]) -> None:
        """Put something on the agenda; a time that has passed means now."""
        self._agenda.add(max(at_ns, self._now_ns), action)

    def withdraw(self, request: RequestID) -> None:
        """The client leaves, if its request has come and not ended."""
        place = self._places[request]
        if self.outcomes.arrived_ns[place] == NEVER or self.outcomes.end[place] != _OPEN:
            return
        let_in = self.bookkeeper is None or self.bookkeeper.has_let_in(place)
        self._close(place, End.WITHDRAWN, self._attempts[place] or self._let_go(place))
        if let_in:
            self._tell(Withdrawn(request=request))

    def fail(self, request: RequestID) -> None:
        """The worker that has a request breaks it off."""
        sequence = self._attempts[self._places[request]]
        if sequence is None or sequence.after_fs == IDLE:
            return  # nobody has it, or it is on its way
        self._stop(sequence)
        if self._direct:
            self._failed(sequence)
        else:
            self._message("failed", sequence.worker, functools.partial(self._failed, sequence))

    def tell(self, event: Event) -> None:
        """Tell the dispatcher something that is true, perhaps once more."""
        self._tell(event)

    def jump(self, by_ns: int) -> None:
        """The clock jumps; what the dispatcher is told stands still rather than going back."""
        if self._read_ns is None:
            self._read_ns = self._now_ns
        self.clock.skew_ns += by_ns

    def lose(self, worker: WorkerID, why: str) -> None:
        """A worker that goes on is taken for dead, and what it was sent is aborted."""
        index = self._indices[worker]
        if self._up_since_ns[index] is not None and self._told_up[index]:
            self._lost[index] = True
            self._noticed(index, why)

    def find(self, worker: WorkerID) -> None:
        """A worker that was taken for dead can be reached again."""
        index = self._indices[worker]
        if self._up_since_ns[index] is not None and not self._told_up[index]:
            self._tell_up(index)

    def engine(self, worker: WorkerID) -> Worker:
        """A worker by its name."""
        return self.workers[self._indices[worker]]

    def pace(self, worker: WorkerID, timing: Timing) -> None:
        """A worker's iterations take another time from now on; nobody is told."""
        self.engine(worker).pace(timing, self._now_ns)

    def live_attempt(self, place: int) -> Sequence | None:
        """The attempt of a request that is under way, as far as the driver knows."""
        return self._attempts[place]

    def crash(self, worker: WorkerID, why: str, notice_ns: int = 0) -> None:
        """A worker is gone with all that it had; the dispatcher notices after a time."""
        index = self._indices[worker]
        since_ns = self._up_since_ns[index]
        if since_ns is None:
            return
        engine = self.workers[index]
        self._up_since_ns[index] = None
        engine.up_ns += self._now_ns - since_ns
        engine.crash(self._now_ns)
        self._hosts.lose(index)
        self._lost[index] = True
        self.at(self._now_ns + notice_ns, functools.partial(self._noticed, index, why))

    def catch_up(self) -> None:
        """Ask each engine for the number of what it published last; that shows a gap."""
        self._publishing.catch_up()

    def start(self, worker: WorkerID) -> None:
        """A worker that is down comes up, with nothing in its cache."""
        index = self._indices[worker]
        if self._up_since_ns[index] is not None:
            return
        self._noticed(index, "it came up again")
        self._up_since_ns[index] = self._now_ns
        self._tell_up(index)

    def _scale(self, command: Scale) -> None:
        """Stop the worker that is given back, or begin to start those that are wanted."""
        if command.worker is not None:
            self.at(self._now_ns, functools.partial(self._stop_worker, command.worker))
            return
        for spec in self._scaling.missing(command, self._up_since_ns, self._told_up):
            self.engine(spec.worker).up_ns += spec.start_ns  # it costs while it starts
            self.at(self._now_ns + spec.start_ns, functools.partial(self._come_up, spec.worker))

    def _come_up(self, worker: WorkerID) -> None:
        self._scaling.starting.discard(worker)
        self.start(worker)

    def _stop_worker(self, worker: WorkerID) -> None:
        """One that was given back ends; the dispatcher knows, and is told once more."""
        index = self._indices[worker]
        self._told_up[index] = False
        self.crash(worker, "it was given back")

    def _tell_up(self, index: int) -> None:
        spec = self.workers[index].spec
        if spec.role == "prefill":
            return  # whoever decodes is told to the dispatcher, and asks the others to prefill
        self._told_up[index] = True
        if spec.role == "decode" and spec.offers != NO_OFFERS:
            spec = msgspec.structs.replace(spec, offers=self._prefillers.offers_with(spec))
        self._tell(worker_up(spec, self._prefillers.told(spec)))

    # The loop.

    def run(self) -> RunResult:
        """From the first event to the last."""
        begun_ns = time.thread_time_ns()
        if self.bookkeeper is not None:
            self.bookkeeper.begin(self, self.requests, self.scenario, self.outcomes)
        if self._hooks is not None:
            self._hooks.begin(self)
        self._tell(self.scenario.configured)
        for spec in self._scaling.first():
            if spec.start_ns > 0:
                self.at(spec.start_ns, functools.partial(self.start, spec.worker))
            else:
                self.start(spec.worker)
        self._agenda.renew()
        self._loop()
        for index, since_ns in enumerate(self._up_since_ns):
            if since_ns is not None:
                self.workers[index].up_ns += self._now_ns - since_ns
        for sequence in self._broken:
            self._note(sequence)
        if self._hooks is not None:
            self._hooks.end(self)
        digest = self._journal.digest()
        return RunResult(
            outcomes=self.outcomes,
            workers=tuple(worker.use() for worker in self.workers),
            ended_ns=self._now_ns,
            events=self._events,
            commands=self._commands,
            journal_digest=digest,
            cpu_ns=time.thread_time_ns() - begun_ns,
        )

    def _loop(self) -> None:
        heap, engines, clock, agenda = self._heap, self.workers, self.clock, self._agenda
        started, finished, direct = self._started, self._finished, self._direct
        publishing = self._publishing
        publishes = bool(self.feeds)
        while True:
            if heap and heap[0] < agenda.bound:
                key = heappop(heap)
                engine = engines[key & _WORKER_MASK]
                if engine.key != key:
                    continue
                self._now_ns = clock.at_ns = now_ns = key >> KEY_SHIFT
                for what, sequence in engine.complete():
                    if not direct or what == HANDED:
                        self._bring(what, sequence)
                    elif what == STARTED:
                        started(sequence)
                    else:
                        finished(sequence)
                engine.plan(now_ns)
                if engine.arrivals:
                    self._transfer(engine)
                if publishes:
                    publishing.publish(engine)
            elif agenda.bound == FAR_NS:
                return
            elif not (agenda.handovers.waiting and self._end_handover()):
                self._now_ns = clock.at_ns = now_ns = agenda.next_ns
                if agenda.take_timer(now_ns):
                    self._tell(Ticked())
                elif (action := agenda.take_action(now_ns)) is not None:
                    action()
                else:
                    self._arrive(agenda.take_arrival())

    # The dispatcher's events and commands.

    def reading(self) -> int:
        """What the clock says, or said before it went back."""
        if self._read_ns is None:
            return self._now_ns
        self._read_ns = max(self._read_ns, self.clock.now_ns())
        return self._read_ns

    def _tell(self, event: Event) -> None:
        now_ns = self._now_ns if self._read_ns is None else self.reading()
        commands = self._handle(now_ns, event)
        self._record(now_ns, event, commands)
        self._events += 1
        if self._hooks is not None:
            self._hooks.told(now_ns, event, commands)
        if commands:
            self._commands += len(commands)
            for command in commands:
                if isinstance(command, Send):
                    self._send(command)
                elif isinstance(command, Hedge):
                    self._hedge(command)
                elif isinstance(command, SetTimer):
                    at_ns = command.at_ns - self.clock.skew_ns
                    self._agenda.set_timer(max(at_ns, self._now_ns))
                elif isinstance(command, Reject):
                    self._reject(command)
                elif isinstance(command, Abort):
                    self._abort(command)
                elif isinstance(command, Scale):
                    self._scale(command)
                elif isinstance(command, Preempt):
                    self._preempt(command)
                elif isinstance(command, Offload | Fetch):
                    place, index = self._places[command.request], self._indices[command.worker]
                    blocks = self.requests[place].blocks
                    self._hosts.move(index, place, blocks, command, self._now_ns)
                elif not isinstance(command, Queue):
                    assert_never(command)

    def _reject(self, command: Reject) -> None:
        place = self._places[command.request]
        if self.outcomes.end[place] == _OPEN:  # else its client left in this moment
            failed = command.code == "worker_failed"
            self._close(place, End.FAILED if failed else End.REJECTED, self._let_go(place))

    def _arrive(self, place: int) -> None:
        now_ns = self._now_ns
        self.outcomes.arrived_ns[place] = now_ns
        if self.bookkeeper is None:
            self._admit(place, self.reading())
        else:
            self.bookkeeper.reserve(place)

    def admit(self, place: int, arrived_ns: int) -> None:
        """For the bookkeeper: what a request may use is held; it came at this reading."""
        if self._now_ns != self.outcomes.arrived_ns[place]:
            self.outcomes.queued_ns[place] = self._now_ns
        self._admit(place, arrived_ns)

    def refuse(self, place: int) -> None:
        """For the bookkeeper: nothing can be held for a request, which ends with that."""
        self._close(place, End.REJECTED, None)

    def made(self, sequence: Sequence) -> int:
        """Tokens that an attempt has made until now."""
        return self.workers[sequence.worker].made_by(sequence, self._now_ns)

    def _admit(self, place: int, arrived_ns: int) -> None:
        self._tell(arrival_of(self.requests[place], arrived_ns))

    def _close(self, place: int, end: End, sequence: Sequence | None) -> None:
        """A request has ended; those that waited for it may come."""
        assert self.outcomes.end[place] == _OPEN, "it ends twice"
        self.outcomes.end[place] = end
        self.outcomes.finished_ns[place] = self._now_ns
        if self.bookkeeper is not None:
            self.bookkeeper.settle(place, end, sequence)
        self._ended += 1
        if self._progress is not None and self._ended % PROGRESS_REQUESTS == 0:
            self._progress(self._ended, len(self.requests))
        if place in self._followers.of:
            for follower in self._followers.freed_by(place):
                request = self.requests[follower]
                at_ns = max(request.at_ns, self._now_ns + request.delay_ns)
                self.at(at_ns, functools.partial(self._arrive, follower))

    # From dispatcher to workers.

    def _send(self, command: Send) -> None:
        place = self._places[command.request]
        index = self._indices[command.worker]
        outcomes, request = self.outcomes, self.requests[place]
        assert self._told_up[index], f"sent to a lost worker: {command!r}"
        assert outcomes.end[place] == _OPEN, f"sent after its end: {command!r}"
        assert self._attempts[place] is None, f"sent twice at a time: {command!r}"
        outcomes.sent_ns[place] = self._now_ns
        outcomes.worker[place] = index
        if command.attempt > 1:
            outcomes.preemptions[place] += 1
        if command.prefill_worker is not None:
            target = self._indices[command.prefill_worker]
        else:
            target = index if self._one_stage[index] else self._prefillers.of(index)
        self._sequences += 1
        sequence = attempt_of(request, self._sequences, place, target, command.attempt)
        self._attempts[place] = sequence
        sequence.hands_over = target != index
        if (kept := self._kept.pop(place, None)) is not None:
            sequence.go_on_after(kept)
        self._post(sequence, self._hosts.ready_ns.pop(place, None))

    def _hedge(self, command: Hedge) -> None:
        """Send a request to a second worker."""
        place, index = self._places[command.request], self._indices[command.worker]
        assert self._told_up[index], f"sent to a lost worker: {command!r}"
        self._sequences += 1
        sequence = attempt_of(self.requests[place], self._sequences, place, index, command.attempt)
        self.rivals.add(sequence, self._now_ns)
        self._post(sequence, None)

    def _post(self, sequence: Sequence, ready_ns: int | None) -> None:
        """Bring an attempt to its worker, once what it needs is in the cache there."""
        if self._probe_ns is not None:
            probe = functools.partial(self._probe, sequence, suspect=False)
            self.at(self._now_ns + self._probe_ns, probe)
        deliver = functools.partial(self._deliver, sequence)
        if not self._direct:
            deliver = functools.partial(self._message, "send", sequence.worker, deliver)
        if ready_ns is None:
            deliver()
        else:
            self.at(ready_ns, deliver)

    def _deliver(self, sequence: Sequence) -> None:
        """A worker gets a sequence; a repeated message and one for a lost attempt do nothing."""
        place, target = sequence.place, sequence.worker
        if sequence.after_fs != IDLE or self.rivals.latest(sequence) is not sequence:
            return
        engine = self.workers[target]
        if self._up_since_ns[target] is None:
            if sequence.hands_over and not self._lost[target]:
                self._break_off(sequence)
            return  # else the dispatcher will be told, and has it back
        prompt = sequence.input_tokens
        whole = prompt + sequence.output_tokens - 1
        decoder = self.workers[self.outcomes.worker[place]] if sequence.hands_over else engine
        if whole > decoder.tokens_max or prompt > engine.tokens_max:
            self._break_off(sequence)
            return
        engine.submit(sequence, self._now_ns)
        if engine.arrivals:
            self._transfer(engine)

    def _break_off(self, sequence: Sequence) -> None:
        """A worker refuses what it was sent; even if that is heard at once, not within the send."""
        failed = functools.partial(self._failed, sequence)
        if self._direct:
            self.at(self._now_ns, failed)
        else:
            self._message("failed", sequence.worker, failed)

    def _probe(self, sequence: Sequence, *, suspect: bool) -> None:
        """Ask a worker about an attempt; one that it twice does not have is broken off."""
        latest = self.rivals.latest(sequence)
        if latest is None or self._probe_ns is None:
            return
        gone = latest.after_fs == IDLE or latest.state == GONE
        if gone and suspect:
            self._stop(latest)
            self._failed(latest)
        else:
            probe = functools.partial(self._probe, sequence, suspect=gone)
            self.at(self._now_ns + self._probe_ns, probe)

    def _abort(self, command: Abort) -> None:
        if command.reason == "hedged":
            return  # as soon as the other one had answered
        place = self._places[command.request]
        sequence = self._attempts[place]
        if sequence is not None:
            self._attempts[place] = None
            self._broken.append(sequence)
        else:
            sequence = self.rivals.of[place]
            self.rivals.without(sequence)
        self._drop(sequence)

    def _preempt(self, command: Preempt) -> None:
        """Stop an attempt; what it has made until now is kept for the next one."""
        place, now_ns = self._places[command.request], self._now_ns
        sequence = self._attempts[place]
        assert sequence is not None, command
        assert self.workers[self.outcomes.worker[place]].spec.preempts, command
        self._attempts[place] = None
        self._kept[place] = Sequence.kept_of(sequence, self.made(sequence), now_ns)
        self.outcomes.queue_again(place, now_ns)
        self._drop(sequence)

    def _let_go(self, place: int) -> Sequence | None:
        """What was kept of a request that ends before it is sent again."""
        kept = self._kept.pop(place, None)
        if kept is not None:
            self._broken.append(kept)
        return kept

    def _drop(self, sequence: Sequence) -> None:
        """Have a worker stop an attempt that is over."""
        if self._direct:
            self._stop(sequence)
        else:
            self.stopping.add(sequence)
            self._abort_at(sequence)

    def _abort_at(self, sequence: Sequence) -> None:
        """Tell a worker to drop an attempt, again and again where messages may be lost."""
        self._message("abort", sequence.worker, functools.partial(self._stop, sequence))
        there = sequence.after_fs != IDLE and sequence.state != GONE
        if there and self._probe_ns is not None:
            again = functools.partial(self._abort_at, sequence)
            self.at(self._now_ns + self._probe_ns, again)

    def _stop(self, sequence: Sequence) -> None:
        """End the work on an attempt, and free what was prefilled for it elsewhere."""
        self.stopping.discard(sequence)
        source, sequence.source = sequence.source, None
        for each in (sequence, source):
            if each is not None and each.after_fs != IDLE:
                self.workers[each.worker].abort(each, self._now_ns)
                self._transfer(self.workers[each.worker])

    def _message(self, kind: Kind, worker: int, action: Callable[[], None]) -> None:
        for delay_ns in self._network.delays_ns(self._now_ns, kind, worker):
            self.at(self._now_ns + delay_ns, action)

    # From workers to dispatcher.

    def _bring(self, what: int, sequence: Sequence) -> None:
        if what == HANDED:
            self._handed(sequence)
        elif what == STARTED:
            told = functools.partial(self._started, sequence)
            self._message("started", sequence.worker, told)
        else:
            told = functools.partial(self._finished, sequence)
            self._message("finished", sequence.worker, told)

    def _decide(self, sequence: Sequence) -> WorkerID | UnsetType:
        """Whose answer begins, where two workers had the request; the other one stops."""
        if sequence.place not in self.rivals.of:
            return UNSET
        self._drop(self.rivals.loser_to(sequence))
        return self.scenario.workers[sequence.worker].worker

    def _started(self, sequence: Sequence) -> None:
        place = sequence.place
        if self._attempts[place] is not sequence and self.rivals.is_over(sequence):
            return
        if not self._answering[place]:
            self._answering[place] = 1
            self.outcomes.first_token_ns[place] = self._now_ns
        winner = self._decide(sequence)
        self._tell(Started(request=self.requests[place].request, worker=winner))

    def _finished(self, sequence: Sequence) -> None:
        place = sequence.place
        if self._attempts[place] is not sequence and self.rivals.is_over(sequence):
            return
        winner = self._decide(sequence)
        self._attempts[place] = None
        outcomes = self.outcomes
        if outcomes.first_token_ns[place] == NEVER:  # that message was lost
            outcomes.first_token_ns[place] = self._now_ns
        self._note(sequence)
        self._close(place, _DONE, sequence)
        self._tell(
            Finished(
                request=self.requests[place].request,
                output_tokens=sequence.made,
                cached_input_tokens=sequence.cached_tokens,
                worker=winner,
            )
        )

    def _note(self, sequence: Sequence) -> None:
        """Write down what a request's last attempt has made."""
        place, outcomes = sequence.place, self.outcomes
        outcomes.output_tokens[place] = sequence.made
        outcomes.cached_tokens[place] = sequence.cached_tokens
        outcomes.preemptions[place] += sequence.preemptions
        outcomes.itl_max_ns[place] = -(-sequence.itl_max_fs // FS_PER_NS)

    def _failed(self, sequence: Sequence) -> None:
        """A worker broke off an attempt; what has begun to answer ends with it."""
        place = sequence.place
        if self.rivals.is_over(sequence):
            return
        if not self._direct:
            self._stop(self.rivals.latest(sequence) or sequence)  # it may have been handed over
        if place in self.rivals.of:
            self.rivals.without(sequence)
            name = self.scenario.workers[sequence.worker].worker
            self._tell(Failed(request=self.requests[place].request, worker=name, started=False))
            return
        started = self._give_up(place)
        self._tell(
            Failed(
                request=self.requests[place].request,
                worker=self.scenario.workers[self.outcomes.worker[place]].worker,
                started=started,
            )
        )

    def _give_up(self, place: int) -> bool:
        """Forget an attempt; whether its request ends with it, because it has begun to answer."""
        sequence = self._attempts[place]
        assert sequence is not None, place
        self._attempts[place] = None
        outcomes = self.outcomes
        if not self._answering[place]:
            outcomes.queue_again(place, self._now_ns)
            return False
        self._broken.append(sequence)
        self._close(place, End.FAILED, sequence)
        return True

    def _noticed(self, index: int, why: str) -> None:
        """What a lost worker had is lost for the dispatcher, too."""
        if not self._lost[index]:
            return
        self._lost[index] = False
        for sequence in self.rivals.lost_at(index):
            self._stop(sequence)
            self.rivals.without(sequence)
        lost = [
            sequence
            for sequence in self._attempts
            if sequence is not None and index in self._workers_of(sequence)
        ]
        for sequence in lost:
            self._stop(sequence)
        own = [each for each in lost if self.outcomes.worker[each.place] == index]
        for sequence in own:
            self._give_up(sequence.place)
        if not self._prefills[index]:
            self._told_up[index] = False
            if self.feeds:
                self.feeds[index].end_life()
            self._tell(WorkerDown(worker=self.scenario.workers[index].worker, why=why))
        for sequence in lost:
            if sequence not in own:  # it was only prefilled there
                self._failed(sequence)

    def _workers_of(self, sequence: Sequence) -> tuple[int, ...]:
        """Those without which an attempt is lost."""
        told = self.outcomes.worker[sequence.place]
        source = sequence.source
        return (told, sequence.worker) if source is None else (told, source.worker)

    # From worker to worker.

    def _handed(self, sequence: Sequence) -> None:
        """A prompt is prefilled; its KV cache goes where it will be decoded."""
        place = sequence.place
        if self._attempts[place] is not sequence:
            return  # aborted, which frees its blocks at the next boundary
        self._sequences += 1
        index = self.outcomes.worker[place]
        following = sequence.handed_over(self._sequences, index)
        self._attempts[place] = following
        if self._up_since_ns[index] is not None:
            self.workers[index].submit(following, self._now_ns)
            self._transfer(self.workers[index])
            self._agenda.handovers.add(following, self._now_ns)
            self._agenda.renew()

    def _end_handover(self) -> bool:
        """Fail the hand-over that has waited too long, if it is next; forget what is over."""
        agenda = self._agenda
        bound, due_ns = agenda.bound, agenda.handovers.next_ns()
        agenda.renew()
        if agenda.bound != bound or due_ns != agenda.next_ns:
            return agenda.bound != bound
        self._now_ns = self.clock.at_ns = due_ns
        _, sequence = agenda.handovers.waiting.popleft()
        agenda.renew()
        self._stop(sequence)
        self._failed(sequence)
        return True
