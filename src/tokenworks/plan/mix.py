"""The best mix of systems and modes for a demand and a budget, and what it earns."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence

import msgspec

from tokenworks.plan.mix_cost import Cost, capital_usd, cost_per_h, drawn_w
from tokenworks.plan.mix_inputs import (
    HOURS_PER_YEAR,
    SECONDS_PER_H,
    TOKENS_PER_MTOK,
    Hardware,
    Mode,
    Offer,
    Question,
    TierDemand,
)
from tokenworks.plan.mix_limits import check_promises, no_plan
from tokenworks.plan.mix_offers import Market, choices
from tokenworks.plan.mix_program import Solution, programme, solve

Progress = Callable[[str], None]


class PoolPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Workers that run one offer.

    Attributes:
        systems: names joined, as in ``vr-nvl72+lpx``.
        mode: how the work is split.
        model: that it serves.
        context_tokens: of a sequence.
        gpu_systems: bought for it.
        lpu_systems: its part of the LPU systems that pools of one model share.
        workers: replicas that decode, or do both.
        gpus_per_worker: of each.
        attention_dp: groups of each that attend to their own sequences, where that is told.
        prefill_workers: replicas that prefill only; None where the model says no more than a share.
        prefill_gpus_per_worker: of each; likewise.
        batch_max: sequences that a worker decodes at a time.
        interactivity_tokens_per_s: that each user sees.
        tokens_per_s: of output, by tier.
        utilisation: of what it could make.
        prefill_share: of its GPUs, for prefill.
        power_mw: provisioned, with its part of LPUs.
        drawn_mw: at the mean, as busy as it is; likewise.
        cost_per_h: likewise.
    """

    systems: str
    mode: Mode
    model: str
    context_tokens: int
    gpu_systems: int
    lpu_systems: float
    workers: int
    gpus_per_worker: int
    attention_dp: int
    prefill_workers: int | None
    prefill_gpus_per_worker: int | None
    batch_max: int
    interactivity_tokens_per_s: float
    tokens_per_s: dict[str, float]
    utilisation: float
    prefill_share: float
    power_mw: float
    drawn_mw: float
    cost_per_h: Cost


class Bought(msgspec.Struct, frozen=True, kw_only=True):
    """Systems of one kind.

    Attributes:
        system: its name.
        count: bought.
        accelerators: in all of them.
        power_mw: provisioned for all.
        capital_usd: with network and facility.
        install_days: of all crews.
    """

    system: str
    count: int
    accelerators: int
    power_mw: float
    capital_usd: float
    install_days: float


class TierPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a tier gets, earns and costs.

    Attributes:
        tier: its name.
        asked_tokens_per_s: of output.
        served_tokens_per_s: likewise.
        promised_tokens_per_s: to each user.
        delivered_tokens_per_s: to the user of its slowest pool; None where it isn't served.
        ttft_s: the mean of its slowest pool; likewise.
        revenue_usd_per_h: of what is served.
        cost_per_h: of its part of each pool.
        cost_per_mtok: of output; None where it isn't served.
        kwh_per_mtok: of output, of the utility's; likewise.
    """

    tier: str
    asked_tokens_per_s: float
    served_tokens_per_s: float
    promised_tokens_per_s: float
    delivered_tokens_per_s: float | None
    ttft_s: float | None
    revenue_usd_per_h: float
    cost_per_h: Cost
    cost_per_mtok: Cost | None
    kwh_per_mtok: float | None


class Worth(msgspec.Struct, frozen=True, kw_only=True):
    """What a change is worth, in dollars per hour of the aim.

    Attributes:
        what: changes.
        usd_per_h: more of it.
        how: it was found.
    """

    what: str
    usd_per_h: float
    how: str

    @property
    def usd_per_year(self) -> float:
        """The same by the year."""
        return self.usd_per_h * HOURS_PER_YEAR


class MixPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The answer.

    Attributes:
        objective: that it is best in.
        value_usd_per_h: of it: profit, revenue, or less than nothing for cost.
        bound_usd_per_h: that no plan of whole systems beats.
        revenue_usd_per_h: of all tiers.
        cost_per_h: of all systems.
        power_mw: provisioned for what is bought: what it takes at its peak.
        power_mw_max: that it may take.
        drawn_mw: at the mean, as busy as the pools are.
        capital_usd: that it takes.
        capital_usd_max: that it may take; None where it doesn't matter.
        lpu_power_share: of the power provisioned.
        ready: all of it is in place.
        install_days: of work of all crews together, waiting left out.
        bought: by kind.
        pools: of workers.
        tiers: in the question's order.
        worth: of more power and the like.
    """

    objective: str
    value_usd_per_h: float
    bound_usd_per_h: float
    revenue_usd_per_h: float
    cost_per_h: Cost
    power_mw: float
    power_mw_max: float
    drawn_mw: float
    capital_usd: float
    capital_usd_max: float | None
    lpu_power_share: float
    ready: datetime.date
    install_days: float
    bought: tuple[Bought, ...]
    pools: tuple[PoolPlan, ...]
    tiers: tuple[TierPlan, ...]
    worth: tuple[Worth, ...] = ()

    @property
    def profit_usd_per_h(self) -> float:
        """Revenue less cost."""
        return self.revenue_usd_per_h - self.cost_per_h.usd

    @property
    def gap(self) -> float:
        """By how much the plan may fall short of the best one, of its value."""
        short = self.bound_usd_per_h - self.value_usd_per_h
        return short / abs(self.bound_usd_per_h) if self.bound_usd_per_h else 0.0

    @property
    def usd_per_mtok(self) -> float | None:
        """Cost of 1M tokens of output over all tiers; None where none are made."""
        made = sum(tier.served_tokens_per_s for tier in self.tiers)
        return self.cost_per_h.usd / (made * SECONDS_PER_H / TOKENS_PER_MTOK) if made else None

    @property
    def kwh_per_mtok(self) -> float | None:
        """Energy of 1M tokens of output over all tiers; None where none are made."""
        made = sum(tier.served_tokens_per_s for tier in self.tiers)
        return self.drawn_mw * 1e3 / (made * SECONDS_PER_H / TOKENS_PER_MTOK) if made else None


def plan_mix(market: Market, question: Question) -> MixPlan:
    """The best mix, without what more would be worth beyond the relaxation's shadow prices.

    Args:
        market: what can be bought.
        question: demand, budgets and promises.

    Raises:
        ConfigInvalid: a promise that nothing keeps, or budgets that what must be served exceeds;
            the message says what would be feasible.
    """
    check_promises(market, question)
    found = best(market, question)
    if found is None:
        raise no_plan(market, question)
    offers, solution = found
    return _plan(market, question, offers, solution)


def best(
    market: Market, question: Question, *, whole: bool = True
) -> tuple[list[Offer], Solution] | None:
    """Pools and the programme's answer; None where what must be served can't be.

    A tier whose promises nothing keeps is left unserved.

    Args:
        market: what can be bought.
        question: demand, budgets and promises.
        whole: systems are; otherwise they come in parts, which is quicker, and smooth.
    """
    offers = choices(market.offers, question.tiers, question.utilisation)
    made = programme(question, market.hardware, offers, question.objective, whole=whole)
    solution = solve(made, duals=whole)
    return None if solution is None else (offers, solution)


def value_usd_per_h(market: Market, question: Question) -> float | None:
    """Of the best plan of systems that come in parts; None where there is none."""
    found = best(market, question, whole=False)
    return None if found is None else found[1].value


def with_worth(market: Market, question: Question, plan: MixPlan, progress: Progress) -> MixPlan:
    """The plan with what each promise costs and LPUs are worth, found by planning again without.

    Args:
        market: that the plan was made from.
        question: likewise.
        plan: to be added to.
        progress: is told what is being found.
    """
    found = list(plan.worth)
    progress("in parts")
    own = value_usd_per_h(market, question)
    assert own is not None, "there is a plan in whole systems"
    for tier in question.tiers:
        progress(f"without the promise of {tier.tier}")
        free = question.with_tier(tier.tier, interactivity_tokens_per_s=0.0, ttft_s=None)
        value = value_usd_per_h(market, free)
        if value is not None:
            cost = max(0.0, value - own)
            what = f"the promise of {tier.tier}, {tier.interactivity_tokens_per_s:g} tokens/s"
            found.append(Worth(what=what, usd_per_h=-cost, how="planned again without it"))
    if any(offer.lpu_system for offer in market.offers):
        progress("without LPUs")
        value = value_usd_per_h(without_lpus(market), question)
        if value is not None:
            gain = max(0.0, own - value)
            found.append(Worth(what="LPUs", usd_per_h=gain, how="planned again without them"))
    return msgspec.structs.replace(plan, worth=tuple(found))


def without_lpus(market: Market) -> Market:
    """What can be bought besides LPUs."""
    gpus = {offer.system for offer in market.offers}
    return Market(
        hardware={name: each for name, each in market.hardware.items() if name in gpus},
        offers=tuple(offer for offer in market.offers if not offer.lpu_system),
        left_out=market.left_out,
    )


def _plan(
    market: Market, question: Question, offers: Sequence[Offer], solution: Solution
) -> MixPlan:
    pools = [
        _pool(market, question, offers, solution, p)
        for p, count in enumerate(solution.systems)
        if count
    ]
    served = {p for p, count in enumerate(solution.systems) if count}
    placed = [offers[p] for p in sorted(served)]
    tiers = tuple(_tier(question, tier, pools, placed) for tier in question.tiers)
    bought = _bought(market, question, offers, solution)
    lpus = {offer.lpu_system for offer in offers}
    power_mw = sum(each.power_mw for each in bought)
    lpu_mw = sum(each.power_mw for each in bought if each.system in lpus)
    cost = Cost()
    for pool in pools:
        cost = cost.plus(pool.cost_per_h)
    revenue = sum(tier.revenue_usd_per_h for tier in tiers)
    value = {"profit": revenue - cost.usd, "revenue": revenue, "cost": -cost.usd}
    slack = solution.bound - solution.value
    return MixPlan(
        objective=question.objective,
        value_usd_per_h=value[question.objective],
        bound_usd_per_h=value[question.objective] + max(0.0, slack),
        revenue_usd_per_h=revenue,
        cost_per_h=cost,
        power_mw=power_mw,
        power_mw_max=question.power_mw,
        drawn_mw=sum(pool.drawn_mw for pool in pools),
        capital_usd=sum(each.capital_usd for each in bought),
        capital_usd_max=question.capital_usd,
        lpu_power_share=lpu_mw / power_mw if power_mw else 0.0,
        ready=_ready(market, question, bought),
        install_days=sum(each.install_days for each in bought),
        bought=bought,
        pools=tuple(pools),
        tiers=tiers,
        worth=_shadow_prices(question, solution),
    )


def _pool(
    market: Market, question: Question, offers: Sequence[Offer], solution: Solution, p: int
) -> PoolPlan:
    offer, count = offers[p], round(solution.systems[p])
    lpu_systems = _lpu_part(offers, solution, p)
    gpu, site = market.hardware[offer.system], question.site
    made = {tier: rate for (q, tier), rate in solution.served.items() if q == p and rate > 0}
    busy = sum(made.values()) / (count * offer.tokens_per_s)
    cost = cost_per_h(gpu, site, busy).times(count)
    power_mw = count * gpu.power_w / 1e6
    drawn_mw = count * drawn_w(gpu, site, busy) / 1e6
    if lpu_systems:
        lpu = market.hardware[offer.lpu_system]
        lpu_busy = busy * count * offer.lpu_systems / lpu_systems
        cost = cost.plus(cost_per_h(lpu, site, lpu_busy).times(lpu_systems))
        power_mw += lpu_systems * lpu.power_w / 1e6
        drawn_mw += lpu_systems * drawn_w(lpu, site, lpu_busy) / 1e6
    return PoolPlan(
        systems=offer.systems,
        mode=offer.mode,
        model=offer.work.model,
        context_tokens=offer.work.context_tokens,
        gpu_systems=count,
        lpu_systems=lpu_systems,
        workers=count // offer.unit * offer.replicas,
        gpus_per_worker=offer.gpus_per_replica,
        attention_dp=offer.attention_dp,
        prefill_workers=count // offer.unit * offer.prefill_replicas or None,
        prefill_gpus_per_worker=offer.prefill_gpus_per_replica or None,
        batch_max=offer.batch_max,
        interactivity_tokens_per_s=offer.interactivity_tokens_per_s,
        tokens_per_s=made,
        utilisation=busy,
        prefill_share=offer.prefill_share,
        power_mw=power_mw,
        drawn_mw=drawn_mw,
        cost_per_h=cost,
    )


def _lpu_part(offers: Sequence[Offer], solution: Solution, p: int) -> float:
    """A pool's part of the LPU systems that pools of its systems and model share, by need."""
    if not offers[p].lpu_system:
        return 0.0
    key = (offers[p].system, offers[p].lpu_system, offers[p].work.model)
    needs = {
        q: solution.systems[q] * other.lpu_systems
        for q, other in enumerate(offers)
        if (other.system, other.lpu_system, other.work.model) == key
    }
    return solution.lpus[key] * needs[p] / sum(needs.values())


def _bought(
    market: Market, question: Question, offers: Sequence[Offer], solution: Solution
) -> tuple[Bought, ...]:
    counts = dict.fromkeys(market.hardware, 0)
    for offer, count in zip(offers, solution.systems, strict=True):
        counts[offer.system] += round(count)
    for (_, lpu, _), count in solution.lpus.items():
        counts[lpu] += round(count)
    crew_h_per_day = question.site.install_crews * question.site.install_h_per_day
    return tuple(
        Bought(
            system=name,
            count=count,
            accelerators=count * market.hardware[name].accelerators,
            power_mw=count * market.hardware[name].power_w / 1e6,
            capital_usd=count * capital_usd(market.hardware[name], question.site),
            install_days=count * market.hardware[name].install_h / crew_h_per_day,
        )
        for name, count in counts.items()
        if count
    )


def _ready(market: Market, question: Question, bought: Sequence[Bought]) -> datetime.date:
    """The day on which all is in place: crews take what ships first, first."""
    days = 0.0
    for each in sorted(bought, key=lambda b: market.hardware[b.system].ship):
        ships: Hardware = market.hardware[each.system]
        days = max(days, float((ships.ship - question.start).days)) + each.install_days
    return question.start + datetime.timedelta(days=math.ceil(days - 1e-9))


def _tier(
    question: Question, tier: TierDemand, pools: Sequence[PoolPlan], offers: Sequence[Offer]
) -> TierPlan:
    cost = Cost()
    served = drawn_mw = 0.0
    places: list[Offer] = []
    for pool, offer in zip(pools, offers, strict=True):
        made = pool.tokens_per_s.get(tier.tier, 0.0)
        if made:
            share = made / sum(pool.tokens_per_s.values())
            cost = cost.plus(pool.cost_per_h.times(share))
            drawn_mw += pool.drawn_mw * share
            served += made
            places.append(offer)
    mtok_per_h = served * SECONDS_PER_H / TOKENS_PER_MTOK
    speeds = [offer.interactivity_tokens_per_s for offer in places]
    waits = [offer.ttft_s(tier, question.utilisation) for offer in places]
    return TierPlan(
        tier=tier.tier,
        asked_tokens_per_s=tier.tokens_per_s,
        served_tokens_per_s=served,
        promised_tokens_per_s=tier.interactivity_tokens_per_s,
        delivered_tokens_per_s=min(speeds, default=None),
        ttft_s=max(waits, default=None),
        revenue_usd_per_h=mtok_per_h * tier.usd_per_output_mtok,
        cost_per_h=cost,
        cost_per_mtok=cost.times(1 / mtok_per_h) if mtok_per_h else None,
        kwh_per_mtok=drawn_mw * 1e3 / mtok_per_h if mtok_per_h else None,
    )


def _shadow_prices(question: Question, solution: Solution) -> tuple[Worth, ...]:
    how = "shadow price, LPUs for the models that have them in the plan"
    duals = solution.duals
    found = [Worth(what="one more MW", usd_per_h=1e6 * duals["power",], how=how)]
    if ("capital",) in duals:
        usd = 1e6 * duals["capital",]
        found.append(Worth(what="one more million dollars of capital", usd_per_h=usd, how=how))
    crews = [dual for row, dual in duals.items() if row[0] == "install"]
    if any(crews):
        day_h = question.site.install_crews * question.site.install_h_per_day
        found.append(Worth(what="one more day to install", usd_per_h=sum(crews) * day_h, how=how))
    for tier in question.tiers:
        asked, must = tier.tokens_per_s, duals.get(("must", tier.tier), 0.0)
        # Of more demand, as large a share must be served.
        least = 1.0 if question.objective == "cost" else tier.at_least
        one = duals["demand", tier.tier] - least * must
        what = f"demand for 1,000 more {tier.tier} tokens/s"
        found.append(Worth(what=what, usd_per_h=1e3 / asked * one if asked else 0.0, how=how))
        if must:
            what = f"having to serve 1 % less of {tier.tier}"
            found.append(Worth(what=what, usd_per_h=0.01 * must, how=how))
    return tuple(found)
