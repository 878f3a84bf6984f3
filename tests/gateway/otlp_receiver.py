"""A receiver of OTLP over HTTP, as a collector is one: it decodes the protobuf that arrives."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

WAIT_S_MAX = 60


class Receiver:
    """Keeps what it gets.

    Attributes:
        spans: by name, the latest of each.
        resources: attributes of what sent them.
        metrics, units: by name, their data points and units of the last export.
        headers: of the last request.
        hold: while it is not set nothing is answered.
        status: of its answers.
    """

    def __init__(self) -> None:
        self.spans: dict[str, Any] = {}
        self.span_count = 0
        self.resources: list[dict[str, Any]] = []
        self.metrics: dict[str, list[Any]] = {}
        self.units: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.hold, self.status = threading.Event(), 200
        self.hold.set()
        self.asked = threading.Event()
        self._changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.asked.set()
                receiver.hold.wait(WAIT_S_MAX)
                if receiver.status == 200:
                    receiver.take(self.path, body, dict(self.headers))
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    def take(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        with self._changed:
            self.headers = {name.lower(): value for name, value in headers.items()}
            if path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    self.resources.append(attributes_of(resource.resource))
                    for scope in resource.scope_spans:
                        self.spans |= {span.name: span for span in scope.spans}
                        self.span_count += len(scope.spans)
            else:
                assert path == "/v1/metrics", path
                for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    for scope in resource.scope_metrics:
                        self.metrics = {
                            m.name: list(m.histogram.data_points) for m in scope.metrics
                        }
                        self.units = {m.name: m.unit for m in scope.metrics}
            self._changed.notify_all()

    def until(self, holds: Any) -> None:
        """Wait until something has arrived."""
        with self._changed:
            assert self._changed.wait_for(holds, WAIT_S_MAX), (self.spans, self.metrics)

    def stop(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


def attributes_of(thing: Any) -> dict[str, Any]:
    """Attributes as plain values."""
    found = {}
    for pair in thing.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = (
            [each.string_value for each in value.values] if kind == "array_value" else value
        )
    return found
