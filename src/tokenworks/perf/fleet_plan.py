"""What a fleet should do on the whole: a plan that an event can carry to the dispatcher."""

from __future__ import annotations

import msgspec

from tokenworks.core.ids import ModelName
from tokenworks.core.slo import Tier


class TierPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one asked tier of a model gets of one class of workers.

    Attributes:
        worker_class: workers that are alike.
        model: what they serve.
        tier: asked for.
        running_milli: thousandths of sequences that decode at one time on the average, over all of
            the class's workers.
        requests_ppm: share of the tier's requests that the class serves, in millionths.
    """

    worker_class: str
    model: ModelName
    tier: Tier
    running_milli: int
    requests_ppm: int


class TierBid(msgspec.Struct, frozen=True, kw_only=True):
    """What one more request of a tier is worth, beyond what it takes from others.

    Attributes:
        model: asked for.
        tier: asked for.
        request_nanodollars: of one more request of average size.
        output_udollars_per_mtok: the same, for each of its output tokens.
    """

    model: ModelName
    tier: Tier
    request_nanodollars: int
    output_udollars_per_mtok: int


class SecondBid(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker's time is worth: a request that pays less for it should not have it.

    Attributes:
        worker_class: workers that are alike.
        second_nanodollars: of one worker's second.
    """

    worker_class: str
    second_nanodollars: int


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A plan for a fleet, in integers.

    Attributes:
        made_by: the linear programme, or the greedy fill where no solver is installed.
        revenue_nanodollars: that the plan earns in the time it was made for.
        tiers: by class, model and tier; those that get nothing are left out.
        bids: by model and tier.
        seconds: by class.
    """

    made_by: str
    revenue_nanodollars: int
    tiers: tuple[TierPlan, ...]
    bids: tuple[TierBid, ...]
    seconds: tuple[SecondBid, ...]
