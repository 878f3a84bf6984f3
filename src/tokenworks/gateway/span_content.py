"""What a span tells of a request's body: how it samples, and, where asked for, what was said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from tokenworks.core.errors import WorkerFailed
from tokenworks.gateway.assemble import Assembler
from tokenworks.gateway.event_stream import EventStream

CONTENT_BYTES_MAX: Final = 256 * 1024
"""Of the messages in a span; longer ones are left out, and the span says how long they were."""

Value = str | bool | int | float | list[str]

_SAMPLING: Final = {
    "temperature": float,
    "top_p": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "seed": int,
    "top_k": float,
}


class _Sampling(msgspec.Struct):
    temperature: object = None
    top_p: object = None
    frequency_penalty: object = None
    presence_penalty: object = None
    seed: object = None
    top_k: object = None
    stop: object = None


class _Function(msgspec.Struct):
    name: str = ""
    arguments: object = None


class _Call(msgspec.Struct):
    id: str = ""
    function: _Function = msgspec.field(default_factory=_Function)


class _Message(msgspec.Struct):
    role: str = ""
    content: object = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str = ""


class _Asked(msgspec.Struct):
    messages: list[_Message] = []


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Said(msgspec.Struct):
    choices: list[_Choice] = []
    id: str = ""


_sampling: Final = msgspec.json.Decoder(_Sampling)
_asked: Final = msgspec.json.Decoder(_Asked)
_said: Final = msgspec.json.Decoder(_Said)


def asked_attributes(body: bytes) -> dict[str, Value]:
    """How a request is to be sampled, by the conventions' names; what is no number is left out.

    >>> asked_attributes(b'{"temperature": 0, "seed": 7, "stop": "END", "top_p": "much"}')
    {'gen_ai.request.temperature': 0.0, 'gen_ai.request.seed': 7, \
'gen_ai.request.stop_sequences': ['END']}
    """
    try:
        found = _sampling.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    attributes: dict[str, Value] = {}
    for name, kind in _SAMPLING.items():
        value = getattr(found, name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            attributes[f"gen_ai.request.{name}"] = kind(value)
    stop = [found.stop] if isinstance(found.stop, str) else found.stop
    if isinstance(stop, list) and stop and all(isinstance(each, str) for each in stop):
        attributes["gen_ai.request.stop_sequences"] = stop
    return attributes


def input_attributes(body: bytes) -> dict[str, Value]:
    """The messages that were sent, in the conventions' shape."""
    try:
        messages = _asked.decode(body).messages
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    shaped = [{"role": each.role, "parts": _parts(each)} for each in messages]
    return _content("gen_ai.input.messages", shaped)


class AnswerContent:
    """Puts an answer together from the bytes that pass, as far as they fit.

    Args:
        in_one_piece: it is no stream.
    """

    __slots__ = ("_assembler", "_events", "_lost", "_parts", "_size_bytes")

    def __init__(self, *, in_one_piece: bool = False) -> None:
        self._parts: list[bytes] | None = [] if in_one_piece else None
        self._assembler = Assembler()
        self._events = EventStream(self._assembler)
        self._size_bytes, self._lost = 0, False

    def add(self, data: bytes) -> None:
        """Take the next bytes of the worker's stream."""
        self._size_bytes += len(data)
        self._lost = self._lost or self._size_bytes > 16 * CONTENT_BYTES_MAX
        if self._lost or self._events.done:
            return
        if self._parts is not None:
            self._parts.append(data)
            return
        try:
            self._events.feed(data)
        except WorkerFailed:
            self._lost = True

    def attributes(self) -> dict[str, Value]:
        """The answer in the conventions' shape, its id and why it ended."""
        if self._lost or self._events.failure is not None:
            return {"tokenworks.content.left_out_bytes": self._size_bytes}
        try:
            if self._parts is not None:
                said = _said.decode(b"".join(self._parts))
            else:
                self._assembler.close(self._events.held)
                said = msgspec.convert(self._assembler.completion(), _Said)
        except (WorkerFailed, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return {"tokenworks.content.left_out_bytes": self._size_bytes}
        if not said.choices:
            return {}  # no chat: vectors, pictures, sound
        reasons = [each.finish_reason or "" for each in said.choices]
        shaped = [
            {"role": "assistant", "parts": _parts(each.message), "finish_reason": reason}
            for each, reason in zip(said.choices, reasons, strict=True)
        ]
        attributes = _content("gen_ai.output.messages", shaped)
        if said.id:
            attributes["gen_ai.response.id"] = said.id
        if any(reasons):
            attributes["gen_ai.response.finish_reasons"] = reasons
        return attributes


def _parts(message: _Message) -> list[dict[str, object]]:
    """Text, calls of tools and what they answered; of pictures and sound only that they are."""
    if message.role == "tool":
        return [
            {
                "type": "tool_call_response",
                "id": message.tool_call_id,
                "response": message.content,
            }
        ]
    parts: list[dict[str, object]] = []
    pieces = message.content if isinstance(message.content, list) else [message.content]
    for piece in pieces:
        text = piece.get("text") if isinstance(piece, dict) else piece
        if isinstance(text, str):
            parts.append({"type": "text", "content": text})
        elif isinstance(piece, dict):
            parts.append({"type": str(piece.get("type", "unknown"))})
    for call in message.tool_calls or []:
        named = {"type": "tool_call", "id": call.id, "name": call.function.name}
        parts.append({**named, "arguments": call.function.arguments})
    return parts


def _content(name: str, messages: Sequence[Mapping[str, object]]) -> dict[str, Value]:
    text = msgspec.json.encode(messages)
    if len(text) > CONTENT_BYTES_MAX:
        return {"tokenworks.content.left_out_bytes": len(text)}
    return {name: text.decode()}
