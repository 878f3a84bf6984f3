"""A price book is right when it is parsed, or it is refused in words that help."""

from __future__ import annotations

import datetime
import hashlib
import re
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenworks.catalogue.price_book import BOOK_BYTES_MAX, parse_price_book
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.slo import Tier

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
    ],
)
def test_a_wrong_book_is_refused_by_name(text: str, said: str) -> None:
    assert text != TEXT
    with pytest.raises(ConfigInvalid) as caught:
        parse_price_book(text)
    assert said in str(caught.value)
    assert "  " not in str(caught.value)


@settings(derandomize=True, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_book_or_is_refused(text: str) -> None:
    with pytest.raises(ConfigInvalid):
        parse_price_book(text)
