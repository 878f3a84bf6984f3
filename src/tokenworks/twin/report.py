"""What a run of the twin came to: speed, promises, money and energy, exact where it is money."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from tokenworks.core.ids import RequestID
from tokenworks.core.orders import Usage
from tokenworks.core.slo import Measured, Tier, delivered_tier
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR, NS_PER_HOUR, TOKENS_PER_MTOK
from tokenworks.ledger.metering import ad_income_nanodollars, charge_nanodollars, credit_nanodollars
from tokenworks.twin.records import End, RunResult, Scenario, TwinRequest

QUANTILES: Final = (50, 90, 99)
TIERS: Final = tuple(Tier)


class TierReport(msgspec.Struct, frozen=True, kw_only=True):
    """One tier, by what was asked for.

    Attributes:
        tier: asked for.
        requests: that came.
        done: that were answered whole.
        rejected: that were refused.
        kept: share of those that came whose promise was kept.
        delivered: by tier, how many were delivered at it.
        revenue_nanodollars: earned, ad income included, credits taken off.
        ttft_ms, tpot_ms, itl_ms: p50, p90 and p99; the ITL is each answer's longest.
        wait_ms_max: the longest time from arrival to being sent, of those that were.
    """

    tier: Tier
    requests: int
    done: int
    rejected: int
    kept: float
    delivered: dict[Tier, int]
    revenue_nanodollars: int
    ttft_ms: tuple[float, ...]
    tpot_ms: tuple[float, ...]
    itl_ms: tuple[float, ...]
    wait_ms_max: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run.

    Attributes:
        scenario: its name.
        policy: who decided.
        workers: how many.
        requests: that came.
        cpu_s: of this program, for the run.
        requests_per_cpu_s: how fast the twin was.
        peak_rss_bytes: of this program until now.
        simulated_s: the twin's clock at the end.
        revenue_nanodollars: earned by all tiers.
        revenue_usd: the same in dollars, as a float for programs that draw it.
        fluid_bound_usd: what no policy can beat; None where it was not asked for.
        fluid_bound_share: the revenue's share of it.
        cost_usd: energy and capital over the simulated time.
        usd_per_mtok: that cost per 1M tokens made.
        revenue_usd_per_mtok: revenue per 1M tokens made.
        energy_kwh: of all workers.
        output_tokens: made for requests that ended whole.
        output_tokens_per_s: the same by simulated time.
        goodput_tokens_per_s: of those, the ones whose asked promise was kept.
        goodput_requests_per_s: requests whose asked promise was kept.
        promise_kept: share of the requests that came.
        prefix_hit_share: of all prompt tokens admitted, those that were cached.
        utilisation: share of the workers' time in which they computed.
        preemptions: sequences begun anew for want of KV blocks.
        tiers: by asked tier.
        journal_digest: of all that the dispatcher was told and answered.
    """

    scenario: str
    policy: str
    workers: int
    requests: int
    cpu_s: float
    requests_per_cpu_s: float
    peak_rss_bytes: int
    simulated_s: float
    revenue_nanodollars: int
    revenue_usd: float
    fluid_bound_usd: float | None
    fluid_bound_share: float | None
    cost_usd: float
    usd_per_mtok: float
    revenue_usd_per_mtok: float
    energy_kwh: float
    output_tokens: int
    output_tokens_per_s: float
    goodput_tokens_per_s: float
    goodput_requests_per_s: float
    promise_kept: float
    prefix_hit_share: float
    utilisation: float
    preemptions: int
    tiers: tuple[TierReport, ...]
    journal_digest: str


class Delivered(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What came of one request.

    Attributes:
        request: which.
        tier: delivered; None if it did not end whole.
        earned_nanodollars: charge less credit, and ad income.
        ttft_ns: from arrival; None without a first token.
        tpot_ns: mean gap; None for answers of one token.
    """

    request: RequestID
    tier: Tier | None
    earned_nanodollars: int
    ttft_ns: int | None
    tpot_ns: float | None


def delivered(
    scenario: Scenario, requests: Sequence[TwinRequest], result: RunResult
) -> list[Delivered]:
    """Judge and bill every answer by the ledger's own functions."""
    book, outcomes = scenario.book, result.outcomes
    found = []
    for index, request in enumerate(requests):
        if outcomes.end[index] != End.DONE:
            found.append(
                Delivered(
                    request=request.request,
                    tier=None,
                    earned_nanodollars=0,
                    ttft_ns=None,
                    tpot_ns=None,
                )
            )
            continue
        ttft_ns = outcomes.first_token_ns[index] - outcomes.arrived_ns[index]
        decode_ns = outcomes.finished_ns[index] - outcomes.first_token_ns[index]
        output = outcomes.output_tokens[index]
        measured = Measured(ttft_ns=ttft_ns, decode_ns=decode_ns, output_tokens=output)
        tier = delivered_tier(request.tier, book.promises, measured)
        cached = outcomes.cached_tokens[index]
        usage = Usage(
            uncached_input_tokens=request.input_tokens - cached,
            cached_input_tokens=cached,
            output_tokens=output,
        )
        charged = charge_nanodollars(usage, book.prices[request.model][tier])
        earned: int = charged
        if tier is not request.tier:
            earned -= credit_nanodollars(charged, book.credits_ppm[request.tier])
        if request.tier is Tier.FREE:
            earned += ad_income_nanodollars(output, book.ad_income_udollars_per_mtok)
        found.append(
            Delivered(
                request=request.request,
                tier=tier,
                earned_nanodollars=earned,
                ttft_ns=ttft_ns,
                tpot_ns=decode_ns / (output - 1) if output > 1 else None,
            )
        )
    return found


def report(
    scenario: Scenario,
    requests: Sequence[TwinRequest],
    result: RunResult,
    *,
    peak_rss_bytes: int,
    fluid_bound_nanodollars: int | None = None,
) -> Report:
    """Add a run up.

    Args:
        scenario: what was run.
        requests: on what.
        result: what came of it.
        peak_rss_bytes: of this program.
        fluid_bound_nanodollars: what no policy can beat, if that is known.
    """
    answers = delivered(scenario, requests, result)
    outcomes = result.outcomes
    kept = [index for index, each in enumerate(answers) if each.tier is requests[index].tier]
    made = sum(outcomes.output_tokens)
    simulated_s = result.ended_ns / 1e9
    revenue = sum(each.earned_nanodollars for each in answers)
    energy_kwh, cost_usd = _cost(scenario, result)
    admitted = sum(use.prefill_tokens + use.hit_tokens for use in result.workers)
    up_ns = sum(use.up_ns for use in result.workers)
    return Report(
        scenario=scenario.name,
        policy=scenario.configured.policy.name,
        workers=len(scenario.workers),
        requests=len(requests),
        cpu_s=result.cpu_ns / 1e9,
        requests_per_cpu_s=_per(len(requests), result.cpu_ns / 1e9),
        peak_rss_bytes=peak_rss_bytes,
        simulated_s=simulated_s,
        revenue_nanodollars=revenue,
        revenue_usd=revenue / NANODOLLARS_PER_DOLLAR,
        fluid_bound_usd=(
            None
            if fluid_bound_nanodollars is None
            else fluid_bound_nanodollars / NANODOLLARS_PER_DOLLAR
        ),
        fluid_bound_share=(
            None if not fluid_bound_nanodollars else revenue / fluid_bound_nanodollars
        ),
        cost_usd=cost_usd,
        usd_per_mtok=_per(cost_usd * TOKENS_PER_MTOK, made),
        revenue_usd_per_mtok=_per(revenue / NANODOLLARS_PER_DOLLAR * TOKENS_PER_MTOK, made),
        energy_kwh=energy_kwh,
        output_tokens=made,
        output_tokens_per_s=_per(made, simulated_s),
        goodput_tokens_per_s=_per(sum(outcomes.output_tokens[i] for i in kept), simulated_s),
        goodput_requests_per_s=_per(len(kept), simulated_s),
        promise_kept=_per(len(kept), len(requests)),
        prefix_hit_share=_per(sum(use.hit_tokens for use in result.workers), admitted),
        utilisation=_per(sum(use.busy_ns for use in result.workers), up_ns),
        preemptions=sum(use.preemptions for use in result.workers),
        tiers=tuple(_tier(tier, requests, result, answers) for tier in TIERS),
        journal_digest=result.journal_digest,
    )


def _tier(
    tier: Tier, requests: Sequence[TwinRequest], result: RunResult, answers: Sequence[Delivered]
) -> TierReport:
    outcomes = result.outcomes
    asked = [index for index, request in enumerate(requests) if request.tier is tier]
    done = [index for index in asked if answers[index].tier is not None]
    sent = [index for index in asked if outcomes.sent_ns[index] >= 0]
    counts = dict.fromkeys(TIERS, 0)
    for index in done:
        got = answers[index].tier
        assert got is not None, index
        counts[got] += 1
    return TierReport(
        tier=tier,
        requests=len(asked),
        done=len(done),
        rejected=sum(outcomes.end[index] == End.REJECTED for index in asked),
        kept=_per(counts[tier], len(asked)),
        delivered=counts,
        revenue_nanodollars=sum(answers[index].earned_nanodollars for index in asked),
        ttft_ms=quantiles([answers[index].ttft_ns for index in done]),
        tpot_ms=quantiles([answers[index].tpot_ns for index in done]),
        itl_ms=quantiles([outcomes.itl_max_ns[index] for index in done]),
        wait_ms_max=max(
            (outcomes.sent_ns[index] - outcomes.arrived_ns[index] for index in sent), default=0
        )
        / 1e6,
    )


def quantiles(values_ns: Sequence[float | None]) -> tuple[float, ...]:
    """The ``QUANTILES`` of some times, in milliseconds, by nearest rank; zeros if there are none.

    >>> quantiles([2_000_000, None, 1_000_000, 9_000_000])
    (2.0, 9.0, 9.0)
    """
    known = sorted(value for value in values_ns if value is not None)
    if not known:
        return (0.0,) * len(QUANTILES)
    return tuple(known[-(-len(known) * q // 100) - 1] / 1e6 for q in QUANTILES)


def _cost(scenario: Scenario, result: RunResult) -> tuple[float, float]:
    """Energy in kWh, and the dollars of energy and capital."""
    energy_kwh = capital_usd = 0.0
    for spec, use in zip(scenario.workers, result.workers, strict=True):
        idle_ns = use.up_ns - use.busy_ns
        energy_kwh += (use.busy_ns * spec.power_w + idle_ns * spec.idle_power_w) / NS_PER_HOUR / 1e3
        capital_usd += spec.capital_udollars_per_hour * use.up_ns / NS_PER_HOUR / 1e6
    return energy_kwh, capital_usd + energy_kwh * scenario.energy_udollars_per_kwh / 1e6


def _per(amount: float, of: float) -> float:
    return amount / of if of else 0.0
