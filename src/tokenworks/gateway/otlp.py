"""Spans and metrics out of the factory by OTLP over HTTP, on a thread that nobody waits for.

The only file that imports OpenTelemetry, and itself imported only where export is on.
"""

from __future__ import annotations

import collections
import os
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.core import Metric as PrometheusMetric
from prometheus_client.registry import Collector

from tokenworks import __version__
from tokenworks.core.trace_place import Trace
from tokenworks.gateway.metrics import GEN_AI_METRICS, PROVIDER, GenAIMetric
from tokenworks.gateway.tallies import Buckets, Tallies
from tokenworks.gateway.traced_desk import Attributes, OpenSpan

SPANS_MAX: Final = 2_048
"""Spans that wait to be exported; more are dropped and counted."""

BATCH_MAX: Final = 512
SPANS_EVERY_S: Final = 5.0
METRICS_EVERY_S: Final = 60.0
STOP_S_MAX: Final = 3.0
"""How long the factory's end waits for the last export."""

_KINDS: Final = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT}
_SAMPLED: Final = 1
_RANDOM: Final = 2
"""Flags of a trace: it is kept; its id is random."""

_SCOPE: Final = InstrumentationScope("tokenworks", __version__)


class Otlp(Collector):
    """Exports what the factory sees; samplers and the way out are OpenTelemetry's own.

    Requests note what a span is to have and hand that over at its end, which never waits; the
    thread makes spans of it. Metrics are sums since the start, so that one export that fails loses
    nothing. Implements ``traced_desk.Exporter``.

    Args:
        endpoint: where to, without ``/v1/traces`` and the like; None for what OpenTelemetry's
            environment variables say.
        tallies: of settled answers.
        spans_max: see SPANS_MAX.
        spans_every_s: between two exports of spans, unless a batch is full before.
        metrics_every_s: between two exports of metrics.

    Attributes:
        counts: spans that were exported, dropped before that, or that failed on the way.
    """

    def __init__(
        self,
        endpoint: str | None,
        tallies: Tallies,
        *,
        spans_max: int = SPANS_MAX,
        spans_every_s: float = SPANS_EVERY_S,
        metrics_every_s: float = METRICS_EVERY_S,
    ) -> None:
        self._resource = _resource()
        provider = TracerProvider(resource=self._resource, shutdown_on_exit=False)
        self._sampler = provider.sampler  # as OpenTelemetry's variables say
        self.counts = dict.fromkeys(("exported", "dropped", "failed"), 0)
        traces, metrics = (
            None if endpoint is None else f"{endpoint.rstrip('/')}/v1/{signal}"
            for signal in ("traces", "metrics")
        )
        self._spans = OTLPSpanExporter(traces) if _wanted("OTEL_TRACES_EXPORTER") else None
        self._metrics = OTLPMetricExporter(metrics) if _wanted("OTEL_METRICS_EXPORTER") else None
        self._tallies, self._spans_max = tallies, spans_max
        self._spans_every_s, self._metrics_every_s = spans_every_s, metrics_every_s
        self._began_unix_ns = time.time_ns()
        self._queue: collections.deque[OtlpSpan] = collections.deque()
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)

    def start(self) -> None:
        """Begin to export."""
        self._thread.start()

    def stop(self, wait_s: float = STOP_S_MAX) -> None:
        """Export what is left, for so long at most; what is not out then is lost."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(wait_s)
        for exporter in (self._spans, self._metrics):
            if exporter is not None and self._thread.is_alive():
                exporter.shutdown()  # ends the pauses between its tries

    # What the desk calls.

    def begin(
        self, name: str, kind: str, trace: Trace | None, unix_ns: int, attributes: Attributes
    ) -> OpenSpan:
        """See ``Spans``; what is decided of a request's first span holds for those within it."""
        flags, trace_id, parent_id, state = _RANDOM, secrets.randbits(128) or 1, 0, ""
        if trace is not None:
            _, trace_word, parent_word, flags_word = trace.parent.split("-")[:4]
            trace_id, parent_id = int(trace_word, 16), int(parent_word, 16)
            flags, state = int(flags_word, 16), trace.state
        sampled = bool(flags & _SAMPLED)
        if kind == "server":
            parent = _context(trace_id, parent_id, flags, state) if parent_id else None
            sampled = self._samples(parent, trace_id, name, attributes)
        return OtlpSpan(
            self,
            name=name,
            kind=kind,
            trace_id=trace_id,
            parent_id=parent_id,
            flags=(flags & _RANDOM) | sampled,
            state=state,
            unix_ns=unix_ns,
            attributes=attributes,
        )

    def _samples(
        self, parent: SpanContext | None, trace_id: int, name: str, attributes: Attributes
    ) -> bool:
        if self._spans is None:
            return parent is not None and parent.trace_flags.sampled
        context = Context()
        if parent is not None:
            context = set_span_in_context(NonRecordingSpan(parent), context)
        found = self._sampler.should_sample(context, trace_id, name, SpanKind.SERVER, attributes)
        return found.decision is Decision.RECORD_AND_SAMPLE

    def take(self, span: OtlpSpan) -> None:
        """Export a span that has ended, unless too many wait."""
        if self._spans is None:
            return
        if len(self._queue) >= self._spans_max:
            self.counts["dropped"] += 1
            return
        self._queue.append(span)
        if len(self._queue) == BATCH_MAX:
            self._wake.set()

    # What Prometheus calls.

    def collect(self) -> Iterator[PrometheusMetric]:
        """How export goes; see ``Collector``."""
        about = "Spans exported by OTLP, dropped because too many waited, or failed on the way."
        spans = CounterMetricFamily("tokenworks_telemetry_spans", about, labels=["result"])
        for result, count in self.counts.items():
            spans.add_metric([result], count)
        yield spans

    # The thread.

    def _run(self) -> None:
        metrics_due_s = time.monotonic() + self._metrics_every_s
        while not self._stopping.is_set():
            left_s = metrics_due_s - time.monotonic()
            self._wake.wait(max(0.0, min(self._spans_every_s, left_s)))
            self._wake.clear()
            self._export_spans()
            if time.monotonic() >= metrics_due_s or self._stopping.is_set():
                metrics_due_s = time.monotonic() + self._metrics_every_s
                self._export_metrics()

    def _export_spans(self) -> None:
        while self._queue and self._spans is not None:
            count = min(BATCH_MAX, len(self._queue))
            batch = [self._queue.popleft().whole(self._resource) for _ in range(count)]
            done = self._spans.export(batch) is SpanExportResult.SUCCESS
            self.counts["exported" if done else "failed"] += len(batch)

    def _export_metrics(self) -> MetricExportResult | None:
        if self._metrics is None:
            return None
        return self._metrics.export(self._data())

    def _data(self) -> MetricsData:
        tallies, now_unix_ns = self._tallies.copy(), time.time_ns()

        def points(metric: GenAIMetric) -> Iterator[HistogramDataPoint]:
            for value, pick, only in metric.series:
                more = {metric.label: value} if metric.label and value else {}
                found: dict[tuple[str, str], Buckets] = {}
                for kind in filter(only, tallies):
                    buckets = pick(tallies[kind])
                    key = kind.operation, kind.model
                    found.setdefault(key, Buckets(buckets.bounds)).join(buckets)
                for (operation, model), buckets in found.items():
                    yield HistogramDataPoint(
                        attributes=_named(operation, model) | more,
                        start_time_unix_nano=self._began_unix_ns,
                        time_unix_nano=now_unix_ns,
                        count=sum(buckets.counts),
                        sum=buckets.total / metric.scale,
                        bucket_counts=buckets.counts,
                        explicit_bounds=[bound / metric.scale for bound in buckets.bounds],
                        min=None,  # type: ignore[arg-type]  # not known, which OTLP can say
                        max=None,  # type: ignore[arg-type]
                    )

        metrics = [
            Metric(
                name=metric.name,
                description=metric.about,
                unit=metric.unit,
                data=Histogram(list(points(metric)), AggregationTemporality.CUMULATIVE),
            )
            for metric in GEN_AI_METRICS
        ]
        scopes = [ScopeMetrics(scope=_SCOPE, metrics=metrics, schema_url="")]
        return MetricsData([ResourceMetrics(self._resource, scopes, schema_url="")])


class OtlpSpan:
    """What a span is to have; implements ``traced_desk.OpenSpan``."""

    __slots__ = (
        *("_attributes", "_ended_unix_ns", "_error", "_flags", "_kind", "_name", "_otlp"),
        *("_parent_id", "_span_id", "_state", "_trace_id", "_unix_ns"),
    )

    def __init__(
        self,
        otlp: Otlp,
        *,
        name: str,
        kind: str,
        trace_id: int,
        parent_id: int,
        flags: int,
        state: str,
        unix_ns: int,
        attributes: Attributes,
    ) -> None:
        self._otlp, self._name, self._kind = otlp, name, kind
        self._trace_id, self._parent_id, self._flags = trace_id, parent_id, flags
        self._state, self._unix_ns, self._attributes = state, unix_ns, attributes
        self._span_id = secrets.randbits(64) or 1
        self._ended_unix_ns, self._error = unix_ns, ""

    @property
    def trace(self) -> Trace:
        """See ``OpenSpan``."""
        parent = f"00-{self._trace_id:032x}-{self._span_id:016x}-{self._flags:02x}"
        return Trace(parent=parent, state=self._state)

    def end(self, unix_ns: int, attributes: Attributes, error: str) -> None:
        """See ``OpenSpan``."""
        if not self._flags & _SAMPLED:
            return
        self._attributes |= attributes
        self._ended_unix_ns, self._error = unix_ns, error
        if error:
            self._attributes["error.type"] = error
        self._otlp.take(self)

    def whole(self, resource: Resource) -> ReadableSpan:
        """The span itself; for the thread that exports it."""
        flags, state, parent = self._flags, self._state, None
        if self._parent_id:
            remote = self._kind == "server"
            parent = _context(self._trace_id, self._parent_id, flags, state, remote=remote)
        return ReadableSpan(
            self._name,
            _context(self._trace_id, self._span_id, flags, state, remote=False),
            parent=parent,
            resource=resource,
            attributes=self._attributes,
            kind=_KINDS[self._kind],
            status=Status(StatusCode.ERROR, self._error) if self._error else Status(),
            start_time=self._unix_ns,
            end_time=self._ended_unix_ns,
            instrumentation_scope=_SCOPE,
        )


def _context(
    trace_id: int, span_id: int, flags: int, state: str, *, remote: bool = True
) -> SpanContext:
    found = TraceState.from_header([state]) if state else TraceState()
    return SpanContext(trace_id, span_id, remote, TraceFlags(flags), found)


def _named(operation: str, model: str) -> dict[str, str]:
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
    }


def _resource() -> Resource:
    """Who we are: ``tokenworks``, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say."""
    found = Resource.create()
    if str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        ours = {SERVICE_NAME: "tokenworks", "service.version": __version__}
        found = found.merge(Resource(ours))
    return found


def _wanted(variable: str) -> bool:
    return os.environ.get(variable, "otlp").strip().lower() != "none"
