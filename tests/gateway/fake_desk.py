"""A desk that does as it is told, a clock that stands still, and a caller made by hand.

Nothing here sleeps: a delivery follows its script, and a step of the script may be a function, so
that a test decides what happens between two reads of the worker. A caller is the other end of a
real connection whose socket is a list of bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import msgspec

from tokenworks.core.errors import TokenworksError, WorkerFailed
from tokenworks.core.ids import KeyID, ModelName, PoolID, RequestID, TenantID, WorkerID
from tokenworks.core.needs import Needs
from tokenworks.core.orders import KeyView, Order, Outcome, Receipt
from tokenworks.core.ports import Shelved, Sink
from tokenworks.core.slo import Tier
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.connection import Application, Connection
from tokenworks.gateway.http_limits import LIMITS, HTTPLimits

SECRET = b"tw-secret"
SECRET_SHA256 = hashlib.sha256(SECRET).hexdigest()
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


Step = bytes | WorkerFailed | Hold | Callable[[], object]


class FakeDelivery:
    """One answer, by its script.

    Attributes:
        reads: how many chunks were handed out.
        paused: whether it was told to wait.
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
        self.stream: Any = SimpleNamespace(
            status=200, content_type=b"text/event-stream", headers=[]
        )
        self._script = list(script)
        self._receipt = receipt
        self._sink: Sink | None = None
        self.paused = self._going = self._aborted = self._ended = False

    def pipe(self, sink: Sink) -> None:
        assert self._sink is None, "piped twice"
        self._sink = sink
        self._go_on()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._go_on()

    def abort(self) -> None:
        self.aborts += 1
        self._aborted = True
        self._go_on()

    def _go_on(self) -> None:
        """Follow the script as far as it goes; steps that come back here wait for their turn."""
        if self._going or self._sink is None or self._ended:
            return
        self._going = True
        while self._script and not (self.paused or self._aborted):
            if isinstance(self._script[0], Hold):
                break
            self._do(self._script.pop(0))
        self._going = False
        if self._aborted:
            self._end(WorkerFailed("the request was aborted"))
        elif not self._script and not self.paused:
            self._end(None)

    def _do(self, step: Step) -> None:
        assert self._sink is not None
        if isinstance(step, bytes):
            self.reads += 1
            self._sink.data(step)
        elif isinstance(step, WorkerFailed):
            self._end(step)
        elif not isinstance(step, Hold):
            step()

    def _end(self, failure: WorkerFailed | None) -> None:
        assert self._sink is not None
        if not self._ended:
            self._ended = True
            self._script.clear()
            self._sink.ended(failure)

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
        status, content_type, headers: of answers.
        queued: set to make ``open`` wait; set the event to let it on.
        tier_delivered: named by receipts.
        orders, deliveries: what came, in order.
        in_one_piece: models whose workers answer so.
        counted: what ``count_tokens`` was called with.
        withdrawn: orders whose ``open`` was cancelled.
    """

    def __init__(
        self, script: Iterable[Step] = (), in_one_piece: frozenset[ModelName] = frozenset()
    ) -> None:
        self.in_one_piece = in_one_piece
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
        self.status, self.content_type = 200, b"text/event-stream"
        self.headers: list[tuple[bytes, bytes]] = []
        self.counted: list[tuple[ModelName, bytes, Needs | None]] = []
        self.served: tuple[ModelName, ...] = (MODEL, ModelName("lab/other"))

    def key_of(self, secret_sha256: str) -> KeyView | None:
        return KEY if secret_sha256 == SECRET_SHA256 else None

    def models(self) -> tuple[ModelName, ...]:
        return self.served

    def whole_models(self) -> frozenset[ModelName]:
        return self.in_one_piece

    def output_tokens_default(self, model: ModelName, tier: Tier) -> int:
        assert model in self.served
        return 100 + tier.rank

    async def count_tokens(self, model: ModelName, body: bytes, needs: Needs | None) -> int:
        self.counted.append((model, body, needs))
        if self.open_error is not None:
            raise self.open_error
        return 17

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
        delivery.stream = self
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


class FakeTransport(asyncio.Transport):
    """A socket that takes everything.

    Attributes:
        writes: what was written, call by call.
        on_write: called before each.
        closed, aborted, ended, reading: what was done to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.on_write: Callable[[bytes], object] | None = None
        self.closed = self.aborted = self.ended = False
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high

    def write(self, data: Any) -> None:
        assert not self.closed
        assert not self.ended
        if self.on_write is not None:
            self.on_write(data)
        if not self.closed:
            self.writes.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True


class FakeServer:
    """What a connection knows of its server."""

    draining = False
    date = b"date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
    now_s = 0.0
    full = False

    def __init__(self, application: Application, limits: HTTPLimits = LIMITS) -> None:
        self.application, self.limits = application, limits
        self.connections: set[Connection] = set()

    def opened(self, connection: Connection) -> bool:
        self.connections.add(connection)
        return not self.full

    def closed(self, connection: Connection) -> None:
        self.connections.remove(connection)


def raw_head(method: str, path: str, headers: Mapping[str, str], length: int | None) -> bytes:
    named = {"host": "x", "authorization": f"Bearer {SECRET.decode()}", **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in named.items() if v)]
    if length:
        lines.append(f"content-length: {length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Caller:
    """A connection with one request, both ends in the test's hands.

    Attributes:
        transport: its socket.
        on_write: called with how many writes there were before; may hang up, or ``read_slowly``.
    """

    def __init__(
        self,
        method: str,
        path: str,
        body: bytes | list[bytes] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.parts = body if isinstance(body, list) else [body]
        self.request = b"".join(self.parts)
        self.head = raw_head(method, path, headers or {}, len(self.request))
        self.method = method
        self.transport = FakeTransport()
        self.connection: Connection | None = None
        self.gone = False
        self.on_write: Callable[[int], object] | None = None

    def hang_up(self) -> None:
        self.gone = self.transport.closed = True
        assert self.connection is not None
        self.connection.connection_lost(None)

    def stop_reading(self) -> None:
        assert self.connection is not None
        self.connection.pause_writing()

    def read_again(self) -> None:
        assert self.connection is not None
        self.connection.resume_writing()

    def begin(self, gateway: Application, limits: HTTPLimits = LIMITS) -> None:
        """Send the request."""
        self.server = FakeServer(gateway, limits)
        self.connection = Connection(self.server)
        self.transport.on_write = self._written
        self.connection.connection_made(self.transport)
        for part in [self.head, *self.parts]:
            if part and not self.gone:
                self.connection.data_received(part)

    def _written(self, _: bytes) -> None:
        if self.on_write is not None:
            self.on_write(len(self.transport.writes))

    async def call(self, gateway: Gateway, limits: HTTPLimits = LIMITS) -> Caller:
        """Send the request and wait until nothing is being served."""
        self.begin(gateway, limits)
        while gateway.serving:
            await asyncio.wait(gateway.serving.values())
        return self

    @property
    def received(self) -> bytes:
        return b"".join(self.transport.writes)

    @property
    def status(self) -> int:
        return int(self.received.split(b" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        lines = self.received.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return dict(line.split(": ", 1) for line in lines)

    @property
    def chunks(self) -> list[bytes]:
        """The parts of a body of unknown length, the empty one at its end too, if it has come."""
        assert self.headers["transfer-encoding"] == "chunked"
        rest, found = self.received.partition(b"\r\n\r\n")[2], []
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            part, end, rest = (
                rest[: int(size, 16)],
                rest[int(size, 16) :][:2],
                rest[int(size, 16) :][2:],
            )
            assert (len(part), end) == (int(size, 16), b"\r\n")
            found.append(part)
        return found

    @property
    def body(self) -> bytes:
        if "transfer-encoding" in self.headers:
            return b"".join(self.chunks)
        return self.received.partition(b"\r\n\r\n")[2]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def complete(self) -> bool:
        """Whether the response has begun and ended, each once."""
        if "transfer-encoding" in self.headers:
            return self.chunks.count(b"") == 1 and self.chunks[-1] == b""
        length = 0 if self.method == "HEAD" else int(self.headers["content-length"])
        return len(self.body) == length

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
