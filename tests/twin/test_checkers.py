"""What checkers find in runs that are made up, beyond what a planted bug can break."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.twin.factory import TakesTurns, configured, request, scenario, worker
from tests.twin.test_twin_driver import R0, W
from tokenworks.core.ids import RequestID, WorkerID
from tokenworks.core.needs import Needs, Offers
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch import snapshot
from tokenworks.dispatch.commands import Abort, Command, Preempt, Reject, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import (
    Arrived,
    Event,
    Failed,
    Finished,
    Started,
    Ticked,
    Withdrawn,
    WorkerDown,
    WorkerUp,
)
from tokenworks.twin import checkers
from tokenworks.twin.checkers import VIOLATIONS_MAX, Checker, Endless
from tokenworks.twin.driver import Driver, Hooks, run
from tokenworks.twin.outcome_checks import check_outcomes
from tokenworks.twin.records import End, Outcomes, Violation, WorkerUse


def of(found: list[Violation]) -> list[tuple[str, str]]:
    return [(each.invariant, each.what) for each in found]


def use(name: str = "w", kv_blocks_max: int = 0) -> WorkerUse:
    numbers = dict.fromkeys(WorkerUse.__struct_fields__, 0)
    return WorkerUse(**(numbers | {"worker": WorkerID(name), "kv_blocks_max": kv_blocks_max}))


def test_outcomes_are_compared_with_what_must_hold() -> None:
    requests = [request(n, at_ns=0) for n in range(4)]
    outcomes = Outcomes(4)
    for place in range(3):
        outcomes.arrived_ns[place], outcomes.finished_ns[place] = 0, 9 * NS_PER_S
        outcomes.sent_ns[place], outcomes.output_tokens[place] = NS_PER_S, 20
        outcomes.end[place] = End.DONE
    outcomes.output_tokens[1] = 19
    outcomes.waited_ns[2] = 2 * NS_PER_S
    factory = scenario(worker(), settings=configured(patience_ns=NS_PER_S))
    found = check_outcomes(factory, requests, outcomes, [use(kv_blocks_max=201)])
    assert of(found) == [
        ("tokens_delivered", "r1"),
        ("wait_bounded", "r2"),
        ("ends_once", "r3"),
        ("kv_bounded", "w"),
    ]
    patience = dict.fromkeys(Tier, 2 * NS_PER_S)
    fine = {"patience_ns": patience, "slack_ns": 0}
    assert len(check_outcomes(factory, requests, outcomes, [use()], **fine)) == 2  # type: ignore[arg-type]
    slack = check_outcomes(factory, requests, outcomes, [use()], slack_ns=NS_PER_S)
    assert "wait_bounded" not in {each.invariant for each in slack}


def test_a_wait_is_from_when_it_was_queued_until_it_was_sent_or_ended() -> None:
    outcomes = Outcomes(1)
    outcomes.arrived_ns[0], outcomes.finished_ns[0] = 10, 100
    assert outcomes.wait_ns_max(0) == 90
    outcomes.sent_ns[0] = 30
    assert outcomes.wait_ns_max(0) == 20
    outcomes.queued_ns[0] = 60  # its worker was lost
    assert outcomes.wait_ns_max(0) == 40
    outcomes.waited_ns[0] = 50
    assert outcomes.wait_ns_max(0) == 50


# By events and commands alone.

ARRIVED = Arrived(
    request=R0,
    tenant=request(0).tenant,
    model=request(0).model,
    tier=Tier.HIGH,
    input_tokens_max=1,
    output_tokens_max=1,
    prefix=(),
    arrived_ns=0,
)
SENT = Send(
    request=R0,
    worker=W,
    attempt=1,
    reason="in_turn",
    running=1,
    cap=1,
    candidates=1,
    hit_blocks=0,
    waited_ns=0,
)
REJECTED = Reject(
    request=R0,
    code="capacity_exceeded",
    reason="queue_full",
    retry_after_ns=None,
    ahead=0,
    waited_ns=0,
    attempts=0,
)
ABORTED = Abort(request=R0, worker=W, reason="withdrawn", held_ns=0)
UP = WorkerUp(worker=W, pool=worker().pool, model=request(0).model, slots=1, curve=((1, 1),))
IN_EU = msgspec.structs.replace(ARRIVED, needs=Needs(labels=("eu",)))
LABELLED = msgspec.structs.replace(UP, offers=Offers(labels=("eu",)))
ABLE = msgspec.structs.replace(UP, preempts=True)
TOP = msgspec.structs.replace(ARRIVED, request=RequestID("top"), tier=Tier.ULTRA)
LIKE = msgspec.structs.replace(TOP, tier=ARRIVED.tier)
ROOM = Preempt(
    request=R0,
    worker=W,
    displaced_by=TOP.request,
    reason="worth_more",
    gained_nanodollars=2,
    lost_nanodollars=1,
    held_ns=0,
)
LOSS = msgspec.structs.replace(ROOM, lost_nanodollars=2)
DOWN = WorkerDown(worker=W, why="power")
STARTED = Started(request=R0)
FINISHED = Finished(request=R0, output_tokens=1, cached_input_tokens=0)
FAILED = Failed(request=R0, worker=W, started=False)
OTHER = Failed(request=R0, worker=WorkerID("x"), started=True)
LEFT = Withdrawn(request=R0)


@pytest.mark.parametrize(
    ("story", "broken"),
    [
        ([UP, ARRIVED, SENT, STARTED, FINISHED], []),
        ([UP, ARRIVED, SENT, SENT], ["one_attempt"]),
        ([UP, SENT], ["one_attempt"]),
        ([ARRIVED, SENT], ["worker_is_up"]),
        ([UP, ARRIVED, SENT, FAILED, SENT, OTHER, FINISHED], []),
        ([UP, ARRIVED, SENT, STARTED, FAILED, SENT], ["one_attempt"]),
        ([UP, ARRIVED, SENT, DOWN, SENT], ["worker_is_up"]),
        ([UP, ARRIVED, SENT, DOWN, UP, SENT, FINISHED], []),
        ([UP, ARRIVED, SENT, STARTED, DOWN, UP, SENT], ["one_attempt"]),
        ([ARRIVED, FINISHED, STARTED, FAILED, REJECTED], []),
        ([ARRIVED, REJECTED, REJECTED], ["ends_once"]),
        ([ARRIVED, LEFT, ARRIVED, LEFT, FINISHED, STARTED, FAILED], []),
        ([UP, ARRIVED, SENT, LEFT, ABORTED, DOWN, ABORTED], ["worker_is_up"]),
        ([ARRIVED], ["ends_once"]),
        ([UP, IN_EU, SENT], ["needs_met"]),
        ([ABLE, ARRIVED, TOP, SENT, ROOM, SENT, FINISHED], []),
        ([ABLE, ARRIVED, TOP, ROOM], ["one_attempt"]),
        ([UP, ARRIVED, TOP, SENT, ROOM], ["displaced_rightly"]),
        ([ABLE, UP, ARRIVED, TOP, SENT, ROOM], ["displaced_rightly"]),
        ([ABLE, ARRIVED, SENT, ROOM], ["displaced_rightly"]),
        ([ABLE, ARRIVED, TOP, SENT, ROOM, SENT, ROOM], ["displaced_rightly"]),
        ([ABLE, ARRIVED, LIKE, SENT, ROOM], ["displaced_rightly"]),
        ([ABLE, ARRIVED, TOP, SENT, LOSS], ["displaced_rightly"]),
        ([ABLE, ARRIVED, TOP, SENT, STARTED, ROOM, SENT, FAILED, SENT], ["one_attempt"]),
        ([LABELLED, IN_EU, SENT, FINISHED], []),
        ([LABELLED, UP, IN_EU, SENT], ["needs_met"]),
        ([LABELLED, IN_EU, msgspec.structs.replace(SENT, prefill_worker="x")], ["worker_is_up"]),
        ([], []),
    ],
)
def test_requests_and_workers_are_followed(story: list[Any], broken: list[str]) -> None:
    found: list[str] = []
    lives = checkers._Lives(lambda invariant, what, **numbers: found.append(invariant))
    for each in story:
        if isinstance(each, Send | Reject | Abort | Preempt):
            lives.commanded([each])
        else:
            lives.told(each)
    outcomes = Outcomes(1)
    outcomes.end[0] = End.OPEN if story == [ARRIVED] else End.DONE
    if not found:
        lives.end([request(0)], outcomes)
    assert found == broken


# In a run.


class Sulks(TakesTurns):
    """Tells its snapshot as the real one does, and forgets every other request."""

    def __init__(self) -> None:
        super().__init__()
        self._real = Dispatcher()

    def handle(self, now_ns: int, event: Any) -> list[Any]:
        self._real.handle(now_ns, event)
        if isinstance(event, Arrived) and event.request[-1] in "13579":
            return []
        return super().handle(now_ns, event)

    def snapshot(self) -> bytes:
        return self._real.snapshot()


def test_a_run_that_does_not_end_is_ended() -> None:
    requests = [request(n) for n in range(8)]
    dispatcher = Sulks()
    checker = Checker(dispatcher, deadline_ns=3 * NS_PER_S)
    with pytest.raises(Endless):
        run(scenario(worker()), requests, dispatcher=dispatcher, hooks=checker)
    found = [each for each in checker.violations if each.invariant == "drains"]
    assert [each.what for each in found] == ["r1", "r3", "r5"]
    assert found[0].numbers == {"unended": 4}
    assert found[0].at_ns == 3 * NS_PER_S


def test_a_clock_that_goes_back_and_a_memory_that_differs_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dispatcher = Dispatcher()
    checker = Checker(dispatcher, deadline_ns=3 * NS_PER_S, shadow_from=5)
    driver: list[Driver] = []
    begin = checker.begin
    monkeypatch.setattr(checker, "begin", lambda each: (driver.append(each), begin(each)))
    end = checker.end
    monkeypatch.setattr(checker, "end", lambda each: None)
    run(scenario(worker()), [request(n) for n in range(8)], dispatcher=dispatcher, hooks=checker)
    assert checker.violations == []
    dispatcher._counts.ignored += 1
    end(driver[0])
    assert of(checker.violations) == [
        ("restored_continues", "memory"),
        ("journal_replays", "memory"),
    ]
    checker.told(-1, Ticked(), [])
    assert checker.violations[2].invariant == "time_forward"
    for _ in range(VIOLATIONS_MAX):
        checker.told(-2, Ticked(), [])
        checker.told(-3, Ticked(), [])
    assert len(checker.violations) == VIOLATIONS_MAX


@pytest.mark.parametrize("queue_len_max", [100, 10])
def test_those_that_need_few_workers_are_counted_where_they_wait(queue_len_max: int) -> None:
    labels = ("eu",)
    factory = scenario(worker(slots=1, offers=Offers(labels=labels)))
    dispatcher = Dispatcher()
    checker = Checker(dispatcher, deadline_ns=100 * NS_PER_S)

    class Looks(Hooks):
        begin, end = checker.begin, checker.end

        def told(self, now_ns: int, event: Event, commands: list[Command]) -> None:
            checker.told(now_ns, event, commands)
            checker._queue_len_max = dict.fromkeys(Tier, queue_len_max)
            if isinstance(event, Arrived) and event.request == "r39":
                checker._check_drained(snapshot.decode(dispatcher.snapshot()))

    requests = [request(n, at_ns=n, needs=Needs(labels=labels), tier=Tier.HIGH) for n in range(40)]
    run(factory, requests, dispatcher=dispatcher, hooks=Looks())
    found = checker.violations
    assert {each.what for each in found if each.invariant == "memory_bounded"} == (
        {"queue high"} if queue_len_max < 40 else set()
    )
    left = [each for each in found if each.invariant == "memory_drained"]
    assert [each.numbers for each in left if each.what == "requests"] == [
        {"requests": 40, "waiting": 39}
    ]
