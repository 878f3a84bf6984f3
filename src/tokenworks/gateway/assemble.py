"""One chat completion out of the chunks of its stream, for callers who asked for no stream."""

from __future__ import annotations

from typing import Final

import msgspec

from tokenworks.core.errors import WorkerFailed
from tokenworks.gateway.envelope import EVENT_END, Envelope, envelope_of
from tokenworks.gateway.event_stream import payload

_WHOLE: Final = ("role", "id", "type", "name")
"""String fields that a chunk gives whole; any other string is a piece to append."""

UNREAD_BYTES_MAX: Final = 64 * 1024
"""Of events that wait to be read; an answer of a few hundred tokens is read at once."""

Completion = dict[str, object]
"""The JSON of a ``chat.completion``."""


class Assembler:
    """Collects chunks; ``completion`` gives the object they add up to.

    Events wait until there are many: what they have in common is then cut off all of them at once.
    """

    __slots__ = (
        *("_choices", "_envelope", "_messages", "_texts", "_top", "_unread", "_unread_bytes"),
        "_whose",
    )

    def __init__(self) -> None:
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._envelope: Envelope | None = None
        """Of the last event that was a text and nothing else, and whose text that was."""
        self._whose: tuple[int, str] = (0, "")
        self._texts: list[bytes] = []
        """Further texts of the same, which have not been put together yet."""
        self._top: dict[str, object] = {}
        self._choices: dict[int, dict[str, object]] = {}
        self._messages: dict[int, dict[str, object]] = {}

    def add(self, events: bytes) -> None:
        """Take whole events, without ``[DONE]``; they end with an empty line.

        Raises:
            WorkerFailed: an event is not a chat completion chunk, or one before it was none.
        """
        self._unread.append(events)
        self._unread_bytes += len(events)
        if self._unread_bytes > UNREAD_BYTES_MAX:
            self._read_all()

    def _read_all(self) -> None:
        events, self._unread_bytes = b"".join(self._unread), 0
        self._unread.clear()
        at = 0
        while at < len(events):
            if self._envelope is not None:
                at, texts = self._envelope.run(events, at)
                if texts:
                    self._texts += texts
                    continue
            end = events.find(EVENT_END, at)
            event = events[at:] if end < 0 else events[at:end]
            at += len(event) + len(EVENT_END)
            if body := payload(event):
                self._join()
                self._read(event, body)

    def _read(self, event: bytes, body: bytes) -> None:
        try:
            chunk = _object(msgspec.json.decode(body))
            self._take(chunk)
            self._learn(event, chunk)
        except (
            msgspec.DecodeError,
            UnicodeDecodeError,
            RecursionError,
            TypeError,
            KeyError,
        ) as error:
            raise WorkerFailed(f"A worker's chunk cannot be read: {error}.") from error

    def close(self) -> None:
        """Put together all that waits.

        Raises:
            WorkerFailed: an event is not a chat completion chunk.
        """
        self._read_all()
        self._join()

    def _join(self) -> None:
        """Put together the texts that wait."""
        if not self._texts:
            return
        whole = b"".join(self._texts)
        self._texts.clear()
        try:
            text = msgspec.json.decode(b'"%b"' % whole, type=str)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WorkerFailed(f"A worker's text cannot be read: {error}.") from error
        index, name = self._whose
        _merge(self._messages[index], {name: text})

    def _learn(self, event: bytes, chunk: dict[str, object]) -> None:
        """Expect more events like this one, if it is a text and nothing else."""
        self._envelope = None
        choices = _list(chunk.get("choices") or [])
        choice = _object(choices[0]) if len(choices) == 1 else {}
        delta, index = choice.get("delta"), choice.get("index")
        if isinstance(delta, dict) and len(delta) == 1 and isinstance(index, int):
            ((name, text),) = delta.items()
            if isinstance(text, str) and name not in _WHOLE and not choice.get("logprobs"):
                self._envelope, self._whose = envelope_of(event), (index, name)

    def _take(self, chunk: dict[str, object]) -> None:
        for name, value in chunk.items():
            if name != "choices" and value is not None:
                self._top[name] = value
        for each in _list(chunk.get("choices") or []):
            choice = _object(each)
            index = choice["index"]
            if not isinstance(index, int):
                raise TypeError(f"a choice's index is {index!r}")
            kept = self._choices.setdefault(index, {})
            self._messages.setdefault(index, {})
            _merge(self._messages[index], _object(choice.get("delta") or {}))
            for name, value in choice.items():
                if name in ("delta", "index") or value is None:
                    continue
                have = kept.get(name)
                if name == "text" and isinstance(have, str) and isinstance(value, str):
                    kept[name] = have + value
                elif name == "logprobs" and isinstance(have, dict):
                    _merge_logprobs(have, _object(value))
                else:
                    kept[name] = value

    def completion(self) -> Completion:
        """The whole ``chat.completion``, without ``service_tier``; after ``close``."""
        assert not self._texts, "it was not closed"
        assert not self._unread, "it was not closed"
        choices = []
        for index in sorted(self._choices):
            message = {"role": "assistant", "content": None, **self._messages[index]}
            calls = message.get("tool_calls")
            for call in calls if isinstance(calls, list) else []:
                if isinstance(call, dict):
                    call.pop("index", None)
            kept = self._choices[index]
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "finish_reason": None,
                    "logprobs": None,
                    **kept,
                }
            )
        top = {k: v for k, v in self._top.items() if k not in ("object", "service_tier")}
        return {**top, "object": "chat.completion", "choices": choices}


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} where an object belongs")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} where a list belongs")
    return value


def _merge(into: dict[str, object], delta: dict[str, object]) -> None:
    for name, value in delta.items():
        have = into.get(name)
        if value is None:
            into.setdefault(name, None)
        elif isinstance(value, str) and isinstance(have, str):
            into[name] = (have or value) if name in _WHOLE else have + value
        elif isinstance(value, dict) and isinstance(have, dict):
            _merge(have, value)
        elif isinstance(value, list):
            into[name] = _merge_list(have if isinstance(have, list) else [], value)
        else:
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
