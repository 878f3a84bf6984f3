"""FOCUS rows: exact products, no null where none may be, and the invoice's total."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest

from tests.ledger.ledger_samples import MONTH, rolled
from tests.ledger.test_invoices import BOOKS, ENTRIES, INVOICE, LATER, in_month
from tokenworks.core.errors import InvalidRequest
from tokenworks.ledger.focus import COLUMNS, PRICING_UNIT, focus_rows

ROWS = focus_rows("2026-09", rolled(in_month(ENTRIES)), BOOKS, LATER, tenant="tenant")


def test_billed_cost_adds_up_to_the_invoices_total() -> None:
    billed = sum(Decimal(row["BilledCost"]) for row in ROWS)
    assert billed * 10**9 == INVOICE.total_nanodollars
    kinds = [row["ChargeCategory"] for row in ROWS]
    assert set(kinds) == {"Usage", "Credit", "Adjustment"}
    assert {row["InvoiceId"] for row in ROWS} == {INVOICE.number}


def test_every_column_is_there_and_null_only_where_it_may_be() -> None:
    for row in ROWS:
        assert set(row) == {column.name for column in COLUMNS}
        assert all(column.nullable or row[column.name] is not None for column in COLUMNS)


def test_unit_prices_times_quantities_are_the_costs() -> None:
    for row in ROWS:
        if row["ChargeCategory"] != "Usage":
            assert row["ListCost"] == row["BilledCost"]
            assert row["PricingQuantity"] is None
            continue
        quantity = Decimal(row["PricingQuantity"])
        assert row["PricingUnit"] == PRICING_UNIT
        assert quantity * Decimal(row["ListUnitPrice"]) == Decimal(row["ListCost"])
        assert quantity * Decimal(row["ContractedUnitPrice"]) == Decimal(row["BilledCost"])
        assert quantity * 10**6 == int(row["x_Tokens"]) == int(row["ConsumedQuantity"])


def test_a_row_names_its_day_who_asked_and_both_tiers() -> None:
    row = next(row for row in ROWS if row["x_TierAsked"] == "ultra")
    assert row["ChargePeriodStart"] == "2026-09-21T00:00:00Z"
    assert row["ChargePeriodEnd"] == "2026-09-22T00:00:00Z"
    assert row["BillingPeriodStart"] == "2026-09-01T00:00:00Z"
    assert row["BillingPeriodEnd"] == "2026-10-01T00:00:00Z"
    assert row["x_TierDelivered"] != "ultra"
    assert (row["SubAccountId"], row["SubAccountName"]) == ("tenant/team", "team")
    assert (row["x_Engineer"], row["x_Key"]) == ("ada", "key")


def test_all_tenants_are_exported_and_a_draft_names_no_invoice() -> None:
    rows = rolled(in_month(ENTRIES))
    made = focus_rows("2026-09", rows, BOOKS, MONTH, draft=True)
    assert {row["BillingAccountId"] for row in made} == {"tenant", "second"}
    assert {row["InvoiceId"] for row in made} == {None}
    with pytest.raises(InvalidRequest, match="not over"):
        focus_rows("2026-09", rows, BOOKS, MONTH)


def test_who_has_no_team_has_no_sub_account() -> None:
    rows = [
        row._replace(payer=msgspec.structs.replace(row.payer, team=None))
        for row in rolled(in_month(ENTRIES))
    ]
    made = focus_rows("2026-09", rows, BOOKS, MONTH, draft=True)
    assert {(row["SubAccountId"], row["SubAccountName"]) for row in made} == {(None, None)}
