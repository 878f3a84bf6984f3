"""Fuzzing: bytes become what callers and workers may send, and rules say what must hold."""
