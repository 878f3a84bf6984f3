"""The command line; wiring.py is the only file that knows every room."""

__all__ = [
    "chat",
    "doctor",
    "journal",
    "key",
    "main",
    "picture",
    "report",
    "table",
    "tiers",
    "up",
    "wiring",
]
