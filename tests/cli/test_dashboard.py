"""The dashboard, the page on metrics and what a factory really exports agree."""

from __future__ import annotations

import http.client
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.command_line import READY_S_MAX, ask, invoke
from tests.gateway.otlp_receiver import Receiver
from tokenworks.live.home import Home

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "tokenworks.json").read_text())
FAST = ("up", "--twin", "--port", "0", "--speedup", "50", "--workers", "2", "--quiet")
COMMON = {
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "gen_ai_response_model",
}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    variables = DASHBOARD["templating"]["list"]
    return found + [each["definition"] for each in variables if each["type"] == "query"]


def documented() -> dict[str, set[str]]:
    """The metrics of docs/seeing.md, by the name in their row, with their labels."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "docs" / "seeing.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = re.findall(r"`((?:gen_ai|tokenworks)_[a-z_]+)`", cells[0])
        if not line.startswith("| `") or not names:
            continue
        labels = {word.strip("` ") for word in cells[1].split(",")} - {""}
        for name in names:
            more = COMMON if name.startswith("gen_ai") else set()
            found[name] = (labels - {"model"}) | more if more else labels
    return found


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    made = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
    yield made
    made.stop()


def exported(home: Home) -> str:
    host = (home.read_url() or "").removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=READY_S_MAX)
    connection.request("GET", "/metrics")
    with connection.getresponse() as response:
        text = response.read().decode()
    connection.close()
    return text


def test_a_factory_exports_what_the_page_lists_and_nothing_else(
    home: Home, receiver: Receiver, when_ready: Callable[..., list[Any]]
) -> None:
    def act() -> str:
        for _ in range(3):
            ask(home, model="twin")
        ask(home, model="nobody")
        return exported(home)

    results = when_ready(home, act)
    assert invoke(home, *FAST).exit_code == 0
    page = documented()
    families = list(text_string_to_metric_families(results[0]))
    names = {each.name + "_total" * (each.type == "counter"): each for each in families}
    assert names.keys() == page.keys()
    for name, family in names.items():
        for sample in family.samples:
            labels = sample.labels.keys() - {"le"}
            # A label without a value is one that Prometheus does not have.
            assert labels == page[name], name
    seen = {name for name, family in names.items() if family.samples}
    assert page.keys() - seen == {"tokenworks_quota_refusals_total", "tokenworks_workers_wanted"}


def test_every_query_asks_for_what_is_exported() -> None:
    page = documented()
    used = set()
    for query in queries():
        selectors = re.findall(r"\b((?:tokenworks|gen_ai)_[a-z_]+)\{([^}]*)\}", query)
        selectors += [
            (name, "") for name in re.findall(r"label_values\(([a-z_]+), instance\)", query)
        ]
        assert selectors, query
        labels = set().union(*(re.findall(r"(\w+)[!=]", chosen) for _, chosen in selectors))
        for grouped in re.findall(r"by \(([^)]*)\)", query):
            labels |= {label.strip() for label in grouped.split(",")}
        known = {"instance"}
        for name, _ in selectors:
            whole = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in page or whole in page, (name, query)
            known |= page.get(name) or page.get(whole) or set()
            if name.endswith("_bucket"):
                known.add("le")
            used.add(name if name in page else whole)
        assert labels <= known, (labels - known, query)
    assert used == page.keys() - {
        "tokenworks_worker_up",  # a table of names; tokenworks_workers has the sums
    }


def test_values_that_queries_ask_for_are_exported_ones() -> None:
    asked = {pair for query in queries() for pair in re.findall(r'(\w+)="([^"]*)"', query)}
    assert asked - {("instance", "$instance")} == {
        ("kind", "cached_input"),
        ("kind", "output"),
        ("result", "kept"),
        ("state", "down"),
    }


def test_legends_name_labels_that_the_query_keeps() -> None:
    for panel in panels():
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))
            if "topk" not in target["expr"]:
                assert shown <= kept, target


def test_panels_are_as_grafana_wants_them() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    assert re.fullmatch(r"[a-z-]{1,40}", DASHBOARD["uid"])
    assert "id" not in DASHBOARD  # else an import would ask to replace another dashboard
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert {panel["type"] for panel in panels()} == {"stat", "timeseries"}
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert all(titles)
    assert len(titles) == len(set(titles))
    for panel in panels():
        references = [target["refId"] for target in panel["targets"]]
        assert references == [chr(ord("A") + i) for i in range(len(references))]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for source in (panel["datasource"], *(each["datasource"] for each in panel["targets"])):
            assert source == {"type": "prometheus", "uid": "${datasource}"}


def test_no_panel_lies_on_another_or_beside_the_screen() -> None:
    boxes = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    for box in boxes:
        assert box["x"] >= 0
        assert box["y"] >= 0
        assert box["x"] + box["w"] <= 24
    for a, b in itertools.combinations(boxes, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (a, b)


def test_every_variable_is_used() -> None:
    names = {each["name"] for each in DASHBOARD["templating"]["list"]}
    text = json.dumps(DASHBOARD["panels"])
    assert names == {"datasource", "instance"}
    assert all(f"${name}" in text or f"${{{name}}}" in text for name in names)
