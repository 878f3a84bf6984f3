"""Tokenworks: an operating system for token factories."""

__version__ = "0.1.0"
__all__ = ["__version__"]
