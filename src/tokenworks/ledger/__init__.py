"""Money: accounts, double entry, quotas, metering. Pure."""

__all__: list[str] = []
