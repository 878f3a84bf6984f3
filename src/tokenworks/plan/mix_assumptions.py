"""What a mix plan takes for granted: figures that nothing public backs, and rules of its own."""

from __future__ import annotations

from typing import Final

from tokenworks.catalogue.records import Record
from tokenworks.plan.assumptions import Assumption, used_by
from tokenworks.plan.mix_offers import LPU_HOST_CPU, Market, choices
from tokenworks.plan.mix_question import SITE, Case

BOUGHT: Final = ("price_usd", "install_h")
"""Fields of a system that a plan reads besides those that its projection does."""

RULES: Final = (
    f"all-in power holds the PUE of {SITE}; another PUE scales it",
    "systems take their power, and cost the same, whether busy or idle",
    f"LPUs stand beside systems with the CPU {LPU_HOST_CPU!r} only",
    "LPUs hold a whole copy of the feed-forward weights",
    "a system of GPUs serves one pool; prefill takes its share of the pool's GPUs",
    "the wait for prefill is that of an M/D/1 queue at the highest utilisation",
    "a system ships on the last day of the period that its maker names",
)


def assumptions(case: Case, market: Market) -> tuple[Assumption, ...]:
    """Figures of confidence ``assumed`` that were weighed; the plan's rules are ``RULES``."""
    question = case.question
    offers = choices(market.offers, question.tiers, question.utilisation)
    pairs = sorted({(offer.systems, offer.work.model) for offer in offers})
    names = sorted({name for systems, _ in pairs for name in systems.split("+")})
    money = [
        _assumption(system, field)
        for system in map(case.catalogue.system, names)
        for field in BOUGHT
        if field in system.assumed()
    ]
    money += [_assumption(question.site, field) for field in question.site.assumed()]
    return (*used_by(case.catalogue, pairs, case.projection), *money)


def _assumption(record: Record, field: str) -> Assumption:
    return Assumption(
        what=f"{record.kind} {record.name} {field}",
        value=float(getattr(record, field)),
        note=record.provenance[field].note,
    )
