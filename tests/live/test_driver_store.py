"""The driver when its ledger's store fails: nothing is lost, nothing is billed twice."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from tests.ledger import ledger_samples
from tests.ledger.memory_store import MemoryStore
from tests.live.driver_world import SECRET, HangingStore, World, outcome, settle_down, until
from tests.live.reading import Reading
from tokenworks.catalogue.price_book import parse_price_book
from tokenworks.core.errors import CapacityExceeded, LedgerCorrupt, LedgerUnavailable
from tokenworks.core.ids import KeyID
from tokenworks.core.slo import Measured
from tokenworks.core.units import NS_PER_HOUR, NS_PER_MS, NS_PER_S
from tokenworks.ledger.entries import Reserved, Voided
from tokenworks.ledger.store_port import InDoubt, recover
from tokenworks.live import bookkeeper
from tokenworks.live import driver as driver_module
from tokenworks.live.flights import LiveDelivery

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Test = Callable[[World], Coroutine[Any, Any, None]]
LATER_UNIX_NS = 1_800_000_000 * NS_PER_S
LATER_BOOK = ledger_samples.book_text(name="later").replace("2026-01-01", "2027-01-10")


@pytest.fixture(autouse=True)
def _reservations_go_to_the_store_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookkeeper, "HELD_S_MAX", 0.0)


@pytest.fixture
def live(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Test], None]:
    """Run a test in a world, let the store recover, and look that nothing is left behind."""
    monkeypatch.setattr(driver_module, "BREATHER_NS", 0)

    def go(test: Test) -> None:
        async def main() -> None:
            world = World(tmp_path)
            await test(world)
            await recovered(world)
            await world.check()

        run(main())

    return go


async def settle_for_nobody(world: World, delivery: LiveDelivery, *, late: bool = False) -> None:
    """Have the bill of an answer cancelled while the slow store is at it, which then answers.

    Args:
        late: cancel it after the store has answered, in the same turn.
    """
    settling = asyncio.create_task(delivery.settle(outcome()))
    await settle_down()
    if late:
        (appended, _), *_ = world.store._waiting
        appended.add_done_callback(lambda _: settling.cancel())
    else:
        settling.cancel()
        await asyncio.wait({settling})
    world.store.release()
    await settle_down()
    assert settling.cancelled()


async def recovered(world: World) -> None:
    """The disk works again; every entry is stored in a few rounds."""
    world.store.failing = False
    world.store.release()
    for _ in range(4):
        await settle_down()
        world.driver.housekeep_once()
    await settle_down()
    assert world.driver._bookkeeper._unstored == []


def test_a_reservation_that_cannot_be_stored_starts_nothing_in_trouble(
    live: Callable[[Test], None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        world.store.failing = True
        first = world.open()  # nobody knows of the trouble yet
        await settle_down()
        assert world.driver.healthy() == (False, "The disk is full.")
        with pytest.raises(LedgerUnavailable) as caught:
            await world.driver.open(world.order())
        assert caught.value.retry_after_s == 5
        assert len(client.exchanges) == 1
        assert len(world.ledger.open_holds()) == 1  # the refused one holds nothing
        client.waiting()[0].answer()
        delivery = await first
        with pytest.raises(LedgerUnavailable, match="could not be billed"):
            await delivery.settle(outcome())
        assert world.ledger.open_holds() == ()
        assert world.used_tokens() == 0
        await recovered(world)
        assert world.driver.healthy()[0]
        assert len(world.entries(Reserved)) == 2
        assert {entry.reason for entry in world.voided} == {"failed", "rejected"}
        later, _ = await world.answering(client)
        await later.settle(outcome())
        assert len(world.posted) == 1

    live(test)


def test_an_answer_is_billed_although_its_reservation_was_not_stored(
    live: Callable[[Test], None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        world.store.failing = True
        delivery, _ = await world.answering(client)
        assert world.entries(Reserved) == []
        world.store.failing = False
        receipt = await delivery.settle(outcome())
        assert receipt.charged_nanodollars > 0
        assert len(world.entries(Reserved)) == len(world.posted) == 1
        assert world.driver.healthy()[0]

    live(test)


def test_a_voiding_is_not_given_up_while_its_reservation_fails_again(
    live: Callable[[Test], None],
) -> None:
    async def test(world: World) -> None:
        world.up()
        store, disk = world.store, LedgerUnavailable("The disk is full.")
        early = LedgerCorrupt("It settles what was not reserved.")
        store.slow = True
        opening = world.open()
        await settle_down()
        opening.cancel()
        await settle_down()

        async def fails(number: int, error: Exception) -> None:
            store._waiting[number][0].set_exception(error)
            del store._waiting[number]
            await settle_down()

        await fails(0, disk)
        world.driver.housekeep_once()  # the reservation is tried again while the voiding waits
        await fails(0, early)
        world.driver.housekeep_once()
        assert [type(entry) for _, (entry,) in store._waiting] == [Reserved, Voided]
        await fails(0, disk)
        await fails(0, early)
        await recovered(world)
        assert len(world.voided) == 1

    live(test)


def test_a_reservation_and_its_answer_meet_the_failing_disk_together(
    live: Callable[[Test], None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        world.store.slow = True
        delivery, _ = await world.answering(client)
        settling = asyncio.create_task(delivery.settle(outcome()))
        await settle_down()
        (reserving, _), _ = world.store._waiting
        reserving.set_exception(LedgerUnavailable("The disk is full."))
        world.store._waiting.pop(0)
        world.store.release()  # by now it works: the posting is there before its reservation
        receipt = await settling
        assert receipt.charged_nanodollars > 0
        assert len(world.entries(Reserved)) == len(world.posted) == 1

    live(test)


@pytest.fixture
def _reservations_are_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookkeeper, "HELD_S_MAX", 3_600.0)


@pytest.mark.usefixtures("_reservations_are_kept_back")
def test_a_reservation_is_stored_by_one_append_with_its_settlement(
    live: Callable[[Test], None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        delivery, _ = await world.answering(client)
        world.clock.advance(5)
        assert world.driver._bookkeeper.lag() == (1, 0, 5)
        opening = world.open()
        await settle_down()
        assert world.store.appends == 0
        await delivery.settle(outcome())
        assert world.store.appends == len(world.entries(Reserved)) == len(world.posted) == 1
        client.waiting()[0].answer(400)
        assert isinstance((await asyncio.gather(opening, return_exceptions=True))[0], Exception)
        await settle_down()
        assert world.store.appends == len(world.entries(Reserved)) == 2
        assert len(world.voided) == 1
        assert world.driver._bookkeeper.lag() == (0, 0, 0)

    live(test)


@pytest.mark.parametrize(
    ("streamed", "ttft_ns", "decode_ns", "patient"),
    [
        (True, 60, 40, True),
        (True, None, 100, True),
        (True, 60, 39, False),
        (False, 60, 40, False),
    ],
)
def test_the_end_of_a_stream_that_took_long_may_wait(
    live: Callable[[Test], None],
    ttft_ns: int | None,
    decode_ns: int,
    *,
    streamed: bool,
    patient: bool,
) -> None:
    ttft_ns = None if ttft_ns is None else ttft_ns * NS_PER_MS
    measured = Measured(ttft_ns=ttft_ns, decode_ns=decode_ns * NS_PER_MS, output_tokens=20)

    async def test(world: World) -> None:
        client = world.up()
        delivery, _ = await world.answering(client)
        ended = outcome(measured=measured)
        await delivery.settle(msgspec.structs.replace(ended, streamed=streamed))
        assert world.store.patient[-1] is patient

    live(test)


@pytest.mark.usefixtures("_reservations_are_kept_back")
def test_an_answer_that_fails_to_be_stored_with_its_reservation_is_given_back(
    live: Callable[[Test], None],
) -> None:
    async def test(world: World) -> None:
        delivery, _ = await world.answering(world.up())
        world.store.failing = True
        with pytest.raises(LedgerUnavailable, match="could not be billed"):
            await delivery.settle(outcome())
        await settle_down()
        unstored = world.driver._bookkeeper._unstored
        assert [each.phase for each in unstored] == ["reserve", "settle"]
        await recovered(world)
        assert len(world.entries(Reserved)) == len(world.voided) == 1
        assert world.posted == []

    live(test)


@pytest.mark.usefixtures("_reservations_are_kept_back")
def test_what_is_kept_back_is_stored_before_all_are_told(live: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        delivery, _ = await world.answering(world.up())
        await world.driver._bookkeeper.all_told()
        assert len(world.entries(Reserved)) == 1
        assert world.driver._bookkeeper.lag() == (0, 0, 0)
        await delivery.settle(outcome())
        assert len(world.posted) == 1

    live(test)


@pytest.mark.usefixtures("_reservations_are_kept_back")
def test_what_expires_is_stored_after_its_reservation(live: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        delivery, _ = await world.answering(world.up())
        world.clock.advance(bookkeeper.HOLD_NS_MAX)
        world.driver.housekeep_once()
        await settle_down()
        assert [each.reason for each in world.voided] == ["expired"]
        assert world.driver._bookkeeper._unstored == []
        with pytest.raises(LedgerUnavailable, match="cannot be billed"):
            await delivery.settle(outcome())

    live(test)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.usefixtures("_reservations_are_kept_back")
def test_an_answer_that_fails_to_be_stored_is_given_back_although_nobody_waits_for_its_bill(
    live: Callable[[Test], None], *, late: bool
) -> None:
    async def test(world: World) -> None:
        delivery, _ = await world.answering(world.up())
        world.store.slow = world.store.failing = True
        await settle_for_nobody(world, delivery, late=late)
        assert world.ledger.open_holds() == ()
        assert not world.driver.healthy()[0]
        await recovered(world)
        assert len(world.entries(Reserved)) == 1
        assert [each.reason for each in world.voided] == ["failed"]
        assert world.posted == []

    live(test)


@pytest.mark.parametrize("late", [False, True])
def test_an_answer_whose_reservation_failed_is_billed_although_nobody_waits_for_its_bill(
    live: Callable[[Test], None], *, late: bool
) -> None:
    async def test(world: World) -> None:
        world.store.failing = True
        delivery, _ = await world.answering(world.up())
        await until(lambda: world.driver._bookkeeper._unstored)
        world.store.failing, world.store.slow = False, True
        await settle_for_nobody(world, delivery, late=late)
        assert len(world.entries(Reserved)) == len(world.posted) == 1
        assert world.driver._bookkeeper.lag() == (0, 0, 0)
        assert world.driver.healthy()[0]

    live(test)


@pytest.mark.parametrize("late", [False, True])
def test_an_answer_in_doubt_is_trouble_although_nobody_waits_for_its_bill(
    run: Run, tmp_path: pathlib.Path, *, late: bool
) -> None:
    async def main() -> None:
        world = World(tmp_path, limits=[World.limit(100)])
        delivery, _ = await world.answering(world.up())
        world.store.slow, world.store.losing = True, "kept"
        await settle_for_nobody(world, delivery, late=late)
        (window,) = world.ledger.windows()
        assert (window.used, window.held) == (30, 0)
        assert world.driver.healthy() == (False, "It cannot tell. Start again.")
        await world.driver.close()

    run(main())


def test_a_reservation_that_waits_for_another_try_waits_once_although_its_bill_was_cancelled(
    run: Run, tmp_path: pathlib.Path
) -> None:
    async def main() -> None:
        world = World(tmp_path)
        world.store.failing = True
        delivery, _ = await world.answering(world.up())
        await until(lambda: world.driver._bookkeeper._unstored)
        world.store.slow = True
        await settle_for_nobody(world, delivery)
        assert [each.phase for each in world.driver._bookkeeper._unstored] == ["reserve", "settle"]
        world.store.failing = False
        await world.driver.close()
        assert len(world.entries(Reserved)) == 1

    run(main())


def test_what_follows_a_posting_that_fails_is_waited_for_at_the_end(
    live: Callable[[Test], None],
) -> None:
    async def test(world: World) -> None:
        delivery, _ = await world.answering(world.up())
        await settle_down()
        world.store.slow = True
        settling = asyncio.create_task(delivery.settle(outcome()))
        await settle_down()
        ending = asyncio.create_task(world.driver._bookkeeper.all_told())
        await settle_down()
        world.store.failing = True
        world.store.release()
        await ending
        assert [each.phase for each in world.driver._bookkeeper._unstored] == ["settle"]
        with pytest.raises(LedgerUnavailable, match="could not be billed"):
            await settling

    live(test)


def test_a_posting_that_the_store_contradicts_is_not_billed(live: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        delivery, _ = await world.answering(world.up())

        def corrupt(entries: object) -> asyncio.Future[None]:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.set_exception(LedgerCorrupt("It contradicts what is stored."))
            return future

        append, world.store.append = world.store.append, corrupt  # type: ignore[method-assign]
        with pytest.raises(LedgerUnavailable, match="contradicts"):
            await delivery.settle(outcome())
        await settle_down()
        world.store.append = append  # type: ignore[method-assign]

    live(test)


def test_entries_that_the_store_will_never_take_are_given_up(
    live: Callable[[Test], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def test(world: World) -> None:
        from tests.ledger.ledger_samples import ledger, reserve

        hold = reserve(other := ledger(), "stranger")
        void = other.void(1, hold.request, reason="expired")
        world.driver._bookkeeper._keep([void])  # its reservation is stored nowhere
        await settle_down()
        assert world.driver._bookkeeper._unstored == [void]

    live(test)
    assert "the ledger refuses" in caplog.text


def test_what_waits_to_be_stored_again_counts_as_lag(live: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        world.store.failing = True
        world.clock.advance(10 * NS_PER_S)
        world.driver.housekeep_once()  # the cost of these seconds cannot be stored
        await settle_down()
        world.clock.advance(30 * NS_PER_S)
        storing, unstored, lag_ns = world.driver._bookkeeper.lag()
        assert (storing, unstored, lag_ns) == (0, 1, 30 * NS_PER_S)
        await recovered(world)
        assert world.driver._bookkeeper.lag() == (0, 0, 0)

    live(test)


def test_leaving_while_the_store_is_in_trouble_leaves_no_hold(
    live: Callable[[Test], None],
) -> None:
    async def test(world: World) -> None:
        world.up()
        world.driver._bookkeeper._in_trouble(LedgerUnavailable("The disk is slow."))
        world.store.slow = True
        opening = world.open()
        await settle_down()
        assert len(world.ledger.open_holds()) == 1
        opening.cancel()
        await settle_down()
        assert opening.cancelled()
        assert world.ledger.open_holds() == ()
        world.store.failing = True
        world.store.release()
        await settle_down()
        assert len(world.driver._bookkeeper._unstored) == 2

    live(test)


def test_closing_while_a_reservation_is_stored_starts_nothing(
    live: Callable[[Test], None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        world.driver._bookkeeper._in_trouble(LedgerUnavailable("The disk is slow."))
        world.store.slow = True
        opening = world.open()
        await settle_down()
        closing = asyncio.create_task(world.driver.close())
        await settle_down()
        world.store.release()
        with pytest.raises(CapacityExceeded, match="shutting down"):
            await opening
        await closing
        assert client.exchanges == []

    live(test)


def test_voids_wait_for_the_disk_in_the_order_that_stores_them(
    live: Callable[[Test], None],
) -> None:
    async def test(world: World) -> None:
        world.up().auto = lambda exchange: exchange.answer(400)
        world.store.slow = world.store.failing = True
        openings = [world.open() for _ in range(6)]
        await settle_down()
        world.store.release()
        results = await asyncio.gather(*openings, return_exceptions=True)
        assert all(isinstance(each, Exception) for each in results)
        await settle_down()
        world.driver._bookkeeper._unstored.reverse()
        appends = world.store.appends
        world.driver.housekeep_once()  # in trouble one request's entries are tried, not all
        await settle_down()
        assert world.store.appends == appends + 1
        assert world.ledger.open_holds() == ()

    live(test)


def test_cost_survives_a_disk_that_fails(live: Callable[[Test], None]) -> None:
    async def test(world: World) -> None:
        began = world.clock.unix_ns()
        world.store.failing = True
        for _ in range(20):
            world.clock.advance(10 * NS_PER_S)
            world.driver.housekeep_once()
            await settle_down()
        assert (
            len(world.driver._bookkeeper._unstored) == 1
        )  # the rest is one interval, still to come
        await recovered(world)
        world.clock.advance(10 * NS_PER_S)
        world.driver.housekeep_once()
        rows = world.accrued
        assert rows[0].from_unix_ns == began
        assert rows[-1].until_unix_ns == world.clock.unix_ns()
        assert sum(row.capital_nanodollars for row in rows) == 210 * 10_000

    live(test)


@pytest.mark.parametrize("call", ["settings_version", "read_limits", "put_price_book"])
def test_a_store_that_hangs_stops_no_stream_and_no_question(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(driver_module, "HOUSEKEEPING_NS", 0)

    async def main() -> None:
        store = HangingStore()
        books = [ledger_samples.BOOK, parse_price_book(LATER_BOOK)]
        world = World(tmp_path, books=books, store=store)
        client = world.up()
        keeping = asyncio.ensure_future(world.driver.housekeep())
        store.hanging = {call}
        store.put_key(World.key("new", b"another"))  # from now on there is something to read
        world.clock.unix = LATER_UNIX_NS
        await until(lambda: store.entered)
        world.clock.advance(20 * NS_PER_S)
        delivery, stream = await world.answering(client)
        stream.feed(b"part")
        assert await Reading(delivery).read() == b"part"
        receipt = await delivery.settle(outcome())
        assert receipt.charged_nanodollars > 0
        assert world.driver.healthy()[0]
        await until(lambda: world.accrued)
        assert store.entered == [call]  # it is not begun a second time
        assert not keeping.done()
        store.hanging = set()
        store.revoke_key(KeyID("key"), 5)  # changed while it was read: the next reading has it
        store.go_on.set()
        await until(lambda: world.key_of(SECRET) is None)
        assert world.key_of(b"another") is not None
        keeping.cancel()
        await asyncio.wait({keeping})
        assert keeping.cancelled()
        await world.check()

    run(main())


def test_a_limit_that_is_read_slowly_counts_what_was_used_meanwhile(
    run: Run, tmp_path: pathlib.Path
) -> None:
    async def main() -> None:
        store = HangingStore()
        world = World(tmp_path, store=store)
        client = world.up()
        before, _ = await world.answering(client)
        await before.settle(outcome(20))
        store.put_limit(World.limit(1_000))
        store.hanging = {"read_limits"}
        reading = asyncio.ensure_future(world.driver.keep_up())
        await until(lambda: store.entered)
        meanwhile, _ = await world.answering(client)
        await meanwhile.settle(outcome(4))
        still_open, _ = await world.answering(client)
        store.go_on.set()
        await reading
        (window,) = world.ledger.windows()
        assert (window.used, window.held) == (30 + 14, 30)
        await still_open.settle(outcome(1))
        await world.check()

    run(main())


def test_a_window_that_ends_while_limits_are_read_is_read_again(
    run: Run, tmp_path: pathlib.Path
) -> None:
    async def main() -> None:
        store = HangingStore()
        world = World(tmp_path, store=store)
        store.put_limit(ledger_samples.limit("hourly", "key:key", unit="tokens", period="hour"))
        store.hanging = {"read_limits"}
        reading = asyncio.ensure_future(world.driver.keep_up())
        await until(lambda: store.entered)
        world.clock.advance(NS_PER_HOUR)
        store.go_on.set()
        await reading
        assert world.ledger.windows() == ()
        await world.round()
        (window,) = world.ledger.windows()
        assert window.start_unix_ns <= world.clock.unix_ns() < window.end_unix_ns
        await world.check()

    run(main())


def test_what_breaks_housekeeping_ends_it(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "HOUSEKEEPING_NS", 0)

    async def main() -> None:
        world = World(tmp_path)

        def broken() -> int:
            raise ZeroDivisionError

        monkeypatch.setattr(world.store, "settings_version", broken)
        with pytest.raises(ZeroDivisionError):
            await world.driver.housekeep()
        await world.check()

    run(main())


@pytest.mark.parametrize("kept", ["kept", "not kept"])
def test_an_answer_in_doubt_is_neither_billed_twice_nor_lost(
    run: Run, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, kept: Any
) -> None:
    async def main() -> None:
        world = World(tmp_path, limits=[World.limit(100)])
        client = world.up()
        delivery, _ = await world.answering(client)
        other, _ = await world.answering(client)
        world.store.losing = kept
        with pytest.raises(InDoubt, match="not known whether the answer is billed") as caught:
            await delivery.settle(outcome(20))
        assert caught.value.hint == "Start again."
        (window,) = world.ledger.windows()
        assert (window.used, window.held) == (30, 30)  # it counts, whatever comes out
        with pytest.raises(LedgerUnavailable, match="could not be billed"):
            await other.settle(outcome(20))
        world.clock.advance(20 * NS_PER_S)
        for _ in range(3):
            await world.round()
            await settle_down()
        assert world.driver.healthy() == (False, "It cannot tell. Start again.")
        appends = world.store.appends
        with pytest.raises(LedgerUnavailable, match="cannot tell"):
            await world.driver.open(world.order())
        assert world.store.appends == appends
        await world.driver.close()
        # The next start finds out.
        heir = MemoryStore("heir", world.store._memory)
        heir.append_now(recover(heir, world.clock.unix_ns()).void_orphans(world.clock.unix_ns()))
        assert len(world.posted) == (kept == "kept")
        assert world.used_tokens() == (30 if kept == "kept" else 0)
        assert len(world.posted) + len(world.voided) == len(world.entries(Reserved)) == 2

    run(main())
    assert "it is not known whether these are stored" in caplog.text


def test_a_reservation_in_doubt_is_trouble_for_good(run: Run, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        world = World(tmp_path)
        client = world.up()
        world.store.losing = "kept"
        delivery, _ = await world.answering(client)
        assert not world.driver.healthy()[0]
        assert world.driver._bookkeeper._unstored == []
        with pytest.raises(LedgerUnavailable, match="could not be billed"):
            await delivery.settle(outcome(20))
        await world.driver.close()
        assert world.posted == []

    run(main())


def test_closing_tries_everything_once_more(run: Run, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        world = World(tmp_path)
        world.store.failing = True
        world.up().auto = lambda exchange: exchange.answer(400)
        await asyncio.gather(world.open(), world.open(), return_exceptions=True)
        await settle_down()
        world.store.failing = False
        await world.check()
        assert len(world.entries(Reserved)) == len(world.voided) == 2

    run(main())


def test_closing_on_a_dead_disk_says_what_is_lost(
    run: Run, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        world = World(tmp_path)
        world.store.failing = True
        world.clock.advance(NS_PER_HOUR)
        await world.driver.close()

    run(main())
    assert "1 ledger entries could not be written" in caplog.text
