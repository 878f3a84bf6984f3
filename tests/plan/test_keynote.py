"""The keynote's chart from the catalogue, within its bars; revenue by tier."""

from __future__ import annotations

import msgspec
import pytest

from tokenworks.core.errors import ConfigInvalid
from tokenworks.live.catalogue_files import read_catalogue
from tokenworks.plan.assumptions import used_by
from tokenworks.plan.earnings import SECONDS_PER_YEAR, earnings
from tokenworks.plan.keynote import SPLIT, compare, served_by

CATALOGUE = read_catalogue()
HOW = CATALOGUE.projection("keynote")
TIERS = CATALOGUE.tiers("keynote")
FOUND = compare(CATALOGUE, CATALOGUE.chart("keynote"), TIERS, HOW)
POINT_ERROR_MAX = 0.20
MULTIPLE_ERROR_MAX = 0.20
DOLLARS_ERROR_MAX = 0.15
LPX_ERROR_MAX = 0.25
PUBLIC_ERROR_MAX = 0.25
ASSUMPTIONS_MAX = 8


def test_blackwell_and_rubin_are_near_the_chart_at_all_four_tiers() -> None:
    points = [check for check in FOUND.points if check.systems != "hgx-h100"]
    assert len(points) == 8
    assert max(abs(check.error) for check in points) < POINT_ERROR_MAX
    assert all(check.way for check in points)


def test_the_printed_multiples_and_dollars_come_out() -> None:
    assert len(FOUND.multiples) == 7
    assert max(abs(check.error) for check in FOUND.multiples) < MULTIPLE_ERROR_MAX
    assert [check.charted for check in FOUND.dollars] == [30e9, 150e9, 300e9]
    assert max(abs(check.error) for check in FOUND.dollars) < DOLLARS_ERROR_MAX


def test_rubin_with_lpx_at_400_is_35_times_what_the_chart_shows_of_blackwell() -> None:
    (blackwell,) = (
        check.charted
        for check in FOUND.points
        if (check.systems, check.tier) == ("gb200-nvl72", "premium")
    )
    served = {"premium": "vr-nvl72+lpx"}
    (tier,) = earnings(CATALOGUE, served, TIERS, {"premium": 1.0}, HOW).tiers
    assert tier.way
    assert tier.way.tokens_per_s_per_mw == pytest.approx(35 * blackwell, rel=LPX_ERROR_MAX)


TIERS_MODELS = {line.tier: line.model for line in TIERS.tiers}


def test_hoppers_miss_is_reported() -> None:
    checks = {check.tier: check for check in FOUND.points if check.systems == "hgx-h100"}
    assert checks["medium"].computed is None
    assert checks["medium"].error == -1
    assert checks["free"].computed


def test_all_that_is_assumed_is_listed_and_is_little() -> None:
    assert 0 < len(FOUND.assumptions) <= ASSUMPTIONS_MAX
    names = {each.what for each in FOUND.assumptions}
    assert "accelerator rubin layer_latency_s" in names
    assert "projection keynote tokens_per_step" in names
    assert all(each.note and each.value > 0 for each in FOUND.assumptions)


def test_what_the_records_assume_besides_is_listed_too() -> None:
    pairs = [(p.systems, TIERS_MODELS[p.tier]) for p in FOUND.points]
    pairs.append(("vr-nvl72+lpx", TIERS_MODELS["premium"]))
    behind = {each.what for each in used_by(CATALOGUE, pairs, CATALOGUE.projection("keynote"))}
    fitted = {each.what for each in FOUND.assumptions}
    besides = {each.what for each in FOUND.also_assumed}
    assert fitted | besides == behind | fitted
    assert not fitted & besides
    assert {"model gpt-moe-2t heads", "system lpx link_latency_s"} <= besides
    assert len(besides) == 11


def test_nothing_of_the_chart_goes_into_what_is_computed() -> None:
    chart = CATALOGUE.chart("keynote")
    doubled = msgspec.structs.replace(
        chart, points=tuple(msgspec.structs.replace(p, y=2 * p.y) for p in chart.points)
    )
    again = compare(CATALOGUE, doubled, TIERS, HOW)
    assert [c.computed for c in again.points] == [c.computed for c in FOUND.points]
    assert [c.computed for c in again.dollars] == [c.computed for c in FOUND.dollars]


def test_a_multiple_of_nothing_is_nothing() -> None:
    chart = CATALOGUE.chart("keynote")
    (first, *_) = chart.multiples
    of_hopper = msgspec.structs.replace(first, against="hgx-h100", tier="high")
    changed = msgspec.structs.replace(chart, multiples=(of_hopper,))
    (check,) = compare(CATALOGUE, changed, TIERS, HOW).multiples
    assert check.computed is None


def test_revenue_is_power_times_throughput_times_price() -> None:
    served = served_by("vr-nvl72", "", TIERS)
    made = earnings(CATALOGUE, served, TIERS, {"high": 0.5}, HOW, utilisation=0.6)
    (tier,) = made.tiers
    assert tier.way
    tokens = 0.5 * 1000 * tier.way.tokens_per_s_per_mw * SECONDS_PER_YEAR * 0.6
    assert tier.tokens_per_year == pytest.approx(tokens)
    assert made.usd_per_gw_year == pytest.approx(tokens * 6 / 1e6)


def test_a_tier_that_nothing_serves_earns_nothing() -> None:
    served = served_by("hgx-h100", "", TIERS)
    made = earnings(CATALOGUE, served, TIERS, SPLIT, HOW)
    assert [tier.way for tier in made.tiers][1:] == [None, None, None]
    assert made.usd_per_gw_year == 0


def test_lpus_serve_one_tier_and_those_above() -> None:
    served = served_by("vr-nvl72+lpx", "premium", TIERS)
    assert [served[t] for t in ("free", "high")] == ["vr-nvl72", "vr-nvl72"]
    assert [served[t] for t in ("premium", "ultra")] == ["vr-nvl72+lpx", "vr-nvl72+lpx"]
    assert set(served_by("vr-nvl72+lpx", "", TIERS).values()) == {"vr-nvl72+lpx"}


@pytest.mark.parametrize(
    ("split", "use", "message"),
    [
        ({"gold": 0.5}, 1.0, "names tier 'gold'"),
        ({"high": -0.1}, 1.0, "has -0.1 of the power"),
        ({"high": 0.6, "free": 0.6}, 1.0, "hands out 1.2 of the power"),
        ({"high": 0.6}, 1.2, "Utilisation is 1.2"),
    ],
)
def test_a_split_that_cannot_be_is_refused(
    split: dict[str, float], use: float, message: str
) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        earnings(CATALOGUE, served_by("vr-nvl72", "", TIERS), TIERS, split, HOW, utilisation=use)


def test_the_chart_without_tiers_is_computed_at_its_own_speeds_and_missed_at_one() -> None:
    chart, how = CATALOGUE.chart("inferencex"), CATALOGUE.projection("inferencex")
    found = compare(CATALOGUE, chart, TIERS, how)
    assert [check.tier for check in found.points] == [""] * 9
    assert found.dollars == found.multiples == ()
    for check in found.points:
        assert check.way
        assert check.computed == pytest.approx(2 * check.way.tokens_per_s_per_mw)
    missed = [check for check in found.points if abs(check.error) > PUBLIC_ERROR_MAX]
    assert [(check.systems, round(check.charted)) for check in missed] == [("hgx-h200", 900_000)]
    names = {each.what for each in found.assumptions}
    assert "projection inferencex layer_latency_scales h200" in names
