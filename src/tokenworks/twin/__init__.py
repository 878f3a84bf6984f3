"""The modelled world: the same dispatcher, a clock that jumps, engines that only compute."""

__all__ = [
    "arrivals",
    "bound",
    "clock",
    "driver",
    "journal",
    "kinds",
    "kv_cache",
    "network",
    "recorded",
    "records",
    "report",
    "scenarios",
    "servegen",
    "serving",
    "sessions",
    "trace_files",
    "traces",
    "workers",
    "workload",
]
