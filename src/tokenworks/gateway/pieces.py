"""What a worker's chat completion chunks say, for answers that are sent in another dialect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal

import msgspec

from tokenworks.core.errors import WorkerFailed
from tokenworks.gateway.chunk_reading import is_first
from tokenworks.gateway.event_stream import payload

PieceKind = Literal["text", "refusal", "reasoning", "call", "end"]


class Piece(msgspec.Struct, frozen=True, gc=False):
    """A part of an answer.

    Attributes:
        kind: ``text``, ``refusal`` and ``reasoning`` go on with their ``text``; ``call`` goes on
            with a tool's arguments; ``end`` says why the answer ended.
        text: what comes on; for ``end`` the worker's ``finish_reason``.
        index: which call, from 0.
        call_id: a call's id, in its first piece.
        name: a called tool, in its first piece; for ``end`` the stop string that was met, where the
            engine says it.
    """

    kind: PieceKind
    text: str
    index: int = 0
    call_id: str | None = None
    name: str | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    index: object = None
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    matched_stop: str | int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None


_decoder: Final = msgspec.json.Decoder(_Chunk)


def pieces(events: bytes) -> Iterator[Piece]:
    """The parts that whole events hold, in order.

    Reasoning is ``reasoning_content`` at llama.cpp and SGLang and ``reasoning`` at newer vLLM; the
    stop string that was met is vLLM's ``stop_reason`` and SGLang's ``matched_stop``.

    Args:
        events: as ``EventStream.feed`` returns them.

    Raises:
        WorkerFailed: an event is not a chat completion chunk.
    """
    for event in events.split(b"\n\n"):
        body = payload(event)
        if not body:
            continue
        try:
            chunk = _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise WorkerFailed(f"A worker's chunk cannot be read: {error}.") from error
        choice = _first(chunk)
        if choice is not None:
            yield from _of(choice, choice.delta)


def whole_pieces(completion: Mapping[str, object]) -> Iterator[Piece]:
    """The parts of a ``chat.completion`` that was put together from such events.

    Raises:
        WorkerFailed: it says what cannot be told, or nothing of what was asked for.
    """
    try:
        whole = msgspec.convert(completion, _Chunk)
    except msgspec.ValidationError as error:
        raise WorkerFailed(f"A worker's answer cannot be read: {error}.") from error
    choice = _first(whole)
    if choice is None:
        if whole.choices:
            raise not_asked()
        return
    message = choice.message or _Delta()
    calls = [
        msgspec.structs.replace(call, index=i) for i, call in enumerate(message.tool_calls or ())
    ]
    yield from _of(choice, msgspec.structs.replace(message, tool_calls=calls))


def not_asked() -> WorkerFailed:
    """What is wrong with an answer that was made, and has nothing of what was asked for."""
    return WorkerFailed(
        "A worker's answer has no choice 0, which was asked for.",
        hint="Operators: a worker numbers its only choice 0.",
    )


def _first(chunk: _Chunk) -> _Choice | None:
    """What was asked for: one answer. A worker may send others beside it, which are left out."""
    return next((choice for choice in chunk.choices or () if is_first(choice.index)), None)


def _of(choice: _Choice, delta: _Delta | None) -> Iterator[Piece]:
    if delta is not None:
        thought = delta.reasoning_content or delta.reasoning
        if thought:
            yield Piece("reasoning", thought)
        if delta.content:
            yield Piece("text", delta.content)
        if delta.refusal:
            yield Piece("refusal", delta.refusal)
        for call in delta.tool_calls or ():
            function = call.function or _Function()
            yield Piece("call", function.arguments or "", call.index, call.id, function.name)
    if choice.finish_reason:
        stops = (choice.stop_reason, choice.matched_stop)
        met = next((stop for stop in stops if isinstance(stop, str)), None)
        yield Piece("end", choice.finish_reason, name=met)
