"""The brain: events in, commands out. Pure."""

__all__ = [
    "commands",
    "dispatcher",
    "economics",
    "events",
    "fleet",
    "journal_format",
    "kv_tiers",
    "market",
    "oversight",
    "policies",
    "policy",
    "preemption",
    "prefix_index",
    "promises",
    "restricted",
    "scaling",
    "settings",
    "snapshot",
    "states",
    "waiting",
]
