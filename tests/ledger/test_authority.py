"""Nobody makes, changes or renews what may do more than they may, nor learns of other tenants."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ledger.ledger_samples import NOW, key_record, limit
from tokenworks.core.errors import Forbidden, InvalidRequest, NotFound
from tokenworks.core.slo import Tier
from tokenworks.ledger.audit_log import Actor, ActorKind
from tokenworks.ledger.authority import Who, prove_engineer
from tokenworks.ledger.grants import tenant_of
from tokenworks.ledger.quota_records import KeyRecord, NodeID

KEYS = [key_record("mine"), key_record("theirs", tenant="other")]


def who(kind: ActorKind = "key", **more: Any) -> Who:
    return Who(actor=Actor(kind=kind, id="x"), **{"tenant": "tenant", **more})


FACTORY = who("operator", tenant=None)
NARROW: dict[str, Any] = {
    "models": ("a", "b"),
    "tiers": (Tier.FREE, Tier.HIGH),
    "networks": ("10.0.0.0/8", "2001:db8::/32"),
    "labels": ("eu",),
    "expires_unix_ns": NOW,
}


def narrow(**changes: Any) -> KeyRecord:
    return key_record("new", **{**NARROW, **changes})


def test_a_tenants_administrator_manages_that_tenant_alone() -> None:
    who().check_tenant("tenant", "key 'mine'")
    FACTORY.check_tenant("other", "key 'theirs'")
    with pytest.raises(NotFound, match="There is no key 'theirs' here"):
        who().check_tenant("other", "key 'theirs'")
    with pytest.raises(Forbidden, match="of the tenant 'tenant' may not grant packages"):
        who().check_factory("grant packages")
    FACTORY.check_factory("grant packages")


def test_a_key_that_manages_more_is_not_theirs_to_touch() -> None:
    chief = key_record("chief", roles=("factory-admin",))
    for check in (Who.check_key, Who.check_rank):
        check(FACTORY, chief)
        check(who(), key_record("mine", roles=("admin",)))
        with pytest.raises(Forbidden, match="factory-admin"):
            check(who(), chief)
        with pytest.raises(NotFound):
            check(who(), KEYS[1])


def test_a_key_makes_none_that_is_limited_less() -> None:
    mine = who(key=narrow())
    mine.check_key(narrow())
    mine.check_key(
        narrow(
            models=("a",),
            tiers=(Tier.FREE,),
            networks=("10.1.0.0/16", "2001:db8::7"),
            labels=("eu", "medical"),
            expires_unix_ns=NOW - 1,
        )
    )
    who(key=key_record("wide")).check_key(key_record("new"))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("models", {"models": ("a", "c")}),
        ("models", {"models": ()}),
        ("tiers", {"tiers": (Tier.ULTRA,)}),
        ("tiers", {"tiers": ()}),
        ("from", {"networks": ("10.0.0.0/7",)}),
        ("from", {"networks": ("10.0.0.0/8", "192.0.2.7")}),
        ("from", {"networks": ()}),
        ("labels", {"labels": ()}),
        ("expires", {"expires_unix_ns": NOW + 1}),
        ("expires", {"expires_unix_ns": None}),
    ],
)
def test_wider_than_ones_own(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(Forbidden, match=f"limited by `{name}`"):
        who(key=narrow()).check_key(narrow(**changes))


@pytest.mark.parametrize(
    ("node", "whose"),
    [
        ("tenant:tenant", "tenant"),
        ("team:tenant/search", "tenant"),
        ("engineer:other/eve", "other"),
        ("key:mine", "tenant"),
        ("key:theirs", "other"),
        ("key:nobodys", None),
        ("run:other/nightly", "other"),
    ],
)
def test_whose_a_node_is(node: str, whose: str | None) -> None:
    assert tenant_of(NodeID(node), KEYS) == whose
    assert who().manages(NodeID(node), KEYS) is (whose == "tenant")
    assert FACTORY.manages(NodeID(node), KEYS)
    FACTORY.check_node(NodeID(node), KEYS)
    if whose == "tenant":
        who().check_node(NodeID(node), KEYS)
    else:
        with pytest.raises(NotFound, match=node):
            who().check_node(NodeID(node), KEYS)


def test_limits_that_hold_for_them_are_not_theirs_to_change() -> None:
    ada = NodeID("engineer:tenant/ada")
    mine = who(key=KEYS[0])
    mine.check_limit(None, ada, KEYS)
    mine.check_limit(limit(node=ada), ada, KEYS)
    with pytest.raises(Forbidden, match="its own tenant's limits"):
        mine.check_limit(None, NodeID("tenant:tenant"), KEYS)
    with pytest.raises(Forbidden, match="package 'pro'"):
        mine.check_limit(limit(node=ada, package="pro"), ada, KEYS)
    with pytest.raises(Forbidden, match="the key that it uses"):
        mine.check_limit(None, NodeID("key:mine"), KEYS)
    with pytest.raises(NotFound):
        mine.check_limit(None, NodeID("key:theirs"), KEYS)
    FACTORY.check_limit(limit(node=ada, package="pro"), ada, KEYS)


def test_who_asks_is_proved_where_it_can_be() -> None:
    ada = NodeID("engineer:tenant/ada")
    assert prove_engineer(who(engineer=ada), "engineer:tenant/eve") == ada
    assert prove_engineer(FACTORY, ada) == ada
    for nobody in (who(), FACTORY):
        with pytest.raises(InvalidRequest, match="which engineer"):
            prove_engineer(nobody, None if nobody is FACTORY else ada)
