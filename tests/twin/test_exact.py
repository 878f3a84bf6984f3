"""Runs of decode in closed form end at the same instants as iterations one by one."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.twin.factory import (
    TRACE_300,
    TRACE_WORKER,
    TakesTurns,
    request,
    scenario,
    trace,
    worker,
    workers,
)
from tokenworks.core.units import NS_PER_MS
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Arrived, Event
from tokenworks.twin.driver import Driver, Hooks, run
from tokenworks.twin.records import NEVER, End, Outcomes, RunResult, Scenario, TwinRequest


def columns(outcomes: Outcomes) -> dict[str, list[int]]:
    return {name: list(getattr(outcomes, name)) for name in Outcomes.__slots__}


def assert_same(closed: RunResult, exact: RunResult) -> None:
    assert columns(closed.outcomes) == columns(exact.outcomes)
    assert closed.workers == exact.workers
    assert (closed.ended_ns, closed.events) == (exact.ended_ns, exact.events)
    assert closed.journal_digest == exact.journal_digest


def assert_conserved(requests: list[TwinRequest], driver: Driver) -> None:
    """Each request has ended, whole ones have all their tokens, and all blocks are free."""
    outcomes = driver.outcomes
    for place, each in enumerate(requests):
        assert outcomes.end[place] != End.OPEN, each
        if outcomes.end[place] == End.DONE:
            assert outcomes.output_tokens[place] == each.output_tokens
            arrived, first = outcomes.arrived_ns[place], outcomes.first_token_ns[place]
            assert arrived <= outcomes.sent_ns[place] < outcomes.finished_ns[place]
            assert arrived < first <= outcomes.finished_ns[place]
            # Only who has made room was sent again after its first token.
            assert outcomes.sent_ns[place] < first or outcomes.queued_ns[place] >= first
        elif outcomes.end[place] != End.WITHDRAWN and outcomes.first_token_ns[place] == NEVER:
            assert outcomes.output_tokens[place] == 0
    for engine in driver.workers:
        engine.check()
        assert engine.is_empty(), engine.spec.worker
        assert engine.use().kv_blocks_max <= engine.spec.kv_blocks


class Checks(Hooks):
    """Checks conservation at the end, and counts at every event; some requests are withdrawn."""

    def __init__(
        self, requests: list[TwinRequest], withdrawn: dict[str, int] | None = None
    ) -> None:
        self.requests = requests
        self.withdrawn = withdrawn or {}
        self.driver: Driver | None = None

    def begin(self, driver: Driver) -> None:
        self.driver = driver

    def told(self, now_ns: int, event: Event, commands: Any) -> None:
        assert self.driver is not None
        if isinstance(event, Arrived) and event.request in self.withdrawn:
            name = event.request
            self.driver.at(now_ns + self.withdrawn[name], lambda: self.driver.withdraw(name))
        for engine in self.driver.workers:
            engine.check()

    def end(self, driver: Driver) -> None:
        assert_conserved(self.requests, driver)


def both(
    factory: Scenario,
    requests: list[TwinRequest],
    withdrawn: dict[str, int] | None = None,
    *,
    real: bool = False,
) -> RunResult:
    """The run in closed form, after comparing it with the exact one."""
    results = [
        run(
            factory,
            requests,
            exact=exact,
            dispatcher=Dispatcher() if real else TakesTurns(),
            hooks=Checks(requests, withdrawn),
        )
        for exact in (False, True)
    ]
    assert_same(*results)
    return results[0]


def workload(seed: int, count: int, gap_ns: int, longest: int) -> list[TwinRequest]:
    """Random arrivals; a third continues the conversation of an earlier one."""
    dice = random.Random(seed)
    requests: list[TwinRequest] = []
    at_ns = 0
    for number in range(count):
        at_ns += dice.randrange(gap_ns + 1)
        tokens = dice.randint(1, longest)
        family = dice.randrange(count) if dice.random() < 0.7 else 0
        requests.append(
            request(
                number,
                at_ns=at_ns,
                input_tokens=tokens,
                output_tokens=dice.randint(1, 120),
                blocks=tuple(family << 20 | depth for depth in range(tokens // 16)),
            )
        )
    return requests


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 40),
    gap_ns=st.sampled_from([0, NS_PER_MS, 30 * NS_PER_MS]),
    kv_blocks=st.sampled_from([24, 40, 400]),
    slots=st.sampled_from([1, 3, 16]),
    batch_tokens_max=st.sampled_from([16, 64, 512]),
    fleet=st.integers(1, 3),
    withdrawals=st.integers(0, 10),
)
def test_any_workload(
    seed: int,
    count: int,
    gap_ns: int,
    kv_blocks: int,
    slots: int,
    batch_tokens_max: int,
    fleet: int,
    withdrawals: int,
) -> None:
    spec = worker(slots=slots, kv_blocks=kv_blocks, batch_tokens_max=batch_tokens_max)
    requests = workload(seed, count, gap_ns, 240)
    dice = random.Random(seed + 1)
    withdrawn = {
        each.request: dice.randrange(500 * NS_PER_MS)
        for each in dice.sample(requests, min(withdrawals, count))
    }
    both(scenario(*workers(fleet, spec)), requests, withdrawn, real=seed % 2 == 0)


def test_a_slice_of_a_trace() -> None:
    with TRACE_300.open(encoding="utf-8") as file:
        requests = trace(file, faster=4)
    result = both(scenario(*workers(2, TRACE_WORKER)), requests)
    assert all(end == End.DONE for end in result.outcomes.end)
    assert sum(each.hit_tokens for each in result.workers) > 0
