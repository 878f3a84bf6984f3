"""What a pool can do is measured as its streams come, and promised with a fifth to spare."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.live.fake_worker import FakeWorker, Script
from tokenworks.catalogue.factory_config import check_curve
from tokenworks.core.errors import WorkerFailed
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_MS
from tokenworks.live import measure as measure_module
from tokenworks.live.measure import (
    ROUNDS,
    Point,
    batches_up_to,
    curve_of,
    measure,
    propose,
    round_down,
)
from tokenworks.live.network import WorkerClient

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class SteppingClock:
    """Each look at it takes a millisecond."""

    def __init__(self, step_ns: int = NS_PER_MS) -> None:
        self.ns = 0
        self.step_ns = step_ns

    def now_ns(self) -> int:
        self.ns += self.step_ns
        return self.ns

    def unix_ns(self) -> int:
        return self.ns


@contextlib.asynccontextmanager
async def two_workers(script: Script) -> AsyncIterator[list[tuple[FakeWorker, WorkerClient]]]:
    async with FakeWorker(script) as one, FakeWorker(script) as two:
        clients = [WorkerClient(each.host, each.port, None) for each in (one, two)]
        yield list(zip((one, two), clients, strict=True))
        for client in clients:
            client.close()


def test_every_worker_is_loaded_at_every_batch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "OUTPUT_TOKENS", 5)
    rounds = []

    async def main() -> None:
        async with two_workers(Script(tokens=None)) as pairs:
            clients = [client for _, client in pairs]
            points = await measure(clients, "foreman", 3, SteppingClock(), lambda: rounds.append(1))
            assert [point.batch for point in points] == [1, 2, 3]
            assert len(rounds) == 3 * ROUNDS
            for worker, _ in pairs:
                assert len(worker.received) == 1 + ROUNDS * (1 + 2 + 3)  # one to warm up
                asked = worker.received[0].json
                assert asked["ignore_eos"] is True
                assert asked["max_tokens"] == 5
            for point in points:
                assert 1 <= point.tokens_per_s <= 5_000
                assert point.ttft_ms >= 0
                assert point.throughput_tokens_per_s > 0

    run(main())


def test_a_clock_that_stands_still_breaks_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_module, "OUTPUT_TOKENS", 2)

    async def main() -> None:
        async with two_workers(Script(tokens=None)) as pairs:
            clients = [client for _, client in pairs]
            (point,) = await measure(clients, "m", 1, SteppingClock(0), lambda: None)
            assert point.ttft_ms == 0

    run(main())


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (Script(status=500), "answered 500"),
        (Script(tokens=["one"]), "no more than one token"),
        (Script(tokens=[]), "no more than one token"),
        (Script(tokens=["a", "b"], break_after=1), "broke off"),
    ],
)
def test_a_worker_that_fails_is_said_so(run: Run, script: Script, said: str) -> None:
    async def main() -> None:
        async with two_workers(script) as pairs:
            with pytest.raises(WorkerFailed, match=said):
                await measure(
                    [client for _, client in pairs], "m", 1, SteppingClock(), lambda: None
                )

    run(main())


class TornClient:
    """Hands out a stream in pieces of any size."""

    def __init__(self, text: bytes, size: int) -> None:
        self.parts = [text[i : i + size] for i in range(0, len(text), size)]

    async def post_stream(self, path: str, body: bytes, content_type: str = "") -> TornClient:
        self.status, self.content_type = 200, b""
        return self

    async def read(self) -> bytes:
        return self.parts.pop(0) if self.parts else b""


@pytest.mark.parametrize("size", [1, 2, 17, 18, 19, 40, 10_000])
def test_tokens_are_counted_however_the_stream_is_torn(size: int) -> None:
    text = b'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}\n\n'
    text += b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n' * 7
    client: Any = TornClient(text, size)
    timed = asyncio.run(measure_module._stream(client, "m", 0, SteppingClock()))
    assert timed.tokens == 7


# Promises.


def points_of(speeds: list[int], ttft_ms: float = 10.0) -> list[Point]:
    return [
        Point(batch=batch, tokens_per_s=speed, ttft_ms=ttft_ms, throughput_tokens_per_s=1)
        for batch, speed in zip(batches_up_to(2 ** (len(speeds) - 1)), speeds, strict=True)
    ]


def test_promises_are_four_fifths_of_the_speed_at_each_tiers_batch() -> None:
    proposals = propose(points_of([1000, 800, 500, 260]))
    assert [(p.tier, p.interactivity_tokens_per_s, p.batch) for p in proposals] == [
        (Tier.FREE, 200, 8),
        (Tier.MEDIUM, 200, 8),
        (Tier.HIGH, 400, 4),
        (Tier.PREMIUM, 640, 2),
        (Tier.ULTRA, 800, 1),
    ]
    assert [p.ttft_ms for p in proposals] == [640, 320, 200, 200, 200]


@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=7),
    st.floats(0, 10**6, allow_nan=False),
)
def test_promises_rise_with_tiers_and_curves_fall_with_batches(
    speeds: list[int], ttft_ms: float
) -> None:
    points = points_of(speeds, ttft_ms)
    proposals = propose(points)
    assert [p.tier for p in proposals] == list(Tier)
    interactivity = [p.interactivity_tokens_per_s for p in proposals]
    assert interactivity == sorted(interactivity)
    assert min(interactivity) >= 1
    ttfts = [p.ttft_ms for p in proposals]
    assert ttfts == sorted(ttfts, reverse=True)
    assert max(interactivity) <= max(speeds)
    curve = curve_of(points)
    check_curve(curve, "here")
    assert [speed for _, speed in curve] == sorted((s for _, s in curve), reverse=True)


@given(st.integers(0, 10**12))
def test_a_round_number_is_below_and_near(speed: int) -> None:
    found = round_down(speed)
    assert found <= max(1, speed)
    assert found * 11 >= speed * 10
    assert len(str(found).rstrip("0")) <= 2


@given(st.integers(1, 4096))
def test_batches_rise_from_one_to_the_slots(slots: int) -> None:
    batches = batches_up_to(slots)
    assert batches[0] == 1
    assert batches[-1] == slots
    assert all(one < two <= 2 * one for one, two in itertools.pairwise(batches))
