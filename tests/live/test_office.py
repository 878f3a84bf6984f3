"""The office: what is changed is written down in the same step, and who may not, may not."""

from __future__ import annotations

import itertools
import os
import pwd
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.ledger.ledger_samples import BOOK, NOW
from tokenworks.catalogue.packages import EXAMPLE, Package, parse_packages
from tokenworks.catalogue.price_book import PriceBooks
from tokenworks.core.errors import (
    CallerError,
    Conflict,
    Forbidden,
    InvalidRequest,
    LedgerCorrupt,
    LedgerUnavailable,
    NotFound,
    TokenworksError,
)
from tokenworks.core.ids import LimitID, TenantID
from tokenworks.core.slo import Tier
from tokenworks.ledger.actions import (
    AskExtra,
    ChangeKey,
    ChangeTenant,
    CloseTenant,
    CreateKey,
    CreateTenant,
    DecideExtra,
    GrantPackage,
    LiftLimit,
    RevokeKey,
    RotateKey,
    SetLimit,
)
from tokenworks.ledger.audit_log import Actor, AuditRecord, verify
from tokenworks.ledger.authority import Who
from tokenworks.ledger.office_port import Asked
from tokenworks.ledger.quota_records import KeyRecord, NodeID
from tokenworks.live.database import CommitUnknown, Value
from tokenworks.live.key_making import digest_of
from tokenworks.live.office import Office, operator
from tokenworks.live.store import SQLStore, sqlite_store

HERE = operator()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLStore]:
    made = sqlite_store(tmp_path / "ledger.sqlite", "me")
    yield made
    made.close()


def office_of(store: SQLStore) -> Office:
    def packages() -> dict[str, Package]:
        return parse_packages(EXAMPLE)

    return Office(store, lambda: NOW, packages, lambda: PriceBooks([BOOK]))


@pytest.fixture
def office(store: SQLStore) -> Office:
    return office_of(store)


def admin(office: Office, tenant: str = "acme", **more: Any) -> Who:
    """An administrator of a tenant, by a key."""
    new = office.create_key(HERE, CreateKey(tenant=tenant, roles=("admin",), **more))
    return who_of(new.record)


def who_of(record: KeyRecord) -> Who:
    actor = Actor(kind="key", id=record.key, source="10.0.0.1", tenant=record.tenant)
    engineer = record.engineer and NodeID(f"engineer:{record.tenant}/{record.engineer}")
    return Who(actor=actor, tenant=TenantID(record.tenant), engineer=engineer, key=record)


def last(office: Office) -> AuditRecord:
    return office.store.audit_records(limit=1)[0]


def refused(office: Office, call: Any, who: Who, wish: Any) -> AuditRecord:
    """What is written down of a wish that is not granted; nothing else changes."""
    before = state(office)
    with pytest.raises(CallerError) as error:
        call(who, wish, Asked(request="req_1"))
    assert state(office) == before
    record = last(office)
    assert (record.outcome, record.after, record.request) == ("refused", None, "req_1")
    assert record.error == f"{error.value.code}: {error.value.message}"
    return record


def state(office: Office) -> Any:
    store = office.store
    return store.load_keys(), store.load_limits(), store.load_extras()


def test_every_change_is_written_down_with_what_was_before_and_after(office: Office) -> None:
    key = office.create_key(HERE, CreateKey(tenant="acme", engineer="ada", tokens=5)).record.key
    ada, limit = "engineer:acme/ada", LimitID("engineer:acme/ada#tokens-month")
    office.change_key(HERE, ChangeKey(key=key, name="new", tiers=(Tier.HIGH,), expires="30d"))
    office.rotate_key(HERE, RotateKey(key=key))
    office.set_limit(HERE, SetLimit(node=ada, unit="tokens", amount=7))
    office.set_limit(HERE, SetLimit(node=ada, unit="tokens", amount=8))
    asked = office.ask_extra(HERE, AskExtra(limit=limit, amount=1, reason="why", by=ada))
    office.create_key(HERE, CreateKey(tenant="acme", engineer="eve"))
    office.decide_extra(HERE, DecideExtra(extra=asked.extra, approve=True, by="engineer:acme/eve"))
    office.grant(HERE, GrantPackage(node=ada, package="pro"))
    office.lift_limit(HERE, LiftLimit(limit=limit))
    office.revoke_key(HERE, RevokeKey(key=key))
    office.import_keys(HERE, "litellm", [], [])
    records = office.store.audit_records(limit=100)[::-1]
    assert [each.action for each in records] == [
        *("key.create", "key.change", "key.rotate", "limit.set", "limit.set", "extra.ask"),
        *("key.create", "extra.decide", "package.grant", "limit.lift", "key.revoke", "key.import"),
    ]
    assert {each.outcome for each in records} == {"done"}
    assert [each.seq for each in records] == list(range(1, len(records) + 1))
    user = pwd.getpwuid(os.getuid()).pw_name
    assert all((each.by.kind, each.by.id, each.by.source) == HERE_IS for each in records)
    assert ("operator", user, "command line") == HERE_IS
    created, changed, _, first, second = records[:5]
    assert created.before is None
    assert created.after is not None
    assert (created.subject, created.tenant, created.after["engineer"]) == (key, "acme", "ada")
    assert changed.before is not None
    assert changed.after is not None
    assert (changed.before["name"], changed.after["name"]) == ("", "new")
    assert (first.before, first.subject) == (None, limit)
    assert second.before is not None
    assert second.before["amount"] == 7
    assert verify(office.store.audit_payloads()).seq == len(records)
    assert [each.subject for each in office.store.audit_records(action="limit.lift")] == [limit]


def test_all_keys_are_read_once_at_most_while_the_ledger_waits(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[str]()
    load_keys = SQLStore.load_keys

    def counted(store: SQLStore) -> list[KeyRecord]:
        read.append("all")
        return load_keys(store)

    monkeypatch.setattr(SQLStore, "load_keys", counted)
    key = office.create_key(HERE, CreateKey(tenant="acme", engineer="ada")).record.key
    ada = "engineer:acme/ada"
    limit = LimitID(f"{ada}#tokens-month")

    def once(change: Callable[[], object]) -> object:
        read.clear()
        changed = change()
        assert len(read) == 1, change
        return changed

    once(lambda: office.create_tenant(HERE, CreateTenant(tenant="new", name="New")))
    once(lambda: office.change_tenant(HERE, ChangeTenant(tenant="acme", name="Acme")))
    once(lambda: office.change_key(HERE, ChangeKey(key=key, name="new")))
    rotated = once(lambda: office.rotate_key(HERE, RotateKey(key=key)))
    assert [getattr(rotated, "record", None)] == load_keys(office.store)
    once(lambda: office.set_limit(HERE, SetLimit(node=ada, unit="tokens", amount=7)))
    asked = office.ask_extra(HERE, AskExtra(limit=limit, amount=1, reason="why", by=ada))
    no = DecideExtra(extra=asked.extra, approve=False, by=ada)
    once(lambda: office.decide_extra(HERE, no))
    once(lambda: office.grant(HERE, GrantPackage(node=ada, package="pro")))
    once(lambda: office.lift_limit(HERE, LiftLimit(limit=limit)))
    revoked = once(lambda: office.revoke_key(HERE, RevokeKey(key=key)))
    assert [revoked] == load_keys(office.store)
    once(lambda: office.close_tenant(HERE, CloseTenant(tenant="acme")))


HERE_IS = (HERE.actor.kind, HERE.actor.id, HERE.actor.source)


def test_no_secret_is_written_down(office: Office) -> None:
    new = office.create_key(HERE, CreateKey(tenant="acme", secret="brought along"))
    rotated = office.rotate_key(HERE, RotateKey(key=new.record.key))
    with pytest.raises(InvalidRequest):
        office.create_key(HERE, CreateKey(tenant="acme", secret="brought along"))
    log = b"".join(office.store.audit_payloads()).decode()
    for secret in (new.secret, rotated.secret):
        assert secret not in log
        assert digest_of(secret) not in log


def test_what_changes_nothing_is_not_written_down(office: Office) -> None:
    key = office.create_key(HERE, CreateKey(tenant="acme")).record.key
    office.change_key(HERE, ChangeKey(key=key, name=""))
    first = office.revoke_key(HERE, RevokeKey(key=key))
    assert office.revoke_key(HERE, RevokeKey(key=key)) == first
    assert [each.action for each in office.store.audit_records()] == ["key.revoke", "key.create"]


def test_a_key_is_changed_in_what_is_named_alone(office: Office) -> None:
    wish = CreateKey(
        tenant="acme",
        name="n",
        labels=("eu",),
        models=("a",),
        tiers=(Tier.HIGH,),
        networks=("10.0.0.0/8",),
        expires="30d",
    )
    record = office.create_key(HERE, wish).record
    assert office.change_key(HERE, ChangeKey(key=record.key)) == record
    open_to_all = ChangeKey(
        key=record.key, labels=(), models=(), tiers=(), networks=(), expires="never", roles=()
    )
    now = office.change_key(HERE, open_to_all)
    assert now == msgspec.structs.replace(
        record, labels=(), models=(), tiers=(), networks=(), expires_unix_ns=None
    )
    assert office.store.load_keys() == [now]
    dear = office.change_key(HERE, ChangeKey(key=record.key, tier=Tier.ULTRA, expires="1d"))
    assert dear.tier_default is Tier.ULTRA
    assert dear.expires_unix_ns == NOW + 86_400 * 10**9


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (CreateKey(tenant="two words"), "no node"),
        (CreateKey(tenant="acme", models=("a b",)), "models has 'a b'"),
        (CreateKey(tenant="acme", labels=("a,b",)), "labels has 'a,b'"),
        (CreateKey(tenant="acme", networks=("everywhere",)), "from has"),
        (CreateKey(tenant="acme", tiers=(Tier.FREE,)), "tier is high, which tiers leaves out"),
        (CreateKey(tenant="acme", expires="yesterday"), "expires is"),
        (CreateKey(tenant="acme", tokens=-1), "tokens is -1"),
        (CreateKey(tenant="acme", nanodollars=1 << 63), "nanodollars is"),
        (CreateKey(tenant="acme", name="\x1b[31m"), "name has 5 characters"),
        (CreateKey(tenant="acme", name="n" * 201), "name has 201 characters"),
        (CreateKey(tenant="acme", name="\udcff"), "name has 1 characters"),
        (CreateKey(tenant="\udcff"), "no node"),
        (CreateKey(tenant="acme", roles=("admin",), secret="brought along"), "made here"),
    ],
)
def test_a_key_that_cannot_be(office: Office, wish: CreateKey, words: str) -> None:
    record = refused(office, office.create_key, HERE, wish)
    assert record.error is not None
    assert words in record.error or wish.tenant == "\udcff"
    assert verify(office.store.audit_payloads()).seq == 1


def test_keys_that_are_imported_are_their_tenants_and_never_a_closed_ones(office: Office) -> None:
    tenants = ("acme", "shut")
    acme, shut = (
        msgspec.structs.replace(office.create_key(HERE, CreateKey(tenant=each)).record, name="new")
        for each in tenants
    )
    office.import_keys(HERE, "elsewhere", [acme], ())
    eve = admin(office)
    record = next(each for each in office.records(eve, limit=9) if each.action == "key.import")
    assert (record.tenant, record.after) == ("acme", {"keys": [acme.key], "limits": []})
    office.import_keys(HERE, "elsewhere", [acme, shut], ())
    assert last(office).tenant is None
    office.close_tenant(HERE, CloseTenant(tenant="shut"))
    before = state(office)
    with pytest.raises(Conflict, match="'shut' is closed"):
        office.import_keys(HERE, "elsewhere", [acme, shut], ())
    assert (state(office), last(office).outcome) == (before, "refused")


def test_a_secret_that_was_brought_along_never_gets_a_role(office: Office) -> None:
    brought = office.create_key(HERE, CreateKey(tenant="acme", secret="s" * 40)).record.key
    for roles in (("admin",), ("factory-admin",)):
        record = refused(office, office.change_key, HERE, ChangeKey(key=brought, roles=roles))
        assert "gets no role" in str(record.error)
    made = office.create_key(HERE, CreateKey(tenant="acme", roles=("admin",))).record.key
    wish = ChangeKey(key=made, roles=("factory-admin",))
    assert office.change_key(HERE, wish).roles == ("factory-admin",)
    assert office.change_key(HERE, ChangeKey(key=made, roles=())).roles == ()


def test_a_tenants_administrator_manages_their_tenant_and_no_other(office: Office) -> None:
    eve = admin(office)
    theirs = office.create_key(HERE, CreateKey(tenant="other")).record.key
    other = "engineer:other/bob"
    limit = office.set_limit(HERE, SetLimit(node=other, unit="tokens", amount=1)).limit
    office.create_key(HERE, CreateKey(tenant="other", engineer="bob"))
    wish = AskExtra(limit=limit, amount=1, reason="", by=other)
    extra = office.ask_extra(HERE, wish).extra
    for call, wanted in (
        (office.create_key, CreateKey(tenant="other")),
        (office.change_key, ChangeKey(key=theirs, name="mine")),
        (office.rotate_key, RotateKey(key=theirs)),
        (office.revoke_key, RevokeKey(key=theirs)),
        (office.set_limit, SetLimit(node=other, unit="tokens", amount=9)),
        (office.set_limit, SetLimit(node=f"key:{theirs}", unit="tokens", amount=9)),
        (office.lift_limit, LiftLimit(limit=limit)),
        (office.ask_extra, AskExtra(limit=limit, amount=1, reason="")),
        (office.decide_extra, DecideExtra(extra=extra, approve=True)),
    ):
        record = refused(office, call, eve, wanted)
        # It is in their own tenant's log, and says nothing of the other's things.
        assert (record.tenant, record.before) == ("acme", None)
        assert record.error is not None
        assert record.error.startswith("not_found: ")
    mine = office.create_key(eve, CreateKey(tenant="acme")).record.key
    office.change_key(eve, ChangeKey(key=mine, name="mine"))
    office.rotate_key(eve, RotateKey(key=mine))
    office.set_limit(eve, SetLimit(node=f"key:{mine}", unit="tokens", amount=9))
    office.lift_limit(eve, LiftLimit(limit=LimitID(f"key:{mine}#tokens-month")))
    assert office.revoke_key(eve, RevokeKey(key=mine)).revoked_unix_ns == NOW


def test_nobody_raises_themselves(office: Office) -> None:
    eve = admin(office, models=("a",))
    assert eve.key is not None
    own = eve.key.key
    chief = office.create_key(HERE, CreateKey(tenant="acme", roles=("factory-admin",))).record.key
    wide = office.create_key(HERE, CreateKey(tenant="acme")).record.key
    for call, wanted in (
        (office.create_key, CreateKey(tenant="acme", models=("a",), roles=("factory-admin",))),
        (office.create_key, CreateKey(tenant="acme")),
        (office.create_key, CreateKey(tenant="acme", models=("a", "b"))),
        (office.change_key, ChangeKey(key=own, roles=("admin", "factory-admin"))),
        (office.change_key, ChangeKey(key=own, models=())),
        (office.change_key, ChangeKey(key=wide, models=("a",))),
        (office.rotate_key, RotateKey(key=wide)),
        (office.rotate_key, RotateKey(key=chief)),
        (office.revoke_key, RevokeKey(key=chief)),
        (office.set_limit, SetLimit(node="tenant:acme", unit="tokens", amount=9)),
        (office.set_limit, SetLimit(node=f"key:{own}", unit="tokens", amount=9)),
        (office.grant, GrantPackage(node="engineer:acme/ada", package="pro")),
    ):
        record = refused(office, call, eve, wanted)
        assert record.error is not None
        assert record.error.startswith("not_permitted: ")
    with pytest.raises(Forbidden):
        office.import_keys(eve, "litellm", [], [])
    assert office.revoke_key(eve, RevokeKey(key=wide)).revoked_unix_ns == NOW


def test_extra_budget_is_asked_for_and_decided_by_who_proves_who_they_are(office: Office) -> None:
    ada, eve = admin(office, engineer="ada"), admin(office, engineer="eve")
    nobody = admin(office)
    team = office.set_limit(ada, SetLimit(node="team:acme/search", unit="tokens", amount=5))
    whole = office.set_limit(HERE, SetLimit(node="tenant:acme", unit="tokens", amount=5))
    extra = office.ask_extra(ada, AskExtra(limit=team.limit, amount=2, reason="demo"))
    assert extra.asked_by == "engineer:acme/ada"
    yes = DecideExtra(extra=extra.extra, approve=True)
    refused(office, office.decide_extra, ada, yes)
    refused(office, office.decide_extra, nobody, yes)
    assert office.decide_extra(eve, yes).decided_by == "engineer:acme/eve"
    with pytest.raises(Conflict, match="was approved by"):
        office.decide_extra(eve, yes)
    more = office.ask_extra(ada, AskExtra(limit=whole.limit, amount=2, reason="demo"))
    record = refused(office, office.decide_extra, eve, DecideExtra(extra=more.extra, approve=True))
    assert "its own tenant's limits" in str(record.error)
    office.decide_extra(eve, DecideExtra(extra=more.extra, approve=False))


@pytest.mark.parametrize("wish", [ChangeKey(key="?", name="x"), RotateKey(key="?")])
def test_a_revoked_key_stays_as_it_is(office: Office, wish: ChangeKey | RotateKey) -> None:
    key = office.create_key(HERE, CreateKey(tenant="acme")).record.key
    office.revoke_key(HERE, RevokeKey(key=key))
    wish = msgspec.structs.replace(wish, key=key)
    call: Any = office.change_key if isinstance(wish, ChangeKey) else office.rotate_key
    assert "is revoked" in str(refused(office, call, HERE, wish).error)


def test_what_is_not_there(office: Office) -> None:
    for call, wish in (
        (office.rotate_key, RotateKey(key="key_x")),
        (office.lift_limit, LiftLimit(limit=LimitID("tenant:x#tokens-day"))),
        (office.grant, GrantPackage(node="tenant:x", package="none")),
        (office.decide_extra, DecideExtra(extra="x", approve=False)),
    ):
        assert str(refused(office, call, HERE, wish).error).startswith("not_found")
    key = office.create_key(HERE, CreateKey(tenant="acme")).record.key
    far = refused(office, office.rotate_key, HERE, RotateKey(key=key, overlap="999999d"))
    assert "too long" in str(far.error)


@pytest.mark.parametrize("nth", range(1, 9))
def test_a_change_and_its_record_are_stored_both_or_neither(office: Office, nth: int) -> None:
    """The nth statement of the change fails, for every n."""
    before = state(office)
    counted, change = itertools.count(1), office.store._other.change

    def failing(sql: str, values: tuple[Value, ...] = ()) -> int:
        if next(counted) == nth:
            raise LedgerUnavailable("The disk is full.")
        return change(sql, values)

    office.store._other.change = failing  # type: ignore[method-assign,assignment]
    wish = CreateKey(tenant="acme", tokens=5, labels=("eu",))
    try:
        office.create_key(HERE, wish)
    except TokenworksError:
        record = last(office)
        assert (record.outcome, state(office)) == ("failed", before)
        assert record.error == "ledger_unavailable: The disk is full."
    else:
        assert next(counted) <= nth
        assert last(office).outcome == "done"


def test_where_nothing_can_be_written_down_nothing_changes(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    before = state(office)

    def failing(sql: str, values: tuple[Value, ...] = ()) -> int:
        raise LedgerUnavailable("The disk is full.")

    office.store._other.change = failing  # type: ignore[method-assign,assignment]
    with pytest.raises(LedgerUnavailable):
        office.create_key(HERE, CreateKey(tenant="acme"))
    assert state(office) == before
    assert "could not be written down" in caplog.text
    assert office.store.audit_records() == []


def test_what_may_have_been_done_is_called_unknown(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, times = office.store._other._commit, itertools.count()  # type: ignore[attr-defined]

    def unheard() -> None:
        commit()
        if next(times) == 0:
            raise CommitUnknown("The disk broke while it was syncing.")

    monkeypatch.setattr(office.store._other, "_commit", unheard)
    with pytest.raises(CommitUnknown):
        office.create_key(HERE, CreateKey(tenant="acme"))
    unknown, done = office.store.audit_records()
    assert (unknown.outcome, done.outcome) == ("unknown", "done")


def test_records_are_never_edited_nor_removed(office: Office) -> None:
    office.create_key(HERE, CreateKey(tenant="acme"))
    for sql in ("UPDATE audit_log SET tenant = 'x'", "DELETE FROM audit_log"):
        with pytest.raises(LedgerUnavailable, match="audit_log are never"), office.store._writing():
            office.store._other.change(sql)


def test_what_records_are_found_by_is_what_they_say(office: Office) -> None:
    office.create_key(HERE, CreateKey(tenant="acme"))
    office.store._other.script("DROP TRIGGER audit_log_are_never_edited")
    with office.store._writing():
        office.store._other.change("UPDATE audit_log SET tenant = 'nobody'")
    with pytest.raises(LedgerCorrupt, match="Record 1 of the audit log was changed"):
        verify(office.store.audit_payloads())


def test_records_are_found_by_whose_they_are(office: Office) -> None:
    eve = admin(office)
    office.create_key(eve, CreateKey(tenant="acme"))
    with pytest.raises(NotFound):
        office.rotate_key(eve, RotateKey(key="key_x"))
    office.create_key(HERE, CreateKey(tenant="other"))
    store = office.store
    assert len(store.audit_records(tenant="acme")) == 3
    assert len(store.audit_records(tenant="acme", actor=eve.actor.id)) == 2
    assert [each.seq for each in store.audit_records(limit=2, before_seq=4)] == [3, 2]
    assert [each.action for each in store.audit_records(outcome="refused")] == ["key.rotate"]


def test_somebody_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> Any:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert operator().actor.id == f"uid {os.getuid()}"
