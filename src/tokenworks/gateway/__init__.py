"""Deliver: the OpenAI wire format, keys, streaming, metering at the edge."""

__all__ = [
    "answer",
    "app",
    "assemble",
    "chat",
    "chat_fields",
    "chat_request",
    "dialect",
    "event_stream",
    "http_io",
    "json_body",
    "messages",
    "messages_answer",
    "messages_request",
    "metrics",
    "openai_errors",
    "own_headers",
    "pieces",
    "routes",
    "schema_limits",
    "server",
]
