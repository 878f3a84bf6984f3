"""How long engines take: physics calibrated on measured rows, and integer timings. Pure."""

__all__ = [
    "architecture",
    "boosting",
    "calibrated",
    "calibration",
    "case",
    "estimate",
    "examples",
    "fit",
    "fleet_plan",
    "kv_tiers",
    "passes",
    "rows",
    "speculative",
    "split",
    "sweep",
    "terms",
    "timing",
    "validate",
]
