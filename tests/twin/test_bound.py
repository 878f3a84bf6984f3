"""The bound of a run: what it makes of a scenario and a workload."""

from __future__ import annotations

import msgspec
import pytest

from tests.plan.fluid_samples import MODEL, MS, PLAIN, sample_book
from tokenworks.core.ids import ModelName, PoolID, RequestID, TenantID, WorkerID
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.events import Configured, Limits
from tokenworks.twin.bound import (
    bound_inputs,
    earliest_ns,
    fleet_of,
    found_tokens,
    run_bound,
    run_capacity,
)
from tokenworks.twin.records import Scenario, TwinRequest, WorkerSpec

BOOK = sample_book(input_share=0.1)
H = 100 * NS_PER_S


def spec(name: str, **changes: object) -> WorkerSpec:
    plain = WorkerSpec(
        worker=WorkerID(name),
        pool=PoolID("pool"),
        model=MODEL,
        timing=PLAIN,
        slots=10,
        kv_blocks=1_000,
        block_tokens=16,
        batch_tokens_max=512,
        context_tokens_typical=100,
    )
    return msgspec.structs.replace(plain, **changes)


def scenario(*workers: WorkerSpec) -> Scenario:
    limits = Limits(queue_len_max=dict.fromkeys(Tier, 10))
    return Scenario(
        name="s",
        workers=workers or (spec("a"),),
        configured=Configured(promises=BOOK.promises, limits=limits),
        book=BOOK,
    )


def asked(name: str, at_s: float = 0, **changes: object) -> TwinRequest:
    plain = TwinRequest(
        request=RequestID(name),
        tenant=TenantID("t"),
        model=MODEL,
        tier=Tier.HIGH,
        at_ns=int(at_s * NS_PER_S),
        input_tokens=40,
        output_tokens=11,
        output_tokens_max=100,
    )
    return msgspec.structs.replace(plain, **changes)


def found(*requests: TwinRequest, firsts: tuple[int, ...] = ()) -> list[tuple[int, int]]:
    return found_tokens(requests, firsts or (0,) * len(requests), 16)


def test_workers_that_are_alike_are_one_class() -> None:
    slow = msgspec.structs.replace(PLAIN, launch_fs=30 * MS)
    late = spec("b", start_ns=60 * NS_PER_S)
    fleet = fleet_of([spec("a"), late, spec("c", timing=slow, role="decode")], H, 2)
    assert [worker.up_ns for worker in fleet] == [
        (50 * NS_PER_S, 90 * NS_PER_S),
        (50 * NS_PER_S, 50 * NS_PER_S),
    ]
    assert [(worker.prefills, worker.decodes) for worker in fleet] == [(True, True), (False, True)]
    assert fleet[0].kv_tokens == 16_000


def test_each_block_is_booked_on_one_of_those_that_have_it() -> None:
    # 40 tokens of prompt: what is booked on others, and what others have too.
    assert found(asked("a", blocks=(1, 2)), asked("b", 5, blocks=(1, 3))) == [(0, 16), (16, 16)]
    assert found(asked("a", 5, blocks=(1, 2)), asked("b", blocks=(1, 2))) == [(32, 32), (0, 32)]
    assert found(asked("a", blocks=(1, 2)), asked("b", 9, blocks=(1, 2), input_tokens=20)) == [
        (0, 32),
        (20, 20),
    ]
    # Of one window the highest tier bears it; an earlier window comes before that.
    free, ultra = asked("a", blocks=(1,), tier=Tier.FREE), asked("b", 5, blocks=(1,))
    assert found(free, ultra) == [(16, 16), (0, 16)]
    assert found(free, ultra, firsts=(0, 1)) == [(0, 16), (16, 16)]


def test_models_share_no_blocks_and_who_comes_too_late_bears_none() -> None:
    other = msgspec.structs.replace(spec("o"), model=ModelName("other"))
    book = msgspec.structs.replace(BOOK, prices=BOOK.prices | {other.model: BOOK.prices[MODEL]})
    factory = msgspec.structs.replace(scenario(spec("a"), other), book=book)
    requests = [
        asked("a", blocks=(1, 2)),
        asked("b", 5, blocks=(1,), model=other.model),
        asked("c", 100, blocks=(1, 2), tier=Tier.ULTRA),
    ]
    given = bound_inputs(factory, requests, H)
    assert [each.uncached_input_tokens for each in given.groups] == [40, 40]
    assert [each.shared_input_tokens for each in given.groups] == [0, 0]


def test_turns_come_in_an_order_at_the_earliest() -> None:
    first = asked("a")
    second = asked("b", wait_for=(RequestID("a"),), delay_ns=NS_PER_S // 2)
    third = asked("c", wait_for=(RequestID("b"),))
    assert earliest_ns([third, first, second]) == [NS_PER_S // 2, 0, NS_PER_S // 2]


def test_requests_in_a_circle_are_a_mistake() -> None:
    a = asked("a", wait_for=(RequestID("b"),))
    b = asked("b", wait_for=(RequestID("a"),))
    with pytest.raises(AssertionError, match="circle"):
        earliest_ns([a, b])


def test_what_nobody_serves_or_comes_too_late_earns_nothing() -> None:
    requests = [
        asked("a"),
        asked("b", 100),
        asked("c", model=ModelName("other")),
        asked("d", output_tokens=500),
    ]
    given = bound_inputs(scenario(), requests, H)
    assert sum(group.requests for group in given.groups) == 2
    assert sum(group.output_tokens for group in given.groups) == 111
    assert [len(cell) for cell in given.members] == [1, 1]
    # 40 tokens of prompt and 111 of output at the price of high.
    bound = run_bound(scenario(), requests, H)
    assert bound.bound_dollars == pytest.approx((80 * 0.6 + 111 * 6) / 1e6, rel=1e-3)


def test_windows_end_where_a_promise_is_lost() -> None:
    # 10 decode tokens at 20 per second after at most 1 s: at 48.6 s until 50.1 s.
    requests = [asked("a", 48.4), asked("b", 48.6), asked("c", wait_for=(RequestID("a"),))]
    given = bound_inputs(scenario(), requests, H, windows=2)
    spans = sorted((each.window_first, each.windows_last) for c in given.members for each in c)
    assert spans == [(0, ()), (0, (1, 1, 0, 0, 0)), (0, (1, 1, 1, 1, 0))]


def test_windows_tighten_the_bound_of_a_burst() -> None:
    burst = [asked(str(i), 10, output_tokens=100, tier=Tier.ULTRA) for i in range(400)]
    whole = run_bound(scenario(), burst, H).bound_dollars
    apart = run_bound(scenario(), burst, H, windows=20, cells=1).bound_dollars
    assert apart < whole * 0.7
    # What cannot be made at once is still sold as free, for nothing.
    assert apart > 0


def test_capacity_of_a_run() -> None:
    requests = [asked(str(i), i / 10, blocks=(i,)) for i in range(100)]
    load = run_capacity(scenario(), requests, H)
    # Each reads 40 ms and decodes 10 tokens, 10 at a time in 20 ms: 20 ms. 100 s serve 1,666.
    assert load == pytest.approx(100 / 0.060 / 100, rel=0.01)
