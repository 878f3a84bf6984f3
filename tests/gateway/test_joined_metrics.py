"""Metrics of several processes on one page."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tokenworks.gateway.joined_metrics import RATIO, joined
from tokenworks.gateway.metrics import GatewayMetrics


def _page(tokens: int, earned: float, spent: float, status: int) -> bytes:
    """What one process has said, as far as this is about it."""
    metrics = GatewayMetrics()
    metrics.respond("/healthz", status)
    more = (
        "# HELP tokenworks_pool_cost_dollars_total Cost.\n"
        "# TYPE tokenworks_pool_cost_dollars_total counter\n"
        f'tokenworks_pool_cost_dollars_total{{pool="p",kind="energy"}} {spent}\n'
        f"# HELP {RATIO} What a million costs.\n# TYPE {RATIO} gauge\n"
        f'{RATIO}{{what="spent"}} 7\n'
    )
    text = metrics.text().decode()
    for name, labels, value in (
        ("tokens", 'kind="output",tier="high"', tokens),
        ("tokens", 'kind="uncached_input",tier="high"', 1_000),
        ("revenue_dollars", 'tier="high"', earned),
    ):
        head = f"# TYPE tokenworks_{name}_total counter\n"
        text = text.replace(head, f"{head}tokenworks_{name}_total{{{labels}}} {value}\n")
    return (text + more).encode()


def _samples(page: bytes) -> dict[tuple[str, str | None], float]:
    return {
        (sample.name + sample.labels.get("what", ""), sample.labels.get("process")): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if "tokens" not in sample.name or sample.name == RATIO
    }


def test_each_sample_names_its_process_and_a_ratio_is_of_all() -> None:
    page = joined({2: _page(300_000, 2.0, 0.0, 200), 0: _page(100_000, 0.0, 1.0, 200)})
    found = _samples(page)
    assert found["tokenworks_responses_total", "0"] == 1
    assert found["tokenworks_responses_total", "2"] == 1
    assert found["tokenworks_process_up", "2"] == 1
    assert ("tokenworks_process_up", "1") not in found
    # 2 dollars for 400,000 tokens, and 1 that only the owner writes down.
    assert found[RATIO + "earned", None] == 5
    assert found[RATIO + "spent", None] == 2.5
    assert (RATIO + "spent", "0") not in found
    assert page.count(b"# TYPE tokenworks_responses_total counter") == 1


def test_before_the_first_token_there_is_no_ratio() -> None:
    found = _samples(joined({0: _page(0, 0.0, 1.0, 404)}))
    assert (RATIO + "spent", None) not in found
    assert found["tokenworks_pool_cost_dollars_total", "0"] == 1
