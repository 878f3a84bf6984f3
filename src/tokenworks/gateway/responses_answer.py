"""A worker's answer as OpenAI's Responses API words it: as a stream of events, or whole."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from tokenworks.core.errors import TokenworksError, WorkerFailed
from tokenworks.core.orders import Usage
from tokenworks.core.slo import Tier
from tokenworks.gateway.assemble import Completion
from tokenworks.gateway.chat_fields import JSONObject
from tokenworks.gateway.event_stream import EventStream
from tokenworks.gateway.pieces import Piece, PieceKind, not_asked, pieces, whole_pieces

ANSWER_CHARS_MAX: Final = 64_000_000
"""Of an answer that is kept until it is whole."""

INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""``finish_reason`` of an answer that was cut off, in words of the Responses API."""

Status = Literal["in_progress", "completed", "incomplete", "failed"]

_PREFIXES: Final[dict[PieceKind, str]] = {"reasoning": "rs", "call": "fc"}
_EVENTS: Final[dict[PieceKind, str]] = {
    "text": "response.output_text",
    "refusal": "response.refusal",
    "reasoning": "response.reasoning_text",
    "call": "response.function_call_arguments",
}


class Item:
    """One output item while it is made: a thought, a message or a call.

    A message has one part, of text or of refusal.
    """

    __slots__ = ("call", "call_id", "id", "kind", "name", "texts")

    def __init__(self, kind: PieceKind, item_id: str, piece: Piece) -> None:
        self.kind, self.id, self.call = kind, item_id, piece.index
        self.call_id, self.name = piece.call_id or f"call_{item_id}", piece.name or ""
        self.texts: list[str] = []

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.texts)

    def part(self, text: str) -> JSONObject:
        """The part that holds the text."""
        if self.kind == "refusal":
            return {"type": "refusal", "refusal": text}
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def shown(self, status: Status) -> JSONObject:
        """The item at its start, or once it has ended."""
        text = "" if status == "in_progress" else self.text
        content = [] if status == "in_progress" else [self.part(text)]
        if self.kind == "call":
            call = {"call_id": self.call_id, "name": self.name, "arguments": text}
            return {"id": self.id, "type": "function_call", "status": status, **call}
        if self.kind == "reasoning":
            thought = {"summary": [], "content": content, "status": status}
            return {"id": self.id, "type": "reasoning", **thought}
        message = {"role": "assistant", "status": status, "content": content}
        return {"id": self.id, "type": "message", **message}


class ResponsesAnswer:
    """One answer in the shape of a response; implements ``dialect.Writer``.

    Args:
        request: the request's id, which the response's id is made of.
        created_s: Unix time.
        echo: what the response repeats of the request.

    Attributes:
        response: the whole response once it has ended, else None.
    """

    __slots__ = (
        *("_chars", "_echo", "_finish", "_items", "_open", "_sequence", "_stem", "_unsent"),
        "response",
    )

    def __init__(self, request: str, created_s: int, echo: JSONObject) -> None:
        self._stem = request.removeprefix("req_")
        self._echo = {"id": f"resp_{self._stem}", "created_at": created_s, **echo}
        self._items: list[Item] = []
        self._open: Item | None = None
        self._finish = "stop"
        self._sequence = 0
        self._chars = 0
        self._unsent: list[bytes] = []
        """What was made of events before one that cannot be told."""
        self.response: JSONObject | None = None

    def forward(self, ready: bytes) -> bytes:
        """See ``Writer``."""
        out = self._unsent
        self._begin(out)
        for piece in pieces(ready):
            self._take(piece, out)
        self._unsent = []
        return b"".join(out)

    def take_held(self, events: EventStream) -> None:
        """See ``Writer``."""
        self._begin(self._unsent)
        for piece in pieces(b"\n\n".join(events.held)):
            self._take(piece, self._unsent)
        if events.token_events and not (self._items or events.finished):
            raise not_asked()

    def closing(self, events: EventStream, tier: Tier) -> bytes:
        """See ``Writer``."""
        out = self._unsent
        self._close(out)
        response = self._end(events.usage_so_far(), tier)
        out.append(self._event(f"response.{response['status']}", response=response))
        return b"".join(out)

    def take_whole(self, completion: Completion) -> None:
        """See ``Writer``."""
        unsent: list[bytes] = []
        for piece in whole_pieces(completion):
            self._take(piece, unsent)

    def whole(self, usage: Usage, tier: Tier) -> bytes:
        """See ``Writer``."""
        return msgspec.json.encode(self._end(usage, tier))

    def error_event(self, error: TokenworksError) -> bytes:
        """See ``Writer``: the response as far as it came, and why it ends there."""
        told = {"code": "server_error", "message": str(error)}
        failed = self._shown("failed", [item.shown("incomplete") for item in self._items])
        out = self._unsent
        self._begin(out)
        out.append(self._event("response.failed", response={**failed, "error": told}))
        out.append(self._event("error", code=error.code, message=str(error), param=None))
        return b"".join(out)

    def _begin(self, out: list[bytes]) -> None:
        if self._sequence == 0:
            shown = self._shown("in_progress", [])
            out.append(self._event("response.created", response=shown))
            out.append(self._event("response.in_progress", response=shown))

    def _end(self, usage: Usage, tier: Tier) -> JSONObject:
        reason = INCOMPLETE.get(self._finish)
        status: Status = "completed" if reason is None else "incomplete"
        last: Status = status
        output = [item.shown("completed") for item in self._items[:-1]]
        output += [item.shown(last) for item in self._items[-1:]]
        response = self._shown(status, output)
        response["service_tier"] = tier.value
        response["usage"] = _usage(usage)
        if reason is not None:
            response["incomplete_details"] = {"reason": reason}
        self.response = response
        return response

    def _shown(self, status: Status, output: list[JSONObject]) -> JSONObject:
        return {
            **self._echo,
            "object": "response",
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": output,
            "usage": None,
        }

    def _event(self, kind: str, **fields: object) -> bytes:
        body = msgspec.json.encode({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)

    def _take(self, piece: Piece, out: list[bytes]) -> None:
        kind = piece.kind
        if kind == "end":
            self._finish = piece.text
            return
        item = self._open
        if item is None or item.kind != kind or (kind == "call" and piece.index != item.call):
            self._close(out)
            item = self._start(piece, out)
        self._chars += len(piece.text)
        if self._chars > ANSWER_CHARS_MAX:
            raise WorkerFailed(f"A worker's answer has more than {ANSWER_CHARS_MAX} characters.")
        if piece.text:
            item.texts.append(piece.text)
            out.append(self._of_item(item, "delta", delta=piece.text))

    def _start(self, piece: Piece, out: list[bytes]) -> Item:
        if piece.kind == "call" and any(
            each.kind == "call" and each.call == piece.index for each in self._items
        ):
            raise WorkerFailed(f"A worker went back to its call {piece.index} after another.")
        prefix = _PREFIXES.get(piece.kind, "msg")
        item = self._open = Item(piece.kind, f"{prefix}_{self._stem}_{len(self._items)}", piece)
        self._items.append(item)
        out.append(
            self._event(
                "response.output_item.added",
                output_index=len(self._items) - 1,
                item=item.shown("in_progress"),
            )
        )
        if item.kind != "call":
            out.append(self._of_part(item, "added", ""))
        return item

    def _close(self, out: list[bytes]) -> None:
        item, self._open = self._open, None
        if item is None:
            return
        text = item.text
        if item.kind == "call":
            out.append(self._of_item(item, "done", arguments=text, name=item.name))
        else:
            name = "refusal" if item.kind == "refusal" else "text"
            out.append(self._of_item(item, "done", **{name: text}))
            out.append(self._of_part(item, "done", text))
        cut = self._finish in INCOMPLETE
        out.append(
            self._event(
                "response.output_item.done",
                output_index=len(self._items) - 1,
                item=item.shown("incomplete" if cut else "completed"),
            )
        )

    def _of_item(self, item: Item, step: str, **fields: object) -> bytes:
        place: JSONObject = {"item_id": item.id, "output_index": len(self._items) - 1}
        if item.kind != "call":
            place["content_index"] = 0
        if item.kind == "text":
            place["logprobs"] = []
        return self._event(f"{_EVENTS[item.kind]}.{step}", **place, **fields)

    def _of_part(self, item: Item, step: str, text: str) -> bytes:
        return self._event(
            f"response.content_part.{step}",
            item_id=item.id,
            output_index=len(self._items) - 1,
            content_index=0,
            part=item.part(text),
        )


def answer_turns(response: JSONObject) -> list[JSONObject]:
    """What a response adds to its conversation, as messages of a chat completion."""
    calls: list[JSONObject] = []
    said: list[str] = []
    thought: list[str] = []
    output = response["output"]
    assert isinstance(output, list), output
    for item in output:
        if item["type"] == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"] or "{}"}
            calls.append({"id": item["call_id"], "type": "function", "function": function})
        elif item["type"] == "message":
            (part,) = item["content"]
            said.append(part.get("text") or part.get("refusal") or "")
        else:
            thought.append(item["content"][0]["text"])
    turn: JSONObject = {"role": "assistant", "content": "\n".join(said) if said else None}
    if thought:
        turn["reasoning_content"] = "\n".join(thought)
    if calls:
        turn["tool_calls"] = calls
    elif not said:
        turn["content"] = ""
    return [turn]


def _usage(usage: Usage) -> JSONObject:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
