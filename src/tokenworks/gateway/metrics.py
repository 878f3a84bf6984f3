"""What can be seen of a factory, as Prometheus metrics.

Requests only add to tallies; names, labels and text are made when somebody reads. Names of
``gen_ai_*`` are those of OpenTelemetry's conventions for generative AI in Prometheus's spelling.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tokenworks.core.errors import QuotaExceeded, TokenworksError
from tokenworks.core.gauges import Gauges
from tokenworks.core.ids import PoolID
from tokenworks.core.orders import TOKEN_CLASSES
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR, NS_PER_S, TOKENS_PER_MTOK
from tokenworks.gateway.tallies import Buckets, Kind, Tallies, Tally

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
PROVIDER: Final = "tokenworks"
"""``gen_ai.provider.name``."""

_ALWAYS_SHOWN: Final = 3
"""Uncached and cached input, and output: a rate over them must not lack a term."""

_GEN_AI: Final = (
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "gen_ai_response_model",
)
_DOLLAR: Final = NANODOLLARS_PER_DOLLAR

Pick = Callable[[Tally], Buckets]
_Sums = collections.Counter[tuple[str, ...]]


class GatewayMetrics(Collector):
    """Counters of one gateway; labels are closed sets, so their number is bounded.

    Attributes:
        registry: holds them all, and whatever else is to be shown.
        tallies: of settled answers.
        open_requests: requests being served.
        wanted: how many workers pools that may grow want.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tallies = Tallies()
        self.open_requests = 0
        self.wanted: dict[PoolID, int] = {}
        self._responses: dict[tuple[str, int], int] = {}
        self._refusals: collections.Counter[str] = collections.Counter()
        self._quota_refusals: collections.Counter[str] = collections.Counter()
        self._gauges: Callable[[], Gauges] | None = None
        self.registry.register(self)

    def watch(self, gauges: Callable[[], Gauges]) -> None:
        """Show what a factory has, too, as this says when it is asked."""
        self._gauges = gauges

    def respond(self, route: str, status: int) -> None:
        """Count a response; ``route`` is one of the gateway's, or ``other``."""
        # A Counter would look for it by a method of Python's.
        self._responses[route, status] = self._responses.get((route, status), 0) + 1

    def refuse(self, error: TokenworksError) -> None:
        """Count what went wrong with a request, by its code."""
        self._refusals[error.code] += 1
        if isinstance(error, QuotaExceeded) and error.limit:
            self._quota_refusals[error.limit] += 1

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing is promised before it is read; see ``Collector``."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every metric as it is now; see ``Collector``."""
        tallies = list(self.tallies.items())
        yield from self._requests()
        yield from _answers(tallies)
        yield from _speeds(tallies)
        yield from _gen_ai(tallies)
        if self._gauges is not None:
            yield from _factory(self._gauges(), tallies)

    def _requests(self) -> Iterator[Metric]:
        responses = _counter("responses", "Responses by route and status.", "route", "status")
        for (route, status), count in self._responses.items():
            responses.add_metric([route, str(status)], count)
        yield responses
        yield _gauge("open_requests", "Requests being served.", value=self.open_requests)
        refusals = _counter("refusals", "Requests that ended in an error, by its code.", "code")
        for code, count in self._refusals.items():
            refusals.add_metric([code], count)
        yield refusals
        quotas = _counter(
            "quota_refusals",
            "Requests that a quota refused, by whose limit it is, its unit and its period.",
            *("node", "unit", "period"),
        )
        for limit, count in self._quota_refusals.items():
            quotas.add_metric(limit.split("/"), count)
        yield quotas
        wanted = _gauge(
            "workers_wanted",
            "Workers that a pool which may grow wants, since it first wanted another number.",
            "pool",
        )
        for pool, count in self.wanted.items():
            wanted.add_metric([pool], count)
        yield wanted


def _answers(tallies: list[tuple[Kind, Tally]]) -> Iterator[Metric]:
    """Tokens, endings, promises and money."""
    tokens, settled, promises = _Sums(), _Sums(), _Sums()
    money: dict[str, _Sums] = collections.defaultdict(_Sums)
    for kind, tally in tallies:
        tier = kind.delivered.value
        for index, (name, count) in enumerate(zip(TOKEN_CLASSES, tally.tokens, strict=True)):
            if count or index < _ALWAYS_SHOWN:
                tokens[name.removesuffix("_tokens"), tier] += count
        settled[kind.asked.value, tier, kind.ending] += tally.answers
        if kind.ending == "done":
            kept = kind.asked is kind.delivered
            promises[kind.asked.value, "kept"] += tally.answers * kept
            promises[kind.asked.value, "broken"] += tally.answers * (not kept)
        money["revenue"][(tier,)] += tally.charged_nanodollars - tally.credited_nanodollars
        money["credits"][(tier,)] += tally.credited_nanodollars
        money["cost"][(tier,)] += tally.cost_nanodollars
    yield _filled(
        _counter("tokens", "Tokens metered, by class and delivered tier.", "kind", "tier"), tokens
    )
    about = "Answers settled, by tier asked, tier delivered and ending."
    yield _filled(_counter("settled_requests", about, "asked", "delivered", "ending"), settled)
    about = "Whole answers that kept the promise of the tier asked, or broke it."
    yield _filled(_counter("promises", about, "tier", "result"), promises)
    for name, about in (
        ("revenue", "Charged to tenants less credits, by delivered tier; the ledger is exact."),
        ("credits", "Given back for broken promises, by delivered tier."),
        ("cost", "Answers' shares of their workers' cost, by delivered tier."),
    ):
        dollars: dict[tuple[str, ...], float] = {
            key: value / _DOLLAR for key, value in money[name].items()
        }
        yield _filled(_counter(f"{name}_dollars", about, "tier"), dollars)


def _speeds(tallies: list[tuple[Kind, Tally]]) -> Iterator[Metric]:
    """How fast answers were, and what came before and after."""
    for name, about, scale, pick in _BY_TIER:
        family = HistogramMetricFamily(f"tokenworks_{name}", about, labels=["tier"])
        _add(family, _joined(tallies, lambda kind: (kind.asked.value,), pick), scale)
        yield family
    family = HistogramMetricFamily(
        "tokenworks_ledger_commit_seconds",
        "From the end of an answer until its bill was durable.",
        labels=[],
    )
    commits = _joined(tallies, lambda _: (), lambda tally: tally.commit_ns)
    _add(family, commits or {(): Tally().commit_ns}, NS_PER_S)
    yield family


_BY_TIER: Final[tuple[tuple[str, str, int, Pick], ...]] = (
    (
        "ttft_seconds",
        "Time to first token at the gateway, by tier asked.",
        NS_PER_S,
        lambda tally: tally.ttft_ns,
    ),
    (
        "interactivity_tokens_per_second",
        "Speed one user saw, by tier asked; answers of two tokens or more.",
        1,
        lambda tally: tally.interactivity,
    ),
    (
        "queue_wait_seconds",
        "From a request's arrival until it was sent to who answered it, by tier asked.",
        NS_PER_S,
        lambda tally: tally.waited_ns,
    ),
)


def _gen_ai(tallies: list[tuple[Kind, Tally]]) -> Iterator[Metric]:
    for metric in GEN_AI_METRICS:
        family = HistogramMetricFamily(
            metric.name.replace(".", "_") + ("_seconds" if metric.unit == "s" else ""),
            metric.about,
            labels=[*_GEN_AI, metric.label.replace(".", "_")] if metric.label else _GEN_AI,
        )
        for value, pick, only in metric.series:
            chosen = [(kind, tally) for kind, tally in tallies if only(kind)]
            more = (value,) if metric.label else ()
            joined = _joined(chosen, _named, pick)
            _add(family, {(*key, *more): each for key, each in joined.items()}, metric.scale)
        yield family


def _named(kind: Kind) -> tuple[str, ...]:
    return kind.operation, PROVIDER, kind.model, kind.model


class GenAIMetric:
    """A metric of OpenTelemetry's conventions for generative AI.

    Attributes:
        name: of it, with dots.
        unit: of it, as the conventions say.
        about: a description.
        label: an attribute beside those that all have; empty if there is none.
        series: for each value of that attribute, where the values are and which kinds count.
        scale: by this what a tally has is divided.
    """

    def __init__(
        self,
        name: str,
        unit: str,
        about: str,
        label: str,
        series: tuple[tuple[str, Pick, Callable[[Kind], bool]], ...],
    ) -> None:
        self.name, self.unit, self.about, self.label = name, unit, about, label
        self.series = series
        self.scale = NS_PER_S if unit == "s" else 1


def _always(_: Kind) -> bool:
    return True


def _whole(kind: Kind) -> bool:
    return kind.ending == "done"


GEN_AI_METRICS: Final = (
    GenAIMetric(
        "gen_ai.client.token.usage",
        "{token}",
        "Number of input and output tokens used.",
        "gen_ai.token.type",
        (
            ("input", lambda tally: tally.input_tokens, _always),
            ("output", lambda tally: tally.output_tokens, _always),
        ),
    ),
    GenAIMetric(
        "gen_ai.server.request.duration",
        "s",
        "Generative AI server request duration such as time-to-last byte or last output token.",
        "error.type",
        (
            ("", lambda tally: tally.duration_ns, _whole),
            ("disconnected", lambda tally: tally.duration_ns, lambda k: k.ending == "disconnected"),
            ("worker_failed", lambda tally: tally.duration_ns, lambda k: k.ending == "failed"),
        ),
    ),
    GenAIMetric(
        "gen_ai.server.time_to_first_token",
        "s",
        "Time to generate first token for successful responses.",
        "",
        (("", lambda tally: tally.ttft_ns, _whole),),
    ),
    GenAIMetric(
        "gen_ai.server.time_per_output_token",
        "s",
        "Time per output token generated after the first token for successful responses.",
        "",
        (("", lambda tally: tally.tpot_ns, _whole),),
    ),
)


def _factory(now: Gauges, tallies: list[tuple[Kind, Tally]]) -> Iterator[Metric]:
    """What a factory has: workers, queues, promises, money of pools, the ledger's state."""
    yield from _workers(now)
    queued = _gauge("queued_requests", "Requests that wait, by model and tier.", "model", "tier")
    for (model, tier), count in now.queued.items():
        queued.add_metric([model, tier.value], count)
    yield queued
    ttft = _gauge("promised_ttft_seconds", "Time to first token that a tier promises.", "tier")
    speed = _gauge("promised_tokens_per_second", "Speed that a tier promises one user.", "tier")
    for tier, promise in now.promises.items():
        ttft.add_metric([tier.value], promise.ttft_ns / NS_PER_S)
        speed.add_metric([tier.value], promise.interactivity_tokens_per_s)
    yield from (ttft, speed)
    yield from _money(now, tallies)
    about = "What the dispatcher did, by name; `policy_faults` are choices it overruled."
    dispatched = _counter("dispatched", about, "what")
    yield _filled(dispatched, {(name,): count for name, count in now.dispatched.items()})
    appends = _gauge("ledger_appends", "Appends being stored; entries to be tried again.", "state")
    appends.add_metric(["storing"], now.storing)
    appends.add_metric(["unstored"], now.unstored)
    yield appends
    about = "Age of the oldest entry of the ledger that is not durable yet; 0 if there is none."
    yield _gauge("ledger_lag_seconds", about, value=now.ledger_lag_ns / NS_PER_S)


def _workers(now: Gauges) -> Iterator[Metric]:
    states = _gauge("workers", "Workers, by pool and state.", "pool", "state")
    by_state: collections.Counter[tuple[str, str]] = collections.Counter()
    names = ("worker", "pool", "model")
    up = _gauge("worker_up", "Whether a worker can take requests.", *names)
    running = _gauge("worker_running_requests", "Requests that a worker has.", *names)
    slots = _gauge("worker_slots", "Requests that a worker can have at once.", *names)
    for each in now.workers:
        for state in ("up", "down"):
            by_state[each.pool, state] += each.state == state
        named = [each.worker, each.pool, each.model]
        up.add_metric(named, float(each.state == "up"))
        running.add_metric(named, each.running)
        slots.add_metric(named, each.slots)
    for key, count in by_state.items():
        states.add_metric(key, count)
    yield from (states, up, running, slots)


def _money(now: Gauges, tallies: list[tuple[Kind, Tally]]) -> Iterator[Metric]:
    costs = _counter("pool_cost_dollars", "What pools cost, idle or not.", "pool", "kind")
    for pool, (energy, capital) in now.costs.items():
        costs.add_metric([pool, "energy"], energy / _DOLLAR)
        costs.add_metric([pool, "capital"], capital / _DOLLAR)
    yield costs
    made = sum(tally.tokens[TOKEN_CLASSES.index("output_tokens")] for _, tally in tallies)
    earned = sum(tally.charged_nanodollars - tally.credited_nanodollars for _, tally in tallies)
    spent = sum(energy + capital for energy, capital in now.costs.values())
    family = _gauge(
        "dollars_per_million_output_tokens",
        "Revenue, and the cost of all pools, by 1M tokens of output since the start.",
        "what",
    )
    for what, nanodollars in (("earned", earned), ("spent", spent)):
        if made:
            family.add_metric([what], nanodollars / _DOLLAR * TOKENS_PER_MTOK / made)
    yield family


def _counter(name: str, about: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"tokenworks_{name}", about, labels=labels)


def _gauge(name: str, about: str, *labels: str, value: float | None = None) -> GaugeMetricFamily:
    if value is not None:
        return GaugeMetricFamily(f"tokenworks_{name}", about, value=value)
    return GaugeMetricFamily(f"tokenworks_{name}", about, labels=labels)


def _filled(
    family: CounterMetricFamily, values: Mapping[tuple[str, ...], float]
) -> CounterMetricFamily:
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _joined(
    tallies: list[tuple[Kind, Tally]], key_of: Callable[[Kind], tuple[str, ...]], pick: Pick
) -> dict[tuple[str, ...], Buckets]:
    found: dict[tuple[str, ...], Buckets] = {}
    for kind, tally in tallies:
        buckets, key = pick(tally), key_of(kind)
        if key not in found:
            found[key] = Buckets(buckets.bounds)
        found[key].join(buckets)
    return found


def _add(
    family: HistogramMetricFamily, found: Mapping[tuple[str, ...], Buckets], scale: int
) -> None:
    for key, buckets in found.items():
        total, steps = 0, []
        for bound, count in zip((*buckets.bounds, None), buckets.counts, strict=True):
            total += count
            steps.append(("+Inf" if bound is None else str(bound / scale), total))
        family.add_metric(key, steps, buckets.total / scale)
