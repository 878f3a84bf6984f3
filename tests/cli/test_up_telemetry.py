"""A factory that exports: its spans reach a collector, and its worker is in the same trace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cli.command_line import ask, data, invoke
from tests.cli.conftest import Elsewhere
from tests.gateway.otlp_receiver import WAIT_S_MAX, Receiver, attributes_of
from tokenworks.core.errors import ConfigInvalid
from tokenworks.gateway.otlp import Otlp
from tokenworks.gateway.telemetry import ENDPOINTS
from tokenworks.live.home import Home

WhenReady = Callable[..., list[Any]]
FAST = ("up", "--twin", "--port", "0", "--speedup", "50", "--workers", "2", "--quiet")


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Otlp.stop, "__defaults__", (WAIT_S_MAX,))  # the machine may be busy
    made = Receiver()
    yield made
    made.stop()


def test_spans_of_a_factory_reach_a_collector_and_its_worker_joins_the_trace(
    attached: Home, elsewhere: Elsewhere, receiver: Receiver, when_ready: WhenReady
) -> None:
    settings = attached.settings.read_text()
    attached.settings.write_text(f"[telemetry]\notlp = '{receiver.url}'\n{settings}")
    when_ready(attached, lambda: ask(attached))
    assert invoke(attached, "up", "--quiet").exit_code == 0
    inference = receiver.spans["chat foreman"]
    (sent,) = [each for each in elsewhere.worker.received if each.method == "POST"]
    trace, span = inference.trace_id.hex(), inference.span_id.hex()
    where, flags = sent.headers["traceparent"].rsplit("-", 1)
    assert where == f"00-{trace}-{span}"
    assert int(flags, 16) & 1  # sampled
    found = attributes_of(inference)
    assert sent.headers["x-request-id"] == found["tokenworks.request.id"]
    assert found["gen_ai.usage.output_tokens"] == 2
    assert "gen_ai.output.messages" not in found
    (entry,) = data(attached, "ledger", "show", found["tokenworks.request.id"])[-1:]
    assert found["tokenworks.charged_nanodollars"] == entry["charged_nanodollars"]
    assert receiver.metrics["gen_ai.server.request.duration"][0].count == 1


def test_a_modelled_factory_exports_by_the_standard_variables(
    home: Home, receiver: Receiver, when_ready: WhenReady, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    when_ready(home, lambda: ask(home, model="twin"))
    assert invoke(home, *FAST).exit_code == 0
    found = attributes_of(receiver.spans["chat twin"])
    assert "This is filler" in found["gen_ai.output.messages"]
    assert found["gen_ai.response.finish_reasons"]


def test_without_the_extra_it_says_what_to_install(
    attached: Home, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setitem(sys.modules, "tokenworks.gateway.otlp", None)
    caught = invoke(attached, "up").exception
    assert isinstance(caught, ConfigInvalid)
    assert "tokenworks[otel]" in caught.hint
