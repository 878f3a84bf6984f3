"""The real world: clock, journal, store, engines, workers."""

__all__ = [
    "clock",
    "driver",
    "embedded",
    "home",
    "journal",
    "measure",
    "network",
    "report_store",
    "store",
    "workers",
]
