from __future__ import annotations

import gc
from collections.abc import Callable

import msgspec
import pytest

from tests.ledger.ledger_samples import (
    BOOK,
    CHARGE_NANODOLLARS,
    HOLD_NANODOLLARS,
    MODEL,
    NEVER,
    NOW,
    POOL,
    TTL_NS,
    WORK,
    accrue,
    book,
    code,
    key_record,
    ledger,
    limit,
    numbers,
    order,
    outcome,
    post,
    reserve,
    same,
    state,
    story,
    story_limits,
    try_post,
    try_reserve,
    void,
    window,
)
from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.ids import KeyID, ModelName, RequestID
from tokenworks.core.orders import Payer
from tokenworks.core.slo import Measured, Tier
from tokenworks.ledger import ledger as ledger_module
from tokenworks.ledger.entries import CostAccrued, Entry, Posted, Reserved, Voided
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.quota_records import Refused
from tokenworks.ledger.stored import Stored

R = RequestID("r")
LIMITS = [state(limit()), state(limit("money", unit="nanodollars", amount=10**9))]


def used_and_held(made: Ledger) -> list[tuple[int, int]]:
    return [(each.used, each.held) for each in made.windows()]


# Reserving.


def test_a_hold_is_the_most_a_request_can_use() -> None:
    made = ledger(limits=LIMITS)
    hold = reserve(made)
    assert (hold.hold_tokens, hold.owner, hold.expires_ns) == (30, "me", TTL_NS)
    assert (hold.at_unix_ns, hold.price_id) == (NOW, BOOK.price_id)
    assert hold.hold_nanodollars == HOLD_NANODOLLARS
    assert used_and_held(made) == [(0, 30), (0, HOLD_NANODOLLARS)]
    assert made.pending() == {"tenant": HOLD_NANODOLLARS}
    assert hold.transfers() == ()


def test_a_hold_names_the_whole_path_of_who_pays() -> None:
    made = ledger()
    assert reserve(made, "a").payer == Payer(
        tenant="tenant", team="team", engineer="ada", key="key"
    )
    assert reserve(made, "b", agent="coder", run="7").payer == Payer(
        tenant="tenant", team="team", engineer="ada", key="key", agent="coder", run="7"
    )
    assert reserve(made, "c", run="7").payer.agent is None


def test_a_hold_is_at_the_highest_rate_that_may_apply() -> None:
    cheap = book(
        more="""
[batch]
rate_ppm = 500_000
[discount.tenant]
rate_ppm = 900_000
tiers = ["high"]
"""
    )
    made = ledger()
    # The discount is for one tier; another may be delivered.
    hold = reserve(made, "a", prices=cheap, batch=True)
    assert (hold.hold_nanodollars, hold.batch) == (HOLD_NANODOLLARS // 2, True)
    entry = post(made, "a")
    assert (entry.rate_ppm, entry.batch) == (450_000, True)
    assert entry.charged_nanodollars == 57_456
    assert reserve(made, "b", prices=cheap).hold_nanodollars == HOLD_NANODOLLARS


def test_an_unknown_or_revoked_key_and_an_unpriced_model_are_refused() -> None:
    made = ledger(key_record(), key_record("old", revoked_unix_ns=1), limits=LIMITS)
    refused = [
        try_reserve(made, key="nobody"),
        try_reserve(made, key="old"),
        try_reserve(made, model="unheard of"),
    ]
    assert [code(result) for result in refused] == [
        "invalid_api_key",
        "invalid_api_key",
        "model_not_found",
    ]
    assert used_and_held(made) == [(0, 0), (0, 0)]
    assert made.open_holds() == ()


def test_open_holds_are_bounded() -> None:
    made = ledger(open_holds_max=1)
    reserve(made, "a")
    assert code(try_reserve(made, "b")) == "capacity_exceeded"
    post(made, "a")
    reserve(made, "b")


def test_reserving_again_returns_the_open_hold_only() -> None:
    made = ledger(limits=LIMITS)
    hold = reserve(made)
    assert made.reserve(50, 60, order(), book(name="next"), 70) is hold
    assert used_and_held(made)[0] == (0, 30)
    other = [{"output_max": 21}, {"batch": True}, {"run": "7"}, {"agent": "x"}]
    assert {code(try_reserve(made, **parts)) for parts in other} == {"conflict"}
    reserve(made, attempt=1)
    assert len(made.open_holds()) == 2
    post(made)
    assert code(try_reserve(made)) == "already_settled"
    assert code(try_reserve(made, output_max=21)) == "conflict"


def test_dates_never_go_back() -> None:
    made = ledger()
    reserve(made, unix_ns=NOW)
    assert post(made, unix_ns=5).at_unix_ns == NOW
    assert reserve(made, "b", unix_ns=NOW - 1).at_unix_ns == NOW


def test_prices_are_forgotten_when_too_many_and_looked_up_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger_module, "HOLD_PRICES_MAX", 1)
    made = ledger()
    holds = [reserve(made, f"{tier}{i}", tier=tier) for i in range(2) for tier in Tier]
    assert [hold.hold_nanodollars for hold in holds[:5]] == [
        hold.hold_nanodollars for hold in holds[5:]
    ]
    assert len(made._hold_prices) == 1


def test_a_book_is_remembered_while_a_hold_or_a_repeat_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger_module, "BOOKS_MAX", 2)
    made = ledger(settled_max=1)
    reserve(made, "open", prices=book(name="1"))
    reserve(made, "settled", prices=book(name="2"))
    posted = post(made, "settled")
    reserve(made, "free", prices=book(name="3"))
    void(made, "free")
    reserve(made, "last", prices=book(name="4"))
    assert {name.split("@")[0] for name in made._books} == {"1", "3", "4"}
    post(made, "open")
    reserve(made, "again", prices=book(name="3"))
    assert posted.price_id not in made._books


# Posting.


def test_an_answer_is_billed_at_the_delivered_tier() -> None:
    made = ledger(limits=LIMITS)
    reserve(made, tier=Tier.ULTRA)
    # 101 gaps at 100 tokens/s take 1.01 s: premium is met, ultra is not.
    slow = Measured(ttft_ns=5, decode_ns=1_010_000_000, output_tokens=102)
    entry = post(made, output=20, measured=slow)
    assert (entry.tier_asked, entry.tier_delivered) == (Tier.ULTRA, Tier.PREMIUM)
    assert entry.price == BOOK.prices[MODEL][Tier.PREMIUM]
    # 6 uncached at $9, 4 cached at $0.9 and 20 output at $45 per 1M tokens
    assert entry.charged_nanodollars == 6 * 9_000 + 4 * 900 + 20 * 45_000
    assert entry.transfers() == (("wallet:tenant", "revenue:premium", entry.charged_nanodollars),)
    assert used_and_held(made) == [(30, 0), (entry.charged_nanodollars, 0)]
    assert (entry.pool, entry.worker, entry.worker_ns) == (POOL, "worker", 7)
    assert (entry.energy_nanodollars, entry.capital_nanodollars) == (2, 1)


def test_a_broken_promise_gives_part_of_the_charge_back() -> None:
    made = ledger(limits=LIMITS)
    prices = book(credit_ppm=100_000)
    reserve(made, "kept", prices=prices)
    reserve(made, "broken", prices=prices)
    slow = Measured(ttft_ns=3_000_000_000, decode_ns=0, output_tokens=1)
    kept, broken = post(made, "kept"), post(made, "broken", measured=slow)
    assert (kept.credit_ppm, kept.credited_nanodollars) == (0, 0)
    assert (broken.tier_delivered, broken.credit_ppm) == (Tier.MEDIUM, 100_000)
    charged, credited = broken.charged_nanodollars, broken.credited_nanodollars
    assert (charged, credited) == (6 * 600 + 4 * 60 + 20 * 3_000, 6_384)
    assert broken.transfers() == (
        ("wallet:tenant", "revenue:medium", charged),
        ("credits", "wallet:tenant", credited),
    )
    assert used_and_held(made)[1] == (CHARGE_NANODOLLARS + charged - credited, 0)


def test_advertisers_pay_for_answers_that_were_asked_for_as_free() -> None:
    made = ledger()
    reserve(made, "free", tier=Tier.FREE)
    reserve(made, "paid")
    free, fallen = post(made, "free"), post(made, "paid", measured=NEVER)
    assert (free.charged_nanodollars, free.ad_income_nanodollars) == (0, 10_000)
    assert (fallen.tier_delivered, fallen.ad_income_nanodollars) == (Tier.FREE, 0)
    assert free.transfers() == (("ad_network", "ad_income", 10_000),)
    assert fallen.transfers() == ()
    reserve(made, "batch", tier=Tier.FREE, batch=True)
    unseen = post(made, "batch")
    assert (unseen.batch, unseen.ad_income_nanodollars, unseen.transfers()) == (True, 0, ())


def test_a_client_that_leaves_pays_for_what_was_made() -> None:
    made = ledger(limits=LIMITS)
    reserve(made, "some")
    reserve(made, "none")
    some, none = (
        post(made, "some", output=5, ending="disconnected"),
        post(made, "none", output=0, ending="disconnected", measured=NEVER),
    )
    assert some.charged_nanodollars == 37_680
    assert (none.tier_delivered, none.charged_nanodollars) == (Tier.FREE, 0)
    assert used_and_held(made)[0] == (15 + 10, 0)


def test_a_worker_that_breaks_off_bills_nothing_and_its_usage_is_kept() -> None:
    made = ledger(limits=LIMITS)
    prices = book(credit_ppm=100_000)
    reserve(made, "paid", prices=prices)
    reserve(made, "free", tier=Tier.FREE, prices=prices)
    for entry in (post(made, "paid", ending="failed"), post(made, "free", ending="failed")):
        assert (entry.tier_delivered, entry.charged_nanodollars) == (Tier.FREE, 0)
        assert (entry.ad_income_nanodollars, entry.credited_nanodollars) == (0, 0)
        assert (entry.usage.output_tokens, entry.counted_tokens) == (20, 0)
        assert (entry.energy_nanodollars, entry.capital_nanodollars) == (2, 1)
    assert used_and_held(made) == [(0, 0), (0, 0)]


def test_usage_beyond_the_hold_is_billed_and_counted_in_full() -> None:
    made = ledger(limits=[state(limit(amount=30))])
    reserve(made)
    entry = post(made, output=100)
    assert entry.charged_nanodollars == 607_681
    assert window(made).used == 110
    assert code(try_reserve(made, "b", input_max=0, output_max=0)) == "quota_exceeded"


def test_a_retry_is_an_attempt_of_its_own() -> None:
    made = ledger(limits=LIMITS)
    reserve(made)
    void(made, reason="failed")
    reserve(made, attempt=1)
    assert isinstance(try_post(made), Refused)
    result = made.post(NOW, R, 1, outcome=outcome(), work=WORK)
    assert isinstance(result, Posted)
    assert used_and_held(made) == [(30, 0), (CHARGE_NANODOLLARS, 0)]


# Settling twice, or not at all.


def test_a_repeated_settlement_returns_the_first() -> None:
    made = ledger(limits=LIMITS)
    reserve(made, "a")
    reserve(made, "b")
    posted = post(made, "a")
    voided = void(made, "b", "failed")
    before = numbers(made)
    assert try_post(made, "a", unix_ns=NOW + 9) is posted
    assert made.void(NOW + 9, RequestID("b"), reason="failed") is voided
    assert numbers(made) == before


def test_a_settlement_that_contradicts_the_first_is_refused() -> None:
    made = ledger(limits=LIMITS)
    reserve(made, "a")
    reserve(made, "b")
    post(made, "a")
    void(made, "b", "failed")
    before = numbers(made)
    assert [
        code(try_post(made, "a", output=19)),
        code(made.void(5, RequestID("b"), reason="rejected")),
        code(made.void(5, RequestID("a"), reason="failed")),
        code(try_post(made, "b")),
        code(try_post(made, "never")),
        code(made.void(5, RequestID("never"), reason="failed")),
    ] == [
        "conflict",
        "conflict",
        "already_settled",
        "already_settled",
        "not_reserved",
        "not_reserved",
    ]
    assert numbers(made) == before


def test_the_collector_of_cycles_looks_at_no_settlement_twice() -> None:
    made, _ = story()
    gc.collect()
    assert made._settled
    for place, settled in made._settled.items():
        assert not gc.is_tracked(place)
        assert not gc.is_tracked(settled)


def test_only_the_latest_settlements_are_remembered() -> None:
    made = ledger(settled_max=1)
    for request in ("a", "b"):
        reserve(made, request)
        post(made, request)
    assert code(try_post(made, "a")) == "not_reserved"
    assert isinstance(try_post(made, "b"), Posted)


def test_holds_expire_with_time_and_with_their_owner() -> None:
    made, entries = story()
    assert made.expire(TTL_NS - 1, NOW) == []
    late = made.expire(TTL_NS, NOW)
    assert [(entry.request, entry.reason) for entry in late] == [("open", "expired")]
    assert made.expire(TTL_NS, NOW) == []
    assert code(try_post(made, "open")) == "already_settled"
    rebuilt = ledger(owner="next")
    for entry in entries:
        rebuilt.apply(entry)
    mine = reserve(rebuilt, "mine", now_ns=1)
    assert code(try_post(rebuilt, "open")) == "not_reserved"
    assert rebuilt.expire(0, NOW) == late  # the dead have no time left, whatever their clock said
    assert rebuilt.void_orphans(NOW) == []
    assert rebuilt.open_holds() == (mine,)


def test_of_two_tries_that_race_the_first_to_answer_is_billed() -> None:
    made = ledger(limits=[state(limit(amount=60))])
    for attempt in (0, 1):
        held = made.reserve(0, NOW, order("r"), BOOK, TTL_NS, attempt=attempt)
        assert isinstance(held, Reserved)
    posted = made.post(NOW, RequestID("r"), 1, outcome=outcome(), work=WORK)
    lost = made.void(NOW, RequestID("r"), 0, reason="outrun")
    assert isinstance(posted, Posted)
    assert isinstance(lost, Voided)
    late = made.post(NOW, RequestID("r"), 0, outcome=outcome(), work=WORK)
    assert code(late) == "already_settled"
    assert (window(made).used, window(made).held) == (30, 0)


# Cost.


def test_cost_accrues_once_per_interval() -> None:
    made = ledger()
    first, second = accrue(made, 0, 10), accrue(made, 10, 20, energy=0)
    assert accrue(made, 0, 10) is first
    assert accrue(made, 10, 20, energy=0) is second
    for start, stop in ((0, 11), (5, 7), (-5, 1), (19, 30)):
        with pytest.raises(AssertionError, match="conflict"):
            accrue(made, start, stop)
    assert first.transfers() == (
        ("cost:pool:energy", "supplier", 5),
        ("cost:pool:capital", "supplier", 6),
    )
    assert second.transfers() == (("cost:pool:capital", "supplier", 6),)


def test_cost_before_what_is_remembered_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "ACCRUALS_MAX", 2)
    made = ledger()
    for start in (0, 20, 10, 30):
        accrue(made, start, start + 10)
    with pytest.raises(AssertionError, match="conflict"):
        accrue(made, 5, 10)


# Recovery.


def test_applying_the_entries_rebuilds_the_ledger_even_twice() -> None:
    made, entries = story()
    rebuilt = ledger()
    for _ in range(2):
        for entry in entries:
            rebuilt.apply(entry)
    # The store says what was used; the open holds come from the entries.
    rebuilt.set_limits(
        msgspec.structs.replace(each, used=window(made, each.limit.limit).used)
        for each in story_limits()
    )
    rebuilt.check()
    assert same(rebuilt, made)


def test_what_follows_a_reading_of_the_limits_is_counted() -> None:
    made, entries = story()
    rebuilt = ledger(limits=story_limits())
    rebuilt.apply(entries[0])
    assert window(rebuilt, "tokens").held == 0
    rebuilt.set_limits([])
    rebuilt.set_limits(story_limits())
    assert window(rebuilt, "tokens").held == 30
    rebuilt.apply(entries[3])
    assert (window(rebuilt, "tokens").held, window(rebuilt, "tokens").used) == (0, 30)
    assert window(made, "tokens").held == 30


WRONG: list[tuple[Callable[[list[Entry]], Entry], str]] = [
    (lambda e: msgspec.structs.replace(e[0], hold_nanodollars=1), "contradicts"),
    (lambda e: msgspec.structs.replace(e[3], worker_ns=8), "contradicts"),
    (lambda e: msgspec.structs.replace(e[4], energy_nanodollars=8), "overlaps"),
    (lambda e: msgspec.structs.replace(e[6], request=R), "not reserved"),
    (
        lambda e: msgspec.structs.replace(e[6], request="open", reserved_unix_ns=1),
        "of another",
    ),
    (
        lambda e: msgspec.structs.replace(
            e[6], request="open", payer=msgspec.structs.replace(e[6].payer, key="other")
        ),
        "of another",
    ),
    (lambda e: msgspec.structs.replace(e[3], request="open", charged_nanodollars=1), "sums"),
    (lambda e: msgspec.structs.replace(e[3], request="open", credited_nanodollars=1), "sums"),
    (lambda e: msgspec.structs.replace(e[3], request="open", ad_income_nanodollars=1), "sums"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_entries_that_do_not_add_up_are_corrupt(
    wrong: Callable[[list[Entry]], Entry], message: str
) -> None:
    made, entries = story()
    with pytest.raises(LedgerCorrupt, match=message):
        made.apply(wrong(entries))


# Taking back.


def test_taking_back_everything_leaves_an_empty_ledger() -> None:
    made, entries = story()
    empty = ledger(limits=story_limits())
    seen: list[list[tuple[object, ...]]] = []
    for entry in reversed(entries):
        made.retract(entry)
        made.check()
        seen.append(numbers(made))
    assert same(made, empty)
    # Made again, and each step is what it was when taken back.
    again = ledger(limits=story_limits())
    steps = [numbers(again)]
    for request, tier in (("a", Tier.HIGH), ("b", Tier.HIGH), ("c", Tier.HIGH)):
        reserve(again, request, tier=tier)
        steps.append(numbers(again))
    assert seen[::-1][:4] == steps


def test_a_hold_taken_back_takes_its_settlement_with_it() -> None:
    made = ledger(limits=LIMITS)
    hold, posted = reserve(made), post(made)
    made.retract(hold)
    made.retract(posted)
    made.retract(hold)
    assert same(made, ledger(limits=LIMITS))
    assert code(try_post(made)) == "not_reserved"


def test_taking_back_what_is_not_here_changes_nothing() -> None:
    made, entries = story()
    other, _ = story()
    stranger = ledger()
    cost = accrue(stranger, 50, 60)
    made.retract(cost)
    made.retract(msgspec.structs.replace(entries[3], worker_ns=9))
    made.retract(msgspec.structs.replace(entries[0], owner="else"))
    made.retract(msgspec.structs.replace(entries[8], owner="else"))
    made.retract(msgspec.structs.replace(entries[0], request="else"))
    made.retract(msgspec.structs.replace(cost, pool="elsewhere"))
    assert same(made, other)


def test_open_holds_are_in_one_order_whatever_was_taken_back() -> None:
    made = ledger()
    reserve(made, "later", unix_ns=NOW + 1)
    holds = [reserve(made, "b", attempt=attempt, unix_ns=NOW + 1) for attempt in (1, 0)]
    reserve(made, "a", unix_ns=NOW + 2)
    before = made.open_holds()
    assert [(hold.request, hold.attempt) for hold in before] == [
        ("b", 0),
        ("b", 1),
        ("later", 0),
        ("a", 0),
    ]
    for request in ("later", "a"):
        made.retract(void(made, request))
    assert made.open_holds() == before
    stored = Stored()
    stored.adopt(reversed(before))
    stored.admit(holds)
    assert stored.open_holds() == list(before)


def test_a_void_that_was_taken_back_can_be_posted() -> None:
    made = ledger()
    reserve(made)
    voided = void(made)
    made.retract(voided)
    assert isinstance(post(made), Posted)


def test_a_cost_that_was_taken_back_can_be_written_again() -> None:
    made = ledger()
    cost = accrue(made)
    made.retract(cost)
    assert isinstance(accrue(made, 0, 11), CostAccrued)


# Limits that change.


def test_a_new_limit_holds_what_open_reservations_under_it_hold() -> None:
    made = ledger(key_record(), key_record("other", team=None))
    reserve(made, "a")
    reserve(made, "b", key="other", tier=Tier.FREE)
    made.set_limits(
        [
            state(limit(), used=7),
            state(limit("money", unit="nanodollars", amount=10**9)),
            state(limit("team", "team:tenant/team")),
            state(limit("tier", tier=Tier.FREE)),
            state(limit("next"), unix_ns=NOW + 40 * 86_400 * 10**9),
        ]
    )
    made.check()
    assert used_and_held(made) == [(7, 60), (0, HOLD_NANODOLLARS), (0, 30), (0, 30), (0, 0)]
    post(made, "a")
    assert used_and_held(made) == [(37, 30), (CHARGE_NANODOLLARS, 0), (30, 0), (0, 30), (0, 0)]


def test_a_limit_that_stays_keeps_what_it_has_used_and_holds() -> None:
    made = ledger(limits=LIMITS)
    reserve(made, "a")
    post(made, "a")
    reserve(made, "b")
    before = used_and_held(made)
    made.set_limits([state(limit(amount=7), used=1000), LIMITS[1]])
    assert used_and_held(made) == before
    assert window(made).allowed == 7
    made.check()


def test_a_limit_that_was_lifted_is_forgotten_and_begins_anew() -> None:
    made = ledger(limits=LIMITS)
    reserve(made)
    made.set_limits([])
    assert made.windows() == ()
    made.set_limits(LIMITS)
    made.check()
    assert used_and_held(made) == [(0, 30), (0, HOLD_NANODOLLARS)]
    post(made)
    made.check()
    assert used_and_held(made) == [(30, 0), (CHARGE_NANODOLLARS, 0)]


def test_a_leased_limit_that_was_lifted_takes_nothing_from_the_others() -> None:
    made = ledger(limits=LIMITS, leased=True)
    for each in made.windows():
        assert made.grant(each.limit.limit, each.start_unix_ns, HOLD_NANODOLLARS)
    reserve(made)
    made.set_limits(LIMITS[1:])
    assert used_and_held(made) == [(0, HOLD_NANODOLLARS)]
    post(made)
    made.check()
    assert used_and_held(made) == [(CHARGE_NANODOLLARS, 0)]


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({"unit": "nanodollars", "amount": 10**9}, HOLD_NANODOLLARS),
        ({"period": "day"}, 30),
        ({"node": "key:key"}, 30),
        ({"node": "key:other"}, 0),
        ({"tier": Tier.ULTRA}, 0),
    ],
)
def test_a_limit_that_counts_something_else_begins_anew(
    changes: dict[str, object], held: int
) -> None:
    made = ledger(limits=[state(limit(), used=3)])
    reserve(made)
    made.set_limits([state(limit(**changes), used=5)])
    made.check()
    assert used_and_held(made) == [(5, held)]
    void(made)
    made.check()
    assert used_and_held(made) == [(5, 0)]


def test_a_reading_from_before_the_window_began_does_not_empty_it() -> None:
    hour = limit(period="hour", amount=60)
    made = ledger(limits=[state(hour)])
    later = NOW + 3600 * 10**9
    reserve(made, unix_ns=later)
    post(made)
    made.set_limits([state(msgspec.structs.replace(hour, amount=50), used=0)])
    assert (window(made).used, window(made).allowed) == (30, 50)
    assert window(made).start_unix_ns > NOW
    assert code(try_reserve(made, "b", unix_ns=later)) == "quota_exceeded"


def test_a_reading_of_a_later_window_begins_it() -> None:
    made = ledger(limits=[state(limit(period="hour"), used=5)])
    reserve(made, "a")
    later = NOW + 3600 * 10**9
    made.set_limits([state(limit(period="hour"), unix_ns=later, used=7)])
    made.check()
    assert used_and_held(made) == [(7, 0)]
    reserve(made, "b", unix_ns=later)
    assert used_and_held(made) == [(7, 30)]


# Checking.


def spoil_held(made: Ledger) -> None:
    made.windows()[0].held += 1


def spoil_used(made: Ledger) -> None:
    made.windows()[0].used = -1


@pytest.mark.parametrize("spoil", [spoil_held, spoil_used])
def test_the_check_notices_each_sum(spoil: Callable[[Ledger], None]) -> None:
    made, _ = story()
    made.check()
    spoil(made)
    with pytest.raises(LedgerCorrupt, match="open reservations hold"):
        made.check()


def test_a_key_shows_its_view_without_its_secret() -> None:
    record = key_record()
    assert record.secret_sha256 not in repr(record.view())
    assert record.view().team == "team"
    assert ledger().key(KeyID("key")) == record
    assert ledger().key(KeyID("nobody")) is None


def test_a_key_without_limits_has_no_scopes() -> None:
    record = key_record(labels=("eu",))
    assert (record.scopes(), record.view().scopes) == (None, None)


@pytest.mark.parametrize(
    "limit",
    [
        {"models": (ModelName("m"),)},
        {"tiers": (Tier.HIGH,)},
        {"networks": ("10.0.0.0/8",)},
        {"expires_unix_ns": 0},
    ],
)
def test_each_limit_of_a_key_is_a_scope(limit: dict[str, object]) -> None:
    scopes = key_record(**limit).view().scopes
    assert scopes is not None
    ((name, value),) = limit.items()
    told = getattr(scopes, name)
    assert (told if name == "expires_unix_ns" else tuple(map(str, told))) == value


def test_an_old_secret_ends_with_its_time_or_with_its_key() -> None:
    record = key_record(old_secret_sha256="0" * 64, old_until_unix_ns=5, models=(ModelName("m"),))
    assert record.secrets_sha256 == ("0" * 64, record.secret_sha256)
    assert key_record().secrets_sha256 == (record.secret_sha256,)
    old, new = record.old_view().scopes, record.view().scopes
    assert old is not None
    assert new is not None
    assert (old.expires_unix_ns, old.replaced, old.models) == (5, True, frozenset({"m"}))
    assert (new.expires_unix_ns, new.replaced) == (None, False)
    for expires, until in ((4, 4), (9, 5)):
        limited = msgspec.structs.replace(record, expires_unix_ns=expires, models=())
        old = limited.old_view().scopes
        assert old is not None
        assert (old.expires_unix_ns, old.replaced) == (until, until == 5)


def test_a_ledger_answers_with_its_entries() -> None:
    _, entries = story()
    kinds = {Reserved, Posted, Voided, CostAccrued}
    assert {type(entry) for entry in entries} == kinds
