"""Leases: the two sums that never break, and what entries use of a limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.ledger.ledger_samples import (
    DAY_NS,
    FAST,
    HOUR_NS,
    NOW,
    key_record,
    ledger,
    limit,
    post,
    reserve,
    state,
    story,
)
from tokenworks.core.slo import Measured, Tier
from tokenworks.ledger.entries import Entry, Posted
from tokenworks.ledger.leases import SHARE, WindowUse, by_node, grant, spent, split
from tokenworks.ledger.quotas import window_start

amounts = st.integers(0, 10**6)


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


def test_what_is_leased_is_told_from_what_no_window_has_counted() -> None:
    """Also where many answers are summed before their windows are looked at."""
    leased = [
        limit("tokens", period="day", amount=10**6),
        limit("money", unit="nanodollars", period="hour", amount=10**9),
        limit("ultra", tier=Tier.ULTRA, amount=10**6),
    ]
    late = [limit("late", "key:other", period="day"), limit("late_money", unit="nanodollars")]
    made = ledger(key_record(), key_record("other"), limits=[state(each) for each in leased])
    entries: list[Entry] = []
    for i in range(12):
        request, at = str(i), NOW + i % 3 * HOUR_NS + i // 6 * DAY_NS
        tier = (Tier.HIGH, Tier.ULTRA)[i % 2]
        measured = SLOW if i % 4 == 1 else FAST
        key = ("key", "other")[i % 2]
        entries.append(reserve(made, request, key=key, tier=tier, unix_ns=at))
        entries.append(post(made, request, measured=measured, unix_ns=at + HOUR_NS))
    entries.append(reserve(made, "failed", unix_ns=NOW + DAY_NS + 3 * HOUR_NS))
    entries.append(post(made, "failed", ending="failed", unix_ns=NOW + DAY_NS + 3 * HOUR_NS))
    posted = [each for each in entries if isinstance(each, Posted) and each.ending != "failed"]

    limits = by_node([leased[0], leased[2], *late])  # that of money by the hour was lifted
    own, beyond = split(entries, limits, made.counted)

    paid: dict[int, int] = {}
    for each in posted:
        hour = window_start("hour", each.reserved_unix_ns)
        paid[hour] = paid.get(hour, 0) + each.paid_nanodollars
    days = [window_start("day", NOW), window_start("day", NOW + DAY_NS)]
    assert own == {
        **{("tokens", day): 6 * 30 for day in days},
        **{("money", hour): amount for hour, amount in paid.items() if amount},
        ("ultra", window_start("month", NOW)): 3 * 30,  # of six, three were too slow
    }
    assert beyond == {
        **{("late", day): 3 * 30 for day in days},
        ("late_money", window_start("month", NOW)): sum(paid.values()),
    }
    assert split(entries, limits, None) == (spent(entries, limits), {})


SLOW = Measured(ttft_ns=1, decode_ns=10**12, output_tokens=20)


def test_what_failed_or_was_given_back_uses_nothing() -> None:
    made, entries = story()
    failed = [entry for entry in entries if getattr(entry, "ending", None) == "failed"]
    assert failed
    assert spent(failed, by_node([limit()])) == {}
    assert spent([reserve(made, "x")], by_node([limit()])) == {}
