"""The work that an answer took."""

from __future__ import annotations

import msgspec

from tokenworks.core.ids import PoolID, WorkerID


class Work(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who made an answer, and what that cost.

    Attributes:
        pool: where it was made.
        worker: who made it.
        worker_ns: its time on the worker.
        energy_nanodollars: its share of the worker's electricity.
        capital_nanodollars: its share of the worker's machines.
    """

    pool: PoolID
    worker: WorkerID
    worker_ns: int
    energy_nanodollars: int
    capital_nanodollars: int
