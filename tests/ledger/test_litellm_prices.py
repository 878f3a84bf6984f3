"""LiteLLM's price map: no price is off by a digit, and none is left out in silence."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tokenworks.core.errors import InvalidRequest
from tokenworks.core.slo import Tier
from tokenworks.ledger.litellm_prices import price_tables, unpriced


def same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


MAP = {
    "plain": {
        "input_cost_per_token": Decimal("0.00000015"),
        "output_cost_per_token": Decimal("6e-07"),
    },
    "full": {
        "input_cost_per_token": Decimal("1.25e-06"),
        "input_cost_per_token_flex": Decimal("6.25e-07"),
        "input_cost_per_token_priority": Decimal("2.5e-06"),
        "output_cost_per_token": Decimal("1e-05"),
        "output_cost_per_token_flex": Decimal("5e-06"),
        "output_cost_per_token_priority": Decimal("2e-05"),
        "output_cost_per_token_ultrafast": Decimal("6e-05"),
        "cache_read_input_token_cost": Decimal("1.25e-07"),
        "cache_creation_input_token_cost": Decimal("1.5625e-06"),
        "output_cost_per_reasoning_token": Decimal("1.1e-05"),
    },
    "odd": {
        "input_cost_per_token": Decimal("1.00000055e-06"),
        "output_cost_per_token": 1,
    },
    "image": {"output_cost_per_image": Decimal("0.04")},
}


def test_prices_are_exact() -> None:
    tables, notes = price_tables(MAP, same("plain", "full"))
    assert [note for note in notes if note.startswith("plain")] == []
    high = tables["plain"][Tier.HIGH]
    assert high["input_udollars_per_mtok"] == 150_000
    assert high["cached_input_udollars_per_mtok"] == 150_000
    assert high["output_udollars_per_mtok"] == 600_000
    full = tables["full"]
    outputs = [full[tier]["output_udollars_per_mtok"] for tier in Tier]
    assert outputs == [5_000_000, 5_000_000, 10_000_000, 20_000_000, 60_000_000]
    inputs = [full[tier]["input_udollars_per_mtok"] for tier in Tier]
    assert inputs == [625_000, 625_000, 1_250_000, 2_500_000, 2_500_000]
    assert full[Tier.HIGH]["cached_input_udollars_per_mtok"] == 125_000
    assert full[Tier.HIGH]["cache_write_udollars_per_mtok"] == 1_562_500
    assert full[Tier.HIGH]["reasoning_udollars_per_mtok"] == 11_000_000


def test_a_price_between_two_is_rounded_and_said() -> None:
    tables, (note,) = price_tables(MAP, same("odd"))
    assert tables["odd"][Tier.HIGH]["input_udollars_per_mtok"] == 1_000_001
    assert tables["odd"][Tier.HIGH]["output_udollars_per_mtok"] == 10**12
    assert note.startswith("odd: input_cost_per_token = ")
    assert note.endswith("is rounded to 1000001 micro-dollars.")


def test_a_model_may_have_another_name_here() -> None:
    tables, _ = price_tables(MAP, {"mine": "plain", "also": "plain"})
    assert tables["mine"] == tables["also"]


def test_reasoning_costs_what_the_tiers_output_costs() -> None:
    row = {
        "input_cost_per_token": Decimal("3e-07"),
        "input_cost_per_token_flex": Decimal("1.5e-07"),
        "output_cost_per_token": Decimal("2.5e-06"),
        "output_cost_per_token_flex": Decimal("1.25e-06"),
        "output_cost_per_token_priority": Decimal("4.5e-06"),
        "output_cost_per_reasoning_token": Decimal("2.5e-06"),
        "cache_read_input_token_cost": Decimal("3e-08"),
    }
    tables, notes = price_tables({"m": row}, same("m"))
    found = [tables["m"][tier]["reasoning_udollars_per_mtok"] for tier in Tier]
    assert found == [1_250_000, 1_250_000, 2_500_000, 4_500_000, 4_500_000]
    assert tables["m"][Tier.PREMIUM]["cached_input_udollars_per_mtok"] == 30_000
    said = "output_cost_per_token_priority stands in for it."
    assert f"m: there is no output_cost_per_reasoning_token_priority; {said}" in notes
    said = "cache_read_input_token_cost stands in for it."
    assert f"m: there is no cache_read_input_token_cost_flex; {said}" in notes


def test_reasoning_of_a_tier_whose_input_alone_is_priced_costs_the_plain_price() -> None:
    row = MAP["plain"] | {
        "input_cost_per_token_flex": Decimal("1e-07"),
        "output_cost_per_reasoning_token": Decimal("7e-07"),
    }
    tables, _ = price_tables({"m": row}, same("m"))
    assert tables["m"][Tier.FREE]["reasoning_udollars_per_mtok"] == 700_000


def test_images_and_cache_hits_have_their_classes() -> None:
    row = MAP["plain"] | {
        "input_cost_per_image_token": Decimal("2e-07"),
        "output_cost_per_image_token": Decimal("3e-05"),
        "output_cost_per_image_token_priority": Decimal("6e-05"),
        "input_cost_per_token_cache_hit": Decimal("1e-08"),
    }
    tables, notes = price_tables({"m": row}, same("m"))
    high, premium = tables["m"][Tier.HIGH], tables["m"][Tier.PREMIUM]
    assert high["image_input_udollars_per_mtok"] == 200_000
    assert high["image_output_udollars_per_mtok"] == 30_000_000
    assert premium["image_output_udollars_per_mtok"] == 60_000_000
    assert high["cached_input_udollars_per_mtok"] == 10_000
    assert notes == []


def test_a_price_that_has_no_place_here_is_said() -> None:
    row = MAP["plain"] | {
        "input_cost_per_token_above_200k_tokens": Decimal("3e-07"),
        "output_cost_per_token_batches": Decimal("3e-07"),
        "search_context_cost_per_query": {"search_context_size_low": Decimal("0.01")},
        "tiered_pricing": [{"range": [0, 1]}],
        "input_cost_per_image": 0,
        "max_tokens": 5,
    }
    _, (note,) = price_tables({"m": row}, same("m"))
    assert note == (
        "m: not taken up: input_cost_per_token_above_200k_tokens, output_cost_per_token_batches, "
        "search_context_cost_per_query, tiered_pricing."
    )


def test_what_is_not_priced_per_token_is_refused() -> None:
    zero = {"input_cost_per_token": 0, "output_cost_per_token": Decimal("0.0")}
    rows = MAP | {
        "sample_spec": zero,
        "gift": zero,
        "search": zero | {"input_cost_per_query": Decimal("0.001")},
    }
    for name, words in (
        ("image", "no price per token"),
        ("none", "no model of the price map"),
        ("sample_spec", "no model of the price map"),
        ("search", "costs nothing per token in the price map, but by input_cost_per_query"),
    ):
        assert words in (unpriced(rows, name) or "")
        with pytest.raises(InvalidRequest, match=words):
            price_tables(rows, same(name))
    tables, notes = price_tables(rows, same("gift"))
    assert tables["gift"][Tier.HIGH]["output_udollars_per_mtok"] == 0
    assert notes == ["gift: its price is 0; who asks for it pays nothing."]


def test_a_name_that_is_nearly_right_is_shown_what_there_is() -> None:
    with pytest.raises(InvalidRequest) as caught:
        price_tables(MAP, same("plane"))
    assert caught.value.hint == "Name a model as the map's keys do. It has plain."
    with pytest.raises(InvalidRequest) as caught:
        price_tables(MAP, same("gpt-4o"))
    assert caught.value.hint == "Name a model as the map's keys do."


def test_a_price_that_is_no_number_is_refused() -> None:
    for value in (-1, "much", True, Decimal("NaN"), Decimal("Infinity")):
        with pytest.raises(InvalidRequest, match="must be a number"):
            price_tables({"m": MAP["plain"] | {"input_cost_per_token": value}}, same("m"))
