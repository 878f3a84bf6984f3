from __future__ import annotations

from collections.abc import Collection

import msgspec
import pytest

from tests.ledger.ledger_samples import (
    DAY_NS,
    MONTH,
    NOW,
    book,
    extra,
    ledger,
    limit,
    post,
    reserve,
    void,
    whole,
)
from tokenworks.core.ids import LimitID
from tokenworks.core.slo import Measured, Tier
from tokenworks.ledger.entries import Entry
from tokenworks.ledger.extras import Extra, Use, limit_states, uses
from tokenworks.ledger.quota_records import Limit, NodeID
from tokenworks.ledger.quotas import Window, next_window, window_end, window_start

SLOW = Measured(ttft_ns=3 * 10**9, decode_ns=0, output_tokens=1)


class Sums:
    """Sums of entries; it remembers what it was asked."""

    def __init__(self, *entries: Entry) -> None:
        self.entries = entries
        self.asked: list[tuple[int, int]] = []

    def __call__(self, since: int, until: int, runs: Collection[NodeID]) -> list[Use]:
        self.asked.append((since, until))
        rows = whole(
            entry
            for entry in self.entries
            if since <= getattr(entry, "reserved_unix_ns", entry.at_unix_ns) < until
        )
        return list(uses(rows, runs))


def answers(*dates: int) -> Sums:
    made = ledger()
    entries: list[Entry] = []
    for i, unix_ns in enumerate(dates):
        reserve(made, str(i), unix_ns=unix_ns)
        entries.append(post(made, str(i), unix_ns=unix_ns))
    return Sums(*entries)


def allowed(named: Limit, *extras: Extra, sums: Sums | None = None) -> int:
    (found,) = limit_states([named], extras, sums or Sums(), NOW)
    return found.allowed


def ago(months: int) -> int:
    start = MONTH
    for _ in range(months):
        start = window_start("month", start - 1)
    return start


def test_only_what_is_approved_for_this_window_of_this_limit_counts() -> None:
    extras = [
        extra("a"),
        extra("b", amount=5),
        extra("asked", state="asked"),
        extra("denied", state="denied"),
        extra("then", start_unix_ns=ago(1)),
        extra("else", limit=LimitID("else")),
    ]
    assert allowed(limit(), *extras) == 112


def test_what_was_used_is_what_a_ledger_counts() -> None:
    limits = [
        limit("all"),
        limit("high", tier=Tier.HIGH),
        limit("money", "key:key", unit="nanodollars", tier=Tier.HIGH),
        limit("all money", "engineer:tenant/ada", unit="nanodollars"),
        limit("medium", tier=Tier.MEDIUM),
        limit("run", "run:tenant/7"),
        limit("nobody", "team:tenant/else"),
    ]
    prices = book(credit_ppm=100_000)
    start = [
        msgspec.structs.replace(each, amount=10**9, limit=LimitID(each.limit)) for each in limits
    ]
    made = ledger(limits=limit_states(start, [], Sums(), NOW))
    entries: list[Entry] = []
    for name in ("kept", "broken", "failed", "void", "left"):
        reserve(made, name, run="7", prices=prices)
    entries += [post(made, "kept"), post(made, "broken", measured=SLOW)]
    entries += [post(made, "failed", ending="failed"), void(made, "void")]
    entries += [post(made, "left", output=3, ending="disconnected")]
    found = limit_states(start, [], Sums(*entries), NOW)
    assert [each.used for each in found] == [each.used for each in made.windows()]
    assert [each.used for each in found][:2] == [73, 43]
    assert found[4].used == 0
    assert [each.start_unix_ns for each in found] == [MONTH] * 7


def test_each_window_is_read_once() -> None:
    limits = [limit(f"{period}{i}", period=period) for period in ("hour", "month") for i in (1, 2)]
    sums = Sums()
    limit_states(limits, [], sums, NOW)
    assert sums.asked == [
        (start, window_end(period, start))
        for period, start in (("hour", window_start("hour", NOW)), ("month", MONTH))
    ]


@pytest.mark.parametrize(
    ("dates", "created", "want"),
    [
        ([], 0, 100),  # set this month
        ([], 1, 140),
        ([ago(1)] * 2, 1, 140),
        ([ago(1)] * 3, 1, 110),
        ([ago(1)] * 4, 1, 100),
        ([ago(2)] * 4, 2, 140),
        ([ago(1)] * 4, 3, 120),  # the 40 of the months before are used up to 20
        ([ago(2)] * 3 + [ago(1)] * 3, 2, 120),
    ],
)
def test_months_since_it_was_set_are_carried_over(
    dates: list[int], created: int, want: int
) -> None:
    named = limit(carry_over_max=40, created_unix_ns=ago(created) + 5)
    assert allowed(named, sums=answers(*sorted(dates))) == want


def test_extra_budget_of_a_month_before_counts_as_its_rest() -> None:
    named = limit(carry_over_max=40, created_unix_ns=ago(1))
    sums = answers(*[ago(1)] * 4)
    assert allowed(named, extra("then", start_unix_ns=ago(1), amount=25), sums=sums) == 105


def test_a_changed_limit_leaves_the_months_before_as_they_were() -> None:
    sums = answers(*[ago(2)] * 4)
    named = limit(carry_over_max=40, created_unix_ns=ago(1), carried_in=7)
    assert allowed(named, sums=sums) == 140
    assert allowed(limit(carry_over_max=40, created_unix_ns=MONTH, carried_in=7), sums=sums) == 107
    # By a clock that is behind the one that set it.
    ahead = limit(carry_over_max=40, created_unix_ns=NOW + 60 * DAY_NS, carried_in=7)
    assert allowed(ahead) == 107


def test_what_is_leased_of_a_month_before_is_not_carried_over() -> None:
    named = limit(carry_over_max=90, created_unix_ns=ago(1))
    sums = answers(*[ago(1)] * 2)
    held = {(named.limit, ago(1)): 25, (LimitID("else"), ago(1)): 9, (named.limit, MONTH): 9}
    (found,) = limit_states([named], [], sums, NOW, held)
    assert (found.carried, found.allowed, found.extra, found.used) == (15, 115, 0, 0)


@pytest.mark.parametrize("period", ["hour", "day", "lifetime"])
def test_only_months_are_carried_over(period: str) -> None:
    assert allowed(limit(period=period, carry_over_max=40)) == 100


@pytest.mark.parametrize("used", [0, 2, 3, 4])
@pytest.mark.parametrize("idle", [0, 1, 3])
def test_a_ledger_that_rolls_on_agrees_with_a_reading(used: int, idle: int) -> None:
    start = ago(1 + idle)
    named = limit(amount=100, carry_over_max=40, created_unix_ns=start)
    rolled = next_window(Window(named, start, 100, 30 * used), NOW)
    assert rolled.allowed == allowed(named, sums=answers(*[start] * used))
