"""The driver: arrivals, faults, KV transfers, the network between, and what is written down."""

from __future__ import annotations

import gc
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.twin.factory import (
    TIMING,
    TRACE_300,
    TRACE_WORKER,
    TakesTurns,
    configured,
    request,
    scenario,
    trace,
    worker,
    workers,
)
from tests.twin.test_exact import Checks, both, columns, workload
from tokenworks.core.ids import RequestID, WorkerID
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.dispatch.commands import Command
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import (
    Configured,
    Event,
    Failed,
    Finished,
    PolicySettings,
    Started,
    WorkerDown,
    WorkerUp,
)
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.policy import Choice, Forgetful
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.requests import Request
from tokenworks.live.journal import read_journal, replay
from tokenworks.perf.timing import FS_PER_NS
from tokenworks.twin.clock import JumpingClock
from tokenworks.twin.driver import Driver, run
from tokenworks.twin.handovers import HANDOVER_NS_MAX
from tokenworks.twin.journal import FileJournal, Journal
from tokenworks.twin.network import Kind, Network
from tokenworks.twin.records import NEVER, End, RunResult, Scenario, TwinRequest, speed_curve

R0 = RequestID("r0")
W = WorkerID("w")


class Faults(Checks):
    """Calls functions at times, and keeps the events."""

    def __init__(
        self, requests: list[TwinRequest], *faults: tuple[int, Callable[[Driver], None]]
    ) -> None:
        super().__init__(requests)
        self.faults = faults
        self.events: list[tuple[int, Event]] = []

    def begin(self, driver: Driver) -> None:
        super().begin(driver)
        for at_ns, fault in self.faults:
            driver.at(at_ns, lambda fault=fault: fault(driver))  # type: ignore[misc]

    def told(self, now_ns: int, event: Event, commands: list[Command]) -> None:
        super().told(now_ns, event, commands)
        self.events.append((now_ns, event))

    def of(self, kind: type[Event]) -> list[tuple[int, Any]]:
        return [(now_ns, event) for now_ns, event in self.events if isinstance(event, kind)]


def faulty(
    factory: Scenario,
    requests: list[TwinRequest],
    *faults: tuple[int, Callable[[Driver], None]],
    **options: Any,
) -> tuple[RunResult, Faults]:
    """A run with faults, the same in closed form and exactly."""
    runs = []
    for exact in (False, True):
        hooks = Faults(requests, *faults)
        runs.append((run(factory, requests, exact=exact, hooks=hooks, **options), hooks))
    (closed, hooks), (exactly, _) = runs
    assert columns(closed.outcomes) == columns(exactly.outcomes)
    assert closed.journal_digest == exactly.journal_digest
    assert closed.workers == exactly.workers
    return closed, hooks


def ends(result: RunResult) -> list[End]:
    return [End(end) for end in result.outcomes.end]


def test_an_engine_is_told_with_all_that_is_known_of_it() -> None:
    hooks = Faults([])
    result = run(scenario(worker(start_ns=5)), [], hooks=hooks)
    [(now_ns, up)] = hooks.of(WorkerUp)
    assert now_ns == 5
    assert (up.timing, up.kv_blocks, up.block_tokens, up.batch_tokens_max) == (TIMING, 200, 16, 256)
    assert up.curve == speed_curve(worker())
    assert result.ended_ns == 5
    assert result.workers[0].up_ns == 0


def test_a_speed_curve_has_a_dozen_points_of_different_speed() -> None:
    curve = speed_curve(TRACE_WORKER)
    assert (curve[0][0], curve[-1][0]) == (1, 256)
    assert 10 <= len(curve) <= 12
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(curve))
    assert len(speed_curve(worker(slots=1))) == 1
    flat = worker(
        timing=type(TIMING)(**{f: 10**13 * (f == "launch_fs") for f in TIMING.__struct_fields__})
    )
    assert speed_curve(flat) == ((1, 100),)


def test_a_request_that_waits_for_others_comes_after_the_last_of_them() -> None:
    requests = [
        request(0, at_ns=0, output_tokens=50),
        request(1, at_ns=0, output_tokens=90),
        request(2, at_ns=5, wait_for=(R0, RequestID("r1")), delay_ns=7),
        request(3, at_ns=9 * NS_PER_S, wait_for=(R0,), delay_ns=7),
    ]
    outcomes = both(scenario(worker()), requests).outcomes
    assert outcomes.arrived_ns[2] == outcomes.finished_ns[1] + 7
    assert outcomes.finished_ns[1] > outcomes.finished_ns[0]
    assert outcomes.arrived_ns[3] == 9 * NS_PER_S


def test_what_no_engine_can_hold_is_tried_and_ends() -> None:
    requests = [request(0, input_tokens=200 * 16, output_tokens=2), request(1)]
    result, hooks = faulty(scenario(worker()), requests)
    assert ends(result) == [End.FAILED, End.DONE]
    assert len(hooks.of(Failed)) == 3
    assert result.outcomes.preemptions[0] == 2


def test_a_full_queue_and_impatience_reject() -> None:
    settings = configured(queue_len_max=1, patience_ns=10 * NS_PER_MS)
    requests = [request(number, at_ns=0, output_tokens=100) for number in range(4)]
    result = both(scenario(worker(slots=1), settings=settings), requests, real=True)
    assert sorted(ends(result)) == [End.DONE, End.REJECTED, End.REJECTED, End.REJECTED]
    assert max(result.outcomes.sent_ns[1:]) == NEVER
    assert 10 * NS_PER_MS in result.outcomes.finished_ns


def test_a_client_that_leaves_frees_its_slot() -> None:
    requests = [request(0, at_ns=0, output_tokens=1_000), request(1, at_ns=0)]
    leave = (40 * NS_PER_MS, lambda driver: driver.withdraw(R0))
    result, _ = faulty(scenario(worker(slots=1)), requests, leave, leave)
    assert ends(result) == [End.WITHDRAWN, End.DONE]
    assert result.outcomes.finished_ns[0] == 40 * NS_PER_MS
    assert 0 < result.outcomes.output_tokens[0] < 20
    assert result.outcomes.first_token_ns[1] < 50 * NS_PER_MS
    early = (0, lambda driver: driver.withdraw(RequestID("r1")))
    queued = (30 * NS_PER_MS, lambda driver: driver.withdraw(RequestID("r1")))
    result, _ = faulty(scenario(worker(slots=1)), requests, early, queued)
    assert ends(result) == [End.DONE, End.WITHDRAWN]


def test_a_worker_that_breaks_off_one_request() -> None:
    requests = [request(0, at_ns=0), request(1, at_ns=0), request(2, at_ns=0)]
    result, _ = faulty(
        scenario(*workers(2, worker())),
        requests,
        (1, lambda driver: driver.fail(R0)),
        (30 * NS_PER_MS, lambda driver: driver.fail(RequestID("r1"))),
        (9 * NS_PER_S, lambda driver: driver.fail(RequestID("r1"))),
    )
    assert ends(result) == [End.DONE, End.FAILED, End.DONE]
    assert list(result.outcomes.preemptions) == [1, 0, 0]
    assert 0 < result.outcomes.output_tokens[1] < 20


@pytest.mark.parametrize("notice_ns", [0, 100 * NS_PER_MS])
def test_a_lost_worker(notice_ns: int) -> None:
    requests = [request(n, at_ns=n * 20 * NS_PER_MS, output_tokens=60 + 9 * n) for n in range(12)]
    result, hooks = faulty(
        scenario(*workers(2, worker())),
        requests,
        (70 * NS_PER_MS, lambda driver: driver.crash(WorkerID("w001"), "power", notice_ns)),
        (71 * NS_PER_MS, lambda driver: driver.crash(WorkerID("w001"), "again")),
        (230 * NS_PER_MS, lambda driver: driver.start(WorkerID("w001"))),
        (231 * NS_PER_MS, lambda driver: driver.start(WorkerID("w001"))),
    )
    [(down_ns, _)] = hooks.of(WorkerDown)
    assert down_ns == 70 * NS_PER_MS + notice_ns
    assert set(ends(result)) == {End.DONE, End.FAILED}
    assert result.workers[1].up_ns == result.ended_ns - 160 * NS_PER_MS
    assert result.workers[0].up_ns == result.ended_ns


def test_a_worker_that_comes_up_before_its_loss_was_noticed() -> None:
    requests = [request(0, at_ns=0, output_tokens=100), request(1, at_ns=2 * NS_PER_S)]
    result, hooks = faulty(
        scenario(worker()),
        requests,
        (1 * NS_PER_MS, lambda driver: driver.crash(W, "power", NS_PER_S)),
        (2 * NS_PER_MS, lambda driver: driver.start(W)),
        (3 * NS_PER_MS, lambda driver: driver.crash(W, "power", NS_PER_S)),
        (4 * NS_PER_MS, lambda driver: driver.start(W)),
    )
    assert [now_ns for now_ns, _ in hooks.of(WorkerDown)] == [2 * NS_PER_MS, 4 * NS_PER_MS]
    assert ends(result) == [End.DONE, End.DONE]
    assert result.outcomes.preemptions[0] == 2


# Prefill here, decode there.

LINK = {"kv_bytes_per_token": 1_000, "link_bytes_per_s": 10**8}


def split_factory(**changes: Any) -> Scenario:
    decoding = worker("d", role="decode", **(LINK | changes))
    return scenario(worker("p1", role="prefill"), decoding, worker("p2", role="prefill"))


def test_a_prompt_is_prefilled_in_one_place_and_decoded_in_another() -> None:
    requests = [request(0, at_ns=0)]
    result, hooks = faulty(split_factory(), requests)
    prefill_ns = -(-(TIMING.launch_fs + TIMING.prefill_fs(100, 0)) // FS_PER_NS)
    moved_ns = NS_PER_MS  # 100 tokens of 1,000 bytes at 100 MB/s
    decode_ns = -(-TIMING.run_fs(1, 100, 19) // FS_PER_NS)
    outcomes = result.outcomes
    assert outcomes.first_token_ns[0] == prefill_ns
    assert outcomes.finished_ns[0] == prefill_ns + moved_ns + decode_ns
    # From the exact instant of the first token, which is told a part of a nanosecond later.
    assert outcomes.itl_max_ns[0] - moved_ns - TIMING.decode_fs(1, 100) // FS_PER_NS in {0, 1}
    assert [use.output_tokens for use in result.workers] == [1, 19, 0]
    assert [use.kv_blocks_max for use in result.workers] == [7, 8, 0]
    assert len(hooks.of(WorkerUp)) == len(hooks.of(Started)) == len(hooks.of(Finished)) == 1
    assert outcomes.worker[0] == 1


def test_prompts_are_spread_over_those_that_prefill_and_kept_until_they_have_moved() -> None:
    requests = workload(3, 60, 2 * NS_PER_MS, 400)
    result, _ = faulty(split_factory(slots=4), requests)
    assert set(ends(result)) == {End.DONE}
    assert all(use.prefill_tokens > 0 for use in (result.workers[0], result.workers[2]))
    assert result.workers[1].prefill_tokens == 0
    one_token = [request(0, output_tokens=1)]
    assert faulty(split_factory(), one_token)[0].workers[1].iterations == 0


def test_a_prefix_is_not_moved_twice() -> None:
    blocks = tuple(range(6))
    requests = [
        request(0, at_ns=0, blocks=blocks),
        request(1, at_ns=NS_PER_S, blocks=blocks, input_tokens=96),
    ]
    outcomes = faulty(split_factory(), requests)[0].outcomes
    assert outcomes.cached_tokens[1] == 80
    assert outcomes.itl_max_ns[1] < NS_PER_MS + TIMING.decode_fs(1, 100) // FS_PER_NS


def test_who_decodes_computes_again_what_it_preempts() -> None:
    requests = [request(n, at_ns=0, input_tokens=90, output_tokens=90) for n in range(3)]
    result, _ = faulty(split_factory(kv_blocks=24), requests)
    assert set(ends(result)) == {End.DONE}
    assert result.workers[1].preemptions > 0
    assert result.workers[1].prefill_tokens > 0
    # One whose KV cache is on the way is the youngest, too.
    slow = split_factory(kv_blocks=16, link_bytes_per_s=10**5)
    requests = [
        request(0, at_ns=0, input_tokens=150, output_tokens=100),
        request(1, at_ns=NS_PER_S + 520 * NS_PER_MS, input_tokens=70, output_tokens=50),
    ]
    result, _ = faulty(slow, requests)
    assert set(ends(result)) == {End.DONE}
    assert result.outcomes.preemptions[1] == 1


@pytest.mark.parametrize("at_ms", [1, 2, 4, 7, 10, 30])
def test_faults_at_any_stage_of_a_transfer(at_ms: int) -> None:
    requests = [request(n, at_ns=n * NS_PER_MS // 2, input_tokens=150) for n in range(8)]
    factory = split_factory(slots=3, link_bytes_per_s=2 * 10**7)
    at_ns = at_ms * NS_PER_MS

    def each(action: Callable[[Driver, RequestID], None]) -> Callable[[Driver], None]:
        def fault(driver: Driver) -> None:
            for known in requests:
                action(driver, known.request)

        return fault

    result, _ = faulty(factory, requests, (at_ns, each(Driver.withdraw)))
    assert set(ends(result)) <= {End.WITHDRAWN, End.DONE}
    result, _ = faulty(factory, requests, (at_ns, each(Driver.fail)))
    assert set(ends(result)) <= {End.FAILED, End.DONE}
    for name in ("p1", "d", "p2"):
        for notice_ns in (0, 3 * NS_PER_MS):
            lost, back = WorkerID(name), at_ns + 2 * NS_PER_S
            result, _ = faulty(
                factory,
                requests,
                (
                    at_ns,
                    lambda driver, lost=lost, late=notice_ns: driver.crash(lost, "fault", late),
                ),
                (back, lambda driver, lost=lost: driver.start(lost)),
            )
            assert set(ends(result)) <= {End.FAILED, End.DONE}


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 30),
    kv_blocks=st.sampled_from([24, 40, 400]),
    slots=st.sampled_from([1, 3, 16]),
    link=st.sampled_from([10**6, 10**8]),
    split=st.booleans(),
    delay_ns=st.sampled_from([0, 300_000]),
)
def test_any_faults(
    seed: int, count: int, kv_blocks: int, slots: int, link: int, split: bool, delay_ns: int
) -> None:
    dice = random.Random(seed)
    requests = workload(seed, count, 3 * NS_PER_MS, 240)
    small = {"kv_blocks": kv_blocks, "slots": slots}
    factory = scenario(*workers(3, worker(**small)))
    if split:
        factory = split_factory(**(LINK | small | {"link_bytes_per_s": link}))
    faults: list[tuple[int, Callable[[Driver], None]]] = []
    for _ in range(dice.randrange(8)):
        at_ns = dice.randrange(400 * NS_PER_MS)
        name = dice.choice(factory.workers).worker
        known = dice.choice(requests).request
        faults.append(
            dice.choice(
                [
                    (at_ns, lambda driver, known=known: driver.withdraw(known)),
                    (at_ns, lambda driver, known=known: driver.fail(known)),
                    (at_ns, lambda driver, name=name: driver.crash(name, "", 10 * NS_PER_MS)),
                    (at_ns, lambda driver, name=name: driver.start(name)),
                ]
            )
        )
    faults += [
        (5 * NS_PER_S, lambda driver, name=each.worker: driver.start(name))
        for each in factory.workers
    ]
    network = Network(to_worker_ns=delay_ns, to_dispatcher_ns=delay_ns)
    faulty(factory, requests, *faults, network=network)


def test_without_anybody_to_prefill_requests_fail() -> None:
    requests = [request(0, at_ns=NS_PER_MS)]
    down = [
        (0, lambda driver, name=name: driver.crash(WorkerID(name), "")) for name in ("p1", "p2")
    ]
    result, hooks = faulty(split_factory(), requests, *down)
    assert ends(result) == [End.FAILED]
    assert len(hooks.of(Failed)) == 3
    with pytest.raises(AssertionError, match="nobody prefills for d"):
        run(scenario(worker("d", role="decode", **LINK)), [])


# The network.


def test_a_network_delays() -> None:
    requests = workload(5, 20, NS_PER_MS, 200)
    near, _ = faulty(scenario(worker()), requests[:1])
    far, _ = faulty(
        scenario(worker()),
        requests[:1],
        network=Network(to_worker_ns=1_000, to_dispatcher_ns=500),
    )
    assert far.outcomes.first_token_ns[0] == near.outcomes.first_token_ns[0] + 1_500
    assert far.outcomes.finished_ns[0] == near.outcomes.finished_ns[0] + 1_500
    network = Network(to_worker_ns=NS_PER_MS, to_dispatcher_ns=NS_PER_MS)
    leave = (9 * NS_PER_MS, lambda driver: driver.withdraw(requests[3].request))
    result, _ = faulty(scenario(worker(), worker("v")), requests, leave, network=network)
    assert set(ends(result)) <= {End.DONE, End.WITHDRAWN}


def test_messages_may_be_lost_and_repeated() -> None:
    requests = workload(6, 30, NS_PER_MS, 200)

    def meddle(now_ns: int, kind: Kind, index: int, delay_ns: int) -> tuple[int, ...]:
        if kind == "started":
            return ()
        return (delay_ns, delay_ns + 7, 3 * NS_PER_MS)

    result, _ = faulty(scenario(worker()), requests, network=Network(meddle=meddle))
    assert set(ends(result)) == {End.DONE}
    outcomes = result.outcomes
    assert all(a == b for a, b in zip(outcomes.first_token_ns, outcomes.finished_ns, strict=True))

    def repeat(now_ns: int, kind: Kind, index: int, delay_ns: int) -> tuple[int, ...]:
        return (0, 0)

    result, hooks = faulty(scenario(worker()), requests, network=Network(meddle=repeat))
    assert set(ends(result)) == {End.DONE}
    assert len(hooks.of(Started)) >= len(requests)
    assert len(hooks.of(Finished)) == len(requests)


def test_what_is_sent_to_a_worker_that_is_lost_comes_back() -> None:
    requests = [request(n, at_ns=n * NS_PER_MS) for n in range(6)]
    result, _ = faulty(
        scenario(worker("w"), worker("v")),
        requests,
        (3 * NS_PER_MS, lambda driver: driver.crash(W, "", 2 * NS_PER_MS)),
        network=Network(to_worker_ns=NS_PER_MS, to_dispatcher_ns=NS_PER_MS),
    )
    assert set(ends(result)) == {End.DONE}


# What is written down.


def test_the_digest_is_that_of_all_events_and_commands(tmp_path: Path) -> None:
    requests = workload(7, 40, NS_PER_MS, 200)
    factory = scenario(*workers(2, worker()))
    dispatcher = Dispatcher()
    journal = FileJournal(tmp_path / "twin.twj", dispatcher)
    written = run(factory, requests, dispatcher=dispatcher, journal=journal)
    journal.close()
    plain = run(factory, requests)
    assert written.journal_digest == plain.journal_digest
    assert (written.events, written.commands) == (plain.events, plain.commands)
    replayed = replay(tmp_path / "twin.twj")
    assert replayed.first_difference is None
    assert (replayed.events, replayed.commands) == (written.events, written.commands)
    assert len(list(read_journal(tmp_path / "twin.twj"))) == written.events + 1
    changed = run(factory, [*requests[:-1], request(99)])
    assert changed.journal_digest != plain.journal_digest


def test_a_long_journal_is_hashed_in_pieces() -> None:
    requests = workload(8, 3, NS_PER_MS, 100)
    hooks = Faults(requests)
    run(scenario(worker()), requests, hooks=hooks)
    journals = Journal(), Journal()
    for _ in range(800):
        for now_ns, event in hooks.events:
            journals[0].write(now_ns, event, [])
    for number in range(800):
        for now_ns, event in hooks.events:
            journals[1].write(now_ns, event, [])
        if number % 100 == 0:
            journals[1].digest()
    assert journals[0].digest() == journals[1].digest()
    journals[0].close()


@pytest.mark.slow
def test_the_digest_is_the_same_under_any_hash_seed() -> None:
    program = (
        "from tests.twin.factory import *\n"
        "from tokenworks.twin.driver import run\n"
        "requests = trace(TRACE_300.open(), faster=8)\n"
        "print(run(scenario(*workers(3, TRACE_WORKER)), requests).journal_digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    with TRACE_300.open(encoding="utf-8") as file:
        requests = trace(file, faster=8)
    result = run(scenario(*workers(3, TRACE_WORKER)), requests)
    assert digests == {result.journal_digest + "\n"}


def test_progress_is_told_and_garbage_collection_is_as_before() -> None:
    requests = [request(n, input_tokens=1, output_tokens=1) for n in range(2_500)]
    seen: list[tuple[int, int]] = []
    assert gc.isenabled()
    result = run(
        scenario(worker()),
        requests,
        dispatcher=TakesTurns(),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert gc.isenabled()
    assert seen == [(1_000, 2_500), (2_000, 2_500)]
    assert result.cpu_ns > 0
    gc.disable()
    try:
        run(scenario(worker()), [])
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_clock_tells_the_run_and_a_date() -> None:
    clock = JumpingClock(unix_ns=1_000)
    clock.at_ns = 7
    assert (clock.now_ns(), clock.unix_ns()) == (7, 1_007)


class Crossing(Forgetful):
    """Each of two workers prefills for the other."""

    def configure(self, configured: Configured, index: PrefixIndex) -> None:
        self.turns = 0

    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        self.turns += 1
        one, other = fleet.workers if self.turns % 2 else reversed(fleet.workers)
        return Choice(one, "in_turn", 0, request.rank, 2, prefiller=other)

    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        while fleet.queued and fleet.open:
            request = next(line for line in fleet.lines if len(line)).head()
            choice = self.place(fleet, request, now_ns)
            assert choice is not None
            yield request, choice


def crossing(kv_blocks: int, count: int) -> RunResult:
    """Two workers that prefill for each other, and prompts of seven blocks."""
    link = {"kv_bytes_per_token": 1_000, "link_bytes_per_s": 10**9}
    specs = [worker(name, kv_blocks=kv_blocks, **link) for name in "ab"]
    plain = configured()
    settings = msgspec.structs.replace(plain, policy=PolicySettings(name="crossing"))
    requests = [request(number, at_ns=0) for number in range(count)]
    return run(
        scenario(*specs, settings=settings),
        requests,
        dispatcher=Dispatcher({"crossing": Crossing}),
        hooks=Checks(requests),
    )


def test_hand_overs_that_wait_for_each_other_fail_in_the_end() -> None:
    result = crossing(kv_blocks=9, count=2)
    assert End.FAILED in ends(result)
    assert result.ended_ns >= HANDOVER_NS_MAX
    # One that had to wait and got room ends as if it had been whole, and prolongs nothing.
    result = crossing(kv_blocks=22, count=4)
    assert ends(result) == [End.DONE] * 4
    assert result.ended_ns < NS_PER_S
