"""Who makes room in the twin keeps its tokens, goes on elsewhere, and is billed once."""

from __future__ import annotations

import msgspec
import pytest

from tests.twin import eager
from tests.twin.factory import configured, request, scenario, worker
from tests.twin.test_bookkeeper import priced
from tests.twin.test_twin_driver import Faults, ends, faulty
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.dispatch.commands import Command, Preempt
from tokenworks.dispatch.events import Configured, Event, PolicySettings
from tokenworks.dispatch.policies import NAMES
from tokenworks.perf.timing import FS_PER_NS
from tokenworks.twin.driver import Driver, run
from tokenworks.twin.records import End, Scenario, TwinRequest
from tokenworks.twin.report import report
from tokenworks.twin.scenarios import build
from tokenworks.twin.swarm import run_case
from tokenworks.twin.swarm_draw import draw
from tokenworks.twin.workload import Demand, generated_trace, requests_of, steady


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    eager.plant(monkeypatch)


def settings() -> Configured:
    plain = configured(patience_ns=60 * NS_PER_S)
    promises = {
        tier: msgspec.structs.replace(promise, ttft_ns=20 * NS_PER_MS)
        for tier, promise in plain.promises.items()
    }
    return msgspec.structs.replace(plain, promises=promises)


def factory(count: int = 1, **changes: object) -> Scenario:
    specs = [worker(f"w{n}", slots=1, preempts=True, **changes) for n in range(count)]
    return scenario(*specs, settings=settings())


def crowd(**first: object) -> list[TwinRequest]:
    """One free answer of 100 tokens, and one of ultra that comes while it is being made."""
    return [
        request(0, at_ns=0, tier=Tier.FREE, output_tokens=100, **first),
        request(1, at_ns=100 * NS_PER_MS, tier=Tier.ULTRA),
    ]


class Stops(Faults):
    """Keeps who made room, and when."""

    def told(self, now_ns: int, event: Event, commands: list[Command]) -> None:
        super().told(now_ns, event, commands)
        for command in commands:
            if isinstance(command, Preempt):
                self.stops.append((now_ns, command))

    def begin(self, driver: Driver) -> None:
        super().begin(driver)
        self.stops: list[tuple[int, Preempt]] = []


def test_an_answer_goes_on_where_it_was_stopped() -> None:
    requests = crowd()
    result, _ = faulty(factory(), requests)
    hooks = Stops(requests)
    again = run(factory(), requests, hooks=hooks)
    ((stopped_ns, stop),) = hooks.stops
    assert (stop.request, stop.displaced_by) == ("r0", "r1")
    assert again.journal_digest == result.journal_digest
    assert ends(result) == [End.DONE, End.DONE]
    outcomes = result.outcomes
    assert list(outcomes.output_tokens) == [100, 20]
    # The first token stays where it was; the gap is from the stop until it goes on.
    assert outcomes.first_token_ns[0] < 20 * NS_PER_MS
    assert outcomes.sent_ns[0] == outcomes.finished_ns[1]
    assert outcomes.itl_max_ns[0] > outcomes.sent_ns[0] - stopped_ns
    alone = run(factory(), requests[:1])
    spec = worker()
    token_ns = spec.timing.decode_fs(1, 150) // FS_PER_NS
    lost_ns = outcomes.finished_ns[0] - alone.outcomes.finished_ns[0]
    waited_ns = outcomes.sent_ns[0] - stopped_ns
    prefill_ns = spec.timing.prefill_fs(150, 0) // FS_PER_NS
    assert waited_ns < lost_ns < waited_ns + prefill_ns + 3 * token_ns
    # What was made before is not made again: only the token under way when it was stopped.
    (use,) = result.workers
    assert 120 <= use.output_tokens <= 121


def test_it_goes_on_at_another_worker_if_that_is_free_first() -> None:
    requests = [*crowd(), request(2, at_ns=0, tier=Tier.ULTRA, output_tokens=60)]
    requests.sort(key=lambda each: each.at_ns)
    result, _ = faulty(factory(2), requests)
    assert set(ends(result)) == {End.DONE}
    free = next(n for n, each in enumerate(requests) if each.tier is Tier.FREE)
    assert result.outcomes.output_tokens[free] == 100
    assert result.outcomes.preemptions[free] == 1


def test_who_has_made_nothing_yet_begins_anew() -> None:
    requests = crowd(input_tokens=2_900)  # 110 ms or more of prefill
    slow = worker(slots=1, preempts=True, batch_tokens_max=16)
    result, _ = faulty(scenario(slow, settings=settings()), requests)
    assert ends(result) == [End.DONE, End.DONE]
    assert result.outcomes.first_token_ns[0] > result.outcomes.finished_ns[1]


@pytest.mark.parametrize("leaves", [True, False])
def test_who_ends_while_it_waits_to_go_on_is_billed_for_what_it_has(leaves: bool) -> None:
    plain = factory()
    whole = priced(*plain.workers)
    promises = {
        tier: msgspec.structs.replace(promise, ttft_ns=20 * NS_PER_MS, patience_ns=NS_PER_S // 2)
        for tier, promise in whole.configured.promises.items()
    }
    told = msgspec.structs.replace(whole.configured, promises=promises)
    factory_priced = msgspec.structs.replace(
        whole, configured=told, book=msgspec.structs.replace(whole.book, promises=promises)
    )
    requests = crowd()
    requests[1] = msgspec.structs.replace(requests[1], output_tokens=2_000)
    faults = []
    if leaves:
        faults.append((200 * NS_PER_MS, lambda driver: driver.withdraw(requests[0].request)))
    result, _ = faulty(factory_priced, requests, *faults)
    assert ends(result)[0] == (End.WITHDRAWN if leaves else End.FAILED)
    made = result.outcomes.output_tokens[0]
    assert 30 < made < 60
    found = report(factory_priced, requests, result)
    assert found.all.failed == 1


def test_a_worker_that_is_lost_takes_what_goes_on_there_with_it() -> None:
    requests = crowd()
    crash = (250 * NS_PER_MS, lambda driver: driver.crash(worker("w0").worker, "power"))
    result, _ = faulty(factory(), requests, crash)
    assert ends(result) == [End.FAILED, End.DONE]
    assert result.outcomes.output_tokens[0] > 50


@pytest.mark.heavy
def test_swarms_meet_what_making_room_leads_to() -> None:
    for seed in range(60):
        found = run_case(draw(seed, ("economic", "promises")))
        assert not found.violations, found
    assert "economic" in NAMES


def test_money_is_not_lost_by_it_on_a_full_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    setting = build("homogeneous", 2)
    made = setting.scenario
    able = tuple(msgspec.structs.replace(spec, preempts=True) for spec in made.workers)
    mix = steady({Tier.FREE: 90, Tier.ULTRA: 10})
    trace = generated_trace(3, rate_per_s=14, duration_s=120)
    requests = requests_of(trace, Demand(model=made.workers[0].model, mix=mix), 5)
    told = msgspec.structs.replace(made.configured, policy=PolicySettings(name="economic"))
    earned = []
    for specs in (made.workers, able):
        each = msgspec.structs.replace(made, workers=specs, configured=told)
        earned.append(report(each, requests, run(each, requests)).revenue_nanodollars)
    assert earned[1] >= earned[0]
