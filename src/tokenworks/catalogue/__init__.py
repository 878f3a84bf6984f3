"""What exists and what it costs: price books and tiers, models that ship with the package. Pure."""

__all__ = [
    "factory_config",
    "packages",
    "price_book",
    "price_check",
    "records",
    "shelves",
    "timings",
    "toml_text",
]
