"""Limits are named, granted and topped up as people say it."""

from __future__ import annotations

import msgspec
import pytest

from tests.ledger.ledger_samples import key_record, state
from tokenworks.catalogue.packages import EXAMPLE, parse_packages
from tokenworks.core.errors import Conflict, InvalidRequest
from tokenworks.core.ids import KeyID, LimitID, TenantID
from tokenworks.core.slo import Tier
from tokenworks.ledger.extras import Extra
from tokenworks.ledger.grants import (
    decide,
    granted,
    is_below,
    limit_id,
    new_limit,
    parse_node,
    parse_person,
)
from tokenworks.ledger.quota_records import Limit, LimitState, NodeID
from tokenworks.ledger.quotas import window_end, window_start

NOW = 1_790_000_000_000_000_000
ADA, EVE, BOB = (NodeID(f"engineer:acme/{name}") for name in ("ada", "eve", "bob"))


@pytest.mark.parametrize(
    "text",
    [
        *("tenant:acme", "team:acme/search", "team:acme/search/web", "engineer:acme/a@b.c"),
        *("key:key_1", "run:acme/nightly-7"),
    ],
)
def test_a_node_is_taken_as_it_is(text: str) -> None:
    assert parse_node(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "acme", "tenant:", "tenant:a/b", "team:acme", "team:acme/", "team:/search"),
        *("key:a/b", "key:a/", "person:acme/ada", "tenant:two words", " tenant:acme", "run:x"),
    ],
)
def test_what_is_no_node_is_refused_with_examples(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_node(text)
    assert "engineer:acme/ada" in caught.value.hint


def test_a_limit_is_named_for_what_it_limits() -> None:
    assert limit_id(ADA, "nanodollars", "day", None) == "engineer:acme/ada#usd-day"
    limit = new_limit(ADA, "tokens", "month", 5, unix_ns=NOW, tier=Tier.HIGH, carry_over_max=2)
    assert limit.limit == "engineer:acme/ada#tokens-month-high"
    assert (limit.amount, limit.carry_over_max, limit.created_unix_ns) == (5, 2, NOW)


def put_again(first: Limit, amount: int, carry_over_max: int) -> Limit:
    before = [state(new_limit(ADA, "tokens", "hour", 1, unix_ns=1)), carrying(first, 4)]
    return new_limit(
        *(ADA, "tokens", "month", amount),
        unix_ns=NOW + 1,
        carry_over_max=carry_over_max,
        before=before,
    )


def carrying(limit: Limit, amount: int) -> LimitState:
    return msgspec.structs.replace(state(limit), carried=amount)


def test_a_limit_that_is_set_to_the_same_again_stays_as_it_is() -> None:
    first = new_limit(ADA, "tokens", "month", 5, unix_ns=NOW, carry_over_max=9)
    assert put_again(first, 5, 9) == first
    changed = put_again(first, 7, 9)
    assert (
        new_limit(
            *(ADA, "tokens", "month", 7),
            unix_ns=NOW + 2,
            carry_over_max=9,
            before=[carrying(changed, 4)],
        )
        == changed
    )


@pytest.mark.parametrize(
    ("amount", "carry_over_max", "carried_in"), [(7, 9, 4), (3, 9, 4), (5, 3, 3), (5, 0, 0)]
)
def test_a_limit_that_is_changed_keeps_what_its_month_was_given(
    amount: int, carry_over_max: int, carried_in: int
) -> None:
    first = new_limit(ADA, "tokens", "month", 5, unix_ns=NOW, carry_over_max=9)
    again = put_again(first, amount, carry_over_max)
    assert (again.limit, again.amount, again.created_unix_ns) == (first.limit, amount, NOW + 1)
    assert (again.carry_over_max, again.carried_in) == (carry_over_max, carried_in)
    other = new_limit(ADA, "tokens", "day", 7, unix_ns=NOW + 1, before=[carrying(first, 4)])
    assert (other.created_unix_ns, other.carried_in) == (NOW + 1, 0)


def test_only_months_carry_over() -> None:
    with pytest.raises(InvalidRequest, match="per day"):
        new_limit(ADA, "tokens", "day", 5, unix_ns=NOW, carry_over_max=1)


def test_a_package_takes_the_place_of_the_one_before() -> None:
    packages = parse_packages(EXAMPLE)
    pro, gone = granted(ADA, packages["pro"], [], NOW)
    assert [limit.limit for limit in pro] == [
        "engineer:acme/ada#tokens-month-premium",
        "engineer:acme/ada#usd-hour",
    ]
    assert {limit.package for limit in pro} == {"pro"}
    assert gone == []
    by_hand = new_limit(ADA, "tokens", "hour", 5, unix_ns=NOW)
    other = msgspec.structs.replace(pro[0], limit=LimitID("x"), node=NodeID("engineer:acme/bob"))
    trial, gone = granted(ADA, packages["trial"], map(state, [*pro, by_hand, other]), NOW + 1)
    assert [(limit.limit, limit.amount) for limit in trial] == [
        ("engineer:acme/ada#tokens-lifetime", 100_000)
    ]
    assert gone == [limit.limit for limit in pro]
    same, gone = granted(ADA, packages["pro"], map(state, pro), NOW + 1)
    assert (same, gone) == (pro, [])


def test_everything_of_a_tenant_is_below_it() -> None:
    tenants = {KeyID("key_1"): TenantID("acme"), KeyID("key_2"): TenantID("other")}
    below = [
        node
        for node in (
            *("tenant:acme", "tenant:other", "team:acme/search", "engineer:other/ada"),
            *("key:key_1", "key:key_2", "key:key_3", "run:acme/r"),
        )
        if is_below(NodeID(node), NodeID("tenant:acme"), tenants)
    ]
    assert below == ["tenant:acme", "team:acme/search", "key:key_1", "run:acme/r"]
    assert is_below(ADA, ADA, {})
    assert not is_below(NodeID("key:key_1"), ADA, tenants)


def asked(**changes: object) -> Extra:
    extra = Extra(
        extra="e",
        limit=LimitID("engineer:acme/ada#tokens-month"),
        start_unix_ns=window_start("month", NOW),
        amount=5,
        reason="a deadline",
        asked_by=ADA,
        state="asked",
        decided_by=None,
        at_unix_ns=NOW,
    )
    return msgspec.structs.replace(extra, **changes)


def test_a_person_is_an_engineer_with_an_open_key_by_its_very_id() -> None:
    keys = [
        key_record("none", engineer=None),
        key_record("a", tenant="acme"),
        key_record("b", tenant="acme", engineer="bob", revoked_unix_ns=5),
    ]
    assert parse_person("engineer:acme/ada", keys) == ADA
    for other in ("ada", "engineer:acme/Ada", "engineer:acme/ada ", "engineer:tenant/ada", BOB):
        with pytest.raises(InvalidRequest, match="nobody who has a key") as caught:
            parse_person(other, keys)
        assert "engineer:acme/ada" in caught.value.hint


def test_extra_budget_is_approved_or_denied_once() -> None:
    limits = [
        new_limit(ADA, "tokens", "day", 5, unix_ns=NOW),
        new_limit(ADA, "tokens", "month", 5, unix_ns=NOW),
    ]
    yes = decide(asked(), limits, approve=True, by=EVE, unix_ns=NOW + 1)
    assert yes == asked(state="approved", decided_by=EVE, at_unix_ns=NOW + 1)
    with pytest.raises(InvalidRequest, match="cannot approve it"):
        decide(asked(), limits, approve=True, by=ADA, unix_ns=NOW + 1)
    assert decide(asked(), limits, approve=False, by=ADA, unix_ns=NOW).state == "denied"
    no = decide(asked(), [], approve=False, by=EVE, unix_ns=NOW + 1)
    assert no.state == "denied"
    for decided in (yes, no):
        with pytest.raises(Conflict, match="eve"):
            decide(decided, limits, approve=True, by=BOB, unix_ns=NOW + 2)
    with pytest.raises(InvalidRequest, match="is gone"):
        decide(asked(), limits[:1], approve=True, by=EVE, unix_ns=NOW)
    words = asked(asked_by="ada")  # of a release in which people were words
    with pytest.raises(InvalidRequest, match="who 'ada' is"):
        decide(words, limits, approve=True, by=EVE, unix_ns=NOW)
    assert decide(words, limits, approve=False, by=EVE, unix_ns=NOW).state == "denied"
    later = window_end("month", asked().start_unix_ns)
    with pytest.raises(InvalidRequest, match="has ended"):
        decide(asked(), limits, approve=True, by=EVE, unix_ns=later)
