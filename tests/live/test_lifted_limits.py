"""Limits that are set, lifted and set again while requests run: nothing is used twice or lost.

Each case ends with all processes using up what they can, and that must be the limit to the token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from bars.ledger_quota import limit_of, used_tokens
from tests.live.lease_samples import Process, Shared, lower, sharing, use_up_at_once
from tokenworks.core.errors import LedgerUnavailable
from tokenworks.ledger.entries import Reserved, Voided
from tokenworks.ledger.leases import Shortage
from tokenworks.ledger.quota_records import Refused
from tokenworks.live.database import CommitUnknown

Run = Callable[[Coroutine[Any, Any, Any]], Any]
LIMIT = limit_of(0, 0).limit


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shared]:
    yield from sharing(tmp_path, monkeypatch)


async def reserved(process: Process, tokens: int) -> Reserved:
    held = await process.reserve(tokens)
    assert isinstance(held, Reserved)
    return held


def void(process: Process, hold: Reserved) -> Voided:
    entry = process.ledger.void(process.clock.unix_ns(), hold.request, reason="withdrawn")
    assert isinstance(entry, Voided)
    return entry


def take_up(shared: Shared, *processes: Process) -> None:
    for each in processes:
        each.ledger.set_limits(each.store.limit_states(shared.clock.unix_ns()))


def lift(shared: Shared, *processes: Process) -> None:
    shared.keeper.remove_limit(LIMIT)
    take_up(shared, *processes)


async def rounds(*processes: Process) -> None:
    for _ in range(3):
        for each in processes:
            await each.leases.tend()


async def used_up(shared: Shared, *processes: Process) -> int:
    """What is used in the end, where all use what they can get."""
    await rounds(*processes)
    for each in processes:
        await use_up_at_once(each)
        await rounds(*processes)
    return used_tokens(shared.keeper, 0)


def broken(*_: object) -> None:
    raise LedgerUnavailable("a blip of the database")


def test_what_is_covered_is_not_kept_when_it_comes_free(run: Run, shared: Shared) -> None:
    """The round hears of the limit before it is taken up, and covers what is held after it."""

    async def main() -> None:
        lift(shared)
        one, other = shared.process("a"), shared.process("b")
        held = await reserved(one, 400)
        shared.keeper.put_limit(limit_of(0, 100))
        await one.leases.tend()
        take_up(shared, one, other)
        await rounds(one, other)
        await one.use(held, 0)
        assert await used_up(shared, one, other) == 100

    run(main())


def test_a_lift_forgets_nothing_that_was_used_and_not_covered(run: Run, shared: Shared) -> None:
    async def main() -> None:
        lift(shared)
        one, other = shared.process("a"), shared.process("b")
        held = await reserved(one, 80)
        lower(shared, 1_000, one)
        await one.use(held, 80)  # before a round has covered it
        lift(shared, one)
        await rounds(one, other)
        lower(shared, 1_000, one, other)
        assert await used_up(shared, one, other) == 1_000

    run(main())


def test_a_lift_forgets_no_answer_that_was_longer_than_its_hold(run: Run, shared: Shared) -> None:
    async def main() -> None:
        one, other = shared.process("a"), shared.process("b")
        await one.use(await reserved(one, 10), 400)  # an eighth, 125, was leased
        lift(shared, one, other)
        await rounds(one, other)
        lower(shared, 1_000, one, other)
        assert await used_up(shared, one, other) == 1_000

    run(main())


def test_what_is_covered_of_a_limit_that_is_lifted_meanwhile_goes_back_once(
    run: Run, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        lift(shared)
        one, other = shared.process("a"), shared.process("b")
        held = await reserved(one, 80)
        lower(shared, 1_000, one)
        cover, voided = one.store.cover, []

        def slow(lacking: list[Shortage]) -> None:
            cover(lacking)
            voided.append(void(one, held))
            lift(shared, one)

        with monkeypatch.context() as patch:
            patch.setattr(one.store, "cover", slow)
            await one.leases.tend()
        await one.store.append(voided)
        lower(shared, 1_000, one, other)
        assert await used_up(shared, one, other) == 1_000

    run(main())


def test_nothing_goes_back_that_was_never_covered(
    run: Run, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        one, other = shared.process("a"), shared.process("b")
        await one.use(await reserved(one, 10), 10)
        lift(shared, one)
        await rounds(one)
        held = await reserved(one, 80)
        lower(shared, 1_000, one)
        with monkeypatch.context() as patch:
            patch.setattr(one.store, "cover", broken)
            with pytest.raises(LedgerUnavailable):
                await one.leases.tend()
        await one.store.append([void(one, held)])
        lift(shared, one)
        await one.leases.tend()
        lower(shared, 1_000, one, other)
        assert await used_up(shared, one, other) == 1_000

    run(main())


def test_what_is_stored_under_a_lifted_limit_counts_once(run: Run, shared: Shared) -> None:
    async def main() -> None:
        one, other = shared.process("a"), shared.process("b")
        held = await reserved(one, 100)
        lift(shared)
        await one.use(held, 100)  # it has not heard of the lift
        lower(shared, 1_000, one, other)
        assert await used_up(shared, one, other) == 1_000

    run(main())


def test_an_answer_that_is_retracted_after_a_lift_leaves_nothing_behind(
    run: Run, shared: Shared
) -> None:
    async def main() -> None:
        one, other = shared.process("a"), shared.process("b")
        held = await reserved(one, 100)
        posted = one.post(held, 100)
        lift(shared, one)
        await rounds(one)
        one.ledger.retract(posted)
        await one.store.append([void(one, held)])
        await rounds(one)
        lower(shared, 1_000, one, other)
        assert await used_up(shared, one, other) == 1_000
        assert one.ledger.lifted() == []

    run(main())


def test_a_refusal_whose_commit_is_lost_is_not_taken_for_kept(
    run: Run, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it noted of the time without the limit is noted by the next who asks."""

    async def main() -> None:
        one = shared.process("a")
        held = await reserved(one, 100)
        lift(shared, one)
        await rounds(one)
        await one.use(held, 100)
        await one.use(await reserved(one, 500), 500)
        lower(shared, 1_000, one)
        writer = one.store._writer

        def lost() -> None:
            writer._connection.rollback()  # type: ignore[attr-defined]
            raise CommitUnknown("the sync failed")

        with monkeypatch.context() as patch:
            patch.setattr(writer, "_commit", lost)
            with contextlib.suppress(LedgerUnavailable):
                assert isinstance(await one.reserve(2_000), Refused)
        assert await used_up(shared, one) == 1_000

    run(main())


def test_a_limit_that_is_set_no_more_is_let_go_before_anybody_is_refused(
    run: Run, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        one = shared.process("a")
        lift(shared)
        refused = await one.reserve(10)
        assert isinstance(refused, Refused)
        assert refused.message == "The limit 'lim_0' was lifted."
        assert one.store.wanted(0) == []
        lease = one.store.lease

        def heard(shortages: list[Shortage], unix_ns: int) -> object:
            answer = lease(shortages, unix_ns)
            take_up(shared, one)
            return answer

        monkeypatch.setattr(one.store, "lease", heard)
        assert isinstance(await one.reserve(10), Reserved)

    run(main())
