"""What requests need and workers offer."""

from __future__ import annotations

import pytest

from tokenworks.core.errors import InvalidRequest
from tokenworks.core.needs import NO_OFFERS, Needs, Offers, nothing_offers, words_of

EU = Offers(labels=("eu",), adapters=("support",))
US = Offers(labels=("us",))


@pytest.mark.parametrize(
    ("needs", "lacking"),
    [
        (Needs(), None),
        (Needs(labels=("eu",), adapter="support"), None),
        (Needs(labels=("eu", "medical")), "the label 'medical'"),
        (Needs(labels=("eu",), adapter="sales"), "the adapter 'sales'"),
        (Needs(labels=("eu", "us")), "the labels 'eu', 'us' together"),
        (Needs(labels=("us",), adapter="support"), "the adapter 'support' with the labels 'us'"),
    ],
)
def test_what_nobody_offers_is_named(needs: Needs, lacking: str | None) -> None:
    assert nothing_offers([EU, US], needs) == lacking
    assert (EU.lacks(needs) is None or US.lacks(needs) is None) == (lacking is None)


def test_without_workers_the_first_need_is_named() -> None:
    assert nothing_offers([], Needs(labels=("eu",))) == "the label 'eu'"
    assert NO_OFFERS.lacks(Needs()) is None


@pytest.mark.parametrize("text", ["-x", "a b\x00", "é", "x" * 129, '"'])
def test_a_word_is_letters_digits_and_little_else(text: str) -> None:
    with pytest.raises(InvalidRequest, match="labels has"):
        words_of(text, "labels")


def test_words_are_sorted_and_few() -> None:
    assert words_of(" b,a  a ", "labels") == ("a", "b")
    assert words_of("", "labels") == ()
    with pytest.raises(InvalidRequest, match="3 words, more than 2"):
        words_of("a,b,c", "labels", 2)
