"""Where KV blocks are kept when HBM is full, and when fetching them beats computing them anew."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tokenworks.catalogue.records import Storage


class Fetch(msgspec.Struct, frozen=True, kw_only=True):
    """What getting a cached prefix from a tier costs.

    Attributes:
        tier: the record's name.
        fetch_ms: until it is in HBM.
        sequences: of this size that the tier holds, per accelerator.
        saved_ms: against computing it anew; negative where computing is faster.
    """

    tier: str
    fetch_ms: float
    sequences: float
    saved_ms: float


def fetches(
    tiers: Sequence[Storage], sequence_bytes: float, gpus: int, prefill_ms: float
) -> list[Fetch]:
    """Each tier beside HBM, fastest level first.

    Args:
        tiers: of the catalogue.
        sequence_bytes: of the prefix's cache.
        gpus: of the worker: they fetch at one time, each its part.
        prefill_ms: that computing the prefix takes.

    Source: levels G1 to G4 as in NVIDIA Dynamo's KV block manager; time is latency plus bytes over
    bandwidth.

    >>> host = Storage(name="g2", kind="storage", title="Host", provenance={}, level=2,
    ...                bytes_per_accelerator=1e12, bandwidth_bytes_per_s_per_accelerator=1e11,
    ...                latency_s=1e-3)
    >>> found, = fetches([host], 8e9, 8, 500.0)
    >>> found.fetch_ms, found.sequences, found.saved_ms  # 1 + 8e9 / 8 / 1e11 s
    (11.0, 1000.0, 489.0)
    """
    found = []
    for tier in sorted(tiers, key=lambda each: each.level):
        seconds = tier.latency_s
        seconds += sequence_bytes / gpus / tier.bandwidth_bytes_per_s_per_accelerator
        found.append(
            Fetch(
                tier=tier.name,
                fetch_ms=seconds * 1e3,
                sequences=tier.bytes_per_accelerator / (sequence_bytes / gpus),
                saved_ms=prefill_ms - seconds * 1e3,
            )
        )
    return found


def handover_ms(sequence_bytes: float, bandwidth_bytes_per_ms: float, gpus: int) -> float:
    """Moving a prompt's cache from a prefill worker to a decode worker, in milliseconds.

    Source: DistServe (arXiv:2401.09670, section 3.3): bytes over the links of all GPUs that take
    part, each moving its own part.

    >>> handover_ms(8e9, 5e7, 8)
    20.0
    """
    return sequence_bytes / gpus / bandwidth_bytes_per_ms
