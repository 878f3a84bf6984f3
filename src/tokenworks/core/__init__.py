"""Words that every room uses: units, ids, tiers, orders, errors, ports. Pure."""

__all__ = [
    "errors",
    "gauges",
    "ids",
    "needs",
    "orders",
    "ports",
    "rng",
    "scopes",
    "slo",
    "traces",
    "units",
]
