"""Runs a factory in the modelled world: the real dispatcher, modelled engines, jumping time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Final

from tokenworks.core.ids import RequestID, WorkerID
from tokenworks.dispatch.commands import Abort, Command, Queue, Reject, Send, SetTimer
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import (
    Arrived,
    Event,
    Failed,
    Finished,
    Started,
    Ticked,
    WorkerUp,
)
from tokenworks.perf.timing import FS_PER_NS
from tokenworks.twin.journal import JournalDigest
from tokenworks.twin.records import End, Outcomes, RunResult, Scenario, TwinRequest, WorkerSpec
from tokenworks.twin.workers import Engine, Served

CURVE_BATCHES: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
PROGRESS_EVERY: Final = 1_000
FOREVER_NS: Final = 1 << 62

_ENGINE, _TIMER, _ARRIVAL, _UP = range(4)

Progress = Callable[[int, int], None]
"""Told how many requests have ended, of how many."""


def run(
    scenario: Scenario,
    requests: Sequence[TwinRequest],
    *,
    exact: bool = False,
    dispatcher: Dispatcher | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Serve a workload until every request has ended.

    Args:
        scenario: the factory.
        requests: the workload, ascending by ``at_ns``.
        exact: step engines iteration by iteration, to check the closed form.
        dispatcher: the one to be driven; a new one if none is given.
        progress: called now and then.
    """
    return Run(scenario, requests, exact=exact, dispatcher=dispatcher, progress=progress).finish()


def worker_up(spec: WorkerSpec) -> WorkerUp:
    """What the dispatcher is told of a worker."""
    context = spec.context_tokens_typical
    points: dict[int, int] = {}
    for batch in (*(each for each in CURVE_BATCHES if each < spec.slots), spec.slots):
        points[batch] = spec.timing.speed_tokens_per_s(batch, batch * context)
    return WorkerUp(
        worker=spec.worker,
        pool=spec.pool,
        model=spec.model,
        slots=spec.slots,
        curve=tuple(points.items()),
        timing=spec.timing,
        kv_blocks=spec.kv_blocks,
        block_tokens=spec.block_tokens,
        batch_tokens_max=spec.batch_tokens_max,
    )


class Run:
    """One run; see ``run``."""

    def __init__(
        self,
        scenario: Scenario,
        requests: Sequence[TwinRequest],
        *,
        exact: bool,
        dispatcher: Dispatcher | None,
        progress: Progress | None,
    ) -> None:
        self._scenario, self._requests, self._exact = scenario, requests, exact
        self._dispatcher = dispatcher or Dispatcher()
        self._progress = progress
        self._journal = JournalDigest()
        self._outcomes = Outcomes(len(requests))
        self._now_ns = 0
        self._heap: list[tuple[int, int, int, int]] = []
        self._engines: list[Engine | None] = [None] * len(scenario.workers)
        self._index_of: dict[RequestID, int] = {}
        self._worker_of: dict[WorkerID, int] = {
            spec.worker: at for at, spec in enumerate(scenario.workers)
        }
        self._served: dict[int, Served] = {}
        self._timer_ns: int | None = None
        self._ended = 0
        self._left: dict[int, int] = {}
        self._dependents: dict[RequestID, list[int]] = {}

    def finish(self) -> RunResult:
        """Run to the end."""
        enabled = gc.isenabled()
        gc.disable()
        begun_ns = time.thread_time_ns()
        try:
            self._begin()
            self._loop()
        finally:
            if enabled:
                gc.enable()
        digest = self._journal.hexdigest()
        cpu_ns = time.thread_time_ns() - begun_ns
        return RunResult(
            outcomes=self._outcomes,
            workers=tuple(
                engine.use(self._now_ns) for engine in self._engines if engine is not None
            ),
            ended_ns=self._now_ns,
            events=self._journal.events,
            commands=self._journal.commands,
            journal_digest=digest,
            cpu_ns=cpu_ns,
        )

    def _begin(self) -> None:
        self._tell(self._scenario.configured)
        for at, spec in enumerate(self._scenario.workers):
            if spec.start_ns:
                heappush(self._heap, (spec.start_ns, _UP, at, 0))
            else:
                self._worker_comes_up(at)
        last_ns = 0
        for index, request in enumerate(self._requests):
            assert request.at_ns >= last_ns, "a workload is ascending by at_ns"
            last_ns = request.at_ns
            if request.wait_for:
                self._left[index] = len(request.wait_for)
                for name in request.wait_for:
                    self._dependents.setdefault(name, []).append(index)

    def _loop(self) -> None:
        heap, left, total = self._heap, self._left, len(self._requests)
        # Those that wait for others arrive through the heap.
        arrivals = iter([index for index in range(total) if index not in left])
        following = next(arrivals, None)
        at_ns = FOREVER_NS if following is None else self._requests[following].at_ns
        engines = self._engines
        while self._ended < total:
            if following is not None and (not heap or at_ns < heap[0][0]):
                self._now_ns = at_ns
                self._arrive(following)
                following = next(arrivals, None)
                at_ns = FOREVER_NS if following is None else self._requests[following].at_ns
                continue
            assert heap, f"{total - self._ended} requests wait for what will never be"
            now_ns, kind, what, epoch = heappop(heap)
            if kind == _ENGINE:
                engine = engines[what]
                if engine is not None and engine.epoch == epoch:
                    self._now_ns = now_ns
                    self._step(what, engine)
                continue
            self._now_ns = now_ns
            if kind == _TIMER:
                if self._timer_ns == now_ns:
                    self._timer_ns = None
                    self._tell(Ticked())
            elif kind == _ARRIVAL:
                self._arrive(what)
            else:
                self._worker_comes_up(what)

    # What happens in the world.

    def _worker_comes_up(self, at: int) -> None:
        spec = self._scenario.workers[at]
        self._engines[at] = Engine(spec, self._now_ns, exact=self._exact)
        self._tell(worker_up(spec))

    def _arrive(self, index: int) -> None:
        request = self._requests[index]
        self._outcomes.arrived_ns[index] = self._now_ns
        self._index_of[request.request] = index
        self._tell(
            Arrived(
                request=request.request,
                tenant=request.tenant,
                model=request.model,
                tier=request.tier,
                input_tokens_max=request.input_tokens,
                output_tokens_max=request.output_tokens_max,
                prefix=request.blocks,
                arrived_ns=self._now_ns,
                session=request.session,
            )
        )

    def _step(self, at: int, engine: Engine) -> None:
        engine.step()
        outcomes, now_ns = self._outcomes, self._now_ns
        started, finished = engine.started, engine.finished
        if engine.due_ns is not None:
            heappush(self._heap, (engine.due_ns, _ENGINE, at, engine.epoch))
        for served in started:
            index = served.index
            if index in self._served:
                outcomes.first_token_ns[index] = now_ns
                outcomes.cached_tokens[index] = served.cached_tokens
                self._tell(Started(request=self._requests[index].request))
        for served in finished:
            index = served.index
            if self._served.pop(index, None) is None:
                continue
            outcomes.output_tokens[index] = served.made
            outcomes.preemptions[index] = served.preemptions
            outcomes.itl_max_ns[index] = served.itl_max_fs // FS_PER_NS
            self._end(index, End.DONE)
            self._tell(
                Finished(
                    request=self._requests[index].request,
                    output_tokens=served.made,
                    cached_input_tokens=served.cached_tokens,
                )
            )

    def _end(self, index: int, end: End) -> None:
        self._outcomes.end[index] = end
        self._outcomes.finished_ns[index] = self._now_ns
        self._ended += 1
        if self._progress is not None and self._ended % PROGRESS_EVERY == 0:
            self._progress(self._ended, len(self._requests))
        if not self._dependents:
            return
        for each in self._dependents.pop(self._requests[index].request, ()):
            self._left[each] -= 1
            if not self._left[each]:
                request = self._requests[each]
                at_ns = max(request.at_ns, self._now_ns + request.delay_ns)
                heappush(self._heap, (at_ns, _ARRIVAL, each, 0))

    # What the dispatcher wants.

    def _tell(self, event: Event) -> None:
        commands = self._dispatcher.handle(self._now_ns, event)
        self._journal.add(self._now_ns, event, commands)
        for command in commands:
            self._do(command)

    def _do(self, command: Command) -> None:
        if isinstance(command, Send):
            self._send(command)
        elif isinstance(command, SetTimer):
            at_ns = max(command.at_ns, self._now_ns)
            self._timer_ns = at_ns
            heappush(self._heap, (at_ns, _TIMER, 0, 0))
        elif isinstance(command, Reject):
            self._end(self._index_of[command.request], End.REJECTED)
        elif isinstance(command, Abort):
            engine = self._engines[self._worker_of[command.worker]]
            served = self._served.pop(self._index_of[command.request], None)
            if engine is not None and served is not None:
                self._submitted(engine, engine.epoch, lambda: engine.abort(served, self._now_ns))
        else:
            assert isinstance(command, Queue), command

    def _send(self, command: Send) -> None:
        index, at = self._index_of[command.request], self._worker_of[command.worker]
        engine, request = self._engines[at], self._requests[index]
        self._outcomes.sent_ns[index] = self._now_ns
        self._outcomes.worker[index] = at
        output = min(request.output_tokens, request.output_tokens_max)
        if engine is None or not engine.fits(request.input_tokens, output):
            self._tell(Failed(request=command.request, worker=command.worker, started=False))
            return
        served = Served(index, request.input_tokens, output, request.blocks)
        self._served[index] = served
        epoch = engine.epoch
        engine.submit(served, self._now_ns)
        if engine.epoch != epoch and engine.due_ns is not None:
            heappush(self._heap, (engine.due_ns, _ENGINE, at, engine.epoch))

    def _submitted(self, engine: Engine, epoch: int, change: Callable[[], None]) -> None:
        change()
        if engine.epoch != epoch and engine.due_ns is not None:
            at = self._engines.index(engine)
            heappush(self._heap, (engine.due_ns, _ENGINE, at, engine.epoch))
