"""Deliver: the OpenAI wire format, keys, streaming, metering at the edge."""

__all__: list[str] = []
