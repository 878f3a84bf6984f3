"""One page of metrics for several processes that serve together: each sample names its process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from tokenworks.core.units import TOKENS_PER_MTOK

PROCESS: Final = "process"
"""The label. A count begins again when its process does, so a sum of all of them would fall and be
taken for new: PromQL's ``sum(rate(...))`` over this label is right."""

RATIO: Final = "tokenworks_dollars_per_million_output_tokens"
"""Of all processes together: one of them has neither all tokens nor all cost."""


def joined(texts: Mapping[int, bytes]) -> bytes:
    """All of it in Prometheus's text format.

    Args:
        texts: of each process, by index, as ``GatewayMetrics.text`` gives it.
    """
    registry = CollectorRegistry()
    registry.register(_Joined(texts))
    return generate_latest(registry)


class _Joined(Collector):
    def __init__(self, texts: Mapping[int, bytes]) -> None:
        self._texts = texts

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for index, text in sorted(self._texts.items()):
            for family in text_string_to_metric_families(text.decode()):
                found = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                found.samples += [
                    Sample(each.name, {**each.labels, PROCESS: str(index)}, each.value)
                    for each in family.samples
                ]
        about = families[RATIO].documentation
        families[RATIO] = _ratio(about, families)
        yield from families.values()
        up = GaugeMetricFamily(
            "tokenworks_process_up", "Processes of this factory that answered.", labels=[PROCESS]
        )
        for index in sorted(self._texts):
            up.add_metric([str(index)], 1)
        yield up


def _ratio(about: str, families: Mapping[str, Metric]) -> Metric:
    made = sum(
        each.value
        for each in families["tokenworks_tokens"].samples
        if each.labels.get("kind") == "output"
    )
    family = GaugeMetricFamily(RATIO, about, labels=["what"])
    for what, name in (("earned", "tokenworks_revenue_dollars"), ("spent", _COST)):
        dollars = sum(each.value for each in families[name].samples)
        if made:
            family.add_metric([what], dollars * TOKENS_PER_MTOK / made)
    return family


_COST: Final = "tokenworks_pool_cost_dollars"
