"""What a mix plan takes for granted: figures that nothing public backs, and rules of its own."""

from __future__ import annotations

from typing import Final

import msgspec

from tokenworks.catalogue.records import Record
from tokenworks.plan.mix_offers import LPU_HOST_CPU, Market, choices
from tokenworks.plan.mix_question import SITE, Case


class Assumed(msgspec.Struct, frozen=True, kw_only=True):
    """A figure, or a rule, that the answer rests on.

    Attributes:
        what: ``record.field``, or the rule.
        value: of the figure; None of a rule.
        note: why, as the catalogue has it.
    """

    what: str
    value: float | None = None
    note: str = ""


RULES: Final = (
    f"all-in power holds the PUE of {SITE}; another PUE scales it",
    "systems take their power, and cost the same, whether busy or idle",
    f"LPUs stand beside systems with the CPU {LPU_HOST_CPU!r} only",
    "LPUs hold a whole copy of the feed-forward weights",
    "a system of GPUs serves one pool; prefill takes its share of the pool's GPUs",
    "the wait for prefill is that of an M/D/1 queue at the highest utilisation",
    "a system ships on the last day of the period that its maker names",
)


def assumptions(case: Case, market: Market) -> tuple[Assumed, ...]:
    """Figures of confidence ``assumed`` in the records that were weighed, and the plan's rules."""
    question = case.question
    offers = choices(market.offers, question.tiers, question.utilisation)
    names = {name for offer in offers for name in (offer.system, offer.lpu_system) if name}
    records: dict[tuple[str, str], Record] = {}
    for name in sorted(names):
        system = case.catalogue.system(name)
        part = case.catalogue.accelerator(system.accelerator or system.lpu)
        records |= {(each.kind, each.name): each for each in (system, part)}
    for tier in question.tiers:
        model = case.catalogue.model(tier.work.model)
        records[model.kind, model.name] = model
    for rest in (question.site, case.projection):
        records[rest.kind, rest.name] = rest
    figures = [
        Assumed(
            what=f"{record.name}.{field}",
            value=float(getattr(record, field)),
            note=record.provenance[field].note,
        )
        for record in records.values()
        for field in record.assumed()
    ]
    return (*figures, *(Assumed(what=rule) for rule in RULES))
