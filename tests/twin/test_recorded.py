"""A journal becomes a factory and a workload again, and running these is running what it was."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.twin.factory import TIMING
from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.errors import JournalInvalid
from tokenworks.core.ids import RequestID, WorkerID
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.commands import Command, Preempt, Reject, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import (
    Arrived,
    Event,
    Failed,
    Finished,
    PolicySettings,
    PrefilledBy,
    Started,
    Ticked,
    Withdrawn,
    WorkerDown,
    WorkerUp,
)
from tokenworks.dispatch.journal_format import entries_of, event_records, start_records
from tokenworks.dispatch.journal_header import JournalHeader
from tokenworks.dispatch.journal_records import JournalEntry, JournalStart
from tokenworks.perf.timing import FS_PER_NS
from tokenworks.twin.driver import Driver, Hooks, run
from tokenworks.twin.journal import FileJournal
from tokenworks.twin.recorded import Reader, Recorded, book_of, timing_from
from tokenworks.twin.records import End, TwinRequest, arrival_of, worker_up
from tokenworks.twin.report import report
from tokenworks.twin.scenarios import build
from tokenworks.twin.workload import MIX_DEFAULT, Demand, generated_trace, requests_of

S = NS_PER_S
SCENARIO = build("mixed", 3, "economic").scenario
BOOK = SCENARIO.book


def workload(rate: float = 20, duration_s: float = 20) -> list[TwinRequest]:
    trace = generated_trace(7, rate_per_s=rate, duration_s=duration_s)
    model = SCENARIO.workers[0].model
    return requests_of(trace, Demand(model=model, mix=MIX_DEFAULT, tenants=3), 7)


def written(path: Path, requests: Sequence[TwinRequest], hooks: Hooks | None = None) -> Any:
    """A run of the twin whose journal is in a file."""
    dispatcher = Dispatcher()
    journal = FileJournal(path, dispatcher)
    result = run(SCENARIO, requests, dispatcher=dispatcher, journal=journal, hooks=hooks)
    journal.close()
    return result


def read(path: Path, books: Sequence[PriceBook] = (BOOK,)) -> Recorded:
    reader = Reader()
    reader.take(entries_of(path.read_bytes(), path.name))
    return reader.recorded(path.stem, books)


def test_a_run_that_is_run_again_is_the_same_run(tmp_path: Path) -> None:
    requests = workload()
    result = written(tmp_path / "x.twj", requests)
    recorded = read(tmp_path / "x.twj")
    assert [each.request for each in recorded.requests] == [each.request for each in requests]
    assert [each.blocks for each in recorded.requests] == [each.blocks for each in requests]
    assert recorded.left_out == recorded.lengths_estimated == recorded.timings_estimated == 0
    again = run(recorded.scenario, recorded.requests, hooks=recorded.hooks())
    before = report(SCENARIO, requests, result)
    for found in (
        report(recorded.scenario, recorded.requests, recorded.result),
        report(recorded.scenario, recorded.requests, again),
    ):
        assert found.revenue_nanodollars == before.revenue_nanodollars
        assert found.all.done == before.all.done == len(requests)
        assert found.all.speeds.ttft_ms == before.all.speeds.ttft_ms
    assert again.journal_digest == result.journal_digest


class Fails(Hooks):
    """A worker goes and comes again, one caller leaves, and one answer is broken off."""

    def begin(self, driver: Driver) -> None:
        worker = SCENARIO.workers[-1].worker
        driver.at(5 * S, lambda: driver.crash(worker, "it fell"))
        driver.at(8 * S, lambda: driver.start(worker))
        for number in range(50, 75):
            name = RequestID(f"r{number}")
            driver.at(3 * S, functools.partial(driver.withdraw, name))


def test_workers_go_and_come_as_they_did(tmp_path: Path) -> None:
    result = written(tmp_path / "x.twj", workload(), Fails())
    recorded = read(tmp_path / "x.twj")
    assert [(move.at_ns, move.why) for move in recorded.moves] == [
        (5 * S, "it fell"),
        (8 * S, None),
    ]
    ends = list(result.outcomes.end)
    assert recorded.left_out == ends.count(End.WITHDRAWN) > 0
    assert list(recorded.result.outcomes.end).count(End.FAILED) == ends.count(End.FAILED) > 0
    again = run(recorded.scenario, recorded.requests, hooks=recorded.hooks())
    assert recorded.lengths_estimated == ends.count(End.FAILED)
    assert list(again.outcomes.end).count(End.DONE) > 0.9 * len(recorded.requests)


# From events.


def up(worker: str = "w", **changes: Any) -> WorkerUp:
    given = {"slots": 4, "curve": ((1, 100), (4, 70))} | changes
    spec = SCENARIO.workers[0]
    return WorkerUp(worker=WorkerID(worker), pool=spec.pool, model=spec.model, **given)


def arrived(name: str, at_ns: int = 0, **changes: Any) -> Arrived:
    given = {
        "tenant": "t",
        "model": SCENARIO.workers[0].model,
        "tier": Tier.HIGH,
        "input_tokens_max": 1_000,
        "output_tokens_max": 500,
        "prefix": tuple(range(15)),
        "arrived_ns": at_ns,
    }
    return Arrived(request=RequestID(name), **given | changes)


def finished(name: str, **changes: Any) -> Finished:
    given = {"output_tokens": 40, "cached_input_tokens": 0, "input_tokens": 250} | changes
    return Finished(request=RequestID(name), **given)


CONFIGURED = SCENARIO.configured
ANSWERED: tuple[tuple[int, Event], ...] = (
    (0, CONFIGURED),
    (0, up()),
    (S, arrived("a", S)),
    (S + S // 100, Started(request=RequestID("a"))),
    (S + S // 2, finished("a")),
)


def told(*events: tuple[int, Event], books: Sequence[PriceBook] = (BOOK,)) -> Recorded:
    reader = Reader()
    header = JournalHeader(format=1, package_version="x", sequence=1)
    start = JournalStart(header=header, snapshot=Dispatcher().snapshot())
    entries = [
        JournalEntry(now_ns=now_ns, event=event, commands_digest=None) for now_ns, event in events
    ]
    reader.take([start, *entries])
    return reader.recorded("told", books)


def test_lengths_are_those_that_were_counted() -> None:
    (request,) = told(*ANSWERED).requests
    assert (request.at_ns, request.input_tokens, request.output_tokens) == (S, 250, 40)
    assert request.blocks == (0, 1, 2)  # blocks of 64 tokens that the prompt fills
    assert request.output_tokens_max == 500


def test_who_was_turned_away_would_have_got_what_others_got() -> None:
    end_ns = 1_000 * S
    recorded = told(
        *ANSWERED,
        (4 * S, arrived("b", 4 * S)),
        (4 * S, arrived("c", 4 * S, tier=Tier.ULTRA, output_tokens_max=30)),
        (end_ns, Ticked()),
    )
    lengths = [(each.input_tokens, each.output_tokens) for each in recorded.requests]
    assert lengths == [(250, 40), (250, 40), (250, 30)]
    assert recorded.lengths_estimated == 2
    assert list(recorded.result.outcomes.end) == [End.DONE, End.REJECTED, End.REJECTED]


def test_nobody_knows_how_long_answers_are_where_none_ended() -> None:
    recorded = told(*ANSWERED[:3], (1_000 * S, Ticked()))
    assert [each.output_tokens for each in recorded.requests] == [300]
    assert [each.input_tokens for each in recorded.requests] == [1_000]
    assert recorded.scenario.workers[0].timing.prefill_token_fs > 0


def test_what_is_open_at_the_end_and_who_left_is_left_out() -> None:
    recorded = told(
        *ANSWERED,
        (4 * S, arrived("leaves", 4 * S)),
        (4 * S, arrived("breaks", 4 * S)),
        (4 * S, arrived("waits", 4 * S)),
        (5 * S, Withdrawn(request=RequestID("leaves"))),
        (5 * S, finished("leaves")),  # too late
        (5 * S, finished("nobody")),
        (5 * S, Failed(request=RequestID("waits"), worker=WorkerID("w"), started=False)),
        (5 * S, Failed(request=RequestID("breaks"), worker=WorkerID("w"), started=True)),
    )
    assert [each.request for each in recorded.requests] == ["a", "breaks"]
    assert recorded.left_out == 2


def test_settings_that_changed_and_workers_measured_again_are_counted_once() -> None:
    other = msgspec.structs.replace(CONFIGURED, prices={})
    recorded = told(
        *ANSWERED,
        (4 * S, CONFIGURED),
        (4 * S, other),
        (4 * S, up(curve=((1, 5),))),
        (5 * S, WorkerDown(worker=WorkerID("stranger"), why="?")),
    )
    assert recorded.settings_changed == 1
    assert recorded.scenario.configured == CONFIGURED
    assert recorded.moves == ()


def test_an_engine_of_which_a_curve_is_known_is_made_of_it() -> None:
    recorded = told(*ANSWERED)
    assert recorded.timings_estimated == 1
    (spec,) = recorded.scenario.workers
    assert [spec.timing.speed_tokens_per_s(batch, 10**6) for batch in (1, 4)] == [100, 70]
    assert spec.timing.prefill_token_fs == S // 100 * FS_PER_NS // 250
    assert spec.kv_blocks * spec.block_tokens >= 4 * 290
    again = run(recorded.scenario, recorded.requests)
    assert again.outcomes.output_tokens[0] == 40


def test_an_engine_that_says_all_is_taken_at_its_word() -> None:
    known = up(timing=TIMING, kv_blocks=77, block_tokens=32, batch_tokens_max=99)
    recorded = told(ANSWERED[0], (2 * S, known), *ANSWERED[2:])
    (spec,) = recorded.scenario.workers
    assert (spec.timing, spec.kv_blocks, spec.block_tokens) == (TIMING, 77, 32)
    assert (spec.batch_tokens_max, spec.start_ns) == (99, 2 * S)


@pytest.mark.parametrize("curve", [((1, 100),), ((2, 100), (4, 200)), ((1, 0),)])
def test_any_curve_makes_a_timing(curve: tuple[tuple[int, int], ...]) -> None:
    timing = timing_from(curve, 7)
    assert timing.launch_fs >= FS_PER_NS
    assert timing.sequence_fs == 0
    assert timing.prefill_token_fs == 7


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ((), "tells of no worker"),
        (ANSWERED[:1], "tells of no worker"),
        (ANSWERED[:2], "no request that has ended"),
        (ANSWERED[:3], "no request that has ended"),
    ],
)
def test_a_journal_that_says_too_little_is_refused(
    events: tuple[tuple[int, Event], ...], said: str
) -> None:
    with pytest.raises(JournalInvalid, match=said):
        told(*events)


class Written:
    """A dispatcher, and the journal of what it is told.

    Args:
        before: what it was told before that begins.
        sequence: the journal's number.
    """

    def __init__(self, *before: tuple[int, Event], sequence: int = 1) -> None:
        self.dispatcher = Dispatcher()
        for now_ns, event in before:
            self.dispatcher.handle(now_ns, event)
        self.records = start_records(self.dispatcher, sequence)

    def tell(self, now_ns: int, event: Event) -> list[Command]:
        commands = self.dispatcher.handle(now_ns, event)
        self.records += event_records([(now_ns, event, commands)])
        return commands

    def read(self) -> Recorded:
        reader = Reader()
        reader.take(entries_of(self.records, "x"))
        return reader.recorded("x", (BOOK,))


def test_of_an_answer_in_one_piece_the_whole_time_counts() -> None:
    promise = BOOK.promises[Tier.HIGH]
    # Too late for a first token, and in time for all of it.
    whole_ns = promise.ttft_ns + promise.grace_ns
    journal = Written(*ANSWERED[:2])
    journal.tell(S, arrived("a", S, unheard=True))
    journal.tell(S + whole_ns, Started(request=RequestID("a")))
    journal.tell(S + whole_ns, finished("a"))
    journal.tell(20 * S, arrived("made", 20 * S, unheard=True))
    journal.tell(10_000 * S, Ticked())
    recorded = journal.read()
    was = report(recorded.scenario, recorded.requests, recorded.result)
    assert [each.request for each in recorded.requests] == ["a"]
    assert (was.all.promise_kept, was.all.delivered[Tier.HIGH]) == (1, 1)
    assert (was.all.speeds.ttft_ms.max, was.all.speeds.tpot_ms.max) == (None, None)
    assert was.all.speeds.wait_ms.max == 0
    assumed = timing_from(((1, 100), (4, 70)), None)
    assert recorded.scenario.workers[0].timing == assumed  # no prefill was measured


def test_a_journal_may_begin_in_the_middle() -> None:
    journal = Written(*ANSWERED[:2], (S, arrived("open", S)), (S, up("v")), sequence=2)
    journal.tell(2 * S, arrived("b", 2 * S))
    journal.tell(3 * S, finished("open"))
    journal.tell(4 * S, finished("b"))
    recorded = journal.read()
    assert [spec.worker for spec in recorded.scenario.workers] == ["w", "v"]
    assert [(each.request, each.at_ns) for each in recorded.requests] == [("b", S)]
    assert recorded.left_out == 1
    reader = Reader()
    reader.take(entries_of(journal.records, "x"))
    reader.take(entries_of(start_records(journal.dispatcher, 3), "y"))  # goes on with the next file
    assert reader.recorded("x", [BOOK]).requests == recorded.requests


def test_a_snapshot_says_who_prefills_for_whom() -> None:
    spec = SCENARIO.workers[0]
    by = PrefilledBy(workers=2, timing=TIMING, batch_tokens_max=256)
    dispatcher = Dispatcher()
    dispatcher.handle(0, SCENARIO.configured)
    dispatcher.handle(0, worker_up(spec, by))
    header = JournalHeader(format=1, package_version="x", sequence=1)
    reader = Reader()
    reader.take([JournalStart(header=header, snapshot=dispatcher.snapshot())])
    assert reader._ups[spec.worker][1] == worker_up(spec, by)


def test_a_snapshot_of_another_version_is_refused() -> None:
    header = JournalHeader(format=1, package_version="9.9", sequence=1)
    with pytest.raises(JournalInvalid) as caught:
        Reader().take([JournalStart(header=header, snapshot=b"\xc0")])
    assert "tokenworks 9.9" in (caught.value.hint or "")


# The price book.


def test_the_book_in_force_is_found_or_made() -> None:
    assert book_of(CONFIGURED, [BOOK]) is BOOK
    made = book_of(CONFIGURED, [])
    assert made.promises == CONFIGURED.promises
    assert made.ad_income_udollars_per_mtok == BOOK.ad_income_udollars_per_mtok
    assert made.prices == BOOK.prices
    by_hand = told(*ANSWERED, books=[])
    by_book = told(*ANSWERED)
    assert report_of(by_hand) == report_of(by_book) > 0


def test_a_journal_without_prices_needs_a_book() -> None:
    plain = msgspec.structs.replace(CONFIGURED, prices={})
    assert book_of(plain, [BOOK]) is BOOK
    with pytest.raises(JournalInvalid, match="tells no prices"):
        book_of(plain, [])


def report_of(recorded: Recorded) -> int:
    found = report(recorded.scenario, recorded.requests, recorded.result)
    return found.revenue_nanodollars


def test_prices_of_one_model_do_not_hide_the_others() -> None:
    (model,) = CONFIGURED.prices
    two = CONFIGURED.prices | {"a/b.c": CONFIGURED.prices[model]}
    made = book_of(msgspec.structs.replace(CONFIGURED, prices=two), [BOOK])
    assert set(made.prices) == {model, "a/b.c"}


# Who had what.


def ends_of(recorded: Recorded) -> dict[RequestID, int]:
    names = [each.request for each in recorded.requests]
    return dict(zip(names, recorded.result.outcomes.end, strict=True))


def test_only_answers_of_the_worker_that_fell_have_failed() -> None:
    requests = workload(4, 5)
    journal = Written()
    tell = journal.tell
    policy = PolicySettings(name="round-robin")
    tell(0, msgspec.structs.replace(SCENARIO.configured, policy=policy))
    for spec in SCENARIO.workers:
        tell(0, worker_up(spec))
    had: dict[RequestID, WorkerID] = {}
    for number, request in enumerate(requests[:12]):
        for command in tell(number, arrival_of(request, number)):
            if isinstance(command, Send):
                had[command.request] = command.worker
        tell(number, Started(request=request.request))
    fallen = min(had.values(), key=list(had.values()).count)
    lost = {name for name, worker in had.items() if worker == fallen}
    assert 0 < len(lost) < len(had) == 12
    tell(20, WorkerDown(worker=fallen, why="it fell"))
    recorded = journal.read()
    assert ends_of(recorded) == dict.fromkeys(lost, End.FAILED)
    assert recorded.left_out == 12 - len(lost)
    assert set(recorded.result.outcomes.finished_ns) == {20}
    # Where this version decides otherwise than is on record, nobody knows who had what.
    damaged = [
        msgspec.structs.replace(each, commands_digest=b"another!")
        if isinstance(each, JournalEntry)
        else each
        for each in entries_of(journal.records, "x")
    ]
    reader = Reader()
    reader.take(damaged)
    assert len(reader.recorded("x", (BOOK,)).requests) == 12


def test_an_answer_falls_with_the_second_worker_that_makes_it() -> None:
    (request,) = workload(4, 5)[:1]
    journal = Written()
    configured = SCENARIO.configured
    limits = msgspec.structs.replace(configured.limits, hedge_percent=100)
    policy, due_ns = PolicySettings(name="round-robin"), 100 * S
    first, second = (each.worker for each in SCENARIO.workers[:2])
    events: list[tuple[int, Event]] = [
        (0, msgspec.structs.replace(configured, limits=limits, policy=policy)),
        *((0, worker_up(spec)) for spec in SCENARIO.workers[:2]),
        (0, arrival_of(request, 0)),
        (due_ns, Ticked()),
        (due_ns, Started(request=request.request, worker=second)),
        (due_ns + 1, WorkerDown(worker=first, why="it fell")),
        (due_ns + 2, WorkerDown(worker=second, why="it fell, too")),
    ]
    for now_ns, event in events:
        journal.tell(now_ns, event)
    assert journal.dispatcher.counts()["hedges_won"] == 1
    recorded = journal.read()
    assert ends_of(recorded) == {request.request: End.FAILED}
    assert set(recorded.result.outcomes.finished_ns) == {due_ns + 2}


def test_who_makes_room_and_is_not_taken_up_again_has_failed() -> None:
    spec = msgspec.structs.replace(SCENARIO.workers[0], slots=1, preempts=True)
    journal = Written()
    tell = journal.tell
    tell(0, SCENARIO.configured)
    tell(0, worker_up(spec))
    low, top = (
        msgspec.structs.replace(
            workload(4, 5)[0], request=RequestID(tier.value), tier=tier, input_tokens=100, blocks=()
        )
        for tier in (Tier.FREE, Tier.ULTRA)
    )
    tell(0, arrival_of(low, 0))
    tell(1, Started(request=low.request))
    tell(2, arrival_of(top, 2))
    told = tell(2 * S + 10, Ticked())
    assert [type(each) for each in told][:2] == [Preempt, Send]
    tell(3 * S, WorkerDown(worker=spec.worker, why="it fell"))
    told = tell(70 * S, Ticked())
    assert {type(each) for each in told} == {Reject}
    recorded = journal.read()
    assert ends_of(recorded) == {low.request: End.FAILED, top.request: End.REJECTED}
    assert set(recorded.result.outcomes.finished_ns) == {70 * S}
