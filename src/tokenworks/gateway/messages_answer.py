"""A worker's answer as Anthropic's Messages API words it: as a stream of events, or whole."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

import msgspec

from tokenworks.core.errors import CapacityExceeded, TokenworksError, WorkerFailed
from tokenworks.core.orders import Usage
from tokenworks.core.slo import Tier
from tokenworks.gateway.assemble import Completion
from tokenworks.gateway.chat_fields import JSONObject
from tokenworks.gateway.event_stream import EventStream
from tokenworks.gateway.http_io import Headers
from tokenworks.gateway.messages_request import Thinking
from tokenworks.gateway.openai_errors import OpenAIErrors
from tokenworks.gateway.pieces import Piece, not_asked, pieces, whole_pieces
from tokenworks.gateway.worker_chunks import nothing_used

ANSWER_CHARS_MAX: Final = 64_000_000
"""Of an answer that is kept until it is whole."""

STOP_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
"""``finish_reason`` in Anthropic's words; any other is the end of a turn."""

CUT_OFF: Final = frozenset({"max_tokens", "refusal", "stop_sequence"})
"""Reasons to stop that may come in the middle of a tool's arguments."""

ERROR_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""An error's type by its status; any other is an ``api_error``."""

SERVICE_TIERS: Final = {Tier.PREMIUM: "priority", Tier.ULTRA: "priority"}
"""Anthropic knows two tiers beside ``batch``; the one delivered is named in a field of our own."""


class Block:
    """One content block while it is made.

    Attributes:
        kind: ``text``, ``thinking`` or ``tool_use``.
        texts: what it holds, in pieces.
    """

    __slots__ = ("call", "call_id", "kind", "name", "texts")

    def __init__(self, kind: str, call: int = -1, call_id: str = "", name: str = "") -> None:
        self.kind, self.call, self.call_id, self.name = kind, call, call_id, name
        self.texts: list[str] = []

    def start(self) -> JSONObject:
        """The block as it is announced."""
        if self.kind == "tool_use":
            return {"type": "tool_use", "id": self.call_id, "name": self.name, "input": {}}
        if self.kind == "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "text", "text": ""}

    def delta(self, text: str) -> JSONObject:
        """What comes on."""
        if self.kind == "tool_use":
            return {"type": "input_json_delta", "partial_json": text}
        if self.kind == "thinking":
            return {"type": "thinking_delta", "thinking": text}
        return {"type": "text_delta", "text": text}

    def signature(self) -> str:
        """Marks a thought, so that it can be told when it comes back; it proves nothing."""
        digest = hashlib.blake2b("".join(self.texts).encode(), digest_size=32).digest()
        return base64.b64encode(digest).decode()

    def whole(self, *, shown: bool, cut: bool) -> JSONObject:
        """The block once it has ended.

        Args:
            shown: whether a thought is for the caller.
            cut: whether the answer may have ended before the block was whole. What came of a tool's
                arguments is then no object mostly, and none of it is given: a call that lacks some
                of its arguments must not look like one that can be carried out.

        Raises:
            WorkerFailed: a tool's arguments are not a JSON object.
        """
        text = "".join(self.texts)
        if self.kind == "tool_use":
            return {**self.start(), "input": _arguments(self.name, text, cut=cut)}
        if self.kind == "thinking":
            thought = text if shown else ""
            return {"type": "thinking", "thinking": thought, "signature": self.signature()}
        return {"type": "text", "text": text}


class MessagesAnswer:
    """One answer in Anthropic's shape.

    Implements ``dialect.Writer``.

    Args:
        request: the request's id, which the message's id is made of.
        model: as the caller named it.
        thinking: what the caller wants to see of the reasoning.
    """

    kept = None
    __slots__ = (
        *("_blocks", "_chars", "_content", "_head", "_id", "_model", "_open", "_stop"),
        *("_thinking", "_thought", "_unsent"),
    )

    def __init__(self, request: str, model: str, thinking: Thinking) -> None:
        self._id = f"msg_{request.removeprefix('req_')}"
        self._model, self._thinking = model, thinking
        self._blocks: list[Block] = []
        self._content = msgspec.Raw(b"[]")
        """The blocks of a whole message."""
        self._open: Block | None = None
        self._stop: tuple[str, str | None] = ("end_turn", None)
        self._head = False
        self._thought = False
        """Whether there were thoughts that the caller did not ask for."""
        self._chars = 0
        self._unsent: list[bytes] = []
        """What was made of events before one that cannot be told."""

    def forward(self, ready: bytes) -> bytes:
        """The events that say what a worker's events say.

        Raises:
            WorkerFailed: the worker's events cannot be told so.
        """
        out = self._unsent
        if not self._head:
            out.append(self._start())
        for piece in pieces(ready):
            self._take(piece, out)
        self._unsent = []
        return b"".join(out)

    def take_held(self, events: EventStream) -> None:
        """See ``Writer``."""
        if not self._head:
            self._unsent.append(self._start())
        for piece in pieces(b"\n\n".join(events.held)):
            self._take(piece, self._unsent)
        if events.token_events and not (self._blocks or self._thought or events.finished):
            raise not_asked()

    def closing(self, events: EventStream, tier: Tier) -> bytes:
        """See ``Writer``."""
        out = self._unsent
        self._close(out)
        reason, sequence = self._stop
        delta = {"stop_reason": reason, "stop_sequence": sequence, "stop_details": None}
        usage = _usage(events.usage_so_far(), tier)
        out += (_event("message_delta", delta=delta, usage=usage), _event("message_stop"))
        return b"".join(out)

    def take_whole(self, completion: Completion) -> None:
        """See ``Writer``.

        Raises:
            WorkerFailed: a tool's arguments are not a JSON object, and were not cut off.
        """
        unsent: list[bytes] = []
        for piece in whole_pieces(completion):
            self._take(piece, unsent)
        last = self._blocks[-1] if self._blocks and self._stop[0] in CUT_OFF else None
        content = [
            block.whole(shown=self._thinking.shown, cut=block is last) for block in self._blocks
        ]
        self._content = msgspec.Raw(msgspec.json.encode(content))

    def whole(self, usage: Usage, tier: Tier) -> bytes:
        """See ``Writer``."""
        reason, sequence = self._stop
        message = self._message(self._content, _usage(usage, tier))
        message |= {"stop_reason": reason, "stop_sequence": sequence}
        return msgspec.json.encode(message)

    def error_event(self, error: TokenworksError) -> bytes:
        """See ``Writer``; after what could be told."""
        told = b"event: error\ndata: %b\n\n" % MessagesErrors().error_body(error)
        return b"".join([*self._unsent, told])

    def _start(self) -> bytes:
        self._head = True
        spent = {
            k: v for k, v in _usage(nothing_used(), None).items() if k != "output_tokens_details"
        }
        return _event("message_start", message=self._message([], spent))

    def _message(self, content: object, usage: JSONObject) -> JSONObject:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "usage": usage,
        }

    def _take(self, piece: Piece, out: list[bytes]) -> None:
        if piece.kind == "end":
            self._end(piece)
            return
        kind = {"call": "tool_use", "reasoning": "thinking"}.get(piece.kind, "text")
        if kind == "thinking" and not self._thinking.asked:
            self._thought = True
            return
        block = self._open
        if block is None or block.kind != kind or (kind == "tool_use" and self._is_new(piece)):
            self._close(out)
            block = self._begin(kind, piece)
            start = block.start()
            out.append(
                _event("content_block_start", index=len(self._blocks) - 1, content_block=start)
            )
        self._chars += len(piece.text)
        if self._chars > ANSWER_CHARS_MAX:
            raise WorkerFailed(f"A worker's answer has more than {ANSWER_CHARS_MAX} characters.")
        if not piece.text:
            return
        block.texts.append(piece.text)
        if kind == "thinking" and not self._thinking.shown:
            return
        delta = block.delta(piece.text)
        out.append(_event("content_block_delta", index=len(self._blocks) - 1, delta=delta))

    def _is_new(self, piece: Piece) -> bool:
        assert self._open is not None
        return piece.index != self._open.call

    def _begin(self, kind: str, piece: Piece) -> Block:
        if kind != "tool_use":
            block = Block(kind)
        else:
            if any(each.call == piece.index for each in self._blocks):
                raise WorkerFailed(f"A worker went back to its call {piece.index} after another.")
            call_id = piece.call_id or f"toolu_{self._id.removeprefix('msg_')}_{piece.index}"
            block = Block(kind, piece.index, call_id, piece.name or "")
        self._blocks.append(block)
        self._open = block
        return block

    def _close(self, out: list[bytes]) -> None:
        block, self._open = self._open, None
        if block is None:
            return
        index = len(self._blocks) - 1
        if block.kind == "thinking":
            delta = {"type": "signature_delta", "signature": block.signature()}
            out.append(_event("content_block_delta", index=index, delta=delta))
        out.append(_event("content_block_stop", index=index))

    def _end(self, piece: Piece) -> None:
        if piece.name is not None:
            self._stop = ("stop_sequence", piece.name)
            return
        reason = STOP_REASONS.get(piece.text, "end_turn")
        if reason == "end_turn" and any(block.kind == "tool_use" for block in self._blocks):
            reason = "tool_use"
        self._stop = (reason, None)


def _arguments(name: str, text: str, *, cut: bool) -> object:
    try:
        given = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        if cut:
            return {}
        raise WorkerFailed(f"The worker's arguments for {name[:64]!r} are not JSON.") from error
    if isinstance(given, dict):
        return given
    if cut:
        return {}
    raise WorkerFailed(f"The worker's arguments for {name[:64]!r} are not an object.")


def _usage(usage: Usage, tier: Tier | None) -> JSONObject:
    """Usage in Anthropic's classes, which leave cached tokens out of ``input_tokens``."""
    cached, kept = usage.cached_input_tokens, usage.cache_write_tokens
    told: JSONObject = {
        "input_tokens": usage.prompt_tokens - cached - kept,
        "cache_creation_input_tokens": kept,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    }
    if usage.reasoning_tokens:
        told["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    if tier is not None:
        told["service_tier"] = SERVICE_TIERS.get(tier, "standard")
        told["tier_delivered"] = tier.value
    return told


def _event(kind: str, **fields: object) -> bytes:
    body = msgspec.json.encode({"type": kind, **fields})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)


class MessagesErrors:
    """Errors in Anthropic's shape; implements ``dialect.ErrorForm``."""

    def error_body(self, error: TokenworksError) -> bytes:
        """See ``ErrorForm``; ``code`` is ours and stable."""
        kind = ERROR_TYPES.get(error.status, "api_error")
        if isinstance(error, CapacityExceeded):
            kind = "overloaded_error"
        told = {"type": kind, "message": str(error), "code": error.code}
        return msgspec.json.encode({"type": "error", "error": told})

    def error_headers(self, error: TokenworksError) -> Headers:
        """See ``ErrorForm``; Anthropic's SDKs read the same headers as OpenAI's."""
        return OpenAIErrors().error_headers(error)
