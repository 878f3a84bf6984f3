"""Mix plans: a case on paper, sums that add up, and what must hold of any plan."""

from __future__ import annotations

import datetime
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.mix_samples import SITE, START, demand, market, offer, question, rack
from tokenworks.core.errors import ConfigInvalid
from tokenworks.plan.mix import MixPlan, best, plan_mix, with_worth, without_lpus
from tokenworks.plan.mix_cost import NEVER, annuity, capital_usd, cost_per_h, ship_date
from tokenworks.plan.mix_inputs import HOURS_PER_YEAR, Question
from tokenworks.plan.mix_limits import check_promises
from tokenworks.plan.mix_offers import Market, choices
from tokenworks.plan.mix_program import Programme, programme, relaxed_value

TOLERANCE = 2e-4
"""Twice the gap at which the solver may stop, of the larger of two plans."""


def told(_: str) -> None:
    pass


def test_a_plan_on_paper() -> None:
    # 1M tokens/s at 100,000 by a rack, 80 % used: 12.5 racks, so 13.
    plan = plan_mix(market(offer(60.0, 1e5)), question())
    (bought,) = plan.bought
    assert (bought.system, bought.count, bought.accelerators) == ("rack", 13, 936)
    assert plan.power_mw == pytest.approx(1.3)
    (tier,) = plan.tiers
    assert tier.served_tokens_per_s == pytest.approx(1e6)
    # 3,600 M tokens an hour at $5.
    assert plan.revenue_usd_per_h == pytest.approx(18_000)
    assert plan.pools[0].utilisation == pytest.approx(10 / 13)
    # 13 racks of 2 hours with 20 crews of 8 hours a day.
    assert plan.install_days == pytest.approx(26 / 160)
    assert plan.ready == START + datetime.timedelta(days=1)
    # 1 ms by token for 100 tokens, and 0.8 / 0.4 of it to wait, and one token at 60 a second.
    assert tier.ttft_s == pytest.approx(0.01 * 3 + 1 / 60)


def test_the_cost_of_a_rack_on_paper() -> None:
    cost = cost_per_h(rack(), SITE)
    assert cost.energy_usd + cost.cooling_usd == pytest.approx(100 * 0.08)
    assert cost.cooling_usd / cost.energy_usd == pytest.approx(SITE.pue - 1)
    year = 1e6 * annuity(5, 0.08)
    assert cost.network_usd * HOURS_PER_YEAR == pytest.approx(0.12 * year)
    facility = 0.1 * 1.48e7 * annuity(15, 0.08)
    assert cost.capital_usd * HOURS_PER_YEAR == pytest.approx(year + facility)
    assert cost.people_usd * HOURS_PER_YEAR == pytest.approx(15_000)
    assert capital_usd(rack(), SITE) == pytest.approx(1.12e6 + 1.48e6)


def test_energy_follows_the_load_and_power_is_what_the_peak_takes() -> None:
    full = market(offer(60.0, 1e5))
    busy = plan_mix(full, question(demand(tokens_per_s=8e5), power_mw=1.0))
    (pool,) = busy.pools
    assert busy.power_mw == pytest.approx(1.0)
    assert pool.utilisation == pytest.approx(0.8)
    assert busy.drawn_mw == pytest.approx(0.3 + 0.7 * 0.8)
    # The same racks with half of the work: they cannot be fewer, because all must be served once.
    half = plan_mix(full, question(demand(tokens_per_s=8e4 * 0.5), power_mw=1.0))
    assert half.power_mw == pytest.approx(0.1)
    assert half.pools[0].utilisation == pytest.approx(0.4)
    assert half.drawn_mw == pytest.approx(0.1 * (0.3 + 0.7 * 0.4))
    (tier,) = busy.tiers
    assert tier.kwh_per_mtok == pytest.approx(0.86 * 1e3 / (8e5 * 3.6e-3))
    assert tier.kwh_per_mtok == pytest.approx(busy.kwh_per_mtok)
    assert half.tiers[0].kwh_per_mtok is not None
    assert half.tiers[0].kwh_per_mtok > tier.kwh_per_mtok
    assert tier.cost_per_mtok is not None
    energy = tier.cost_per_mtok.energy_usd + tier.cost_per_mtok.cooling_usd
    assert energy == pytest.approx(tier.kwh_per_mtok * SITE.usd_per_kwh)


def test_dates_are_the_last_day_of_what_a_maker_names() -> None:
    assert ship_date("") == datetime.date.min
    assert ship_date("cancelled: taken off the roadmap in March 2026") == NEVER
    assert ship_date("2026-02-03") == datetime.date(2026, 2, 3)
    assert ship_date("2026 H1") == datetime.date(2026, 6, 30)
    assert ship_date("2028, with Feynman") == datetime.date(2028, 12, 31)


def test_a_slow_pool_serves_those_it_can_and_a_fast_one_the_rest() -> None:
    tiers = (demand("high", 4e5, 50.0), demand("ultra", 1e5, 200.0, usd=100.0))
    plan = plan_mix(market(offer(60.0, 1e5), offer(250.0, 2e4)), question(*tiers))
    places = {round(pool.interactivity_tokens_per_s): pool for pool in plan.pools}
    assert set(places[60].tokens_per_s) == {"high"}
    assert "ultra" in places[250].tokens_per_s
    assert all(
        tier.served_tokens_per_s == pytest.approx(tier.asked_tokens_per_s) for tier in plan.tiers
    )


def test_lpus_come_in_where_they_pay_for_a_copy_of_the_weights() -> None:
    offers = (offer(250.0, 2e4), offer(250.0, 8e4, lpus=0.25, least=8))
    few = plan_mix(market(*offers), question(demand("ultra", 5e4, 200.0)))
    assert few.lpu_power_share == 0.0
    many = plan_mix(market(*offers), question(demand("ultra", 1e6, 200.0)))
    counts = {each.system: each.count for each in many.bought}
    # 1M at 80,000, 80 % used: 15.6, so 16 racks; a quarter of it is less than one copy.
    assert counts == {"rack": 16, "lpu": 8}
    assert many.pools[0].lpu_systems == pytest.approx(8)
    assert many.lpu_power_share == pytest.approx(0.4 / 2.0)


def test_the_least_cost_serves_all() -> None:
    asked = msgspec.structs.replace(question(demand(usd=0.0)), objective="cost")
    plan = plan_mix(market(offer(60.0, 1e5)), asked)
    assert plan.bought[0].count == 13
    assert plan.value_usd_per_h == -plan.cost_per_h.usd
    profit = plan_mix(market(offer(60.0, 1e5)), question(demand(usd=0.0)))
    assert not profit.bought
    assert profit.usd_per_mtok is None
    assert profit.gap == 0
    assert profit.tiers[0].cost_per_mtok is None


def test_the_most_revenue_buys_nothing_idle() -> None:
    asked = msgspec.structs.replace(question(demand(usd=0.01)), objective="revenue")
    plan = plan_mix(market(offer(60.0, 1e5)), asked)
    assert plan.bought[0].count == 13
    assert plan.profit_usd_per_h < 0 < plan.value_usd_per_h


def test_shadow_prices_are_what_more_is_worth() -> None:
    asked = question(demand(tokens_per_s=1e8), power_mw=10.0, capital_usd=1e12)
    goods = market(offer(60.0, 1e5))
    plan = with_worth(goods, asked, plan_mix(goods, asked), told)
    worth = {each.what: each for each in plan.worth}
    more = plan_mix(goods, msgspec.structs.replace(asked, power_mw=11.0))
    gained = more.value_usd_per_h - plan.value_usd_per_h
    assert worth["one more MW"].usd_per_h == pytest.approx(gained, rel=1e-6)
    assert worth["one more MW"].usd_per_year == pytest.approx(gained * HOURS_PER_YEAR, rel=1e-6)
    assert worth["one more million dollars of capital"].usd_per_h == 0
    assert worth["demand for 1,000 more high tokens/s"].usd_per_h == 0
    assert "LPUs" not in worth


def test_a_promise_costs_what_is_gained_without_it() -> None:
    asked = question(demand(tokens_per_s=1e8, speed=200.0))
    goods = market(offer(60.0, 1e5), offer(250.0, 2e4), offer(250.0, 3e4, lpus=0.25))
    plan = with_worth(goods, asked, plan_mix(goods, asked), told)
    worth = {each.what: each.usd_per_h for each in plan.worth}
    # 100 racks at 80,000 of use instead of 88.9 with LPUs at 24,000, at the same cost by MW.
    lost = 0.0036 * 5 * (100 * 8e4 - 100 / 1.125 * 2.4e4)
    assert worth["the promise of high, 200 tokens/s"] == pytest.approx(-lost)
    assert worth["LPUs"] > 0
    assert {each.lpu_system for each in without_lpus(goods).offers} == {""}


def test_crews_and_late_systems_limit_what_can_be_there() -> None:
    late = msgspec.structs.replace(rack("late", usd=1.0), ship=START + datetime.timedelta(days=99))
    goods = market(
        offer(60.0, 1e5),
        offer(60.0, 1e5, system="late"),
        hardware={"rack": rack(h=16.0), "late": msgspec.structs.replace(late, install_h=16.0)},
    )
    plan = plan_mix(goods, question(demand(tokens_per_s=1e8), power_mw=1e4))
    counts = {each.system: each.count for each in plan.bought}
    # A day of 160 hours for the late ones; the rest of 100 days for the others.
    assert counts == {"rack": 990, "late": 10}
    assert plan.ready == START + datetime.timedelta(days=100)
    days = next(each for each in plan.worth if each.what == "one more day to install")
    assert days.usd_per_h > 0


def test_what_cannot_be_served_says_what_would_be_feasible() -> None:
    must = msgspec.structs.replace(demand(), at_least=1.0)
    goods = market(offer(60.0, 1e5))
    with pytest.raises(ConfigInvalid, match=r"0\.5 MW.*: 40 % of it does\. It needs 1\.3 MW"):
        plan_mix(goods, question(must, power_mw=0.5))
    with pytest.raises(ConfigInvalid, match=r"It needs \$33,800,000"):
        plan_mix(goods, question(must, capital_usd=2e7))
    both = question(must, power_mw=0.5, capital_usd=2e7)
    with pytest.raises(ConfigInvalid, match=r"It needs 1\.3 MW and more capital"):
        plan_mix(goods, both)
    cheap = msgspec.structs.replace(question(demand(), power_mw=0.5), objective="cost")
    with pytest.raises(ConfigInvalid, match="40 % of it does"):
        plan_mix(goods, cheap)
    slow = market(offer(60.0, 1e5), hardware={"rack": rack(h=3e3)})
    with pytest.raises(ConfigInvalid, match="a later date or more crews"):
        plan_mix(slow, question(must))
    plan = plan_mix(goods, question(must, power_mw=1.3))
    assert plan.bought[0].count == 13
    names = {each.what for each in plan.worth}
    assert "having to serve 1 % less of high" not in names


def test_lpus_may_be_what_makes_it_fit() -> None:
    must = msgspec.structs.replace(demand("ultra", 1e6, 200.0), at_least=1.0)
    goods = market(offer(250.0, 2e4), offer(250.0, 8e4, lpus=0.25, least=8))
    # 16 racks of 0.1 MW and 8 LPUs of 0.05 MW; 63 racks without.
    with pytest.raises(ConfigInvalid, match=r"It needs 2 MW with"):
        plan_mix(goods, question(must, power_mw=0.5))
    assert relaxed_value(made(goods, question(must, power_mw=0.5))) is None


def test_having_to_serve_what_loses_money_has_its_price() -> None:
    must = msgspec.structs.replace(demand(usd=0.0), at_least=0.5)
    plan = plan_mix(market(offer(60.0, 1e5)), question(must))
    worth = {each.what: each.usd_per_h for each in plan.worth}
    assert worth["having to serve 1 % less of high"] > 0


def test_promises_that_nothing_keeps_are_named_with_the_nearest_that_can_be() -> None:
    goods = market(offer(60.4, 1e5), offer(250.9, 2e4, lpus=0.2))
    with pytest.raises(
        ConfigInvalid, match=r"300 tokens/s per user.*Promise 250 or less \(rack\+lpu"
    ):
        check_promises(goods, question(demand(speed=300.0)))
    quick = msgspec.structs.replace(demand(), ttft_s=0.001)
    with pytest.raises(ConfigInvalid, match=r"first token in 0\.001 s.*Promise 0\.03399 s"):
        check_promises(goods, question(quick))
    check_promises(goods, question(msgspec.structs.replace(demand(), ttft_s=0.034)))
    with pytest.raises(ConfigInvalid, match=r"into 0\.01 MW.*takes 0\.1 MW"):
        check_promises(goods, question(power_mw=0.01))
    usd = 1e6 * (1 + SITE.network_share) + 0.1 * SITE.facility_usd_per_mw
    poor = msgspec.structs.replace(question(), capital_usd=1000.0)
    with pytest.raises(ConfigInvalid, match=rf"for \$1,000\..*takes \${usd:,.0f}, its network"):
        check_promises(goods, poor)
    check_promises(goods, msgspec.structs.replace(question(), capital_usd=usd + 1))
    other = msgspec.structs.replace(
        demand(), work=msgspec.structs.replace(demand().work, model="n")
    )
    with pytest.raises(ConfigInvalid, match="fits into no system"):
        check_promises(goods, question(other))
    nothing = Market(hardware={}, offers=(), left_out={"rack": "It ships late."})
    with pytest.raises(ConfigInvalid, match=r"Nothing that decodes.*rack: It ships late\."):
        check_promises(nothing, question())


def test_a_promise_that_nothing_keeps_may_be_left_unserved() -> None:
    found = best(market(offer(60.0, 1e5)), question(demand(speed=300.0)))
    assert found is not None
    assert not found[1].served
    must = msgspec.structs.replace(demand(speed=300.0), at_least=0.1)
    assert best(market(offer(60.0, 1e5)), question(must)) is None
    assert best(market(offer(60.0, 1e5)), question(must), whole=False) is None


def test_a_missing_solver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ConfigInvalid, match=r"needs scipy\. pip install 'tokenworks\[plan\]'"):
        plan_mix(market(offer(60.0, 1e5)), question())


prices = st.floats(0.1, 50.0)
rates = st.floats(1e4, 5e6)
cases = st.fixed_dictionaries(
    {
        "usd": st.tuples(prices, prices),
        "asked": st.tuples(rates, rates),
        "power_mw": st.floats(0.2, 20.0),
        "rack_usd": st.floats(1e5, 1e7),
        "lpus": st.floats(0.05, 1.0),
        "least": st.integers(0, 10),
    }
)
checked = settings(max_examples=25)


def posed(case: dict, rack_usd: float | None = None) -> tuple[Market, Question]:
    tiers = (
        demand("high", case["asked"][0], 50.0, case["usd"][0]),
        demand("ultra", case["asked"][1], 200.0, case["usd"][1]),
    )
    goods = market(
        offer(60.0, 1e5),
        offer(250.0, 2e4),
        offer(260.0, 5e4, lpus=case["lpus"], least=case["least"]),
        hardware={
            "rack": rack(usd=rack_usd or case["rack_usd"]),
            "lpu": rack("lpu", power_w=50_000.0, usd=5e5),
        },
    )
    return goods, question(*tiers, power_mw=case["power_mw"])


def near(case: dict, plan: MixPlan) -> float:
    whole = sum(a * u for a, u in zip(case["asked"], case["usd"], strict=True)) * 3.6e-3
    return TOLERANCE * max(abs(plan.value_usd_per_h), whole)


@checked
@given(cases)
def test_more_power_never_earns_less(case: dict) -> None:
    goods, asked = posed(case)
    plan = plan_mix(goods, asked)
    more = plan_mix(goods, msgspec.structs.replace(asked, power_mw=1.3 * asked.power_mw))
    assert more.value_usd_per_h >= plan.value_usd_per_h - near(case, plan)


@checked
@given(cases)
def test_a_cheaper_device_never_costs_more(case: dict) -> None:
    goods, asked = posed(case)
    plan = plan_mix(goods, asked)
    cheaper = plan_mix(*posed(case, rack_usd=0.7 * case["rack_usd"]))
    assert cheaper.value_usd_per_h >= plan.value_usd_per_h - near(case, plan)
    least = msgspec.structs.replace(asked, objective="cost", power_mw=1e4)
    dear = plan_mix(goods, least)
    cheap = plan_mix(posed(case, rack_usd=0.7 * case["rack_usd"])[0], least)
    assert cheap.cost_per_h.usd <= dear.cost_per_h.usd * (1 + TOLERANCE)


def made(goods: Market, asked: Question) -> Programme:
    offers = choices(goods.offers, asked.tiers, asked.utilisation)
    return programme(asked, goods.hardware, offers, asked.objective)


@checked
@given(cases)
def test_no_plan_of_whole_systems_beats_one_in_parts(case: dict) -> None:
    goods, asked = posed(case)
    plan = plan_mix(goods, asked)
    bound = relaxed_value(made(goods, asked))
    assert bound is not None
    assert plan.value_usd_per_h <= bound + 1e-6 * abs(bound) + 1e-6
    assert plan.value_usd_per_h <= plan.bound_usd_per_h


@checked
@given(cases)
def test_a_plan_is_the_sum_of_its_parts_and_keeps_its_limits(case: dict) -> None:
    goods, asked = posed(case)
    plan = plan_mix(goods, asked)
    assert plan.power_mw <= asked.power_mw * (1 + 1e-9)
    most = sum(
        each.count * cost_per_h(goods.hardware[each.system], SITE).usd for each in plan.bought
    )
    least = sum(
        each.count * cost_per_h(goods.hardware[each.system], SITE, busy=0.0).usd
        for each in plan.bought
    )
    cost = plan.cost_per_h.usd
    assert least - 1e-6 <= cost <= most + 1e-6
    assert sum(tier.cost_per_h.usd for tier in plan.tiers) == pytest.approx(cost)
    assert sum(pool.cost_per_h.usd for pool in plan.pools) == pytest.approx(cost)
    assert sum(pool.power_mw for pool in plan.pools) == pytest.approx(plan.power_mw)
    revenue = 0.0
    for tier in plan.tiers:
        pools = [pool for pool in plan.pools if tier.tier in pool.tokens_per_s]
        served = sum(pool.tokens_per_s[tier.tier] for pool in pools)
        assert tier.served_tokens_per_s == pytest.approx(served)
        assert served <= tier.asked_tokens_per_s * (1 + 1e-9)
        assert all(p.interactivity_tokens_per_s >= tier.promised_tokens_per_s for p in pools)
        revenue += served * 3.6e-3 * asked.tier(tier.tier).usd_per_output_mtok
    assert plan.value_usd_per_h == pytest.approx(revenue - cost)
    # The programme's own sum, in which energy follows the tokens.
    assert plan.bound_usd_per_h >= plan.value_usd_per_h
    found = best(goods, asked)
    assert found is not None
    assert plan.value_usd_per_h == pytest.approx(found[1].value, rel=1e-6, abs=1e-3)
    # Energy is never below that of systems that are always busy, nor above what is provisioned.
    assert SITE.idle_power_share * plan.power_mw - 1e-9 <= plan.drawn_mw <= plan.power_mw + 1e-9
    goods_of = {(o.systems, round(o.interactivity_tokens_per_s, 6)): o for o in goods.offers}
    for pool in plan.pools:
        offer_of = goods_of[pool.systems, round(pool.interactivity_tokens_per_s, 6)]
        least_w = goods.hardware["rack"].power_w
        if offer_of.lpu_system:
            least_w += offer_of.lpu_systems * goods.hardware["lpu"].power_w
        joule = pool.drawn_mw * 1e6 / sum(pool.tokens_per_s.values())
        assert joule >= least_w / offer_of.tokens_per_s * (1 - 1e-9)
    assert all(pool.utilisation <= asked.utilisation * (1 + 1e-6) for pool in plan.pools)
    lpus = {each.system: each.count for each in plan.bought}.get("lpu", 0)
    needed = sum(case["lpus"] * p.gpu_systems for p in plan.pools if p.mode == "disaggregated+lpu")
    assert needed <= lpus + 1e-6
    assert lpus == 0 or lpus >= case["least"]


@checked
@given(cases)
def test_dearer_promises_never_earn_more(case: dict) -> None:
    goods, asked = posed(case)
    plan = plan_mix(goods, asked)
    free = plan_mix(goods, asked.with_tier("ultra", interactivity_tokens_per_s=10.0))
    assert free.value_usd_per_h >= plan.value_usd_per_h - near(case, plan)
