"""Deliver: the OpenAI wire format, keys, streaming, metering at the edge."""

__all__ = [
    "app",
    "assemble",
    "chat",
    "chat_fields",
    "chat_request",
    "event_stream",
    "http_io",
    "metrics",
    "otlp",
    "own_headers",
    "request_ids",
    "schema_limits",
    "server",
    "span_content",
    "tallies",
    "telemetry",
    "traced_desk",
]
