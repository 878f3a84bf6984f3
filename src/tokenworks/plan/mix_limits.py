"""What stands in a plan's way, and the nearest thing that would be feasible."""

from __future__ import annotations

import math

import msgspec

from tokenworks.core.errors import ConfigInvalid
from tokenworks.plan.mix_cost import capital_usd
from tokenworks.plan.mix_inputs import Offer, Question, TierDemand
from tokenworks.plan.mix_offers import Market, choices
from tokenworks.plan.mix_program import Aim, Solution, programme, solve


def check_promises(market: Market, question: Question) -> None:
    """See that the budgets buy something, and that each tier's promises can be kept on it.

    Raises:
        ConfigInvalid: nothing ships by then or fits the budgets, or a promise that nothing keeps.
    """
    if not market.offers:
        reasons = "; ".join(f"{name}: {why}" for name, why in sorted(market.left_out.items()))
        raise ConfigInvalid(
            f"Nothing that decodes can be bought by {question.by}. {reasons}".strip(),
            hint="Name a later date (--by) or other systems (--systems).",
        )
    systems = [market.hardware[name] for name in sorted({o.system for o in market.offers})]
    least = min(each.power_w for each in systems) / 1e6
    if question.power_mw < least:
        raise ConfigInvalid(
            f"No system fits into {question.power_mw:g} MW.",
            hint=f"The smallest takes {least:.4g} MW.",
        )
    usd = min(capital_usd(each, question.site) for each in systems)
    if question.capital_usd is not None and question.capital_usd < usd:
        raise ConfigInvalid(
            f"No system can be had for ${question.capital_usd:,.0f}.",
            hint=f"The cheapest takes ${_up(usd):,.0f}, its network and facility included.",
        )
    for tier in question.tiers:
        fitting = [offer for offer in market.offers if offer.work == tier.work]
        if not fitting:
            raise ConfigInvalid(
                f"Tier {tier.tier!r}: {tier.work.model} with {tier.work.context_tokens:,} tokens "
                "of context fits into no system.",
                hint="Allow larger systems (--systems), a smaller model or a shorter context.",
            )
        if not any(offer.keeps(tier, question.utilisation) for offer in fitting):
            raise _broken(question, tier, fitting)


def _broken(question: Question, tier: TierDemand, fitting: list[Offer]) -> ConfigInvalid:
    """A promise that nothing keeps; each of the two is looked at with the other kept."""
    fastest = max(fitting, key=lambda offer: offer.interactivity_tokens_per_s)
    speed = fastest.interactivity_tokens_per_s
    where = f"{tier.work.model} at {tier.work.context_tokens:,} tokens of context"
    if speed < tier.interactivity_tokens_per_s:
        return ConfigInvalid(
            f"Tier {tier.tier!r} promises {tier.interactivity_tokens_per_s:g} tokens/s per user; "
            f"nothing that can be bought by {question.by} decodes {where} so fast.",
            hint=f"Promise {math.floor(speed)} or less ({fastest.systems}), or leave the tier out.",
        )
    quick = [o for o in fitting if o.interactivity_tokens_per_s >= tier.interactivity_tokens_per_s]
    soonest = min(quick, key=lambda offer: offer.ttft_s(tier, question.utilisation))
    ttft_s = soonest.ttft_s(tier, question.utilisation)
    return ConfigInvalid(
        f"Tier {tier.tier!r} promises the first token in {tier.ttft_s:g} s; at "
        f"{tier.interactivity_tokens_per_s:g} tokens/s and a utilisation of "
        f"{question.utilisation:g} nothing that can be bought by {question.by} is so quick.",
        hint=f"Promise {_up(ttft_s):g} s ({soonest.systems}) or more.",
    )


def no_plan(market: Market, question: Question) -> ConfigInvalid:
    """What must be served exceeds the budgets: how much would fit, and what all of it needs."""
    must = [tier for tier in question.tiers if tier.at_least or question.objective == "cost"]
    names = ", ".join(tier.tier for tier in must)
    budgets = [f"{question.power_mw:g} MW"]
    if question.capital_usd is not None:
        budgets.append(f"${question.capital_usd:,.0f}")
    budgets.append(f"installation from {question.start} to {question.by}")
    strict = _strict(question)
    fitting = _solved(market, strict, "share")
    share = 0.0 if fitting is None or fitting.share is None else fitting.share
    hints = []
    if (found := _solved(market, strict, "power")) is not None:
        hints.append(f"{_up(-found.value / 1e6):g} MW with the other budgets as they are")
    if question.capital_usd is not None:
        if (found := _solved(market, strict, "capital")) is not None:
            hints.append(f"${_up(-found.value):,.0f} with the other budgets as they are")
        both = msgspec.structs.replace(strict, capital_usd=None)
        if not hints and (found := _solved(market, both, "power")) is not None:
            hints.append(f"{_up(-found.value / 1e6):g} MW and more capital")
    needs = f"It needs {', or '.join(hints)}." if hints else "It needs a later date or more crews."
    return ConfigInvalid(
        f"What must be served ({names}) does not fit into {', '.join(budgets)}: "
        f"{math.floor(100 * share)} % of it does.",
        hint=needs,
    )


def _strict(question: Question) -> Question:
    """The same with all of the demand in what must be served, where cost is the objective."""
    if question.objective != "cost":
        return question
    tiers = tuple(msgspec.structs.replace(tier, at_least=1.0) for tier in question.tiers)
    return msgspec.structs.replace(question, tiers=tiers)


def _solved(market: Market, question: Question, aim: Aim) -> Solution | None:
    offers = choices(market.offers, question.tiers, question.utilisation)
    return solve(programme(question, market.hardware, offers, aim), duals=False)


def _up(value: float) -> float:
    """Rounded up to four digits, so that what is said is enough.

    >>> _up(12.34561), _up(3.0)
    (12.35, 3.0)
    """
    scale = 10.0 ** (3 - math.floor(math.log10(value)))
    return math.ceil(value * scale - 1e-9) / scale
