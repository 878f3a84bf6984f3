"""LiteLLM's objects as ours: nothing is lost in silence, and no price is off by a digit."""

from __future__ import annotations

import hashlib
from decimal import Decimal

import msgspec
import pytest

from tests.ledger.ledger_samples import NOW
from tokenworks.core.errors import InvalidRequest
from tokenworks.core.ids import ModelName, TenantID
from tokenworks.core.units import NS_PER_S
from tokenworks.ledger.litellm import Imported, import_keys
from tokenworks.ledger.quota_records import LimitState

ACME = TenantID("acme")
DIGEST = hashlib.sha256(b"sk-1234").hexdigest()


def imported(*keys: dict[str, object], **more: list[dict[str, object]]) -> Imported:
    return import_keys(keys, tenant=ACME, unix_ns=NOW, **more)


def test_a_key_keeps_its_secret_its_team_and_its_user() -> None:
    found = imported(
        {"token": DIGEST, "key_alias": "ci", "team_id": "t-1", "user_id": "u-1"},
        {"token": DIGEST[::-1], "team_id": "other team", "user_id": "bob"},
        teams=[{"team_id": "t-1", "team_alias": "Search & Ads"}, {"team_id": "other team"}],
        users=[{"user_id": "u-1", "user_email": "ada@acme.com"}, {"user_id": "bob"}],
    )
    one, other = found.keys
    assert (one.secret_sha256, one.name) == (DIGEST, "ci")
    assert (one.tenant, one.team, one.engineer) == ("acme", "Search-Ads", "ada@acme.com")
    assert one.revoked_unix_ns is None
    assert (other.team, other.engineer, other.revoked_unix_ns) == ("other-team", "bob", None)
    assert found.limits == []
    assert found.notes == []


@pytest.mark.parametrize(
    ("duration", "period"),
    [("1h", "hour"), ("24h", "day"), ("30d", "month"), ("1mo", "month"), (None, "lifetime")],
)
def test_a_budget_is_a_hard_limit_in_money(duration: str | None, period: str) -> None:
    key = {"token": DIGEST, "max_budget": Decimal("2.5"), "budget_duration": duration}
    (limit,) = imported(key).limits
    assert (limit.node, limit.unit) == (f"key:key_{DIGEST[:12]}", "nanodollars")
    assert (limit.period, limit.amount) == (period, 2_500_000_000)


def test_a_budget_that_is_named_alone_is_looked_up_among_the_budgets() -> None:
    key = {"token": DIGEST, "budget_id": "gold"}
    gold = {"budget_id": "gold", "max_budget": 3, "budget_duration": "1d", "tpm_limit": 9}
    found = imported(key, budgets=[gold, {"budget_id": "tin", "max_budget": 1}])
    assert [(each.period, each.amount) for each in found.limits] == [("day", 3_000_000_000)]
    assert [each[1:] for each in found.left_out] == [("litellm_budget_table.tpm_limit", "9")]
    within = {"max_budget": 2, "budget_duration": "1d"}
    for table in (within, within | {"budget_id": "gold"}):
        found = imported({**key, "litellm_budget_table": table}, budgets=[gold])
        assert found.limits[0].amount == 2_000_000_000
    # The table of another budget is not this one.
    other = {**key, "litellm_budget_table": within | {"budget_id": "tin"}}
    assert imported(other, budgets=[gold]).limits[0].amount == 3_000_000_000


@pytest.mark.parametrize("table", [None, {}, {"budget_id": "tin", "max_budget": 1}])
def test_a_key_whose_budget_is_named_and_not_given_is_refused(
    table: dict[str, object] | None,
) -> None:
    key = {"token": DIGEST, "budget_id": "gold", "litellm_budget_table": table}
    with pytest.raises(InvalidRequest, match=r"its budget is 'gold'.* without a limit") as caught:
        imported(key)
    with pytest.raises(InvalidRequest, match="its budget is 'gold'"):
        imported(key, budgets=[{"budget_id": "tin", "max_budget": 1}])
    assert "--budgets" in caught.value.hint
    with pytest.raises(InvalidRequest, match="'budget_id'"):
        imported(key, budgets=[{"max_budget": 1}])


def test_budgets_of_teams_and_users_come_too() -> None:
    found = imported(
        teams=[{"team_id": "t", "max_budget": 10, "budget_duration": "1d"}],
        users=[{"user_id": "u", "user_alias": "Ada", "max_budget": 0, "budget_duration": "1d"}],
    )
    assert [(each.node, each.amount) for each in found.limits] == [
        ("team:acme/t", 10_000_000_000),
        ("engineer:acme/Ada", 0),
    ]


def test_of_a_budget_for_life_the_rest_is_left() -> None:
    spent = {"token": DIGEST, "max_budget": 10, "spend": Decimal("3.25")}
    found = imported(spent)
    assert found.limits[0].amount == 6_750_000_000
    assert "6.75 dollars are left" in found.notes[0]
    assert imported({**spent, "spend": 99}).limits[0].amount == 0
    by_month = imported({**spent, "budget_duration": "30d"})
    assert by_month.limits[0].amount == 10_000_000_000
    assert "'30d' is a calendar month" in by_month.notes[0]
    assert "3.25 dollars of the running period's budget are spent" in by_month.notes[1]


def test_what_has_no_counterpart_is_said() -> None:
    found = imported(
        {"token": DIGEST, "max_budget": 1, "budget_duration": "7d", "rpm_limit": 5, "models": ["m"]}
    )
    assert found.limits[0].period == "lifetime"
    assert "'7d'" in " ".join(found.notes)
    assert [each[1:] for each in found.left_out] == [("rpm_limit", "5"), ("models", "['m']")]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ({}, "'token'"),
        ({"token": "sk-1234"}, "sha256"),
        ({"token": DIGEST, "max_budget": -1}, "max_budget"),
        ({"token": DIGEST, "max_budget": "much"}, "max_budget"),
        ({"token": DIGEST, "max_budget": True}, "max_budget"),
        ({"token": DIGEST, "max_budget": 10**30}, "more dollars than"),
        ({"token": DIGEST, "expires": "soon"}, "no time"),
        ({"token": DIGEST, "litellm_budget_table": 5}, "litellm_budget_table is no budget"),
        ({"token": DIGEST, "budget_limits": {"max_budget": 1}}, "budget_limits is no budget"),
        ({"token": DIGEST, "budget_limits": [1]}, "budget_limits is no budget"),
    ],
)
def test_what_is_no_key_is_refused(key: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        imported(key)


def test_a_name_of_signs_alone_gets_another() -> None:
    (key,) = imported({"token": DIGEST, "team_id": "///"}).keys
    assert key.team == "unnamed"


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ({"blocked": True}, "it is blocked there"),
        ({"deleted_at": "2026-01-01"}, "it is deleted there"),
        ({"expires": "2020-01-01T00:00:00Z"}, "it expired at 2020-01-01"),
        ({"expires": "2020-01-01T00:00:00"}, "it expired at 2020-01-01"),
        ({"team_id": "closed"}, "its team is blocked there"),
        ({"team_id": "open", "team_blocked": True}, "its team is blocked there"),
        ({"user_id": "out"}, "its user is blocked there"),
    ],
)
def test_a_key_that_opens_nothing_there_opens_nothing_here(
    key: dict[str, object], why: str
) -> None:
    found = imported(
        {"token": DIGEST, **key},
        teams=[{"team_id": "closed", "blocked": True}, {"team_id": "open"}],
        users=[{"user_id": "out", "blocked": True}],
    )
    assert found.keys[0].revoked_unix_ns == NOW
    assert why in found.notes[0]


def test_a_key_that_expires_later_is_open_until_then() -> None:
    found = imported({"token": DIGEST, "expires": "2199-01-01T00:00:00+02:00"})
    assert found.keys[0].revoked_unix_ns is None
    assert found.keys[0].expires_unix_ns == 7_226_575_200 * NS_PER_S
    assert not found.notes


def test_what_was_set_here_stays_with_a_key_that_is_imported_again() -> None:
    (record,) = imported({"token": DIGEST}).keys
    here = msgspec.structs.replace(
        record,
        secret_sha256="0" * 64,
        old_secret_sha256=DIGEST,
        old_until_unix_ns=5,
        expires_unix_ns=9,
        labels=("eu",),
        models=(ModelName("m"),),
    )
    for more, changes in (
        ({}, {}),
        ({"key_alias": "ci", "team_id": "t"}, {"name": "ci", "team": "t"}),
        ({"expires": "2199-01-01"}, {"expires_unix_ns": 7_226_582_400 * NS_PER_S}),
    ):
        found = import_keys([{"token": DIGEST, **more}], tenant=ACME, unix_ns=NOW, known=[here])
        assert found.keys == [msgspec.structs.replace(here, **changes)]


def test_a_key_that_is_here_keeps_its_age_and_its_revocation() -> None:
    (record,) = imported({"token": DIGEST}).keys
    closed = msgspec.structs.replace(record, revoked_unix_ns=NOW + 1)
    later = NOW + NS_PER_S
    for before, key, revoked in (
        (record, {}, None),
        (record, {"blocked": True}, later),
        (closed, {}, NOW + 1),
        (closed, {"blocked": True}, NOW + 1),
    ):
        found = import_keys([{"token": DIGEST, **key}], tenant=ACME, unix_ns=later, known=[before])
        assert found.keys[0].created_unix_ns == NOW
        assert found.keys[0].revoked_unix_ns == revoked
        stays = revoked is not None and not key
        assert [("stays so" in note) for note in found.notes] == [stays] * len(found.notes)


def test_names_that_are_the_same_are_told_apart_by_their_ids() -> None:
    found = imported(
        {"token": DIGEST, "team_id": "t2"},
        {"token": DIGEST[::-1], "team_id": "t3"},
        teams=[
            {"team_id": "t1", "team_alias": "dev", "max_budget": 100, "budget_duration": "1mo"},
            {"team_id": "t2", "team_alias": "dev", "max_budget": 7, "budget_duration": "1mo"},
            {"team_id": "t3", "team_alias": "ops"},
        ],
    )
    assert [(each.node, each.amount) for each in found.limits] == [
        ("team:acme/dev-t1", 100_000_000_000),
        ("team:acme/dev-t2", 7_000_000_000),
    ]
    assert [key.team for key in found.keys] == ["dev-t2", "ops"]
    assert "team:acme/dev-t1: another one is called 'dev', too." in found.notes
    with pytest.raises(InvalidRequest, match="called 'unnamed-unnamed'"):
        imported(teams=[{"team_id": "/"}, {"team_id": "*"}])


def test_a_team_or_user_that_no_file_has_is_said() -> None:
    found = imported({"token": DIGEST, "team_id": "t", "user_id": ""})
    assert (found.keys[0].team, found.keys[0].engineer) == ("t", None)
    assert "team:acme/t: no --teams file has 't'" in found.notes[0]


def test_every_budget_of_a_key_counts_and_of_the_same_period_the_smaller() -> None:
    found = imported(
        {
            "token": DIGEST,
            "max_budget": 9,
            "budget_duration": "1d",
            "litellm_budget_table": {"max_budget": 5, "budget_duration": "1mo", "rpm_limit": 3},
            "budget_limits": [
                {"max_budget": 1, "budget_duration": "1h", "reset_at": "2026-01-01"},
                {"max_budget": 20, "budget_duration": "1d"},
            ],
        }
    )
    assert [(each.period, each.amount) for each in found.limits] == [
        ("day", 9_000_000_000),
        ("month", 5_000_000_000),
        ("hour", 1_000_000_000),
    ]
    assert "two budgets there; the smaller one holds" in found.notes[0]
    assert [each[1:] for each in found.left_out] == [("litellm_budget_table.rpm_limit", "3")]


def test_fields_of_teams_and_users_are_said_too_and_no_secret_is_shown() -> None:
    found = imported(
        teams=[
            {"team_id": "t", "tpm_limit": 0, "metadata": {"logging": "sk-secret", "a": 1}},
        ],
        users=[
            {"user_id": "u", "models": [], "blocked": False, "teams": ["t"] * 99, "x": [{"y": 1}]},
            {"user_id": "v", "factor": Decimal("0.5"), "password": "sk-secret"},
        ],
    )
    assert [tuple(each) for each in found.left_out] == [
        ("team:acme/t", "tpm_limit", "0"),
        ("team:acme/t", "metadata", "{a, logging}"),
        ("engineer:acme/u", "teams", f"{str(['t'] * 99)[:57]}..."),
        ("engineer:acme/u", "x", "[1 objects]"),
        ("engineer:acme/v", "factor", "0.5"),
    ]


def test_a_limit_that_is_here_keeps_its_age_and_a_change_is_said() -> None:
    key = {"token": DIGEST, "max_budget": 10, "budget_duration": "1mo"}
    (limit,) = imported(key).limits
    for amount, notes in ((limit.amount, 0), (2_500_000_000, 1)):
        known = msgspec.structs.replace(limit, amount=amount)
        found = import_keys(
            [key],
            tenant=ACME,
            unix_ns=NOW + 1,
            before=[LimitState(limit=known, start_unix_ns=0, used=0)],
        )
        assert found.limits[0].created_unix_ns == (NOW + 1 if notes else NOW)
        assert len(found.notes) == notes
    assert "the limit is 2.50 dollars here, and becomes 10.00" in found.notes[0]
