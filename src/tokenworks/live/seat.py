"""A worker's place in the factory."""

from __future__ import annotations

import msgspec

from tokenworks.catalogue.factory_config import CurvePoint, PoolConfig
from tokenworks.core.ids import PoolID, WorkerID
from tokenworks.core.ports import WorkerPort
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
