"""Tokenworks: an operating system for token factories."""

if not __debug__:
    raise SystemExit(
        "Tokenworks does not run under python -O: its checks of itself are assert statements. "
        "Start Python without -O, and unset PYTHONOPTIMIZE."
    )

__version__ = "0.1.0"
__all__ = ["__version__"]
