from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from tests.ledger.ledger_samples import (
    BOOK,
    MODEL,
    NEVER,
    POOL,
    accrue,
    book,
    key_record,
    ledger,
    order,
    post,
    reserve,
    same,
    story,
    try_post,
)
from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.ids import KeyID, RequestID, TenantID
from tokenworks.core.slo import Measured, Tier
from tokenworks.ledger import ledger as ledger_module
from tokenworks.ledger.accounts import Balance
from tokenworks.ledger.entries import Entry, Posted, Reserved, Voided
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.quotas import KeyUse, QuotaNumbers, Refused

KEY = KeyID("key")
R = RequestID("r")


def code(result: object) -> str:
    assert isinstance(result, Refused), result
    return result.code


# Reserving.


def test_a_hold_is_the_most_a_request_can_use() -> None:
    made = ledger()
    hold = reserve(made)
    assert (hold.hold_tokens, hold.owner, hold.expires_ns) == (30, "me", 100)
    # (10 x 1.200001 + 20 x 6.000007) dollars per 1M tokens
    assert hold.hold_nanodollars == 132_000
    assert made.use_of(KEY) == KeyUse(held_tokens=30, held_nanodollars=132_000)
    assert made.pending() == {"tenant": 132_000}
    assert made.balances() == {}


def test_an_unknown_or_revoked_key_and_an_unpriced_model_are_refused() -> None:
    made = ledger(key_record(), key_record("old", revoked_unix_ns=1))
    refused = [
        made.reserve(0, 1, order(key="nobody"), BOOK, 1),
        made.reserve(0, 1, order(key="old"), BOOK, 1),
        made.reserve(0, 1, order(model="unheard of"), BOOK, 1),
    ]
    assert [code(result) for result in refused] == [
        "invalid_api_key",
        "invalid_api_key",
        "model_not_found",
    ]
    assert made.uses() == {}


@pytest.mark.parametrize(
    ("quotas", "numbers"),
    [
        (
            {"tokens_quota": 89},
            QuotaNumbers(unit="tokens", quota=89, used=30, held=30, asked=30),
        ),
        (
            {"tokens_quota": 90, "nanodollars_quota": 391_680 - 1},
            QuotaNumbers(
                unit="nanodollars", quota=391_679, used=127_680, held=132_000, asked=132_000
            ),
        ),
    ],
)
def test_a_quota_is_hard(quotas: dict[str, int], numbers: QuotaNumbers) -> None:
    made = ledger(key_record(**quotas))
    reserve(made, "a")
    assert post(made, "a").charged_nanodollars == 127_680
    reserve(made, "b")
    refused = made.reserve(0, 1, order("c"), BOOK, 1)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.quota) == ("quota_exceeded", numbers)
    made.void(1, RequestID("b"), reason="rejected")
    reserve(made, "c")


def test_a_quota_can_be_used_to_its_last_token() -> None:
    made = ledger(key_record(tokens_quota=30, nanodollars_quota=132_000))
    reserve(made)
    post(made, cached=0)
    assert made.use_of(KEY) == KeyUse(used_tokens=30, used_nanodollars=132_000)


def test_open_holds_are_bounded() -> None:
    made = ledger(open_holds_max=1)
    reserve(made, "a")
    assert code(made.reserve(0, 1, order("b"), BOOK, 1)) == "capacity_exceeded"
    post(made, "a")
    reserve(made, "b")


def test_reserving_again_returns_the_open_hold_only() -> None:
    made = ledger()
    hold = reserve(made)
    assert made.reserve(50, 60, order(), book(name="next"), 70) is hold
    assert made.use_of(KEY).held_tokens == 30
    assert code(made.reserve(0, 1, order(output_max=21), BOOK, 1)) == "conflict"
    second = made.reserve(0, 1, order(), BOOK, 1, attempt=1)
    assert isinstance(second, Reserved)
    assert len(made.open_holds()) == 2
    post(made)
    assert code(made.reserve(0, 1, order(), BOOK, 1)) == "already_settled"


# Posting.


def test_an_answer_is_billed_at_the_delivered_tier() -> None:
    made = ledger()
    reserve(made, tier=Tier.ULTRA)
    # 101 gaps at 100 tokens/s take 1.01 s: premium is met, ultra is not.
    slow = Measured(ttft_ns=5, decode_ns=1_010_000_000, output_tokens=102)
    entry = post(made, output=20, measured=slow)
    assert (entry.tier_asked, entry.tier_delivered) == (Tier.ULTRA, Tier.PREMIUM)
    assert entry.price == BOOK.prices[MODEL][Tier.PREMIUM]
    # 6 uncached at $9, 4 cached at $0.9 and 20 output at $45 per 1M tokens
    assert entry.charged_nanodollars == 6 * 9_000 + 4 * 900 + 20 * 45_000
    assert made.balances() == {
        "revenue:premium": Balance(0, entry.charged_nanodollars),
        "wallet:tenant": Balance(entry.charged_nanodollars, 0),
    }
    assert made.use_of(KEY).used_tokens == 30


def test_advertisers_pay_for_answers_that_were_asked_for_as_free() -> None:
    made = ledger()
    reserve(made, "free", tier=Tier.FREE)
    reserve(made, "paid")
    free, fallen = post(made, "free"), post(made, "paid", measured=NEVER)
    assert (free.charged_nanodollars, free.ad_income_nanodollars) == (0, 10_000)
    assert (fallen.tier_delivered, fallen.ad_income_nanodollars) == (Tier.FREE, 0)
    assert made.balances() == {"ad_income": Balance(0, 10_000), "ad_network": Balance(10_000, 0)}


def test_a_client_that_leaves_pays_for_what_was_made() -> None:
    made = ledger()
    reserve(made, "some")
    reserve(made, "none")
    some, none = (
        post(made, "some", output=5, ending="disconnected"),
        post(made, "none", output=0, ending="disconnected", measured=NEVER),
    )
    assert some.charged_nanodollars == 37_680
    assert (none.tier_delivered, none.charged_nanodollars) == (Tier.FREE, 0)
    assert made.use_of(KEY).used_tokens == 15 + 10


def test_a_worker_that_breaks_off_bills_nothing_and_its_usage_is_kept() -> None:
    made = ledger()
    reserve(made, "paid")
    reserve(made, "free", tier=Tier.FREE)
    for entry in (post(made, "paid", ending="failed"), post(made, "free", ending="failed")):
        assert (entry.tier_delivered, entry.charged_nanodollars) == (Tier.FREE, 0)
        assert (entry.ad_income_nanodollars, entry.output_tokens) == (0, 20)
        assert (entry.cost_nanodollars, entry.counted_tokens) == (3, 0)
    assert made.uses() == {}


def test_usage_beyond_the_hold_is_billed_and_counted_in_full() -> None:
    made = ledger(key_record(tokens_quota=30))
    reserve(made)
    entry = post(made, output=100)
    assert entry.charged_nanodollars == 607_681
    assert made.use_of(KEY).used_tokens == 110
    assert code(made.reserve(0, 1, order("b", input_max=0, output_max=0), BOOK, 1)) == (
        "quota_exceeded"
    )


# Settling twice, or not at all.


def test_a_repeated_settlement_returns_the_first() -> None:
    made = ledger()
    reserve(made, "a")
    reserve(made, "b")
    posted = post(made, "a")
    voided = made.void(5, RequestID("b"), reason="failed")
    before = made.balances(), made.uses()
    assert try_post(made, "a") is posted
    assert made.void(99, RequestID("b"), reason="failed") is voided
    assert (made.balances(), made.uses()) == before


def test_a_settlement_that_contradicts_the_first_is_refused() -> None:
    made = ledger()
    reserve(made, "a")
    reserve(made, "b")
    post(made, "a")
    made.void(5, RequestID("b"), reason="failed")
    before = made.balances(), made.uses()
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
    assert (made.balances(), made.uses()) == before


def test_only_the_latest_settlements_are_remembered() -> None:
    made = ledger(settled_max=1)
    for request in ("a", "b"):
        reserve(made, request)
        post(made, request)
    assert code(try_post(made, "a")) == "not_reserved"
    assert isinstance(try_post(made, "b"), Posted)


def test_holds_expire_with_time_and_with_their_owner() -> None:
    made, entries = story()
    late = made.expire(100, 7)
    assert [(entry.request, entry.reason) for entry in late] == [("open", "expired")]
    assert made.expire(100, 7) == []
    assert code(try_post(made, "open")) == "already_settled"
    rebuilt = ledger(owner="next")
    for entry in entries:
        rebuilt.apply(entry)
    mine = reserve(rebuilt, "mine")
    assert rebuilt.expire(99, 7) == []
    assert rebuilt.void_orphans(7) == late
    assert rebuilt.open_holds() == (mine,)


# Cost.


def test_cost_accrues_once_per_interval() -> None:
    made = ledger()
    first, second = accrue(made, 0, 10), accrue(made, 10, 20, energy=0)
    assert accrue(made, 0, 10) is first
    assert accrue(made, 10, 20, energy=0) is second
    for start, stop in ((0, 11), (5, 7), (-5, 1), (19, 30)):
        refused = made.accrue(
            3,
            POOL,
            from_unix_ns=start,
            until_unix_ns=stop,
            energy_nanodollars=5,
            capital_nanodollars=6,
        )
        assert code(refused) == "conflict"
    assert made.balances() == {
        "cost:pool:capital": Balance(12, 0),
        "cost:pool:energy": Balance(5, 0),
        "supplier": Balance(0, 17),
    }


def test_cost_before_what_is_remembered_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "ACCRUALS_MAX", 2)
    made = ledger()
    for start in (0, 20, 10, 30):
        accrue(made, start, start + 10)
    with pytest.raises(AssertionError, match="conflict"):
        accrue(made, 5, 10)
    assert made.balances()["supplier"] == Balance(0, 44)


# Recovery.


def test_applying_the_entries_rebuilds_the_ledger_even_twice() -> None:
    made, entries = story()
    rebuilt = ledger()
    for _ in range(2):
        for entry in entries:
            rebuilt.apply(entry)
    rebuilt.check()
    assert same(rebuilt, made)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda e: msgspec.structs.replace(e[0], hold_nanodollars=1), "contradicts"),
        (lambda e: msgspec.structs.replace(e[3], worker_ns=8), "contradicts"),
        (lambda e: msgspec.structs.replace(e[4], energy_nanodollars=8), "overlaps"),
        (lambda e: msgspec.structs.replace(e[6], request=R), "not reserved"),
        (lambda e: msgspec.structs.replace(e[7], request=RequestID("open")), "of another"),
        (
            lambda e: msgspec.structs.replace(
                e[3], request=RequestID("open"), charged_nanodollars=1
            ),
            "sums",
        ),
    ],
)
def test_entries_that_do_not_add_up_are_corrupt(
    wrong: Callable[[list[Entry]], Entry], message: str
) -> None:
    made, entries = story()
    entries[7] = msgspec.structs.replace(entries[7], tenant=TenantID("else"))
    with pytest.raises(LedgerCorrupt, match=message):
        made.apply(wrong(entries))


# Taking back.


def test_taking_back_everything_leaves_an_empty_ledger() -> None:
    made, entries = story()
    steps = [ledger()]
    for entry in entries:
        before = ledger()
        for earlier in entries[: entries.index(entry) + 1]:
            before.apply(earlier)
        steps.append(before)
    for entry, before in zip(reversed(entries), reversed(steps[:-1]), strict=True):
        made.retract(entry)
        made.check()
        assert made.balances() == before.balances()
        assert made.uses() == before.uses()
    assert same(made, ledger())


def test_a_hold_taken_back_takes_its_settlement_with_it() -> None:
    made = ledger()
    hold, posted = reserve(made), post(made)
    made.retract(hold)
    made.retract(posted)
    made.retract(hold)
    assert same(made, ledger())
    assert code(try_post(made)) == "not_reserved"


def test_taking_back_what_is_not_here_changes_nothing() -> None:
    made, entries = story()
    other, _ = story()
    stranger = ledger()
    cost = accrue(stranger, 50, 60)
    made.retract(cost)
    made.retract(msgspec.structs.replace(entries[3], worker_ns=9))
    made.retract(msgspec.structs.replace(entries[0], owner="else"))
    made.retract(msgspec.structs.replace(cost, pool="elsewhere"))
    assert same(made, other)


def test_a_void_that_was_taken_back_can_be_posted() -> None:
    made = ledger()
    reserve(made)
    voided = made.void(3, R, reason="expired")
    assert isinstance(voided, Voided)
    made.retract(voided)
    assert isinstance(post(made), Posted)


# Checking.


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda made: made._uses.update({KEY: KeyUse()}), "open reservations"),
        (
            lambda made: made._uses.update({KEY: made.use_of(KEY).add(used_nanodollars=1)}),
            "wallets and keys",
        ),
        (
            lambda made: made._accounts._balances.update(
                {"revenue:high": Balance(0, 0), "wrong": made.balances()["revenue:high"]}
            ),
            "revenue and keys",
        ),
        (
            lambda made: made._accounts._balances.update(
                {"ad_income": Balance(0, 0), "wrong": made.balances()["ad_income"]}
            ),
            "advertisers",
        ),
        (
            lambda made: made._accounts._balances.update(
                {"supplier": Balance(0, 0), "wrong": made.balances()["supplier"]}
            ),
            "costs and supplier",
        ),
    ],
)
def test_the_check_notices_each_sum(spoil: Callable[[Ledger], None], message: str) -> None:
    made, _ = story()
    made.check()
    spoil(made)
    with pytest.raises(LedgerCorrupt, match=message):
        made.check()


def test_a_key_shows_its_view_without_its_secret() -> None:
    record = key_record()
    assert record.secret_sha256 not in repr(record.view())
    assert ledger().key(KEY) == record
    assert ledger().key(KeyID("nobody")) is None
