"""Words that every room uses: units, ids, tiers, orders, errors, ports. Pure."""

__all__ = ["errors", "ids", "needs", "orders", "ports", "rng", "slo", "units"]
