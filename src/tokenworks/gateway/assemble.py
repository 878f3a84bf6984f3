"""One chat completion out of the chunks of its stream, for callers who asked for no stream."""

from __future__ import annotations

from typing import Final

import msgspec

from tokenworks.core.errors import WorkerFailed
from tokenworks.gateway.event_stream import payload

_WHOLE: Final = ("role", "id", "type", "name", "refusal_id")
"""String fields that a chunk gives whole; any other string is a piece to append."""


class Assembler:
    """Collects chunks; ``completion`` gives the object they add up to."""

    __slots__ = ("_choices", "_top")

    def __init__(self) -> None:
        self._top: dict[str, object] = {}
        self._choices: dict[int, dict[str, object]] = {}

    def add(self, events: bytes) -> None:
        """Take whole events.

        Raises:
            WorkerFailed: an event is not a chat completion chunk.
        """
        for event in events.split(b"\n\n"):
            if not event.startswith(b"data:") or event.startswith(b"data: [DONE]"):
                continue
            try:
                chunk = msgspec.json.decode(payload(event))
                self._take(chunk)
            except (msgspec.DecodeError, AttributeError, TypeError, KeyError) as error:
                raise WorkerFailed(f"A worker's chunk cannot be read: {error}.") from error

    def _take(self, chunk: dict[str, object]) -> None:
        for name, value in chunk.items():
            if name != "choices" and value is not None:
                self._top[name] = value
        choices = chunk.get("choices") or []
        assert isinstance(choices, list)
        for choice in choices:
            kept = self._choices.setdefault(choice["index"], {"message": {}})
            message = kept["message"]
            assert isinstance(message, dict)
            _merge(message, choice.get("delta") or {})
            for name, value in choice.items():
                if name in ("delta", "index") or value is None:
                    continue
                if name == "logprobs" and isinstance(value, dict):
                    logprobs = kept.setdefault("logprobs", {})
                    assert isinstance(logprobs, dict)
                    _merge_logprobs(logprobs, value)
                else:
                    kept[name] = value

    def completion(self, tier_delivered: str) -> bytes:
        """The whole ``chat.completion`` object as JSON."""
        choices = []
        for index in sorted(self._choices):
            kept = self._choices[index]
            message = kept["message"]
            assert isinstance(message, dict)
            message.setdefault("role", "assistant")
            message.setdefault("content", None)
            for call in message.get("tool_calls") or []:
                call.pop("index", None)
            choices.append({"index": index, "finish_reason": None, "logprobs": None, **kept})
        top = {k: v for k, v in self._top.items() if k not in ("object", "service_tier")}
        return msgspec.json.encode(
            {
                **top,
                "object": "chat.completion",
                "choices": choices,
                "service_tier": tier_delivered,
            }
        )


def _merge(into: dict[str, object], delta: dict[str, object]) -> None:
    for name, value in delta.items():
        have = into.get(name)
        if value is None:
            into.setdefault(name, None)
        elif isinstance(value, str) and isinstance(have, str) and name not in _WHOLE:
            into[name] = have + value
        elif isinstance(value, dict) and isinstance(have, dict):
            _merge(have, value)
        elif isinstance(value, list):
            into[name] = _merge_list(have if isinstance(have, list) else [], value)
        elif not (isinstance(value, str) and have is not None and name in _WHOLE):
            into[name] = value


def _merge_list(have: list[object], more: list[object]) -> list[object]:
    """Tool calls are merged by their ``index``; anything else is appended."""
    for item in more:
        found = None
        if isinstance(item, dict) and "index" in item:
            same = (h for h in have if isinstance(h, dict) and h.get("index") == item["index"])
            found = next(same, None)
        if found is not None and isinstance(item, dict):
            _merge(found, {k: v for k, v in item.items() if k != "index"})
        else:
            have.append(item)
    return have


def _merge_logprobs(into: dict[str, object], more: dict[str, object]) -> None:
    for name, value in more.items():
        have = into.get(name)
        if isinstance(have, list) and isinstance(value, list):
            have.extend(value)
        else:
            into[name] = value
