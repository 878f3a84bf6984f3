"""The twin asks second workers as the factory does, which helps where workers stand still."""

from __future__ import annotations

import statistics

import msgspec

from tests.twin import factory
from tokenworks.core.ids import RequestID, WorkerID
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.dispatch.commands import Command, Hedge, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Configured, Event, Started, Ticked
from tokenworks.perf.timing import FS_PER_NS, Timing
from tokenworks.twin import driver
from tokenworks.twin.checkers import Checker
from tokenworks.twin.driver import Driver, Hooks
from tokenworks.twin.records import End, RunResult, TwinRequest, arrival_of
from tokenworks.twin.swarm import run_case
from tokenworks.twin.swarm_draw import draw

STUCK = Timing(
    launch_fs=2 * NS_PER_S * FS_PER_NS,
    sequence_fs=0,
    context_token_fs=0,
    prefill_token_fs=0,
    prefill_context_fs=0,
)
"""An iteration takes two seconds: the engine stands still, and nobody was told."""


def settings(percent: int) -> Configured:
    told = factory.configured(patience_ns=60 * NS_PER_S)
    promises = {
        tier: msgspec.structs.replace(each, ttft_ns=NS_PER_S // 2)
        for tier, each in told.promises.items()
    }
    limits = msgspec.structs.replace(told.limits, hedge_percent=percent, hedge_after_percent=50)
    return msgspec.structs.replace(told, promises=promises, limits=limits)


class Stalls(Hooks):
    """One worker after the other stands still for a while; all is checked."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker

    def begin(self, driver: Driver) -> None:
        self._checker.begin(driver)
        for number in range(16):
            worker, at_ns = WorkerID(f"w{number % 4:03d}"), (5 * number + 2) * NS_PER_S // 2
            timing = driver.engine(worker).spec.timing
            driver.at(at_ns, lambda worker=worker: driver.pace(worker, STUCK))
            back = lambda worker=worker, timing=timing: driver.pace(worker, timing)  # noqa: E731
            driver.at(at_ns + NS_PER_S, back)

    def told(self, now_ns: int, event: Event, commands: list[Command]) -> None:
        self._checker.told(now_ns, event, commands)

    def end(self, driver: Driver) -> None:
        self._checker.end(driver)


def work() -> list[TwinRequest]:
    return [
        factory.request(number, at_ns=number * 16 * NS_PER_MS, output_tokens=120)
        for number in range(2_500)
    ]


def stalled(percent: int) -> tuple[RunResult, dict[str, int]]:
    dispatcher = Dispatcher()
    checker = Checker(dispatcher, deadline_ns=10_000 * NS_PER_S)
    spec = factory.worker(slots=32, kv_blocks=2_000)
    result = driver.run(
        factory.scenario(*factory.workers(4, spec), settings=settings(percent)),
        work(),
        dispatcher=dispatcher,
        hooks=Stalls(checker),
    )
    assert checker.violations == []
    assert all(end == End.DONE for end in result.outcomes.end)
    return result, dispatcher.counts()


def ttft_ms_p99(result: RunResult) -> float:
    outcomes = result.outcomes
    times = [
        (first - came) / NS_PER_MS
        for first, came in zip(outcomes.first_token_ns, outcomes.arrived_ns, strict=True)
    ]
    return statistics.quantiles(times, n=100)[98]


def test_p99_of_ttft_where_workers_stand_still() -> None:
    plain, none = stalled(0)
    hedged, counts = stalled(5)
    assert none["hedged"] == 0
    assert 0 < counts["hedges_won"] <= counts["hedged"] <= 10 + 2_500 * 5 // 100
    # 1,606 ms and 256 ms: a quarter of a second until a second worker is asked, and its answer.
    assert ttft_ms_p99(plain) > 5 * ttft_ms_p99(hedged)


def test_whatever_goes_wrong_every_request_ends_once() -> None:
    asked = 0
    for seed in (445, *range(40)):
        case = draw(seed)
        if case.configured.limits.hedge_percent:
            asked += 1
            assert run_case(case).violations == (), seed
    assert asked > 10


def told(checker: Checker, now_ns: int, event: Event, *commands: Command) -> list[str]:
    checker.violations.clear()
    checker._lives.told(event)
    checker._lives.commanded(commands)
    return [each.invariant for each in checker.violations]


def test_a_second_worker_that_is_asked_wrongly_is_found() -> None:
    dispatcher = Dispatcher()
    checker = Checker(dispatcher, deadline_ns=10**18)
    spec = factory.worker()
    built = factory.scenario(*factory.workers(2, spec), settings=settings(100))
    driver.run(built, [], dispatcher=dispatcher, hooks=checker)
    up = [each.worker for each in built.workers]
    send = Send(
        request=RequestID("r"),
        worker=up[0],
        attempt=1,
        reason="least_loaded",
        running=1,
        cap=1,
        candidates=1,
        hit_blocks=0,
        waited_ns=0,
    )
    hedge = Hedge(
        request=RequestID("r"),
        worker=up[1],
        attempt=2,
        reason="silent",
        running=1,
        cap=1,
        candidates=1,
        hit_blocks=0,
        silent_ns=1,
    )
    arrived = arrival_of(factory.request(0, request=RequestID("r")), 0)
    assert told(checker, 0, arrived, hedge) == ["hedged_rightly"]
    assert told(checker, 0, Ticked(), send) == []
    assert told(checker, 0, Ticked(), msgspec.structs.replace(hedge, worker=up[0])) == [
        "hedged_rightly"
    ]
    assert told(checker, 0, Ticked(), hedge) == []
    assert told(checker, 0, Ticked(), hedge) == ["hedged_rightly"]
    checker._lives.told(Started(request=RequestID("r"), worker=up[1]))
    assert checker._lives.open[RequestID("r")].worker == up[1]
