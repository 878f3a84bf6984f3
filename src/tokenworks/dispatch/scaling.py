"""When a pool wants more workers, or fewer: by how long requests wait against what was promised.

**Pressure** is the largest part of a TTFT promise that any request of the model has waited, since
the last look or until now. Requests that are turned away have waited for all of it. One that needs
what only some workers have counts for pools that have such a worker: no other pool can help it. A
pool of which no worker is up may have what it needs.

**More.** At the second look in a row at which half of a promise was spent waiting, a quarter more
workers are wanted, at least one. While they start nothing more is asked for, as what waits now is
what they are started for, nor in the ten seconds in which they serve it; those that do not come up
in time are asked for again.

**Fewer.** A pool whose requests have hardly waited for a minute, and whose other workers could bear
all that runs at little more than half of their caps, gives its least loaded worker back: that is
sent nothing more, and stops when it is empty. One at a time, each after a calm minute of its own.

One that is wanted again while it still ends what it has is taken back at once, before any other is
asked for: it is up, and its caches are warm.

**No flapping.** More and fewer have thresholds far apart, and where a worker that was given back is
wanted again within ten minutes, the calm that must come before the next one is twice as long, up to
sixteen times.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from tokenworks.core.ids import ModelName, PoolID
from tokenworks.core.units import NS_PER_S, PPM
from tokenworks.dispatch.commands import Scale
from tokenworks.dispatch.events import PoolScale
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.waiting import Line
from tokenworks.dispatch.workers import Worker

LOOK_NS: Final = NS_PER_S
"""Between two looks."""
PRESSED_PPM: Final = PPM // 2
CALM_PPM: Final = PPM // 10
PRESSED_LOOKS: Final = 2
STEP_SHIFT: Final = 2
"""A quarter more."""
CALM_NS: Final = 60 * NS_PER_S
CALM_DOUBLINGS_MAX: Final = 4
FLAP_NS: Final = 600 * NS_PER_S
ROOM_PERCENT: Final = 60
"""Part of their caps up to which the others may be filled by what runs when one is given back."""
SETTLE_NS: Final = 10 * NS_PER_S
"""After new workers came up, so long no pressure counts: it is of what waited for them."""
START_GRACE_NS: Final = 30 * NS_PER_S
"""Beyond twice its start-up time, a worker that was asked for and did not come is given up."""


class PoolMemory(msgspec.Struct, kw_only=True):
    """What is remembered of a pool.

    Attributes:
        target: workers that were asked for and are not all up yet; None if none are.
        changed_ns: when more or fewer were last wanted.
        settled_ns: when what waited for workers that have come up is served.
        calm_since_ns: since when nobody has waited for long.
        pressed: looks in a row that found pressure.
        retired_ns: when a worker was last given back; None if none was.
        doublings: of the calm that must come before.
        needs_ppm: the pressure, since the last look, of those that need something and that its
            workers may serve; unset if there were none.
    """

    target: int | None = None
    changed_ns: int = 0
    settled_ns: int = 0
    calm_since_ns: int = 0
    pressed: int = 0
    retired_ns: int | None = None
    doublings: int = 0
    needs_ppm: int | UnsetType = UNSET


class ScalingMemory(msgspec.Struct, kw_only=True):
    """All that is remembered: when to look, each pool, and the pressure since the last look.

    That is of those who need nothing that only some workers have.
    """

    next_ns: int = 0
    pressure_ppm: dict[ModelName, int] = {}
    pools: dict[PoolID, PoolMemory] = {}


class Wish(NamedTuple):
    """What a look has come to for one pool.

    Attributes:
        pool: which.
        workers: how many it wants.
        up: how many it has.
        pressure_ppm: see the module's text.
        retire: who is to be given back; None where more are wanted.
    """

    pool: PoolScale
    workers: int
    up: int
    pressure_ppm: int
    retire: Worker | None

    def command(self) -> Scale:
        """It, as a driver is told where more are wanted."""
        return Scale(
            pool=self.pool.pool,
            workers=self.workers,
            up=self.up,
            reason="queue_wait",
            worker=None,
            pressure_ppm=self.pressure_ppm,
        )


class Scaler:
    """Looks at lines and workers now and then; see the module's text.

    Args:
        pools: what may be scaled.
        ttft_ns: promised, by tier rank.
        memory: what it remembers; the caller keeps it.
    """

    __slots__ = ("_pools", "_ttft_ns", "memory")

    def __init__(
        self, pools: Sequence[PoolScale], ttft_ns: Sequence[int], memory: ScalingMemory
    ) -> None:
        self._pools, self._ttft_ns, self.memory = pools, ttft_ns, memory
        known = memory.pools
        memory.pools = {pool.pool: known.get(pool.pool) or PoolMemory() for pool in pools}

    def waited(self, fleet: Fleet, request: Request, waited_ns: int) -> None:
        """A request was sent, or turned away, after so long."""
        ppm, model = waited_ns * PPM // max(1, self._ttft_ns[request.rank]), request.model
        if request.needs is not None:
            may = fleet.serving(request.needs)
            for scale in self._pools:
                own = fleet.pools.get(scale.pool)
                if scale.model == model and (own is None or may & own):
                    pool = self.memory.pools[scale.pool]
                    pool.needs_ppm = max(ppm, pool.needs_ppm or 0)
            return
        pressure = self.memory.pressure_ppm
        if ppm > pressure.get(model, -1):
            pressure[model] = ppm

    def look(self, fleets: Mapping[ModelName, Fleet], now_ns: int) -> list[Wish]:
        """What pools want now; whoever asks does it.

        Args:
            fleets: by model.
            now_ns: at least ``memory.next_ns``.
        """
        memory, wishes = self.memory, []
        memory.next_ns = now_ns + LOOK_NS
        for scale in self._pools:
            fleet = fleets.get(scale.model)
            if fleet is not None:
                pool = memory.pools[scale.pool]
                pressure = max(
                    memory.pressure_ppm.get(scale.model, 0),
                    pool.needs_ppm or 0,
                    self._waiting_ppm(fleet, scale.pool, now_ns),
                )
                wish = _wish(scale, pool, fleet, pressure, now_ns)
                if wish is not None:
                    wishes.append(wish)
        memory.pressure_ppm = {}
        for pool in memory.pools.values():
            pool.needs_ppm = UNSET
        return wishes

    def is_watching(self, fleets: Mapping[ModelName, Fleet]) -> bool:
        """Whether a look may come to something although nothing happens until then."""
        for scale in self._pools:
            pool, fleet = self.memory.pools[scale.pool], fleets.get(scale.model)
            if fleet is None:
                continue
            up = sum(worker.pool == scale.pool for worker in fleet.workers)
            waits = fleet.queued or fleet.restricted
            if waits or up > scale.workers_min or pool.pressed:
                return True
        return False

    def _waiting_ppm(self, fleet: Fleet, pool: PoolID, now_ns: int) -> int:
        """The largest part of its promise that anybody who waits for a pool has spent with that."""
        return max(
            (
                (now_ns - line.oldest().arrived_ns) * PPM // max(1, self._ttft_ns[rank])
                for rank, line in _lines(fleet, pool)
            ),
            default=0,
        )


def given_back(worker: Worker, up: int) -> Scale:
    """The command that stops a worker which is empty, and leaves so many of its pool."""
    return Scale(
        pool=worker.pool,
        workers=up,
        up=up,
        reason="idle",
        worker=worker.worker,
        pressure_ppm=0,
    )


def _lines(fleet: Fleet, pool: PoolID) -> Iterator[tuple[int, Line]]:
    """The lines in which somebody waits whom a pool may serve, with their tiers' ranks."""
    own = fleet.pools.get(pool)
    some = (lines for may, lines in fleet.restricted.items() if own is None or may & own)
    for lines in itertools.chain((fleet.lines,), some):
        for rank, line in enumerate(lines):
            if len(line):
                yield rank, line


def _wish(
    scale: PoolScale, pool: PoolMemory, fleet: Fleet, pressure_ppm: int, now_ns: int
) -> Wish | None:
    """What one pool wants; writes down what it was given."""
    workers = [worker for worker in fleet.workers if worker.pool == scale.pool]
    up = len(workers)
    late_ns = pool.changed_ns + 2 * scale.start_ns + START_GRACE_NS
    if pool.target is not None and up >= pool.target:
        pool.target, pool.settled_ns = None, now_ns + SETTLE_NS
    elif pool.target is not None and now_ns >= late_ns:
        pool.target = None
    pool.pressed = pool.pressed + 1 if pressure_ppm >= PRESSED_PPM else 0
    if pressure_ppm >= CALM_PPM:
        pool.calm_since_ns = now_ns
    if now_ns < pool.settled_ns:
        pool.pressed = 0
    if pool.target is not None:
        return None
    if pool.pressed >= PRESSED_LOOKS and up < scale.workers_max:
        pool.target = min(scale.workers_max, up + max(1, up >> STEP_SHIFT))
        again = pool.retired_ns is not None and now_ns - pool.retired_ns < FLAP_NS
        pool.doublings = min(pool.doublings + 1, CALM_DOUBLINGS_MAX) if again else 0
        pool.changed_ns, pool.pressed = now_ns, 0
        return Wish(scale, pool.target, up, pressure_ppm, None)
    calm_ns = now_ns - max(pool.calm_since_ns, pool.changed_ns)
    if up > scale.workers_min and calm_ns >= CALM_NS << pool.doublings:
        spare = min(workers, key=lambda each: (each.load, -each.index))
        running = sum(len(each.running) for each in workers)
        if running * 100 <= ROOM_PERCENT * sum(each.limit for each in workers if each is not spare):
            pool.changed_ns = pool.retired_ns = now_ns
            return Wish(scale, up - 1, up, pressure_ppm, spare)
    return None
