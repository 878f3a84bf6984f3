"""The real world: clock, journal, store, engines, workers."""

__all__: list[str] = []
