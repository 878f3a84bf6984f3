"""Leases: the two sums that never break, and what entries use of a limit."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ledger.ledger_samples import NOW, ledger, limit, post, reserve, story
from tokenworks.core.slo import Measured, Tier
from tokenworks.ledger.leases import SHARE, WindowUse, by_node, grant, spent
from tokenworks.ledger.quotas import window_start

amounts = st.integers(0, 10**6)


@settings(derandomize=True)
@given(amounts, amounts, st.integers(1, 10**6))
def test_a_grant_is_enough_and_never_more_than_is_left(
    allowed: int, granted: int, missing: int
) -> None:
    free = allowed - granted
    given_amount = grant(WindowUse(allowed=allowed, granted=granted, used=0), missing)
    if missing > free:
        assert given_amount is None
    else:
        assert given_amount is not None
        assert missing <= given_amount <= free
        assert given_amount == missing or given_amount <= free // SHARE


def test_entries_use_what_windows_would_count() -> None:
    limits = [
        limit("tokens"),
        limit("money", unit="nanodollars", period="lifetime"),
        limit("high", tier=Tier.HIGH, period="day"),
        limit("ultra", tier=Tier.ULTRA),
        limit("other", "tenant:other"),
    ]
    made = ledger()
    entries = [reserve(made, "a"), post(made, "a")]
    entries += [reserve(made, "b", tier=Tier.ULTRA), post(made, "b", measured=SLOW)]
    found = spent(entries, by_node(limits))
    assert found == {
        ("tokens", window_start("month", NOW)): 60,
        ("money", 0): entries[1].paid_nanodollars + entries[3].paid_nanodollars,  # type: ignore[union-attr]
        ("high", window_start("day", NOW)): 30,
    }


SLOW = Measured(ttft_ns=1, decode_ns=10**12, output_tokens=20)


def test_what_failed_or_was_given_back_uses_nothing() -> None:
    made, entries = story()
    failed = [entry for entry in entries if getattr(entry, "ending", None) == "failed"]
    assert failed
    assert spent(failed, by_node([limit()])) == {}
    assert spent([reserve(made, "x")], by_node([limit()])) == {}
