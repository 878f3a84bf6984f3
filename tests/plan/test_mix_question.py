"""Questions in TOML, offers from the catalogue, and plans side by side."""

from __future__ import annotations

import datetime

import msgspec
import pytest

from tests.plan.mix_samples import SHIPPED, START
from tokenworks.core.errors import ConfigInvalid
from tokenworks.plan.frontier import frontier
from tokenworks.plan.mix import plan_mix
from tokenworks.plan.mix_assumptions import assumptions
from tokenworks.plan.mix_offers import Market, Offerer, choices
from tokenworks.plan.mix_question import (
    EXAMPLE,
    QUESTION_BYTES_MAX,
    Case,
    QuestionFile,
    case_of,
    check,
    parse_question,
)
from tokenworks.plan.mix_sweeps import sweep, sweep_points, tornado, what_if

OFFERER = Offerer()
FEW = ("gb200-nvl72", "vr-nvl72", "lpx")


def case(**said: object) -> Case:
    return case_of(QuestionFile(**({"systems": FEW} | said)), SHIPPED, START)  # type: ignore[arg-type]


def market(posed: Case) -> Market:
    return OFFERER.market(posed.catalogue, posed.projection, posed.question)


def told(_: str) -> None:
    pass


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("requests_per_s = 1", r"`prompt_tokens` - at `tier\.bad`"),
        ("requests_per_s = 'x'\nprompt_tokens = 1", r"at `tier\.bad\.requests_per_s`"),
    ],
)
def test_a_tier_that_cannot_be_read_is_named(line: str, said: str) -> None:
    good = "[tier.good]\nrequests_per_s = 1\nprompt_tokens = 1\n"
    with pytest.raises(ConfigInvalid, match=said):
        parse_question(f"{good}[tier.bad]\n{line}\n", "it")


def test_the_example_is_read_and_planned() -> None:
    posed = case_of(parse_question(EXAMPLE, "it"), SHIPPED, START)
    high, premium = posed.question.tiers
    assert (high.work.model, high.usd_per_mtok, high.at_least) == ("gpt-moe-2t", 6, 0.5)
    # 1,600 of 16,000 tokens are new, for 500 of output; half of that is in context at the mean.
    assert high.work.new_tokens_per_output == pytest.approx(3.2)
    assert high.work.context_tokens == 16_250
    assert (premium.interactivity_tokens_per_s, premium.usd_per_mtok) == (400, 45)
    plan = plan_mix(market(posed), posed.question)
    assert plan.tiers[0].served_tokens_per_s >= 0.5 * high.tokens_per_s
    assert plan.capital_usd <= 1.2e9
    assert plan.ready <= posed.question.by


def test_what_is_left_out_is_the_catalogues() -> None:
    posed = case_of(QuestionFile(), SHIPPED, START)
    question = posed.question
    assert [tier.tier for tier in question.tiers] == ["free", "medium", "high", "premium", "ultra"]
    assert sum(tier.tokens_per_s for tier in question.tiers) == pytest.approx(1.5e8)
    assert question.by == datetime.date(2027, 12, 1)
    new = question.tiers[0].work.new_tokens_per_output
    assert new == pytest.approx(posed.projection.new_tokens_per_output)
    assert question.tiers[0].usd_per_output_mtok == 0.5
    left = market(posed).left_out
    assert left["kyber-nvl144"] == "It ships on 2027-12-31, after 2027-12-01."
    mixed = case(mix={"free": 1.0, "ultra": 0.0}, mtok_per_s=2.0, pue=1.5)
    assert [(t.tier, t.tokens_per_s) for t in mixed.question.tiers] == [("free", 2e6)]
    assert mixed.question.site.pue == 1.5
    hardware = market(mixed).hardware["vr-nvl72"]
    assert hardware.power_w == pytest.approx(241_560 * 1.5 / 1.15)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("power_mw = 0", "power_mw is 0.0; it must be more than 0"),
        ("capital_usd = -1", "capital_usd is -1.0"),
        ("by = 2026-01-01", "by is '2026-01-01'; it must be later than 2026-12-01"),
        ("utilisation = 1", "utilisation is 1.0; it must be between 0 and 1"),
        ("pue = 0.5", "pue is 0.5; it must be 1 or more"),
        ("site = 'us-hyperscal'", "no site 'us-hyperscal'. Near it: us-hyperscale"),
        ("tiers = ['gold']", "no tier 'gold'. There are free, medium"),
        ("mix = {gold = 1}", "a tier 'gold'"),
        ("mix = {free = 0}", "not all 0"),
        ("mix = {free = -1}", "weights of 0 or more"),
        ("pwer_mw = 3", "pwer_mw"),
        ("[tier.gold]\nrequests_per_s = 1\nprompt_tokens = 5", "lacks model"),
        ("[tier.high]\nrequests_per_s = 0\nprompt_tokens = 5", "tier.high.requests_per_s is 0.0"),
        ("[tier.high]\nrequests_per_s = 1\nprompt_tokens = 0", "tier.high.prompt_tokens is 0"),
        (
            "[tier.high]\nrequests_per_s = 1\nprompt_tokens = 5\ncached_share = 1",
            "from 0 to below 1",
        ),
        ("[tier.high]\nrequests_per_s = 1\nprompt_tokens = 5\nat_least = 2", "from 0 to 1"),
        ("[tier.high]\nrequests_per_s = 1\nprompt_tokens = 5\nttft_s = 0", "ttft_s is 0.0"),
        ("[tier.high]\nrequests_per_s = 1\nprompt_tokens = 5\noutput_tokens = 0", "output_tokens"),
        (
            "[tier.high]\nrequests_per_s = 1\nprompt_tokens = 5\ninteractivity_tokens_per_s = -1",
            "0 or more",
        ),
        (
            "[tier.high]\nrequests_per_s = 1\nprompt_tokens = 5\nusd_per_mtok = -1",
            "tier.high.usd_per_mtok is -1.0",
        ),
        ("#" * (QUESTION_BYTES_MAX + 1), "characters; at most"),
    ],
)
def test_what_is_wrong_with_a_question_is_said(text: str, says: str) -> None:
    with pytest.raises(ConfigInvalid) as raised:
        case_of(parse_question(text, "it"), SHIPPED, START)
    assert says in str(raised.value)


def test_unknown_and_late_systems_are_named() -> None:
    with pytest.raises(ConfigInvalid, match=r"Near it: .*vr-nvl72"):
        market(case(systems=("vr-nvl27",)))
    with pytest.raises(ConfigInvalid, match="'abacus'"):
        market(case(without=("abacus",)))
    late = case(systems=("kyber-nvl144",), by=datetime.date(2027, 1, 1))
    with pytest.raises(ConfigInvalid, match=r"Nothing that decodes.*ships on 2027-12-31"):
        plan_mix(market(late), late.question)
    assert "lpx" not in market(case(without=("lpx",))).hardware
    assert {o.lpu_system for o in market(case(systems=("gb200-nvl72", "lpx"))).offers} == {""}


def test_a_system_that_lacks_a_number_is_left_out_unless_it_is_named() -> None:
    bare = msgspec.structs.replace(SHIPPED.system("gb200-nvl72"), price_usd=None)
    slow = msgspec.structs.replace(SHIPPED.accelerator("h200"), layer_latency_s=None)
    catalogue = SHIPPED.with_records(bare, slow)
    posed = msgspec.structs.replace(case(systems=()), catalogue=catalogue)
    left = market(posed).left_out
    assert "no price_usd of system 'gb200-nvl72'" in left["gb200-nvl72"]
    assert "layer_latency_s" in left["hgx-h200"]
    for name in ("gb200-nvl72", "hgx-h200"):
        named = msgspec.structs.replace(case(systems=(name,)), catalogue=catalogue)
        with pytest.raises(ConfigInvalid, match="The catalogue has no"):
            market(named)


def test_offers_are_those_of_the_frontier() -> None:
    posed = case(tiers=("premium",))
    offers = choices(market(posed).offers, posed.question.tiers, 0.8)
    for offer in offers:
        best = frontier(SHIPPED, offer.systems, "gpt-moe-2t", 400_000, posed.projection).at(400.0)
        assert best is not None
        if not offer.lpu_system:
            used = offer.replicas * offer.gpus_per_replica
            assert offer.tokens_per_s == pytest.approx(best.tokens_per_s_per_gpu * used)
            assert offer.batch_max == best.batch
        else:
            # 2T weights in FP8 over nine tenths of racks of 128 GB.
            assert offer.lpu_systems_min == 18
    assert {offer.systems for offer in offers} == {"gb200-nvl72", "vr-nvl72", "vr-nvl72+lpx"}


def test_a_rack_takes_whole_workers_only() -> None:
    offers = market(case(tiers=("premium",), systems=("vr-nvl72",))).offers
    sizes = {offer.gpus_per_replica: offer.replicas for offer in offers}
    assert sizes[72] == 1
    assert all(size * replicas <= 72 for size, replicas in sizes.items())


def test_what_the_answer_rests_on_is_listed() -> None:
    posed = case()
    listed = {each.what: each.value for each in assumptions(posed, market(posed))}
    assert listed["system lpx price_usd"] == 3e6
    assert listed["system lpx link_latency_s"] > 0
    assert listed["site us-hyperscale network_share"] == 0.12
    assert {"projection keynote peak_share", "model gpt-moe-2t layers"} < set(listed)
    other = case(without=("lpx",))
    assert "system lpx price_usd" not in {e.what for e in assumptions(other, market(other))}


def test_all_vera_rubin_is_best_for_few_fast_tokens_and_a_share_of_lpus_for_many() -> None:
    posed = case(power_mw=10.0, tiers=("free", "ultra"))
    found = sweep(OFFERER, posed, "share", "ultra", told)
    ((low, high),) = found.crossovers
    assert 0 < low < high < 0.05
    assert high - low < 1e-3
    for point in found.points:
        assert (point.lpu_power_share > 0) is (point.x >= high)
        assert point.value_usd_per_h is not None
        assert point.value_without_lpus_usd_per_h is not None
        gain = point.value_usd_per_h - point.value_without_lpus_usd_per_h
        assert gain >= -1e-4 * abs(point.value_usd_per_h)
        assert sum(point.power_mw.values()) <= 10.0 * (1 + 1e-9)
    assert [point.x for point in found.points] == sorted({p.x for p in found.points})


def test_a_promise_can_be_swept_until_nothing_keeps_it() -> None:
    posed = case(power_mw=5.0, tiers=("free",), systems=("gb200-nvl72",))
    found = sweep(OFFERER, posed, "interactivity", "free", told)
    assert found.points[-1].value_usd_per_h is None
    values = [point.value_usd_per_h for point in found.points if point.value_usd_per_h is not None]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0
    assert found.crossovers == ()
    with pytest.raises(ConfigInvalid, match="no tier 'gold'"):
        sweep(OFFERER, posed, "share", "gold", told)
    assert sweep_points("interactivity", 2000.0)[-1] == 2500.0


def test_what_if_moves_figures_dates_and_systems() -> None:
    posed = case()
    other = what_if(posed, "lpx.price_usd=-30%, site.usd_per_kwh=0.2, ultra.usd_per_mtok=100")
    assert other.catalogue.system("lpx").price_usd == pytest.approx(2.1e6)
    assert other.question.site.usd_per_kwh == 0.2
    assert other.question.tier("ultra").usd_per_mtok == 100
    assert posed.catalogue.system("lpx").price_usd == 3e6
    other = what_if(posed, "vr-nvl72.ship=+60d,by=-30d,projection.peak_share=0.5,power_mw=+100%")
    assert other.catalogue.system("vr-nvl72").ship == "2027-01-29"
    assert other.question.by == datetime.date(2027, 11, 1)
    assert other.projection.peak_share == 0.5
    assert other.question.power_mw == 200
    fewer = what_if(posed, "site.install_crews=-50%,lpx.price_usd=0")
    assert fewer.question.site.install_crews == 10
    assert fewer.catalogue.system("lpx").price_usd == 0
    assert what_if(posed, "hgx-h100.ship=+1d").catalogue.system("hgx-h100").ship == "2023-01-01"
    other = what_if(posed, "systems=gb200-nvl72+vr-nvl72,start=2027-01-01,without=lpx")
    assert other.question.systems == ("gb200-nvl72", "vr-nvl72")
    assert other.question.start == datetime.date(2027, 1, 1)
    stx = what_if(posed, "bluefield-4-stx.ship=2027-01-01")
    assert stx.catalogue.system("bluefield-4-stx").ship == "2027-01-01"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("lpx.prise_usd=1", "'lpx.prise_usd' is no figure"),
        ("abacus.price_usd=1", "'abacus'"),
        ("llama-3.1-8b.layers=1", "no system and no accelerator"),
        ("lpx.price_usd=cheap", "--what-if has 'lpx.price_usd=cheap'"),
        ("lpx.price_usd=+-1%", "--what-if has"),
        ("by=tomorrow", "--what-if has 'by=tomorrow'"),
        ("power_mw=-100%", "makes power_mw 0"),
        ("site.pue=0.9", "makes site.pue 0.9"),
        ("projection.peak_share=1.1", "makes projection.peak_share 1.1"),
        ("lpx.price_usd=-101%", "makes lpx.price_usd -30000"),
        ("lpx.price_usd=inf", "makes lpx.price_usd inf"),
        ("lpx.price_usd=nan", "makes lpx.price_usd nan"),
        ("rubin.memory_bandwidth_bytes_per_s=0", "makes rubin.memory_bandwidth_bytes_per_s 0"),
        ("utilisation=1", "makes utilisation 1"),
        ("ultra.output_tokens=5", "'ultra.output_tokens' is no figure"),
        ("by=2026-01-01", "by is '2026-01-01'; it must be later"),
        ("by=" + "9" * 5 + "d", "--what-if has"),
        ("by=+99999d,by=+99999d" + ",by=+99999d" * 40, "--what-if has"),
    ],
)
def test_changes_that_cannot_be_are_refused(change: str, says: str) -> None:
    with pytest.raises(ConfigInvalid) as raised:
        what_if(case(), change)
    assert says in str(raised.value)


@pytest.mark.heavy
def test_a_tornado_has_the_widest_swing_first() -> None:
    posed = case(power_mw=10.0)
    plan = plan_mix(market(posed), posed.question)
    swings = tornado(OFFERER, posed, plan, told)
    spans = [each.span_usd_per_h for each in swings]
    assert spans == sorted(spans, reverse=True)
    found = {each.figure: each for each in swings}
    assert found["lpx.price_usd"].low == 1.5e6
    assert found["site.pue"].low == 1.0
    assert found["projection.peak_share"].high == 1.0
    for figure in ("site.usd_per_kwh", "lpx.price_usd", "vr-nvl72.all_in_power_w"):
        swing = found[figure]
        assert swing.low_usd_per_h is not None
        assert swing.high_usd_per_h is not None
        assert swing.low_usd_per_h >= swing.high_usd_per_h * (1 - 1e-4)
    assert found["power_mw"].confidence == "own"


def test_a_swing_may_leave_no_plan() -> None:
    tier = {"requests_per_s": 3_000.0, "prompt_tokens": 1_000, "at_least": 1.0}
    said = {"power_mw": 0.25, "systems": ["vr-nvl72"], "tier": {"high": tier}}
    posed = case_of(msgspec.convert(said, QuestionFile), SHIPPED, START)
    plan = plan_mix(market(posed), posed.question)
    (bought,) = plan.bought
    assert bought.count == 1
    swings = {each.figure: each for each in tornado(OFFERER, posed, plan, told)}
    assert swings["power_mw"].high_usd_per_h is not None
    # The rack is used to 70 of 80 %, so a fifth less power doesn't do.
    assert plan.pools[0].utilisation == pytest.approx(0.7, abs=0.02)
    assert swings["power_mw"].low_usd_per_h is None
    assert swings["power_mw"].span_usd_per_h == float("inf")


def test_more_that_cannot_be_is_refused() -> None:
    posed = case().question
    tier = posed.tiers[0]
    for field, value in (("context_tokens", 0), ("context_tokens", -5)):
        work = msgspec.structs.replace(tier.work, **{field: value})
        with pytest.raises(ConfigInvalid, match="context_tokens is"):
            check(posed.with_tier(tier.tier, work=work))
    site = msgspec.structs.replace(posed.site, system_years=0.0)
    with pytest.raises(ConfigInvalid, match=r"site\.system_years is 0\.0"):
        check(msgspec.structs.replace(posed, site=site))
    with pytest.raises(ConfigInvalid, match="one tier or more"):
        check(msgspec.structs.replace(posed, tiers=()))


def test_without_interest_everything_is_cheaper() -> None:
    posed = case(power_mw=5.0)
    other = what_if(posed, "site.interest_per_year=0")
    cheaper = plan_mix(market(other), other.question)
    plan = plan_mix(market(posed), posed.question)
    assert cheaper.value_usd_per_h > plan.value_usd_per_h
