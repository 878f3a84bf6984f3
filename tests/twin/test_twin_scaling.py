"""Pools that grow and shrink in the twin: workers start with their time, and nothing flaps."""

from __future__ import annotations

import msgspec
import pytest

from tests.twin.factory import configured, request, scenario, worker
from tests.twin.test_twin_driver import Faults, ends, faulty
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import PoolID, WorkerID
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.commands import Scale
from tokenworks.dispatch.events import PoolScale, WorkerDown, WorkerUp
from tokenworks.perf.timing import FS_PER_NS
from tokenworks.twin.driver import run
from tokenworks.twin.records import End, Scenario, TwinRequest
from tokenworks.twin.scaling import Scaling
from tokenworks.twin.scenarios import parse_scenario

S = NS_PER_S
START_NS = 20 * S


def grows(count: int = 6, least: int = 1, start_ns: int = START_NS) -> Scenario:
    """Workers that make about 50 tokens a second, one at a time; TTFT is promised in a second."""
    specs = []
    for number in range(count):
        spec = worker(f"w{number}", slots=1, start_ns=start_ns if number >= least else 0)
        timing = msgspec.structs.replace(spec.timing, launch_fs=20_000_000 * FS_PER_NS)
        specs.append(msgspec.structs.replace(spec, timing=timing))
    plain = configured(patience_ns=120 * S)
    promises = {
        tier: msgspec.structs.replace(promise, ttft_ns=S)
        for tier, promise in plain.promises.items()
    }
    pool = PoolScale(
        pool=PoolID("p"),
        model=specs[0].model,
        workers_min=least,
        workers_max=count,
        start_ns=start_ns,
    )
    settings = msgspec.structs.replace(plain, promises=promises, scaling=(pool,))
    return scenario(*specs, settings=settings)


def steady(rate_per_s: float, first_s: float, last_s: float, first: int = 0) -> list[TwinRequest]:
    """Requests of half a second each."""
    count = round((last_s - first_s) * rate_per_s)
    return [
        request(
            first + number,
            at_ns=round((first_s + number / rate_per_s) * S),
            output_tokens=25,
            tier=Tier.HIGH,
        )
        for number in range(count)
    ]


def moves(hooks: Faults) -> list[tuple[int, int]]:
    """When there were how many workers, in seconds."""
    found, up = [], 0
    for now_ns, event in hooks.events:
        if isinstance(event, WorkerUp):
            up += 1
        elif isinstance(event, WorkerDown):
            up -= 1
        else:
            continue
        found.append((now_ns // S, up))
    return found


def test_workers_come_when_requests_wait_after_the_time_that_they_take() -> None:
    result, hooks = faulty(grows(), steady(5, 0, 200))
    assert set(ends(result)) == {End.DONE}
    ups = [now_ns for now_ns, _ in hooks.of(WorkerUp)]
    assert ups[0] == 0
    assert ups[1] >= START_NS + S
    # Five a second of half a second each are two and a half workers' work.
    most = max(up for _, up in moves(hooks))
    assert 3 <= most <= 5
    assert moves(hooks)[-1][1] == 1  # once all is done, they are given back
    waits = result.outcomes
    late = [waits.wait_ns_max(place) for place in range(700, 1_000)]
    assert max(late) < S


def test_a_worker_costs_while_it_starts_and_not_after_it_was_given_back() -> None:
    requests = steady(5, 0, 100)
    result, hooks = faulty(grows(), requests)
    for use in result.workers:
        ups = [t for t, event in hooks.of(WorkerUp) if event.worker == use.worker]
        downs = [t for t, event in hooks.of(WorkerDown) if event.worker == use.worker]
        whole = sum(downs) - sum(ups) if len(downs) == len(ups) else result.ended_ns
        extra = START_NS * len(ups) if use.worker != "w0" else 0
        assert use.up_ns == whole + extra
    everyone = run(msgspec.structs.replace(grows(), obeys_scaling=False), requests)
    assert sum(use.up_ns for use in result.workers) < sum(use.up_ns for use in everyone.workers)


@pytest.mark.heavy
@pytest.mark.parametrize("rate", [2, 3.5, 5, 8])
def test_a_steady_load_does_not_make_a_pool_flap(rate: float) -> None:
    requests = steady(rate, 0, 1_800)
    hooks = Faults(requests)
    run(grows(), requests, hooks=hooks)
    after = [(at, up) for at, up in moves(hooks) if 200 < at < 1_800]
    assert len(after) <= 4, after


@pytest.mark.heavy
def test_a_load_that_comes_in_waves_moves_a_pool_less_and_less() -> None:
    requests: list[TwinRequest] = []
    for wave in range(8):
        requests += steady(6, wave * 300, wave * 300 + 100, len(requests))
    hooks = Faults(requests)
    result = run(grows(), requests, hooks=hooks)
    assert End.OPEN not in ends(result)
    per_wave = [
        sum(wave * 300 <= at < (wave + 1) * 300 for at, _ in moves(hooks)) for wave in range(8)
    ]
    assert max(per_wave[4:]) <= per_wave[1] // 2 + 1


def test_exact_mode_decides_the_same() -> None:
    requests = steady(5, 0, 60)
    digests = {run(grows(), requests, exact=exact).journal_digest for exact in (False, True)}
    assert len(digests) == 1


def test_who_was_given_back_may_be_started_again() -> None:
    requests = steady(5, 0, 60)
    requests += steady(5, 400, 460, len(requests))
    _, hooks = faulty(grows(3), requests)
    starts = [event.worker for _, event in hooks.of(WorkerUp)]
    assert starts.count(WorkerID("w1")) == 2


def test_a_pool_grows_while_one_of_its_workers_ends_what_it_has() -> None:
    scaling = Scaling(grows(4))
    wants = Scale(
        pool=PoolID("p"), workers=2, up=1, reason="queue_wait", worker=None, pressure_ppm=0
    )
    since_ns, told = [0, 0, None, None], [True, True, False, False]
    found = scaling.missing(wants, since_ns, told)  # w0 or w1 is sent nothing any more
    assert [spec.worker for spec in found] == ["w2"]
    assert scaling.missing(wants, since_ns, told) == []  # w2 is starting
    more = msgspec.structs.replace(wants, workers=3)
    assert [spec.worker for spec in scaling.missing(more, since_ns, told)] == ["w3"]


def test_a_scenario_from_a_file_may_grow() -> None:
    text = 'name = "x"\n[worker.a]\nkind = "even"\ncount = 4\nworkers_min = 2\nstart_ns = 5\n'
    found = parse_scenario(text, pytest.fail).scenario
    (pool,) = found.configured.scaling  # type: ignore[misc]
    assert (pool.pool, pool.workers_min, pool.workers_max, pool.start_ns) == ("a", 2, 4, 5)
    with pytest.raises(ConfigInvalid, match="workers_min is 5, more than its count"):
        parse_scenario(text.replace("= 2", "= 5"), pytest.fail)
    # Others of the same scenario stay as they are.
    both = text + '[worker.b]\nkind = "even"\ncount = 1\n'
    assert len(parse_scenario(both, pytest.fail).scenario.configured.scaling) == 1  # type: ignore[arg-type]
