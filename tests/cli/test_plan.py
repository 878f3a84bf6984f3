"""Plans on the command line: frontiers, a gigawatt's revenue, the keynote's check, pictures."""

from __future__ import annotations

import pathlib

import pytest

from tests.cli.command_line import data, done, invoke
from tokenworks.core.errors import ConfigInvalid, InvalidRequest
from tokenworks.live.home import Home, packaged

PREMIUM = ("--model", "gpt-moe-2t", "--context", "400000")


def test_a_frontier_is_a_table_of_the_best_ways(home: Home) -> None:
    text = done(home, "plan", "frontier", "gb200-nvl72", "vr-nvl72", *PREMIUM)
    assert "tokens/s/MW" in text
    assert "vr-nvl72" in text
    text = done(home, "plan", "frontier", "vr-nvl72+lpx", *PREMIUM, "--at", "400")
    assert text.count("vr-nvl72+lpx") == 1
    said = data(home, "plan", "frontier", "vr-nvl72", *PREMIUM)
    (found,) = said["frontiers"]
    assert len(found["best"]) > 20
    assert "projection keynote peak_share" in {each["what"] for each in said["assumptions"]}
    feynman = done(home, "plan", "frontier", "feynman-nvl1152", "--model", "deepseek-r1")
    assert "accelerator feynman memory_bytes" in feynman  # nothing of it is public


def test_a_speed_that_nothing_reaches_says_what_is_feasible(home: Home) -> None:
    result = invoke(home, "plan", "frontier", "gb200-nvl72", *PREMIUM, "--at", "5000")
    assert isinstance(result.exception, ConfigInvalid)
    assert "at 5000 tokens/s/user" in str(result.exception)
    assert "The fastest does" in str(result.exception)
    assert "fits in none" in done(home, "plan", "frontier", "hgx-h100", *PREMIUM)


@pytest.mark.parametrize("speed", ["-1", "0", "nan", "inf"])
def test_a_speed_that_is_none_is_refused(home: Home, speed: str) -> None:
    result = invoke(home, "plan", "frontier", "gb200-nvl72", "--at", speed)
    assert isinstance(result.exception, ConfigInvalid)
    assert f"--at is {float(speed)!r}" in str(result.exception)
    assert result.exception.hint


def test_a_factory_earns_by_tier(home: Home) -> None:
    found = data(home, "plan", "factory", "vr-nvl72", "vr-nvl72+lpx", "--lpu-from", "premium")
    made = found["factories"]
    assert [t["tier"] for t in made["vr-nvl72"]["tiers"]] == ["free", "medium", "high", "premium"]
    served = [t["systems"] for t in made["vr-nvl72+lpx"]["tiers"]]
    assert served == ["vr-nvl72", "vr-nvl72", "vr-nvl72", "vr-nvl72+lpx"]
    assumed = {each["what"] for each in found["assumptions"]}
    assert {"system lpx all_in_power_w", "accelerator rubin layer_latency_s"} <= assumed
    assert "model gpt-moe-2t layers" in assumed
    assert "model gpt-moe-2t mtp_layers" not in assumed  # nothing reads it
    text = done(home, "plan", "factory", "vr-nvl72")
    assert "$ billion a GW-year" in text
    assert "What is assumed:" in text


def test_prices_split_and_use_change_what_is_earned(home: Home) -> None:
    def usd(*more: str) -> float:
        found = data(home, "plan", "factory", "vr-nvl72", "--split", "high=100", *more)
        return float(found["factories"]["vr-nvl72"]["usd_per_gw_year"])

    assert usd("--price", "high=12") == pytest.approx(2 * usd())
    assert usd("--utilisation", "50") == pytest.approx(usd() / 2)


def test_a_price_book_gives_promises_and_prices(home: Home, tmp_path: pathlib.Path) -> None:
    book = str(packaged("laptop.toml"))
    more = ("--price-book", book, "--model", "llama-3.1-8b", "--context", "4096")
    found = data(home, "plan", "factory", "hgx-h200", *more)
    high = found["factories"]["hgx-h200"]["tiers"][2]
    assert high["usd_per_mtok"] == 6
    assert high["way"]["interactivity_tokens_per_s"] >= high["interactivity_tokens_per_s"]
    free = found["factories"]["hgx-h200"]["tiers"][0]
    assert free["usd_per_mtok"] > 0  # advertisers pay
    result = invoke(home, "plan", "factory", "hgx-h200", *more, "--book-model", "gpt")
    assert isinstance(result.exception, ConfigInvalid)
    assert "has no model 'gpt'" in str(result.exception)
    two = tmp_path / "two.toml"
    text = packaged("laptop.toml").read_text()
    sold = text[text.index("[price.") :]
    two.write_text(text + sold.replace("[price.foreman.", "[price.other."))
    result = invoke(home, "plan", "factory", "hgx-h200", "--price-book", str(two))
    assert isinstance(result.exception, ConfigInvalid)
    assert "sells 2 models" in str(result.exception)
    result = invoke(home, "plan", "factory", "hgx-h200", "--price-book", str(tmp_path / "no"))
    assert isinstance(result.exception, ConfigInvalid)


def test_lpus_stand_where_they_make_more_tokens_per_mw(home: Home) -> None:
    found = data(home, "plan", "factory", "vr-nvl72+lpx", "--split", "free=50,premium=50")
    (made,) = found["factories"].values()
    served = {tier["tier"]: tier["systems"] for tier in made["tiers"]}
    assert served["premium"] == "vr-nvl72+lpx"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--split", "high"), "--split has 'high'"),
        (("--price", "gold=3"), "--price names tier 'gold'"),
        (("--price", "premium=-3"), "--price of tier 'premium' is -3.0"),
        (("--price", "premium=nan"), "--price of tier 'premium' is nan"),
        (("--price", "premium=inf"), "--price of tier 'premium' is inf"),
        (("--lpu-from", "gold"), "--lpu-from is 'gold'"),
        (("--split", "premium=140"), "--split gives tier 'premium' 140 per cent"),
        (("--split", "premium=-1"), "--split gives tier 'premium' -1 per cent"),
        (("--split", "premium=60,high=80"), "--split gives away 140 per cent"),
        (("--split", "premium=50,premium=50"), "--split names 'premium' twice"),
        (("--utilisation", "200"), "--utilisation is 200 per cent"),
        (("--utilisation", "nan"), "--utilisation is nan per cent"),
        (("--book-model", "foreman"), "--book-model 'foreman' has no price book"),
    ],
)
def test_a_factory_that_cannot_be_is_refused(
    home: Home, arguments: tuple[str, str], message: str
) -> None:
    result = invoke(home, "plan", "factory", "vr-nvl72+lpx", *arguments)
    assert isinstance(result.exception, ConfigInvalid | InvalidRequest)
    assert message in str(result.exception)


def test_the_keynotes_chart_is_computed_and_compared(home: Home) -> None:
    text = done(home, "plan", "chart")
    assert "revenue per GW-year" in text
    assert "bench/fit_keynote.py" in text
    fitted, besides = text.split("Also assumed by the records, not fitted:")
    assert "accelerator rubin layer_latency_s" in fitted
    assert "model gpt-moe-2t kv_heads" in besides
    found = data(home, "plan", "chart", "keynote")
    assert len(found["points"]) == 10
    text = done(home, "plan", "chart", "inferencex", "--projection", "inferencex")
    assert "tokens/s/MW at 117 tokens/s/user" in text


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_pictures_are_drawn(home: Home, tmp_path: pathlib.Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    for command in (
        ("frontier", "hgx-h100", "gb200-nvl72", "vr-nvl72+lpx", *PREMIUM),
        ("factory", "gb200-nvl72", "vr-nvl72"),
        ("chart",),
        ("chart", "inferencex", "--projection", "inferencex"),
    ):
        done(home, "plan", *command, "--picture", str(path))
        assert path.stat().st_size > 5_000
        path.unlink()
