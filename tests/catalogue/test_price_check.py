"""What is odd about price books is found, and nothing else."""

from __future__ import annotations

import datetime
from importlib import resources

import pytest

from tokenworks.catalogue.price_book import PriceBook, PriceBooks, parse_price_book
from tokenworks.catalogue.price_check import (
    Change,
    InForce,
    Sold,
    changes,
    check_books,
    in_force,
    quotes,
    usd,
)
from tokenworks.core.ids import ModelName, TenantID
from tokenworks.core.slo import Tier

TEXT = resources.files("tokenworks.catalogue").joinpath("data/laptop.toml").read_text()
TODAY = datetime.date(2027, 1, 1)
MODEL = ModelName("foreman")
DAY_NS = 24 * 3_600_000_000_000


def book(day: str = "2026-11-24", *, more: str = "", **changed: str) -> PriceBook:
    text = TEXT.replace("effective = 2026-11-24", f"effective = {day}")
    for before, after in changed.items():
        assert before.replace("__", " = ") in text, before
        text = text.replace(before.replace("__", " = "), after, 1)
    return parse_price_book(f"{text}\n{more}")


RULES = """
[[off_peak]]
name = "night"
hours_utc = [22, 6]
rate_ppm = 500_000
weekdays = ["sat"]
tiers = ["high"]
[batch]
rate_ppm = 500_000
[discount.acme]
rate_ppm = 900_000
"""


def words(*books: PriceBook, sold: dict[tuple[ModelName, Tier], Sold] | None = None) -> list[str]:
    return [f"{each.level}: {each.message}" for each in check_books(books, sold or {}, TODAY)]


def test_the_shipped_book_is_not_odd() -> None:
    assert words(book()) == []
    assert in_force([book()]) == [
        InForce(book=book().price_id, since=datetime.date(2026, 11, 24), until=None)
    ]


def test_books_follow_each_other_by_their_days() -> None:
    later, first = book("2026-12-01"), book()
    assert [
        (each.since.day, each.until and each.until.day) for each in in_force([later, first])
    ] == [*((24, 1), (1, None))]


def test_two_books_from_one_day_clash() -> None:
    one, other = book(), book(more="# another")
    (said,) = words(one, other)
    assert said.startswith("error: holds from 2026-11-24, as laptop@")
    assert [each.book for each in in_force([one, other])] == [one.price_id]


def test_a_first_book_of_the_future_holds_already() -> None:
    assert words(book("2027-02-01")) == ["warning: is the first, and holds before 2027-02-01, too"]


def test_a_model_that_loses_its_price_is_told() -> None:
    both = book(more=TEXT[TEXT.index("[price.foreman.free]") :].replace("foreman", "other"))
    assert words(both, book("2026-12-01")) == ["warning: other has no price any more: not sold"]


def test_prices_that_fall_as_tiers_rise_are_told() -> None:
    (said,) = words(book(output_udollars_per_mtok__45_000_000="output_udollars_per_mtok = 1"))
    assert said == ("warning: foreman: premium costs less than high: output $0.000001 after $6.00")


def test_cached_input_dearer_than_input_is_told() -> None:
    odd = book(cached_input_udollars_per_mtok__60_000="cached_input_udollars_per_mtok = 700_000")
    assert "warning: foreman medium: cached input $0.70 is dearer than input $0.60" in words(odd)


def test_a_tier_that_earns_less_than_it_costs_is_told() -> None:
    tokens = (1_000, 0, 1_000, 0, 0, 0, 0, 0, 0)
    high = Sold(tokens=tokens, cost_nanodollars=7_200_001)
    (said,) = words(book(), sold={(MODEL, Tier.HIGH): high})
    assert said == (
        "warning: foreman high is sold below cost: at list prices the tokens sold until now earn "
        "$7.20 per 1M output tokens and cost $7.200001"
    )
    even = Sold(tokens=tokens, cost_nanodollars=7_200_000)
    nothing = Sold(tokens=(5, *tokens[3:], 0, 0), cost_nanodollars=9)
    assert nothing.output_tokens == 0
    assert (
        words(
            book(),
            sold={
                (MODEL, Tier.HIGH): even,
                (MODEL, Tier.ULTRA): nothing,
                (ModelName("gone"), Tier.HIGH): high,
            },
        )
        == []
    )


def test_advertisers_pay_for_the_free_tier() -> None:
    tokens = (1_000, 0, 1_000, 0, 0, 0, 0, 0, 0)
    enough, short = (Sold(tokens=tokens, cost_nanodollars=cost) for cost in (500_000, 600_000))
    assert words(book(), sold={(MODEL, Tier.FREE): enough}) == []
    (said,) = words(book(), sold={(MODEL, Tier.FREE): short})
    assert "earn $0.50 per 1M output tokens and cost $0.60" in said


def test_what_changes_is_each_figure_that_differs() -> None:
    first, second = book(), book("2026-12-01", ttft_ms__8000="ttft_ms = 9000", more=RULES)
    found = {(each.what, each.before, each.after) for each in changes([second, first])}
    assert found == {
        ("free ttft_ns", "8000000000", "9000000000"),
        ("batch rate_ppm", "1000000", "500000"),
        ("off-peak night", None, "500000 ppm, sat 22-6 UTC, for high"),
        ("discount acme", None, "900000 ppm"),
    }
    last = book("2026-12-02")
    assert Change(
        book=last.price_id, what="discount acme", before="900000 ppm", after=None
    ) in changes([second, last])
    assert changes([first]) == []


def test_a_class_is_told_only_where_it_has_a_price_of_its_own() -> None:
    dear = book(
        "2026-12-01",
        output_udollars_per_mtok__6_000_000=(
            "output_udollars_per_mtok = 7_000_000\nreasoning_udollars_per_mtok = 8_000_000"
        ),
    )
    assert [(each.what, each.before, each.after) for each in changes([book(), dear])] == [
        ("foreman high output", "$6.00", "$7.00"),
        ("foreman high reasoning", "$6.00", "$8.00"),
    ]
    more = book(
        "2026-12-02", more=TEXT[TEXT.index("[price.foreman.free]") :].replace("foreman", "other")
    )
    whats = [each.what for each in changes([book(), more])]
    assert "other ultra output" in whats
    assert not any("reasoning" in what for what in whats)
    assert in_force([]) == []


@pytest.mark.parametrize(
    ("tenant", "at_h", "batch", "tier", "rate_ppm"),
    [
        ("acme", 0, False, Tier.HIGH, 900_000),
        ("other", 0, False, Tier.HIGH, 1_000_000),
        ("other", 48 + 23, False, Tier.HIGH, 500_000),  # 1970-01-03 was a Saturday
        ("other", 48 + 23, False, Tier.MEDIUM, 1_000_000),
        ("acme", 48 + 23, True, Tier.HIGH, 225_000),
    ],
)
def test_a_quote_is_the_list_price_times_the_rate(
    tenant: str, at_h: int, batch: bool, tier: Tier, rate_ppm: int
) -> None:
    one = book("1970-01-01", more=RULES)
    found, rows = quotes(PriceBooks([one]), TenantID(tenant), at_h * DAY_NS // 24, batch=batch)
    (quote,) = [row for row in rows if row.tier is tier]
    assert (found, quote.rate_ppm) == (one, rate_ppm)
    listed = one.prices[MODEL][tier].output_udollars_per_mtok
    assert quote.price.output_udollars_per_mtok == listed * rate_ppm // 1_000_000


def test_dollars_are_exact() -> None:
    assert usd(1_234_567) == "$1.234567"
