"""Several drivers and one dispatcher: an owner and its fronts in one loop, on a real socket."""

from __future__ import annotations

import asyncio
import pathlib
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from tests.ledger import ledger_samples
from tests.live.driver_world import (
    BOOK,
    CONFIG,
    CURVE,
    POOL,
    FakeClient,
    FakeClock,
    SteeredStore,
    World,
    hedge_of,
    outcome,
    settle_down,
    until,
)
from tokenworks.catalogue.price_book import PriceBooks
from tokenworks.core.errors import WorkerFailed, WorkerUnavailable
from tokenworks.core.ids import KeyID, ModelName, RequestID, TenantID, WorkerID
from tokenworks.core.orders import KeyView, Order
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Ticked, Withdrawn
from tokenworks.dispatch.settings import settings_for
from tokenworks.ledger.store_port import recover
from tokenworks.live import front as front_module
from tokenworks.live import owner as owner_module
from tokenworks.live.driver import Driver
from tokenworks.live.driver_parts import LIMITS, DriverParts
from tokenworks.live.flights import LiveDelivery
from tokenworks.live.frames import FRAME_BYTES_MAX, Report, Texts, Welcome
from tokenworks.live.front import OWNER_NS_MAX, FrontDriver
from tokenworks.live.journal import JournalWriter, journal_files, replay
from tokenworks.live.network import WorkerClient
from tokenworks.live.owner import OwnerDriver
from tokenworks.live.seat import Seat

WORKERS = (WorkerID("w0"), WorkerID("w1"))
EMBEDDED = msgspec.structs.replace(CONFIG, engine="embedded", urls=(), workers=2)


class Client(FakeClient):
    """That is closed with a word why, as the real one."""

    def close(self, why: str = "") -> None:
        super().close()
        self.closed = why


class Front:
    """A front and the clients that it has made."""

    def __init__(self, crew: Crew, index: int) -> None:
        self.clients: dict[WorkerID, Client] = {}
        self.first_up = asyncio.Event()
        self.driver = crew.driver(
            FrontDriver,
            index=index,
            name=f"front-{index}-{len(crew.fronts)}",
            path=crew.path,
            reach=self._reach,
            embedded=lambda _: 2,
            text=lambda: b"front %d" % index,
            first_up=self.first_up,
        )
        self.driver.begin()
        self.linking = asyncio.get_running_loop().create_task(self.driver.keep_linked())

    def _reach(self, seat: Seat) -> Client:
        self.clients[seat.worker] = Client()
        return self.clients[seat.worker]

    def waiting(self) -> list[Any]:
        return [each for client in self.clients.values() for each in client.waiting()]

    async def end(self) -> None:
        self.linking.cancel()
        await asyncio.gather(self.linking, return_exceptions=True)
        await self.driver.close()


class Crew:
    """An owner, which can die and be followed by another, and fronts."""

    def __init__(self, folder: pathlib.Path, path: str, config: Any) -> None:
        self.folder, self.path, self.config = folder, path, config
        self.clock = FakeClock()
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(path)
        self.listening.listen(8)
        self.fronts: list[Front] = []
        self.hung: list[int] = []
        self.journals = 0
        self.requests = 0

    def driver(self, kind: Callable[..., Any], **more: Any) -> Any:
        store = SteeredStore()
        store.put_key(World.key())
        self.journals += 1
        parts = DriverParts(
            clock=self.clock,
            dispatcher=Dispatcher(),
            ledger=recover(store, self.clock.unix_ns()),
            store=store,
            books=PriceBooks([BOOK]),
            pools={POOL: self.config},
            journal=JournalWriter(self.folder / str(self.journals)),
        )
        made = kind(parts, **more)
        for worker in WORKERS:
            made.seat(Seat(worker=worker, pool=POOL, config=self.config, curve=CURVE))
        return made

    async def start(self, *awaited: int) -> None:
        self.owner: OwnerDriver = self.driver(
            OwnerDriver,
            fronts=frozenset(awaited),
            text=lambda: b"owner",
            on_hung=self.hung.extend,
        )
        self.owner.begin()
        self.server = await self.owner.listen(self.listening.dup())

    async def join(self, *indices: int) -> None:
        self.fronts += [Front(self, index) for index in indices]
        await until(lambda: len(self.owner._links) >= len(indices))

    def die(self) -> None:
        """The owner's process has ended: the kernel closes its sockets."""
        self.server.close()
        for link in self.owner._links.values():
            link._abort()
        self.owner._write_journal(lambda journal: journal.close())
        self.owner._journal = None

    def order(self, tier: Tier = Tier.HIGH) -> Order:
        self.requests += 1
        return Order(
            request=RequestID(f"r{self.requests}"),
            key=KeyView(key=KeyID("key"), tenant=TenantID("tenant"), tier_default=Tier.HIGH),
            model=ModelName(ledger_samples.MODEL),
            tier=tier,
            body=b'{"stream":true}',
            input_tokens_max=10,
            output_tokens_max=20,
            prefix=(),
            arrived_ns=self.clock.now_ns(),
        )

    def open(self, driver: Driver, tier: Tier = Tier.HIGH) -> asyncio.Task[LiveDelivery]:
        return asyncio.get_running_loop().create_task(driver.open(self.order(tier)))

    def running(self) -> dict[str, int]:
        return {name: load.running for name, load in self.owner._dispatcher.loads().items()}

    def queued(self) -> int:
        return sum(self.owner._dispatcher.queue_lens().values())

    async def answered(self, front: Front) -> LiveDelivery:
        """A request of a front that has begun to be answered."""
        opening = self.open(front.driver)
        await until(front.waiting)
        front.waiting()[-1].answer()
        return await opening


async def all_texts(driver: Any, count: int) -> dict[int, bytes]:
    """What so many processes say: one that is busy for a second is left out, and asked again."""
    while len(found := await driver.texts()) < count:
        await settle_down(1)  # who has lost all others answers at once
    return dict(found)


async def settle(delivery: LiveDelivery) -> None:
    delivery.stream.end()  # type: ignore[attr-defined]
    await delivery.settle(outcome())


@asynccontextmanager
async def crew_of(folder: pathlib.Path, *fronts: int, config: Any = CONFIG) -> AsyncIterator[Crew]:
    """A crew; where fronts are named, they have joined it and its first worker is up."""
    with tempfile.TemporaryDirectory(prefix="tw-") as short:
        crew = Crew(folder, f"{short}/owner", config)
        async with asyncio.timeout(120):
            await crew.start()
            if fronts:
                crew.owner.worker_up(WORKERS[0], Client())
                await crew.join(*fronts)
            yield crew
            for front in crew.fronts:
                await front.end()
            await crew.owner.alone()
            await crew.owner.close()
            crew.server.close()
        crew.listening.close()


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


def test_slots_and_tiers_hold_across_processes(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with crew_of(tmp_path, 1, 2) as crew:
            one, two = crew.fronts
            await until(lambda: one.first_up.is_set() and two.first_up.is_set())
            assert one.driver.healthy() == (True, "1 of 2 workers are up")
            begun = [await crew.answered(one), await crew.answered(two)]
            assert crew.running() == {"w0": 2}
            low = crew.open(one.driver, Tier.FREE)
            await until(lambda: crew.queued() == 1)
            high = crew.open(two.driver, Tier.PREMIUM)
            await until(lambda: crew.queued() == 2)
            await settle(begun[0])
            await until(two.waiting)
            assert not one.waiting()
            two.waiting()[0].answer()
            last = await high
            low.cancel()  # while it waits: it leaves the owner's line, too
            await until(lambda: crew.queued() == 0)
            await settle(begun[1])
            await settle(last)
            await until(lambda: crew.running() == {"w0": 0})
        files = journal_files(tmp_path / "1")
        assert len(files) == 1
        assert replay(files[0]).first_difference is None
        assert not journal_files(tmp_path / "2")  # a front decides nothing

    run(test)


def test_the_owner_serves_callers_of_its_own(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with crew_of(tmp_path) as crew:
            client = Client()
            crew.owner.worker_up(WORKERS[0], client)
            await crew.join(1)
            theirs = await crew.answered(crew.fronts[0])
            opening = crew.open(crew.owner)
            await until(client.waiting)
            client.waiting()[0].answer()
            await settle(await opening)
            await until(lambda: crew.running() == {"w0": 1})
            await settle(theirs)

    run(test)


def test_a_front_counts_the_time_that_a_worker_had_a_request(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with crew_of(tmp_path) as crew:
            crew.owner.worker_up(WORKERS[0], Client())
            await crew.join(1)
            (one,) = crew.fronts
            crew.clock.advance(1_000 * NS_PER_S)
            delivery = await crew.answered(one)
            crew.clock.advance(5 * NS_PER_S)
            delivery.stream.end()  # type: ignore[attr-defined]
            receipt = await delivery.settle(outcome())
            assert receipt.cost_nanodollars == 64_583  # a fourth of five seconds of the pool
            opening = crew.open(one.driver)
            await until(one.waiting)
            (flight,) = one.driver._flights.values()
            crew.clock.advance(5 * NS_PER_S)
            flight.stop(crew.clock.now_ns())  # to make room
            assert flight.worked_ns == 5 * NS_PER_S
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)

    run(test)


def test_what_a_dead_front_had_is_free_again(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with crew_of(tmp_path, 1, 2) as crew:
            one, two = crew.fronts
            begun = [await crew.answered(one), await crew.answered(one)]
            waiting = crew.open(two.driver)
            await until(lambda: crew.queued() == 1)
            one.linking.cancel()
            link = one.driver._link
            assert link is not None
            link._abort()
            await until(two.waiting)
            assert crew.running() == {"w0": 1}
            two.waiting()[0].answer()
            await settle(await waiting)
            for delivery in begun:
                await settle(delivery)

    run(test)


def test_a_new_owner_knows_what_runs_and_what_waits(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with crew_of(tmp_path, 1, 2) as crew:
            one, two = crew.fronts
            begun = [await crew.answered(one), await crew.answered(two)]
            waiting = crew.open(one.driver)
            await until(lambda: crew.queued() == 1)
            crew.die()
            await until(lambda: not one.driver.healthy()[0] and not two.driver.healthy()[0])
            assert one.driver.healthy()[1].startswith("the process that dispatches")
            later = crew.open(two.driver)
            await crew.start(1, 2)
            crew.owner.worker_up(WORKERS[0], Client())
            # Both slots are taken by what the last owner sent: the worker is not there yet, and
            # what came waits in a line, where patience ends.
            await until(lambda: crew.queued() == 2)
            assert crew.owner._early == {}
            assert crew.running() == {}
            await settle(begun[0])
            await until(lambda: one.waiting() or two.waiting())
            assert crew.running() == {"w0": 1}
            (at,) = [each for each in (one, two) if each.waiting()]
            at.waiting()[0].answer()
            await settle(begun[1])
            other = two if at is one else one
            await until(other.waiting)
            other.waiting()[0].answer()
            for opening in (waiting, later):
                await settle(await opening)
            await until(lambda: crew.running() == {"w0": 0})
            assert crew.owner._dispatcher.loads()[WORKERS[0]].slots == 2

    run(test)


def test_what_was_taken_over_ends_with_its_worker_its_front_or_a_failure(
    tmp_path: pathlib.Path,
) -> None:
    async def test() -> None:
        async with crew_of(tmp_path) as crew:
            for worker in WORKERS:
                crew.owner.worker_up(worker, Client())
            await crew.join(1, 2)
            one, two = crew.fronts
            failing, lost = crew.open(one.driver), crew.open(one.driver)
            await until(lambda: len(one.waiting()) == 2)
            begun = await crew.answered(two)
            crew.die()
            await until(lambda: not one.driver.healthy()[0])
            await crew.start(1, 2)
            for worker in WORKERS:
                crew.owner.worker_up(worker, Client())
            await until(lambda: len(crew.owner._taken_over) == 3)
            at = {one.driver._flights[RequestID(f"r{n}")].seat.worker: n for n in (1, 2)}
            assert set(at) == set(WORKERS)
            one.clients[WORKERS[0]].waiting()[0].fail()
            with pytest.raises(WorkerFailed):
                await (failing if at[WORKERS[0]] == 1 else lost)
            crew.owner.worker_down(WORKERS[1], "it died")
            with pytest.raises(WorkerFailed):
                await (failing if at[WORKERS[1]] == 1 else lost)
            two.linking.cancel()
            two.driver.unlink()
            await until(lambda: not crew.owner._taken_over)
            await settle(begun)

    run(test)


def test_what_ends_while_its_worker_is_heard_to_go_down_is_not_sent_again(
    tmp_path: pathlib.Path,
) -> None:
    async def test() -> None:
        async with crew_of(tmp_path, 1) as crew:
            (one,) = crew.fronts
            # Its beginning and its end are both on their way to the owner.
            settling = asyncio.ensure_future(settle(await crew.answered(one)))
            await asyncio.sleep(0)
            assert not one.driver._flights
            assert crew.running() == {"w0": 1}
            crew.owner.worker_down(WORKERS[0], "it does not answer")
            assert crew.queued() == 1
            await settling
            await until(lambda: crew.queued() == 0)
            crew.owner.worker_up(WORKERS[0], Client())
            assert crew.running() == {"w0": 0}
            assert crew.owner._whose == {}

    run(test)


def test_an_end_is_looked_at_once_and_twice_after_something_was_ignored(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = list[int]()
    counts = Dispatcher.counts

    def looked(dispatcher: Dispatcher) -> dict[str, int]:
        found = counts(dispatcher)
        looks.append(found["ignored"])
        return found

    async def test() -> None:
        async with crew_of(tmp_path, 1) as crew:
            (one,) = crew.fronts
            begun = [await crew.answered(one), await crew.answered(one)]
            monkeypatch.setattr(Dispatcher, "counts", looked)
            await settle(begun[0])
            await until(lambda: crew.running() == {"w0": 1})
            assert looks == [0]
            crew.owner.tell(Withdrawn(request=RequestID("nobody's")))
            await settle(begun[1])
            await until(lambda: crew.running() == {"w0": 0} and not crew.owner._whose)
            assert looks == [0, 1, 2]  # it has ended: what would withdraw it is ignored, too
            await settle(await crew.answered(one))
            await until(lambda: not crew.owner._whose)
            assert looks == [0, 1, 2, 2]

    run(test)


def test_a_front_that_does_not_say_what_it_has_is_to_be_killed(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with crew_of(tmp_path, 1) as crew:
            (hung,) = crew.fronts
            begun = await crew.answered(hung)
            hung.linking.cancel()  # it stands still: its answer goes on
            crew.die()
            await crew.start(1, 2)
            crew.owner.worker_up(WORKERS[0], Client())
            await crew.join(2)
            waiting = crew.open(crew.fronts[1].driver)
            await until(lambda: crew.owner._early)
            crew.owner._remind()
            crew.owner._remind()  # until somebody comes in its place
            assert crew.hung == [1, 1]
            assert crew.running() == {}  # what it has is still unknown
            await settle(begun)
            await crew.join(1)
            await until(crew.fronts[1].waiting)
            crew.fronts[1].waiting()[0].answer()
            await settle(await waiting)
            crew.owner._remind()
            assert crew.hung == [1, 1]

    run(test)


def test_a_front_that_was_hung_up_on_is_to_be_killed(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with crew_of(tmp_path, 1) as crew:
            (one,) = crew.fronts
            begun = await crew.answered(one)
            crew.owner._links[1]._abort()
            await until(lambda: crew.hung == [1])
            assert not crew.owner._links
            await until(lambda: crew.running() == {"w0": 0})
            await settle(begun)

    run(test)


def test_a_front_that_is_gone_frees_all_that_it_had_though_patience_ends(
    tmp_path: pathlib.Path,
) -> None:
    async def test() -> None:
        async with crew_of(tmp_path) as crew:
            await crew.join(1, 2)
            one, two = crew.fronts
            crew.owner.worker_up(WORKERS[0], Client())
            await until(lambda: one.first_up.is_set() and two.first_up.is_set())
            begun = [await crew.answered(two), await crew.answered(two)]
            waiting = [crew.open(one.driver) for _ in range(3)]
            await until(lambda: crew.queued() == 3)
            link = crew.owner._links[1]
            one.linking.cancel()
            crew.clock.advance(BOOK.promises[Tier.HIGH].patience_ns)
            crew.owner._bury(link)
            assert crew.queued() == 0
            assert set(crew.owner._whose.values()) == {crew.owner._links[2]}
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            for delivery in begun:
                await settle(delivery)
            await until(lambda: crew.running() == {"w0": 0})

    run(test)


def test_without_an_owner_callers_are_told_after_a_while(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with crew_of(tmp_path) as crew:
            await crew.join(1)
            (one,) = crew.fronts
            crew.die()
            await until(lambda: one.driver._link is None)
            waiting = crew.open(one.driver)
            await until(lambda: one.driver._flights)
            one.driver.housekeep_once()
            assert not waiting.done()
            crew.clock.advance(OWNER_NS_MAX + 1)
            one.driver.housekeep_once()
            with pytest.raises(WorkerUnavailable, match="dispatches requests does not answer"):
                await waiting
            with pytest.raises(WorkerUnavailable, match="It is being started again"):
                await crew.open(one.driver)
            assert await one.driver.texts() == {1: b"front 1"}
            await crew.start(1)
            await until(lambda: one.driver._link is not None)
            assert not one.driver._ledger.void_orphans(crew.clock.unix_ns())

    run(test)


def test_workers_of_our_own_are_told_of_and_end_with_their_owner(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with crew_of(tmp_path, config=EMBEDDED) as crew:
            nobody = socket.create_server(("127.0.0.1", 0))
            port = nobody.getsockname()[1]
            nobody.close()
            await crew.join(1)
            (one,) = crew.fronts
            crew.owner.worker_up(WORKERS[0], WorkerClient("127.0.0.1", port, "secret"))
            await until(one.first_up.is_set)
            client = one.driver._seats[WORKERS[0]].client
            assert isinstance(client, WorkerClient)
            assert (client.host, client.port, client.api_key) == ("127.0.0.1", port, "secret")
            with pytest.raises(WorkerFailed, match="broke off this request 3 times"):
                await crew.open(one.driver)
            assert crew.owner._whose == {}
            crew.die()
            await until(lambda: one.driver._seats[WORKERS[0]].client is None)
            await crew.start(1)
            await until(lambda: one.driver._link is not None)

    run(test)


def test_metrics_of_all_processes(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with crew_of(tmp_path) as crew:
            assert await crew.owner.texts() == {0: b"owner"}
            await crew.join(1, 2)
            everything = {0: b"owner", 1: b"front 1", 2: b"front 2"}
            assert await all_texts(crew.owner, 3) == everything
            assert await all_texts(crew.fronts[1].driver, 3) == everything
            gauges = crew.fronts[0].driver.gauges()
            assert (gauges.workers, gauges.dispatched, gauges.unstored) == ((), {}, 0)

    run(test)


@pytest.mark.parametrize("asks", ["the owner", "a front"])
def test_metrics_do_not_wait_for_a_front_that_has_died(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    monkeypatch.setattr(owner_module, "TEXTS_S_MAX", 3_600.0)
    monkeypatch.setattr(front_module, "TEXTS_S_MAX", 3_600.0)

    async def test() -> None:
        async with crew_of(tmp_path) as crew:
            await crew.join(1, 2)
            one, two = crew.fronts
            assert two.driver._link is not None
            monkeypatch.setattr(two.driver._link, "_take", lambda *_: two.linking.cancel())
            asker = crew.owner if asks == "the owner" else one.driver
            asked = asyncio.ensure_future(asker.texts())
            await until(two.linking.done)  # it was asked, and dies before it answers
            two.driver.unlink()
            assert await asked == {0: b"owner", 1: b"front 1"}

    run(test)


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff",  # too long
        b"\x00\x00\x00\x01\xc1",  # no MessagePack
        b"\x00\x00\x00\x0b\x91\x81\xa4type\xa3???"[:15],  # no message
    ],
)
def test_who_speaks_another_language_is_hung_up_on(tmp_path: pathlib.Path, said: bytes) -> None:
    async def test() -> None:
        async with crew_of(tmp_path) as crew:
            reader, writer = await asyncio.open_unix_connection(crew.path)
            writer.write(said)
            with_welcome = await reader.read()
            assert with_welcome.endswith(msgspec.msgpack.encode([Welcome()]))
            writer.close()
            assert crew.owner._links == {}

    run(test)


def test_what_only_the_other_side_may_say_ends_the_link(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with crew_of(tmp_path) as crew:
            await crew.join(1)
            (one,) = crew.fronts
            link = one.driver._link
            assert link is not None
            link.send(Welcome())
            await until(lambda: crew.hung)  # and comes again, and once more
            assert one.driver._link is not link
            await crew.join(2)
            crew.owner._links[2].send(Report(index=2, name="", running=[]))
            before = crew.fronts[1].driver._link
            await until(lambda: crew.fronts[1].driver._link not in {None, before})

    run(test)


@pytest.mark.parametrize("said", ["arrived", "withdrawn", "withdrawn from a new owner"])
def test_who_speaks_of_another_ones_request_is_hung_up_on(
    tmp_path: pathlib.Path, said: str
) -> None:
    async def test() -> None:
        async with crew_of(tmp_path, 1, 2) as crew:
            one, two = crew.fronts
            begun = await crew.answered(one)
            (arrived,) = one.driver._arrivals.values()
            if said == "withdrawn from a new owner":
                crew.die()
                await until(lambda: one.driver._link is None and two.driver._link is None)
                await crew.start(1, 2)
                crew.owner.worker_up(WORKERS[0], Client())
                await until(lambda: len(crew.owner._links) == 2)
                assert crew.owner._taken_over
            link = two.driver._link
            assert link is not None
            link.send(arrived if said == "arrived" else Withdrawn(request=arrived.request))
            await until(lambda: crew.hung == [2])
            waiting = [crew.open(one.driver) for _ in range(2)]
            await until(one.waiting)
            assert crew.queued() == 1  # the slot is still taken
            await settle(begun)
            for each in waiting:
                await until(one.waiting)
                one.waiting()[0].answer()
                await settle(await each)
            await until(lambda: crew.running() == {"w0": 0})

    run(test)


def test_more_than_a_frame_holds_goes_in_several(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with crew_of(tmp_path) as crew:
            await crew.join(1)
            (one,) = crew.fronts
            link = one.driver._link
            assert link is not None
            said = Texts(number=-1, texts={1: b"x" * 12_000})
            assert FRAME_BYTES_MAX < 1_500 * 12_000
            for _ in range(1_500):
                link.send(said)
            assert (await all_texts(one.driver, 2))[0] == b"owner"
            assert one.driver._link is link
            assert crew.hung == []

    run(test)


def test_settings_are_the_owners_to_tell(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with crew_of(tmp_path) as crew:
            await crew.join(1)
            (one,) = crew.fronts
            events = crew.owner._dispatcher.counts()["events"]
            one.driver.tell(settings_for(BOOK, LIMITS, None, ()))
            assert (await all_texts(one.driver, 2))[0] == b"owner"  # and nothing came before it
            assert crew.owner._dispatcher.counts()["events"] == events

    run(test)


AFTER_NS = BOOK.promises[Tier.HIGH].ttft_ns // 2


@asynccontextmanager
async def doubled(folder: pathlib.Path) -> AsyncIterator[tuple[Crew, Front, Any, Any, Any]]:
    """A request of a front that two workers have, as the owner said."""
    async with crew_of(folder) as crew:
        for worker in WORKERS:
            crew.owner.worker_up(worker, Client())
        limits = msgspec.structs.replace(LIMITS, hedge_percent=100)
        crew.owner.tell(settings_for(BOOK, limits))
        await crew.join(1)
        (front,) = crew.fronts
        await until(lambda: len(front.clients) == 2)
        opening = crew.open(front.driver)
        await until(front.waiting)
        crew.clock.advance(AFTER_NS)
        crew.owner.tell(Ticked())
        await until(lambda: len(front.waiting()) == 2)
        assert crew.running() == {"w0": 1, "w1": 1}
        yield (crew, front, opening, *(client.exchanges[0] for client in front.clients.values()))
        await until(lambda: set(crew.running().values()) == {0})


@pytest.mark.parametrize("winner", [0, 1])
def test_a_front_asks_a_second_worker(tmp_path: pathlib.Path, winner: int) -> None:
    async def test() -> None:
        async with doubled(tmp_path) as (crew, _, opening, *exchanges):
            exchanges[winner].answer()
            delivery = await opening
            await until(lambda: exchanges[1 - winner].cancelled)
            await until(lambda: crew.running() == {"w0": 1 - winner, "w1": winner})
            assert crew.owner._dispatcher.counts()["hedges_won"] == winner
            await settle(delivery)

    run(test)


@pytest.mark.parametrize("loser", [0, 1])
@pytest.mark.parametrize("how", ["fails", "down"])
def test_one_of_a_fronts_two_workers_is_lost(tmp_path: pathlib.Path, loser: int, how: str) -> None:
    async def test() -> None:
        async with doubled(tmp_path) as (crew, front, opening, *exchanges):
            if how == "fails":
                exchanges[loser].fail()
            else:
                crew.owner.worker_down(WORKERS[loser], "it died")
            await until(lambda: crew.running().get(WORKERS[loser], 0) == 0)
            (flight,) = front.driver._flights.values()
            await until(lambda: flight.rival is None)
            exchanges[1 - loser].answer()
            await settle(await opening)
            assert crew.owner._dispatcher.counts()["retried"] == 0

    run(test)


def test_a_failure_crosses_with_the_second_try(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with doubled(tmp_path) as (crew, front, opening, first, second):
            (flight,) = front.driver._flights.values()
            # The front says that the first has failed, and has not heard of the second yet.
            rival = flight.rival
            assert rival is not None
            flight.rival = None
            rival.sending.cancel()
            first.fail()
            await until(lambda: flight.attempt == 0)
            await until(lambda: crew.running() == {"w0": 0, "w1": 1})
            hedge = hedge_of(flight.order.request, WORKERS[1], AFTER_NS)
            front.driver._carry_out(hedge)
            await until(lambda: len(front.clients[WORKERS[1]].exchanges) == 2)
            assert second.cancelled
            front.clients[WORKERS[1]].exchanges[1].answer()
            await settle(await opening)

    run(test)


def test_the_next_owner_hears_of_one_worker(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with doubled(tmp_path) as (crew, front, opening, first, second):
            crew.die()
            await until(lambda: second.cancelled)
            await crew.start(1)
            for worker in WORKERS:
                crew.owner.worker_up(worker, Client())
            await until(lambda: crew.running() == {"w0": 0, "w1": 0})
            assert crew.owner._taken_over.keys() == front.driver._flights.keys()
            first.answer()
            await settle(await opening)
            await until(lambda: not crew.owner._taken_over)

    run(test)
