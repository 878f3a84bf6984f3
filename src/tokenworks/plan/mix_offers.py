"""Offers from a projection: each way to decode on each system that is not beaten by another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import ge
from typing import Final

import msgspec

from tokenworks.catalogue.records import Projection, System
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.architecture import shape_of
from tokenworks.perf.case import check_context
from tokenworks.perf.split import lpus_needed
from tokenworks.plan.mix_cost import hardware_of
from tokenworks.plan.mix_inputs import Hardware, Offer, Question, TierDemand, Work
from tokenworks.plan.mix_measured import Measured, Rack, rack_of
from tokenworks.plan.projection import Machine, candidates, machine_of, prefill_s_per_output
from tokenworks.plan.projection import Work as Decoding

LPU_HOST_CPU: Final = "vera"
"""LPUs are sold to stand beside systems of the Vera Rubin platform and its successors."""


class Market(msgspec.Struct, frozen=True, kw_only=True):
    """What can be bought by a date, and what can't.

    Attributes:
        hardware: by name.
        offers: of all work that the question asks for.
        left_out: systems and why.
    """

    hardware: dict[str, Hardware]
    offers: tuple[Offer, ...]
    left_out: dict[str, str]


class Offerer:
    """Makes offers, and remembers those of a machine and work: sweeps ask for the same again.

    With a measured engine, offers are its own; LPUs beside it are the projection's.
    """

    def __init__(self, measured: Measured | None = None) -> None:
        self._measured = measured
        self._made: dict[tuple[bytes, ...], tuple[Offer, ...]] = {}

    @property
    def measured(self) -> bool:
        """Whether speeds are those of a measured engine."""
        return self._measured is not None

    def market(self, catalogue: Catalogue, projection: Projection, question: Question) -> Market:
        """All that may be bought for a question.

        Raises:
            ConfigInvalid: a system is unknown or lacks a number, though the question names it, or a
                tier's context is more than its model was trained for.
        """
        for tier in question.tiers:
            check_context(catalogue.model(tier.work.model), tier.work.context_tokens)
        hardware, left_out = _hardware(catalogue, question)
        gpus = [name for name in hardware if catalogue.system(name).accelerator]
        lpus = [name for name in hardware if catalogue.system(name).lpu]
        works = sorted({tier.work for tier in question.tiers})
        offers: list[Offer] = []
        for name in gpus:
            system = catalogue.system(name)
            beside = ("", *(lpus if system.cpu == LPU_HOST_CPU else ()))
            if self._measured is not None:
                for work in works:
                    for lpu in beside:
                        rack = rack_of(catalogue, lpu, projection) if lpu else None
                        offers += self._engine_offers(catalogue, system, rack, work)
                continue
            for lpu in beside:
                systems = f"{name}+{lpu}" if lpu else name
                try:
                    machine = machine_of(catalogue, systems, projection)
                except ConfigInvalid as error:
                    if name in question.systems:
                        raise
                    left_out[systems] = error.message
                    continue
                for work in works:
                    offers += self._offers(catalogue, machine, work, projection)
        if offers:  # LPUs that were named have their systems
            left_out = {name: why for name, why in left_out.items() if name not in lpus}
        return Market(hardware=hardware, offers=tuple(offers), left_out=left_out)

    def _engine_offers(
        self, catalogue: Catalogue, system: System, rack: Rack | None, work: Work
    ) -> tuple[Offer, ...]:
        assert self._measured is not None
        device, model = catalogue.accelerator(system.accelerator), catalogue.model(work.model)
        key = tuple(msgspec.json.encode(each) for each in (system, device, model, rack, work))
        if key not in self._made:
            made = self._measured.offers(system, device, shape_of(model), work, rack)
            self._made[key] = tuple(unbeaten(made))
        return self._made[key]

    def _offers(
        self, catalogue: Catalogue, machine: Machine, work: Work, projection: Projection
    ) -> tuple[Offer, ...]:
        asked = (machine, work, projection, catalogue.model(work.model))
        key = tuple(msgspec.json.encode(each) for each in asked)
        if key not in self._made:
            self._made[key] = tuple(offers_of(catalogue, machine, work, projection))
        return self._made[key]


def offers_of(
    catalogue: Catalogue, machine: Machine, work: Work, projection: Projection
) -> list[Offer]:
    """A machine's offers for some work, none of which another beats in all that counts."""
    model = catalogue.model(work.model)
    own = msgspec.structs.replace(projection, new_tokens_per_output=work.new_tokens_per_output)
    shape = shape_of(model)
    done = Decoding(machine=machine, shape=shape, context=work.context_tokens, how=own)
    prefill_s = prefill_s_per_output(done)
    system, _, lpu_system = machine.name.partition("+")
    lpus = machine.lpus
    copies = math.ceil(lpus_needed(shape, lpus) / lpus.count) if lpus else 0
    found = []
    for each in candidates(machine, model, work.context_tokens, own):
        replicas = machine.gpus // each.gpus
        used = replicas * each.gpus
        if not used:
            continue
        found.append(
            Offer(
                system=catalogue.system(system).name,
                lpu_system=catalogue.system(lpu_system).name if lpu_system else "",
                mode="disaggregated+lpu" if lpu_system else "disaggregated",
                work=work,
                gpus_per_replica=each.gpus,
                replicas=replicas,
                batch_max=each.batch,
                interactivity_tokens_per_s=each.interactivity_tokens_per_s,
                tokens_per_s=used * each.tokens_per_s_per_gpu,
                prefill_share=each.prefill_share,
                prefill_s_per_output=prefill_s / each.gpus,
                lpu_systems=used * each.lpu_racks_per_gpu,
                lpu_systems_min=copies,
            )
        )
    return unbeaten(found)


def unbeaten(offers: Sequence[Offer]) -> list[Offer]:
    """Offers of one machine and work that no other beats in all that counts.

    That is speed, yield, time to first token, LPUs and the systems of a unit.
    """
    kept: list[tuple[tuple[float, ...], Offer]] = []
    for rank, offer in sorted(((_rank(each), each) for each in _stairs(offers)), reverse=True):
        # In this order none that comes later makes more.
        if not any(all(map(ge, o[1:], rank[1:])) for o, _ in kept):
            kept.append((rank, offer))
    return [offer for _, offer in kept]


def _stairs(offers: Sequence[Offer]) -> list[Offer]:
    """Of workers of one size and prefill, fastest first, those that make more or need fewer LPUs.

    The rest are beaten by one of these.
    """
    best: dict[tuple[object, ...], tuple[float, float]] = {}
    kept = []
    for offer in sorted(offers, key=lambda o: (-o.interactivity_tokens_per_s, -o.tokens_per_s)):
        size = (offer.mode, offer.gpus_per_replica, offer.prefill_gpus_per_replica, offer.unit)
        made, ratio = best.get(size, (0.0, math.inf))
        own = offer.lpu_systems / offer.tokens_per_s
        if offer.tokens_per_s > made or own < ratio:
            kept.append(offer)
            best[size] = (max(made, offer.tokens_per_s), min(ratio, own))
    return kept


def choices(
    offers: Sequence[Offer], tiers: Sequence[TierDemand], utilisation: float
) -> list[Offer]:
    """Those that are best for some tier's promises; no others can be in a best plan.

    Slower than promised is no use, faster than promised is no gain: among the offers of a machine
    and unit that keep a tier's promises only yield and LPUs count.
    """
    chosen: dict[Offer, None] = {}
    for tier in tiers:
        kept: dict[tuple[str, int], list[Offer]] = {}
        for offer in offers:
            if offer.keeps(tier, utilisation):
                kept.setdefault((offer.systems, offer.unit), []).append(offer)
        for each in kept.values():
            fewest = math.inf
            for offer in sorted(each, key=lambda o: (-o.tokens_per_s, o.lpu_systems)):
                ratio = offer.lpu_systems / offer.tokens_per_s
                if ratio < fewest * (1 - RATIO_STEP):
                    chosen[offer] = None
                    fewest = ratio
    return list(chosen)


RATIO_STEP: Final = 0.02
"""An offer of less yield must save at least this share of LPUs to be a choice of its own."""


def _rank(offer: Offer) -> tuple[float, ...]:
    return (
        offer.tokens_per_s,
        offer.interactivity_tokens_per_s,
        -offer.lpu_systems / offer.tokens_per_s,
        -offer.prefill_s_per_output,
        float(offer.waits),
        -float(offer.unit),
    )


def _why_not(system: System, banned: set[str]) -> str:
    """Why a system that was named decodes nothing by itself."""
    if system.name in banned:
        return "It is named in `without`, too."
    if not (system.accelerator or system.lpu):
        return "It has neither GPUs nor LPUs."
    return "" if system.accelerator else "LPUs decode beside systems of GPUs only."


def _hardware(
    catalogue: Catalogue, question: Question
) -> tuple[dict[str, Hardware], dict[str, str]]:
    named = [catalogue.system(name) for name in question.systems]
    banned = {catalogue.system(name).name for name in question.without}
    hardware: dict[str, Hardware] = {}
    left_out: dict[str, str] = {}
    for system in named or catalogue.all_of(System):
        if named and (why := _why_not(system, banned)):
            left_out[system.name] = why
        if system.name in banned or not (system.accelerator or system.lpu):
            continue
        try:
            found = hardware_of(catalogue, system, question)
        except ConfigInvalid as error:
            if named:
                raise
            left_out[system.name] = error.message
            continue
        if found.ship > question.by:
            left_out[system.name] = f"It ships on {found.ship}, after {question.by}."
        else:
            hardware[system.name] = found
    return hardware, left_out
