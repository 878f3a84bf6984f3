"""How many tokens a prompt has: the engine that would read it says so, and makes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

import msgspec

from tokenworks.core.errors import ModelNotFound, NotOffered, WorkerFailed, WorkerUnavailable
from tokenworks.core.ids import ModelName
from tokenworks.core.needs import Needs, nothing_offers
from tokenworks.core.ports import AnswerStream, WorkerPort
from tokenworks.live.seat import Seat

COUNT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Engines send the tokens themselves along."""


T = TypeVar("T")


class _Counted(msgspec.Struct):
    count: int | None = None
    tokens: list[object] | None = None


class _Template(msgspec.Struct):
    prompt: str


_counted: Final = msgspec.json.Decoder(_Counted)
_template: Final = msgspec.json.Decoder(_Template)


async def count_at_any(
    seats: Iterable[Seat], model: ModelName, body: bytes, needs: Needs | None
) -> int:
    """Ask the first worker of a model that may see the prompt.

    Args:
        seats: the factory's workers.
        model: whose tokens.
        body: a chat completion request.
        needs: what a worker must have to be shown it.

    Raises:
        ModelNotFound, NotOffered, WorkerUnavailable, WorkerFailed.
    """
    of_model = [seat for seat in seats if seat.config.model == model]
    if not of_model:
        raise ModelNotFound(f"The model {model!r} is not served here.")
    if needs is not None:
        allowed = [seat for seat in of_model if nothing_offers([seat.config.offers], needs) is None]
        if not allowed:
            raise NotOffered(
                f"No worker of {model!r} has what the request needs.",
                hint="Ask for labels and adapters that are offered.",
            )
        of_model = allowed
    for seat in of_model:
        if seat.client is not None:
            return await count_tokens(seat.client, body)
    raise WorkerUnavailable(f"No worker for {model!r} is up.", hint="Try again.")


async def count_tokens(client: WorkerPort, body: bytes) -> int:
    """A chat prompt's tokens, by the words of vLLM and SGLang, else those of llama.cpp.

    Raises:
        NotOffered: the engine does not count.
        WorkerFailed: it broke off, or said what is no count.
    """
    told = await _post(client, "/apply-template", body)
    if told is not None:
        prompt = _decoded(_template, told).prompt
        content = {"content": prompt, "add_special": True, "parse_special": True}
        told = await _post(client, "/tokenize", msgspec.json.encode(content))
    else:
        told = await _post(client, "/tokenize", body)
    if told is None:
        raise NotOffered("The model's engine does not count tokens.", hint="Send the request.")
    counted = _decoded(_counted, told)
    if counted.count is not None:
        return counted.count
    if counted.tokens is None:
        raise WorkerFailed("A worker's count of tokens has none.")
    return len(counted.tokens)


async def _post(client: WorkerPort, path: str, body: bytes) -> bytes | None:
    """What a worker answers; None if it does not know the path."""
    stream = await client.post_stream(path, body)
    said = await _read(stream)
    if stream.status in (404, 405, 501):
        return None
    if stream.status != 200:
        raise WorkerFailed(f"{path} answered {stream.status}: {said[:200]!r}")
    return said


async def _read(stream: AnswerStream) -> bytes:
    parts, size = list[bytes](), 0
    while data := await stream.read():
        parts.append(data)
        size += len(data)
        if size > COUNT_BYTES_MAX:
            stream.abort()
            raise WorkerFailed(f"A worker's tokens have over {COUNT_BYTES_MAX} bytes.")
    return b"".join(parts)


def _decoded(decoder: msgspec.json.Decoder[T], told: bytes) -> T:
    try:
        return decoder.decode(told)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WorkerFailed(f"A worker's count of tokens cannot be read: {error}.") from error
