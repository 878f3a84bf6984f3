"""What a worker's chunks say of tokens and of their end, and usage in classes that are disjoint."""

from __future__ import annotations

import reprlib
from typing import Final

import msgspec

from tokenworks.core.errors import WorkerFailed
from tokenworks.core.orders import Usage

TOKENS_MAX: Final = 1 << 40
"""Tokens of one answer; a worker that says more has counted below zero."""


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

    def disjoint(self) -> Usage:
        """The same in classes that add up to the two sums, whatever the details claim.

        Raises:
            WorkerFailed: a figure is below zero.
        """
        read, made = self.prompt_tokens_details, self.completion_tokens_details
        prompt, tokens = self.prompt_tokens, self.completion_tokens
        cached = (read.cached_tokens or 0) if read else 0
        more = read is not None and (
            read.cache_write_tokens or read.audio_tokens or read.image_tokens
        )
        if made is None and not more and 0 <= cached <= prompt <= TOKENS_MAX >= tokens >= 0:
            return Usage(
                uncached_input_tokens=prompt - cached,
                cached_input_tokens=cached,
                output_tokens=tokens,
            )
        left = _Rest(self.prompt_tokens, self)
        cached = left.take(read.cached_tokens if read else 0)
        write = left.take(read.cache_write_tokens if read else 0)
        audio_in = left.take(read.audio_tokens if read else 0)
        image_in = left.take(read.image_tokens if read else 0)
        rest = _Rest(self.completion_tokens, self)
        reasoning = rest.take(made.reasoning_tokens if made else 0)
        audio_out = rest.take(made.audio_tokens if made else 0)
        image_out = rest.take(made.image_tokens if made else 0)
        return Usage(
            uncached_input_tokens=left.tokens,
            cached_input_tokens=cached,
            output_tokens=rest.tokens,
            cache_write_tokens=write,
            reasoning_tokens=reasoning,
            audio_input_tokens=audio_in,
            image_input_tokens=image_in,
            audio_output_tokens=audio_out,
            image_output_tokens=image_out,
        )


class _Rest:
    """What is left of a sum after its parts were taken."""

    __slots__ = ("_said", "tokens")

    def __init__(self, tokens: int, said: ToldUsage) -> None:
        self.tokens, self._said = tokens, said
        self.take(0)

    def take(self, part: int | None) -> int:
        part = min(part or 0, self.tokens)
        if part < 0 or not 0 <= self.tokens <= TOKENS_MAX:
            raise WorkerFailed(f"A worker's usage cannot be: {self._said!r}.")
        self.tokens -= part
        return part


def nothing_used() -> Usage:
    """Usage of an answer that was not measured, which nobody pays for."""
    return Usage(uncached_input_tokens=0, cached_input_tokens=0, output_tokens=0)


def usage_of(told: object) -> Usage:
    """What an answer's ``usage`` says, in disjoint classes; nothing of none.

    Raises:
        WorkerFailed: it is no usage.
    """
    if told is None:
        return nothing_used()
    try:
        return msgspec.convert(told, ToldUsage).disjoint()
    except msgspec.ValidationError as error:
        raise WorkerFailed(f"A worker's usage cannot be read: {error}.") from error


class _Choice(msgspec.Struct):
    index: int | None = None
    finish_reason: str | None = None
    delta: dict[str, object] | None = None
    logprobs: object = None
    text: str | None = None

    def has_token(self) -> bool:
        """Whether it carries a part of the answer: text, a call, or a token's probability alone."""
        if self.text:
            return True
        if self.delta is not None:
            for name, value in self.delta.items():
                if value and name != "role":
                    return True
        return isinstance(self.logprobs, dict) and any(self.logprobs.values())


class Progress(msgspec.Struct):
    """How much of a prompt a worker has read so far: tokens, of which ``cache`` were kept."""

    total: int
    cache: int
    processed: int


class WorkerChunk(msgspec.Struct):
    """What is read of an event; all else in it is passed on unread."""

    choices: list[_Choice] | None = None
    usage: ToldUsage | None = None
    error: object = None
    prompt_progress: Progress | None = None

    def says(self) -> tuple[bool, bool, bool]:
        """What its choices say, in one look at each.

        Returns:
            Whether any carries a part of an answer; whether the first choice, which was asked for,
            has ended; whether there are choices, and none of them is the first.
        """
        choices = self.choices or ()
        if len(choices) == 1:
            choice = choices[0]
            aside = bool(choice.index)
            return choice.has_token(), not aside and bool(choice.finish_reason), aside
        token = ends = False
        aside = bool(choices)
        for choice in choices:
            token = token or choice.has_token()
            if not choice.index:
                aside = False
                ends = ends or bool(choice.finish_reason)
        return token, ends, aside


_chunk_decoder: Final = msgspec.json.Decoder(WorkerChunk)


def decode_chunk(body: bytes) -> WorkerChunk:
    """Read the JSON of an event.

    Raises:
        WorkerFailed: it is no chunk, or reports an error.
    """
    try:
        chunk = _chunk_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WorkerFailed(f"A worker's chunk cannot be read: {error}.") from error
    if chunk.error is not None:
        raise WorkerFailed(
            f"A worker reported {reprlib.repr(chunk.error)} in the middle of an answer.",
            hint="Try again.",
        )
    return chunk
