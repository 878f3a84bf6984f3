"""Choices read from bytes, so that a fuzzer that changes bytes changes what is sent.

Equal bytes always make equal choices; after their end each choice is the first one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

CUTS_MAX = 8
MUTATIONS_MAX = 4

VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        1 << 31,
        1 << 63,
        1 << 64,
        10**30,
        -(10**30),
        1.5,
        -0.0,
        1e308,
    ),
    *("", "a", "\0", "é", "🙂", "\u2028", "x" * 300, '"', "\\", "auto", "none", "text", "null"),
    *([], {}, [None], [[]], [{}], {"": ""}, {"type": "text", "text": "x"}, [1, "a", None]),
    *({"type": "object", "properties": {"a": {"type": "string"}}}, {"cached_tokens": 3}, "1", "ok"),
)
"""What may stand anywhere in JSON."""

SPLICES: tuple[bytes, ...] = (
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"NaN", b"1e999", b"-", b"9" * 40),
    *(
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"null",
        b"\n",
        b"\r\n",
        b"\n\n",
        b"\r",
        b" ",
    ),
    *(b"[" * 500, b'{"a":' * 400, b"\0", b"data:", b"data: ", b"data: [DONE]", b": comment\n\n"),
    *(b'"model":"foreman",', b'"usage":{"prompt_tokens":-1},', b'"n":2,', b"event: x\n"),
)
"""What may stand anywhere in bytes."""


class Choices:
    """Reads choices from bytes, one after another."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, bound: int) -> int:
        """A whole number from 0 to below a bound."""
        if bound <= 1:
            return 0
        size = 1 if bound <= 1 << 8 else 2
        self._at += size
        return int.from_bytes(self._data[self._at - size : self._at], "little") % bound

    def flag(self, one_in: int = 2) -> bool:
        """Yes, once in so many times."""
        return self.below(one_in) == one_in - 1

    def of(self, options: Sequence[T]) -> T:
        """One of several."""
        return options[self.below(len(options))]

    def some(self, options: Sequence[T], most: int) -> list[T]:
        """Up to so many, which may repeat."""
        return [self.of(options) for _ in range(self.below(most + 1))]

    def raw(self, most: int) -> bytes:
        """Bytes as they come, up to so many."""
        size = self.below(most + 1)
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        """All that are left."""
        at, self._at = self._at, len(self._data)
        return self._data[at:]


def cut(choices: Choices, data: bytes) -> list[bytes]:
    """The same bytes in parts, none of them empty."""
    if choices.flag(8) and len(data) < 600:
        return [data[i : i + 1] for i in range(len(data))]
    places = sorted({choices.below(len(data) + 1) for _ in range(choices.below(CUTS_MAX))})
    ends = [*places, len(data)]
    return [data[a:b] for a, b in zip([0, *places], ends, strict=True) if a < b]


def spliced(choices: Choices, data: bytes) -> bytes:
    """The same bytes with a few changes, or none."""
    for _ in range(choices.below(MUTATIONS_MAX)):
        at = choices.below(len(data) + 1)
        dropped = choices.below(4) if choices.flag() else 0
        put = choices.of(SPLICES) if choices.flag() else choices.raw(6)
        data = data[:at] + put + data[at + dropped :]
    return data


def changed(choices: Choices, value: Any) -> Any:
    """The same JSON value with a few changes, or none."""
    value = copy.deepcopy(value)
    for _ in range(choices.below(MUTATIONS_MAX)):
        _change(choices, value)
    return value


def _change(choices: Choices, root: Any) -> None:
    """Change something inside."""
    here = root
    while choices.flag() or here is root:
        inner = list(here.values()) if isinstance(here, dict) else list(here)
        inside = [each for each in inner if isinstance(each, dict | list) and each]
        if not inside or (here is root and choices.flag(4)):
            break
        here = choices.of(inside)
    put = copy.deepcopy(choices.of(VALUES))
    if isinstance(here, list):
        at = choices.below(len(here) + 1)
        kind = choices.below(4)
        if kind == 0 and here:
            here[at % len(here)] = put
        elif kind == 1 and here:
            del here[at % len(here)]
        elif kind == 2 and here:
            here.append(copy.deepcopy(here[at % len(here)]))
        else:
            here.insert(at, put)
        return
    names = sorted(here)
    name = choices.of(names) if names else "a"
    kind = choices.below(6)
    if kind <= 2 or not names:
        here[name] = put
    elif kind == 3:
        del here[name]
    elif kind == 4:
        here[choices.of(("a", "type", "text", "index", "content", "id"))] = put
    else:
        here[name] = [here[name]] if choices.flag() else {"a": here[name]}


def json_bytes(choices: Choices, value: Any) -> bytes:
    """JSON of a value, changed, in one of the ways to write it."""
    told = changed(choices, value)
    tight = not choices.flag(4)
    separators = (",", ":") if tight else None
    text = json.dumps(told, ensure_ascii=choices.flag(), separators=separators)
    raw = text.encode("utf-8", "surrogatepass")
    return spliced(choices, raw) if choices.flag(4) else raw
