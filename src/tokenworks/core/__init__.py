"""Words that every room uses: units, ids, tiers, orders, errors, ports. Pure."""

__all__ = [
    "batches",
    "errors",
    "gauges",
    "ids",
    "kept_promises",
    "needs",
    "orders",
    "ports",
    "rng",
    "scopes",
    "slo",
    "token_sums",
    "trace_place",
    "traces",
    "units",
]
