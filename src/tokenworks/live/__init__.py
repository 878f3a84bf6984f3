"""The real world: clock, journal, store, engines, workers."""

__all__ = [
    "bookkeeper",
    "clock",
    "cost_claims",
    "database",
    "driver",
    "embedded",
    "group_commit",
    "home",
    "journal",
    "lease_tables",
    "ledger_sql",
    "measure",
    "network",
    "numbered_names",
    "postgres",
    "quota_leases",
    "settings_store",
    "sqlite",
    "store",
    "workers",
]
