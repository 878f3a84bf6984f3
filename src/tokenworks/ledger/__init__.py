"""Money: accounts, double entry, quotas, metering. Pure."""

__all__ = ["accounts", "entries", "ledger", "metering", "quotas", "store_port"]
