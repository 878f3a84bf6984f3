"""The command line; wiring.py is the only file that knows every room."""

__all__: list[str] = []
