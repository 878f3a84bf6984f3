"""What a running factory has at one moment, for those who watch it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from tokenworks.core.ids import ModelName, PoolID, WorkerID
from tokenworks.core.slo import Promise, Tier

WorkerState = Literal["up", "down"]
"""Of a pool that grows, those that were not started are down, too."""


class WorkerGauge(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's place.

    Attributes:
        worker: its name.
        pool: its pool.
        model: what it serves.
        state: whether it can take requests.
        running: requests that it has.
        slots: requests that it can have at once; 0 while it is down.
    """

    worker: WorkerID
    pool: PoolID
    model: ModelName
    state: WorkerState
    running: int
    slots: int


class Gauges(msgspec.Struct, frozen=True, kw_only=True):
    """A factory at one moment. No tenant, no key and no content is in it.

    Attributes:
        workers: all that it may have, by pool and name.
        queued: requests that wait, by model and tier.
        promises: in force, by tier.
        costs: what pools have cost since the factory began, idle or not: nano-dollars of energy
            and of capital.
        dispatched: what the dispatcher did since then, by name.
        storing: appends to the ledger that are not durable yet.
        unstored: ledger entries that could not be stored and will be tried again.
        ledger_lag_ns: age of the oldest entry that is not durable yet; 0 if there is none.
    """

    workers: tuple[WorkerGauge, ...]
    queued: Mapping[tuple[ModelName, Tier], int]
    promises: Mapping[Tier, Promise]
    costs: Mapping[PoolID, tuple[int, int]]
    dispatched: Mapping[str, int]
    storing: int
    unstored: int
    ledger_lag_ns: int
