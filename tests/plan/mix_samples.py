"""A market that fits on paper: a GPU rack, and LPUs that make it quicker."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from tokenworks.live.catalogue_files import read_catalogue
from tokenworks.plan.mix_inputs import Hardware, Offer, Question, TierDemand, Work
from tokenworks.plan.mix_offers import Market

SHIPPED = read_catalogue()
SITE = SHIPPED.site("us-hyperscale")
START = datetime.date(2026, 12, 1)
WORK = Work(model="m", context_tokens=1_000, new_tokens_per_output=1.0)


def rack(
    name: str = "rack", *, power_w: float = 100_000.0, usd: float = 1e6, h: float = 2.0
) -> Hardware:
    return Hardware(
        name=name,
        accelerators=72,
        power_w=power_w,
        price_usd=usd,
        install_h=h,
        ship=datetime.date(2026, 1, 1),
    )


def offer(
    speed: float, tokens_per_s: float, *, system: str = "rack", lpus: float = 0.0, least: int = 0
) -> Offer:
    return Offer(
        system=system,
        lpu_system="lpu" if lpus else "",
        mode="disaggregated+lpu" if lpus else "disaggregated",
        work=WORK,
        gpus_per_replica=8,
        replicas=9,
        batch_max=64,
        interactivity_tokens_per_s=speed,
        tokens_per_s=tokens_per_s,
        prefill_share=0.1,
        prefill_s_per_output=1e-4,
        lpu_systems=lpus,
        lpu_systems_min=least,
    )


def market(*offers: Offer, hardware: Mapping[str, Hardware] | None = None) -> Market:
    own = hardware or {"rack": rack(), "lpu": rack("lpu", power_w=50_000.0, usd=5e5)}
    return Market(hardware=dict(own), offers=offers, left_out={})


def demand(
    tier: str = "high", tokens_per_s: float = 1e6, speed: float = 50.0, usd: float = 5.0
) -> TierDemand:
    return TierDemand(
        tier=tier,
        work=WORK,
        requests_per_s=tokens_per_s / 100,
        output_tokens=100,
        prompt_tokens=950,
        cached_share=0.5,
        interactivity_tokens_per_s=speed,
        ttft_s=None,
        usd_per_mtok=usd,
    )


def question(
    *tiers: TierDemand, power_mw: float = 10.0, capital_usd: float | None = None
) -> Question:
    return Question(
        tiers=tiers or (demand(),),
        power_mw=power_mw,
        capital_usd=capital_usd,
        start=START,
        by=START + datetime.timedelta(days=100),
        site=SITE,
        all_in_pue=SITE.pue,
        utilisation=0.8,
    )
