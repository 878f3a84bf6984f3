"""How many tokens an answer has read and made, over all classes of tokens."""
# ruff: noqa: D102 - ``core.orders.Usage`` says what its fields are

from __future__ import annotations

from typing import Protocol


class TokenClasses(Protocol):
    """What ``core.orders.Usage`` says of an answer."""

    @property
    def uncached_input_tokens(self) -> int: ...
    @property
    def cached_input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def cache_write_tokens(self) -> int: ...
    @property
    def reasoning_tokens(self) -> int: ...
    @property
    def audio_input_tokens(self) -> int: ...
    @property
    def image_input_tokens(self) -> int: ...
    @property
    def audio_output_tokens(self) -> int: ...
    @property
    def image_output_tokens(self) -> int: ...


def prompt_tokens(usage: TokenClasses) -> int:
    """The whole prompt."""
    return (
        usage.uncached_input_tokens
        + usage.cached_input_tokens
        + usage.cache_write_tokens
        + usage.audio_input_tokens
        + usage.image_input_tokens
    )


def completion_tokens(usage: TokenClasses) -> int:
    """Everything that was made."""
    return (
        usage.output_tokens
        + usage.reasoning_tokens
        + usage.audio_output_tokens
        + usage.image_output_tokens
    )
