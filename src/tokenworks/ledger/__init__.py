"""Money: accounts, double entry, quotas, metering. Pure."""

__all__ = [
    "accounts",
    "audit",
    "blocks",
    "entries",
    "extras",
    "focus",
    "grants",
    "invoices",
    "leases",
    "ledger",
    "litellm",
    "litellm_prices",
    "metering",
    "quotas",
    "reports",
    "rollup",
    "store_port",
    "stored",
]
