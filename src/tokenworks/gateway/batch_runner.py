"""Runs batches in what live requests leave free: reads them, answers their lines, ends them.

Of the processes that share a factory's folder one does. A line is kept before it is billed, and is
done once it is: after a crash the ledger says of each that was kept whether it was billed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Final

import msgspec

from tokenworks.core.batches import (
    Batch,
    BatchRoom,
    BatchStatus,
    FileRoom,
    Line,
    LineError,
    moved,
    next_step,
)
from tokenworks.core.errors import (
    CapacityExceeded,
    LedgerUnavailable,
    NotFound,
    QuotaExceeded,
    TokenworksError,
    Unauthorized,
    WorkerUnavailable,
)
from tokenworks.core.gauges import Gauges
from tokenworks.core.ids import BatchID, ModelName, RequestID
from tokenworks.core.orders import KeyView
from tokenworks.core.ports import Clock, Desk
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.gateway.batch_input import BatchInput
from tokenworks.gateway.batch_line import BatchLines, LineRun, NotStaged
from tokenworks.gateway.http_io import broken
from tokenworks.ledger.store_port import InDoubt

_log: Final = logging.getLogger("tokenworks.batches")

POLL_S: Final = 0.2
"""Between two looks while something runs; others may begin and cancel batches meanwhile."""

IDLE_POLL_S: Final = 1.0
LINES_IN_FLIGHT_MAX: Final = 64
LOOK_MAX: Final = 256
"""Lines of a batch that are looked at for one that can go now."""

FAR_NS: Final = 10 * NS_PER_S
"""Between two looks behind those of a batch, where nothing there could go."""

BATCHES_LOOKED_AT_MAX: Final = 64
"""In one round, where more of them run; they have turns."""

ERRANDS_MAX: Final = 2
"""Batches that are read, or written into files, at once."""

ERRAND_AGAIN_NS: Final = 10 * NS_PER_S
"""After one that failed: where a disk is full, its long files would fill it again at once."""

SWEEP_NS: Final = 60 * NS_PER_S
RETRY_NS: Final = 30 * NS_PER_S
"""After a refusal by a quota; after others from 1 s up to this."""

WORKER_TRIES_MAX: Final = 5
"""A line that so many workers broke off on is at fault."""

SLACK_NS: Final = 3_600 * NS_PER_S
"""A clock may have gone back by so much since a batch began."""

Billed = Callable[[Collection[RequestID], int], Awaitable[Collection[RequestID]]]
"""Which of some requests of dead processes are billed since a date."""


class _Tried(msgspec.Struct):
    """How a line has fared: until when it waits, how often workers broke off, other refusals."""

    until_ns: int = 0
    broken: int = 0
    refused: int = 0


class BatchRunner:
    """Runs the batches of a room, if it is this process that leads there.

    Args:
        batches: the room.
        files: of the same.
        lines: answers one.
        desk: knows keys.
        clock: time.
        gauges: what the factory has now.
        billed: asks the ledger.
        stopping: whether this process is about to end, so that nothing is to begin.
    """

    def __init__(
        self,
        *,
        batches: BatchRoom,
        files: FileRoom,
        lines: BatchLines,
        desk: Desk,
        clock: Clock,
        gauges: Callable[[], Gauges],
        billed: Billed,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._stopping = stopping
        self._batches, self._files, self._lines = batches, files, lines
        self._desk, self._clock, self._gauges, self._billed = desk, clock, gauges, billed
        self._runs: dict[asyncio.Task[None], LineRun] = {}
        self._tried: dict[tuple[BatchID, int], _Tried] = {}
        self._far_at_ns: dict[BatchID, int] = {}
        """When a batch is looked at again behind lines that cannot go."""
        self._errands: dict[BatchID, asyncio.Task[None]] = {}
        self._errand_at_ns: dict[BatchID, int] = {}
        """When a batch is read or written again that could not be."""
        self._owed: list[Callable[[], Awaitable[None]]] = []
        """What a room that could not be written must still be told."""
        self._sweep_at_ns = self._turn = 0
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Until it is cancelled; then what is being kept is billed, and the rest is stopped."""
        recovered = False
        try:
            while True:
                try:
                    if recovered or await self._batches.lead():
                        if not recovered:
                            await self.recover()
                        recovered = True
                        await self.round()
                except TokenworksError as error:
                    _log.error("batches stand still: %s", error)
                except Exception:  # noqa: BLE001 - a mistake here must not stop those who are served live
                    _log.exception("batches stand still")
                await self._pause()
        finally:
            await self._stop()

    async def recover(self) -> None:
        """Ask the ledger about each answer that a dead process kept: it is billed, or is none."""
        staged = await self._batches.staged()
        if not staged:
            return
        began = {
            batch.id: batch.created_unix_ns for batch, _, _ in await self._batches.unfinished()
        }
        since_unix_ns = min(began[line.batch] for line in staged) - SLACK_NS
        requests = {line.request for line in staged if line.request is not None}
        billed = await self._billed(requests, since_unix_ns)
        for line in staged:
            if line.request in billed:
                await self._batches.finish(line)
            else:
                await self._batches.unstage(line)
        _log.warning("%d lines of batches were kept, and %d billed", len(staged), len(billed))

    async def round(self) -> None:
        """Look at every batch once, and start what there is room for."""
        while self._owed:
            await self._owed[0]()
            self._owed.pop(0)
        now_ns, unix_ns = self._clock.now_ns(), self._clock.unix_ns()
        if now_ns >= self._sweep_at_ns:
            self._sweep_at_ns = now_ns + SWEEP_NS
            await self._batches.sweep(unix_ns)
        running: list[tuple[Batch, KeyView]] = []
        for batch, waiting, staged in await self._batches.unfinished():
            if batch.id in self._errands or self._errand_at_ns.get(batch.id, 0) > now_ns:
                continue
            step = next_step(batch, unix_ns, waiting, staged)
            key = self._key_of(batch)
            if step == "run" and key is not None:
                running.append((batch, key))
            elif step in ("run", "validate") and key is None:
                self._stop_lines(batch.id)
                await self._batches.cancel(batch.tenant, batch.id, unix_ns)
            elif step == "finalize":
                self._stop_lines(batch.id)
                await self._batches.finalize(moved(batch, BatchStatus.FINALIZING, unix_ns))
            elif step is not None:
                self._stop_lines(batch.id)
                idle = not any(run.batch.id == batch.id for run in self._runs.values())
                if idle and len(self._errands) < ERRANDS_MAX:
                    validate = step == "validate"
                    self._send(
                        batch, self._validate(batch) if validate else self._end(batch, step, key)
                    )
        if not self._stopping():
            await self._start_lines(running)

    # Batches.

    def _key_of(self, batch: Batch) -> KeyView | None:
        """The key of a batch, as long as it may be used."""
        key = self._desk.key_named(batch.key)
        if key is not None and key.scopes is not None:
            try:
                key.scopes.check_date(self._clock.unix_ns())
            except Unauthorized:
                return None
        return key

    def _send(self, batch: Batch, errand: Awaitable[None]) -> None:
        """Do what takes long for a batch, while others go on."""
        task = asyncio.ensure_future(errand)
        self._errands[batch.id] = task
        task.add_done_callback(lambda done: self._came_back(batch.id, done))

    def _came_back(self, batch: BatchID, task: asyncio.Task[None]) -> None:
        del self._errands[batch]
        self._errand_at_ns.pop(batch, None)
        self._woken.set()
        if not task.cancelled() and task.exception() is not None:
            self._errand_at_ns[batch] = self._clock.now_ns() + ERRAND_AGAIN_NS
            _log.error("batch %s stands still", batch, exc_info=task.exception())

    async def _validate(self, batch: Batch) -> None:
        found = BatchInput(batch)
        try:
            await found.read(self._files)
        except NotFound as error:
            found.errors.append(LineError(code="file_not_found", message=str(error)))
        unix_ns = self._clock.unix_ns()
        if found.errors:
            failed = msgspec.structs.replace(batch, errors=tuple(found.errors))
            await self._batches.begin(moved(failed, BatchStatus.FAILED, unix_ns), ())
        else:
            begun = msgspec.structs.replace(batch, total=len(found.lines))
            await self._batches.begin(moved(begun, BatchStatus.IN_PROGRESS, unix_ns), found.lines)

    async def _end(self, batch: Batch, step: str, key: KeyView | None) -> None:
        ends = {"complete": BatchStatus.COMPLETED, "expire": BatchStatus.EXPIRED}
        to = ends.get(step, BatchStatus.CANCELLED)
        if to is BatchStatus.CANCELLED and key is None:
            why = LineError(code="invalid_api_key", message="Its key was revoked or has expired.")
            batch = msgspec.structs.replace(batch, errors=(why,))
        await self._batches.end(moved(batch, to, self._clock.unix_ns()))
        self._tried = {place: each for place, each in self._tried.items() if place[0] != batch.id}
        self._far_at_ns.pop(batch.id, None)

    # Lines.

    async def _start_lines(self, running: list[tuple[Batch, KeyView]]) -> None:
        """Start lines where nobody waits; those of batches that have fewest go first."""
        spare = self._spare()
        self._turn += 1
        at = self._turn * BATCHES_LOOKED_AT_MAX % max(1, len(running))
        running = (running[at:] + running[:at])[:BATCHES_LOOKED_AT_MAX]
        busy = Counter(run.batch.id for run in self._runs.values())
        taken = {(run.batch.id, run.line.number) for run in self._runs.values()}
        ready: dict[BatchID, list[Line]] = {}
        for batch, _ in running if any(free > 0 for free in spare.values()) else ():
            full = {model for model, free in spare.items() if free <= 0}
            ready[batch.id] = await self._ready(batch.id, taken, full)
            ready[batch.id].reverse()
        if ready:
            spare = self._spare()  # others may have come meanwhile
        while ready and len(self._runs) < LINES_IN_FLIGHT_MAX:
            batch, key = min(
                (each for each in running if each[0].id in ready),
                key=lambda each: busy[each[0].id],
            )
            lines = ready[batch.id]
            # A model that is not served leaves no room, and its line is told so at once.
            while lines and spare.get(lines[-1].model, 1) <= 0:
                lines.pop()
            if not lines:
                del ready[batch.id]
                continue
            line = lines.pop()
            spare[line.model] = spare.get(line.model, 1) - 1
            busy[batch.id] += 1
            self._start(batch, line, key)

    async def _ready(
        self, batch: BatchID, taken: Collection[tuple[BatchID, int]], full: Collection[ModelName]
    ) -> list[Line]:
        """Lines of a batch that can go now, in their order.

        Where its first lines are all for models that have no room, those behind them are looked
        for, which takes long: where there are none, not again for a while.

        Args:
            batch: which.
            taken: lines that are being tried.
            full: models that have no room.
        """
        now_ns = self._clock.now_ns()

        def split(looked: list[Line]) -> tuple[list[Line], set[ModelName]]:
            """Lines that are not being tried and need not wait, and the models of those that do."""
            ready, later = [], set()
            for line in looked:
                place = (batch, line.number)
                if self._tried.get(place, _Tried()).until_ns > now_ns:
                    later.add(line.model)
                elif place not in taken:
                    ready.append(line)
            return ready, later

        looked = await self._batches.waiting(batch, LOOK_MAX)
        ready, later = split(looked)
        goes = any(line.model not in full for line in ready)
        if goes or len(looked) < LOOK_MAX or now_ns < self._far_at_ns.get(batch, 0):
            return ready
        looked = await self._batches.waiting(batch, LOOK_MAX, {*full, *later})
        if not looked:
            self._far_at_ns[batch] = now_ns + FAR_NS
        return split(looked)[0]

    def _spare(self) -> Counter[ModelName]:
        """How many lines may be started now, by model; those that live requests wait for are not.

        Lines that wait in a queue themselves are withdrawn where live requests wait, too.
        """
        gauges = self._gauges()
        spare: Counter[ModelName] = Counter()
        for worker in gauges.workers:
            spare[worker.model] += max(0, worker.slots - worker.running)
        opening = [each for each in self._runs.items() if each[1].opening]
        ours = Counter(run.line.model for _, run in opening)
        waiting = {model for (model, _), queued in gauges.queued.items() if queued}
        live = {
            model
            for (model, tier), queued in gauges.queued.items()
            if queued > (ours[model] if tier is Tier.FREE else 0)
        }
        for model in waiting:
            spare[model] = 0
        for task, run in opening:
            if run.line.model in live:
                task.cancel()
        for run in self._runs.values():
            if not run.asked:
                spare[run.line.model] -= 1
        return spare

    def _start(self, batch: Batch, line: Line, key: KeyView) -> None:
        run = self._lines.begin(batch, line)
        task = asyncio.get_running_loop().create_task(self._try(run, key))
        self._runs[task] = run
        task.add_done_callback(self._tried_once)

    def _tried_once(self, task: asyncio.Task[None]) -> None:
        del self._runs[task]
        self._woken.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("a line of a batch broke", exc_info=task.exception())

    async def _try(self, run: LineRun, key: KeyView) -> None:
        """Try a line once, whatever comes of it."""
        batch, line = run.batch, run.line

        async def stage(output: bytes) -> bool:
            return await self._batches.stage(line, run.request, output)

        try:
            raw = await self._files.read(batch.input_file, line.offset, line.size)
            await self._lines.answer(run, raw, key, stage)
        except (NotStaged, InDoubt) as error:
            if isinstance(error, InDoubt):  # the next start finds out
                _log.critical("line %d of %s: %s", line.number, batch.id, error)
        except TokenworksError as error:
            await self._refused(run, error)
        except Exception:  # noqa: BLE001 - it fails like one that workers break off on
            _log.exception("line %d of %s broke", line.number, batch.id)
            await self._refused(run, broken())
        else:
            self._tried.pop((batch.id, line.number), None)
            await self._owe(lambda: self._batches.finish(line))

    async def _refused(self, run: LineRun, error: TokenworksError) -> None:
        """A try was not billed: let the line wait, or say in the error file why it is over."""
        line = run.line
        if run.closing:
            await self._owe(lambda: self._batches.unstage(line))
        tried = self._tried.setdefault((line.batch, line.number), _Tried())
        if self._waits(run, error, tried):
            return
        self._tried.pop((line.batch, line.number), None)
        output = self._lines.failed(run, error)
        await self._owe(lambda: self._batches.fail(line, output))

    def _waits(self, run: LineRun, error: TokenworksError, tried: _Tried) -> bool:
        """Whether a line is tried again, and when."""
        wait_ns = min(RETRY_NS, NS_PER_S << min(tried.refused + tried.broken, 10))
        match error:
            case QuotaExceeded():
                after_s, left_ns = error.retry_after_s, run.batch.expires_unix_ns
                left_ns -= self._clock.unix_ns()
                if after_s is None or after_s * NS_PER_S >= left_ns:
                    return False
                wait_ns = min(RETRY_NS, after_s * NS_PER_S)
            case CapacityExceeded() | WorkerUnavailable() | LedgerUnavailable() | Unauthorized():
                tried.refused += 1
            case _ if error.status >= 500:
                tried.broken += 1
                if tried.broken >= WORKER_TRIES_MAX:
                    return False
            case _:
                return False
        tried.until_ns = self._clock.now_ns() + wait_ns
        return True

    async def _owe(self, errand: Callable[[], Awaitable[None]]) -> None:
        """Tell the room something, again in the next round if it cannot be written."""
        try:
            await errand()
        except LedgerUnavailable as error:
            _log.error("batches cannot be written: %s", error)
            self._owed.append(errand)

    def _stop_lines(self, batch: BatchID) -> None:
        """Stop what is being made for a batch that has ended; what is being billed goes on."""
        for task, run in self._runs.items():
            if run.batch.id == batch and not run.closing:
                task.cancel()

    async def _pause(self) -> None:
        busy = self._runs or self._errands or self._owed
        try:
            async with asyncio.timeout(POLL_S if busy else IDLE_POLL_S):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()

    async def _stop(self) -> None:
        for task, run in self._runs.items():
            if not run.closing:
                task.cancel()
        for errand in self._errands.values():
            errand.cancel()
        while self._runs or self._errands:
            await asyncio.wait([*self._runs, *self._errands.values()])
        for owed in self._owed:
            with contextlib.suppress(LedgerUnavailable):  # the next start finds out
                await owed()
