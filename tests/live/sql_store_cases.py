"""What a store does on either database, beyond the port's contract."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from tokenworks.catalogue.price_book import Price
from tokenworks.core.errors import ConfigInvalid, LedgerCorrupt, LedgerUnavailable, NotFound
from tokenworks.core.ids import (
    AgentName,
    EngineerID,
    KeyID,
    LimitID,
    ModelName,
    PoolID,
    PriceID,
    RequestID,
    RunID,
    TeamID,
    TenantID,
    WorkerID,
)
from tokenworks.core.orders import Payer, Usage
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.ledger.audit import Audit
from tokenworks.ledger.audit_log import Actor, AuditRecord, verify
from tokenworks.ledger.blocks import GENESIS, check_block
from tokenworks.ledger.entries import CostAccrued, Posted, Reserved, Voided
from tokenworks.ledger.extras import Extra
from tokenworks.ledger.leases import Shortage, WindowUse
from tokenworks.ledger.quota_records import KeyRecord, Limit, NodeID
from tokenworks.ledger.quotas import Window, window_start
from tokenworks.ledger.rollup import MEASURES, NOBODY
from tokenworks.ledger.store_port import recover
from tokenworks.live import lease_tables, sum_tables
from tokenworks.live.clock import SystemClock
from tokenworks.live.database import Value
from tokenworks.live.ledger_sql import (
    BLOCK_OF,
    BLOCKS,
    INSERT_BLOCK,
    LAST_BLOCK,
    SETTINGS_AND_LAST_BLOCK,
    UNROLLED_OF,
    add_sums,
    read_sums,
)
from tokenworks.live.quota_leases import DEAD_AFTER_NS
from tokenworks.live.store import SQLStore

NOW = 1_790_000_000_000_000_000
HOUR = 3_600_000_000_000
MONTH = window_start("month", NOW)
TENANT = TenantID("acme")
PAYER = Payer(tenant=TENANT, team=TeamID("search"), engineer=EngineerID("ada"), key=KeyID("key"))
_PRICE = Price(**dict.fromkeys(Price.__struct_fields__, 1))


def reserved(
    request: str, *, owner: str = "me", at: int = NOW, payer: Payer = PAYER, **changes: Any
) -> Reserved:
    hold = Reserved(
        at_unix_ns=at,
        request=RequestID(request),
        attempt=0,
        payer=payer,
        model=ModelName("m"),
        tier_asked=Tier.HIGH,
        batch=False,
        input_tokens_max=10,
        output_tokens_max=20,
        hold_nanodollars=1_000,
        price_id=PriceID("book"),
        owner=owner,
        expires_ns=5,
    )
    return msgspec.structs.replace(hold, **changes)


def posted(hold: Reserved, *, tokens: int = 7, nanodollars: int = 900) -> Posted:
    return Posted(
        at_unix_ns=hold.at_unix_ns + 1,
        request=hold.request,
        attempt=hold.attempt,
        payer=hold.payer,
        model=hold.model,
        tier_asked=hold.tier_asked,
        tier_delivered=hold.tier_asked,
        reserved_unix_ns=hold.at_unix_ns,
        pool=PoolID("pool"),
        worker=WorkerID("worker"),
        batch=hold.batch,
        usage=Usage(uncached_input_tokens=3, cached_input_tokens=0, output_tokens=tokens - 3),
        metered_by="worker",
        price_id=hold.price_id,
        price=_PRICE,
        rate_ppm=1_000_000,
        charged_nanodollars=nanodollars,
        credit_ppm=0,
        credited_nanodollars=0,
        ad_income_udollars_per_mtok=0,
        ad_income_nanodollars=0,
        energy_nanodollars=1,
        capital_nanodollars=2,
        worker_ns=3,
        ttft_ns=4,
        decode_ns=5,
        ending="done",
    )


def voided(hold: Reserved) -> Voided:
    return Voided(
        at_unix_ns=hold.at_unix_ns + 1,
        request=hold.request,
        attempt=hold.attempt,
        payer=hold.payer,
        model=hold.model,
        tier_asked=hold.tier_asked,
        reserved_unix_ns=hold.at_unix_ns,
        reason="expired",
    )


def accrued(start: int = NOW, energy: int = 11) -> CostAccrued:
    return CostAccrued(
        at_unix_ns=start + 10,
        request=RequestID(f"accrual:{start}"),
        pool=PoolID("pool"),
        from_unix_ns=start,
        until_unix_ns=start + 10,
        energy_nanodollars=energy,
        capital_nanodollars=13,
    )


def key_record(key: str = "key", **changes: Any) -> KeyRecord:
    record = KeyRecord(
        key=KeyID(key),
        tenant=TENANT,
        team=None,
        engineer=EngineerID("ada"),
        name="a key: \u00fc\u4e2d?%s",
        secret_sha256=key.encode().hex().rjust(64, "0"),
        tier_default=Tier.HIGH,
        created_unix_ns=1,
        revoked_unix_ns=None,
    )
    return msgspec.structs.replace(record, **changes)


def limit(name: str = "lim", **changes: Any) -> Limit:
    made = Limit(
        limit=LimitID(name),
        node=NodeID("tenant:acme"),
        unit="tokens",
        period="month",
        amount=100,
        created_unix_ns=NOW,
    )
    return msgspec.structs.replace(made, **changes)


def extra(name: str = "more", **changes: Any) -> Extra:
    made = Extra(
        extra=name,
        limit=LimitID("lim"),
        start_unix_ns=MONTH,
        amount=50,
        reason="a demo",
        asked_by="engineer:tenant/ada",
        state="asked",
        decided_by=None,
        at_unix_ns=NOW,
    )
    return msgspec.structs.replace(made, **changes)


def check_chain(store: SQLStore) -> int:
    """Prove the whole chain; how many blocks it has."""
    seq, before = 0, GENESIS
    for seq, block in enumerate(store.blocks(), 1):
        check_block(block, seq, before)
        before = block.hash
    return seq


def charged(store: SQLStore, *, by_hour: bool = False) -> int:
    return sum(row.charged_nanodollars for row in store.rollups(by_hour=by_hour))


OpenSQLStore = Callable[[str], SQLStore]
"""Opens the same database for one more process; the fixture ``open_store``."""


class SQLStoreCases:
    @pytest.fixture
    def store(self, open_store: OpenSQLStore) -> SQLStore:
        return open_store("me")

    # Entries.

    def test_a_block_as_large_as_may_be(self, store: SQLStore) -> None:
        entries = [reserved(str(i)) for i in range(4_096)]
        store.append_now(entries)
        assert list(store.load_entries()) == entries
        assert check_chain(store) == 1

    def test_a_name_that_comes_back_after_a_restart_is_found_by_an_audit(
        self, store: SQLStore, open_store: OpenSQLStore
    ) -> None:
        hold = reserved("a")
        store.append_now([hold, voided(hold)])
        store.append_now([hold, voided(hold)])  # a repeat: this process remembers
        heir = open_store("heir")
        heir.take_over(NOW + 9)
        again = msgspec.structs.replace(hold, owner="heir")
        heir.append_now([again, voided(again)])
        assert [block.count for block in heir.blocks()] == [2, 2]
        audit = Audit({})
        list(audit.read(heir.blocks()))
        since = heir.since(audit.progress.blocks)
        findings = audit.finish(since.sums, since.numbers, since.holds)
        said = [each.what for each in findings]
        assert said == ["1 reservations have the name of an earlier one"]

    def test_what_a_dead_process_has_billed_is_found(
        self, store: SQLStore, open_store: OpenSQLStore
    ) -> None:
        billed, old, open_, given_back = (
            reserved("billed", at=NOW + HOUR),
            reserved("old"),
            reserved("open", at=NOW + HOUR),
            reserved("given back", at=NOW + HOUR),
        )
        store.append_now([old, posted(old)])
        store.append_now([billed, posted(billed), open_, given_back, voided(given_back)])
        asked = {hold.request for hold in (billed, old, open_, given_back)}
        heir = open_store("heir")
        assert heir.billed(asked, NOW + HOUR) == {"billed"}
        assert heir.billed(asked, NOW - HOUR) == {"billed", "old"}
        assert heir.billed({RequestID("other")}, 0) == heir.billed((), 0) == set()

    # Sums.

    def test_sums_are_the_same_before_and_after_they_are_rolled_up(
        self, store: SQLStore, open_store: OpenSQLStore
    ) -> None:
        for i in range(10):
            hold = reserved(str(i), at=NOW + i * HOUR * 100)
            store.append_now([hold, posted(hold), accrued(hold.at_unix_ns)])
        spans = [(None, None), (NOW, NOW + HOUR * 150), (MONTH, None), (None, NOW + HOUR * 400)]
        views = list(itertools.product(spans, (True, False)))

        def seen(by: SQLStore) -> list[Any]:
            return [sorted(by.rollups(*span, by_hour=h), key=repr) for span, h in views]

        before = seen(store)
        assert charged(store) == charged(store, by_hour=True) == 9_000
        store.close()
        after = open_store("another")
        assert list(after._other.query("SELECT number FROM owners WHERE rolled < number")) == []
        assert seen(after) == before

    def test_sums_are_exact_beyond_what_a_float_holds(self, store: SQLStore) -> None:
        holds = [reserved(str(i)) for i in range(3)]
        amounts = [2**60, 1, 2**60 + 1]
        store.append_now(holds)
        store.append_now([posted(h, nanodollars=n) for h, n in zip(holds, amounts, strict=True)])
        store._roll_if_any()
        assert charged(store) == sum(amounts)

    def test_sums_are_made_again_where_nobody_else_is(
        self, store: SQLStore, open_store: OpenSQLStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sum_tables, "REBUILD_BLOCKS", 2)
        monkeypatch.setattr(sum_tables, "REBUILD_ENTRIES", 3)
        for i in range(7):
            hold = reserved(str(i), at=NOW + i * HOUR)
            store.append_now([hold, posted(hold)])
        store._roll_if_any()
        wanted = sorted(store.rollups(by_hour=True), key=repr)
        tool = open_store("tool")
        for table in ("hours", "months", "factory_hours"):
            with tool._other.writing():
                tool._other.change(f"UPDATE {table} SET requests = requests + 5")
        seen = NOW + 7 * HOUR
        store.alive(seen)
        with pytest.raises(LedgerUnavailable, match="'me' has used the ledger") as caught:
            tool.rebuild_sums(seen + DEAD_AFTER_NS)
        assert "Stop every factory" in caught.value.hint
        assert tool.rebuild_sums(seen + DEAD_AFTER_NS + 1) == 14
        assert sorted(open_store("last").rollups(by_hour=True), key=repr) == wanted
        assert charged(tool) == charged(tool, by_hour=True) == 6_300

    def test_sums_have_no_end(self, store: SQLStore, open_store: OpenSQLStore) -> None:
        amount = 2**63 - 1
        life = limit("life", period="lifetime", unit="nanodollars", amount=10)
        for name, at in (("a", NOW), ("b", NOW + 40 * 24 * HOUR)):
            hold = reserved(name, at=at)
            answer = msgspec.structs.replace(
                posted(hold, nanodollars=amount),
                **dict.fromkeys(("energy_nanodollars", "capital_nanodollars"), amount),
                worker_ns=amount,
            )
            store.append_now([hold, answer])
        store.put_limit(life)
        store._roll_if_any()
        assert charged(store) == charged(store, by_hour=True) == 2 * amount
        assert sum(row.energy_nanodollars for row in store.rollups(by_payer=False)) == 2 * amount
        (state,) = store.limit_states(NOW)
        assert state.used == 2 * amount
        store.close()
        (window,) = recover(open_store("next"), NOW).windows()
        assert window.used == 2 * amount

    @pytest.mark.parametrize("version", [3, 4, 5])
    def test_a_ledger_of_a_release_before_is_taken_over(
        self,
        store: SQLStore,
        open_store: OpenSQLStore,
        monkeypatch: pytest.MonkeyPatch,
        version: int,
    ) -> None:
        monkeypatch.setattr(sum_tables, "REBUILD_ENTRIES", 2)
        for i in range(5):
            payer = msgspec.structs.replace(PAYER, agent=AgentName("a"), run=RunID(f"{i}"))
            hold = reserved(str(i), at=NOW + i * HOUR * 300, payer=payer if i % 2 else PAYER)
            store.append_now([hold, posted(hold), accrued(hold.at_unix_ns)])
        store._roll_if_any()
        last = reserved("late")
        store.append_now([last, posted(last)])
        wanted = sorted(store.rollups(by_hour=True, by_run=True), key=repr)
        store.put_key(known := key_record(labels=("eu",)))
        with store._other.writing():
            store._other.change("DROP INDEX keys_by_old_secret")
            store._other.change("DROP TABLE key_scopes")
            for column in ("expires_unix_ns", "old_secret_sha256", "old_until_unix_ns"):
                store._other.change(f"ALTER TABLE keys DROP COLUMN {column}")
            for part in ("agent_payers", "agent_hours", "agent_months") if version < 5 else ():
                store._other.change(f"DROP TABLE {part}")
            for table in ("hours", "factory_hours", "months") if version == 3 else ():
                column = f"ALTER TABLE {table} ADD COLUMN worker_ns BIGINT NOT NULL DEFAULT 7"
                store._other.change(column)
            if version < 5:  # agents were payers
                store._other.change(
                    "INSERT INTO payers (name) VALUES (?)", (msgspec.json.encode(payer).decode(),)
                )
                store._other.change("UPDATE hours SET payer = (SELECT MAX(id) FROM payers)")
            store._other.change(f"UPDATE meta SET value = {version} WHERE name = 'schema_version'")
        store.alive(seen := NOW + 2_000 * HOUR)
        monkeypatch.setattr(SystemClock, "unix_ns", lambda _: seen + DEAD_AFTER_NS)
        with pytest.raises(LedgerUnavailable, match="'me' has used the ledger") as caught:
            open_store("too early")
        assert "Stop every factory" in caught.value.hint
        assert store._other.query("SELECT value FROM meta WHERE name = 'schema_version'") == [
            (version,)
        ]
        store.append_now([another := reserved("another")])  # it was left alone
        monkeypatch.setattr(SystemClock, "unix_ns", lambda _: seen + DEAD_AFTER_NS + 1)
        after = open_store("next")
        assert after._other.query("SELECT value FROM meta WHERE name = 'schema_version'") == [(6,)]
        assert after.load_keys() == [known]
        after.put_key(limited := key_record(tiers=(Tier.HIGH,), expires_unix_ns=7))
        assert after.load_keys() == [limited]
        assert sorted(after.rollups(by_hour=True, by_run=True), key=repr) == wanted
        assert charged(after) == 5_400
        assert after._other.query("SELECT COUNT(*) FROM payers") == [(2,)]  # one is nobody
        assert after.take_over(seen + DEAD_AFTER_NS) == [another]
        assert sorted(open_store("last").since(0).sums, key=repr) == sorted(
            after.rollups(by_run=True), key=repr
        )

    def test_names_that_callers_make_up_make_no_payers(
        self, store: SQLStore, open_store: OpenSQLStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for i in range(20):
            made_up = AgentName(f"agent-{i}"), RunID(f"{i}") if i % 2 else None
            payer = msgspec.structs.replace(PAYER, agent=made_up[0], run=made_up[1])
            hold = reserved(str(i), payer=payer, at=NOW + i % 2 * HOUR)
            store.append_now([hold, posted(hold)])
        store._roll_if_any()
        after = open_store("another")
        names = after._other.query("SELECT name FROM payers")
        assert [msgspec.json.decode(name, type=Payer) for (name,) in names] == [PAYER]
        monkeypatch.setattr(sum_tables, "LOOKED_UP_MAX", 3)
        assert len(after.rollups(by_agent=True, of={"tenant": "acme"})) == 20
        (one,) = after.rollups(by_hour=True, by_payer=False, of={"agent": "agent-7"})
        assert (one.requests, one.payer, one.start_unix_ns) == (
            1,
            NOBODY,
            (NOW + HOUR) // HOUR * HOUR,
        )

    def test_sums_of_agents_by_hour_and_by_month_are_compared(self, store: SQLStore) -> None:
        hold = reserved("a", payer=msgspec.structs.replace(PAYER, agent=AgentName("a")))
        store.append_now([hold, posted(hold)])
        store._roll_if_any()
        store.since(0)
        with store._other.writing():
            store._other.change("UPDATE agent_hours SET requests = 2")
        with pytest.raises(LedgerCorrupt, match="'agent_hours' are not those of the table"):
            store.since(0)

    # Keys, limits and price books.

    def test_keys_are_in_the_order_of_their_bytes_whatever_the_databases_language(
        self, store: SQLStore
    ) -> None:
        names = ["B", "a", "a-", "aA", "aa", "\u00fc"]
        for name in reversed(names):
            store.put_key(key_record(name))
        assert [record.key for record in store.load_keys()] == names
        assert store.load_keys()[0].name == key_record().name

    def test_a_price_book_is_kept_for_ever(self, store: SQLStore) -> None:
        assert store.load_price_book(PriceID("book")) is None
        store.put_price_book(PriceID("book"), "text \u20ac ? %s 'quoted'", 1)
        store.put_price_book(PriceID("book"), "another text", 2)
        assert store.load_price_book(PriceID("book")) == "text \u20ac ? %s 'quoted'"

    def test_a_number_that_does_not_fit_is_refused(self, store: SQLStore) -> None:
        with pytest.raises(LedgerCorrupt):
            store.put_limit(limit(amount=2**63))
        store.put_limit(limit())
        assert len(store.load_limits()) == 1

    # Processes.

    def test_two_processes_make_one_chain(self, store: SQLStore, open_store: OpenSQLStore) -> None:
        other = open_store("other")
        for i in range(5):
            store.append_now([reserved(f"a{i}")])
            other.append_now([reserved(f"b{i}", owner="other")])
        assert check_chain(store) == 10
        assert [block.owner for block in other.blocks()] == ["me", "other"] * 5
        assert [block.number for block in other.blocks()] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]

    def test_taking_over_ends_the_dead_and_keeps_their_sums_and_holds(
        self, store: SQLStore, open_store: OpenSQLStore
    ) -> None:
        store.alive(NOW)
        done, rolled_open, late_open = (reserved(name) for name in ("done", "early", "late"))
        store.append_now([done, rolled_open])
        store._roll_if_any()
        store.append_now([posted(done), late_open])
        next_one = open_store("next")
        assert next_one.take_over(NOW) == []  # it lives
        assert next_one.take_over(NOW + 1) == [rolled_open, late_open]
        assert next_one.take_over(NOW + 1) == []
        with pytest.raises(LedgerUnavailable, match="taken over"):
            store.append_now([reserved("too late")])
        with pytest.raises(LedgerUnavailable, match="taken over"):
            store.alive(NOW + 2)
        next_one.append_now([voided(rolled_open)])
        assert charged(next_one) == charged(next_one, by_hour=True) == 900
        third = open_store("third")
        assert third.take_over(NOW + 9) == [late_open]
        assert check_chain(third) == 3

    def test_a_changed_block_is_found_by_whoever_takes_over(
        self, store: SQLStore, open_store: OpenSQLStore
    ) -> None:
        store.append_now([reserved("a")])
        store.append_now([reserved("b")])
        self.damage(store)
        with pytest.raises(LedgerCorrupt, match="was changed"):
            open_store("next").take_over(NOW + 1)

    def test_a_block_that_is_missing_is_found_by_whoever_takes_over(
        self, store: SQLStore, open_store: OpenSQLStore
    ) -> None:
        store.append_now([reserved("a")])
        with store._other.writing():
            store._other.change("UPDATE owners SET number = 2, rolled = 1")
        with pytest.raises(LedgerCorrupt, match="Block 2 of 'me' is missing"):
            open_store("next").take_over(NOW + 1)

    @pytest.mark.parametrize(
        "sql", [LAST_BLOCK, SETTINGS_AND_LAST_BLOCK, BLOCK_OF, BLOCKS, UNROLLED_OF]
    )
    def test_no_statement_of_a_start_reads_all_blocks(self, store: SQLStore, sql: str) -> None:
        rows = [(n + 2, f"o{n % 50}", n // 50 + 2, NOW, 4, b"x" * 900, b"h") for n in range(5_000)]
        store.append_now([reserved("a")])
        with store._other.writing():
            store._other.change_many(INSERT_BLOCK, rows)
        store._other.script("ANALYZE")
        explain = "EXPLAIN " if store._other.dialect == "postgres" else "EXPLAIN QUERY PLAN "
        values = {BLOCK_OF: ("o7", 99), UNROLLED_OF: ("o7", 99), BLOCKS: (5_000,)}.get(sql, ())
        plan = str(store._other.query(explain + sql, values))
        assert "Seq Scan on blocks" not in plan, plan
        assert "SCAN blocks" not in plan or sql == LAST_BLOCK, plan  # backwards, and only one

    @pytest.mark.parametrize("table", ["hours", "agent_hours"])
    def test_hours_of_one_payer_are_looked_up_among_all_others(
        self, store: SQLStore, table: str
    ) -> None:
        rows = [
            [NOW // HOUR * HOUR + hour * HOUR, payer, 1, *[1] * len(MEASURES)]
            for hour in range(20)
            for payer in range(1_000)
        ]
        with store._other.writing():
            store._other.change_many(add_sums(table), rows)
            store._other.change_many(add_sums("factory_hours"), rows[::1_000])
        store._other.script("ANALYZE")
        explain = "EXPLAIN " if store._other.dialect == "postgres" else "EXPLAIN QUERY PLAN "
        sql = read_sums(table, by_start=True, payers=[7, 8, 9])
        plan = str(store._other.query(explain + sql, (NOW - HOUR, NOW + 19 * HOUR)))
        assert f"Seq Scan on {table}" not in plan
        assert f"SCAN {table}" not in plan, plan
        found = store._other.query(sql, (NOW - HOUR, NOW + 19 * HOUR))
        assert len(found) == 20 * 3

    def damage(self, store: SQLStore) -> None:
        """Change a stored block behind the trigger's back."""
        raise NotImplementedError

    @pytest.mark.parametrize(
        "sql", ["UPDATE blocks SET count = 9", "DELETE FROM blocks WHERE seq = 1"]
    )
    def test_blocks_are_never_edited_nor_removed(self, store: SQLStore, sql: str) -> None:
        store.append_now([reserved("a")])
        with pytest.raises(LedgerUnavailable, match="never"), store._other.writing():
            store._other.change(sql)
        assert check_chain(store) == 1
        assert len(list(store.load_entries())) == 1

    def test_what_is_changed_is_written_down_by_every_process_in_one_chain(
        self, store: SQLStore, open_store: OpenSQLStore
    ) -> None:
        other = open_store("another")
        for each in (store, other, store):
            record = AuditRecord(
                seq=0, at_unix_ns=NOW, by=Actor(kind="operator", id="me"), action="limit.set"
            )
            with each.audited(record) as note:
                each.put_limit(limit())
                note.subject, note.tenant, note.after = "lim", TENANT, {"amount": 100}
            with contextlib.suppress(NotFound), each.audited(record):
                each.put_limit(limit("another"))
                raise NotFound("There is none.")
        assert [each.limit for each in other.load_limits()] == ["lim"]
        assert verify(other.audit_payloads()).seq == 6
        assert [each.seq for each in other.audit_records(tenant=TENANT, limit=2)] == [5, 3]
        (last, *_) = store.audit_records(outcome="refused")
        assert (last.seq, last.error, last.after) == (6, "not_found: There is none.", None)
        for sql in ("UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log"):
            with pytest.raises(LedgerUnavailable, match="audit_log are never"), store._writing():
                store._other.change(sql)

    def test_a_store_of_another_schema_is_refused(
        self, store: SQLStore, open_store: OpenSQLStore
    ) -> None:
        with store._other.writing():
            store._other.change("UPDATE meta SET value = 1 WHERE name = 'schema_version'")
        with pytest.raises(ConfigInvalid, match="has schema 1"):
            open_store("next")

    def test_leases_are_kept_as_long_as_somebody_may_ask(self, store: SQLStore) -> None:
        last = window_start("month", MONTH - 1)
        day = window_start("day", NOW)
        starts = {
            "life": [0],
            "month": [window_start("month", last - 1), last, MONTH],
            "day": [last + 24 * HOUR, day - 48 * HOUR, day - 24 * HOUR, day],
            "hour": [NOW // HOUR * HOUR - n * HOUR for n in (0, 1, 47, 49, 500)],
        }
        with store._writer.writing():
            for name, all_starts in starts.items():
                for start in all_starts:
                    lease_tables.spend(store._writer, "me", {(LimitID(name), start): 1})
            for name, age_s in (("new", 5), ("old", 61)):
                values = (name, MONTH, NOW - age_s * NS_PER_S)
                store._writer.change("INSERT INTO wanted VALUES (?, ?, ?)", values)
        store.alive(NOW)
        rows = store._other.query("SELECT limit_id, start_unix_ns FROM leases")
        assert sorted(rows) == sorted(
            (name, start)
            for name, kept in (
                ("life", [0]),
                ("month", [last, MONTH]),
                ("day", [day - 24 * HOUR, day]),
                ("hour", starts["hour"][:3]),
            )
            for start in kept
        )
        assert store.wanted(0) == [("new", MONTH)]

    def test_what_is_used_of_many_windows_is_counted_by_few_statements(
        self, store: SQLStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        count, statements = 2 * lease_tables.SPEND_ROWS_MAX + 1, list[str]()
        spent = {(LimitID(f"limit-{i}"), i): i for i in range(count)}
        change = store._writer.change

        def heard(sql: str, values: Sequence[Value] = ()) -> int:
            statements.append(sql)
            return change(sql, values)

        with store._writer.writing():
            lease_tables.cover(store._writer, "me", [Shortage(LimitID("limit-3"), 3, 5)])
            monkeypatch.setattr(store._writer, "change", heard)
            for _ in range(2):
                lease_tables.spend(store._writer, "me", spent)
        assert len(statements) == 2 * 3
        rows = store._other.query("SELECT limit_id, start_unix_ns, granted, used FROM leases")
        assert sorted(rows) == sorted(
            (name, start, 5 if start == 3 else 0, 2 * amount)
            for (name, start), amount in spent.items()
        )

    def test_what_a_process_uses_beyond_its_leases_hides_no_grant(
        self, store: SQLStore, open_store: OpenSQLStore
    ) -> None:
        store.put_limit(limit(amount=100))
        one, counted = open_store("one"), dict[Posted, tuple[Window, ...]]()
        one.count_by(lambda entry: counted.get(entry, ()))
        assert one.lease([], NOW) == []
        place = Shortage(LimitID("lim"), MONTH, 8)
        first, second = reserved("1", owner="one"), reserved("2", owner="one")
        one.append_now([first, posted(first, tokens=60)])  # its ledger did not know the limit
        assert one.lease([place], NOW) == [8]
        answer = posted(second, tokens=8)
        counted[answer] = (Window(limit(amount=100), MONTH, allowed=8, used=8),)
        one.append_now([second, answer])
        rows = store._other.query("SELECT owner, granted, used FROM leases ORDER BY owner")
        assert rows == [("", 0, 0), ("-", 60, 60), ("one", 8, 8)]
        assert one.lease([place._replace(missing=33)], NOW) == (
            *(place._replace(missing=33), WindowUse(100, 68, 68)),
        )

    def test_who_ends_does_not_say_that_what_was_used_before_is_noted(
        self, store: SQLStore, open_store: OpenSQLStore
    ) -> None:
        before = reserved("1", owner=store.owner)
        store.append_now([before, posted(before, tokens=60)])
        one, heir = open_store("one"), open_store("heir")
        assert one.lease([], NOW) == []
        store.put_limit(limit(amount=100))
        assert heir.lease([], NOW) == []  # and so knows how the limit stands
        hold = reserved("2", owner="one")
        one.append_now([hold])
        one.cover([Shortage(LimitID("lim"), MONTH, 10)])
        one.append_now([posted(hold, tokens=10)])
        one.close()
        short = Shortage(LimitID("lim"), MONTH, 31)
        assert heir.lease([short], NOW) == (short, WindowUse(100, 70, 70))
        assert heir.lease([short._replace(missing=30)], NOW) == [30]

    def test_what_the_dead_have_used_is_kept_in_one_row(
        self, store: SQLStore, open_store: OpenSQLStore
    ) -> None:
        store.put_limit(limit(amount=100))
        place = Shortage(LimitID("lim"), MONTH, 10)
        for turn in range(3):
            dying = open_store(f"factory{turn}")
            assert dying.lease([place], NOW) == [12, 11, 10][turn : turn + 1]
            hold = reserved(str(turn), owner=dying.owner)
            dying.append_now([hold, posted(hold, tokens=7)])
            if turn < 2:
                dying.close()
            else:
                assert store.take_over(NOW + 9) == []
        rows = store._other.query("SELECT owner, granted, used FROM leases ORDER BY owner")
        assert rows == [("", 0, 0), ("-", 21, 21)]
        result = store.lease([Shortage(LimitID("lim"), MONTH, 80)], NOW)
        assert result == (Shortage(LimitID("lim"), MONTH, 80), WindowUse(100, 21, 21))
        assert store.lease([Shortage(LimitID("lim"), MONTH, 79)], NOW) == [79]

    def test_readers_see_one_state(self, store: SQLStore, open_store: OpenSQLStore) -> None:
        other = open_store("other")
        with store._other.reading():
            before = store._other.query("SELECT COUNT(*) FROM limits")
            other.put_limit(limit())
            assert store._other.query("SELECT COUNT(*) FROM limits") == before == [(0,)]
        assert len(store.load_limits()) == 1

    def test_a_stream_may_be_left_early(self, store: SQLStore) -> None:
        for i in range(3):
            store.append_now([reserved(str(i))])
        blocks = store.blocks()
        assert next(blocks).seq == 1
        del blocks
        store.append_now([reserved("more")])
