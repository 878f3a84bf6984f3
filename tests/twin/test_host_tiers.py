"""KV blocks that move to a host's memory and back in the twin."""

from __future__ import annotations

import msgspec
import pytest

from tests.twin import eager
from tests.twin.factory import configured, request, scenario, worker
from tests.twin.test_twin_driver import ends, faulty
from tokenworks.core.needs import Hints
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.dispatch.commands import Command, Fetch, Offload
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import PolicySettings
from tokenworks.twin.checkers import Checker
from tokenworks.twin.driver import run
from tokenworks.twin.host_tier import HostTier
from tokenworks.twin.kv_cache import KVCache
from tokenworks.twin.records import End, Scenario, TwinRequest
from tokenworks.twin.report import report
from tokenworks.twin.scenarios import build
from tokenworks.twin.sessions import Agents, agent_trace
from tokenworks.twin.swarm import run_case
from tokenworks.twin.swarm_draw import draw
from tokenworks.twin.workload import Demand, requests_of

MS = NS_PER_MS


# The place below.


def test_the_place_below_keeps_the_latest() -> None:
    tier = HostTier(3, 100, 10**9)
    tier.put([1, 2, 3])
    assert tier.has([1, 2]) == 2
    tier.put([4])
    assert (len(tier), tier.has([3]), tier.has([1, 2, 3])) == (3, 0, 2)
    tier.clear()
    assert (len(tier), tier.moved_down) == (0, 4)


def test_the_link_carries_one_transfer_after_the_other() -> None:
    tier = HostTier(3, 1_000, 10**9)
    assert tier.transfer(5, 100) == 5_100
    assert tier.transfer(2, 1_000) == 7_100
    assert tier.transfer(1, 50_000) == 51_000


# The cache above.


def cached(*chains: tuple[int, ...]) -> KVCache:
    cache = KVCache(20)
    cache.changes = []
    for chain in chains:
        match = cache.match(chain, len(chain))
        last = cache.pin(match)
        if match[0] < len(chain):
            cache.take(len(chain) - match[0])
            last = cache.commit(last, chain, match[0], len(chain))
        cache.release(last, 0)
    cache.check()
    return cache


def test_the_end_of_a_chain_leaves_the_cache() -> None:
    cache = cached((1, 2, 3, 4, 5))
    assert cache.uncache((1, 2, 3, 4, 5), 2) == 3
    cache.check()
    assert cache.cached() == {1, 2}
    assert cache.changes is not None
    assert cache.changes[-1] == (False, (3, 4, 5))
    assert cache.uncache((1, 2), 0) == 2
    cache.check()
    assert (cache.cached(), cache.available) == (set(), 20)


def test_what_others_go_on_from_or_use_stays() -> None:
    cache = cached((1, 2, 3, 4), (1, 2, 7, 8))
    assert cache.uncache((1, 2, 3, 4), 0) == 2
    assert cache.cached() == {1, 2, 7, 8}
    assert cache.uncache((1, 2), 0) == 0  # 7 builds on it
    cache.check()
    pinned = cache.pin(cache.match((1, 2, 7, 8), 4))
    assert cache.uncache((1, 2, 7, 8), 0) == 0
    cache.release(pinned, 0)
    assert cache.uncache((1, 2, 7, 8), 0) == 4
    assert cache.uncache((1, 2), 0) == 0
    longer = cached((1, 2, 3, 4))
    assert longer.uncache((1, 2), 0) == 0  # 3 builds on it, in the same stretch
    longer.check()


def test_blocks_come_back_where_the_chain_reaches_them() -> None:
    cache = cached((1, 2))
    assert not cache.bring((1, 2, 3, 4, 5), 3, 5)
    assert cache.bring((1, 2, 3, 4, 5), 2, 5)
    cache.check()
    assert cache.match((1, 2, 3, 4, 5), 5)[0] == 5
    assert cache.available == 20
    assert cache.bring((9,), 0, 1)
    cache.check()


# A run.


def factory(**changes: object) -> Scenario:
    spec = worker(
        kv_blocks=60,
        host_kv_blocks=500,
        host_bytes_per_s=10**8,
        kv_bytes_per_token=1_000,
        **changes,
    )
    return scenario(spec, settings=configured())


def paused(gap_ns: int = 4 * NS_PER_S, tool_ns: int = 4 * NS_PER_S) -> list[TwinRequest]:
    """A session of two turns, and others that fill the cache meanwhile."""
    chain = tuple(range(100_000, 100_030))
    turns = [
        request(
            n,
            at_ns=at_ns,
            input_tokens=16 * blocks + 3,
            blocks=chain[:blocks],
            session="s",
            hints=Hints(tool_ns=tool_ns),
        )
        for n, (at_ns, blocks) in enumerate([(2 * NS_PER_S, 25), (2 * NS_PER_S + gap_ns, 30)])
    ]
    others = [
        request(
            10 + n,
            at_ns=n * 100 * MS,
            input_tokens=16 * 8 + 3,
            blocks=tuple(range(100 * n, 100 * n + 8)),
            session=f"x{n}",
            hints=Hints(output_tokens=20),
        )
        for n in range(55)
    ]
    return sorted([*turns, *others], key=lambda each: each.at_ns)


def moved(scenario_: Scenario, requests: list[TwinRequest]) -> list[Offload | Fetch]:
    found: list[Offload | Fetch] = []

    class Sees(eager.Watch):
        def saw(self, command: Command) -> None:
            if isinstance(command, Offload | Fetch):
                found.append(command)

    run(scenario_, requests, hooks=Sees())
    return found


def test_a_session_finds_its_blocks_again_after_the_tool() -> None:
    requests = paused()
    result, _ = faulty(factory(), requests)
    assert set(ends(result)) == {End.DONE}
    down, up, again = moved(factory(), requests)
    assert isinstance(down, Offload)
    assert isinstance(up, Fetch)
    assert (down.blocks, up.blocks) == (25, 25)
    assert isinstance(again, Offload)
    second = next(n for n, each in enumerate(requests) if each.request == "r1")
    assert result.outcomes.cached_tokens[second] == 25 * 16
    # It waits for the link: 25 blocks of 16 kB at 100 MB/s, one after the other.
    ttft_ns = result.outcomes.first_token_ns[second] - requests[second].at_ns
    assert 25 * 160_000 < ttft_ns < 25 * 160_000 + 8 * MS
    plain = scenario(worker(kv_blocks=60), settings=configured())
    without = run(plain, requests)
    assert without.outcomes.cached_tokens[second] == 0
    assert without.outcomes.first_token_ns[second] > result.outcomes.first_token_ns[second]


def test_what_an_idle_engine_has_moved_down_is_published() -> None:
    dispatcher = Dispatcher()
    checker = Checker(dispatcher, deadline_ns=1_000 * NS_PER_S)
    run(factory(), paused(), dispatcher=dispatcher, hooks=checker, publishes=True)
    assert checker.violations == []


def test_what_the_place_below_has_lost_is_computed() -> None:
    requests = paused()
    small = factory()
    small = msgspec.structs.replace(
        small, workers=(msgspec.structs.replace(small.workers[0], host_kv_blocks=0),)
    )
    result, _ = faulty(small, requests)
    second = next(n for n, each in enumerate(requests) if each.request == "r1")
    assert result.outcomes.cached_tokens[second] == 0
    assert set(ends(result)) == {End.DONE}


@pytest.mark.parametrize("at_ms", [2_100, 4_000, 6_001])
def test_a_worker_that_is_lost_takes_the_place_below_with_it(at_ms: int) -> None:
    requests = paused()
    name = worker().worker
    result, _ = faulty(
        factory(),
        requests,
        (at_ms * MS, lambda driver: driver.crash(name, "power")),
        ((at_ms + 300) * MS, lambda driver: driver.start(name)),
    )
    assert End.OPEN not in ends(result)
    second = next(n for n, each in enumerate(requests) if each.request == "r1")
    assert result.outcomes.cached_tokens[second] == 0


def test_blocks_for_which_there_is_no_room_stay_below() -> None:
    requests = paused()
    crowd = [
        request(200 + n, at_ns=5_990 * MS, input_tokens=210, output_tokens=60) for n in range(3)
    ]
    requests = sorted([*requests, *crowd], key=lambda each: each.at_ns)
    result, _ = faulty(factory(), requests)
    assert set(ends(result)) == {End.DONE}


@pytest.mark.heavy
def test_swarms_meet_what_moving_blocks_leads_to(monkeypatch: pytest.MonkeyPatch) -> None:
    eager.plant(monkeypatch)
    for seed in range(80):
        found = run_case(draw(seed))
        assert not found.violations, found


@pytest.mark.parametrize("policy", ["economic", "prefix-aware"])
def test_agents_find_more_in_the_cache(policy: str) -> None:
    made = build("homogeneous", 2).scenario
    trace = agent_trace(Agents(tool_s=30.0), 3, rate_per_s=1, duration_s=60)
    size = made.workers[0].block_tokens
    demand = Demand(model=made.workers[0].model, hints=True, block_tokens=size)
    requests = requests_of(trace, demand, 5)
    told = msgspec.structs.replace(made.configured, policy=PolicySettings(name=policy))
    shares = []
    for link in (0, 64 * 10**9):
        small = {"kv_blocks": 200, "host_kv_blocks": 10_000, "host_bytes_per_s": link}
        specs = tuple(msgspec.structs.replace(spec, **small) for spec in made.workers)
        each = msgspec.structs.replace(made, workers=specs, configured=told)
        found = report(each, requests, run(each, requests)).all
        shares.append(found.cached_tokens / found.input_tokens)
    assert shares[1] > shares[0] + 0.02
