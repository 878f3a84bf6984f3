"""A price book is right when it is parsed, or it is refused in words that help."""

from __future__ import annotations

import datetime
import hashlib
import re
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.catalogue.price_book import (
    BOOK_BYTES_MAX,
    UDOLLARS_PER_MTOK_MAX,
    WINDOWS_MAX,
    PriceBook,
    PriceBooks,
    Window,
    parse_price_book,
)
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import ModelName, TenantID
from tokenworks.core.slo import Tier
from tokenworks.core.units import PPM

HOUR_NS = 3_600 * 10**9
MODEL = ModelName("foreman")
ACME = TenantID("acme")
TEXT = resources.files("tokenworks.catalogue").joinpath("data/laptop.toml").read_text()


def test_the_shipped_book_names_every_tier_of_every_model() -> None:
    book = parse_price_book(TEXT)
    assert list(book.promises) == list(Tier)
    assert book.prices
    assert all(list(rows) == list(Tier) for rows in book.prices.values())
    assert book.effective >= datetime.date(2026, 1, 1)
    assert book.text == TEXT


def test_the_shipped_book_has_the_prices_of_the_chart() -> None:
    rows = parse_price_book(TEXT).prices
    for prices in rows.values():
        dollars = [prices[tier].output_udollars_per_mtok // 1_000_000 for tier in Tier]
        assert dollars == [0, 3, 6, 45, 150]


def test_milliseconds_become_nanoseconds() -> None:
    promise = parse_price_book(TEXT).promises[Tier.FREE]
    ttft_ms = int(re.findall(r"^ttft_ms = (\d+)", TEXT, re.MULTILINE)[0])
    assert promise.ttft_ns == ttft_ms * 1_000_000


def test_the_price_id_is_the_name_and_the_hash_of_the_text() -> None:
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    assert parse_price_book(TEXT).price_id == f"laptop@{digest[:12]}"
    assert parse_price_book(TEXT + "\n# a word").price_id != parse_price_book(TEXT).price_id


def plus(more: str) -> str:
    return f"{TEXT}\n{more}\n"


def window(
    hours: tuple[int, int] = (22, 6),
    rate_ppm: int = 500_000,
    *,
    weekdays: list[str] | None = None,
    tiers: list[str] | None = None,
    models: list[str] | None = None,
) -> str:
    return (
        f'\n[[off_peak]]\nname = "night"\nhours_utc = {list(hours)}\nrate_ppm = {rate_ppm}\n'
        f"weekdays = {weekdays or []}\ntiers = {tiers or []}\nmodels = {models or []}\n"
    )


def discount(
    rate_ppm: int = 900_000, *, tiers: list[str] | None = None, models: list[str] | None = None
) -> str:
    return (
        f"\n[discount.acme]\nrate_ppm = {rate_ppm}\n"
        f"tiers = {tiers or []}\nmodels = {models or []}\n"
    )


def at(day: str, hour: int = 0) -> int:
    """A time in 2026 by its day, ``month-day``."""
    date = datetime.date.fromisoformat(f"2026-{day}")
    return ((date - datetime.date(1970, 1, 1)).days * 24 + hour) * HOUR_NS


def rate(
    book: PriceBook,
    unix_ns: int = 0,
    *,
    tier: Tier = Tier.HIGH,
    tenant: str = "acme",
    batch: bool = False,
    model: str = MODEL,
) -> int:
    return book.rate_ppm(TenantID(tenant), ModelName(model), tier, unix_ns, batch=batch)


def without(table: str) -> str:
    return re.sub(rf"(?s)\[{re.escape(table)}\].*?(?=\n\[|\Z)", "", TEXT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name =", "cannot be read"),
        (TEXT.replace("effective", "efective", 1), "efective"),
        (TEXT + "\n[tier.golden]\n", "golden"),
        (TEXT.replace("grace_ms", "grace_s", 1), "grace_s"),
        (re.sub(r"ad_income(\w+) = \S+", r"ad_income\1 = -1", TEXT), "ad_income"),
        (re.sub(r"grace_ms = \d+", "grace_ms = -1", TEXT, count=1), "[tier.free] grace_ms is -1"),
        (without("tier.high"), "[tier] lacks ['high']"),
        (without("price.foreman.ultra"), "[price.foreman] lacks ['ultra']"),
        (
            re.sub(r"output_udollars_per_mtok = 3_", "output_udollars_per_mtok = -3_", TEXT),
            "[price.foreman.medium] output_udollars_per_mtok",
        ),
        (re.sub(r"ttft_ms = \d+", "ttft_ms = 1", TEXT, count=1), "medium promises less than free"),
        (
            re.sub(r"tokens_per_s = \d+", "tokens_per_s = 9999", TEXT, count=1),
            "medium promises less than free",
        ),
        ("#" * (BOOK_BYTES_MAX + 1), "more than"),
        ("a = " + "[" * 100_000, "cannot be read"),
        (
            re.sub(r"(output_udollars_per_mtok) = 3_\S*", rf"\1 = {10**12 + 1}", TEXT),
            "[price.foreman.medium] output_udollars_per_mtok is 1000000000001, more than",
        ),
        (re.sub(r"ad_income(\w+) = \S+", rf"ad_income\1 = {10**12 + 1}", TEXT), "ad_income"),
        (
            TEXT.replace("[tier.ultra]", "[tier.ultra]\ncredit_ppm = 1_000_001"),
            "[tier.ultra] credit_ppm is 1000001",
        ),
        (plus("[batch]\nrate_ppm = -1"), "[batch] rate_ppm is -1"),
        (plus("[batch]\nrate = 1"), "rate"),
        (plus(discount(rate_ppm=1_000_001)), "[discount.acme] rate_ppm is 1000001"),
        (plus(discount(models=["x"])), "[discount.acme] names ['x'], which has no price"),
        (plus(discount(tiers=["golden"])), "golden"),
        (plus(window(rate_ppm=-1)), "[[off_peak]] 'night' rate_ppm is -1"),
        (plus(window(models=["x"])), "[[off_peak]] 'night' names ['x'], which has no price"),
        (plus(window(hours=(22, 25))), "[[off_peak]] 'night' hours_utc is (22, 25)"),
        (plus(window(hours=(-1, 5))), "[[off_peak]] 'night' hours_utc is (-1, 5)"),
        (plus(window(weekdays=["today"])), "today"),
        (plus(window() * (WINDOWS_MAX + 1)), "65 [[off_peak]] windows, more than 64"),
    ],
)
def test_a_wrong_book_is_refused_by_name(text: str, said: str) -> None:
    assert text != TEXT
    with pytest.raises(ConfigInvalid) as caught:
        parse_price_book(text)
    assert said in str(caught.value)
    assert "  " not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_a_book_or_is_refused(text: str) -> None:
    with pytest.raises(ConfigInvalid):
        parse_price_book(text)


# Prices.


def test_a_class_without_a_price_costs_what_its_kin_costs() -> None:
    price = parse_price_book(TEXT).prices[MODEL][Tier.HIGH]
    read, made = price.input_udollars_per_mtok, price.output_udollars_per_mtok
    assert read != made
    kin = [price.cache_write_udollars_per_mtok, price.audio_input_udollars_per_mtok]
    assert [*kin, price.image_input_udollars_per_mtok] == [read] * 3
    kin = [price.reasoning_udollars_per_mtok, price.audio_output_udollars_per_mtok]
    assert [*kin, price.image_output_udollars_per_mtok] == [made] * 3


def test_an_explicit_zero_is_a_price() -> None:
    names = ["cache_write", "reasoning", "audio_input", "image_input", "audio_output"]
    rows = "".join(f"{name}_udollars_per_mtok = {i}\n" for i, name in enumerate(names))
    text = TEXT.replace("[price.foreman.high]\n", f"[price.foreman.high]\n{rows}")
    assert text != TEXT
    price = parse_price_book(text).prices[MODEL][Tier.HIGH]
    assert [getattr(price, f"{name}_udollars_per_mtok") for name in names] == [0, 1, 2, 3, 4]


def test_credits_are_named_per_tier() -> None:
    text = TEXT.replace("[tier.ultra]", "[tier.ultra]\ncredit_ppm = 250_000")
    found = parse_price_book(text).credits_ppm
    assert found == {tier: 250_000 if tier is Tier.ULTRA else 0 for tier in Tier}


# Rates.


def test_without_rules_the_list_price_is_charged() -> None:
    book = parse_price_book(TEXT)
    assert rate(book) == rate(book, batch=True) == PPM
    assert book.rate_ppm_max(ACME, MODEL, 0, batch=False) == PPM


@pytest.mark.parametrize(
    ("hours", "inside"),
    [
        ((22, 6), {22, 23, 0, 1, 2, 3, 4, 5}),
        ((9, 12), {9, 10, 11}),
        ((0, 24), set(range(24))),
        ((7, 7), set(range(24))),
        ((24, 2), {0, 1}),
        ((23, 24), {23}),
        ((20, 0), {20, 21, 22, 23}),
    ],
)
def test_off_peak_hours_may_go_on_past_midnight(hours: tuple[int, int], inside: set[int]) -> None:
    book = parse_price_book(plus(window(hours)))
    found = {hour for hour in range(24) if rate(book, at("09-21", hour)) == 500_000}
    assert found == inside
    assert {rate(book, at("09-21", hour)) for hour in range(24)} <= {500_000, PPM}
    last = at("09-21", max(inside)) + HOUR_NS - 1
    assert rate(book, last) == 500_000


def test_a_window_belongs_to_the_day_on_which_it_began() -> None:
    # 2026-09-25 was a Friday.
    book = parse_price_book(plus(window((22, 6), weekdays=["fri", "sun"])))
    cheap = [
        (day, hour)
        for day in ("09-24", "09-25", "09-26", "09-27", "09-28")
        for hour in (5, 6, 21, 22)
        if rate(book, at(day, hour)) == 500_000
    ]
    assert cheap == [("09-25", 22), ("09-26", 5), ("09-27", 22), ("09-28", 5)]


def test_a_window_may_be_for_some_tiers_and_models() -> None:
    book = parse_price_book(plus(window((0, 24), tiers=["free", "high"], models=[MODEL])))
    assert [rate(book, tier=tier) for tier in Tier] == [500_000, PPM, 500_000, PPM, PPM]
    assert rate(book, model="else") == PPM
    row = Window(name="w", hours_utc=(0, 24), rate_ppm=0, models=(MODEL,))
    assert not row.holds(0, ModelName("else"), Tier.HIGH)


def test_of_several_windows_the_cheapest_counts() -> None:
    book = parse_price_book(plus(window((0, 24), 700_000) + window((2, 3), 300_000)))
    assert [rate(book, at("09-21", hour)) for hour in (1, 2, 3)] == [700_000, 300_000, 700_000]


def test_a_discount_is_one_tenants() -> None:
    book = parse_price_book(plus(discount(tiers=["high"], models=[MODEL])))
    assert [rate(book, tier=tier) for tier in Tier] == [PPM, PPM, 900_000, PPM, PPM]
    assert rate(book, tenant="else") == PPM
    assert rate(book, model="else") == PPM
    assert rate(parse_price_book(plus(discount())), model="else") == 900_000


def test_off_peak_batch_and_discount_multiply_and_round_once() -> None:
    rules = window((0, 24), 333_333) + discount(333_333) + "[batch]\nrate_ppm = 500_000"
    book = parse_price_book(plus(rules))
    # 0.333333 x 0.333333 x 0.5 = 0.0555554444445
    assert rate(book, batch=True) == 55_555
    assert rate(book) == 111_111
    assert rate(book, tenant="else", batch=True) == 166_666  # 166,666.5 to the even one
    assert book.rate_ppm_max(ACME, MODEL, 0, batch=True) == 55_555


def test_the_highest_rate_is_that_of_the_dearest_tier() -> None:
    book = parse_price_book(plus(window((0, 24), tiers=["high"]) + discount(tiers=["free"])))
    assert book.rate_ppm_max(ACME, MODEL, 0, batch=False) == PPM
    every = parse_price_book(plus(window((0, 24), tiers=["high"]) + window((0, 24), 600_000)))
    assert every.rate_ppm_max(ACME, MODEL, 0, batch=False) == 600_000


def test_a_price_may_be_a_dollar_a_token() -> None:
    text = re.sub(r"(ad_income\w+) = \S+", rf"\1 = {UDOLLARS_PER_MTOK_MAX}", TEXT)
    assert parse_price_book(text).ad_income_udollars_per_mtok == UDOLLARS_PER_MTOK_MAX


# Books by date.


def dated(day: str) -> PriceBook:
    return parse_price_book(re.sub(r"effective = \S+", f"effective = 2026-{day}", TEXT))


def test_the_book_in_force_is_the_latest_that_holds() -> None:
    spring, summer, autumn = dated("03-01"), dated("06-01"), dated("09-01")
    books = PriceBooks([summer, autumn, spring])
    assert books.all() == (spring, summer, autumn)
    assert [
        books.at(unix_ns)
        for unix_ns in (
            *(0, at("03-01"), at("06-01") - 1),
            *(at("06-01"), at("09-01") - 1, at("09-01"), at("12-31")),
        )
    ] == [spring, spring, spring, summer, summer, autumn, autumn]


def test_two_books_of_one_day_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match="both hold from 2026-03-01"):
        PriceBooks([dated("03-01"), dated("06-01"), dated("03-01")])
