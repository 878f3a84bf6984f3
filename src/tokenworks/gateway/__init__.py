"""Deliver: the OpenAI wire format, keys, streaming, metering at the edge."""

__all__ = [
    "answer",
    "app",
    "assemble",
    "chat",
    "chat_fields",
    "chat_request",
    "connection",
    "dialect",
    "event_stream",
    "http_body",
    "http_head",
    "http_io",
    "metrics",
    "openai_errors",
    "own_headers",
    "request_ids",
    "routes",
    "schema_limits",
    "server",
    "tallies",
]
