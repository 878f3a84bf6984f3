"""What a worker's chunks and whole answers say of tokens, of their end and in usage: records."""

from __future__ import annotations

import msgspec

from tokenworks.core.orders import Usage


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class ToldUsage(msgspec.Struct):
    """Usage as OpenAI words it: the details are parts of the two sums."""

    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


def nothing_used() -> Usage:
    """Usage of an answer that was not measured, which nobody pays for."""
    return Usage(uncached_input_tokens=0, cached_input_tokens=0, output_tokens=0)


class Choice(msgspec.Struct):
    """One choice of a chunk: what of it is read."""

    index: object = None
    finish_reason: str | None = None
    delta: dict[str, object] | None = None
    logprobs: object = None
    text: str | None = None


class Progress(msgspec.Struct):
    """How much of a prompt a worker has read so far: tokens, of which ``cache`` were kept."""

    total: int
    cache: int
    processed: int


class WorkerChunk(msgspec.Struct):
    """What is read of an event; all else in it is passed on unread."""

    choices: list[Choice] | None = None
    usage: ToldUsage | None = None
    error: object = None
    prompt_progress: Progress | None = None


class WholeMessage(msgspec.Struct):
    """Any object: nothing of it is read."""


class WholeChoice(msgspec.Struct):
    """One choice of an answer in one piece: that it has a message or a text, and why it ended."""

    message: WholeMessage | None = None
    text: str | None = None
    finish_reason: str | None = None


class WholeAnswer(msgspec.Struct):
    """What is read of an answer in one piece; all else in it is passed on unread."""

    choices: list[WholeChoice] | None = None
    usage: ToldUsage | None = None
    error: object = None


class SaidChoice(Choice):
    """One choice of an answer in one piece, as if it were of a chunk."""

    delta: dict[str, object] | None = msgspec.field(name="message", default=None)


class SaidChoices(msgspec.Struct):
    """All choices of an answer in one piece."""

    choices: list[SaidChoice]
