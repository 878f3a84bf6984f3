"""Reports straight from the store's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ledger.ledger_samples import story
from tokenworks.core.errors import LedgerUnavailable
from tokenworks.core.ids import PoolID
from tokenworks.core.slo import Tier
from tokenworks.live.report_store import (
    By,
    PoolCost,
    ReportRow,
    TierRow,
    pool_costs,
    report_rows,
    tier_rows,
)
from tokenworks.live.store import SQLiteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    store = SQLiteStore(path)
    store.append_now(story()[1])
    store.close()
    return path


def row(name: str, requests: int, charged: int, income: int) -> ReportRow:
    return ReportRow(
        name=name,
        requests=requests,
        input_tokens=10 * requests,
        cached_input_tokens=4 * requests,
        output_tokens=20 * requests,
        charged_nanodollars=charged,
        ad_income_nanodollars=income,
        cost_nanodollars=3 * requests,
        worker_ns=7 * requests,
    )


def test_tiers_come_in_their_order(path: Path) -> None:
    assert report_rows(path, "tier") == [row("free", 2, 0, 10_000), row("high", 1, 127_680, 0)]


@pytest.mark.parametrize(
    ("by", "name"), [("tenant", "tenant"), ("pool", "pool"), ("key", "key"), ("model", "m")]
)
def test_other_groups_have_the_same_sums(path: Path, by: By, name: str) -> None:
    assert report_rows(path, by) == [row(name, 3, 127_680, 10_000)]


def test_tiers_asked_and_delivered(path: Path) -> None:
    assert tier_rows(path) == [
        TierRow(tier_asked=Tier.FREE, tier_delivered=Tier.FREE, requests=1),
        TierRow(tier_asked=Tier.HIGH, tier_delivered=Tier.FREE, requests=1),
        TierRow(tier_asked=Tier.HIGH, tier_delivered=Tier.HIGH, requests=1),
    ]


def test_cost_that_no_answer_accounts_for_is_idle(path: Path) -> None:
    (cost,) = pool_costs(path)
    assert cost == PoolCost(
        pool=PoolID("pool"), energy_nanodollars=5, capital_nanodollars=6, allocated_nanodollars=9
    )
    assert cost.idle_nanodollars == 2


def test_a_range_takes_its_start_and_not_its_end(path: Path) -> None:
    # Answers are billed at 2, cost is written at 3.
    assert report_rows(path, "key", since_unix_ns=3) == []
    assert report_rows(path, "key", until_unix_ns=2) == []
    assert tier_rows(path, since_unix_ns=2, until_unix_ns=3) == tier_rows(path)
    (cost,) = pool_costs(path, since_unix_ns=3)
    assert (cost.energy_nanodollars, cost.allocated_nanodollars) == (5, 0)


def test_a_report_makes_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable):
        report_rows(tmp_path / "none.sqlite", "tier")
    assert list(tmp_path.iterdir()) == []
