"""A package is right when it is parsed, or it is refused in words that help."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.catalogue.packages import (
    EXAMPLE,
    LIMITS_MAX,
    PACKAGES_BYTES_MAX,
    PackageLimit,
    parse_packages,
)
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.slo import Tier


def test_the_example_is_packages() -> None:
    found = parse_packages(EXAMPLE)
    assert list(found) == ["pro", "trial"]
    pro = found["pro"]
    assert (pro.name, pro.about) == ("pro", "An engineer who works with agents all day")
    assert pro.limits == (
        PackageLimit(
            unit="tokens",
            period="month",
            amount=5_000_000,
            tier=Tier.PREMIUM,
            carry_over_max=1_000_000,
        ),
        PackageLimit(
            unit="nanodollars", period="hour", amount=20 * 10**9, tier=None, carry_over_max=0
        ),
    )


def test_dollars_are_exact_and_may_be_carried_over() -> None:
    text = '[[package.p.limit]]\nper = "month"\nusd = "2.50"\ncarry_over = "0.000000001"'
    (limit,) = parse_packages(text)["p"].limits
    assert (limit.amount, limit.carry_over_max) == (2_500_000_000, 1)
    (limit,) = parse_packages('[[package.p.limit]]\nper = "day"\nusd = 3')["p"].limits
    assert limit.amount == 3 * 10**9


def limit(*lines: str) -> str:
    return "\n".join(("[[package.p.limit]]", *lines))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("package =", "cannot be read"),
        ("", "package"),
        ("[package.p]", "limit"),
        ("[package.p]\nlimit = []", "has 0 limits"),
        (limit('per = "day"', "tokens = 1") * 1 + "\ncolour = 1", "colour"),
        (limit('per = "week"', "tokens = 1"), "week"),
        (limit('per = "day"', "tokens = 1", 'tier = "golden"'), "golden"),
        (limit('per = "day"'), "either"),
        (limit('per = "day"', "tokens = 1", "usd = 1"), "either"),
        (limit('per = "day"', "tokens = -1"), "tokens is -1"),
        (limit('per = "day"', "tokens = 9223372036854775807"), "tokens is 9"),
        (limit('per = "day"', "usd = -1"), "usd is -1"),
        (limit('per = "day"', "usd = 1.5"), "cannot be read"),
        (limit('per = "day"', 'usd = "much"'), "usd is 'much'"),
        (limit('per = "day"', "tokens = 1", "carry_over = 1"), "only months do"),
        (limit('per = "month"', "tokens = 1", 'carry_over = "x"'), "carry_over is 'x'"),
        ("\n".join([limit('per = "day"', "tokens = 1")] * 2), "two limits"),
        ("\n".join([limit('per = "day"', "tokens = 1")] * (LIMITS_MAX + 1)), "has 65 limits"),
        ("#" * (PACKAGES_BYTES_MAX + 1), "more than"),
    ],
)
def test_wrong_packages_are_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse_packages(text)
    assert said in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_packages_or_is_refused(text: str) -> None:
    with pytest.raises(ConfigInvalid):
        parse_packages(text)
