"""A front door with real rooms for files and batches, and a runner that a test drives."""

from __future__ import annotations

import asyncio
import json
import pathlib
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import openai

from tests.gateway.fake_desk import KEY, MODEL, SECRET, FakeClock, FakeDelivery, FakeDesk, FakeShelf
from tests.gateway.test_server import serving_gateway
from tokenworks.core.gauges import Gauges, WorkerGauge
from tokenworks.core.ids import KeyID, ModelName, PoolID, RequestID, WorkerID
from tokenworks.core.orders import KeyView, Order, Outcome, Receipt
from tokenworks.core.slo import Tier
from tokenworks.gateway.answer import Answers
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.batch_line import BatchLines
from tokenworks.gateway.batch_runner import BatchRunner
from tokenworks.gateway.metrics import GatewayMetrics
from tokenworks.live.batch_room import StoredBatches
from tokenworks.live.file_room import StoredFiles
from tokenworks.live.sqlite import SQLiteDatabase

CHAT = "/v1/chat/completions"


class BatchDesk(FakeDesk):
    """A desk that says what is free, and remembers what it has billed.

    Attributes:
        slots: of its one worker.
        others: live requests that its worker has.
        queued: as in ``Gauges``; not FakeDesk's.
        billed: requests that ended well, each with how often.
        key: that batches were begun with; None once it is revoked.
    """

    def __init__(self, script: Any = ()) -> None:
        super().__init__(script)
        self.slots, self.others = 4, 0
        self.waiting: dict[tuple[ModelName, Tier], int] = {}
        self.billed: dict[RequestID, int] = {}
        self.key: KeyView | None = KEY
        self.tier_delivered = Tier.FREE
        self.most_at_once = 0

    def key_named(self, key: KeyID) -> KeyView | None:
        return self.key if key == KEY.key else None

    @property
    def running(self) -> int:
        return (
            len(self.orders)
            - len(self.withdrawn)
            - sum(bool(each.outcomes) for each in self.deliveries)
        )

    def gauges(self) -> Gauges:
        worker = WorkerGauge(
            worker=WorkerID("w"),
            pool=PoolID("p"),
            model=MODEL,
            state="up",
            running=self.others + self.running,
            slots=self.slots,
        )
        return Gauges(
            workers=(worker,),
            queued=self.waiting,
            promises={},
            costs={},
            dispatched={},
            storing=0,
            unstored=0,
            ledger_lag_ns=0,
        )

    async def has(self, orders: int) -> None:
        """Wait until so many orders have come."""
        while len(self.orders) < orders:
            self.entered.clear()
            await self.entered.wait()

    async def open(self, order: Order) -> FakeDelivery:
        assert (order.tier, order.batch) == (Tier.FREE, True)
        try:
            delivery = await super().open(order)
        except Exception:
            self.orders.remove(order)
            raise
        self.most_at_once = max(self.most_at_once, self.running)
        settle = delivery.settle

        async def settled(outcome: Outcome) -> Receipt:
            receipt = await settle(outcome)
            if outcome.ending == "done":
                self.billed[order.request] = self.billed.get(order.request, 0) + 1
            return receipt

        delivery.settle = settled  # type: ignore[method-assign]
        return delivery

    async def answer_if_billed(
        self, requests: Collection[RequestID], since_unix_ns: int
    ) -> set[RequestID]:
        return {request for request in requests if request in self.billed}


class House:
    """All of it, on one folder.

    Attributes:
        batches, files: its rooms.
        desk, clock: where it asks.
        runner: is driven by ``rounds``.
    """

    def __init__(self, folder: pathlib.Path, desk: BatchDesk, room: Any = StoredBatches) -> None:
        self.desk, self.clock, self.shelf = desk, FakeClock(), FakeShelf()
        database = SQLiteDatabase(folder / "batches.sqlite", shrinks=True)
        self.files = StoredFiles(database, folder / "files")
        self.batches = room(self.files, folder / "batches.lock")
        answers = Answers(desk, self.clock, GatewayMetrics(), self.shelf)
        self.runner = BatchRunner(
            batches=self.batches,
            files=self.files,
            lines=BatchLines(answers, self.clock, self.shelf),
            desk=desk,
            clock=self.clock,
            gauges=desk.gauges,
            billed=desk.answer_if_billed,
        )

    async def round(self) -> None:
        """One look, and what came of it."""
        await self.runner.round()
        while busy := [*self.runner._runs, *self.runner._errands.values()]:
            await asyncio.wait(busy)
            await asyncio.sleep(0)

    async def rounds(self, most: int = 60) -> None:
        """Look until nothing is to be done any more."""
        assert await self.batches.lead()
        for _ in range(most):
            await self.round()
            if not await self.batches.unfinished():
                return
        raise AssertionError(await self.batches.unfinished())

    @asynccontextmanager
    async def sdk(self) -> AsyncIterator[openai.AsyncOpenAI]:
        gateway = Gateway(
            self.desk, self.clock, shelf=self.shelf, files=self.files, batches=self.batches
        )
        async with serving_gateway(gateway) as server:
            url = f"http://{server.address[0]}:{server.address[1]}/v1"
            client = openai.AsyncOpenAI(base_url=url, api_key=SECRET.decode(), max_retries=0)
            async with client:
                yield client


def chat_line(custom_id: str, url: str = CHAT, method: str = "POST", **body: Any) -> dict[str, Any]:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **body}
    return {"custom_id": custom_id, "method": method, "url": url, "body": asked}


async def begin(
    client: openai.AsyncOpenAI, lines: list[Any], endpoint: Any = CHAT, **more: Any
) -> Any:
    """A batch of some lines, which are texts or become JSON."""
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    file = await client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more
    )


async def lines_of(client: openai.AsyncOpenAI, file: str | None) -> dict[str, Any]:
    """An output or error file by its lines' names."""
    if file is None:
        return {}
    text = (await client.files.content(file)).text
    found = [json.loads(line) for line in text.splitlines()]
    assert len({line["id"] for line in found}) == len(found)
    return {line["custom_id"]: line for line in found}
