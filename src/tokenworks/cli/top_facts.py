"""What a factory did between two readings of its metrics, worked out from their text."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from tokenworks.core.slo import Tier

Labels = Mapping[str, str]
_COUNTED = ("_total", "_bucket", "_count", "_sum")
"""Ends of the names of samples that only grow, until the factory starts again."""


class Reading:
    """All samples of ``/metrics`` at one moment.

    Args:
        samples: by name, with their labels.
        at_s: when they were read, on a clock that never goes back.
    """

    def __init__(self, samples: dict[str, list[tuple[Labels, float]]], at_s: float) -> None:
        self._samples, self.at_s = samples, at_s

    @classmethod
    def of(cls, text: str, at_s: float) -> Reading:
        """Parse Prometheus's text.

        Raises:
            ValueError: that is something else.
        """
        samples: dict[str, list[tuple[Labels, float]]] = collections.defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[sample.name].append((sample.labels, sample.value))
        if "tokenworks_open_requests" not in samples:
            raise ValueError("these are not the metrics of a factory")
        return cls(samples, at_s)

    def since(self, before: Reading) -> Reading:
        """What was counted since another reading; what is not counted stays as it is now.

        A count that has become less began again from nothing.
        """
        changed = dict(self._samples)
        for name, rows in self._samples.items():
            if name.endswith(_COUNTED):
                old = {frozenset(labels.items()): value for labels, value in before.rows(name)}
                kept = [(labels, old.get(frozenset(labels.items()), 0.0)) for labels, _ in rows]
                changed[name] = [
                    (labels, value - was if value >= was else value)
                    for (labels, value), (_, was) in zip(rows, kept, strict=True)
                ]
        return Reading(changed, self.at_s)

    def rows(self, name: str) -> Sequence[tuple[Labels, float]]:
        """The samples of a name."""
        return self._samples.get(name, ())

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples of a name that have these labels."""
        return sum(
            value for found, value in self.rows(name) if labels.items() <= dict(found).items()
        )

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums of the samples of a name by one label."""
        sums: dict[str, float] = collections.defaultdict(float)
        for labels, value in self.rows(name):
            sums[labels[label]] += value
        return sums

    def quantile(self, name: str, share: float, **labels: str) -> float | None:
        """Where so large a share of a histogram's values is below, straight within a bucket.

        Returns:
            None if it has no values; the last bound if that many are below none.
        """
        steps: dict[float, float] = collections.defaultdict(float)
        for found, value in self.rows(f"{name}_bucket"):
            if labels.items() <= dict(found).items():
                steps[float(found["le"])] += value
        bounds = sorted(steps)
        whole = steps[bounds[-1]] if bounds else 0.0
        if whole <= 0:
            return None
        low, below = 0.0, 0.0
        for bound in bounds[:-1]:
            if steps[bound] >= share * whole:
                return low + (bound - low) * (share * whole - below) / (steps[bound] - below)
            low, below = bound, steps[bound]
        return low


class WorkerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One worker: its place, whether it is up, and how full it is."""

    worker: str
    pool: str
    model: str
    up: bool
    running: int
    slots: int


class TierFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One tier in a span of time; what there was nothing of is None.

    Attributes:
        tier: its name.
        output_tokens_per_s: made, as delivered at this tier.
        queued: requests that wait now.
        wait_s_p50: from arrival to a worker, of those that asked for it.
        ttft_s_p50, ttft_s_p99: likewise.
        promised_ttft_s: its promise.
        tokens_per_s_p50: speed one user saw, likewise.
        promised_tokens_per_s: its promise.
        kept, broken: whole answers whose promise was kept, or not.
        revenue_dollars: of answers that were delivered at this tier.
    """

    tier: str
    output_tokens_per_s: float | None
    queued: int
    wait_s_p50: float | None
    ttft_s_p50: float | None
    ttft_s_p99: float | None
    promised_ttft_s: float | None
    tokens_per_s_p50: float | None
    promised_tokens_per_s: float | None
    kept: int
    broken: int
    revenue_dollars: float


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """A factory in a span of time.

    Attributes:
        since_start: the span is the factory's whole life, whose length is not known.
        span_s: how long it is; 0 where that is not known.
        rate_s: over how many seconds tokens, requests and refusals per second are taken.
        open_requests: being served now, without the one that asked for the metrics.
        queued: requests that wait now.
        answers_per_s, refusals_per_s: settled, and refused.
        refusals: by code.
        output_tokens_per_s, input_tokens_per_s: of all models.
        cached_share: of input, what was found in a prefix cache.
        revenue_dollars: less credits.
        cost_dollars: of all pools, idle or not.
        earned_dollars_per_mtok, spent_dollars_per_mtok: by 1M tokens of output.
        ledger_lag_s: age of the oldest entry that is not durable, in any process.
        ledger_commit_s_p99: from an answer's end until its bill was durable.
        ledger_unstored: entries to be stored again.
        tiers: dearest first.
        workers: in the factory's order.
    """

    since_start: bool
    span_s: float
    rate_s: float
    open_requests: int
    queued: int
    answers_per_s: float | None
    refusals_per_s: float | None
    refusals: dict[str, int]
    output_tokens_per_s: float | None
    input_tokens_per_s: float | None
    cached_share: float | None
    revenue_dollars: float
    cost_dollars: float
    earned_dollars_per_mtok: float | None
    spent_dollars_per_mtok: float | None
    ledger_lag_s: float
    ledger_commit_s_p99: float | None
    ledger_unstored: int
    tiers: list[TierFacts]
    workers: list[WorkerFacts]


_TOKENS = "tokenworks_tokens_total"


def facts_of(now: Reading, before: Reading | None, rate_from: Reading | None) -> Facts:
    """What a factory did.

    Args:
        now: the last reading.
        before: where the span begins; None for the start of the factory.
        rate_from: from where rates are taken; None if there is no earlier reading.
    """
    span = now if before is None else now.since(before)
    rate_s = 0.0 if rate_from is None else now.at_s - rate_from.at_s
    recent = now if rate_from is None else now.since(rate_from)
    made = span.total(_TOKENS, kind="output")
    read = {k: v for k, v in span.by(_TOKENS, "kind").items() if k.endswith("input")}
    revenue = span.total("tokenworks_revenue_dollars_total")
    cost = span.total("tokenworks_pool_cost_dollars_total")
    refusals = span.by("tokenworks_refusals_total", "code")
    return Facts(
        since_start=before is None,
        span_s=0.0 if before is None else now.at_s - before.at_s,
        rate_s=rate_s,
        open_requests=max(0, round(now.total("tokenworks_open_requests")) - 1),
        queued=round(now.total("tokenworks_queued_requests")),
        answers_per_s=_rate(recent.total("tokenworks_settled_requests_total"), rate_s),
        refusals_per_s=_rate(recent.total("tokenworks_refusals_total"), rate_s),
        refusals={code: round(count) for code, count in refusals.items() if count},
        output_tokens_per_s=_rate(recent.total(_TOKENS, kind="output"), rate_s),
        input_tokens_per_s=_rate(
            sum(v for k, v in recent.by(_TOKENS, "kind").items() if k in read), rate_s
        ),
        cached_share=_over(read.get("cached_input", 0.0), sum(read.values())),
        revenue_dollars=revenue,
        cost_dollars=cost,
        earned_dollars_per_mtok=_over(revenue * 1e6, made),
        spent_dollars_per_mtok=_over(cost * 1e6, made),
        ledger_lag_s=max((s for _, s in now.rows("tokenworks_ledger_lag_seconds")), default=0.0),
        ledger_commit_s_p99=span.quantile("tokenworks_ledger_commit_seconds", 0.99),
        ledger_unstored=round(now.total("tokenworks_ledger_appends", state="unstored")),
        tiers=[_tier(tier.value, now, span, recent, rate_s) for tier in reversed(Tier)],
        workers=_workers(now),
    )


def _tier(tier: str, now: Reading, span: Reading, recent: Reading, rate_s: float) -> TierFacts:
    promises = {
        name: dict(now.by(f"tokenworks_promised_{name}", "tier")).get(tier)
        for name in ("ttft_seconds", "tokens_per_second")
    }
    return TierFacts(
        tier=tier,
        output_tokens_per_s=_rate(recent.total(_TOKENS, kind="output", tier=tier), rate_s),
        queued=round(now.total("tokenworks_queued_requests", tier=tier)),
        wait_s_p50=span.quantile("tokenworks_queue_wait_seconds", 0.5, tier=tier),
        ttft_s_p50=span.quantile("tokenworks_ttft_seconds", 0.5, tier=tier),
        ttft_s_p99=span.quantile("tokenworks_ttft_seconds", 0.99, tier=tier),
        promised_ttft_s=promises["ttft_seconds"],
        tokens_per_s_p50=span.quantile(
            "tokenworks_interactivity_tokens_per_second", 0.5, tier=tier
        ),
        promised_tokens_per_s=promises["tokens_per_second"],
        kept=round(span.total("tokenworks_promises_total", tier=tier, result="kept")),
        broken=round(span.total("tokenworks_promises_total", tier=tier, result="broken")),
        revenue_dollars=span.total("tokenworks_revenue_dollars_total", tier=tier),
    )


def _workers(now: Reading) -> list[WorkerFacts]:
    running = {row["worker"]: n for row, n in now.rows("tokenworks_worker_running_requests")}
    slots = {row["worker"]: n for row, n in now.rows("tokenworks_worker_slots")}
    return [
        WorkerFacts(
            worker=row["worker"],
            pool=row["pool"],
            model=row["model"],
            up=bool(up),
            running=round(running.get(row["worker"], 0)),
            slots=round(slots.get(row["worker"], 0)),
        )
        for row, up in now.rows("tokenworks_worker_up")
    ]


def _rate(count: float, duration_s: float) -> float | None:
    return count / duration_s if duration_s > 0 else None


def _over(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
