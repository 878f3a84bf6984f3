"""What a mix plan takes for granted: figures that nothing public backs, and rules of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tokenworks.catalogue.records import Record
from tokenworks.plan.assumptions import Assumption, used_by
from tokenworks.plan.mix_inputs import Offer
from tokenworks.plan.mix_offers import LPU_HOST_CPU, Market, choices
from tokenworks.plan.mix_question import SITE, Case
from tokenworks.plan.worker_speed import PREFILL_TOKENS

BOUGHT: Final = ("price_usd", "install_h")
"""Fields of a system that a plan reads besides those that its projection does."""

RULES: Final = (
    f"all-in power holds the PUE of {SITE}; another PUE scales it",
    "all-in power is provisioned for every system, and drawn by one that is always busy",
    "a system without work draws the site's idle_power_share; one between them, in proportion",
    f"LPUs stand beside systems with the CPU {LPU_HOST_CPU!r} only",
    "LPUs hold a whole copy of the feed-forward weights",
    "a system of GPUs serves one pool; prefill takes its share of the pool's GPUs",
    "the wait for prefill is that of an M/D/1 queue at the highest utilisation",
    "a system ships on the last day of the period that its maker names",
)

MEASURED_RULES: Final = (
    "workers that prefill and decode take one request after another, as rows were measured",
    f"workers that prefill only take one prompt, or {PREFILL_TOKENS:,} new tokens, at a time",
    "no row has LPUs: attention keeps its calibrated part of a step, and LPUs draft nothing",
    "LPUs and their links reach the projection's peak_share",
)
"""Those of a plan with a measured engine's speeds, besides."""


def assumptions(case: Case, market: Market, *, measured: bool = False) -> tuple[Assumption, ...]:
    """Figures of confidence ``assumed`` that were weighed; the plan's rules are ``RULES``.

    Args:
        case: that was planned.
        market: what could be bought.
        measured: speeds are those of a measured engine, not the projection's.
    """
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
    used = used_by(case.catalogue, pairs, case.projection)
    if measured:
        share = {f"projection {case.projection.name} peak_share"} if _has_lpus(offers) else set()
        used = tuple(e for e in used if not e.what.startswith("projection") or e.what in share)
    return (*used, *money)


def _has_lpus(offers: Sequence[Offer]) -> bool:
    return any(offer.lpu_system for offer in offers)


def _assumption(record: Record, field: str) -> Assumption:
    return Assumption(
        what=f"{record.kind} {record.name} {field}",
        value=float(getattr(record, field)),
        note=record.provenance[field].note,
    )
