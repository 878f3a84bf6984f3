"""CPU time that the gateway takes for each chunk of a stream, in one process and without a socket.

A worker's answer is handed to a connection chunk by chunk, and what that writes is dropped, so that
parsing, counting, timing and forwarding are left. ``plain`` is what llama.cpp and vLLM send;
``batched`` has four events in each read, as under load; ``decoded`` has a role in each chunk, which
is the careful way; ``whole`` is for callers who ask for no stream; ``parser`` is ``EventStream``
alone. The last line is JSON: microseconds per chunk, the best of several rounds, and per request
without its chunks.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from typing import Any

from tokenworks.core.ids import KeyID, ModelName, PoolID, TenantID, WorkerID
from tokenworks.core.orders import KeyView, Order, Outcome, Receipt
from tokenworks.core.ports import Sink
from tokenworks.core.slo import Tier
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.connection import Connection
from tokenworks.gateway.event_stream import EventStream
from tokenworks.gateway.http_limits import LIMITS

MODEL = ModelName("foreman")
KEY = KeyView(key=KeyID("k"), tenant=TenantID("t"), tier_default=Tier.HIGH)
HEAD = (
    '"created":1700000000,"id":"chatcmpl-VQE1clxFtc6aR6JOL06DNpHcs0fOHMhI","model":"foreman",'
    '"system_fingerprint":"b0-unknown","object":"chat.completion.chunk"'
)
ROUNDS = 5


def chunk(delta: str, finish: str = "null") -> bytes:
    """A chunk as llama.cpp writes it."""
    choice = f'{{"finish_reason":{finish},"index":0,"delta":{delta}}}'
    return f'data: {{"choices":[{choice}],{HEAD}}}\n\n'.encode()


PLAIN = chunk('{"content":" factory"}')
WITH_ROLE = chunk('{"role":"assistant","content":" factory"}')
CLOSING = (
    chunk("{}", '"stop"')
    + (
        f'data: {{"choices":[],{HEAD},"usage":{{"completion_tokens":9,"prompt_tokens":9,'
        '"total_tokens":18,"prompt_tokens_details":{"cached_tokens":0}}}\n\ndata: [DONE]\n\n'
    ).encode()
)


class Clock:
    """The machine's own clock: reading it is part of the cost."""

    def now_ns(self) -> int:
        """See ``core.ports.Clock``."""
        return time.monotonic_ns()

    def unix_ns(self) -> int:
        """See ``core.ports.Clock``."""
        return time.time_ns()


class Delivery:
    """An answer that is there already; implements ``core.ports.Delivery``."""

    def __init__(self, reads: list[bytes]) -> None:
        self._reads = iter(reads)

    def pipe(self, sink: Sink) -> None:
        """See ``core.ports.Delivery``."""
        for data in self._reads:
            sink.data(data)
        sink.ended(None)

    def pause(self) -> None:
        """See ``core.ports.Delivery``."""

    def resume(self) -> None:
        """See ``core.ports.Delivery``."""

    def abort(self) -> None:
        """See ``core.ports.Delivery``."""

    async def settle(self, outcome: Outcome) -> Receipt:
        """See ``core.ports.Delivery``."""
        assert outcome.ending == "done", outcome
        return Receipt(
            tier_asked=Tier.HIGH,
            tier_delivered=Tier.HIGH,
            charged_nanodollars=1,
            pool=PoolID("p"),
            worker=WorkerID("w"),
        )


class Desk:
    """Opens such answers; implements ``core.ports.Desk``."""

    def __init__(self, reads: list[bytes]) -> None:
        self._reads = reads

    def key_of(self, secret_sha256: str) -> KeyView | None:
        """See ``core.ports.Desk``."""
        return KEY if secret_sha256 else None

    def models(self) -> tuple[ModelName, ...]:
        """See ``core.ports.Desk``."""
        return (MODEL,)

    def whole_models(self) -> frozenset[ModelName]:
        """See ``core.ports.Desk``."""
        return frozenset()

    def output_tokens_default(self, model: ModelName, tier: Tier) -> int:  # noqa: ARG002
        """See ``core.ports.Desk``."""
        return 100

    def healthy(self) -> tuple[bool, str]:
        """See ``core.ports.Desk``."""
        return True, ""

    async def open(self, order: Order) -> Delivery:  # noqa: ARG002
        """See ``core.ports.Desk``."""
        return Delivery(self._reads)


class Transport(asyncio.Transport):
    """A socket that drops what it is given."""

    def write(self, data: Any) -> None:
        """See ``asyncio.Transport``."""

    def is_closing(self) -> bool:
        """See ``asyncio.Transport``."""
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See ``asyncio.Transport``."""


class Server:
    """Implements ``gateway.connection.Server``."""

    limits = LIMITS
    date = b""
    draining = False
    now_s = 0.0

    def __init__(self, application: Gateway) -> None:
        self.application = application

    def opened(self, connection: Connection) -> bool:  # noqa: ARG002
        """See ``gateway.connection.Server``."""
        return True

    def closed(self, connection: Connection) -> None:
        """See ``gateway.connection.Server``."""


async def served_twice_us(reads: list[bytes], *, stream: bool) -> float:
    """CPU time of the second of two requests of a connection."""
    gateway = Gateway(Desk(reads), Clock())
    messages = [{"role": "user", "content": "What does a token factory make?"}]
    body = json.dumps({"model": MODEL, "messages": messages, "stream": stream}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: factory\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer secret\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    connection = Connection(Server(gateway))
    connection.connection_made(Transport())
    us = 0.0
    for _ in range(2):
        began = time.thread_time_ns()
        connection.data_received(head.encode() + body)
        await asyncio.wait(gateway.serving.values())
        us = (time.thread_time_ns() - began) / 1e3
    return us


def served_us(reads: list[bytes], *, stream: bool) -> float:
    """CPU time of one request."""
    gc.collect()
    return min(asyncio.run(served_twice_us(reads, stream=stream)) for _ in range(ROUNDS))


def parsed_us(reads: list[bytes]) -> float:
    """CPU time of reading a stream."""
    best = float("inf")
    for _ in range(ROUNDS):
        events = EventStream()
        began = time.thread_time_ns()
        for data in reads:
            events.feed(data)
        best = min(best, (time.thread_time_ns() - began) / 1e3)
        assert events.done
    return best


def main() -> None:
    """Run all cases and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=20_000, help="chunks of each answer")
    chunks = parser.parse_args().chunks
    bare = min(served_us([PLAIN, CLOSING], stream=True) for _ in range(20))
    cases = {
        "plain": served_us([*[PLAIN] * chunks, CLOSING], stream=True),
        "batched": served_us([*[PLAIN * 4] * (chunks // 4), CLOSING], stream=True),
        "decoded": served_us([*[WITH_ROLE] * chunks, CLOSING], stream=True),
        "whole": served_us([*[PLAIN] * chunks, CLOSING], stream=False),
    }
    figures = {name: round((us - bare) / chunks, 2) for name, us in cases.items()}
    figures["parser"] = round(parsed_us([*[PLAIN] * chunks, CLOSING]) / chunks, 2)
    for name, us in figures.items():
        print(f"{name:8} {us:6.2f} us per chunk")
    print(f"request  {bare:6.1f} us without its chunks")
    result = {"chunks": chunks, "us_per_chunk": figures, "us_per_request": round(bare, 1)}
    print(json.dumps({"bench": "gateway_stream", **result}))


if __name__ == "__main__":
    main()
