"""What a mix is planned from: demand by tier, budgets, and what systems offer.

An *offer* is what one system in one mode makes at one operating point; where it comes from, a
projection or measured rows, doesn't matter here.
"""

from __future__ import annotations

import datetime
from typing import Final, Literal

import msgspec

from tokenworks.catalogue.records import Site

SECONDS_PER_H: Final = 3600.0
HOURS_PER_YEAR: Final = 8760.0
TOKENS_PER_MTOK: Final = 1e6

Objective = Literal["profit", "revenue", "cost"]
"""``cost`` serves the whole demand for the least money."""

Mode = Literal["aggregated", "disaggregated", "disaggregated+lpu"]
"""``aggregated``: each GPU prefills and decodes. ``disaggregated``: prefill and decode on GPUs of
their own. ``disaggregated+lpu``: besides, attention of decoding stays on its GPUs and LPUs compute
the feed-forward blocks."""


class Work(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """What tiers must share to be served by the same workers.

    Attributes:
        model: its name.
        context_tokens: of a sequence, at the mean.
        new_tokens_per_output: of prompt that no cache holds, for each token of output.
    """

    model: str
    context_tokens: int
    new_tokens_per_output: float


class TierDemand(msgspec.Struct, frozen=True, kw_only=True):
    """What a tier's users ask for, are promised and pay.

    Attributes:
        tier: its name.
        work: model, context and prefill.
        requests_per_s: at the mean.
        output_tokens: of a request.
        prompt_tokens: of a request, cached ones included.
        cached_share: of the prompt that a prefix cache holds.
        interactivity_tokens_per_s: promised to each user.
        ttft_s: promised; None where nothing is.
        usd_per_mtok: of output.
        input_usd_per_mtok: of prompt that no cache holds.
        cached_usd_per_mtok: of prompt that a cache holds.
        ad_usd_per_mtok: that advertisers pay for output.
        at_least: share of the demand that must be served.
    """

    tier: str
    work: Work
    requests_per_s: float
    output_tokens: int
    prompt_tokens: int
    cached_share: float
    interactivity_tokens_per_s: float
    ttft_s: float | None
    usd_per_mtok: float
    input_usd_per_mtok: float = 0.0
    cached_usd_per_mtok: float = 0.0
    ad_usd_per_mtok: float = 0.0
    at_least: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Of output, that are asked for."""
        return self.requests_per_s * self.output_tokens

    @property
    def usd_per_output_mtok(self) -> float:
        """All that 1M tokens of output earn, their prompts included."""
        per_output = self.prompt_tokens / self.output_tokens
        prompt = self.input_usd_per_mtok * (1 - self.cached_share)
        prompt += self.cached_usd_per_mtok * self.cached_share
        return self.usd_per_mtok + self.ad_usd_per_mtok + per_output * prompt


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """A system as it is bought.

    Attributes:
        name: of the system.
        accelerators: GPUs or LPUs in it.
        power_w: of the utility's, cooling included, at the site.
        price_usd: of the system alone.
        install_h: of a crew, for one.
        ship: it can be bought from then on.
    """

    name: str
    accelerators: int
    power_w: float
    price_usd: float
    install_h: float
    ship: datetime.date


class Offer(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """What one system in one mode makes at one operating point.

    Attributes:
        system: of GPUs.
        lpu_system: beside it; empty where there is none.
        mode: how the work is split.
        work: that it does.
        unit: systems that workers of both kinds share, bought together.
        gpus_per_replica: of a worker that decodes.
        attention_dp: groups of it that each attend to their own sequences, where that is told.
        replicas: workers that decode, in a unit.
        prefill_gpus_per_replica: of a worker that prefills only; 0 where none is told apart.
        prefill_replicas: such workers, in a unit.
        batch_max: sequences that a worker decodes at a time.
        interactivity_tokens_per_s: that each user sees.
        tokens_per_s: of output from a system that is always busy, its prefill done.
        prefill_share: of its GPUs, for prefill.
        prefill_s_per_output: of a worker's GPUs together, for each token of output.
        waits: ``prefill_s_per_output`` holds the wait for others too, as it was measured.
        lpu_systems: for each system of GPUs.
        lpu_systems_min: that hold one copy of the weights.
    """

    system: str
    lpu_system: str = ""
    mode: Mode = "disaggregated"
    work: Work
    unit: int = 1
    gpus_per_replica: int
    attention_dp: int = 1
    replicas: int
    prefill_gpus_per_replica: int = 0
    prefill_replicas: int = 0
    batch_max: int
    interactivity_tokens_per_s: float
    tokens_per_s: float
    prefill_share: float
    prefill_s_per_output: float
    waits: bool = False
    lpu_systems: float = 0.0
    lpu_systems_min: int = 0

    @property
    def systems(self) -> str:
        """Names joined, as in ``vr-nvl72+lpx``."""
        return f"{self.system}+{self.lpu_system}" if self.lpu_system else self.system

    def ttft_s(self, demand: TierDemand, utilisation: float) -> float:
        """Mean time to first token: a prompt's prefill, the wait for it, and one token's time.

        It is a lower bound: prefill spreads over all GPUs of a worker without loss.

        Source: Pollaczek and Khinchine for M/D/1: the mean wait is u / (2 (1 - u)) of the service.
        """
        service_s = self.prefill_s_per_output * demand.output_tokens
        wait_s = 0.0 if self.waits else service_s * utilisation / (2 * (1 - utilisation))
        return service_s + wait_s + 1 / self.interactivity_tokens_per_s

    def keeps(self, demand: TierDemand, utilisation: float) -> bool:
        """Whether a tier's work and promises fit."""
        return (
            self.work == demand.work
            and self.interactivity_tokens_per_s >= demand.interactivity_tokens_per_s
            and (demand.ttft_s is None or self.ttft_s(demand, utilisation) <= demand.ttft_s)
        )


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan is asked for.

    Attributes:
        tiers: demand and promises, no two of one name.
        power_mw: of the utility's, at most.
        capital_usd: for systems, network and facility, at most; None where it doesn't matter.
        start: work begins.
        by: all runs from then on.
        site: what a place costs.
        all_in_pue: that the catalogue's all-in power holds.
        utilisation: of what a pool could make, at most, so that queues stay short.
        objective: what is best.
        systems: that may be bought, by name; empty for all that the catalogue has.
        without: of them, those that may not.
    """

    tiers: tuple[TierDemand, ...]
    power_mw: float
    capital_usd: float | None
    start: datetime.date
    by: datetime.date
    site: Site
    all_in_pue: float
    utilisation: float
    objective: Objective = "profit"
    systems: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def tier(self, name: str) -> TierDemand:
        """A tier by name; it must be there."""
        (found,) = (each for each in self.tiers if each.tier == name)
        return found

    def with_tier(self, name: str, **changes: object) -> Question:
        """The same with figures of one tier changed."""
        return msgspec.structs.replace(
            self,
            tiers=tuple(
                msgspec.structs.replace(each, **changes) if each.tier == name else each
                for each in self.tiers
            ),
        )
