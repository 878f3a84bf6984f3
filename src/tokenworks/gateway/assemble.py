"""One chat completion out of the chunks of its stream, for callers who asked for no stream."""

from __future__ import annotations

from typing import Final

import msgspec

from tokenworks.core.errors import WorkerFailed
from tokenworks.gateway.chunk_reading import is_first
from tokenworks.gateway.envelope import Envelope
from tokenworks.gateway.event_stream import payload

_WHOLE: Final = ("role", "id", "type", "name")
"""String fields that a chunk gives whole; any other string is a piece to append."""
_MERGED: Final = ("delta", "index")
"""Fields of a choice that are not kept as they are."""

UNREAD_BYTES_MAX: Final = 64 * 1024
"""Of events that wait to be read; an answer of a few hundred tokens is read at once."""

JSONObject = dict[str, object]
Completion = JSONObject
"""The JSON of a ``chat.completion``."""


class Assembler:
    """Collects chunks; ``completion`` gives the object they add up to.

    It is the ``Taker`` of an ``EventStream``. What it takes waits until the answer has ended, or
    there is much of it.
    """

    __slots__ = (
        *("_choices", "_envelope", "_messages", "_texts", "_top", "_unread", "_unread_bytes"),
        "_whose",
    )

    def __init__(self) -> None:
        self._unread: list[tuple[Envelope | None, list[bytes]]] = []
        """Texts with what was around them, or else events."""
        self._unread_bytes = 0
        self._envelope: Envelope | None = None
        """Of the last event, if it was a text and nothing else, and whose text that was."""
        self._whose: tuple[int, str] = (0, "")
        self._texts: list[bytes] = []
        """Further texts of the same, which have not been put together yet."""
        self._top: dict[str, object] = {}
        self._choices: dict[int, dict[str, object]] = {}
        self._messages: dict[int, dict[str, object]] = {}

    def event(self, event: bytes) -> None:
        """Take one event, not ``[DONE]``; see ``Taker``.

        Raises:
            WorkerFailed: an event is not a chat completion chunk, this one or one before it.
        """
        self._unread.append((None, [event]))
        self._unread_bytes += len(event)
        if self._unread_bytes > UNREAD_BYTES_MAX:
            self._read_all()

    def texts(self, envelope: Envelope, texts: list[bytes]) -> None:
        """Take further texts, a list of its own; see ``Taker``."""
        if self._unread and self._unread[-1][0] is envelope:
            self._unread[-1][1].extend(texts)
        else:
            self._unread.append((envelope, texts))

    def _read_all(self) -> None:
        unread, self._unread, self._unread_bytes = self._unread, [], 0
        for envelope, parts in unread:
            if envelope is None:
                for event in parts:
                    self._read(event)
            else:
                self._read_texts(envelope, parts)

    def _read_texts(self, envelope: Envelope, texts: list[bytes]) -> None:
        """Keep texts for ``_join``, if it is known whose they are; that is learnt of the first."""
        if envelope is not self._envelope:
            choices = self._read(envelope.event(texts[0]))
            self._envelope = envelope if self._learn(choices) else None
            texts = texts[1:]
        if self._envelope is not None:
            self._texts += texts
            return
        for text in texts:
            self._read(envelope.event(text))

    def _read(self, event: bytes) -> list[object]:
        """Take an event in; its choices, of which a comment has none."""
        body = payload(event)
        if not body:
            return []
        if self._texts:
            self._join()
        self._envelope = None
        try:
            return self._take(_object(msgspec.json.decode(body)))
        except (
            msgspec.DecodeError,
            UnicodeDecodeError,
            RecursionError,
            TypeError,
        ) as error:
            raise WorkerFailed(f"A worker's chunk cannot be read: {error}.") from error

    def close(self, last: list[bytes]) -> None:
        """Put together all that waits, and the last events, without ``[DONE]``.

        Raises:
            WorkerFailed: an event is not a chat completion chunk.
        """
        self._read_all()
        for event in last:
            self._read(event)
        if self._texts:
            self._join()

    def _join(self) -> None:
        """Put together the texts that wait."""
        whole = b"".join(self._texts)
        self._texts.clear()
        try:
            text = msgspec.json.decode(b'"%b"' % whole, type=str)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WorkerFailed(f"A worker's text cannot be read: {error}.") from error
        index, name = self._whose
        _merge(self._messages[index], {name: text})

    def _learn(self, choices: list[object]) -> bool:
        """Whether an event with these choices is a text and nothing else; and whose."""
        choice = _object(choices[0]) if len(choices) == 1 else {}
        delta, index = choice.get("delta"), choice.get("index")
        if isinstance(delta, dict) and len(delta) == 1 and isinstance(index, int):
            ((name, text),) = delta.items()
            if isinstance(text, str) and name not in _WHOLE and not choice.get("logprobs"):
                self._whose = (index, name)
                return True
        return False

    def _take(self, chunk: JSONObject) -> list[object]:
        """Take a chunk in; its choices."""
        choices = _list(chunk.pop("choices", None) or [])
        for name, value in chunk.items():
            if value is not None:
                self._top[name] = value
        for each in choices:
            choice = _object(each)
            index = choice.get("index")
            if is_first(index):
                index = 0
            if not isinstance(index, int):
                raise TypeError(f"a choice's index is {index!r}")
            if index not in self._choices:
                self._choices[index], self._messages[index] = {}, {}
            delta = choice.get("delta")
            if delta:
                _merge(self._messages[index], _object(delta))
            kept = self._choices[index]
            for name, value in choice.items():
                if value is None or name in _MERGED:
                    continue
                have = kept.get(name)
                if name == "text" and isinstance(have, str) and isinstance(value, str):
                    kept[name] = have + value
                elif name == "logprobs" and isinstance(have, dict):
                    _merge_logprobs(have, _object(value))
                else:
                    kept[name] = value
        return choices

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
        top = self._top.copy()
        top.pop("object", None)
        top.pop("service_tier", None)
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
