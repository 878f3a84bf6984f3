"""What a worker's chunks say: whether there is a token, and what was used in disjoint classes."""

from __future__ import annotations

import reprlib
from typing import Final

import msgspec

from tokenworks.core.errors import WorkerFailed
from tokenworks.core.orders import Usage
from tokenworks.gateway.worker_chunks import Choice, ToldUsage, WorkerChunk, nothing_used

TOKENS_MAX: Final = 1 << 40
"""Tokens of one answer; a worker that says more has counted below zero."""
_FIRST: Final = (None, 0, "0")
"""How workers number the choice that was asked for."""
_decoder: Final = msgspec.json.Decoder(WorkerChunk)


def decode_chunk(body: bytes) -> WorkerChunk:
    """Read the JSON of an event.

    Raises:
        WorkerFailed: it is no chunk, or reports an error.
    """
    try:
        chunk = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WorkerFailed(f"A worker's chunk cannot be read: {error}.") from error
    if chunk.error is not None:
        raise WorkerFailed(
            f"A worker reported {reprlib.repr(chunk.error)} in the middle of an answer.",
            hint="Try again.",
        )
    return chunk


def says(chunk: WorkerChunk) -> tuple[bool, bool, bool]:
    """What the choices of a chunk say, in one look at each.

    Returns:
        Whether any carries a part of an answer; whether the first choice, which was asked for,
        has ended; whether there are choices, and none of them is the first.
    """
    choices = chunk.choices or ()
    token = ends = False
    aside = bool(choices)
    for choice in choices:
        token = token or has_token(choice)
        if is_first(choice.index):
            aside = False
            ends = ends or bool(choice.finish_reason)
    return token, ends, aside


def is_first(index: object) -> bool:
    """Whether a worker numbers the choice so that was asked for; any other is beside it."""
    return index in _FIRST


def has_token(choice: Choice) -> bool:
    """Whether it carries a part of the answer: text, a call, or a token's probability alone."""
    if choice.text:
        return True
    delta, logprobs = choice.delta, choice.logprobs
    if delta is not None:
        for name, value in delta.items():
            if value and name != "role":
                return True
    return isinstance(logprobs, dict) and any(logprobs.values())


def usage_of(told: object) -> Usage:
    """What an answer's ``usage`` says, in disjoint classes; nothing of none.

    Raises:
        WorkerFailed: it is no usage.
    """
    if told is None:
        return nothing_used()
    try:
        return disjoint(msgspec.convert(told, ToldUsage))
    except msgspec.ValidationError as error:
        raise WorkerFailed(f"A worker's usage cannot be read: {error}.") from error


def disjoint(told: ToldUsage) -> Usage:
    """Usage in classes that add up to the two sums, whatever the details claim.

    Raises:
        WorkerFailed: a figure is below zero.
    """
    read, made = told.prompt_tokens_details, told.completion_tokens_details
    prompt, tokens = told.prompt_tokens, told.completion_tokens
    cached = (read.cached_tokens or 0) if read is not None else 0
    more = read is not None and (read.cache_write_tokens or read.audio_tokens or read.image_tokens)
    if made is None and not more and 0 <= cached <= prompt <= TOKENS_MAX >= tokens >= 0:
        return Usage(
            uncached_input_tokens=prompt - cached,
            cached_input_tokens=cached,
            output_tokens=tokens,
        )
    left = _Rest(prompt, told)
    cached = left.take(read.cached_tokens if read else 0)
    write = left.take(read.cache_write_tokens if read else 0)
    audio_in = left.take(read.audio_tokens if read else 0)
    image_in = left.take(read.image_tokens if read else 0)
    rest = _Rest(tokens, told)
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
