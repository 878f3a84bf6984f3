"""The brain: events in, commands out. Pure."""

__all__ = [
    "commands",
    "dispatcher",
    "events",
    "fleet",
    "policy",
    "prefix_index",
    "snapshot",
    "states",
    "waiting",
]
