"""What the gateway counts, as Prometheus metrics."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tokenworks.core.orders import TOKEN_CLASSES, Outcome, Receipt
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR, NS_PER_S

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
_TTFT_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_INTERACTIVITY: Final = (5, 10, 25, 50, 100, 200, 400, 1000, 2000)


_ALWAYS_SHOWN: Final = frozenset(TOKEN_CLASSES[:3])
"""Uncached and cached input, and output: a rate over them must not lack a term."""


class GatewayMetrics:
    """Counters of one gateway; labels are closed sets, so their number is bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.responses = Counter(
            "tokenworks_responses",
            "Responses by route and status",
            ["route", "status"],
            registry=self.registry,
        )
        self.tokens = Counter(
            "tokenworks_tokens",
            "Tokens metered, by class and delivered tier",
            ["kind", "tier"],
            registry=self.registry,
        )
        self.settled = Counter(
            "tokenworks_settled_requests",
            "Answers settled, by tier asked, tier delivered and ending",
            ["asked", "delivered", "ending"],
            registry=self.registry,
        )
        self.revenue = Counter(
            "tokenworks_revenue_dollars",
            "Charged to tenants less credits, by delivered tier; the ledger is the exact record",
            ["tier"],
            registry=self.registry,
        )
        self.ttft = Histogram(
            "tokenworks_ttft_seconds",
            "Time to first token at the gateway, by tier asked",
            ["tier"],
            buckets=_TTFT_S,
            registry=self.registry,
        )
        self.interactivity = Histogram(
            "tokenworks_interactivity_tokens_per_second",
            "Speed one user saw, by tier asked; answers of two tokens or more",
            ["tier"],
            buckets=_INTERACTIVITY,
            registry=self.registry,
        )
        self.streams = Gauge(
            "tokenworks_open_requests", "Requests being served", registry=self.registry
        )
        self.workers_wanted = Gauge(
            "tokenworks_workers_wanted",
            "Workers that a pool which may grow wants, since it first wanted another number",
            ["pool"],
            registry=self.registry,
        )

    def settle(self, outcome: Outcome, receipt: Receipt) -> None:
        """Count one settled answer."""
        asked, delivered = receipt.tier_asked.value, receipt.tier_delivered.value
        usage, measured = outcome.usage, outcome.measured
        for name in TOKEN_CLASSES:
            tokens = getattr(usage, name)
            if tokens or name in _ALWAYS_SHOWN:
                self.tokens.labels(name.removesuffix("_tokens"), delivered).inc(tokens)
        self.settled.labels(asked, delivered, outcome.ending).inc()
        paid = receipt.charged_nanodollars - receipt.credited_nanodollars
        self.revenue.labels(delivered).inc(paid / NANODOLLARS_PER_DOLLAR)
        if measured.ttft_ns is not None:
            self.ttft.labels(asked).observe(measured.ttft_ns / NS_PER_S)
        if measured.output_tokens > 1 and measured.decode_ns > 0:
            speed = (measured.output_tokens - 1) * NS_PER_S / measured.decode_ns
            self.interactivity.labels(asked).observe(speed)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)
