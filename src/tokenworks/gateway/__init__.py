"""Deliver: the OpenAI wire format, keys, streaming, metering at the edge."""

__all__ = [
    "app",
    "assemble",
    "chat",
    "chat_fields",
    "chat_request",
    "event_stream",
    "http_io",
    "json_body",
    "messages_answer",
    "messages_request",
    "metrics",
    "own_headers",
    "pieces",
    "schema_limits",
    "server",
]
