"""Measures what a pool's workers do at each batch size, and what they could promise."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from tokenworks.catalogue.factory_config import CurvePoint
from tokenworks.core.errors import WorkerFailed
from tokenworks.core.ports import Clock, WorkerPort
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_MS, NS_PER_S

OUTPUT_TOKENS: Final = 96
ROUNDS: Final = 3
PROMISE_PERCENT: Final = 80
"""A promise is this share of the measured speed, so that noise does not break it."""
BATCH_OF_TIER: Final = {
    Tier.ULTRA: 1,
    Tier.PREMIUM: 2,
    Tier.HIGH: 4,
    Tier.MEDIUM: 8,
    Tier.FREE: 16,
}
"""The batch at which a tier's requests are to run: what is dear runs with few beside it."""
TTFT_FACTOR: Final = {
    Tier.ULTRA: 4,
    Tier.PREMIUM: 8,
    Tier.HIGH: 16,
    Tier.MEDIUM: 32,
    Tier.FREE: 64,
}
"""TTFT promises as multiples of the measured one: what is cheap may queue."""


_MARK: Final = b'"delta":{"content"'
"""In every chunk of the embedded engine that holds a token, once."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """Speed at one batch size.

    Attributes:
        batch: streams on each worker.
        tokens_per_s: speed one user sees, median over streams.
        ttft_ms: time to first token, median.
        throughput_tokens_per_s: all streams of all workers together.
    """

    batch: int
    tokens_per_s: int
    ttft_ms: float
    throughput_tokens_per_s: int


class _Timed(msgspec.Struct):
    ttft_ns: int
    decode_ns: int
    tokens: int


def batches_up_to(slots: int) -> tuple[int, ...]:
    """1, 2, 4, ... and the number of slots.

    >>> batches_up_to(12)
    (1, 2, 4, 8, 12)
    """
    found = [1]
    while found[-1] * 2 < slots:
        found.append(found[-1] * 2)
    return tuple(found) if found[-1] == slots else (*found, slots)


async def measure(
    clients: Sequence[WorkerPort],
    model: str,
    slots: int,
    clock: Clock,
    progress: Callable[[], None],
) -> list[Point]:
    """Load every worker of a pool at once, batch by batch.

    Args:
        clients: one per worker, all idle.
        model: the model's name.
        slots: the largest batch.
        clock: time.
        progress: called after each of ``len(batches_up_to(slots)) * ROUNDS`` rounds.

    Raises:
        WorkerFailed: a worker broke off.
    """
    await asyncio.gather(*(_stream(client, model, 0, clock) for client in clients))
    points = []
    for batch in batches_up_to(slots):
        timed: list[_Timed] = []
        spans_ns = 0
        for turn in range(ROUNDS):
            began_ns = clock.now_ns()
            timed += await asyncio.gather(
                *(
                    _stream(client, model, 1000 * turn + i, clock)
                    for client in clients
                    for i in range(batch)
                )
            )
            spans_ns += max(1, clock.now_ns() - began_ns)
            progress()
        timed = [each for each in timed if each.tokens > 1]
        if not timed:
            raise WorkerFailed("The worker made no more than one token per answer.")
        # An answer that came all at once is as slow as the wait for it.
        speeds = [(t.tokens - 1) * NS_PER_S / (t.decode_ns or t.ttft_ns or 1) for t in timed]
        points.append(
            Point(
                batch=batch,
                tokens_per_s=max(1, int(statistics.median(speeds))),
                ttft_ms=round(statistics.median(t.ttft_ns for t in timed) / NS_PER_MS, 1),
                throughput_tokens_per_s=sum(t.tokens for t in timed) * NS_PER_S // spans_ns,
            )
        )
    return points


async def _stream(client: WorkerPort, model: str, salt: int, clock: Clock) -> _Timed:
    """One answer of OUTPUT_TOKENS tokens, timed as they come."""
    body = msgspec.json.encode(
        {
            "model": model,
            "messages": [{"role": "user", "content": f"Report {salt}: what can you do?"}],
            "max_tokens": OUTPUT_TOKENS,
            "ignore_eos": True,
            "stream": True,
        }
    )
    began_ns = clock.now_ns()
    stream = await client.post_stream("/v1/chat/completions", body)
    if stream.status != 200:
        said = await stream.read_all()
        raise WorkerFailed(f"The worker answered {stream.status}: {said[:200]!r}.")
    first_ns = last_ns = 0
    tokens = 0
    tail = b""
    while data := await stream.read():
        # A chunk may come in two pieces; the tail is too short to hold a whole mark.
        came = (tail + data).count(_MARK)
        tail = (tail + data)[1 - len(_MARK) :]
        if came:
            last_ns = clock.now_ns()
            first_ns = first_ns or last_ns
            tokens += came
    return _Timed(
        ttft_ns=max(0, first_ns - began_ns), decode_ns=max(0, last_ns - first_ns), tokens=tokens
    )


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """A promise that a tier could make on this machine."""

    tier: Tier
    interactivity_tokens_per_s: int
    ttft_ms: int
    batch: int


def propose(points: Sequence[Point]) -> list[Proposal]:
    """Promises from measured points: PROMISE_PERCENT of the speed at each tier's batch.

    Interactivity never falls and TTFT never rises from tier to tier.
    """
    assert points
    proposals: list[Proposal] = []
    ttft_one_ms = max(1.0, points[0].ttft_ms)
    floor = 1
    for tier in Tier:
        fitting = [point for point in points if point.batch <= BATCH_OF_TIER[tier]]
        point = fitting[-1]
        floor = max(floor, round_down(point.tokens_per_s * PROMISE_PERCENT // 100))
        proposals.append(
            Proposal(
                tier=tier,
                interactivity_tokens_per_s=floor,
                ttft_ms=max(200, int(ttft_one_ms * TTFT_FACTOR[tier])),
                batch=point.batch,
            )
        )
    return proposals


def round_down(speed: int) -> int:
    """Down to two leading digits, at least 1: a promise is a round number.

    >>> [round_down(n) for n in (0, 7, 123, 4567)]
    [1, 7, 120, 4500]
    """
    scale = int("1".ljust(len(str(speed)) - 1, "0"))
    return max(1, speed // scale * scale)


def curve_of(points: Sequence[Point]) -> tuple[CurvePoint, ...]:
    """The speed curve that the dispatcher reads; speeds never rise with the batch."""
    curve: list[CurvePoint] = []
    for point in points:
        top = curve[-1][1] if curve else point.tokens_per_s
        curve.append((point.batch, min(top, point.tokens_per_s)))
    return tuple(curve)
