"""Workers' places in the factory, and what they and the rest of it have at one moment."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tokenworks.catalogue.factory_config import CurvePoint, PoolConfig
from tokenworks.core.gauges import Gauges, WorkerGauge
from tokenworks.core.ids import ModelName, PoolID, WorkerID
from tokenworks.core.ports import WorkerPort
from tokenworks.core.slo import Promise, Tier
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.ledger.ledger import Work
from tokenworks.live.bookkeeper import Bookkeeper
from tokenworks.perf.timing import Timing


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


def work_of(seat: Seat, worker_ns: int) -> Work:
    """Who made an answer, and a slot's share of its pool's cost over the time."""
    config = seat.config
    slots = config.slots * max(config.workers, len(config.urls))
    return Work(
        pool=seat.pool,
        worker=seat.worker,
        worker_ns=worker_ns,
        energy_nanodollars=config.energy_nanodollars(worker_ns) // slots,
        capital_nanodollars=config.capital_nanodollars(worker_ns) // slots,
    )


def gauges_of(
    seats: Mapping[WorkerID, Seat],
    dispatcher: Dispatcher,
    bookkeeper: Bookkeeper,
    promises: Mapping[Tier, Promise],
) -> Gauges:
    """What a factory has now.

    Args:
        seats: its workers' places.
        dispatcher: its brain.
        bookkeeper: of its money.
        promises: in force.
    """
    loads = dispatcher.loads()
    workers = []
    for name, seat in seats.items():
        load = loads.get(name)
        workers.append(
            WorkerGauge(
                worker=name,
                pool=seat.pool,
                model=ModelName(seat.config.model),
                state="down" if seat.client is None else "up",
                running=0 if load is None else load.running,
                slots=0 if load is None else load.slots,
            )
        )
    storing, unstored, lag_ns = bookkeeper.lag()
    return Gauges(
        workers=tuple(workers),
        queued=dispatcher.queue_lens(),
        promises=promises,
        costs=bookkeeper.costs(),
        dispatched=dispatcher.counts(),
        storing=storing,
        unstored=unstored,
        ledger_lag_ns=lag_ns,
    )
