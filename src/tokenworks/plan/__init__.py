"""What to build and what it can earn at most. Pure."""

__all__: list[str] = []
