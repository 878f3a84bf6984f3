"""The driver: requests whose workers are asked for an answer in one piece."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from tests.live.driver_world import CONFIG, MODEL, World, outcome, settle_down
from tokenworks.core.ids import ModelName, PoolID, WorkerID
from tokenworks.core.slo import Measured
from tokenworks.ledger.entries import Posted, Voided
from tokenworks.live.network import HEAD_NS_MAX, WHOLE_NS_MAX
from tokenworks.live.workers import AttachedSpec, client_of

WHOLE = msgspec.structs.replace(CONFIG, whole_answers=True)


def test_the_gateway_is_told_of_which_models(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        assert world.driver.whole_models() == {MODEL}

    live(test, config=WHOLE)


def test_no_model_is_asked_so_by_default(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        assert world.driver.whole_models() == frozenset()

    live(test)


def test_a_prompt_that_nobody_hears_of_is_not_left_to_prefill(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        worker = world.dispatcher._workers[world.seats[0]]
        opening = world.open(in_one_piece=True)
        await settle_down()
        assert (len(worker.running), worker.prefill_tokens) == (1, 0)
        streamed = world.open()
        await settle_down()
        assert (len(worker.running), worker.prefill_tokens) == (2, 10)
        for exchange in client.waiting():
            exchange.answer()
        for each in (opening, streamed):
            await (await each).settle(outcome())
        assert (len(worker.running), worker.prefill_tokens) == (0, 0)

    live(test, config=WHOLE)


def test_a_worker_that_breaks_off_before_its_answer_costs_a_retry(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        first, second = world.up(0), world.up(1)
        opening = world.open(in_one_piece=True)
        await settle_down()
        (tried,) = first.waiting() + second.waiting()
        tried.fail()
        await settle_down()
        (again,) = first.waiting() + second.waiting()
        again.answer()
        delivery = await opening
        measured = Measured(ttft_ns=None, decode_ns=1, output_tokens=20)
        await delivery.settle(msgspec.structs.replace(outcome(), measured=measured))
        (posted,) = world.entries(Posted)
        assert (posted.ttft_ns, posted.decode_ns, posted.attempt) == (None, 1, 0)
        assert posted.tier_delivered is posted.tier_asked

    live(test, config=WHOLE)


def test_a_caller_who_leaves_before_the_answer_pays_nothing(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        client = world.up()
        opening = world.open(in_one_piece=True)
        await settle_down()
        opening.cancel()
        await settle_down()
        assert client.exchanges[0].cancelled
        assert [each.reason for each in world.entries(Voided)] == ["withdrawn"]
        assert world.entries(Posted) == []

    live(test, config=WHOLE)


@pytest.mark.parametrize(("whole", "ns"), [(False, HEAD_NS_MAX), (True, WHOLE_NS_MAX)])
def test_a_worker_may_say_nothing_for_as_long_as_an_answer_takes(whole: bool, ns: int) -> None:
    spec = AttachedSpec(
        worker=WorkerID("w"),
        pool=PoolID("p"),
        model=ModelName("m"),
        url="http://127.0.0.1:1",
        whole_answers=whole,
    )
    client = client_of(spec)
    assert client._head_s_max * 10**9 == ns
    client.close()
