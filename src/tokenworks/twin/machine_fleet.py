"""A factory of workers from the catalogue, and what each kind of worker came to in a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import UNSET

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.catalogue.records import Site, TierList
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import ModelName, PoolID, WorkerID
from tokenworks.core.slo import Tier
from tokenworks.core.units import (
    NANODOLLARS_PER_DOLLAR,
    NS_PER_HOUR,
    TOKENS_PER_MTOK,
    UDOLLARS_PER_DOLLAR,
    divide_half_even,
)
from tokenworks.dispatch.events import PoolScale
from tokenworks.twin.kinds import twin_book
from tokenworks.twin.machines import COUNT_MAX, Machines
from tokenworks.twin.records import NEVER, End, RunResult, Scenario, TwinRequest
from tokenworks.twin.report import judge
from tokenworks.twin.scenarios import Setting, configured_for

WATT_NS_PER_KWH: Final = 1_000 * NS_PER_HOUR


def machines_setting(kinds: Sequence[Machines], site: Site, book: PriceBook) -> Setting:
    """A factory of some kinds of worker, for one model.

    Its workers are up when it begins; of a kind that grows, the fewest, and the others take their
    time to come up.

    Args:
        kinds: each with its number of workers.
        site: whose electricity they use.
        book: that prices the model.

    Raises:
        ConfigInvalid: a kind is there twice, there are too many workers, none decodes or none
            prefills, or the model has no price.
    """
    names = [kind.wanted.name for kind in kinds]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigInvalid(
            f"{twice[0]!r} is named twice.", hint=f"Say how many there are: {twice[0]}=2."
        )
    specs = [
        msgspec.structs.replace(
            kind.spec,
            worker=WorkerID(f"{kind.wanted.name}-{number}"),
            start_ns=kind.spec.start_ns if number >= (kind.wanted.least or COUNT_MAX) else 0,
        )
        for kind in kinds
        for number in range(kind.wanted.count)
    ]
    if len(specs) > COUNT_MAX:
        raise ConfigInvalid(f"There are {len(specs)} workers.", hint=f"Have up to {COUNT_MAX}.")
    for role, other in (("prefill", "decode"), ("decode", "prefill")):
        if all(spec.role == role for spec in specs):
            gpus = names[0].partition(":")[0].partition("+")[0]  # LPUs do not prefill
            raise ConfigInvalid(
                f"All workers only {role}.", hint=f"Add some that {other}: {gpus}:{other}."
            )
    model = specs[0].model
    if model not in book.prices:
        raise ConfigInvalid(
            f"The model {model!r} has no price in {book.price_id}.",
            hint=f"It prices {', '.join(sorted(book.prices))}.",
        )
    scaling = _scaling(kinds)
    scenario = Scenario(
        name=", ".join(f"{kind.wanted.count} {kind.wanted.name}" for kind in kinds),
        workers=tuple(specs),
        configured=msgspec.structs.replace(configured_for(book), scaling=scaling or UNSET),
        book=book,
        energy_udollars_per_kwh=round(site.usd_per_kwh * UDOLLARS_PER_DOLLAR),
    )
    return Setting(scenario=scenario)


def _scaling(kinds: Sequence[Machines]) -> tuple[PoolScale, ...]:
    return tuple(
        PoolScale(
            pool=kind.spec.pool,
            model=kind.spec.model,
            workers_min=kind.wanted.least,
            workers_max=kind.wanted.count,
            start_ns=kind.spec.start_ns,
        )
        for kind in kinds
        if kind.wanted.least is not None
    )


def chart_book(model: str, tiers: TierList) -> PriceBook:
    """A price book of the twin's with the speeds that a public list of tiers promises.

    Raises:
        ConfigInvalid: the list lacks one of the five tiers.
    """
    speeds = {line.tier: round(line.interactivity_tokens_per_s) for line in tiers.tiers}
    lacking = [tier for tier in Tier if tier not in speeds]
    if lacking:
        raise ConfigInvalid(
            f"The tiers {tiers.name!r} have no {lacking[0]}.",
            hint="Give a --price-book of your own instead.",
        )
    return twin_book(ModelName(model), {tier: speeds[tier] for tier in Tier})


class KindReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the workers of one pool came to.

    Attributes:
        pool: that they are of.
        workers: how many.
        utilisation: share of the time that they were up in which they computed.
        output_tokens: that they made.
        revenue_nanodollars: of the answers that ended there.
        cost_nanodollars: energy, and the hardware while it was up.
        energy_kwh: at work and idle.
        cost_usd_per_mtok: by 1M output tokens; None if there were none.
        requests: that ended there, by asked tier.
        kept: of these, those whose promise was kept.
    """

    pool: PoolID
    workers: int
    utilisation: float
    output_tokens: int
    revenue_nanodollars: int
    cost_nanodollars: int
    energy_kwh: float
    cost_usd_per_mtok: float | None
    requests: dict[Tier, int]
    kept: dict[Tier, int]


def kind_reports(
    scenario: Scenario, requests: Sequence[TwinRequest], result: RunResult
) -> tuple[KindReport, ...]:
    """Each pool of a run, in the scenario's order.

    An answer that was prefilled on one worker and decoded on another counts at the latter.
    """
    answers = judge(scenario, requests, result.outcomes)
    pools = list(dict.fromkeys(spec.pool for spec in scenario.workers))
    money = dict.fromkeys(pools, 0)
    served = {pool: dict.fromkeys(Tier, 0) for pool in pools}
    kept = {pool: dict.fromkeys(Tier, 0) for pool in pools}
    for index, request in enumerate(requests):
        place = result.outcomes.worker[index]
        if place == NEVER or result.outcomes.end[index] != End.DONE:
            continue
        pool = scenario.workers[place].pool
        served[pool][request.tier] += 1
        kept[pool][request.tier] += answers.kept[index]
        money[pool] += answers.charged[index] - answers.credited[index] + answers.ads[index]
    return tuple(
        _report(scenario, result, pool, money[pool], served[pool], kept[pool]) for pool in pools
    )


def _report(
    scenario: Scenario,
    result: RunResult,
    pool: PoolID,
    money: int,
    served: dict[Tier, int],
    kept: dict[Tier, int],
) -> KindReport:
    own = [
        (spec, use)
        for spec, use in zip(scenario.workers, result.workers, strict=True)
        if spec.pool == pool
    ]
    energy = capital = up_ns = busy_ns = tokens = 0
    for spec, use in own:
        energy += spec.power_w * use.busy_ns
        energy += spec.idle_power_w * max(0, use.up_ns - use.busy_ns)
        capital += spec.capital_udollars_per_hour * use.up_ns
        up_ns, busy_ns = up_ns + use.up_ns, busy_ns + use.busy_ns
        tokens += use.output_tokens
    # See the report's own sums for the units.
    cost = divide_half_even(energy * scenario.energy_udollars_per_kwh, NS_PER_HOUR)
    cost += divide_half_even(capital * 1_000, NS_PER_HOUR)
    return KindReport(
        pool=pool,
        workers=len(own),
        utilisation=busy_ns / up_ns if up_ns else 0.0,
        output_tokens=tokens,
        revenue_nanodollars=money,
        cost_nanodollars=cost,
        energy_kwh=energy / WATT_NS_PER_KWH,
        cost_usd_per_mtok=(
            cost * TOKENS_PER_MTOK / (tokens * NANODOLLARS_PER_DOLLAR) if tokens else None
        ),
        requests=served,
        kept=kept,
    )
