"""What the twin's tests share: small factories, workloads, and a dispatcher that takes turns."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.ids import ModelName, PoolID, PriceID, RequestID, TenantID, WorkerID
from tokenworks.core.slo import Promise, Tier
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.dispatch.commands import Abort, Command, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import (
    Arrived,
    Configured,
    Event,
    Failed,
    Finished,
    Limits,
    Withdrawn,
    WorkerDown,
    WorkerUp,
)
from tokenworks.perf.timing import FS_PER_NS, Timing
from tokenworks.twin.records import Scenario, TwinRequest, WorkerSpec

MODEL = ModelName("m")
TRACE_300 = Path(__file__).parent / "data" / "mooncake_conversation_300.jsonl"

TIMING = Timing(
    launch_fs=2_500_000 * FS_PER_NS,
    sequence_fs=20_000 * FS_PER_NS,
    context_token_fs=15 * FS_PER_NS,
    prefill_token_fs=10_000 * FS_PER_NS,
    prefill_context_fs=100,
)
"""A large model on a fast machine: 2.5 ms, 20 us a sequence, 100k prefill tokens a second."""

TRACE_WORKER = WorkerSpec(
    worker=WorkerID("w"),
    pool=PoolID("p"),
    model=MODEL,
    timing=TIMING,
    slots=256,
    kv_blocks=3_000,
    block_tokens=512,
    batch_tokens_max=8_192,
    context_tokens_typical=12_000,
)


def worker(name: str = "w", **changes: Any) -> WorkerSpec:
    """A small engine of blocks of 16 tokens."""
    small = {"slots": 8, "kv_blocks": 200, "block_tokens": 16, "batch_tokens_max": 256}
    return msgspec.structs.replace(
        TRACE_WORKER, worker=WorkerID(name), context_tokens_typical=500, **(small | changes)
    )


def workers(count: int, spec: WorkerSpec) -> tuple[WorkerSpec, ...]:
    return tuple(
        msgspec.structs.replace(spec, worker=WorkerID(f"w{index:03d}")) for index in range(count)
    )


def configured(*, queue_len_max: int = 100_000, patience_ns: int = 10**9 * NS_PER_S) -> Configured:
    promise = Promise(
        ttft_ns=10 * NS_PER_S,
        interactivity_tokens_per_s=1,
        grace_ns=0,
        patience_ns=patience_ns,
        output_tokens_default=256,
    )
    return Configured(
        promises=dict.fromkeys(Tier, promise),
        limits=Limits(queue_len_max=dict.fromkeys(Tier, queue_len_max)),
    )


def scenario(*specs: WorkerSpec, settings: Configured | None = None) -> Scenario:
    settings = settings or configured()
    book = PriceBook(
        price_id=PriceID("test"),
        effective=datetime.date(2026, 1, 1),
        ad_income_udollars_per_mtok=0,
        promises=settings.promises,
        credits_ppm=dict.fromkeys(Tier, 0),
        prices={},
        off_peak=(),
        batch_rate_ppm=1_000_000,
        discounts={},
        text="",
    )
    return Scenario(name="test", workers=specs, configured=settings, book=book)


def request(number: int, **changes: Any) -> TwinRequest:
    """A request of 100 tokens that makes 20, 1 ms after the one before it."""
    plain = {
        "request": RequestID(f"r{number}"),
        "tenant": TenantID("t"),
        "model": MODEL,
        "tier": Tier.HIGH,
        "at_ns": number * NS_PER_MS,
        "input_tokens": 100,
        "output_tokens": 20,
        "output_tokens_max": 4_096,
    }
    return TwinRequest(**(plain | changes))


def trace(lines: Iterable[str], *, faster: int = 1) -> list[TwinRequest]:
    """The rows of a Mooncake trace; its hashes of blocks of 512 tokens are chained already."""
    requests = []
    for number, line in enumerate(lines):
        row = json.loads(line)
        full = row["input_length"] // 512
        requests.append(
            request(
                number,
                at_ns=row["timestamp"] * NS_PER_MS // faster,
                input_tokens=row["input_length"],
                output_tokens=max(1, row["output_length"]),
                blocks=tuple(row["hash_ids"][:full]),
            )
        )
    return requests


class TakesTurns(Dispatcher):
    """Sends each request to the next worker, at once; it costs next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, Event]] = []
        self._names: list[WorkerID] = []
        self._turn = 0
        self._where: dict[RequestID, tuple[WorkerID, int]] = {}

    def handle(self, now_ns: int, event: Event) -> list[Command]:
        if isinstance(event, Arrived):
            return [self._next(event.request, 1)]
        if isinstance(event, Finished):
            del self._where[event.request]
        elif isinstance(event, WorkerUp):
            self._names.append(event.worker)
        elif isinstance(event, Withdrawn):
            name, _ = self._where.pop(event.request)
            return [Abort(request=event.request, worker=name, reason="withdrawn", held_ns=0)]
        elif isinstance(event, Failed):
            if event.started:
                del self._where[event.request]
            else:
                return [self._next(event.request, self._where[event.request][1] + 1)]
        elif isinstance(event, WorkerDown):
            self._names.remove(event.worker)
        return []

    def _next(self, name: RequestID, attempt: int) -> Send:
        self._turn += 1
        chosen = self._names[self._turn % len(self._names)]
        self._where[name] = chosen, attempt
        return Send(
            request=name,
            worker=chosen,
            attempt=attempt,
            reason="least_loaded",
            running=0,
            cap=0,
            candidates=0,
            hit_blocks=0,
            waited_ns=0,
        )
