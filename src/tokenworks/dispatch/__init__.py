"""The brain: events in, commands out. Pure."""

__all__: list[str] = []
