"""What ``/metrics`` shows: the conventions' histograms, promises, money, refusals, the factory."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.fake_desk import KEY, MODEL
from tokenworks.core.errors import CapacityExceeded, QuotaExceeded
from tokenworks.core.gauges import Gauges, WorkerGauge
from tokenworks.core.ids import PoolID, RequestID, WorkerID
from tokenworks.core.orders import Order, Outcome, Receipt, Usage
from tokenworks.core.slo import Measured, Promise, Tier
from tokenworks.gateway.metrics import GatewayMetrics

MS = 1_000_000
GEN_AI = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "tokenworks",
    "gen_ai_request_model": MODEL,
    "gen_ai_response_model": MODEL,
}
ORDER = Order(
    request=RequestID("r"),
    key=KEY,
    model=MODEL,
    tier=Tier.HIGH,
    body=b"{}",
    input_tokens_max=1,
    output_tokens_max=1,
    prefix=(),
    arrived_ns=1_000 * MS,
)
USAGE = Usage(uncached_input_tokens=60, cached_input_tokens=40, output_tokens=11)


def settle(
    metrics: GatewayMetrics,
    *,
    delivered: Tier = Tier.HIGH,
    ending: Any = "done",
    usage: Usage = USAGE,
    ttft_ns: int | None = 20 * MS,
    decode_ns: int = 100 * MS,
) -> None:
    measured = Measured(ttft_ns=ttft_ns, decode_ns=decode_ns, output_tokens=usage.completion_tokens)
    receipt = Receipt(
        tier_asked=Tier.HIGH,
        tier_delivered=delivered,
        charged_nanodollars=3_000,
        credited_nanodollars=1_000,
        cost_nanodollars=500,
        waited_ns=7 * MS,
        pool=PoolID("p"),
        worker=WorkerID("w"),
    )
    outcome = Outcome(usage=usage, measured=measured, ending=ending)
    metrics.tallies.count(ORDER, outcome, receipt, 1_130 * MS, 1_131 * MS)


def value(metrics: GatewayMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.mark.parametrize(
    ("name", "labels", "total", "bound"),
    [
        ("gen_ai_client_token_usage", {"gen_ai_token_type": "input"}, 100, "256.0"),
        ("gen_ai_client_token_usage", {"gen_ai_token_type": "output"}, 11, "16.0"),
        ("gen_ai_server_request_duration_seconds", {"error_type": ""}, 0.13, "0.16"),
        ("gen_ai_server_time_to_first_token_seconds", {}, 0.02, "0.02"),
        ("gen_ai_server_time_per_output_token_seconds", {}, 0.01, "0.01"),
    ],
)
def test_the_conventions_histograms(
    name: str, labels: dict[str, str], total: float, bound: str
) -> None:
    metrics = GatewayMetrics()
    settle(metrics)
    found = text_string_to_metric_families(metrics.text().decode())
    (family,) = (each for each in found if each.name == name)
    assert family.type == "histogram"
    named = {**GEN_AI, **labels}
    series = [each for each in family.samples if each.labels.items() >= named.items()]
    steps = {s.labels["le"]: s.value for s in series if s.name.endswith("_bucket")}
    assert steps["+Inf"] == 1
    assert min((float(le) for le, count in steps.items() if count), default=0) == float(bound)
    (whole,) = (each.value for each in series if each.name.endswith("_sum"))
    assert whole == pytest.approx(total)


def test_buckets_are_the_conventions() -> None:
    metrics = GatewayMetrics()
    settle(metrics)
    bounds: dict[str, list[float]] = {}
    for family in metrics.collect():
        for sample in family.samples:
            if sample.labels.get("error_type", sample.labels.get("gen_ai_token_type")) == "output":
                continue
            if family.name.startswith("gen_ai") and "le" in sample.labels:
                bounds.setdefault(family.name, []).append(float(sample.labels["le"]))
    assert bounds["gen_ai_client_token_usage"][:3] == [1, 4, 16]
    assert bounds["gen_ai_client_token_usage"][-2:] == [67_108_864, float("inf")]
    assert bounds["gen_ai_server_request_duration_seconds"][:3] == [0.01, 0.02, 0.04]
    assert bounds["gen_ai_server_request_duration_seconds"][-2] == 81.92
    ttft = bounds["gen_ai_server_time_to_first_token_seconds"]
    assert (len(ttft), ttft[0], ttft[-2]) == (17, 0.001, 10)
    tpot = bounds["gen_ai_server_time_per_output_token_seconds"]
    assert (len(tpot), tpot[0], tpot[-2]) == (14, 0.01, 2.5)


def test_answers_that_broke_off_count_as_errors_and_have_no_speed() -> None:
    metrics = GatewayMetrics()
    nothing = Usage(uncached_input_tokens=1, cached_input_tokens=0, output_tokens=0)
    settle(metrics, ending="failed", usage=nothing, ttft_ns=None, decode_ns=0)
    settle(metrics, ending="disconnected", usage=nothing, ttft_ns=None, decode_ns=0)
    name = "gen_ai_server_request_duration_seconds_count"
    assert value(metrics, name, **GEN_AI, error_type="worker_failed") == 1
    assert value(metrics, name, **GEN_AI, error_type="disconnected") == 1
    assert value(metrics, name, **GEN_AI, error_type="") is None
    assert value(metrics, "gen_ai_server_time_to_first_token_seconds_count", **GEN_AI) is None
    assert value(metrics, "tokenworks_ttft_seconds_count", tier="high") == 0
    assert value(metrics, "tokenworks_promises_total", tier="high", result="kept") is None


def test_an_answer_in_one_piece_has_a_duration_and_no_speed() -> None:
    metrics = GatewayMetrics()
    settle(metrics, ttft_ns=None)
    count = "gen_ai_server_request_duration_seconds_count"
    assert value(metrics, count, **GEN_AI, error_type="") == 1
    for name in ("time_to_first_token", "time_per_output_token"):
        assert not value(metrics, f"gen_ai_server_{name}_seconds_count", **GEN_AI)
    assert value(metrics, "tokenworks_ttft_seconds_count", tier="high") == 0


def test_promises_and_money_by_tier() -> None:
    metrics = GatewayMetrics()
    settle(metrics)
    settle(metrics)
    settle(metrics, delivered=Tier.FREE)
    assert value(metrics, "tokenworks_promises_total", tier="high", result="kept") == 2
    assert value(metrics, "tokenworks_promises_total", tier="high", result="broken") == 1
    assert value(metrics, "tokenworks_revenue_dollars_total", tier="high") == pytest.approx(4e-6)
    assert value(metrics, "tokenworks_credits_dollars_total", tier="free") == pytest.approx(1e-6)
    assert value(metrics, "tokenworks_cost_dollars_total", tier="high") == pytest.approx(1e-6)
    assert value(metrics, "tokenworks_queue_wait_seconds_sum", tier="high") == pytest.approx(0.021)
    assert value(metrics, "tokenworks_ledger_commit_seconds_sum") == pytest.approx(0.003)


def test_rare_classes_of_tokens_are_shown_once_there_are_some() -> None:
    metrics = GatewayMetrics()
    settle(metrics)
    assert value(metrics, "tokenworks_tokens_total", kind="reasoning", tier="high") is None
    more = Usage(
        uncached_input_tokens=1, cached_input_tokens=0, output_tokens=1, reasoning_tokens=5
    )
    settle(metrics, usage=more)
    assert value(metrics, "tokenworks_tokens_total", kind="reasoning", tier="high") == 5


def test_refusals_are_counted_by_code_and_quotas_by_kind_of_limit() -> None:
    metrics = GatewayMetrics()
    refused = QuotaExceeded("too much")
    refused.limit = "tenant/tokens/month"
    for error in (refused, refused, QuotaExceeded("another"), CapacityExceeded("full")):
        metrics.refuse(error)
    assert value(metrics, "tokenworks_refusals_total", code="quota_exceeded") == 3
    assert value(metrics, "tokenworks_refusals_total", code="capacity_exceeded") == 1
    named = {"node": "tenant", "unit": "tokens", "period": "month"}
    assert value(metrics, "tokenworks_quota_refusals_total", **named) == 2


def test_what_a_factory_has() -> None:
    metrics = GatewayMetrics()
    pool = PoolID("h200")
    workers = (
        WorkerGauge(worker=WorkerID("a"), pool=pool, model=MODEL, state="up", running=3, slots=8),
        WorkerGauge(worker=WorkerID("b"), pool=pool, model=MODEL, state="down", running=0, slots=0),
    )
    promise = Promise(
        ttft_ns=500 * MS,
        interactivity_tokens_per_s=50,
        grace_ns=0,
        patience_ns=0,
        output_tokens_default=1,
    )
    gauges = Gauges(
        workers=workers,
        queued={(MODEL, Tier.HIGH): 2},
        promises={Tier.HIGH: promise},
        costs={pool: (1_000_000, 2_000_000)},
        dispatched={"sent": 9},
        storing=1,
        unstored=4,
        ledger_lag_ns=30 * MS,
    )
    metrics.watch(lambda: gauges)
    per = "tokenworks_dollars_per_million_output_tokens"
    assert value(metrics, per, what="spent") is None
    settle(metrics)
    assert value(metrics, per, what="spent") == pytest.approx(0.003 * 1e6 / 11)
    assert value(metrics, per, what="earned") == pytest.approx(2e-6 * 1e6 / 11)
    assert value(metrics, "tokenworks_workers", pool="h200", state="up") == 1
    assert value(metrics, "tokenworks_workers", pool="h200", state="down") == 1
    named = {"worker": "a", "pool": "h200", "model": MODEL}
    assert value(metrics, "tokenworks_worker_running_requests", **named) == 3
    assert value(metrics, "tokenworks_worker_slots", **named) == 8
    assert value(metrics, "tokenworks_worker_up", **named) == 1
    assert value(metrics, "tokenworks_queued_requests", model=MODEL, tier="high") == 2
    assert value(metrics, "tokenworks_promised_ttft_seconds", tier="high") == 0.5
    assert value(metrics, "tokenworks_promised_tokens_per_second", tier="high") == 50
    assert value(metrics, "tokenworks_pool_cost_dollars_total", pool="h200", kind="energy") == 1e-3
    assert value(metrics, "tokenworks_dispatched_total", what="sent") == 9
    assert value(metrics, "tokenworks_ledger_appends", state="storing") == 1
    assert value(metrics, "tokenworks_ledger_appends", state="unstored") == 4
    assert value(metrics, "tokenworks_ledger_lag_seconds") == 0.03
    metrics.wanted[pool] = 3
    assert value(metrics, "tokenworks_workers_wanted", pool="h200") == 3


def test_an_answer_is_counted_in_few_steps() -> None:
    """Counted in bytecodes, which no other process on the machine changes."""
    metrics = GatewayMetrics()
    settle(metrics)
    steps = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        settle(metrics)
    finally:
        sys.settrace(before)
    assert steps < 900
