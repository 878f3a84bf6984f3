"""What a run came to: speeds, promises, money, energy and the simulator's own cost."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from tokenworks.core.ids import TenantID, WorkerID
from tokenworks.core.kept_promises import delivered_tier, promise_met
from tokenworks.core.orders import Usage
from tokenworks.core.slo import Measured, Tier
from tokenworks.core.units import (
    NANODOLLARS_PER_DOLLAR,
    NS_PER_HOUR,
    NS_PER_MS,
    NS_PER_S,
    TOKENS_PER_MTOK,
    divide_half_even,
)
from tokenworks.ledger.metering import (
    ad_income_nanodollars,
    charge_nanodollars,
    credit_nanodollars,
)
from tokenworks.twin.outcome_checks import check_outcomes
from tokenworks.twin.records import (
    NEVER,
    End,
    Outcomes,
    RunResult,
    Scenario,
    TwinRequest,
    Violation,
)

TIME_POINTS: Final = 60
"""Points of the revenue's course."""
_PERCENTILES: Final = (50, 90, 99)
_WATT_NS_PER_KWH: Final = 1_000 * NS_PER_HOUR


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of a time, by nearest rank, in milliseconds; None where nothing was measured."""

    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None


class Speeds(msgspec.Struct, frozen=True, kw_only=True):
    """How fast answers were.

    Attributes:
        ttft_ms: arrival to first token.
        tpot_ms: mean gap after the first token, of each answer with two tokens or more.
        itl_max_ms: the longest gap between two tokens, of each of these.
        wait_ms: arrival to being sent to a worker, the last time it was.
    """

    ttft_ms: Quantiles
    tpot_ms: Quantiles
    itl_max_ms: Quantiles
    wait_ms: Quantiles


class Sums(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one asked tier, or of all.

    Attributes:
        requests: that arrived.
        done: that were answered.
        rejected: that were turned away.
        failed: that broke off, or were withdrawn.
        promise_kept: answered within the promise of the asked tier.
        promise_kept_share: of all that arrived.
        input_tokens: of the prompts that were answered.
        cached_tokens: of these, found in a prefix cache.
        output_tokens: made.
        goodput_requests_per_s: answers that kept the asked promise.
        goodput_tokens_per_s: their output.
        preemptions: times that one was stopped and begun anew.
        charged_nanodollars: at the price of the delivered tier.
        credited_nanodollars: given back for broken promises.
        ads_nanodollars: of advertisers.
        speeds: how fast.
        delivered: answers by delivered tier.
    """

    requests: int
    done: int
    rejected: int
    failed: int
    promise_kept: int
    promise_kept_share: float | None
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    goodput_requests_per_s: float
    goodput_tokens_per_s: float
    preemptions: int
    charged_nanodollars: int
    credited_nanodollars: int
    ads_nanodollars: int
    speeds: Speeds
    delivered: dict[Tier, int]

    @property
    def revenue_nanodollars(self) -> int:
        """Charges less credits, and ads."""
        return self.charged_nanodollars - self.credited_nanodollars + self.ads_nanodollars


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker did; see ``WorkerUse``."""

    worker: WorkerID
    up_s: float
    utilisation: float
    output_tokens: int
    hit_tokens: int
    preemptions: int
    energy_kwh: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of a run's figures.

    Attributes:
        scenario: its name.
        price_id: its price book.
        requests: that arrived.
        duration_s: from the twin's start to its end.
        all: over all tiers.
        tiers: by asked tier, those that were asked for.
        revenue_nanodollars: charges less credits, and ads; exact.
        revenue_usd: the same for reading.
        cost_nanodollars: energy, and the hardware's capital while it was up.
        energy_nanodollars: the part for energy.
        energy_kwh: at work and idle.
        cost_usd_per_mtok: cost by 1M output tokens.
        revenue_usd_per_mtok: revenue by 1M output tokens.
        prefix_hit_share: prompt tokens of answered requests that were found in a cache.
        preemptions: of engines, and of the dispatcher.
        wait_ms_max_by_tenant: the longest that a request of each waited to be sent, or, not sent,
            to its end.
        queued_bound_share_max: the largest part of its tier's patience, which is the bound on that,
            for which any request was queued without a break; above 1 it is a violation. None
            without requests.
        workers: each.
        revenue_course: (seconds, nano-dollars earned up to then).
        fluid_bound_share: revenue by the most that any policy could earn; None if not known.
        violations: what must hold in every run and did not: each request ends, with all its tokens,
            none is queued for longer than its tier's patience, and KV blocks are bounded.
        events: told to the dispatcher.
        commands: it answered.
        journal_digest: of all of them.
        cpu_s: of the run.
        requests_per_cpu_s: simulated.
        peak_rss_bytes: the most memory that this process had had when the run was over.
    """

    scenario: str
    price_id: str
    requests: int
    duration_s: float
    all: Sums
    tiers: dict[Tier, Sums]
    revenue_nanodollars: int
    revenue_usd: float
    cost_nanodollars: int
    energy_nanodollars: int
    energy_kwh: float
    cost_usd_per_mtok: float | None
    revenue_usd_per_mtok: float | None
    prefix_hit_share: float | None
    preemptions: int
    wait_ms_max_by_tenant: dict[TenantID, float]
    queued_bound_share_max: float | None
    workers: tuple[WorkerReport, ...]
    revenue_course: tuple[tuple[float, int], ...]
    fluid_bound_share: float | None
    violations: tuple[Violation, ...]
    events: int
    commands: int
    journal_digest: str
    cpu_s: float
    requests_per_cpu_s: float | None
    peak_rss_bytes: int


class Answers:
    """What became of each request, judged as the ledger would: columns like ``Outcomes``.

    Attributes:
        delivered: the tier; None for one that was not answered.
        kept: whether the promise of the asked tier was kept.
        charged: nano-dollars.
        credited: nano-dollars given back.
        ads: nano-dollars of advertisers.
    """

    __slots__ = ("ads", "charged", "credited", "delivered", "kept")

    def __init__(self, requests: int) -> None:
        self.delivered: list[Tier | None] = [None] * requests
        self.kept = [False] * requests
        self.charged = [0] * requests
        self.credited = [0] * requests
        self.ads = [0] * requests


def measured(outcomes: Outcomes, index: int) -> Measured:
    """The speed of one answer, as a gateway without delay would measure it."""
    first_ns, tokens = outcomes.first_token_ns[index], outcomes.output_tokens[index]
    arrived_ns, finished_ns = outcomes.arrived_ns[index], outcomes.finished_ns[index]
    if first_ns == NEVER:  # one with tokens came in one piece
        decode_ns = finished_ns - arrived_ns if tokens else 0
        return Measured(ttft_ns=None, decode_ns=decode_ns, output_tokens=tokens)
    return Measured(
        ttft_ns=first_ns - arrived_ns,
        decode_ns=finished_ns - first_ns,
        output_tokens=tokens,
    )


def judge(scenario: Scenario, requests: Sequence[TwinRequest], outcomes: Outcomes) -> Answers:
    """Bill each answer as the ledger does: at the delivered tier, less credits, and ads.

    As there, a request that failed or was turned away is billed nothing, and ads are paid for what
    was asked for free.
    """
    book, answers = scenario.book, Answers(len(requests))
    ends, ad_rate = outcomes.end, book.ad_income_udollars_per_mtok
    for index, request in enumerate(requests):
        if ends[index] != End.DONE:
            continue
        speed = measured(outcomes, index)
        tier = delivered_tier(request.tier, book.promises, speed)
        cached, output = outcomes.cached_tokens[index], outcomes.output_tokens[index]
        usage = Usage(
            uncached_input_tokens=request.input_tokens - cached,
            cached_input_tokens=cached,
            output_tokens=output,
        )
        rate_ppm = book.rate_ppm(
            request.tenant, request.model, tier, outcomes.arrived_ns[index], batch=False
        )
        charged = charge_nanodollars(usage, book.prices[request.model][tier], rate_ppm)
        answers.delivered[index] = tier
        answers.charged[index] = charged
        if tier is request.tier:
            # Free is delivered when no promise was met, so there it has to be asked.
            answers.kept[index] = tier is not Tier.FREE or promise_met(book.promises[tier], speed)
        else:
            answers.credited[index] = credit_nanodollars(charged, book.credits_ppm[request.tier])
        if request.tier is Tier.FREE:
            answers.ads[index] = ad_income_nanodollars(output, ad_rate)
    return answers


def bounded(found: Report, bound_nanodollars: int | None) -> Report:
    """A report with its share of the most that any policy could have earned, if that is known."""
    share = found.revenue_nanodollars / bound_nanodollars if bound_nanodollars else None
    return msgspec.structs.replace(found, fluid_bound_share=share)


def report(scenario: Scenario, requests: Sequence[TwinRequest], result: RunResult) -> Report:
    """Sum a run up; its share of the bound is left open.

    Args:
        scenario: what was run.
        requests: the workload.
        result: what came of it.
    """
    outcomes = result.outcomes
    answers = judge(scenario, requests, outcomes)
    duration_s = result.ended_ns / NS_PER_S
    by_tier: dict[Tier, list[int]] = {tier: [] for tier in Tier}
    for index, request in enumerate(requests):
        by_tier[request.tier].append(index)
    every = _sums(range(len(requests)), requests, outcomes, answers, duration_s)
    energy_nanodollars, energy_w_ns = _energy(scenario, result)
    cost = energy_nanodollars + _capital(scenario, result)
    revenue = every.revenue_nanodollars
    tokens = every.output_tokens
    return Report(
        scenario=scenario.name,
        price_id=scenario.book.price_id,
        requests=len(requests),
        duration_s=duration_s,
        all=every,
        tiers={
            tier: _sums(indices, requests, outcomes, answers, duration_s)
            for tier, indices in by_tier.items()
            if indices
        },
        revenue_nanodollars=revenue,
        revenue_usd=revenue / NANODOLLARS_PER_DOLLAR,
        cost_nanodollars=cost,
        energy_nanodollars=energy_nanodollars,
        energy_kwh=sum(energy_w_ns) / _WATT_NS_PER_KWH,
        cost_usd_per_mtok=_usd_per_mtok(cost, tokens),
        revenue_usd_per_mtok=_usd_per_mtok(revenue, tokens),
        prefix_hit_share=_share(every.cached_tokens, every.input_tokens),
        preemptions=every.preemptions,
        wait_ms_max_by_tenant=_longest_waits(requests, outcomes),
        queued_bound_share_max=_bound_share(scenario, requests, outcomes),
        workers=_workers(result, energy_w_ns),
        revenue_course=_course(outcomes, answers, result.ended_ns),
        fluid_bound_share=None,
        violations=tuple(check_outcomes(scenario, requests, outcomes, result.workers)),
        events=result.events,
        commands=result.commands,
        journal_digest=result.journal_digest,
        cpu_s=result.cpu_ns / NS_PER_S,
        requests_per_cpu_s=_share(len(requests) * NS_PER_S, result.cpu_ns),
        peak_rss_bytes=peak_rss_bytes(),
    )


def peak_rss_bytes() -> int:
    """The most memory that this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1_024


def ttft_ms_by_tier(
    requests: Sequence[TwinRequest], outcomes: Outcomes
) -> dict[Tier, list[float | None]]:
    """Time to first token of each request, by asked tier, ascending; None, last, if none came."""
    found: dict[Tier, list[float | None]] = {}
    for index, request in enumerate(requests):
        first_ns = outcomes.first_token_ns[index]
        ttft_ns = None if first_ns == NEVER else first_ns - outcomes.arrived_ns[index]
        found.setdefault(request.tier, []).append(None if ttft_ns is None else ttft_ns / NS_PER_MS)
    for times in found.values():
        times.sort(key=lambda each: (each is None, each))
    return {tier: found[tier] for tier in Tier if tier in found}


def _sums(
    indices: Sequence[int],
    requests: Sequence[TwinRequest],
    outcomes: Outcomes,
    answers: Answers,
    duration_s: float,
) -> Sums:
    ends = [outcomes.end[i] for i in indices]
    done = [i for i in indices if outcomes.end[i] == End.DONE]
    kept = [i for i in done if answers.kept[i]]
    delivered = dict.fromkeys(Tier, 0)
    for index in done:
        tier = answers.delivered[index]
        assert tier is not None, index
        delivered[tier] += 1
    rejected = ends.count(End.REJECTED)
    return Sums(
        requests=len(indices),
        done=len(done),
        rejected=rejected,
        failed=len(indices) - len(done) - rejected,
        promise_kept=len(kept),
        promise_kept_share=_share(len(kept), len(indices)),
        input_tokens=sum(requests[i].input_tokens for i in done),
        cached_tokens=sum(outcomes.cached_tokens[i] for i in done),
        output_tokens=sum(outcomes.output_tokens[i] for i in indices),
        goodput_requests_per_s=len(kept) / duration_s if duration_s else 0.0,
        goodput_tokens_per_s=(
            sum(outcomes.output_tokens[i] for i in kept) / duration_s if duration_s else 0.0
        ),
        preemptions=sum(outcomes.preemptions[i] for i in indices),
        charged_nanodollars=sum(answers.charged[i] for i in done),
        credited_nanodollars=sum(answers.credited[i] for i in done),
        ads_nanodollars=sum(answers.ads[i] for i in done),
        speeds=_speeds(indices, done, outcomes),
        delivered=delivered,
    )


def _speeds(indices: Sequence[int], done: Sequence[int], outcomes: Outcomes) -> Speeds:
    arrived, first, sent = outcomes.arrived_ns, outcomes.first_token_ns, outcomes.sent_ns
    long = [i for i in done if outcomes.output_tokens[i] > 1 and first[i] != NEVER]
    return Speeds(
        ttft_ms=_quantiles(first[i] - arrived[i] for i in indices if first[i] != NEVER),
        tpot_ms=_quantiles(
            (outcomes.finished_ns[i] - first[i]) / (outcomes.output_tokens[i] - 1) for i in long
        ),
        itl_max_ms=_quantiles(outcomes.itl_max_ns[i] for i in long),
        wait_ms=_quantiles(sent[i] - arrived[i] for i in indices if sent[i] != NEVER),
    )


def _quantiles(times_ns: Iterable[float]) -> Quantiles:
    """By nearest rank: the smallest time that so many per cent do not exceed."""
    found = sorted(times_ns)
    if not found:
        return Quantiles(p50=None, p90=None, p99=None, max=None)
    p50, p90, p99 = (
        found[-(-len(found) * percent // 100) - 1] / NS_PER_MS for percent in _PERCENTILES
    )
    return Quantiles(p50=p50, p90=p90, p99=p99, max=found[-1] / NS_PER_MS)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _usd_per_mtok(nanodollars: int, tokens: int) -> float | None:
    return _share(nanodollars * TOKENS_PER_MTOK, tokens * NANODOLLARS_PER_DOLLAR)


def _energy(scenario: Scenario, result: RunResult) -> tuple[int, list[int]]:
    """What the workers' energy costs in nano-dollars, and what each used in watt-nanoseconds."""
    used = []
    for spec, use in zip(scenario.workers, result.workers, strict=True):
        idle_ns = max(0, use.up_ns - use.busy_ns)
        used.append(spec.power_w * use.busy_ns + spec.idle_power_w * idle_ns)
    # W x ns x micro-dollars per kWh is nano-dollars times the nanoseconds of an hour.
    return divide_half_even(sum(used) * scenario.energy_udollars_per_kwh, NS_PER_HOUR), used


def _capital(scenario: Scenario, result: RunResult) -> int:
    written_down = sum(
        spec.capital_udollars_per_hour * use.up_ns
        for spec, use in zip(scenario.workers, result.workers, strict=True)
    )
    return divide_half_even(written_down * 1_000, NS_PER_HOUR)


def _longest_waits(requests: Sequence[TwinRequest], outcomes: Outcomes) -> dict[TenantID, float]:
    longest: dict[TenantID, int] = {}
    for index, request in enumerate(requests):
        until_ns = outcomes.sent_ns[index]
        if until_ns == NEVER:
            until_ns = outcomes.finished_ns[index]
        waited_ns = 0 if until_ns == NEVER else until_ns - outcomes.arrived_ns[index]
        if waited_ns > longest.get(request.tenant, -1):
            longest[request.tenant] = waited_ns
    return {tenant: longest[tenant] / NS_PER_MS for tenant in sorted(longest)}


def _bound_share(
    scenario: Scenario, requests: Sequence[TwinRequest], outcomes: Outcomes
) -> float | None:
    promises = scenario.configured.promises
    return max(
        (
            outcomes.wait_ns_max(place) / max(1, promises[request.tier].patience_ns)
            for place, request in enumerate(requests)
        ),
        default=None,
    )


def _workers(result: RunResult, energy_w_ns: list[int]) -> tuple[WorkerReport, ...]:
    return tuple(
        WorkerReport(
            worker=use.worker,
            up_s=use.up_ns / NS_PER_S,
            utilisation=use.busy_ns / use.up_ns if use.up_ns else 0.0,
            output_tokens=use.output_tokens,
            hit_tokens=use.hit_tokens,
            preemptions=use.preemptions,
            energy_kwh=energy / _WATT_NS_PER_KWH,
        )
        for use, energy in zip(result.workers, energy_w_ns, strict=True)
    )


def _course(outcomes: Outcomes, answers: Answers, ended_ns: int) -> tuple[tuple[float, int], ...]:
    """Revenue up to each of so many instants, even ones, the first at the start."""
    step_ns = max(1, -(-ended_ns // TIME_POINTS))
    earned = [0] * (TIME_POINTS + 1)
    for index, finished_ns in enumerate(outcomes.finished_ns):
        money = answers.charged[index] - answers.credited[index] + answers.ads[index]
        if money:
            earned[-(-finished_ns // step_ns)] += money
    points, total = [], 0
    for place, money in enumerate(earned):
        total += money
        points.append((place * step_ns / NS_PER_S, total))
    return tuple(points)
