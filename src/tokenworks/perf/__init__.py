"""How long engines take: physics calibrated on measured rows, and integer timings. Pure."""

__all__ = [
    "architecture",
    "calibrated",
    "calibration",
    "case",
    "demand",
    "estimate",
    "examples",
    "fit",
    "fleet_plan",
    "kv_tiers",
    "passes",
    "roofline",
    "rows",
    "speculative",
    "split",
    "sweep",
    "terms",
    "timing",
    "validate",
]
