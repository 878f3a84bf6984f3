"""A promise is kept up to its very last nanosecond, and the tier follows from the promises."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.kept_promises import delivered_tier, promise_met
from tokenworks.core.slo import Measured, Promise, Tier
from tokenworks.core.units import NS_PER_S


def promise(ttft_ns: int = NS_PER_S, speed: int = 100, grace_ns: int = 0) -> Promise:
    return Promise(
        ttft_ns=ttft_ns,
        interactivity_tokens_per_s=speed,
        grace_ns=grace_ns,
        patience_ns=0,
        output_tokens_default=1,
    )


def measured(ttft_ns: int | None = 0, decode_ns: int = 0, tokens: int = 1) -> Measured:
    return Measured(ttft_ns=ttft_ns, decode_ns=decode_ns, output_tokens=tokens)


def test_tiers_rank_from_free_to_ultra() -> None:
    assert [tier.value for tier in sorted(Tier, key=lambda t: t.rank)] == [
        "free",
        "medium",
        "high",
        "premium",
        "ultra",
    ]


def test_the_first_token_may_come_at_the_promised_instant_and_not_after() -> None:
    assert promise_met(promise(ttft_ns=5), measured(ttft_ns=5))
    assert not promise_met(promise(ttft_ns=5), measured(ttft_ns=6))


def test_an_answer_without_a_token_keeps_no_promise() -> None:
    assert not promise_met(promise(), measured(ttft_ns=None, tokens=0))


def test_one_token_has_no_gap_so_only_the_grace_may_pass() -> None:
    assert promise_met(promise(grace_ns=3), measured(decode_ns=3))
    assert not promise_met(promise(grace_ns=3), measured(decode_ns=4))


positive = st.integers(1, 10**6)
durations = st.integers(0, 10**12)


@given(st.integers(1, 10**5), positive, durations, durations)
def test_decode_time_is_the_gaps_at_the_promised_speed_and_the_grace(
    tokens: int, speed: int, grace_ns: int, decode_ns: int
) -> None:
    kept = promise_met(
        promise(speed=speed, grace_ns=grace_ns), measured(decode_ns=decode_ns, tokens=tokens)
    )
    # (decode - grace) <= (n - 1) / speed, in integers
    assert kept == ((decode_ns - grace_ns) * speed <= (tokens - 1) * NS_PER_S)


@given(st.integers(1, 10**5), positive, durations, durations, durations, durations)
def test_an_answer_in_one_piece_may_take_as_long_as_both_bounds(
    tokens: int, speed: int, promised_ns: int, grace_ns: int, ttft_ns: int, decode_ns: int
) -> None:
    promised = promise(ttft_ns=promised_ns, speed=speed, grace_ns=grace_ns)
    total_ns = ttft_ns + decode_ns
    kept = promise_met(promised, measured(ttft_ns=None, decode_ns=total_ns, tokens=tokens))
    # total - ttft - grace <= (n - 1) / speed, in integers
    assert kept == ((total_ns - promised_ns - grace_ns) * speed <= (tokens - 1) * NS_PER_S)
    # What keeps both bounds keeps this one.
    seen = measured(ttft_ns=ttft_ns, decode_ns=decode_ns, tokens=tokens)
    assert kept or not promise_met(promised, seen)


PROMISES = {
    tier: promise(ttft_ns=NS_PER_S // (tier.rank + 1), speed=50 * (tier.rank + 1)) for tier in Tier
}
answers = st.builds(
    measured,
    ttft_ns=st.one_of(st.none(), st.integers(0, 2 * NS_PER_S)),
    decode_ns=durations,
    tokens=st.integers(0, 10_000),
)


@given(st.sampled_from(Tier), answers)
def test_the_delivered_tier_is_the_highest_kept_and_not_above_the_asked(
    asked: Tier, answer: Measured
) -> None:
    delivered = delivered_tier(asked, PROMISES, answer)
    assert delivered.rank <= asked.rank
    for tier in Tier:
        if delivered.rank < tier.rank <= asked.rank:
            assert not promise_met(PROMISES[tier], answer)
    assert delivered is Tier.FREE or promise_met(PROMISES[delivered], answer)


@given(answers)
def test_asking_for_less_never_brings_more(answer: Measured) -> None:
    ranks = [delivered_tier(asked, PROMISES, answer).rank for asked in Tier]
    assert ranks == sorted(ranks)


def test_free_is_what_remains_when_nothing_was_kept() -> None:
    late = measured(ttft_ns=None, decode_ns=10 * NS_PER_S)
    assert delivered_tier(Tier.ULTRA, PROMISES, late) is Tier.FREE
