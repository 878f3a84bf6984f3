"""Labels, adapters and hints in the twin: workloads, factories from files, runs and replays."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.twin.factory import request, scenario, worker
from tests.twin.test_recorded import ANSWERED, CONFIGURED, S, arrived, finished, told, up
from tests.twin.test_twin_driver import LINK, ends, faulty
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import RequestID
from tokenworks.core.needs import NO_OFFERS, Hints, Needs, Offers
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S, PPM
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Arrived, WorkerUp
from tokenworks.dispatch.journal_format import entries_of
from tokenworks.twin.driver import run
from tokenworks.twin.journal import FileJournal
from tokenworks.twin.recorded import Reader
from tokenworks.twin.records import End, worker_up
from tokenworks.twin.scenarios import parse_scenario
from tokenworks.twin.sessions import Agents, agent_trace
from tokenworks.twin.workload import Demand, NeedShare, generated_trace, requests_of

EU = Needs(labels=("eu",))
ADAPTED = Needs(adapter="support")
IN_EU = Offers(labels=("eu",))
FILE = """
name = "two"
[worker.here]
kind = "even"
count = 1
labels = ["medical", "eu"]
adapters = ["support"]
[worker.there]
kind = "even"
count = 2
[[needs]]
share_ppm = 250_000
labels = ["eu"]
[[needs]]
share_ppm = 100_000
adapter = "support"
"""


def test_shares_of_the_requests_need_what_some_workers_have() -> None:
    trace = generated_trace(1, rate_per_s=50, duration_s=40)
    setting = parse_scenario(FILE, pytest.fail)
    spec = setting.scenario.workers[0]
    assert spec.offers == Offers(labels=("eu", "medical"), adapters=("support",))
    assert setting.scenario.workers[1].offers == NO_OFFERS
    demand = Demand(model=spec.model, needs=setting.needs)
    found = requests_of(trace, demand, 3)
    for needs, share in ((EU, 0.25), (ADAPTED, 0.1)):
        counted = sum(each.needs == needs for each in found)
        assert abs(counted / len(found) - share) < 0.03
    plain = requests_of(trace, Demand(model=spec.model), 3)
    assert [each.needs for each in plain] == [None] * len(found)
    assert [each.tier for each in plain] == [each.tier for each in found]
    whole = (NeedShare(share_ppm=PPM, needs=EU),)
    agents = requests_of(
        agent_trace(Agents(), 1, rate_per_s=1, duration_s=10),
        Demand(model=spec.model, needs=whole, hints=True),
        3,
    )
    assert {each.needs for each in agents} == {EU}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('["eu"]\n[[needs]]', '["moon"]\n[[needs]]', "the label 'moon', which no worker has"),
        ("250_000", "950_000", "more than 1000000 together"),
        ('["medical", "eu"]', '["eu", "eu"]', r"\[worker.here\] labels names one twice"),
        ('"support"\n', '"sales"\n', "the adapter 'sales'"),
    ],
)
def test_needs_that_cannot_be_are_refused(before: str, after: str, said: str) -> None:
    assert before in FILE
    with pytest.raises(ConfigInvalid, match=said):
        parse_scenario(FILE.replace(before, after, 1), pytest.fail)


def test_agents_tell_what_they_know() -> None:
    trace = agent_trace(Agents(branch_share=0.5), 1, rate_per_s=1, duration_s=20)
    quiet = requests_of(trace, Demand(model=worker().model), 3)
    assert all(each.hints is None for each in quiet)
    found = requests_of(trace, Demand(model=worker().model, hints=True), 3)
    by_name = {each.request: each for each in found}
    waited_for = {name for each in found for name in each.wait_for}
    for each in found:
        assert each.hints is not None
        assert each.output_tokens <= (each.hints.output_tokens or 0) < 2 * each.output_tokens + 1
        assert (each.hints.tool_ns is not None) == (each.request in waited_for)
        for name in each.wait_for:
            before = by_name[name].hints
            assert before is not None
            assert before.tool_ns is not None
            assert before.tool_ns <= each.delay_ns
    sessions = {each.session for each in found}
    assert sum(each.hints.session_ends for each in found if each.hints) == len(sessions)


def test_requests_run_where_their_labels_allow_it() -> None:
    factory = scenario(worker("a"), worker("b", offers=IN_EU))
    requests = [request(n, needs=EU if n % 2 else None) for n in range(20)]
    requests.append(request(20, needs=ADAPTED))
    hints = Hints(output_tokens=20)
    requests.append(request(21, session="s", hints=hints))
    requests.append(request(22, session="t"))
    result, hooks = faulty(factory, requests)
    assert ends(result) == [End.DONE] * 20 + [End.REJECTED, End.DONE, End.DONE]
    assert {result.outcomes.worker[n] for n in range(1, 20, 2)} == {1}
    came = {event.request: event for _, event in hooks.of(Arrived)}
    assert (came[RequestID("r21")].session, came[RequestID("r21")].hints) == ("s", hints)
    assert came[RequestID("r22")].session is None


def test_a_worker_that_only_decodes_offers_what_its_prefillers_do() -> None:
    both = Offers(labels=("eu", "us"), adapters=("one", "two"))
    some = Offers(labels=("eu",), adapters=("two",))
    factory = scenario(
        worker("p1", role="prefill", offers=both),
        worker("p2", role="prefill", offers=some),
        worker("d", role="decode", offers=both, **LINK),
    )
    result, hooks = faulty(factory, [request(0, needs=EU), request(1, needs=Needs(labels=("us",)))])
    ((_, told_up),) = hooks.of(WorkerUp)
    assert told_up.offers == some
    assert ends(result) == [End.DONE, End.REJECTED]


def test_a_journal_tells_needs_and_hints_again() -> None:
    labelled = up(offers=IN_EU)
    hints = Hints(tool_ns=S)
    events = (
        (0, CONFIGURED),
        (0, labelled),
        (S, arrived("a", S, needs=EU, hints=hints, session="s")),
        (2 * S, finished("a")),
    )
    found = told(*events)
    (request_again,) = found.requests
    assert (request_again.needs, request_again.hints, request_again.session) == (EU, hints, "s")
    assert found.scenario.workers[0].offers == IN_EU
    assert worker_up(found.scenario.workers[0]).offers == IN_EU
    plain = told(*ANSWERED)
    assert (plain.requests[0].needs, plain.requests[0].hints) == (None, None)


def test_a_run_with_needs_is_the_same_each_time() -> None:
    factory = scenario(worker("a"), worker("b", offers=IN_EU))
    requests = [request(n, needs=EU if n % 3 else None, tier=Tier.FREE) for n in range(60)]
    digests = {run(factory, requests).journal_digest for _ in range(2)}
    digests.add(run(factory, requests, exact=True).journal_digest)
    assert len(digests) == 1


def test_needs_reach_a_restored_dispatcher(tmp_path: Path) -> None:
    dispatcher = Dispatcher()
    dispatcher.handle(0, CONFIGURED)
    dispatcher.handle(0, up(slots=1, offers=IN_EU))
    for number in range(4):
        dispatcher.handle(1, arrived(f"r{number}", needs=EU if number else ADAPTED))
    again = Dispatcher.restore(dispatcher.snapshot())
    assert again.digest() == dispatcher.digest()
    tick = (5 * NS_PER_S, finished("r1"))
    assert again.handle(*tick) == dispatcher.handle(*tick)


def test_a_run_with_all_of_it_is_run_again_from_its_journal(tmp_path: Path) -> None:
    specs = [
        worker(
            f"w{n}",
            slots=2,
            offers=IN_EU if n else NO_OFFERS,
            preempts=True,
            host_kv_blocks=1 << 20,
            host_bytes_per_s=10**9,
            kv_bytes_per_token=1_000,
        )
        for n in range(2)
    ]
    made = scenario(*specs)
    requests = [
        request(
            n,
            needs=EU if n % 3 == 0 else None,
            session=f"s{n % 4}",
            hints=Hints(tool_ns=S),
            tier=Tier.ULTRA if n % 5 == 0 else Tier.FREE,
            blocks=tuple(100 * (n % 4) + depth for depth in range(6)),
        )
        for n in range(60)
    ]
    # A replay knows no limit of output but the one on record, and no answer's true length.
    requests = [msgspec.structs.replace(each, output_tokens_max=20) for each in requests]
    dispatcher = Dispatcher()
    journal = FileJournal(tmp_path / "x.twj", dispatcher)
    result = run(made, requests, dispatcher=dispatcher, journal=journal)
    journal.close()
    reader = Reader()
    reader.take(entries_of((tmp_path / "x.twj").read_bytes(), "x"))
    again = reader.recorded("x", [made.book])
    assert run(again.scenario, again.requests, hooks=again.hooks()).journal_digest == (
        result.journal_digest
    )
