"""LiteLLM's objects as ours: nothing is lost in silence, and no price is off by a digit."""

from __future__ import annotations

import hashlib
from decimal import Decimal

import pytest

from tests.ledger.ledger_samples import NOW
from tokenworks.core.errors import InvalidRequest
from tokenworks.core.ids import TenantID
from tokenworks.core.slo import Tier
from tokenworks.ledger.litellm import Imported, import_keys, price_tables

ACME = TenantID("acme")
DIGEST = hashlib.sha256(b"sk-1234").hexdigest()


def imported(*keys: dict[str, object], **more: list[dict[str, object]]) -> Imported:
    return import_keys(keys, tenant=ACME, unix_ns=NOW, **more)


def test_a_key_keeps_its_secret_its_team_and_its_user() -> None:
    found = imported(
        {"token": DIGEST, "key_alias": "ci", "team_id": "t-1", "user_id": "u-1"},
        {"token": DIGEST[::-1], "team_id": "other team", "user_id": "bob", "blocked": True},
        teams=[{"team_id": "t-1", "team_alias": "Search & Ads"}],
        users=[{"user_id": "u-1", "user_email": "ada@acme.com"}, {"user_id": "u-2"}],
    )
    one, other = found.keys
    assert (one.secret_sha256, one.name) == (DIGEST, "ci")
    assert (one.tenant, one.team, one.engineer) == ("acme", "Search-Ads", "ada@acme.com")
    assert one.revoked_unix_ns is None
    assert (other.team, other.engineer, other.revoked_unix_ns) == ("other-team", "bob", NOW)
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


def test_what_has_no_counterpart_is_said() -> None:
    found = imported(
        {"token": DIGEST, "max_budget": 1, "budget_duration": "7d", "rpm_limit": 5, "models": ["m"]}
    )
    assert found.limits[0].period == "lifetime"
    said = " ".join(found.notes)
    assert "'7d'" in said
    assert "rpm_limit = 5" in said
    assert "models = ['m']" in said


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ({}, "'token'"),
        ({"token": "sk-1234"}, "sha256"),
        ({"token": DIGEST, "max_budget": -1}, "max_budget"),
        ({"token": DIGEST, "max_budget": "much"}, "max_budget"),
        ({"token": DIGEST, "max_budget": True}, "max_budget"),
    ],
)
def test_what_is_no_key_is_refused(key: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        imported(key)


def test_a_name_of_signs_alone_gets_another() -> None:
    (key,) = imported({"token": DIGEST, "team_id": "///"}).keys
    assert key.team == "unnamed"


MAP = {
    "plain": {
        "input_cost_per_token": Decimal("0.00000015"),
        "output_cost_per_token": Decimal("6e-07"),
    },
    "full": {
        "input_cost_per_token": Decimal("1.25e-06"),
        "input_cost_per_token_flex": Decimal("6.25e-07"),
        "input_cost_per_token_priority": Decimal("2.5e-06"),
        "output_cost_per_token": Decimal("1e-05"),
        "output_cost_per_token_flex": Decimal("5e-06"),
        "output_cost_per_token_priority": Decimal("2e-05"),
        "output_cost_per_token_ultrafast": Decimal("6e-05"),
        "cache_read_input_token_cost": Decimal("1.25e-07"),
        "cache_creation_input_token_cost": Decimal("1.5625e-06"),
        "output_cost_per_reasoning_token": Decimal("1.1e-05"),
    },
    "odd": {
        "input_cost_per_token": Decimal("1.00000055e-06"),
        "output_cost_per_token": 1,
    },
    "image": {"output_cost_per_image": Decimal("0.04")},
}


def test_prices_are_exact() -> None:
    tables, notes = price_tables(MAP, ["plain", "full"])
    assert notes == []
    high = tables["plain"][Tier.HIGH]
    assert high["input_udollars_per_mtok"] == 150_000
    assert high["cached_input_udollars_per_mtok"] == 150_000
    assert high["output_udollars_per_mtok"] == 600_000
    full = tables["full"]
    outputs = [full[tier]["output_udollars_per_mtok"] for tier in Tier]
    assert outputs == [5_000_000, 5_000_000, 10_000_000, 20_000_000, 60_000_000]
    inputs = [full[tier]["input_udollars_per_mtok"] for tier in Tier]
    assert inputs == [625_000, 625_000, 1_250_000, 2_500_000, 2_500_000]
    assert full[Tier.HIGH]["cached_input_udollars_per_mtok"] == 125_000
    assert full[Tier.HIGH]["cache_write_udollars_per_mtok"] == 1_562_500
    assert full[Tier.HIGH]["reasoning_udollars_per_mtok"] == 11_000_000


def test_a_price_between_two_is_rounded_and_said() -> None:
    tables, (note,) = price_tables(MAP, ["odd"])
    assert tables["odd"][Tier.HIGH]["input_udollars_per_mtok"] == 1_000_001
    assert tables["odd"][Tier.HIGH]["output_udollars_per_mtok"] == 10**12
    assert note.startswith("odd: input_cost_per_token = ")
    assert note.endswith("is rounded to 1000001 micro-dollars.")


def test_models_that_are_not_priced_per_token_are_left_out_unless_named() -> None:
    tables, _ = price_tables(MAP)
    assert sorted(tables) == ["full", "odd", "plain"]
    for name in ("image", "none"):
        with pytest.raises(InvalidRequest, match=name):
            price_tables(MAP, [name])
