"""What requests need of the factory's pools, and how tenants' caches are kept apart."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from tests.live.driver_world import CONFIG, MODEL, World, outcome, settle_down
from tokenworks.core.errors import NotOffered, WorkerUnavailable
from tokenworks.core.needs import Hints, Needs
from tokenworks.core.traces import trace_of
from tokenworks.core.units import NS_PER_S

EU = Needs(labels=("eu",))
LABELLED = msgspec.structs.replace(CONFIG, labels=("eu",), adapters=("support",))


def test_what_no_pool_offers_is_refused_before_anything_is_held(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        world.up()
        for needs, said in (
            (Needs(labels=("eu", "moon")), "the label 'moon'"),
            (Needs(adapter="sales"), "the adapter 'sales'"),
        ):
            with pytest.raises(NotOffered, match=said):
                await world.open(needs=needs)
        assert not world.ledger.open_holds()

    live(test, config=LABELLED)


def test_a_pool_serves_what_it_offers_and_its_engine_is_told_the_salt(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        hints = Hints(tool_ns=NS_PER_S)
        asked = {"needs": EU, "session": "s", "hints": hints, "cache_salt": "5a17"}
        delivery, _ = await world.answering(client, **asked)
        assert client.exchanges[0].body == b'{"cache_salt":"5a17","stream":true}'
        fleet = world.dispatcher._fleets[MODEL]
        assert list(fleet.sessions) == [("tenant", "s")]
        await delivery.settle(outcome())

    live(test, config=msgspec.structs.replace(LABELLED, cache_salt=True))


def test_a_label_whose_workers_are_down_is_named(live: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        world.up()
        world.down()
        world.driver._seats[world.seats[1]].config = CONFIG
        world.up(1)
        opening = world.open(needs=EU)
        await settle_down()
        world.tick(60 * NS_PER_S)
        with pytest.raises(WorkerUnavailable, match="with the label 'eu' is up"):
            await opening

    live(test, config=LABELLED)


def test_a_dispatcher_that_knows_better_than_the_settings_is_heard(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        opening = world.open(needs=EU)
        await settle_down()
        with pytest.raises(WorkerUnavailable):  # no worker has ever come up
            await opening
        world.driver._seats[world.seats[0]].config = CONFIG
        world.up()
        opening = world.open(needs=EU)
        await settle_down()
        with pytest.raises(NotOffered, match="the label 'eu'"):
            await opening

    live(test, config=LABELLED)


def test_a_worker_is_told_the_requests_name_and_its_place_in_the_trace(
    live: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        client = world.up()
        trace = trace_of("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        delivery, stream = await world.answering(client, trace=trace)
        name, parent, end = client.exchanges[0].lines.split(b"\r\n")
        assert name == b"x-request-id: r1"
        assert parent == b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        assert end == b""
        stream.end()
        await delivery.settle(outcome())

    live(test)
