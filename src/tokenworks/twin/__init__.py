"""The modelled world: the same dispatcher, a clock that jumps, engines that only compute."""

__all__ = [
    "arrivals",
    "kinds",
    "records",
    "scenarios",
    "servegen",
    "sessions",
    "trace_files",
    "traces",
    "workload",
]
