"""What every ledger store must do; a test module subclasses it with an ``open_store`` fixture."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest

from tests.ledger.ledger_samples import (
    BOOK,
    DAY_NS,
    HOLD_NANODOLLARS,
    HOUR_NS,
    MONTH,
    NOW,
    accrue,
    extra,
    key_record,
    ledger,
    limit,
    numbers,
    post,
    reserve,
    rolled,
    same,
    story,
    void,
    whole,
)
from tests.ledger.memory_store import MemoryStore
from tokenworks.core.errors import ConfigInvalid, Conflict, LedgerCorrupt, LedgerUnavailable
from tokenworks.core.ids import KeyID, LimitID, ModelName, PoolID, PriceID
from tokenworks.core.slo import Tier
from tokenworks.ledger.blocks import GENESIS, check_block, decode_entries
from tokenworks.ledger.entries import Entry
from tokenworks.ledger.grants import decide
from tokenworks.ledger.leases import Shortage, WindowUse
from tokenworks.ledger.quota_records import UNIX_NS_MAX, Limit
from tokenworks.ledger.quotas import Window, next_window, window_start
from tokenworks.ledger.rollup import PayerNames, RollupRow, balances, is_of, merged
from tokenworks.ledger.store_port import LedgerStore, recover

OpenStore = Callable[[str], LedgerStore]
LATER = NOW + DAY_NS
LIFE = limit("life", "key:key", period="lifetime", unit="nanodollars", amount=10**8)


def entries_of(store: LedgerStore) -> list[Entry]:
    return [entry for block in store.blocks() for entry in decode_entries(block)]


def in_order(rows: Iterable[RollupRow]) -> list[RollupRow]:
    return sorted(rows, key=repr)


def lack(missing: int, of: Limit | None = None, start_unix_ns: int = MONTH) -> Shortage:
    return Shortage((of or limit()).limit, start_unix_ns, missing)


def answers_at(*dates: int) -> list[Entry]:
    """An answer that was asked for at each date and billed an hour later."""
    entries: list[Entry] = []
    for i, unix_ns in enumerate(dates):
        made = ledger()
        entries.append(reserve(made, f"at-{i}", unix_ns=unix_ns))
        entries.append(post(made, f"at-{i}", unix_ns=unix_ns + HOUR_NS))
    return entries


class StoreConformance:
    @pytest.fixture
    def store(self, open_store: OpenStore) -> LedgerStore:
        return open_store("me")

    # Entries.

    def test_entries_come_back_in_order(self, store: LedgerStore) -> None:
        _, entries = story()
        store.append_now(entries[:3])
        store.append_now(entries[3:])
        assert entries_of(store) == entries

    def test_awaiting_an_append_stores_it(
        self, store: LedgerStore, run: Callable[..., Any]
    ) -> None:
        _, entries = story()

        async def main() -> None:
            await asyncio.gather(*(store.append([entry]) for entry in entries))

        run(main())
        assert entries_of(store) == entries

    def test_an_identical_repeat_changes_nothing(self, store: LedgerStore) -> None:
        _, entries = story()
        store.append_now(entries)
        store.append_now(entries)
        for entry in entries:
            store.append_now([entry])
        store.append_now([])
        assert entries_of(store) == entries

    @pytest.mark.parametrize(
        ("which", "changes"),
        [
            (0, {"hold_nanodollars": 1}),  # settled by now
            (8, {"hold_nanodollars": 1}),  # still open
            (3, {"worker_ns": 8}),
            (6, {"reason": "failed"}),
            (4, {"energy_nanodollars": 8}),
        ],
    )
    def test_a_contradiction_is_refused_with_all_that_came_with_it(
        self, store: LedgerStore, which: int, changes: dict[str, object]
    ) -> None:
        _, entries = story()
        store.append_now(entries)
        made = ledger()
        another = [reserve(made, "new"), post(made, "new"), accrue(made, 50, 60)]
        wrong = msgspec.structs.replace(entries[which], **changes)
        with pytest.raises(LedgerCorrupt, match="contradicts"):
            store.append_now([*another, wrong])
        assert entries_of(store) == entries
        store.append_now(another)
        assert entries_of(store) == entries + another

    def test_a_settlement_of_a_process_before_cannot_be_repeated(
        self, open_store: OpenStore
    ) -> None:
        made = ledger(owner="1")
        entries = [reserve(made), post(made)]
        open_store("1").append_now(entries)
        recover(store := open_store("2"), LATER)
        if isinstance(store, MemoryStore):
            store.append_now([entries[1]])  # it knows all names
        else:
            with pytest.raises(LedgerCorrupt, match="not reserved"):
                store.append_now([entries[1]])
        assert entries_of(store) == entries

    def test_a_settlement_needs_its_reservation(self, store: LedgerStore) -> None:
        made = ledger()
        held, posted = reserve(made), post(made)
        with pytest.raises(LedgerCorrupt, match="not reserved"):
            store.append_now([posted])
        store.append_now([held, posted])
        assert entries_of(store) == [held, posted]

    def test_one_append_failing_leaves_the_others(
        self, store: LedgerStore, run: Callable[..., Any]
    ) -> None:
        made = ledger()
        first, second = reserve(made, "a"), reserve(made, "b")
        wrong = post(made, "b")

        async def main() -> list[BaseException | None]:
            appends = [store.append([wrong]), store.append([first]), store.append([second])]
            return await asyncio.gather(*appends, return_exceptions=True)

        results = run(main())
        assert isinstance(results[0], LedgerCorrupt)
        assert results[1:] == [None, None]
        assert entries_of(store) == [first, second]

    def test_blocks_are_a_chain_and_can_be_read_from_anywhere(self, open_store: OpenStore) -> None:
        mine, yours = open_store("me"), open_store("you")
        _, entries = story()
        for entry in entries:
            mine.append_now([entry])
            yours.append_now([msgspec.structs.replace(reserve(ledger()), request=repr(entry))])
        blocks = list(mine.blocks())
        before = GENESIS
        for i, block in enumerate(blocks):
            check_block(block, i + 1, before)
            before = block.hash
        assert [(block.owner, block.number) for block in blocks[:4]] == [
            ("me", 1),
            ("you", 1),
            ("me", 2),
            ("you", 2),
        ]
        assert list(yours.blocks(3)) == blocks[3:]
        assert list(yours.blocks(len(blocks))) == []

    # Other processes.

    def test_what_a_dead_process_left_open_is_taken_over_once(self, open_store: OpenStore) -> None:
        dead, heir, late = open_store("dead"), open_store("heir"), open_store("late")
        made, entries = story()
        dead.append_now(entries)
        assert heir.take_over(LATER) == list(made.open_holds())
        assert heir.take_over(LATER) == []
        assert late.take_over(NOW) == []

    def test_what_was_taken_over_can_be_settled_by_the_heir_only(
        self, open_store: OpenStore
    ) -> None:
        dead, heir = open_store("dead"), open_store("heir")
        made = ledger(owner="dead")
        dead.append_now([reserve(made, "a"), reserve(made, "b")])
        next_ledger = recover(heir, LATER)
        assert [hold.request for hold in next_ledger.open_holds()] == ["a", "b"]
        voided = next_ledger.void_orphans(LATER)
        heir.append_now(voided)
        with pytest.raises(LedgerUnavailable, match="taken over"):
            dead.append_now([post(made, "a")])
        with pytest.raises(LedgerUnavailable, match="taken over"):
            dead.alive(LATER)
        with pytest.raises(LedgerUnavailable, match="taken over"):
            dead.take_over(LATER)
        assert entries_of(heir)[2:] == voided

    def test_an_old_entry_makes_nobody_look_dead(self, open_store: OpenStore) -> None:
        living, other = open_store("living"), open_store("other")
        assert living.latest_unix_ns() == 0
        living.alive(LATER)
        living.append_now([reserve(ledger(owner="living"))])
        assert other.latest_unix_ns() == LATER
        assert other.take_over(LATER) == []

    def test_a_start_never_goes_back_behind_what_is_written(self, open_store: OpenStore) -> None:
        store = open_store("1")
        store.put_key(key_record())
        store.put_limit(limit(period="hour", amount=30))
        store.append_now(answers_at(NOW))
        store.alive(NOW)
        again = recover(open_store("2"), NOW - HOUR_NS)
        (window,) = again.windows()
        assert (window.start_unix_ns, window.used) == (window_start("hour", NOW), 30)

    def test_what_an_heir_leaves_open_goes_to_the_next(self, open_store: OpenStore) -> None:
        first, second, third = open_store("1"), open_store("2"), open_store("3")
        made = ledger(owner="1")
        first.append_now([reserve(made, "a"), reserve(made, "b"), reserve(made, "c")])
        assert len(second.take_over(LATER)) == 3
        second.append_now([void(made, "b", "expired")])
        theirs = reserve(ledger(owner="2"), "d")
        second.append_now([theirs])
        found = third.take_over(LATER + 1)
        assert [hold.request for hold in found] == ["a", "c", "d"]
        third.append_now([void(made, "a", "expired")])
        assert [hold.request for hold in open_store("4").take_over(2 * LATER)] == ["c", "d"]

    def test_a_process_that_lives_is_left_alone(self, open_store: OpenStore) -> None:
        living, other = open_store("living"), open_store("other")
        living.append_now([reserve(ledger())])
        assert other.take_over(NOW) == []
        living.alive(LATER)
        assert other.take_over(LATER) == []
        living.append_now([reserve(ledger(), "more")])
        assert len(other.take_over(LATER + 1)) == 2

    def test_who_has_only_said_that_it_lives_can_be_taken_over_too(
        self, open_store: OpenStore
    ) -> None:
        quiet, other = open_store("quiet"), open_store("other")
        quiet.alive(NOW)
        assert other.take_over(LATER) == []
        with pytest.raises(LedgerUnavailable, match="taken over"):
            quiet.append_now([reserve(ledger())])

    # Sums.

    def test_sums_are_those_of_the_entries(self, store: LedgerStore) -> None:
        assert store.rollups(by_hour=True) == []
        _, entries = story()
        store.append_now(entries)
        assert in_order(store.rollups(by_hour=True)) == rolled(entries)
        assert in_order(store.rollups(by_hour=False)) == whole(entries)
        moved: dict[str, int] = {}
        for entry in entries:
            for debit, credit, amount in entry.transfers():
                moved[debit] = moved.get(debit, 0) + amount
                moved[credit] = moved.get(credit, 0) - amount
        found = balances(store.rollups(by_hour=False))
        assert {name: row[0] - row[1] for name, row in found.items()} == moved

    @pytest.mark.parametrize("rolled_up", [True, False])
    def test_sums_of_any_time_are_those_of_its_entries(
        self, open_store: OpenStore, *, rolled_up: bool
    ) -> None:
        start = window_start("month", MONTH - 1)
        dates = [
            *(start - 1, start, start + 5 * HOUR_NS, MONTH - HOUR_NS, MONTH),
            *(MONTH + 1, NOW, MONTH + 30 * DAY_NS, MONTH + 45 * DAY_NS),
        ]
        entries = answers_at(*dates)
        store = open_store("me")
        store.append_now(entries)
        if rolled_up:
            store.close()
            store = open_store("next")
            store.take_over(LATER + 60 * DAY_NS)
        edges = [window_start("hour", date) for date in dates]
        edges += [start, MONTH, edges[0] + HOUR_NS, edges[2] + 2 * HOUR_NS, NOW]
        for since in (None, *edges):
            for until in (None, 0, *edges, UNIX_NS_MAX):
                inside = [
                    entry
                    for entry in entries
                    if (since or 0)
                    <= window_start("hour", getattr(entry, "reserved_unix_ns", 0))
                    < (UNIX_NS_MAX if until is None else until)
                ]
                found = store.rollups(since, until, by_hour=True)
                assert in_order(found) == rolled(inside), (since, until)
                found = store.rollups(since, until, by_hour=False)
                assert in_order(found) == whole(inside), (since, until)
                for by_hour in (True, False):
                    found = store.rollups(since, until, by_hour=by_hour, by_payer=False)
                    wanted = (row.coarse(by_hour=by_hour, by_payer=False) for row in rolled(inside))
                    assert in_order(found) == in_order(merged(wanted)), (since, until)

    @pytest.mark.parametrize("rolled_up", [True, False])
    def test_runs_are_told_apart_only_where_that_is_asked_for(
        self, open_store: OpenStore, *, rolled_up: bool
    ) -> None:
        store, made = open_store("me"), ledger(key_record(), key_record("other", tenant="else"))
        for i, (run, key) in enumerate([("1", "key"), ("2", "key"), (None, "key"), ("1", "other")]):
            held = reserve(made, f"{i}", run=run, key=key, unix_ns=NOW + i * HOUR_NS)
            store.append_now([held, post(made, f"{i}", output=i, unix_ns=NOW + i * HOUR_NS)])
        entries = entries_of(store)
        if rolled_up:
            store.close()
            store = open_store("next")
            store.take_over(LATER)
        for by_hour, all_rows in ((True, rolled(entries)), (False, whole(entries))):
            found = store.rollups(by_hour=by_hour, by_run=True)
            assert in_order(found) == all_rows
            coarse = merged(row.coarse(by_hour=by_hour, by_payer=True) for row in all_rows)
            assert in_order(store.rollups(by_hour=by_hour)) == in_order(coarse)
        store.put_limit(limit("one", "run:tenant/1", period="lifetime"))
        store.put_limit(limit("two", "run:tenant/2", period="hour"))
        store.put_limit(limit("every", "tenant:tenant", period="lifetime"))
        used = {each.limit.limit: each.used for each in store.limit_states(NOW + HOUR_NS)}
        assert used == {"every": 33, "one": 10, "two": 11}

    @pytest.mark.parametrize("rolled_up", [True, False])
    def test_sums_of_some_payers_are_theirs_whatever_is_told_apart(
        self, open_store: OpenStore, *, rolled_up: bool
    ) -> None:
        store, made = open_store("me"), ledger(key_record(), key_record("other", tenant="else"))
        start = window_start("month", MONTH - 1)
        who = [(None, None), ("a", None), ("b", None), (None, "1"), ("a", "1"), ("b", "2")]
        asked = itertools.product(("key", "other"), who, (start, NOW))
        for i, (key, (agent, run), unix_ns) in enumerate(asked):
            held = reserve(made, f"{i}", agent=agent, run=run, key=key, unix_ns=unix_ns)
            store.append_now([held, post(made, f"{i}", output=2**i, unix_ns=unix_ns)])
        store.append_now([accrue(made)])
        entries = entries_of(store)
        if rolled_up:
            store.close()
            store = open_store("next")
            store.take_over(LATER)
        names: list[PayerNames] = [
            {},
            {"tenant": "tenant"},
            {"tenant": "else", "key": "other"},
            {"engineer": "ada", "run": "1"},
            {"run": "2"},
            {"tenant": "else", "run": "1"},
            {"team": "none"},
            {"agent": "a"},
            {"agent": "a", "run": "1"},
            {"tenant": "else", "agent": "b"},
            {"agent": "none"},
        ]
        found_any = 0
        words = ("by_hour", "by_payer", "by_agent", "by_run")
        for of, *yes in itertools.product([None, *names], *[(True, False)] * len(words)):
            how = dict(zip(words, yes, strict=True))
            for since, until in ((None, None), (start, MONTH), (NOW - DAY_NS, LATER)):
                wanted = merged(
                    row.coarse(**how)
                    for row in rolled(entries)
                    if (since or 0) <= row.start_unix_ns < (until or UNIX_NS_MAX)
                    and is_of(row.payer, of or {})
                )
                found = store.rollups(since, until, **how, of=of)
                assert in_order(found) == in_order(wanted), (of, how, since)
                found_any += bool(found)
        assert found_any > 100

    # Limits.

    def test_every_limit_says_what_is_used_of_its_window(self, store: LedgerStore) -> None:
        store.append_now(answers_at(MONTH - 1, NOW - DAY_NS, NOW - HOUR_NS, NOW))
        wanted = {"hour": 1, "day": 2, "month": 3, "lifetime": 4}
        for period in wanted:
            store.put_limit(limit(period, period=period))
            store.put_limit(limit(f"{period}$", unit="nanodollars", period=period))
            store.put_limit(limit(f"{period} of nobody", "team:tenant/no", period=period))
        found = {each.limit.limit: each for each in store.limit_states(NOW)}
        for period, count in wanted.items():
            assert found[LimitID(period)].used == 30 * count
            assert found[LimitID(f"{period}$")].used == 127_680 * count
            assert found[LimitID(f"{period} of nobody")].used == 0
            assert found[LimitID(period)].start_unix_ns == window_start(period, NOW)
            assert found[LimitID(period)].allowed == 100

    def test_limits_and_extra_budget_give_the_same_windows_as_a_ledger_has(
        self, store: LedgerStore
    ) -> None:
        # A month of which some is left is carried over, no more than may be.
        named = limit(carry_over_max=40, created_unix_ns=window_start("month", MONTH - 1))
        store.put_limit(named)
        store.put_extra(extra())
        store.put_extra(extra("no", state="denied"))
        store.put_extra(extra("ask", state="asked", decided_by=None))
        store.put_extra(extra("then", start_unix_ns=1))
        store.append_now(answers_at(MONTH - 1, MONTH - 2, MONTH - 3, NOW))
        (found,) = store.limit_states(NOW)
        before = Window(named, window_start("month", MONTH - 1), 100, 90)
        assert next_window(before, NOW).allowed == 110
        assert (found.limit, found.allowed, found.used) == (named, 117, 30)

    def test_one_process_writes_down_what_shared_servers_cost_and_then_its_heir(
        self, open_store: OpenStore
    ) -> None:
        pools = {PoolID("pool"): "http://a", PoolID("more"): "http://b"}
        one, other = open_store("one"), open_store("other")
        assert one.claim_costs({PoolID("pool"): "http://a"}, NOW) == {"pool": 0}
        assert other.claim_costs(pools, NOW) == {"more": 0}
        # The same name for other servers is another pool.
        assert open_store("third").claim_costs({PoolID("pool"): "http://c"}, NOW) == {"pool": 0}
        one.append_now([accrue(made := ledger(owner="one"), 5, 10), accrue(made, 10, 30)])
        other.append_now([accrue(ledger(owner="other"), 5, 7)])
        assert one.claim_costs(pools, NOW) == {"pool": NOW + 30}
        assert other.claim_costs(pools, NOW) == {"more": 0}
        one.alive(NOW)
        other.alive(NOW + 100)
        other.take_over(NOW + 50)
        assert other.claim_costs(pools, NOW + 100) == {"pool": NOW + 30, "more": 0}
        with pytest.raises(LedgerUnavailable, match="taken over"):
            one.append_now([accrue(made, 30, 40)])
        with pytest.raises(LedgerUnavailable, match="taken over"):
            one.claim_costs(pools, NOW)

    def test_limits_count_what_was_used_until_they_are_put_into_force(
        self, store: LedgerStore
    ) -> None:
        store.put_limit(limit(unit="tokens", amount=1_000))
        made = ledger()
        store.append_now([reserve(made, "a"), post(made, "a")])
        limits = store.read_limits(NOW)
        store.append_now([reserve(made, "b"), post(made, "b", uncached=7)])
        (found,) = limits()
        store.append_now([reserve(made, "c"), post(made, "c")])
        (now,) = store.read_limits(NOW)()
        assert (found.used, now.used) == (61, 91)

    def test_no_limits_have_no_states(self, store: LedgerStore) -> None:
        store.append_now(answers_at(NOW))
        assert store.limit_states(NOW) == []

    def test_recovery_rebuilds_the_same_ledger(self, open_store: OpenStore) -> None:
        dead = open_store("me")
        made = ledger()
        for each in (limit(), LIFE):
            dead.put_limit(each)
        made.set_limits(dead.limit_states(NOW))
        dead.put_key(key_record())
        entries = [reserve(made, "a"), reserve(made, "open"), post(made, "a", output=0)]
        dead.append_now(entries)
        rebuilt = recover(open_store("next"), LATER)
        assert same(rebuilt, made)
        # 6 uncached and 4 cached tokens of high were billed.
        assert numbers(rebuilt)[0] == ("life", 0, 100 * 10**6, 7_680, HOLD_NANODOLLARS)
        assert numbers(rebuilt)[1] == ("limit", MONTH, 100, 10, 30)
        assert rebuilt.key(KeyID("key")) == key_record()
        assert [entry.request for entry in rebuilt.void_orphans(LATER)] == ["open"]
        assert not rebuilt.open_holds()
        rebuilt.check()

    def test_limits_are_put_replaced_and_lifted(self, store: LedgerStore) -> None:
        second = limit("b", tier=Tier.PREMIUM, package="starter", carry_over_max=3, carried_in=2)
        first = limit("a", "run:tenant/7", period="hour", created_unix_ns=5)
        versions = [store.settings_version()]
        for each in (second, first, msgspec.structs.replace(first, amount=0)):
            store.put_limit(each)
            versions.append(store.settings_version())
        assert store.load_limits() == [msgspec.structs.replace(first, amount=0), second]
        assert store.remove_limit(LimitID("a"))
        versions.append(store.settings_version())
        assert not store.remove_limit(LimitID("a"))
        assert store.load_limits() == [second]
        assert versions == sorted(set(versions))

    def test_extra_budget_is_asked_for_and_decided(self, store: LedgerStore) -> None:
        before = store.settings_version()
        asked = extra("a", state="asked", decided_by=None, at_unix_ns=2)
        store.put_extra(asked)
        store.put_extra(extra("b", at_unix_ns=1))
        assert store.load_extras() == [extra("b", at_unix_ns=1), asked]
        approved = extra("a", at_unix_ns=3)
        store.put_extra(approved)
        assert store.load_extras() == [extra("b", at_unix_ns=1), approved]
        assert store.settings_version() > before

    def test_extra_budget_is_decided_once(self, open_store: OpenStore) -> None:
        one, two = open_store("one"), open_store("two")
        one.put_limit(limit())
        one.put_extra(extra("a", state="asked", decided_by=None, at_unix_ns=2))
        before = one.settings_version()
        deny = functools.partial(decide, approve=False, by="engineer:tenant/cfo", unix_ns=NOW)
        approve = functools.partial(decide, approve=True, by="engineer:tenant/eve", unix_ns=NOW)
        assert one.decide_extra("b", deny) is None
        denied = one.decide_extra("a", deny)
        assert denied == extra(
            "a", state="denied", decided_by="engineer:tenant/cfo", at_unix_ns=NOW
        )
        with pytest.raises(Conflict, match="was denied by 'engineer:tenant/cfo'"):
            two.decide_extra("a", approve)
        assert two.load_extras() == [denied]
        assert two.settings_version() > before

    # Leases.

    def test_processes_lease_no_more_of_a_limit_than_there_is(self, open_store: OpenStore) -> None:
        one, two = open_store("one"), open_store("two")
        for each in (limit(), LIFE):
            one.put_limit(each)
        one.append_now(answers_at(NOW))
        assert one.lease([lack(40), lack(1, LIFE, 0)], NOW) == [40, (10**8 - 127_680) // 8]
        refused = lack(31)
        assert two.lease([lack(1, LIFE, 0), refused], NOW) == (refused, WindowUse(100, 70, 30))
        assert (LimitID("limit"), MONTH) in one.wanted(NOW)
        assert one.wanted(NOW + 1) == []
        one.give_back([lack(10)])
        assert two.lease([refused], NOW) == [31]
        gone = lack(1, limit("gone"))
        assert two.lease([gone], NOW) == (gone, None)
        # Who lacks of two limits waits for both at once.
        both = [lack(31), lack(10**8, LIFE, 0)]
        assert two.lease(both, NOW + 1) == (both[0], WindowUse(100, 91, 30))
        assert {*one.wanted(NOW + 1)} == {(LimitID("limit"), MONTH), (LIFE.limit, 0)}
        assert one.limit_states(NOW)[1].allowed == 100

    def test_a_limit_that_is_set_later_counts_what_any_sharing_process_uses(
        self, open_store: OpenStore
    ) -> None:
        one, two = open_store("one"), open_store("two")
        for each in (one, two):
            assert each.lease((), NOW) == []
        made = ledger(owner="one")
        one.append_now([reserve(made)])
        two.put_limit(limit())
        assert two.lease([lack(10)], NOW) == [12]
        one.append_now([post(made)])
        refused = lack(59)
        assert two.lease([refused], NOW) == (refused, WindowUse(100, 42, 30))
        assert two.lease([lack(50)], NOW) == [50]

    def test_what_a_process_holds_already_is_granted_whatever_is_left(
        self, open_store: OpenStore
    ) -> None:
        one, two = open_store("one"), open_store("two")
        one.put_limit(limit())
        one.lease((), NOW)
        one.cover([lack(80)])
        refused = lack(21)
        assert two.lease([refused], NOW) == (refused, WindowUse(100, 80, 0))
        one.cover([lack(40)])
        assert two.lease([lack(1)], NOW) == (lack(1), WindowUse(100, 120, 0))
        one.give_back([lack(100)])
        assert two.lease([lack(80)], NOW) == [80]

    def test_what_was_used_before_counts_also_where_a_process_held_something_first(
        self, open_store: OpenStore
    ) -> None:
        one, two = open_store("one"), open_store("two")
        one.append_now(answers_at(NOW))
        for each in (limit(), LIFE):
            one.put_limit(each)
        one.lease((), NOW)
        assert two.lease([lack(10)], NOW) == [10]  # and knows how all limits stand
        one.cover([lack(1_000, LIFE, 0)])
        refused = lack(10**8 - 128_680 + 1, LIFE, 0)
        assert two.lease([refused], NOW) == (refused, WindowUse(10**8, 128_680, 127_680))

    def test_a_leased_month_carries_over_what_nobody_uses_nor_holds(
        self, open_store: OpenStore
    ) -> None:
        one, two = open_store("one"), open_store("two")
        before = window_start("month", MONTH - 1)
        named = limit(carry_over_max=95, created_unix_ns=before)
        one.put_limit(named)
        assert one.lease([lack(60, start_unix_ns=before)], MONTH - 1) == [60]
        assert two.lease([lack(20, start_unix_ns=before)], MONTH - 1) == [20]

        def allowed(store: LedgerStore) -> int:
            """What the month allows, by what a store says when it is asked for too much."""
            answer = store.lease([lack(1_000)], NOW)
            assert isinstance(answer, tuple)
            (state,) = store.limit_states(NOW)
            assert state.allowed == answer[1].allowed
            return state.allowed

        assert allowed(two) == 120
        assert two.lease([lack(120)], NOW) == [120]
        one.give_back([lack(30, start_unix_ns=before)])
        assert allowed(two) == allowed(one) == 150
        assert two.lease([lack(30)], NOW) == [30]
        made = ledger(owner="one")
        one.append_now([reserve(made, unix_ns=MONTH - 1), post(made, output=0)])
        assert allowed(two) == 150  # 10 of 30 are used, and 20 held
        one.give_back([lack(20, start_unix_ns=before)])
        assert allowed(two) == 170
        # Whoever believes that the month is not over gets nothing of it that was given on.
        assert isinstance(one.lease([lack(1, start_unix_ns=before)], MONTH - 1), tuple)
        # What the dead were granted comes back too, up to the most that is carried over.
        heir = open_store("heir")
        heir.alive(LATER)
        heir.take_over(LATER)
        assert allowed(heir) == 190

    # Keys and price books.

    def test_keys_change_and_the_version_of_the_settings_rises(self, store: LedgerStore) -> None:
        versions = [store.settings_version()]
        second, first = key_record("b", team=None, engineer=None), key_record("a")
        first = msgspec.structs.replace(first, labels=("eu", "medical"))
        ultra = msgspec.structs.replace(first, tier_default=Tier.ULTRA, labels=("us",))
        limited = msgspec.structs.replace(
            first,
            expires_unix_ns=7,
            old_secret_sha256="0" * 64,
            old_until_unix_ns=6,
            models=(ModelName("a"), ModelName("b/c")),
            tiers=(Tier.FREE, Tier.ULTRA),
            networks=("10.0.0.0/8", "::/0"),
        )
        for record in (second, limited):
            store.put_key(record)
            versions.append(store.settings_version())
        assert store.load_keys() == [limited, second]
        for record in (first, ultra):
            store.put_key(record)
            versions.append(store.settings_version())
        assert store.load_keys() == [
            ultra,
            second,
        ]
        assert versions == sorted(set(versions))

    def test_another_process_sees_the_version_rise(self, open_store: OpenStore) -> None:
        mine, yours = open_store("me"), open_store("you")
        before = mine.settings_version()
        yours.put_key(key_record())
        assert mine.settings_version() > before
        assert mine.load_keys() == [key_record()]

    def test_a_key_that_is_written_again_stays_revoked(self, store: LedgerStore) -> None:
        store.put_key(key_record("a"))
        store.put_key(key_record("a", name="open"))
        assert store.load_keys()[0].revoked_unix_ns is None
        store.put_key(key_record("a", revoked_unix_ns=4))
        store.revoke_key(KeyID("a"), 5)
        for revoked_unix_ns in (None, 3, 9):
            store.put_key(key_record("a", name="again", revoked_unix_ns=revoked_unix_ns))
            (found,) = store.load_keys()
            assert (found.name, found.revoked_unix_ns) == ("again", 4)

    def test_a_key_is_revoked_once(self, store: LedgerStore) -> None:
        store.put_key(key_record("a"))
        assert not store.revoke_key(KeyID("nobody"), 5)
        before = store.settings_version()
        assert store.revoke_key(KeyID("a"), 5)
        assert store.settings_version() > before
        assert store.revoke_key(KeyID("a"), 6)
        assert store.load_keys()[0].revoked_unix_ns == 5

    def test_two_keys_cannot_share_a_secret(self, store: LedgerStore) -> None:
        store.put_key(key_record("a"))
        before = store.settings_version()
        with pytest.raises(ConfigInvalid):
            store.put_key(key_record("b", secret_sha256=key_record("a").secret_sha256))
        assert (len(store.load_keys()), store.settings_version()) == (1, before)

    def test_a_key_is_given_a_new_secret(self, store: LedgerStore) -> None:
        first = key_record("a", labels=("eu",), models=(ModelName("m"),))
        store.put_key(first)
        for number, secret in enumerate("12"):
            before = store.settings_version()
            assert store.rotate_key(KeyID("a"), secret * 64, number)
            assert store.settings_version() > before
        (found,) = store.load_keys()
        assert found == msgspec.structs.replace(
            first, secret_sha256="2" * 64, old_secret_sha256="1" * 64, old_until_unix_ns=1
        )
        for taken in ("1", "2"):
            with pytest.raises(ConfigInvalid):
                store.rotate_key(KeyID("a"), taken * 64, 9)
            with pytest.raises(ConfigInvalid):
                store.put_key(key_record("b", secret_sha256=taken * 64))
        store.put_key(key_record("b", secret_sha256=first.secret_sha256))  # it opens nothing else
        assert not store.rotate_key(KeyID("nobody"), "3" * 64, 9)
        store.revoke_key(KeyID("a"), 5)
        assert not store.rotate_key(KeyID("a"), "3" * 64, 9)
        assert store.load_keys()[0].secret_sha256 == "2" * 64

    def test_a_price_book_is_kept_for_ever(self, store: LedgerStore) -> None:
        assert store.load_price_book(BOOK.price_id) is None
        store.put_price_book(BOOK.price_id, BOOK.text, 1)
        store.put_price_book(BOOK.price_id, "another text", 2)
        assert store.load_price_book(PriceID(BOOK.price_id)) == BOOK.text

    def test_closing_twice_is_closing_once(self, store: LedgerStore) -> None:
        store.close()
        store.close()
