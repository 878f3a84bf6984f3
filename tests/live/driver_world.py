"""A driver with everything real but time, the store and the workers, which tests steer."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from tests.ledger import ledger_samples
from tests.ledger.memory_store import MemoryStore
from tokenworks.catalogue.factory_config import PoolConfig
from tokenworks.catalogue.price_book import PriceBook, PriceBooks
from tokenworks.core.errors import LedgerUnavailable, WorkerFailed, WorkerUnavailable
from tokenworks.core.ids import KeyID, ModelName, PoolID, PriceID, RequestID, TenantID, WorkerID
from tokenworks.core.orders import (
    CHAT_PATH,
    JSON_TYPE,
    KeyView,
    Order,
    Outcome,
    Passing,
    Usage,
)
from tokenworks.core.ports import Sink
from tokenworks.core.slo import Measured, Tier
from tokenworks.dispatch.commands import Hedge
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Limits, PolicySettings, Ticked
from tokenworks.ledger.blocks import decode_entries
from tokenworks.ledger.entries import CostAccrued, Entry, Posted, Voided
from tokenworks.ledger.extras import BILLED
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.quota_records import KeyRecord, Limit, LimitState, NodeID
from tokenworks.ledger.rollup import balances
from tokenworks.ledger.store_port import InDoubt, recover
from tokenworks.live.driver import Driver
from tokenworks.live.driver_parts import LIMITS, DriverParts
from tokenworks.live.flights import LiveDelivery
from tokenworks.live.journal import JournalWriter, journal_files, replay
from tokenworks.live.seat import Seat

MODEL = ledger_samples.MODEL
BOOK = ledger_samples.BOOK
SECRET = b"a secret"
POOL = PoolID("pool")
CONFIG = PoolConfig(
    engine="attached",
    model=MODEL,
    slots=2,
    urls=("http://127.0.0.1:1", "http://127.0.0.1:2"),
    power_w=1_000,
    energy_udollars_per_kwh=150_000,
    capital_udollars_per_hour=36_000,
)
"""An hour costs 0.15 dollars of energy and 0.036 of capital: 51,666.67 nano-dollars a second."""

CURVE = ((1, 1000), (2, 800))
FAST = Measured(ttft_ns=1, decode_ns=0, output_tokens=20)


class FakeClock:
    def __init__(self) -> None:
        self.ns = 1_000
        self.unix = 1_700_000_000_000_000_000

    def now_ns(self) -> int:
        return self.ns

    def unix_ns(self) -> int:
        return self.unix

    def advance(self, duration_ns: int) -> None:
        self.ns += duration_ns
        self.unix += duration_ns


class SteeredStore(MemoryStore):
    """Fails while ``failing``; answers appends later while ``slow``, at ``release``.

    From ``lose`` on it knows nothing more: the next append is kept or not, and nobody is told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failing = False
        self.slow = False
        self.keys_failing = False
        self.losing: Literal["", "kept", "not kept", "lost"] = ""
        self.appends = 0
        self._waiting: list[tuple[asyncio.Future[None], Sequence[Entry]]] = []

    def append(self, entries: Sequence[Entry]) -> asyncio.Future[None]:
        self.appends += 1
        if self.slow:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((future, entries))
            return future
        error = self._trouble(entries)
        if error is not None:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error)
            return future
        return super().append(entries)

    def _trouble(self, entries: Sequence[Entry]) -> Exception | None:
        """Why these are not appended, or may not be."""
        error: Exception | None = LedgerUnavailable("The disk is full.") if self.failing else None
        if self.losing == "lost":
            error = LedgerUnavailable("It cannot tell.")
        elif self.losing:
            if self.losing == "kept":
                self.append_now(entries)
            self.losing, error = "lost", InDoubt("It cannot tell.", hint="Start again.")
        return error

    def release(self) -> None:
        self.slow = False
        waiting, self._waiting = self._waiting, []
        for future, entries in waiting:
            error = self._trouble(entries)
            if error is None:
                error = super().append(entries).exception()  # type: ignore[assignment]
            if not future.done():
                future.set_result(None) if error is None else future.set_exception(error)

    def settings_version(self) -> int:
        if self.keys_failing:
            raise LedgerUnavailable("The disk is gone.")
        return super().settings_version()


class HangingStore(SteeredStore):
    """Hangs in the calls that a test has named, as a database does that answers no more."""

    def __init__(self) -> None:
        super().__init__()
        self.hanging: set[str] = set()
        self.entered: list[str] = []
        self.go_on = threading.Event()

    def _hang(self, name: str) -> None:
        if name in self.hanging:
            self.entered.append(name)
            assert self.go_on.wait(60)

    def settings_version(self) -> int:
        self._hang("settings_version")
        return super().settings_version()

    def read_limits(self, unix_ns: int) -> Callable[[], list[LimitState]]:
        self._hang("read_limits")
        return super().read_limits(unix_ns)

    def put_price_book(self, price_id: PriceID, text: str, first_used_unix_ns: int) -> None:
        self._hang("put_price_book")
        super().put_price_book(price_id, text, first_used_unix_ns)


class FakeStream:
    """A worker's answer; the test feeds it."""

    def __init__(self, status: int, body: bytes = b"") -> None:
        self.status, self.content_type = status, b"text/event-stream"
        self.headers: list[tuple[bytes, bytes]] = []
        self.aborted = False
        self.broken: str | None = None
        self._parts: list[bytes] = [body] if body else []
        self._ended = status != 200
        self._sink: Sink | None = None
        self.paused = False
        self._changed = asyncio.Event()

    def feed(self, part: bytes) -> None:
        self._parts.append(part)
        self._hand_over()

    def end(self) -> None:
        self._ended = True
        self._hand_over()

    def break_off(self, why: str = "the worker broke off") -> None:
        self.broken = self.broken or why
        self._hand_over()

    async def read(self) -> bytes:
        while not self._parts:
            if self.broken is not None:
                raise WorkerFailed(self.broken)
            if self._ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        return self._parts.pop(0)

    @property
    def is_over(self) -> bool:
        return self._ended or self.broken is not None

    async def read_all(self) -> bytes:
        whole = b""
        while part := await self.read():
            whole += part
        return whole

    def pipe(self, sink: Sink) -> None:
        self._sink = sink
        self._hand_over()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._hand_over()

    def _hand_over(self) -> None:
        self._changed.set()
        if self._sink is None or self.paused:
            return
        while self._parts:
            self._sink.data(self._parts.pop(0))
        if self._ended or self.broken is not None:
            sink, self._sink = self._sink, None
            sink.ended(None if self.broken is None else WorkerFailed(self.broken))

    def abort(self) -> None:
        if not self._ended:
            self.aborted = True
            self.break_off("the request was aborted")

    def stop(self) -> bytes | None:
        """See ``KeepingStream``; a test that has ended it has nothing to keep."""
        if self._ended or self.broken is not None:
            return None
        self.end()
        return b"kept of %d" % len(self._parts)


class Exchange:
    """One request as a worker got it; the test answers it."""

    def __init__(
        self,
        body: bytes,
        path: str = CHAT_PATH,
        lines: bytes = b"",
        content_type: str = JSON_TYPE,
    ) -> None:
        self.body, self.path, self.lines, self.content_type = body, path, lines, content_type
        self.cancelled = False
        self.kept: bytes | None = None
        self.head: asyncio.Future[FakeStream] = asyncio.get_running_loop().create_future()

    def answer(self, status: int = 200, body: bytes = b"") -> FakeStream:
        stream = FakeStream(status, body)
        self.head.set_result(stream)
        return stream

    def fail(self, error: Exception | None = None) -> None:
        self.head.set_exception(error or WorkerFailed("connection refused"))


class FakeClient:
    """Stands where ``WorkerClient`` does, for workers that keep answers and have tiers, too."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.streams: list[FakeStream] = []
        self.moves: list[tuple[str, tuple[int, ...], int]] = []
        self.lost = False
        self.auto: Any = None

    async def post_stream(
        self, path: str, body: bytes, lines: bytes = b"", content_type: str = JSON_TYPE
    ) -> FakeStream:
        return await self._post(Exchange(body, path, lines, content_type))

    async def go_on_stream(self, path: str, body: bytes, kept: bytes) -> FakeStream:
        exchange = Exchange(body, path)
        exchange.kept = kept
        return await self._post(exchange)

    async def pass_on(self, passing: Passing, body: bytes) -> FakeStream:
        return await self._post(Exchange(body, passing.target))

    async def get(self, path: str) -> tuple[int, bytes]:
        raise AssertionError(path)

    async def offload(self, prefix: tuple[int, ...], first: int) -> None:
        self.moves.append(("down", prefix, first))
        if self.lost:
            raise WorkerUnavailable("the worker is down")

    async def fetch(self, prefix: tuple[int, ...], first: int) -> None:
        self.moves.append(("up", prefix, first))
        if self.lost:
            raise WorkerUnavailable("the worker is down")

    async def _post(self, exchange: Exchange) -> FakeStream:
        self.exchanges.append(exchange)
        if self.auto is not None:
            self.auto(exchange)
        try:
            stream = await exchange.head
        except asyncio.CancelledError:
            exchange.cancelled = True
            raise
        self.streams.append(stream)
        return stream

    def close(self) -> None:
        """As the real one does when its worker goes down, before that is told."""
        for exchange in self.exchanges:
            if not exchange.head.done():
                exchange.fail(WorkerFailed("the worker is down"))
        for stream in self.streams:
            stream.break_off("the worker is down")

    def waiting(self) -> list[Exchange]:
        return [each for each in self.exchanges if not each.head.done()]


def without_files() -> WorkerUnavailable:
    """What a client says where this process may open no more."""
    lack = WorkerUnavailable("The factory may open no more files.", retry_after_s=1)
    lack.ours = True
    return lack


async def settle_down(rounds: int = 12) -> None:
    """Let every callback that is ready run."""
    for _ in range(rounds):
        await asyncio.sleep(0)


async def until(holds: Callable[[], object]) -> None:
    """Let everything run until something holds."""
    while not holds():
        await settle_down(1)


def hedge_of(request: RequestID, worker: WorkerID, silent_ns: int = 1) -> Hedge:
    """The command that sends a request to a second worker."""
    return Hedge(
        request=request,
        worker=worker,
        attempt=2,
        reason="silent",
        running=1,
        cap=1,
        candidates=1,
        hit_blocks=0,
        silent_ns=silent_ns,
    )


class World:
    """Two seats of one pool; workers come up when the test says so."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        records: Sequence[KeyRecord] | None = None,
        limits: Sequence[Limit] = (),
        books: Sequence[PriceBook] = (BOOK,),
        store: SteeredStore | None = None,
        config: PoolConfig = CONFIG,
        policy: PolicySettings | None = None,
        dispatch_limits: Limits = LIMITS,
        **engine: Any,
    ) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.store = store or SteeredStore()
        for record in records or (self.key(),):
            self.store.put_key(record)
        for limit in limits:
            self.store.put_limit(limit)
        self.ledger = recover(self.store, self.clock.unix_ns())
        self.dispatcher = Dispatcher()
        parts = DriverParts(
            clock=self.clock,
            dispatcher=self.dispatcher,
            ledger=self.ledger,
            store=self.store,
            books=PriceBooks(list(books)),
            pools={POOL: config},
            journal=JournalWriter(folder),
            policy=policy,
            limits=dispatch_limits,
        )
        self.driver = Driver(parts)
        self.complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, c: self.complaints.append(c))
        self.seats = [WorkerID("w0"), WorkerID("w1")]
        for worker in self.seats:
            self.driver.seat(Seat(worker=worker, pool=POOL, config=config, curve=CURVE, **engine))
        self.clients: dict[WorkerID, FakeClient] = {}
        self.driver.begin()
        self._requests = 0

    def key_of(self, secret: bytes) -> KeyView | None:
        return self.driver.key_of(hashlib.sha256(secret).hexdigest())

    @staticmethod
    def key(key: str = "key", secret: bytes = SECRET, **changes: object) -> KeyRecord:
        digest = hashlib.sha256(secret).hexdigest()
        return ledger_samples.key_record(key, secret_sha256=digest, **changes)

    @staticmethod
    def limit(tokens: int, key: str = "key") -> Limit:
        node = NodeID(f"key:{key}")
        return ledger_samples.limit(f"limit-{key}", node, unit="tokens", amount=tokens)

    def up(self, n: int = 0) -> FakeClient:
        client = self.clients[self.seats[n]] = FakeClient()
        self.driver.worker_up(self.seats[n], client)
        return client

    def down(self, n: int = 0) -> None:
        client = self.clients.pop(self.seats[n])
        client.close()
        self.driver.worker_down(self.seats[n], "it died")

    def order(
        self,
        *,
        tier: Tier = Tier.HIGH,
        key: str = "key",
        model: str = MODEL,
        output: int = 20,
        **more: Any,
    ) -> Order:
        self._requests += 1
        more = {"prefix": ()} | more
        return Order(
            request=RequestID(f"r{self._requests}"),
            key=KeyView(key=KeyID(key), tenant=TenantID("tenant"), tier_default=Tier.HIGH),
            model=ModelName(model),
            tier=tier,
            body=b'{"stream":true}',
            input_tokens_max=10,
            output_tokens_max=output,
            arrived_ns=self.clock.now_ns(),
            **more,
        )

    def open(self, **parts: Any) -> asyncio.Task[LiveDelivery]:
        return asyncio.get_running_loop().create_task(self.driver.open(self.order(**parts)))

    async def answering(self, client: FakeClient, **parts: Any) -> tuple[LiveDelivery, FakeStream]:
        """A request that a worker answers."""
        opening = self.open(**parts)
        await settle_down()
        stream = client.waiting()[-1].answer()
        return await opening, stream

    async def round(self) -> None:
        """What housekeeping does again and again."""
        self.driver.housekeep_once()
        await self.driver.keep_up()

    def tick(self, duration_ns: int) -> None:
        self.clock.advance(duration_ns)
        self.driver.tell(Ticked())

    def entries(self, kind: type[Entry]) -> list[Any]:
        return [entry for entry in self.all_entries() if isinstance(entry, kind)]

    def all_entries(self) -> list[Entry]:
        return [entry for block in self.store.blocks() for entry in decode_entries(block)]

    def used_tokens(self, key: str = "key") -> int:
        return sum(
            row.tokens
            for row in self.store.rollups(by_hour=False)
            if row.payer.key == key and row.kind.what in BILLED
        )

    @property
    def posted(self) -> list[Posted]:
        return self.entries(Posted)

    @property
    def voided(self) -> list[Voided]:
        return self.entries(Voided)

    @property
    def accrued(self) -> list[CostAccrued]:
        return self.entries(CostAccrued)

    async def check(self) -> None:
        """Close, and look that nothing is left over anywhere."""
        await settle_down()
        driver = self.driver
        assert driver._flights == {}
        assert self.ledger.open_holds() == ()
        assert all(load.running == 0 for load in self.dispatcher.loads().values())
        assert not any(self.dispatcher.queue_lens().values())
        await driver.close()
        assert driver._bookkeeper._unstored == []
        assert not driver._sending
        assert not driver._bookkeeper._storing
        self.ledger.check()
        again = recover(self.store, self.clock.unix_ns())
        assert again.open_holds() == ()
        assert windows(again) == windows(self.ledger)
        balances(self.store.rollups(by_hour=False))
        for path in journal_files(self.folder):
            assert replay(path).first_difference is None
        gc.collect()
        assert self.complaints == []


def windows(ledger: Ledger) -> list[tuple[object, ...]]:
    """What each limit has used and holds."""
    return [(each.limit, each.used, each.held) for each in ledger.windows()]


def outcome(
    output: int = 20, *, ending: str = "done", measured: Measured = FAST, inputs: int = 10
) -> Outcome:
    usage = Usage(uncached_input_tokens=inputs, cached_input_tokens=0, output_tokens=output)
    return Outcome(
        usage=usage,
        measured=msgspec.structs.replace(measured, output_tokens=output),
        ending=ending,
    )
