"""Processes that share a limit: never above it, nothing idle for long, the dead lose nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bars import ledger_quota
from bars.ledger_quota import key_of, limit_of, used_tokens
from tests.live.lease_samples import (
    START_UNIX_NS,
    Process,
    Shared,
    lower,
    sharing,
    use_up,
    use_up_at_once,
)
from tokenworks.core.errors import LedgerUnavailable
from tokenworks.core.units import NS_PER_S
from tokenworks.ledger.entries import Reserved
from tokenworks.ledger.leases import Shortage
from tokenworks.ledger.quota_records import Refused
from tokenworks.ledger.quotas import window_end, window_start
from tokenworks.live.quota_leases import DEAD_AFTER_NS

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shared]:
    yield from sharing(tmp_path, monkeypatch)


def test_a_grant_leaves_the_rest_to_others(run: Run, shared: Shared) -> None:
    async def main() -> None:
        one, other = shared.process("a"), shared.process("b")
        assert isinstance(await one.reserve(10), Reserved)
        (window,) = one.ledger.windows()
        assert window.allowed == 125  # an eighth of 1,000
        assert isinstance(await other.reserve(800), Reserved)
        refused = await other.reserve(100)  # 125 and 800 are leased
        assert isinstance(refused, Refused)
        assert refused.quota is not None
        assert (refused.quota.allowed, refused.quota.held) == (1_000, 925)

    run(main())


def test_a_refusal_says_what_the_request_needs_and_how_the_whole_limit_stands(
    run: Run, shared: Shared
) -> None:
    async def main() -> None:
        shared.keeper.put_limit(msgspec.structs.replace(limit_of(0, 1_000), period="day"))
        one, other = shared.process("a"), shared.process("b")
        used = await one.reserve(100)
        assert isinstance(used, Reserved)
        await one.use(used, 40)
        assert isinstance(await other.reserve(700), Reserved)
        refused = await one.reserve(300)  # of which 85 would fit into what it has leased
        assert isinstance(refused, Refused)
        numbers = refused.quota
        assert numbers is not None
        assert (numbers.allowed, numbers.used, numbers.asked) == (1_000, 40, 300)
        assert numbers.held == 700
        assert numbers.used + numbers.held + numbers.asked > numbers.allowed
        assert "may use 1000 tokens" in refused.message
        assert "40 used, 700 held by open requests or leased by others" in refused.message
        assert "300 needed for this one" in refused.message
        assert numbers.resets_unix_ns is not None
        too_much = await one.reserve(1_001)
        assert isinstance(too_much, Refused)
        assert too_much.quota is not None
        assert (too_much.quota.asked, too_much.quota.resets_unix_ns) == (1_001, None)

    run(main())


def test_what_lies_idle_is_given_back_when_it_is_wanted(run: Run, shared: Shared) -> None:
    async def main() -> None:
        one, other = shared.process("a"), shared.process("b")
        held = await one.reserve(100)
        assert isinstance(held, Reserved)
        await one.use(held, 40)
        assert isinstance(await other.reserve(900), Refused)
        assert await one.leases.tend() == []
        assert isinstance(await other.reserve(900), Reserved)
        assert isinstance(await one.reserve(61), Refused)
        assert await other.leases.tend() == []
        assert isinstance(await one.reserve(60), Reserved)  # to the last token

    run(main())


def test_the_dead_leave_what_they_have_not_used(run: Run, shared: Shared) -> None:
    async def main() -> None:
        dead, heir = shared.process("a"), shared.process("b")
        used = await dead.reserve(300)
        assert isinstance(used, Reserved)
        await dead.use(used, 250)
        left = await dead.reserve(700)
        assert isinstance(left, Reserved)
        assert isinstance(await heir.reserve(100), Refused)
        await dead.leases.tend()
        voided = await lives_on(heir, shared)
        assert [entry.request for entry in voided] == [left.request]
        heir.store.append_now(voided)
        assert isinstance(await heir.reserve(750), Reserved)
        lost: list[str] = []
        dead.leases._on_lost = lambda: lost.append("dead")
        with pytest.raises(LedgerUnavailable, match="taken over"):
            await dead.leases.tend()
        assert lost == ["dead"]
        with pytest.raises(LedgerUnavailable, match="taken over"):
            await dead.use(left, 700)
        assert used_tokens(shared.keeper, 0) == 250

    run(main())


async def lives_on(process: Process, shared: Shared) -> list[Any]:
    """What a process frees while it alone goes on for as long as makes the others dead."""
    freed: list[Any] = []
    for _ in range(2 * DEAD_AFTER_NS // NS_PER_S):
        shared.clock.ns += NS_PER_S
        freed += await process.leases.tend()
    return freed


def test_an_outage_for_all_kills_nobody(run: Run, shared: Shared) -> None:
    async def main() -> None:
        one, other = shared.process("a"), shared.process("b")
        held = await one.reserve(10)
        assert isinstance(held, Reserved)
        await one.leases.tend()
        await other.leases.tend()
        shared.clock.ns += 2 * DEAD_AFTER_NS  # nobody reaches the store
        assert await other.leases.tend() == []
        assert await one.leases.tend() == []
        await one.use(held, 10)

    run(main())


def test_a_lowered_limit_binds_who_has_leased(run: Run, shared: Shared) -> None:
    async def main() -> None:
        one = shared.process("a")
        assert isinstance(await one.reserve(10), Reserved)
        shared.keeper.put_limit(limit_of(0, 0))
        one.ledger.set_limits(one.store.limit_states(shared.clock.unix_ns()))
        await one.leases.tend()
        refused = await one.reserve(1)
        assert isinstance(refused, Refused)
        assert refused.quota is not None
        assert refused.quota.allowed == 0

    run(main())


@pytest.mark.parametrize("call", ["settings_version", "wanted", "give_back"])
def test_a_lowered_limit_binds_though_the_first_round_fails(
    run: Run, shared: Shared, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    async def main() -> None:
        one = shared.process("a")
        held = await one.reserve(10)
        assert isinstance(held, Reserved)
        await one.use(held, 10)
        lower(shared, 50, one)

        def broken(*_: object) -> None:
            raise LedgerUnavailable("a blip of the database")

        with monkeypatch.context() as patch:
            patch.setattr(one.store, call, broken)
            with pytest.raises(LedgerUnavailable):
                await one.leases.tend()
        for _ in range(5):
            await one.leases.tend()
        await use_up(one)
        assert used_tokens(shared.keeper, 0) == 50

    run(main())


def test_what_was_held_under_a_higher_limit_is_not_kept_when_it_comes_free(
    run: Run, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        one = shared.process("a")
        held = [await one.reserve(100) for _ in range(5)]
        lower(shared, 250, one)
        await one.leases.tend()
        for each in held:
            assert isinstance(each, Reserved)
            await one.use(each, 20)
        assert isinstance(await one.reserve(400), Refused)

        def broken(*_: object) -> None:
            raise LedgerUnavailable("a blip of the database")

        with monkeypatch.context() as patch:
            patch.setattr(one.store, "give_back", broken)
            with pytest.raises(LedgerUnavailable):
                await one.leases.tend()
        assert isinstance(await one.reserve(400), Refused)
        await one.leases.tend()
        await use_up(one)
        assert used_tokens(shared.keeper, 0) == 250
        one.ledger.check()

    run(main())


@pytest.mark.parametrize("first", ["nothing", "a round that fails", "a round"])
def test_a_limit_that_is_set_while_requests_run_counts_what_they_hold(
    run: Run, shared: Shared, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    async def main() -> None:
        shared.keeper.remove_limit(limit_of(0, 0).limit)
        one, other = shared.process("a"), shared.process("b")
        held = await other.reserve(80)
        assert isinstance(held, Reserved)
        lower(shared, 100, one, other)

        def broken(*_: object) -> None:
            raise LedgerUnavailable("a blip of the database")

        if first == "a round that fails":
            with monkeypatch.context() as patch:
                patch.setattr(other.store, "cover", broken)
                with pytest.raises(LedgerUnavailable):
                    await other.leases.tend()
        if first != "nothing":
            await one.leases.tend()
            await other.leases.tend()
        more = await one.reserve(10)
        assert isinstance(more, Reserved)
        await one.use(more, 10)
        await other.use(held, 80)
        for _ in range(3):
            await one.leases.tend()
            await other.leases.tend()
        await use_up(one)
        await use_up(other)
        assert used_tokens(shared.keeper, 0) == 100
        (state,) = shared.keeper.limit_states(shared.clock.unix_ns())
        assert state.used == 100
        one.ledger.check()
        other.ledger.check()

    run(main())


def test_a_limit_that_is_lifted_and_set_again_has_forgotten_nothing(
    run: Run, shared: Shared
) -> None:
    async def main() -> None:
        one = shared.process("a")

        async def use(tokens: int) -> None:
            held = await one.reserve(tokens)
            assert isinstance(held, Reserved)
            await one.use(held, tokens)

        def reload() -> None:
            one.ledger.set_limits(one.store.limit_states(shared.clock.unix_ns()))

        await use(100)
        shared.keeper.remove_limit(limit_of(0, 0).limit)
        reload()
        await use(700)
        shared.keeper.put_limit(limit_of(0, 1_000))
        reload()
        assert isinstance(await one.reserve(201), Refused)
        assert used_tokens(shared.keeper, 0) == 800

    run(main())


@pytest.mark.parametrize("rounds", [0, 3])
def test_what_is_stored_before_its_process_takes_a_limit_up_hides_no_grant(
    run: Run, shared: Shared, rounds: int
) -> None:
    async def main() -> None:
        shared.keeper.remove_limit(limit_of(0, 0).limit)
        one, other = shared.process("a"), shared.process("b")
        held = await one.reserve(80)
        assert isinstance(held, Reserved)
        shared.keeper.put_limit(limit_of(0, 100))
        await one.use(held, 80)
        lower(shared, 100, one, other)
        for _ in range(rounds):
            await one.leases.tend()
            await other.leases.tend()
        await use_up_at_once(one)
        for _ in range(3):
            await one.leases.tend()
            await other.leases.tend()
        await use_up_at_once(other)
        assert used_tokens(shared.keeper, 0) == 100

    run(main())


def test_what_is_taken_up_before_the_answer_is_stored_hides_no_grant(
    run: Run, shared: Shared
) -> None:
    async def main() -> None:
        shared.keeper.remove_limit(limit_of(0, 0).limit)
        one = shared.process("a")
        held = await one.reserve(80)
        assert isinstance(held, Reserved)
        posted = one.post(held, 80)
        lower(shared, 1_000, one)
        some = await one.reserve(10)  # leases an eighth
        assert isinstance(some, Reserved)
        await one.store.append([posted])
        await one.use(some, 10)
        await use_up_at_once(one)
        assert used_tokens(shared.keeper, 0) == 1_000

    run(main())


@pytest.mark.parametrize("end", ["closes", "dies"])
def test_who_ends_hides_nothing_that_was_used_before_a_limit_was_set(
    run: Run, shared: Shared, end: str
) -> None:
    async def main() -> None:
        shared.keeper.remove_limit(limit_of(0, 0).limit)
        shared.keeper.put_key(key_of(1))
        one, other = shared.process("a"), shared.process("b")
        before = await one.reserve(60)
        assert isinstance(before, Reserved)
        await one.use(before, 60)
        held = await other.reserve(10)
        assert isinstance(held, Reserved)
        shared.keeper.put_limit(msgspec.structs.replace(limit_of(1, 1_000), node="key:key_1"))
        lower(shared, 100, one, other)
        # It leases of the other limit, and so reads how all of them stand.
        (unrelated,) = (
            each for each in one.ledger.windows() if each.limit.limit == limit_of(1, 0).limit
        )
        asked = Shortage(unrelated.limit.limit, unrelated.start_unix_ns, 1)
        assert isinstance(one.store.lease([asked], shared.clock.unix_ns()), list)
        await other.leases.tend()
        await other.use(held, 10)
        if end == "closes":
            other.store.close()
        else:
            await lives_on(one, shared)
        for _ in range(3):
            await one.leases.tend()
        await use_up_at_once(one)
        assert used_tokens(shared.keeper, 0) == 100

    run(main())


@pytest.mark.parametrize("open_meanwhile", [False, True])
def test_a_limit_that_is_lifted_and_set_again_and_again_loses_nothing(
    run: Run, shared: Shared, open_meanwhile: bool
) -> None:
    async def main() -> None:
        one, other = shared.process("a"), shared.process("b")
        for _ in range(6):
            held = await other.reserve(10)
            assert isinstance(held, Reserved)
            if not open_meanwhile:
                await other.use(held, 10)
            shared.keeper.remove_limit(limit_of(0, 0).limit)
            for each in (one, other):
                each.ledger.set_limits(each.store.limit_states(shared.clock.unix_ns()))
                await each.leases.tend()
            lower(shared, 1_000, one, other)
            for each in (one, other):
                await each.leases.tend()
            if open_meanwhile:
                await other.use(held, 10)
        for _ in range(3):
            await one.leases.tend()
            await other.leases.tend()
        await use_up_at_once(one)
        for _ in range(3):
            await one.leases.tend()
        await use_up_at_once(other)
        assert used_tokens(shared.keeper, 0) == 1_000
        assert one.ledger.lifted() == other.ledger.lifted() == []

    run(main())


def test_what_is_granted_of_a_limit_that_was_just_lifted_goes_back(
    run: Run, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        one, other = shared.process("a"), shared.process("b")
        lease = one.store.lease

        def late(shortages: list[Shortage], unix_ns: int) -> object:
            answer = lease(shortages, unix_ns)
            one.ledger.set_limits(())
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(one.store, "lease", late)
            assert isinstance(await one.reserve(10), Reserved)  # under no limit
        lower(shared, 1_000, one)
        await one.leases.tend()
        assert isinstance(await other.reserve(990), Reserved)

    run(main())


def test_what_was_used_before_the_first_lease_counts(run: Run, shared: Shared) -> None:
    async def main() -> None:
        shared.keeper.remove_limit(limit_of(0, 0).limit)
        early = shared.process("a")
        held = await early.reserve(600)
        assert isinstance(held, Reserved)
        await early.use(held, 600)
        shared.keeper.put_limit(limit_of(0, 1_000))
        late = shared.process("b")
        assert isinstance(await late.reserve(401), Refused)
        assert isinstance(await late.reserve(400), Reserved)

    run(main())


def test_a_month_that_is_over_is_carried_over_as_it_comes_free(run: Run, shared: Shared) -> None:
    async def main() -> None:
        month = window_start("month", START_UNIX_NS)
        named = msgspec.structs.replace(
            limit_of(0, 1_000), period="month", carry_over_max=1_000, created_unix_ns=month
        )
        shared.keeper.put_limit(named)
        one, other = shared.process("a"), shared.process("b")
        held = await one.reserve(200)  # leases just so much
        assert isinstance(held, Reserved)
        assert isinstance(await other.reserve(10), Reserved)  # and leases an eighth of 800
        shared.clock.ns = window_end("month", month) - START_UNIX_NS

        async def allowed(process: Process) -> int:
            refused = await process.reserve(3_000)
            assert isinstance(refused, Refused)
            assert refused.quota is not None
            return refused.quota.allowed

        assert await allowed(one) == 1_700
        await other.leases.tend()
        assert await allowed(one) == 1_790
        await one.use(held, 50)
        assert await allowed(one) == 1_790
        await one.leases.tend()
        assert await allowed(one) == await allowed(other) == 1_940
        (state,) = shared.keeper.limit_states(shared.clock.unix_ns())
        assert state.allowed == 1_940
        assert isinstance(await other.reserve(1_940), Reserved)

    run(main())


def test_a_failed_return_changes_nothing(
    run: Run, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        one, other = shared.process("a"), shared.process("b")
        assert isinstance(await one.reserve(10), Reserved)
        assert isinstance(await other.reserve(990), Refused)

        def broken(rest: object) -> None:
            raise LedgerUnavailable("The disk is full.")

        with monkeypatch.context() as patch:
            patch.setattr(one.store, "give_back", broken)
            with pytest.raises(LedgerUnavailable):
                await one.leases.tend()
        (window,) = one.ledger.windows()
        assert window.free == 115
        await one.leases.tend()
        assert window.free == 0

    run(main())


def test_a_caller_who_leaves_loses_no_grant(run: Run, shared: Shared) -> None:
    async def main() -> None:
        one = shared.process("a")
        asked = asyncio.ensure_future(one.reserve(10))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asked.cancel()
        assert isinstance(await one.reserve(10), Reserved)
        (window,) = one.ledger.windows()
        rows = shared.keeper.blocks()
        assert len(list(rows)) == 1
        assert window.allowed in (125, 125 + 109)

    run(main())


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_many_clients_against_one_quota(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, processes: int
) -> None:
    if kind == "postgres":
        url = request.getfixturevalue("postgres").create()
    else:
        url = str(tmp_path / "ledger.sqlite")
    done = ledger_quota.play(url, processes=processes, clients=64, rounds=2, tokens=10_000)
    assert (done["store"], done["answers"] > 100) == (kind, True)
