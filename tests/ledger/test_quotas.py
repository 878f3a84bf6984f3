from __future__ import annotations

import datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ledger.ledger_samples import (
    BOOK,
    CHARGE_NANODOLLARS,
    DAY_NS,
    HOLD_NANODOLLARS,
    HOUR_NS,
    MONTH,
    NOW,
    PAYER,
    code,
    key_record,
    ledger,
    limit,
    order,
    post,
    reserve,
    state,
    try_reserve,
    void,
    window,
)
from tokenworks.core.ids import LimitID
from tokenworks.core.orders import Payer
from tokenworks.core.slo import Measured, Tier
from tokenworks.ledger import quotas as quotas_module
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.quota_records import (
    LEVELS,
    UNIX_NS_MAX,
    LimitState,
    Period,
    QuotaNumbers,
    Refused,
    Unit,
)
from tokenworks.ledger.quotas import (
    QuotaTree,
    Window,
    next_window,
    nodes_of,
    window_end,
    window_start,
)

NODES = {
    "tenant": "tenant:tenant",
    "team": "team:tenant/team",
    "engineer": "engineer:tenant/ada",
    "key": "key:key",
    "run": "run:tenant/7",
}
PERIODS: tuple[Period, ...] = ("hour", "day", "month", "lifetime")
NEXT_MONTH = window_end("month", MONTH)
HELD: dict[Unit, int] = {"tokens": 30, "nanodollars": HOLD_NANODOLLARS}
SLOW = Measured(ttft_ns=3 * 10**9, decode_ns=0, output_tokens=1)


def months(count: int) -> int:
    """The start of a month so many after the present one."""
    start = MONTH
    for _ in range(count):
        start = window_end("month", start)
    return start


# The tree.


def test_a_path_names_every_level_that_it_has() -> None:
    assert tuple(NODES) == LEVELS
    whole = msgspec.structs.replace(PAYER, run="7")
    assert nodes_of(whole) == tuple(NODES.values())
    assert nodes_of(Payer(tenant="tenant", team=None, engineer=None, key="key")) == (
        "tenant:tenant",
        "key:key",
    )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize("unit", ["tokens", "nanodollars"])
def test_every_level_is_hard_in_every_period_and_unit(
    level: str, period: Period, unit: Unit
) -> None:
    most = 3 * HELD[unit] - 1
    tight = limit("tight", NODES[level], period=period, unit=unit, amount=most)
    wide = [limit(name, NODES[name], amount=10**6) for name in LEVELS if name != level]
    made = ledger(limits=[state(each) for each in (*wide, tight)])
    for request in ("a", "b"):
        reserve(made, request, run="7")
    refused = try_reserve(made, "c", run="7")
    assert isinstance(refused, Refused)
    numbers = refused.quota
    assert numbers is not None
    assert (numbers.limit, numbers.node, numbers.unit) == ("tight", NODES[level], unit)
    assert (numbers.allowed, numbers.used, numbers.held) == (most, 0, 2 * HELD[unit])
    assert numbers.asked == HELD[unit]
    # Refused by one is held by none.
    made.check()
    assert {each.held for each in made.windows()} == {2 * HELD[unit], 60}
    void(made, "b")
    reserve(made, "c", run="7")


def test_others_are_not_held_up_by_a_limit_that_is_not_theirs() -> None:
    other = key_record("other", tenant="else", team="team", engineer="ada")
    made = ledger(key_record(), other, limits=[state(limit(n, NODES[n], amount=0)) for n in LEVELS])
    assert code(try_reserve(made, "a")) == "quota_exceeded"
    reserve(made, "b", key="other")
    reserve(made, "c", key="other", run="7")


def test_the_outermost_limit_that_cannot_hold_it_is_named() -> None:
    made = ledger(limits=[state(limit(n, NODES[n], amount=0)) for n in reversed(LEVELS)])
    refused = try_reserve(made)
    assert isinstance(refused, Refused)
    assert refused.quota is not None
    assert refused.quota.limit == "tenant"


def test_a_quota_can_be_used_to_its_last_token_and_nanodollar() -> None:
    money = limit("money", unit="nanodollars", amount=HOLD_NANODOLLARS)
    made = ledger(limits=[state(limit(amount=30)), state(money)])
    reserve(made)
    post(made, uncached=10, cached=0)
    assert [each.free for each in made.windows()] == [0, 0]
    assert code(try_reserve(made, "b", input_max=1, output_max=0)) == "quota_exceeded"
    reserve(made, "c", input_max=0, output_max=0)


def test_a_limit_set_later_holds_for_who_was_served_before() -> None:
    made = ledger()
    reserve(made, "a")
    made.set_limits([state(limit(amount=59))])
    assert code(try_reserve(made, "b")) == "quota_exceeded"
    made.set_limits([])
    reserve(made, "b")


def test_memory_of_payers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas_module, "PAYERS_MAX", 2)
    made = ledger(limits=[state(limit(amount=90))])
    for run in ("1", "2", "3"):
        reserve(made, run, run=run)
    assert len(made._tree._of_payer) <= 2
    assert code(try_reserve(made, "4", run="4")) == "quota_exceeded"


def test_memory_of_sets_of_windows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas_module, "PATHS_MAX", 2)
    limits = [state(limit(run, f"run:tenant/{run}", amount=90)) for run in ("1", "2", "3")]
    made = ledger(limits=limits)
    for run in ("1", "2", "3"):
        reserve(made, run, run=run)
    assert len(made._tree._together) <= 2
    made.set_limits([])
    assert made._tree._together == {}


def test_holds_of_one_payer_have_their_windows_together() -> None:
    made = ledger(limits=[state(limit(amount=90)), state(limit("other", "key:key", amount=90))])
    tree, now = made._tree, NOW
    first, second = (tree.hold(PAYER, Tier.HIGH, 1, 1, now) for _ in range(2))
    assert isinstance(first, tuple)
    assert len(first) == 2
    assert first is second
    later = tree.hold(PAYER, Tier.HIGH, 1, 1, NOW + 40 * DAY_NS)
    assert isinstance(later, tuple)
    assert not set(later) & set(first)
    assert list(tree._together) == [later]
    tree.set(state(limit(amount=80)))  # it may have another window from now on
    assert tree._together == {}


def test_lifting_a_limit_that_is_not_there_changes_nothing() -> None:
    tree = QuotaTree()
    tree.set(state(limit()))
    tree.remove(LimitID("else"))
    assert [each.limit for each in tree.windows()] == [limit()]
    assert tree.window(LimitID("else")) is None


# Grants at a tier.


def test_a_grant_counts_its_own_tier_only() -> None:
    made = ledger(limits=[state(limit(tier=Tier.HIGH, amount=60)), state(limit("all"))])
    reserve(made, "a")
    reserve(made, "b", tier=Tier.PREMIUM)
    reserve(made, "c")
    assert [each.held for each in made.windows()] == [60, 90]
    refused = try_reserve(made, "d", input_max=1, output_max=0)
    assert code(refused) == "quota_exceeded"
    reserve(made, "e", input_max=1, output_max=0, tier=Tier.PREMIUM)


@pytest.mark.parametrize("unit", ["tokens", "nanodollars"])
def test_a_broken_promise_does_not_use_up_the_grant(unit: Unit) -> None:
    made = ledger(
        limits=[
            state(limit(tier=Tier.HIGH, unit=unit, amount=10**9)),
            state(limit("all", unit=unit, amount=10**9)),
        ]
    )
    for request in ("kept", "broken", "failed"):
        reserve(made, request)
    post(made, "kept")
    broken = post(made, "broken", measured=SLOW)
    post(made, "failed", ending="failed")
    assert broken.tier_delivered is Tier.MEDIUM
    kept = 30 if unit == "tokens" else CHARGE_NANODOLLARS
    also = 30 if unit == "tokens" else broken.charged_nanodollars
    assert [(each.used, each.held) for each in made.windows()] == [(kept, 0), (kept + also, 0)]


# Windows.


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("hour", "2026-09-21T14:00", "2026-09-21T15:00"),
        ("day", "2026-09-21T00:00", "2026-09-22T00:00"),
        ("month", "2026-09-01T00:00", "2026-10-01T00:00"),
    ],
)
def test_windows_are_those_of_the_calendar(period: Period, start: str, end: str) -> None:
    def unix_ns(text: str) -> int:
        moment = datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC)
        return int(moment.timestamp()) * 10**9

    assert window_start(period, NOW) == unix_ns(start)
    assert window_end(period, unix_ns(start)) == unix_ns(end)


def test_a_lifetime_has_no_end() -> None:
    assert (window_start("lifetime", NOW), window_end("lifetime", 0)) == (0, UNIX_NS_MAX)


@given(st.sampled_from(PERIODS[:3]), st.integers(0, UNIX_NS_MAX - 40 * DAY_NS))
def test_every_time_is_in_one_window_which_meets_the_next(period: Period, unix_ns: int) -> None:
    start = window_start(period, unix_ns)
    end = window_end(period, start)
    assert start <= unix_ns < end
    assert window_start(period, end) == end
    assert window_start(period, end - 1) == start == window_start(period, start)


@pytest.mark.parametrize("period", PERIODS)
def test_a_window_that_has_ended_makes_room(period: Period) -> None:
    made = ledger(limits=[state(limit(period=period, amount=30))])
    end = window_end(period, window_start(period, NOW))
    reserve(made, "a")
    post(made, "a")
    if period == "lifetime":
        assert code(try_reserve(made, "b", unix_ns=UNIX_NS_MAX - 1)) == "quota_exceeded"
        return
    assert code(try_reserve(made, "b", unix_ns=end - 1)) == "quota_exceeded"
    reserve(made, "b", unix_ns=end)
    assert (window(made).start_unix_ns, window(made).held, window(made).used) == (end, 30, 0)


def test_an_answer_counts_in_the_window_in_which_it_was_asked_for() -> None:
    made = ledger(limits=[state(limit(period="hour", amount=60))])
    old = window(made)
    reserve(made, "a")
    later = NOW + HOUR_NS
    reserve(made, "b", unix_ns=later)
    post(made, "a", unix_ns=later)
    assert (old.used, old.held) == (30, 0)
    assert (window(made).used, window(made).held) == (0, 30)
    made.check()


@pytest.mark.parametrize("period", ["hour", "day"])
def test_only_months_are_carried_over(period: Period) -> None:
    made = ledger(limits=[state(limit(period=period, carry_over_max=50))])
    reserve(made, unix_ns=NOW + 2 * DAY_NS)
    assert window(made).allowed == 100


@pytest.mark.parametrize(
    ("used", "extra", "idle_months", "allowed"),
    [
        (100, 0, 0, 100),
        (90, 0, 0, 110),
        (70, 0, 0, 125),
        (120, 0, 0, 100),
        (0, 0, 0, 125),
        (100, 20, 0, 120),  # approved extra counts as unused rest, and ends with its window
        (100, 0, 1, 125),
        (100, 0, 5, 125),
        (90, 0, 1, 125),
    ],
)
def test_the_rest_of_a_month_is_carried_over_up_to_a_maximum(
    used: int, extra: int, idle_months: int, allowed: int
) -> None:
    named = limit(carry_over_max=25)
    made = ledger(limits=[state(named, allowed=100 + extra, used=used)])
    reserve(made, input_max=0, output_max=0, unix_ns=months(1 + idle_months))
    assert window(made).allowed == allowed
    assert window(made).used == 0


def test_a_small_amount_piles_up_over_idle_months() -> None:
    named = limit(amount=10, carry_over_max=35)
    full = Window(named, MONTH, 10, 10)
    allowed = [next_window(full, months(count)).allowed for count in (1, 2, 3, 4, 5, 60)]
    assert allowed == [10, 20, 30, 40, 45, 45]


def carrying(*, amount: int = 100, carry_over_max: int = 100) -> Ledger:
    """A ledger that holds 30 of a month's tokens when the next begins."""
    made = ledger(limits=[state(limit(amount=amount, carry_over_max=carry_over_max))])
    reserve(made, "a")
    reserve(made, "b", unix_ns=NEXT_MONTH)
    return made


def test_what_is_still_held_is_carried_over_once_it_is_released() -> None:
    made = carrying()
    assert window(made).allowed == 170
    voided = void(made, "a", unix_ns=NEXT_MONTH)
    assert (window(made).allowed, window(made).carried) == (200, 100)
    made.retract(voided)
    assert window(made).allowed == 170
    # Less than was held is used, then more.
    posted = post(made, "a", uncached=3, cached=0, output=2)
    assert window(made).allowed == 195
    made.retract(posted)
    post(made, "a", output=25)
    assert window(made).allowed == 165
    made.check()


def test_an_old_hold_is_followed_through_months_and_idle_ones() -> None:
    made = carrying(amount=40, carry_over_max=60)
    assert window(made).allowed == 50
    reserve(made, "c", unix_ns=months(2))  # 20 are left of the second month
    assert window(made).allowed == 60
    reserve(made, "d", input_max=0, output_max=0, unix_ns=months(4))  # 30, 70, but 60 at most
    assert window(made).allowed == 100
    reserve(made, "e", input_max=25, output_max=25, unix_ns=months(4))
    void(made, "b", unix_ns=months(4))
    assert window(made).allowed == 100
    reserve(made, "f", input_max=0, output_max=50, unix_ns=months(4))
    reserve(made, "g", unix_ns=months(5))
    assert window(made).allowed == 40
    void(made, "f", unix_ns=months(5))
    assert window(made).allowed == 90


def test_a_hold_of_two_months_ago_changes_the_present_one() -> None:
    made = carrying()
    reserve(made, "c", input_max=50, output_max=50, unix_ns=NEXT_MONTH)
    reserve(made, "d", unix_ns=months(2))
    assert window(made).allowed == 140
    void(made, "a", unix_ns=months(2))
    assert window(made).allowed == 170
    void(made, "c", unix_ns=months(2))
    assert window(made).allowed == 200
    void(made, "b", unix_ns=months(2))
    assert window(made).allowed == 200


@pytest.mark.parametrize("carried", [0, 70, 100])
def test_a_reading_does_not_overwrite_what_is_carried_over(carried: int) -> None:
    made = carrying()
    same = limit(carry_over_max=100)
    read = LimitState(limit=same, start_unix_ns=NEXT_MONTH, used=0, carried=carried, extra=9)
    made.set_limits([read])
    assert window(made).allowed == 179
    void(made, "a")
    assert window(made).allowed == 209


def test_a_reading_begins_a_month_with_what_the_ledger_knows() -> None:
    made = ledger(limits=[state(limit(carry_over_max=100))])
    reserve(made, "a")
    larger = limit(carry_over_max=100, amount=110)
    made.set_limits([LimitState(limit=larger, start_unix_ns=NEXT_MONTH, used=0, carried=100)])
    assert (window(made).start_unix_ns, window(made).allowed) == (NEXT_MONTH, 190)
    void(made, "a")
    assert window(made).allowed == 210


@pytest.mark.parametrize("seen_in_time", [True, False])
def test_a_changed_limit_keeps_what_was_carried_in_until_then(*, seen_in_time: bool) -> None:
    made = ledger(limits=[state(limit(carry_over_max=100))])
    reserve(made, "a")
    if seen_in_time:
        reserve(made, "b", unix_ns=NEXT_MONTH)
    frozen = limit(amount=10, carry_over_max=90, created_unix_ns=NEXT_MONTH + 5, carried_in=85)
    made.set_limits([LimitState(limit=frozen, start_unix_ns=NEXT_MONTH, used=0, carried=85)])
    assert window(made).allowed == 95
    void(made, "a", unix_ns=NEXT_MONTH)
    assert window(made).allowed == 95
    reserve(made, "c", input_max=0, output_max=0, unix_ns=months(2))
    assert window(made).allowed == 10 + (65 if seen_in_time else 90)


def test_a_limit_changed_by_a_clock_that_is_ahead_counts_from_its_month_on() -> None:
    made = ledger(limits=[state(limit(carry_over_max=100))])
    ahead = limit(carry_over_max=100, created_unix_ns=NEXT_MONTH + 5, carried_in=85)
    made.set_limits([LimitState(limit=ahead, start_unix_ns=MONTH, used=0, carried=85)])
    reserve(made, "a")
    reserve(made, "b", unix_ns=NEXT_MONTH)
    void(made, "a")
    assert window(made).allowed == 185


# Leases.


def test_a_leased_window_begins_with_nothing_and_grows_by_grants() -> None:
    named = limit(period="hour")
    lent = LimitState(limit=named, start_unix_ns=window_start("hour", NOW), used=0)
    made = ledger(limits=[lent], leased=True)
    assert code(try_reserve(made, "a")) == "quota_exceeded"
    assert made.grant(named.limit, lent.start_unix_ns, 30)
    reserve(made, "a")
    assert code(try_reserve(made, "b")) == "quota_exceeded"
    assert made.grant(named.limit, lent.start_unix_ns, 30)
    reserve(made, "b")
    later = NOW + HOUR_NS
    assert code(try_reserve(made, "c", unix_ns=later)) == "quota_exceeded"
    assert not made.grant(named.limit, lent.start_unix_ns, 30)
    assert made.grant(named.limit, window_start("hour", later), 60)
    reserve(made, "c", unix_ns=later)
    assert made.grant(named.limit, window_start("hour", later), -30)
    assert window(made).free == 0
    assert not made.grant(LimitID("else"), lent.start_unix_ns, 1)


def test_a_reading_of_an_earlier_window_takes_nothing_from_a_leased_one() -> None:
    named = limit(period="hour")
    lent = LimitState(limit=named, start_unix_ns=window_start("hour", NOW), used=0)
    made = ledger(limits=[lent], leased=True)
    assert made.grant(named.limit, lent.start_unix_ns, 30)
    larger = msgspec.structs.replace(named, amount=1_000)
    early = LimitState(limit=larger, start_unix_ns=lent.start_unix_ns - HOUR_NS, used=9)
    made.set_limits([early])
    now = msgspec.structs.replace(early, start_unix_ns=lent.start_unix_ns)
    for state_read in (early, now):
        made.set_limits([state_read])
        assert (window(made).allowed, window(made).used) == (30, 0)
        assert window(made).limit == larger


def test_shortages_are_what_a_request_lacks_of_each_leased_limit() -> None:
    hourly = limit("hourly", period="hour")
    money = limit("money", unit="nanodollars", amount=10**9)
    ultra = limit("ultra", tier=Tier.ULTRA)
    made = ledger(limits=[state(each) for each in (hourly, money, ultra)], leased=True)
    assert made.grant(LimitID("hourly"), window_start("hour", NOW), 12)
    found = made.shortages(NOW, order(), BOOK)
    assert [(each.limit, each.missing) for each in found] == [("hourly", 18), ("money", 132_000)]
    later = made.shortages(NOW + HOUR_NS, order(), BOOK)
    assert [(each.limit, each.missing) for each in later] == [("hourly", 30), ("money", 132_000)]
    assert made.shortages(NOW, order(model="no such"), BOOK) == []
    assert made.shortages(NOW, order(key="nobody"), BOOK) == []


def test_leased_months_that_are_over_are_known_until_nothing_is_left_of_them() -> None:
    named = limit(carry_over_max=50)
    made = ledger(limits=[state(named), state(limit("plain"))], leased=True)

    def ended(unix_ns: int) -> list[tuple[int, int, int]]:
        return [(each.start_unix_ns, each.held, each.free) for each in made.ended(unix_ns)]

    for name in ("limit", "plain"):
        assert made.grant(LimitID(name), MONTH, 100)
    reserve(made, "a")
    assert ended(NOW) == []
    assert ended(NEXT_MONTH) == [(MONTH, 30, 70)]
    assert made.grant(named.limit, MONTH, -70)
    void(made, "a")
    assert ended(NEXT_MONTH) == [(MONTH, 0, 30)]
    assert made.grant(named.limit, MONTH, -30)
    made.shortages(NEXT_MONTH, order(), BOOK)
    assert not made.grant(LimitID("plain"), MONTH, 1)
    # Nobody asks for anything for a month; then two are over, of which one has nothing left.
    made.set_limits([LimitState(limit=named, start_unix_ns=months(2), used=0)])
    assert ended(months(2)) == [(NEXT_MONTH, 0, 0)]
    assert made.window_at(named.limit, NEXT_MONTH) is not None
    assert made.window_at(named.limit, MONTH) is None
    made.set_limits([])
    assert ended(months(3)) == []


def test_more_than_is_free_cannot_be_given_back() -> None:
    made = ledger(limits=[state(limit())], leased=True)
    assert made.grant(LimitID("limit"), MONTH, 100)
    reserve(made)
    with pytest.raises(AssertionError):
        made.grant(LimitID("limit"), MONTH, -71)


# Refusals.


def test_a_refusal_says_by_how_much_and_when_to_come_again() -> None:
    made = ledger(limits=[state(limit(period="hour", amount=89), used=30)])
    reserve(made, "a")
    refused = try_reserve(made, "b")
    assert isinstance(refused, Refused)
    end = window_end("hour", window_start("hour", NOW))
    assert refused.quota == QuotaNumbers(
        limit=LimitID("limit"),
        node="tenant:tenant",
        unit="tokens",
        period="hour",
        allowed=89,
        used=30,
        held=30,
        asked=30,
        resets_unix_ns=end,
    )
    assert refused.message == (
        "'tenant:tenant' may use 89 tokens per hour: 30 used, 30 held by open requests, "
        "30 needed for this one. The hour ends in 2800 s."
    )


def test_who_comes_a_moment_before_the_end_waits_a_second() -> None:
    made = ledger(limits=[state(limit(period="hour", amount=29))])
    refused = try_reserve(made, unix_ns=NOW, input_max=9)
    assert not isinstance(refused, Refused)
    end = window_end("hour", window_start("hour", NOW))
    refused = try_reserve(made, "b", unix_ns=end - 1, input_max=9)
    assert isinstance(refused, Refused)
    assert refused.message.endswith(" The hour ends in 1 s.")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (limit(period="lifetime", amount=20), "20 tokens for life"),
        (limit(amount=29), "29 tokens per month"),
    ],
)
def test_there_is_no_time_to_come_again_where_it_would_not_help(named: object, said: str) -> None:
    made = ledger(limits=[state(named)])  # type: ignore[arg-type]
    refused = try_reserve(made)
    assert isinstance(refused, Refused)
    assert refused.quota is not None
    assert refused.quota.resets_unix_ns is None
    assert said in refused.message
    assert "ends in" not in refused.message
