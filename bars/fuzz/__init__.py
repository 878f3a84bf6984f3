"""Fuzzing: bytes are turned into what callers and workers may send, and rules say what must hold."""
