"""A desk that does as it is told, a clock that stands still, and a caller made by hand.

Nothing here sleeps: a delivery follows its script, and a step of the script may be a function, so
that a test decides what happens between two reads.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import msgspec

from tokenworks.core.errors import TokenworksError, WorkerFailed
from tokenworks.core.ids import KeyID, ModelName, PoolID, RequestID, TenantID, WorkerID
from tokenworks.core.orders import KeyView, Order, Outcome, Receipt
from tokenworks.core.ports import Shelved
from tokenworks.core.slo import Tier
from tokenworks.gateway.app import Gateway

SECRET = b"tw-secret"
MODEL = ModelName("foreman")
KEY = KeyView(key=KeyID("k1"), tenant=TenantID("acme"), tier_default=Tier.HIGH)
CHAT = "/v1/chat/completions"


class FakeClock:
    """Time that moves when a test says so."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000

    def now_ns(self) -> int:
        return self.ns

    def unix_ns(self) -> int:
        return 1_700_000_000_000_000_000 + self.ns

    def advance_ms(self, ms: int) -> None:
        self.ns += ms * 1_000_000


class Hold:
    """A step at which the worker is silent until it is aborted."""


Step = bytes | Exception | Hold | Callable[[], object]


class FakeDelivery:
    """One answer, by its script.

    Attributes:
        reads: how many chunks were handed out.
        aborts: how often ``abort`` was called.
        outcomes: what ``settle`` was called with; a second call is a mistake.
    """

    def __init__(self, order: Order, script: Iterable[Step], receipt: Receipt) -> None:
        self.order = order
        self.settle_error: Exception | None = None
        self.before_settle: Callable[[], Awaitable[None]] | None = None
        self.reads = 0
        self.aborts = 0
        self.outcomes: list[Outcome] = []
        self.content_type = b"text/event-stream"
        self._script = list(script)
        self._receipt = receipt
        self._aborted = asyncio.Event()

    async def read(self) -> bytes:
        while self._script:
            if self._aborted.is_set():
                raise WorkerFailed("the request was aborted")
            step = self._script.pop(0)
            if isinstance(step, Hold):
                await self._aborted.wait()
            elif isinstance(step, bytes):
                self.reads += 1
                return step
            elif isinstance(step, Exception):
                raise step
            else:
                step()
        if self._aborted.is_set():
            raise WorkerFailed("the request was aborted")
        return b""

    def abort(self) -> None:
        self.aborts += 1
        self._aborted.set()

    async def settle(self, outcome: Outcome) -> Receipt:
        assert not self.outcomes, "settled twice"
        self.outcomes.append(outcome)
        if self.before_settle is not None:
            await self.before_settle()
        if self.settle_error is not None:
            raise self.settle_error
        return self._receipt

    @property
    def outcome(self) -> Outcome:
        assert len(self.outcomes) == 1, self.outcomes
        return self.outcomes[0]


class FakeDesk:
    """Opens deliveries that follow ``script``.

    Attributes:
        script: what the next answers send.
        open_error: raised by ``open``.
        settle_error: raised by ``settle``.
        content_type: what answers are.
        queued: set to make ``open`` wait; set the event to let it on.
        tier_delivered: named by receipts.
        orders, deliveries: what came, in order.
        withdrawn: orders whose ``open`` was cancelled.
    """

    def __init__(self, script: Iterable[Step] = ()) -> None:
        self.script: list[Step] = list(script)
        self.open_error: TokenworksError | None = None
        self.settle_error: Exception | None = None
        self.before_settle: Callable[[], Awaitable[None]] | None = None
        self.queued: asyncio.Event | None = None
        self.entered = asyncio.Event()
        self.tier_delivered = Tier.MEDIUM
        self.orders: list[Order] = []
        self.deliveries: list[FakeDelivery] = []
        self.withdrawn: list[RequestID] = []
        self.health = (True, "1 of 1 workers are up")
        self.content_type = b"text/event-stream"
        self.served: tuple[ModelName, ...] = (MODEL, ModelName("lab/other"))

    def key_of(self, secret: bytes) -> KeyView | None:
        return KEY if secret == SECRET else None

    def models(self) -> tuple[ModelName, ...]:
        return self.served

    def output_tokens_default(self, model: ModelName, tier: Tier) -> int:
        assert model in self.served
        return 100 + tier.rank

    def healthy(self) -> tuple[bool, str]:
        return self.health

    async def open(self, order: Order) -> FakeDelivery:
        self.orders.append(order)
        self.entered.set()
        if self.open_error is not None:
            raise self.open_error
        if self.queued is not None:
            try:
                await self.queued.wait()
            except asyncio.CancelledError:
                self.withdrawn.append(order.request)
                raise
        receipt = Receipt(
            tier_asked=order.tier,
            tier_delivered=self.tier_delivered,
            charged_nanodollars=1_500,
            pool=PoolID("p"),
            worker=WorkerID("w"),
        )
        delivery = FakeDelivery(order, self.script, receipt)
        delivery.content_type = self.content_type
        delivery.settle_error, delivery.before_settle = self.settle_error, self.before_settle
        self.deliveries.append(delivery)
        return delivery

    @property
    def delivery(self) -> FakeDelivery:
        assert len(self.deliveries) == 1, self.deliveries
        return self.deliveries[0]


class FakeShelf:
    """A shelf in memory; tests/live/test_shelf.py holds it to the same contract."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], dict[str, Shelved]] = {}

    async def put(self, tenant: TenantID, kind: str, item: Shelved) -> None:
        kept = self.items.setdefault((tenant, kind), {})
        first = kept.get(item.id, item)
        kept[item.id] = msgspec.structs.replace(item, unix_ns=first.unix_ns)

    async def get(self, tenant: TenantID, kind: str, item_id: str) -> Shelved | None:
        return self.items.get((tenant, kind), {}).get(item_id)

    async def delete(self, tenant: TenantID, kind: str, item_id: str) -> bool:
        return self.items.get((tenant, kind), {}).pop(item_id, None) is not None

    async def page(
        self, tenant: TenantID, kind: str, *, after: str | None, limit: int, newest_first: bool
    ) -> list[Shelved]:
        kept = list(self.items.get((tenant, kind), {}).values())
        if newest_first:
            kept.reverse()
        if after is not None:
            at = next((i for i, item in enumerate(kept) if item.id == after), len(kept))
            kept = kept[at + 1 :]
        return kept[:limit]


class Caller:
    """One ASGI connection, both ends in the test's hands.

    Attributes:
        sent: the messages that the application sent.
        on_send: called with each message before it is kept; may wait, or raise.
    """

    def __init__(
        self,
        method: str,
        path: str,
        body: bytes | list[bytes] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        named = {"authorization": f"Bearer {SECRET.decode()}", **(headers or {})}
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(k.encode(), v.encode()) for k, v in named.items() if v],
        }
        self.sent: list[dict[str, Any]] = []
        self.on_send: Callable[[dict[str, Any]], Awaitable[None]] | None = None
        self._parts = body if isinstance(body, list) else [body]
        self._gone = asyncio.Event()

    def hang_up(self) -> None:
        self._gone.set()

    async def receive(self) -> dict[str, Any]:
        if self._parts:
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if self.on_send is not None:
            await self.on_send(message)
        self.sent.append(dict(message))

    async def call(self, gateway: Gateway) -> Caller:
        await gateway(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        assert self.sent[0]["type"] == "http.response.start"
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        assert all(m["type"] == "http.response.body" for m in self.sent[1:])
        return b"".join(m["body"] for m in self.sent[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def complete(self) -> bool:
        """Whether the response has begun and ended, each once."""
        ends = [not m.get("more_body", False) for m in self.sent[1:]]
        return ends.count(True) == 1 and ends[-1]

    @property
    def events(self) -> list[Any]:
        """The decoded events of a stream; ``[DONE]`` as it is."""
        *whole, rest = self.body.decode().split("\n\n")
        assert rest == ""
        # Some dialects name an event on a line before it.
        events = [e.split("\n", 1)[1] if e.startswith("event: ") else e for e in whole]
        assert all(event.startswith("data: ") for event in events), events
        return [e[6:] if e == "data: [DONE]" else json.loads(e[6:]) for e in events]


def ask(
    stream: bool = True,
    path: str = CHAT,
    named: Mapping[str, str] | None = None,
    **fields: Any,
) -> Caller:
    """A caller with a chat request; ``named`` are headers of its own."""
    request = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "stream": stream,
        **fields,
    }
    return Caller("POST", path, json.dumps(request).encode(), headers=named)


# Chunks as llama.cpp writes them.

HEAD = {"created": 1, "id": "chatcmpl-1", "model": "foreman", "object": "chat.completion.chunk"}


def event(fields: Mapping[str, Any], *, spaced: bool = False) -> bytes:
    separators = None if spaced else (",", ":")
    return b"data: " + json.dumps(fields, separators=separators).encode() + b"\n\n"


def chunk(
    delta: Mapping[str, Any], finish: str | None = None, *, spaced: bool = False, **more: Any
) -> bytes:
    choice = {"finish_reason": finish, "index": 0, "delta": dict(delta)}
    return event({"choices": [choice], **HEAD, **more}, spaced=spaced)


def token(text: str, **more: Any) -> bytes:
    return chunk({"content": text}, **more)


def usage(input_tokens: int, output_tokens: int, cached: int | None = 0) -> dict[str, Any]:
    details = None if cached is None else {"cached_tokens": cached}
    return {
        "completion_tokens": output_tokens,
        "prompt_tokens": input_tokens,
        "total_tokens": input_tokens + output_tokens,
        "prompt_tokens_details": details,
    }


def progress(total: int, cache: int, processed: int) -> bytes:
    told = {"total": total, "cache": cache, "processed": processed, "time_ms": 1}
    return chunk({"role": "assistant", "content": None}, prompt_progress=told)


ROLE = chunk({"role": "assistant", "content": None})
STOP = chunk({}, "stop")
DONE = b"data: [DONE]\n\n"


def usage_event(input_tokens: int, output_tokens: int, cached: int | None = 0) -> bytes:
    return event({"choices": [], **HEAD, "usage": usage(input_tokens, output_tokens, cached)})


def answer(*texts: str, input_tokens: int = 7) -> list[Step]:
    """A whole answer of llama.cpp's."""
    tokens = [token(text) for text in texts]
    return [ROLE, *tokens, STOP, usage_event(input_tokens, len(texts)), DONE]
