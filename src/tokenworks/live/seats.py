"""What workers' places, and the rest of the factory, have at one moment."""

from __future__ import annotations

from collections.abc import Mapping

from tokenworks.core.gauges import Gauges, WorkerGauge
from tokenworks.core.ids import ModelName, WorkerID
from tokenworks.core.slo import Promise, Tier
from tokenworks.core.units import energy_nanodollars, hourly_nanodollars
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.ledger.work import Work
from tokenworks.live.bookkeeper import Bookkeeper
from tokenworks.live.seat import Seat


def work_of(seat: Seat, worker_ns: int) -> Work:
    """Who made an answer, and a slot's share of its pool's cost over the time."""
    config = seat.config
    slots = config.slots * max(config.workers, len(config.urls))
    energy = energy_nanodollars(config.power_w, config.energy_udollars_per_kwh, worker_ns)
    return Work(
        pool=seat.pool,
        worker=seat.worker,
        worker_ns=worker_ns,
        energy_nanodollars=energy // slots,
        capital_nanodollars=hourly_nanodollars(config.capital_udollars_per_hour, worker_ns)
        // slots,
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
